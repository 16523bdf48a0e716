//! The access log: one JSON line for each request of a service that asks for it.
//!
//! Field names are kamal-proxy's; the query is left out unless the service asks for it, because it carries tokens.
//! Workers gather lines and hand them to one writer thread; a writer that cannot keep up costs lines (counted), never
//! requests.

use std::cell::RefCell;
use std::io::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// What is gathered before it is handed over.
const BATCH: usize = 16 << 10;
/// Batches that may wait for the writer.
const WAITING: usize = 256;

/// The way to the writer thread.
#[derive(Debug)]
pub(crate) struct AccessLog {
    sender: Option<SyncSender<Vec<u8>>>,
    /// Batches that were lost because the writer could not keep up.
    pub(crate) lost: AtomicU64,
}

impl AccessLog {
    /// Starts the writer.
    ///
    /// # Errors
    /// When its thread cannot be created.
    pub(crate) fn start(sink: Option<Box<dyn Write + Send>>) -> std::io::Result<Self> {
        let sender = match sink {
            None => None,
            Some(mut sink) => {
                let (sender, batches) = sync_channel::<Vec<u8>>(WAITING);
                std::thread::Builder::new()
                    .name("proxy-log".into())
                    .spawn(move || {
                        for batch in batches {
                            match sink.write_all(&batch).and_then(|()| sink.flush()) {
                                // Nobody reads any more: the requests go on.
                                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return,
                                // A full disk, say: these lines are lost, later ones may not be.
                                Err(_) | Ok(()) => {}
                            }
                        }
                    })?;
                Some(sender)
            }
        };
        Ok(Self {
            sender,
            lost: AtomicU64::new(0),
        })
    }

    /// Whether anything is to be logged at all.
    pub(crate) fn is_on(&self) -> bool {
        self.sender.is_some()
    }

