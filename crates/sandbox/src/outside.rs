//! A machine elsewhere on the network: what answers on a host, seen from outside.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptionsBuilder, StartContainerOptions};

use crate::engine::{Progress, Sandbox};
use crate::error::{SandboxError, is_conflict};
use crate::exec::{Command, Output};
use crate::host::Name;
use crate::image::Image;
use crate::network;

/// What a TCP port did when it was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// A connection was accepted.
    Open,
    /// It was refused: nothing listens, or a firewall rejects.
    Refused,
    /// Nothing came back in time: a firewall drops.
    Silent,
    /// No way there, or an ICMP error came back.
    Unreachable,
}

/// A container on a host's network that is not the host.
#[derive(Clone, Debug)]
pub struct Outside {
    sandbox: Arc<Sandbox>,
    name: Name,
    id: String,
}

impl Sandbox {
    /// Starts an outsider on a network, `appliance-sandbox` unless given.
    ///
    /// # Errors
    /// [`SandboxError::Exists`] if the name is taken, else what building or Docker failed with.
    pub async fn outside(
        self: &Arc<Self>,
        name: &Name,
        network: Option<&str>,
        labels: &BTreeMap<String, String>,
        progress: Progress<'_>,
    ) -> Result<Outside, SandboxError> {
        let image = self.ensure(&Image::Outside, progress).await?;
        let network = network.unwrap_or(network::DEFAULT);
        self.ensure_network(network).await?;
        let mut all: std::collections::HashMap<_, _> = labels.clone().into_iter().collect();
        all.insert(network::LABEL.to_owned(), "outside".to_owned());
        let body = ContainerCreateBody {
            image: Some(image.as_str().to_owned()),
            hostname: Some(name.to_string()),
            labels: Some(all),
            host_config: Some(HostConfig {
                network_mode: Some(network.to_owned()),
                init: Some(true),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let query = CreateContainerOptionsBuilder::default()
            .name(name.as_str())
            .build();
        let id = match self.docker().create_container(Some(query), body).await {
            Ok(created) => created.id,
            Err(error) if is_conflict(&error) => {
                return Err(SandboxError::Exists {
                    name: name.to_string(),
                });
            }
            Err(error) => return Err(SandboxError::docker(format!("create outsider `{name}`"))(error)),
        };
        self.docker()
            .start_container(&id, None::<StartContainerOptions>)
            .await
            .map_err(SandboxError::docker(format!("start outsider `{name}`")))?;
        Ok(Outside {
            sandbox: Arc::clone(self),
            name: name.clone(),
            id,
        })
    }
}

impl Outside {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Tries TCP ports of an address, up to 512 at once; each gets `patience` to answer.
    ///
    /// `ports` are numbers or ranges: `["22", "80", "1-1024"]`.
    ///
    /// # Errors
    /// [`SandboxError::Command`] if the ports cannot be read or the prober fails.
    pub async fn probe(
        &self,
        address: IpAddr,
        ports: &[&str],
        patience: Duration,
    ) -> Result<BTreeMap<u16, PortState>, SandboxError> {
        let mut argv = vec![
            "probe.py".to_owned(),
            address.to_string(),
            patience.as_secs_f64().to_string(),
        ];
        argv.extend(ports.iter().map(|port| (*port).to_owned()));
        let output = self
            .sandbox
            .exec_ok(self.name.as_str(), &self.id, &Command::new(argv))
            .await?;
        serde_json::from_slice(&output.stdout).map_err(|_| SandboxError::Answer {
            what: "probe.py",
            answer: output.text().chars().take(200).collect(),
        })
    }

    /// Runs a program in it: Python and the tools of a small Debian are there.
    ///
    /// # Errors
    /// [`SandboxError::Docker`] if it cannot be run.
    pub async fn exec(&self, command: &Command) -> Result<Output, SandboxError> {
        self.sandbox.exec(&self.id, command, None).await
    }

    /// Removes it.
    ///
    /// # Errors
    /// [`SandboxError::Docker`] if Docker refuses.
    pub async fn remove(&self) -> Result<(), SandboxError> {
        self.sandbox.remove_container(&self.id).await
    }
}
