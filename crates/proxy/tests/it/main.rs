//! The real proxy over real sockets, with real upstreams behind it.

// Helpers outside #[test] functions are test code too.
#![allow(clippy::unwrap_used)]

mod attacks;
mod basics;
mod buffering;
mod conformance;
mod extras;
mod frames;
mod h2c;
mod http2;
mod lanes;
mod lifecycle;
mod observing;
mod rig;
mod routing;
mod strict;
mod switching;
mod tls;
mod wire;
