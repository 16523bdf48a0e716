//! `kamal-proxy.state`: what kamal-proxy would serve after a restart, and here what is taken over.
//!
//! The form is that of kamal-proxy 0.8 to 0.9.2 and of its main branch (`internal/server/service.go`, `target.go`).
//! A field that we do not know could change what visitors get, so a file that has one is refused, not guessed at.

use std::collections::BTreeSet;

use serde::Deserialize;

/// A service that can be taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `<service>-<role>[-<destination>]`, or an accessory's container name.
    pub name: String,
    /// Host names; empty means any.
    pub hosts: Vec<String>,
    /// Path prefixes; empty means `/`.
    pub path_prefixes: Vec<String>,
    /// Whether the prefix is removed before the app sees the path.
    pub strip_prefix: bool,
    /// The container: its short id or its name.
    pub container: String,
    /// The port it listens on.
    pub port: u16,
    /// Who brings the certificate.
    pub tls: Tls,
    /// Whether plain HTTP is redirected when TLS is on.
    pub tls_redirect: bool,
    /// The one host that all others are redirected to.
    pub canonical_host: Option<String>,
    /// Directory of error pages, inside kamal-proxy's container.
    pub error_pages: Option<String>,
    /// Path of the health check.
    pub health_path: String,
    /// Seconds between two health checks, from 1.
    pub health_interval: u32,
    /// Seconds that a health check may take, from 1.
    pub health_timeout: u32,
    /// Seconds that the app has for response headers.
    pub response_timeout: u32,
    /// Whether `X-Forwarded-*` of the visitor is believed.
    pub forward_headers: bool,
    /// Buffering of requests, of responses, bytes in memory, largest request, largest response (0: no limit).
    pub buffering: (bool, bool, u64, u64, u64),
    /// Request headers in the log.
    pub log_request_headers: Vec<String>,
    /// Response headers in the log.
    pub log_response_headers: Vec<String>,
    /// The message of the maintenance page, while the service is stopped.
    pub stopped: Option<String>,
}

/// Who brings the certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Plain HTTP.
    Off,
    /// kamal-proxy had it from an ACME authority.
    Acme {
        /// The authority's directory.
        directory: String,
        /// Where certificates are cached, inside kamal-proxy's container.
        cache: String,
    },
    /// Files inside kamal-proxy's container.
    Files {
        /// Certificate chain, PEM.
        certificate: String,
        /// Private key, PEM.
        private_key: String,
    },
}

