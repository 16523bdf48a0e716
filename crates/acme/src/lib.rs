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
//! Nothing here asks for OCSP, nor for certificates that demand it ("must staple"): Let's Encrypt ended it in 2025, and
//! `appliance_proxy::tls` says what that means for those who show them.
//!
//! # When things go wrong
//!
//! Each row is a test of `appliance` against Pebble, which rejects good nonces, and the real proxy
//! (`agent/certificates/tests`); *between* stands for a front of Pebble that makes the fault.
//!
//! | what happens | what comes of it | test |
//! |---|---|---|
//! | 20 hosts | issued before traffic, renewed when due, revoked and replaced, recovered from a damaged record, a lost account file and an authority that forgot everything | `twenty_hosts_issue_renew_revoke_and_recover` |
//! | an agent dies between the order and its certificate | the next one fetches the certificate of that order | `orders`, between |
//! | the line breaks while the certificate is fetched | the same; an order that the authority knows no more is made anew | `orders`, between |
//! | the authority refuses an order (`unauthorized`) | the account stays | `orders`, between |
//! | it does not know the account (`accountDoesNotExist`) | a new one takes its place once it is granted; the old file stays where it is not (External Account Binding) | `orders`, between |
//! | `Retry-After`, `rateLimited` | nothing is asked before that time, and people are told it | `orders`, between |
//! | the authority advises a renewal (ARI) | it happens in the window, at once when that is over, and says what it replaces | `orders`, between |
//! | http-01, tls-alpn-01, dns-01 by a command, wildcards, External Account Binding | each issues | `every_kind_of_proof_does_and_a_name_that_points_elsewhere_is_refused_in_words` |
//! | the authority is down or silent | what is held is shown; only a new host is refused | `an_authority_that_is_down_or_silent_stops_nothing_that_is_served`, and on a real host |
//! | a host that came on demand is not wanted any more | asked about before renewal; after a no its certificate is left to end | `on_demand` |
//! | the disk takes nothing | no order before it does; what was ordered already is shown | `a_certificate_that_the_disk_does_not_take_is_shown_and_not_ordered_again` |

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
