//! The way to an agent: its socket on this host, or `appliance receive` behind SSH; HTTP/2 on top.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::ssh::{self, Exit, SshError};

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// The body of a request.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// The command that carries bytes to the agent; with a forced command sshd ignores what is asked for.
pub const RECEIVE: &str = "appliance receive";

/// Why the agent cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The agent's socket does not answer.
    #[error("the agent does not answer on {path}; on this host: systemctl status appliance-agent")]
    Local {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host cannot be entered.
    #[error("no connection to {host}")]
    Ssh {
        /// `user@host:port`.
        host: String,
        /// Why.
        #[source]
        source: Box<SshError>,
    },
    /// The stream is there, but HTTP/2 does not come up on it.
    #[error("{host} answers, but not as an appliance{}", aside(.said))]
    Handshake {
        /// `user@host:port`, or the socket.
        host: String,
        /// What the far side wrote to its standard error.
        said: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// A request was cut off.
    #[error("the connection to {host} broke{}", aside(.said))]
    Broken {
        /// `user@host:port`, or the socket.
        host: String,
        /// What the far side wrote to its standard error.
        said: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// Some other way, as given by the caller.
    #[error("no connection to {host}")]
    Other {
        /// Its name.
        host: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn aside(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}

type Opening = Pin<Box<dyn Future<Output = std::io::Result<Box<dyn Duplex>>> + Send>>;

/// A way to an agent that can be gone again and again.
#[derive(Clone)]
pub enum Transport {
    /// Through the agent's socket on this host.
    Local(PathBuf),
    /// Through SSH.
    Ssh(Box<ssh::Target>),
    /// Through whatever the closure opens; for tests and tunnels.
    Other {
        /// Shown in errors.
        name: String,
        /// Opens one connection.
        open: Arc<dyn Fn() -> Opening + Send + Sync>,
    },
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl Transport {
    /// How errors name the far side.
    pub fn name(&self) -> String {
        match self {
            Transport::Local(path) => path.display().to_string(),
            Transport::Ssh(target) => target.name(),
            Transport::Other { name, .. } => name.clone(),
        }
    }

    /// Opens the byte stream.
    ///
    /// # Errors
    /// When the far side cannot be reached.
    pub async fn open(&self) -> Result<Link, TransportError> {
        let host = self.name();
        match self {
            Transport::Local(path) => {
                let failed = |source| TransportError::Local {
                    path: path.clone(),
                    source,
                };
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                Ok(Link {
                    stream: Box::new(stream),
                    host,
                    exit: None,
                })
            }
            Transport::Ssh(target) => {
                let failed = |source| TransportError::Ssh {
                    host: host.clone(),
                    source: Box::new(source),
                };
                let session = ssh::connect(target).await.map_err(failed)?;
                let (stream, exit) = session.exec(RECEIVE).await.map_err(failed)?;
                Ok(Link {
                    stream: Box::new(stream),
                    host,
                    exit: Some(exit),
                })
            }
            Transport::Other { open, .. } => {
                let stream = open().await.map_err(|source| TransportError::Other {
                    host: host.clone(),
                    source,
                })?;
                Ok(Link {
                    stream,
                    host,
                    exit: None,
                })
            }
        }
    }

    /// Opens the byte stream and speaks HTTP/2 on it.
    ///
    /// # Errors
    /// When the far side cannot be reached or is no appliance.
    pub async fn client(&self) -> Result<Client, TransportError> {
        http2_client(self.open().await?).await
    }
}

/// An open byte stream to an agent.
pub struct Link {
    /// The bytes.
    pub stream: Box<dyn Duplex>,
    /// How errors name the far side.
    pub host: String,
    /// How the far side's command ended, behind SSH.
    pub exit: Option<watch::Receiver<Exit>>,
}

/// An HTTP/2 connection to an agent; clones share it.
#[derive(Clone)]
pub struct Client {
    sender: http2::SendRequest<Body>,
    host: String,
    exit: Option<watch::Receiver<Exit>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// Speaks HTTP/2 with prior knowledge (RFC 9113 §3.3) on a stream.
///
/// # Errors
/// When the far side does not answer as an HTTP/2 server.
pub async fn http2_client(link: Link) -> Result<Client, TransportError> {
    let Link {
        stream,
        host,
        mut exit,
    } = link;
    let handshake = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .max_frame_size(1 << 18)
        .max_send_buf_size(1 << 20)
        .keep_alive_interval(Some(Duration::from_secs(20)))
        .keep_alive_timeout(Duration::from_secs(40))
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await;
    match handshake {
        Ok((mut sender, connection)) => {
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "connection to the agent ended"
                    );
                }
            });
            match sender.ready().await {
                Ok(()) => Ok(Client { sender, host, exit }),
                Err(source) => Err(TransportError::Handshake {
                    host,
                    said: last_words(exit.as_mut()).await,
                    source,
                }),
            }
        }
        Err(source) => Err(TransportError::Handshake {
            host,
            said: last_words(exit.as_mut()).await,
            source,
        }),
    }
}

/// What the far side's command wrote to standard error before it ended; waits a moment for it.
async fn last_words(exit: Option<&mut watch::Receiver<Exit>>) -> String {
    let Some(exit) = exit else { return String::new() };
    let ended = tokio::time::timeout(Duration::from_secs(2), async {
        while exit.changed().await.is_ok() {}
    })
    .await;
    drop(ended);
    exit.borrow().stderr.clone()
}

impl Client {
    /// Sends a request; the path is enough, the authority is filled in.
    ///
    /// # Errors
    /// When the connection breaks before the response's head.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, TransportError> {
        if request.uri().authority().is_none() {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            let uri = http::Uri::builder()
                .scheme("http")
                .authority("appliance")
                .path_and_query(path)
                .build();
            if let Ok(uri) = uri {
                *request.uri_mut() = uri;
            }
        }
        let mut sender = self.sender.clone();
        match sender.send_request(request).await {
            Ok(response) => Ok(response),
            Err(source) => Err(TransportError::Broken {
                host: self.host.clone(),
                said: last_words(self.exit.clone().as_mut()).await,
                source,
            }),
        }
    }

    /// How errors name the far side.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
