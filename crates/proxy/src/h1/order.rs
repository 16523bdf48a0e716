//! What an exchange is asked to do, and how it ended.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use super::parse::Framing;
use crate::access_log;
use crate::assign::Assignment;
use crate::buffer::Buffer;
use crate::compress::Coding;
use crate::table::Route;

/// What is known of the request, once its head has been rewritten.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) route: Arc<Route>,
    /// The rewritten head.
    pub(super) head: Vec<u8>,
    /// Where in `head` the request's id stands.
    pub(super) id: Range<usize>,
    pub(super) framing: Framing,
    pub(super) is_head: bool,
    pub(super) idempotent: bool,
    pub(super) upgrade: bool,
    /// Whether the client wants trailer fields.
    pub(super) trailers: bool,
    /// Whether the client waits for a 100 before it sends the body.
    pub(super) expects: bool,
    /// Whether the client wants to keep its connection.
    pub(super) keep: bool,
    /// The client's minor version.
    pub(super) minor: u8,
    pub(super) begun: Instant,
    /// Which set of upstreams it goes to, and what the response has to set for that.
    pub(super) assignment: Assignment,
    /// Who asks.
    pub(super) visitor: IpAddr,
    /// The coding that service and client agree on, for responses that suit.
    pub(super) coding: Option<Coding>,
    /// What the access log will want to know.
    pub(super) log: Option<Box<LogHead>>,
}

/// The words of a request that are logged.
#[derive(Debug)]
pub(super) struct LogHead {
    pub(super) host: Box<str>,
    pub(super) target: Box<str>,
    pub(super) method: Box<str>,
    pub(super) user_agent: Box<[u8]>,
    /// Further fields of the line.
    pub(super) fields: Vec<access_log::Field>,
}

/// How an exchange ended well.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The response was given.
    Complete {
        /// Whether the client's connection can take another request.
        keep: bool,
        /// Whether the upstream's connection can.
        reusable: bool,
    },
    /// Both sides leave HTTP; the second holds what the upstream already said.
    Tunnel(Buffer),
}

/// How it did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The upstream closed a connection that had rested before it said anything: the request may be sent once more.
    Stale,
    /// The client is to get this status, if it has not got a head already.
    Status(StatusCode),
    /// The client is gone, or does not take what it asked for.
    Client,
    /// The drain timeout came, or the process ends.
    Cut,
}
