//! The firewall as the agent keeps it: signed changes, self-healing, bans.
//!
//! ```text
//!  nft monitor ──┐
//!  ip monitor ───┼─► a moment of quiet ─► look at the kernel ─► differs ─► load again
//!  slow pass ────┘                                          └► interfaces changed ─► load again
//!  journal of sshd ─► failed log-ins counted ─► ban4, ban6
//! ```
//!
//! What counts is the state of the kernel, never that of a unit or a file.

use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use appliance_bootstrap::Local;
use appliance_bootstrap::firewall::bans::{self, Bans};
use appliance_bootstrap::firewall::opening::{Net, Opening, Ports, Source};
use appliance_bootstrap::firewall::rules::{Mode, Rules};
use appliance_bootstrap::firewall::{self, FirewallError, State, exposure, interfaces, pending};
use appliance_bootstrap::host::{Command, Host as _, Owner, must};
use appliance_push::change::{FirewallChange, NetworkName, PortsName};
use appliance_push::trust::Verified;
use appliance_state::Outcome;
use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Agent, chain};
use crate::wire::{self, End};

/// Docker writes its rules in bursts; one look afterwards is enough.
const QUIET: Duration = Duration::from_millis(150);
/// A look even if nothing was heard.
const SLOW_PASS: Duration = Duration::from_secs(15);
/// Between attempts to hear again.
const DEAF: Duration = Duration::from_secs(2);
/// Most openings that signed changes may add up to.
const MOST_REQUESTS: usize = 256;

/// What `/v1/firewall` shows.
///
/// # Errors
/// When the kernel or a file cannot be asked.
pub fn show() -> Result<wire::Firewall, FirewallError> {
    let host = &Local;
    let now = host.now();
    Ok(wire::Firewall {
        state: firewall::state(host)?,
        rules: firewall::rules(host, now)?,
        pending: pending::armed(host, now)?,
        interfaces: interfaces::classified(host)?,
        bans: stored().active(now).collect(),
    })
}

/// What `/v1/firewall/audit` shows.
///
/// # Errors
/// When there are no rules, or sockets cannot be listed.
pub fn audit() -> Result<exposure::Report, FirewallError> {
    let host = &Local;
    let rules = firewall::rules(host, host.now())?.ok_or(FirewallError::Unconfirmed)?;
    exposure::audit(host, &rules).map_err(FirewallError::Load)
}

/// What is wrong with the firewall, for the status.
pub fn problems() -> Vec<String> {
    let host = &Local;
    let now = host.now();
    let mut problems = Vec::new();
    match (firewall::confirmed(host), firewall::state(host)) {
        // Bootstrap with `mode: off`, or none yet.
        (Ok(None), _) => {}
        (_, Ok(State::Confirmed)) => {}
        (_, Ok(State::Pending)) => {
            if let Ok(Some(armed)) = pending::armed(host, now) {
                problems.push(format!(
                    "the firewall waits for a confirmation, and goes back in {} s ({}); next, over a new connection: appliance firewall confirm {}",
                    armed.until.saturating_sub(now),
                    armed.changes.join("; "),
                    armed.nonce
                ));
            } else {
                problems.push(
                    "the kernel holds firewall rules that nobody confirmed in time; next: appliance firewall load"
                        .to_owned(),
                );
            }
        }
        (_, Ok(state)) => problems.push(format!(
            "the kernel does not hold the confirmed firewall rules ({state:?}); next: appliance firewall load"
        )),
        (_, Err(error)) => problems.push(chain(&error)),
    }
    if let Ok(Some(rules)) = firewall::rules(host, now)
        && rules.mode == Mode::Ufw
        && !text("/etc/ufw/ufw.conf").is_some_and(|conf| firewall::ufw::is_enabled(&conf))
    {
        problems.push(
            "UFW keeps this host's own ports, and is off: they are open to everyone; next: ufw enable, or `firewall: {mode: own}` in host.yml and appliance host apply"
                .to_owned(),
        );
    }
    problems
}

