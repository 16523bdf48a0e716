//! `appliance promote` and `appliance abort`: what becomes of a canary.

use std::time::Duration;

use appliance_push::change::{Expectation, Verb};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::developer::canary::{Standing, agreed, brings, newest};
use crate::developer::change::{conclude, submit};
use crate::developer::fleet::{self, Host, Way, take_back};
use crate::developer::project::Project;
use crate::developer::reach::ReachArgs;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::End;

/// Time between two looks at the canaries of several hosts.
const PAUSE: Duration = Duration::from_secs(2);

/// Decide about the canary
#[derive(Debug, clap::Args)]
pub struct DecideArgs {
    #[command(flatten)]
    reach: ReachArgs,
}

/// Gives the canary all visitors, on every host or on none.
///
/// # Errors
/// When a host cannot be reached, the hosts do not all have the same canary (nothing is changed then), or one of them
/// goes back: then all have.
pub async fn promote(args: &DecideArgs, globals: &Globals) -> anyhow::Result<()> {
    let project = Project::open(globals)?;
    let way = Way {
        project: &project,
        reach: &args.reach,
        settings: project.ssh(),
    };
    let hosts = way.connect(&project.connecting(globals)?).await?;
    agreed(hosts.iter().map(|host| (host.name.as_str(), &host.app)))?;
    promote_all(&way, hosts).await
}

async fn promote_all(way: &Way<'_>, hosts: Vec<Host>) -> anyhow::Result<()> {
    match hosts.as_slice() {
        // Its agent goes on by itself, whatever becomes of us.
        [host] => promote_one(way, host).await,
        _ => fleet::promote(way, hosts).await,
    }
}

async fn promote_one(way: &Way<'_>, host: &Host) -> anyhow::Result<()> {
    let step = ui::step(&format!("{}: promote", host.name));
    let mut subject = way.subject(host)?;
    subject.expects = Expectation::Any;
    let end = submit(&host.link, &host.signer, subject, Verb::Promote).await;
    match end.and_then(|end| conclude(&host.link, end)) {
        Ok(End::Done { message, .. }) => step.done(&message),
        Ok(_) => step.done(""),
        Err(error) => {
            step.failed();
            return Err(error);
        }
    }
    Ok(())
}

/// Takes back, on every host, what has not settled: a canary, or a rollout that is in progress.
///
/// A host where there is nothing to take back is as it should be, as long as there is one where there is.
///
/// # Errors
/// When a host cannot be reached, or none has a canary or a rollout in progress.
pub async fn abort(args: &DecideArgs, globals: &Globals) -> anyhow::Result<()> {
    let project = Project::open(globals)?;
    let way = Way {
        project: &project,
        reach: &args.reach,
        settings: project.ssh(),
    };
    let mut hosts = way.connect(&project.connecting(globals)?).await?;
    let in_progress = |host: &Host| Standing::of(&host.app).is_in_progress();
    if hosts.iter().any(in_progress) {
        hosts.retain(|host| {
            let stays = in_progress(host);
            if !stays {
                ui::note(&format!("{}: nothing to take back", host.name));
            }
            stays
        });
    }
    // Where there is nothing anywhere, the hosts say so themselves.
    abort_all(&way, &hosts.iter().collect::<Vec<_>>()).await
}

async fn abort_all(way: &Way<'_>, hosts: &[&Host]) -> anyhow::Result<()> {
    let abort = async |host: &Host| {
        let step = ui::step(&format!("{}: abort", host.name));
        match take_back(way, host).await {
            Ok(message) => step.done(&message),
            // Hosts of one push go back together, so this one may have been faster than we were.
            Err(_) if went_back(way, host).await => step.done("went back with the others"),
            Err(error) => {
                step.failed();
                return Err(error);
            }
        }
        Ok(())
    };
    let ends = join_all(hosts.iter().map(|host| abort(host))).await;
    first_failure(ends)
}

