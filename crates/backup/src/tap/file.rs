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
/// Bytes at the beginning of a snapshot that are kept: its version, and what it says of its server.
const HEAD: usize = 512;
/// Begins a field about the server, before the data.
const FIELD: u8 = 0xfa;

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
        if self.head.len() < HEAD {
            let wanted = HEAD - self.head.len();
            self.head.extend(bytes.iter().take(wanted));
            if self.head.len() >= 9 && !self.head.starts_with(b"REDIS") {
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

    /// Answers with the memory that the server says it had in use.
    pub(super) fn finish(self) -> Result<Option<u64>, TapError> {
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
            Ok(wanted) if wanted == self.crc || wanted == 0 => Ok(used_memory(&self.head)),
            _ => Err(TapError::Cut {
                at: self.seen,
                what: "its checksum is another one".to_owned(),
            }),
        }
    }
}

/// `used-mem` among the fields at the beginning of a snapshot, bytes.
fn used_memory(head: &[u8]) -> Option<u64> {
    let mut rest = head.get(9..)?;
    while let Some((&FIELD, after)) = rest.split_first() {
        let (name, after) = text(after)?;
        let (value, after) = text(after)?;
        if name == b"used-mem" {
            return std::str::from_utf8(&value).ok()?.parse().ok();
        }
        rest = after;
    }
    None
}

/// One string as `rdbLoadStringObject` reads it, and what comes after it; numbers become their digits.
/// Compressed ones are not known: no field of a server's own is so long.
fn text(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let low = usize::from(first & 0x3f);
    let (length, rest) = match first >> 6 {
        0 => (low, rest),
        1 => {
            let (&second, rest) = rest.split_first()?;
            (low << 8 | usize::from(second), rest)
        }
        3 => {
            let number = |width| {
                let (digits, after) = rest.split_at_checked(width)?;
                let value = match *digits {
                    [one] => i32::from(i8::from_le_bytes([one])),
                    [one, two] => i32::from(i16::from_le_bytes([one, two])),
                    [one, two, three, four] => i32::from_le_bytes([one, two, three, four]),
                    _ => return None,
                };
                Some((value.to_string().into_bytes(), after))
            };
            return match low {
                0 => number(1),
                1 => number(2),
                2 => number(4),
                _ => None,
            };
        }
        _ => return None,
    };
    let (value, after) = rest.split_at_checked(length)?;
    Some((value.to_vec(), after))
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

    fn rdb(bytes: &[u8], step: usize) -> Result<Option<u64>, TapError> {
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
        tap.head = vec![0; HEAD];
        tap.feed(b"123456789").expect("fed");
        tap.feed(&[0; 8]).expect("fed");
        assert_eq!(tap.crc, 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn a_snapshot_that_was_cut_or_altered_is_told() {
        let whole = empty();
        for step in [1, 3, 100] {
            assert_eq!(rdb(&whole, step), Ok(None));
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
    fn the_memory_that_a_server_had_in_use_is_read_from_its_snapshot_and_from_nothing_else() {
        // As Redis 7.0 writes it: redis-ver 7.0.15, redis-bits 64 (one byte), ctime (four), used-mem (four).
        let begin = b"REDIS0010\xfa\x09redis-ver\x067.0.15\xfa\x0aredis-bits\xc0\x40\xfa\x05ctime\xc2\x10\x20\x30\x60";
        let with = |field: &[u8]| [begin.as_slice(), field, b"\xfa\x08aof-base\xc0\x00\xfe\x00"].concat();
        let small = with(b"\xfa\x08used-mem\xc2\xb8\x1e\x0e\x00");
        assert_eq!(used_memory(&small), Some(0x000e_1eb8));
        // More than fits into four bytes comes as digits.
        let large = with(b"\xfa\x08used-mem\x0b12345678901");
        assert_eq!(used_memory(&large), Some(12_345_678_901));
        assert_eq!(used_memory(&with(b"")), None);
        let negative = with(b"\xfa\x08used-mem\xc0\xff");
        assert_eq!(used_memory(&negative), None);
        for cut in 0..large.len() {
            // Never a wrong one, wherever it ends.
            assert!(
                matches!(used_memory(&large[..cut]), None | Some(12_345_678_901)),
                "{cut}"
            );
        }
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