fn text(path: &str) -> Option<String> {
    let bytes = Local.read(Path::new(path)).ok().flatten()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn stored() -> Bans {
    text(bans::FILE)
        .and_then(|json| serde_json::from_str(&json).ok())
        .unwrap_or_default()
}

fn store(bans: &Bans) -> Result<(), FirewallError> {
    let json = serde_json::to_vec(bans).expect("addresses and numbers always serialise");
    Local
        .write(Path::new(bans::FILE), &json, 0o600, &Owner::root())
        .map_err(FirewallError::Load)
}

/// Carries out a signed change; blocking.
pub fn change(agent: &Agent, verified: &Verified, change: &FirewallChange, nonce: &str) -> End {
    let _one_at_a_time = agent.firewall.lock.lock();
    match carry_out(agent, verified, change, nonce) {
        Ok(end) => end,
        Err(error) => refusal(&error),
    }
}

fn refusal(error: &FirewallError) -> End {
    let (code, next) = match error {
        FirewallError::LockOut(_) => ("lock-out", "appliance firewall explain tcp 22 --from ADDRESS"),
        FirewallError::NothingArmed => ("nothing-armed", "make the change again, and confirm it in time"),
        FirewallError::OtherNonce => ("other-nonce", "appliance firewall list shows what waits"),
        FirewallError::SameConnection => ("same-connection", "open a new connection, and confirm there"),
        _ => {
            return End::Failed {
                message: chain(error),
                next: "appliance firewall list".to_owned(),
            };
        }
    };
    End::Refused {
        code: code.to_owned(),
        message: chain(error),
        next: next.to_owned(),
    }
}

fn refused(code: &str, message: impl Into<String>, next: &str) -> End {
    End::Refused {
        code: code.to_owned(),
        message: message.into(),
        next: next.to_owned(),
    }
}

fn done(message: impl Into<String>) -> End {
    End::Done {
        release: None,
        message: message.into(),
    }
}

fn carry_out(
    agent: &Agent,
    verified: &Verified,
    change: &FirewallChange,
    nonce: &str,
) -> Result<End, FirewallError> {
    let host = &Local;
    let now = host.now();
    match change {
        FirewallChange::Allow {
            ports,
            from,
            comment,
            i_mean_it,
            session,
        } => {
            let (ports, from) = match read(ports, from) {
                Ok(read) => read,
                Err(end) => return Ok(end),
            };
            let opening = Opening {
                ports,
                from,
                comment: comment.chars().filter(|c| !c.is_control()).take(120).collect(),
                source: Source::Request {
                    by: verified.fingerprint.to_string(),
                    at: Timestamp::now().to_string(),
                },
            };
            if let (Some(port), true, false) = (ports.data_store(), opening.for_everyone(), *i_mean_it) {
                return Ok(refused(
                    "data-store",
                    format!("port {port} is a data store's, and this opens it to everyone"),
                    &format!("appliance firewall allow {ports} --from NETWORK, or add --i-mean-it"),
                ));
            }
            let mut rules = current(now)?;
            let same = |other: &&Opening| other.ports == opening.ports && other.from == opening.from;
            if let Some(known) = rules.openings.iter().find(same) {
                return Ok(done(format!("{known} was open already: {}", known.source)));
            }
            if rules.requests().count() >= MOST_REQUESTS {
                return Ok(refused(
                    "too-many",
                    format!("there are {MOST_REQUESTS} openings by signed changes already"),
                    "appliance firewall list, and deny what is not needed",
                ));
            }
            // Who may come in again may also stay.
            rules.cut.retain(|cut| {
                cut.protocol != ports.protocol || cut.last < ports.first || ports.last < cut.first
            });
            rules.openings.push(opening);
            Ok(armed(pending::arm(host, &rules, nonce, session, now)?))
        }
        FirewallChange::Deny {
            ports,
            from,
            kill,
            session,
        } => {
            let (ports, from) = match read(ports, from) {
                Ok(read) => read,
                Err(end) => return Ok(end),
            };
            let mut rules = current(now)?;
            let meant =
                |opening: &Opening| opening.ports == ports && (from.is_empty() || opening.from == from);
            let before = rules.openings.len();
            rules
                .openings
                .retain(|opening| !(meant(opening) && matches!(opening.source, Source::Request { .. })));
            if rules.openings.len() == before {
                return Ok(match rules.openings.iter().find(|opening| meant(opening)) {
                    Some(opening) => refused(
                        "not-a-request",
                        format!(
                            "{opening} is open: {}, and not by a signed change",
                            opening.source
                        ),
                        "take it out of /etc/appliance/host.yml, then: appliance host apply",
                    ),
                    None => done(format!("nothing opens {ports}")),
                });
            }
            if *kill {
                rules.cut.insert(ports);
            }
            Ok(armed(pending::arm(host, &rules, nonce, session, now)?))
        }
        FirewallChange::Ban { address, seconds } => {
            let Ok(address) = address.as_str().parse::<IpAddr>() else {
                return Ok(refused(
                    "address",
                    format!("{address} is not an address"),
                    "appliance firewall ban 203.0.113.9",
                ));
            };
            if pending::connected(host, &current(now)?)?.contains(&address.to_canonical()) {
                return Ok(refused(
                    "lock-out",
                    format!("{address} is connected by SSH now; it would not come back"),
                    "end that connection first",
                ));
            }
            let seconds = u64::from(*seconds).clamp(60, 30 * 86_400);
            agent.firewall.bans(|bans| bans.add(address, now, seconds))?;
            into_set("add", address, Some(seconds))?;
            Ok(done(format!("{address} is kept out for {seconds} s")))
        }
        FirewallChange::Unban { address } => {
            let Ok(address) = address.as_str().parse::<IpAddr>() else {
                return Ok(refused(
                    "address",
                    format!("{address} is not an address"),
                    "appliance firewall list",
                ));
            };
            let was = agent.firewall.bans(|bans| bans.lift(address))?;
            // Where it was in the set but not in our book, it goes too.
            let gone = into_set("delete", address, None).is_ok();
            Ok(done(if was || gone {
                format!("{address} may come in again")
            } else {
                format!("{address} was not kept out")
            }))
        }
        FirewallChange::Confirm { nonce, session } => {
            let armed = pending::confirm(host, nonce, session, now)?;
            Ok(done(format!("confirmed: {}", armed.changes.join("; "))))
        }
    }
}

fn armed(armed: pending::Armed) -> End {
    done(format!(
        "{}; holds for {} s, and for good once it is confirmed over a new connection: appliance firewall confirm {}",
        armed.changes.join("; "),
        pending::PATIENCE,
        armed.nonce
    ))
}

/// The rules in force, to be changed.
fn current(now: u64) -> Result<Rules, FirewallError> {
    firewall::rules(&Local, now)?.ok_or(FirewallError::Unconfirmed)
}

fn read(ports: &PortsName, from: &[NetworkName]) -> Result<(Ports, Vec<Net>), End> {
    let bad = |error: appliance_bootstrap::firewall::opening::BadOpening| {
        refused(
            "opening",
            error.to_string(),
            "appliance firewall allow 8080/tcp --from 10.0.5.0/24",
        )
    };
    let ports: Ports = ports.as_str().parse().map_err(bad)?;
    let from = from
        .iter()
        .map(|net| net.as_str().parse::<Net>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(bad)?;
    Ok((ports, from))
}

fn into_set(verb: &str, address: IpAddr, seconds: Option<u64>) -> Result<(), FirewallError> {
    let source = bans::key(address);
    let set = bans::set(source);
    let timeout = seconds.map_or_else(String::new, |seconds| format!(" timeout {seconds}s"));
    let element = format!("{{ {source}{timeout} }}");
    must(
        &Local,
        &Command::new(["nft", verb, "element", "inet", "appliance", set, &element]),
    )
    .map(drop)
    .map_err(FirewallError::Load)
}

/// What the agent holds of the firewall.
#[derive(Debug, Default)]
pub struct Keeper {
    /// Changes come one after the other.
    lock: std::sync::Mutex<()>,
    bans: std::sync::Mutex<Option<Bans>>,
}

impl Keeper {
    /// Changes the bans, and writes them down.
    fn bans<T>(&self, change: impl FnOnce(&mut Bans) -> T) -> Result<T, FirewallError> {
        let mut held = self
            .bans
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let bans = held.get_or_insert_with(stored);
        let before = bans.clone();
        let result = change(bans);
        if before.active(0).collect::<Vec<_>>() != bans.active(0).collect::<Vec<_>>() {
            store(bans)?;
        }
        Ok(result)
    }
}

/// Keeps the kernel as it should be, until `stop`.
pub async fn keep(agent: Arc<Agent>, stop: CancellationToken) {
    let changed = Arc::new(Notify::new());
    let hear = |argv: &'static [&'static str]| {
        let changed = Arc::clone(&changed);
        tokio::spawn(follow(argv, stop.clone(), move |_line| changed.notify_one()))
    };
    let rules = hear(&["nft", "monitor", "tables", "rules"]);
    let links = hear(&["ip", "monitor", "link", "route"]);
    let (lines, logins) = mpsc::channel::<String>(1024);
    let sshd = tokio::spawn(follow(
        &[
            "journalctl",
            "--follow",
            "--lines=0",
            "--output=cat",
            // Anybody may call himself sshd in the journal; only root's processes are believed.
            "_UID=0",
            "--identifier=sshd",
            "--identifier=sshd-session",
        ],
        stop.clone(),
        // Whoever floods the journal is counted anyway.
        move |line| drop(lines.try_send(line)),
    ));
    let counter = tokio::spawn(count(Arc::clone(&agent), logins));
    let mut slow = tokio::time::interval(SLOW_PASS);
    slow.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = changed.notified() => {
                tokio::time::sleep(QUIET).await;
            }
            _ = slow.tick() => {}
        }
        let agent = Arc::clone(&agent);
        let healed = tokio::task::spawn_blocking(move || heal(&agent)).await;
        match healed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("the firewall: {}", chain(&error)),
            Err(error) => tracing::error!("the firewall: {}", chain(&error)),
        }
    }
    let _ended = tokio::join!(rules, links, sshd);
    counter.abort();
}

