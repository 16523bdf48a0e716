//! In UFW's mode: rules of ours in the stead of UFW's, while those are missing from the kernel.
//!
//! ```text
//!  UFW's rules there ── nft flush ruleset, iptables -F, … ──► missing: our rules for the host's sockets stand in
//!         ▲                                                        │
//!         └────────── bring_back, ufw reload, ufw disable ◄────────┘
//! ```
//!
//! They lie in a table of their own, so that nothing of [`super::state`] changes, and let in SSH, what UFW's rules let in,
//! and what `host.yml` opens: a drop there is final, but nobody who administers this host is locked out.

use std::path::Path;

use super::rules::{Mode, Rules};
use super::ufw::{self, Presence};
use super::{FirewallError, interfaces};
use crate::digest;
use crate::host::{Command, Host, Owner, must};

/// The table that stands in.
const TABLE: &str = "appliance_stead";

/// SHA-256 of the script that was last loaded.
const LOADED: &str = "/run/appliance-firewall/stead.sha256";

/// What UFW's unit runs.
const INIT: &str = "/lib/ufw/ufw-init";

/// What a look came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// UFW does its part, was told not to, or is not asked to.
    Unneeded,
    /// It did not for a while, and does again: our rules went.
    Back,
    /// Ours stand in for UFW's, for these families.
    StandsIn(Vec<&'static str>),
}

/// Looks at the kernel, and loads or removes the table as it takes. `now` is Unix seconds.
///
/// # Errors
/// When there are no rules, or a program does not do its part.
pub fn look(host: &dyn Host, now: u64) -> Result<Look, FirewallError> {
    let rules = super::rules(host, now)?.filter(|rules| rules.mode == Mode::Ufw);
    let Some(rules) = rules else {
        return remove(host);
    };
    match ufw::presence(host).map_err(FirewallError::Load)? {
        Presence::Off | Presence::There => remove(host),
        Presence::Missing(families) => {
            let script = script(&rules, &interfaces::outside(host)?);
            let digest = digest::hex(script.as_bytes());
            let last = host.read(Path::new(LOADED)).map_err(FirewallError::Load)?;
            // What is closed meanwhile, or an interface that comes, concerns it as much.
            if !is_loaded(host)? || last.as_deref() != Some(digest.as_bytes()) {
                must(host, &Command::new(["nft", "-f", "-"]).stdin(script)).map_err(FirewallError::Load)?;
                host.write(Path::new(LOADED), digest.as_bytes(), 0o600, &Owner::root())
                    .map_err(FirewallError::Load)?;
            }
            Ok(Look::StandsIn(families))
        }
    }
}

/// Lets UFW load its rules again.
///
/// After `iptables -F` not even `ufw reload` does (seen with 0.36): its first chains are still there, so that it takes
/// their jumps for granted. Then it is stopped, those of its chains that nothing leads to are removed, and it is started;
/// meanwhile our table keeps the host closed. Outside of the caller's sandbox: UFW loads modules and kernel settings.
///
/// # Errors
/// When a program cannot be run; whether it helped, [`look`] tells.
pub fn bring_back(host: &dyn Host) -> Result<(), FirewallError> {
    let ufw = |words: &[&str]| {
        let argv = ["systemd-run", "--quiet", "--collect", "--wait"];
        let command = Command::new(argv.iter().chain(words).copied());
        host.run(&command).map_err(FirewallError::Load)
    };
    let _seen_below = ufw(&["ufw", "reload"])?;
    if !matches!(
        ufw::presence(host).map_err(FirewallError::Load)?,
        Presence::Missing(_)
    ) {
        return Ok(());
    }
    let _or_stopped_already = ufw(&[INIT, "force-stop"])?;
    for program in ["iptables", "ip6tables"] {
        let list = Command::new([program, "--wait", "5", "--list-rules"]);
        let rules = host.run(&list).map_err(FirewallError::Load)?.stdout;
        for chain in rules.lines().filter_map(|line| line.strip_prefix("-N ")) {
            if chain.starts_with("ufw") {
                // One that something leads to is refused, and is as it should be.
                let delete = Command::new([program, "--wait", "5", "--delete-chain", chain]);
                let _or_in_use = host.run(&delete).map_err(FirewallError::Load)?;
            }
        }
    }
    ufw(&[INIT, "start"]).map(drop)
}

