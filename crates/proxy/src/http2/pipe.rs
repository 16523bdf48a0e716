//! A body into a stream of HTTP/2, no faster than the other side takes it.

use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body, Frame};
use tokio::time::Sleep;

/// A body was not given in full.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PipeError<E: std::error::Error + 'static> {
    /// The body broke off.
    #[error("the body broke off")]
    Body(#[source] E),
    /// The receiver gave it up, or its connection is gone.
    #[error("the receiver does not want the rest")]
    Gone(#[source] h2::Error),
    /// The receiver takes nothing.
    #[error("the receiver took nothing for {0:?}")]
    Stalled(Duration),
}

/// A body that has other work to do, even while nobody takes its bytes.
pub(crate) trait Working {
    /// Goes on with that work; the task is woken for it.
    fn poll_work(&mut self, cx: &mut std::task::Context<'_>);
}

/// Moves `body` into `to` until its end; a body that breaks off resets the stream with `broken`.
///
/// # Errors
/// When either side breaks off; the stream is reset then.
pub(crate) async fn pipe<B>(
    body: B,
    mut to: SendStream<Bytes>,
    stall: Duration,
    broken: Reason,
) -> Result<(), PipeError<B::Error>>
where
    B: Body<Data = Bytes> + Working + Unpin,
    B::Error: std::error::Error + 'static,
{
    let outcome = moving(body, &mut to, stall).await;
    match &outcome {
        // The receiver must be able to tell a broken body from a complete one.
        Err(PipeError::Body(_)) => to.send_reset(broken),
        Err(PipeError::Stalled(_)) => to.send_reset(Reason::CANCEL),
        Ok(()) | Err(PipeError::Gone(_)) => {}
    }
    outcome
}

async fn moving<B>(
    mut body: B,
    to: &mut SendStream<Bytes>,
    stall: Duration,
) -> Result<(), PipeError<B::Error>>
where
    B: Body<Data = Bytes> + Working + Unpin,
    B::Error: std::error::Error + 'static,
{
    let mut deadline: Option<Pin<Box<Sleep>>> = None;
    std::future::poll_fn(move |cx| {
        body.poll_work(cx);
        loop {
            if to.capacity() == 0 {
                to.reserve_capacity(1);
                while to.capacity() == 0 {
                    match to.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(_))) => {}
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(PipeError::Gone(error))),
                        Poll::Ready(None) => {
                            return Poll::Ready(Err(PipeError::Gone(Reason::CANCEL.into())));
                        }
                        Poll::Pending => {
                            let deadline =
                                deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
                            if deadline.as_mut().poll(cx).is_ready() {
                                return Poll::Ready(Err(PipeError::Stalled(stall)));
                            }
                            return Poll::Pending;
                        }
                    }
                }
                deadline = None;
            }
            if let Poll::Ready(reset) = to.poll_reset(cx) {
                let error = reset.map_or_else(|error| error, h2::Error::from);
                return Poll::Ready(Err(PipeError::Gone(error)));
            }
            let frame = match ready!(Pin::new(&mut body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Err(PipeError::Body(error))),
                None => return Poll::Ready(to.send_data(Bytes::new(), true).map_err(PipeError::Gone)),
            };
            let over = match frame.into_data() {
                Ok(data) => {
                    let over = body.is_end_stream();
                    if data.is_empty() && !over {
                        continue;
                    }
                    to.send_data(data, over).map(|()| over)
                }
                Err(frame) => match Frame::into_trailers(frame) {
                    Ok(trailers) => to.send_trailers(trailers).map(|()| true),
                    Err(_) => Ok(false),
                },
            };
            match over {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => {}
                Err(error) => return Poll::Ready(Err(PipeError::Gone(error))),
            }
        }
    })
    .await
}
