//! `/etc/appliance/host.yml`: the host, as its administrators want it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::checked;
use crate::edge::{Acme, Edge};
use crate::extension::Credentials;
use crate::problem::{Problem, Problems};
use crate::source::Sources;
use crate::units::{Bytes, Location, Network, Ports, PublicKey, Seconds, Share};
use crate::yaml;
use crate::yaml::tree::{Node, Value};

/// Where it stands on a host.
pub const PATH: &str = "/etc/appliance/host.yml";

/// Ports of data stores: opening one to everyone has to be said twice.
pub const DATA_STORE_PORTS: &[u16] = &[
    1433, 2375, 2376, 3306, 5432, 5984, 6379, 8086, 9000, 9200, 9300, 11211, 27017,
];

/// The settings of `host.yml`; every one has a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// People with a shell as root, who may do everything.
    pub admins: Vec<Admin>,
    /// Keys that may send signed changes, without a shell.
    pub deploy_keys: Vec<DeployKey>,
    /// The SSH server.
    pub ssh: Ssh,
    /// What is reachable from outside.
    pub firewall: Firewall,
    /// Places for backups, by a name that apps may use.
    pub backup_targets: BTreeMap<String, BackupTarget>,
    /// Who is told when something is wrong.
    pub alerts: Alerts,
    /// What the apps together may use, and how much the host keeps free.
    pub limits: Limits,
    /// The Docker Engine.
    pub docker: Docker,
    /// Security updates and reboots.
    pub updates: Updates,
    /// What the names of apps lead to.
    pub dns: Dns,
    /// The host's own log.
    pub logs: Logs,
    /// Which hardening is applied.
    pub hardening: Hardening,
    /// Swap: `auto` (none if there is any, or with 4 GiB of memory), `off`, or a size.
    pub swap: Swap,
    /// Certificates for apps with `ssl: true`.
    pub acme: Acme,
    /// What the proxy holds every visitor to.
    pub proxy: Edge,
    /// IANA name of the host's time zone; left as it is by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z]+(/[A-Za-z0-9_+-]+)*$"))]
    pub timezone: Option<String>,
}

/// A person with a shell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Who, for the audit log.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Their public keys.
    #[schemars(length(min = 1))]
    pub keys: Vec<PublicKey>,
    /// Only from these networks; from everywhere by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Network>,
}

/// A key that may send signed changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployKey {
    /// Who or what, for the audit log.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The public key.
    pub key: PublicKey,
    /// Which apps, by service name; all by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apps: Vec<String>,
    /// What it may do with them.
    #[serde(default)]
    pub permission: Permission,
    /// Only from these networks; from everywhere by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Network>,
}

/// What a key may do; each includes those below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Everything, other keys included.
    Admin,
    /// Push, roll back, promote.
    #[default]
    Deploy,
    /// Restart, run commands, read logs.
    Operate,
    /// Look.
    Read,
}

/// The SSH server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ssh {
    /// Port; left as it is by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Whether root may log in: `keys` until another administrator has been seen to, then `no` if wanted.
    pub root_login: RootLogin,
    /// Port forwarding, which Kamal's local registry and jump hosts use.
    pub tcp_forwarding: bool,
    /// Agent forwarding.
    pub agent_forwarding: bool,
    /// Log-in names that may be used at all; all by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_users: Vec<String>,
    /// Networks SSH is reachable from; all by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Network>,
}

impl Default for Ssh {
    fn default() -> Self {
        Self {
            port: None,
            root_login: RootLogin::Keys,
            tcp_forwarding: true,
            agent_forwarding: false,
            allow_users: Vec::new(),
            from: Vec::new(),
        }
    }
}

/// Whether root may log in by SSH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RootLogin {
    /// With a key.
    Keys,
    /// Never.
    Never,
}

