//! HTTP/1.1 clients and upstreams that speak HTTP/2: a task that is an HTTP/1.1 upstream on one side.
//!
//! The exchange with the client stays what it is for every upstream, with its limits, timeouts and cuts; the price is
//! one more copy of the bytes.
//!
//! ```text
//!  client ◄──► Exchange ◄──HTTP/1.1 in memory──► bridge ◄──stream──► upstream
//! ```

use std::rc::Rc;
use std::sync::Arc;

use base64::Engine as _;
use bytes::BytesMut;
use http::{Method, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::chunks::{self, Decoder, Piece};
use super::order::Order;
use super::parse::{self, Framing};
use super::{rewrite, trailer};
use crate::forward::{self, Broken, Patience};
use crate::http2::upstream::{self, Lease, Relay};
use crate::http2::{Upload, UploadError, Working as _};
use crate::upstream::Upstream;
use crate::worker::Worker;

/// Bytes in memory for each direction.
const ROOM: usize = 64 << 10;

type Parts = mpsc::Sender<Result<Frame<bytes::Bytes>, UploadError>>;

/// How the client's body comes.
enum Way {
    Length(u64),
    Chunked(Decoder),
    /// A tunnel: until its end.
    Raw,
}

/// One request on its way over the bridge.
struct Crossing {
    worker: Rc<Worker>,
    upstream: Arc<Upstream>,
    request: Request<Upload>,
    patience: Patience,
    is_head: bool,
    /// The WebSocket's key, when the request asks for one.
    key: Option<Vec<u8>>,
}

/// Starts a task for `order` on the stream of `lease`; what it returns speaks HTTP/1.1.
///
/// `None` when the head cannot be said in HTTP/2.
pub(super) fn start(
    worker: &Rc<Worker>,
    lease: Lease,
    upstream: &Arc<Upstream>,
    order: &Order,
    patience: Patience,
) -> Option<DuplexStream> {
    let mut room = parse::fields();
    let head = parse::request(&order.head, &mut room, parse::MOST_FIELDS).ok()?;
    let mut request = Request::new(Upload::default());
    *request.method_mut() = Method::from_bytes(head.method.as_bytes()).ok()?;
    *request.uri_mut() = head.target.parse().ok()?;
    let mut key = None;
    for field in head.fields {
        if field.name.eq_ignore_ascii_case("sec-websocket-key") && order.upgrade {
            key = Some(field.value.to_vec());
            continue;
        }
        let name = http::HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let value = http::HeaderValue::from_bytes(field.value).ok()?;
        request.headers_mut().append(name, value);
    }
    let fields = request.headers_mut();
    fields.remove(header::TRANSFER_ENCODING);
    fields.remove(header::EXPECT);
    let websocket = order.upgrade && key.is_some();
    let way = if websocket {
        *request.method_mut() = Method::CONNECT;
        let protocol = h2::ext::Protocol::from_static("websocket");
        request.extensions_mut().insert(protocol);
        Some((Way::Raw, None))
    } else {
        match head.framing {
            Framing::Length(0) | Framing::UntilClose => None,
            Framing::Length(length) => Some((Way::Length(length), Some(length))),
            Framing::Chunked => Some((Way::Chunked(Decoder::default()), None)),
        }
    };
    let (parts, way) = match way {
        Some((way, length)) => {
            let (parts, received) = mpsc::channel(1);
            *request.body_mut() = Upload::channel(received, length);
            (Some(parts), Some(way))
        }
        None => (None, None),
    };
    let (ours, theirs) = tokio::io::duplex(ROOM);
    let crossing = Crossing {
        worker: Rc::clone(worker),
        upstream: Arc::clone(upstream),
        request,
        patience,
        is_head: order.is_head,
        key,
    };
    let (skip, expects) = (order.head.len(), order.expects);
    tokio::task::spawn_local(async move {
        let (from, mut to) = tokio::io::split(ours);
        // The exchange asks for the body's start in the client's name; here it is what keeps the client waiting.
        if expects && to.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err() {
            return;
        }
        tokio::select! {
            _ = crossing.download(lease, to) => {}
            () = upload(from, skip, way, parts) => {}
        }
    });
    Some(theirs)
}

/// Reads what the client sends; ends when the exchange is given up.
async fn upload<R>(mut from: R, skip: usize, way: Option<Way>, parts: Option<Parts>)
where
    R: AsyncRead + Unpin,
{
    let mut input = BytesMut::with_capacity(ROOM / 4);
    while input.len() < skip {
        if !matches!(from.read_buf(&mut input).await, Ok(1..)) {
            return;
        }
    }
    let _head = input.split_to(skip);
    let tunnel = matches!(way, Some(Way::Raw));
    if let (Some(way), Some(parts)) = (way, parts)
        && !body(&mut from, &mut input, way, parts).await
    {
        return;
    }
    if tunnel {
        // The upstream may still have something to say.
        return tokio::time::sleep(super::HALF_CLOSED).await;
    }
    // Nothing more belongs to this request: wait for the exchange's end.
    let mut rest = [0; 64];
    while matches!(from.read(&mut rest).await, Ok(1..)) {}
}

/// Hands the body on; false when the exchange is given up before its end.
async fn body<R>(from: &mut R, input: &mut BytesMut, mut way: Way, parts: Parts) -> bool
where
    R: AsyncRead + Unpin,
{
    let mut trailers = http::HeaderMap::new();
    loop {
        let count = match &mut way {
            Way::Length(0) => return true,
            Way::Length(left) => {
                let count = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                count
            }
            Way::Raw => input.len(),
            Way::Chunked(decoder) => match decoder.next(input) {
                Ok(Piece::Data(count)) => count,
                Ok(Piece::Framing(count)) => {
                    let _framing = input.split_to(count);
                    continue;
                }
                Ok(Piece::Trailer(count)) => {
                    if let Some((name, value)) = trailer::field(&input.split_to(count)) {
                        trailers.append(name, value);
                    }
                    continue;
                }
                Ok(Piece::More) => 0,
                Ok(Piece::End) => {
                    if !trailers.is_empty() {
                        let _unwanted = parts.send(Ok(Frame::trailers(trailers))).await;
                    }
                    return true;
                }
                Err(chunks::Malformed) => {
                    let _unwanted = parts.send(Err(UploadError::Incomplete)).await;
                    return false;
                }
            },
        };
        if count > 0 {
            // An upstream that has answered may not want the rest; the exchange still has to get rid of it.
            let _unwanted = parts.send(Ok(Frame::data(input.split_to(count).freeze()))).await;
            continue;
        }
        input.reserve(ROOM / 4);
        if !matches!(from.read_buf(input).await, Ok(1..)) {
            if matches!(way, Way::Raw) {
                return true;
            }
            let _unwanted = parts.send(Err(UploadError::Incomplete)).await;
            return false;
        }
    }
}

impl Crossing {
    /// Writes the response as HTTP/1.1; whatever goes wrong ends it, which the exchange understands.
    async fn download<W>(mut self, lease: Lease, mut to: W) -> std::io::Result<()>
    where
        W: AsyncWrite + Unpin,
    {
        let mut lease = Some(lease);
        let response = loop {
            let lease = match lease.take() {
                Some(lease) => lease,
                None => forward::stream(&self.worker, &self.upstream, true).await?,
            };
            let fresh = !lease.reused;
            match self.fetch(lease, &mut to).await? {
                Ok(response) => break response,
                Err(Broken::Stale) if !fresh => {}
                Err(Broken::Status(StatusCode::NOT_IMPLEMENTED)) => {
                    let head =
                        b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    return to.write_all(head).await;
                }
                Err(_) => return Ok(()),
            }
        };
        let (head, mut relay) = response.into_parts();
        let mut out = Vec::with_capacity(1024);
        let accepted = self.key.as_deref().filter(|_| head.status.is_success());
        let status = if accepted.is_some() {
            StatusCode::SWITCHING_PROTOCOLS
        } else {
            head.status
        };
        rewrite::status_line(
            &mut out,
            status.as_u16(),
            status.canonical_reason().unwrap_or("").as_bytes(),
        );
        for (name, value) in &head.headers {
            rewrite::field(&mut out, name.as_str().as_bytes(), value.as_bytes());
        }
        let mut chunked = false;
        if let Some(key) = accepted {
            rewrite::field(&mut out, b"Connection", b"upgrade");
            rewrite::field(&mut out, b"Upgrade", b"websocket");
            rewrite::field(&mut out, b"Sec-WebSocket-Accept", accept(key).as_bytes());
        } else {
            rewrite::field(&mut out, b"Connection", b"close");
            // A 204 has no length, and a 304 none that we know (RFC 9110 §8.6).
            let bodiless = self.is_head || matches!(head.status.as_u16(), 204 | 304);
            if !(head.headers.contains_key(header::CONTENT_LENGTH) || bodiless) {
                if relay.is_end_stream() {
                    rewrite::field(&mut out, b"Content-Length", b"0");
                } else {
                    chunked = true;
                    rewrite::field(&mut out, b"Transfer-Encoding", b"chunked");
                }
            }
        }
        out.extend_from_slice(b"\r\n");
        to.write_all(&out).await?;
        let mut ended = false;
        while let Some(frame) = next(&mut relay).await {
            out.clear();
            match frame?.into_data() {
                Ok(data) if chunked => chunks::write(&mut out, &data),
                Ok(data) => {
                    to.write_all(&data).await?;
                    continue;
                }
                Err(frame) => {
                    if let (Ok(fields), true) = (frame.into_trailers(), chunked) {
                        trailer::write_end(&mut out, &fields);
                        ended = true;
                    }
                }
            }
            to.write_all(&out).await?;
        }
        if chunked && !ended {
            to.write_all(chunks::END).await?;
        }
        to.shutdown().await
    }

    /// Asks for the response, and passes interim ones on as they come.
    async fn fetch<W>(&mut self, lease: Lease, to: &mut W) -> std::io::Result<Result<Response<Relay>, Broken>>
    where
        W: AsyncWrite + Unpin,
    {
        let (tell, mut told) = mpsc::channel::<Response<()>>(8);
        let interim = |head| {
            // More than eight at once are nothing that a client waits for.
            let _dropped = tell.try_send(head);
        };
        let upstream = (Arc::clone(&self.upstream), None);
        let mut fetching = std::pin::pin!(upstream::fetch(
            &self.worker,
            lease,
            upstream,
            &mut self.request,
            self.patience,
            &interim
        ));
        loop {
            tokio::select! {
                biased;
                Some(head) = told.recv() => {
                    let mut out = Vec::new();
                    let status = head.status();
                    rewrite::status_line(&mut out, status.as_u16(), status.canonical_reason().unwrap_or("").as_bytes());
                    for (name, value) in head.headers() {
                        rewrite::field(&mut out, name.as_str().as_bytes(), value.as_bytes());
                    }
                    out.extend_from_slice(b"\r\n");
                    to.write_all(&out).await?;
                }
                outcome = &mut fetching => return Ok(outcome),
            }
        }
    }
}

/// The next frame, with the upload going on beside it.
async fn next(relay: &mut Relay) -> Option<std::io::Result<Frame<bytes::Bytes>>> {
    std::future::poll_fn(|cx| {
        relay.poll_work(cx);
        std::pin::Pin::new(&mut *relay).poll_frame(cx)
    })
    .await
    .map(|frame| frame.map_err(std::io::Error::other))
}

/// What a WebSocket server proves itself with (RFC 6455 §4.2.2); the h2c upstream has nothing of the kind.
fn accept(key: &[u8]) -> String {
    use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(digest.finish())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_websocket_is_accepted_as_in_the_rfc() {
        // The example of RFC 6455 §1.3.
        assert_eq!(
            super::accept(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }
}
