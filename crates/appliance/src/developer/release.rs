//! From the resolved configuration to the release of one host.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use appliance_config::extension::Extension;
use appliance_config::model::{self, Resolved};
use appliance_push::change::extras::ProxyExtras;
use appliance_push::change::{
    AppName, Buffering, Canary, Destination, Digest, EnvName, Healthcheck, Image, Logging, ProxySpec,
    Release, ReleaseCommand, Role, RoleName, Tag, Tls, Watch,
};
use base64::Engine as _;

use super::project::glob;
use crate::agent::backups::{SECTION, Spec};
use crate::agent::identity;
use crate::failure::{Kind, failure};

/// Secrets a release has to carry: those of the roles on `host` that `only` matches, and of custom certificates.
pub fn secret_names(
    config: &Resolved,
    extension: &Extension,
    host: &str,
    only: &[String],
) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for spec in backups(config, extension, host) {
        if spec.settings.to.0.starts_with("s3://") {
            names.insert(spec.settings.credentials.access_key_id);
            names.insert(spec.settings.credentials.secret_access_key);
        }
    }
    for role in roles_on(config, host, only) {
        if let Some((_, secrets)) = role.env(host) {
            names.extend(secrets.iter().map(|entry| secret_of(entry).1.to_owned()));
        }
        if let Some(certificate) = role
            .proxy
            .as_ref()
            .and_then(|proxy| proxy.custom_certificate.as_ref())
        {
            names.insert(certificate.certificate_pem.clone());
            names.insert(certificate.private_key_pem.clone());
        }
    }
    names
}

/// `NAME` or `NAME:SECRET`.
pub(super) fn secret_of(entry: &str) -> (&str, &str) {
    entry.split_once(':').unwrap_or((entry, entry))
}

/// The roles of a host that one of the patterns of `-r` matches, the primary one first; all of them without patterns.
pub fn roles_on<'a>(config: &'a Resolved, host: &str, only: &[String]) -> Vec<&'a model::Role> {
    let asked = |role: &model::Role| only.is_empty() || only.iter().any(|only| glob(only, &role.name));
    let mut roles: Vec<_> = config
        .roles
        .iter()
        .filter(|role| role.hosts.iter().any(|name| name == host) && asked(role))
        .collect();
    roles.sort_by_key(|role| !role.primary);
    roles
}

/// Everything of a release that is not in the configuration.
pub struct Making<'a> {
    /// How the configuration names the host.
    pub host: &'a str,
    /// The host's identity, which secrets are sealed to.
    pub recipient: &'a str,
    /// The image that was sent.
    pub image: Image,
    /// The patterns of `-r`: only these roles, and the host's others stay as they are. All of them if empty.
    pub only: &'a [String],
    /// Values of [`secret_names`].
    pub secrets: &'a BTreeMap<String, String>,
    /// Who deploys.
    pub performer: &'a str,
    /// Which visitors get it first.
    pub canary: Option<Canary>,
    /// Error pages by file name.
    pub error_pages: &'a BTreeMap<String, String>,
}

