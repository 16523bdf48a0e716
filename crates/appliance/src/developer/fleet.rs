//! Several hosts together: who goes when is decided by [`appliance_rollout::Group`]; here it is carried out.
//!
//! One host alone is left to its agent, so that a lost connection changes nothing for it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use appliance_config::Resolved;
use appliance_push::change::{AppName, Destination, Expectation, Verb};
use appliance_push::sign::Signer;
use appliance_rollout::{Action, Group, Heard, Member, Phase};
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::change::{Subject, conclude, seal, show, submit};
use super::hooks::Hooks;
use super::lead;
use super::link::Link;
use super::project::Project;
use super::reach::{ReachArgs, SshSettings};
use crate::failure::{Failure, Kind, failure};
use crate::ui;
use crate::wire::{self, BEAT, End, Event, Word};

/// How often a host that was lost after its switch is asked again what became of it.
const ASK: u32 = 30;
const PAUSE: Duration = Duration::from_secs(2);

/// A host that was reached.
pub struct Host {
    /// How the configuration names it.
    pub name: String,
    /// The connection.
    pub link: Link,
    /// What it says of itself.
    pub info: wire::Host,
    /// The key that it knows.
    pub signer: Signer,
    /// The app there, before anything is changed.
    pub app: wire::App,
}

/// How hosts are reached, again if need be.
pub struct Way<'a> {
    /// The project.
    pub project: &'a Project,
    /// The flags.
    pub reach: &'a ReachArgs,
    /// `ssh:` of the configuration.
    pub settings: SshSettings,
}

impl Way<'_> {
    /// Reaches all of these hosts, or none.
    ///
    /// # Errors
    /// When any cannot be reached; nothing has been changed then.
    pub async fn connect(&self, hosts: &[String]) -> anyhow::Result<Vec<Host>> {
        let reached = join_all(hosts.iter().map(|name| self.connect_one(name))).await;
        reached.into_iter().collect()
    }

    async fn connect_one(&self, name: &str) -> anyhow::Result<Host> {
        let link = self.reach.connect(name, &self.settings).await?;
        Ok(Host {
            name: name.to_owned(),
            info: link.get("/v1/host").await?,
            signer: self.reach.signer(&link, &self.settings).await?,
            app: self.app(&link).await?,
            link,
        })
    }

    /// The app on a host, as it is now.
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn app(&self, link: &Link) -> anyhow::Result<wire::App> {
        link.get(&format!("/v1/apps/{}", self.project.app_id())).await
    }

    /// Whom a change of the app on `host` concerns.
    ///
    /// # Errors
    /// When the configuration's service or destination cannot name an app.
    pub fn subject(&self, host: &Host) -> anyhow::Result<Subject> {
        use anyhow::Context as _;
        Ok(Subject {
            host: host.info.id.clone(),
            app: Some(AppName::parse(&self.project.loaded.config.service).context("service")?),
            destination: self
                .project
                .destination
                .as_deref()
                .map(Destination::parse)
                .transpose()
                .context("destination")?,
            expects: Expectation::Release(host.app.current.as_ref().map(|release| release.number)),
        })
    }

    /// What became of a host's rollout that we cannot hear any more; `None` if it cannot be found out.
    async fn find_out(&self, host: &Host) -> Option<Heard> {
        for _ in 0..ASK {
            tokio::time::sleep(PAUSE).await;
            let Ok(link) = self.reach.connect(&host.name, &self.settings).await else {
                continue;
            };
            let Ok(app) = self.app(&link).await else { continue };
            match app.rollout.as_ref().map(|rollout| rollout.phase.as_str()) {
                None => {
                    let same = app.current.map(|now| now.number)
                        == host.app.current.as_ref().map(|then| then.number);
                    return Some(match same {
                        true => Heard::Bad("the former release serves".to_owned()),
                        false => Heard::Good,
                    });
                }
                Some("reverted") => return Some(Heard::Bad("it went back".to_owned())),
                Some("canary") => return Some(Heard::Good),
                Some(_) => {}
            }
        }
        None
    }
}

