//! The wire form of a release: everything the agent needs to run it, without `deploy.yml`.
//!
//! All texts are resolved for one host: tags, roles and destinations are already merged.
//! Times are whole seconds, as in Kamal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::extras::ProxyExtras;
use super::{AppName, Destination, Digest, EnvName, Repository, RoleName, Tag};

/// One immutable release of one app for one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// `service` of the configuration; names containers and the proxy's services.
    pub service: AppName,
    /// `-d`, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// Version as Kamal resolves it: the git revision, or what `--version` said.
    pub version: Tag,
    /// How the configuration names this host; becomes `KAMAL_HOST`.
    pub host: String,
    /// What runs.
    pub image: Image,
    /// The roles of this host, in the order they boot, primary role first.
    pub roles: Vec<Role>,
    /// Whether the app's other roles on this host stay as they are (Kamal's `-r`); else they are taken away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Whether roles boot at the same time (`boot.parallel_roles`).
    #[serde(default)]
    pub parallel_roles: bool,
    /// Seconds a new container has to become ready.
    pub deploy_timeout: u32,
    /// Seconds the old container has to finish its requests.
    pub drain_timeout: u32,
    /// Seconds a role without proxy and health check must stay up to count as ready.
    pub readiness_delay: u32,
    /// How many old releases stay at hand.
    pub retain: u32,
    /// Command that runs once before the first container of this release starts, such as migrations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_command: Option<ReleaseCommand>,
    /// How long and how the release is watched after the switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<Watch>,
    /// The part of the visitors that gets this release before the others, when it is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// Error pages by file name (`404.html`), as HTML text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub error_pages: BTreeMap<String, String>,
    /// Base64 of an age file for the host's recipient, holding a JSON object of secret names and values.
    pub sealed_secrets: String,
    /// Digest of the resolved configuration this release was made from.
    pub config_digest: Digest,
    /// Who made it: git's user e-mail, else the login name.
    pub created_by: String,
    /// `x-appliance:` sections that the wire form has no field for, as they were resolved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, serde_json::Value>,
}

/// The image of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Repository without registry server and tag.
    pub repository: Repository,
    /// Digest of the image manifest; the container is started by it, never by a tag.
    pub digest: Digest,
    /// Digest of the image configuration, when known: the image ID of Docker's classic store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Digest>,
    /// Tag to show to people.
    pub tag: Tag,
    /// What the image was built for.
    pub platform: Platform,
    /// Where the host pulls from; absent when the image was pushed to the host itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<RemoteRegistry>,
}

/// A platform in the words of the OCI image specification.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v8`, `v7`, … where the architecture has variants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// A registry that the host pulls from with the release's own credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteRegistry {
    /// `host[:port]`; Docker Hub is `docker.io`.
    pub server: String,
    /// User name, if a login is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Name of the sealed secret that holds the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<EnvName>,
}

/// One role on one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// `web`, `job`, …
    pub name: RoleName,
    /// Whether this is the primary role, whose first healthy container lets the others start.
    pub primary: bool,
    /// Command words; absent means the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Clear environment; no value means that the image's variable of this name is removed.
    #[serde(default)]
    pub env_clear: BTreeMap<EnvName, Option<String>>,
    /// Secret environment: variable name → name in the sealed secrets.
    #[serde(default)]
    pub env_secret: BTreeMap<EnvName, EnvName>,
    /// Labels besides `service`, `role` and `destination`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `options` as `docker run` flags: name without dashes → values; no value is a bare flag.
    #[serde(default)]
    pub options: BTreeMap<String, Vec<Option<String>>>,
    /// `volumes`, as `docker run --volume` takes them.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Log driver and options.
    #[serde(default)]
    pub logging: Logging,
    /// Seconds between SIGTERM and SIGKILL; absent means Kamal's default for the kind of role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<u32>,
    /// `no`, `always`, `unless-stopped` or `on-failure[:N]`.
    #[serde(default = "unless_stopped")]
    pub restart: String,
    /// `asset_path`, if assets are bridged between releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asset_path: Option<String>,
    /// Mount options of the asset volume; read-only unless they say `rw`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asset_options: Option<String>,
    /// How the proxy serves this role; absent for roles without visitors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxySpec>,
}

