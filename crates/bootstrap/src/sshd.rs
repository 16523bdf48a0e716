//! The SSH daemon: what it does now, and the drop-in that hardens it.
//!
//! How a change of it is confirmed or reverted: [`pending`].

pub mod pending;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use crate::firewall::opening::Net;
use crate::host::{Command, Host, HostError};
use crate::options::SshWishes;

/// Sorts before cloud-init's `50-cloud-init.conf`: for sshd the first value wins.
pub const DROP_IN: &str = "/etc/ssh/sshd_config.d/00-appliance.conf";
/// The main file, which has to include the directory of the drop-in.
pub const CONFIG: &str = "/etc/ssh/sshd_config";

/// What `sshd -T` says is in force, and where it listens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Sshd {
    /// Ports of sshd itself and of a socket unit that starts it.
    pub ports: BTreeSet<u16>,
    /// First value of every keyword, in lower case.
    pub effective: BTreeMap<String, String>,
}

/// Asks sshd; `None` if there is no sshd on this host.
///
/// # Errors
/// When it cannot be asked, or its configuration is broken already.
pub fn observe(host: &dyn Host) -> Result<Option<Sshd>, HostError> {
    let command = Command::new(["sshd", "-T"]);
    let mut output = host.run(&command)?;
    if output.status == 127 {
        return Ok(None);
    }
    if output.stderr.contains("/run/sshd") {
        // Socket-activated sshd has this directory only while a connection is open.
        host.directory("/run/sshd".as_ref(), 0o755, &crate::host::Owner::root())?;
        output = host.run(&command)?;
    }
    if !output.ok() {
        return Err(crate::host::failed(&command, &output));
    }
    let mut sshd = parse(&output.stdout);
    let sockets = host.run(&Command::new([
        "systemctl",
        "show",
        "--property=ActiveState,Listen",
        "ssh.socket",
    ]))?;
    if sockets.stdout.lines().any(|line| line == "ActiveState=active") {
        sshd.ports.extend(socket_ports(&sockets.stdout));
    }
    Ok(Some(sshd))
}

fn parse(text: &str) -> Sshd {
    let mut sshd = Sshd::default();
    for line in text.lines() {
        let (keyword, value) = line.split_once(' ').unwrap_or((line, ""));
        if keyword == "port" {
            sshd.ports.extend(value.parse::<u16>());
        }
        sshd.effective
            .entry(keyword.to_ascii_lowercase())
            .or_insert_with(|| value.to_owned());
    }
    sshd
}

/// `Listen=[::]:22 (Stream)` of `systemctl show`.
fn socket_ports(text: &str) -> BTreeSet<u16> {
    text.lines()
        .filter_map(|line| line.strip_prefix("Listen="))
        .flat_map(|line| line.split(' '))
        .filter_map(|word| word.rsplit_once(':').map_or(word, |(_, port)| port).parse().ok())
        .collect()
}

/// Somebody who is logged in through sshd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// His `address:port`.
    pub at: String,
    /// As whom, if that can be told.
    pub user: Option<String>,
}

/// Connections to a port of sshd whose other side has logged in, as `address:port`.
///
/// Who has not is known by the names of sshd's own processes: `sshd: root@pts/0` once somebody is in,
/// `sshd: root [priv]` or `sshd: unknown [net]` before; a connection whose process cannot be told counts.
///
/// # Errors
/// When `ss` cannot be asked.
pub fn peers(host: &dyn Host, port: u16) -> Result<Vec<Peer>, HostError> {
    let filter = format!("sport = :{port}");
    let argv = ["ss", "-Htnp", "state", "established", &filter];
    let text = crate::host::must(host, &Command::new(argv))?;
    let mut found = Vec::new();
    for line in text.lines() {
        let mut titles = Vec::new();
        for process in line.split("pid=").skip(1) {
            let digits: String = process.chars().take_while(char::is_ascii_digit).collect();
            let title = host.read(Path::new(&format!("/proc/{digits}/cmdline")))?;
            titles.extend(title.map(|title| String::from_utf8_lossy(&title).into_owned()));
        }
        let user = titles.iter().find_map(|title| {
            let (before, _) = title.split_once('@')?;
            Some(before.rsplit(' ').next().unwrap_or_default().to_owned())
        });
        if (titles.is_empty() || user.is_some())
            && let Some(at) = line.split_whitespace().nth(3)
        {
            let at = at.to_owned();
            found.push(Peer { at, user });
        }
    }
    Ok(found)
}

