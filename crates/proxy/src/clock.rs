//! Deadlines that cost nothing while they are only moved on, and the date for responses.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, Sleep};

/// One timer of a connection.
///
/// Moving the deadline on does not touch the runtime's timer: it fires at the earlier time, sees that the deadline moved,
/// and is set again.
/// So a busy connection arms it once in a while, not once for each request.
#[derive(Debug)]
pub(crate) struct Deadline {
    sleep: Pin<Box<Sleep>>,
    due: Option<Instant>,
}

impl Deadline {
    /// A timer that is not set.
    pub(crate) fn new() -> Self {
        Self {
            sleep: Box::pin(tokio::time::sleep(Duration::from_secs(3600))),
            due: None,
        }
    }

    /// Sets the deadline, or none.
    pub(crate) fn set(&mut self, due: Option<Instant>) {
        self.due = due;
    }

    /// Whether the deadline has passed; else the task is woken when it may have.
    pub(crate) fn poll_passed(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(due) = self.due else { return false };
        if due < self.sleep.deadline() {
            self.sleep.as_mut().reset(due);
        }
        while self.sleep.as_mut().poll(cx) == Poll::Ready(()) {
            if Instant::now() >= due {
                return true;
            }
            self.sleep.as_mut().reset(due);
        }
        false
    }
}

/// The wall clock of one worker.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    second: Cell<u64>,
    date: Cell<[u8; 29]>,
}

impl Clock {
    /// Milliseconds since 1970.
    pub(crate) fn millis() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// The same as a header value.
    pub(crate) fn date_value(&self) -> http::HeaderValue {
        http::HeaderValue::from_bytes(&self.date()).expect("a formatted date is a header value")
    }

    /// The time as in a `Date` field (RFC 9110 §5.6.7); formatted once a second.
    pub(crate) fn date(&self) -> [u8; 29] {
        let now = SystemTime::now();
        let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.second.replace(second) != second {
            let text = httpdate::fmt_http_date(now);
            if let Ok(date) = text.as_bytes().try_into() {
                self.date.set(date);
            }
        }
        self.date.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deadline_that_moves_on_passes_at_its_last_place() {
        let begun = Instant::now();
        let mut deadline = Deadline::new();
        let mut moved = false;
        deadline.set(Some(begun + Duration::from_millis(10)));
        std::future::poll_fn(|cx| {
            if deadline.poll_passed(cx) {
                return Poll::Ready(());
            }
            if !moved {
                moved = true;
                deadline.set(Some(begun + Duration::from_millis(60)));
                assert!(!deadline.poll_passed(cx));
            }
            Poll::Pending
        })
        .await;
        assert!(begun.elapsed() >= Duration::from_millis(60));
    }
}