/// What is reachable from outside. SSH, 80 and 443 always are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Firewall {
    /// Whose rules: ours, UFW's (followed for containers too), or none; UFW's where it was on when bootstrap came, else ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<FirewallMode>,
    /// Openings besides SSH, 80 and 443.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<Opening>,
    /// Containers that are reached by their own addresses (networks with Docker's `gateway_mode=routed`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routed: Vec<Routed>,
    /// What an interface is connected to, where it cannot be told.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub interfaces: BTreeMap<String, InterfaceKind>,
    /// Addresses that knock too often are kept out for a while.
    pub bans: bool,
    /// Containers may not reach the cloud's metadata service.
    pub block_metadata: bool,
}

impl Default for Firewall {
    fn default() -> Self {
        Self {
            mode: None,
            open: Vec::new(),
            routed: Vec::new(),
            interfaces: BTreeMap::new(),
            bans: true,
            block_metadata: true,
        }
    }
}

/// Whose rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FirewallMode {
    /// Ours.
    Own,
    /// UFW's.
    Ufw,
    /// None.
    Off,
}

/// One opening.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// Which port, as published on the host.
    pub port: Ports,
    /// For which networks; for everyone by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Network>,
    /// What for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Yes, the port of a data store, for everyone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub i_mean_it: bool,
}

/// Containers of a network that is routed to from outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Routed {
    /// The network the containers are in.
    pub network: Network,
    /// Which port, as they listen on it.
    pub port: Ports,
    /// For which networks; for everyone by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Network>,
}

/// What an interface is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceKind {
    /// The internet.
    Wan,
    /// A private network, filtered like the internet unless opened.
    Lan,
    /// A network that may reach everything.
    Trusted,
}

/// A place for backups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupTarget {
    /// Where.
    pub to: Location,
    /// Address of an S3 server other than Amazon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s/]+/?$"))]
    pub endpoint: Option<String>,
    /// Region of the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Put the bucket into the path instead of the host name.
    #[serde(default)]
    pub path_style: bool,
    /// Names of the lines of `/etc/appliance/secrets` with the credentials.
    #[serde(default)]
    pub credentials: Credentials,
}

/// Who is told when something is wrong.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    /// Addresses that get a JSON object by POST.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<String>,
    /// Mail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<Email>,
    /// A topic of an ntfy server, as its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s/]+/[^\s/]+$"))]
    pub ntfy: Option<String>,
    /// Name of the line of `/etc/appliance/secrets` with the access token of that server, if it wants one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ntfy_token: Option<String>,
    /// A Telegram chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub telegram: Option<Telegram>,
    /// Address that is told regularly that the host is well, so that silence is noticed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s]+$"))]
    pub ping: Option<String>,
    /// What not to tell.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mute: Vec<AlertKind>,
    /// The same alert again after this time, if it still holds.
    pub repeat: Repeat,
    /// Between two looks.
    pub interval: Interval,
    /// Restarts, kills for want of memory and 5xx responses count for this long.
    pub window: Window,
    /// Share of responses that may be 5xx.
    pub error_share: ErrorShare,
}

/// Time between two looks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Interval(pub Seconds);

impl Default for Interval {
    fn default() -> Self {
        Self(Seconds(30))
    }
}

/// How long events count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Window(pub Seconds);

impl Default for Window {
    fn default() -> Self {
        Self(Seconds(600))
    }
}

/// How many responses may be errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ErrorShare(pub Share);

impl Default for ErrorShare {
    fn default() -> Self {
        Self(Share(0.05))
    }
}

/// How long an alert that still holds stays quiet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Repeat(pub Seconds);

impl Default for Repeat {
    fn default() -> Self {
        Self(Seconds(86_400))
    }
}

/// Mail by SMTP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Email {
    /// Recipients.
    #[schemars(length(min = 1))]
    pub to: Vec<String>,
    /// Sender.
    pub from: String,
    /// Server, with its port: `smtp.example.com:587`.
    #[schemars(regex(pattern = r"^[^\s:]+(:[0-9]+)?$"))]
    pub server: String,
    /// User name, if the server wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Name of the line of `/etc/appliance/secrets` with the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// `starttls`, `tls`, or `none`.
    #[serde(default)]
    pub encryption: MailEncryption,
}

