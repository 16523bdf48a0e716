//! Confirm or revert: new rules hold for a while, and stay only if somebody still gets in.
//!
//! ```text
//!  confirmed ── arm ──► pending, timer runs ── confirm over a new connection ──► confirmed (the new ones)
//!      ▲                      │
//!      └── timer, or reboot ──┘
//! ```
//!
//! The timer is systemd's, armed before the rules change: it fires whatever becomes of us.
//! What it runs is `appliance firewall load`, which knows only confirmed rules; so does boot.

use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::rules::Rules;
use super::{CONFIRMED, FirewallError, PENDING, State};
use crate::host::{Command, Host, Owner, must};

/// Seconds until rules that nobody confirmed are gone again.
pub const PATIENCE: u64 = 120;
/// What is armed; gone after a reboot, as the pending rules are.
pub const ARMED: &str = "/run/appliance-firewall/armed.json";
/// The timer's unit.
pub const UNIT: &str = "appliance-firewall-revert";

/// Rules that wait for their confirmation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// Has to be named when confirming.
    pub nonce: String,
    /// The connection the change came over; it proves nothing, since its packets pass anyway.
    pub session: String,
    /// When the timer fires, Unix seconds.
    pub until: u64,
    /// What changes, for a person.
    pub changes: Vec<String>,
}

/// What is armed now, if anything.
///
/// # Errors
/// When the file cannot be read.
pub fn armed(host: &dyn Host, now: u64) -> Result<Option<Armed>, FirewallError> {
    let bytes = host.read(Path::new(ARMED)).map_err(FirewallError::Load)?;
    Ok(bytes
        .and_then(|bytes| serde_json::from_slice::<Armed>(&bytes).ok())
        .filter(|armed| armed.until > now))
}

/// Addresses from which somebody is logged in through one of sshd's ports at this moment.
///
/// # Errors
/// When `ss` cannot be asked.
pub fn connected(host: &dyn Host, rules: &Rules) -> Result<Vec<IpAddr>, FirewallError> {
    let mut found = Vec::new();
    for port in &rules.ssh_ports {
        let peers = crate::sshd::peers(host, *port).map_err(FirewallError::Load)?;
        found.extend(peers.iter().filter_map(|peer| address(&peer.at)));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Of `203.0.113.9:51000` or `[2001:db8::9%eth0]:51000`; nothing of the host's own.
fn address(peer: &str) -> Option<IpAddr> {
    let (address, _) = peer.rsplit_once(':')?;
    let address = address.trim_matches(['[', ']']);
    let address: IpAddr = address.split('%').next()?.parse().ok()?;
    Some(address.to_canonical()).filter(|address| !address.is_loopback())
}

/// Simulates the rules for everybody who is connected now.
///
/// # Errors
/// [`FirewallError::LockOut`] with the first who could not come back.
pub fn simulate(host: &dyn Host, rules: &Rules) -> Result<(), FirewallError> {
    for address in connected(host, rules)? {
        if !rules.admits_ssh(address) {
            return Err(FirewallError::LockOut(address));
        }
    }
    Ok(())
}

/// Arms the timer, then loads the rules. They hold until the timer fires, unless [`confirm`]ed.
///
/// # Errors
/// When somebody who is connected could not come back, or the kernel does not take them; the confirmed rules then stay in force.
pub fn arm(
    host: &dyn Host,
    rules: &Rules,
    nonce: &str,
    session: &str,
    now: u64,
) -> Result<Armed, FirewallError> {
    simulate(host, rules)?;
    let text = rules.render();
    check(host, &text)?;
    let before = Rules::from_file(&super::confirmed(host)?.unwrap_or_default());
    let armed = Armed {
        nonce: nonce.to_owned(),
        session: session.to_owned(),
        until: now + PATIENCE,
        changes: rules.changes_from(before.as_ref()),
    };
    disarm(host)?;
    let write = |path: &str, bytes: &[u8]| {
        host.write(Path::new(path), bytes, 0o600, &Owner::root())
            .map_err(FirewallError::Load)
    };
    let after = format!("--on-active={PATIENCE}");
    let unit = format!("--unit={UNIT}");
    let timer = [
        "systemd-run",
        "--collect",
        "--quiet",
        &unit,
        &after,
        "--timer-property=AccuracySec=1s",
        "/usr/local/bin/appliance",
        "firewall",
        "load",
    ];
    must(host, &Command::new(timer)).map_err(FirewallError::Load)?;
    write(PENDING, text.as_bytes())?;
    let json = serde_json::to_vec(&armed).expect("texts and numbers always serialise");
    write(ARMED, &json)?;
    if let Err(error) = super::load_file(host, PENDING, now) {
        disarm(host)?;
        return Err(error);
    }
    Ok(armed)
}

/// Lets `nft` judge rules without loading them.
///
/// # Errors
/// When it would not take them.
pub fn check(host: &dyn Host, text: &str) -> Result<(), FirewallError> {
    must(host, &Command::new(["nft", "--check", "--file", "-"]).stdin(text))
        .map(drop)
        .map_err(FirewallError::Load)
}

/// Makes the pending rules the confirmed ones, and stops the timer.
///
/// # Errors
/// When nothing is armed, the nonce is another, or the connection is the one the change came over.
pub fn confirm(host: &dyn Host, nonce: &str, session: &str, now: u64) -> Result<Armed, FirewallError> {
    let armed = armed(host, now)?.ok_or(FirewallError::NothingArmed)?;
    if armed.nonce != nonce {
        return Err(FirewallError::OtherNonce);
    }
    if !armed.session.is_empty() && armed.session == session {
        return Err(FirewallError::SameConnection);
    }
    if super::state(host)? != State::Pending {
        return Err(FirewallError::NothingArmed);
    }
    let text = host
        .read(Path::new(PENDING))
        .map_err(FirewallError::Load)?
        .ok_or(FirewallError::NothingArmed)?;
    host.write(Path::new(CONFIRMED), &text, 0o600, &Owner::root())
        .map_err(FirewallError::Load)?;
    disarm(host)?;
    Ok(armed)
}

/// Stops the timer and forgets what was armed; the kernel is left as it is.
///
/// # Errors
/// When a file cannot be removed.
pub fn disarm(host: &dyn Host) -> Result<(), FirewallError> {
    let timer = format!("{UNIT}.timer");
    let _not_armed = host
        .run(&Command::new(["systemctl", "stop", &timer]))
        .map_err(FirewallError::Load)?;
    host.remove(Path::new(ARMED)).map_err(FirewallError::Load)?;
    host.remove(Path::new(PENDING)).map_err(FirewallError::Load)
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn addresses_are_read_from_ss_whatever_their_family() {
        for (peer, expect) in [
            ("203.0.113.9:51000", Some("203.0.113.9")),
            ("[2001:db8::9]:51000", Some("2001:db8::9")),
            ("[::ffff:203.0.113.9]:5", Some("203.0.113.9")),
            ("[fe80::9%eth0]:5", Some("fe80::9")),
            ("127.0.0.1:5", None),
            ("", None),
        ] {
            assert_eq!(
                address(peer),
                expect.map(|text| text.parse().expect("address")),
                "{peer}"
            );
        }
    }
}
