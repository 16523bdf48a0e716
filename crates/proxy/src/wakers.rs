//! What wakes a worker's connections: a deadline, a stop, a cut.
//!
//! All deadlines of a worker share one timer of the runtime, so that one costs an idle connection a line in a table
//! and not a timer of its own.
//!
//! ```text
//!  set ──► noted when the task next waits ──► rings: the task looks ──► passed
//!                                              └─ it was moved on meanwhile: noted anew
//! ```

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

/// No deadline; all others are milliseconds since the worker's start.
const NONE: u64 = u64::MAX;
/// It came, and the task was woken to look.
const CAME: u64 = 0;
/// Least milliseconds between two walks through the table.
const SPACING: u64 = 10;

#[derive(Debug)]
struct Entry {
    waker: Option<Waker>,
    due: u64,
}

#[derive(Debug)]
struct Table {
    entries: RefCell<Slab<Entry>>,
    /// The earliest deadline that may be in the table.
    next: Cell<u64>,
    /// Who waits for it.
    alarm: RefCell<Option<Waker>>,
    begun: Instant,
}

impl Table {
    /// Whole milliseconds until `instant`, rounded up; never one of the two special values.
    fn millis(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.begun);
        let up = since.as_nanos().div_ceil(1_000_000);
        u64::try_from(up).unwrap_or(NONE - 1).clamp(1, NONE - 1)
    }

    fn note(&self, due: u64) {
        if due < self.next.get() {
            self.next.set(due);
            if let Some(alarm) = self.alarm.borrow_mut().take() {
                alarm.wake();
            }
        }
    }

    /// Wakes whose deadline came, and looks for the next.
    fn ring(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(NONE - 1);
        let mut next = NONE;
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            if entry.due > now {
                next = next.min(entry.due);
            } else if entry.due != CAME {
                entry.due = CAME;
                if let Some(waker) = &entry.waker {
                    waker.wake_by_ref();
                }
            }
        }
        self.next.set(if next == NONE {
            NONE
        } else {
            next.max(now + SPACING)
        });
    }
}

/// The wakers of a worker's connections.
#[derive(Debug)]
pub(crate) struct Wakers(Rc<Table>);

impl Default for Wakers {
    fn default() -> Self {
        Self(Rc::new(Table {
            entries: RefCell::default(),
            next: Cell::new(NONE),
            alarm: RefCell::default(),
            begun: Instant::now(),
        }))
    }
}

impl Wakers {
    /// A place for one connection or stream, without a deadline.
    pub(crate) fn register(&self) -> Place {
        let entry = Entry {
            waker: None,
            due: NONE,
        };
        Place {
            key: self.0.entries.borrow_mut().insert(entry),
            table: Rc::clone(&self.0),
            due: None,
        }
    }

    /// Wakes every connection, so that it looks at what changed.
    pub(crate) fn wake_all(&self) {
        for (_, entry) in self.0.entries.borrow().iter() {
            if let Some(waker) = &entry.waker {
                waker.wake_by_ref();
            }
        }
    }

    /// Rings for every deadline, for as long as it is polled; one such future must be while there are connections.
    pub(crate) async fn alarm(&self) -> std::convert::Infallible {
        let table = &self.0;
        let mut sleep = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        std::future::poll_fn(|cx| {
            loop {
                let next = table.next.get();
                if next != NONE {
                    let at = table.begun + Duration::from_millis(next);
                    if sleep.deadline() != at {
                        sleep.as_mut().reset(at);
                    }
                    if sleep.as_mut().poll(cx).is_ready() {
                        table.ring();
                        continue;
                    }
                }
                table.alarm.borrow_mut().replace(cx.waker().clone());
                return Poll::Pending;
            }
        })
        .await
    }
}

/// One connection's place and its deadline.
///
/// Moving the deadline on costs nothing: it rings at the earlier time, the task sees that it was moved, and it is noted
/// again.
#[derive(Debug)]
pub(crate) struct Place {
    table: Rc<Table>,
    key: usize,
    due: Option<Instant>,
}

impl Place {
    /// Remembers who is to be woken; the task of a place never changes.
    pub(crate) fn remember(&mut self, cx: &Context<'_>) {
        self.table.entries.borrow_mut()[self.key]
            .waker
            .get_or_insert_with(|| cx.waker().clone());
    }

    /// Sets the deadline, or none.
    pub(crate) fn set(&mut self, due: Option<Instant>) {
        self.due = due;
    }

    /// Whether the deadline has passed; else the task is woken when it may have.
    pub(crate) fn poll_passed(&mut self, cx: &Context<'_>) -> bool {
        let Some(due) = self.due else { return false };
        let wanted = {
            let mut entries = self.table.entries.borrow_mut();
            let entry = &mut entries[self.key];
            entry.waker.get_or_insert_with(|| cx.waker().clone());
            if entry.due == CAME {
                if Instant::now() >= due {
                    return true;
                }
                entry.due = NONE;
            }
            let wanted = self.table.millis(due);
            if wanted >= entry.due {
                return false;
            }
            entry.due = wanted;
            wanted
        };
        self.table.note(wanted);
        false
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Dropped after the table is free again: it may be the last hold on a task.
        let _entry = self.table.entries.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Runs `task` beside the alarm.
    async fn beside<T>(wakers: &Wakers, task: impl Future<Output = T>) -> T {
        tokio::select! {
            done = task => done,
            never = wakers.alarm() => match never {},
        }
    }

    async fn passed(place: &mut Place) {
        poll_fn(|cx| {
            if place.poll_passed(cx) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_deadline_that_moves_on_passes_at_its_last_place() {
        let (wakers, begun) = (Wakers::default(), Instant::now());
        let mut place = wakers.register();
        place.set(Some(begun + Duration::from_millis(10)));
        let mut moved = false;
        let task = poll_fn(|cx| {
            if place.poll_passed(cx) {
                return Poll::Ready(());
            }
            if !std::mem::replace(&mut moved, true) {
                place.set(Some(begun + Duration::from_millis(60)));
            }
            Poll::Pending
        });
        beside(&wakers, task).await;
        assert!(begun.elapsed() >= Duration::from_millis(60));
    }

    #[tokio::test]
    async fn many_deadlines_pass_and_none_too_early() {
        let (wakers, begun) = (Wakers::default(), Instant::now());
        let waits = [200, 30, 150, 0, 90].map(|wait| {
            let mut place = wakers.register();
            async move {
                let due = begun + Duration::from_millis(wait);
                place.set(Some(due));
                passed(&mut place).await;
                assert!(Instant::now() >= due, "{wait} ms passed too early");
            }
        });
        beside(&wakers, futures_util::future::join_all(waits)).await;
        assert!(wakers.0.entries.borrow().is_empty(), "every place was given back");
    }

    #[tokio::test]
    async fn an_earlier_deadline_is_heard_while_a_later_one_is_waited_for() {
        let (wakers, begun) = (Wakers::default(), Instant::now());
        let mut late = wakers.register();
        late.set(Some(begun + Duration::from_secs(60)));
        let mut early = wakers.register();
        let task = async {
            let first = poll_fn(|cx| Poll::Ready(late.poll_passed(cx))).await;
            assert!(!first);
            // So that the alarm waits for the late one.
            tokio::task::yield_now().await;
            early.set(Some(begun + Duration::from_millis(20)));
            passed(&mut early).await;
        };
        beside(&wakers, task).await;
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