/// How mail is protected on its way to the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MailEncryption {
    /// STARTTLS, required.
    #[default]
    Starttls,
    /// TLS from the start.
    Tls,
    /// Nothing; for a server on the host itself.
    None,
}

/// A Telegram chat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Telegram {
    /// Number or name of the chat.
    pub chat: String,
    /// Name of the line of `/etc/appliance/secrets` with the bot's token.
    pub token: String,
    /// Another server that speaks Telegram's API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s/]+$"))]
    pub server: Option<String>,
}

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AlertKind {
    /// A certificate is about to expire.
    Certificate,
    /// The disk fills up.
    Disk,
    /// Memory is short, or something was killed for it.
    Memory,
    /// A container restarts again and again.
    RestartLoop,
    /// Too many 5xx responses.
    Errors,
    /// A backup is too old.
    BackupAge,
    /// A restore that was tried failed.
    Drill,
    /// A reboot is needed.
    Reboot,
    /// The host is not as it should be.
    Drift,
    /// The proxy or Docker does not answer.
    Services,
}

/// What the apps together may use, and how much the host keeps free.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory of a container that sets no limit itself; none by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_memory: Option<Bytes>,
    /// Share of the disk that stays free: below it nothing is accepted, and old images go.
    pub disk_free: Share,
    /// Old releases of each app that stay at hand, at most.
    #[schemars(range(min = 1, max = 100))]
    pub releases: u32,
    /// Size of the build cache and of unused images.
    pub image_cache: Bytes,
    /// Size of a container's log; five files of this size are kept.
    pub log_size: Bytes,
    /// Size of the journal.
    pub journal_size: Bytes,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            container_memory: None,
            disk_free: Share(0.1),
            releases: 5,
            image_cache: Bytes(10 << 30),
            log_size: Bytes(10 << 20),
            journal_size: Bytes(500 << 20),
        }
    }
}

/// The Docker Engine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Docker {
    /// Where it comes from if it has to be installed; a healthy one is kept.
    pub source: DockerSource,
    /// Put the deploy user into the group `docker`, for stock Kamal. That is the same as making it root.
    pub deploy_user_in_group: bool,
    /// New networks have IPv6 too.
    pub ipv6: bool,
}

/// Where the Docker Engine comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DockerSource {
    /// Docker's repository where it can be reached, else the distribution's package.
    #[default]
    Auto,
    /// Docker's repository.
    Docker,
    /// The distribution's package.
    Distribution,
}

/// Security updates and reboots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Updates {
    /// Security updates are installed on their own; Docker is not among them.
    pub security: bool,
    /// When the host may reboot on its own if an update needs it: `03:30`; never by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub reboot_at: Option<String>,
    /// Where newer versions of `appliance` are published: `release.json` and its signature lie there. They come by `appliance update`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s]+$"))]
    pub from: Option<String>,
}

impl Default for Updates {
    fn default() -> Self {
        Self {
            security: true,
            reboot_at: None,
            from: None,
        }
    }
}

/// What the names of apps lead to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Names that are meant to lead to a CDN or load balancer, not to this host: `appliance doctor` takes them as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<String>,
}

/// The host's own log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Logs {
    /// A systemd-journal-remote that gets the journal too: `https://logs.example.com:19532`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[A-Za-z0-9.\-\[\]:]+/?$"))]
    pub ship_to: Option<String>,
}

/// Which hardening is applied.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hardening {
    /// `strict` adds the optional items.
    pub profile: HardeningProfile,
    /// Items switched on or off, by the name that `appliance host plan` shows.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub items: BTreeMap<String, bool>,
}

/// How far hardening goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HardeningProfile {
    /// What every server should have.
    #[default]
    Standard,
    /// And what costs something.
    Strict,
}

/// Swap space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Swap {
    /// `false`: none is added. `true`: as `auto`.
    Switch(bool),
    /// A word.
    Word(SwapWord),
    /// A file of this size.
    Size(Bytes),
}

impl Default for Swap {
    fn default() -> Self {
        Self::Word(SwapWord::Auto)
    }
}

