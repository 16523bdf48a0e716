//! What is: everything the plan depends on, observed once and changing nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::authorized_keys;
use crate::catalogue;
use crate::docker::{self, Engine, Origin};
use crate::firewall::rules::Rules;
use crate::firewall::{self, ufw};
use crate::host::{Command, Host, HostError};
use crate::journal::Journal;
use crate::key::KeyEntry;
use crate::options::{DockerSource, Options};
use crate::sshd::{self, Sshd};
use crate::want::{Seen, WantError};

/// The operating system, from `/etc/os-release` (os-release(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Os {
    /// `debian`, `ubuntu`, …
    pub id: String,
    /// `12`, `24.04`, …; empty for rolling ones.
    pub version: String,
    /// `bookworm`, `noble`, …
    pub codename: String,
    /// As it calls itself.
    pub name: String,
}

/// A server of somebody else on a port the proxy needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TakenPort {
    /// 80 or 443.
    pub port: u16,
    /// The process, as `ss` names it.
    pub by: String,
}

/// How `/tmp` is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Temporary {
    /// A directory of the root file system.
    Plain,
    /// Mounted by our unit, or about to be.
    Ours,
    /// Mounted by somebody else, in a way that holds over a reboot.
    Mounted,
    /// Mounted by a line of fstab that lets it hold devices or grant rights.
    Fstab,
}

/// A mail server that runs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MailServer {
    /// Postfix.
    Postfix,
    /// Exim 4, as Debian packages it.
    Exim,
}

/// The host as observed.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Which system.
    pub os: Os,
    /// As dpkg names it, `amd64` or `arm64`.
    pub architecture: String,
    /// What runs as process 1.
    pub init: String,
    /// Kernel release, such as `6.1.0-18-amd64`.
    pub kernel: String,
    /// Kind of container, if we run in one.
    pub container: Option<String>,
    /// 1 or 2.
    pub cgroup: u8,
    /// Whether we are root.
    pub root: bool,
    /// Why the kernel takes no nftables rules; absent if it does, or if nft is not installed yet.
    pub nftables_trouble: Option<String>,
    /// Bytes free under `/var`.
    pub disk_free: u64,
    /// Bytes of the file system that holds `/var`.
    pub disk_total: u64,
    /// Others on the proxy's ports.
    pub taken_ports: Vec<TakenPort>,
    /// kamal-proxy's container has the proxy's ports; `appliance adopt` takes them over.
    pub kamal_proxy: bool,
    /// Products that manage this host already, such as Kubernetes.
    pub managed_by: Vec<String>,
    /// Other firewalls that are active.
    pub other_firewalls: Vec<String>,
    /// UFW is on.
    pub ufw_enabled: bool,
    /// UFW's rules, as far as they can be followed for containers.
    #[serde(skip)]
    pub ufw: Vec<ufw::Line>,
    /// UFW's rules that cannot.
    pub ufw_warnings: Vec<String>,
    /// The rules that are confirmed now, or armed.
    #[serde(skip)]
    pub firewall_rules: Option<Rules>,
    /// What this OpenSSH can do.
    #[serde(skip)]
    pub ssh_algorithms: BTreeSet<String>,
    /// Bytes of memory.
    pub memory: u64,
    /// There is swap that is not ours.
    pub other_swap: bool,
    /// Minutes, below 30, by which this host's own reboot comes later than that of others with the same `host.yml`.
    pub reboot_delay: u32,
    /// People with a password, where nobody is in the group sudo: `su` is how they become root.
    pub su_users: Vec<String>,
    /// sudo is installed.
    pub has_sudo: bool,
    /// needrestart is installed.
    pub has_needrestart: bool,
    /// systemd-resolved answers for this host.
    pub has_resolved: bool,
    /// How `/tmp` is kept.
    pub tmp: Temporary,
    /// The mail server that runs.
    pub mail_server: Option<MailServer>,
    /// Nobody but Docker listens where its metrics would be.
    pub metrics_free: bool,
    /// The kernel has the congestion control BBR.
    pub has_bbr: bool,
    /// The time daemon that runs.
    pub time_daemon: Option<String>,
    /// Docker makes IPv6 networks.
    pub docker_ipv6: bool,
    /// Docker's API listens on the network.
    pub docker_tcp: bool,
    /// The SSH daemon, if there is one.
    pub sshd: Option<Sshd>,
    /// The Docker Engine.
    pub engine: Engine,
    /// Which packages an engine would come from.
    pub engine_from: Origin,
    /// No engine has ever run here.
    pub docker_fresh: bool,
    /// No route touches our address pool.
    pub pool_free: bool,
    /// AppArmor is on, so the engine needs its tools.
    pub apparmor: bool,
    /// Keys a former run enrolled.
    pub enrolled: Vec<KeyEntry>,
    /// Root can log in with some key already.
    pub root_has_key: bool,
    /// Root's file holds lines that `host.yml` asked for, now or before.
    pub root_declared: bool,
    /// Things about existing accounts an administrator should know.
    pub account_notes: Vec<String>,
    /// What a former run left.
    pub journal: Journal,
    /// What every want of the list saw, by its subject.
    pub seen: BTreeMap<String, Seen>,
}

