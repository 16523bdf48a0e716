//! Confirm or revert: new settings of sshd hold for a while, and stay only if somebody still gets in.
//!
//! ```text
//!  confirmed ── arm, write, reload ──► pending, timer runs ── confirm while a new connection is open ──► confirmed
//!      ▲                                     │
//!      └──────────── timer, or reboot ───────┘
//! ```
//!
//! The drop-in as it was lies beside what was connected at that moment; while it is there, the change is pending.
//! The timer is systemd's, armed before the drop-in changes; a reboot before the confirmation is a revert,
//! since `appliance-ssh-confirmed.service` puts the former drop-in back before sshd starts.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{DROP_IN, Peer};
use crate::catalogue::DEPLOY_USER;
use crate::host::{Command, Host, HostError, Owner, must};

/// Seconds until settings that nobody confirmed are gone again.
pub const PATIENCE: u64 = crate::firewall::pending::PATIENCE;
/// What is pending; there while nobody has confirmed it, also over a reboot.
pub const PENDING: &str = "/var/lib/appliance/bootstrap/ssh-pending.json";
/// Where it is installed, a socket of systemd's listens for sshd, on the port of sshd's settings.
const GENERATOR: &str = "/usr/lib/systemd/system-generators/sshd-socket-generator";
/// The timer that puts the former settings back.
pub const UNIT: &str = "appliance-ssh-revert";

/// Settings that wait for their confirmation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    /// The drop-in as it was.
    before: String,
    /// Connections that were open when it changed; their packets prove nothing.
    connections: BTreeSet<String>,
    /// Who may log in changed: somebody with a shell has to come, not only who pushes.
    #[serde(default)]
    shell: bool,
}

/// Why settings could not be confirmed or put back.
#[derive(Debug, thiserror::Error)]
pub enum PendingError {
    /// Everybody who is connected was so before the change.
    #[error(
        "no connection is open that began after the change of sshd's settings, so nothing shows that one can"
    )]
    NoNewConnection,
    /// Only the deploy user came since the change.
    #[error(
        "who may log in has changed, and only the user deploy came since, who has no shell; log in as an administrator, and confirm there: appliance host confirm"
    )]
    NoShell,
    /// The machine did not do its part.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Connections to sshd that are open now; those of the host to itself are none.
fn connections(host: &dyn Host) -> Result<Vec<Peer>, HostError> {
    let ports = super::observe(host)?.map(|sshd| sshd.ports).unwrap_or_default();
    let mut found = Vec::new();
    for port in ports {
        let peers = super::peers(host, port)?;
        found.extend(peers.into_iter().filter(|peer| !is_loopback(&peer.at)));
    }
    Ok(found)
}

/// Whether the two differ in who may log in.
fn is_about_logins(before: &str, new: &str) -> bool {
    let of = |text: &str| -> BTreeSet<String> {
        text.lines()
            // What sshd does by itself changes nothing.
            .filter(|line| *line == "PermitRootLogin no" || line.starts_with("AllowUsers "))
            .map(str::to_owned)
            .collect()
    };
    of(before) != of(new)
}

fn is_loopback(peer: &str) -> bool {
    peer.rsplit_once(':')
        .and_then(|(address, _)| address.trim_matches(['[', ']']).parse::<IpAddr>().ok())
        .is_some_and(|address| address.to_canonical().is_loopback())
}

