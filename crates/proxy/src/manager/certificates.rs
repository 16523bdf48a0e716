//! The certificates of the routing state: from whom each comes, and which are shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;

use super::{Manager, State, refuse, words};
use crate::control::{Applied, CertificatePem, Refusal, RefusalCode};
use crate::local_ca::{self, LocalCa};
use crate::names::{CertificateName, HostPattern, ServiceName};
use crate::snapshot::{Certificate, Service, Snapshot};
use crate::tls::{self, CertificateError, Certificates};

impl Manager {
    /// The certificates that `snapshot` shows. A certificate that does not load costs its own service only, unless
    /// that service is the one being changed.
    pub(super) fn certificates(
        &self,
        state: &mut State,
        snapshot: &Snapshot,
        strict: &[ServiceName],
    ) -> Result<Certificates, String> {
        let mut certificates = Certificates::default();
        let mut problems = BTreeMap::new();
        for service in &snapshot.services {
            let Some(tls) = &service.tls else { continue };
            let key = match &tls.certificate {
                Certificate::Named(name) => match state.certificates.get(name) {
                    Some(key) => Ok(Arc::clone(key)),
                    None => Err(format!("there is no certificate named {name}; put it first")),
                },
                Certificate::Files { chain, key } => {
                    let (read, problem) = state.read_files(chain, key, strict.contains(&service.name));
                    if let (Ok(_), Some(problem)) = (&read, problem) {
                        problems.insert(service.name.clone(), problem);
                    }
                    read
                }
                Certificate::LocalCa => self.local_leaf(state, &service.hosts),
                Certificate::PerHost { local_ca } => {
                    let missing = self.per_host(state, &service.hosts, local_ca, &mut certificates);
                    if !missing.is_empty() {
                        problems.insert(service.name.clone(), missing);
                    }
                    continue;
                }
            };
            match key {
                Ok(key) if service.hosts.is_empty() => certificates.set_fallback(&key),
                Ok(key) => certificates.add(&service.hosts, &key),
                Err(message) if strict.contains(&service.name) => {
                    return Err(format!("service {}: {message}", service.name));
                }
                Err(message) => drop(problems.insert(service.name.clone(), message)),
            }
        }
        if snapshot.settings.on_demand {
            for (name, key) in &state.certificates {
                if let Some(host) = name.host() {
                    certificates.add(std::slice::from_ref(&host), key);
                }
            }
        }
        state.certificate_problems = problems;
        Ok(certificates)
    }

    /// Adds each host's own certificate; tells of the hosts without one, which costs only those.
    fn per_host(
        &self,
        state: &mut State,
        hosts: &[HostPattern],
        local_ca: &[HostPattern],
        certificates: &mut Certificates,
    ) -> String {
        let mut missing = Vec::new();
        for host in hosts {
            let key = match state.certificates.get(&CertificateName::of_host(host)) {
                Some(key) => Ok(Arc::clone(key)),
                None if local_ca.contains(host) => self.local_leaf(state, std::slice::from_ref(host)),
                None => Err(format!("there is no certificate for {host} yet")),
            };
            match key {
                Ok(key) => certificates.add(std::slice::from_ref(host), &key),
                Err(why) => missing.push(why),
            }
        }
        missing.join("; ")
    }

    fn local_leaf(&self, state: &mut State, hosts: &[HostPattern]) -> Result<Arc<CertifiedKey>, String> {
        if let Some((key, _)) = state.leaves.get(hosts) {
            return Ok(Arc::clone(key));
        }
        let now = SystemTime::now();
        self.sign_leaf(state, hosts, now)
    }

    fn sign_leaf(
        &self,
        state: &mut State,
        hosts: &[HostPattern],
        now: SystemTime,
    ) -> Result<Arc<CertifiedKey>, String> {
        let ca = LocalCa::open_or_create(&self.disk.local_ca(), now).map_err(|error| words(&error))?;
        let pem = ca.issue(hosts, now).map_err(|error| words(&error))?;
        let key = tls::load(&pem).map_err(|error| words(&error))?;
        let shown = (Arc::clone(&key), now + local_ca::LEAF_SHOWN);
        state.leaves.insert(hosts.to_vec(), shown);
        Ok(key)
    }