/// Whether the rollout that was in progress on a host has gone back since.
async fn went_back(way: &Way<'_>, host: &Host) -> bool {
    let then = host.app.rollout.as_ref();
    let now = way.app(&host.link).await.ok().and_then(|app| app.rollout);
    match (then, now) {
        (Some(then), Some(now)) => {
            then.phase != "reverted" && now.phase == "reverted" && now.number == then.number
        }
        _ => false,
    }
}

/// Every host's failure is told, and the first is the command's.
fn first_failure(ends: Vec<anyhow::Result<()>>) -> anyhow::Result<()> {
    let all = ends.len();
    let mut failures: Vec<_> = ends.into_iter().filter_map(Result::err).collect();
    if failures.is_empty() {
        return Ok(());
    }
    if failures.len() < all {
        ui::warn("the hosts may serve different releases now; appliance status shows which");
    }
    let first = failures.remove(0);
    for error in failures {
        ui::error(&format!("{error:#}"));
    }
    Err(first)
}

/// Stays with the canary of several hosts for as long as `--canary-for` says, and then promotes it on all of them.
///
/// Each agent watches its own visitors; when one takes its canary back, the others' are taken back as well.
/// Whoever leaves before the end leaves the canary as it is.
///
/// # Errors
/// When a host takes its canary back, cannot be asked at the end, or the promotion fails.
pub async fn hold(way: &Way<'_>, hosts: &[&Host], version: &str, time: Duration) -> anyhow::Result<()> {
    ui::note(&format!(
        "the canary is promoted on all hosts in {} s; with Ctrl-C it stays as it is: appliance promote, or appliance abort",
        time.as_secs()
    ));
    let until = Instant::now() + time;
    let mut links: Vec<_> = hosts.iter().map(|host| host.link.clone()).collect();
    // What was just pushed, as each host counts it.
    let mut pushed: Option<Vec<_>> = None;
    loop {
        tokio::time::sleep(PAUSE.min(until.saturating_duration_since(Instant::now()))).await;
        let over = Instant::now() >= until;
        let asked = join_all(links.iter().map(|link| way.app(link))).await;
        let mut apps = Vec::new();
        for ((host, asked), link) in hosts.iter().zip(asked).zip(&mut links) {
            match asked {
                Ok(app) => apps.push(app),
                Err(error) if over => {
                    return Err(failure(
                        Kind::Unreachable,
                        format!(
                            "{}: {error:#}; the canary stays as it is on every host",
                            host.name
                        ),
                    )
                    .hint("appliance promote, or appliance abort")
                    .into());
                }
                Err(_) => {
                    if let Ok(again) = way.reach.connect(&host.name, &way.settings).await {
                        *link = again;
                    }
                }
            }
        }
        if apps.len() < hosts.len() {
            continue;
        }
        let standings: Vec<_> = apps.iter().map(Standing::of).collect();
        let pushed = pushed.get_or_insert_with(|| apps.iter().map(newest).collect());
        let gone: Vec<_> = hosts
            .iter()
            .zip(apps.iter().zip(&*pushed))
            .filter(|(_, (app, number))| !brings(app, **number))
            .map(|(host, _)| host.name.clone())
            .collect();
        if !gone.is_empty() {
            let stay: Vec<&Host> = hosts
                .iter()
                .zip(&standings)
                .filter(|(_, standing)| standing.is_in_progress())
                .map(|(host, _)| *host)
                .collect();
            abort_all(way, &stay).await?;
            return Err(failure(
                Kind::Reverted,
                format!(
                    "the canary {version} is gone from {}, so it was taken back on every host",
                    gone.join(", ")
                ),
            )
            .hint("appliance status, which tells why")
            .into());
        }
        if !standings.iter().any(Standing::is_canary) {
            // Somebody promoted it before its time.
            return Ok(());
        }
        if over {
            let fresh = connected(way, hosts).await?;
            return promote_all(way, fresh).await;
        }
    }
}

/// The same hosts on connections that live.
async fn connected(way: &Way<'_>, hosts: &[&Host]) -> anyhow::Result<Vec<Host>> {
    let names: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
    way.connect(&names).await
}
