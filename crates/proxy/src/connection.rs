//! One client connection: TLS, choice of protocol, and its end.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::HeaderValue;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::forward;
use crate::h1;
use crate::options::Scheme;
use crate::worker::{Accepted, Worker};

/// Longest time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Who is at the other end.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    pub(crate) text: HeaderValue,
    pub(crate) scheme: Scheme,
    pub(crate) local_port: u16,
}

/// Runs hyper's tasks on this worker.
#[derive(Debug, Clone, Copy)]
struct Here;

impl<F: Future + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// Serves a connection until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted {
        stream,
        peer,
        scheme,
        local_port,
        slot: _slot,
    } = accepted;
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot take a connection"
            );
            return;
        }
    };
    let address = peer.ip().to_canonical();
    let peer = Rc::new(Peer {
        address,
        text: HeaderValue::from_str(&address.to_string()).expect("an IP address is a header value"),
        scheme,
        local_port,
    });
    match scheme {
        Scheme::Http => h1::serve(&worker, stream, peer).await,
        // Boxed, so that a plain connection's task is not as large as one with a TLS session in it.
        Scheme::Https => Box::pin(https(&worker, stream, peer)).await,
    }
}

async fn https(worker: &Rc<Worker>, stream: TcpStream, peer: Rc<Peer>) {
    let acceptor = TlsAcceptor::from(std::sync::Arc::clone(&worker.tls));
    let handshake = tokio::select! {
        done = Box::pin(tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))) => done,
        () = worker.shared.abort.cancelled() => return,
    };
    let Ok(Ok(stream)) = handshake else {
        worker.shared.handshake_failures.fetch_add(1, Ordering::Relaxed);
        return;
    };
    worker.shared.handshakes.fetch_add(1, Ordering::Relaxed);
    let protocol = stream.get_ref().1.alpn_protocol();
    if protocol == Some(crate::challenges::ACME_TLS) {
        // The handshake was the answer (RFC 8737 §3).
        return;
    }
    if protocol == Some(b"h2") {
        Box::pin(http2(worker, stream, peer)).await;
    } else {
        Box::pin(h1::serve(worker, stream, peer)).await;
    }
}

async fn http2<S>(worker: &Rc<Worker>, stream: S, peer: Rc<Peer>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let settings = worker.shared.table.load().settings.clone();
    let service = service_fn(|request| {
        let (worker, peer) = (Rc::clone(worker), Rc::clone(&peer));
        async move { Ok::<_, Infallible>(forward::handle(worker, peer, request).await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(Here)
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(settings.idle_timeout)
        .keep_alive_timeout(Duration::from_secs(20))
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = worker.shared.stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = worker.shared.abort.cancelled() => return,
            }
        }
    };
    ended(outcome);
}

fn ended(outcome: Result<(), hyper::Error>) {
    if let Err(error) = outcome {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "client connection ended"
        );
    }
}
