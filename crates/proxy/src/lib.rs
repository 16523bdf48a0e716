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
//! | `held`, `spool` | bodies that a service wants whole: in memory, then on disk |
//! | `compress`, `encoded`, [`template`] | responses made smaller, error pages of an app |
//! | `h1`, `link`, `buffer`, `clock`, `wakers` | the HTTP/1.1 engine and what it stands on |
//! | `proxy_header`, `rewound` | what may stand before a connection's first request |
//! | `attempt` | which upstream is tried next, for every protocol |
//! | `http2`, `forward` | HTTP/2: clients, and upstreams that speak h2c |
//! | `manager`, `store`, [`control`] | changes: checked, written down, made live |
//! | `tls`, [`local_ca`], `challenges`, `on_demand` | certificates by host, answers to certificate authorities |
//! | `secured` | a client connection inside TLS |
//! | `run`, `worker`, `heir` | threads and listeners, the process that takes over |
//!
//! # When things go wrong
//!
//! Each row is a test against the real process or real sockets (`tests/it/`).
//!
//! | what happens | what comes of it | test |
//! |---|---|---|
//! | an upstream is killed in the middle of a response | begun: the connection (HTTP/1.1) or the stream (HTTP/2) breaks off, never ended as if complete; not begun: 502; then it is out until a health check succeeds: 503 | `attacks` |
//! | an upstream refuses connections | the request goes to another one, whatever its method, as nothing was sent; else 502 | `basics` |
//! | an upstream closed a connection while it rested | sent once more on a fresh one, if the method is idempotent and there is no body | `wire` |
//! | 100 switches under load, 200 WebSockets of another service open | no answer but 2xx, no reset, every WebSocket lives | `switching` |
//! | the proxy itself is killed | the kernel's queue holds new connections; the last good snapshot is served, a torn one falls back to the one before | `lifecycle`, `store` |
//! | the machine reboots | requests wait until the agent has confirmed the route and the app has passed its health check, at most 30 s, then 503 with `Retry-After` | `switching`, `hold` |
//! | the binary is replaced while requests wait at a paused service | 503 with `Retry-After`: whoever opens it again tells the new process | `lifecycle` |
//! | a successor neither accepts nor ends | killed after 30 s, the old process goes on | `heir` |
//! | the agent is gone | nothing: it is needed for changes only | all of them: they have none |
//! | a certificate file is replaced by one that cannot be used | the one before is shown on, and `status` says so | `tls` |
//! | the disk is full: snapshot | the change is refused with `storage`, what was live stays live | `switching` |
//! | the disk is full: a request that is to be held back | 507; 503 while all of `settings.spool_max_bytes`, or the service's quarter of it, is held | `buffering` |
//! | the disk is full: a response that is held back | the client gets it as it comes, from there on | `buffering` |
//! | the disk is full: access log | lines are lost, requests are not | `observing` |
//! | a snapshot file is wrong | the live one stays; at the start, service by service, a wrong one costs itself only | `basics`, `store` |
//! | 10,000 malformed requests | 400 or 505 each; neither memory nor descriptors grow | `attacks` |
//! | 2,000 clients that never finish their heads | others get every answer; each ends with 408 after `header_timeout_ms` | `attacks`, `wire` |
//! | HTTP/2: rapid reset, CONTINUATION or empty DATA without end | GOAWAY with ENHANCE_YOUR_CALM | `attacks` |
//! | HTTP/2: SETTINGS or PING without end, answers not read; header bombs | memory stays bounded, others are served | `attacks` |
//! | a client asks to leave HTTP for something else than a WebSocket (`h2c`) | the request goes on without it: a tunnel leads past routes, passwords and limits | `strict` |
//! | a client's fields would pass for ours in an app's environment (`X_Forwarded_For`, `Proxy`) | they are dropped | `strict` |
//! | passwords are guessed | ten at once and one every two seconds for a visitor, then 429; few hashes at a time, 503 beyond 64 that wait | `strict` |
//! | an upstream takes nothing of an upload | 504 after `idle_timeout_ms`, counted as its failure; 408 only where the client sends nothing | `strict` |
//! | a client reads slowly | it gets everything for as long as it takes something in `idle_timeout_ms`; what is kept for it is bounded (compression: 256 at once, then responses go as they are) | `strict` |
//! | a client leaves while its request waits (paused, held for a certificate, at an upstream) | its connection is free at once; 499 in the log | `switching`, `wire` |
//! | an h2c upstream dies without a word | 504 for the request that was late; the connection is asked for a sign of life (PING), and closed with all that is open on it after 5 s | `http2` |
//! | a client that takes nothing of its response | the upload goes on; after `idle_timeout_ms` the response is given up | `http2`, `attacks` |
//!
//! # HTTP/3
//!
//! It is left out, and `--quic` says so.
//! The HTTP/3 layer that fits the rest (`h3` on `quinn`) buffers what a peer sends without a bound while the reader is
//! slow (hyperium/h3#308), which here would be every upload to a slow app: memory cannot be shown to stay bounded.
//! Beyond that, UDP sockets cannot be handed to a successor with the connections on them, so a replaced binary would
//! drop requests, and WebSockets have no way over it yet.
//! Clients lose nothing but a round trip: without `Alt-Svc` they use HTTP/2.

mod access_log;
mod assign;
mod attempt;
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
mod heir;
mod held;
mod hold;
mod http2;
mod limits;
mod link;
pub mod local_ca;
mod logged;
mod manager;
mod metrics;
pub mod names;
mod on_demand;
pub mod options;
mod pages;
mod policy;
pub mod proxy_header;
mod request_id;
mod rewound;
mod run;
mod secured;
mod shared;
pub mod snapshot;
mod spool;
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
pub use on_demand::{Unwanted, Wanted};
pub use options::Options;
pub use run::{Proxy, RunError, run};
pub use snapshot::{Service, Snapshot};
