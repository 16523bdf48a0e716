//! The host looks at itself: what `status` warns of, what alerts watch, and what only matters to somebody who asks.

use std::net::IpAddr;
use std::sync::Arc;

use appliance_alerts::{Kind, Look};
use appliance_bootstrap::Local;
use appliance_bootstrap::firewall::FirewallError;
use appliance_bootstrap::host::{Command, Host as _};
use jiff::Timestamp;

use super::{Agent, alerts, chain, disk, firewall, status};
use crate::wire::doctor::{Area, Complaint, Examination};
use crate::wire::finding::Id;
use appliance_bootstrap::firewall::rules::Rules;

/// Below this much memory a host without swap is one leak away from losing a process.
const SMALL: u64 = 4 << 30;

/// Everything, looked at now.
pub async fn examine(agent: &Arc<Agent>) -> Examination {
    let look = alerts::look_now(agent).await;
    let watched = |kind: Kind| watched(agent, &look, kind);
    let mut areas = vec![docker(agent).await, proxy(agent).await];
    let mut walls = blocking("firewall", || {
        problems("firewall", Id::Firewall, &firewall::problems())
    })
    .await;
    let ports = match tokio::task::spawn_blocking(firewall::audit).await {
        Ok(Ok(report)) => Some(report),
        // There are no rules to compare with: it is off.
        Ok(Err(FirewallError::Unconfirmed)) => None,
        Ok(Err(error)) => {
            let why = format!("which ports are open could not be looked at: {}", chain(&error));
            walls
                .findings
                .push(Complaint::new(Id::NotSeen, why, "appliance firewall audit"));
            None
        }
        Err(_) => None,
    };
    areas.push(walls);
    let mut certificates = watched(Kind::Certificate);
    let served = agent.served(&|_| true);
    let served: Vec<_> = served.iter().collect();
    let own = agent.certificates.problems(&served, Timestamp::now());
    certificates.findings.extend(
        own.iter()
            .map(|problem| Complaint::of_problem(Id::Certificates, problem)),
    );
    areas.push(certificates);
    let (free, total) = status::disk(&agent.state);
    areas.push(problems(
        "disk",
        Id::DiskLow,
        &agent.disk.problems(free, total, disk::reserve()),
    ));
    areas.push(watched(Kind::Memory));
    areas.push(blocking("swap", swap).await);
    areas.push(blocking("clock", clock).await);
    areas.push(watched(Kind::RestartLoop));
    areas.push(watched(Kind::Errors));
    areas.push(backups(agent));
    let (_, wrong) = agent.accessories(None).await;
    areas.push(accessories(&look, &wrong));
    areas.push(watched(Kind::Reboot));
    areas.push(watched(Kind::Drift));
    areas.push(blocking("programs", programs).await);
    areas.push(told(agent));
    // What should be served, if the proxy cannot say what is.
    let names = match alerts::services(agent).await {
        Ok(services) => services
            .iter()
            .flat_map(|status| status.service.hosts.iter().map(ToString::to_string))
            .collect(),
        Err(_) => served.iter().flat_map(|spec| spec.hosts.clone()).collect(),
    };
    Examination {
        areas,
        addresses: addresses(),
        trusted: tokio::task::spawn_blocking(trusted).await.unwrap_or_default(),
        names,
        elsewhere: alerts::settings(agent).dns.elsewhere,
        ports,
    }
}

/// Those that are down are services that are away, told apart by the app in their names.
fn accessories(look: &Look, wrong: &[String]) -> Area {
    let mut area = problems("accessories", Id::Accessories, wrong);
    let down = look
        .findings
        .iter()
        .filter(|finding| finding.kind == Kind::Services && finding.subject.contains('/'));
    area.findings
        .extend(down.map(|finding| Complaint::new(Id::Accessories, &finding.message, &finding.next)));
    area
}

async fn blocking(name: &str, look: fn() -> Area) -> Area {
    tokio::task::spawn_blocking(look)
        .await
        .unwrap_or_else(|error| not_seen(name, &error.to_string(), JOURNAL))
}

