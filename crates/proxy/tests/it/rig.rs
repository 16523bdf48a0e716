//! A proxy with a state directory of its own, and upstreams that say who they are.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use appliance_proxy::control::Applied;
use appliance_proxy::names::{HostPattern, ServiceName, UpstreamAddress};
use appliance_proxy::options::{Listener, ListenerSocket, Scheme, Store};
use appliance_proxy::{Client, Options, Proxy, Service};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// A running proxy.
pub(crate) struct Rig {
    proxy: Option<Proxy>,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) client: Client,
    pub(crate) metrics: SocketAddr,
    pub(crate) log: Log,
    pub(crate) home: tempfile::TempDir,
}

/// What the proxy wrote to its access log, and whether there is no room for more.
#[derive(Clone, Default)]
pub(crate) struct Log(
    pub(crate) Arc<std::sync::Mutex<Vec<u8>>>,
    pub(crate) Arc<AtomicBool>,
);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.1.load(Ordering::SeqCst) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Rig {
    pub(crate) fn start() -> Self {
        Self::over(tempfile::tempdir().unwrap())
    }

    /// Starts with the state that `home` holds.
    pub(crate) fn over(home: tempfile::TempDir) -> Self {
        let store = Store::Directory(home.path().join("state"));
        Self::with(home, store)
    }

    pub(crate) fn with(home: tempfile::TempDir, store: Store) -> Self {
        Self::at(home, store, Scheme::Http, 0)
    }

    /// The same with one listener on a port that the test chose.
    pub(crate) fn at(home: tempfile::TempDir, store: Store, chosen: Scheme, port: u16) -> Self {
        let control = home.path().join("control.sock");
        let log = Log::default();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = |scheme| Listener {
            scheme,
            socket: ListenerSocket::Bind(SocketAddr::from((
                [127, 0, 0, 1],
                if scheme == chosen { port } else { 0 },
            ))),
            proxy_protocol: false,
        };
        let proxy = Proxy::start(Options {
            listeners: vec![listener(Scheme::Http), listener(Scheme::Https)],
            metrics: Some(any),
            access_log: Some(Box::new(log.clone())),
            successor: None,
            predecessor: None,
            spool: None,
            control: Some(control.clone()),
            store,
            workers: Some(2),
            drain: Duration::from_secs(5),
            notify: Box::new(|_| {}),
        })
        .unwrap();
        Self {
            http: proxy.addresses()[0],
            https: proxy.addresses()[1],
            client: Client::new(control),
            metrics: proxy.metrics_address().unwrap(),
            log,
            proxy: Some(proxy),
            home,
        }
    }

    /// Stops the proxy and gives its state back.
    pub(crate) async fn stop(mut self) -> tempfile::TempDir {
        let proxy = self.proxy.take().unwrap();
        tokio::task::spawn_blocking(move || proxy.shutdown())
            .await
            .unwrap();
        std::mem::replace(&mut self.home, tempfile::tempdir().unwrap())
    }

    /// A proxy that is stopped while a test goes on.
    pub(crate) fn stop_beside(mut self) -> tokio::task::JoinHandle<()> {
        let proxy = self.proxy.take().unwrap();
        tokio::task::spawn_blocking(move || proxy.shutdown())
    }

    pub(crate) async fn put(&self, service: &Service) -> Applied {
        self.client.put_service(service).await.unwrap()
    }

    /// One request on a connection of its own.
    pub(crate) async fn get(&self, host: &str, path: &str) -> Answer {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ))
        .await
    }

    /// Bytes as they are, and the one answer to them.
    pub(crate) async fn send(&self, bytes: &str) -> Answer {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        Answer::read(&mut BufReader::new(stream)).await
    }
}

/// A response as it came over the wire.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    /// Reads one response; its body by content-length, chunks, or up to the end.
    pub(crate) async fn read<S: tokio::io::AsyncBufRead + Unpin>(stream: &mut S) -> Self {
        let (status, headers) = read_head(stream).await;
        let mut body = Vec::new();
        if let Some(length) = headers.get("content-length") {
            let length = length.to_str().unwrap().parse().unwrap();
            body.resize(length, 0);
            stream.read_exact(&mut body).await.unwrap();
        } else if headers.get("transfer-encoding").is_some() {
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                let length = usize::from_str_radix(line.trim(), 16).unwrap();
                let start = body.len();
                body.resize(start + length, 0);
                stream.read_exact(&mut body[start..]).await.unwrap();
                stream.read_line(&mut line).await.unwrap();
                if length == 0 {
                    break;
                }
            }
        } else if status >= 200 && status != 204 && status != 304 {
            stream.read_to_end(&mut body).await.unwrap();
        }
        Self {
            status,
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) async fn read_head<S: tokio::io::AsyncBufRead + Unpin>(stream: &mut S) -> (u16, HeaderMap) {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let status = line
        .split(' ')
        .nth(1)
        .unwrap_or_else(|| panic!("no status line but {line:?}"))
        .parse()
        .unwrap();
    let mut headers = HeaderMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let line = line.trim_end();
        if line.is_empty() {
            return (status, headers);
        }
        let (name, value) = line.split_once(':').unwrap();
        headers.append(
            http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
            value.trim().parse().unwrap(),
        );
    }
}

