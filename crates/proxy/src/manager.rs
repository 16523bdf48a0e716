//! The one owner of the routing state: checks a change, writes it down, makes it live.

mod certificates;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::sign::CertifiedKey;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::challenges::Challenge;
use crate::check;
use crate::control::{Applied, Batch, Drained, Refusal, RefusalCode, ServiceStats, ServiceStatus};
use crate::health;
use crate::hold;
use crate::names::{CertificateName, HostPattern, ServiceName, UpstreamAddress};
use crate::shared::Shared;
use crate::snapshot::{Gate, Service, Settings, Snapshot};
use crate::stats::{Counters, merge};
use crate::store::Disk;
use crate::table::{Live, Table};
use crate::tls::{self, Certificates};
use crate::upstream::Upstream;

/// Owner of the routing state; one for each process.
#[derive(Debug)]
pub(crate) struct Manager {
    pub(crate) shared: Arc<Shared>,
    disk: Disk,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    snapshot: Snapshot,
    certificates: BTreeMap<CertificateName, Arc<CertifiedKey>>,
    /// Leaves that the local CA signed, by their hosts, each with the time at which the next one is signed.
    leaves: HashMap<Vec<HostPattern>, (Arc<CertifiedKey>, SystemTime)>,
    /// What each service switched away from and is not empty yet.
    draining: BTreeMap<ServiceName, Vec<Arc<Upstream>>>,
    /// Health checks of the upstreams in use; dropping a set ends them.
    watchers: BTreeMap<ServiceName, JoinSet<()>>,
    /// Read errors from the start.
    load_problems: Vec<String>,
    /// Certificates from files as they were last read well.
    files: HashMap<(PathBuf, PathBuf), Arc<CertifiedKey>>,
    /// Certificates that cannot be shown now, by service.
    certificate_problems: BTreeMap<ServiceName, String>,
}

fn refuse<T>(code: RefusalCode, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        code,
        message: message.into(),
        service: None,
    })
}

fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Manager {
    /// Starts from what is on disk. In a state directory whatever can be read is served; a file that a person edits
    /// must be right as a whole.
    ///
    /// # Errors
    /// What is wrong with such a file.
    pub(crate) async fn start(shared: Arc<Shared>, disk: Disk, boot: Option<String>) -> Result<Self, String> {
        let mut state = State::default();
        let snapshot = if disk.watched {
            disk.read_strict()?
        } else {
            let loaded = disk.read_lenient();
            state.load_problems = loaded.problems;
            // So that the next start finds it whole; this one tells what was lost.
            if !state.load_problems.is_empty()
                && let Err(error) = disk.replace_damaged(&loaded.snapshot)
            {
                state.load_problems.push(error.to_string());
            }
            let mut snapshot = loaded.snapshot;
            hold::hold(&mut snapshot, boot);
            if !snapshot.held.is_empty() {
                tracing::warn!(
                    services = snapshot.held.len(),
                    "the machine was rebooted: requests wait until the routes are confirmed"
                );
            }
            snapshot
        };
        for (name, content) in disk.read_certificates() {
            let key = content
                .map_err(|error| words(&error))
                .and_then(|pem| tls::load(&pem).map_err(|error| words(&error)));
            match key {
                Ok(key) => drop(state.certificates.insert(name, key)),
                Err(error) => state.load_problems.push(format!("certificate {name}: {error}")),
            }
        }
        let manager = Self {
            shared,
            disk,
            state: Mutex::new(state),
        };
        let mut state = manager.state.lock().await;
        let certificates = manager.certificates(&mut state, &snapshot, &[])?;
        manager.publish(&mut state, snapshot, certificates);
        for problem in state.problems() {
            tracing::error!(problem, "part of the snapshot is not served");
        }
        drop(state);
        Ok(manager)
    }

    /// Waits while a successor starts. Should it take over, the caller's connection ends without an answer, and the
    /// step is repeated there.
    async fn thawed(&self) {
        let mut frozen = self.shared.frozen.subscribe();
        // The sender lives as long as we do.
        let _never_closed = frozen.wait_for(|frozen| !frozen).await;
    }

    /// Applies `change` to a copy of the snapshot and makes the result live.
    async fn change(
        &self,
        subjects: &[ServiceName],
        change: impl FnOnce(&mut Snapshot) -> Result<(), Refusal>,
    ) -> Result<Applied, Refusal> {
        self.thawed().await;
        let mut state = self.state.lock().await;
        let mut next = state.snapshot.clone();
        change(&mut next)?;
        if next == state.snapshot {
            return Ok(state.applied(subjects, false));
        }
        if let Some(problem) = check::problems(&next).into_iter().next() {
            return Err(Refusal {
                code: if problem.conflict.is_some() {
                    RefusalCode::Conflict
                } else {
                    RefusalCode::Invalid
                },
                message: problem.message,
                service: problem.conflict,
            });
        }
        let certificates = match self.certificates(&mut state, &next, subjects) {
            Ok(certificates) => certificates,
            Err(message) => return refuse(RefusalCode::Certificate, message),
        };
        next.generation += 1;
        if let Err(error) = self.disk.write(&next) {
            return refuse(
                RefusalCode::Storage,
                format!(
                    "cannot write {}: {}; nothing was changed",
                    self.disk.snapshot_path().display(),
                    words(&error)
                ),
            );
        }
        self.publish(&mut state, next, certificates);
        Ok(state.applied(subjects, true))
    }

    /// Makes `snapshot` live. Upstreams that stay keep their connections, counts and health.
    fn publish(&self, state: &mut State, snapshot: Snapshot, certificates: Certificates) {
        let before = self.shared.table.load_full();
        let workers = self.shared.workers;
        let https_port = snapshot.settings.public_https_port.or(self.shared.https_port);
        let challenges = Arc::clone(&self.shared.challenges);
        let table = Arc::new(Table::build(
            &snapshot,
            certificates,
            challenges,
            https_port,
            |service| {
                let old = before.routes.get(&service.name);
                let doubtful = snapshot.held.contains(&service.name) || old.is_some_and(|old| old.held);
                let one = |address: &UpstreamAddress| {
                    old.and_then(|old| old.every_upstream().find(|upstream| upstream.address == *address))
                        .cloned()
                        .unwrap_or_else(|| {
                            Arc::new(if doubtful {
                                Upstream::unproven(address.clone(), workers)
                            } else {
                                Upstream::new(address.clone(), workers)
                            })
                        })
                };
                let live = |addresses: &[UpstreamAddress]| addresses.iter().map(one).collect();
                let counters = match old {
                    Some(old) => Arc::clone(&old.counters),
                    None => (0..workers).map(|_| Counters::default()).collect(),
                };
                Live {
                    upstreams: live(&service.upstreams),
                    canary: live(
                        service
                            .canary
                            .as_ref()
                            .map_or(&[][..], |canary| &canary.upstreams),
                    ),
                    readers: live(&service.read_upstreams),
                    counters,
                }
            },
        ));
        self.shared.table.store(Arc::clone(&table));
        let live: BTreeSet<u64> = table
            .routes
            .values()
            .flat_map(|route| route.every_upstream().map(|upstream| upstream.id))
            .collect();
        for (name, route) in &before.routes {
            for upstream in route.every_upstream() {
                if !live.contains(&upstream.id) {
                    upstream.begin_drain();
                    state
                        .draining
                        .entry(name.clone())
                        .or_default()
                        .push(Arc::clone(upstream));
                }
            }
        }
        state.draining.retain(|_, upstreams| {
            upstreams.retain(|upstream| upstream.in_flight() + upstream.tunnels() > 0);
            !upstreams.is_empty()
        });
        self.shared.changed.notify_waiters();
        state.watchers.retain(|name, _| table.routes.contains_key(name));
        for (name, route) in &table.routes {
            let same = before.routes.get(name).is_some_and(|old| {
                old.service.settled_health_check() == route.service.settled_health_check()
                    && old
                        .every_upstream()
                        .map(|old| old.id)
                        .eq(route.every_upstream().map(|new| new.id))
            });
            if !same {
                let mut watchers = JoinSet::new();
                for (set, upstream) in [&route.upstreams, &route.canary, &route.readers]
                    .into_iter()
                    .flat_map(|set| set.iter().map(move |upstream| (set, upstream)))
                {
                    let (siblings, check) = (set.clone(), route.service.settled_health_check());
                    watchers.spawn(health::watch(
                        Arc::clone(&self.shared),
                        Arc::clone(upstream),
                        siblings,
                        check,
                    ));
                }
                state.watchers.insert(name.clone(), watchers);
            }
        }
        state.snapshot = snapshot;
    }

    /// See [`crate::Client::put_service`].
    pub(crate) async fn put_service(&self, service: Service) -> Result<Applied, Refusal> {
        let name = service.name.clone();
        self.change(std::slice::from_ref(&name), |snapshot| {
            put(snapshot, service);
            Ok(())
        })
        .await
    }

    /// See [`crate::Client::put_services`].
    pub(crate) async fn put_services(&self, batch: Batch) -> Result<Applied, Refusal> {
        let changed: Vec<ServiceName> = batch.put.iter().map(|service| service.name.clone()).collect();
        self.change(&changed, |snapshot| {
            snapshot
                .services
                .retain(|service| !batch.remove.contains(&service.name));
            snapshot.held.retain(|name| !batch.remove.contains(name));
            for service in batch.put {
                put(snapshot, service);
            }
            Ok(())
        })
        .await
    }

    /// See [`crate::Client::remove_service`].
    pub(crate) async fn remove_service(&self, name: &ServiceName) -> Result<Applied, Refusal> {
        self.change(std::slice::from_ref(name), |snapshot| {
            snapshot.services.retain(|service| service.name != *name);
            snapshot.held.remove(name);
            Ok(())
        })
        .await
    }

    /// See [`crate::Client::put_settings`].
    pub(crate) async fn put_settings(&self, settings: Settings) -> Result<Applied, Refusal> {
        self.change(&[], |snapshot| {
            snapshot.settings = settings;
            Ok(())
        })
        .await
    }

    /// Pauses, stops or resumes a service.
    pub(crate) async fn set_gate(&self, name: &ServiceName, gate: Gate) -> Result<Applied, Refusal> {
        self.change(std::slice::from_ref(name), |snapshot| {
            match snapshot.services.iter_mut().find(|service| service.name == *name) {
                Some(service) => {
                    service.gate = gate;
                    Ok(())
                }
                None => refuse(RefusalCode::NotFound, format!("there is no service {name}")),
            }
        })
        .await
    }

    /// See [`crate::Client::drain`].
    pub(crate) async fn drain(
        &self,
        name: &ServiceName,
        address: &UpstreamAddress,
        timeout: Duration,
    ) -> Result<Drained, Refusal> {
        let upstreams: Vec<_> = {
            let state = self.state.lock().await;
            let in_use = |service: &Service| {
                service.name == *name && service.every_upstream().any(|upstream| upstream == address)
            };
            if state.snapshot.services.iter().any(in_use) {
                return refuse(
                    RefusalCode::InUse,
                    format!("service {name} still uses {address}; switch to other upstreams first"),
                );
            }
            let left = state.draining.get(name).into_iter().flatten();
            left.filter(|upstream| upstream.address == *address)
                .cloned()
                .collect()
        };
        let deadline = tokio::time::Instant::now() + timeout;
        let mut sum = Drained::default();
        for upstream in upstreams {
            let drained = upstream.drain(tokio::time::sleep_until(deadline)).await;
            if drained.cut + drained.tunnels_cut > 0 {
                self.shared.cut.send_replace(());
            }
            sum.finished += drained.finished;
            sum.cut += drained.cut;
            sum.tunnels_finished += drained.tunnels_finished;
            sum.tunnels_cut += drained.tunnels_cut;
        }
        // What the process before us still has in flight is counted there; we know only when it has ended.
        while self.shared.predecessor.is_some_and(is_running) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(sum)
    }

    /// See [`crate::Client::put_challenge`].
    pub(crate) fn put_challenge(&self, challenge: &Challenge) -> Result<(), Refusal> {
        let put = self.shared.challenges.put(challenge, std::time::Instant::now());
        put.or_else(|why| refuse(RefusalCode::Invalid, why))
    }

    /// See [`crate::Client::remove_challenge`].
    pub(crate) fn remove_challenge(&self, challenge: &Challenge) {
        self.shared.challenges.remove(challenge);
    }

    /// Publishes the same snapshot with certificates read again.
    fn refresh(&self, state: &mut State) {
        let snapshot = state.snapshot.clone();
        if let Ok(certificates) = self.certificates(state, &snapshot, &[]) {
            self.publish(state, snapshot, certificates);
        }
    }

    /// Reads the snapshot file and certificate files again; on an error the live table stays.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(crate) async fn reload(&self) -> Result<(), String> {
        let mut state = self.state.lock().await;
        if !self.disk.watched {
            self.refresh(&mut state);
            return Ok(());
        }
        let next = match self.disk.read_strict() {
            Ok(next) => next,
            Err(error) => {
                state.load_problems = vec![format!("{}: {error}", self.disk.snapshot_path().display())];
                return Err(error);
            }
        };
        state.load_problems.clear();
        let certificates = self.certificates(&mut state, &next, &[])?;
        self.publish(&mut state, next, certificates);
        Ok(())
    }

    /// Path of the snapshot when it is to be watched.
    pub(crate) fn watched(&self) -> Option<&Path> {
        self.disk.watched.then(|| self.disk.snapshot_path())
    }

    /// The live snapshot.
    pub(crate) async fn snapshot(&self) -> Snapshot {
        self.state.lock().await.snapshot.clone()
    }

    /// What is wrong but does not stop the proxy.
    pub(crate) async fn problems(&self) -> Vec<String> {
        self.state.lock().await.problems()
    }

    /// Every service with its upstreams' states.
    pub(crate) async fn list(&self) -> Vec<ServiceStatus> {
        let state = self.state.lock().await;
        let table = self.shared.table.load();
        table
            .routes
            .iter()
            .map(|(name, route)| ServiceStatus {
                service: route.service.clone(),
                held: route.held,
                upstreams: route.every_upstream().map(|upstream| upstream.status()).collect(),
                draining: state
                    .draining
                    .get(name)
                    .into_iter()
                    .flatten()
                    .filter(|upstream| upstream.in_flight() + upstream.tunnels() > 0)
                    .map(|upstream| upstream.status())
                    .collect(),
                problems: state
                    .certificate_problems
                    .get(name)
                    .cloned()
                    .into_iter()
                    .collect(),
            })
            .collect()
    }

    /// Counts of a service.
    pub(crate) fn stats(&self, name: &ServiceName) -> Result<ServiceStats, Refusal> {
        let table = self.shared.table.load();
        let Some(route) = table.routes.get(name) else {
            return refuse(RefusalCode::NotFound, format!("there is no service {name}"));
        };
        let mut total = merge(route.counters.iter());
        let upstreams: Vec<_> = route.every_upstream().map(|upstream| upstream.stats()).collect();
        total.in_flight = upstreams.iter().map(|upstream| upstream.counts.in_flight).sum();
        Ok(ServiceStats { total, upstreams })
    }
}

impl State {
    fn applied(&self, subjects: &[ServiceName], changed: bool) -> Applied {
        let draining = subjects
            .iter()
            .filter_map(|name| self.draining.get(name))
            .flatten();
        Applied {
            generation: self.snapshot.generation,
            changed,
            draining: draining.map(|upstream| upstream.address.clone()).collect(),
        }
    }

    fn problems(&self) -> Vec<String> {
        let certificates = self.certificate_problems.iter();
        self.load_problems
            .iter()
            .cloned()
            .chain(certificates.map(|(service, problem)| format!("service {service}: {problem}")))
            .collect()
    }
}

/// Puts a service in the place of a former one of its name.
fn put(snapshot: &mut Snapshot, mut service: Service) {
    snapshot.held.remove(&service.name);
    match snapshot
        .services
        .iter_mut()
        .find(|other| other.name == service.name)
    {
        Some(old) => {
            // Pause and stop outlive a deploy, as in kamal-proxy; only the gate request changes them.
            service.gate = old.gate.clone();
            *old = service;
        }
        None => snapshot.services.push(service),
    }
}

/// Whether the process lives and is no zombie.
fn is_running(pid: u32) -> bool {
    fs_err::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

#[cfg(test)]
mod tests;
