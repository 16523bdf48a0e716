//! Archives built by hand, in the shape that `pg_dump` gives them.

use proptest::prelude::*;

use super::*;

/// What an archive is built from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shape {
    /// Minor version: 14, 15 or 16.
    pub(crate) minor: u8,
    /// Rows of each table.
    pub(crate) tables: Vec<Vec<Vec<u8>>>,
    /// Large objects.
    pub(crate) objects: Vec<Vec<u8>>,
    /// Bytes of one chunk.
    pub(crate) chunk: usize,
}

fn int(out: &mut Vec<u8>, value: i32) {
    out.push(u8::from(value < 0));
    out.extend(value.unsigned_abs().to_le_bytes());
}

fn text(out: &mut Vec<u8>, value: Option<&str>) {
    match value {
        Some(value) => {
            int(out, value.len() as i32);
            out.extend(value.as_bytes());
        }
        None => int(out, -1),
    }
}

fn entry(out: &mut Vec<u8>, shape: &Shape, id: i32, description: &str, name: &str, data: bool) {
    int(out, id);
    int(out, i32::from(data));
    text(out, Some("0"));
    text(out, Some("0"));
    text(out, Some(name));
    text(out, Some(description));
    int(out, 3);
    for definition in [Some("CREATE …"), None, Some("COPY …")] {
        text(out, definition);
    }
    text(out, Some("public"));
    text(out, None);
    text(out, Some("heap"));
    if shape.minor >= 16 {
        int(out, 114);
    }
    text(out, Some("owner"));
    text(out, Some("false"));
    text(out, Some("17"));
    text(out, None);
    out.push(if data { 1 } else { 3 });
    out.extend([0; 8]);
}

/// The archive, and where each of its blocks ends.
pub(crate) fn archive(shape: &Shape) -> (Vec<u8>, Vec<usize>) {
    let mut out = b"PGDMP".to_vec();
    out.extend([1, shape.minor, 0, 4, 8, 1]);
    if shape.minor >= 15 {
        out.push(0);
    } else {
        int(&mut out, 0);
    }
    for value in [1, 2, 3, 4, 5, 126, 0] {
        int(&mut out, value);
    }
    for value in ["db", "15.18", "15.18"] {
        text(&mut out, Some(value));
    }
    let tables = shape.tables.len() as i32;
    int(&mut out, tables + 1 + i32::from(!shape.objects.is_empty()));
    entry(&mut out, shape, 1, "SCHEMA", "public", false);
    for number in 0..tables {
        entry(
            &mut out,
            shape,
            10 + number,
            "TABLE DATA",
            &format!("t{number}"),
            true,
        );
    }
    if !shape.objects.is_empty() {
        entry(&mut out, shape, 9, "BLOBS", "BLOBS", true);
    }
    let chunk = shape.chunk.max(1);
    let mut ends = vec![];
    for (number, rows) in shape.tables.iter().enumerate() {
        out.push(1);
        int(&mut out, 10 + number as i32);
        let mut data = Vec::new();
        for row in rows {
            data.extend(row);
            data.push(b'\n');
        }
        data.extend(b"\\.\n\n\n");
        for piece in data.chunks(chunk) {
            int(&mut out, piece.len() as i32);
            out.extend(piece);
        }
        int(&mut out, 0);
        ends.push(out.len());
    }
    if !shape.objects.is_empty() {
        out.push(3);
        int(&mut out, 9);
        for (number, object) in shape.objects.iter().enumerate() {
            int(&mut out, 1000 + number as i32);
            for piece in object.chunks(chunk) {
                int(&mut out, piece.len() as i32);
                out.extend(piece);
            }
            int(&mut out, 0);
        }
        int(&mut out, 0);
        ends.push(out.len());
    }
    (out, ends)
}

fn tapped(bytes: &[u8], cuts: &[usize]) -> Result<Counts, TapError> {
    let mut tap = Tap::default();
    let mut from = 0;
    for cut in cuts {
        let to = (*cut).clamp(from, bytes.len());
        tap.feed(&bytes[from..to])?;
        from = to;
    }
    tap.feed(&bytes[from..])?;
    tap.finish()
}

fn shape() -> impl Strategy<Value = Shape> {
    let row = proptest::collection::vec(
        any::<u8>().prop_filter("escaped by COPY", |byte| *byte != b'\n'),
        0..40,
    );
    (
        14_u8..=16,
        proptest::collection::vec(proptest::collection::vec(row, 0..20), 0..5),
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..4),
        1_usize..70,
    )
        .prop_map(|(minor, tables, objects, chunk)| Shape {
            minor,
            tables,
            objects,
            chunk,
        })
}

proptest! {
    #[test]
    fn counts_are_exact_however_the_stream_is_cut_into_reads(
        shape in shape(),
        mut cuts in proptest::collection::vec(0_usize..4000, 0..8),
    ) {
        cuts.sort_unstable();
        let (bytes, _) = archive(&shape);
        let counts = tapped(&bytes, &cuts).expect("whole");
        for (number, rows) in shape.tables.iter().enumerate() {
            prop_assert_eq!(counts.tables[&format!("public.t{number}")].rows, rows.len() as u64);
        }
        prop_assert_eq!(counts.large_objects, shape.objects.len() as u64);
        prop_assert_eq!(counts.large_object_bytes, shape.objects.iter().map(Vec::len).sum::<usize>() as u64);
    }

    #[test]
    fn no_shorter_stream_is_taken_for_a_whole_one(shape in shape(), cut in any::<prop::sample::Index>()) {
        let (bytes, ends) = archive(&shape);
        if !ends.is_empty() {
            prop_assert!(tapped(&bytes[..cut.index(bytes.len())], &[]).is_err());
            // On the border of two blocks as well, where the bytes themselves are in order.
            for end in &ends[..ends.len() - 1] {
                let said = matches!(tapped(&bytes[..*end], &[]), Err(TapError::Cut { .. }));
                prop_assert!(said, "cut after {} bytes", end);
            }
        }
    }

    #[test]
    fn rubbish_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), keep in 0_usize..30) {
        let (archive, _) = archive(&Shape { minor: 15, tables: vec![vec![b"x".to_vec()]], chunk: 9, ..Shape::default() });
        let mut mixed = archive[..keep.min(archive.len())].to_vec();
        mixed.extend(bytes);
        let _error_or_not = tapped(&mixed, &[7, 50]);
    }
}

#[test]
fn an_archive_version_that_nobody_looked_at_is_said() {
    let (bytes, _) = archive(&Shape {
        minor: 17,
        ..Shape::default()
    });
    assert!(matches!(tapped(&bytes, &[]), Err(TapError::Unknown { .. })));
}
