//! Ctrl-C while hosts are being changed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::failure::{Failure, Kind, failure};

/// What a shell says of a command that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Who hears of Ctrl-C now: whoever asked last.
static LISTENER: Mutex<Option<mpsc::Sender<()>>> = Mutex::new(None);

/// Each Ctrl-C as a message for as long as somebody listens; after that it ends the command, as it does by default.
///
/// Only the last of several receivers hears it.
///
/// # Errors
/// When the system refuses to hand signals over.
pub fn interrupts() -> anyhow::Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(4);
    let former = listener().replace(sender);
    if former.is_none() {
        let signals = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
        tokio::spawn(listen(signals));
    }
    Ok(receiver)
}

fn listener() -> MutexGuard<'static, Option<mpsc::Sender<()>>> {
    LISTENER.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(
    clippy::exit,
    reason = "this is what Ctrl-C does where nobody listens; the default cannot be had back once a signal was asked for"
)]
async fn listen(mut signals: Signal) {
    while signals.recv().await.is_some() {
        if !told().await {
            std::process::exit(INTERRUPTED);
        }
    }
}

/// Tells whoever listens; whether somebody does.
async fn told() -> bool {
    let sender = listener().clone();
    match sender {
        Some(sender) => sender.send(()).await.is_ok(),
        None => false,
    }
}

/// What `work` comes to; with Ctrl-C it is dropped, and an error says how things were left, with the next command.
///
/// # Errors
/// When Ctrl-C comes first.
pub async fn unless_interrupted<T>(
    interrupts: &mut mpsc::Receiver<()>,
    work: impl Future<Output = T>,
    left: impl FnOnce() -> (String, &'static str),
) -> Result<T, Failure> {
    tokio::select! {
        done = work => Ok(done),
        Some(()) = interrupts.recv() => {
            let (how, next) = left();
            Err(failure(Kind::Other, format!("interrupted; {how}")).hint(next))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_who_asked_hears_it_whoever_asked_before() {
        let mut first = interrupts().expect("signals");
        drop(interrupts().expect("signals"));
        assert!(!told().await, "the last one has gone: the command ends");
        assert!(first.try_recv().is_err(), "it is not for the first any more");
        let mut second = interrupts().expect("signals");
        assert!(told().await);
        assert_eq!(second.recv().await, Some(()));
    }

    struct Ends<'a>(&'a std::cell::Cell<bool>);

    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }

    #[tokio::test]
    async fn ctrl_c_ends_what_is_waited_for_and_says_how_things_were_left() {
        let (presses, mut interrupts) = mpsc::channel(1);
        let left = || ("v2 serves".to_owned(), "appliance status");
        let done = unless_interrupted(&mut interrupts, async { 7 }, left).await;
        assert_eq!(done.expect("nobody pressed anything"), 7);

        let ended = std::cell::Cell::new(false);
        // Taken along, not made inside: the press may be seen before this was ever polled.
        let ends = Ends(&ended);
        let endless = async move {
            let _ends = ends;
            std::future::pending::<()>().await;
        };
        presses.send(()).await.expect("somebody listens");
        let stopped = unless_interrupted(&mut interrupts, endless, left).await;
        let stopped = stopped.expect_err("it was interrupted");
        assert_eq!(stopped.message, "interrupted; v2 serves");
        assert!(ended.get(), "what was waited for goes on");
    }
}