fn read(host: &dyn Host) -> Result<Option<Pending>, HostError> {
    Ok(host
        .read(PENDING.as_ref())?
        .and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Whether a change waits for its confirmation.
///
/// # Errors
/// When that cannot be looked at.
pub fn is_armed(host: &dyn Host) -> Result<bool, HostError> {
    Ok(host.entry(PENDING.as_ref())?.is_some())
}

/// Before the drop-in changes: if somebody is connected, the old one comes back unless the change is confirmed.
///
/// Of the first drop-in only what names a port or who may log in at all goes back: the rest has been checked against
/// the keys that are there, and to go back would mean to open the host.
/// A second change before the first is confirmed goes back to where the first one came from.
///
/// # Errors
/// When the timer cannot be armed.
pub fn arm(host: &dyn Host, new: &str) -> Result<(), HostError> {
    let drop_in = match host.read(DROP_IN.as_ref())? {
        Some(drop_in) => drop_in,
        None => {
            let harmless = without_doors(new);
            if harmless == new {
                return Ok(());
            }
            harmless.into_bytes()
        }
    };
    let connections = connections(host)?;
    let former = read(host)?;
    if connections.is_empty() && former.is_none() {
        return Ok(());
    }
    let before = former.map_or_else(
        || String::from_utf8_lossy(&drop_in).into_owned(),
        |former| former.before,
    );
    let pending = Pending {
        shell: is_about_logins(&before, new),
        before,
        connections: connections.into_iter().map(|peer| peer.at).collect(),
    };
    let timer = format!("{UNIT}.timer");
    let _not_armed_before = host.run(&Command::new(["systemctl", "stop", &timer]))?;
    let json = serde_json::to_vec(&pending).expect("texts always serialise");
    host.write(PENDING.as_ref(), &json, 0o600, &Owner::root())?;
    let unit = format!("--unit={UNIT}");
    let after = format!("--on-active={PATIENCE}");
    let run = [
        "systemd-run",
        "--collect",
        "--quiet",
        &unit,
        &after,
        "--timer-property=AccuracySec=1s",
        "/usr/local/bin/appliance",
        "host",
        "revert-ssh",
    ];
    must(host, &Command::new(run)).map(drop)
}

/// Settings without those that close a door for good: the port, whose names may be used, root not at all.
fn without_doors(text: &str) -> String {
    text.lines()
        .filter(|line| !line.starts_with("Port ") && !line.starts_with("AllowUsers "))
        .map(|line| line.replace("PermitRootLogin no", "PermitRootLogin prohibit-password") + "\n")
        .collect()
}

/// What the timer runs: the drop-in as it was before. `false` if nothing was pending.
///
/// `at_boot`: sshd has not started yet, and reads it when it does.
///
/// # Errors
/// When it cannot be put back.
pub fn revert(host: &dyn Host, at_boot: bool) -> Result<bool, HostError> {
    let Some(pending) = read(host)? else {
        return Ok(false);
    };
    host.write(DROP_IN.as_ref(), pending.before.as_bytes(), 0o644, &Owner::root())?;
    host.remove(PENDING.as_ref())?;
    if !at_boot {
        super::reload(host)?;
    } else if host.entry(GENERATOR.as_ref())?.is_some() {
        // The socket's port was made from the settings before they were put back.
        must(host, &Command::new(["systemctl", "daemon-reload"]))?;
    }
    Ok(true)
}

/// Stops the timer: somebody came in after the change. `false` if nothing was pending.
///
/// # Errors
/// [`PendingError::NoNewConnection`] if everybody who is connected was so before; when the timer cannot be stopped.
pub fn confirm(host: &dyn Host) -> Result<bool, PendingError> {
    let Some(pending) = read(host)? else {
        return Ok(false);
    };
    let came: Vec<Peer> = connections(host)?
        .into_iter()
        .filter(|peer| !pending.connections.contains(&peer.at))
        .collect();
    if came.is_empty() {
        return Err(PendingError::NoNewConnection);
    }
    let pushes = |peer: &Peer| peer.user.as_deref() == Some(DEPLOY_USER);
    if pending.shell && came.iter().all(pushes) {
        return Err(PendingError::NoShell);
    }
    let timer = format!("{UNIT}.timer");
    let _fired_already = host.run(&Command::new(["systemctl", "stop", &timer]))?;
    host.remove(PENDING.as_ref())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    const OLD: &str = "0 0 192.0.2.1:22 203.0.113.9:51000\n";

    fn changed() -> Memory {
        let host = Memory::bare("debian", "13");
        host.put(DROP_IN, "MaxAuthTries 4\n");
        *host.sockets.borrow_mut() = OLD.to_owned();
        arm(&host, "MaxAuthTries 3\n").expect("arms");
        host.put(DROP_IN, "MaxAuthTries 3\n");
        host
    }

    #[test]
    fn who_pushes_does_not_show_that_an_administrator_gets_in() {
        let host = changed();
        arm(&host, "MaxAuthTries 3\nAllowUsers deploy\n").expect("arms");
        host.put(DROP_IN, "MaxAuthTries 3\nAllowUsers deploy\n");
        let new =
            |pid: u32| format!("{OLD}0 0 192.0.2.1:22 203.0.113.9:51001 users:((\"sshd\",pid={pid},fd=4))\n");
        host.put("/proc/7/cmdline", "sshd: deploy@notty");
        host.put("/proc/8/cmdline", "sshd-session: root@pts/0");
        *host.sockets.borrow_mut() = new(7);
        assert!(matches!(confirm(&host), Err(PendingError::NoShell)));
        *host.sockets.borrow_mut() = new(8);
        assert!(confirm(&host).expect("confirms"));
    }

    #[test]
    fn where_systemd_listens_for_sshd_its_socket_takes_the_port_over() {
        let host = changed();
        let socket = "ssh.socket".to_owned();
        host.units.borrow_mut().insert(socket, (true, true));
        host.effects.borrow_mut().clear();
        assert!(revert(&host, false).expect("reverts"));
        let effects = host.effects.borrow().clone();
        let place = |effect: &str| effects.iter().position(|other| other == effect);
        assert!(
            place("daemon-reload").is_some() && place("daemon-reload") < place("restart ssh.socket"),
            "{effects:?}"
        );
        // At boot the generator ran before the former port was back.
        let host = changed();
        host.put(GENERATOR, "");
        host.effects.borrow_mut().clear();
        assert!(revert(&host, true).expect("reverts"));
        assert!(
            host.effects
                .borrow()
                .iter()
                .any(|effect| effect == "daemon-reload")
        );
    }

    #[test]
    fn only_somebody_who_came_after_the_change_can_confirm_it() {
        let host = changed();
        assert!(matches!(confirm(&host), Err(PendingError::NoNewConnection)));
        *host.sockets.borrow_mut() = format!("{OLD}0 0 127.0.0.1:22 127.0.0.1:4\n");
        assert!(
            matches!(confirm(&host), Err(PendingError::NoNewConnection)),
            "from the host itself"
        );
        // The same person on another port of theirs.
        *host.sockets.borrow_mut() = format!("{OLD}0 0 192.0.2.1:22 203.0.113.9:51002\n");
        assert!(confirm(&host).expect("confirms"));
        assert!(!is_armed(&host).expect("looks") && !confirm(&host).expect("again"));
        assert!(!revert(&host, false).expect("nothing to revert"));
        assert_eq!(host.text(DROP_IN).as_deref(), Some("MaxAuthTries 3\n"));
    }

    #[test]
    fn what_nobody_confirms_goes_back_to_what_was_confirmed_last() {
        let host = changed();
        // A second change on top of the first.
        arm(&host, "MaxAuthTries 2\n").expect("arms again");
        host.put(DROP_IN, "MaxAuthTries 2\n");
        assert!(revert(&host, true).expect("reverts"));
        assert_eq!(host.text(DROP_IN).as_deref(), Some("MaxAuthTries 4\n"));
        assert!(!is_armed(&host).expect("looks"));
    }

    #[test]
    fn a_stranger_who_has_not_logged_in_confirms_nothing() {
        let host = changed();
        host.put("/proc/71/cmdline", "sshd-session: unknown [net]\0");
        host.put("/proc/72/cmdline", "sshd-session: root@pts/0\0");
        let line = |pid: u32| {
            format!("{OLD}0 0 192.0.2.1:22 198.51.100.7:4000 users:((\"sshd-session\",pid={pid},fd=4))\n")
        };
        *host.sockets.borrow_mut() = line(71);
        assert!(matches!(confirm(&host), Err(PendingError::NoNewConnection)));
        *host.sockets.borrow_mut() = line(72);
        assert!(confirm(&host).expect("confirms"));
    }

    #[test]
    fn the_first_settings_go_back_as_far_as_they_close_a_door() {
        let host = Memory::bare("debian", "13");
        *host.sockets.borrow_mut() = OLD.to_owned();
        let new = "PermitRootLogin no\nMaxAuthTries 6\nPort 2222\nAllowUsers ann deploy\n";
        arm(&host, new).expect("arms");
        host.put(DROP_IN, new);
        assert!(is_armed(&host).expect("looks"));
        assert!(revert(&host, true).expect("reverts"));
        assert_eq!(
            host.text(DROP_IN).as_deref(),
            Some("PermitRootLogin prohibit-password\nMaxAuthTries 6\n")
        );
    }

    #[test]
    fn without_anybody_connected_or_anything_to_go_back_to_nothing_is_armed() {
        let host = Memory::bare("debian", "13");
        *host.sockets.borrow_mut() = OLD.to_owned();
        arm(&host, "MaxAuthTries 6\n").expect("the first settings");
        assert!(!is_armed(&host).expect("looks"));
        host.put(DROP_IN, "x\n");
        host.sockets.borrow_mut().clear();
        arm(&host, "y\n").expect("nobody there");
        assert!(!is_armed(&host).expect("looks"));
    }
}
