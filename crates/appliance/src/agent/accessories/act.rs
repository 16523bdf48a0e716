//! What each action of a signed change does with an accessory.

use std::sync::Arc;
use std::time::Duration;

use appliance_accessories::{Goal, Kind};
use appliance_push::change::{Accessory, AccessoryAction, AccessoryName};
use appliance_push::trust::Verified;
use jiff::Timestamp;

use super::tunnel::{LIFE, Ticket};
use super::{OURSELVES, Which};
use crate::agent::drive::Audience;
use crate::agent::lease::{Holder, Lease};
use crate::agent::{Agent, chain};
use crate::failure::{Failure, Kind as FailureKind, failure};
use crate::wire::{End, Event};

/// Longest wait for a look of the keeper to end.
const KEEPER: Duration = Duration::from_secs(60);
/// Between two tries to get the lease.
const PAUSE: Duration = Duration::from_millis(100);

/// Carries out one action on one accessory of `app`.
pub async fn act(
    agent: &Arc<Agent>,
    verified: &Verified,
    app: &str,
    name: &AccessoryName,
    action: &AccessoryAction,
    audience: &Audience,
) -> anyhow::Result<End> {
    let which = Which {
        app: app.to_owned(),
        name: name.to_string(),
    };
    let signer = verified.fingerprint.to_string();
    let outcome = match action {
        AccessoryAction::Tunnel { port } => agent.sell_tunnel(&which, *port, &signer),
        action => {
            let lease = agent.wait_for_lease(&which, &signer, action.name()).await;
            let outcome = match lease {
                Ok(_lease) => agent.change_accessory(&which, verified, action, audience).await,
                Err(holder) => {
                    return Ok(End::Refused {
                        code: "busy".to_owned(),
                        message: format!(
                            "{which} is being changed by {} ({}) since {}",
                            holder.owner, holder.verb, holder.since
                        ),
                        next: "try again in a moment; appliance accessory details shows how it is".to_owned(),
                    });
                }
            };
            agent.accessories.wake.notify_one();
            outcome
        }
    };
    Ok(match outcome {
        Ok(end) => end,
        Err(error) => told(&error),
    })
}

/// A refusal as such, any other error as a failure.
fn told(error: &anyhow::Error) -> End {
    let message = chain(&**error);
    let next = |failure: &Failure, default: &str| {
        failure
            .hints
            .first()
            .cloned()
            .unwrap_or_else(|| default.to_owned())
    };
    match error.downcast_ref::<Failure>() {
        Some(failure) if failure.kind == FailureKind::Refused => End::Refused {
            code: "accessory".to_owned(),
            message,
            next: next(failure, "appliance accessory details all"),
        },
        Some(failure) => End::Failed {
            message,
            next: next(failure, "appliance accessory details all"),
        },
        None => End::Failed {
            message,
            next: "appliance accessory details all".to_owned(),
        },
    }
}

fn done(message: impl Into<String>) -> End {
    End::Done {
        release: None,
        message: message.into(),
    }
}

pub(super) fn not_booted(which: &Which) -> anyhow::Error {
    failure(
        FailureKind::Refused,
        format!("{which} was not booted on this host"),
    )
    .hint(format!("appliance accessory boot {}", which.name))
    .into()
}