/// What the configuration says about the order of hosts.
pub struct Order {
    limit: usize,
    wait: Duration,
    /// Hosts with the primary role.
    primary: BTreeSet<String>,
}

impl Order {
    /// `boot:` of a configuration; a limit in percent is one of all its hosts, rounded down, at least one (Kamal).
    pub fn of(config: &Resolved) -> Self {
        let limit = config.boot.limit.as_ref().map(ToString::to_string);
        let limit = limit.and_then(|limit| match limit.strip_suffix('%') {
            Some(percent) => Some(percent.trim().parse::<usize>().ok()? * config.all_hosts.len() / 100),
            None => limit.trim().parse().ok(),
        });
        let primary = config.roles.iter().filter(|role| role.primary);
        Self {
            limit: limit.map_or(usize::MAX, |limit| limit.max(1)),
            wait: Duration::from_secs(
                config
                    .boot
                    .wait
                    .and_then(|wait| u64::try_from(wait).ok())
                    .unwrap_or(0),
            ),
            primary: primary.flat_map(|role| role.hosts.iter().cloned()).collect(),
        }
    }
}

/// Carries out one verb on each host, together; says for each what came of it.
///
/// # Errors
/// When any host refused, failed or went back; then every host that still could has gone back too.
pub async fn roll_out(
    way: &Way<'_>,
    order: &Order,
    hooks: &Hooks<'_>,
    hosts: Vec<(Host, Verb)>,
) -> anyhow::Result<()> {
    let mut hosts = hosts;
    if hosts.len() == 1
        && let Some((host, verb)) = hosts.pop()
    {
        return alone(way, hooks, &host, verb).await;
    }
    let members = hosts.iter().map(|(host, _)| Member {
        name: host.name.clone(),
        primary: order.primary.contains(&host.name),
    });
    let mut group = Group::new(members.collect(), order.limit);
    let (told, mut hears) = mpsc::channel(256);
    let mut words = Vec::new();
    let mut follows = Vec::new();
    for (index, (host, verb)) in hosts.iter().enumerate() {
        let (says, said) = mpsc::channel(16);
        words.push(says.clone());
        follows.push(follow(way, host, verb.clone(), (says, said), index, told.clone()));
    }
    drop(told);
    let outcomes = {
        let follows = join_all(follows);
        let lead = lead_all(&mut group, order, hooks, &hosts, &words, &mut hears);
        tokio::pin!(follows, lead);
        tokio::select! {
            outcomes = &mut follows => {
                // What was heard last counts too; with the hosts gone this comes to its end.
                lead.await;
                outcomes
            }
            Led::Left = &mut lead => {
                return Err(failure(Kind::Other, "the hosts were left to themselves: those that have not switched go back")
                    .hint("appliance status")
                    .into());
            }
        }
    };
    finish(way, &group, &hosts, outcomes).await
}

async fn alone(way: &Way<'_>, hooks: &Hooks<'_>, host: &Host, verb: Verb) -> anyhow::Result<()> {
    let only = [host.name.clone()];
    hooks.run_for("pre-app-boot", &only)?;
    let step = ui::step(&format!("{}: rollout", host.name));
    let end = submit(&host.link, &host.signer, way.subject(host)?, verb).await;
    match end.and_then(|end| conclude(&host.link, end)) {
        Ok(End::Done { message, .. }) => step.done(&message),
        Ok(_) => step.done(""),
        Err(error) => {
            step.failed();
            return Err(error);
        }
    }
    hooks.run_for("post-app-boot", &only)
}

/// How a host's part ended: what it said last, or why it cannot be heard.
type Outcome = Result<End, String>;

