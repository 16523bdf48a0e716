//! `appliance lock`: keep everybody from changing the app, as in Kamal. Commands need no lock: the agent holds a lease for each.

use appliance_push::change::{Expectation, Verb};

use crate::developer::change::{conclude, submit};
use crate::developer::fleet::Way;
use crate::developer::project::Project;
use crate::developer::reach::ReachArgs;
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// Keep others from changing the app, see who does, let them again
#[derive(Debug, clap::Subcommand)]
pub enum LockCommand {
    /// Show who holds the lock, and who changes the app at this moment
    Status {
        #[command(flatten)]
        reach: ReachArgs,
    },
    /// Let nobody change the app until the lock is released
    Acquire {
        #[command(flatten)]
        reach: ReachArgs,
        /// Why, for those who are turned away
        #[arg(short, long)]
        message: String,
    },
    /// Let the app be changed again, whoever locked it
    Release {
        #[command(flatten)]
        reach: ReachArgs,
    },
}

/// Carries it out on every host of the app, so that the lock holds wherever a change begins.
///
/// # Errors
/// When a host cannot be reached or refuses.
pub async fn run(command: &LockCommand, globals: &Globals) -> anyhow::Result<()> {
    let project = Project::open(globals)?;
    let (reach, verb) = match command {
        LockCommand::Status { reach } => (reach, None),
        LockCommand::Acquire { reach, message } => (
            reach,
            Some(Verb::LockAcquire {
                message: message.clone(),
                version: project.loaded.config.version.clone(),
                by: project.performer.clone(),
            }),
        ),
        LockCommand::Release { reach } => (reach, Some(Verb::LockRelease)),
    };
    let way = Way {
        project: &project,
        reach,
        settings: project.ssh(),
    };
    for host in way.connect(&project.connecting(globals)?).await? {
        let Some(verb) = &verb else {
            status(&host.app);
            continue;
        };
        let mut subject = way.subject(&host)?;
        subject.expects = Expectation::Any;
        let end = submit(&host.link, &host.signer, subject, verb.clone()).await?;
        if let End::Done { message, .. } = conclude(&host.link, end)? {
            ui::line(&message);
        }
    }
    Ok(())
}

fn status(app: &wire::App) {
    match (&app.lock, &app.changing) {
        (Some(lock), _) => {
            ui::line(&format!("Locked by: {} at {}", lock.by, lock.at));
            ui::line(&format!("Version: {}", lock.version));
            ui::line(&format!("Message: {}", lock.message));
        }
        (None, Some(holder)) => ui::line(&format!(
            "{} is being changed by {} ({}) since {}",
            app.app, holder.owner, holder.verb, holder.since
        )),
        (None, None) => ui::line("There is no deploy lock"),
    }
}
