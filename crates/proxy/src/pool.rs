//! Idle connections to upstreams, one pool for each worker thread: no lock, no travel between cores.
//!
//! A connection rests at most four seconds, below the five after which common app servers close it.
//! A broken exchange is repeated once, and only when the connection had been used before, the method is idempotent
//! and no body was sent (RFC 9110 §9.2.2): then the upstream closed it while we picked it up.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};

use crate::forward::Upload;
use crate::names::UpstreamAddress;
use crate::upstream::Upstream;

const REST: Duration = Duration::from_secs(4);
const MOST_IDLE: usize = 256;
const CONNECT: Duration = Duration::from_secs(5);

/// A connection to an upstream that can take a request.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) sender: SendRequest<Upload>,
    /// Whether it carried a request before.
    pub(crate) reused: bool,
}

/// The idle connections of one worker.
#[derive(Debug, Default)]
pub(crate) struct Pool(RefCell<HashMap<u64, Shelf>>);

#[derive(Debug)]
struct Shelf {
    upstream: Arc<Upstream>,
    /// Oldest first; taken from the back.
    idle: Vec<(Instant, SendRequest<Upload>)>,
}

impl Pool {
    /// The connection that rested shortest.
    pub(crate) fn take(&self, upstream: &Upstream) -> Option<Link> {
        let mut shelves = self.0.borrow_mut();
        let shelf = shelves.get_mut(&upstream.id)?;
        while let Some((since, sender)) = shelf.idle.pop() {
            if since.elapsed() > REST {
                shelf.idle.clear();
                return None;
            }
            if sender.is_ready() {
                return Some(Link { sender, reused: true });
            }
        }
        None
    }

    /// Puts a connection back.
    pub(crate) fn put(&self, upstream: &Arc<Upstream>, sender: SendRequest<Upload>) {
        if sender.is_closed() || upstream.is_draining() {
            return;
        }
        let mut shelves = self.0.borrow_mut();
        let shelf = shelves.entry(upstream.id).or_insert_with(|| Shelf {
            upstream: Arc::clone(upstream),
            idle: Vec::new(),
        });
        if shelf.idle.len() < MOST_IDLE {
            shelf.idle.push((Instant::now(), sender));
        }
    }

    /// Closes what rested too long or belongs to an upstream that is left behind.
    pub(crate) fn sweep(&self) {
        self.0.borrow_mut().retain(|_, shelf| {
            if shelf.upstream.is_draining() {
                return false;
            }
            shelf
                .idle
                .retain(|(since, sender)| since.elapsed() <= REST && !sender.is_closed());
            !shelf.idle.is_empty()
        });
    }
}

/// Opens a new connection; its driver runs on this worker.
///
/// # Errors
/// When the upstream does not accept within five seconds.
pub(crate) async fn connect(address: &UpstreamAddress) -> io::Result<Link> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no connection within 5 s");
    let sender = match address {
        UpstreamAddress::Tcp(address) => {
            let stream = tokio::time::timeout(CONNECT, TcpStream::connect(address))
                .await
                .map_err(late)??;
            stream.set_nodelay(true)?;
            drive(stream).await?
        }
        UpstreamAddress::Unix(path) => {
            let stream = tokio::time::timeout(CONNECT, UnixStream::connect(path))
                .await
                .map_err(late)??;
            drive(stream).await?
        }
    };
    Ok(Link {
        sender,
        reused: false,
    })
}

async fn drive<S>(stream: S) -> io::Result<SendRequest<Upload>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "upstream connection ended"
            );
        }
    });
    Ok(sender)
}
