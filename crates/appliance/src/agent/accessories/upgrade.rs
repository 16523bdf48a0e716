//! Drives an upgrade: writes its state down, carries out the order, and goes on; see `appliance_accessories::upgrade`.

use std::sync::Arc;

use appliance_accessories::upgrade::Stage;
use appliance_accessories::{Kind, Order, Side, Upgrade};
use appliance_push::change::Accessory;
use jiff::Timestamp;

use super::image::Found;
use super::record::{Moving, Record, Version};
use super::run::READY;
use super::{Opened, Which, hex8, making};
use crate::agent::drive::Audience;
use crate::agent::{Agent, chain, random};
use crate::failure::{self, failure};
use crate::wire::{End, Event};

/// How an upgrade is, in one sentence.
pub fn sentence(moving: &Moving) -> String {
    let (old, new) = (&moving.old.pin, &moving.new.pin);
    let way = format!(
        "from {} ({}) to {} ({})",
        old.image,
        old.short(),
        new.image,
        new.short()
    );
    let why = moving.state.why.as_deref().unwrap_or_default();
    match moving.state.stage {
        Stage::Kept => format!(
            "{way}: done, since {}; the data from before is kept until: appliance accessory upgrade {} --confirm (or --undo)",
            moment(moving.at),
            moving.new.definition.name
        ),
        Stage::Undone => format!(
            "{way}: taken back; what was written between {} and then is kept until: appliance accessory upgrade {} --confirm (or --undo, which brings it back)",
            moment(moving.at),
            moving.new.definition.name
        ),
        Stage::Finished => format!("{way}: done"),
        Stage::Returned => format!("{way}: went back: {why}"),
        Stage::BackClear | Stage::BackReplace | Stage::BackVerify | Stage::BackDrop => {
            format!("{way}: going back: {why}")
        }
        stage => format!("{way}: {stage:?}").to_lowercase(),
    }
}

fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

impl Agent {
    /// Moves an accessory to the newest image of its definition.
    ///
    /// # Errors
    /// When it cannot begin; how a begun one ends is in the answer.
    pub(super) async fn upgrade_accessory(
        self: &Arc<Self>,
        which: &Which,
        definition: Box<Accessory>,
        no_backup: bool,
        audience: &Audience,
    ) -> anyhow::Result<End> {
        let record = self.accessories.records.read(which)?;
        let Some(made) = &record.made else {
            return Err(failure(
                failure::Kind::Refused,
                format!("{which} was not booted on this host"),
            )
            .hint(format!("appliance accessory boot {}", which.name))
            .into());
        };
        if let Some(moving) = &record.upgrade
            && moving.state.waits()
        {
            return Err(failure(
                failure::Kind::Refused,
                format!("the upgrade of {which} before this one waits for a word"),
            )
            .hint(format!(
                "appliance accessory upgrade {} --confirm, or --undo",
                which.name
            ))
            .into());
        }
        let opened = self.open_accessory(&definition)?;
        let image = self.newest_image(&definition, &opened, audience).await?;
        let before = made.definition.clone().unwrap_or_else(|| definition.clone());
        if image.pin.id == made.pin.id {
            self.accessories
                .records
                .update(which, |record| record.pin = Some(image.pin.clone()))?;
            return Ok(End::Done {
                release: None,
                message: format!(
                    "{which} runs the newest {} ({})",
                    definition.image,
                    image.pin.short()
                ),
            });
        }
        let old_image = self
            .image_of(&made.pin, &before, &self.open_accessory(&before)?)
            .await?;
        let mut old = Version {
            definition: before,
            pin: old_image.pin.clone(),
            sources: record.sources.clone(),
            major: None,
            data: None,
        };
        let mut new = Version {
            definition: definition.clone(),
            pin: image.pin.clone(),
            sources: record.sources.clone(),
            major: None,
            data: None,
        };
        let env = super::postgres::env(
            &old.definition,
            &old_image,
            &self.open_accessory(&old.definition)?,
        )?;
        let mut on_copy = false;
        if Kind::of(&old.definition.image, &env) == Kind::Postgres {
            old.major = Some(self.postgres_major(&old_image).await?);
            new.major = Some(self.postgres_major(&image).await?);
            if new.major < old.major {
                return Err(failure(
                    failure::Kind::Refused,
                    format!(
                        "{} is PostgreSQL {}, and {which} runs {}: there is no way back by an upgrade",
                        definition.image,
                        new.major.unwrap_or_default(),
                        old.major.unwrap_or_default()
                    ),
                )
                .hint(format!(
                    "appliance accessory upgrade {} --undo, if it was upgraded",
                    which.name
                ))
                .into());
            }
            on_copy = new.major != old.major;
        }
        if on_copy {
            let left_out = self.plan_copy(which, &old_image, &image, &mut old, &mut new)?;
            for (target, right) in left_out {
                let message = format!(
                    "accessories/{}: {} keeps its data in {right}; {target} was the former server's, and is not mounted any more: \
                     write {right} in its place into the configuration",
                    which.name, definition.image
                );
                audience.tell(Event::Warning { message }).await;
            }
        }
        let moving = Moving {
            state: Upgrade::begin(on_copy),
            old,
            new,
            at: Timestamp::now(),
            no_backup,
        };
        self.accessories.records.update(which, |record| {
            record.definition = Some(definition);
            record.upgrade = Some(moving);
        })?;
        self.drive_upgrade(which, audience).await
    }