/// The release of a configuration for one host.
///
/// # Errors
/// When the configuration has a value that a release cannot carry; says which.
pub fn release(config: &Resolved, extension: &Extension, making: &Making<'_>) -> anyhow::Result<Release> {
    let sealed = if making.secrets.is_empty() {
        Vec::new()
    } else {
        identity::seal(making.recipient, making.secrets)?
    };
    let canonical = serde_json::to_vec(config).context("the configuration cannot be written as JSON")?;
    let roles = roles_on(config, making.host, making.only)
        .into_iter()
        .map(|found| {
            role(config, extension, found, making.host).with_context(|| format!("servers/{}", found.name))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Release {
        service: AppName::parse(&config.service).context("service")?,
        destination: config
            .destination
            .as_deref()
            .map(Destination::parse)
            .transpose()
            .context("destination")?,
        version: Tag::parse(&config.version).context("version")?,
        host: making.host.to_owned(),
        image: making.image.clone(),
        release_command: release_command(config, extension, making.host)?
            .filter(|command| roles.iter().any(|role| role.name == command.role) || making.only.is_empty()),
        roles,
        partial: !making.only.is_empty(),
        parallel_roles: config.boot.parallel_roles.unwrap_or(false),
        deploy_timeout: seconds("deploy_timeout", config.timeouts.deploy_timeout)?,
        drain_timeout: seconds("drain_timeout", config.timeouts.drain_timeout)?,
        readiness_delay: seconds("readiness_delay", config.timeouts.readiness_delay)?,
        retain: seconds("retain_containers", config.retain_containers)?,
        watch: watch(extension)?,
        canary: making.canary.clone(),
        error_pages: making.error_pages.clone(),
        sealed_secrets: base64::engine::general_purpose::STANDARD.encode(sealed),
        config_digest: Digest::of(&canonical),
        created_by: making.performer.to_owned(),
        extensions: extensions(config, extension, making.host)?,
    })
}

/// The backups of the accessories that are on `host`.
fn backups(config: &Resolved, extension: &Extension, host: &str) -> Vec<Spec> {
    let spec = |accessory: &model::Accessory| {
        let settings = extension.backups.get(&accessory.name)?.clone();
        accessory.hosts.iter().any(|name| name == host).then(|| Spec {
            accessory: accessory.name.clone(),
            container: accessory.service_name.clone(),
            image: accessory.image.clone(),
            settings,
        })
    };
    config.accessories.iter().filter_map(spec).collect()
}

fn extensions(
    config: &Resolved,
    extension: &Extension,
    host: &str,
) -> anyhow::Result<BTreeMap<String, serde_json::Value>> {
    let backups = backups(config, extension, host);
    if backups.is_empty() {
        return Ok(BTreeMap::new());
    }
    let section = serde_json::to_value(&backups).context("x-appliance/backups")?;
    Ok(BTreeMap::from([(SECTION.to_owned(), section)]))
}

/// The release command runs once, so only on the primary host; with `-r` only if its role is among those asked for.
fn release_command(
    config: &Resolved,
    extension: &Extension,
    host: &str,
) -> anyhow::Result<Option<ReleaseCommand>> {
    let Some(command) = extension.release() else {
        return Ok(None);
    };
    if config.primary_host.as_deref() != Some(host) {
        return Ok(None);
    }
    let role = command.role.as_deref().unwrap_or(&config.primary_role);
    Ok(Some(ReleaseCommand {
        command: command.command.words(),
        role: RoleName::parse(role).context("x-appliance/release/role")?,
        timeout: u32::try_from(command.timeout.0).context("x-appliance/release/timeout")?,
    }))
}

/// Refuses a release command that no release of this configuration could run.
///
/// # Errors
/// When its role is none, or is not on the primary host.
pub fn check_command(config: &Resolved, extension: &Extension) -> anyhow::Result<()> {
    let (Some(command), Some(primary)) = (extension.release(), &config.primary_host) else {
        return Ok(());
    };
    let role = command.role.as_deref().unwrap_or(&config.primary_role);
    let there: Vec<&str> = roles_on(config, primary, &[])
        .iter()
        .map(|role| role.name.as_str())
        .collect();
    if there.contains(&role) {
        return Ok(());
    }
    Err(failure(
        Kind::Config,
        format!(
            "x-appliance/release/role: {role} does not run on the primary host {primary}, where the release command does; there are: {}",
            there.join(", ")
        ),
    )
    .hint("name one of these, or leave role out")
    .into())
}

/// What to say where `hosts`, or the roles that the patterns `only` match, leave out what runs the release command.
pub fn command_left_out(
    config: &Resolved,
    extension: &Extension,
    hosts: &[String],
    only: &[String],
) -> Option<String> {
    let primary = config.primary_host.as_ref()?;
    let command = extension.release()?;
    let role = command.role.as_deref().unwrap_or(&config.primary_role);
    let what = if !hosts.contains(primary) {
        format!("on {primary}")
    } else if !only.is_empty() && !only.iter().any(|only| glob(only, role)) {
        format!("in the role {role}")
    } else {
        return None;
    };
    Some(format!(
        "x-appliance/release runs {what}, which this command leaves out: the new code starts without it on {}",
        hosts.join(", ")
    ))
}

fn watch(extension: &Extension) -> anyhow::Result<Option<Watch>> {
    let Some(watch) = extension.watch() else {
        return Ok(None);
    };
    Ok(Some(Watch {
        window: u32::try_from(watch.window.0).context("x-appliance/watch/window")?,
        error_rate: Some(watch.error_rate.0),
        latency_factor: Some(watch.latency),
    }))
}

fn seconds(key: &str, value: i64) -> anyhow::Result<u32> {
    u32::try_from(value).map_err(|_| {
        failure(
            Kind::Config,
            format!("{key}: {value} is not a number from 0 to {}", u32::MAX),
        )
        .into()
    })
}

/// `docker run` options of a role; limits of `x-appliance` where its own options set none.
fn options(extension: &Extension, role: &model::Role) -> BTreeMap<String, Vec<Option<String>>> {
    let mut options: BTreeMap<_, _> = role
        .options
        .iter()
        .map(|(name, values)| (name.clone(), values.clone()))
        .collect();
    let limits = extension.limits.of(&role.name);
    for (names, limit) in [
        (
            &["memory", "m"][..],
            limits.memory.map(|bytes| bytes.0.to_string()),
        ),
        (
            &["cpus", "cpu-quota", "cpu-period"][..],
            limits.cpus.map(|cpus| cpus.to_string()),
        ),
        (&["pids-limit"][..], limits.pids.map(|pids| pids.to_string())),
    ] {
        if let Some(limit) = limit
            && !names.iter().any(|name| options.contains_key(*name))
        {
            options.insert(names[0].to_owned(), vec![Some(limit)]);
        }
    }
    options
}

/// Kamal's `error_pages_path`: the files `4??.html` and `5??.html` of a directory, by name.
///
/// # Errors
/// When the directory or a page cannot be read.
pub fn error_pages(
    config: &Resolved,
    directory: &std::path::Path,
) -> anyhow::Result<BTreeMap<String, String>> {
    let mut pages = BTreeMap::new();
    let Some(path) = &config.error_pages_path else {
        return Ok(pages);
    };
    for entry in fs_err::read_dir(directory.join(path)).context("error_pages_path")? {
        let entry = entry.context("error_pages_path")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_page = name.strip_suffix(".html").is_some_and(|code| {
            code.len() == 3 && code.starts_with(['4', '5']) && code.bytes().all(|byte| byte.is_ascii_digit())
        });
        if is_page {
            pages.insert(
                name,
                fs_err::read_to_string(entry.path()).context("error_pages_path")?,
            );
        }
    }
    Ok(pages)
}

fn role(config: &Resolved, extension: &Extension, role: &model::Role, host: &str) -> anyhow::Result<Role> {
    let (clear, secret) = role.env(host).context("there is no environment for this host")?;
    let mut env_clear = BTreeMap::new();
    for (name, value) in clear {
        env_clear.insert(EnvName::parse(name)?, value.clone());
    }
    let mut env_secret = BTreeMap::new();
    for entry in secret {
        let (name, secret) = secret_of(entry);
        env_secret.insert(EnvName::parse(name)?, EnvName::parse(secret)?);
    }
    // Kamal appends `cmd` raw to a shell line; here it becomes words by the same rules, without a shell.
    let cmd = match &role.cmd {
        Some(cmd) => {
            let text = cmd.to_string();
            Some(shlex::split(&text).with_context(|| format!("cmd: the quotes in {text:?} do not match"))?)
        }
        None => None,
    };
    let identity = ["service", "role", "destination"];
    Ok(Role {
        name: RoleName::parse(&role.name)?,
        primary: role.primary,
        cmd,
        env_clear,
        env_secret,
        labels: role
            .labels
            .iter()
            .filter(|(name, _)| !identity.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone().unwrap_or_default()))
            .collect(),
        options: options(extension, role),
        volumes: role.volumes.clone(),
        logging: Logging {
            driver: role.logging.driver.clone(),
            options: role
                .logging
                .options
                .iter()
                .map(|(name, value)| (name.clone(), value.clone().unwrap_or_default()))
                .collect(),
        },
        stop_timeout: role
            .stop_timeout
            .map(|value| seconds("stop_timeout", value))
            .transpose()?,
        restart: role.restart.clone(),
        asset_path: role.asset_path.clone(),
        asset_options: role.asset_path_options.clone(),
        proxy: role
            .proxy
            .as_ref()
            .filter(|_| role.running_proxy)
            .map(|proxy| {
                let mut spec = proxy_spec(config, proxy)?;
                spec.extras = super::front::extras(&extension.proxy)?;
                anyhow::Ok(spec)
            })
            .transpose()?,
    })
}

