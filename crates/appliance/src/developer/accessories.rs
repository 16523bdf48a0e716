//! From the resolved configuration to the accessories of one host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context as _;
use appliance_config::erb;
use appliance_config::model::{self, Credential, Registry};
use appliance_config::runner::ProcessRunner;
use appliance_push::change::{
    Accessory, AccessoryName, ContainerName, EnvName, Logging, MountedDirectory, MountedFile, PAYLOAD_LIMIT,
    RemoteRegistry,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::project::Project;
use super::release::{proxy_spec, secret_of};
use crate::agent::identity;
use crate::failure::{Kind, failure};

/// Under which name the registry's password travels.
const REGISTRY_PASSWORD: &str = "APPLIANCE_REGISTRY_PASSWORD";
/// Most bytes of files that fit into a change beside the rest: base64 within the sealing and around it.
const FILES_LIMIT: usize = PAYLOAD_LIMIT / 2;

/// The accessories that a command names: one, or `all`.
///
/// # Errors
/// When the configuration has none of that name (Kamal's message).
pub fn select<'a>(project: &'a Project, name: &str) -> anyhow::Result<Vec<&'a model::Accessory>> {
    let all = &project.loaded.config.accessories;
    if name == "all" {
        return Ok(all.iter().collect());
    }
    match all.iter().find(|accessory| accessory.name == name) {
        Some(found) => Ok(vec![found]),
        None => {
            let names: Vec<&str> = all.iter().map(|accessory| accessory.name.as_str()).collect();
            Err(failure(
                Kind::Config,
                if names.is_empty() {
                    format!("No accessory by the name of '{name}' (the configuration has no accessories)")
                } else {
                    format!(
                        "No accessory by the name of '{name}' (options: {})",
                        names.join(" and ")
                    )
                },
            )
            .into())
        }
    }
}

/// Secrets that an accessory needs.
pub fn secret_names(project: &Project, accessory: &model::Accessory) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = accessory
        .env_secret
        .iter()
        .map(|entry| secret_of(entry).1.to_owned())
        .collect();
    if let Some(registry) = login(project, accessory) {
        for credential in [&registry.username, &registry.password] {
            if let Some(Credential::Secret { secret }) = credential {
                names.insert(secret.clone());
            }
        }
    }
    if let Some(certificate) = accessory
        .proxy
        .as_ref()
        .and_then(|proxy| proxy.custom_certificate.as_ref())
    {
        names.insert(certificate.certificate_pem.clone());
        names.insert(certificate.private_key_pem.clone());
    }
    names
}

/// The registry whose login the accessory's image needs: its own, or the root one if the image is there.
fn login<'a>(project: &'a Project, accessory: &'a model::Accessory) -> Option<&'a Registry> {
    accessory.registry.as_ref().or_else(|| {
        let root = &project.loaded.config.registry;
        let server = root.server.as_deref().filter(|_| !root.local)?;
        accessory.image.starts_with(&format!("{server}/")).then_some(root)
    })
}

/// What a definition is made from besides the configuration.
pub struct Making<'a> {
    /// How the configuration names the host.
    pub host: &'a str,
    /// The host's identity, which secrets and files are sealed to.
    pub recipient: &'a str,
    /// Values of [`secret_names`].
    pub secrets: &'a BTreeMap<String, String>,
}

/// The definition of an accessory for one host, with its secrets and files sealed.
///
/// # Errors
/// When a file cannot be read or rendered, or the configuration has a value that a definition cannot carry.
pub fn definition(
    project: &Project,
    accessory: &model::Accessory,
    making: &Making<'_>,
) -> anyhow::Result<Accessory> {
    let place = format!("accessories/{}", accessory.name);
    build(project, accessory, making).with_context(|| place)
}