/// An app that says its name, what it was asked, and behaves as the path says.
///
/// `/up` is its health check; `/slow` answers when released; `/stream` sends a part, then waits; `/ws` echoes.
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<AppState>,
    server: tokio::task::JoinHandle<()>,
}

pub(crate) struct AppState {
    name: String,
    pub(crate) healthy: AtomicBool,
    pub(crate) requests: AtomicU64,
    /// Told of each health check.
    pub(crate) checked: Notify,
    pub(crate) arrived: Notify,
    pub(crate) release: Notify,
}

impl App {
    pub(crate) async fn start(name: &str) -> Self {
        Self::at(name, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub(crate) async fn at(name: &str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(AppState {
            name: name.to_owned(),
            healthy: AtomicBool::new(true),
            requests: AtomicU64::new(0),
            checked: Notify::new(),
            arrived: Notify::new(),
            release: Notify::new(),
        });
        let shared = Arc::clone(&state);
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let state = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&state), request));
                    let _client_left = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                });
            }
        });
        Self {
            address,
            state,
            server,
        }
    }

    pub(crate) fn upstream(&self) -> UpstreamAddress {
        self.address.into()
    }

    /// Ends it, connections included.
    pub(crate) async fn kill(self) {
        self.server.abort();
        let _aborted = self.server.await;
    }
}

type AppBody = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn answer(
    state: Arc<AppState>,
    mut request: Request<Incoming>,
) -> Result<Response<AppBody>, Infallible> {
    let path = request.uri().path().to_owned();
    if path == "/up" {
        state.checked.notify_one();
        let healthy = state.healthy.load(Ordering::Relaxed);
        let mut response = text("up".into());
        if !healthy {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        return Ok(response);
    }
    state.requests.fetch_add(1, Ordering::Relaxed);
    state.arrived.notify_one();
    match path.as_str() {
        "/slow" => {
            state.release.notified().await;
            Ok(text(format!("{} slow", state.name)))
        }
        "/ws" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut bytes = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                    if stream.write_all(&bytes[..length]).await.is_err() {
                        break;
                    }
                }
            });
            let mut response = text(String::new());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert("connection", "upgrade".parse().unwrap());
            headers.insert("upgrade", "websocket".parse().unwrap());
            Ok(response)
        }
        "/stream" => {
            let kind = request.uri().query().unwrap_or_default().to_owned();
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                sender.send(Bytes::from("first\n")).await.unwrap();
                state.release.notified().await;
                let _client_left = sender.send(Bytes::from("second\n")).await;
            });
            let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
                let frame = receiver.recv().await?;
                Some((Ok(hyper::body::Frame::data(frame)), receiver))
            });
            let mut response = Response::new(http_body_util::StreamBody::new(stream).boxed());
            let field = match kind.as_str() {
                "sse" => ("content-type", "text/event-stream; charset=utf-8"),
                "unbuffered" => ("x-accel-buffering", "no"),
                _ => ("content-type", "text/plain"),
            };
            response.headers_mut().insert(field.0, field.1.parse().unwrap());
            Ok(response)
        }
        "/echo" => {
            let chunked = request.uri().query() == Some("chunked");
            let body = request.into_body().collect().await;
            let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
            if !chunked {
                return Ok(Response::new(Full::new(bytes).boxed()));
            }
            let parts = (0..bytes.len()).step_by(100_000).map(move |at| {
                Ok(hyper::body::Frame::data(
                    bytes.slice(at..bytes.len().min(at + 100_000)),
                ))
            });
            let stream = futures_util::stream::iter(parts.collect::<Vec<_>>());
            Ok(Response::new(http_body_util::StreamBody::new(stream).boxed()))
        }
        "/hop" => {
            let mut response = text("hop".into());
            let headers = response.headers_mut();
            headers.insert("connection", "x-internal".parse().unwrap());
            headers.insert("x-internal", "secret".parse().unwrap());
            headers.insert("keep-alive", "timeout=5".parse().unwrap());
            Ok(response)
        }
        _ => {
            let mut lines = format!(
                "{} {} {}\n",
                state.name,
                request.method(),
                request.uri().path_and_query().unwrap()
            );
            for (name, value) in request.headers() {
                lines.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
            }
            let body = request.into_body().collect().await;
            let length = body.map_or(0, |body| body.to_bytes().len());
            lines.push_str(&format!("body: {length}\n"));
            Ok(text(lines))
        }
    }
}

fn text(text: String) -> Response<AppBody> {
    Response::new(Full::new(Bytes::from(text)).boxed())
}

pub(crate) fn name(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

/// A service for one host.
pub(crate) fn service(name: &str, host: &str, apps: &[&App]) -> Service {
    let hosts = (!host.is_empty()).then(|| HostPattern::parse(host).unwrap());
    Service::new(
        self::name(name),
        hosts.into_iter().collect(),
        apps.iter().map(|app| app.upstream()).collect(),
    )
}

/// An address that nothing listens on.
pub(crate) async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

pub(crate) fn path_in(rig: &Rig, relative: &str) -> PathBuf {
    rig.home.path().join(relative)
}
