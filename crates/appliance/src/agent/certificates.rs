//! Certificates for hosts of apps with `ssl: true`: the agent owns accounts, keys and the schedule, the proxy shows them.
//!
//! ```text
//!  push ─► Fetch stage ─► ensure (refuses the release with the authority's words)
//!  keep ─► tend: at the start, when the schedule says so, when an app or host.yml changed
//!  appliance certificates renew|revoke ─► signed change
//! ```
//!
//! `host.yml` is read anew for each pass, so that a correction needs no restart.

mod section;
#[cfg(test)]
mod tests;

/// A role with these hosts.
#[cfg(test)]
pub fn example(hosts: &[&str]) -> ProxySpec {
    tests::spec(&hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>())
}

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use appliance_acme::schedule::Validity;
use appliance_acme::settings::{Challenge, DnsCommand, ExternalAccount};
use appliance_acme::store::Store;
use appliance_acme::{AcmeError, Answer, Front, FrontError, Name, Settings};
use appliance_config::edge::{Acme, AcmeChallenge, OnDemand};
use appliance_proxy::control::{CertificatePem, ControlError, RefusalCode};
use appliance_proxy::names::{CertificateName, HostPattern};
use appliance_push::change::{ProxySpec, Tls, Verb};
use appliance_state::Outcome;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::section::Section;
use super::on_demand::{Desk, Lapsed};
use super::{Agent, chain, random};
use crate::wire;

/// A certificate with less life than this while its renewal fails is a problem that people should know of.
const SOON: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);