/// Lets sshd read its settings again; open sessions stay.
///
/// Where systemd listens for it (Ubuntu 24.04), the port is the socket's, made from sshd's settings by a generator.
///
/// # Errors
/// When systemd does not do its part.
pub(crate) fn reload(host: &dyn Host) -> Result<(), HostError> {
    let is_active = |unit: &str| -> Result<bool, HostError> {
        let state = host.run(&Command::new(["systemctl", "is-active", unit]))?;
        Ok(state.stdout.trim() == "active")
    };
    if is_active("ssh.service")? {
        crate::host::must(
            host,
            &Command::new(["systemctl", "try-reload-or-restart", "ssh.service"]),
        )?;
    }
    if is_active("ssh.socket")? {
        crate::host::must(host, &Command::new(["systemctl", "daemon-reload"]))?;
        crate::host::must(host, &Command::new(["systemctl", "restart", "ssh.socket"]))?;
    }
    Ok(())
}

/// Keyword and value, in the order of the drop-in.
pub type Settings = Vec<(&'static str, String)>;

/// Key exchanges, best first. Group exchange is for Kamal: its Ruby client has nothing newer without an extra gem.
const KEX: [&str; 7] = [
    "mlkem768x25519-sha256",
    "sntrup761x25519-sha512",
    "sntrup761x25519-sha512@openssh.com",
    "curve25519-sha256",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group18-sha512",
    "diffie-hellman-group-exchange-sha256",
];
const CIPHERS: [&str; 6] = [
    "chacha20-poly1305@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-gcm@openssh.com",
    "aes256-ctr",
    "aes192-ctr",
    "aes128-ctr",
];
const MACS: [&str; 3] = [
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256-etm@openssh.com",
    "umac-128-etm@openssh.com",
];
const HOST_KEYS: [&str; 4] = [
    "ssh-ed25519-cert-v01@openssh.com",
    "ssh-ed25519",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

/// What the settings depend on besides the administrator's wishes.
#[derive(Debug, Clone, Default)]
pub struct Circumstances<'a> {
    /// What this OpenSSH can do; where it does not tell, its own algorithms are left.
    pub algorithms: BTreeSet<String>,
    /// Keywords that it knows, in lower case.
    pub keywords: BTreeSet<&'a str>,
    /// Somebody has a key, so passwords can be turned off.
    pub key_exists: bool,
    /// There is a notice to show before a log-in.
    pub banner: bool,
    /// The profile `strict`.
    pub strict: bool,
    /// Networks of administrators, which no count of failures keeps out.
    pub exempt: BTreeSet<Net>,
}

/// Seconds a source is refused after a failed log-in, or a connection without an attempt, once they add up to `min`.
const PENALTIES: &str = "authfail:2 noauth:1 min:15 max:60";

/// The settings of the drop-in, in order.
///
/// Passwords are only turned off once somebody has a key.
/// Of each family of algorithms those are offered that this OpenSSH has.
pub fn settings(wishes: &SshWishes, circumstances: &Circumstances<'_>) -> Settings {
    let Circumstances {
        algorithms,
        keywords,
        key_exists,
        banner,
        strict,
        exempt,
    } = circumstances;
    let yes = |on: bool| if on { "yes" } else { "no" };
    let root = if wishes.no_root { "no" } else { "prohibit-password" };
    let mut settings: Vec<(&'static str, &str)> = vec![
        ("PermitEmptyPasswords", "no"),
        ("PermitUserEnvironment", "no"),
        ("HostbasedAuthentication", "no"),
        ("IgnoreRhosts", "yes"),
        ("GSSAPIAuthentication", "no"),
        ("X11Forwarding", "no"),
        ("PermitTunnel", "no"),
        ("GatewayPorts", "no"),
        ("AllowTcpForwarding", yes(wishes.tcp_forwarding)),
        ("AllowAgentForwarding", yes(wishes.agent_forwarding)),
        ("LoginGraceTime", "30"),
        // Where passwords are off nothing can be guessed, and somebody's agent may offer the right key as its sixth.
        ("MaxAuthTries", if *key_exists && !strict { "6" } else { "4" }),
        ("MaxSessions", "10"),
        ("MaxStartups", "10:30:60"),
        // No single source, an IPv6 customer being one, takes all the places of those who have not logged in yet.
        ("PerSourceMaxStartups", "8"),
        ("PerSourceNetBlockSize", "32:64"),
        ("ClientAliveInterval", "300"),
        ("ClientAliveCountMax", "2"),
        // The line above notices dead connections, inside the encryption.
        ("TCPKeepAlive", "no"),
        // What is pushed is compressed already; and a compressor reads what strangers send.
        ("Compression", "no"),
        ("LogLevel", "VERBOSE"),
        ("UseDNS", "no"),
    ];
    if *key_exists {
        settings.extend([
            // Before, root's password may be the only way in.
            ("PermitRootLogin", root),
            ("PasswordAuthentication", "no"),
            ("KbdInteractiveAuthentication", "no"),
        ]);
    }
    if *banner {
        settings.push(("Banner", "/etc/issue.net"));
    }
    let mut settings: Settings = settings
        .into_iter()
        .map(|(keyword, value)| (keyword, value.to_owned()))
        .collect();
    if keywords.contains("persourcepenalties") {
        // OpenSSH 9.8 and later: a key that does not fit, or a probe of a port, slows its source down and no more.
        // Who goes on is banned by the agent, where an administrator sees it and can take it back.
        settings.push(("PerSourcePenalties", PENALTIES.to_owned()));
        let exempt: Vec<String> = ["127.0.0.0/8", "::1/128"]
            .into_iter()
            .map(str::to_owned)
            .chain(
                exempt
                    .iter()
                    .filter(|net| !net.is_everyone())
                    .map(ToString::to_string),
            )
            .collect();
        settings.push(("PerSourcePenaltyExemptList", exempt.join(",")));
    }
    for (keyword, names) in [
        ("KexAlgorithms", &KEX[..]),
        ("Ciphers", &CIPHERS),
        ("MACs", &MACS),
        ("HostKeyAlgorithms", &HOST_KEYS),
    ] {
        let known: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| algorithms.contains(*name))
            .collect();
        if !known.is_empty() {
            settings.push((keyword, known.join(",")));
        }
    }
    if let Some(port) = wishes.port {
        settings.push(("Port", port.to_string()));
    }
    if !wishes.allow_users.is_empty() {
        let mut users = wishes.allow_users.clone();
        // Nobody could push any more without its door.
        if !users.iter().any(|user| user == crate::catalogue::DEPLOY_USER) {
            users.push(crate::catalogue::DEPLOY_USER.to_owned());
        }
        settings.push(("AllowUsers", users.join(" ")));
    }
    settings
}