/// Swap without a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SwapWord {
    /// A file where there is no swap and less than 4 GiB of memory.
    Auto,
}

/// `firewall: {mode: off}` without quotes, which YAML 1.1 takes for false.
fn plain_off(mut root: Node) -> Node {
    if let Value::Map(all) = &mut root.value
        && let (Some(key), Some(mut firewall)) =
            (all.key_node("firewall").cloned(), all.get("firewall").cloned())
        && let Value::Map(of) = &mut firewall.value
        && let (Some(name), Some(mode)) = (of.key_node("mode").cloned(), of.get("mode").cloned())
        && mode.value == Value::Bool(false)
    {
        let word = Node {
            value: Value::Str("off".to_owned()),
            raw: None,
            ..mode
        };
        of.insert(name, word);
        all.insert(key, firewall);
    }
    root
}

/// Reads the text of a `host.yml`; an empty one means the defaults.
///
/// # Errors
/// Every mistake at once, each with line, column and what to do.
pub fn read(file: &str, text: &str) -> Result<Host, Problems> {
    let mut sources = Sources::default();
    let number = sources.add(file, text);
    let document = yaml::read(text, number, &|line, column| (line, column)).map_err(|error| {
        let mut problem = sources.problem(error.place, "", error.message);
        problem.hint = error.hint;
        Problems(vec![problem])
    })?;
    let Some(root) = document.root else {
        return Ok(Host::default());
    };
    let root = plain_off(root);
    let host: Host = checked::read(&root, "", &sources).map_err(Problems)?;
    let problems = check(&host, &root, &sources);
    if problems.is_empty() {
        Ok(host)
    } else {
        Err(Problems(problems))
    }
}

