//! The resolved configuration: every value Kamal 2.12 computes from the files, checked and with defaults filled in.
//!
//! It serializes to the fields of a `runs[]` entry of the conformance data, under the same names.
//! "Kamal's text" below means what Ruby's `to_s` makes of a YAML scalar.

use std::fmt;

use indexmap::IndexMap;
use serde::Serialize;

/// A scalar that Kamal passes on as it was written, number or text.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Scalar {
    /// `true` or `false`.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text, symbols and integers beyond 64 bits.
    Text(String),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => f.write_str(&crate::ruby::float_to_s(*value)),
            Self::Text(value) => f.write_str(value),
        }
    }
}

/// Docker options: name → values; `None` is a flag without a value.
pub type Options = IndexMap<String, Vec<Option<String>>>;

/// Names with values as passed to Docker; `None` is a name without a value (the value was blank).
pub type Pairs = IndexMap<String, Option<String>>;

/// The configuration of one app for one destination.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Resolved {
    /// `-d`, if given.
    pub destination: Option<String>,
    /// Prefix of all names: letters, digits, `-` and `_`.
    pub service: String,
    /// The version to deploy.
    pub version: String,
    /// The image's names.
    pub image: Image,
    /// Name of the role that is deployed first.
    pub primary_role: String,
    /// First host of the primary role; none when only accessories are configured.
    pub primary_host: Option<String>,
    /// Hosts of roles, then of accessories, each once.
    pub all_hosts: Vec<String>,
    /// Hosts of roles, each once.
    pub app_hosts: Vec<String>,
    /// Hosts with something behind the proxy, each once.
    pub proxy_hosts: Vec<String>,
    /// Roles in alphabetical order, as Kamal keeps them.
    pub roles: Vec<Role>,
    /// Accessories in file order.
    pub accessories: Vec<Accessory>,
    /// The shared proxy container: one entry for each distinct `proxy.run`.
    pub proxy_container: Vec<ProxyContainer>,
    /// The image registry.
    pub registry: Registry,
    /// How the image is built.
    pub builder: Builder,
    /// How hosts are reached.
    pub ssh: Ssh,
    /// Limits on connecting.
    pub sshkit: Sshkit,
    /// Pace of a deploy over hosts.
    pub boot: Boot,
    /// Command aliases.
    pub aliases: IndexMap<String, Scalar>,
    /// Directory of hook scripts, relative to the project.
    pub hooks_path: String,
    /// `quiet`, `verbose`, or a map from hook to one of them.
    pub hooks_output: Option<serde_json::Value>,
    /// Base name of the secrets files, relative to the project.
    pub secrets_path: String,
    /// How many old containers are kept, at least 1.
    pub retain_containers: i64,
    /// Oldest version of Kamal the file is written for.
    pub minimum_version: Option<Scalar>,
    /// Whether `-d` is mandatory.
    pub require_destination: bool,
    /// Local directory of `4xx.html` and `5xx.html` pages.
    pub error_pages_path: Option<String>,
    /// The waiting times of a deploy.
    pub timeouts: Timeouts,
    /// Docker's logging flags, values quoted for a shell as Kamal passes them.
    pub logging_args: Vec<String>,
    /// Where deploy logs go, as written.
    pub output: Option<serde_json::Value>,
    /// Which secrets files exist.
    pub secrets: SecretFiles,
    /// Root `labels`, before the identity labels are added.
    #[serde(skip)]
    pub labels: Pairs,
    /// Root logging, before roles add theirs.
    #[serde(skip)]
    pub logging: Logging,
}

/// The image's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    /// Registry server and image, without a tag.
    pub repository: String,
    /// `repository:version`.
    pub absolute: String,
    /// `repository:latest[-destination]`.
    pub latest: String,
}

