//! An HTTP/2 client and an h2c upstream in the test's own hands.

use std::net::SocketAddr;

use appliance_proxy::Service;
use appliance_proxy::names::{HostPattern, UpstreamAddress};
use appliance_proxy::snapshot::UpstreamProtocol;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream, client};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::rig::name;

/// A request that reached the upstream.
pub(crate) type Asked = (Request<RecvStream>, SendResponse<Bytes>);

/// An upstream that answers `/up` by itself, and leaves everything else to the test.
pub(crate) struct H2cApp {
    pub(crate) address: UpstreamAddress,
    requests: mpsc::Receiver<Asked>,
    server: tokio::task::JoinHandle<()>,
    /// Cancelled once it is to look at nothing any more, its connections open.
    frozen: CancellationToken,
}

impl H2cApp {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let (sender, requests) = mpsc::channel(64);
        let frozen = CancellationToken::new();
        let freeze = frozen.clone();
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, sender.clone(), freeze.clone()));
            }
        });
        Self {
            address: address.into(),
            requests,
            server,
            frozen,
        }
    }

    /// The same behind a Unix socket.
    pub(crate) fn at(path: &std::path::Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (sender, requests) = mpsc::channel(64);
        let frozen = CancellationToken::new();
        let freeze = frozen.clone();
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, sender.clone(), freeze.clone()));
            }
        });
        Self {
            address: UpstreamAddress::parse(&format!("unix:{}", path.display())).unwrap(),
            requests,
            server,
            frozen,
        }
    }

    pub(crate) fn service(&self) -> Service {
        let mut service = Service::new(
            name("grpc"),
            vec![HostPattern::parse("h").unwrap()],
            vec![self.address.clone()],
        );
        service.upstream_protocol = UpstreamProtocol::H2c;
        service
    }

    pub(crate) async fn next(&mut self) -> Asked {
        self.requests.recv().await.unwrap()
    }

    /// Makes it dead without a word: its connections stay open, and nobody looks at them.
    pub(crate) fn freeze(&self) {
        self.frozen.cancel();
    }

    /// Ends it, connections included.
    pub(crate) async fn kill(self) {
        self.server.abort();
        let _aborted = self.server.await;
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    requests: mpsc::Sender<Asked>,
    frozen: CancellationToken,
) {
    let Ok(mut connection) = h2::server::Builder::new()
        .enable_connect_protocol()
        .handshake(stream)
        .await
    else {
        return;
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = frozen.cancelled() => std::future::pending().await,
            accepted = connection.accept() => accepted,
        };
        let Some(Ok((request, mut respond))) = accepted else {
            return;
        };
        if request.uri().path() == "/up" {
            respond.send_response(Response::new(()), true).unwrap();
        } else if requests.send((request, respond)).await.is_err() {
            return;
        }
    }
}

/// A connection of an HTTP/2 client, by prior knowledge.
pub(crate) async fn connect(address: SocketAddr) -> client::SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = client::Builder::new().handshake(stream).await.unwrap();
    tokio::spawn(async move {
        let _ended = connection.await;
    });
    sender.ready().await.unwrap()
}

/// A request for the host `h`.
pub(crate) fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://h{path}"))
}

/// Everything that comes.
pub(crate) async fn all(body: &mut RecvStream) -> Result<(String, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    let trailers = body.trailers().await?;
    Ok((String::from_utf8(bytes).unwrap(), trailers))
}

/// Exactly this many bytes.
pub(crate) async fn some(body: &mut RecvStream, count: usize) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let data = body.data().await.unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    assert_eq!(bytes.len(), count);
    String::from_utf8(bytes).unwrap()
}

pub(crate) fn fields(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| {
            (
                http::HeaderName::from_static(name),
                http::HeaderValue::from_static(value),
            )
        })
        .collect()
}

pub(crate) fn say(stream: &mut SendStream<Bytes>, text: &'static str, last: bool) {
    stream
        .send_data(Bytes::from_static(text.as_bytes()), last)
        .unwrap();
}
