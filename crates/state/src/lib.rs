//! What a host remembers: JSON ledgers with a generation, and the hash-chained audit log.
//!
//! A [`Ledger`] is one JSON file that is replaced as a whole (temporary file, fsync, rename, fsync of the directory), under a lock, with the copy before it kept.
//! A [`Store`] is a directory of ledgers with checked names: `keys.json`, `releases/<app>.json`.
//! The [`AuditLog`] is one JSON object per line; each carries the hash of the line before it.
//!
//! Invariants:
//!
//! - A reader sees the old contents or the new ones, never a mixture, whenever the machine stops.
//! - A file that cannot be understood is an error that names it; it is never taken for an empty one, and its bytes are set aside before anyone can overwrite them.
//! - An audit record has reached the disk before [`AuditLog::append`] returns.
//!
//! Nothing here is asynchronous: calls take milliseconds (an fsync), and a caller on an async runtime uses a blocking thread.
//! The clock is always an argument.

pub mod atomic;
pub mod audit;
pub mod ledger;
pub mod store;

mod lock;

pub use audit::{AuditLog, Entry, Outcome, Record};
pub use ledger::{Ledger, LedgerError, Snapshot};
pub use store::{Key, Store};