/// A group of hosts that run the same command.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Whether it is the primary role.
    pub primary: bool,
    /// Its hosts, in file order.
    pub hosts: Vec<String>,
    /// Whether requests reach it through the proxy.
    pub running_proxy: bool,
    /// Command appended raw to `docker run`.
    pub cmd: Option<Scalar>,
    /// `<service>-<role>[-<destination>]-<version>`.
    pub container_name: String,
    /// `<service>-<role>[-<destination>]`.
    pub container_prefix: String,
    /// Docker's restart policy.
    pub restart: String,
    /// Arguments of `docker stop`.
    pub stop_args: Vec<String>,
    /// Seconds given to `docker stop`, if configured.
    pub stop_timeout: Option<i64>,
    /// Container labels, identity labels included.
    pub labels: Pairs,
    /// Docker options, `restart` taken out.
    pub options: Options,
    /// Volumes, verbatim.
    pub volumes: Vec<String>,
    /// Docker's logging flags, values quoted for a shell.
    pub logging_args: Vec<String>,
    /// Where assets are inside the container.
    pub asset_path: Option<String>,
    /// The volume that bridges assets between releases; `$PWD` is the SSH user's home.
    pub asset_volume: Option<String>,
    /// What differs from host to host.
    pub per_host: Vec<RoleHost>,
    /// How the proxy serves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// Logging, root and role merged.
    #[serde(skip)]
    pub logging: Logging,
    /// Mount options of the asset volume.
    #[serde(skip)]
    pub asset_path_options: Option<String>,
}

/// A role on one host.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum RoleHost {
    /// The environment equals that of an earlier host.
    SameAs {
        /// The host.
        host: String,
        /// The earlier host.
        same_as: String,
    },
    /// The environment in full.
    Own {
        /// The host.
        host: String,
        /// The tags that hold for it.
        env_tags: Vec<String>,
        /// The environment passed in the clear.
        env_clear: Pairs,
        /// `NAME` or `NAME:SECRET` of each secret.
        env_secret: Vec<String>,
        /// The file secrets go to.
        env_file: EnvFile,
    },
}

impl RoleHost {
    /// The host.
    pub fn host(&self) -> &str {
        match self {
            Self::SameAs { host, .. } | Self::Own { host, .. } => host,
        }
    }
}

impl Role {
    /// The environment of this role on `host`: clear values, and secrets as `NAME` or `NAME:SECRET`.
    pub fn env(&self, host: &str) -> Option<(&Pairs, &[String])> {
        let entry = self.per_host.iter().find(|entry| entry.host() == host)?;
        match entry {
            RoleHost::Own {
                env_clear,
                env_secret,
                ..
            } => Some((env_clear, env_secret)),
            RoleHost::SameAs { same_as, .. } if same_as != host => self.env(same_as),
            RoleHost::SameAs { .. } => None,
        }
    }
}

/// A file with secrets on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnvFile {
    /// Path in the SSH user's home.
    pub path: String,
}

/// Docker's logging.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Logging {
    /// The driver, if named.
    pub driver: Option<String>,
    /// Its options; empty with no driver means Docker's default with `max-size=10m`.
    pub options: Pairs,
}

/// How the proxy serves a role or an accessory; `None` means "not set", so no flag.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Proxy {
    /// The service's name at the proxy.
    pub service_name: String,
    /// Host names; empty is any host.
    pub hosts: Vec<String>,
    /// Port of the app inside the container.
    pub app_port: i64,
    /// Whether TLS is terminated.
    pub ssl: bool,
    /// A certificate from secrets, instead of an automatic one.
    pub custom_certificate: Option<CustomCertificate>,
    /// Whether plain requests are sent to HTTPS.
    pub ssl_redirect: Option<bool>,
    /// Path prefixes; empty is `/`.
    pub path_prefixes: Vec<String>,
    /// Whether the prefix is removed before the app sees the request.
    pub strip_path_prefix: Option<bool>,
    /// How the proxy finds out that a container is healthy.
    pub healthcheck: Healthcheck,
    /// Seconds to wait for the app's answer.
    pub response_timeout: Option<i64>,
    /// Seconds for a new container to become healthy.
    pub deploy_timeout: i64,
    /// Seconds for requests to finish on the old container.
    pub drain_timeout: i64,
    /// Buffering of bodies.
    pub buffering: Buffering,
    /// Request headers that are logged.
    pub log_request_headers: Vec<String>,
    /// Response headers that are logged.
    pub log_response_headers: Option<Vec<String>>,
    /// Whether `X-Forwarded-*` of the client is passed on.
    pub forward_headers: Option<bool>,
    /// Options of the shared proxy container.
    pub run: Option<ProxyRun>,
}

/// Secret names of a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CustomCertificate {
    /// Secret with the certificate chain.
    pub certificate_pem: String,
    /// Secret with the private key.
    pub private_key_pem: String,
}

