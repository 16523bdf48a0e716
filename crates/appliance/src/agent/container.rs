//! From a role of a release to a container.

use std::collections::BTreeMap;
use std::time::Duration;

use appliance_containers::names;
use appliance_containers::options::{self, OptionError};
use appliance_containers::spec::{ContainerSpec, Log, Restart};
use appliance_push::change::{EnvName, Release, Role};
use appliance_rollout::{Deployment, Instance, ReleaseNumber, RolloutNumber};

use super::host_env;

/// Label with the app's id, on every container of ours.
pub const APP: &str = "appliance.app";
/// Label with the number of the rollout that made the container.
pub const ROLLOUT: &str = "appliance.rollout";
/// Label with the number of the release it runs.
pub const RELEASE: &str = "appliance.release";
/// Label of containers that are no role's, with what they are for; they go when nothing needs them any more.
pub const HELPER: &str = "appliance.helper";
/// Kamal's label with the role's name.
pub const ROLE: &str = "role";

/// Why a role cannot become a container.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// A `docker run` flag that cannot be used.
    #[error("role {role}: options")]
    Option {
        /// The role.
        role: String,
        /// Which, why.
        #[source]
        source: OptionError,
    },
    /// A secret that the release does not carry.
    #[error("role {role}: the release carries no secret {secret}; add it to .kamal/secrets and push again")]
    Secret {
        /// The role.
        role: String,
        /// Its name.
        secret: EnvName,
    },
    /// A restart policy that Docker does not know.
    #[error("role {role}: {policy:?} is not a restart policy (no, always, unless-stopped, on-failure[:N])")]
    Restart {
        /// The role.
        role: String,
        /// What was given.
        policy: String,
    },
}

/// What a container is made from.
pub struct Making<'a> {
    /// The app's id.
    pub app: &'a str,
    /// The release.
    pub release: &'a Release,
    /// Its number.
    pub number: ReleaseNumber,
    /// Opened secrets.
    pub secrets: &'a BTreeMap<String, String>,
    /// The engine's id of the image.
    pub image: &'a str,
    /// Volumes besides those of the role: its assets.
    pub volumes: Vec<String>,
    /// What the host puts in the place of `${NAME}` in clear values.
    pub host_env: &'a BTreeMap<String, String>,
    /// Six random bytes for the hostname.
    pub random: [u8; 6],
}

/// The name of a role's container, as Kamal gives it.
pub fn name(release: &Release, role: &Role) -> String {
    names::container(
        release.service.as_str(),
        role.name.as_str(),
        release
            .destination
            .as_ref()
            .map(|destination| destination.as_str()),
        release.version.as_str(),
    )
}

/// Whether a container with these labels plays its role in `deployment`.
pub fn plays(labels: &BTreeMap<String, String>, deployment: &Deployment) -> bool {
    let instance = labels.get(ROLE).and_then(|role| deployment.instance(role));
    instance.is_some_and(|instance| labels.get(ROLLOUT) == Some(&instance.rollout.0.to_string()))
}

/// The container of `role` for this rollout.
///
/// # Errors
/// When an option, secret or restart policy cannot be used.
pub fn spec(making: &Making<'_>, role: &Role, instance: &Instance) -> Result<ContainerSpec, RoleError> {
    let release = making.release;
    let destination = release
        .destination
        .as_ref()
        .map(|destination| destination.as_str());
    let name = name(release, role);
    let mut env = vec![
        ("KAMAL_CONTAINER_NAME".to_owned(), name.clone()),
        ("KAMAL_VERSION".to_owned(), release.version.to_string()),
        ("KAMAL_HOST".to_owned(), release.host.clone()),
    ];
    if let Some(destination) = destination {
        env.push(("KAMAL_DESTINATION".to_owned(), destination.to_owned()));
    }
    env.extend(environment(making, role)?);

    let mut labels = names::labels(release.service.as_str(), role.name.as_str(), destination);
    labels.extend(role.labels.clone());
    labels.insert(APP.to_owned(), making.app.to_owned());
    labels.insert(ROLLOUT.to_owned(), instance.rollout.0.to_string());
    labels.insert(RELEASE.to_owned(), making.number.0.to_string());

    let log = (role.logging.driver.is_some() || !role.logging.options.is_empty()).then(|| Log {
        driver: role.logging.driver.clone(),
        options: role.logging.options.clone(),
    });
    let mut spec = ContainerSpec {
        name,
        image: making.image.to_owned(),
        network: Some(appliance_containers::engine::NETWORK.to_owned()),
        hostname: Some(names::hostname(&release.host, making.random)),
        cmd: role.cmd.clone(),
        env,
        labels,
        volumes: [role.volumes.clone(), making.volumes.clone()].concat(),
        log,
        restart: restart(role)?,
        // Whoever stops it, a reboot too, gives it the time that a rollout does.
        stop_timeout: grace(release, role),
        ..ContainerSpec::default()
    };
    for (option, values) in &role.options {
        let values: Vec<String> = values
            .iter()
            .map(|value| value.clone().unwrap_or_else(|| "true".to_owned()))
            .collect();
        options::apply(option, &values, &mut spec).map_err(|source| RoleError::Option {
            role: role.name.to_string(),
            source,
        })?;
    }
    Ok(spec)
}