/// Where the agent says why it could not see something.
const JOURNAL: &str = "journalctl -u appliance-agent --lines 50 --no-pager";

/// An area that is blind and should not be: that is no peace.
fn not_seen(name: &str, why: &str, next: &str) -> Area {
    let message = format!("{name} could not be looked at: {why}");
    Area::of(name, vec![Complaint::new(Id::NotSeen, message, next)])
}

fn problems(name: &str, otherwise: Id, found: &[String]) -> Area {
    Area::of(
        name,
        found
            .iter()
            .map(|problem| Complaint::of_problem(otherwise, problem))
            .collect(),
    )
}

fn watched(agent: &Agent, look: &Look, kind: Kind) -> Area {
    let id = match kind {
        Kind::Certificate => Id::CertificateEnds,
        Kind::Disk => Id::DiskLow,
        Kind::Memory => Id::Memory,
        Kind::RestartLoop => Id::RestartLoop,
        Kind::Errors => Id::Errors,
        Kind::BackupAge => Id::BackupLate,
        Kind::Drill => Id::DrillFailed,
        Kind::Reboot => Id::Reboot,
        Kind::Drift => Id::Drift,
        Kind::Services => Id::ProxyAway,
    };
    let found: Vec<Complaint> = look
        .findings
        .iter()
        .filter(|finding| finding.kind == kind)
        .map(|finding| Complaint::new(id, &finding.message, &finding.next))
        .collect();
    if found.is_empty() && look.blind.contains(&kind) {
        // A service that is away is a finding of its own, and the reason.
        if look.findings.iter().any(|finding| finding.kind == Kind::Services) {
            return Area::skipped(kind.word(), "not while the service it is seen through is away");
        }
        let why = alerts::blindness(agent, kind);
        let next = match kind {
            Kind::Drift => "appliance host audit",
            _ => JOURNAL,
        };
        return not_seen(
            kind.word(),
            &why.unwrap_or_else(|| "see the agent's journal".to_owned()),
            next,
        );
    }
    Area::of(kind.word(), found)
}

async fn docker(agent: &Agent) -> Area {
    match agent.docker.info().await {
        Ok(info) => Area::of(
            "docker",
            info.degraded()
                .into_iter()
                .map(|message| {
                    Complaint::new(
                        Id::DockerSettings,
                        message,
                        "appliance host apply; systemctl restart docker",
                    )
                })
                .collect(),
        ),
        Err(error) => Area::of(
            "docker",
            vec![Complaint::new(
                Id::DockerAway,
                format!("{}; running apps are served on", chain(&error)),
                "systemctl start docker",
            )],
        ),
    }
}

async fn proxy(agent: &Agent) -> Area {
    let away = |why: String| {
        Area::of(
            "proxy",
            vec![Complaint::new(
                Id::ProxyAway,
                why,
                "systemctl restart appliance-proxy",
            )],
        )
    };
    // Asked this way first, because a proxy that hangs would hold up the next question for long.
    if let Err(why) = alerts::services(agent).await {
        return away(why);
    }
    match agent.proxy.status().await {
        Ok(status) => Area::of(
            "proxy",
            status.problems.iter().map(|why| proxy_says(why)).collect(),
        ),
        Err(error) => away(chain(&error)),
    }
}

/// What it could not read when it started, or a certificate that it cannot show.
fn proxy_says(why: &str) -> Complaint {
    let next = if why.starts_with("service ") {
        "appliance push # with a certificate and key that fit"
    } else {
        "systemctl kill --kill-who=main --signal=SIGUSR2 appliance-proxy"
    };
    Complaint::new(Id::Proxy, why, next)
}

