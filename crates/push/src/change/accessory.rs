//! The wire form of an accessory, and what a change can do with one.
//!
//! All texts are resolved for one host, as in a release. The container's name is Kamal's, so that stock tools recognise it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AccessoryName, ContainerName, EnvName, Logging, Power, ProxySpec, RemoteRegistry};

/// One accessory on one host: everything that is needed to run it, without `deploy.yml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accessory {
    /// Its key in the configuration.
    pub name: AccessoryName,
    /// `service` of the accessory, else `<service>-<name>`: the container's name, the label `service` and the host's directory.
    pub container: ContainerName,
    /// How the configuration names this host; becomes `KAMAL_HOST`.
    pub host: String,
    /// Image as the configuration has it, registry and tag included.
    pub image: String,
    /// Login for the image's registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<RemoteRegistry>,
    /// Docker network.
    pub network: String,
    /// `port` as `docker run --publish` takes it; without an address it is bound to the loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Command words; absent means the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Clear environment; no value means that the variable is left out.
    #[serde(default)]
    pub env_clear: BTreeMap<EnvName, Option<String>>,
    /// Secret environment: variable name → name in the sealed secrets.
    #[serde(default)]
    pub env_secret: BTreeMap<EnvName, EnvName>,
    /// Labels besides `service`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `options` as `docker run` flags: name without dashes → values; no value is a bare flag.
    #[serde(default)]
    pub options: BTreeMap<String, Vec<Option<String>>>,
    /// `volumes`, as `docker run --volume` takes them.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Files that travel with the change.
    #[serde(default)]
    pub files: Vec<MountedFile>,
    /// Directories made on the host.
    #[serde(default)]
    pub directories: Vec<MountedDirectory>,
    /// `no`, `always`, `unless-stopped` or `on-failure[:N]`.
    pub restart: String,
    /// Log driver and options.
    #[serde(default)]
    pub logging: Logging,
    /// How the proxy serves it; absent for accessories without visitors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxySpec>,
    /// Base64 of an age file for the host's recipient: a JSON object of secrets by name and files' contents by [`MountedFile::sealed_as`].
    pub sealed: String,
}

/// A file that is written to the host and mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountedFile {
    /// Where its base64 content is among the sealed texts; no environment variable has a name that begins with `=`.
    pub sealed_as: String,
    /// Path on the host below the accessory's directory.
    pub host_path: String,
    /// Path in the container.
    pub container_path: String,
    /// Octal digits; Kamal's default is 755.
    pub mode: String,
    /// `user[:group]`, by name or number on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Mount options such as `ro`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
}

/// A directory of the host that is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountedDirectory {
    /// Absolute path on the host, or a path below the accessory's directory.
    pub host_path: String,
    /// Path in the container.
    pub container_path: String,
    /// Octal digits; as it is, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// `user[:group]`; as it is, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Mount options such as `ro`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
}

/// What a change does with one accessory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum AccessoryAction {
    /// Remember what the configuration says now; the container is left alone, differences are reported.
    Set(Box<Accessory>),
    /// Run it, unless a container of its name exists.
    Boot(Box<Accessory>),
    /// Replace its container by one of the given definition, or of the remembered one.
    Reboot {
        /// What the configuration says now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        definition: Option<Box<Accessory>>,
    },
    /// Pull its image without touching the container.
    PullImage {
        /// What the configuration says now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        definition: Option<Box<Accessory>>,
    },
    /// Start what was stopped.
    Start,
    /// Stop it, and keep it stopped.
    Stop,
    /// Stop and start the same container.
    Restart,
    /// Run a command; answered with the name of a session.
    Exec {
        /// Program and arguments; no shell sees them.
        command: Vec<String>,
        /// In the running container instead of a new one.
        #[serde(default)]
        reuse: bool,
        /// With a terminal.
        #[serde(default)]
        terminal: bool,
    },
    /// Remove its container, and its data with it if asked.
    Remove {
        /// The accessory's name once more, typed by a person.
        confirm: AccessoryName,
        /// Whether volumes and directories go too.
        data: bool,
        /// Take no backup of the data that goes first.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        no_backup: bool,
    },
    /// Run a newer image on the same data; across PostgreSQL majors on a copy of it.
    Upgrade {
        /// What the configuration says now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        definition: Option<Box<Accessory>>,
        /// Take no backup first.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        no_backup: bool,
    },
    /// Delete the data that an upgrade, or its undoing, kept.
    UpgradeConfirm {
        /// The accessory's name once more, typed by a person.
        confirm: AccessoryName,
    },
    /// Return to the image and the data from before the upgrade, or from before the return; both are kept.
    UpgradeUndo {
        /// The accessory's name once more, typed by a person.
        confirm: AccessoryName,
        /// Take no backup of what serves now first.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        no_backup: bool,
    },
    /// Carry bytes to one of its ports; answered with a token.
    Tunnel {
        /// Port in the container; the server's usual one if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
}

