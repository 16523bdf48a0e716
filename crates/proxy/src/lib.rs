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
//! | `upstream`, `health` | one upstream: in flight, drained, asked |
//! | `hold` | routes of an earlier boot, which are not believed yet |
//! | `connection`, `decide`, `headers`, `pages` | the path of a request: protocol, decision, fields, own answers |
//! | `policy`, `auth`, `limits`, `visitor` | what a service asks of a request: its visitor's rate, a password |
//! | `compress`, `encoded`, [`template`] | responses made smaller, error pages of an app |
//! | `h1`, `link`, `buffer`, `clock`, `wakers` | the HTTP/1.1 engine and what it stands on |
//! | `proxy_header`, `rewound` | what may stand before a connection's first request |
//! | `http2`, `forward` | HTTP/2: clients, and upstreams that speak h2c |
//! | `manager`, `store`, [`control`] | changes: checked, written down, made live |
//! | `tls`, [`local_ca`], `challenges` | certificates by host, answers to certificate authorities |
//! | `run`, `worker` | threads and listeners |

mod access_log;
mod assign;
mod auth;
mod buffer;
mod challenges;
mod check;
mod clock;
pub mod compress;
mod connection;
pub mod control;
mod decide;
mod durable;
mod encoded;
mod forward;
#[doc(hidden)]
pub mod fuzzing;
mod h1;
mod headers;
mod health;
mod hold;
mod http2;
mod limits;
mod link;
pub mod local_ca;
mod manager;
mod metrics;
pub mod names;
pub mod options;
mod pages;
mod policy;
pub mod proxy_header;
mod request_id;
mod rewound;
mod run;
mod shared;
pub mod snapshot;
pub mod stats;
mod store;
mod table;
pub mod template;
mod tls;
mod upstream;
mod visitor;
mod wakers;
mod worker;

pub use challenges::Challenge;
pub use control::Client;
pub use options::Options;
pub use run::{Proxy, RunError, run};
pub use snapshot::{Service, Snapshot};
