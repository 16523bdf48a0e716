//! Certificates by ACME (RFC 8555): how they are asked for, kept and renewed.
//!
//! One certificate per host name, so that a name whose DNS entry is gone costs nobody else a renewal.
//! Whoever answers on ports 80 and 443 is a [`Front`]; this crate knows no proxy.
//!
//! ```text
//!  Certificates::ensure ─┐                        ┌─► Front::present   (http-01, tls-alpn-01)
//!  Certificates::tend  ──┼─► order (one name) ────┤
//!  Certificates::renew ──┘        │               └─► dns command      (dns-01)
//!                                 ▼
//!                        store (0600, one file a name) ─► Front::install
//! ```
//!
//! | module | does |
//! |---|---|
//! | [`settings`], [`name`] | what is asked of which authority, and for which names |
//! | [`schedule`] | when a certificate is renewed and a failure tried again; pure |
//! | `account`, `http`, `order`, `dns` | the protocol, by `instant-acme` |
//! | [`store`] | what is kept on disk |
//! | [`certificates`] | all of it together |
//!
//! OCSP stapling is left out on purpose: Let's Encrypt and others have ended OCSP (certificates carry no responder any
//! more) in favour of short lifetimes, and a stapled answer that cannot be renewed takes a site down.

mod account;
pub mod certificates;
mod dns;
mod error;
mod front;
mod http;
pub mod name;
mod order;
pub mod schedule;
pub mod settings;
pub mod store;

pub use certificates::Certificates;
pub use error::AcmeError;
pub use front::{Answer, Front, FrontError};
pub use name::Name;
pub use settings::Settings;
