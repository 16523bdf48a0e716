//! The firewall table `inet appliance`: ours alone, and out of reach of what Docker and UFW accept.
//!
//! In nftables a drop in any base chain is final, an accept only ends its own chain.
//! So our table, at priorities just before everybody else's, has the last word on what is closed.
//! Ports are those of the original destination: `443` means "443 on this host", whoever answers it.
//!
//! - [`opening`] is what can be open, and for whom; [`ufw`] reads UFW's rules, [`follow`] takes them over,
//!   [`stead`] stands in for them while they are missing from the kernel;
//! - [`rules`] renders the table; [`explain`] tells what it does with one packet;
//! - [`interfaces`] tells which interfaces lead outside;
//! - [`kernel`] reduces what the kernel holds to a fingerprint;
//! - [`load`] puts the confirmed file into the kernel, in one transaction, and remembers that fingerprint;
//! - [`pending`] lets new rules hold for a while until they are confirmed;
//! - [`moved`] closes the port that sshd left;
//! - [`bans`] counts failed logins; [`exposure`] joins sockets, containers and rules.
//!
//! Nothing else of the host's rules is read or written.

pub mod bans;
pub mod explain;
pub mod exposure;
pub mod follow;
pub mod interfaces;
pub mod kernel;
pub mod moved;
pub mod opening;
pub mod pending;
pub mod rules;
pub mod stead;
pub mod ufw;

use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest;
use crate::host::{Command, Host, HostError, Owner, must};

/// The rules that boot loads: rendered by us, accepted by `nft -c`, confirmed.
pub const CONFIRMED: &str = "/var/lib/appliance/fw/confirmed.nft";
/// Rules that wait for their confirmation.
pub const PENDING: &str = "/var/lib/appliance/fw/pending.nft";
/// Interfaces found outside when the network was last up.
pub const REMEMBERED: &str = "/var/lib/appliance/fw/outside_if.json";
/// What the kernel held right after the last load.
pub const LOADED: &str = "/run/appliance-firewall/loaded.json";

/// Why the table is not in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// There is nothing to load.
    #[error("there are no confirmed firewall rules in {CONFIRMED}; run `appliance bootstrap`")]
    Unconfirmed,
    /// nft or ip did not do its part.
    #[error("cannot load the firewall table")]
    Load(#[source] HostError),
    /// nft or ip answered something else than JSON.
    #[error("cannot understand what `{program}` says about this host's network")]
    Understand {
        /// Which program.
        program: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Somebody who is connected could not come back.
    #[error("the new rules would lock out {0}, which is connected by SSH now")]
    LockOut(IpAddr),
    /// There is nothing to confirm.
    #[error("nothing waits for a confirmation; what was armed has been reverted")]
    NothingArmed,
    /// Something else waits for its confirmation.
    #[error("something else waits for its confirmation")]
    OtherNonce,
    /// The connection that the change came over.
    #[error(
        "this is the connection that the change came over, whose packets pass anyway; confirm over a new one"
    )]
    SameConnection,
}

/// What was loaded, and what the kernel made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// SHA-256 of the file.
    pub confirmed: String,
    /// [`kernel::fingerprint`] of the table right after loading.
    pub kernel: String,
    /// Interfaces taken for outside.
    pub outside: Vec<String>,
}

/// What the kernel holds now, compared with what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The confirmed rules, unaltered.
    Confirmed,
    /// Rules that wait for their confirmation, unaltered.
    Pending,
    /// Our table, but other rules than the confirmed ones.
    Differs,
    /// No table of ours.
    Absent,
}

/// Loads the confirmed rules in one transaction; established connections do not notice.
///
/// Whatever waited for a confirmation is forgotten. `now` is Unix seconds, for bans that are still in force.
///
/// # Errors
/// When there are none, or the kernel does not take them; the rules it had stay in force.
pub fn load(host: &dyn Host, now: u64) -> Result<Loaded, FirewallError> {
    let loaded = load_file(host, CONFIRMED, now)?;
    for path in [pending::ARMED, PENDING] {
        if host
            .entry(Path::new(path))
            .map_err(FirewallError::Load)?
            .is_some()
        {
            host.remove(Path::new(path)).map_err(FirewallError::Load)?;
        }
    }
    // Whoever flushed our table flushed UFW's too, and nobody else looks where no agent runs.
    // The table holds without: its load must not fail because of UFW.
    let _the_agent_looks_again = stead::look(host, now);
    Ok(loaded)
}

/// Writes the confirmed rules as this version renders them, if another did; whether it had to.
///
/// The rules are the same, and the table around them is newer: it may have sets that are counted on. [`load`] follows.
/// What waits for its confirmation is left alone.
///
/// # Errors
/// When nft does not take them, or a file cannot be read or written; those that are there stay.
pub fn renew(host: &dyn Host, now: u64) -> Result<bool, FirewallError> {
    let Some(text) = confirmed(host)? else {
        return Ok(false);
    };
    let Some(rules) = rules::Rules::from_file(&text) else {
        return Ok(false);
    };
    let rendered = rules.render();
    if rendered == text || pending::armed(host, now)?.is_some() {
        return Ok(false);
    }
    write_confirmed(host, &rendered)?;
    Ok(true)
}

/// Writes other text as the confirmed rules, once nft has looked at it; [`load`] follows.
fn write_confirmed(host: &dyn Host, text: &str) -> Result<(), FirewallError> {
    pending::check(host, text)?;
    host.write(Path::new(CONFIRMED), text.as_bytes(), 0o600, &Owner::root())
        .map_err(FirewallError::Load)
}