/// Why hosts have no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// `host.yml` cannot be used.
    #[error("{path} cannot be used, so no certificate is asked for: {why}")]
    Host {
        /// Its path.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The authority refused, or could not be asked.
    #[error("{0}")]
    Refused(String),
    /// The certificate could not be had, kept, shown or revoked.
    #[error(transparent)]
    Acme(#[from] AcmeError),
    /// Not a name of a certificate that is managed here.
    #[error("{0}")]
    Name(String),
}

/// The host's certificates.
pub struct Certificates {
    inner: appliance_acme::Certificates,
    section: Section,
    /// What stands in the way of every name, as of the last pass.
    troubles: Mutex<Vec<String>>,
    /// Hosts that nobody named beforehand.
    desk: Desk,
    /// Told when something changed that a pass should look at.
    wake: Notify,
}

/// What one pass did.
#[derive(Debug)]
struct Pass {
    tended: appliance_acme::certificates::Tended,
    /// Hosts that came on demand and are not wanted any more.
    lapsed: Vec<Lapsed>,
}

impl Certificates {
    /// Opens the store beneath `state`; nothing is asked of anybody yet.
    pub fn open(config: &Path, state: &Path, proxy: appliance_proxy::Client) -> Self {
        let store = Store::new(state.join("certificates"));
        Self {
            inner: appliance_acme::Certificates::new(store, Arc::new(Proxy(proxy))),
            section: Section::new(config.join("host.yml"), state.join("acme.json")),
            troubles: Mutex::default(),
            desk: Desk::open(state),
            wake: Notify::new(),
        }
    }

    /// Where the host's settings stand.
    pub fn host_yml(&self) -> &Path {
        self.section.host_yml()
    }

    /// Makes the next pass begin now.
    pub fn look_again(&self) {
        self.wake.notify_one();
    }

    /// The hosts that are served on demand, and what was asked about them.
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Who is asked about hosts that nobody named; `None` when there are to be none, or the file is wrong.
    pub fn on_demand(&self) -> Option<OnDemand> {
        self.section.now().ok().filter(|acme| acme.enabled)?.on_demand
    }

    /// Has a certificate made for one name, unless there is one, and shows it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn issue(&self, name: &Name) -> Result<(), CertificatesError> {
        let settings = settings(&self.section.now()?);
        let names = std::slice::from_ref(name);
        match self.inner.ensure(&settings, names, Timestamp::now(), luck).await {
            Ok(()) => Ok(()),
            Err(failures) => {
                let reasons: Vec<String> = failures.iter().map(|(_, error)| chain(error)).collect();
                Err(CertificatesError::Refused(reasons.join("; ")))
            }
        }
    }

    /// Makes sure that the public hosts of `specs` have certificates, before any of them gets traffic.
    ///
    /// # Errors
    /// The hosts that cannot be served, with the authority's words and the next command.
    pub async fn ensure(&self, specs: &[&ProxySpec]) -> Result<(), CertificatesError> {
        let section = self.section.now()?;
        let names = managed(&section, specs)?;
        if names.is_empty() {
            return Ok(());
        }
        let settings = settings(&section);
        let outcome = self.inner.ensure(&settings, &names, Timestamp::now(), luck).await;
        self.wake.notify_one();
        let Err(failures) = outcome else { return Ok(()) };
        let reasons: Vec<String> = failures
            .iter()
            .map(|(name, error)| format!("{name}: {}", chain(error)))
            .collect();
        let next = match &failures[0].1 {
            AcmeError::Unproved { .. } => {
                "see that the name's DNS entry points here and that ports 80 and 443 are reachable, then push again"
            }
            AcmeError::RateLimited { .. } => "push again then",
            AcmeError::Dns { .. } => "see acme/dns in /etc/appliance/host.yml on the host, then push again",
            _ => {
                "see acme in /etc/appliance/host.yml on the host, and that it reaches the authority; then push again"
            }
        };
        Err(CertificatesError::Refused(format!(
            "{}; next: {next}",
            reasons.join("; ")
        )))
    }

    /// Which hosts of a service may show the local CA's certificate.
    pub fn local_hosts(&self, spec: &ProxySpec) -> Vec<HostPattern> {
        // A host.yml that is broken now stops new certificates, never a route.
        // Where it never was right since we look, any host may: what has a certificate shows that first.
        let managed = self.section.last_good();
        let managed = managed.map_or_else(Vec::new, |section| managed_among(&section, &[spec]).0);
        let hosts = spec
            .hosts
            .iter()
            .filter(|host| Name::parse(host).map_or(true, |name| !managed.contains(&name)));
        hosts.filter_map(|host| HostPattern::parse(host).ok()).collect()
    }

    /// One pass over every name: renewals, advice, what the proxy lost. Tells when to come again.
    ///
    /// A wrong `host.yml` stops no renewal that the last good one allows, nor a bad host those beside it;
    /// both are told by [`Certificates::problems`], which looks at them itself.
    async fn pass(&self, specs: &[&ProxySpec]) -> Result<Pass, CertificatesError> {
        let mut lapsed = Vec::new();
        let outcome = self.pass_noting(specs, &mut lapsed).await;
        let failed = outcome
            .as_ref()
            .err()
            .filter(|error| !matches!(error, CertificatesError::Host { .. }));
        let troubles = failed.map(|error| chain(error)).into_iter().collect();
        *self.troubles.lock().unwrap_or_else(PoisonError::into_inner) = troubles;
        outcome.map(|tended| Pass { tended, lapsed })
    }

    async fn pass_noting(
        &self,
        specs: &[&ProxySpec],
        lapsed: &mut Vec<Lapsed>,
    ) -> Result<appliance_acme::certificates::Tended, CertificatesError> {
        let section = match self.section.now() {
            Ok(section) => section,
            Err(error) => {
                let section = self.section.last_good();
                let Some(section) = section else { return Err(error) };
                tracing::error!("{}; renewals go on as it said before", chain(&error));
                section
            }
        };
        let mut names = managed_among(&section, specs).0;
        if let Some(on_demand) = section.on_demand.as_ref().filter(|_| section.enabled) {
            let settings = settings(&section);
            let further: Vec<_> = self.desk.names();
            let further = further.into_iter().filter(|name| !names.contains(name));
            let (due, rest): (Vec<_>, Vec<_>) = further.partition(|name| {
                self.inner
                    .is_due(&settings, name, Timestamp::now())
                    .unwrap_or_default()
            });
            names.extend(rest);
            let (wanted, unwanted) = self.desk.still_wanted(on_demand, due).await;
            names.extend(wanted);
            lapsed.extend(unwanted);
        }
        let tended = self
            .inner
            .tend(&settings(&section), &names, Timestamp::now(), luck)
            .await;
        self.inner.forget(&names, Timestamp::now()).await?;
        Ok(tended)
    }

    /// Every certificate, for people.
    pub fn list(&self, specs: &[&ProxySpec]) -> Vec<wire::Certificate> {
        let used = |name: &Name| {
            let mut services = specs.iter().filter(|spec| {
                spec.tls == Tls::Auto
                    && spec
                        .hosts
                        .iter()
                        .any(|host| Name::parse(host).as_ref() == Ok(name))
            });
            services.next().map(|spec| spec.service_name.clone())
        };
        let on_demand = self.desk.names();
        let records = self.inner.list().into_iter();
        records
            .map(|record| wire::Certificate {
                service: used(&record.name),
                on_demand: on_demand.contains(&record.name),
                name: record.name.to_string(),
                authority: record.held.as_ref().map(|held| held.directory.clone()),
                not_before: record.held.as_ref().map(|held| held.validity.not_before),
                not_after: record.held.as_ref().map(|held| held.validity.not_after),
                renewal: record
                    .held
                    .as_ref()
                    .map(|held| appliance_acme::schedule::due(held.validity, held.advice, held.luck)),
                failure: (record.failures.count > 0).then(|| record.failures.why.clone()),
            })
            .collect()
    }

    /// What `appliance status` should warn of: renewals that fail or do not happen while the end comes near,
    /// what stands in the way of all of them, and what the disk does not keep.
    pub fn problems(&self, specs: &[&ProxySpec], now: Timestamp) -> Vec<String> {
        // As they are now: whoever has just mended the file is not told what the last pass saw.
        let section = self.section.now();
        let mut troubles: Vec<String> = section
            .as_ref()
            .err()
            .map(|error| chain(error))
            .into_iter()
            .collect();
        let section = section
            .ok()
            .or_else(|| self.section.last_good())
            .unwrap_or_default();
        let (mut used, bad) = managed_among(&section, specs);
        troubles.extend(bad.iter().map(|error| chain(error)));
        for why in self
            .troubles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            if !troubles.contains(why) {
                troubles.push(why.clone());
            }
        }
        let troubles = troubles
            .iter()
            .map(|why| format!("certificates: {why}; next: appliance host audit # and mend `acme:` in /etc/appliance/host.yml"));
        let mut problems: Vec<String> = troubles.collect();
        let unkept = self.inner.unkept().into_iter();
        problems.extend(unkept.map(|(name, why)| {
            format!(
                "what is known of the certificate of {name} would not outlive a restart: {why}; next: df -h /var/lib/appliance; systemctl restart appliance-agent"
            )
        }));
        used.extend(self.desk.names());
        let records = self.inner.list().into_iter();
        problems.extend(records.filter_map(|record| {
            let held = record.held.as_ref()?;
            let end = held.validity.not_after;
            let failing = record.failures.count > 0;
            if !(end < now + notice(held.validity, failing) && (failing || used.contains(&record.name))) {
                return None;
            }
            let why = if failing {
                format!("cannot be renewed: {}", record.failures.why)
            } else {
                "was not renewed in time".to_owned()
            };
            Some(format!(
                "the certificate of {} ends at {end} and {why}; next: appliance certificates renew {}",
                record.name, record.name
            ))
        }));
        problems
    }

    /// Renews now.
    ///
    /// # Errors
    /// Why not; the former certificate is shown on.
    pub async fn renew(&self, name: &str) -> Result<(), CertificatesError> {
        let name = parse(name)?;
        let settings = settings(&self.section.now()?);
        Ok(self.inner.renew(&settings, &name, luck()).await?)
    }

    /// Keeps and shows a certificate that somebody else had from an authority, until it is due for renewal.
    ///
    /// # Errors
    /// When it is for no name that is managed here, does not fit its key, or has run out.
    pub async fn adopt(
        &self,
        name: &str,
        directory: &str,
        chain: &str,
        key: &str,
    ) -> Result<(), CertificatesError> {
        let name = parse(name)?;
        self.inner
            .adopt(&name, directory, chain, key, Timestamp::now(), luck())
            .await?;
        Ok(())
    }

    /// Revokes; a name that is served gets a new certificate first.
    ///
    /// A host that came on demand is asked about again: one that is not wanted any more, or cannot be asked about,
    /// gets none, and is not served until its next visitor is asked about.
    ///
    /// # Errors
    /// Why not.
    pub async fn revoke(
        &self,
        name: &str,
        compromised: bool,
        specs: &[&ProxySpec],
    ) -> Result<(), CertificatesError> {
        let name = parse(name)?;
        let section = self.section.now()?;
        // A bad host elsewhere must not stand in the way of a key that is known to others.
        let mut served = managed_among(&section, specs).0.contains(&name);
        if !served && self.desk.names().contains(&name) {
            let on_demand = section.on_demand.as_ref().filter(|_| section.enabled);
            served = match on_demand {
                Some(wanted) => self.desk.is_wanted(wanted, &name).await,
                None => false,
            };
            if !served {
                self.desk
                    .forget(&name)
                    .map_err(|error| CertificatesError::Refused(chain(&error)))?;
            }
        }
        let settings = settings(&section);
        Ok(self
            .inner
            .revoke(&settings, &name, compromised, served, luck())
            .await?)
    }
}

