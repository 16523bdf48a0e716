//! Accessories as desired state: what one should be, what it is, and what to do about the difference. No I/O.
//!
//! ```text
//!   goal, policy ─┐
//!   what Docker   ├─► keep::decide ──► one step, and when to look again
//!   says, clock  ─┘
//!   inspection ─────► shape::Shape ──► differences: what somebody changed by hand
//!   image, env ─────► kind::Kind ────► how to ask the server itself whether it is well
//!   upgrade ────────► upgrade::Upgrade: a state machine that is written down before each order
//! ```
//!
//! Invariants, which property tests check:
//!
//! - No step of [`keep`] removes anything; a container that should run is started again after at most [`backoff::LONGEST`].
//! - An [`upgrade::Upgrade`] that is cut off at any instant ends with one of the two servers on its own data, and the old data
//!   is dropped only after somebody said so.
//!
//! Deliberately absent: Docker, files, signatures, configuration. The driver is in the `appliance` crate.

pub mod backoff;
pub mod keep;
pub mod kind;
pub mod port;
pub mod shape;
pub mod upgrade;

pub use backoff::Backoff;
pub use keep::{Goal, Life, Policy, Seen, Step};
pub use kind::Kind;
pub use shape::{Difference, Shape};
pub use upgrade::{Order, Side, Upgrade};
