//! What may cost data takes a backup first.

use std::sync::Arc;

use appliance_push::change::BackupAction;
use jiff::Timestamp;

use super::Which;
use crate::agent::backups::Doubt;
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
        let begun = Timestamp::now();
        match backups::change(self, &which.app, &which.name, &BackupAction::Now, audience).await? {
            End::Done { message, .. } => {
                self.believe_backup(which, begun, audience).await?;
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

    /// That the backup which was just made, since `begun`, is one to rely on: one that is not like those before, or does
    /// not restore, is no reason to give the data up.
    async fn believe_backup(
        self: &Arc<Self>,
        which: &Which,
        begun: Timestamp,
        audience: &Audience,
    ) -> anyhow::Result<()> {
        let Which { app, name } = which;
        let doubt = || -> anyhow::Result<Doubt> {
            let record = self.backups.record(&format!("{app}/{name}"));
            let record = record.map_err(|unread| {
                anyhow::anyhow!(
                    "whether the backup that comes first is one to rely on cannot be told: {}; to go on all the same: \
                     --no-backup",
                    unread.said()
                )
            })?;
            Ok(record.doubt())
        };
        let mut found = doubt()?;
        // What failed is not tried again for a day by itself; its cause may be mended.
        if let Doubt::Drill(at, _) = &found
            && *at < begun
        {
            let drill = BackupAction::Drill { backup: None };
            match backups::change(self, app, name, &drill, audience).await {
                Ok(End::Done { .. }) => {}
                other => tracing::warn!("{which}: the drill did not go well: {other:?}"),
            }
            found = doubt()?;
        }
        match found {
            Doubt::None => Ok(()),
            Doubt::Room(why) => {
                let message = format!(
                    "the backup of {which} that comes first is restored by no drill, as there is no room for one: {why}"
                );
                audience.tell(Event::Warning { message }).await;
                Ok(())
            }
            Doubt::LeftOut(why) => {
                let message = format!("not every backup of {which} was restored by the last drill: {why}");
                audience.tell(Event::Warning { message }).await;
                Ok(())
            }
            Doubt::Odd(why) => anyhow::bail!(
                "the backup that comes first is not good: {why}; next: appliance backup list, and if that is as it should \
                 be: appliance backup prune {name} --yes"
            ),
            Doubt::Drill(_, why) => anyhow::bail!(
                "the backup that comes first is there, and its drill failed: {why}; next: appliance backup drill {name}; \
                 to go on all the same: --no-backup"
            ),
        }
    }
}
