//! Looks at the places of backups when a configuration arrives, and before somebody waits for one: wrong credentials, a
//! bucket that is not there, and an address that does not answer are told at once, not at the first scheduled run.

use std::time::Duration;

use appliance_backup::names;
use appliance_backup::repository::RepositoryError;
use appliance_backup::store::{Patience, StoreErrorKind};
use bytes::Bytes;
use jiff::Timestamp;

use super::jobs::Job;
use crate::agent::Agent;

/// For what must not keep anybody waiting.
pub(super) const SHORT: Patience = Patience {
    limit: Duration::from_secs(5),
    first: Duration::from_millis(250),
    longest: Duration::from_secs(1),
};
/// For all places of an app together.
const LIMIT: Duration = Duration::from_secs(15);
/// What is stored and removed again.
const CONTENT: &[u8] = b"appliance looked whether it can store here\n";

/// What is wrong with the places of an app's backups, each a sentence with the next command. Tells what it found to the
/// record of each job as well.
pub async fn look(agent: &Agent, app: &str) -> Vec<String> {
    let jobs = match agent.backup_jobs_of(app) {
        Ok(jobs) => jobs,
        Err(error) => return vec![format!("the backups of {app} cannot be told: {error:#}")],
    };
    let mut wrong = Vec::new();
    // All at once: many places of one address that does not answer take no longer than one.
    let looking = jobs
        .iter()
        .map(|job| tokio::time::timeout(LIMIT, stores(agent, job)));
    let looked = futures_util::future::join_all(looking).await;
    for (job, looked) in jobs.iter().zip(looked) {
        let looked = match looked {
            Ok(looked) => looked,
            Err(_) => Err(anyhow::anyhow!("no answer within {} s", LIMIT.as_secs())),
        };
        let now = Timestamp::now();
        let failed = looked.err().map(|error| format!("{error:#}"));
        agent.backups.note(&job.key(), |record| {
            record.probe_failed = failed.clone().map(|why| (now, why));
        });
        if let Some(why) = failed {
            wrong.push(said(job, &why));
        }
    }
    wrong
}

/// The sentence for people.
pub(super) fn said(job: &Job, why: &str) -> String {
    let next = match job.spec.settings.to.0.starts_with("s3://") {
        true => "look at to, endpoint, region and the credentials in .kamal/secrets, then: appliance push",
        false => "look at to in x-appliance/backups, then: appliance push",
    };
    format!("the backups of {} cannot be stored: {why}; {next}", job.key())
}

/// Opens the place, stores a small object there, reads it back and removes it.
async fn stores(agent: &Agent, job: &Job) -> anyhow::Result<()> {
    let repository = agent.repository_within(job, SHORT).await?;
    let store = &repository.store;
    let key = &names::probe(&repository.keys.signer.public(), &job.app, &job.spec.accessory);
    match store.put_new(key, Bytes::from_static(CONTENT)).await {
        // Left by one who may not delete: that it is refused for this reason shows as much.
        Err(error) if error.kind == StoreErrorKind::Exists => {}
        stored => stored?,
    }
    let found = store.read(key, 0, CONTENT.len() as u64 + 1).await?;
    anyhow::ensure!(found == CONTENT, "{key} does not come back as it was stored");
    match store.delete(key).await {
        // Who may store and not delete is how a stolen host is kept from its backups.
        Err(error) if error.kind == StoreErrorKind::Denied => Ok(()),
        removed => Ok(removed?),
    }
}

/// Says, before somebody waits for it, that a place does not answer.
pub(super) async fn silent(agent: &Agent, job: &Job) -> Option<String> {
    let opened = tokio::time::timeout(LIMIT, agent.repository_within(job, SHORT)).await;
    let why = match opened {
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => {
            let outage = error.chain().any(|cause| {
                matches!(
                    cause.downcast_ref(),
                    Some(RepositoryError::Store(error)) if error.kind == StoreErrorKind::Outage
                )
            });
            // What trying again does not help is told by the attempt itself.
            if !outage {
                return None;
            }
            format!("{error:#}")
        }
        Err(_) => format!("no answer within {} s", LIMIT.as_secs()),
    };
    let minutes = Patience::default().limit.as_secs() / 60;
    Some(format!(
        "{why}; it is tried for {minutes} minutes, Ctrl-C does not end it"
    ))
}
