//! What the agent tells of the host and its apps.

use appliance_push::change::{self, Platform};
use appliance_rollout::Deployment;
use jiff::Timestamp;

use super::drive::phase_name;
use super::{Agent, chain, container};
use crate::wire;

impl Agent {
    /// The host, for somebody who is about to change it.
    pub async fn host(&self) -> wire::Host {
        let info = self.docker.info().await.ok();
        wire::Host {
            id: self.host.clone(),
            hostname: nix::unistd::gethostname()
                .ok()
                .and_then(|name| name.into_string().ok())
                .unwrap_or_else(|| "unknown".to_owned()),
            version: crate::version().to_owned(),
            platform: Platform {
                os: "linux".to_owned(),
                architecture: info.as_ref().map_or_else(
                    || go_architecture(std::env::consts::ARCH).to_owned(),
                    |info| info.architecture.clone(),
                ),
                variant: None,
            },
            now: Timestamp::now(),
            docker: info.map(|info| info.version),
        }
    }

    /// Everything `appliance status` shows.
    pub async fn status(&self) -> wire::Status {
        let mut problems = Vec::new();
        let host = self.host().await;
        match self.docker.info().await {
            Ok(info) => problems.extend(info.degraded()),
            Err(error) => problems.push(format!(
                "{}; running apps are served on; next: systemctl start docker",
                chain(&error)
            )),
        }
        let proxy = match self.proxy.status().await {
            Ok(status) => {
                problems.extend(status.problems.iter().cloned());
                Some(wire::Process {
                    pid: status.pid,
                    uptime: status.uptime.as_secs(),
                    rss: status.rss,
                })
            }
            Err(error) => {
                problems.push(format!(
                    "{}; next: systemctl status appliance-proxy",
                    chain(&error)
                ));
                None
            }
        };
        let served = self.served(&|_| true);
        let served: Vec<_> = served.iter().collect();
        problems.extend(self.certificates.problems(&served, Timestamp::now()));
        problems.extend(
            tokio::task::spawn_blocking(super::firewall::problems)
                .await
                .unwrap_or_default(),
        );
        let (disk_free, disk_total) = disk(&self.state);
        problems.extend(self.disk.problems(disk_free, disk_total, super::disk::reserve()));
        let mut apps = Vec::new();
        match self.apps_and_backups() {
            Ok(ids) => {
                for id in ids {
                    match self.app(&id).await {
                        Ok(app) => {
                            problems.extend(app.backups.iter().flat_map(|job| job.problems.clone()));
                            apps.push(app);
                        }
                        Err(error) => problems.push(format!("{id}: {}", chain(&*error))),
                    }
                }
            }
            Err(error) => problems.push(format!("{error:#}")),
        }
        let (accessories, wrong) = self.accessories(None).await;
        problems.extend(wrong);
        wire::Status {
            host,
            agent: wire::Process {
                pid: std::process::id(),
                uptime: Timestamp::now()
                    .duration_since(self.started)
                    .as_secs()
                    .unsigned_abs(),
                rss: resident(std::process::id()),
            },
            proxy,
            disk_free,
            disk_total,
            memory_free: memory_free(),
            apps,
            accessories,
            problems,
        }
    }

    /// One app.
    ///
    /// # Errors
    /// When its ledger cannot be read.
    pub async fn app(&self, id: &str) -> anyhow::Result<wire::App> {
        let state = self.apps.read(id)?;
        let list = |number| -> Option<wire::Release> {
            let accepted = self.apps.release(id, number).ok()?;
            Some(wire::Release {
                number: change::ReleaseNumber(accepted.number.0),
                version: accepted.release.version.to_string(),
                digest: accepted.release.image.digest.to_string(),
                created_by: accepted.release.created_by.clone(),
                signer: accepted.signer.to_string(),
                at: accepted.at,
            })
        };
        let current = state.numbers.current.as_ref();
        let previous = state
            .releases
            .iter()
            .rev()
            .filter(|number| current.is_none_or(|current| current.release != **number))
            .filter_map(|number| list(*number))
            .collect();
        let rollout = state.rollout.as_ref().map(|rollout| wire::Rollout {
            number: change::ReleaseNumber(rollout.plan().new.release.0),
            phase: phase_name(rollout.phase()).to_owned(),
            version: list(rollout.plan().new.release)
                .map(|release| release.version)
                .unwrap_or_default(),
            why: rollout.failure().map(|failure| failure.why.clone()),
        });
        let containers = match current {
            Some(current) => self.roles(id, current).await,
            None => Vec::new(),
        };
        Ok(wire::App {
            app: id.to_owned(),
            current: current.and_then(|current| list(current.release)),
            brought_by: current.map(|current| current.rollout.0),
            previous,
            back: state
                .numbers
                .previous
                .as_ref()
                .map(|previous| change::ReleaseNumber(previous.release.0)),
            rollout: rollout.filter(|rollout| rollout.phase != "settled"),
            containers,
            stopped: state.stopped.is_some(),
            changing: self.leases.holder(id),
            lock: state.lock,
            backups: self.backup_ages(id),
        })
    }

    async fn roles(&self, id: &str, current: &Deployment) -> Vec<wire::Container> {
        let services = self.proxy.list().await.unwrap_or_default();
        let parts = self.apps.parts(id, current).unwrap_or_default();
        let mut containers = Vec::new();
        for instance in current.instances() {
            let (name, state) = match self.find(id, &instance).await {
                Ok(Some(found)) => (found.name, format!("{:?}", found.state).to_lowercase()),
                Ok(None) => (String::new(), "missing".to_owned()),
                Err(_) => (String::new(), "unknown".to_owned()),
            };
            let part = parts.iter().find(|part| part.instance == instance);
            let spec = part.map(|part| {
                let release = &part.accepted.release;
                (container::name(release, &part.role), part.role.proxy.clone())
            });
            let healthy = spec
                .as_ref()
                .and_then(|(_, proxy)| proxy.as_ref())
                .and_then(|proxy| {
                    let status = services
                        .iter()
                        .find(|status| status.service.name.as_str() == proxy.service_name)?;
                    Some(status.upstreams.iter().any(|upstream| upstream.healthy))
                });
            containers.push(wire::Container {
                role: instance.role.clone(),
                version: part.map(|part| part.accepted.release.version.to_string()),
                name: if name.is_empty() {
                    spec.map(|(name, _)| name).unwrap_or_default()
                } else {
                    name
                },
                state,
                healthy,
            });
        }
        containers
    }
}

/// Rust's word for a processor family in the words of OCI images.
fn go_architecture(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn resident(pid: u32) -> u64 {
    use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
    let Ok(mut system) = System::new() else { return 0 };
    let pid = Pid::from_u32(pid);
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        false,
        ProcessRefreshKind::nothing().with_memory(),
    );
    system.process(pid).map_or(0, sysinfo::Process::memory)
}

fn memory_free() -> u64 {
    let Ok(mut system) = sysinfo::System::new() else {
        return 0;
    };
    system.refresh_memory();
    system.available_memory()
}

pub(super) fn disk(path: &std::path::Path) -> (u64, u64) {
    nix::sys::statvfs::statvfs(path).map_or((0, 0), |found| {
        let unit = found.fragment_size();
        (found.blocks_available() * unit, found.blocks() * unit)
    })
}
