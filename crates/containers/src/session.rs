//! A program in a container joined to somebody's terminal or pipes.

use std::pin::Pin;

use futures_util::stream::BoxStream;
use tokio::io::AsyncWrite;

use crate::engine::LogLine;
use crate::error::EngineError;

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What a session is about, for resizing it and for its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionId {
    /// The main process of a container.
    Container(String),
    /// A further process in a running container.
    Exec(String),
}

/// Both ends of a running program.
pub struct Session {
    /// What it is about.
    pub id: SessionId,
    /// Its standard input; shutting it down is the end of the input.
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
    /// What it writes, until it ends. With a terminal everything counts as standard output.
    ///
    /// Output of a terminal whose read begins with one of the bytes 0 to 2 cannot be told from Docker's frame headers.
    pub output: BoxStream<'static, Result<LogLine, EngineError>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
