//! Bytes both ways, after a protocol switch; an idle tunnel holds no buffer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::buffer::{Buffer, Buffers};

/// One direction.
///
/// ```text
///  Open ──source ended──► Ending ──shut down──► Over
/// ```
#[derive(Debug)]
struct Way {
    bytes: Buffer,
    ending: bool,
    over: bool,
}

impl Way {
    fn poll<A, B>(
        &mut self,
        from: &mut A,
        to: &mut B,
        buffers: &Buffers,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>>
    where
        A: AsyncRead + Unpin,
        B: AsyncWrite + Unpin,
    {
        loop {
            if self.over {
                return Poll::Ready(Ok(()));
            }
            if !self.bytes.is_empty() {
                let count = ready!(Pin::new(&mut *to).poll_write(cx, self.bytes.bytes()))?;
                if count == 0 {
                    return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
                }
                self.bytes.consume(count);
                continue;
            }
            if self.ending {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.over = true;
                continue;
            }
            match self.bytes.poll_fill(from, buffers, cx) {
                Poll::Ready(Ok(0)) => self.ending = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // What TLS still holds back must go out before we wait.
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
        }
    }
}

/// A tunnel between a client and an upstream.
#[derive(Debug)]
pub(super) struct Tunnel {
    up: Way,
    down: Way,
}

impl Tunnel {
    /// A tunnel that begins with what was read too much on either side.
    pub(super) fn new(from_client: Buffer, from_upstream: Buffer) -> Self {
        let way = |bytes| Way {
            bytes,
            ending: false,
            over: false,
        };
        Self {
            up: way(from_client),
            down: way(from_upstream),
        }
    }

    /// Whether one side has ended and the other has not.
    pub(super) fn is_half_closed(&self) -> bool {
        self.up.ending || self.down.ending
    }

    /// Moves bytes; ready when both sides ended, or one broke.
    pub(super) fn poll<C, U>(
        &mut self,
        client: &mut C,
        upstream: &mut U,
        buffers: &Buffers,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        let up = self.up.poll(client, upstream, buffers, cx)?;
        let down = self.down.poll(upstream, client, buffers, cx)?;
        match (up, down) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }
}
