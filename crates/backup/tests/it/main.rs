//! Backups of a real PostgreSQL server in a strict S3 server, on good days and bad ones.

#[path = "../rig/mod.rs"]
mod rig;

mod faults;
mod roundtrip;
