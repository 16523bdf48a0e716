//! Certificates for hosts that nobody named beforehand, such as domains that an app's customers bring.
//!
//! ```text
//!  proxy: names that visitors came for ─► asked lately? too many? ─► GET ask?host=NAME ─200─► certificate by ACME
//!                                              └──────── no ◄──────────── anything else        └► shown, kept, renewed
//! ```
//!
//! Before a certificate is renewed the same is asked again; after a no (403, 404, 410) it is not renewed, is shown until it
//! ends, and the next visitor after that is asked about.
//!
//! `acme: on_demand: ask:` of `host.yml` says whom to ask; without it nobody waits and nothing is asked for.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use appliance_acme::Name;
use appliance_config::edge::OnDemand;
use appliance_proxy::Unwanted;
use appliance_state::{Ledger, Outcome};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::certificates::Certificates;
use super::{Agent, chain};

/// How long whoever is asked may think.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a "no" is believed.
const NO: Duration = Duration::from_secs(600);
/// How long a name rests that could not be asked about, or came too many at once.
const LATER: Duration = Duration::from_secs(30);
/// How long one question to the proxy waits for a visitor.
const POLL: Duration = Duration::from_secs(60);
/// Statuses by which a name that is served is given up.
const REFUSALS: [http::StatusCode; 3] = [
    http::StatusCode::FORBIDDEN,
    http::StatusCode::NOT_FOUND,
    http::StatusCode::GONE,
];
/// Names that are seen to at the same time.
const AT_ONCE: usize = 8;

/// Since when a name is served.
type Served = BTreeMap<String, Timestamp>;

/// What was asked, and which names are served because of the answer.
pub struct Desk {
    served: Ledger<Served>,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    /// Until when a name is refused.
    refused: HashMap<String, Instant>,
    /// When something was asked, within the last hour.
    asked: VecDeque<Instant>,
}

/// A name whose certificate is left to end.
#[derive(Debug, PartialEq, Eq)]
pub struct Lapsed {
    /// Which.
    pub name: Name,
    /// For the log.
    pub why: String,
}

/// Why a name gets no certificate now.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// For the log.
    pub why: String,
    /// How long its visitors are not to wait.
    pub rest: Duration,
}

impl Desk {
    /// The desk whose ledger lies beneath `state`.
    pub fn open(state: &Path) -> Self {
        Self {
            served: Ledger::at(state.join("on-demand.json"), 1),
            recent: Mutex::default(),
        }
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names that are served.
    pub fn names(&self) -> Vec<Name> {
        match self.served.read() {
            Ok(served) => served
                .data
                .keys()
                .filter_map(|name| Name::parse(name).ok())
                .collect(),
            Err(error) => {
                tracing::error!("{}", chain(&error));
                Vec::new()
            }
        }
    }

    /// Whether a question about `name` may be asked now; it is counted then.
    fn may_ask(&self, wanted: &OnDemand, name: &str, now: Instant) -> Result<(), Refused> {
        let refused = |why: &str, rest| {
            let why = why.to_owned();
            Err(Refused { why, rest })
        };
        if self.names().len() >= usize::try_from(wanted.most).unwrap_or(usize::MAX) {
            return refused("acme/on_demand/most names are served already", NO);
        }
        let mut recent = self.recent();
        recent.refused.retain(|_, until| *until > now);
        if let Some(until) = recent.refused.get(name) {
            return refused("it was refused a moment ago", *until - now);
        }
        while recent
            .asked
            .front()
            .is_some_and(|asked| now.duration_since(*asked) >= Duration::from_secs(3600))
        {
            recent.asked.pop_front();
        }
        if recent.asked.len() >= usize::try_from(wanted.per_hour).unwrap_or(usize::MAX) {
            return refused(
                "acme/on_demand/per_hour names were asked about within the hour",
                LATER,
            );
        }
        recent.asked.push_back(now);
        Ok(())
    }

    /// Decides about a name that a visitor came for: nobody else is asked before the questions are within bounds.
    ///
    /// # Errors
    /// Why it is not to have a certificate.
    pub async fn decide(&self, wanted: &OnDemand, name: &Name, now: Instant) -> Result<(), Refused> {
        if self.names().contains(name) {
            return Ok(());
        }
        if name.is_wildcard() || name.address().is_some() {
            return Err(Refused {
                why: "it is no host's name".to_owned(),
                rest: NO,
            });
        }
        self.may_ask(wanted, name.as_str(), now)?;
        match ask(&wanted.ask, name.as_str()).await {
            Ok(status) if status == http::StatusCode::OK => Ok(()),
            Ok(status) => {
                let mut recent = self.recent();
                recent.refused.insert(name.to_string(), now + NO);
                Err(Refused {
                    why: format!("{} answered {status}", wanted.ask),
                    rest: NO,
                })
            }
            Err(error) => Err(Refused {
                why: format!("{} could not be asked: {error:#}", wanted.ask),
                rest: LATER,
            }),
        }
    }

    /// Asks again about names whose certificates are due: those to be renewed, and those that are not wanted any more,
    /// which are forgotten here.
    ///
    /// Only 403, 404 and 410 say no; of whoever cannot be asked, or answers something else (in trouble, being replaced,
    /// moved, in need of a password), the last answer counts.
    pub async fn still_wanted(&self, wanted: &OnDemand, names: Vec<Name>) -> (Vec<Name>, Vec<Lapsed>) {
        let questions = names.into_iter().map(|name| {
            async move {
                let why = match ask(&wanted.ask, name.as_str()).await {
                    Ok(status) if status == http::StatusCode::OK => None,
                    Ok(status) if REFUSALS.contains(&status) => {
                        Some(format!("{} answered {status}", wanted.ask))
                    }
                    Ok(status) => {
                        tracing::warn!(
                            "{} answered {status} about {name}, which is no answer",
                            wanted.ask
                        );
                        None
                    }
                    Err(error) => {
                        tracing::warn!("{} could not be asked about {name}: {error:#}", wanted.ask);
                        None
                    }
                };
                (name, why)
            }
            .boxed()
        });
        let answers: Vec<_> = stream::iter(questions).buffer_unordered(AT_ONCE).collect().await;
        let (mut renewed, mut lapsed) = (Vec::new(), Vec::new());
        for (name, why) in answers {
            let Some(why) = why else {
                renewed.push(name);
                continue;
            };
            match self.forget(&name) {
                Ok(()) => lapsed.push(Lapsed { name, why }),
                // Asked again at the next pass.
                Err(error) => tracing::error!("{name} cannot be forgotten: {}", chain(&error)),
            }
        }
        (renewed, lapsed)
    }

    /// Whether a name that is served is wanted still; whoever cannot be asked says no.
    pub async fn is_wanted(&self, wanted: &OnDemand, name: &Name) -> bool {
        let answer = ask(&wanted.ask, name.as_str()).await;
        answer.is_ok_and(|status| status == http::StatusCode::OK)
    }

    /// Serves a name no longer: its certificate is not renewed, and its next visitor is asked about.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn forget(&self, name: &Name) -> Result<(), appliance_state::LedgerError> {
        self.served
            .update(|served| served.remove(name.as_str()))
            .map(drop)
    }

