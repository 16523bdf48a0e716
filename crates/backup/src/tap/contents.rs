//! Header and table of contents of an archive.

use std::collections::BTreeMap;

use super::TapError;

/// Longest text of one entry, bytes: a function's definition may be long.
const TEXT_LIMIT: i64 = 256 << 20;

/// One entry that may have data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// `TABLE DATA`, `BLOBS`, …
    pub(super) description: String,
    /// `schema.name`.
    pub(super) name: String,
    /// Whether its block is still to come.
    pub(super) owed: bool,
}

/// What the first part of an archive says.
#[derive(Debug, Default)]
pub(super) struct Contents {
    int_size: usize,
    pub(super) entries: Vec<Entry>,
    pub(super) by_id: BTreeMap<i64, usize>,
}

/// Reads from a slice that may end too early: `None` then.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    int_size: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            int_size: 4,
        }
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn int(&mut self) -> Option<i64> {
        let bytes = self.take(1 + self.int_size)?;
        Some(integer(bytes))
    }

    /// A text; `Some(None)` for a missing one.
    fn text(&mut self) -> Result<Option<Option<&'a [u8]>>, TapError> {
        let Some(length) = self.int() else { return Ok(None) };
        if length < 0 {
            return Ok(Some(None));
        }
        if length > TEXT_LIMIT {
            return Err(TapError::Damaged {
                at: self.at as u64,
                what: "a text of absurd length",
            });
        }
        Ok(self.take(usize::try_from(length).unwrap_or(usize::MAX)).map(Some))
    }
}

/// A sign byte and a little-endian number, as `WriteInt` writes it.
fn integer(bytes: &[u8]) -> i64 {
    // Nearly all there are, once for each row of a dump.
    if let [0, a, b, c, d] = *bytes {
        return i64::from(u32::from_le_bytes([a, b, c, d]));
    }
    let Some((sign, digits)) = bytes.split_first() else {
        return 0;
    };
    let value = digits
        .iter()
        .rev()
        .take(8)
        .fold(0_u64, |value, digit| (value << 8) | u64::from(*digit));
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    if *sign == 0 { value } else { -value }
}

/// Leaves the function with "not enough bytes yet".
macro_rules! need {
    ($value:expr) => {
        match $value {
            Some(value) => value,
            None => return Ok(None),
        }
    };
}

impl Contents {
    /// Bytes of an integer in this archive, with its sign.
    pub(super) fn int_bytes(&self) -> usize {
        1 + self.int_size
    }

    pub(super) fn int(&self, bytes: &[u8]) -> i64 {
        integer(bytes)
    }

    /// Reads header and table of contents; `None` when more bytes are needed. The number is how many were used.
    pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<Option<(Self, usize)>, TapError> {
        let unknown = |what: String| Err(TapError::Unknown { what });
        if need!(cursor.take(5)) != b"PGDMP" {
            return Err(TapError::Magic);
        }
        let version = (need!(cursor.byte()), need!(cursor.byte()));
        let _revision = need!(cursor.byte());
        if !matches!(version, (1, 14..=16)) {
            return unknown(format!("archive version {}.{}", version.0, version.1));
        }
        let int_size = usize::from(need!(cursor.byte()));
        let offset_size = usize::from(need!(cursor.byte()));
        if !matches!(int_size, 4 | 8) || !matches!(offset_size, 4 | 8) {
            return unknown(format!("integers of {int_size}, offsets of {offset_size} bytes"));
        }
        cursor.int_size = int_size;
        if need!(cursor.byte()) != 1 {
            return unknown("not the custom format".to_owned());
        }
        let compression = if version.1 >= 15 {
            i64::from(need!(cursor.byte()))
        } else {
            need!(cursor.int())
        };
        if compression != 0 {
            return unknown("compressed by pg_dump".to_owned());
        }
        // The time of the dump: seven numbers. Then the database and the versions of server and program.
        for _ in 0..7 {
            need!(cursor.int());
        }
        for _ in 0..3 {
            need!(cursor.text()?);
        }
        let count = need!(cursor.int());
        let mut contents = Self {
            int_size,
            ..Self::default()
        };
        for _ in 0..count {
            let (id, entry) = need!(Self::entry(cursor, version.1, offset_size)?);
            contents.by_id.insert(id, contents.entries.len());
            contents.entries.push(entry);
        }
        Ok(Some((contents, cursor.at)))
    }

    fn entry(
        cursor: &mut Cursor<'_>,
        minor: u8,
        offset_size: usize,
    ) -> Result<Option<(i64, Entry)>, TapError> {
        let id = need!(cursor.int());
        let has_data = need!(cursor.int()) != 0;
        // Catalogue ids of the object, as texts.
        need!(cursor.text()?);
        need!(cursor.text()?);
        let tag = need!(cursor.text()?).unwrap_or_default();
        let description = need!(cursor.text()?).unwrap_or_default();
        need!(cursor.int()); // section
        for _definition_drop_copy in 0..3 {
            need!(cursor.text()?);
        }
        let namespace = need!(cursor.text()?).unwrap_or_default();
        for _tablespace_access_method in 0..2 {
            need!(cursor.text()?);
        }
        if minor >= 16 {
            need!(cursor.int()); // kind of relation
        }
        for _owner_oids in 0..2 {
            need!(cursor.text()?);
        }
        while need!(cursor.text()?).is_some() {} // dependencies
        // K_OFFSET_NO_DATA = 3.
        let flag = need!(cursor.byte());
        need!(cursor.take(offset_size));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Some((
            id,
            Entry {
                description: text(description),
                name: if namespace.is_empty() {
                    text(tag)
                } else {
                    format!("{}.{}", text(namespace), text(tag))
                },
                owed: has_data && flag != 3,
            },
        )))
    }
}