fn build(project: &Project, accessory: &model::Accessory, making: &Making<'_>) -> anyhow::Result<Accessory> {
    let config = &project.loaded.config;
    let mut sealed = BTreeMap::new();
    let mut env_clear = BTreeMap::new();
    for (name, value) in &accessory.env_clear {
        env_clear.insert(EnvName::parse(name)?, value.clone());
    }
    let mut env_secret = BTreeMap::new();
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    for entry in &accessory.env_secret {
        let (name, secret) = secret_of(entry);
        let value = making
            .secrets
            .get(secret)
            .with_context(|| format!("env/secret: {secret} has no value"))?;
        sealed.insert(secret.to_owned(), value.clone());
        env.insert(name.to_owned(), value.clone());
        env_secret.insert(EnvName::parse(name)?, EnvName::parse(secret)?);
    }
    for (name, value) in &accessory.env_clear {
        if let Some(value) = value {
            env.insert(name.clone(), value.clone());
        }
    }
    if let Some(certificate) = accessory
        .proxy
        .as_ref()
        .and_then(|proxy| proxy.custom_certificate.as_ref())
    {
        for name in [&certificate.certificate_pem, &certificate.private_key_pem] {
            if let Some(value) = making.secrets.get(name) {
                sealed.insert(name.clone(), value.clone());
            }
        }
    }
    let mut files = Vec::new();
    let mut size = 0;
    for (index, file) in accessory.files.iter().enumerate() {
        let content = content(project, file, &env)?;
        size += content.len();
        let sealed_as = format!("=file/{index}");
        sealed.insert(sealed_as.clone(), BASE64.encode(&content));
        files.push(MountedFile {
            sealed_as,
            host_path: below(&accessory.service_name, &file.host_path),
            container_path: file.container_path.clone(),
            mode: file
                .mode
                .as_ref()
                .map_or_else(|| "755".to_owned(), ToString::to_string),
            owner: file.owner.as_ref().map(ToString::to_string),
            options: file.options.as_ref().map(ToString::to_string),
        });
    }
    if size > FILES_LIMIT {
        return Err(failure(
            Kind::Config,
            format!("files: they have {size} bytes together; the limit is {FILES_LIMIT}"),
        )
        .hint("put large files into the image, or into a directory on the host")
        .into());
    }
    let directories = accessory
        .directories
        .iter()
        .map(|directory| MountedDirectory {
            host_path: below(&accessory.service_name, &directory.host_path),
            container_path: directory.container_path.clone(),
            mode: directory.mode.as_ref().map(ToString::to_string),
            owner: directory.owner.as_ref().map(ToString::to_string),
            options: directory.options.as_ref().map(ToString::to_string),
        })
        .collect();
    // Kamal appends `cmd` raw to a shell line; here it becomes words by the same rules, without a shell.
    let cmd = match &accessory.cmd {
        Some(cmd) => {
            let text = cmd.to_string();
            Some(shlex::split(&text).with_context(|| format!("cmd: the quotes in {text:?} do not match"))?)
        }
        None => None,
    };
    let registry = login(project, accessory)
        .map(|registry| remote(registry, making, &mut sealed))
        .transpose()?;
    let definition = Accessory {
        name: AccessoryName::parse(&accessory.name)?,
        container: ContainerName::parse(&accessory.service_name)?,
        host: making.host.to_owned(),
        image: accessory.image.clone(),
        registry,
        network: accessory.network.to_string(),
        port: accessory.port.clone(),
        cmd,
        env_clear,
        env_secret,
        labels: accessory
            .labels
            .iter()
            .filter(|(name, _)| name.as_str() != "service")
            .map(|(name, value)| (name.clone(), value.clone().unwrap_or_default()))
            .collect(),
        options: accessory
            .options
            .iter()
            .map(|(name, values)| (name.clone(), values.clone()))
            .collect(),
        volumes: accessory.volumes.clone(),
        files,
        directories,
        restart: accessory.restart.clone(),
        logging: Logging {
            driver: config.logging.driver.clone(),
            options: config
                .logging
                .options
                .iter()
                .map(|(name, value)| (name.clone(), value.clone().unwrap_or_default()))
                .collect(),
        },
        proxy: accessory
            .proxy
            .as_ref()
            .map(|proxy| proxy_spec(config, proxy))
            .transpose()?,
        sealed: if sealed.is_empty() {
            String::new()
        } else {
            BASE64.encode(identity::seal(making.recipient, &sealed)?)
        },
    };
    definition
        .consistent()
        .map_err(|why| failure(Kind::Config, why))?;
    Ok(definition)
}

/// A path below the accessory's directory, or an absolute one as it is.
fn below(service_name: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    let path = path.strip_prefix(service_name).unwrap_or(path);
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect::<Vec<_>>()
        .join("/")
}

/// A file's bytes; a template is rendered with the accessory's environment, as Kamal does.
fn content(
    project: &Project,
    file: &model::Mounted,
    env: &BTreeMap<String, String>,
) -> anyhow::Result<Vec<u8>> {
    let path = Path::new(&file.local);
    let bytes = fs_err::read(path)
        .map_err(|error| failure(Kind::Config, format!("files: {}: {error}", file.container_path)))?;
    if !file.template {
        return Ok(bytes);
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        failure(
            Kind::Config,
            format!("files: {} is a template, but no text", file.local),
        )
    })?;
    let runner = ProcessRunner { forward_stderr: true };
    let mut context = erb::Context {
        env: project.loaded.env.clone(),
        directory: project.directory.clone(),
        runner: &runner,
        now: jiff::Zoned::now(),
    };
    context
        .env
        .extend(env.iter().map(|(name, value)| (name.clone(), value.clone())));
    let rendered = erb::render(&text, path, &mut context).map_err(|error| {
        failure(
            Kind::Config,
            format!("{}:{}:{}: {error}", file.local, error.line(), error.column()),
        )
    })?;
    Ok(rendered.text.into_bytes())
}

fn remote(
    registry: &Registry,
    making: &Making<'_>,
    sealed: &mut BTreeMap<String, String>,
) -> anyhow::Result<RemoteRegistry> {
    let value = |credential: &Option<Credential>| match credential {
        None => Ok(None),
        Some(Credential::Literal(text)) => Ok(Some(text.clone())),
        Some(Credential::Secret { secret }) => making
            .secrets
            .get(secret)
            .cloned()
            .map(Some)
            .with_context(|| format!("registry: {secret} has no value")),
    };
    let password = value(&registry.password)?;
    let password_secret = match password {
        Some(password) => {
            sealed.insert(REGISTRY_PASSWORD.to_owned(), password);
            Some(EnvName::parse(REGISTRY_PASSWORD)?)
        }
        None => None,
    };
    Ok(RemoteRegistry {
        server: registry.server.clone().unwrap_or_else(|| "docker.io".to_owned()),
        username: value(&registry.username)?,
        password_secret,
    })
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn paths_are_told_from_the_accessorys_directory_on() {
        for (path, expect) in [
            ("shop-db/etc/mysql/my.cnf", "etc/mysql/my.cnf"),
            ("shop-db/./data/", "data"),
            ("/srv/data", "/srv/data"),
            ("shop-db/../x", "../x"),
        ] {
            assert_eq!(below("shop-db", path), expect);
        }
    }
}