    /// Writes down that a name is served, so that its certificate is renewed.
    fn keep(&self, name: &Name, now: Timestamp) -> Result<(), appliance_state::LedgerError> {
        self.served
            .update(|served| *served.entry(name.to_string()).or_insert(now))
            .map(drop)
    }
}

/// `GET address?host=name`, whose status is the answer; redirects are not followed.
async fn ask(address: &str, name: &str) -> anyhow::Result<http::StatusCode> {
    let joined = if address.contains('?') { '&' } else { '?' };
    let address: http::Uri = format!("{address}{joined}host={name}").parse()?;
    let request = Client::builder(TokioExecutor::new());
    let answer = if address.scheme_str() == Some("https") {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .try_with_platform_verifier()
            .context("no certificates are trusted on this host")?
            .https_only()
            .enable_http1()
            .build();
        let client: Client<_, Empty<Bytes>> = request.build(connector);
        tokio::time::timeout(PATIENCE, client.get(address)).await
    } else {
        let client: Client<_, Empty<Bytes>> = request.build_http();
        tokio::time::timeout(PATIENCE, client.get(address)).await
    };
    Ok(answer.context("no answer within 5 s")??.status())
}

/// Sees to one name: decides, has the certificate made, and writes the name down.
///
/// # Errors
/// Why visitors get none now.
pub async fn see_to(
    certificates: &Certificates,
    wanted: &OnDemand,
    name: &str,
    now: Instant,
) -> Result<(), Refused> {
    let later = |why| Refused { why, rest: LATER };
    let name = Name::parse(name).map_err(|error| Refused {
        why: error.to_string(),
        rest: NO,
    })?;
    let desk = certificates.desk();
    desk.decide(wanted, &name, now).await?;
    certificates
        .issue(&name)
        .await
        .map_err(|error| later(chain(&error)))?;
    desk.keep(&name, Timestamp::now())
        .map_err(|error| later(chain(&error)))
}

/// Serves the proxy's visitors until `stop`.
pub async fn keep(agent: Arc<Agent>, stop: CancellationToken) {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let wanted = agent.certificates.on_demand();
        let names = tokio::select! {
            () = stop.cancelled() => return,
            wanted = agent.proxy.wanted(POLL), if wanted.is_some() => wanted.map(|wanted| wanted.names),
            // The file is looked at as often as that.
            () = tokio::time::sleep(Duration::from_secs(10)), if wanted.is_none() => continue,
        };
        let (names, wanted) = match (names, wanted) {
            (Ok(names), Some(wanted)) => (names, wanted),
            (Err(error), _) => {
                tracing::debug!("{}", chain(&error));
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_secs(2)) => continue,
                }
            }
            _ => continue,
        };
        for name in names {
            let Ok(turn) = Arc::clone(&at_once).acquire_owned().await else {
                return;
            };
            let (agent, wanted) = (Arc::clone(&agent), wanted.clone());
            tokio::spawn(async move {
                let outcome = see_to(&agent.certificates, &wanted, &name, Instant::now()).await;
                report(&agent, &name, outcome).await;
                drop(turn);
            });
        }
    }
}

/// Records a new name, and tells the proxy of one that is refused.
async fn report(agent: &Agent, name: &str, outcome: Result<(), Refused>) {
    match outcome {
        Ok(()) => {
            tracing::info!("{name} has a certificate, on demand");
            let detail = serde_json::json!({ "name": name, "on_demand": true });
            let recorded = agent
                .gate
                .record("certificate", name, Outcome::Done, detail, Timestamp::now());
            if let Err(error) = recorded {
                tracing::error!("cannot record the certificate: {}", chain(&error));
            }
            agent.certificates.look_again();
        }
        Err(refused) => {
            tracing::info!("{name} gets no certificate: {}", refused.why);
            let unwanted = Unwanted {
                name: name.to_owned(),
                seconds: u32::try_from(refused.rest.as_secs().max(1)).unwrap_or(u32::MAX),
            };
            if let Err(error) = agent.proxy.refuse(&unwanted).await {
                tracing::debug!("{}", chain(&error));
            }
        }
    }
}