/// Hears one host until its end, and keeps telling it that we are here.
async fn follow(
    way: &Way<'_>,
    host: &Host,
    verb: Verb,
    (says, said): (mpsc::Sender<Word>, mpsc::Receiver<Word>),
    index: usize,
    told: mpsc::Sender<(usize, Heard)>,
) -> Outcome {
    let tell = async |heard| {
        let _leader_left = told.send((index, heard)).await;
    };
    let begun = async {
        let envelope = seal(&host.signer, way.subject(host)?, verb).await?;
        lead::submit(&host.link, &envelope, said).await
    };
    let mut led = match begun.await {
        Ok(led) => led,
        Err(error) => {
            let why = format!("{error:#}");
            tell(Heard::Lost(why.clone())).await;
            return Err(why);
        }
    };
    let mut beat = tokio::time::interval(BEAT);
    let mut serves = false;
    loop {
        let event = tokio::select! {
            event = led.next() => event,
            _ = beat.tick() => {
                // A host that does not read is noticed by its silence in the other direction.
                let _full = says.try_send(Word::Beat);
                continue;
            }
        };
        match event {
            Ok(Event::End(end)) => {
                tell(match &end {
                    End::Done { .. } | End::Token { .. } | End::Session { .. } => Heard::Good,
                    End::Refused { message, .. } | End::Failed { message, .. } => Heard::Bad(message.clone()),
                    End::Reverted { why, .. } => Heard::Bad(why.clone()),
                })
                .await;
                return Ok(end);
            }
            Ok(Event::Phase { phase, detail }) => {
                ui::note(&format!("  {}: {phase:<16} {detail}", host.name));
                if let Some(phase) = phase_of(&phase) {
                    serves |= phase >= Phase::Healthy;
                    tell(Heard::Reached(phase)).await;
                }
            }
            Ok(Event::Waiting { gate }) => tell(Heard::Waits(gate)).await,
            Ok(Event::Output { source, line }) => show(Event::Output {
                source: format!("{}: {source}", host.name),
                line,
            }),
            Ok(Event::Warning { message }) => ui::warn(&format!("{}: {message}", host.name)),
            Err(error) => {
                let why = format!("{error:#}");
                ui::warn(&format!("{}: {why}", host.name));
                // Before its switch it goes back by itself; after that only it can tell.
                let found = if serves { way.find_out(host).await } else { None };
                tell(found.unwrap_or_else(|| Heard::Lost(why.clone()))).await;
                return Err(why);
            }
        }
    }
}

fn phase_of(name: &str) -> Option<Phase> {
    serde_json::from_value(serde_json::Value::String(name.replace('-', "_"))).ok()
}

/// How leading ended.
enum Led {
    /// With the last host.
    Through,
    /// Whoever led had enough.
    Left,
}

/// Does what the group decides, until all hosts have ended.
async fn lead_all(
    group: &mut Group,
    order: &Order,
    hooks: &Hooks<'_>,
    hosts: &[(Host, Verb)],
    words: &[mpsc::Sender<Word>],
    hears: &mut mpsc::Receiver<(usize, Heard)>,
) -> Led {
    let mut queue = VecDeque::new();
    let mut closed_at: Option<Instant> = None;
    let mut interrupts = 0;
    let names =
        |slice: &[usize]| -> Vec<String> { slice.iter().map(|index| hosts[*index].0.name.clone()).collect() };
    loop {
        while let Some(action) = queue.pop_front() {
            match action {
                Action::Open(slice) => {
                    let more = match hooks.run_for("pre-app-boot", &names(&slice)) {
                        Ok(()) => group.opened(),
                        Err(error) => group.cancel(&format!("{error:#}")),
                    };
                    queue.extend(more);
                }
                Action::Close(slice) => match hooks.run_for("post-app-boot", &names(&slice)) {
                    Ok(()) => {
                        let last = slice.last().is_some_and(|index| index + 1 == hosts.len());
                        closed_at = Some(Instant::now() + if last { Duration::ZERO } else { order.wait });
                    }
                    Err(error) => queue.extend(group.cancel(&format!("{error:#}"))),
                },
                Action::Pass(index, gate) => say(words, index, Word::Pass { gate }).await,
                Action::Cancel(index, why) => say(words, index, Word::Cancel { why }).await,
            }
        }
        tokio::select! {
            heard = hears.recv() => match heard {
                Some((index, heard)) => queue.extend(group.heard(index, heard)),
                None => return Led::Through,
            },
            () = tokio::time::sleep_until(closed_at.unwrap_or_else(Instant::now)), if closed_at.is_some() => {
                closed_at = None;
                queue.extend(group.closed());
            }
            Ok(()) = tokio::signal::ctrl_c() => {
                interrupts += 1;
                if interrupts > 1 {
                    return Led::Left;
                }
                ui::note("taking every host back; once more to leave them to themselves");
                queue.extend(group.cancel("interrupted by whoever led it"));
            }
        }
    }
}