impl AccessoryAction {
    /// The action's stable name, as audit records show it.
    pub fn name(&self) -> &'static str {
        match self {
            AccessoryAction::Set(_) => "accessory-set",
            AccessoryAction::Boot(_) => "accessory-boot",
            AccessoryAction::Reboot { .. } => "accessory-reboot",
            AccessoryAction::PullImage { .. } => "accessory-pull-image",
            AccessoryAction::Start => "accessory-start",
            AccessoryAction::Stop => "accessory-stop",
            AccessoryAction::Restart => "accessory-restart",
            AccessoryAction::Exec { .. } => "accessory-exec",
            AccessoryAction::Remove { .. } => "accessory-remove",
            AccessoryAction::Upgrade { .. } => "accessory-upgrade",
            AccessoryAction::UpgradeConfirm { .. } => "accessory-upgrade-confirm",
            AccessoryAction::UpgradeUndo { .. } => "accessory-upgrade-undo",
            AccessoryAction::Tunnel { .. } => "accessory-tunnel",
        }
    }

    /// The power that the signer's key needs.
    pub fn power(&self) -> Power {
        match self {
            AccessoryAction::Start
            | AccessoryAction::Stop
            | AccessoryAction::Restart
            | AccessoryAction::Exec { .. }
            | AccessoryAction::Tunnel { .. } => Power::Operate,
            _ => Power::Deploy,
        }
    }

    /// The definition it carries.
    pub fn definition(&self) -> Option<&Accessory> {
        match self {
            AccessoryAction::Set(definition) | AccessoryAction::Boot(definition) => Some(definition),
            AccessoryAction::Reboot { definition }
            | AccessoryAction::PullImage { definition }
            | AccessoryAction::Upgrade { definition, .. } => definition.as_deref(),
            _ => None,
        }
    }

    pub(super) fn consistent(&self, name: &AccessoryName) -> Result<(), String> {
        if let Some(definition) = self.definition() {
            if definition.name != *name {
                return Err(format!(
                    "it concerns the accessory {name}, the definition is of {}",
                    definition.name
                ));
            }
            definition.consistent()?;
        }
        match self {
            AccessoryAction::Remove { confirm, .. } if confirm != name => Err(format!(
                "it removes the accessory {name}, but {confirm} was confirmed"
            )),
            AccessoryAction::UpgradeConfirm { confirm } | AccessoryAction::UpgradeUndo { confirm, .. }
                if confirm != name =>
            {
                Err(format!(
                    "it is about data of the accessory {name}, but {confirm} was confirmed"
                ))
            }
            AccessoryAction::Exec { command, .. } if command.is_empty() => {
                Err("the command is empty".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl Accessory {
    /// Whether the parts of the definition fit each other and stay inside the accessory's directory.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn consistent(&self) -> Result<(), String> {
        if self.image.is_empty() {
            return Err(format!("accessories/{}: image is required", self.name));
        }
        let below = |path: &str| {
            !path.starts_with('/') && path.split('/').all(|part| part != "..") && !path.contains('\0')
        };
        for file in &self.files {
            if !below(&file.host_path) {
                return Err(format!(
                    "accessories/{}/files: {} leaves the accessory's directory",
                    self.name, file.host_path
                ));
            }
            if !file.sealed_as.starts_with('=') {
                return Err(format!(
                    "accessories/{}/files: {} has no content",
                    self.name, file.host_path
                ));
            }
        }
        for directory in &self.directories {
            let path = &directory.host_path;
            if path.split('/').any(|part| part == "..") || (!path.starts_with('/') && !below(path)) {
                return Err(format!(
                    "accessories/{}/directories: {path} leaves the accessory's directory",
                    self.name
                ));
            }
        }
        let targets = (self.files.iter().map(|file| &file.container_path))
            .chain(self.directories.iter().map(|directory| &directory.container_path));
        for target in targets {
            if !target.starts_with('/') || target.contains(':') {
                return Err(format!(
                    "accessories/{}: {target:?} is not a path in the container",
                    self.name
                ));
            }
        }
        Ok(())
    }

    /// The definition without what differs at every sealing, as JSON: equal texts are equal definitions but for the
    /// values of secrets and files.
    pub fn canonical(&self) -> String {
        let mut bare = self.clone();
        bare.sealed.clear();
        serde_json::to_string(&bare).expect("maps with text keys and scalars are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn accessory() -> Accessory {
        serde_json::from_value(serde_json::json!({
            "name": "db", "container": "shop-db", "host": "192.0.2.1", "image": "postgres:17",
            "network": "kamal", "restart": "unless-stopped", "sealed": "",
            "files": [{ "sealed_as": "=file/0", "host_path": "etc/my.cnf", "container_path": "/etc/my.cnf", "mode": "644" }],
            "directories": [{ "host_path": "data", "container_path": "/data" }],
        }))
        .expect("a definition")
    }

    #[test]
    fn nothing_is_written_outside_of_the_accessorys_directory() {
        assert_eq!(accessory().consistent(), Ok(()));
        for path in ["../x", "/etc/passwd", "a/../../b"] {
            let mut bad = accessory();
            bad.files[0].host_path = path.to_owned();
            assert!(bad.consistent().is_err(), "{path}");
        }
        let mut absolute = accessory();
        absolute.directories[0].host_path = "/srv/data".to_owned();
        assert_eq!(absolute.consistent(), Ok(()));
        absolute.directories[0].host_path = "/srv/../etc".to_owned();
        assert!(absolute.consistent().is_err());
        let mut mount = accessory();
        mount.files[0].container_path = "/x:rw,z".to_owned();
        assert!(mount.consistent().is_err());
    }

    #[test]
    fn an_action_is_of_the_accessory_it_names() {
        let name = AccessoryName::parse("db").expect("a name");
        let other = AccessoryName::parse("cache").expect("a name");
        assert!(
            AccessoryAction::Boot(Box::new(accessory()))
                .consistent(&name)
                .is_ok()
        );
        assert!(
            AccessoryAction::Boot(Box::new(accessory()))
                .consistent(&other)
                .is_err()
        );
        let remove = AccessoryAction::Remove {
            confirm: name.clone(),
            data: true,
            no_backup: false,
        };
        assert!(remove.consistent(&name).is_ok() && remove.consistent(&other).is_err());
        for action in [
            AccessoryAction::UpgradeConfirm {
                confirm: name.clone(),
            },
            AccessoryAction::UpgradeUndo {
                confirm: name.clone(),
                no_backup: false,
            },
        ] {
            assert!(action.consistent(&name).is_ok() && action.consistent(&other).is_err());
            assert_eq!(action.power(), Power::Deploy);
        }
        assert_eq!(AccessoryAction::Start.power(), Power::Operate);
        assert_eq!(remove.power(), Power::Deploy);
    }

    #[test]
    fn sealing_again_does_not_change_the_definition() {
        let mut again = accessory();
        again.sealed = "other".to_owned();
        assert_eq!(again.canonical(), accessory().canonical());
        again.image = "postgres:18".to_owned();
        assert_ne!(again.canonical(), accessory().canonical());
    }
}