/// `proxy:` of a role or accessory, as the host takes it.
pub(super) fn proxy_spec(config: &Resolved, proxy: &model::Proxy) -> anyhow::Result<ProxySpec> {
    let whole = |key: &str, value: Option<i64>, default: u32| match value {
        Some(value) => seconds(key, value),
        None => Ok(default),
    };
    let tls = match (&proxy.custom_certificate, proxy.ssl) {
        (Some(certificate), true) => Tls::Secrets {
            certificate: EnvName::parse(&certificate.certificate_pem)?,
            private_key: EnvName::parse(&certificate.private_key_pem)?,
        },
        (None, true) => Tls::Auto,
        (_, false) => Tls::Off,
    };
    let bytes = |value: Option<i64>| {
        value
            .and_then(|value| u64::try_from(value).ok())
            .filter(|value| *value > 0)
    };
    Ok(ProxySpec {
        service_name: proxy.service_name.clone(),
        hosts: proxy.hosts.clone(),
        app_port: u16::try_from(proxy.app_port)
            .ok()
            .filter(|port| *port > 0)
            .with_context(|| format!("proxy/app_port: {} is not a port (1 to 65535)", proxy.app_port))?,
        tls,
        ssl_redirect: proxy.ssl_redirect.unwrap_or(true),
        path_prefixes: proxy.path_prefixes.clone(),
        strip_path_prefix: proxy.strip_path_prefix.unwrap_or(true),
        healthcheck: Healthcheck {
            path: proxy
                .healthcheck
                .path
                .as_ref()
                .map_or_else(|| "/up".to_owned(), ToString::to_string),
            interval: whole("proxy/healthcheck/interval", proxy.healthcheck.interval, 1)?,
            timeout: whole("proxy/healthcheck/timeout", proxy.healthcheck.timeout, 5)?,
        },
        response_timeout: whole("proxy/response_timeout", proxy.response_timeout, 30)?,
        deploy_timeout: seconds("deploy_timeout", config.timeouts.deploy_timeout)?,
        drain_timeout: seconds("drain_timeout", config.timeouts.drain_timeout)?,
        forward_headers: proxy.forward_headers,
        buffering: Some(Buffering {
            requests: proxy.buffering.holds_requests(),
            responses: proxy.buffering.holds_responses(),
            memory: bytes(proxy.buffering.memory),
            max_request_body: bytes(proxy.buffering.max_request_body),
            max_response_body: bytes(proxy.buffering.max_response_body),
        }),
        extras: ProxyExtras::default(),
        log_request_headers: proxy.log_request_headers.clone(),
        log_response_headers: proxy.log_response_headers.clone().unwrap_or_default(),
    })
}