    /// Signs the local CA's leaves anew that have been shown long enough at `now`; one that cannot be signed is shown on.
    pub(crate) async fn renew_leaves(&self, now: SystemTime) {
        let mut state = self.state.lock().await;
        let due = state.leaves.iter().filter(|(_, (_, until))| *until <= now);
        let due: Vec<_> = due.map(|(hosts, _)| hosts.clone()).collect();
        if due.is_empty() {
            return;
        }
        for hosts in due {
            if let Err(why) = self.sign_leaf(&mut state, &hosts, now) {
                tracing::error!("a certificate of the local CA is not renewed: {why}");
            }
        }
        self.refresh(&mut state);
    }

    /// See [`crate::Client::put_certificate`].
    pub(crate) async fn put_certificate(
        &self,
        name: &CertificateName,
        pem: &CertificatePem,
    ) -> Result<Applied, Refusal> {
        let key = match tls::load(pem) {
            Ok(key) => key,
            Err(error) => {
                return refuse(
                    RefusalCode::Certificate,
                    format!("certificate {name}: {}", words(&error)),
                );
            }
        };
        self.thawed().await;
        let mut state = self.state.lock().await;
        if state
            .certificates
            .get(name)
            .is_some_and(|old| old.cert == key.cert)
        {
            return Ok(state.applied(&[], false));
        }
        if let Err(error) = self.disk.write_certificate(name, pem) {
            return refuse(
                RefusalCode::Storage,
                format!("cannot keep certificate {name}: {}", words(&error)),
            );
        }
        state.certificates.insert(name.clone(), key);
        self.refresh(&mut state);
        Ok(state.applied(&[], true))
    }

    /// See [`crate::Client::remove_certificate`].
    pub(crate) async fn remove_certificate(&self, name: &CertificateName) -> Result<Applied, Refusal> {
        self.thawed().await;
        let mut state = self.state.lock().await;
        let shows = |service: &&Service| match service.tls.as_ref().map(|tls| &tls.certificate) {
            Some(Certificate::Named(shown)) => shown == name,
            Some(Certificate::PerHost { .. }) => {
                let mut hosts = service.hosts.iter();
                hosts.any(|host| CertificateName::of_host(host) == *name)
            }
            _ => false,
        };
        let user = state.snapshot.services.iter().find(shows);
        if let Some(user) = user {
            return Err(Refusal {
                code: RefusalCode::InUse,
                message: format!("service {} shows certificate {name}", user.name),
                service: Some(user.name.clone()),
            });
        }
        if let Err(error) = self.disk.remove_certificate(name) {
            return refuse(
                RefusalCode::Storage,
                format!("cannot forget certificate {name}: {}", words(&error)),
            );
        }
        let changed = state.certificates.remove(name).is_some();
        if changed {
            // It may have been shown on demand.
            self.refresh(&mut state);
        }
        Ok(state.applied(&[], changed))
    }

    /// The certificate files that are shown now.
    pub(crate) fn certificate_files(&self) -> Vec<PathBuf> {
        let table = self.shared.table.load();
        let shown =
            table
                .routes
                .values()
                .filter_map(|route| match &route.service.tls.as_ref()?.certificate {
                    Certificate::Files { chain, key } => Some([chain.clone(), key.clone()]),
                    _ => None,
                });
        shown.flatten().collect()
    }

    /// Reads the certificate files again; one that cannot be used leaves its service with the one before.
    pub(crate) async fn reread_certificates(&self) {
        let mut state = self.state.lock().await;
        self.refresh(&mut state);
    }
}

impl State {
    /// A certificate from files; when they cannot be used now, the one that was read before, and why.
    fn read_files(
        &mut self,
        chain: &Path,
        key: &Path,
        strict: bool,
    ) -> (Result<Arc<CertifiedKey>, String>, Option<String>) {
        let at = (chain.to_owned(), key.to_owned());
        match (read_files(chain, key), self.files.get(&at)) {
            (Ok(read), _) => {
                self.files.insert(at, Arc::clone(&read));
                (Ok(read), None)
            }
            (Err(error), Some(before)) if !strict => {
                let problem = format!("{}; the certificate read before is shown on", words(&error));
                tracing::error!("{problem}");
                (Ok(Arc::clone(before)), Some(problem))
            }
            (Err(error), _) => (Err(words(&error)), None),
        }
    }
}

fn read_files(chain: &Path, key: &Path) -> Result<Arc<CertifiedKey>, CertificateError> {
    let read = |path: &Path| {
        fs_err::read_to_string(path).map_err(|source| CertificateError::File {
            path: path.display().to_string(),
            source,
        })
    };
    tls::load(&CertificatePem {
        chain: read(chain)?,
        key: read(key)?,
    })
}
