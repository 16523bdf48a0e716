//! Tells people when something is wrong with the host, and when it is well again.
//!
//! ```text
//!  every interval:  facts ─► rules ─► book ─► outbox, written down together
//!  Docker's events ─┘                           │
//!                              deliver ◄────────┘ ─► webhook, mail, ntfy, Telegram
//!  every two intervals, once a look went through:  ping
//! ```
//!
//! `host.yml` and `secrets` are read anew for each pass, so that a correction needs no restart.

mod deliver;
mod destination;
mod facts;
mod mail;
mod shown;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use appliance_alerts::{Book, Limits, Outbox, Policy, Rate, Recent, look};
use appliance_config::host::{self, AlertKind, Host};
use appliance_containers::engine::{Event, Happening};
use appliance_state::{Key, Ledger, Store};
use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::destination::Destination;
use super::{Agent, chain};
use crate::wire::{self, End};

/// Layout of the ledger.
const SCHEMA: u32 = 1;
/// No look is nearer to the one before.
const SHORTEST: Duration = Duration::from_secs(1);

/// What is written down after each look.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Written {
    book: Book,
    outbox: Outbox,
}

/// What is counted between looks; a restart of the agent begins anew.
#[derive(Debug, Default)]
struct Seen {
    ended: Recent,
    killed: Recent,
    kills: Option<u64>,
    rates: BTreeMap<String, Rate>,
    drift: Option<(Timestamp, Vec<String>)>,
    problems: Vec<String>,
}

/// What the agent holds of alerts.
pub struct Alerts {
    ledger: Ledger<Written>,
    seen: Mutex<Seen>,
    config: PathBuf,
    /// Told when the outbox has something new.
    mail: Notify,
}

impl Alerts {
    /// Opens what is written down; nothing is looked at yet.
    pub fn open(store: &Store, config: &Path) -> Self {
        Self {
            ledger: store.single(&Key::new("alerts").expect("our own name is a good key"), SCHEMA),
            seen: Mutex::default(),
            config: config.to_owned(),
            mail: Notify::new(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's settings as they stand in the file now.
    fn host(&self) -> Result<Host, String> {
        let path = self.config.join("host.yml");
        let text = match fs_err::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Host::default()),
            Err(error) => return Err(error.to_string()),
        };
        host::read(&path.display().to_string(), &text).map_err(|problems| problems.to_string())
    }

    fn destinations(&self, host: &Host) -> (Vec<Destination>, Vec<String>) {
        destination::all(&host.alerts, &self.config.join("secrets"))
    }

    /// What is written down; a damaged ledger is told, and counts as empty.
    fn written(&self) -> Written {
        match self.ledger.read() {
            Ok(snapshot) => snapshot.data,
            Err(error) => {
                tracing::error!("alerts begin anew: {}", chain(&error));
                Written::default()
            }
        }
    }
}

/// Looks and delivers until `stop`.
pub async fn keep(agent: Arc<Agent>, stop: CancellationToken) {
    tokio::join!(
        watch(&agent, &stop),
        follow(&agent, &stop),
        deliver::keep(&agent, &stop)
    );
}

/// Counts containers that end, and those that were short of memory.
async fn follow(agent: &Arc<Agent>, stop: &CancellationToken) {
    let mut events = agent.docker.events(Vec::new());
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        let Some(event) = event else { return };
        if let Event::Container(event) = event {
            let now = Timestamp::now();
            match event.what {
                Happening::Died { .. } => agent.alerts.seen().ended.happened(&event.name, now),
                Happening::OutOfMemory => agent.alerts.seen().killed.happened(&event.name, now),
                _ => {}
            }
        }
    }
}

