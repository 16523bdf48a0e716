//! A fresh server becomes an appliance: observe, plan, apply, verify.
//!
//! ```text
//!            Options ─┐
//!                     ├─► items() ─► Item { why, Want… } ─┐
//!  Host ─► observe() ─┴─► Facts { …, what each Want saw } ─┴─► plan() ─► Plan ─► check()
//!                                                                        │
//!  Host ◄── apply(): for each step observe again → act → observe again ◄──┘
//! ```
//!
//! An [`Item`](item::Item) is one line of the hardening list: id, reason, references, rollback, and the few [`Want`](want::Want)s it consists of.
//! A `Want` knows how to look ([`Want::observe`](want::Want::observe)), what would change ([`Want::changes`](want::Want::changes), pure)
//! and how to act; verifying is looking again.
//! To add a line to the list is to add one value in `catalogue/`.
//!
//! What holds:
//! - Nothing is touched before the [`gate`](gate::gate) let the system through and [`check`](plan::check) found the plan harmless.
//! - Every step is safe to repeat; files appear by temporary file, fsync and rename.
//!   What a step still owes after its files are in place (a reload, a restart) is written down before it begins,
//!   so a run killed anywhere is finished by the next one.
//! - Files of others are merged, never replaced; no key is ever removed.
//! - This crate prints nothing and reads no environment; progress goes to a callback.

pub mod authorized_keys;
pub mod cloud_init;
pub mod docker;
pub mod facts;
pub mod firewall;
pub mod gate;
pub mod host;
pub mod item;
pub mod journal;
pub mod key;
pub mod newer;
pub mod options;
pub mod plan;
pub mod sshd;
pub mod want;
pub mod written;

mod apply;
mod catalogue;
mod digest;
mod local;
mod lock;
#[cfg(test)]
mod memory;
mod rollback;
#[cfg(test)]
mod tests;

pub use apply::{ApplyError, Inputs, Outcome, Progress, apply};
pub use catalogue::every;
pub use digest::sha256_of;
pub use facts::{Facts, ObserveError, observe};
pub use host::Host;
pub use key::PublicKey;
pub use local::Local;
pub use lock::{Lock, LockError};
pub use options::{DockerSource, Options};
pub use plan::{Plan, check, plan};
pub use rollback::{Undone, rollback};
