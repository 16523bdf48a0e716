//! Backups that the retention keeps because somebody said so.

use anyhow::bail;
use appliance_backup::names::BackupId;
use jiff::Timestamp;

use super::jobs::Job;
use crate::agent::Agent;

/// Keeps a backup until it is released, or releases it.
///
/// # Errors
/// When there is no such backup, or its place cannot be reached.
pub(super) async fn hold(agent: &Agent, job: &Job, backup: &str, held: bool) -> anyhow::Result<String> {
    let id = BackupId::parse(backup)?;
    let repository = agent.repository(job).await?;
    for (subject, catalogue) in job.subjects(&repository).await? {
        let Some(found) = catalogue.backups.iter().find(|found| found.manifest.id == id) else {
            continue;
        };
        let shown = format!("{subject} {id}");
        return Ok(match (held, found.held) {
            (true, true) => format!("{shown} is kept already"),
            (true, false) => {
                repository.hold(found, Timestamp::now()).await?;
                format!(
                    "{shown} is kept until: appliance backup release {} {id}",
                    job.spec.accessory
                )
            }
            (false, _) => match repository.release(found).await? {
                0 => format!("{shown} was not held"),
                _ => format!("{shown} is kept as long as the retention says"),
            },
        });
    }
    bail!(
        "there is no backup {id} of {}; next: appliance backup list",
        job.key()
    )
}
