//! What the rules judge, gathered; what cannot be seen is left out, not guessed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use appliance_alerts::ends::Count;
use appliance_alerts::rules::{Away, Backup, Certificate, Disk, Of, Restarts};
use appliance_alerts::{Answered, Facts, Kind};
use appliance_bootstrap::Local;
use appliance_bootstrap::host::{Command, Host as _};
use appliance_config::host::Host;
use jiff::{SignedDuration, Timestamp};

use super::shown;
use crate::agent::{Agent, accessories, chain, container, status};

/// Where the program lies that looks at the whole host.
const PROGRAM: &str = "/usr/local/bin/appliance";
/// How long the proxy may take to say what it serves.
const PROXY: Duration = Duration::from_secs(5);
/// Intervals between two looks at the whole host, which takes a second of a processor.
const DRIFT_EVERY: i32 = 20;

/// Everything that can be seen now.
pub(super) async fn gather(agent: &Arc<Agent>, host: &Host) -> Facts {
    let now = Timestamp::now();
    let seconds = |seconds: u64| SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    let window = seconds(host.alerts.window.0.0);
    let docker = agent.docker.ping().await;
    let services = services(agent).await;
    let away = [
        docker.as_ref().err().map(|error| Away {
            name: "docker".to_owned(),
            why: format!("{}; running apps are served on", chain(error)),
            next: "systemctl start docker".to_owned(),
        }),
        services.as_ref().err().map(|why| Away {
            name: "proxy".to_owned(),
            why: why.clone(),
            next: "systemctl restart appliance-proxy".to_owned(),
        }),
    ];
    let (docker, services) = (docker.is_ok(), services.ok());
    let ((free, total), full_in) = agent.disk.worst(status::disk(&agent.state));
    let down = agent.accessories_down().await;
    let kills = kills();
    let answered = answered(agent, services.as_deref(), now, window).await;
    let (killed, ended) = {
        let mut seen = agent.alerts.seen();
        if let Some(count) = kills {
            seen.killed.kernel(now, count);
        }
        let killed = seen.killed.counts(now, window);
        (killed, seen.ended.counts(now, window))
    };
    let restarts = restarts(agent, ended).await;
    let mut partly = BTreeSet::new();
    let certificates = match &services {
        Some(services) => {
            let (found, all) = certificates(services).await;
            if !all {
                partly.insert(Kind::Certificate);
            }
            Some(found)
        }
        None => None,
    };
    if down.is_none() {
        partly.insert(Kind::Services);
    }
    // What was counted before a start of the agent is forgotten, not over.
    if now.duration_since(agent.started) < window {
        partly.extend([Kind::RestartLoop, Kind::Memory, Kind::Errors]);
    }
    Facts {
        certificates,
        disk: (total > 0).then_some(Disk { free, total, full_in }),
        memory: memory(),
        killed: Some(killed),
        // While Docker does not answer, its events do not come either.
        restarts: docker.then_some(restarts),
        answered,
        backups: backups(agent, now),
        reboot: Some(reboot()),
        away: Some(
            (away.into_iter().flatten())
                .chain(down.unwrap_or_default())
                .collect(),
        ),
        partly,
        drift: drift(agent, now, seconds(host.alerts.interval.0.0) * DRIFT_EVERY).await,
    }
}

/// What the proxy serves, or why it does not say so soon: one that hangs must not hold up who looks for that.
pub(in crate::agent) async fn services(
    agent: &Agent,
) -> Result<Vec<appliance_proxy::control::ServiceStatus>, String> {
    match tokio::time::timeout(PROXY, agent.proxy.list()).await {
        Ok(answer) => answer.map_err(|error| chain(&error)),
        Err(_) => Err(format!("the proxy does not answer within {} s", PROXY.as_secs())),
    }
}

/// Containers that ended on their own, each with what it is of.
async fn restarts(agent: &Agent, ended: BTreeMap<String, Count>) -> BTreeMap<String, Restarts> {
    let mut found = BTreeMap::new();
    for (name, count) in ended {
        let container = agent.docker.inspect(&name).await.ok().flatten();
        // What is run again and again by somebody, and ends well each time, is no loop: Docker's policy has to start it.
        if count.good && container.as_ref().is_none_or(|container| container.restarts == 0) {
            continue;
        }
        let labels = container.map(|container| container.labels).unwrap_or_default();
        let of = if let Some(accessory) = labels.get(accessories::LABEL) {
            Of::Accessory(accessory.rsplit('/').next().unwrap_or(accessory).to_owned())
        } else if labels.contains_key(container::RELEASE) {
            Of::Release
        } else {
            Of::Other
        };
        let times = count.times;
        found.insert(name, Restarts { times, of });
    }
    found
}

