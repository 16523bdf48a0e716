//! The data plane: listeners, TLS, routes, health checks, switch and drain.
//!
//! The whole routing state is one immutable table, swapped atomically; connections that a change does not concern
//! never notice it.
//! The proxy knows no Docker and no agent: it starts from its own last-good [`Snapshot`] and is changed over its
//! [`control`] socket in small steps that may each be repeated.

pub mod control;
mod durable;
pub mod local_ca;
pub mod names;
pub mod options;
mod run;
pub mod snapshot;
pub mod stats;

pub use control::Client;
pub use options::Options;
pub use run::{Proxy, RunError, run};
pub use snapshot::{Service, Snapshot};
