//! Looks at the two forms of database that are one file: a Redis snapshot and a SQLite database.
//!
//! Redis: `rdb.c` of Redis 7: `REDIS` and four digits at the beginning, opcode 255 and a CRC-64 (Jones) of everything
//! before it at the end, or eight zeros where the server was told to leave it out.
//! SQLite: <https://www.sqlite.org/fileformat2.html#the_database_header>.

use super::TapError;

/// What ends a snapshot: the opcode and the checksum.
const TRAILER: usize = 9;
/// Reflected form of the polynomial that Redis uses.
const POLYNOMIAL: u64 = 0x95ac_9329_ac4b_c9b5;
/// Bytes of SQLite's header.
const HEADER: usize = 100;

/// Fed with a snapshot of Redis.
#[derive(Debug)]
pub(super) struct RdbTap {
    head: Vec<u8>,
    /// The last bytes that came; they may be the trailer.
    tail: Vec<u8>,
    crc: u64,
    seen: u64,
    table: Box<[u64; 256]>,
}

impl RdbTap {
    pub(super) fn new() -> Self {
        let mut table = Box::new([0; 256]);
        for (index, entry) in (0_u64..).zip(table.iter_mut()) {
            *entry = (0..8).fold(index, |crc, _| {
                if crc & 1 == 1 {
                    (crc >> 1) ^ POLYNOMIAL
                } else {
                    crc >> 1
                }
            });
        }
        Self {
            head: Vec::new(),
            tail: Vec::new(),
            crc: 0,
            seen: 0,
            table,
        }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), TapError> {
        self.seen += bytes.len() as u64;
        if self.head.len() < 9 {
            let wanted = 9 - self.head.len();
            self.head.extend(bytes.iter().take(wanted));
            if self.head.len() == 9 && !self.head.starts_with(b"REDIS") {
                return Err(TapError::Damaged {
                    at: self.seen,
                    what: "it does not begin like a snapshot of Redis",
                });
            }
        }
        self.tail.extend_from_slice(bytes);
        // All but the checksum itself is summed.
        let settled = self.tail.len().saturating_sub(TRAILER - 1);
        for byte in self.tail.drain(..settled) {
            let index = usize::from((self.crc as u8) ^ byte);
            self.crc = self.table[index] ^ (self.crc >> 8);
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<(), TapError> {
        let version = self
            .head
            .get(5..9)
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
        let Some(version) = version else {
            return Err(TapError::Cut {
                at: self.seen,
                what: "its header is not whole".to_owned(),
            });
        };
        // Older ones have no checksum; nothing that runs today writes them.
        if version < 5 {
            return Err(TapError::Unknown {
                what: format!("a snapshot of Redis, version {version}"),
            });
        }
        let wanted = <[u8; 8]>::try_from(self.tail.as_slice()).map(u64::from_le_bytes);
        match wanted {
            Ok(wanted) if wanted == self.crc || wanted == 0 => Ok(()),
            _ => Err(TapError::Cut {
                at: self.seen,
                what: "its checksum is another one".to_owned(),
            }),
        }
    }
}

/// Fed with a SQLite database.
#[derive(Debug, Default)]
pub(super) struct SqliteTap {
    header: Vec<u8>,
    seen: u64,
}

impl SqliteTap {
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), TapError> {
        self.seen += bytes.len() as u64;
        let wanted = HEADER - self.header.len();
        self.header.extend(bytes.iter().take(wanted));
        if self.header.len() >= 16 && !self.header.starts_with(b"SQLite format 3\0") {
            return Err(TapError::Damaged {
                at: self.seen,
                what: "it does not begin like a SQLite database",
            });
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<(), TapError> {
        let number = |from: usize, to: usize| {
            let bytes = self.header.get(from..to)?;
            Some(bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)))
        };
        let (Some(size), Some(pages)) = (number(16, 18), number(28, 32)) else {
            return Err(TapError::Cut {
                at: self.seen,
                what: "its header is not whole".to_owned(),
            });
        };
        // 1 stands for the one size that the field cannot hold.
        let size = if size == 1 { 65_536 } else { size };
        if size * pages == self.seen {
            return Ok(());
        }
        Err(TapError::Cut {
            at: self.seen,
            what: format!("it should have {pages} pages of {size} bytes"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rdb(bytes: &[u8], step: usize) -> Result<(), TapError> {
        let mut tap = RdbTap::new();
        for piece in bytes.chunks(step) {
            tap.feed(piece)?;
        }
        tap.finish()
    }

    /// A server's own snapshot of an empty database, version 10 (Redis 7.0), without auxiliary fields.
    fn empty() -> Vec<u8> {
        let mut bytes = b"REDIS0010\xff".to_vec();
        let mut tap = RdbTap::new();
        tap.feed(&bytes).expect("fed");
        tap.feed(&[0; 8]).expect("fed");
        bytes.extend(tap.crc.to_le_bytes());
        bytes
    }

    #[test]
    fn the_checksum_is_that_of_redis_itself() {
        // The check value in `crc64.c`.
        let mut tap = RdbTap::new();
        tap.head = vec![0; 9];
        tap.feed(b"123456789").expect("fed");
        tap.feed(&[0; 8]).expect("fed");
        assert_eq!(tap.crc, 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn a_snapshot_that_was_cut_or_altered_is_told() {
        let whole = empty();
        for step in [1, 3, 100] {
            assert_eq!(rdb(&whole, step), Ok(()));
        }
        for cut in 0..whole.len() {
            assert!(rdb(&whole[..cut], 4).is_err(), "{cut}");
        }
        let mut altered = whole.clone();
        altered[8] ^= 1;
        assert!(rdb(&altered, 5).is_err());
        assert!(rdb(b"*1\r\n$4\r\nPING\r\n", 100).is_err());
    }

    #[test]
    fn a_sqlite_file_has_as_many_pages_as_it_says() {
        let mut file = b"SQLite format 3\0\x10\x00".to_vec();
        file.resize(28, 0);
        file.extend([0, 0, 0, 2]);
        file.resize(8192, 7);
        let look = |bytes: &[u8]| {
            let mut tap = SqliteTap::default();
            bytes.chunks(10).try_for_each(|piece| tap.feed(piece))?;
            tap.finish()
        };
        assert_eq!(look(&file), Ok(()));
        assert!(look(&file[..4096]).is_err());
        assert!(look(&file[..20]).is_err());
        assert!(look(b"something else entirely").is_err());
    }
}