/// What the types cannot say.
fn check(host: &Host, root: &Node, sources: &Sources) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, opening) in host.firewall.open.iter().enumerate() {
        let ports = opening.port.0;
        let everyone = opening.from.is_empty() || opening.from.iter().any(|network| network.0.prefix == 0);
        let store = DATA_STORE_PORTS
            .iter()
            .find(|port| (ports.first..=ports.last).contains(port));
        if let (true, Some(port), false) = (everyone, store, opening.i_mean_it) {
            let path = format!("firewall/open/{index}");
            let node = root
                .dig(&["firewall", "open"])
                .and_then(|list| list.as_seq()?.get(index));
            let message = format!("{path}: port {port} is a data store's, and this opens it to everyone");
            let problem = sources.problem(node.map_or(root.place, |node| node.place), &path, message);
            problems
                .push(problem.with_hint("add `from: [NETWORK]`, or `i_mean_it: true` if it has to be so"));
        }
    }
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    let keys = host
        .admins
        .iter()
        .flat_map(|admin| admin.keys.iter().map(|key| (key, admin.name.as_str())))
        .chain(host.deploy_keys.iter().map(|key| (&key.key, key.name.as_str())));
    for (key, name) in keys {
        let blob = key.0.split_ascii_whitespace().nth(1).unwrap_or_default();
        if let Some(other) = seen.insert(blob, name) {
            let message = format!("the same key belongs to {other} and to {name}");
            let place = root
                .get("deploy_keys")
                .or_else(|| root.get("admins"))
                .map_or(root.place, |node| node.place);
            problems.push(
                sources
                    .problem(place, "deploy_keys", message)
                    .with_hint("one key, one name: the audit log has to tell them apart"),
            );
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f ann";

    fn problems(text: &str) -> Vec<String> {
        match read("host.yml", text) {
            Ok(host) => panic!("accepted: {host:?}"),
            Err(problems) => problems
                .0
                .into_iter()
                .map(|problem| {
                    let hint = problem.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
                    format!("{}: {}{hint}", problem.line.unwrap_or_default(), problem.message)
                })
                .collect(),
        }
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        for text in ["", "# nothing\n", "{}\n"] {
            let host = read("host.yml", text).expect("valid");
            assert_eq!(host, Host::default());
            assert!(
                host.firewall.block_metadata && host.updates.security && !host.docker.deploy_user_in_group
            );
        }
    }

    #[test]
    fn every_part_is_read() {
        let text = format!(
            "admins:\n  - name: ann\n    keys: [{KEY}]\n    from: [10.0.0.0/8]\nssh: {{root_login: never, port: 2222}}\n\
             firewall:\n  open:\n    - {{port: 5432, from: [10.0.5.0/24]}}\n    - {{port: 6379, i_mean_it: true}}\n  interfaces: {{tailscale0: trusted}}\n\
             alerts: {{webhooks: ['https://x.example'], mute: [reboot], repeat: 12h}}\nlimits: {{disk_free: 20%, log_size: 20m}}\n\
             hardening: {{profile: strict, items: {{S08: false}}}}\nswap: 2g\nupdates: {{reboot_at: '03:30', from: 'https://get.example/'}}\ndns: {{elsewhere: [shop.example]}}\n"
        );
        let host = read("host.yml", &text).expect("valid");
        assert_eq!(host.admins[0].from[0].0.to_string(), "10.0.0.0/8");
        assert_eq!(host.firewall.open[0].port.0.first, 5432);
        assert_eq!(host.swap, Swap::Size(Bytes(2 << 30)));
        assert_eq!(host.alerts.repeat.0, Seconds(43_200));
        assert_eq!(host.limits.disk_free, Share(0.2));
        assert_eq!(host.updates.from.as_deref(), Some("https://get.example/"));
        assert_eq!(host.dns.elsewhere, ["shop.example"]);
    }

    #[test]
    fn off_needs_no_quotes() {
        for text in ["off", "'off'", "Off"] {
            let host = read("host.yml", &format!("firewall: {{mode: {text}}}\n")).unwrap();
            assert_eq!(host.firewall.mode, Some(FirewallMode::Off), "{text}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once_with_its_line() {
        let text = "admin: []\nadmins:\n  - name: ann\n    keys: []\n  - keys: [nonsense]\nssh:\n  port: 99999\n  root_login: no\n\
                    firewall:\n  mode: iptables\n  open:\n    - port: http\n    - {port: 80, from: [10.0.0.1/8]}\nupdates: {reboot_at: noon}\nswap: lots\n";
        assert_eq!(
            problems(text),
            [
                "1: unknown key: admin (did you mean admins?)",
                "4: admins/0/keys: should have at least 1 entry",
                "5: admins/1/keys/0: this is not a public key: it is one line that begins with ssh-ed25519, ecdsa-sha2-…, sk-… or ssh-rsa",
                "5: admins/1: name is required",
                "7: ssh/port: should be at most 65535",
                "8: ssh/root_login: should be keys or never",
                "10: firewall/mode: \"iptables\" is none of: own, ufw, off",
                "12: firewall/open/0/port: \"http\" is not a port: write 8080, 5432/tcp or 6000-6010/udp",
                "13: firewall/open/1/from/0: \"10.0.0.1/8\" has bits beyond its prefix; did you mean one address, or a longer prefix?",
                "14: updates/reboot_at: \"noon\" should match ^([01][0-9]|2[0-3]):[0-5][0-9]$",
                "15: swap: \"lots\" is not a size: write bytes, or 512k, 512m, 2g",
            ]
        );
    }

    #[test]
    fn a_data_store_is_not_opened_to_everyone_by_accident() {
        for open in [
            "{port: 5432}",
            "{port: 5000-6000/tcp}",
            "{port: 6379, from: ['0.0.0.0/0']}",
        ] {
            let found = problems(&format!("firewall:\n  open:\n    - {open}\n"));
            assert_eq!(found.len(), 1, "{open}");
            assert!(found[0].starts_with("3: firewall/open/0: port "), "{found:?}");
        }
    }

    #[test]
    fn a_key_has_one_owner() {
        let text =
            format!("admins: [{{name: ann, keys: [{KEY}]}}]\ndeploy_keys: [{{name: ci, key: {KEY}}}]\n");
        assert!(problems(&text)[0].contains("the same key belongs to ann and to ci"));
    }
}