fn parse(name: &str) -> Result<Name, CertificatesError> {
    Name::parse(name).map_err(|error| CertificatesError::Name(error.to_string()))
}

/// The names of these services that the authority is asked for.
///
/// # Errors
/// The first that is none.
fn managed(section: &Acme, specs: &[&ProxySpec]) -> Result<Vec<Name>, CertificatesError> {
    let (names, bad) = managed_among(section, specs);
    bad.into_iter().next().map_or(Ok(names), Err)
}

/// The names of these services that the authority is asked for, and what is wrong with those that are none.
fn managed_among(section: &Acme, specs: &[&ProxySpec]) -> (Vec<Name>, Vec<CertificatesError>) {
    let (mut names, mut bad) = (Vec::new(), Vec::new());
    if !section.enabled {
        return (names, bad);
    }
    for host in specs
        .iter()
        .filter(|spec| spec.tls == Tls::Auto)
        .flat_map(|spec| &spec.hosts)
    {
        let name = match parse(host) {
            Ok(name) => name,
            Err(error) => {
                bad.push(error);
                continue;
            }
        };
        let local = match &section.directory {
            // An authority that was named may well issue for `.internal`, but none does for the host itself.
            Some(_) => {
                name.address().is_some() || name.host() == "localhost" || name.host().ends_with(".localhost")
            }
            None => name.is_private(),
        };
        if !local && !names.contains(&name) {
            names.push(name);
        }
    }
    (names, bad)
}

