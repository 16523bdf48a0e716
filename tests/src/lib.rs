//! The harness: what a real-host test needs.
//!
//! - [`Bench`]: the local Docker, the binary under test, names that cannot collide.
//! - [`World`]: one host of one's own, bare or bootstrapped; removed when dropped.
//! - [`Developer`]: a machine's worth of files (home, key, app directory) and the command line run there.
//! - [`http`]: one request; [`load`]: many, counted; [`receiver`]: what hosts fetch and send.
//!
//! `cargo xtask test` builds the binary and sets `APPLIANCE_BIN`.
//! To look at what a failed test left, set `APPLIANCE_TEST_KEEP=1`; the host's name is then printed.
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! use appliance_sandbox::Distro;
//! use appliance_tests::World;
//!
//! let world = World::bootstrapped("my-test", Distro::Debian12).await?;
//! world.developer.demo_app("v1", &world, "").await?;
//! world.developer.appliance(["push"]).run().await?.expect_code(0)?;
//! # Ok(()) }
//! ```

pub mod bench;
pub mod content;
pub mod developer;
pub mod http;
pub mod load;
pub mod receiver;
pub mod world;

pub use bench::Bench;
pub use developer::{Developer, Ran};
pub use world::World;
