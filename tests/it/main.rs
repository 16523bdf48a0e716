//! Tests on real hosts: one binary, one module per topic.
//!
//! Run them with `cargo xtask test [FILTER]`.

mod bootstrap;
mod firewall;
mod sandbox;
