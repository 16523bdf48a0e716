//! The seam to backups: what may cost data asks for one first.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Accessories, Which};
use crate::agent::Agent;
use crate::agent::drive::Audience;
use crate::wire::Event;

/// Takes a backup before something that could cost data.
pub trait BeforeRisk: Send + Sync {
    /// Takes a backup of the accessory now.
    ///
    /// Answers with one sentence about it, or `None` if no backups are configured for this accessory.
    ///
    /// # Errors
    /// When backups are configured and this one failed: the risk is then not taken.
    fn back_up<'a>(
        &'a self,
        agent: &'a Arc<Agent>,
        app: &'a str,
        accessory: &'a str,
    ) -> BoxFuture<'a, anyhow::Result<Option<String>>>;
}

impl Accessories {
    /// Takes a backup of `which`, or says that there is none.
    ///
    /// # Errors
    /// When backups are configured and this one failed.
    pub(super) async fn back_up(
        &self,
        agent: &Arc<Agent>,
        which: &Which,
        audience: &Audience,
    ) -> anyhow::Result<()> {
        let taken = match self.backup.get() {
            Some(backup) => backup.back_up(agent, &which.app, &which.name).await?,
            None => None,
        };
        let event = match taken {
            Some(message) => Event::Phase {
                phase: "backed-up".to_owned(),
                detail: message,
            },
            None => Event::Warning {
                message: format!(
                    "no backup of {which} was taken: none is configured (x-appliance: backups: {})",
                    which.name
                ),
            },
        };
        audience.tell(event).await;
        Ok(())
    }
}