    fn hand_over(&self, batch: Vec<u8>) {
        if let Some(sender) = &self.sender
            && sender.try_send(batch).is_err()
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The lines of one worker that were not handed over yet.
#[derive(Debug, Default)]
pub(crate) struct Lines(RefCell<Vec<u8>>);

impl Lines {
    /// Appends the line of one request.
    pub(crate) fn push(&self, log: &AccessLog, entry: &Entry<'_>) {
        let mut lines = self.0.borrow_mut();
        entry.write(&mut lines);
        if lines.len() >= BATCH {
            log.hand_over(std::mem::take(&mut lines));
        }
    }

    /// Hands over what there is.
    pub(crate) fn flush(&self, log: &AccessLog) {
        let mut lines = self.0.borrow_mut();
        if !lines.is_empty() {
            log.hand_over(std::mem::take(&mut lines));
        }
    }
}

/// A field of a head in a line: its name there, and its value.
pub(crate) type Field = (String, Box<[u8]>);

/// The content type and the fields that are wanted of a head; `side` is `req` or `resp`.
pub(crate) fn fields(side: &str, wanted: &[String], find: impl Fn(&str) -> Option<Box<[u8]>>) -> Vec<Field> {
    let own = std::iter::once("content-type").chain(
        wanted
            .iter()
            .map(String::as_str)
            // The line has these already.
            .filter(|name| {
                !name.eq_ignore_ascii_case("content-type") && !name.eq_ignore_ascii_case("user-agent")
            }),
    );
    own.filter_map(|name| {
        let value = find(name)?;
        Some((
            format!("{side}_{}", name.to_ascii_lowercase().replace('-', "_")),
            value,
        ))
    })
    .collect()
}

/// One request, as it is logged.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// Milliseconds since 1970.
    pub(crate) time: u64,
    pub(crate) host: &'a [u8],
    /// Path and query, raw.
    pub(crate) target: &'a [u8],
    /// Whether the query may be logged.
    pub(crate) with_query: bool,
    pub(crate) method: &'a [u8],
    pub(crate) request_id: &'a [u8],
    pub(crate) status: u16,
    pub(crate) service: &'a str,
    /// The upstream's address; empty when the proxy answered.
    pub(crate) target_address: &'a str,
    pub(crate) took: Duration,
    /// Bytes of the request's body, as announced.
    pub(crate) request_length: u64,
    /// Bytes of the body that the client was given; of a compressed one with its framing.
    pub(crate) response_bytes: u64,
    /// Address and port at the other end of the connection.
    pub(crate) client: (IpAddr, u16),
    /// The port it came to.
    pub(crate) port: u16,
    /// Who asks, as trusted proxies say.
    pub(crate) visitor: IpAddr,
    /// Fields of the request's and of the response's head.
    pub(crate) fields: [&'a [Field]; 2],
    pub(crate) scheme: &'static str,
    pub(crate) protocol: &'static str,
    pub(crate) user_agent: &'a [u8],
}

impl Entry<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let (path, query) = match self.target.iter().position(|b| *b == b'?') {
            Some(at) => (&self.target[..at], &self.target[at + 1..]),
            None => (self.target, &[][..]),
        };
        let (second, milli) = (self.time / 1000, self.time % 1000);
        let time = httpdate::HttpDate::from(std::time::UNIX_EPOCH + Duration::from_secs(second));
        out.extend_from_slice(b"{\"time\":");
        // Milliseconds are unambiguous, sortable, and need no calendar; the date is for people.
        let _infallible = write!(
            out,
            "{second}.{milli:03},\"date\":\"{time}\",\"level\":\"INFO\",\"msg\":\"Request\""
        );
        for (name, value) in [
            ("host", self.host),
            ("path", path),
            ("request_id", self.request_id),
            ("method", self.method),
            ("service", self.service.as_bytes()),
            ("target", self.target_address.as_bytes()),
            ("user_agent", self.user_agent),
            ("scheme", self.scheme.as_bytes()),
            ("proto", self.protocol.as_bytes()),
        ] {
            text(out, name, value);
        }
        if self.with_query {
            text(out, "query", query);
        } else if !query.is_empty() {
            text(out, "query", b"[redacted]");
        }
        for (name, value) in self.fields.iter().copied().flatten() {
            text(out, name, value);
        }
        let _infallible = writeln!(
            out,
            ",\"port\":{},\"client_port\":\"{}\",\"remote_addr\":\"{}\",\"status\":{},\"duration\":{},\"req_content_length\":{},\"resp_content_length\":{},\"client_addr\":\"{}\"}}",
            self.port,
            self.client.1,
            self.visitor,
            self.status,
            self.took.as_nanos(),
            self.request_length,
            self.response_bytes,
            self.client.0,
        );
    }
}

/// Appends `,"name":"value"`; bytes that are not UTF-8 are replaced.
fn text(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    let value = String::from_utf8_lossy(value);
    if serde_json::to_writer(&mut *out, &value).is_err() {
        out.extend_from_slice(b"\"\"");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(with_query: bool) -> serde_json::Value {
        let entry = Entry {
            time: 1_700_000_000_123,
            host: b"shop.test",
            target: b"/a?token=secret",
            with_query,
            method: b"GET",
            request_id: b"id",
            status: 200,
            service: "web",
            target_address: "10.0.0.1:80",
            took: Duration::from_micros(1500),
            request_length: 0,
            response_bytes: 12,
            client: ("203.0.113.9".parse().unwrap(), 4711),
            port: 443,
            visitor: "203.0.113.9".parse().unwrap(),
            fields: [&[("req_accept".to_owned(), b"*/*"[..].into())], &[]],
            scheme: "https",
            protocol: "HTTP/1.1",
            user_agent: b"evil\"agent\n\xff",
        };
        let mut out = Vec::new();
        entry.write(&mut out);
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1, "one line");
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_line_is_json_whatever_the_client_sends() {
        let line = line(false);
        assert_eq!(line["path"], "/a");
        assert_eq!(line["query"], "[redacted]");
        assert_eq!(line["duration"], 1_500_000);
        assert_eq!(line["user_agent"], "evil\"agent\n\u{fffd}");
    }

    #[test]
    fn the_query_is_logged_only_when_asked_for() {
        assert_eq!(line(true)["query"], "token=secret");
    }
}
