//! Taking an accessory off the host, with its data only if somebody said so.

use std::path::Path;
use std::sync::Arc;

use appliance_push::change::Accessory;

use super::Which;
use super::record::Record;
use crate::agent::drive::Audience;
use crate::agent::{Agent, chain};
use crate::wire::Event;

impl Agent {
    /// Removes container, route and record; with `backup`, after a backup; with `data`, volumes and directories as well.
    ///
    /// # Errors
    /// When the backup fails (nothing was touched then), or Docker does.
    pub(super) async fn remove_accessory(
        self: &Arc<Self>,
        which: &Which,
        data: bool,
        backup: bool,
        audience: &Audience,
    ) -> anyhow::Result<String> {
        let record = self.accessories.records.read(which)?;
        let Some(definition) = record.definition.clone() else {
            anyhow::bail!("{which} is not on this host");
        };
        if backup {
            self.back_up_accessory(which, audience).await?;
        }
        let mut mounts = Vec::new();
        if let Some(found) = self.container_of(&record).await? {
            let shape = self.shape(which, &found.id.0).await?;
            mounts = shape.mounts().into_iter().collect();
            self.unroute_accessory(&definition).await?;
            self.docker.stop(&found.id.0, None).await?;
            self.docker.remove_keeping_volumes(&found.id.0, true).await?;
        }
        let image = record.pin.as_ref().map(|pin| pin.image.clone());
        let mut kept = Vec::new();
        for (_, source) in &mounts {
            if !data {
                if !source.starts_with('/') {
                    kept.push(format!("volume {source}"));
                }
                continue;
            }
            match self.drop_source(&definition, source).await {
                Ok(true) => {}
                Ok(false) => kept.push(source.clone()),
                Err(error) => {
                    let message = format!("{source} could not be removed: {}", chain(&*error));
                    audience.tell(Event::Warning { message }).await;
                    kept.push(source.clone());
                }
            }
        }
        if data {
            for source in self.kept_by_upgrade(&record) {
                self.drop_source(&definition, &source).await?;
            }
            let directory = self.accessories.directory(&definition);
            remove_directory(&directory)?;
        } else {
            let directory = self.accessories.directory(&definition);
            if directory.exists() {
                kept.push(directory.display().to_string());
            }
        }
        self.accessories.records.forget(which)?;
        self.accessories.forget(which);
        self.forget_job(&which.app, &which.name);
        if let Some(image) = image
            && let Err(error) = self.docker.remove_image(&image).await
        {
            tracing::debug!("Docker keeps {image}: {}", chain(&error));
        }
        Ok(match (data, kept.is_empty()) {
            (true, true) => format!("{which} is removed with its data"),
            (true, false) => format!("{which} is removed with its data but for {}", kept.join(", ")),
            (false, true) => format!("{which} is removed"),
            (false, false) => format!("{which} is removed; its data is kept: {}", kept.join(", ")),
        })
    }

    fn kept_by_upgrade(&self, record: &Record) -> Vec<String> {
        let sides = record
            .upgrade
            .iter()
            .flat_map(|moving| [&moving.old, &moving.new]);
        sides.filter_map(|side| side.data.clone()).collect()
    }

    /// Deletes a volume, or a directory below our own; other places of the host are not ours. Says whether it is gone.
    ///
    /// # Errors
    /// When it is in use, or cannot be deleted.
    pub(super) async fn drop_source(&self, definition: &Accessory, source: &str) -> anyhow::Result<bool> {
        if !source.starts_with('/') {
            self.docker.remove_volume(source).await?;
            return Ok(true);
        }
        let path = Path::new(source);
        let own = self.accessories.directory(definition);
        if !path.starts_with(&own) || path.components().any(|part| part.as_os_str() == "..") {
            return Ok(!path.exists());
        }
        remove_directory(path)?;
        Ok(true)
    }
}

fn remove_directory(path: &Path) -> std::io::Result<()> {
    let removed = match fs_err::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs_err::remove_dir_all(path),
        Ok(_) => fs_err::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
