//! The firewall as the agent keeps it: signed changes, self-healing, bans.
//!
//! ```text
//!  nft monitor ──┐
//!  ip monitor ───┼─► a moment of quiet ─► look at the kernel ─► differs ─► load again
//!  slow pass ────┘                                          ├► interfaces changed ─► load again
//!                                                           └► UFW's rules missing ─► ours stand in ─► ufw reload
//!  journal of sshd ─► failed log-ins counted ─► ssh_ban4, ssh_ban6
//! ```
//!
//! What counts is the state of the kernel, never that of a unit or a file.
//! It begins before the agent has read a single ledger: a host with a damaged one is closed all the same.

use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use appliance_bootstrap::Local;
use appliance_bootstrap::firewall::bans::{self, Bans, KeptFrom, Login};
use appliance_bootstrap::firewall::opening::{Net, Opening, Ports, Source};
use appliance_bootstrap::firewall::rules::{Mode, Rules};
use appliance_bootstrap::firewall::stead::{self, Look};
use appliance_bootstrap::firewall::ufw::{self, Presence};
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
/// Whoever reloads UFW takes its rules away for a moment.
const RELOADS: Duration = Duration::from_secs(2);
/// Seconds until UFW is told again to load its rules, where that did not help; twice as many each further time.
const NEXT_RELOAD: u64 = 300;
/// Most of them: each time its sound rules go for a moment as well.
const LAST_RELOAD: u64 = 86_400;
/// Records kept until the agent's log is open.
const MOST_UNRECORDED: usize = 16;
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
        bans: stored().active(now, KeptFrom::Everything).collect(),
        ssh_bans: stored().active(now, KeptFrom::Ssh).collect(),
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
        (Ok(Some(text)), _) if Rules::from_file(&text).is_none() => problems.push(format!(
            "{} is damaged, and what it opened by signed changes is forgotten: the kernel keeps its rules until the next boot, and has none then; next: appliance host apply",
            firewall::CONFIRMED
        )),
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
        (_, Err(error)) => problems.push(cannot(&error)),
    }
    if let Ok(Some(rules)) = firewall::rules(host, now)
        && rules.mode == Mode::Ufw
    {
        match ufw::presence(host) {
            Ok(Presence::There) => {}
            Ok(Presence::Off) => problems.push(
                "UFW keeps this host's own ports, and is off: they are open to everyone; next: ufw --force enable # or `firewall: {mode: own}` in host.yml, and appliance host apply"
                    .to_owned(),
            ),
            Ok(Presence::Missing(families)) => problems.push(format!(
                "UFW is on, and its rules are not in the kernel ({}); rules of ours stand in, with SSH open to everyone; next: ufw reload # and if that does not help, a reboot",
                families.join(", ")
            )),
            Err(error) => problems.push(cannot(&error)),
        }
    }
    problems
}