    /// Where the old data is and where the new goes. Answers with the paths at which the new server would see the old
    /// data, each with the one that its own data has: it must never, and the official images from 18 refuse to start then.
    fn plan_copy(
        &self,
        which: &Which,
        old_image: &Found,
        new_image: &Found,
        old: &mut Version,
        new: &mut Version,
    ) -> anyhow::Result<Vec<(String, String)>> {
        let old_data = self.data_mount(which, old, old_image)?;
        let new_data = self.data_mount(which, new, new_image)?;
        let mark = hex::encode(random::<2>());
        let major = new.major.unwrap_or_default();
        let source = if old_data.source.starts_with('/') {
            let name = format!("postgres-{major}-{mark}");
            self.accessories
                .directory(&new.definition)
                .join(name)
                .display()
                .to_string()
        } else {
            format!("{}-postgres-{major}-{mark}", new.definition.container)
        };
        let opened = self.open_accessory(&new.definition)?;
        let planned = self.accessory_spec(which, &new.definition, &opened, &new.sources, new_image)?;
        let mut left_out = Vec::new();
        for volume in &planned.volumes {
            let mut parts = volume.split(':');
            if let (Some(from), Some(target)) = (parts.next(), parts.next())
                && from == old_data.source
                && target.trim_end_matches('/') != new_data.target
            {
                new.sources.insert(
                    target.trim_end_matches('/').to_owned(),
                    making::NOWHERE.to_owned(),
                );
                left_out.push((target.to_owned(), new_data.target.clone()));
            }
        }
        new.sources.insert(new_data.target, source.clone());
        // A server of the old image never sees the new data, whatever its path inside.
        old.sources.insert(old_data.target, old_data.source.clone());
        old.data = Some(old_data.source);
        new.data = Some(source);
        Ok(left_out)
    }

    /// Keeps what serves, and deletes the data of the other side.
    ///
    /// # Errors
    /// When nothing waits for that word.
    pub(super) async fn confirm_upgrade(
        self: &Arc<Self>,
        which: &Which,
        audience: &Audience,
    ) -> anyhow::Result<End> {
        self.turn_upgrade(which, Upgrade::confirm)?;
        self.drive_upgrade(which, audience).await
    }

    /// Lets the other side serve again; what serves now is backed up first, and kept.
    ///
    /// # Errors
    /// When there is no way back, or the backup fails: nothing was touched then.
    pub(super) async fn undo_upgrade(
        self: &Arc<Self>,
        which: &Which,
        no_backup: bool,
        audience: &Audience,
    ) -> anyhow::Result<End> {
        let record = self.accessories.records.read(which)?;
        if record.upgrade.is_some_and(|moving| moving.state.waits()) && !no_backup {
            self.back_up_accessory(which, audience).await.map_err(|error| {
                failure(failure::Kind::Refused, format!("nothing was changed: {}", chain(&*error))).hint(format!(
                    "appliance accessory upgrade {} --undo --no-backup: what is there now is kept all the same",
                    which.name
                ))
            })?;
        }
        self.turn_upgrade(which, Upgrade::undo)?;
        self.drive_upgrade(which, audience).await
    }

    fn turn_upgrade(
        &self,
        which: &Which,
        turn: impl FnOnce(Upgrade) -> Option<Upgrade>,
    ) -> anyhow::Result<()> {
        let record = self.accessories.records.read(which)?;
        let turned = record
            .upgrade
            .as_ref()
            .and_then(|moving| turn(moving.state.clone()));
        let Some(state) = turned else {
            return Err(failure(
                failure::Kind::Refused,
                format!("no upgrade of {which} waits for a word"),
            )
            .hint(format!("appliance accessory details {}", which.name))
            .into());
        };
        self.accessories.records.update(which, |record| {
            if let Some(moving) = &mut record.upgrade {
                moving.state = state;
            }
        })?;
        Ok(())
    }

