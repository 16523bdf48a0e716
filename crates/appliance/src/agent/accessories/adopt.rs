//! Taking over a container that is there already, such as one that Kamal booted.
//!
//! Our own container is made beside it, never started, and compared: Docker fills in both the same way, so what differs
//! differs for a reason. Data stays where it is: paths below Kamal's directories and volumes without a name are remembered.

use std::collections::BTreeMap;

use appliance_accessories::Shape;
use appliance_containers::engine::ContainerInfo;
use appliance_push::change::Accessory;

use super::image::Found;
use super::record::{Made, Pin};
use super::{LABEL, Opened, Which, hex8};
use crate::agent::Agent;

/// Where a container that is there has data which a definition leaves to us: its own directories, and volumes without a name.
pub fn kept_sources(
    definition: &Accessory,
    image_volumes: &[String],
    found: &Shape,
) -> BTreeMap<String, String> {
    let mounted = found.mounts();
    let mut kept = BTreeMap::new();
    let own = definition
        .files
        .iter()
        .map(|file| (&file.host_path, &file.container_path))
        .chain(
            definition
                .directories
                .iter()
                .map(|directory| (&directory.host_path, &directory.container_path)),
        );
    for (host_path, target) in own {
        let suffix = format!("/{}/{host_path}", definition.container);
        if let Some(source) = mounted
            .get(target)
            .filter(|source| source.ends_with(&suffix) && !host_path.starts_with('/'))
        {
            kept.insert(target.clone(), source.clone());
        }
    }
    let unnamed = definition
        .volumes
        .iter()
        .filter(|volume| !volume.contains(':'))
        .chain(image_volumes);
    for target in unnamed {
        let target = target.trim_end_matches('/');
        let named = definition
            .volumes
            .iter()
            .any(|volume| volume.split(':').nth(1) == Some(target));
        if let Some(source) = mounted.get(target).filter(|_| !named) {
            kept.entry(target.to_owned()).or_insert_with(|| source.clone());
        }
    }
    kept
}

impl Agent {
    /// Takes `found` over as it is; answers with how it differs from the definition.
    ///
    /// # Errors
    /// When the two cannot be compared.
    pub(super) async fn adopt(
        &self,
        which: &Which,
        definition: &Accessory,
        opened: &Opened,
        image: &Found,
        found: &ContainerInfo,
    ) -> anyhow::Result<Vec<String>> {
        let theirs = self.shape(which, &found.id.0).await?;
        let sources = kept_sources(definition, &image.info.volumes, &theirs);
        let mut spec = self.accessory_spec(which, definition, opened, &sources, image)?;
        spec.name = format!("{}-compare-{}", definition.container, hex8());
        spec.labels.remove(LABEL);
        let twin = self.docker.create(&spec).await?;
        let ours = self.shape(which, &twin.0).await;
        self.docker.remove(&twin.0, true).await?;
        let ours = ours?;
        let mut foreign: Vec<String> = ours
            .differences(&theirs)
            .iter()
            .map(ToString::to_string)
            .collect();
        if found.image_id != image.pin.id {
            foreign.push(format!("it runs another image than {} is here", definition.image));
        }
        let hash = self.definition_hash(which, definition, opened)?;
        let pin = Pin {
            id: found.image_id.clone(),
            digest: (found.image_id == image.pin.id)
                .then(|| image.pin.digest.clone())
                .flatten(),
            image: definition.image.clone(),
        };
        // Files are written to our own directory at the next reboot; data stays where it is.
        let data: BTreeMap<String, String> = sources
            .into_iter()
            .filter(|(target, _)| !definition.files.iter().any(|file| file.container_path == *target))
            .collect();
        self.accessories.records.update(which, |record| {
            record.pin = Some(pin.clone());
            record.sources = data;
            record.made = Some(Made {
                container: found.id.0.clone(),
                shape: theirs,
                definition: foreign.is_empty().then(|| Box::new(definition.clone())),
                hash,
                foreign: foreign.clone(),
                pin,
            });
        })?;
        Ok(foreign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kamals_data_stays_where_it_is_and_named_volumes_follow_the_configuration() {
        let definition: Accessory = serde_json::from_value(serde_json::json!({
            "name": "db", "container": "shop-db", "host": "h", "image": "postgres:17", "network": "kamal",
            "restart": "unless-stopped", "sealed": "",
            "volumes": ["shop-wal:/wal", "/cache"],
            "directories": [{ "host_path": "data", "container_path": "/data" }],
        }))
        .expect("a definition");
        let found = Shape(
            [
                ("mount./data", "/root/shop-db/data"),
                ("mount./wal", "other-wal"),
                ("mount./cache", "0123abcd"),
                ("mount./var/lib/postgresql/data", "4567ef"),
                ("mount./elsewhere", "/srv/x"),
            ]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .into(),
        );
        let kept = kept_sources(&definition, &["/var/lib/postgresql/data".to_owned()], &found);
        let expect = [
            ("/cache", "0123abcd"),
            ("/data", "/root/shop-db/data"),
            ("/var/lib/postgresql/data", "4567ef"),
        ];
        assert_eq!(kept, expect.map(|(a, b)| (a.to_owned(), b.to_owned())).into());
    }
}
