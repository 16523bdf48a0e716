//! One host: its agent rolls out by itself, so that a lost connection changes nothing; Ctrl-C takes it back.

use anyhow::Context as _;
use appliance_push::change::Verb;
use futures_util::future::OptionFuture;
use tokio::sync::{mpsc, watch};

use super::interrupts::unless_interrupted;
use super::outcome::{BUSY, Turned};
use super::{Host, Way, take_back};
use crate::developer::change::{conclude, seal, show};
use crate::developer::hooks::Hooks;
use crate::failure::{Kind, failure};
use crate::ui;
use crate::wire::End;

/// Carries out `verb` on a host and says what came of it.
///
/// # Errors
/// When a hook fails, the host refuses, fails or goes back, or somebody interrupts twice.
pub async fn alone(
    way: &Way<'_>,
    hooks: &Hooks<'_>,
    host: &Host,
    verb: Verb,
    interrupts: &mut mpsc::Receiver<()>,
) -> anyhow::Result<Turned> {
    let only = [host.name.clone()];
    let before = hooks.run_for("pre-app-boot", &only);
    let nothing = || ("nothing was changed".to_owned(), "appliance status");
    unless_interrupted(interrupts, before, nothing).await??;
    let step = ui::step(&format!("{}: rollout", host.name));
    let end = followed(way, host, verb, interrupts).await;
    if let Ok(End::Refused { code, .. }) = &end
        && code == BUSY
    {
        step.failed();
        let refused = end.and_then(|end| conclude(&host.link, end));
        return Ok(Turned::Away(refused.err().context("a refusal is an error")?));
    }
    match end.and_then(|end| conclude(&host.link, end)) {
        Ok(End::Done { message, .. }) => step.done(&message),
        Ok(_) => step.done(""),
        Err(error) => {
            step.failed();
            return Err(error);
        }
    }
    let after = hooks.run_for("post-app-boot", &only);
    let done = || {
        let left = format!(
            "{} has done what was asked of it; post-app-boot was ended",
            host.name
        );
        (
            left,
            "appliance status, and appliance rollback to leave the release",
        )
    };
    unless_interrupted(interrupts, after, done).await??;
    Ok(Turned::Through)
}

/// Submits the change and follows it to its end; the first Ctrl-C takes it back, the second leaves it to its agent.
async fn followed(
    way: &Way<'_>,
    host: &Host,
    verb: Verb,
    interrupts: &mut mpsc::Receiver<()>,
) -> anyhow::Result<End> {
    let envelope = seal(&host.signer, way.subject(host)?, verb).await?;
    let (begun, begins) = watch::channel(false);
    let submitted = host.link.submit(&envelope, |event| {
        begun.send_replace(true);
        show(event);
    });
    tokio::pin!(submitted);
    let mut interrupted = false;
    let mut aborting = std::pin::pin!(OptionFuture::from(None));
    loop {
        tokio::select! {
            end = &mut submitted => return end,
            Some(said) = &mut aborting => {
                // How it ends comes on the other line.
                if let Err(error) = said {
                    ui::warn(&format!("{error:#}"));
                }
                aborting.set(OptionFuture::from(None));
            }
            Some(()) = interrupts.recv() => {
                if interrupted {
                    return Err(failure(
                        Kind::Other,
                        format!("{} was left to itself: the rollout goes on there to its end", host.name),
                    )
                    .hint("appliance status")
                    .hint("appliance abort, to take it back")
                    .into());
                }
                interrupted = true;
                ui::note(&format!("taking {} back; once more to leave it to itself", host.name));
                let mut begins = begins.clone();
                aborting.set(OptionFuture::from(Some(async move {
                    // What has not begun cannot be aborted.
                    begins.wait_for(|begun| *begun).await?;
                    take_back(way, host).await
                })));
            }
        }
    }
}
