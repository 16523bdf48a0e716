//! The host looks at itself: what `status` warns of, what alerts watch, and what only matters to somebody who asks.

use std::net::IpAddr;
use std::sync::Arc;

use appliance_alerts::{Kind, Look};
use appliance_bootstrap::Local;
use appliance_bootstrap::host::{Command, Host as _};
use jiff::Timestamp;

use super::{Agent, alerts, chain, disk, firewall, status};
use crate::wire::doctor::{Area, Complaint, Examination};

/// Below this much memory a host without swap is one leak away from losing a process.
const SMALL: u64 = 4 << 30;

/// Everything, looked at now.
pub async fn examine(agent: &Arc<Agent>) -> Examination {
    let look = alerts::look_now(agent).await;
    let watched = |kind: Kind| watched(&look, kind);
    let mut areas = vec![docker(agent).await, proxy(agent).await];
    areas.push(blocking("firewall", || problems("firewall", &firewall::problems())).await);
    let mut certificates = watched(Kind::Certificate);
    let served = agent.served(&|_| true);
    let served: Vec<_> = served.iter().collect();
    let own = agent.certificates.problems(&served, Timestamp::now());
    certificates
        .findings
        .extend(own.iter().map(|problem| Complaint::of_problem(problem)));
    areas.push(certificates);
    let (free, total) = status::disk(&agent.state);
    areas.push(problems(
        "disk",
        &agent.disk.problems(free, total, disk::reserve()),
    ));
    areas.push(watched(Kind::Memory));
    areas.push(blocking("swap", swap).await);
    areas.push(blocking("clock", clock).await);
    areas.push(watched(Kind::RestartLoop));
    areas.push(watched(Kind::Errors));
    areas.push(backups(agent));
    let (_, wrong) = agent.accessories(None).await;
    areas.push(problems("accessories", &wrong));
    areas.push(watched(Kind::Reboot));
    areas.push(watched(Kind::Drift));
    areas.push(blocking("programs", programs).await);
    areas.push(told(agent));
    let services = agent.proxy.list().await.unwrap_or_default();
    let names = services
        .iter()
        .flat_map(|status| status.service.hosts.iter().map(ToString::to_string))
        .collect();
    Examination {
        areas,
        addresses: addresses(),
        names,
        ports: tokio::task::spawn_blocking(|| firewall::audit().ok())
            .await
            .ok()
            .flatten(),
    }
}

async fn blocking(name: &str, look: fn() -> Area) -> Area {
    tokio::task::spawn_blocking(look)
        .await
        .unwrap_or_else(|_| Area::skipped(name, "the look failed"))
}

fn problems(name: &str, found: &[String]) -> Area {
    Area::of(
        name,
        found
            .iter()
            .map(|problem| Complaint::of_problem(problem))
            .collect(),
    )
}

fn watched(look: &Look, kind: Kind) -> Area {
    if look.blind.contains(&kind) {
        return Area::skipped(kind.word(), "it cannot be seen at this moment");
    }
    let found = look.findings.iter().filter(|finding| finding.kind == kind);
    Area::of(
        kind.word(),
        found
            .map(|finding| Complaint {
                message: finding.message.clone(),
                next: finding.next.clone(),
            })
            .collect(),
    )
}

async fn docker(agent: &Agent) -> Area {
    match agent.docker.info().await {
        Ok(info) => problems("docker", &info.degraded().into_iter().collect::<Vec<_>>()),
        Err(error) => Area::of(
            "docker",
            vec![Complaint {
                message: format!("{}; running apps are served on", chain(&error)),
                next: "systemctl start docker".to_owned(),
            }],
        ),
    }
}

async fn proxy(agent: &Agent) -> Area {
    match agent.proxy.status().await {
        Ok(status) => problems("proxy", &status.problems),
        Err(error) => Area::of(
            "proxy",
            vec![Complaint {
                message: chain(&error),
                next: "systemctl restart appliance-proxy".to_owned(),
            }],
        ),
    }
}

fn backups(agent: &Agent) -> Area {
    let ids = match agent.apps.ids() {
        Ok(ids) => ids,
        Err(error) => return Area::skipped("backups", &chain(&error)),
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
    problems("backups", &found)
}

/// Whether people would hear of it.
fn told(agent: &Agent) -> Area {
    let alerts = alerts::list(agent);
    let mut found: Vec<String> = alerts.problems;
    if alerts.destinations.is_empty() {
        found.push(
            "nobody is told when something goes wrong; next: alerts: {webhooks: [https://…]} in /etc/appliance/host.yml, then appliance alerts test"
                .to_owned(),
        );
    }
    for waiting in &alerts.waiting {
        if let Some(why) = &waiting.why {
            found.push(format!(
                "{} did not take a message: {why}; next: appliance alerts test",
                waiting.to
            ));
        }
    }
    problems("alerts", &found)
}

fn swap() -> Area {
    let Ok(mut system) = sysinfo::System::new() else {
        return Area::skipped("swap", "memory cannot be seen");
    };
    system.refresh_memory();
    let mut found = Vec::new();
    let off = text(appliance_config::host::PATH).is_some_and(|text| {
        appliance_config::host::read(appliance_config::host::PATH, &text)
            .is_ok_and(|host| host.swap == appliance_config::host::Swap::Switch(false))
    });
    if system.total_swap() == 0 && system.total_memory() < SMALL && !off {
        found.push("there is no swap, and little memory; next: appliance host apply".to_owned());
    }
    if system.total_swap() > 0 && system.used_swap() * 10 > system.total_swap() * 9 {
        found
            .push("more than nine tenths of the swap are in use; next: ps aux --sort -rss | head".to_owned());
    }
    problems("swap", &found)
}

/// Signed changes are valid for minutes: a clock that is wrong shuts everybody out.
fn clock() -> Area {
    let inside = Local
        .run(&Command::new(["systemd-detect-virt", "--container", "--quiet"]))
        .is_ok_and(|output| output.ok());
    if inside {
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
        Ok(_) => vec![
            "nobody keeps the clock right; next: timedatectl set-ntp true; timedatectl timesync-status"
                .to_owned(),
        ],
        Err(error) => return Area::skipped("clock", &chain(&error)),
    };
    problems("clock", &found)
}

/// Whether what runs is what is installed.
fn programs() -> Area {
    let mut found = Vec::new();
    if !crate::update::runs_program("appliance-agent.service") {
        found
            .push("the agent is of another installation; next: systemctl restart appliance-agent".to_owned());
    }
    if !crate::update::runs_program("appliance-proxy.service") {
        found.push(
            "the proxy is of another installation; next: systemctl kill --kill-who=main --signal=SIGUSR2 appliance-proxy"
                .to_owned(),
        );
    }
    if let Ok(Some(record)) = crate::update::record()
        && record.stage == crate::update::Stage::Reverted
    {
        found.push(format!(
            "the update from {} to {} was taken back: {}; next: journalctl -u appliance-agent -u appliance-proxy; then appliance update, with a version that mends it",
            record.from,
            record.to,
            record.why.unwrap_or_default()
        ));
    }
    problems("programs", &found)
}

fn text(path: &str) -> Option<String> {
    fs_err::read_to_string(path).ok()
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
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .filter(|address| match address {
            IpAddr::V4(address) => !address.is_link_local(),
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        })
        .collect();
    found.sort();
    found.dedup();
    found
}