    /// Takes up an upgrade that an earlier agent left: it goes back, or finishes dropping the old data.
    ///
    /// # Errors
    /// When its state cannot be read or written.
    pub(super) async fn resume_upgrade(self: &Arc<Self>, which: &Which) -> anyhow::Result<()> {
        self.turn_upgrade(which, |state| Some(state.interrupted()))?;
        tracing::warn!("{which}: an upgrade was interrupted");
        match self.drive_upgrade(which, &Audience::nobody()).await? {
            End::Done { message, .. } => tracing::info!("{which}: {message}"),
            other => tracing::warn!("{which}: {other:?}"),
        }
        Ok(())
    }

    /// Carries out the orders, one after the other, until it waits for a word or is over.
    async fn drive_upgrade(self: &Arc<Self>, which: &Which, audience: &Audience) -> anyhow::Result<End> {
        loop {
            let record = self.accessories.records.read(which)?;
            let Some(moving) = record.upgrade else {
                anyhow::bail!("{which} is not being upgraded");
            };
            let Some(order) = moving.state.order() else {
                return Ok(ended(which, &moving));
            };
            audience
                .tell(Event::Phase {
                    phase: format!("{:?}", moving.state.stage).to_lowercase(),
                    detail: says(order, &moving),
                })
                .await;
            let going_back = moving.state.why.is_some();
            let outcome = self.carry_out(which, order, &moving, audience).await;
            let state = match &outcome {
                Ok(()) => moving.state.clone().done(),
                Err(error) => moving.state.clone().failed(chain(&**error)),
            };
            let stuck = state.stage == moving.state.stage;
            self.accessories.records.update(which, |record| {
                if let Some(moving) = &mut record.upgrade {
                    moving.state = state;
                }
            })?;
            if let Err(error) = outcome {
                let message = chain(&*error);
                tracing::warn!("{which}: {order:?}: {message}");
                if stuck {
                    let doing = if going_back {
                        "going back"
                    } else {
                        "dropping the old data"
                    };
                    return Ok(End::Failed {
                        message: format!("{which}: {doing} failed: {message}; it is tried again"),
                        next: format!("appliance accessory details {}", which.name),
                    });
                }
                audience
                    .tell(Event::Warning {
                        message: format!("{message}; going back"),
                    })
                    .await;
            }
        }
    }

    async fn carry_out(
        self: &Arc<Self>,
        which: &Which,
        order: Order,
        moving: &Moving,
        audience: &Audience,
    ) -> anyhow::Result<()> {
        match order {
            Order::Backup if moving.no_backup => Ok(()),
            Order::Backup => self.back_up_accessory(which, audience).await,
            Order::Stop => {
                let record = self.accessories.records.read(which)?;
                if let Some(found) = self.container_of(&record).await? {
                    self.docker.stop(&found.id.0, None).await?;
                }
                Ok(())
            }
            Order::Copy => self.copy_postgres(which, moving, audience).await,
            Order::Compare => self.compare_postgres(moving, audience).await,
            Order::ClearCopies => self.clear_copies(moving).await,
            Order::Replace(side) => {
                let version = version(moving, side);
                let opened = self.open_accessory(&version.definition)?;
                let image = self.image_of(&version.pin, &version.definition, &opened).await?;
                self.replace_accessory(which, &version.definition, &version.sources, &image, audience)
                    .await
                    .map(drop)
            }
            Order::Verify(side) => {
                let record = self.accessories.records.read(which)?;
                let id = record.made.map(|made| made.container).unwrap_or_default();
                self.await_well(&id, READY).await.map_err(|why| {
                    anyhow::anyhow!("{} is not well: {why}", version(moving, side).pin.image)
                })?;
                self.route_accessory(&version(moving, side).definition).await
            }
            Order::DropData(side) => {
                let version = version(moving, side);
                if let Some(data) = &version.data
                    && !self.drop_source(&version.definition, data).await?
                {
                    let message = format!("{data} is not the appliance's own; delete it when you like");
                    audience.tell(Event::Warning { message }).await;
                }
                Ok(())
            }
        }
    }

    /// Which PostgreSQL an image holds.
    pub(super) async fn postgres_major(&self, image: &Found) -> anyhow::Result<u32> {
        let spec = appliance_containers::ContainerSpec {
            name: format!("appliance-version-{}", hex8()),
            image: image.reference.clone(),
            entrypoint: Some(vec!["postgres".to_owned()]),
            cmd: Some(vec!["--version".to_owned()]),
            network: Some("none".to_owned()),
            ..appliance_containers::ContainerSpec::default()
        };
        let said = self.run_and_read(&spec).await?;
        appliance_accessories::kind::postgres_major(&said.out).ok_or_else(|| {
            anyhow::anyhow!(
                "{} does not say which PostgreSQL it is: {} {}",
                image.pin.image,
                said.out.trim(),
                said.err.trim()
            )
        })
    }

