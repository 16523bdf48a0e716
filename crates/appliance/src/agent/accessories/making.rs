//! From an accessory's definition to a container. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use appliance_accessories::Policy;
use appliance_accessories::port::{self, Exposure};
use appliance_containers::options::{self, OptionError};
use appliance_containers::spec::{ContainerSpec, Log, Publish, Restart};
use appliance_push::change::{Accessory, EnvName};

use super::{LABEL, Opened, Which};

/// Why a definition cannot become a container.
#[derive(Debug, thiserror::Error)]
pub enum MakingError {
    /// A `docker run` flag that cannot be used.
    #[error("accessories/{accessory}: options")]
    Option {
        /// Which accessory.
        accessory: String,
        /// Which, why.
        #[source]
        source: OptionError,
    },
    /// `port` is none.
    #[error("accessories/{accessory}/port")]
    Port {
        /// Which accessory.
        accessory: String,
        /// Why.
        #[source]
        source: OptionError,
    },
    /// A secret that the change does not carry.
    #[error("accessories/{accessory}: the change carries no secret {secret}; add it to .kamal/secrets")]
    Secret {
        /// Which accessory.
        accessory: String,
        /// Its name.
        secret: EnvName,
    },
    /// A restart policy that Docker does not know.
    #[error(
        "accessories/{accessory}: {policy:?} is not a restart policy (no, always, unless-stopped, on-failure[:N])"
    )]
    Restart {
        /// Which accessory.
        accessory: String,
        /// What was given.
        policy: String,
    },
}

/// Stands for the source of what must not be mounted, though the definition says so: another server's data.
pub const NOWHERE: &str = "";

/// What a container is made from.
pub struct Making<'a> {
    /// Which accessory.
    pub which: &'a Which,
    /// What the configuration says.
    pub definition: &'a Accessory,
    /// Its secrets.
    pub opened: &'a Opened,
    /// Data that is elsewhere than the definition says; what has [`NOWHERE`] is not mounted.
    pub sources: &'a BTreeMap<String, String>,
    /// Where its files are on the host.
    pub directory: &'a Path,
    /// The image, by a name that does not float.
    pub image: &'a str,
    /// Paths that the image declares as volumes.
    pub image_volumes: &'a [String],
}

/// The accessory's container.
///
/// # Errors
/// When an option, port, secret or restart policy cannot be used.
pub fn spec(making: &Making<'_>) -> Result<ContainerSpec, MakingError> {
    let definition = making.definition;
    let accessory = || definition.name.to_string();
    let mut labels = BTreeMap::from([("service".to_owned(), definition.container.to_string())]);
    labels.extend(definition.labels.clone());
    labels.insert(LABEL.to_owned(), making.which.to_string());
    let log = (definition.logging.driver.is_some() || !definition.logging.options.is_empty()).then(|| Log {
        driver: definition.logging.driver.clone(),
        options: definition.logging.options.clone(),
    });
    let mut spec = ContainerSpec {
        name: definition.container.to_string(),
        image: making.image.to_owned(),
        network: Some(definition.network.clone()),
        cmd: definition.cmd.clone(),
        env: environment(definition, making.opened)?,
        labels,
        volumes: definition.volumes.clone(),
        log,
        restart: restart(definition)?,
        ..ContainerSpec::default()
    };
    if let Some(port) = &definition.port {
        options::apply("publish", std::slice::from_ref(port), &mut spec).map_err(|source| {
            MakingError::Port {
                accessory: accessory(),
                source,
            }
        })?;
    }
    for (option, values) in &definition.options {
        let values: Vec<String> = values
            .iter()
            .map(|value| value.clone().unwrap_or_else(|| "true".to_owned()))
            .collect();
        options::apply(option, &values, &mut spec).map_err(|source| MakingError::Option {
            accessory: accessory(),
            source,
        })?;
    }
    for publish in &mut spec.publish {
        publish.host_ip = Some(port::bind(publish.host_ip).0);
    }
    mounts(making, &mut spec);
    Ok(spec)
}

