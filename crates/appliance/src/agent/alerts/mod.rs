//! Tells people when something is wrong with the host, and when it is well again.
//!
//! ```text
//!  every interval:  facts ─► rules ─► book ─► outbox, written down together
//!  Docker's events ─┘                           │
//!                              deliver ◄────────┘ ─► webhook, mail, ntfy, Telegram
//!  every two intervals, once a look went through:  ping
//! ```
//!
//! `host.yml` and `secrets` are read anew for each pass, so that a correction needs no restart;
//! while `host.yml` holds a mistake, the last one without is followed.

mod deliver;
mod destination;
mod facts;
mod mail;
mod shown;
mod truth;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use appliance_alerts::{Ends, Kills, Limits, Policy, Rate, look};
use appliance_config::host::{self, AlertKind, Host};
use appliance_containers::engine::{Event, Happening};
use appliance_state::Store;
use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::destination::Destination;
pub(super) use self::destination::host_of;
pub(super) use self::facts::services;
use self::truth::Truth;
use super::Agent;
use crate::wire::{self, End};

/// No look is nearer to the one before.
const SHORTEST: Duration = Duration::from_secs(1);
/// What somebody did not take for this long counts as silence: no ping then.
const SILENCE: SignedDuration = SignedDuration::from_mins(30);
/// How the problem of a `host.yml` with a mistake begins.
const SETTINGS_OF_BEFORE: &str = "the settings of before are followed";

/// What is counted between looks; a restart of the agent begins anew.
#[derive(Debug, Default)]
struct Seen {
    ended: Ends,
    killed: Kills,
    rates: BTreeMap<String, Rate>,
    drift: Option<(Timestamp, Result<Vec<String>, String>)>,
    problems: Vec<String>,
    /// Why the last ping did not arrive.
    ping: Option<String>,
}

/// What the agent holds of alerts.
pub struct Alerts {
    truth: Truth,
    seen: Mutex<Seen>,
    config: PathBuf,
    /// Told when the outbox has something new.
    mail: Notify,
}

impl Alerts {
    /// Opens what is written down; nothing is looked at yet.
    pub fn open(store: &Store, config: &Path) -> Self {
        Self {
            truth: Truth::open(store),
            seen: Mutex::default(),
            config: config.to_owned(),
            mail: Notify::new(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's settings: those of the file, or of the last one without a mistake; and what the mistake is.
    fn settings(&self) -> (Host, Option<String>) {
        let path = self.config.join("host.yml");
        let text = match fs_err::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return (self.last_good(), Some(error.to_string())),
        };
        match read(&path, &text) {
            Ok(host) => {
                if self.truth.now().settings.as_ref() != Some(&text) {
                    self.truth.change(|written| written.settings = Some(text));
                }
                (host, None)
            }
            Err(why) => (self.last_good(), Some(why)),
        }
    }

    fn last_good(&self) -> Host {
        let text = self.truth.now().settings.unwrap_or_default();
        read(&self.config.join("host.yml"), &text).unwrap_or_default()
    }

    fn destinations(&self, host: &Host) -> (Vec<Destination>, Vec<String>) {
        destination::all(&host.alerts, &self.config.join("secrets"))
    }
}

fn read(path: &Path, text: &str) -> Result<Host, String> {
    if text.is_empty() {
        return Ok(Host::default());
    }
    host::read(&path.display().to_string(), text).map_err(|problems| problems.to_string())
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
            // Docker's clock is this machine's; what it tells late happened all the same when it did.
            let at = Timestamp::from_nanosecond(event.at_nanos.into()).unwrap_or_else(|_| Timestamp::now());
            let seen = &mut *agent.alerts.seen();
            let name = event.name.as_str();
            match event.what {
                Happening::Signalled => seen.ended.signalled(name, at),
                Happening::Died { code } if seen.ended.ended(name, &event.id.0, code, at) => {
                    seen.killed.ended(name, code, at);
                }
                Happening::Stopped => seen.ended.stopped(name),
                Happening::Removed => seen.ended.removed(name, at),
                Happening::OutOfMemory => seen.killed.container(name, at),
                _ => {}
            }
        }
    }
}

