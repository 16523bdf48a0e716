//! An HTTP server on this machine that hosts can reach: it answers what a test tells it to, and keeps what it was sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::World;

/// What somebody sent.
#[derive(Clone, Debug)]
pub struct Received {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Header names in small letters.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Received {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// How a path is answered.
#[derive(Clone, Debug)]
enum Reply {
    Whole(Bytes),
    /// As many bytes are announced, and fewer sent.
    Broken(Bytes),
    /// The first KiB is sent, and nothing after it.
    Stalled(Bytes),
    /// It is at this address.
    Elsewhere(String),
    Status(u16),
}

#[derive(Debug, Default)]
struct Shared {
    replies: Mutex<BTreeMap<String, Reply>>,
    received: Mutex<Vec<Received>>,
    news: Notify,
}

/// The server; it ends with its value.
#[derive(Debug)]
pub struct Receiver {
    port: u16,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    /// Listens on every address of this machine; a path nobody set is answered with 200 and nothing.
    ///
    /// # Errors
    /// If there is no port.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("0.0.0.0:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::<Shared>::default();
        let each = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&each);
                tokio::spawn(async move {
                    // A client that goes away is no news to anybody.
                    let _gone = serve(stream, &shared).await;
                });
            }
        });
        Ok(Self { port, shared, task })
    }

    /// Its address as a host sees it: `http://GATEWAY:PORT`.
    ///
    /// # Errors
    /// If the host has no way out.
    pub async fn url(&self, world: &World) -> anyhow::Result<String> {
        Ok(format!("http://{}:{}", gateway(world).await?, self.port))
    }

    /// From now on, `path` is answered with `body`.
    pub fn serve(&self, path: &str, body: impl Into<Bytes>) {
        self.set(path, Reply::Whole(body.into()));
    }

    /// From now on, the answer at `path` breaks off in its middle.
    pub fn break_off(&self, path: &str, body: impl Into<Bytes>) {
        self.set(path, Reply::Broken(body.into()));
    }

    /// From now on, the answer at `path` begins, and nothing more of it comes.
    pub fn stall(&self, path: &str, body: impl Into<Bytes>) {
        self.set(path, Reply::Stalled(body.into()));
    }

    /// From now on, whoever asks for `path` is sent to another address.
    pub fn redirect(&self, path: &str, to: &str) {
        self.set(path, Reply::Elsewhere(to.to_owned()));
    }

    /// From now on, `path` is answered with this status.
    pub fn status(&self, path: &str, status: u16) {
        self.set(path, Reply::Status(status));
    }

    fn set(&self, path: &str, reply: Reply) {
        let mut replies = self.shared.replies.lock().unwrap_or_else(PoisonError::into_inner);
        replies.insert(path.to_owned(), reply);
    }

    /// Everything that was sent to `path`, oldest first.
    #[must_use]
    pub fn received(&self, path: &str) -> Vec<Received> {
        let received = self
            .shared
            .received
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        received
            .iter()
            .filter(|request| request.path == path)
            .cloned()
            .collect()
    }

    /// Waits for the first request to `path` that `wanted` is true for.
    ///
    /// # Errors
    /// If none comes within `limit`, with what came.
    pub async fn wait(
        &self,
        path: &str,
        limit: Duration,
        wanted: impl Fn(&Received) -> bool,
    ) -> anyhow::Result<Received> {
        let look = async {
            loop {
                let news = self.shared.news.notified();
                if let Some(found) = self.received(path).into_iter().find(&wanted) {
                    return found;
                }
                news.await;
            }
        };
        tokio::time::timeout(limit, look).await.with_context(|| {
            let texts: Vec<_> = self.received(path).iter().map(Received::text).collect();
            format!(
                "nothing of that kind came to {path} within {} s, but {texts:#?}",
                limit.as_secs()
            )
        })
    }
}

/// This machine's address on the host's network.
///
/// # Errors
/// If the host has no default route.
pub async fn gateway(world: &World) -> anyhow::Result<String> {
    let route = world.run(&["ip", "-4", "route", "show", "default"]).await?;
    let words: Vec<_> = route.split_whitespace().collect();
    ensure!(
        words.get(1) == Some(&"via"),
        "the host has no default route: {route:?}"
    );
    Ok(words[2].to_owned())
}

async fn serve(stream: TcpStream, shared: &Shared) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().context("a method")?, words.next().context("a path")?);
        let (method, path) = (method.to_owned(), path.to_owned());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let length = headers
            .get("content-length")
            .map_or(Ok(0), |length| length.parse())?;
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let reply = {
            let replies = shared.replies.lock().unwrap_or_else(PoisonError::into_inner);
            replies.get(&path).cloned()
        };
        shared
            .received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Received {
                method,
                path,
                headers,
                body,
            });
        shared.news.notify_waiters();
        let mut location = String::new();
        let (status, announced, body) = match reply.clone() {
            None => (200, 0, Bytes::new()),
            Some(Reply::Status(status)) => (status, 0, Bytes::new()),
            Some(Reply::Whole(body)) => (200, body.len(), body),
            Some(Reply::Broken(body)) => (200, body.len(), body.slice(..body.len() / 2)),
            Some(Reply::Stalled(body)) => (200, body.len(), body.slice(..1 << 10)),
            Some(Reply::Elsewhere(to)) => {
                location = format!("location: {to}\r\n");
                (302, 0, Bytes::new())
            }
        };
        let head = format!("HTTP/1.1 {status} Said\r\n{location}content-length: {announced}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.flush().await?;
        if matches!(reply, Some(Reply::Stalled(_))) {
            // Until whoever waits goes away.
            let _gone = stream.read_u8().await;
        }
        if announced != body.len() {
            return Ok(());
        }
    }
}