/// The ports of a definition: each with who can reach it, and whether that was its own wish.
///
/// # Errors
/// As [`spec`].
pub fn ports(definition: &Accessory) -> Result<Vec<(Publish, Exposure, bool)>, MakingError> {
    let mut spec = ContainerSpec::default();
    let texts: Vec<String> = definition
        .port
        .iter()
        .cloned()
        .chain(
            ["publish", "p"]
                .iter()
                .filter_map(|name| definition.options.get(*name))
                .flatten()
                .flatten()
                .cloned(),
        )
        .collect();
    if !texts.is_empty() {
        options::apply("publish", &texts, &mut spec).map_err(|source| MakingError::Port {
            accessory: definition.name.to_string(),
            source,
        })?;
    }
    Ok(spec
        .publish
        .into_iter()
        .map(|publish| {
            let (address, exposure) = port::bind(publish.host_ip);
            let said = publish.host_ip.is_some();
            let bound = Publish {
                host_ip: Some(address),
                ..publish
            };
            (bound, exposure, said)
        })
        .collect())
}

/// Secrets, then clear values: of a name that is both, Docker lets `--env` win over the file.
pub fn environment(definition: &Accessory, opened: &Opened) -> Result<Vec<(String, String)>, MakingError> {
    let mut env = vec![("KAMAL_HOST".to_owned(), definition.host.clone())];
    for (name, secret) in &definition.env_secret {
        let value = opened.get(secret.as_str()).ok_or_else(|| MakingError::Secret {
            accessory: definition.name.to_string(),
            secret: secret.clone(),
        })?;
        env.push((name.to_string(), value.clone()));
    }
    for (name, value) in &definition.env_clear {
        // A blank value is passed as a bare `--env NAME`, which leaves the variable out.
        if let Some(value) = value {
            env.push((name.to_string(), value.clone()));
        }
    }
    Ok(env)
}

/// Every mount, with data where it really is. What the image declares and nobody named gets a name, so that it outlives
/// the container.
fn mounts(making: &Making<'_>, spec: &mut ContainerSpec) {
    let definition = making.definition;
    let on_host = |path: &str| {
        if path.starts_with('/') {
            path.to_owned()
        } else {
            making.directory.join(path).display().to_string()
        }
    };
    let option = |options: &Option<String>| {
        options
            .as_ref()
            .filter(|options| !options.trim().is_empty())
            .map(|options| format!(":{options}"))
            .unwrap_or_default()
    };
    let mut volumes: Vec<String> = std::mem::take(&mut spec.volumes)
        .iter()
        .map(|volume| match *volume.split(':').collect::<Vec<_>>() {
            [target] => format!(
                "{}:{target}",
                source(making, target).unwrap_or_else(|| volume_name(definition, target))
            ),
            [from, target] => format!(
                "{}:{target}",
                source(making, target).unwrap_or_else(|| from.to_owned())
            ),
            [from, target, options] => {
                let from = source(making, target).unwrap_or_else(|| from.to_owned());
                format!("{from}:{target}:{options}")
            }
            _ => volume.clone(),
        })
        .collect();
    for file in &definition.files {
        let from = source(making, &file.container_path).unwrap_or_else(|| on_host(&file.host_path));
        volumes.push(format!("{from}:{}{}", file.container_path, option(&file.options)));
    }
    for directory in &definition.directories {
        let from = source(making, &directory.container_path).unwrap_or_else(|| on_host(&directory.host_path));
        volumes.push(format!(
            "{from}:{}{}",
            directory.container_path,
            option(&directory.options)
        ));
    }
    let mut covered: Vec<String> = volumes
        .iter()
        .filter_map(|volume| volume.split(':').nth(1))
        .map(|target| target.trim_end_matches('/').to_owned())
        .collect();
    covered.extend(spec.tuning.mounts.iter().map(|mount| mount.target.clone()));
    covered.extend(spec.tuning.tmpfs.keys().cloned());
    volumes.retain(|volume| !volume.starts_with(':'));
    let further = making
        .image_volumes
        .iter()
        .chain(making.sources.keys())
        .map(|target| target.trim_end_matches('/'));
    for target in further {
        if !covered.iter().any(|known| known == target) {
            let from = source(making, target).unwrap_or_else(|| volume_name(definition, target));
            if from != NOWHERE {
                volumes.push(format!("{from}:{target}"));
            }
            covered.push(target.to_owned());
        }
    }
    spec.volumes = volumes;
}

