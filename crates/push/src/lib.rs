//! Signed changes, the OCI store, and how both travel over SSH.
//!
//! ```text
//! developer                                             host
//! image ──► upload ──┐                          ┌──► registry ──► store
//!                    ├─ transport (ssh, local) ─┤
//! change ──► sign  ──┘                          └──► trust (check) ──► the agent acts
//! ```
//!
//! - [`change`]: what somebody wants done, as a value, and the envelope it travels in.
//! - [`sign`]: SSH signatures (SSHSIG), from a key file or an ssh-agent.
//! - [`trust`]: the key ring and the check that every change passes before the agent acts.
//! - [`store`]: blobs and manifests by digest on the host's disk.
//! - [`registry`]: the OCI distribution API over the store.
//! - [`delta`]: of a changed layer, only the chunks that the host lacks.
//! - [`image`]: an image on the developer's machine as OCI blobs.
//! - [`upload`]: sends what the host lacks, several blobs at once, resuming after a cut.
//! - [`session`]: frames that join a program on the host to a developer's terminal.
//! - [`ssh`], [`transport`]: the byte stream to the agent, and HTTP/2 on it.
//!
//! The crate never prints and never reads the environment: paths, clocks and random bytes are passed in.

pub mod change;
pub mod delta;
pub mod image;
pub mod registry;
pub mod session;
pub mod sign;
pub mod ssh;
pub mod store;
pub mod transport;
pub mod trust;
pub mod upload;

pub use change::{AppName, Change, Destination, Digest, Envelope, HostId, Release, ReleaseNumber, Verb};