/// Why the host could not be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// A question about the host was not answered.
    #[error("cannot find out {what}")]
    Ask {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: HostError,
    },
    /// A wanted thing could not be looked at.
    #[error("cannot look at {subject}")]
    Look {
        /// Which.
        subject: String,
        /// Why.
        #[source]
        source: WantError,
    },
}

/// Where the first keys are written down for the agent.
pub const KEYS: &str = "/etc/appliance/keys.d/bootstrap.json";

/// Observes the host, as far as a plan for these options needs it.
///
/// The list itself is only looked at where the [gate](crate::gate) would let us pass: elsewhere its questions make no sense.
///
/// # Errors
/// When a question is not answered.
pub fn observe(host: &dyn Host, options: &Options) -> Result<Facts, ObserveError> {
    let mut facts = base(host, options)?;
    if !crate::gate::refusals(options, &facts).is_empty() {
        return Ok(facts);
    }
    for item in catalogue::items(options, &facts) {
        for want in item.wants {
            let subject = want.subject();
            let seen = want.observe(host).map_err(|source| ObserveError::Look {
                subject: subject.clone(),
                source,
            })?;
            facts.seen.insert(subject, seen);
        }
    }
    Ok(facts)
}

fn base(host: &dyn Host, options: &Options) -> Result<Facts, ObserveError> {
    let ask = |what: &'static str, argv: &[&str]| -> Result<String, ObserveError> {
        match host.run(&Command::new(argv.iter().copied())) {
            Ok(output) => Ok(output.stdout.trim().to_owned()),
            Err(source) => Err(ObserveError::Ask { what, source }),
        }
    };
    let read = |what: &'static str, path: &str| -> Result<Option<String>, ObserveError> {
        let bytes = host
            .read(Path::new(path))
            .map_err(|source| ObserveError::Ask { what, source })?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    let exists = |what: &'static str, path: &str| -> Result<bool, ObserveError> {
        Ok(host
            .entry(Path::new(path))
            .map_err(|source| ObserveError::Ask { what, source })?
            .is_some())
    };
    let os = os(&read("the operating system", "/etc/os-release")?.unwrap_or_default());
    let architecture = ask("the architecture", &["dpkg", "--print-architecture"])?;
    let container = Some(ask(
        "whether this is a container",
        &["systemd-detect-virt", "--container"],
    )?)
    .filter(|kind| !kind.is_empty() && kind != "none");
    let nft = host
        .run(&Command::new(["nft", "--check", "--file", "-"]).stdin(
            "table inet appliance_probe {\n  chain c {\n    type filter hook input priority 0;\n  }\n}\n",
        ))
        .map_err(|source| ObserveError::Ask {
            what: "whether the kernel takes nftables rules",
            source,
        })?;
    let disk = ask(
        "the free disk space",
        &["df", "--block-size=1", "--output=size,avail", "/var"],
    )?;
    let mut disk = disk
        .lines()
        .last()
        .unwrap_or_default()
        .split_whitespace()
        .map(|number| number.parse().unwrap_or(0));
    let (disk_total, disk_free) = (disk.next().unwrap_or(0), disk.next().unwrap_or(0));
    let engine = engine(host)?;
    let engine_from = engine_from(host, options, &engine, &os)?;
    // Elsewhere the gate has the last word, whatever sshd says.
    let sshd = if crate::gate::is_supported(&os) {
        sshd::observe(host).map_err(|source| ObserveError::Ask {
            what: "what sshd does",
            source,
        })?
    } else {
        None
    };
    let mut managed_by = Vec::new();
    for (path, product) in [
        ("/etc/kubernetes", "Kubernetes"),
        ("/etc/rancher", "K3s or RKE"),
        ("/etc/pve", "Proxmox VE"),
    ] {
        if exists("what manages this host", path)? {
            managed_by.push(product.to_owned());
        }
    }
    let mut other_firewalls = Vec::new();
    for (unit, product) in [
        ("firewalld.service", "firewalld"),
        ("netfilter-persistent.service", "iptables-persistent"),
    ] {
        if ask(
            "whether another firewall is active",
            &["systemctl", "is-active", unit],
        )? == "active"
        {
            other_firewalls.push(product.to_owned());
        }
    }
    // ufw.service is active on every Ubuntu, whether or not UFW itself is enabled.
    let ufw_enabled = ufw::is_enabled(&read("whether UFW is enabled", ufw::CONF)?.unwrap_or_default());
    let mut followed = ufw::Ufw::default();
    for path in ufw::RULES {
        let found = ufw::parse(&read("UFW's rules", path)?.unwrap_or_default());
        followed.lines.extend(found.lines);
        followed.warnings.extend(found.warnings);
    }
    let firewall_rules = firewall::rules(host, host.now()).ok().flatten();
    let memory = read("the memory", "/proc/meminfo")?
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0)
        << 10;
    let mut time_daemon = None;
    for unit in [
        "chrony.service",
        "ntpsec.service",
        "ntp.service",
        "systemd-timesyncd.service",
    ] {
        if time_daemon.is_none()
            && ask("which time daemon runs", &["systemctl", "is-active", unit])? == "active"
        {
            time_daemon = Some(unit.to_owned());
        }
    }
    let tmp_unit = read("who mounts /tmp", "/etc/systemd/system/tmp.mount")?.unwrap_or_default();
    let mounts = read("what is mounted", crate::want::MOUNTS)?.unwrap_or_default();
    let fstab = read("what is mounted at boot", "/etc/fstab")?.unwrap_or_default();
    let tmp = match crate::want::mount_flags(&mounts, "/tmp") {
        _ if tmp_unit.contains("managed by appliance") => Temporary::Ours,
        Some(_) if crate::want::is_loose(&fstab, "/tmp") => Temporary::Fstab,
        Some(_) => Temporary::Mounted,
        None => Temporary::Plain,
    };
    let mut mail_server = None;
    for (path, server) in [
        ("/etc/postfix/main.cf", MailServer::Postfix),
        ("/etc/exim4/update-exim4.conf.conf", MailServer::Exim),
    ] {
        if mail_server.is_none() && exists("which mail server runs", path)? {
            mail_server = Some(server);
        }
    }
    let swaps = read("the swap space", "/proc/swaps")?.unwrap_or_default();
    let daemon_json = read("Docker's settings", docker::DAEMON_JSON)?.unwrap_or_default();
    let ours = ask(
        "our sockets",
        &["systemctl", "is-active", "appliance-proxy-http.socket"],
    )? == "active";
    let mut taken_ports = if ours {
        Vec::new()
    } else {
        taken(&ask(
            "who uses ports 80 and 443",
            &["ss", "-Hltnp", "sport = :80 or sport = :443"],
        )?)
    };
    let by_docker = taken_ports.iter().any(|taken| taken.by.starts_with("docker"));
    let kamal_proxy = by_docker
        && !ask(
            "whether kamal-proxy runs",
            &[
                "docker",
                "ps",
                "--quiet",
                "--filter",
                "name=^/?kamal-proxy$",
                "--filter",
                "status=running",
            ],
        )?
        .is_empty();
    if kamal_proxy {
        taken_ports.clear();
    }
    let root_keys = read("root's keys", "/root/.ssh/authorized_keys")?.unwrap_or_default();
    let enrolled = read("the enrolled keys", KEYS)?
        .and_then(|json| serde_json::from_str(&json).ok())
        .unwrap_or_default();
    Ok(Facts {
        root: ask("who we are", &["id", "--user"])? == "0",
        init: read("what runs as process 1", "/proc/1/comm")?
            .unwrap_or_default()
            .trim()
            .to_owned(),
        kernel: read("the kernel", "/proc/sys/kernel/osrelease")?
            .unwrap_or_default()
            .trim()
            .to_owned(),
        cgroup: if exists("the cgroup version", "/sys/fs/cgroup/cgroup.controllers")? {
            2
        } else {
            1
        },
        nftables_trouble: (!nft.ok() && nft.status != 127).then(|| nft.stderr.trim().to_owned()),
        docker_fresh: !exists("whether Docker ever ran here", "/var/lib/docker/image")?
            && !exists("whether Docker ever ran here", "/var/lib/docker/network")?
            && !exists("whether Docker ever ran here", "/var/lib/docker/engine-id")?,
        pool_free: docker::pool_is_free(
            ask("the routes", &["ip", "-4", "route", "show", "table", "all"])?
                .lines()
                .flat_map(|line| line.split(' ').filter(|word| word.contains('.')).take(1)),
        ),
        apparmor: read(
            "whether AppArmor is on",
            "/sys/module/apparmor/parameters/enabled",
        )?
        .unwrap_or_default()
        .starts_with('Y'),
        ufw_enabled,
        ufw: followed.lines,
        ufw_warnings: followed.warnings,
        firewall_rules,
        ssh_algorithms: if sshd.is_some() {
            sshd::algorithms(host).map_err(|source| ObserveError::Ask {
                what: "what OpenSSH can do",
                source,
            })?
        } else {
            BTreeSet::new()
        },
        memory,
        other_swap: swaps.lines().skip(1).any(|line| !line.starts_with("/swapfile")),
        reboot_delay: delay(&read("which machine this is", "/etc/machine-id")?.unwrap_or_default()),
        su_users: su_users(
            &read("who may use su", "/etc/passwd")?.unwrap_or_default(),
            &read("who may use su", "/etc/group")?.unwrap_or_default(),
            &read("who may use su", "/etc/shadow")?.unwrap_or_default(),
        ),
        has_sudo: exists("whether sudo is installed", "/etc/sudoers.d")?,
        has_needrestart: exists("whether needrestart is installed", "/etc/needrestart")?,
        has_bbr: read(
            "what the kernel can do",
            "/proc/sys/net/ipv4/tcp_available_congestion_control",
        )?
        .unwrap_or_default()
        .split_whitespace()
        .any(|name| name == "bbr"),
        time_daemon,
        has_resolved: ask(
            "whether systemd-resolved runs",
            &["systemctl", "is-active", "systemd-resolved.service"],
        )? == "active",
        tmp,
        mail_server,
        metrics_free: ask(
            "who listens where Docker's metrics would be",
            &["ss", "-Hltnp", "sport = :9323"],
        )?
        .lines()
        .all(|line| line.contains("\"dockerd\"")),
        docker_ipv6: options.docker_ipv6 || daemon_json.contains("ipv6"),
        docker_tcp: !ask(
            "whether Docker's API listens on the network",
            &["ss", "-Hltn", "sport = :2375"],
        )?
        .is_empty(),
        sshd,
        root_has_key: authorized_keys::has_key(&root_keys),
        root_declared: authorized_keys::has_declared(&root_keys),
        account_notes: account_notes(host, options)?,
        journal: Journal::read(host).map_err(|source| ObserveError::Ask {
            what: "what a former run left",
            source,
        })?,
        os,
        architecture,
        container,
        disk_free,
        disk_total,
        taken_ports,
        kamal_proxy,
        managed_by,
        other_firewalls,
        engine,
        engine_from,
        enrolled,
        seen: BTreeMap::new(),
    })
}