fn source(making: &Making<'_>, target: &str) -> Option<String> {
    making.sources.get(target.trim_end_matches('/')).cloned()
}

/// `shop-db-var-lib-postgresql-data`: the volume for a path that nobody gave a volume.
pub fn volume_name(definition: &Accessory, target: &str) -> String {
    let slug: String = target
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    format!("{}-{}", definition.container, slug.trim_matches('-'))
}

/// Docker's restart policy.
///
/// # Errors
/// When it is none.
pub fn restart(definition: &Accessory) -> Result<Restart, MakingError> {
    definition.restart.parse().map_err(|_| MakingError::Restart {
        accessory: definition.name.to_string(),
        policy: definition.restart.clone(),
    })
}

/// Whether an end is meant, by Docker's restart policy.
pub fn policy(definition: &Accessory) -> Policy {
    match restart(definition) {
        Ok(Restart::No) => Policy::No,
        Ok(Restart::OnFailure { retries }) => Policy::OnFailure { retries },
        _ => Policy::Always,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(more: serde_json::Value) -> Accessory {
        let mut value = serde_json::json!({
            "name": "db", "container": "shop-db", "host": "192.0.2.1", "image": "postgres:17", "network": "kamal",
            "restart": "unless-stopped", "sealed": "",
        });
        for (key, part) in more.as_object().expect("an object") {
            value[key] = part.clone();
        }
        serde_json::from_value(value).expect("a definition")
    }

    fn made(definition: &Accessory, sources: &[(&str, &str)]) -> ContainerSpec {
        let which = Which {
            app: "shop".to_owned(),
            name: "db".to_owned(),
        };
        let sources = sources
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        let opened = Opened([("DB_PASSWORD".to_owned(), "pa$$".to_owned())].into());
        spec(&Making {
            which: &which,
            definition,
            opened: &opened,
            sources: &sources,
            directory: Path::new("/state/data/shop-db"),
            image: "postgres:17",
            image_volumes: &["/var/lib/postgresql/data".to_owned()],
        })
        .expect("a container")
    }

    #[test]
    fn it_is_the_container_that_kamal_would_run() {
        let spec = made(
            &definition(serde_json::json!({
                "env_clear": { "POSTGRES_USER": "shop", "BLANK": null },
                "env_secret": { "POSTGRES_PASSWORD": "DB_PASSWORD" },
                "labels": { "team": "store" }, "cmd": ["postgres", "-c", "fsync=on"],
                "options": { "memory": ["512m"] },
            })),
            &[],
        );
        assert_eq!(spec.name, "shop-db");
        assert_eq!(spec.network.as_deref(), Some("kamal"));
        let env: Vec<(&str, &str)> = spec
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            env,
            [
                ("KAMAL_HOST", "192.0.2.1"),
                ("POSTGRES_PASSWORD", "pa$$"),
                ("POSTGRES_USER", "shop")
            ]
        );
        assert_eq!(spec.labels["service"], "shop-db");
        assert_eq!(spec.labels["team"], "store");
        assert_eq!(spec.labels[LABEL], "shop/db");
        assert_eq!(spec.hostname, None, "Kamal gives accessories none");
        assert_eq!(spec.restart, Restart::UnlessStopped);
        assert_eq!(spec.tuning.memory, Some(512 << 20));
    }

    #[test]
    fn a_port_without_an_address_is_bound_to_the_loopback() {
        for (port, bound, said) in [
            ("5432", "127.0.0.1", false),
            ("5432:5432", "127.0.0.1", false),
            ("0.0.0.0:5432:5432", "0.0.0.0", true),
            ("10.0.0.5:6432:5432", "10.0.0.5", true),
        ] {
            let definition = definition(serde_json::json!({ "port": port }));
            let spec = made(&definition, &[]);
            assert_eq!(spec.publish.len(), 1);
            assert_eq!(
                spec.publish[0].host_ip.map(|address| address.to_string()),
                Some(bound.to_owned()),
                "{port}"
            );
            assert_eq!(ports(&definition).expect("ports")[0].2, said);
        }
        let option = definition(serde_json::json!({ "options": { "publish": ["0.0.0.0:1:1", "2:2"] } }));
        let exposures: Vec<Exposure> = ports(&option).expect("ports").iter().map(|port| port.1).collect();
        assert_eq!(exposures, [Exposure::Public, Exposure::Loopback]);
    }

    #[test]
    fn data_that_nobody_named_gets_a_name_and_outlives_the_container() {
        assert_eq!(
            made(&definition(serde_json::json!({})), &[]).volumes,
            ["shop-db-var-lib-postgresql-data:/var/lib/postgresql/data"]
        );
    }

    #[test]
    fn mounts_are_kamals_below_our_own_directory() {
        let spec = made(
            &definition(serde_json::json!({
                "volumes": ["shop-wal:/wal:nocopy"],
                "files": [{ "sealed_as": "=file/0", "host_path": "etc/x.conf", "container_path": "/etc/x.conf", "mode": "644", "options": "ro" }],
                "directories": [{ "host_path": "data", "container_path": "/var/lib/postgresql/data" },
                                { "host_path": "/srv/x", "container_path": "/x" }],
            })),
            &[],
        );
        assert_eq!(
            spec.volumes,
            [
                "shop-wal:/wal:nocopy",
                "/state/data/shop-db/etc/x.conf:/etc/x.conf:ro",
                "/state/data/shop-db/data:/var/lib/postgresql/data",
                "/srv/x:/x",
            ]
        );
    }

    #[test]
    fn data_is_mounted_where_it_really_is() {
        let moved = [("/var/lib/postgresql/data", "/root/shop-db/data")];
        let spec = made(
            &definition(
                serde_json::json!({ "directories": [{ "host_path": "data", "container_path": "/var/lib/postgresql/data" }] }),
            ),
            &moved,
        );
        assert_eq!(spec.volumes, ["/root/shop-db/data:/var/lib/postgresql/data"]);
        let spec = made(
            &definition(serde_json::json!({})),
            &[("/var/lib/postgresql/data", "0123abcd")],
        );
        assert_eq!(spec.volumes, ["0123abcd:/var/lib/postgresql/data"]);
    }

    #[test]
    fn data_of_another_server_is_not_mounted() {
        let directories = serde_json::json!({ "directories": [{ "host_path": "data", "container_path": "/var/lib/postgresql/data" }] });
        let moved = [
            ("/var/lib/postgresql/data", NOWHERE),
            ("/var/lib/postgresql", "shop-db-postgres-18-ab"),
        ];
        let spec = made(&definition(directories), &moved);
        assert_eq!(spec.volumes, ["shop-db-postgres-18-ab:/var/lib/postgresql"]);
    }

    #[test]
    fn a_secret_that_is_not_there_is_named() {
        let definition = definition(serde_json::json!({ "env_secret": { "X": "MISSING" } }));
        let error = environment(&definition, &Opened::default()).expect_err("refused");
        assert!(error.to_string().contains("MISSING"));
    }
}
