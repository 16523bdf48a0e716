//! The Docker adapter: containers, images, networks, events.
//!
//! [`Engine`] is the seam: the verbs the rest of the program uses, in our own words.
//! [`Docker`] is the real one, over the daemon's Unix socket, for Docker 20.10 (API 1.41) and newer.
//!
//! The pure part turns a [`ContainerSpec`] into the engine's request (`request`) and a `docker run` flag, as Kamal's `options:` has them, into a change of a spec ([`options::apply`]).
//!
//! What is deliberately absent: no call of the `docker` program, no knowledge of apps, releases or proxies, no retries of a change (the rollout decides), no printing.
//! Reading verbs fail at once with [`EngineError::Unreachable`] while Docker is stopped; only [`Engine::events`], and [`Engine::wait_exit`] once it has begun to wait, outlast that.

pub mod engine;
pub mod error;
pub mod names;
pub mod options;
pub mod ready;
pub mod session;
pub mod spec;

mod docker;
mod request;

pub use docker::{Docker, api_range};
pub use engine::Engine;
pub use error::EngineError;
pub use spec::ContainerSpec;