async fn watch(agent: &Arc<Agent>, stop: &CancellationToken) {
    let mut pinged = tokio::time::Instant::now();
    let mut last = Host::default();
    loop {
        match agent.alerts.host() {
            Ok(host) => last = host,
            Err(why) => note(agent, &format!("the settings of before are used on: {why}")),
        }
        let interval = Duration::from_secs(last.alerts.interval.0.0).max(SHORTEST);
        let went_through = pass(agent, &last).await;
        if let Some(address) = &last.alerts.ping
            && went_through
            && pinged.elapsed() >= interval * 2
        {
            pinged = tokio::time::Instant::now();
            if let Err(error) = super::backups::ping(address).await {
                note(
                    agent,
                    &format!("{address} was not told that the host is well: {error:#}"),
                );
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

/// Remembers a problem until the next pass, and says it once in the journal.
fn note(agent: &Agent, problem: &str) {
    let mut seen = agent.alerts.seen();
    if !seen.problems.iter().any(|known| known == problem) {
        tracing::warn!("alerts: {problem}");
        seen.problems.push(problem.to_owned());
    }
}

/// One look; whether what came of it could be written down.
async fn pass(agent: &Arc<Agent>, host: &Host) -> bool {
    let facts = facts::gather(agent, host).await;
    let (destinations, problems) = agent.alerts.destinations(host);
    for problem in &problems {
        note(agent, problem);
    }
    agent
        .alerts
        .seen()
        .problems
        .retain(|known| problems.contains(known) || known.contains("was not told"));
    let now = Timestamp::now();
    let seconds = |seconds: u64| SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    let policy = Policy {
        repeat: seconds(host.alerts.repeat.0.0),
        calm: seconds(host.alerts.interval.0.0.max(1)) * 2,
        mute: host.alerts.mute.iter().map(|kind| muted(*kind)).collect(),
    };
    let names: Vec<String> = destinations.iter().map(|to| to.key.clone()).collect();
    let before = agent.alerts.written();
    let mut after = before.clone();
    let found = look(&facts, limits(host), now, &|kind, subject| {
        before.book.stands(kind, subject)
    });
    let notices = after.book.step(&found, now, &policy);
    after.outbox.keep_only(&names);
    for notice in &notices {
        tracing::warn!(alert = notice.title(), "{}: {}", notice.title(), notice.message);
        given_up(after.outbox.add(notice, &names, now));
    }
    if after == before {
        return true;
    }
    // What was delivered meanwhile stays delivered: the book is ours alone, of the outbox only the new is.
    let written = agent.alerts.ledger.update(|written| {
        written.book = after.book;
        written.outbox.keep_only(&names);
        for notice in &notices {
            given_up(written.outbox.add(notice, &names, now));
        }
    });
    agent.alerts.mail.notify_one();
    if let Err(error) = &written {
        tracing::error!("alerts cannot be written down: {}", chain(error));
    }
    written.is_ok()
}

fn given_up(deliveries: Vec<appliance_alerts::Delivery>) {
    for delivery in deliveries {
        tracing::error!(
            "given up after {} failures: {} to {}: {}",
            delivery.failures,
            delivery.notice.title(),
            destination::shown(&delivery.to),
            delivery.why.as_deref().unwrap_or("too many are on their way")
        );
    }
}

fn muted(kind: AlertKind) -> appliance_alerts::Kind {
    use appliance_alerts::Kind;
    match kind {
        AlertKind::Certificate => Kind::Certificate,
        AlertKind::Disk => Kind::Disk,
        AlertKind::Memory => Kind::Memory,
        AlertKind::RestartLoop => Kind::RestartLoop,
        AlertKind::Errors => Kind::Errors,
        AlertKind::BackupAge => Kind::BackupAge,
        AlertKind::Drill => Kind::Drill,
        AlertKind::Reboot => Kind::Reboot,
        AlertKind::Drift => Kind::Drift,
    }
}

/// What is wrong at this moment, whether anybody is told of it or not.
pub async fn look_now(agent: &Arc<Agent>) -> appliance_alerts::Look {
    let host = agent.alerts.host().unwrap_or_default();
    let facts = facts::gather(agent, &host).await;
    look(&facts, limits(&host), Timestamp::now(), &|_, _| false)
}

fn limits(host: &Host) -> Limits {
    Limits {
        disk_free: host.limits.disk_free.0,
        errors: host.alerts.error_share.0.0,
    }
}

/// What `/v1/alerts` shows.
pub fn list(agent: &Agent) -> wire::Alerts {
    let written = agent.alerts.written();
    let mut problems = agent.alerts.seen().problems.clone();
    let destinations = match agent.alerts.host() {
        Ok(host) => agent.alerts.destinations(&host).0,
        Err(why) => {
            problems.push(why);
            Vec::new()
        }
    };
    let mut waiting = written.outbox.list().to_vec();
    for delivery in &mut waiting {
        delivery.to = destination::shown(&delivery.to);
    }
    wire::Alerts {
        standing: written.book.standing,
        waiting,
        destinations: destinations
            .iter()
            .map(|to| destination::shown(&to.key))
            .collect(),
        problems,
    }
}

/// Sends a test message to each destination at once; how each took it.
pub async fn test(agent: &Arc<Agent>) -> End {
    let failed = |message: String, next: &str| End::Failed {
        message,
        next: next.to_owned(),
    };
    let host = match agent.alerts.host() {
        Ok(host) => host,
        Err(why) => return failed(why, "correct /etc/appliance/host.yml on the host"),
    };
    let (destinations, mut wrong) = agent.alerts.destinations(&host);
    if destinations.is_empty() && wrong.is_empty() {
        return failed(
            "nobody is told of alerts on this host".to_owned(),
            "alerts: {email: …, webhooks: […], ntfy: …, telegram: …} in /etc/appliance/host.yml on the host",
        );
    }
    let notice = match agent
        .alerts
        .ledger
        .update(|written| written.book.test(Timestamp::now()))
    {
        Ok((notice, _)) => notice,
        Err(error) => return failed(chain(&error), "on the host: journalctl -u appliance-agent"),
    };
    let mut told = Vec::new();
    for destination in &destinations {
        let name = destination::shown(&destination.key);
        match destination.send(&notice).await {
            Ok(()) => told.push(name),
            Err(error) => wrong.push(format!("{name}: {error:#}")),
        }
    }
    if wrong.is_empty() {
        super::change::done(format!("told: {}", told.join(", ")))
    } else {
        failed(
            format!("not told: {}", wrong.join("; ")),
            "see alerts in /etc/appliance/host.yml and the lines of /etc/appliance/secrets on the host",
        )
    }
}
