//! What may cost data takes a backup first.

use std::sync::Arc;

use appliance_push::change::BackupAction;

use super::Which;
use crate::agent::drive::Audience;
use crate::agent::{Agent, backups};
use crate::wire::{End, Event};

impl Agent {
    /// Takes a backup of `which`, or says that none is configured.
    ///
    /// # Errors
    /// When backups are configured and this one failed: the risk is then not taken.
    pub(super) async fn back_up_accessory(
        self: &Arc<Self>,
        which: &Which,
        audience: &Audience,
    ) -> anyhow::Result<()> {
        let jobs = self.backup_jobs_of(&which.app)?;
        if !jobs.iter().any(|job| job.spec.accessory == which.name) {
            let message = format!(
                "no backup of {which} was taken: none is configured (x-appliance: backups: {})",
                which.name
            );
            audience.tell(Event::Warning { message }).await;
            return Ok(());
        }
        match backups::change(self, &which.app, &which.name, &BackupAction::Now, audience).await? {
            End::Done { message, .. } => {
                let record = self.backups.record(&format!("{}/{}", which.app, which.name));
                // One that is not like those before, or does not restore, is no reason to give the data up.
                let doubt = record.odd.or(record.drill_failed);
                if let Some((_, why)) = doubt {
                    anyhow::bail!(
                        "the backup that comes first is not good: {why}; next: appliance backup list, and if that is as \
                         it should be: appliance backup prune {} --yes",
                        which.name
                    );
                }
                let phase = "backed-up".to_owned();
                audience
                    .tell(Event::Phase {
                        phase,
                        detail: message,
                    })
                    .await;
                Ok(())
            }
            End::Refused { message, .. } | End::Failed { message, .. } => {
                anyhow::bail!("the backup that comes first failed: {message}")
            }
            other => anyhow::bail!("the backup that comes first ended with {other:?}"),
        }
    }
}
