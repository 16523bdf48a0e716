//! Tests on real hosts: one binary, one module per topic.
//!
//! Run them with `cargo xtask test [FILTER]`.

mod bootstrap;
mod conformance;
mod deploy;
mod firewall;
mod postgres;
mod sandbox;