/// What cannot be asked or read: whoever loads the rules by hand sees the whole reason, and may have mended it.
fn cannot(error: &(dyn std::error::Error + 'static)) -> String {
    format!("{}; next: appliance firewall load", chain(error))
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
            agent.firewall.bans(|bans| {
                bans.add(address, now, seconds);
                into_set("add", address, KeptFrom::Everything, Some(seconds))
            })?;
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
            let was = agent.firewall.bans(|bans| Ok(bans.lift(address)))?;
            // Where it was in a set but not in our book, it goes too.
            let gone = [KeptFrom::Ssh, KeptFrom::Everything]
                .map(|from| into_set("delete", address, from, None).is_ok());
            Ok(done(if was || gone.contains(&true) {
                format!("{address} may come in again")
            } else {
                format!("{address} was not kept out")
            }))
        }
        FirewallChange::Confirm { nonce, session } => {
            let armed = pending::confirm(host, nonce, session, now)?;
            firewall::moved::close_former_ports(host, now)?;
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

fn into_set(verb: &str, address: IpAddr, from: KeptFrom, seconds: Option<u64>) -> Result<(), FirewallError> {
    let source = bans::key(address);
    let set = bans::set(source, from);
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
#[derive(Default)]
pub struct Keeper {
    /// Changes come one after the other.
    lock: Mutex<()>,
    bans: Mutex<Option<Bans>>,
    /// Where what was done is recorded, once there is a log.
    agent: OnceLock<Weak<Agent>>,
    /// What was done before there was one.
    unrecorded: Mutex<Vec<String>>,
    /// When UFW was last told to load its rules and did not, Unix seconds, and after how many more it is told again.
    reloaded_in_vain: Mutex<Option<(u64, u64)>>,
}

impl Keeper {
    /// From now on, what is done is recorded by this agent.
    pub fn records_with(&self, agent: &Arc<Agent>) {
        let _only_one = self.agent.set(Arc::downgrade(agent));
    }

    /// Changes the bans, and writes them down; a change that fails, as in the kernel, is none: the book never says more.
    fn bans<T>(
        &self,
        change: impl FnOnce(&mut Bans) -> Result<T, FirewallError>,
    ) -> Result<T, FirewallError> {
        let mut held = held(&self.bans);
        let bans = held.get_or_insert_with(stored);
        let mut changed = bans.clone();
        let result = change(&mut changed)?;
        let before = std::mem::replace(bans, changed);
        if !before.is_written_like(bans) {
            store(bans)?;
        }
        Ok(result)
    }

    /// Heals happen whatever is recorded: an open host is worse than a gap. What cannot be recorded yet is later.
    fn record(&self, why: &str) {
        let mut waiting = held(&self.unrecorded);
        if waiting.len() < MOST_UNRECORDED {
            waiting.push(why.to_owned());
        }
        let Some(agent) = self.agent.get().and_then(Weak::upgrade) else {
            return;
        };
        for why in waiting.drain(..) {
            let detail = serde_json::json!({ "why": why });
            let recorded = agent
                .gate
                .record("firewall-heal", "", Outcome::Done, detail, Timestamp::now());
            if let Err(error) = recorded {
                tracing::error!("cannot record it: {}", chain(&error));
            }
        }
    }

    /// One look at the kernel, and what has to follow from it; blocking.
    ///
    /// # Errors
    /// When a program does not do its part; whatever else could be put right was.
    pub fn heal(&self) -> Result<(), FirewallError> {
        let _one_at_a_time = self.lock.lock();
        let host = &Local;
        if firewall::confirmed(host)?.is_none() {
            return Ok(());
        }
        let table = self.heal_table(host);
        let stead = self.heal_ufw(host);
        table.and(stead)
    }

    fn heal_table(&self, host: &Local) -> Result<(), FirewallError> {
        if firewall::follow::once(host)?.changed {
            tracing::info!("UFW's rules were taken over for containers");
        }
        let now = host.now();
        if firewall::renew(host, now)? {
            firewall::load(host, now)?;
            let why = "this version renders the same rules otherwise";
            tracing::info!("firewall loaded again: {why}");
            self.record(why);
            return Ok(());
        }
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
        self.record(&why);
        Ok(())
    }

    /// In UFW's mode: rules of ours until UFW's are back, and UFW told to load them if nobody else does.
    fn heal_ufw(&self, host: &Local) -> Result<(), FirewallError> {
        let Look::StandsIn(families) = stead::look(host, host.now())? else {
            if held(&self.reloaded_in_vain).take().is_some() {
                self.record("UFW's rules are in the kernel again, or not asked for any more");
            }
            return Ok(());
        };
        host.pause(RELOADS);
        let Look::StandsIn(_) = stead::look(host, host.now())? else {
            return Ok(());
        };
        let now = host.now();
        let before = *held(&self.reloaded_in_vain);
        if before.is_some_and(|(at, pause)| at + pause > now) {
            return Ok(());
        }
        let why = format!("UFW's rules were not in the kernel ({})", families.join(", "));
        let told = stead::bring_back(host);
        let back = !matches!(stead::look(host, now)?, Look::StandsIn(_));
        *held(&self.reloaded_in_vain) = (!back).then_some((now, next_reload(before.map(|(_, pause)| pause))));
        if back {
            tracing::warn!("UFW loaded its rules again: {why}");
            self.record(&format!("{why}; it loaded them again"));
            return Ok(());
        }
        tracing::error!("{why}, and UFW does not load them again; rules of ours stand in");
        // The first time, not each of them.
        if before.is_none() {
            self.record(&format!("{why}; rules of ours stand in"));
        }
        told
    }
}

/// Seconds until UFW is told again, from those before.
fn next_reload(before: Option<u64>) -> u64 {
    before.map_or(NEXT_RELOAD, |pause| (pause * 2).min(LAST_RELOAD))
}

/// What a lock holds; nothing is half done under one.
fn held<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the kernel as it should be, until `stop`.
pub async fn keep(keeper: Arc<Keeper>, stop: CancellationToken) {
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
            // Anybody may call himself sshd in the journal, also a container by its tag, whose lines dockerd writes:
            // only what the kernel says of the writer is believed.
            "_UID=0",
            "_COMM=sshd",
            "_COMM=sshd-session",
            "_COMM=sshd-auth",
        ],
        stop.clone(),
        // Whoever floods the journal is counted anyway.
        move |line| drop(lines.try_send(line)),
    ));
    let counter = tokio::spawn(count(Arc::clone(&keeper), logins));
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
        look(&keeper).await;
    }
    let _ended = tokio::join!(rules, links, sshd);
    counter.abort();
}

