//! Looks into a tar archive while it passes by: what lies in it, whatever the order, and that it is whole.
//!
//! The digest is a sum over the entries, so a tree that was unpacked and packed again has the same one although its
//! directories list their files in another order. Times are left out: unpacking changes those of directories.
//!
//! Format: POSIX ustar with the extensions of GNU (`L`, `K`) and pax (`x`, `g`), as GNU tar and BusyBox write it.

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::TapError;

/// Size of a header and unit of content.
const BLOCK: usize = 512;
/// Longest name in an extension.
const NAME: u64 = 1 << 20;

/// What an archive holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tree {
    /// Files, directories, links.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Sum over the digests of all entries: kind, name, mode, owner, content. Empty where there are hard links, since
    /// which of the names is the file depends on the order.
    pub digest: String,
}

/// Fed with an archive, piece by piece.
#[derive(Debug)]
pub(super) struct TreeTap {
    header: Vec<u8>,
    current: Option<Entry>,
    /// From extensions, for the entry that follows.
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    zeros: u32,
    links: u64,
    tree: Tree,
    sum: [u64; 4],
    seen: u64,
}

/// The entry whose content passes by.
#[derive(Debug)]
struct Entry {
    kind: u8,
    left: u64,
    padding: u64,
    digest: Digest,
    held: Vec<u8>,
}

/// `Context` says nothing about itself.
struct Digest(Context);

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digest")
    }
}

impl TreeTap {
    pub(super) fn new() -> Self {
        Self {
            header: Vec::with_capacity(BLOCK),
            current: None,
            name: None,
            link: None,
            size: None,
            zeros: 0,
            links: 0,
            tree: Tree::default(),
            sum: [0; 4],
            seen: 0,
        }
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), TapError> {
        self.seen += bytes.len() as u64;
        while !bytes.is_empty() {
            let used = match &mut self.current {
                Some(entry) => {
                    let used = entry.take(bytes);
                    if entry.left == 0 && entry.padding == 0 {
                        self.end()?;
                    }
                    used
                }
                None => {
                    let used = bytes.len().min(BLOCK - self.header.len());
                    self.header
                        .extend_from_slice(bytes.get(..used).unwrap_or_default());
                    if self.header.len() == BLOCK {
                        let header = std::mem::take(&mut self.header);
                        self.begin(&header)?;
                    }
                    used
                }
            };
            bytes = bytes.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Tree, TapError> {
        let cut = |what: &str| TapError::Cut {
            at: self.seen,
            what: what.to_owned(),
        };
        if self.current.is_some() || !self.header.is_empty() {
            return Err(cut("it ends within a file"));
        }
        if self.zeros < 2 {
            return Err(cut("the end of the archive is missing"));
        }
        let mut tree = self.tree;
        if self.links == 0 {
            tree.digest = hex::encode(self.sum.map(u64::to_be_bytes).concat());
        }
        Ok(tree)
    }

    fn damaged(&self, what: &'static str) -> TapError {
        TapError::Damaged { at: self.seen, what }
    }

    fn begin(&mut self, header: &[u8]) -> Result<(), TapError> {
        if header.iter().all(|byte| *byte == 0) {
            self.zeros += 1;
            return Ok(());
        }
        if self.zeros >= 2 {
            return Err(self.damaged("something follows the end of the archive"));
        }
        self.zeros = 0;
        let field = |from: usize, to: usize| header.get(from..to).unwrap_or_default();
        let sum: u64 = header
            .iter()
            .enumerate()
            // The checksum counts as if it were spaces.
            .map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            .sum();
        if number(field(148, 156)) != Some(sum) {
            return Err(self.damaged("the checksum of a header is wrong"));
        }
        let kind = header.get(156).copied().unwrap_or_default();
        let size = number(field(124, 136)).ok_or_else(|| self.damaged("a size is no number"))?;
        let extension = matches!(kind, b'L' | b'K' | b'x' | b'g');
        if !extension && !matches!(kind, 0 | b'0'..=b'7') {
            return Err(TapError::Unknown {
                what: format!("an entry of kind {:?}", char::from(kind)),
            });
        }
        if extension && size > NAME {
            return Err(self.damaged("a name does not end"));
        }
        let mut digest = Context::new(&SHA256);
        let mut size = size;
        if !extension {
            let mut name = field(0, 100).to_vec();
            if field(257, 263) == b"ustar\0" && header.get(345).is_some_and(|byte| *byte != 0) {
                name = [text(field(345, 500)), b"/", text(&name)].concat();
            }
            let name = self.name.take().unwrap_or(name);
            let link = self.link.take().unwrap_or_else(|| field(157, 257).to_vec());
            size = self.size.take().unwrap_or(size);
            // Some kinds carry a size that means nothing.
            if !matches!(kind, 0 | b'0' | b'7') {
                size = 0;
            }
            if kind == b'1' {
                self.links += 1;
            }
            for part in [
                &[if kind == 0 { b'0' } else { kind }][..],
                text(&name),
                text(&link),
                &number(field(100, 108)).unwrap_or(0).to_be_bytes(),
                &number(field(108, 116)).unwrap_or(0).to_be_bytes(),
                &number(field(116, 124)).unwrap_or(0).to_be_bytes(),
            ] {
                digest.update(&(part.len() as u64).to_be_bytes());
                digest.update(part);
            }
            self.tree.entries += 1;
            self.tree.bytes += size;
        }
        self.current = Some(Entry {
            kind,
            left: size,
            padding: size.next_multiple_of(BLOCK as u64) - size,
            digest: Digest(digest),
            held: Vec::new(),
        });
        if size == 0 {
            self.end()?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), TapError> {
        let Some(entry) = self.current.take() else {
            return Ok(());
        };
        match entry.kind {
            b'L' => self.name = Some(entry.held),
            b'K' => self.link = Some(entry.held),
            b'x' => {
                for (key, value) in records(&entry.held) {
                    match key {
                        b"path" => self.name = Some(value.to_vec()),
                        b"linkpath" => self.link = Some(value.to_vec()),
                        b"size" => {
                            let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                            self.size = Some(size.ok_or_else(|| self.damaged("a size is no number"))?);
                        }
                        _ => {}
                    }
                }
            }
            b'g' => {}
            _ => {
                let digest = entry.digest.0.finish();
                for (lane, bytes) in self.sum.iter_mut().zip(digest.as_ref().chunks_exact(8)) {
                    let word = bytes.try_into().map_or(0, u64::from_be_bytes);
                    *lane = lane.wrapping_add(word);
                }
            }
        }
        Ok(())
    }
}

impl Entry {
    /// Takes content, then padding.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let part = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        if self.left > 0 {
            let used = part(self.left);
            let content = bytes.get(..used).unwrap_or_default();
            if matches!(self.kind, b'L' | b'K' | b'x' | b'g') {
                self.held.extend_from_slice(content);
            } else {
                self.digest.0.update(content);
            }
            self.left -= used as u64;
            return used;
        }
        let used = part(self.padding);
        self.padding -= used as u64;
        used
    }
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    field.get(..end).unwrap_or_default()
}

/// A number: octal digits, or binary with the highest bit set.
fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|byte| *byte & 0x80 != 0) {
        let tail = field.get(field.len().saturating_sub(8)..)?;
        return Some(u64::from_be_bytes(tail.try_into().ok()?));
    }
    let digits = std::str::from_utf8(text(field)).ok()?.trim();
    if digits.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(digits, 8).ok()
}

