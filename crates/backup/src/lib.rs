//! Backups that have been restored: databases to a bucket and back, with proof at every step.
//!
//! ```text
//!  pg_dump ─► FIFO ─► tap ─► zstd ─► age ─► 8 MiB parts ─► volumes ─► manifest, signed, last
//!  (container)        rows             host key,            S3 or       = the backup exists
//!                     counted          recovery key         directory
//!
//!  volumes ─► age ─► zstd ─► tap ─► FIFO ─► pg_restore ─► side database ─► counts, schema ─► swap
//! ```
//!
//! Invariants, each a test:
//! - A backup is listed only if its signed manifest exists and every object it names is there with the named size.
//! - Nothing is ever overwritten; state is derived by listing.
//! - Live data is not changed by a restore until every check passed; then by one transaction.
//! - Retention never removes the newest verified, the two newest, what is held, what is younger than a day.
//! - Recovery needs the bucket, its credentials and the recovery key; with common tools alone ([`readme`]).
//! - Whatever dies at whatever moment: the [`journal`] knows what was under way and [`recover`] settles it.
//!
//! The library starts no clock and draws no chance of its own: both come in with [`backup::Outside`].

pub mod backup;
pub mod journal;
pub mod manifest;
pub mod names;
pub mod place;
pub mod postgres;
pub mod readme;
pub mod recover;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod seal;
pub mod sign;
pub mod store;
pub mod stream;
pub mod tap;
pub mod volumes;