/// One look at the kernel; what cannot be put right is told.
pub async fn look(keeper: &Arc<Keeper>) {
    let keeper = Arc::clone(keeper);
    match tokio::task::spawn_blocking(move || keeper.heal()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!("the firewall: {}", chain(&error)),
        Err(error) => tracing::error!("the firewall: {}", chain(&error)),
    }
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

/// Counts failed log-ins, and keeps from SSH who has too many.
async fn count(keeper: Arc<Keeper>, mut lines: mpsc::Receiver<String>) {
    while let Some(line) = lines.recv().await {
        let Some(login) = bans::login(&line) else {
            continue;
        };
        let keeper = Arc::clone(&keeper);
        let judged = tokio::task::spawn_blocking(move || judge(&keeper, login)).await;
        match judged {
            Ok(Ok(Some((address, seconds)))) => {
                tracing::warn!("{address} failed to log in again and again; kept from SSH for {seconds} s");
            }
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => tracing::error!("cannot judge log-ins: {}", chain(&error)),
        }
    }
}

fn judge(keeper: &Keeper, login: Login) -> Result<Option<(IpAddr, u64)>, FirewallError> {
    let now = Local.now();
    let address = match login {
        Login::Failed(address) => address,
        Login::Succeeded(address) => {
            keeper.bans(|bans| {
                bans.succeeded(address, now);
                Ok(())
            })?;
            return Ok(None);
        }
    };
    let Some(rules) = firewall::rules(&Local, now)? else {
        return Ok(None);
    };
    if !rules.bans {
        return Ok(None);
    }
    let exempt: Vec<Net> = rules.admins.iter().copied().collect();
    let banned = keeper.bans(|bans| {
        let banned = bans.failed(address, now, &exempt);
        if let Some(seconds) = banned {
            into_set("add", address, KeptFrom::Ssh, Some(seconds))?;
        }
        Ok(banned)
    })?;
    Ok(banned.map(|seconds| (address, seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ufw_that_cannot_come_back_is_told_less_and_less_often() {
        let mut pauses = vec![next_reload(None)];
        for _ in 0..10 {
            pauses.push(next_reload(pauses.last().copied()));
        }
        assert_eq!(pauses[..3], [300, 600, 1_200]);
        assert_eq!(pauses.last(), Some(&86_400));
    }

    #[test]
    fn a_ban_that_the_kernel_refuses_is_not_in_the_book() {
        let keeper = Keeper {
            bans: Mutex::new(Some(Bans::default())),
            ..Keeper::default()
        };
        let address = "203.0.113.9".parse().expect("an address");
        let refused: Result<(), _> = keeper.bans(|bans| {
            bans.add(address, 0, 60);
            Err(FirewallError::Unconfirmed)
        });
        assert!(refused.is_err());
        let held = held(&keeper.bans);
        let bans = held.as_ref().expect("is held");
        assert_eq!(bans.active(1, KeptFrom::Everything).count(), 0);
    }
}