/// A health check over HTTP.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Healthcheck {
    /// Path asked for; the proxy's default is `/up`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Scalar>,
    /// Seconds between checks; the proxy's default is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<i64>,
    /// Seconds one check may take; the proxy's default is 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// Buffering of bodies at the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Buffering {
    /// Whether requests are buffered.
    pub requests: bool,
    /// Whether responses are buffered.
    pub responses: bool,
    /// Bytes held in memory before a body goes to disk.
    pub memory: Option<i64>,
    /// Largest request body in bytes; 0 or `None` is unlimited.
    pub max_request_body: Option<i64>,
    /// Largest response body in bytes; 0 or `None` is unlimited.
    pub max_response_body: Option<i64>,
    /// `requests` as it was written.
    #[serde(skip)]
    pub written_requests: Option<bool>,
    /// `responses` as it was written.
    #[serde(skip)]
    pub written_responses: Option<bool>,
}

impl Buffering {
    /// Whether requests are held back: only where somebody asked for it. Kamal's own default would delay every upload.
    pub fn holds_requests(&self) -> bool {
        self.written_requests == Some(true)
    }

    /// Whether responses are held back: where somebody asked for it, or set a limit that cannot be kept otherwise.
    /// Kamal's own default would hold up every stream.
    pub fn holds_responses(&self) -> bool {
        let limited = self.max_response_body.is_some_and(|most| most > 0);
        self.written_responses.unwrap_or(limited)
    }
}

/// Options of the shared proxy container, as written.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ProxyRun {
    /// Published port for HTTP, 80 unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_port: Option<i64>,
    /// Published port for HTTPS, 443 unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https_port: Option<i64>,
    /// Port for metrics, off unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_port: Option<i64>,
    /// Debug log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug: Option<bool>,
    /// Size at which Docker rotates the log, `10m` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_max_size: Option<Scalar>,
    /// Whether ports are published at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish: Option<bool>,
    /// Addresses to publish on; all unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_ips: Option<Vec<Scalar>>,
    /// Registry of the proxy's image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<Scalar>,
    /// Repository of the proxy's image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<Scalar>,
    /// Version of the proxy's image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Scalar>,
    /// Further `docker run` options, as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<serde_json::Value>,
}

/// The shared proxy container on a host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProxyContainer {
    /// The first host with these options.
    pub host: String,
    /// The options; `None` is Kamal's default.
    pub run: Option<ProxyRun>,
}

/// A container beside the app, such as a database.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accessory {
    /// Its key in the file.
    pub name: String,
    /// Name of its container.
    pub service_name: String,
    /// Its image, with registry and tag.
    pub image: String,
    /// Where it runs.
    pub hosts: Vec<String>,
    /// The published port as written.
    pub port: Option<String>,
    /// Docker network.
    pub network: Scalar,
    /// Docker's publish flags.
    pub publish_args: Vec<String>,
    /// Command appended raw to `docker run`.
    pub cmd: Option<Scalar>,
    /// Docker's restart policy.
    pub restart: String,
    /// Container labels.
    pub labels: Pairs,
    /// Docker options, `restart` taken out.
    pub options: Options,
    /// The environment passed in the clear.
    pub env_clear: Pairs,
    /// `NAME` or `NAME:SECRET` of each secret.
    pub env_secret: Vec<String>,
    /// Volumes, verbatim.
    pub volumes: Vec<String>,
    /// Uploaded files.
    pub files: Vec<Mounted>,
    /// Directories made on the host.
    pub directories: Vec<Mounted>,
    /// Docker's volume flags; `$PWD` is the SSH user's home.
    pub volume_args: Vec<String>,
    /// The file secrets go to.
    pub env_file: EnvFile,
    /// Its own registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<Registry>,
    /// How the proxy serves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
}

/// A file or directory that is mounted into an accessory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mounted {
    /// Files: absolute path on the developer's machine. Directories: path on the host; `$PWD` is the SSH user's home.
    pub local: String,
    /// Path on the host, relative to the SSH user's home.
    pub host_path: String,
    /// Path in the container.
    pub container_path: String,
    /// File mode, octal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Scalar>,
    /// `user:group`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Scalar>,
    /// Mount options.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Scalar>,
    /// Whether the file is ERB, rendered with the accessory's environment when it is uploaded.
    #[serde(skip)]
    pub template: bool,
}

