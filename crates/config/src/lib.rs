//! deploy.yml, secrets and host.yml become checked types, with line-accurate complaints.
//!
//! ```text
//! deploy.yml ──► erb ──► yaml (tree with places) ─┐
//! deploy.DEST.yml ──► erb ──► yaml ───────────────┴─► merge ──► validate ──► resolve ──► model::Resolved
//!                                                               (Kamal's order: its first error comes first)
//! ```
//!
//! [`load`] does all of it. Meanings, defaults and messages are those of Kamal 2.12.
//! Only [`erb`] and [`secrets`] run commands, and only through [`runner::Runner`].

mod checked;
pub mod edge;
pub mod erb;
pub mod extension;
pub mod front;
pub mod host;
pub mod load;
pub mod model;
mod oddities;
pub mod print;
pub mod problem;
mod resolve;
pub mod ruby;
pub mod runner;
pub mod schema;
pub mod secrets;
mod sense;
pub mod source;
pub mod units;
mod validate;
pub mod warnings;
pub mod yaml;

pub use extension::Extension;
pub use host::Host;
pub use load::{LoadOptions, Loaded, load};
pub use model::Resolved;
pub use problem::{Problem, Problems};