/// One look at the kernel, and what has to follow from it.
fn heal(agent: &Agent) -> Result<(), FirewallError> {
    let _one_at_a_time = agent.firewall.lock.lock();
    let host = &Local;
    if firewall::confirmed(host)?.is_none() {
        return Ok(());
    }
    if firewall::follow::once(host)?.changed {
        tracing::info!("UFW's rules were taken over for containers");
    }
    let now = host.now();
    let state = firewall::state(host)?;
    let overdue = state == State::Pending && pending::armed(host, now)?.is_none();
    let why = match state {
        State::Pending if overdue => "rules that nobody confirmed outlived their time".to_owned(),
        State::Confirmed | State::Pending => {
            let outside = interfaces::outside(host)?;
            match firewall::loaded(host)? {
                Some(loaded) if loaded.outside != outside => {
                    format!("interfaces outside are now {}", outside.join(", "))
                }
                _ => return Ok(()),
            }
        }
        State::Absent => "somebody removed the table".to_owned(),
        State::Differs => "somebody changed the table".to_owned(),
    };
    firewall::restore(host, now)?;
    tracing::warn!("firewall loaded again: {why}");
    if state == State::Absent {
        tracing::warn!(
            "whoever flushed our table flushed Docker's rules too; if containers lost their network: systemctl restart docker"
        );
    }
    let detail = serde_json::json!({ "why": why });
    if let Err(error) = agent
        .gate
        .record("firewall-heal", "", Outcome::Done, detail, Timestamp::now())
    {
        tracing::error!("cannot record it: {}", chain(&error));
    }
    Ok(())
}

