//! `appliance promote` and `appliance abort`: what becomes of a canary.

use appliance_push::change::{Expectation, Verb};
use futures_util::future::join_all;

use crate::developer::change::{conclude, submit};
use crate::developer::fleet::{Host, Way};
use crate::developer::project::Project;
use crate::developer::reach::ReachArgs;
use crate::globals::Globals;
use crate::ui;
use crate::wire::End;

/// Decide about the canary
#[derive(Debug, clap::Args)]
pub struct DecideArgs {
    #[command(flatten)]
    reach: ReachArgs,
}

/// Gives the canary all visitors, on every host.
///
/// # Errors
/// When a host cannot be reached, has no canary, or its release goes back while it is watched.
pub async fn promote(args: &DecideArgs, globals: &Globals) -> anyhow::Result<()> {
    decide(args, globals, &Verb::Promote).await
}

/// Takes the canary away, on every host.
///
/// # Errors
/// When a host cannot be reached or has no canary.
pub async fn abort(args: &DecideArgs, globals: &Globals) -> anyhow::Result<()> {
    decide(args, globals, &Verb::Abort).await
}

async fn decide(args: &DecideArgs, globals: &Globals, verb: &Verb) -> anyhow::Result<()> {
    let project = Project::open(globals)?;
    let way = Way {
        project: &project,
        reach: &args.reach,
        settings: project.ssh(),
    };
    let hosts = way.connect(&project.connecting(globals)?).await?;
    let ends = join_all(hosts.iter().map(|host| decide_one(&way, host, verb))).await;
    // Every host is told of, and the first failure is the command's.
    let mut outcome = Ok(());
    for end in ends {
        if let Err(error) = end {
            match outcome {
                Ok(()) => outcome = Err(error),
                Err(_) => ui::error(&format!("{error:#}")),
            }
        }
    }
    outcome
}

async fn decide_one(way: &Way<'_>, host: &Host, verb: &Verb) -> anyhow::Result<()> {
    let step = ui::step(&format!("{}: {}", host.name, verb.name()));
    let mut subject = way.subject(host)?;
    subject.expects = Expectation::Any;
    let end = submit(&host.link, &host.signer, subject, verb.clone()).await?;
    match conclude(&host.link, end) {
        Ok(End::Done { message, .. }) => step.done(&message),
        Ok(_) => step.done(""),
        Err(error) => {
            step.failed();
            return Err(error);
        }
    }
    Ok(())
}
