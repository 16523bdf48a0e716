//! The keys of every section and the types of their values (Kamal 2.12, `configuration/docs/*.yml` and `validator.rb`).

/// What a value must be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// Text; Kamal takes numbers, booleans and symbols for it.
    Text,
    /// An integer.
    Int,
    /// `true` or `false`.
    Bool,
    /// A map with these keys.
    Keys(&'static [(&'static str, Shape)]),
    /// Any map; a section of its own checks it, or nothing does.
    AnyMap,
    /// Any map of text.
    TextMap,
    /// A list of text.
    TextList,
    /// Text or a list of text.
    TextOrList,
    /// A list of hosts, each perhaps with tags.
    Hosts,
    /// The root's `servers`.
    Servers,
    /// `proxy`: a map; the check of the section itself decides where a boolean will do.
    Proxy,
    /// `ssl`: a boolean or a map.
    Ssl,
    /// `ssh.config`.
    SshConfig,
    /// `files` and `directories` of an accessory.
    Paths,
    /// `hooks_output`.
    HooksOutput,
}

use Shape::{
    AnyMap, Bool, HooksOutput, Hosts, Int, Keys, Paths, Proxy, Servers, SshConfig, Ssl, Text, TextList,
    TextMap, TextOrList,
};

/// Keys and the shapes of their values.
pub(crate) type Section = &'static [(&'static str, Shape)];

/// Root keys.
pub(crate) const ROOT: Section = &[
    ("service", Text),
    ("image", Text),
    ("labels", TextMap),
    ("volumes", TextList),
    ("registry", AnyMap),
    ("servers", Servers),
    ("env", AnyMap),
    ("asset_path", Text),
    ("hooks_path", Text),
    ("hooks_output", HooksOutput),
    ("secrets_path", Text),
    ("error_pages_path", Text),
    ("require_destination", Bool),
    ("primary_role", Text),
    ("allow_empty_roles", Bool),
    ("retain_containers", Int),
    ("minimum_version", Text),
    ("readiness_delay", Int),
    ("deploy_timeout", Int),
    ("drain_timeout", Int),
    ("stop_timeout", Int),
    ("run_directory", Text),
    ("ssh", AnyMap),
    ("builder", AnyMap),
    ("accessories", AnyMap),
    ("proxy", Proxy),
    ("sshkit", AnyMap),
    ("boot", AnyMap),
    ("logging", AnyMap),
    ("output", AnyMap),
    ("aliases", AnyMap),
];

/// Keys of a role in map form.
pub(crate) const ROLE: Section = &[
    ("hosts", Hosts),
    ("cmd", Text),
    ("stop_timeout", Int),
    ("options", AnyMap),
    ("logging", AnyMap),
    ("proxy", Proxy),
    ("labels", TextMap),
    ("env", AnyMap),
    ("asset_path", Text),
];

/// `registry`, without the two keys that have rules of their own.
pub(crate) const REGISTRY: Section = &[("server", Text)];

/// All keys of `registry`, for suggestions.
pub(crate) const REGISTRY_KEYS: &[&str] = &["server", "username", "password"];

/// `accessories.<name>`.
pub(crate) const ACCESSORY: Section = &[
    ("service", Text),
    ("image", Text),
    ("registry", AnyMap),
    ("host", Text),
    ("hosts", Hosts),
    ("role", Text),
    ("roles", TextList),
    ("tag", Text),
    ("tags", TextList),
    ("cmd", Text),
    ("port", Text),
    ("labels", TextMap),
    ("options", AnyMap),
    ("env", AnyMap),
    ("files", Paths),
    ("directories", Paths),
    ("volumes", TextList),
    ("network", Text),
    ("proxy", Proxy),
];

/// `boot`.
pub(crate) const BOOT: Section = &[("limit", Text), ("wait", Int), ("parallel_roles", Bool)];

/// `builder`.
pub(crate) const BUILDER: Section = &[
    ("driver", Text),
    ("arch", TextOrList),
    ("remote", Text),
    ("local", Bool),
    ("pack", Keys(&[("builder", Text), ("buildpacks", TextList)])),
    (
        "cache",
        Keys(&[("type", Text), ("options", Text), ("image", Text)]),
    ),
    ("context", Text),
    ("dockerfile", Text),
    ("target", Text),
    ("args", AnyMap),
    ("secrets", TextList),
    ("ssh", Text),
    ("provenance", Text),
    ("sbom", Bool),
];

/// `logging`.
pub(crate) const LOGGING: Section = &[("driver", Text), ("options", AnyMap)];

/// `output`.
pub(crate) const OUTPUT: Section = &[
    ("otel", Keys(&[("endpoint", Text)])),
    ("file", Keys(&[("path", Text)])),
];

/// `proxy`, of the root, a role or an accessory.
pub(crate) const PROXY: Section = &[
    ("host", Text),
    ("hosts", Hosts),
    ("app_port", Int),
    ("ssl", Ssl),
    ("ssl_redirect", Bool),
    ("forward_headers", Bool),
    ("response_timeout", Int),
    ("path_prefix", Text),
    ("path_prefixes", TextList),
    ("strip_path_prefix", Bool),
    (
        "healthcheck",
        Keys(&[("interval", Int), ("path", Text), ("timeout", Int)]),
    ),
    (
        "buffering",
        Keys(&[
            ("requests", Bool),
            ("responses", Bool),
            ("max_request_body", Int),
            ("max_response_body", Int),
            ("memory", Int),
        ]),
    ),
    (
        "logging",
        Keys(&[("request_headers", TextList), ("response_headers", TextList)]),
    ),
    (
        "run",
        Keys(&[
            ("http_port", Int),
            ("https_port", Int),
            ("metrics_port", Int),
            ("debug", Bool),
            ("log_max_size", Text),
            ("publish", Bool),
            ("bind_ips", TextList),
            ("registry", Text),
            ("repository", Text),
            ("version", Text),
            ("options", AnyMap),
        ]),
    ),
];

/// `ssh`.
pub(crate) const SSH: Section = &[
    ("user", Text),
    ("port", Text),
    ("proxy", Text),
    ("proxy_command", Text),
    ("log_level", Text),
    ("keys_only", Bool),
    ("keys", TextList),
    ("key_data", TextList),
    ("config", SshConfig),
    ("forward_agent", Bool),
];

/// `sshkit`.
pub(crate) const SSHKIT: Section = &[
    ("max_concurrent_starts", Int),
    ("pool_idle_timeout", Int),
    ("dns_retries", Int),
];

/// Keys of Kamal 1, or of other tools, and what takes their place.
pub(crate) const REPLACED: &[(&str, &str)] = &[
    (
        "traefik",
        "Kamal 1 key: use `proxy` (host, ssl, app_port); Traefik itself is gone",
    ),
    (
        "healthcheck",
        "Kamal 1 key: use `proxy.healthcheck` (path, interval, timeout) and `proxy.app_port`; for roles without a proxy, the Docker option `health-cmd`",
    ),
    (
        "stop_wait_time",
        "Kamal 1 key: use `drain_timeout` or `stop_timeout`",
    ),
    (
        "multiarch",
        "Kamal 1 key: list the architectures in `builder.arch`",
    ),
    ("primary_web_role", "Kamal 1 key: use `primary_role`"),
    ("host_port", "Kamal 1 key: use `proxy.run.http_port`"),
    ("certificate_pem", "put it under `ssl:`"),
    ("private_key_pem", "put it under `ssl:`"),
    ("retain", "use `retain_containers`"),
    ("aliases_path", "use `aliases`"),
];
