//! Backups of a real PostgreSQL server in a strict S3 server, on good days and bad ones.

// The rig is shared by two programs, in whose eyes nothing of it can be reached from outside.
#![allow(unreachable_pub)]

#[path = "../rig/mod.rs"]
mod rig;

mod faults;
mod roundtrip;
