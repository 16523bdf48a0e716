//! Looks into a `pg_dump` archive (custom format, no compression) while it passes by.
//!
//! The archive is a header, a table of contents, and then one block for each entry that has data. The tap counts rows and
//! bytes of each table and knows at the end whether every block that the table of contents promises has come and ended:
//! a dump that was cut anywhere, on the border of two blocks too, is told from a whole one.
//!
//! ```text
//!   Header ──► Contents ──► Mark ──► Data ◄──► chunks      Mark at the end of the stream + nothing owed = complete
//!                            ▲  └──► Object ◄──► chunks
//!                            └───────┘
//! ```
//!
//! Format: `src/bin/pg_dump/pg_backup_archiver.{c,h}` and `pg_backup_custom.c` of PostgreSQL; versions 1.14 (server 12 to 15),
//! 1.15 (16) and 1.16 (17, 18).

mod contents;
mod file;
mod tree;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use contents::{Contents, Cursor, Entry};
use file::{RdbTap, SqliteTap};
use tree::TreeTap;

pub use tree::Tree;

use crate::names::Kind;

/// Most bytes that header and table of contents may have; a million tables need about 500 MB.
const CONTENTS_LIMIT: usize = 768 << 20;
/// Newlines that `pg_dump` appends to a table's rows: `\.` and two empty lines.
const TRAILER_LINES: u64 = 3;

/// What went through the tap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Tables with data, by `schema.name`; partitions count for themselves.
    pub tables: BTreeMap<String, TableCounts>,
    /// Large objects.
    pub large_objects: u64,
    /// Bytes of large objects.
    pub large_object_bytes: u64,
    /// Entries of the table of contents.
    pub entries: u64,
    /// Files of a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<Tree>,
    /// Bytes of memory that a server took for it, as a snapshot of Redis says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

/// What one table has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableCounts {
    /// Rows.
    pub rows: u64,
    /// Bytes in `COPY` text form.
    pub bytes: u64,
}

impl Counts {
    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.tables.values().map(|table| table.rows).sum()
    }

    /// Bytes of all tables and large objects.
    pub fn bytes(&self) -> u64 {
        let tables: u64 = self.tables.values().map(|table| table.bytes).sum();
        tables + self.large_object_bytes + self.tree.as_ref().map_or(0, |tree| tree.bytes)
    }
}

/// Why a stream is not a whole archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TapError {
    /// The first bytes are something else.
    #[error("the dump does not begin like an archive of pg_dump")]
    Magic,
    /// A version or variant nobody has looked at.
    #[error("the dump has a form that this version does not know ({what})")]
    Unknown {
        /// Which.
        what: String,
    },
    /// The structure makes no sense.
    #[error("the dump is damaged after {at} bytes: {what}")]
    Damaged {
        /// Bytes that had come.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The stream ended too early.
    #[error("the dump is cut after {at} bytes: {what}")]
    Cut {
        /// Bytes that had come.
        at: u64,
        /// What is missing.
        what: String,
    },
}

#[derive(Debug)]
enum State {
    /// Collecting header and table of contents.
    Contents(Vec<u8>),
    /// Between blocks: kind and entry of the next one.
    Mark(Vec<u8>),
    /// Rows of a table: the next chunk's length.
    Data { entry: usize, length: Vec<u8> },
    /// Rows of a table: within a chunk.
    DataChunk { entry: usize, left: u64 },
    /// Large objects: the next one's number.
    Object { number: Vec<u8> },
    /// A large object: the next chunk's length.
    ObjectLength { length: Vec<u8> },
    /// A large object: within a chunk.
    ObjectChunk { left: u64 },
}

/// The tap; fed with [`Tap::feed`], asked at the end with [`Tap::finish`].
#[derive(Debug)]
pub struct Tap {
    state: State,
    contents: Contents,
    current: TableCounts,
    counts: Counts,
    seen: u64,
    /// Size at which parsing the table of contents is tried again; doubled each time, so the work stays linear.
    try_at: usize,
    other: Option<Other>,
}

/// Content that is no archive of `pg_dump`.
#[derive(Debug)]
enum Other {
    Tree(Box<TreeTap>),
    Redis(RdbTap),
    Sqlite(SqliteTap),
}

impl Default for Tap {
    fn default() -> Self {
        Self {
            state: State::Contents(Vec::new()),
            contents: Contents::default(),
            current: TableCounts::default(),
            counts: Counts::default(),
            seen: 0,
            try_at: 4096,
            other: None,
        }
    }
}

