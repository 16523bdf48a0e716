//! Throw-away hosts in local containers, and the images they are made of.
//!
//! A [`Host`] is a container that boots systemd as PID 1 with its own sshd and, once bootstrapped, its own Docker Engine.
//! It starts bare, as a VPS provider hands a server over: root reachable by a key, no engine, no firewall.
//! [`Image`] names what is built from `images/`: the hosts, the demo app, PostgreSQL, and the outsider that probes ports.
//! The definitions are compiled in, so that an installed binary can build them; the packages come from Debian's mirrors.
//!
//! ```text
//!  Sandbox ──ensure(Image)──► ImageRef ──start(HostOptions)──► Host ──exec, copy_in, reboot, snapshot──► …
//!     └──outside()──► Outside ──probe(address, ports)──► Open | Refused | Silent
//! ```
//!
//! Nothing here prints or reads the environment; progress goes to a callback.

mod apt;
mod definition;
mod engine;
mod error;
mod exec;
mod host;
mod image;
mod machine;
mod network;
mod outside;
mod rootfs;

pub use engine::{Progress, Sandbox};
pub use error::SandboxError;
pub use exec::{Command, Output};
pub use host::{Host, HostOptions, HostStatus, Name, Publish};
pub use image::{Distro, Image, ImageRef};
pub use machine::{CgroupVersion, Machine};
pub use outside::{Outside, PortState};
