//! A throw-away container of an accessory's own image in which nothing runs but what we start: for its programs, beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use appliance_backup::place::{Ended, Job as Program, Place, succeed};
use appliance_containers::spec::Tuning;
use appliance_containers::{ContainerSpec, Engine};

use super::place::ContainerPlace;
use super::scratch::LABEL;
use crate::agent::{Agent, random};

/// Memory in bytes, where nobody needs more.
const MEMORY: i64 = 512 << 20;
/// It ends by itself after a day, should nobody end it.
const LIFE: &str = "86400";

/// A container that is removed by [`Helper::remove`], or when whoever used it is given up.
pub struct Helper {
    /// Where its programs run.
    pub place: Arc<dyn Place>,
    docker: Arc<dyn Engine>,
    /// Empty once it is removed.
    name: String,
}

/// One place in a container where data lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Path inside.
    pub target: String,
}

impl Agent {
    /// Starts one from `image`, without network, as root; `tuning` says what it sees beside its own files.
    ///
    /// # Errors
    /// When it does not start, as an image without `sleep`; nothing is left behind.
    pub(super) async fn helper(
        &self,
        image: &str,
        volumes: Vec<String>,
        tuning: Tuning,
    ) -> anyhow::Result<Helper> {
        let name = format!("appliance-drill-{}", hex::encode(random::<6>()));
        let spec = ContainerSpec {
            name: name.clone(),
            image: image.to_owned(),
            network: Some("none".to_owned()),
            entrypoint: Some(vec!["sleep".to_owned()]),
            cmd: Some(vec![LIFE.to_owned()]),
            labels: BTreeMap::from([(LABEL.to_owned(), std::process::id().to_string())]),
            volumes,
            tuning: Tuning {
                memory: Some(tuning.memory.unwrap_or(MEMORY).max(MEMORY)),
                pids_limit: Some(200),
                user: Some("0:0".to_owned()),
                no_healthcheck: true,
                ..tuning
            },
            ..ContainerSpec::default()
        };
        let started = async {
            self.docker.create(&spec).await?;
            self.docker.start(&name).await?;
            let info = self.docker.inspect(&name).await?;
            let info = info.context("the throw-away container vanished")?;
            let place: Arc<dyn Place> = Arc::new(ContainerPlace::new(Arc::clone(&self.docker), &info));
            Ok::<_, anyhow::Error>(place)
        }
        .await;
        match started {
            Ok(place) => Ok(Helper {
                place,
                docker: Arc::clone(&self.docker),
                name,
            }),
            Err(error) => {
                let _not_even_made = self.docker.remove(&name, true).await;
                Err(error.context("a throw-away container of the accessory's image does not start"))
            }
        }
    }

    /// Where a container keeps data: what is mounted into it and can be written.
    pub(super) async fn mounted(&self, container: &str) -> anyhow::Result<Vec<Mounted>> {
        let about = self
            .docker
            .description(container)
            .await?
            .context("the container vanished")?;
        let mounts = about["Mounts"].as_array().cloned().unwrap_or_default();
        let mut found: Vec<Mounted> = mounts
            .iter()
            .filter(|mount| mount["RW"] != false && mount["Type"] != "tmpfs")
            .filter_map(|mount| mount["Destination"].as_str())
            .map(|target| Mounted {
                target: target.to_owned(),
            })
            .collect();
        found.sort_by(|a, b| a.target.cmp(&b.target));
        if found.is_empty() {
            bail!("nothing is mounted into it, so it keeps no data: give it volumes or directories");
        }
        Ok(found)
    }
}

impl Helper {
    /// Removes the container.
    pub(super) async fn remove(mut self) {
        let name = std::mem::take(&mut self.name);
        remove(&*self.docker, &name).await;
    }
}

impl Drop for Helper {
    /// What took too long is dropped in the middle; what it unpacked must not stay.
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        if let (false, Ok(runtime)) = (name.is_empty(), tokio::runtime::Handle::try_current()) {
            let docker = Arc::clone(&self.docker);
            runtime.spawn(async move { remove(&*docker, &name).await });
        }
    }
}

async fn remove(docker: &dyn Engine, name: &str) {
    if let Err(error) = docker.remove(name, true).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "{name} is left behind");
    }
}

/// What a program that must succeed writes to its standard output.
pub(super) async fn output(place: &dyn Place, words: &[&str]) -> anyhow::Result<String> {
    let ended: Ended = succeed(place, &Program::new(words.iter().copied())).await?;
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// The job that writes its standard input to a file: every image with a shell has `dd`.
pub(super) fn write_to(file: &str) -> Program {
    Program::new(["dd".to_owned(), format!("of={file}"), "bs=1M".to_owned()])
}
