//! The developer's end of a session: input and terminal size to the host, output and exit code back.

use anyhow::Context as _;
use appliance_push::session::Frame;
use appliance_push::transport::Body;
use bytes::{Bytes, BytesMut};
use http::{Method, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use super::link::Link;
use super::terminal::{self, Raw};
use crate::failure::{Kind, failure};

/// What the program gets as its standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing: it ends at once.
    None,
    /// Ours, to its end.
    Pipe,
    /// Our terminal, raw.
    Terminal,
}

/// Begins the session `name` and shows its output through `show` until it ends; returns the exit code.
///
/// # Errors
/// When the connection breaks, or the host cannot begin or go on.
pub async fn run(
    link: &Link,
    name: &str,
    input: Input,
    show: impl FnMut(Frame) -> anyhow::Result<()>,
) -> anyhow::Result<i32> {
    let (sender, receiver) = mpsc::channel::<Frame>(16);
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((Ok(hyper::body::Frame::data(frame.encode())), receiver))
    });
    let body: Body = http_body_util::BodyExt::boxed(StreamBody::new(frames));
    let (rows, columns) = terminal::size();
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("/v1/sessions/{name}?rows={rows}&columns={columns}"))
        .body(body)
        .context("the session's address")?;
    // The request stays open as long as somebody may still send.
    let _open = sender.clone();
    let raw = match input {
        Input::Terminal => Some(Raw::enter().context("cannot make the terminal raw")?),
        _ => None,
    };
    let typing = tokio::spawn(feed(input, sender));
    let answer = link.send(request).await?;
    let answer = link.checked("/v1/sessions", answer).await?;
    let ended = read(link, answer.into_body(), show).await;
    typing.abort();
    drop(raw);
    ended
}

async fn feed(input: Input, sender: mpsc::Sender<Frame>) {
    if input == Input::None {
        let _ended = sender.send(Frame::InputEnd).await;
        return;
    }
    let mut sizes = (input == Input::Terminal)
        .then(|| tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change()).ok())
        .flatten();
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let resized = async {
            match &mut sizes {
                Some(sizes) => sizes.recv().await,
                None => std::future::pending().await,
            }
        };
        let frame = tokio::select! {
            read = stdin.read(&mut buffer) => match read {
                Ok(0) | Err(_) => {
                    let _ended = sender.send(Frame::InputEnd).await;
                    return;
                }
                Ok(count) => Frame::Input(Bytes::copy_from_slice(&buffer[..count])),
            },
            Some(()) = resized => {
                let (rows, columns) = terminal::size();
                Frame::Resize { rows, columns }
            }
        };
        if sender.send(frame).await.is_err() {
            return;
        }
    }
}

/// Reads frames to the last one; `show` gets output and errors.
///
/// # Errors
/// When the connection breaks first, or the host says that the session did.
pub async fn read(
    link: &Link,
    mut body: Incoming,
    mut show: impl FnMut(Frame) -> anyhow::Result<()>,
) -> anyhow::Result<i32> {
    let mut buffer = BytesMut::new();
    while let Some(piece) = body.frame().await {
        let piece = piece.map_err(|error| {
            failure(
                Kind::Unreachable,
                format!(
                    "the connection to {} broke: {}",
                    link.name(),
                    crate::agent::chain(&error)
                ),
            )
        })?;
        let Ok(data) = piece.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(frame) =
            Frame::decode(&mut buffer).with_context(|| format!("{} sends no frames", link.name()))?
        {
            match frame {
                Frame::Exit(code) => return Ok(code),
                Frame::Broken(why) => {
                    return Err(failure(Kind::Other, format!("{}: {why}", link.name())).into());
                }
                frame => show(frame)?,
            }
        }
    }
    Err(failure(
        Kind::Unreachable,
        format!("the connection to {} ended before the command did", link.name()),
    )
    .into())
}

/// Cuts output into lines and puts a prefix before each, for output of several hosts at once.
#[derive(Debug, Default)]
pub struct Lines {
    rest: BytesMut,
}

impl Lines {
    /// The whole lines that `bytes` complete, each with `prefix` and a newline.
    pub fn take(&mut self, prefix: &str, bytes: &[u8]) -> Vec<u8> {
        self.rest.extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(end + 1);
            out.extend_from_slice(prefix.as_bytes());
            out.extend_from_slice(&line);
        }
        out
    }

    /// What is left at the end.
    pub fn finish(&mut self, prefix: &str) -> Vec<u8> {
        if self.rest.is_empty() {
            return Vec::new();
        }
        self.take(prefix, b"\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_several_hosts_are_kept_whole() {
        let mut lines = Lines::default();
        assert_eq!(lines.take("web1 | ", b"one\ntw"), b"web1 | one\n");
        assert_eq!(lines.take("web1 | ", b"o\n\nthree"), b"web1 | two\nweb1 | \n");
        assert_eq!(lines.finish("web1 | "), b"web1 | three\n");
        assert_eq!(lines.finish("web1 | "), b"");
    }
}