/// The file cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It is not of a form that we know.
    #[error(
        "kamal-proxy.state is of a form that this version does not know (known is that of kamal-proxy 0.8 to 0.9.2)"
    )]
    Form(#[source] serde_json::Error),
    /// A service uses what Kamal cannot set, and what would be lost.
    #[error("kamal-proxy's service {service} {what}")]
    Beyond {
        /// Its name.
        service: String,
        /// What it has, as the end of a sentence.
        what: String,
    },
    /// Two services of one name.
    #[error("kamal-proxy.state names the service {0} twice")]
    Twice(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    name: String,
    options: Options,
    target_options: TargetOptions,
    #[serde(default)]
    active_targets: Option<Vec<String>>,
    #[serde(default)]
    active_readers: Option<Vec<String>>,
    #[serde(default)]
    rollout_targets: Option<Vec<String>>,
    #[serde(default)]
    rollout_readers: Option<Vec<String>>,
    #[serde(default)]
    pause_controller: Option<Pause>,
    #[serde(default, rename = "rollout_controller")]
    _rollout_controller: Option<serde_json::Value>,
    // As versions before 0.9 wrote them.
    #[serde(default)]
    active_target: String,
    #[serde(default)]
    rollout_target: String,
    #[serde(default)]
    hosts: Option<Vec<String>>,
    #[serde(default)]
    path_prefixes: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default)]
    hosts: Option<Vec<String>>,
    #[serde(default)]
    path_prefixes: Option<Vec<String>>,
    tls_enabled: bool,
    #[serde(default)]
    tls_certificate_path: String,
    #[serde(default)]
    tls_private_key_path: String,
    #[serde(default)]
    tls_on_demand_url: String,
    #[serde(default)]
    tls_redirect: bool,
    #[serde(default)]
    canonical_host: String,
    #[serde(default)]
    acme_directory: String,
    #[serde(default)]
    acme_cache_path: String,
    #[serde(default)]
    error_page_path: String,
    #[serde(default)]
    strip_prefix: bool,
    #[serde(default, rename = "writer_affinity_timeout")]
    _writer_affinity_timeout: i64,
    #[serde(default, rename = "read_targets_accept_websockets")]
    _read_targets_accept_websockets: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetOptions {
    health_check_config: HealthCheck,
    /// Nanoseconds, as Go writes durations.
    response_timeout: i64,
    #[serde(default)]
    buffer_requests: bool,
    #[serde(default)]
    buffer_responses: bool,
    #[serde(default)]
    max_memory_buffer_size: i64,
    #[serde(default)]
    max_request_body_size: i64,
    #[serde(default)]
    max_response_body_size: i64,
    #[serde(default)]
    log_request_headers: Option<Vec<String>>,
    #[serde(default)]
    log_response_headers: Option<Vec<String>>,
    #[serde(default)]
    forward_headers: bool,
    #[serde(default)]
    scope_cookie_paths: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthCheck {
    path: String,
    #[serde(default)]
    port: i64,
    interval: i64,
    timeout: i64,
    #[serde(default)]
    host: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pause {
    /// 0 runs, 1 is paused, 2 is stopped.
    state: i64,
    #[serde(default)]
    stop_message: String,
    #[serde(default, rename = "fail_after")]
    _fail_after: i64,
}

/// The services of the file's text.
///
/// # Errors
/// When it is of another form, or a service has what we could not serve in the same way.
pub fn parse(text: &[u8]) -> Result<Vec<Service>, StateError> {
    let saved: Vec<Saved> = serde_json::from_slice(text).map_err(StateError::Form)?;
    let services: Vec<Service> = saved.into_iter().map(service).collect::<Result<_, _>>()?;
    let mut seen = BTreeSet::new();
    for service in &services {
        if !seen.insert(service.name.as_str()) {
            return Err(StateError::Twice(service.name.clone()));
        }
    }
    Ok(services)
}

fn service(saved: Saved) -> Result<Service, StateError> {
    let beyond = |what: &str| {
        Err(StateError::Beyond {
            service: saved.name.clone(),
            what: what.to_owned(),
        })
    };
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let (options, target) = (&saved.options, &saved.target_options);
    if some(&saved.rollout_targets) || some(&saved.rollout_readers) || !saved.rollout_target.is_empty() {
        return beyond("has a rollout in progress; end it first: kamal-proxy rollout stop");
    }
    if some(&saved.active_readers) {
        return beyond("has read targets, which Kamal does not make");
    }
    if !options.tls_on_demand_url.is_empty() {
        return beyond("asks for certificates on demand");
    }
    if target.scope_cookie_paths {
        return beyond("scopes the paths of cookies");
    }
    if target.health_check_config.port != 0 || !target.health_check_config.host.is_empty() {
        return beyond("checks health on another port or host name than the app's");
    }
    let targets = match saved.active_targets.as_deref() {
        None | Some([]) if !saved.active_target.is_empty() => std::slice::from_ref(&saved.active_target),
        targets => targets.unwrap_or_default(),
    };
    let [only] = targets else {
        return beyond(&format!("has {} targets, where Kamal makes one", targets.len()));
    };
    let (container, port) = match only.rsplit_once(':') {
        None => (only.as_str(), Some(80)),
        Some((container, port)) => (container, port.parse().ok().filter(|port| *port > 0)),
    };
    let (false, Some(port)) = (container.is_empty(), port) else {
        return beyond(&format!(
            "has the target {only:?}, which is no container and port"
        ));
    };
    let stopped = match &saved.pause_controller {
        None => None,
        Some(Pause { state: 0, .. }) => None,
        Some(Pause {
            state: 2,
            stop_message,
            ..
        }) => Some(stop_message.clone()),
        Some(_) => return beyond("is paused; let it go on first: kamal-proxy resume"),
    };
    let list = |new: &Option<Vec<String>>, old: &Option<Vec<String>>| match some(new) {
        true => new.clone().unwrap_or_default(),
        false => old.clone().unwrap_or_default(),
    };
    // The catch-all is written as an empty name.
    let mut hosts = list(&options.hosts, &saved.hosts);
    hosts.retain(|host| !host.is_empty());
    let mut path_prefixes = list(&options.path_prefixes, &saved.path_prefixes);
    path_prefixes.retain(|prefix| !prefix.is_empty() && prefix != "/");
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let tls = match (
        options.tls_enabled,
        text(&options.tls_certificate_path),
        text(&options.tls_private_key_path),
    ) {
        (false, ..) => Tls::Off,
        (true, Some(certificate), Some(private_key)) => Tls::Files {
            certificate,
            private_key,
        },
        (true, ..) => Tls::Acme {
            directory: options.acme_directory.clone(),
            cache: options.acme_cache_path.clone(),
        },
    };
    let size = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
    Ok(Service {
        name: saved.name.clone(),
        hosts,
        path_prefixes,
        strip_prefix: options.strip_prefix,
        container: container.to_owned(),
        port,
        tls,
        tls_redirect: options.tls_redirect,
        canonical_host: text(&options.canonical_host),
        error_pages: text(&options.error_page_path),
        health_path: target.health_check_config.path.clone(),
        health_interval: seconds(target.health_check_config.interval),
        health_timeout: seconds(target.health_check_config.timeout),
        response_timeout: seconds(target.response_timeout),
        forward_headers: target.forward_headers,
        buffering: (
            target.buffer_requests,
            target.buffer_responses,
            size(target.max_memory_buffer_size),
            size(target.max_request_body_size),
            size(target.max_response_body_size),
        ),
        log_request_headers: target.log_request_headers.clone().unwrap_or_default(),
        log_response_headers: target.log_response_headers.clone().unwrap_or_default(),
        stopped,
    })
}

/// Nanoseconds as whole seconds, rounded up, from 1.
fn seconds(nanoseconds: i64) -> u32 {
    let whole = nanoseconds.max(0).unsigned_abs().div_ceil(1_000_000_000);
    u32::try_from(whole).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests;
