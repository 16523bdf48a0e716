//! The strict S3 server in this process, with faults on request: what a store does on a bad day.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use appliance_backup::store::{Patience, Retrying, S3Options, S3Store, Store};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status and an error document of this code.
    Status(u16, &'static str),
    /// The connection is cut before anything happens.
    Reset,
    /// Carried out, and the connection cut before the answer.
    LostReply,
    /// Never answered.
    Hang,
    /// One byte of the body is another one when it arrives.
    FlippedByte,
    /// Answered with 200 and an error document.
    ErrorWith200,
    /// One byte of the answer's body is another one when it arrives.
    FlippedReply,
    /// Half of the answer's body arrives, then the connection is cut.
    HalfReply,
    /// From this request on every connection is cut, for so long.
    Away(Duration),
}

/// Which requests a fault is for.
pub type Which = fn(&Seen) -> bool;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: hyper::HeaderMap,
    pub body: usize,
}

impl Seen {
    pub fn part(&self) -> bool {
        self.method == "PUT" && self.query.contains("partNumber=")
    }
    pub fn complete(&self) -> bool {
        self.method == "POST" && self.query.contains("uploadId=")
    }
    pub fn read(&self) -> bool {
        self.method == "GET" && self.path.contains("/vol-")
    }
    pub fn list(&self) -> bool {
        self.method == "GET" && self.query.contains("list-type")
    }
    pub fn head(&self) -> bool {
        self.method == "HEAD"
    }
    pub fn delete(&self) -> bool {
        self.method == "DELETE" && !self.query.contains("uploadId")
    }
    pub fn begin(&self) -> bool {
        self.method == "POST" && self.query.contains("uploads")
    }
    pub fn manifest(&self) -> bool {
        self.method == "PUT" && self.path.ends_with("manifest.json")
    }
    pub fn read_manifest(&self) -> bool {
        self.method == "GET" && self.path.ends_with("manifest.json")
    }
    pub fn globals(&self) -> bool {
        self.method == "PUT" && self.path.contains("/globals")
    }
    pub fn verified(&self) -> bool {
        self.method == "PUT" && self.path.contains("/verified-")
    }
    pub fn abort(&self) -> bool {
        self.method == "DELETE" && self.query.contains("uploadId")
    }
}

/// Who answers behind the faults.
#[derive(Clone)]
enum Behind {
    /// The strict server, in this process.
    Strict(S3Service),
    /// Another server, on this port of ours.
    Port(u16),
}

impl State {
    fn is_away(&self) -> bool {
        self.away.is_some_and(|until| std::time::Instant::now() < until)
    }
}

#[derive(Default)]
struct State {
    faults: VecDeque<(Which, Fault)>,
    /// Until when every connection is cut.
    away: Option<std::time::Instant>,
    /// Knows neither conditions nor checksums, and says so.
    plain: bool,
    /// How far the server's clock is ahead of ours.
    ahead: jiff::SignedDuration,
    seen: Vec<Seen>,
}

/// The server.
pub struct S3 {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

pub const ACCESS: &str = "AKIDTEST";
pub const SECRET: &str = "SECRETTEST";

impl S3 {
    /// Serves `root` with one bucket, `bkt`.
    pub async fn start(root: &Path) -> Self {
        std::fs::create_dir_all(root.join("bkt")).expect("bucket");
        let mut builder = S3ServiceBuilder::new(FileSystem::new(root).expect("root"));
        builder.set_auth(SimpleAuth::from_single(ACCESS, SECRET));
        // Its clock is the one of this machine; what is signed at a wrong time is refused before it, see [`S3::ahead`].
        let mut config = s3s::config::S3Config::default();
        config.presigned_url_max_skew_time_secs = 7200;
        builder.set_config(Arc::new(s3s::config::StaticConfigProvider::new(Arc::new(config))));
        Self::with(Behind::Strict(builder.build())).await
    }

    /// Puts the faults before another server.
    pub async fn before(port: u16) -> Self {
        Self::with(Behind::Port(port)).await
    }

    async fn with(behind: Behind) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("listen");
        let port = listener.local_addr().expect("address").port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                if shared.lock().expect("state").is_away() {
                    continue;
                }
                let (behind, state) = (behind.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let answer =
                        service_fn(move |request| answer(behind.clone(), Arc::clone(&state), request));
                    let _cut = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), answer)
                        .await;
                });
            }
        });
        Self { port, state }
    }

    /// The next request that fits meets this fault; several for one kind of request come one after the other.
    pub fn fault(&self, which: Which, fault: Fault) {
        self.state.lock().expect("state").faults.push_back((which, fault));
    }

    /// Every connection is cut, until told otherwise.
    pub fn down(&self, down: bool) {
        let hour = Duration::from_secs(3600);
        self.state.lock().expect("state").away = down.then(|| std::time::Instant::now() + hour);
    }

    /// From now on it refuses conditions and checksums, as some stores do.
    pub fn plain(&self) {
        self.state.lock().expect("state").plain = true;
    }

    /// From now on its clock is this far ahead of ours, and it refuses what was signed at another time, as stores do.
    pub fn ahead(&self, ahead: jiff::SignedDuration) {
        self.state.lock().expect("state").ahead = ahead;
    }

    /// The faults that did not happen will not.
    pub fn clear(&self) {
        self.state.lock().expect("state").faults.clear();
    }

    pub fn faults_left(&self) -> usize {
        self.state.lock().expect("state").faults.len()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().expect("state").seen.clone()
    }

    pub fn options(&self, prefix: &str) -> S3Options {
        options(self.port, prefix)
    }

    /// A store that is patient in small steps.
    pub fn store(&self, prefix: &str) -> Arc<dyn Store> {
        store(self.options(prefix))
    }
}

