//! Several hosts together: who goes when is decided by [`appliance_rollout::Group`]; here it is carried out.
//!
//! | file | does |
//! |---|---|
//! | `follow` | submits the change to one host, hears it, and keeps telling it that its leader is there |
//! | `leading` | does what the group decides: hooks, leave to go on, orders to go back |
//! | `outcome` | what is said at the end |
//! | `promotion` | a canary on several hosts |
//! | `alone` | one host: left to its agent, so that a lost connection changes nothing for it |
//! | `interrupts` | Ctrl-C |

mod alone;
mod follow;
mod interrupts;
mod leading;
mod outcome;
mod promotion;

use std::collections::BTreeSet;
use std::time::Duration;

use appliance_config::Resolved;
use appliance_push::change::{AppName, Destination, Expectation, Verb};
use appliance_push::sign::Signer;
use appliance_rollout::{Group, Member};
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::follow::{Follow, turns};
use self::interrupts::unless_interrupted;
use self::leading::{Leading, Led};
use self::outcome::{Outcome, Part, Turned};
pub use self::promotion::promote;
use super::change::{Subject, conclude, submit};
use super::hooks::Hooks;
use super::link::Link;
use super::project::Project;
use super::reach::{ReachArgs, SshSettings};
use super::turn::Patience;
use crate::failure::{Kind, failure};
use crate::ui;
use crate::wire::{self, End};