fn is_loaded(host: &dyn Host) -> Result<bool, FirewallError> {
    let list = Command::new(["nft", "list", "table", "inet", TABLE]);
    Ok(host.run(&list).map_err(FirewallError::Load)?.ok())
}

fn remove(host: &dyn Host) -> Result<Look, FirewallError> {
    if !is_loaded(host)? {
        return Ok(Look::Unneeded);
    }
    must(host, &Command::new(["nft", "delete", "table", "inet", TABLE])).map_err(FirewallError::Load)?;
    Ok(Look::Back)
}

/// The whole table as in our own mode, under another name.
fn script(rules: &Rules, outside: &[String]) -> String {
    let own = Rules {
        mode: Mode::Own,
        outside: rules.outside.iter().chain(outside).cloned().collect(),
        // Who may come by SSH is UFW's to say, and it cannot: nobody is locked out meanwhile.
        ssh_from: Default::default(),
        ..rules.clone()
    };
    own.render()
        .replace("table inet appliance\n", &format!("table inet {TABLE}\n"))
        .replace("table inet appliance {", &format!("table inet {TABLE} {{"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::CONFIRMED;
    use crate::memory::Memory;

    fn on(mode: Mode) -> Memory {
        let host = Memory::bare("debian", "12");
        host.packages.borrow_mut().insert("nftables".to_owned());
        let rules = Rules {
            mode,
            ssh_ports: [22].into(),
            ssh_from: ["192.0.2.0/24".parse().expect("network")].into(),
            ..Rules::default()
        };
        host.put(CONFIRMED, &rules.render());
        host.put(ufw::CONF, "ENABLED=yes\n");
        host
    }

    #[test]
    fn ours_stand_in_while_ufws_are_missing_and_go_when_they_are_back() {
        let host = on(Mode::Ufw);
        let look = || look(&host, 0).expect("looks");
        assert_eq!(look(), Look::StandsIn(vec!["IPv4", "IPv6"]));
        let script = host.stead.borrow().clone().expect("is loaded");
        assert!(
            script.contains("tcp dport @ssh_ports accept") && script.contains("hook input"),
            "nobody who administers this host is locked out: {script}"
        );
        assert!(
            !script.contains("inet appliance {"),
            "our own table stays as it is"
        );
        assert_eq!(host.kernel.borrow().as_ref(), None);
        // One family is enough to stand in.
        host.ufw.set((true, false));
        assert_eq!(look(), Look::StandsIn(vec!["IPv6"]));
        host.ufw.set((true, true));
        assert_eq!((look(), look()), (Look::Back, Look::Unneeded));
        // Whoever turns UFW off is obeyed.
        host.ufw.set((false, false));
        assert_eq!(look(), Look::StandsIn(vec!["IPv4", "IPv6"]));
        host.put(ufw::CONF, "ENABLED=no\n");
        assert_eq!(look(), Look::Back);
    }

    #[test]
    fn what_is_closed_meanwhile_is_closed_there_too() {
        let host = on(Mode::Ufw);
        let mut rules = Rules {
            mode: Mode::Ufw,
            ssh_ports: [22].into(),
            ..Rules::default()
        };
        rules.openings.push(crate::firewall::opening::Opening {
            ports: "5432/tcp".parse().expect("ports"),
            from: Vec::new(),
            comment: String::new(),
            source: crate::firewall::opening::Source::Request {
                by: "ann".to_owned(),
                at: "now".to_owned(),
            },
        });
        host.put(CONFIRMED, &rules.render());
        let loaded = || {
            look(&host, 0).expect("looks");
            host.stead.borrow().clone().expect("is loaded")
        };
        assert!(loaded().contains("5432"));
        rules.openings.clear();
        host.put(CONFIRMED, &rules.render());
        let closed = loaded();
        assert!(!closed.contains("5432"), "{closed}");
        // As it is, it is not loaded again.
        *host.stead.borrow_mut() = Some("as it was".to_owned());
        assert_eq!(loaded(), "as it was");
    }

    #[test]
    fn in_our_own_mode_nothing_stands_in() {
        assert_eq!(look(&on(Mode::Own), 0).expect("looks"), Look::Unneeded);
    }
}
