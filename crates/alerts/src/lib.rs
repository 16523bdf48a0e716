//! What is wrong with a host, who was told of it, and who has still to be told. No I/O.
//!
//! ```text
//!   facts, limits ──► rules::look ──► findings, and what could not be seen
//!                                        │
//!   book, clock ──────► book::step ◄─────┘ ──► notices: firing, again, resolved
//!                                                  │
//!   destinations ─────► outbox::Outbox ◄───────────┘ ──► deliveries, in order, tried until they arrive
//! ```
//!
//! Invariants, which property tests check:
//!
//! - Of one alert, `firing` and `resolved` take turns; nothing is told twice, but `again` after the time that was asked for.
//! - What cannot be seen is neither wrong nor right again: it stays as it was.
//! - Book and outbox written down after each step and read back are as if nothing had happened.
//!
//! Deliberately absent: Docker, the network, files, the clock. The driver is in the `appliance` crate.

pub mod book;
pub mod ends;
pub mod kills;
pub mod notice;
pub mod outbox;
pub mod recent;
pub mod rules;

pub use book::{Book, Policy, Standing};
pub use ends::Ends;
pub use kills::Kills;
pub use notice::{Finding, Kind, Notice, What};
pub use outbox::{Delivery, Outbox};
pub use recent::{Answered, Rate, Recent};
pub use rules::{Facts, Limits, Look, look};
