//! One client connection: TLS, choice of protocol, and its end.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::HeaderValue;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::h1;
use crate::http2;
use crate::options::Scheme;
use crate::proxy_header;
use crate::worker::{Accepted, Worker};

/// Longest time for a TLS handshake, and for a PROXY header before it.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Who is at the other end.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    pub(crate) text: HeaderValue,
    /// Its port.
    pub(crate) port: u16,
    pub(crate) scheme: Scheme,
    pub(crate) local_port: u16,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted {
        stream,
        peer,
        scheme,
        mut local_port,
        expects_header,
        slot: _slot,
    } = accepted;
    let mut stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot take a connection"
            );
            return;
        }
    };
    let mut address = peer.ip();
    if expects_header {
        let header = tokio::select! {
            header = tokio::time::timeout(HANDSHAKE, proxy_header::take(&mut stream)) => header,
            () = worker.shared.abort.cancelled() => return,
        };
        match header {
            Ok(Ok(header)) => {
                if let Some((from, to)) = header.addresses {
                    (address, local_port) = (from.ip(), to.port());
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(%peer, error = &error as &dyn std::error::Error, "no PROXY header");
                return;
            }
            Err(_) => return,
        }
    }
    let address = address.to_canonical();
    let peer = Rc::new(Peer {
        address,
        text: HeaderValue::from_str(&address.to_string()).expect("an IP address is a header value"),
        port: peer.port(),
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
        Box::pin(http2::serve(worker, stream, peer)).await;
    } else {
        Box::pin(h1::serve(worker, stream, peer)).await;
    }
}