/// Kamal's rule: the role's own, else Docker's default behind the proxy, else the drain time.
pub fn grace(release: &Release, role: &Role) -> Option<Duration> {
    let seconds = match (role.stop_timeout, &role.proxy) {
        (Some(seconds), _) => Some(seconds),
        (None, Some(_)) => None,
        (None, None) => Some(release.drain_timeout),
    };
    seconds.map(|seconds| Duration::from_secs(u64::from(seconds)))
}

/// Clear values, then secrets: of a name that is both, Docker lets `--env` win over the file.
fn environment(making: &Making<'_>, role: &Role) -> Result<Vec<(String, String)>, RoleError> {
    let mut env = Vec::new();
    for (name, secret) in &role.env_secret {
        let value = making
            .secrets
            .get(secret.as_str())
            .ok_or_else(|| RoleError::Secret {
                role: role.name.to_string(),
                secret: secret.clone(),
            })?;
        env.push((name.to_string(), value.clone()));
    }
    for (name, value) in &role.env_clear {
        // A blank value is passed as a bare `--env NAME`, which leaves the variable out.
        if let Some(value) = value {
            env.push((name.to_string(), host_env::expand(value, making.host_env)));
        }
    }
    Ok(env)
}

fn restart(role: &Role) -> Result<Restart, RoleError> {
    role.restart.parse().map_err(|_| RoleError::Restart {
        role: role.name.to_string(),
        policy: role.restart.clone(),
    })
}

/// A container that is never started: the assets are read out of it.
pub fn assets(app: &str, instance: &Instance, image: &str) -> ContainerSpec {
    ContainerSpec {
        name: format!(
            "{}-assets-{}-{}",
            app.replace('@', "-"),
            instance.role,
            instance.rollout.0
        ),
        image: image.to_owned(),
        cmd: Some(vec!["true".to_owned()]),
        labels: BTreeMap::from([
            (APP.to_owned(), app.to_owned()),
            (HELPER.to_owned(), "assets".to_owned()),
        ]),
        ..ContainerSpec::default()
    }
}

/// The asset volume of a role as `docker run --volume` takes it: read-only unless the configuration says `rw`.
pub fn asset_volume(source: &std::path::Path, path: &str, options: Option<&str>) -> String {
    let options = options.unwrap_or_default();
    let has = |word: &str| options.split(',').any(|option| option == word);
    let options = match (options, has("rw") || has("ro")) {
        ("", _) => "ro".to_owned(),
        (options, true) => options.to_owned(),
        (options, false) => format!("{options},ro"),
    };
    format!("{}:{path}:{options}", source.display())
}

/// The name of a rollout's release command.
pub fn release_command_name(app: &str, rollout: RolloutNumber) -> String {
    format!("{}-release-{}", app.replace('@', "-"), rollout.0)
}

/// The container of the release command: the role's own, but with another name and command, and run once.
///
/// # Errors
/// As [`spec`].
pub fn release_command(
    making: &Making<'_>,
    role: &Role,
    instance: &Instance,
    command: &[String],
) -> Result<ContainerSpec, RoleError> {
    let mut spec = spec(making, role, instance)?;
    spec.name = release_command_name(making.app, instance.rollout);
    spec.cmd = Some(command.to_vec());
    spec.restart = Restart::No;
    spec.health = None;
    spec.publish.clear();
    // Not a role's container: nothing may find it by these and route or count it.
    spec.labels.remove(ROLE);
    spec.labels
        .insert(HELPER.to_owned(), "release-command".to_owned());
    Ok(spec)
}