pub fn options(port: u16, prefix: &str) -> S3Options {
    S3Options {
        bucket: "bkt".to_owned(),
        prefix: prefix.to_owned(),
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        region: "us-east-1".to_owned(),
        path_style: true,
        access_key_id: ACCESS.to_owned(),
        secret_access_key: SECRET.to_owned(),
        attempt_limit: None,
    }
}

pub fn store(options: S3Options) -> Arc<dyn Store> {
    let patience = Patience {
        limit: Duration::from_secs(60),
        first: Duration::from_millis(20),
        longest: Duration::from_millis(300),
    };
    Arc::new(Retrying::new(Arc::new(S3Store::new(options)), patience))
}

async fn answer(
    behind: Behind,
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<s3s::Body>, std::io::Error> {
    let (head, body) = request.into_parts();
    let mut body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let seen = Seen {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers.clone(),
        body: body.len(),
    };
    let (fault, now) = {
        let mut state = state.lock().expect("state");
        state.seen.push(seen.clone());
        let now = jiff::Timestamp::now() + state.ahead;
        let asks = |name: &str| head.headers.contains_key(name);
        let fault = if state.is_away() {
            Some(Fault::Reset)
        } else if !signed_about(&head.headers, now) {
            Some(Fault::Status(403, "RequestTimeTooSkewed"))
        } else if state.plain
            && (asks("if-none-match") || asks("x-amz-checksum-crc32") || asks("x-amz-checksum-algorithm"))
        {
            Some(Fault::Status(501, "NotImplemented"))
        } else {
            let at = state.faults.iter().position(|(which, _)| which(&seen));
            let fault = at.and_then(|at| state.faults.remove(at)).map(|(_, fault)| fault);
            if let Some(Fault::Away(time)) = fault {
                state.away = Some(std::time::Instant::now() + time);
            }
            fault
        };
        (fault, now)
    };
    let dated = |mut answered: Response<s3s::Body>| {
        let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now);
        let date = date.expect("a date").parse().expect("a header");
        answered.headers_mut().insert("date", date);
        answered
    };
    let cut = || std::io::Error::other("the connection is cut");
    match fault {
        Some(Fault::Status(status, code)) => return Ok(dated(error(status, code))),
        Some(Fault::ErrorWith200) => return Ok(dated(error(200, "InternalError"))),
        Some(Fault::Reset | Fault::Away(_)) => return Err(cut()),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::FlippedByte) => {
            let mut bytes = body.to_vec();
            if let Some(byte) = bytes.get_mut(100) {
                *byte ^= 1;
            }
            body = Bytes::from(bytes);
        }
        Some(Fault::LostReply | Fault::FlippedReply | Fault::HalfReply) | None => {}
    }
    let answered = match behind {
        Behind::Strict(service) => {
            let request = Request::from_parts(head, s3s::Body::from(body));
            service.call(request).await.map_err(|_| cut())?
        }
        Behind::Port(port) => forward(port, Request::from_parts(head, body)).await?,
    };
    if fault == Some(Fault::LostReply) {
        // The answer to Complete comes with its body: only then it is carried out.
        let _carried_out = answered.into_body().collect().await;
        return Err(cut());
    }
    match fault {
        Some(Fault::FlippedReply | Fault::HalfReply) => {
            let (head, body) = answered.into_parts();
            let mut bytes = body.collect().await.map_err(|_| cut())?.to_bytes().to_vec();
            if fault == Some(Fault::HalfReply) {
                // The length that was promised stays: the client notices that the rest does not come.
                bytes.truncate(bytes.len() / 2);
            } else if let Some(byte) = bytes.last_mut() {
                *byte ^= 1;
            }
            let pieces =
                futures_util::stream::iter([Ok(hyper::body::Frame::data(Bytes::from(bytes))), Err(cut())]);
            let length = if fault == Some(Fault::HalfReply) { 2 } else { 1 };
            let body = http_body_util::StreamBody::new(futures_util::StreamExt::take(pieces, length));
            Ok(Response::from_parts(head, s3s::Body::http_body_unsync(body)))
        }
        _ => Ok(dated(answered)),
    }
}

/// Whether a request was signed within a quarter of an hour of `now`, as stores want it.
fn signed_about(headers: &hyper::HeaderMap, now: jiff::Timestamp) -> bool {
    let date = headers.get("x-amz-date").and_then(|date| date.to_str().ok());
    let at = date.and_then(|date| jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", date).ok());
    at.and_then(|at| at.to_zoned(jiff::tz::TimeZone::UTC).ok())
        .is_some_and(|at| at.timestamp().duration_since(now).as_secs().abs() < 900)
}

/// Has another server answer; what concerns one connection alone stays with that.
async fn forward(port: u16, mut request: Request<Bytes>) -> Result<Response<s3s::Body>, std::io::Error> {
    use std::io::Error;
    let socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .map_err(Error::other)?;
    tokio::spawn(connection);
    for name in ["expect", "connection", "transfer-encoding"] {
        request.headers_mut().remove(name);
    }
    let request = request.map(http_body_util::Full::new);
    let (mut head, body) = sender
        .send_request(request)
        .await
        .map_err(Error::other)?
        .into_parts();
    for name in ["connection", "transfer-encoding"] {
        head.headers.remove(name);
    }
    let body = body.collect().await.map_err(Error::other)?.to_bytes();
    Ok(Response::from_parts(head, s3s::Body::from(body)))
}

fn error(status: u16, code: &str) -> Response<s3s::Body> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>made by the test</Message></Error>"
    );
    let mut response = Response::new(s3s::Body::from(text));
    *response.status_mut() = StatusCode::from_u16(status).expect("status");
    response.headers_mut().insert(
        "content-type",
        hyper::header::HeaderValue::from_static("application/xml"),
    );
    response
}