/// The records of a pax extension: `LENGTH KEY=VALUE\n`.
fn records(mut held: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut found = Vec::new();
    while let Some(space) = held.iter().position(|byte| *byte == b' ') {
        let length = held
            .get(..space)
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
        let Some(record) = length.and_then(|length| held.get(space + 1..length)) else {
            break;
        };
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        if let Some(equals) = record.iter().position(|byte| *byte == b'=') {
            found.push((
                record.get(..equals).unwrap_or_default(),
                record.get(equals + 1..).unwrap_or_default(),
            ));
        }
        held = held.get(length.unwrap_or(held.len())..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn look(archive: &[u8], step: usize) -> Result<Tree, TapError> {
        let mut tap = TreeTap::new();
        for piece in archive.chunks(step) {
            tap.feed(piece)?;
        }
        tap.finish()
    }

    fn pack(directory: &std::path::Path, format: &str, names: &[&str]) -> Vec<u8> {
        let packed = Command::new("tar")
            .arg(format!("--format={format}"))
            .args(["-c", "-f", "-", "-C"])
            .arg(directory)
            .args(names)
            .output()
            .expect("tar");
        assert!(packed.status.success());
        packed.stdout
    }

    fn write(path: &std::path::Path, content: &[u8]) {
        use std::io::Write as _;
        std::fs::File::create(path)
            .and_then(|mut file| file.write_all(content))
            .expect("written");
    }

    #[test]
    fn a_tree_is_the_same_in_any_order_and_another_one_is_not() {
        let directory = tempfile::tempdir().expect("directory");
        let root = directory.path();
        let long = "a very long name ".repeat(12);
        std::fs::create_dir(root.join("d")).expect("made");
        write(&root.join("d/empty"), b"");
        write(&root.join(&long), &[7; 1500]);
        write(&root.join("plain"), b"content");
        std::os::unix::fs::symlink(&long, root.join("link")).expect("made");
        for format in ["gnu", "pax", "posix"] {
            let one = pack(root, format, &["d", "plain", "link", &long]);
            let two = pack(root, format, &[&long, "link", "d", "plain"]);
            assert_ne!(one, two);
            let tree = look(&one, 700).expect("whole");
            assert_eq!(look(&two, 1).expect("whole"), tree);
            assert_eq!((tree.entries, tree.bytes), (5, 1507), "{format}");
            // Cut anywhere it is not whole.
            for cut in [0, 100, 512, 1100, one.len() / 2] {
                assert!(look(&one[..cut], 4096).is_err(), "{format} {cut}");
            }
        }
        let before = look(&pack(root, "gnu", &["d", "plain"]), 512).expect("whole");
        write(&root.join("plain"), b"CONTENT");
        let after = look(&pack(root, "gnu", &["d", "plain"]), 512).expect("whole");
        assert_eq!(before.bytes, after.bytes);
        assert_ne!(before.digest, after.digest);
    }

    proptest! {
        #[test]
        fn rubbish_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), step in 1_usize..600) {
            prop_assert!(look(&bytes, step).is_err());
        }
    }
}
