//! Somebody between the client and Pebble, who adds what Pebble's Debian package lacks (ARI, RFC 9773) and makes the
//! faults that Pebble cannot be made to show: refusals, `Retry-After`, an answer that never comes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::Notify;

use super::Pebble;

/// What is done with one request instead of passing it on.
#[derive(Clone)]
pub(super) enum Fault {
    /// A problem document of this type, with this status and perhaps a `Retry-After`.
    Problem {
        status: u16,
        kind: &'static str,
        retry_after: Option<&'static str>,
    },
    /// Pebble does it, and its answer is held back for ever.
    Silence,
}

#[derive(Default)]
struct State {
    /// What happens to the next requests whose path begins so.
    faults: Vec<(&'static str, Fault)>,
    /// Requests, by the first segment of their paths.
    counts: BTreeMap<String, usize>,
    /// The window that is advised to everybody.
    window: Option<(String, String)>,
    /// What new orders said they replace.
    replaces: Vec<Option<String>>,
}

/// The one between; ends with its runtime.
#[derive(Clone)]
pub(super) struct Between {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Told of each answer that is held back.
    silent: Arc<Notify>,
}

impl Between {
    pub(super) async fn start(pebble: &Pebble) -> Self {
        let ca = fs_err::read_to_string(pebble.path("ca.pem")).unwrap();
        let chain = CertificateDer::pem_file_iter(pebble.path("cert.pem")).unwrap();
        let chain: Vec<_> = chain.map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(pebble.path("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let between = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
            silent: Arc::default(),
        };
        let (this, authority) = (between.clone(), pebble.listen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (this, acceptor, ca) = (this.clone(), acceptor.clone(), ca.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let serve = service_fn(|request| {
                        let (this, ca) = (this.clone(), ca.clone());
                        async move { Ok::<_, Infallible>(this.answer(request, authority, &ca).await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _gone = connection.serve_connection(TokioIo::new(stream), serve).await;
                });
            }
        });
        between
    }

    pub(super) fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.address.port())
    }

    /// The next request whose path begins with `path` meets this.
    pub(super) fn fail(&self, path: &'static str, fault: Fault) {
        self.state.lock().unwrap().faults.push((path, fault));
    }

    pub(super) fn advise(&self, start: jiff::Timestamp, end: jiff::Timestamp) {
        self.state.lock().unwrap().window = Some((start.to_string(), end.to_string()));
    }

    /// Requests so far whose path's first segment is this.
    pub(super) fn count(&self, segment: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.counts.get(segment).copied().unwrap_or_default()
    }

    /// What each order that was made said it replaces.
    pub(super) fn replaces(&self) -> Vec<Option<String>> {
        self.state.lock().unwrap().replaces.clone()
    }

    /// Waits until an answer is held back.
    pub(super) async fn silence(&self) {
        self.silent.notified().await;
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        authority: SocketAddr,
        ca: &str,
    ) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let fault = self.note(&path);
        if let Some(Fault::Problem {
            status,
            kind,
            retry_after,
        }) = &fault
        {
            let problem = serde_json::json!({
                "type": format!("urn:ietf:params:acme:error:{kind}"),
                "detail": "as the test wants it",
                "status": status,
            });
            let mut answer = Response::builder()
                .status(*status)
                .header("content-type", "application/problem+json");
            if let Some(value) = retry_after {
                answer = answer.header("retry-after", *value);
            }
            // A nonce, as an authority gives with its refusals.
            let nonce = self.nonce(authority, ca).await;
            return answer
                .header("replay-nonce", nonce)
                .body(Full::from(problem.to_string()))
                .unwrap();
        }
        if path.starts_with("/renewal-info/") {
            let window = self.state.lock().unwrap().window.clone();
            let Some((start, end)) = window else {
                return status(StatusCode::NOT_FOUND);
            };
            let advice = serde_json::json!({ "suggestedWindow": { "start": start, "end": end } });
            return Response::builder()
                .header("content-type", "application/json")
                .header("retry-after", "21600")
                .body(Full::from(advice.to_string()))
                .unwrap();
        }
        let ordered = (path == "/order-plz").then(|| replaced(&body));
        let answer = forward(Request::from_parts(head, Full::new(body)), authority, ca).await;
        if matches!(fault, Some(Fault::Silence)) {
            self.silent.notify_one();
            std::future::pending::<()>().await;
        }
        let (mut head, body) = answer.into_parts();
        let mut body = body.collect().await.unwrap().to_bytes();
        if path == "/dir" {
            let mut directory: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let renewal_info = format!("https://localhost:{}/renewal-info", self.address.port());
            directory["renewalInfo"] = renewal_info.into();
            body = directory.to_string().into();
            head.headers.remove("content-length");
        }
        // What was refused for its nonce comes once more.
        if let (Some(replaces), StatusCode::CREATED) = (ordered, head.status) {
            // An authority repeats what an order said it replaces (RFC 9773 §5).
            let mut order: serde_json::Value = serde_json::from_slice(&body).unwrap();
            self.state.lock().unwrap().replaces.push(replaces.clone());
            if let Some(replaces) = replaces {
                order["replaces"] = replaces.into();
            }
            body = order.to_string().into();
            head.headers.remove("content-length");
        }
        Response::from_parts(head, Full::new(body))
    }

    /// Counts the request, and takes what is to happen to it.
    fn note(&self, path: &str) -> Option<Fault> {
        let mut state = self.state.lock().unwrap();
        let segment = path.split('/').nth(1).unwrap_or_default().to_owned();
        *state.counts.entry(segment).or_default() += 1;
        let at = state.faults.iter().position(|(start, _)| path.starts_with(start));
        at.map(|at| state.faults.remove(at).1)
    }

    async fn nonce(&self, authority: SocketAddr, ca: &str) -> http::HeaderValue {
        let request = Request::head("/nonce-plz")
            .header("host", "localhost")
            .body(Full::default())
            .unwrap();
        forward(request, authority, ca).await.headers()["replay-nonce"].clone()
    }
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

async fn forward(request: Request<Full<Bytes>>, authority: SocketAddr, ca: &str) -> Response<Full<Bytes>> {
    let Ok(stream) = super::handshake(authority, "localhost", ca).await else {
        return status(StatusCode::BAD_GATEWAY);
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    connection.abort();
    Response::from_parts(head, Full::new(body))
}

/// What a signed order says that it replaces.
fn replaced(body: &Bytes) -> Option<String> {
    let signed: serde_json::Value = serde_json::from_slice(body).unwrap();
    let order = URL_SAFE_NO_PAD
        .decode(signed["payload"].as_str().unwrap())
        .unwrap();
    let order: serde_json::Value = serde_json::from_slice(&order).unwrap();
    order["replaces"].as_str().map(str::to_owned)
}