impl Tap {
    /// The tap for one kind of content.
    pub fn of(kind: Kind) -> Self {
        let other = match kind {
            Kind::Postgres => None,
            Kind::Redis => Some(Other::Redis(RdbTap::new())),
            Kind::Sqlite => Some(Other::Sqlite(SqliteTap::default())),
            Kind::Volume => Some(Other::Tree(Box::new(TreeTap::new()))),
        };
        Self {
            other,
            ..Self::default()
        }
    }

    /// Takes the next bytes of the stream, cut anywhere.
    ///
    /// # Errors
    /// When they cannot belong to an archive.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), TapError> {
        match &mut self.other {
            Some(Other::Tree(tap)) => return tap.feed(bytes),
            Some(Other::Redis(tap)) => return tap.feed(bytes),
            Some(Other::Sqlite(tap)) => return tap.feed(bytes),
            None => {}
        }
        while !bytes.is_empty() {
            let used = self.step(bytes, false)?;
            self.seen += used as u64;
            bytes = bytes.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// The end of the stream.
    ///
    /// # Errors
    /// When anything that the table of contents promises has not come.
    pub fn finish(mut self) -> Result<Counts, TapError> {
        match self.other {
            Some(Other::Tree(tap)) => {
                return Ok(Counts {
                    tree: Some(tap.finish()?),
                    ..Counts::default()
                });
            }
            Some(Other::Redis(tap)) => {
                return tap.finish().map(|memory| Counts {
                    memory,
                    ..Counts::default()
                });
            }
            Some(Other::Sqlite(tap)) => return tap.finish().map(|()| Counts::default()),
            None => {}
        }
        if matches!(&self.state, State::Contents(_)) {
            self.step(&[], true)?;
        }
        let cut = |what: String| TapError::Cut { at: self.seen, what };
        match &self.state {
            State::Mark(mark) if mark.is_empty() => {}
            State::Contents(_) => return Err(cut("the table of contents is not whole".to_owned())),
            _ => return Err(cut("it ends within a block".to_owned())),
        }
        if let Some(missing) = self.contents.entries.iter().find(|entry| entry.owed) {
            let others = self.contents.entries.iter().filter(|entry| entry.owed).count() - 1;
            return Err(cut(format!(
                "{} {} is missing, and {others} more",
                missing.description, missing.name
            )));
        }
        self.counts.entries = self.contents.entries.len() as u64;
        Ok(self.counts)
    }

    fn damaged(&self, what: &'static str) -> TapError {
        TapError::Damaged { at: self.seen, what }
    }

    /// Uses up some of `bytes`, at least one, and says how many.
    fn step(&mut self, bytes: &[u8], last: bool) -> Result<usize, TapError> {
        let int = self.contents.int_bytes();
        match std::mem::replace(&mut self.state, State::Mark(Vec::new())) {
            State::Contents(mut held) => {
                held.extend_from_slice(bytes);
                if held.len() < self.try_at && !last {
                    self.state = State::Contents(held);
                    return Ok(bytes.len());
                }
                if held.len() > CONTENTS_LIMIT {
                    return Err(self.damaged("the table of contents does not end"));
                }
                match Contents::parse(&mut Cursor::new(&held))? {
                    Some((contents, used)) => {
                        self.contents = contents;
                        // What was collected beyond the end belongs to the blocks.
                        let rest = held.split_off(used);
                        let already = rest.len().saturating_sub(bytes.len());
                        self.blocks(rest.get(..already).unwrap_or_default())?;
                        Ok(bytes.len() - (rest.len() - already))
                    }
                    None => {
                        self.try_at = held.len().saturating_mul(2);
                        self.state = State::Contents(held);
                        Ok(bytes.len())
                    }
                }
            }
            State::Mark(mut mark) => {
                let used = fill(&mut mark, bytes, 1 + int);
                if mark.len() == 1 + int {
                    let kind = mark.first().copied().unwrap_or_default();
                    let id = self.contents.int(mark.get(1..).unwrap_or_default());
                    self.open(kind, id)?;
                } else {
                    self.state = State::Mark(mark);
                }
                Ok(used)
            }
            State::Data { entry, mut length } => {
                if length.is_empty() {
                    let used = self.whole_chunks(bytes, int);
                    if used > 0 {
                        self.state = State::Data { entry, length };
                        return Ok(used);
                    }
                }
                let used = fill(&mut length, bytes, int);
                if length.len() < int {
                    self.state = State::Data { entry, length };
                } else {
                    match self.contents.int(&length) {
                        0 => self.close(entry)?,
                        left => {
                            let left =
                                u64::try_from(left).map_err(|_| self.damaged("a chunk of negative size"))?;
                            self.state = State::DataChunk { entry, left };
                        }
                    }
                }
                Ok(used)
            }
            State::DataChunk { entry, left } => {
                let used = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let chunk = bytes.get(..used).unwrap_or_default();
                self.current.rows += newlines(chunk);
                self.current.bytes += used as u64;
                let left = left - used as u64;
                self.state = if left == 0 {
                    State::Data {
                        entry,
                        length: Vec::new(),
                    }
                } else {
                    State::DataChunk { entry, left }
                };
                Ok(used)
            }
            State::Object { mut number } => {
                let used = fill(&mut number, bytes, int);
                if number.len() < int {
                    self.state = State::Object { number };
                } else if self.contents.int(&number) != 0 {
                    self.counts.large_objects += 1;
                    self.state = State::ObjectLength { length: Vec::new() };
                }
                Ok(used)
            }
            State::ObjectLength { mut length } => {
                let used = fill(&mut length, bytes, int);
                if length.len() < int {
                    self.state = State::ObjectLength { length };
                } else {
                    self.state = match self.contents.int(&length) {
                        0 => State::Object { number: Vec::new() },
                        left => State::ObjectChunk {
                            left: u64::try_from(left)
                                .map_err(|_| self.damaged("a chunk of negative size"))?,
                        },
                    };
                }
                Ok(used)
            }
            State::ObjectChunk { left } => {
                let used = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.counts.large_object_bytes += used as u64;
                let left = left - used as u64;
                self.state = if left == 0 {
                    State::ObjectLength { length: Vec::new() }
                } else {
                    State::ObjectChunk { left }
                };
                Ok(used)
            }
        }
    }

    /// Counts the chunks at the beginning of `bytes` that are there whole, and says how many bytes those are.
    ///
    /// `pg_dump` writes a chunk for each row, so this is where nearly all of a dump goes through: the newlines of all
    /// chunks are counted at once, with those of the lengths between them.
    fn whole_chunks(&mut self, bytes: &[u8], int: usize) -> usize {
        let (mut used, mut chunks, mut in_lengths) = (0_usize, 0_usize, 0_u64);
        while let Some(length) = bytes.get(used..used.saturating_add(int)) {
            let end = match usize::try_from(self.contents.int(length)) {
                // The end of the table, or nonsense: not a matter of speed.
                Ok(0) | Err(_) => break,
                Ok(left) => used.saturating_add(int).saturating_add(left),
            };
            if end > bytes.len() {
                break;
            }
            in_lengths += length.iter().filter(|byte| **byte == b'\n').count() as u64;
            used = end;
            chunks += 1;
        }
        let whole = bytes.get(..used).unwrap_or_default();
        self.current.rows += newlines(whole) - in_lengths;
        self.current.bytes += (used - chunks * int) as u64;
        used
    }

    /// Bytes that came with the table of contents.
    fn blocks(&mut self, mut bytes: &[u8]) -> Result<(), TapError> {
        while !bytes.is_empty() {
            let used = self.step(bytes, false)?;
            bytes = bytes.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    fn open(&mut self, kind: u8, id: i64) -> Result<(), TapError> {
        let at = self.seen;
        let Some(entry) = self.contents.by_id.get(&id).copied() else {
            return Err(self.damaged("a block of an unknown entry"));
        };
        let found = self.contents.entries.get_mut(entry).ok_or(TapError::Damaged {
            at,
            what: "a block of an unknown entry",
        })?;
        if !found.owed {
            return Err(self.damaged("a block that nobody expects"));
        }
        found.owed = false;
        match kind {
            // BLK_DATA and BLK_BLOBS of pg_backup_custom.c.
            1 => {
                self.current = TableCounts::default();
                self.state = State::Data {
                    entry,
                    length: Vec::new(),
                };
            }
            3 => self.state = State::Object { number: Vec::new() },
            _ => return Err(self.damaged("a block of an unknown kind")),
        }
        Ok(())
    }

    fn close(&mut self, entry: usize) -> Result<(), TapError> {
        let Some(Entry { name, .. }) = self.contents.entries.get(entry) else {
            return Err(self.damaged("a block of an unknown entry"));
        };
        let Some(rows) = self.current.rows.checked_sub(TRAILER_LINES) else {
            return Err(self.damaged("a table without its end mark"));
        };
        let table = self.counts.tables.entry(name.clone()).or_default();
        table.rows += rows;
        table.bytes += self.current.bytes;
        Ok(())
    }
}

fn fill(held: &mut Vec<u8>, bytes: &[u8], wanted: usize) -> usize {
    let used = bytes.len().min(wanted.saturating_sub(held.len()));
    held.extend_from_slice(bytes.get(..used).unwrap_or_default());
    used
}

fn newlines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}