/// How long a host that was lost may be out of reach before it is given up.
const OUT_OF_REACH: Duration = Duration::from_secs(120);
/// Time between two looks at it.
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

    /// Whether a host that we cannot hear any more came to serve the new release; `None` if it is out of reach for long.
    ///
    /// As long as it answers and its rollout goes on, this waits for its end.
    async fn find_out(&self, host: &Host) -> Option<bool> {
        let mut given_up = Instant::now() + OUT_OF_REACH;
        while Instant::now() < given_up {
            tokio::time::sleep(PAUSE).await;
            let asked = async {
                let link = self.reach.connect(&host.name, &self.settings).await?;
                self.app(&link).await
            };
            let Ok(app) = asked.await else { continue };
            given_up = Instant::now() + OUT_OF_REACH;
            match app.rollout.as_ref().map(|rollout| rollout.phase.as_str()) {
                None => {
                    let served = |app: &wire::App| {
                        let number = app.current.as_ref().map(|release| release.number);
                        (number, app.brought_by)
                    };
                    return Some(served(&app) != served(&host.app));
                }
                Some("reverted") => return Some(false),
                Some("canary") => return Some(true),
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
/// Where somebody else changes the app in this moment, it is tried again for as long as `patience` lasts.
///
/// # Errors
/// When any host refused, failed or went back; then every host that still could has gone back too.
pub async fn roll_out(
    way: &Way<'_>,
    order: &Order,
    hooks: &Hooks<'_>,
    patience: &Patience,
    hosts: &mut [(Host, Verb)],
) -> anyhow::Result<()> {
    let mut interrupts = interrupts::interrupts()?;
    loop {
        let turned = match &*hosts {
            [(host, verb)] => alone::alone(way, hooks, host, verb.clone(), &mut interrupts).await?,
            hosts => together(way, order, Some(hooks), hosts, &mut interrupts).await?,
        };
        let refused = match turned {
            Turned::Through => return Ok(()),
            Turned::Away(refused) => refused,
        };
        if !patience.lasts() {
            return Err(refused);
        }
        tokio::select! {
            waited = patience.wait(way, hosts.iter_mut().map(|(host, _)| host)) => waited?,
            Some(()) = interrupts.recv() => {
                return Err(failure(Kind::Other, "interrupted while waiting; nothing was changed").into());
            }
        }
    }
}

/// Leads the hosts as a group.
async fn together(
    way: &Way<'_>,
    order: &Order,
    hooks: Option<&Hooks<'_>>,
    hosts: &[(Host, Verb)],
    interrupts: &mut mpsc::Receiver<()>,
) -> anyhow::Result<Turned> {
    let names: Vec<String> = hosts.iter().map(|(host, _)| host.name.clone()).collect();
    let members = hosts.iter().map(|(host, _)| Member {
        name: host.name.clone(),
        primary: order.primary.contains(&host.name),
    });
    let promotes = hosts.iter().all(|(_, verb)| *verb == Verb::Promote);
    let mut group = match promotes {
        true => Group::promoting(members.collect(), order.limit),
        false => Group::new(members.collect(), order.limit),
    };
    let (told, mut hears) = mpsc::channel(256);
    let mut words = Vec::new();
    let mut follows = Vec::new();
    for (index, turn) in in_turn(hosts) {
        let (host, verb) = &hosts[index];
        let (says, said) = mpsc::channel(16);
        words.push(says.clone());
        let follow = Follow {
            way,
            host,
            index,
            told: told.clone(),
        };
        follows.push(follow.run(verb.clone(), turn, (says, said)));
    }
    drop(told);
    let outcomes = {
        let follows = join_all(follows);
        let mut leading = Leading {
            names: &names,
            wait: order.wait,
            words: &words,
            hears: &mut hears,
            interrupts,
        };
        let lead = leading.lead(&mut group, |hook, hosts| async move {
            match hooks {
                Some(hooks) => hooks.run_for(hook, &hosts).await,
                None => Ok(()),
            }
        });
        tokio::pin!(follows, lead);
        tokio::select! {
            outcomes = &mut follows => match lead.await {
                // What was heard last counts too; with the hosts gone this comes to its end.
                Led::Through | Led::Left => outcomes,
            },
            Led::Left = &mut lead => {
                return Err(failure(
                    Kind::Other,
                    "the hosts were left to themselves: those that have not switched go back, the others go on",
                )
                .hint("appliance status")
                .into());
            }
        }
    };
    let mut parts = Vec::new();
    for (index, outcome) in outcomes.into_iter().enumerate() {
        let (host, verb) = &hosts[index];
        let alone = group.goes_on_alone(index);
        let undone = async {
            match group.failure() {
                Some(_) if promotes => promotion::undone(way, host, outcome, group.has_begun(), alone).await,
                Some(_) => without_canary(way, host, verb, outcome).await,
                None => outcome,
            }
        };
        let left = || {
            let left = "not every host was taken back".to_owned();
            (
                left,
                "appliance status, and appliance abort or rollback where it is still there",
            )
        };
        parts.push(Part {
            name: &host.name,
            outcome: unless_interrupted(interrupts, undone, left).await?,
            switched: group.goes_on_alone(index),
        });
    }
    let turned_away = outcome::is_turned_away(&parts);
    match outcome::verdict(&parts, group.failure()) {
        Ok(lines) => {
            for line in lines {
                ui::note(&line);
            }
            Ok(Turned::Through)
        }
        Err(failed) if turned_away => Ok(Turned::Away(failed.into())),
        Err(failed) => Err(failed.into()),
    }
}

/// Each host's index, in the group's order, with its turn to be submitted to, in the order that every push has.
fn in_turn(hosts: &[(Host, Verb)]) -> Vec<(usize, follow::Turn)> {
    let mut by_identity: Vec<usize> = (0..hosts.len()).collect();
    by_identity.sort_by(|a, b| hosts[*a].0.info.id.as_str().cmp(hosts[*b].0.info.id.as_str()));
    let mut turns: Vec<_> = by_identity.into_iter().zip(turns(hosts.len())).collect();
    turns.sort_by_key(|(index, _)| *index);
    turns
}

/// A canary stays by itself; one on a part of the hosts is nobody's wish.
async fn without_canary(way: &Way<'_>, host: &Host, verb: &Verb, outcome: Outcome) -> Outcome {
    let canary = matches!(verb, Verb::Deploy(release) if release.canary.is_some());
    let serves = matches!(&outcome, Outcome::Ended(End::Done { .. }) | Outcome::FoundNew);
    if !(canary && serves) {
        return outcome;
    }
    match take_back(way, host).await {
        Ok(message) => Outcome::TakenBack(message),
        Err(error) => {
            ui::warn(&format!("{}: {error:#}", host.name));
            outcome
        }
    }
}

/// Takes back what is being rolled out on a host, or its canary; what the host says to that.
///
/// # Errors
/// When the host cannot be reached, or there is nothing that could be taken back.
pub async fn take_back(way: &Way<'_>, host: &Host) -> anyhow::Result<String> {
    let mut subject = way.subject(host)?;
    subject.expects = Expectation::Any;
    let end = submit(&host.link, &host.signer, subject, Verb::Abort).await?;
    match conclude(&host.link, end)? {
        End::Done { message, .. } => Ok(message),
        _ => Ok(String::new()),
    }
}
