//! The firewall table `inet appliance`: ours alone, and out of reach of what Docker and UFW accept.
//!
//! In nftables a drop in any base chain is final, an accept only ends its own chain.
//! So our table, at priorities just before everybody else's, has the last word on what is closed.
//! Ports are those of the original destination: `443` means "443 on this host", whoever answers it.
//!
//! - [`rules`] renders the table from what should be open;
//! - [`interfaces`] tells which interfaces lead outside;
//! - [`kernel`] reduces what the kernel holds to a fingerprint;
//! - [`load`] puts the confirmed file into the kernel, in one transaction, and remembers that fingerprint.
//!
//! Nothing else of the host's rules is read or written.

pub mod interfaces;
pub mod kernel;
pub mod rules;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest;
use crate::host::{Command, Host, HostError, Owner, must};

/// The rules that boot loads: rendered by us, accepted by `nft -c`, confirmed.
pub const CONFIRMED: &str = "/var/lib/appliance/fw/confirmed.nft";
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
}

/// What was loaded, and what the kernel made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// SHA-256 of the confirmed file.
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
    /// Our table, but other rules than the confirmed ones.
    Differs,
    /// No table of ours.
    Absent,
}

/// Loads the confirmed rules in one transaction; established connections do not notice.
///
/// # Errors
/// When there are none, or the kernel does not take them; the rules it had stay in force.
pub fn load(host: &dyn Host) -> Result<Loaded, FirewallError> {
    let text = host
        .read(Path::new(CONFIRMED))
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
    must(host, &Command::new(["nft", "-f", "-"]).stdin(script)).map_err(FirewallError::Load)?;
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

/// Compares the kernel's table with the confirmed rules.
///
/// # Errors
/// When nft cannot be asked.
pub fn state(host: &dyn Host) -> Result<State, FirewallError> {
    let Some(kernel) = kernel_fingerprint(host)? else {
        return Ok(State::Absent);
    };
    let confirmed = host
        .read(Path::new(CONFIRMED))
        .map_err(FirewallError::Load)?
        .map(|text| digest::hex(&text));
    let loaded: Option<Loaded> = host
        .read(Path::new(LOADED))
        .map_err(FirewallError::Load)?
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(match loaded {
        Some(loaded) if loaded.kernel == kernel && confirmed.as_ref() == Some(&loaded.confirmed) => {
            State::Confirmed
        }
        _ => State::Differs,
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