impl Agent {
    /// The lease; the keeper's own looks are short, so they are waited for.
    async fn wait_for_lease(&self, which: &Which, owner: &str, verb: &str) -> Result<Lease, Holder> {
        let deadline = tokio::time::Instant::now() + KEEPER;
        loop {
            match self.lease_accessory(which, owner, verb) {
                Err(holder) if holder.owner == OURSELVES && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn change_accessory(
        self: &Arc<Self>,
        which: &Which,
        verified: &Verified,
        action: &AccessoryAction,
        audience: &Audience,
    ) -> anyhow::Result<End> {
        let record = self.accessories.records.read(which)?;
        let upgrading = record
            .upgrade
            .as_ref()
            .is_some_and(|moving| moving.state.in_progress());
        if upgrading {
            self.resume_upgrade(which).await?;
        }
        if let Some(definition) = action.definition() {
            self.check_name(which, definition).await?;
        }
        let definition = || {
            action
                .definition()
                .cloned()
                .map(Box::new)
                .or_else(|| record.definition.clone())
                .ok_or_else(|| not_booted(which))
        };
        match action {
            AccessoryAction::Set(definition) => {
                if record.definition.is_none() {
                    return Ok(done(format!("{which} was not booted on this host")));
                }
                self.remember(which, verified, definition, None)?;
                Ok(done(format!("{which}: the configuration is noted")))
            }
            AccessoryAction::Boot(definition) => {
                self.boot_accessory(which, verified, definition, audience).await
            }
            AccessoryAction::Reboot { .. } => {
                let definition = definition()?;
                self.reboot_accessory(which, verified, &definition, audience)
                    .await
            }
            AccessoryAction::PullImage { .. } => {
                let definition = definition()?;
                let opened = self.open_accessory(&definition)?;
                let image = self.newest_image(&definition, &opened, audience).await?;
                let runs = record
                    .made
                    .as_ref()
                    .filter(|made| made.pin.id != image.pin.id)
                    .map(|made| {
                        format!(
                            "; {which} runs {} until: appliance accessory upgrade {}",
                            made.pin.short(),
                            which.name
                        )
                    });
                Ok(done(format!(
                    "{} is {}{}",
                    definition.image,
                    image.pin.short(),
                    runs.unwrap_or_default()
                )))
            }
            AccessoryAction::Start => self.start_accessory(which).await,
            AccessoryAction::Stop => self.stop_accessory(which).await,
            AccessoryAction::Restart => {
                let record = self.accessories.records.read(which)?;
                let found = self
                    .container_of(&record)
                    .await?
                    .ok_or_else(|| not_booted(which))?;
                self.docker.stop(&found.id.0, None).await?;
                self.start_accessory(which).await
            }
            AccessoryAction::Remove { data, no_backup, .. } => {
                if record.definition.is_none() {
                    return Err(not_booted(which));
                }
                self.remove_accessory(which, *data, *data && !*no_backup, audience)
                    .await
                    .map(done)
            }
            AccessoryAction::Upgrade { no_backup, .. } => {
                let definition = definition()?;
                self.check_ports(&definition, audience).await?;
                self.upgrade_accessory(which, definition, *no_backup, audience)
                    .await
            }
            AccessoryAction::UpgradeConfirm { .. } => self.confirm_upgrade(which, audience).await,
            AccessoryAction::UpgradeUndo { no_backup, .. } => {
                self.undo_upgrade(which, *no_backup, audience).await
            }
            AccessoryAction::Exec { .. } | AccessoryAction::Tunnel { .. } => {
                anyhow::bail!("this needs no lease")
            }
        }
    }

    fn remember(
        &self,
        which: &Which,
        verified: &Verified,
        definition: &Accessory,
        goal: Option<Goal>,
    ) -> anyhow::Result<()> {
        self.accessories.records.update(which, |record| {
            record.definition = Some(Box::new(definition.clone()));
            record.signer = Some(verified.fingerprint.clone());
            record.at = Timestamp::now();
            record.goal = goal.unwrap_or(record.goal);
        })?;
        Ok(())
    }

    async fn boot_accessory(
        &self,
        which: &Which,
        verified: &Verified,
        definition: &Accessory,
        audience: &Audience,
    ) -> anyhow::Result<End> {
        self.check_ports(definition, audience).await?;
        let opened = self.open_accessory(definition)?;
        let record = self.accessories.records.read(which)?;
        let found = match self.container_of(&record).await? {
            Some(found) => Some(found),
            // Nobody told us of it yet, such as one that Kamal booted.
            None => self.docker.inspect(definition.container.as_str()).await?,
        };
        if let (Some(found), Some(_)) = (&found, &record.made) {
            self.remember(which, verified, definition, Some(Goal::Running))?;
            self.docker.start(&found.id.0).await?;
            let record = self.accessories.records.read(which)?;
            let drift = self.drift(which, &record, Some(found)).await;
            return Ok(done(if drift.is_empty() {
                format!("{which} runs already")
            } else {
                format!(
                    "{which} runs already, but not as configured ({}); to apply: appliance accessory reboot {}",
                    drift.join("; "),
                    which.name
                )
            }));
        }
        let step = |phase: &str, detail: String| Event::Phase {
            phase: phase.to_owned(),
            detail,
        };
        audience.tell(step("image", definition.image.clone())).await;
        let image = self.pinned_image(&record, definition, &opened).await?;
        // Found before anything is remembered, or made.
        self.accessory_spec(which, definition, &opened, &record.sources, &image)?;
        self.remember(which, verified, definition, Some(Goal::Running))?;
        if let Some(found) = found {
            let foreign = self.adopt(which, definition, &opened, &image, &found).await?;
            self.docker.start(&found.id.0).await?;
            return Ok(done(if foreign.is_empty() {
                format!(
                    "{which}: the container that was there is as configured, and looked after from now on"
                )
            } else {
                format!(
                    "{which}: a container of that name was there and is looked after from now on, but it is not as configured ({}); \
                     to apply: appliance accessory reboot {}",
                    foreign.join("; "),
                    which.name
                )
            }));
        }
        audience
            .tell(step("starting", definition.container.to_string()))
            .await;
        let id = self
            .create_accessory(which, definition, &record.sources, &image, audience)
            .await?;
        self.settle(definition, &id).await?;
        Ok(done(format!(
            "{which} runs {} ({})",
            definition.image,
            image.pin.short()
        )))
    }

    async fn reboot_accessory(
        &self,
        which: &Which,
        verified: &Verified,
        definition: &Accessory,
        audience: &Audience,
    ) -> anyhow::Result<End> {
        self.check_ports(definition, audience).await?;
        let opened = self.open_accessory(definition)?;
        let mut record = self.accessories.records.read(which)?;
        if record.made.is_none()
            && let Some(found) = self.docker.inspect(definition.container.as_str()).await?
        {
            // Somebody else's container: where its data is has to be known before it goes.
            let image = self.pinned_image(&record, definition, &opened).await?;
            self.remember(which, verified, definition, Some(Goal::Running))?;
            self.adopt(which, definition, &opened, &image, &found).await?;
            record = self.accessories.records.read(which)?;
        }
        let image = self.pinned_image(&record, definition, &opened).await?;
        self.check_same_major(&record, definition, &opened, &image)
            .await?;
        self.accessory_spec(which, definition, &opened, &record.sources, &image)?;
        self.remember(which, verified, definition, Some(Goal::Running))?;
        audience
            .tell(Event::Phase {
                phase: "replacing".to_owned(),
                detail: definition.container.to_string(),
            })
            .await;
        let id = self
            .replace_accessory(which, definition, &record.sources, &image, audience)
            .await?;
        self.settle(definition, &id).await?;
        Ok(done(format!(
            "{which} runs as configured, with {} ({})",
            definition.image,
            image.pin.short()
        )))
    }

    async fn start_accessory(&self, which: &Which) -> anyhow::Result<End> {
        let record = self.accessories.records.read(which)?;
        let found = self
            .container_of(&record)
            .await?
            .ok_or_else(|| not_booted(which))?;
        self.accessories
            .records
            .update(which, |record| record.goal = Goal::Running)?;
        self.accessories.note(which, |live| {
            live.backoff = appliance_accessories::Backoff::default()
        });
        self.docker.start(&found.id.0).await?;
        if let Some(definition) = &record.definition {
            self.settle(definition, &found.id.0).await?;
        }
        Ok(done(format!("{which} runs")))
    }

    async fn stop_accessory(&self, which: &Which) -> anyhow::Result<End> {
        let record = self.accessories.records.read(which)?;
        let found = self
            .container_of(&record)
            .await?
            .ok_or_else(|| not_booted(which))?;
        self.accessories
            .records
            .update(which, |record| record.goal = Goal::Stopped)?;
        if let Some(definition) = &record.definition {
            self.unroute_accessory(definition).await?;
        }
        self.docker.stop(&found.id.0, None).await?;
        Ok(done(format!(
            "{which} is stopped until: appliance accessory start {}",
            which.name
        )))
    }

    fn sell_tunnel(&self, which: &Which, port: Option<u16>, holder: &str) -> anyhow::Result<End> {
        let record = self.accessories.records.read(which)?;
        let Some(definition) = &record.definition else {
            return Err(not_booted(which));
        };
        let published = || {
            super::making::ports(definition)
                .ok()?
                .first()
                .map(|(publish, _, _)| publish.container_port)
        };
        let env = definition
            .env_clear
            .keys()
            .chain(definition.env_secret.keys())
            .map(|name| (name.to_string(), String::new()))
            .collect();
        let port = port
            .or_else(published)
            .or_else(|| Kind::of(&definition.image, &env).port())
            .ok_or_else(|| {
                failure(
                    FailureKind::Refused,
                    format!("which port of {which}? Its configuration names none"),
                )
                .hint(format!("appliance tunnel {} --to PORT", which.name))
            })?;
        let now = Timestamp::now();
        let expires = now.saturating_add(LIFE).unwrap_or(Timestamp::MAX);
        let ticket = Ticket {
            which: which.clone(),
            port,
            holder: holder.to_owned(),
            expires,
        };
        Ok(End::Token {
            token: format!("{port}.{}", self.accessories.tickets.sell(ticket, now)),
            expires_at: expires,
        })
    }
}