fn unless_stopped() -> String {
    "unless-stopped".to_owned()
}

/// `logging:` of a role; both empty means the host's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logging {
    /// Docker log driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Its options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// `proxy:` of a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxySpec {
    /// `<service>-<role>[-<destination>]`.
    pub service_name: String,
    /// Host names; empty means any.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Port the container listens on.
    pub app_port: u16,
    /// Who brings the certificate.
    pub tls: Tls,
    /// Whether plain HTTP is redirected when TLS is on.
    pub ssl_redirect: bool,
    /// Path prefixes; empty means `/`.
    #[serde(default)]
    pub path_prefixes: Vec<String>,
    /// Whether the prefix is removed before the app sees the path.
    pub strip_path_prefix: bool,
    /// When a container counts as healthy.
    pub healthcheck: Healthcheck,
    /// Seconds the app has to send response headers.
    pub response_timeout: u32,
    /// Seconds until healthy or given up.
    pub deploy_timeout: u32,
    /// Seconds for requests in flight after the switch.
    pub drain_timeout: u32,
    /// Whether `X-Forwarded-*` of the visitor is believed; absent means Kamal's default (only without TLS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_headers: Option<bool>,
    /// Buffering; absent means streaming.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffering: Option<Buffering>,
    /// What the proxy does beyond Kamal's `proxy:`.
    #[serde(default, skip_serializing_if = "ProxyExtras::is_none")]
    pub extras: ProxyExtras,
    /// Request headers in the access log.
    #[serde(default)]
    pub log_request_headers: Vec<String>,
    /// Response headers in the access log.
    #[serde(default)]
    pub log_response_headers: Vec<String>,
}

/// Who brings the certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Tls {
    /// Plain HTTP.
    Off,
    /// The appliance: ACME, or its local CA in development.
    Auto,
    /// The release: names of the sealed secrets that hold the PEM texts.
    Secrets {
        /// Certificate chain.
        certificate: EnvName,
        /// Private key.
        private_key: EnvName,
    },
}

/// `proxy.healthcheck`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Healthcheck {
    /// Kamal's default is `/up`.
    pub path: String,
    /// Seconds between tries.
    pub interval: u32,
    /// Seconds per try.
    pub timeout: u32,
}

/// `proxy.buffering`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buffering {
    /// Whether request bodies are read whole first.
    pub requests: bool,
    /// Whether response bodies are read whole first.
    pub responses: bool,
    /// Bytes in memory before spilling to disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Bytes; 0 or absent means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_request_body: Option<u64>,
    /// Bytes; 0 or absent means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_response_body: Option<u64>,
}

/// A command that runs once per release, in a container of the new image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseCommand {
    /// Command words.
    pub command: Vec<String>,
    /// Role whose environment and volumes it gets.
    pub role: RoleName,
    /// Seconds until it is stopped and the release refused.
    pub timeout: u32,
}

/// Who gets a new release first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// Share of the visitors, 0 to 100.
    #[serde(default)]
    pub percent: f64,
    /// Values of the cookie `kamal-rollout` that choose it whatever the share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cookies: Vec<String>,
    /// A header field that chooses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<CanaryHeader>,
    /// Seconds after which a good canary is promoted by itself; absent: somebody decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<u32>,
}

/// A header field that chooses the canary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryHeader {
    /// Its name.
    pub name: String,
    /// The value it must have.
    pub value: String,
}

/// What makes a release go back on its own after the switch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Seconds after the switch; 0 for not at all.
    pub window: u32,
    /// Share of responses (0.0–1.0) with status 5xx above the old release's that is too much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_rate: Option<f64>,
    /// 95th percentile of the new release's latency divided by that of the old one that is too much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_factor: Option<f64>,
}
