//! Backups of a real PostgreSQL server in a strict S3 server, on good days and bad ones.

// The rig is shared by two programs, in whose eyes nothing of it can be reached from outside.
#![allow(unreachable_pub)]
#![allow(
    clippy::disallowed_methods,
    reason = "a test's files need not outlive a crash"
)]

#[path = "../rig/mod.rs"]
mod rig;

mod classes;
mod faults;
mod hanging;
mod lax;
mod roundtrip;
mod server_faults;
mod spool;
mod store_faults;