    /// Refuses a container of another PostgreSQL on data that it cannot read.
    ///
    /// # Errors
    /// When the majors differ.
    pub(super) async fn check_same_major(
        &self,
        record: &Record,
        definition: &Accessory,
        opened: &Opened,
        image: &Found,
    ) -> anyhow::Result<()> {
        let Some(made) = &record.made else {
            return Ok(());
        };
        if made.pin.id == image.pin.id {
            return Ok(());
        }
        let env = super::postgres::env(definition, image, opened)?;
        if Kind::of(&definition.image, &env) != Kind::Postgres {
            return Ok(());
        }
        let Ok(old) = self.image_of(&made.pin, definition, opened).await else {
            return Ok(());
        };
        let (old, new) = (
            self.postgres_major(&old).await?,
            self.postgres_major(image).await?,
        );
        if old == new {
            return Ok(());
        }
        Err(failure(
            failure::Kind::Refused,
            format!(
                "{} runs PostgreSQL {old}, and {} is PostgreSQL {new}, which cannot read its data",
                definition.container, definition.image
            ),
        )
        .hint(format!("appliance accessory upgrade {}", definition.name))
        .into())
    }
}

fn version(moving: &Moving, side: Side) -> &Version {
    match side {
        Side::Old => &moving.old,
        Side::New => &moving.new,
    }
}

fn says(order: Order, moving: &Moving) -> String {
    let image = |side| version(moving, side).pin.image.clone();
    match order {
        Order::Backup => "a backup first".to_owned(),
        Order::Stop => "stopped, so that nobody writes any more".to_owned(),
        Order::Copy => format!(
            "copying from PostgreSQL {} to {}",
            moving.old.major.unwrap_or_default(),
            moving.new.major.unwrap_or_default()
        ),
        Order::Compare => "comparing roles, tables, rows and sequences".to_owned(),
        Order::ClearCopies => "removing the two copying servers".to_owned(),
        Order::Replace(side) => format!("starting {}", image(side)),
        Order::Verify(side) => format!("waiting until {} is well", image(side)),
        Order::DropData(Side::Old) => "deleting the data from before".to_owned(),
        Order::DropData(Side::New) => "deleting the newer data".to_owned(),
    }
}

fn ended(which: &Which, moving: &Moving) -> End {
    match moving.state.stage {
        Stage::Returned if moving.state.why.as_deref() != Some("somebody asked for it") => End::Failed {
            message: format!("{which}: {}", sentence(moving)),
            next: format!("appliance accessory logs {}", which.name),
        },
        Stage::Undone if moving.state.why.as_deref() != Some("somebody asked for it") => End::Failed {
            message: format!(
                "{which}: going back to {} failed: {}; {}",
                moving.new.pin.image,
                moving.state.why.as_deref().unwrap_or_default(),
                sentence(moving)
            ),
            next: format!("appliance accessory logs {}", which.name),
        },
        _ => End::Done {
            release: None,
            message: format!("{which}: {}", sentence(moving)),
        },
    }
}

/// Where a server's data is.
pub(super) struct DataMount {
    /// Path in the container that is mounted.
    pub target: String,
    /// Volume or path on the host.
    pub source: String,
}

impl Agent {
    fn data_mount(&self, which: &Which, version: &Version, image: &Found) -> anyhow::Result<DataMount> {
        let opened = self.open_accessory(&version.definition)?;
        let env = super::postgres::env(&version.definition, image, &opened)?;
        let data = env
            .get("PGDATA")
            .map_or("/var/lib/postgresql/data", String::as_str)
            .trim_end_matches('/');
        let spec = self.accessory_spec(which, &version.definition, &opened, &version.sources, image)?;
        let below = |target: &str| data == target || data.starts_with(&format!("{target}/"));
        let mount = spec
            .volumes
            .iter()
            .filter_map(|volume| {
                let mut parts = volume.split(':');
                let (source, target) = (parts.next()?, parts.next()?.trim_end_matches('/'));
                below(target).then(|| (source.to_owned(), target.to_owned()))
            })
            .max_by_key(|(_, target)| target.len());
        Ok(match mount {
            Some((source, target)) => DataMount { target, source },
            None => DataMount {
                source: making::volume_name(&version.definition, data),
                target: data.to_owned(),
            },
        })
    }
}