fn os(text: &str) -> Os {
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches(['"', '\'']).to_owned())
            .unwrap_or_default()
    };
    Os {
        id: value("ID"),
        version: value("VERSION_ID"),
        codename: value("VERSION_CODENAME"),
        name: value("PRETTY_NAME"),
    }
}

pub(crate) fn engine(host: &dyn Host) -> Result<Engine, ObserveError> {
    let asked = |source| ObserveError::Ask {
        what: "which Docker Engine is installed",
        source,
    };
    if host
        .entry(Path::new("/snap/bin/docker"))
        .map_err(asked)?
        .is_some()
    {
        return Ok(Engine::Snap);
    }
    let output = host.run(&Command::new(["dockerd", "--version"])).map_err(asked)?;
    if !output.ok() {
        return Ok(Engine::Absent);
    }
    // Docker version 20.10.24+dfsg1, build 5d6db84
    let version = output
        .stdout
        .split([' ', ','])
        .nth(2)
        .unwrap_or_default()
        .to_owned();
    let argv = [
        "dpkg-query",
        "--show",
        "--showformat=${Package} ${db:Status-Status}\\n",
        "docker-ce",
        "docker.io",
    ];
    let packages = host.run(&Command::new(argv)).map_err(asked)?.stdout;
    // One that dpkg was interrupted in the middle of counts too, or nobody would finish it.
    let has = |package: &str| {
        packages
            .lines()
            .filter_map(|line| line.split_once(' '))
            .any(|(name, status)| name == package && !matches!(status, "not-installed" | "config-files"))
    };
    let origin = match () {
        () if has("docker-ce") => Origin::Docker,
        () if has("docker.io") => Origin::Distribution,
        () => Origin::Other,
    };
    let active = host
        .run(&Command::new(["systemctl", "is-active", "docker.service"]))
        .map_err(asked)?;
    let swarm = host
        .entry(Path::new("/var/lib/docker/swarm/docker-state.json"))
        .map_err(asked)?
        .is_some();
    Ok(Engine::Installed {
        version,
        origin,
        running: active.stdout.trim() == "active",
        swarm,
    })
}

