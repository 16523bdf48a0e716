//! One client connection: TLS, choice of protocol, and its end.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::HeaderValue;
use tokio::net::TcpStream;

use crate::h1;
use crate::http2;
use crate::options::Scheme;
use crate::proxy_header;
use crate::secured::{self, Secured};
use crate::worker::{Accepted, Slot, Worker};

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
    /// Counts the connection.
    pub(crate) _slot: Option<Slot>,
}

impl Peer {
    fn new(peer: SocketAddr, scheme: Scheme, local_port: u16, slot: Slot) -> Rc<Self> {
        let address = peer.ip().to_canonical();
        Rc::new(Self {
            address,
            text: HeaderValue::from_str(&address.to_string()).expect("an IP address is a header value"),
            port: peer.port(),
            scheme,
            local_port,
            _slot: Some(slot),
        })
    }
}

/// Serves a connection in a task of its own.
///
/// What an idle plain connection costs is the size of that task, so nothing is in it that only others need.
pub(crate) fn start(worker: &Rc<Worker>, accepted: Accepted) {
    let Accepted {
        stream,
        peer,
        scheme,
        local_port,
        expects_header,
        slot,
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
    let worker = Rc::clone(worker);
    if scheme == Scheme::Https || expects_header {
        tokio::task::spawn_local(Box::pin(async move {
            special(&worker, stream, (peer, scheme, local_port, slot), expects_header).await;
        }));
    } else {
        let peer = Peer::new(peer, scheme, local_port, slot);
        tokio::task::spawn_local(h1::serve(worker, stream, peer));
    }
}

/// A connection that does not begin with an HTTP request.
async fn special(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    (mut peer, scheme, mut local_port, mut slot): (SocketAddr, Scheme, u16, Slot),
    expects_header: bool,
) {
    if expects_header {
        match balancer(worker, &mut stream).await {
            Some(header) => {
                if let Some((from, to)) = header.addresses {
                    (peer, local_port) = (from, to.port());
                    // As for those who come by themselves: closed without a word.
                    let Ok(counted) = worker.shared.admit(from.ip()) else {
                        return;
                    };
                    slot.counted = counted;
                }
            }
            None => return,
        }
    }
    let peer = Peer::new(peer, scheme, local_port, slot);
    match scheme {
        Scheme::Http => Box::pin(h1::serve(Rc::clone(worker), stream, peer)).await,
        Scheme::Https => Box::pin(https(worker, stream, peer)).await,
    }
}

/// What a load balancer says of the client; `None` when the connection is to end.
async fn balancer(worker: &Worker, stream: &mut TcpStream) -> Option<proxy_header::Header> {
    let header = tokio::select! {
        header = tokio::time::timeout(HANDSHAKE, proxy_header::take(stream)) => header.ok()?,
        () = worker.shared.abort.cancelled() => return None,
    };
    header
        .inspect_err(|error| tracing::debug!(error = error as &dyn std::error::Error, "no PROXY header"))
        .ok()
}

async fn https(worker: &Rc<Worker>, stream: TcpStream, peer: Rc<Peer>) {
    let on_demand = worker.shared.table.load().settings.on_demand;
    let handshake = async {
        if on_demand {
            Box::pin(demanded(worker, stream)).await
        } else {
            let handshake = Secured::accept(stream, Arc::clone(&worker.tls));
            Box::pin(tokio::time::timeout(HANDSHAKE, handshake))
                .await
                .ok()?
                .ok()
        }
    };
    let handshake = tokio::select! {
        done = handshake => done,
        () = worker.shared.abort.cancelled() => return,
    };
    let Some(stream) = handshake else {
        worker.shared.handshake_failures.fetch_add(1, Ordering::Relaxed);
        return;
    };
    worker.shared.handshakes.fetch_add(1, Ordering::Relaxed);
    if let Some(name) = stream.session().server_name()
        && let Some(route) = worker.shared.table.load().of_host(name)
    {
        route.counters[worker.index].shook_hands();
    }
    let protocol = stream.session().alpn_protocol();
    if protocol == Some(crate::challenges::ACME_TLS) {
        // The handshake was the answer (RFC 8737 §3).
        return;
    }
    if protocol == Some(b"h2") {
        Box::pin(http2::serve(worker, stream, peer)).await;
    } else {
        Box::pin(h1::serve(Rc::clone(worker), stream, peer)).await;
    }
}

/// A handshake that waits for a certificate, when its host has none yet.
async fn demanded(worker: &Rc<Worker>, mut stream: TcpStream) -> Option<Secured> {
    let hello = tokio::time::timeout(HANDSHAKE, secured::hello(&mut stream)).await;
    let hello = hello.ok()?.ok()?;
    let name = {
        let hello = hello.client_hello();
        let name = hello.server_name().map(str::to_owned);
        name.filter(|_| !crate::tls::is_challenge(&hello))
    };
    if let Some(name) = name {
        tokio::select! {
            () = crate::on_demand::settle(&worker.shared, &name) => {}
            () = left(&stream) => return None,
        }
    }
    let finish = Secured::finish(stream, hello, Arc::clone(&worker.tls));
    tokio::time::timeout(HANDSHAKE, finish).await.ok()?.ok()
}

/// Waits until a client is gone that has nothing to say before it is answered.
async fn left(stream: &TcpStream) {
    match stream.peek(&mut [0]).await {
        Ok(0) | Err(_) => {}
        // It says something all the same, so it is there.
        Ok(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F>(_: fn(Rc<Worker>, TcpStream, Rc<Peer>) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn an_idle_connection_stays_small() {
        // The largest part of what ten thousand idle connections cost; boxing what is rare keeps it so.
        let task = size(h1::serve::<TcpStream>);
        assert!(task <= 272, "the task of a plain connection grew to {task} bytes");
    }
}
