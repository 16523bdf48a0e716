//! Why a change was refused, in words for people and a code for programs.

use jiff::{SignedDuration, Timestamp};

use super::{MAX_SKEW, MAX_WINDOW};
use crate::change::{AppName, ChangeError, Destination, Fingerprint, HostId, Nonce, Power, ReleaseNumber};
use crate::sign::SignError;

/// A refused change; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The payload cannot be read.
    #[error("the change{} cannot be read", by(.fingerprint.as_ref()))]
    Malformed {
        /// Who signed it, if that is known.
        fingerprint: Option<Fingerprint>,
        /// Why.
        #[source]
        source: ChangeError,
    },
    /// The signature cannot be read.
    #[error("the signature cannot be read")]
    MalformedSignature {
        /// Never known here.
        fingerprint: Option<Fingerprint>,
        /// Why.
        #[source]
        source: Box<SignError>,
    },
    /// No such key is enrolled.
    #[error("the key {fingerprint} is not known to this host")]
    UnknownKey {
        /// Whose signature it is.
        fingerprint: Fingerprint,
    },
    /// The signature is not by that key over these bytes.
    #[error("the signature by {fingerprint} does not fit the change")]
    BadSignature {
        /// Who is said to have signed.
        fingerprint: Fingerprint,
        /// Why.
        #[source]
        source: Box<SignError>,
    },
    /// The key lacks the permission.
    #[error("the key {fingerprint} may not {verb}{}: that needs `{power}`", on(.app.as_ref(), .destination.as_ref()))]
    NotPermitted {
        /// Who signed.
        fingerprint: Fingerprint,
        /// What was wanted.
        verb: &'static str,
        /// What it needs.
        power: Power,
        /// For which app.
        app: Option<AppName>,
        /// Of which destination.
        destination: Option<Destination>,
    },
    /// The change is for another host.
    #[error("the change signed by {fingerprint} is for the host {wanted}, this is {this}")]
    OtherHost {
        /// Who signed.
        fingerprint: Fingerprint,
        /// The host it names.
        wanted: HostId,
        /// This host.
        this: HostId,
    },
    /// The change may be used for too long.
    #[error(
        "the change signed by {fingerprint} is valid for {}, from {issued} to {expires}; at most {} are allowed",
        span(.issued.duration_until(*.expires)), span(MAX_WINDOW)
    )]
    WindowTooLong {
        /// Who signed.
        fingerprint: Fingerprint,
        /// From.
        issued: Timestamp,
        /// To.
        expires: Timestamp,
    },
    /// The signer's clock is ahead.
    #[error(
        "the change signed by {fingerprint} was issued at {issued} by the signer's clock, but this host's clock shows {now}: \
         {} apart, at most {} are allowed",
        span(.now.duration_until(*.issued)), span(MAX_SKEW)
    )]
    NotYetValid {
        /// Who signed.
        fingerprint: Fingerprint,
        /// The signer's clock when signing.
        issued: Timestamp,
        /// The host's clock.
        now: Timestamp,
    },
    /// The change is too old, or the signer's clock is behind.
    #[error(
        "the change signed by {fingerprint} was issued at {issued} by the signer's clock and expired at {expires}; \
         this host's clock shows {now}, {} later",
        span(.expires.duration_until(*.now))
    )]
    Expired {
        /// Who signed.
        fingerprint: Fingerprint,
        /// The signer's clock when signing.
        issued: Timestamp,
        /// Its end.
        expires: Timestamp,
        /// The host's clock.
        now: Timestamp,
    },
    /// The same change came before.
    #[error("the change signed by {fingerprint} was accepted before (nonce {nonce})")]
    Replayed {
        /// Who signed.
        fingerprint: Fingerprint,
        /// Its nonce.
        nonce: Nonce,
    },
    /// Another release runs than the signer saw.
    #[error(
        "the change signed by {fingerprint} expects {}{} to run, but it is {}",
        release(*.expected), on(Some(.app), .destination.as_ref()), release(*.found)
    )]
    ReleaseMoved {
        /// Who signed.
        fingerprint: Fingerprint,
        /// Which app.
        app: AppName,
        /// Which destination.
        destination: Option<Destination>,
        /// What the signer saw.
        expected: Option<ReleaseNumber>,
        /// What runs.
        found: Option<ReleaseNumber>,
    },
}

