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

pub mod erb;
pub mod load;
pub mod model;
mod oddities;
pub mod print;
pub mod problem;
mod resolve;
pub mod ruby;
pub mod runner;
pub mod secrets;
pub mod source;
mod validate;
pub mod yaml;

pub use load::{LoadOptions, Loaded, load};
pub use model::Resolved;
pub use problem::{Problem, Problems};
