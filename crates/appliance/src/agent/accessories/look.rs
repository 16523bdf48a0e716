//! How an accessory is, and how it differs from what it should be.

use appliance_accessories::{Backoff, Goal};
use appliance_containers::engine::{ContainerInfo, State};
use appliance_push::change::Accessory;

use super::record::{Record, RecordError};
use super::{Which, files, making};
use crate::agent::{Agent, chain};
use crate::wire;

impl Agent {
    /// Every accessory of this host, and what is wrong with them as a whole.
    pub async fn accessories(&self, app: Option<&str>) -> (Vec<wire::Accessory>, Vec<String>) {
        let (all, damaged) = match self.accessories.records.all() {
            Ok(found) => found,
            Err(error) => return (Vec::new(), vec![chain(&error)]),
        };
        let mut problems: Vec<String> = damaged.iter().map(|error| chain(error)).collect();
        let mut found = Vec::new();
        for which in all {
            if app.is_some_and(|app| app != which.app) {
                continue;
            }
            match self.accessory(&which).await {
                Ok(accessory) => found.push(accessory),
                Err(error) => problems.push(format!("{which}: {}", chain(&error))),
            }
        }
        (found, problems)
    }

    /// One accessory.
    ///
    /// # Errors
    /// When its record cannot be read.
    pub(super) async fn accessory(&self, which: &Which) -> Result<wire::Accessory, RecordError> {
        let record = self.accessories.records.read(which)?;
        let container = self.container_of(&record).await;
        let live = self.accessories.live(which);
        let (state, restarts, health) = match &container {
            Ok(Some(found)) => (
                format!("{:?}", found.state).to_lowercase(),
                found.restarts,
                self.verdict(found).await,
            ),
            Ok(None) => ("missing".to_owned(), 0, None),
            Err(_) => ("unknown".to_owned(), 0, None),
        };
        let drift = match &container {
            Ok(found) => self.drift(which, &record, found.as_ref()).await,
            Err(_) => live.drift.clone(),
        };
        let definition = record.definition.as_deref();
        let Backoff { failures, next } = live.backoff;
        Ok(wire::Accessory {
            app: which.app.clone(),
            name: which.name.clone(),
            container: definition
                .map(|definition| definition.container.to_string())
                .unwrap_or_default(),
            image: definition
                .map(|definition| definition.image.clone())
                .unwrap_or_default(),
            pinned: record
                .made
                .as_ref()
                .map(|made| made.pin.short().to_owned())
                .unwrap_or_default(),
            state,
            wanted: match record.goal {
                Goal::Running => "running".to_owned(),
                Goal::Stopped => "stopped".to_owned(),
            },
            healthy: health.as_ref().map(|verdict| verdict.well),
            health: health
                .map(|verdict| {
                    if verdict.well || verdict.said.is_empty() {
                        verdict.by
                    } else {
                        format!("{}: {}", verdict.by, verdict.said)
                    }
                })
                .unwrap_or_default(),
            restarts,
            failures,
            next_try: next,
            ports: definition.map(ports).unwrap_or_default(),
            drift,
            upgrade: record.upgrade.as_ref().map(super::upgrade::sentence),
            problem: live.problem,
            changing: self.leases.holder(&format!("accessory {which}")),
            canonical: definition.map(Accessory::canonical).unwrap_or_default(),
        })
    }

    /// How the container differs from the configuration and from how it was made, one sentence each.
    pub(super) async fn drift(
        &self,
        which: &Which,
        record: &Record,
        found: Option<&ContainerInfo>,
    ) -> Vec<String> {
        let (Some(definition), Some(made)) = (&record.definition, &record.made) else {
            return Vec::new();
        };
        let mut drift = made.foreign.clone();
        let opened = self.open_accessory(definition).unwrap_or_default();
        match &made.definition {
            Some(before) => {
                let fields = changed_fields(before, definition);
                let hash = self.definition_hash(which, definition, &opened).ok();
                if !fields.is_empty() {
                    drift.push(format!("the configuration changed: {}", fields.join(", ")));
                } else if hash.is_some_and(|hash| hash != made.hash) {
                    drift.push("the configuration changed: values of secrets, or files".to_owned());
                }
            }
            None if drift.is_empty() => {
                drift.push("it was made by somebody else".to_owned());
            }
            None => {}
        }
        let Some(found) = found else {
            return drift;
        };
        if found.image_id != made.pin.id {
            drift.push(format!(
                "it runs another image than the pinned {}",
                made.pin.short()
            ));
        }
        if found.name != definition.container.as_str() {
            drift.push(format!("somebody renamed it to {}", found.name));
        }
        if found.id.0 != made.container {
            drift.push("somebody replaced the container".to_owned());
        }
        if let Ok(now) = self.shape(which, &found.id.0).await {
            // A container that does not run has no place on the network.
            let running = found.state == State::Running;
            drift.extend(
                made.shape
                    .differences(&now)
                    .iter()
                    .filter(|difference| running || !difference.setting.starts_with("network."))
                    .map(|difference| format!("changed by hand: {difference}")),
            );
        }
        if let Some(before) = &made.definition
            && let Ok(opened) = self.open_accessory(before)
        {
            drift.extend(files::edited(
                &self.accessories.directory(before),
                before,
                &opened,
            ));
        }
        drift
    }
}

/// The keys in which two definitions differ.
fn changed_fields(before: &Accessory, now: &Accessory) -> Vec<String> {
    let read = |definition: &Accessory| {
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&definition.canonical())
            .unwrap_or_default()
    };
    let (before, now) = (read(before), read(now));
    let mut fields: Vec<String> = before
        .keys()
        .chain(now.keys())
        .filter(|key| before.get(*key) != now.get(*key))
        .map(|key| match key.as_str() {
            "env_clear" | "env_secret" => "env".to_owned(),
            other => other.to_owned(),
        })
        .collect();
    fields.sort();
    fields.dedup();
    fields
}

fn ports(definition: &Accessory) -> Vec<String> {
    let Ok(ports) = making::ports(definition) else {
        return Vec::new();
    };
    ports
        .into_iter()
        .map(|(publish, _, _)| {
            let address = publish.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
            let port = publish
                .host_port
                .map_or_else(|| "any".to_owned(), |port| port.to_string());
            format!("{address}:{port} → {}", publish.container_port)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_keys_are_named_as_the_configuration_names_them() {
        let definition: Accessory = serde_json::from_value(serde_json::json!({
            "name": "db", "container": "shop-db", "host": "h", "image": "postgres:16", "network": "kamal",
            "restart": "unless-stopped", "sealed": "a",
        }))
        .expect("a definition");
        let mut now = definition.clone();
        now.sealed = "b".to_owned();
        assert!(changed_fields(&definition, &now).is_empty());
        now.image = "postgres:17".to_owned();
        now.env_clear.insert("A".parse().expect("a name"), None);
        assert_eq!(changed_fields(&definition, &now), ["env", "image"]);
    }
}