fn backups(agent: &Agent) -> Area {
    let ids = match agent.apps_and_backups() {
        Ok(ids) => ids,
        Err(error) => return not_seen("backups", &format!("{error:#}"), JOURNAL),
    };
    let jobs = ids.iter().flat_map(|app| agent.backup_ages(app));
    let mut found: Vec<String> = Vec::new();
    for job in jobs {
        if job.last_good.is_none() {
            found.push(format!(
                "there is no backup of {} yet; next: appliance backup now {}",
                job.accessory, job.accessory
            ));
        } else if job.verified.is_none() {
            found.push(format!(
                "no backup of {} was ever restored; next: appliance backup drill {}",
                job.accessory, job.accessory
            ));
        }
        found.extend(job.problems);
    }
    problems("backups", Id::Backups, &found)
}

/// Whether people would hear of it.
fn told(agent: &Agent) -> Area {
    let alerts = alerts::list(agent);
    let mut found: Vec<Complaint> = alerts
        .problems
        .iter()
        .map(|problem| {
            let complaint = Complaint::of_problem(Id::Alerts, problem);
            match problem.contains("; next: ") {
                true => complaint,
                false => Complaint {
                    next: "appliance alerts test".to_owned(),
                    who: None,
                    message: format!(
                        "{}; to be corrected in /etc/appliance/host.yml",
                        complaint.message
                    ),
                    ..complaint
                },
            }
        })
        .collect();
    if alerts.destinations.is_empty() {
        found.push(Complaint::new(
            Id::NobodyTold,
            "nobody is told when something goes wrong: say whom, as `alerts: {webhooks: ['https://…']}` in /etc/appliance/host.yml",
            "appliance alerts test",
        ));
    }
    for waiting in &alerts.waiting {
        if let Some(why) = &waiting.why {
            found.push(Complaint::new(
                Id::Undelivered,
                format!("{} did not take a message: {why}", waiting.to),
                "appliance alerts test",
            ));
        }
    }
    Area::of("alerts", found)
}

/// Whether this is a container, which has neither a clock nor swap of its own.
fn contained() -> bool {
    Local
        .run(&Command::new(["systemd-detect-virt", "--container", "--quiet"]))
        .is_ok_and(|output| output.ok())
}

fn swap() -> Area {
    if contained() {
        return Area::skipped("swap", "the machine around this container has it");
    }
    let Ok(mut system) = sysinfo::System::new() else {
        return not_seen("swap", "the kernel does not say", JOURNAL);
    };
    system.refresh_memory();
    let mut found = Vec::new();
    let off = text(appliance_config::host::PATH).is_some_and(|text| {
        appliance_config::host::read(appliance_config::host::PATH, &text)
            .is_ok_and(|host| host.swap == appliance_config::host::Swap::Switch(false))
    });
    if system.total_swap() == 0 && system.total_memory() < SMALL && !off {
        found.push(Complaint::new(
            Id::NoSwap,
            "there is no swap, and little memory",
            "appliance host apply",
        ));
    }
    if system.total_swap() > 0 && system.used_swap() * 10 > system.total_swap() * 9 {
        found.push(Complaint::new(
            Id::SwapFull,
            format!(
                "more than nine tenths of the swap are in use, most by {}: restart what leaks, or give more, as `swap: {}GiB` in /etc/appliance/host.yml",
                swapped().unwrap_or_else(|| "nobody who can be seen".to_owned()),
                (system.total_swap() >> 30).max(1) * 2
            ),
            "appliance host apply # after that line, or after a restart: docker restart NAME, systemctl restart NAME",
        ));
    }
    Area::of("swap", found)
}

/// Signed changes are valid for minutes: a clock that is wrong shuts everybody out.
fn clock() -> Area {
    if contained() {
        return Area::skipped("clock", "the machine around this container keeps it");
    }
    let asked = Local.run(&Command::new([
        "timedatectl",
        "show",
        "--property=NTPSynchronized",
        "--value",
    ]));
    let found = match asked {
        Ok(output) if output.stdout.trim() == "yes" => Vec::new(),
        Ok(_) => vec![Complaint::new(
            Id::Clock,
            "nobody keeps the clock right",
            "timedatectl set-ntp true # it takes half a minute; needs a time server to be reached",
        )],
        Err(error) => return not_seen("clock", &chain(&error), "timedatectl"),
    };
    Area::of("clock", found)
}