async fn watch(agent: &Arc<Agent>, stop: &CancellationToken) {
    let mut pinged = tokio::time::Instant::now();
    loop {
        let (host, mistake) = agent.alerts.settings();
        if let Some(why) = &mistake {
            note(agent, &format!("{SETTINGS_OF_BEFORE}: {why}"));
        }
        let interval = Duration::from_secs(host.alerts.interval.0.0).max(SHORTEST);
        let well = pass(agent, &host, mistake.is_some()).await;
        if let Some(address) = &host.alerts.ping
            && well
            && mistake.is_none()
            && pinged.elapsed() >= interval * 2
        {
            pinged = tokio::time::Instant::now();
            let told = super::backups::ping(address).await;
            let name = destination::shown(&format!("ping {address}"));
            let failed =
                told.map_err(|error| format!("{name} was not told that the host is well: {error:#}"));
            let mut seen = agent.alerts.seen();
            let before = std::mem::replace(&mut seen.ping, failed.err());
            if let Some(why) = seen.ping.as_ref().filter(|_| before.is_none()) {
                tracing::warn!("alerts: {why}");
            }
        }
        if host.alerts.ping.is_none() {
            agent.alerts.seen().ping = None;
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

/// One look; whether people would hear of what is wrong, and the services answer.
async fn pass(agent: &Arc<Agent>, host: &Host, mistaken: bool) -> bool {
    let facts = facts::gather(agent, host).await;
    let (_, problems) = agent.alerts.destinations(host);
    for problem in &problems {
        note(agent, problem);
    }
    agent
        .alerts
        .seen()
        .problems
        .retain(|known| problems.contains(known) || (mistaken && known.starts_with(SETTINGS_OF_BEFORE)));
    let now = Timestamp::now();
    let seconds = |seconds: u64| SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    let names = destination::slots(&host.alerts);
    let policy = Policy {
        repeat: seconds(host.alerts.repeat.0.0),
        calm: seconds(host.alerts.interval.0.0.max(1)) * 2,
        // What nobody could be told of is told to whoever is named first.
        mute: if names.is_empty() {
            appliance_alerts::Kind::ALL.to_vec()
        } else {
            host.alerts.mute.iter().map(|kind| muted(*kind)).collect()
        },
    };
    let book = agent.alerts.truth.now().book;
    let found = look(&facts, limits(host), now, &|kind, subject| {
        book.stands(kind, subject)
    });
    let (notices, stuck) = agent.alerts.truth.change(|written| {
        let notices = written.book.step(&found, now, &policy);
        written.outbox.keep_only(&names);
        for notice in &notices {
            given_up(written.outbox.add(notice, &names, now));
        }
        let stuck = written
            .outbox
            .list()
            .iter()
            .any(|delivery| delivery.failures > 0 && now.duration_since(delivery.notice.at) > SILENCE);
        (notices, stuck)
    });
    for notice in &notices {
        tracing::warn!(alert = notice.title(), "{}: {}", notice.title(), notice.message);
    }
    if !notices.is_empty() {
        agent.alerts.mail.notify_one();
    }
    let served = facts.away.is_some_and(|away| away.is_empty());
    agent.alerts.truth.is_kept() && served && !stuck
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
        AlertKind::Services => Kind::Services,
    }
}

/// The host's settings as they are followed.
pub fn settings(agent: &Agent) -> Host {
    agent.alerts.settings().0
}

/// What is wrong at this moment, whether anybody is told of it or not.
pub async fn look_now(agent: &Arc<Agent>) -> appliance_alerts::Look {
    let (host, _) = agent.alerts.settings();
    let mut facts = facts::gather(agent, &host).await;
    // Whoever asks what is wrong now is not told "over".
    facts.partly.clear();
    look(&facts, limits(&host), Timestamp::now(), &|_, _| false)
}

/// Why a kind cannot be seen, as far as that is known.
pub fn blindness(agent: &Agent, kind: appliance_alerts::Kind) -> Option<String> {
    use appliance_alerts::Kind;
    match kind {
        Kind::Drift => agent.alerts.seen().drift.clone()?.1.err(),
        Kind::BackupAge | Kind::Drill => agent.all_backup_jobs().err().map(|error| format!("{error:#}")),
        _ => None,
    }
}

fn limits(host: &Host) -> Limits {
    Limits {
        disk_free: host.limits.disk_free.0,
        errors: host.alerts.error_share.0.0,
    }
}

/// What `/v1/alerts` shows.
pub fn list(agent: &Agent) -> wire::Alerts {
    let written = agent.alerts.truth.now();
    let (host, mistake) = agent.alerts.settings();
    let mut problems = agent.alerts.seen().problems.clone();
    // As it is now, not as it was at the last look.
    problems.retain(|problem| !problem.starts_with(SETTINGS_OF_BEFORE));
    problems.extend(agent.alerts.seen().ping.clone());
    problems.extend(mistake.map(|why| format!("{SETTINGS_OF_BEFORE}: {why}")));
    let destinations = agent.alerts.destinations(&host).0;
    let mut waiting = written.outbox.list().to_vec();
    for delivery in &mut waiting {
        if let Some(to) = destinations.iter().find(|to| to.slot == delivery.to) {
            delivery.to = destination::shown(&to.key);
        }
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
    let (host, mistake) = agent.alerts.settings();
    if let Some(why) = mistake {
        return failed(why, "correct /etc/appliance/host.yml on the host");
    }
    let (destinations, mut wrong) = agent.alerts.destinations(&host);
    if destinations.is_empty() && wrong.is_empty() {
        return failed(
            "nobody is told of alerts on this host".to_owned(),
            "alerts: {email: …, webhooks: […], ntfy: …, telegram: …} in /etc/appliance/host.yml on the host",
        );
    }
    let notice = agent
        .alerts
        .truth
        .change(|written| written.book.test(Timestamp::now()));
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