/// Runs a program that tells what happens, line by line, again and again until `stop`.
async fn follow(argv: &[&str], stop: CancellationToken, mut tell: impl FnMut(String)) {
    loop {
        let child = tokio::process::Command::new(argv[0])
            .args(&argv[1..])
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        match child {
            Ok(mut child) => {
                // Who was deaf for a moment, as when a burst was too long, has to look for itself.
                tell(String::new());
                if let Some(stdout) = child.stdout.take() {
                    let mut lines = BufReader::new(stdout).lines();
                    loop {
                        tokio::select! {
                            () = stop.cancelled() => return,
                            line = lines.next_line() => match line {
                                Ok(Some(line)) => tell(line),
                                _ => break,
                            },
                        }
                    }
                }
                let _ended = child.wait().await;
            }
            Err(error) => tracing::warn!("cannot run {}: {error}", argv[0]),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(DEAF) => {}
        }
    }
}

/// Counts failed log-ins, and bans who has too many.
async fn count(agent: Arc<Agent>, mut lines: mpsc::Receiver<String>) {
    while let Some(line) = lines.recv().await {
        let Some(address) = bans::offender(&line) else {
            continue;
        };
        let agent = Arc::clone(&agent);
        let banned = tokio::task::spawn_blocking(move || ban(&agent, address)).await;
        match banned {
            Ok(Ok(Some(seconds))) => {
                tracing::warn!("{address} failed to log in again and again; kept out for {seconds} s");
            }
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => tracing::error!("cannot keep {address} out: {}", chain(&error)),
        }
    }
}

fn ban(agent: &Agent, address: IpAddr) -> Result<Option<u64>, FirewallError> {
    let now = Local.now();
    let Some(rules) = firewall::rules(&Local, now)? else {
        return Ok(None);
    };
    if !rules.bans {
        return Ok(None);
    }
    let exempt: Vec<Net> = rules.admins.iter().copied().collect();
    let banned = agent.firewall.bans(|bans| bans.failed(address, now, &exempt))?;
    if let Some(seconds) = banned {
        into_set("add", address, Some(seconds))?;
    }
    Ok(banned)
}