/// What this OpenSSH can do; empty if it does not tell.
///
/// # Errors
/// When `ssh` cannot be asked.
pub fn algorithms(host: &dyn Host) -> Result<BTreeSet<String>, HostError> {
    let mut found = BTreeSet::new();
    for family in ["kex", "cipher", "mac", "key-sig"] {
        let output = host.run(&Command::new(["ssh", "-Q", family]))?;
        if output.ok() {
            found.extend(output.stdout.lines().map(|line| line.trim().to_owned()));
        }
    }
    Ok(found)
}

/// The drop-in's text.
pub fn render(settings: &[(&str, String)]) -> String {
    let mut text = String::from(
        "# managed by appliance\n# Sorts first: sshd takes the first value it reads. What is in force: sshd -T\n",
    );
    for (keyword, value) in settings {
        text.push_str(&format!("{keyword} {value}\n"));
    }
    text
}

/// Settings that another file overrides: keyword, wanted, in force.
pub fn overridden(
    effective: &BTreeMap<String, String>,
    settings: &[(&str, String)],
) -> Vec<(String, String, String)> {
    settings
        .iter()
        // `sshd -T` prints these once for every value.
        .filter(|(keyword, _)| !matches!(*keyword, "Port" | "AllowUsers"))
        .filter_map(|(keyword, wanted)| {
            let found = effective
                .get(&keyword.to_ascii_lowercase())
                .map_or("", String::as_str);
            let same = found.eq_ignore_ascii_case(wanted)
                || (*keyword == "PerSourcePenalties" && has_penalties(found, wanted))
                // OpenSSH prints the older name of prohibit-password.
                || (wanted == "prohibit-password" && found == "without-password")
                // Built without it, sshd does not print it.
                || (*keyword == "GSSAPIAuthentication" && found.is_empty());
            (!same).then(|| ((*keyword).to_owned(), wanted.clone(), found.to_owned()))
        })
        .collect()
}

