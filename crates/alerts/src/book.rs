//! Which alerts hold, and what people are told of them.
//!
//! ```text
//!              found                    found, held long enough
//!   nothing ──────────► noticed ──────────────────────────────► standing ─┐
//!      ▲                   │ gone                                  │  ▲   │ every `repeat`
//!      │                   ▼                                  gone │  │   └─► again
//!      └──────────────── nothing                                   ▼  │ found
//!      └──────────────────── resolved ◄── gone for `calm` ──── fading ┘
//! ```

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::notice::{Finding, Kind, Notice, What};
use crate::rules::Look;

/// How people want to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What still holds is told again after this time.
    pub repeat: SignedDuration,
    /// It has to be gone for this long before it is over.
    pub calm: SignedDuration,
    /// What nobody wants to be told.
    pub mute: Vec<Kind>,
}

impl Policy {
    /// How long something has to hold before anybody is told.
    fn patience(kind: Kind, subject: &str) -> SignedDuration {
        // A build or an upload takes the memory for a moment, and gives it back.
        match kind {
            Kind::Memory if subject == "available" => SignedDuration::from_secs(120),
            // An update restarts them, which takes seconds.
            Kind::Services => SignedDuration::from_secs(20),
            _ => SignedDuration::ZERO,
        }
    }
}

/// An alert that holds, or has just held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// As it was last seen.
    #[serde(flatten)]
    pub finding: Finding,
    /// Since when.
    pub since: Timestamp,
    /// When people were last told; `None` while it waits, or is muted.
    pub told: Option<Timestamp>,
    /// Since when it is gone.
    pub gone: Option<Timestamp>,
}

/// All alerts of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Book {
    /// Those that hold.
    pub standing: Vec<Standing>,
    /// The number of the last notice.
    pub last: u64,
}

impl Book {
    /// Whether an alert of that kind and subject holds and was told.
    pub fn stands(&self, kind: Kind, subject: &str) -> bool {
        self.standing.iter().any(|standing| {
            standing.finding.kind == kind && standing.finding.subject == subject && standing.told.is_some()
        })
    }

    /// Takes a look in; what is to be told because of it.
    pub fn step(&mut self, look: &Look, now: Timestamp, policy: &Policy) -> Vec<Notice> {
        for finding in &look.findings {
            let known = self.standing.iter_mut().find(|standing| {
                standing.finding.kind == finding.kind && standing.finding.subject == finding.subject
            });
            match known {
                Some(known) => {
                    known.finding = finding.clone();
                    known.gone = None;
                }
                None => self.standing.push(Standing {
                    finding: finding.clone(),
                    since: now,
                    told: None,
                    gone: None,
                }),
            }
        }
        let mut told = Vec::new();
        let mut last = self.last;
        let mut tell = |what, standing: &Standing| {
            last += 1;
            told.push(notice(last, what, standing, now));
        };
        self.standing.retain_mut(|standing| {
            let kind = standing.finding.kind;
            let found = look
                .findings
                .iter()
                .any(|finding| finding.kind == kind && finding.subject == standing.finding.subject);
            let muted = policy.mute.contains(&kind);
            if found {
                let held = now.duration_since(standing.since);
                match standing.told {
                    _ if muted => {}
                    None if held >= Policy::patience(kind, &standing.finding.subject) => {
                        tell(What::Firing, standing);
                        standing.told = Some(now);
                    }
                    Some(at) if now.duration_since(at) >= policy.repeat => {
                        tell(What::Again, standing);
                        standing.told = Some(now);
                    }
                    _ => {}
                }
                return true;
            }
            if look.blind.contains(&kind) {
                return true;
            }
            // Nobody heard of it: there is nothing to take back.
            if standing.told.is_none() {
                return false;
            }
            let gone = *standing.gone.get_or_insert(now);
            if now.duration_since(gone) < policy.calm {
                return true;
            }
            // Whoever was told that it began is told that it is over, muted since or not.
            tell(What::Resolved, standing);
            false
        });
        self.last = last;
        told
    }

    /// A notice that says only that it arrives.
    pub fn test(&mut self, now: Timestamp) -> Notice {
        self.last += 1;
        Notice {
            id: self.last,
            what: What::Test,
            kind: None,
            subject: String::new(),
            message: "nothing is wrong: somebody wanted to see that alerts of this host arrive".to_owned(),
            next: String::new(),
            since: now,
            at: now,
        }
    }
}

fn notice(id: u64, what: What, standing: &Standing, now: Timestamp) -> Notice {
    let finding = &standing.finding;
    let (message, next) = match what {
        What::Resolved => (format!("over, it was: {}", finding.message), String::new()),
        _ => (finding.message.clone(), finding.next.clone()),
    };
    Notice {
        id,
        what,
        kind: Some(finding.kind),
        subject: finding.subject.clone(),
        message,
        next,
        since: standing.since,
        at: now,
    }
}

#[cfg(test)]
mod tests;