/// An image registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Registry {
    /// Host and port; `None` is Docker Hub.
    pub server: Option<String>,
    /// Whether it is a registry on the developer's machine (`localhost:PORT`).
    pub local: bool,
    /// Its port, when local.
    pub local_port: Option<i64>,
    /// Who logs in.
    pub username: Option<Credential>,
    /// With which password.
    pub password: Option<Credential>,
}

/// A literal value, or the name of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Credential {
    /// Written in the file.
    Literal(String),
    /// To be looked up.
    Secret {
        /// The secret's name.
        secret: String,
    },
}

/// How the image is built.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Builder {
    /// Which of Kamal's builders.
    pub kind: BuilderKind,
    /// The buildx driver.
    pub driver: String,
    /// Architectures to build for.
    pub arches: Vec<String>,
    /// Those built on this machine.
    pub local_arches: Vec<String>,
    /// The remote builder's endpoint.
    pub remote: Option<Scalar>,
    /// Build context; `.` in a clean clone when [`Builder::git_clone`].
    pub context: Scalar,
    /// The Dockerfile.
    pub dockerfile: Scalar,
    /// Stage to build.
    pub target: Option<Scalar>,
    /// Build arguments.
    pub args: Pairs,
    /// Names of build secrets.
    pub secret_names: Vec<String>,
    /// SSH agent or keys for the build.
    pub ssh: Option<Scalar>,
    /// Provenance attestation.
    pub provenance: Option<Scalar>,
    /// Bill of materials.
    pub sbom: Option<bool>,
    /// `--cache-to`.
    pub cache_to: Option<String>,
    /// `--cache-from`.
    pub cache_from: Option<String>,
    /// Whether the build runs in a clean clone of the repository (no `context` is set).
    pub git_clone: bool,
    /// Cloud Native Buildpacks.
    pub pack: Option<Pack>,
}

/// Kamal's kinds of builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BuilderKind {
    /// On this machine.
    Local,
    /// On another machine.
    Remote,
    /// Some architectures here, some there.
    Hybrid,
    /// Docker Build Cloud.
    Cloud,
    /// Cloud Native Buildpacks.
    Pack,
}

/// Cloud Native Buildpacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pack {
    /// The builder image.
    pub builder: Option<String>,
    /// The buildpacks, the one that writes labels included.
    pub buildpacks: Vec<String>,
}

/// How hosts are reached.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ssh {
    /// Log-in name.
    pub user: Scalar,
    /// Port.
    pub port: Scalar,
    /// Private key files.
    pub keys: Option<Vec<String>>,
    /// Whether only these keys are offered.
    pub keys_only: Option<bool>,
    /// Secret names of private keys (or, deprecated, the keys themselves: never shown).
    pub key_data: Option<Vec<String>>,
    /// `true`, `false`, a file or a list of files of OpenSSH configuration.
    pub config: Option<serde_json::Value>,
    /// Agent forwarding.
    pub forward_agent: Option<bool>,
    /// Log level.
    pub log_level: Scalar,
    /// Jump host, `user@host`.
    pub proxy_jump: Option<String>,
    /// Proxy command.
    pub proxy_command: Option<Scalar>,
}

/// Limits on connecting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sshkit {
    /// Connections opened at once.
    pub max_concurrent_starts: i64,
    /// Seconds an idle connection is kept.
    pub pool_idle_timeout: i64,
    /// Retries of a failing name look-up.
    pub dns_retries: i64,
}

/// Pace of a deploy over hosts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Boot {
    /// Hosts at once; percentages are already counted out over all hosts (at least 1).
    pub limit: Option<Scalar>,
    /// Seconds after each group.
    pub wait: Option<i64>,
    /// Whether the roles of a host boot at once.
    pub parallel_roles: Option<bool>,
}

/// The waiting times of a deploy, in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// Wait after start, where neither proxy nor health check tells.
    pub readiness_delay: i64,
    /// For a new container to become ready.
    pub deploy_timeout: i64,
    /// For requests to finish on the old one.
    pub drain_timeout: i64,
    /// For `docker stop`, if set.
    pub stop_timeout: Option<i64>,
}

/// Which secrets files exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SecretFiles {
    /// Their names, in the order they are read.
    pub files: Vec<String>,
}