/// Whether what runs is what is installed.
fn programs() -> Area {
    let mut found = Vec::new();
    if !crate::update::runs_program("appliance-agent.service") {
        found.push(Complaint::new(
            Id::AgentOld,
            "the agent is of another installation",
            "systemctl restart appliance-agent",
        ));
    }
    // One that does not run is another finding.
    if crate::update::runs("appliance-proxy.service")
        && !crate::update::runs_program("appliance-proxy.service")
    {
        found.push(Complaint::new(
            Id::ProxyOld,
            "the proxy is of another installation",
            "systemctl kill --kill-who=main --signal=SIGUSR2 appliance-proxy",
        ));
    }
    if let Ok(Some(record)) = crate::update::record()
        && record.stage == crate::update::Stage::Reverted
    {
        found.push(Complaint::new(
            Id::UpdateReverted,
            format!(
                "the update from {} to {} was taken back: {}",
                record.from,
                record.to,
                record.why.unwrap_or_default()
            ),
            "journalctl -u appliance-agent -u appliance-proxy --lines 100 --no-pager; appliance update # once a version mends it",
        ));
    }
    Area::of("programs", found)
}

fn text(path: &str) -> Option<String> {
    fs_err::read_to_string(path).ok()
}

/// The processes with most of the swap, by their names.
fn swapped() -> Option<String> {
    let mut found: Vec<(u64, String)> = std::fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| swap_of(&text(entry.ok()?.path().join("status").to_str()?)?))
        .filter(|(kib, _)| *kib > 0)
        .collect();
    found.sort_by(|one, other| other.cmp(one));
    let most = found.iter().take(3);
    let most: Vec<String> = most
        .map(|(kib, name)| format!("{name} ({} MiB)", kib >> 10))
        .collect();
    (!most.is_empty()).then(|| most.join(", "))
}

/// KiB of swap and name, of a process's `/proc/PID/status`.
fn swap_of(status: &str) -> Option<(u64, String)> {
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        Some(line[name.len()..].trim())
    };
    let kib = field("VmSwap:")?.strip_suffix(" kB")?.parse().ok()?;
    Some((kib, field("Name:")?.to_owned()))
}

/// Addresses of interfaces from which everything is let in.
fn trusted() -> Vec<IpAddr> {
    let rules = appliance_bootstrap::firewall::rules(&Local, Local.now());
    let trusts = |name: &str, rules: &Rules| rules.trusted.contains(name);
    match (rules, nix::ifaddrs::getifaddrs()) {
        (Ok(Some(rules)), Ok(interfaces)) => interfaces
            .filter(|interface| trusts(&interface.interface_name, &rules))
            .filter_map(|interface| of(interface.address?))
            .collect(),
        _ => Vec::new(),
    }
}

fn of(address: nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// Addresses that visitors could reach this host by.
fn addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let inside = |name: &str| {
        name == "lo"
            || ["docker", "br-", "veth"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
    };
    let mut found: Vec<IpAddr> = interfaces
        .filter(|interface| !inside(&interface.interface_name))
        .filter_map(|interface| of(interface.address?))
        .filter(|address| match address {
            IpAddr::V4(address) => !address.is_link_local(),
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_swaps_is_read_from_the_kernels_words() {
        let status =
            "Name:\tpostgres\nUmask:\t0077\nVmRSS:\t   10240 kB\nVmSwap:\t  204800 kB\nThreads:\t1\n";
        assert_eq!(swap_of(status), Some((204_800, "postgres".to_owned())));
        // The kernel's own threads have no memory of that kind.
        assert_eq!(swap_of("Name:\tkthreadd\nThreads:\t1\n"), None);
    }

    #[test]
    fn a_certificate_that_the_proxy_cannot_show_is_for_who_pushes() {
        let next = |why: &str| proxy_says(why).next;
        assert!(next("service demo-web: the key does not fit").starts_with("appliance push # "));
        assert!(next("/var/lib/appliance-proxy/snapshot.json: EOF").starts_with("systemctl kill "));
    }
}
