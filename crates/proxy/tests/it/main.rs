//! The real proxy over real sockets, with real upstreams behind it.

mod basics;
mod rig;
mod switching;
mod tls;
