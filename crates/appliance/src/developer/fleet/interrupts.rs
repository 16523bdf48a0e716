//! Ctrl-C while hosts are being changed.

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// What a shell says of a command that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Each Ctrl-C as a message for as long as somebody listens; after that it ends the command, as it does by default.
///
/// # Errors
/// When the system refuses to hand signals over.
#[expect(
    clippy::exit,
    reason = "this is what Ctrl-C does where nobody listens; the default cannot be had back once a signal was asked for"
)]
pub fn interrupts() -> anyhow::Result<mpsc::Receiver<()>> {
    let mut signals = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            if sender.send(()).await.is_err() {
                std::process::exit(INTERRUPTED);
            }
        }
    });
    Ok(receiver)
}