/// How long before its end a certificate is a matter for people.
///
/// One that is just not renewed yet counts later than one whose renewal fails: a renewal is due when a third of the
/// life is left, which for a life of six days is less than [`SOON`].
fn notice(validity: Validity, failing: bool) -> jiff::SignedDuration {
    let life = validity.not_after.duration_since(validity.not_before);
    if failing { SOON } else { SOON.min(life / 5) }
}

/// The section in the words of the ACME client.
fn settings(section: &Acme) -> Settings {
    let defaults = Settings::default();
    Settings {
        directory: section.directory.clone().unwrap_or(defaults.directory),
        email: section.email.clone(),
        ca_file: section.ca_file.as_ref().map(PathBuf::from),
        external_account: section.external_account.as_ref().map(|account| ExternalAccount {
            key_id: account.key_id.clone(),
            key_file: PathBuf::from(&account.key_file),
        }),
        challenge: match section.challenge {
            AcmeChallenge::Auto => Challenge::Auto,
            AcmeChallenge::Http01 => Challenge::Http01,
            AcmeChallenge::TlsAlpn01 => Challenge::TlsAlpn01,
            AcmeChallenge::Dns01 => Challenge::Dns01,
        },
        dns: section.dns.as_ref().map(|dns| DnsCommand {
            command: dns.command.words(),
            timeout: Duration::from_secs(dns.timeout.0),
            propagation: Duration::from_secs(dns.propagation.0),
        }),
        profile: section.profile.clone(),
    }
}

/// A number from 0 to 1.
fn luck() -> f64 {
    f64::from(u32::from_le_bytes(random())) / f64::from(u32::MAX)
}

/// The proxy as the ACME client sees it.
struct Proxy(appliance_proxy::Client);

fn challenge(answer: &Answer) -> appliance_proxy::Challenge {
    match answer.clone() {
        Answer::Http { token, authorization } => appliance_proxy::Challenge::Http { token, authorization },
        Answer::TlsAlpn { name, chain, key } => appliance_proxy::Challenge::TlsAlpn {
            host: name.into(),
            chain,
            key,
        },
    }
}

/// How the proxy calls the certificate of a host.
fn shown_as(name: &Name) -> Result<CertificateName, FrontError> {
    // An IPv6 address stands in brackets where hosts are named.
    let host = match name.address() {
        Some(std::net::IpAddr::V6(address)) => format!("[{address}]"),
        _ => name.to_string(),
    };
    Ok(CertificateName::of_host(&HostPattern::parse(&host)?))
}

impl Front for Proxy {
    fn present<'a>(&'a self, answer: &'a Answer) -> BoxFuture<'a, Result<(), FrontError>> {
        Box::pin(async move { Ok(self.0.put_challenge(&challenge(answer)).await?) })
    }

    fn withdraw<'a>(&'a self, answer: &'a Answer) -> BoxFuture<'a, Result<(), FrontError>> {
        Box::pin(async move { Ok(self.0.remove_challenge(&challenge(answer)).await?) })
    }

