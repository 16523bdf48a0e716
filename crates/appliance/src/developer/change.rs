//! Signs a change and sends it, and turns how it ended into what the command says and returns.

use appliance_push::change::{
    AppName, Change, Destination, Envelope, Expectation, HostId, Nonce, VERSION, Verb,
};
use appliance_push::sign::Signer;
use jiff::{SignedDuration, Timestamp};

use super::link::Link;
use crate::agent::random;
use crate::failure::{Kind, failure};
use crate::ui;
use crate::wire::{End, Event};

/// How long a signed change may travel; far below the longest the host accepts.
const LIFE: SignedDuration = SignedDuration::from_mins(5);

/// Whom and what a change concerns.
pub struct Subject {
    /// The host.
    pub host: HostId,
    /// The app.
    pub app: Option<AppName>,
    /// Its destination.
    pub destination: Option<Destination>,
    /// The release that was seen running.
    pub expects: Expectation,
}

/// Signs `verb` and submits it; shows what the host tells meanwhile.
///
/// # Errors
/// When it cannot be signed, or the connection breaks before the end is known.
pub async fn submit(link: &Link, signer: &Signer, subject: Subject, verb: Verb) -> anyhow::Result<End> {
    let envelope = seal(signer, subject, verb).await?;
    link.submit(&envelope, show).await
}

/// Signs `verb`.
///
/// # Errors
/// When it cannot be signed.
pub async fn seal(signer: &Signer, subject: Subject, verb: Verb) -> anyhow::Result<Envelope> {
    let now = Timestamp::now();
    let change = Change {
        version: VERSION,
        host: subject.host,
        app: subject.app,
        destination: subject.destination,
        verb,
        issued_at: now,
        expires_at: now.saturating_add(LIFE)?,
        nonce: Nonce::from_bytes(random()),
        expects: subject.expects,
    };
    Ok(signer.seal(&change).await?)
}

/// Shows what a host tells.
pub fn show(event: Event) {
    match event {
        Event::Phase { phase, detail } => ui::note(&format!("  {phase:<16} {detail}")),
        Event::Output { source, line } => ui::note(&format!("  {source} | {line}")),
        Event::Warning { message } => ui::warn(&message),
        Event::Waiting { .. } | Event::End(_) => {}
    }
}

/// An end other than success as an error with the documented exit code.
///
/// # Errors
/// For every end that is not [`End::Done`], [`End::Token`] or [`End::Session`].
pub fn conclude(link: &Link, end: End) -> anyhow::Result<End> {
    let name = link.name();
    match end {
        End::Done { .. } | End::Token { .. } | End::Session { .. } => Ok(end),
        End::Refused { code, message, next } => Err(failure(
            Kind::Refused,
            format!("{name} refused ({code}): {message}"),
        )
        .hint(next)
        .into()),
        End::Reverted { serving, why } => {
            let serving = serving.map_or_else(
                || "nothing was serving before, and nothing serves now".to_owned(),
                |number| format!("{number} serves as before"),
            );
            Err(failure(
                Kind::Reverted,
                format!("{name} reverted the release: {why}; {serving}"),
            )
            .hint("fix what the lines above show, then: appliance push")
            .into())
        }
        End::Failed { message, next } => Err(failure(Kind::Other, format!("{name}: {message}"))
            .hint(next)
            .into()),
    }
}