fn by(fingerprint: Option<&Fingerprint>) -> String {
    fingerprint.map_or_else(String::new, |fingerprint| format!(" signed by {fingerprint}"))
}

fn on(app: Option<&AppName>, destination: Option<&Destination>) -> String {
    match (app, destination) {
        (None, _) => String::new(),
        (Some(app), None) => format!(" of {app}"),
        (Some(app), Some(destination)) => format!(" of {app}@{destination}"),
    }
}

fn release(number: Option<ReleaseNumber>) -> String {
    number.map_or_else(|| "no release".to_owned(), |number| format!("release {number}"))
}

fn span(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, 0) => format!("{m} min"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

impl Refusal {
    /// A code that never changes its meaning.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::Malformed { .. } => "malformed-change",
            Refusal::MalformedSignature { .. } => "malformed-signature",
            Refusal::UnknownKey { .. } => "unknown-key",
            Refusal::BadSignature { .. } => "bad-signature",
            Refusal::NotPermitted { .. } => "not-permitted",
            Refusal::OtherHost { .. } => "other-host",
            Refusal::WindowTooLong { .. } => "window-too-long",
            Refusal::NotYetValid { .. } => "not-yet-valid",
            Refusal::Expired { .. } => "expired",
            Refusal::Replayed { .. } => "replayed",
            Refusal::ReleaseMoved { .. } => "release-moved",
        }
    }

    /// Who signed; unknown only where the signature itself cannot be read.
    pub fn fingerprint(&self) -> Option<&Fingerprint> {
        match self {
            Refusal::Malformed { fingerprint, .. } | Refusal::MalformedSignature { fingerprint, .. } => {
                fingerprint.as_ref()
            }
            Refusal::UnknownKey { fingerprint }
            | Refusal::BadSignature { fingerprint, .. }
            | Refusal::NotPermitted { fingerprint, .. }
            | Refusal::OtherHost { fingerprint, .. }
            | Refusal::WindowTooLong { fingerprint, .. }
            | Refusal::NotYetValid { fingerprint, .. }
            | Refusal::Expired { fingerprint, .. }
            | Refusal::Replayed { fingerprint, .. }
            | Refusal::ReleaseMoved { fingerprint, .. } => Some(fingerprint),
        }
    }

    /// What to do or run next.
    pub fn next(&self) -> String {
        match self {
            Refusal::Malformed { .. } => {
                "use the same version on both sides: compare `appliance --version` here and on the host".to_owned()
            }
            Refusal::MalformedSignature { .. } => {
                "sign with `appliance`, or with `ssh-keygen -Y sign -n appliance` over the payload's bytes".to_owned()
            }
            Refusal::UnknownKey { fingerprint } => {
                format!("ask an administrator to enrol {fingerprint}: appliance keys add FILE.pub --deploy APP")
            }
            Refusal::BadSignature { .. } => {
                "the change was altered on its way, or signed by other software: run the command again".to_owned()
            }
            Refusal::NotPermitted {
                fingerprint,
                power,
                app,
                destination,
                ..
            } => {
                let scope = match (power, app, destination) {
                    (Power::Admin, ..) | (_, None, _) => "--admin".to_owned(),
                    (power, Some(app), None) => format!("--{power} {app}"),
                    (power, Some(app), Some(destination)) => format!("--{power} {app}@{destination}"),
                };
                format!("ask an administrator to allow it to {fingerprint}: appliance keys add FILE.pub {scope}")
            }
            Refusal::OtherHost { .. } => {
                "was the host set up anew? compare `appliance status` there, then accept its new identity and run the command again"
                    .to_owned()
            }
            Refusal::WindowTooLong { .. } => "sign with a shorter validity".to_owned(),
            Refusal::NotYetValid { .. } | Refusal::Expired { .. } => {
                "compare the clocks (`timedatectl` on both sides), then run the command again".to_owned()
            }
            Refusal::Replayed { .. } => "run the command again: it signs a fresh change".to_owned(),
            Refusal::ReleaseMoved { .. } => {
                "somebody else deployed in between: look at `appliance status`, then run the command again".to_owned()
            }
        }
    }
}