async fn say(words: &[mpsc::Sender<Word>], index: usize, word: Word) {
    if let Some(host) = words.get(index) {
        let _ended = host.send(word).await;
    }
}

async fn finish(
    way: &Way<'_>,
    group: &Group,
    hosts: &[(Host, Verb)],
    outcomes: Vec<Outcome>,
) -> anyhow::Result<()> {
    let mut kinds = Vec::new();
    let mut lines = Vec::new();
    let mut nexts = Vec::new();
    for ((host, _), outcome) in hosts.iter().zip(&outcomes) {
        let name = &host.name;
        match outcome {
            Ok(End::Done { message, .. }) => {
                if group.failure().is_some() {
                    // A canary stays by itself; one on a part of the hosts is nobody's wish.
                    let aborted = take_back(way, host).await;
                    lines.push(format!("{name}: {aborted}"));
                } else {
                    ui::note(&format!("{name}: {message}"));
                }
            }
            Ok(End::Token { .. } | End::Session { .. }) => {}
            Ok(End::Refused { code, message, next }) => {
                kinds.push(Kind::Refused);
                nexts.push(next.clone());
                lines.push(format!("{name} refused ({code}): {message}"));
            }
            Ok(End::Reverted { serving, why }) => {
                kinds.push(Kind::Reverted);
                let serving = serving.map_or_else(
                    || "nothing serves, as before".to_owned(),
                    |number| format!("{number} serves as before"),
                );
                lines.push(format!("{name}: {serving} ({why})"));
            }
            Ok(End::Failed { message, .. }) => {
                kinds.push(Kind::Other);
                lines.push(format!("{name}: {message}"));
            }
            Err(why) => {
                kinds.push(Kind::Unreachable);
                lines.push(format!("{name}: {why}; it decides by itself: appliance status"));
            }
        }
    }
    let Some(why) = group.failure() else {
        return Ok(());
    };
    // A refusal or a lost host is the cause; that the others went back is its consequence.
    let first = |kind: Kind| kinds.contains(&kind).then_some(kind);
    let kind = first(Kind::Refused)
        .or(first(Kind::Unreachable))
        .or(first(Kind::Reverted))
        .unwrap_or(Kind::Other);
    let mut failed: Failure = failure(
        kind,
        format!("no host changed its release: {why}\n{}", lines.join("\n")),
    );
    let next = nexts.into_iter().next();
    failed =
        failed.hint(next.unwrap_or_else(|| "fix what the lines above show, then: appliance push".to_owned()));
    Err(failed.into())
}

/// Aborts the canary of a host whose group failed after it.
async fn take_back(way: &Way<'_>, host: &Host) -> String {
    let done = async {
        let mut subject = way.subject(host)?;
        subject.expects = Expectation::Any;
        let end = submit(&host.link, &host.signer, subject, Verb::Abort).await?;
        conclude(&host.link, end)
    };
    match done.await {
        Ok(End::Done { message, .. }) => message,
        Ok(_) => String::new(),
        Err(error) => format!("{error:#}"),
    }
}
