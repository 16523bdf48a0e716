//! Notices a program that neither writes nor ends, and does not wake up for every few bytes of one that does.
//!
//! A program writes a page at a time. A reader that came for each would cost both sides more than the bytes do, so one
//! that found little lets the FIFO fill first; it never gets full meanwhile.
//!
//! Only the time that is spent waiting in a read counts: while the store is slow nobody reads, and that is not the
//! program's fault.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Pipe;

/// How long a FIFO of a MiB is left to fill; smaller ones less.
const FILL: Duration = Duration::from_millis(1);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Waiting {
    /// Since when a read waits.
    since: Option<Instant>,
    /// Nobody wants what comes any more.
    given_up: bool,
}

/// The reading end of a FIFO that tells since when it waits.
pub(crate) struct Listening {
    from: File,
    /// Bytes that it holds.
    size: usize,
    /// The last read found less than a read is worth.
    little: bool,
    waiting: Arc<Mutex<Waiting>>,
}

/// Looks at it from elsewhere.
pub(crate) struct Listener {
    waiting: Arc<Mutex<Waiting>>,
}

/// Watches `from`.
pub(crate) fn listen(from: File) -> (Listening, Listener) {
    let waiting = Arc::<Mutex<Waiting>>::default();
    let size = nix::fcntl::fcntl(&from, nix::fcntl::FcntlArg::F_GETPIPE_SZ);
    let listening = Listening {
        size: size.ok().and_then(|size| usize::try_from(size).ok()).unwrap_or(0),
        little: false,
        from,
        waiting: Arc::clone(&waiting),
    };
    (listening, Listener { waiting })
}

impl Read for Listening {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let note = |since| {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.since = since;
            waiting.given_up
        };
        if self.little {
            let share = self.size as f64 / f64::from(super::PIPE);
            std::thread::sleep(FILL.mul_f64(share.min(1.0)));
        }
        note(Some(Instant::now()));
        let read = self.from.read(buffer);
        self.little = read.as_ref().is_ok_and(|read| *read < self.size / 8);
        if note(None) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        read
    }
}

impl Listener {
    /// Returns once a read from `pipe` has waited for `limit`; the read then ends with an error.
    pub(crate) async fn silent(&self, pipe: &Pipe, limit: Duration) {
        loop {
            tokio::time::sleep(LOOK.min(limit)).await;
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.since.is_some_and(|since| since.elapsed() >= limit) {
                waiting.given_up = true;
                drop(waiting);
                // Wakes the read; the FIFO is empty, so this does not wait.
                let _ended_just_now = super::end(pipe, true).and_then(|mut wake| wake.write_all(&[0]));
                return;
            }
        }
    }
}
