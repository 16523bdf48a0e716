//! The SSH daemon: what it does now, and the drop-in that hardens it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::host::{Command, Host, HostError};

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

/// The settings of the drop-in, in order.
///
/// Passwords are only turned off once somebody has a key.
pub fn settings(key_exists: bool) -> Vec<(&'static str, &'static str)> {
    let mut settings = vec![
        ("PermitRootLogin", "prohibit-password"),
        ("PermitEmptyPasswords", "no"),
        ("X11Forwarding", "no"),
    ];
    if key_exists {
        settings.extend([
            ("PasswordAuthentication", "no"),
            ("KbdInteractiveAuthentication", "no"),
        ]);
    }
    settings
}

/// The drop-in's text.
pub fn render(settings: &[(&str, &str)]) -> String {
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
    settings: &[(&str, &str)],
) -> Vec<(String, String, String)> {
    settings
        .iter()
        .filter_map(|(keyword, wanted)| {
            let found = effective
                .get(&keyword.to_ascii_lowercase())
                .map_or("", String::as_str);
            // OpenSSH prints the older name of prohibit-password.
            let same = found == *wanted || (*wanted == "prohibit-password" && found == "without-password");
            (!same).then(|| ((*keyword).to_owned(), (*wanted).to_owned(), found.to_owned()))
        })
        .collect()
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
        let effective = parse("passwordauthentication yes\nkbdinteractiveauthentication no\npermitrootlogin without-password\npermitemptypasswords no\nx11forwarding no\n").effective;
        assert_eq!(
            overridden(&effective, &settings(true)),
            [("PasswordAuthentication".into(), "no".into(), "yes".into())]
        );
        assert!(overridden(&effective, &settings(false)).is_empty());
        assert!(!render(&settings(false)).contains("PasswordAuthentication"));
    }
}
