//! Connections of the HTTP/1.1 engine to upstreams, pooled for each worker.
//!
//! A connection rests at most four seconds, below the five after which common app servers close it, and is looked at
//! before it is used again: one that the upstream closed, or said something on unasked, is dropped.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use crate::names::UpstreamAddress;
use crate::upstream::Upstream;

const REST: Duration = Duration::from_secs(4);
const MOST_IDLE: usize = 256;
const CONNECT: Duration = Duration::from_secs(5);

/// A connection to an upstream.
#[derive(Debug)]
pub(crate) enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// To a task of this worker that speaks HTTP/2 with the upstream.
    Bridge(DuplexStream),
}

impl Link {
    /// Opens a connection.
    ///
    /// # Errors
    /// When the upstream does not accept within five seconds.
    pub(crate) async fn connect(address: &UpstreamAddress) -> io::Result<Self> {
        let connect = async {
            match address {
                UpstreamAddress::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Ok(Self::Tcp(stream))
                }
                UpstreamAddress::Unix(path) => UnixStream::connect(path).await.map(Self::Unix),
            }
        };
        tokio::time::timeout(CONNECT, connect)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection within 5 s"))?
    }

    /// Whether an idle connection is still silent and open, as far as is known without a system call.
    fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let read = match self {
            Self::Tcp(stream) => stream.try_read(&mut byte),
            Self::Unix(stream) => stream.try_read(&mut byte),
            Self::Bridge(_) => return false,
        };
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, to),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, to),
            Self::Bridge(stream) => Pin::new(stream).poll_read(cx, to),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, from),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, from),
            Self::Bridge(stream) => Pin::new(stream).poll_write(cx, from),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Bridge(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The idle connections of one worker; a handful of upstreams, so a list is the fastest map.
#[derive(Debug, Default)]
pub(crate) struct Links(RefCell<Vec<Shelf>>);

#[derive(Debug)]
struct Shelf {
    upstream: Arc<Upstream>,
    /// Oldest first; taken from the back.
    idle: Vec<(Instant, Link)>,
}

impl Links {
    /// The connection that rested shortest, if one is fit for use.
    pub(crate) fn take(&self, upstream: &Upstream, now: Instant) -> Option<Link> {
        let mut shelves = self.0.borrow_mut();
        let shelf = shelves
            .iter_mut()
            .find(|shelf| shelf.upstream.id == upstream.id)?;
        while let Some((since, link)) = shelf.idle.pop() {
            if now.saturating_duration_since(since) > REST {
                shelf.idle.clear();
                return None;
            }
            if link.is_quiet() {
                return Some(link);
            }
        }
        None
    }

    /// Puts a connection back.
    pub(crate) fn put(&self, upstream: &Arc<Upstream>, link: Link, now: Instant) {
        if upstream.is_draining() {
            return;
        }
        let mut shelves = self.0.borrow_mut();
        match shelves.iter_mut().find(|shelf| shelf.upstream.id == upstream.id) {
            Some(shelf) if shelf.idle.len() < MOST_IDLE => shelf.idle.push((now, link)),
            Some(_) => {}
            None => shelves.push(Shelf {
                upstream: Arc::clone(upstream),
                idle: vec![(now, link)],
            }),
        }
    }

    /// Closes what rested too long or belongs to an upstream that is left behind.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.0.borrow_mut().retain_mut(|shelf| {
            if shelf.upstream.is_draining() {
                return false;
            }
            shelf
                .idle
                .retain(|(since, _)| now.saturating_duration_since(*since) <= REST);
            !shelf.idle.is_empty()
        });
    }
}