/// Those that are shown, and whether all were seen.
async fn certificates(services: &[appliance_proxy::control::ServiceStatus]) -> (Vec<Certificate>, bool) {
    let (mut found, mut all) = (Vec::new(), true);
    for status in services.iter().filter(|status| status.service.tls.is_some()) {
        for host in &status.service.hosts {
            // Any name below a wildcard is shown its certificate.
            let name = host.to_string().replacen("*.", "appliance.", 1);
            // What is not shown at all is told by the proxy, as a problem of the service.
            match shown::certificate(&name).await {
                Ok(certificate) => found.push(Certificate {
                    name: host.to_string(),
                    ..certificate
                }),
                Err(_) => all = false,
            }
        }
    }
    (found, all)
}

async fn answered(
    agent: &Agent,
    services: Option<&[appliance_proxy::control::ServiceStatus]>,
    now: Timestamp,
    window: SignedDuration,
) -> Option<BTreeMap<String, Answered>> {
    let mut counts = Vec::new();
    for status in services? {
        let name = &status.service.name;
        let stats = agent.proxy.stats(name).await.ok()?;
        let counters = Answered {
            requests: stats.total.requests,
            errors: stats.total.by_class[4],
        };
        counts.push((name.to_string(), counters));
    }
    let mut seen = agent.alerts.seen();
    let known: Vec<String> = counts.iter().map(|(name, _)| name.clone()).collect();
    seen.rates.retain(|name, _| known.contains(name));
    Some(
        counts
            .into_iter()
            .map(|(name, counters)| {
                let grown = seen
                    .rates
                    .entry(name.clone())
                    .or_default()
                    .see(now, counters, window);
                (name, grown)
            })
            .collect(),
    )
}

/// `None` while it cannot be told what there should be: then no alert of a backup is over either.
fn backups(agent: &Agent, now: Timestamp) -> Option<Vec<Backup>> {
    let jobs = agent.all_backup_jobs().ok()?;
    let told = jobs.iter().map(|job| agent.backup_alert(job, now));
    Some(told.collect())
}

/// Available memory and all of it, bytes.
fn memory() -> Option<(u64, u64)> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    Some((system.available_memory(), system.total_memory()))
}

/// Processes that the kernel killed for want of memory since its start.
fn kills() -> Option<u64> {
    let text = fs_err::read_to_string("/proc/vmstat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

/// Why a reboot is needed, as Debian's packages note it.
fn reboot() -> Vec<String> {
    if !Path::new("/run/reboot-required").exists() {
        return Vec::new();
    }
    let packages = fs_err::read_to_string("/run/reboot-required.pkgs").unwrap_or_default();
    let mut packages: Vec<String> = packages.lines().map(str::to_owned).collect();
    packages.dedup();
    if packages.is_empty() {
        packages.push("an update says so".to_owned());
    }
    packages
}

/// Items that differ; asked anew after `every`, else what was seen last, or why it was not.
async fn drift(agent: &Agent, now: Timestamp, every: SignedDuration) -> Option<Vec<String>> {
    if let Some((at, seen)) = &agent.alerts.seen().drift
        && now.duration_since(*at) < every
    {
        return seen.clone().ok();
    }
    let seen = tokio::task::spawn_blocking(audit)
        .await
        .unwrap_or_else(|error| Err(error.to_string()));
    agent.alerts.seen().drift = Some((now, seen.clone()));
    seen.ok()
}

/// The whole host, looked at from outside of the agent's sandbox, as an administrator would; or why it could not be.
fn audit() -> Result<Vec<String>, String> {
    let argv = [
        "systemd-run",
        "--quiet",
        "--wait",
        "--pipe",
        "--collect",
        "--nice=10",
        PROGRAM,
        "host",
        "audit",
        "--json",
        // Whether this is a host for us was decided when it became one.
        "--allow-container",
    ];
    let output = Local.run(&Command::new(argv)).map_err(|error| chain(&error))?;
    let report: serde_json::Value =
        serde_json::from_str(&output.stdout).map_err(|_| output.stderr.trim().to_owned())?;
    let items = report["items"]
        .as_array()
        .ok_or_else(|| "the report is of another form".to_owned())?;
    let differs = items.iter().filter(|item| item["ok"] == false);
    Ok(differs
        .filter_map(|item| Some(item["id"].as_str()?.to_owned()))
        .collect())
}
