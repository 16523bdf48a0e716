//! The list: what an appliance is, item by item, in the order it is applied.
//!
//! Keys come before sshd is tightened, Docker's settings before Docker, packages before the firewall, everything before our own services.

pub(crate) mod access;
#[cfg(test)]
mod coverage;
mod docker;
mod firewall;
mod hardening;
mod logins;
mod optional;
mod services;
mod system;

use crate::facts::Facts;
use crate::item::Item;
use crate::options::Options;
use crate::want::Want;

/// The user whose door leads to the agent and nowhere else.
pub(crate) const DEPLOY_USER: &str = "deploy";
/// The group that may open the agent's socket.
pub(crate) const GROUP: &str = "appliance";
/// The user the proxy runs as.
pub(crate) const PROXY_USER: &str = "appliance-proxy";
/// Where the binary belongs.
pub(crate) const BINARY: &str = "/usr/local/bin/appliance";
/// The host's age identity.
pub(crate) const IDENTITY: &str = "/etc/appliance/host.key";

/// Every item for these options and facts. Pure: called when observing and again when planning.
pub(crate) fn items(options: &Options, facts: &Facts) -> Vec<Item> {
    let mut items = every(options, facts);
    items.retain(|item| item.is_on(options));
    if options.force {
        let wants = items.iter_mut().flat_map(|item| &mut item.wants);
        for want in wants {
            if let Want::Files { files, .. } = want {
                files.iter_mut().for_each(|file| file.force = true);
            }
        }
    }
    items
}

/// Whether an item without a say of its own, such as a line in another's file, is switched on.
fn is_on(options: &Options, facts: &Facts, id: &str) -> bool {
    hardening::items(options, facts)
        .iter()
        .any(|item| item.id == id && item.is_on(options))
}

/// Every item, those that are switched off included. Pure.
pub fn every(options: &Options, facts: &Facts) -> Vec<Item> {
    let hardening = hardening::items(options, facts);
    // Installed in one go: each run of apt costs a small host seconds.
    let packages = hardening.iter().filter(|item| item.is_on(options));
    let packages = packages
        .flat_map(|item| &item.wants)
        .filter_map(|want| match want {
            Want::Packages { names } => Some(names),
            _ => None,
        });
    let packages = packages.flatten().cloned().collect();
    let mut items = vec![
        system::packages(facts, packages),
        system::state(),
        system::accounts(),
    ];
    items.extend(system::host_yml(options));
    items.push(access::deploy_user(options));
    items.push(access::keys(options, facts));
    items.push(access::identity());
    items.push(system::journald(options, facts));
    items.push(system::logrotate());
    items.extend(docker::items(options, facts));
    items.extend(hardening);
    items.extend(services::binary(options));
    items.extend(firewall::items(options, facts));
    items.extend(access::ssh(options, facts));
    items.extend(services::items(options, facts));
    items
}

/// The header of every file that is ours alone.
pub(crate) const MANAGED: &str =
    "# managed by appliance; changes are lost with the next `appliance bootstrap`\n";