    fn install<'a>(
        &'a self,
        name: &'a Name,
        chain: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<(), FrontError>> {
        Box::pin(async move {
            let pem = CertificatePem {
                chain: chain.to_owned(),
                key: key.to_owned(),
            };
            self.0.put_certificate(&shown_as(name)?, &pem).await?;
            Ok(())
        })
    }

    fn uninstall<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), FrontError>> {
        Box::pin(async move {
            match self.0.remove_certificate(&shown_as(name)?).await {
                // A service that names the host needs it there.
                Err(ControlError::Refused { refusal, .. }) if refusal.code == RefusalCode::InUse => Ok(()),
                outcome => Ok(outcome.map(drop)?),
            }
        })
    }
}

/// Renews what is due until `stop`.
pub async fn keep(agent: Arc<Agent>, stop: CancellationToken) {
    loop {
        let specs = agent.served(&|_| true);
        let specs: Vec<&ProxySpec> = specs.iter().collect();
        let rest = match agent.certificates.pass(&specs).await {
            Ok(pass) => {
                report(&agent, &pass);
                Duration::try_from(pass.tended.next.duration_since(Timestamp::now())).unwrap_or_default()
            }
            Err(error) => {
                tracing::error!("{}", chain(&error));
                Duration::from_secs(600)
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = agent.certificates.wake.notified() => {}
            () = tokio::time::sleep(rest.max(Duration::from_secs(1))) => {}
        }
    }
}

/// Renewals are changes that nobody signed, so they are recorded by themselves.
fn report(agent: &Agent, pass: &Pass) {
    let tended = &pass.tended;
    for Lapsed { name, why } in &pass.lapsed {
        tracing::warn!("the certificate of {name} is not renewed: {why}; it is shown until it ends");
        let detail = serde_json::json!({ "name": name.as_str(), "on_demand": true, "lapses": why });
        let recorded = agent.gate.record(
            "certificate",
            name.as_str(),
            Outcome::Done,
            detail,
            Timestamp::now(),
        );
        if let Err(error) = recorded {
            tracing::error!("cannot record that it lapses: {}", chain(&error));
        }
    }
    let renewed = tended.renewed.iter().map(|name| (name, None));
    let failed = tended
        .failed
        .iter()
        .map(|(name, error)| (name, Some(chain(error))));
    for (name, failure) in renewed.chain(failed) {
        let outcome = if failure.is_none() {
            Outcome::Done
        } else {
            Outcome::Failed
        };
        match &failure {
            None => tracing::info!("{name} has a new certificate"),
            Some(why) => tracing::error!("{name}: {why}; what is there is shown on"),
        }
        let detail = serde_json::json!({ "name": name.as_str(), "why": failure });
        let recorded = agent
            .gate
            .record("certificate", name.as_str(), outcome, detail, Timestamp::now());
        if let Err(error) = recorded {
            tracing::error!("cannot record the renewal: {}", chain(&error));
        }
    }
}

/// Carries a signed change of a certificate out.
pub async fn change(agent: &Agent, verb: &Verb) -> wire::End {
    let outcome = match verb {
        Verb::CertificateRenew { name } => {
            let renewed = agent.certificates.renew(name).await;
            renewed.map(|()| format!("{name} has a new certificate"))
        }
        Verb::CertificateRevoke { name, compromised } => {
            let specs = agent.served(&|_| true);
            let specs: Vec<_> = specs.iter().collect();
            let revoked = agent.certificates.revoke(name, *compromised, &specs).await;
            revoked.map(|()| format!("the certificate of {name} is revoked"))
        }
        _ => Err(CertificatesError::Name(
            "this is no change of a certificate".to_owned(),
        )),
    };
    match outcome {
        Ok(message) => wire::End::Done {
            release: None,
            message,
        },
        Err(error) => wire::End::Refused {
            code: "certificate".to_owned(),
            message: chain(&error),
            next: "appliance certificates list".to_owned(),
        },
    }
}

impl Agent {
    /// How the proxy serves each proxied role that is current, and each accessory, of the apps that `wanted` names.
    pub fn served(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<ProxySpec> {
        let mut specs = self.proxied_accessories(wanted);
        for app in self.apps.ids().unwrap_or_default() {
            if !wanted(&app) {
                continue;
            }
            let Ok(state) = self.apps.read(&app) else { continue };
            let Some(current) = state.numbers.current else {
                continue;
            };
            if let Ok(parts) = self.apps.parts(&app, &current) {
                specs.extend(parts.into_iter().filter_map(|part| part.role.proxy));
            }
        }
        specs
    }
}
