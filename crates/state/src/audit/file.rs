//! The log as a file: open, repair, append, read, verify.

use fs_err::os::unix::fs::OpenOptionsExt as _;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::chain::{self, Fault, Tip};
use super::{AuditError, Entry, Outcome, Record};
use crate::atomic;
use crate::lock::{self, Mode};

const FILE_MODE: u32 = 0o600;

/// A log to append to. Several may be open on one file, also in several processes.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    file: File,
    tip: Tip,
    /// Length of the file when `tip` was its last record.
    length: u64,
}

/// An opened log, and the record about its repair if it had to be repaired.
#[derive(Debug)]
pub struct Opened {
    /// The log.
    pub log: AuditLog,
    /// Present if the last line was torn by a crash and has been cut off.
    pub repaired: Option<Record>,
}

/// A log that proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How many records it holds.
    pub records: u64,
    /// The hash of the last one, to be noted elsewhere; 64 zeros for an empty log.
    pub head: String,
}

/// What `<log>.head` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    seq: u64,
    hash: String,
}

impl AuditLog {
    /// Opens the log at `path`, or begins one; its directory has to be there.
    ///
    /// Checks the last record only; [`verify`] checks them all.
    pub fn open(path: impl Into<PathBuf>, now: Timestamp) -> Result<Opened, AuditError> {
        let path = path.into();
        let fail = |source| AuditError::Open {
            path: path.clone(),
            source,
        };
        let _held = lock::take(&path, Mode::Exclusive).map_err(fail)?;
        let fresh = !path.exists();
        let file = fs_err::OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(fail)?
            .into_parts()
            .0;
        if fresh {
            atomic::sync_directory(atomic::directory_of(&path)).map_err(fail)?;
        }
        let mut log = AuditLog {
            path,
            file,
            tip: Tip::genesis(),
            length: 0,
        };
        let torn = log.load_tip()?;
        let repaired = match torn {
            None => None,
            Some(bytes) => Some(log.append_held(repair_entry(bytes), now)?),
        };
        Ok(Opened { log, repaired })
    }

    /// Appends one record; when this returns, it is on the disk.
    pub fn append(&mut self, entry: Entry, now: Timestamp) -> Result<Record, AuditError> {
        let _held = lock::take(&self.path, Mode::Exclusive).map_err(|source| AuditError::Append {
            path: self.path.clone(),
            source,
        })?;
        let length = self.measure()?;
        if length != self.length
            && let Some(bytes) = self.load_tip()?
        {
            self.append_held(repair_entry(bytes), now)?;
        }
        self.append_held(entry, now)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn append_held(&mut self, entry: Entry, now: Timestamp) -> Result<Record, AuditError> {
        let (record, mut line) =
            chain::seal(&self.tip, entry, now).map_err(|source| AuditError::Encode { source })?;
        line.push('\n');
        let fail = |source| AuditError::Append {
            path: self.path.clone(),
            source,
        };
        // One write: a crash or a full disk leaves a torn last line, which the next call repairs.
        if let Err(source) = self
            .file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data())
        {
            let _ = self.file.set_len(self.length);
            return Err(fail(source));
        }
        write_head(&self.path, &record).map_err(fail)?;
        self.tip = Tip {
            seq: record.seq,
            hash: record.hash.clone(),
        };
        self.length += line.len() as u64;
        Ok(record)
    }

    fn measure(&self) -> Result<u64, AuditError> {
        let metadata = self.file.metadata();
        metadata.map(|m| m.len()).map_err(|source| AuditError::Read {
            path: self.path.clone(),
            source,
        })
    }

    /// Finds the last record, cuts off a torn line after it, and compares with the head file.
    ///
    /// Returns how many bytes were cut off, if any.
    fn load_tip(&mut self) -> Result<Option<u64>, AuditError> {
        let read = |source| AuditError::Read {
            path: self.path.clone(),
            source,
        };
        let length = self.measure()?;
        let (last, end) = last_line(&mut self.file, length).map_err(read)?;
        let broken = |line, why| AuditError::Broken {
            path: self.path.clone(),
            line,
            why,
        };
        let tip = match last {
            None => Tip::genesis(),
            Some(line) => {
                let record = chain::open(&line)
                    .map_err(|why| broken(count_lines(&self.path).unwrap_or_default(), why))?;
                Tip {
                    seq: record.seq,
                    hash: record.hash,
                }
            }
        };
        check_head(&self.path, &tip).map_err(|why| broken(tip.seq + 1, why))?;
        let torn = (end < length).then_some(length - end);
        if torn.is_some() {
            let repair = |source| AuditError::Repair {
                path: self.path.clone(),
                source,
            };
            self.file
                .set_len(end)
                .and_then(|()| self.file.sync_all())
                .map_err(repair)?;
        }
        self.tip = tip;
        self.length = end;
        Ok(torn)
    }
}

