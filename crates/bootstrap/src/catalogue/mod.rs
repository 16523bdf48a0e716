//! The list: what an appliance is, item by item, in the order it is applied.
//!
//! Keys come before sshd is tightened, Docker's settings before Docker, packages before the firewall, everything before our own services.

mod access;
mod docker;
mod firewall;
mod services;
mod system;

use crate::facts::Facts;
use crate::item::Item;
use crate::options::Options;

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
    let mut items = vec![system::packages(facts), system::state(), system::accounts()];
    items.push(access::deploy_user());
    items.push(access::keys(options));
    items.push(access::identity());
    items.push(system::journald(facts));
    items.push(system::logrotate());
    items.extend(docker::items(facts));
    items.extend(services::binary(options));
    items.extend(firewall::items(options, facts));
    items.extend(access::ssh(options, facts));
    items.extend(services::items(options));
    items
}

/// The header of every file that is ours alone.
const MANAGED: &str = "# managed by appliance; changes are lost with the next `appliance bootstrap`\n";