/// Whether `authfail:2.000 crash:90.000` says of every name what `authfail:2` does.
fn has_penalties(found: &str, wanted: &str) -> bool {
    let seconds = |text: &str| -> BTreeMap<String, f64> {
        text.split_whitespace()
            .filter_map(|word| word.split_once(':'))
            .filter_map(|(name, seconds)| Some((name.to_owned(), seconds.parse().ok()?)))
            .collect()
    };
    let found = seconds(found);
    seconds(wanted)
        .iter()
        .all(|(name, seconds)| found.get(name) == Some(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_come_from_sshd_and_from_its_socket() {
        let sshd = parse("port 22\nport 2222\npermitrootlogin without-password\npermitrootlogin yes\n");
        assert_eq!(sshd.ports, BTreeSet::from([22, 2222]));
        assert_eq!(sshd.effective["permitrootlogin"], "without-password");
        assert_eq!(
            socket_ports("ActiveState=active\nListen=0.0.0.0:22 (Stream)\nListen=[::]:2022 (Stream)\n"),
            BTreeSet::from([22, 2022])
        );
    }

    #[test]
    fn a_setting_another_file_overrides_is_found_by_effect_not_by_text() {
        let wishes = crate::Options::new("1").ssh;
        let with = |key_exists| {
            settings(
                &wishes,
                &Circumstances {
                    key_exists,
                    ..Circumstances::default()
                },
            )
        };
        let mut effective = BTreeMap::new();
        for (keyword, value) in with(true) {
            effective.insert(keyword.to_ascii_lowercase(), value);
        }
        effective.insert("permitrootlogin".into(), "without-password".into());
        assert!(overridden(&effective, &with(true)).is_empty());
        effective.insert("passwordauthentication".into(), "yes".into());
        assert_eq!(
            overridden(&effective, &with(true)),
            [("PasswordAuthentication".into(), "no".into(), "yes".into())]
        );
        assert!(
            !render(&with(false)).contains("PermitRootLogin"),
            "root's password stays"
        );
        let passwords = overridden(&effective, &with(false));
        assert!(
            passwords.iter().all(|(keyword, ..)| keyword == "MaxAuthTries"),
            "{passwords:?}"
        );
        assert!(!render(&with(false)).contains("PasswordAuthentication"));
    }

    #[test]
    fn only_what_this_openssh_has_is_offered_and_kamals_exchange_is_among_it() {
        let wishes = SshWishes {
            allow_users: vec!["ann".into()],
            ..crate::Options::new("1").ssh
        };
        let known = [
            "curve25519-sha256",
            "ecdh-sha2-nistp256",
            "diffie-hellman-group-exchange-sha256",
            "aes256-ctr",
        ];
        let text = render(&settings(
            &wishes,
            &Circumstances {
                algorithms: known.map(str::to_owned).into(),
                key_exists: true,
                banner: true,
                ..Circumstances::default()
            },
        ));
        assert!(
            text.contains("KexAlgorithms curve25519-sha256,diffie-hellman-group-exchange-sha256\n"),
            "{text}"
        );
        assert!(
            text.contains("Ciphers aes256-ctr\n") && !text.contains("MACs"),
            "{text}"
        );
        assert!(
            text.contains("AllowUsers ann deploy\n") && text.contains("Banner /etc/issue.net\n"),
            "{text}"
        );
    }

    #[test]
    fn who_has_many_keys_or_an_administrators_address_is_not_kept_out() {
        let wishes = crate::Options::new("1").ssh;
        let text = |circumstances: &Circumstances<'_>| render(&settings(&wishes, circumstances));
        let keys = Circumstances {
            key_exists: true,
            ..Circumstances::default()
        };
        assert!(text(&keys).contains("MaxAuthTries 6\n") && !text(&keys).contains("PerSourcePenalt"));
        let passwords = Circumstances::default();
        assert!(text(&passwords).contains("MaxAuthTries 4\n"));
        let strict = Circumstances {
            strict: true,
            ..keys.clone()
        };
        assert!(text(&strict).contains("MaxAuthTries 4\n"));
        let newer = Circumstances {
            keywords: ["persourcepenalties"].into(),
            exempt: ["10.0.5.0/24", "0.0.0.0/0"]
                .map(|net| net.parse().expect("network"))
                .into(),
            ..keys
        };
        assert!(
            text(&newer).contains("PerSourcePenaltyExemptList 127.0.0.0/8,::1/128,10.0.5.0/24\n"),
            "{}",
            text(&newer)
        );
    }

    #[test]
    fn penalties_are_compared_by_number_not_by_text() {
        let printed = "crash:90.000 authfail:2.000 noauth:1.000 max:60.000 min:15.000 overflow:permissive";
        assert!(has_penalties(printed, PENALTIES));
        assert!(!has_penalties(&printed.replace("max:60", "max:600"), PENALTIES));
        assert!(!has_penalties("", PENALTIES));
    }
}