/// Every record of the log at `path`, oldest first, without checking the chain; a torn last line is left out.
pub fn read(path: &Path) -> Result<Vec<Record>, AuditError> {
    let mut records = Vec::new();
    walk(path, |line, bytes| {
        let record = chain::open(bytes).map_err(|why| broken(path, line, why))?;
        records.push(record);
        Ok(())
    })?;
    Ok(records)
}

/// Checks every hash, every link and every number, and that the log reaches the last acknowledged record.
pub fn verify(path: &Path) -> Result<Verified, AuditError> {
    let _held = lock::take(path, Mode::Shared).map_err(|source| AuditError::Open {
        path: path.to_path_buf(),
        source,
    })?;
    let mut tip = Tip::genesis();
    let torn = walk(path, |line, bytes| {
        let record = chain::open(bytes).map_err(|why| broken(path, line, why))?;
        chain::follows(&tip, &record).map_err(|why| broken(path, line, why))?;
        tip = Tip {
            seq: record.seq,
            hash: record.hash,
        };
        Ok(())
    })?;
    if torn {
        return Err(broken(path, tip.seq + 1, Fault::Torn));
    }
    check_head(path, &tip).map_err(|why| broken(path, tip.seq + 1, why))?;
    Ok(Verified {
        records: tip.seq,
        head: tip.hash,
    })
}

/// Calls `each` with number and bytes of every whole line; says whether a torn one follows.
fn walk(path: &Path, mut each: impl FnMut(u64, &[u8]) -> Result<(), AuditError>) -> Result<bool, AuditError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => {
            return Err(AuditError::Open {
                path: path.to_path_buf(),
                source,
            });
        }
    };
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    let mut number = 0;
    loop {
        bytes.clear();
        let read = reader.read_until(b'\n', &mut bytes);
        let count = read.map_err(|source| AuditError::Read {
            path: path.to_path_buf(),
            source,
        })?;
        if count == 0 {
            return Ok(false);
        }
        if bytes.pop() != Some(b'\n') {
            return Ok(true);
        }
        number += 1;
        each(number, &bytes)?;
    }
}

fn broken(path: &Path, line: u64, why: Fault) -> AuditError {
    AuditError::Broken {
        path: path.to_path_buf(),
        line,
        why,
    }
}

fn repair_entry(bytes: u64) -> Entry {
    Entry {
        who: "agent".to_owned(),
        verb: "audit.repair".to_owned(),
        app: None,
        payload_sha256: None,
        result: Outcome::Done,
        detail: serde_json::json!({ "torn_bytes_cut_off": bytes }),
    }
}

/// The last whole line (without its newline) and where it ends (after its newline).
fn last_line(file: &mut File, length: u64) -> io::Result<(Option<Vec<u8>>, u64)> {
    const STEP: u64 = 64 * 1024;
    let mut tail: Vec<u8> = Vec::new();
    let mut start = length;
    loop {
        let newest = tail.iter().rposition(|&byte| byte == b'\n');
        let begin = newest.and_then(|newest| tail[..newest].iter().rposition(|&byte| byte == b'\n'));
        if let Some(newest) = newest
            && (begin.is_some() || start == 0)
        {
            let begin = begin.map_or(0, |at| at + 1);
            return Ok((Some(tail[begin..newest].to_vec()), start + newest as u64 + 1));
        }
        if start == 0 {
            return Ok((None, 0));
        }
        let step = STEP.min(start);
        start -= step;
        file.seek(SeekFrom::Start(start))?;
        let mut chunk = vec![0; step as usize];
        file.read_exact(&mut chunk)?;
        chunk.extend_from_slice(&tail);
        tail = chunk;
    }
}

fn count_lines(path: &Path) -> io::Result<u64> {
    BufReader::new(File::open(path)?)
        .split(b'\n')
        .try_fold(0, |count, line| line.map(|_| count + 1))
}

fn head_path(path: &Path) -> PathBuf {
    atomic::beside(path, ".head")
}

fn write_head(path: &Path, record: &Record) -> io::Result<()> {
    let head = Head {
        seq: record.seq,
        hash: record.hash.clone(),
    };
    let text = serde_json::to_vec(&head).map_err(io::Error::other)?;
    atomic::write_locked(&head_path(path), &text, FILE_MODE)
}

/// The log may be one record ahead of the head file (a crash between the two writes), never behind it.
fn check_head(path: &Path, tip: &Tip) -> Result<(), Fault> {
    let head_path = head_path(path);
    let lost = || Fault::HeadLost {
        path: head_path.display().to_string(),
    };
    let head: Head = match fs_err::read(&head_path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|_| lost())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound && tip.seq <= 1 => return Ok(()),
        Err(_) => return Err(lost()),
    };
    if head.seq > tip.seq {
        return Err(Fault::CutShort {
            found: tip.seq,
            acknowledged: head.seq,
        });
    }
    if head.seq == tip.seq && head.hash != tip.hash {
        return Err(Fault::Replaced { number: tip.seq });
    }
    Ok(())
}