/// Puts back what should be in the kernel: pending rules while they are armed, else the confirmed ones.
///
/// # Errors
/// As [`load`].
pub fn restore(host: &dyn Host, now: u64) -> Result<Loaded, FirewallError> {
    match pending::armed(host, now)? {
        Some(_) => load_file(host, PENDING, now),
        None => load_file(host, CONFIRMED, now),
    }
}

pub(crate) fn load_file(host: &dyn Host, path: &str, now: u64) -> Result<Loaded, FirewallError> {
    let text = host
        .read(Path::new(path))
        .map_err(FirewallError::Load)?
        .ok_or(FirewallError::Unconfirmed)?;
    let outside = interfaces::outside(host)?;
    let mut script = text.clone();
    if !outside.is_empty() {
        let names: Vec<String> = outside.iter().map(|name| format!("\"{name}\"")).collect();
        script.extend(
            format!(
                "\nadd element inet appliance outside_if {{ {} }}\n",
                names.join(", ")
            )
            .into_bytes(),
        );
    }
    let bans: bans::Bans = host
        .read(Path::new(bans::FILE))
        .map_err(FirewallError::Load)?
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    must(host, &Command::new(["nft", "-f", "-"]).stdin(script)).map_err(FirewallError::Load)?;
    // In transactions of their own: a ban that the kernel does not take must not cost the table, nor the other kind.
    for from in [bans::KeptFrom::Everything, bans::KeptFrom::Ssh] {
        let bans = bans.script(now, from);
        if !bans.is_empty() {
            let _the_table_holds_without = host
                .run(&Command::new(["nft", "-f", "-"]).stdin(bans))
                .map_err(FirewallError::Load)?;
        }
    }
    let kernel = kernel_fingerprint(host)?.unwrap_or_default();
    let loaded = Loaded {
        confirmed: digest::hex(&text),
        kernel,
        outside,
    };
    let json = serde_json::to_vec(&loaded).expect("strings and lists always serialise");
    host.write(Path::new(LOADED), &json, 0o600, &Owner::root())
        .map_err(FirewallError::Load)?;
    Ok(loaded)
}

/// The confirmed file's text; `None` if there is none.
///
/// # Errors
/// When it cannot be read.
pub fn confirmed(host: &dyn Host) -> Result<Option<String>, FirewallError> {
    text(host, CONFIRMED)
}

/// The rules in force: those that are armed, else the confirmed ones.
///
/// # Errors
/// When a file cannot be read.
pub fn rules(host: &dyn Host, now: u64) -> Result<Option<rules::Rules>, FirewallError> {
    let path = match pending::armed(host, now)? {
        Some(_) => PENDING,
        None => CONFIRMED,
    };
    Ok(text(host, path)?.and_then(|text| rules::Rules::from_file(&text)))
}

fn text(host: &dyn Host, path: &str) -> Result<Option<String>, FirewallError> {
    let bytes = host.read(Path::new(path)).map_err(FirewallError::Load)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// What was last loaded, if anything was since boot.
///
/// # Errors
/// When the file cannot be read.
pub fn loaded(host: &dyn Host) -> Result<Option<Loaded>, FirewallError> {
    let bytes = host.read(Path::new(LOADED)).map_err(FirewallError::Load)?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Compares the kernel's table with the confirmed rules, or with those that are armed.
///
/// # Errors
/// When nft cannot be asked.
pub fn state(host: &dyn Host) -> Result<State, FirewallError> {
    let Some(kernel) = kernel_fingerprint(host)? else {
        return Ok(State::Absent);
    };
    let hash = |path: &str| -> Result<Option<String>, FirewallError> {
        let bytes = host.read(Path::new(path)).map_err(FirewallError::Load)?;
        Ok(bytes.map(|bytes| digest::hex(&bytes)))
    };
    let Some(loaded) = loaded(host)?.filter(|loaded| loaded.kernel == kernel) else {
        return Ok(State::Differs);
    };
    Ok(if hash(CONFIRMED)?.as_ref() == Some(&loaded.confirmed) {
        State::Confirmed
    } else if hash(PENDING)?.as_ref() == Some(&loaded.confirmed) {
        State::Pending
    } else {
        State::Differs
    })
}

/// The fingerprint of our table in the kernel; `None` if there is none.
fn kernel_fingerprint(host: &dyn Host) -> Result<Option<String>, FirewallError> {
    let command = Command::new(["nft", "-j", "list", "table", "inet", "appliance"]);
    let output = host.run(&command).map_err(FirewallError::Load)?;
    if !output.ok() {
        return Ok(None);
    }
    kernel::fingerprint(&output.stdout)
        .map(Some)
        .map_err(|source| FirewallError::Understand {
            program: "nft",
            source,
        })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::memory::Memory;

    #[test]
    fn a_table_of_another_version_is_rendered_anew_and_the_rules_stay() {
        let host = Memory::bare("debian", "12");
        host.packages.borrow_mut().insert("nftables".to_owned());
        let rules = rules::Rules {
            ssh_ports: [2222].into(),
            ..rules::Rules::default()
        };
        let today = rules.render();
        let older: String = today
            .lines()
            .filter(|line| !line.contains("ssh_ban4"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_ne!(older, today);
        host.put(CONFIRMED, &older);
        assert!(renew(&host, 0).expect("renews"));
        assert_eq!(
            confirmed(&host).expect("is read").as_deref(),
            Some(today.as_str())
        );
        assert!(!renew(&host, 0).expect("looks"), "once is enough");
        assert!(today.contains("set ssh_ban4"), "where bans go");
        let mut bans = bans::Bans::default();
        let address: IpAddr = "203.0.113.9".parse().expect("an address");
        bans.add(address, 0, 60);
        assert_eq!(bans.script(0, bans::KeptFrom::Ssh), "", "one kind at a time");
    }
}
