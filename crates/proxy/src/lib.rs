//! The data plane: listeners, TLS, routes, health checks, switch and drain.
//!
//! The whole routing state is one immutable table, swapped atomically; connections that a change does not concern
//! never notice it.
//! The proxy knows no Docker and no agent: it starts from its own last-good [`Snapshot`] and is changed over its
//! [`control`] socket in small steps that may each be repeated.
//!
//! | module | does |
//! |---|---|
//! | [`snapshot`], `check` | the routing state as a document, and what must hold for it |
//! | `table` | that state compiled: which service a request belongs to |
//! | `upstream`, `pool`, `health` | one upstream: in flight, drained, connections kept, asked |
//! | `connection`, `forward`, `headers`, `pages` | the path of a request |
//! | `manager`, `store`, [`control`] | changes: checked, written down, made live |
//! | `tls`, [`local_ca`] | certificates by host |
//! | `run`, `worker` | threads and listeners |

mod check;
mod connection;
pub mod control;
mod durable;
mod forward;
mod headers;
mod health;
pub mod local_ca;
mod manager;
pub mod names;
pub mod options;
mod pages;
mod pool;
mod request_id;
mod run;
mod shared;
pub mod snapshot;
pub mod stats;
mod store;
mod table;
mod tls;
mod upstream;
mod worker;

pub use control::Client;
pub use options::Options;
pub use run::{Proxy, RunError, run};
pub use snapshot::{Service, Snapshot};