/// Whether Docker's repository answers is only asked when it matters, and for at most a few seconds.
fn engine_from(host: &dyn Host, options: &Options, engine: &Engine, os: &Os) -> Result<Origin, ObserveError> {
    if let Engine::Installed { origin, .. } = engine {
        return Ok(*origin);
    }
    Ok(match options.docker {
        DockerSource::Docker => Origin::Docker,
        DockerSource::Distribution => Origin::Distribution,
        DockerSource::Auto => {
            const PROBE: &str = "/run/appliance-docker-probe";
            let url = format!(
                "https://download.docker.com/linux/{}/dists/{}/Release",
                os.id, os.codename
            );
            // apt's own downloader: it knows this host's proxies. What it fetches is thrown away; apt checks signatures later.
            let command = Command::new([
                "/usr/lib/apt/apt-helper",
                "--option=Acquire::Retries=0",
                "--option=Acquire::https::Timeout=4",
                "--option=Acquire::http::Timeout=4",
                "download-file",
                url.as_str(),
                PROBE,
            ])
            .timeout(Duration::from_secs(8));
            let reached = host.run(&command).is_ok_and(|output| output.ok());
            host.remove(Path::new(PROBE))
                .map_err(|source| ObserveError::Ask {
                    what: "whether Docker's repository answers",
                    source,
                })?;
            if reached {
                Origin::Docker
            } else {
                Origin::Distribution
            }
        }
    })
}

