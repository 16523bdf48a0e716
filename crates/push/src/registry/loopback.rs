//! The short-lived listener from which the host's own Docker pulls.
//!
//! It listens on the loopback only, for as long as one pull takes, and asks for credentials that are made for that pull:
//! other users of the host cannot read images through it.
//! Docker takes plain HTTP from 127.0.0.0/8 without being told to.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use aws_lc_rs::constant_time;
use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::access::{Action, Denied, basic};
use super::{AnswerBody, Registry};
use crate::store::Store;

/// User and password for one pull.
#[derive(Clone)]
pub struct Credentials {
    /// User.
    pub username: String,
    /// Password.
    pub password: String,
}

impl Credentials {
    /// Fresh ones.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
        Self {
            username: "appliance".to_owned(),
            password: hex::encode(bytes),
        }
    }

    pub(super) fn match_header(&self, value: &str) -> bool {
        basic(value).is_some_and(|(user, password)| {
            let same =
                |a: &str, b: &str| constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok();
            same(&user, &self.username) & same(&password, &self.password)
        })
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, …)", self.username)
    }
}

/// Why the listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for Docker to pull from")]
pub struct LoopbackError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// A read-only registry on the loopback; it ends when this value is dropped.
#[derive(Debug)]
pub struct Loopback {
    address: SocketAddr,
    credentials: Credentials,
    _ends: DropGuard,
}

impl Loopback {
    /// Serves `store`, read-only, on 127.0.0.1; `port` 0 takes any free one.
    ///
    /// # Errors
    /// When the port cannot be opened.
    pub async fn start(store: Store, port: u16) -> Result<Self, LoopbackError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let failed = |source| LoopbackError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let credentials = Credentials::random();
        let registry = Registry::new(store, read_only(credentials.clone()));
        let end = CancellationToken::new();
        let answer: Answer = Arc::new(move |request| {
            let registry = registry.clone();
            Box::pin(async move { registry.answer(request).await })
        });
        tokio::spawn(serve(listener, answer, end.clone()));
        Ok(Self {
            address,
            credentials,
            _ends: end.drop_guard(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What Docker must present.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The name under which Docker pulls a manifest, `127.0.0.1:PORT/<repository>@<digest>`.
    pub fn reference(
        &self,
        repository: &crate::change::Repository,
        digest: &crate::change::Digest,
    ) -> String {
        format!("{}/{repository}@{digest}", self.address)
    }
}

fn read_only(credentials: Credentials) -> super::Authorize {
    Arc::new(move |parts, _, action| {
        let value = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        if !value.is_some_and(|value| credentials.match_header(value)) {
            return Err(Denied::unauthorized(
                "this registry only serves this host's own Docker",
            ));
        }
        if *action != Action::Read {
            return Err(Denied::forbidden("this registry is read-only"));
        }
        Ok(0)
    })
}

/// What answers a request.
pub(super) type Answer =
    Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<AnswerBody>> + Send + Sync>;

/// Serves until `end`.
pub(super) async fn serve(listener: TcpListener, answer: Answer, end: CancellationToken) {
    loop {
        let stream = tokio::select! {
            () = end.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept a connection of Docker");
                    // Out of file descriptors, most likely: trying at once would spin.
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (answer, end) = (answer.clone(), end.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, std::convert::Infallible>(answered.await) }
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new());
            builder.http2().timer(TokioTimer::new());
            tokio::select! {
                () = end.cancelled() => {}
                served = builder.serve_connection(TokioIo::new(stream), service) => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "Docker's connection ended");
                    }
                }
            }
        });
    }
}
