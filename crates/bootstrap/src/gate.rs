//! Which systems are let through; everything else is refused before anything is touched.

use serde::Serialize;

use crate::facts::{Facts, Os};
use crate::options::Options;

/// Systems every release is tested on.
pub const SUPPORTED: [(&str, &str); 4] = [
    ("debian", "12"),
    ("debian", "13"),
    ("ubuntu", "22.04"),
    ("ubuntu", "24.04"),
];
/// Bytes an engine, one app and two of its releases need at the least.
const DISK: u64 = 2 << 30;
/// Oldest kernel of the supported systems.
const KERNEL: (u32, u32) = (5, 15);

/// One reason to refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// What was found.
    pub fact: String,
    /// What would be fine, or what to do.
    pub next: String,
}

/// Every reason to refuse this host; none if it is fine.
///
/// What came about since a run was complete ([`troubles`]) is no reason: a host in trouble needs us most.
pub fn refusals(options: &Options, facts: &Facts) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if facts.journal.completed.is_none() {
        refusals = troubles(options, facts);
    }
    let mut refuse = |fact: String, next: &str| {
        refusals.push(Refusal {
            fact,
            next: next.to_owned(),
        })
    };
    let os = &facts.os;
    if !is_supported(os) {
        let name = if os.name.is_empty() {
            "an unknown system"
        } else {
            &os.name
        };
        refuse(
            format!("this is {name}"),
            "supported are Debian 12 and 13, Ubuntu 22.04 and 24.04",
        );
    }
    if !facts.root {
        refuse(
            "this is not root".to_owned(),
            "run it as root, for example with sudo",
        );
    }
    if !matches!(facts.architecture.as_str(), "amd64" | "arm64") {
        refuse(
            format!("the architecture is {:?}", facts.architecture),
            "supported are amd64 and arm64",
        );
    }
    if facts.init != "systemd" {
        refuse(
            format!("process 1 is {:?}", facts.init),
            "a server that boots systemd is needed",
        );
    }
    if kernel(&facts.kernel).is_none_or(|version| version < KERNEL) {
        refuse(
            format!("the kernel is {:?}", facts.kernel),
            "5.15 or newer is needed; upgrade the system and reboot",
        );
    }
    match &facts.container {
        Some(kind) if !options.allow_container => refuse(
            format!("this is a container ({kind})"),
            "a virtual or real machine is needed; for a throw-away sandbox add --allow-container",
        ),
        _ => {}
    }
    if facts.cgroup != 2 && !options.allow_container {
        refuse(
            "cgroup v2 is not in use".to_owned(),
            "boot without systemd.unified_cgroup_hierarchy=0",
        );
    }
    if let Some(trouble) = &facts.nftables_trouble {
        refuse(
            format!("the kernel takes no nftables rules ({trouble})"),
            "a kernel with nf_tables is needed",
        );
    }
    for product in &facts.managed_by {
        refuse(
            format!("this host is managed by {product}"),
            "a server of its own is needed",
        );
    }
    if facts.engine == crate::docker::Engine::Snap {
        refuse(
            "Docker is installed as a snap".to_owned(),
            "remove it (snap remove docker), then run bootstrap again",
        );
    }
    refusals
}

/// What no appliance should begin with, and one that runs already should be freed from.
pub fn troubles(options: &Options, facts: &Facts) -> Vec<Refusal> {
    let mut troubles = Vec::new();
    let mut refuse = |fact: String, next: &str| {
        troubles.push(Refusal {
            fact,
            next: next.to_owned(),
        })
    };
    if facts.disk_free < DISK {
        let free = facts.disk_free >> 20;
        refuse(
            format!("only {free} MiB are free under /var"),
            "2 GiB are needed; make room or take a larger disk",
        );
    }
    for taken in &facts.taken_ports {
        refuse(
            format!("port {} is in use by {}", taken.port, taken.by),
            "the proxy needs it; stop that service, then run bootstrap again",
        );
    }
    for product in &facts.other_firewalls {
        if options.firewall.off {
            continue;
        }
        refuse(
            format!("{product} is active"),
            "two owners of the firewall contradict each other; disable it, or write `firewall: {mode: off}` into host.yml",
        );
    }
    if facts.docker_tcp {
        refuse(
            "Docker's API listens on port 2375".to_owned(),
            "whoever reaches it is root; take `-H tcp://` out of Docker's settings",
        );
    }
    troubles
}

/// Whether every release is tested on this system; derivatives are not.
pub fn is_supported(os: &Os) -> bool {
    SUPPORTED.contains(&(os.id.as_str(), os.version.as_str()))
}

/// `(6, 1)` of `6.1.0-18-amd64`.
fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