/// `LISTEN 0 511 0.0.0.0:80 0.0.0.0:* users:(("nginx",pid=12,fd=6))`
fn taken(text: &str) -> Vec<TakenPort> {
    let mut taken: Vec<TakenPort> = text
        .lines()
        .filter_map(|line| {
            let port = line.split_whitespace().nth(3)?.rsplit_once(':')?.1.parse().ok()?;
            let by = line
                .split("((\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next())
                .unwrap_or("another process");
            Some(TakenPort {
                port,
                by: by.to_owned(),
            })
        })
        .collect();
    taken.sort_by_key(|taken| taken.port);
    taken.dedup();
    taken
}

fn account_notes(host: &dyn Host, options: &Options) -> Result<Vec<String>, ObserveError> {
    let asked = |source| ObserveError::Ask {
        what: "which accounts exist",
        source,
    };
    let accounts = crate::want::Accounts::read(host).map_err(asked)?;
    let user = catalogue::DEPLOY_USER;
    let mut notes = Vec::new();
    let root = host
        .read(Path::new("/root/.ssh/authorized_keys"))
        .map_err(asked)?;
    let root = String::from_utf8_lossy(root.as_deref().unwrap_or_default()).into_owned();
    notes.extend(root_notes(&root, options));
    if !accounts.has_user(user) {
        return Ok(notes);
    }
    for group in ["docker", "sudo", "root"] {
        if accounts.is_member(user, group) {
            notes.push(format!(
                "user {user} is in group {group}, which makes it as powerful as root; to take it out: gpasswd --delete {user} {group}"
            ));
        }
    }
    let home = accounts.home(user).unwrap_or("/home/deploy").to_owned();
    let path = Path::new(&home).join(".ssh/authorized_keys");
    let keys = host.read(&path).map_err(asked)?.unwrap_or_default();
    let keys = String::from_utf8_lossy(&keys);
    let closed = authorized_keys::with_lines(&keys, &catalogue::access::doors(options));
    if let Some(closed) = closed.filter(|edited| edited.removed > 0) {
        notes.push(format!(
            "host.yml names {} key(s) no more, whose doors are closed; the agent knows them until: appliance keys list, appliance keys remove FINGERPRINT",
            closed.removed
        ));
    }
    for key in options.admin_keys.iter().chain(&options.deploy_keys) {
        if authorized_keys::has_other_line(&keys, key) {
            notes.push(format!(
                "{} already holds the key {} without our restrictions; that line stays, and gives a shell",
                path.display(),
                key.fingerprint()
            ));
        }
    }
    Ok(notes)
}

/// The same for a machine each time, and spread over many: a fleet does not reboot in one minute.
fn delay(machine_id: &str) -> u32 {
    let digest = crate::digest::hex(machine_id.trim().as_bytes());
    u32::from_str_radix(&digest[..4], 16).unwrap_or(0) % 30
}

/// People (user ids from 1000, as login.defs(5) has it) with a shell and a password, where the group sudo is empty.
fn su_users(passwd: &str, group: &str, shadow: &str) -> Vec<String> {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let sudo = group.lines().map(fields).find(|fields| fields[0] == "sudo");
    if sudo.is_some_and(|fields| fields.get(3).is_some_and(|members| !members.is_empty())) {
        return Vec::new();
    }
    let has_password = |name: &str| {
        shadow.lines().map(fields).any(|fields| {
            fields[0] == name
                && fields
                    .get(1)
                    .is_some_and(|hash| !hash.is_empty() && !hash.starts_with(['!', '*']))
        })
    };
    let people = passwd.lines().map(fields).filter(|fields| {
        let id = fields.get(2).and_then(|id| id.parse::<u32>().ok());
        let shell = fields.get(6).map_or("", String::as_str);
        id.is_some_and(|id| (1_000..60_000).contains(&id))
            && !shell.ends_with("nologin")
            && !shell.ends_with("false")
    });
    people
        .map(|mut fields| fields.swap_remove(0))
        .filter(|name| has_password(name))
        .collect()
}

/// Keys in root's file beyond what `host.yml` says: they are somebody's, so they stay, and are told.
fn root_notes(text: &str, options: &Options) -> Vec<String> {
    let mut notes = Vec::new();
    if options.admin_keys.is_empty() && !authorized_keys::has_declared(text) {
        return notes;
    }
    // As it will be.
    let edited = authorized_keys::with_lines(text, &catalogue::access::root_lines(options));
    let text = edited.as_ref().map_or(text, |edited| edited.text.as_str());
    let others = authorized_keys::others(text, &options.admin_keys);
    if others > 0 {
        notes.push(format!(
            "{others} key(s) in /root/.ssh/authorized_keys are no administrator's of host.yml, and give a shell as root; who is to be out is taken out of that file by hand"
        ));
    }
    let free = options.admin_keys.iter().filter(|key| {
        options.key_networks.contains_key(&key.fingerprint()) && authorized_keys::is_free(text, key)
    });
    notes.extend(free.map(|key| {
        format!(
            "/root/.ssh/authorized_keys also holds the key {} without its networks, so it works from everywhere; take that line out",
            key.fingerprint()
        )
    }));
    notes
}

impl Facts {
    /// The kernel's table as seen, if the firewall is part of the list.
    pub fn firewall(&self) -> Option<firewall::State> {
        self.seen.values().find_map(|seen| match seen {
            Seen::Firewall { kernel, .. } => Some(*kernel),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_is_read_with_and_without_quotes() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\nID_LIKE=x\n";
        let expect = Os {
            id: "debian".into(),
            version: "12".into(),
            codename: "bookworm".into(),
            name: "Debian GNU/Linux 12 (bookworm)".into(),
        };
        assert_eq!(os(text), expect);
    }

    #[test]
    fn who_becomes_root_by_su_alone_is_known() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000::/home/alice:/bin/bash\n\
                      deploy:x:1001:1001::/home/deploy:/bin/bash\nbackup:x:1002:1002::/:/usr/sbin/nologin\n";
        let shadow = "root:$y$x:1::::::\nalice:$y$x:1::::::\ndeploy:*:1::::::\nbackup:$y$x:1::::::\n";
        assert_eq!(su_users(passwd, "sudo:x:27:\n", shadow), ["alice"]);
        assert_eq!(su_users(passwd, "root:x:0:\n", shadow), ["alice"]);
        assert!(su_users(passwd, "sudo:x:27:alice\n", shadow).is_empty());
        assert!(su_users(passwd, "sudo:x:27:\n", "alice:!:1::::::\n").is_empty());
    }

    #[test]
    fn whoever_listens_on_80_is_named_once() {
        let text = "LISTEN 0 511 0.0.0.0:80 0.0.0.0:* users:((\"nginx\",pid=12,fd=6),(\"nginx\",pid=11,fd=6))\nLISTEN 0 511 [::]:80 [::]:* users:((\"nginx\",pid=12,fd=7))\nLISTEN 0 9 *:443 *:*\n";
        let expect = [
            TakenPort {
                port: 80,
                by: "nginx".into(),
            },
            TakenPort {
                port: 443,
                by: "another process".into(),
            },
        ];
        assert_eq!(taken(text), expect);
    }
}
