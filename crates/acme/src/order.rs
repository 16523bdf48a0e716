//! One order: from the request for a name to its certificate, in two halves.
//!
//! ```text
//! prove:  new order ─► authorization ─► answer shown ─► polled ─► ready
//!                                           └─ withdrawn in every case ┘
//!         the order's URL and the new key are written down
//! finish: order read ─► ready: CSR ─► processing: polled ─► valid: certificate
//! ```
//!
//! Whoever dies, or loses the line, in the second half comes back to it with what was written down, since the
//! authority gives only so many certificates of one name.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, Identifier, KeyAuthorization,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use jiff::Timestamp;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::dns;
use crate::error::AcmeError;
use crate::front::{Answer, Front};
use crate::http;
use crate::name::Name;
use crate::schedule::Validity;
use crate::settings::{Challenge, Settings};
use crate::store::Pending;

/// How often a step is begun anew because the authority rejected valid nonces (RFC 8555 §6.5).
pub(crate) const NONCE_ATTEMPTS: u32 = 6;

/// A fresh certificate.
pub(crate) struct Issued {
    pub(crate) chain: String,
    pub(crate) key: String,
    pub(crate) validity: Validity,
}

/// Why there is no certificate of an order that was proved.
pub(crate) struct Unfinished {
    pub(crate) error: AcmeError,
    /// Whether coming back to this order is of no use.
    pub(crate) is_over: bool,
}

impl Unfinished {
    fn over(error: AcmeError) -> Self {
        Self { error, is_over: true }
    }
}

/// One order's surroundings.
pub(crate) struct Ordering<'a> {
    pub(crate) account: &'a Account,
    pub(crate) settings: &'a Settings,
    pub(crate) front: &'a dyn Front,
    pub(crate) name: &'a Name,
    /// The chain that is replaced, so that the authority counts it as a renewal (RFC 9773 §5).
    pub(crate) replaces: Option<&'a str>,
}

/// An answer that is shown.
#[derive(Clone)]
enum Shown {
    Front(Answer),
    Dns(String),
}

impl Ordering<'_> {
    /// Begins an order and proves the name by each kind of proof that may do, until one does.
    pub(crate) async fn prove(&self) -> Result<Order, AcmeError> {
        let mut failure = AcmeError::NoProof(self.name.clone());
        for challenge in self.settings.challenges(self.name) {
            match self.by(challenge).await {
                Ok(order) => return Ok(order),
                Err(error) if error.is_unproved() => {
                    tracing::warn!("{error}");
                    // The first reason is the one to be told: the fall-back's is often "nobody listens".
                    if matches!(failure, AcmeError::NoProof(_)) {
                        failure = error;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure)
    }

    async fn by(&self, challenge: Challenge) -> Result<Order, AcmeError> {
        let mut attempt = 1;
        loop {
            match self.once(challenge).await {
                Err(error) if error.problem() == Some("badNonce") && attempt < NONCE_ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    async fn once(&self, challenge: Challenge) -> Result<Order, AcmeError> {
        let mut order = self.begin().await?;
        let mut shown = Vec::new();
        let proved = self.prove_by(&mut order, challenge, &mut shown).await;
        for answer in shown {
            self.withdraw(answer).await;
        }
        proved.map(|()| order)
    }

    /// A new key for the order, to be written down before [`Ordering::finish`].
    pub(crate) fn pending(&self, order: &Order) -> Result<Pending, AcmeError> {
        let key = KeyPair::generate().map_err(|source| self.request(source))?;
        Ok(Pending {
            directory: self.settings.directory.clone(),
            order: order.url().to_owned(),
            key: key.serialize_pem(),
            attempts: 0,
        })
    }

    /// Fetches the certificate of an order that was proved, now or by a process before this one.
    pub(crate) async fn finish(
        &self,
        pending: &Pending,
        mut proved: Option<Order>,
    ) -> Result<Issued, Unfinished> {
        let mut attempt = 1;
        loop {
            match self.finish_once(pending, proved.take()).await {
                Err(unfinished)
                    if unfinished.error.problem() == Some("badNonce") && attempt < NONCE_ATTEMPTS =>
                {
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn finish_once(&self, pending: &Pending, proved: Option<Order>) -> Result<Issued, Unfinished> {
        let asked = |doing| move |error: Error| self.unfinished(doing, error);
        let mut order = match proved {
            Some(order) => order,
            None => self
                .account
                .order(pending.order.clone())
                .await
                .map_err(asked("read the order"))?,
        };
        match order.state().status {
            OrderStatus::Ready => {
                let request = self.signing_request(&pending.key).map_err(Unfinished::over)?;
                order
                    .finalize_csr(&request)
                    .await
                    .map_err(asked("finalize the order"))?;
            }
            OrderStatus::Processing | OrderStatus::Valid => {}
            OrderStatus::Pending | OrderStatus::Invalid => {
                let status = order.state().status;
                return Err(Unfinished::over(AcmeError::Certificate {
                    name: self.name.clone(),
                    why: format!("the order is {status:?}"),
                }));
            }
        }
        let chain = order
            .poll_certificate(&RetryPolicy::new().timeout(Duration::from_secs(90)))
            .await
            .map_err(asked("fetch the certificate"))?;
        let validity = validity(&chain).map_err(|why| {
            Unfinished::over(AcmeError::Certificate {
                name: self.name.clone(),
                why,
            })
        })?;
        Ok(Issued {
            chain,
            key: pending.key.clone(),
            validity,
        })
    }

    /// The signing request (PKCS#10, DER) for the name and this key, PEM.
    fn signing_request(&self, key: &str) -> Result<Vec<u8>, AcmeError> {
        let key = KeyPair::from_pem(key).map_err(|source| self.request(source))?;
        let mut params = CertificateParams::new(vec![self.name.as_str().to_owned()])
            .map_err(|source| self.request(source))?;
        // The subject alternative name says it all (RFC 8555 §7.4); common names are limited to 64 characters.
        params.distinguished_name = DistinguishedName::new();
        let request = params
            .serialize_request(&key)
            .map_err(|source| self.request(source))?;
        Ok(request.der().to_vec())
    }

    fn unfinished(&self, doing: &'static str, error: Error) -> Unfinished {
        // Words of the authority about this order are the end of it; a lost line or a busy authority is not.
        let is_final = match &error {
            Error::Api(problem) => {
                let kind = problem.r#type.as_deref().and_then(|kind| kind.rsplit(':').next());
                !matches!(kind, Some("badNonce" | "rateLimited" | "serverInternal"))
                    && problem.status.is_none_or(|status| status < 500)
            }
            Error::Str(_) => true,
            _ => false,
        };
        let error = self.authority(doing, error);
        let is_over = is_final && error.wait_until().is_none();
        Unfinished { error, is_over }
    }

    async fn begin(&self) -> Result<Order, AcmeError> {
        let identifiers = [match self.name.address() {
            Some(address) => Identifier::Ip(address),
            None => Identifier::Dns(self.name.as_str().to_owned()),
        }];
        let plain = || {
            let order = NewOrder::new(&identifiers);
            match &self.settings.profile {
                Some(profile) => order.profile(profile),
                None => order,
            }
        };
        if let Some(replaces) = self.replaces.and_then(identifier) {
            // An authority without ARI, or one that has seen a replacement already: an ordinary order does as well.
            match self.account.new_order(&plain().replaces(replaces)).await {
                Ok(order) => return Ok(order),
                Err(error) if !refuses_replacement(&error) => {
                    return Err(self.authority("order a certificate", error));
                }
                Err(error) => tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "ordered without `replaces`"
                ),
            }
        }
        self.account
            .new_order(&plain())
            .await
            .map_err(|error| self.authority("order a certificate", error))
    }

    /// Shows an answer for each open authorization and waits until the authority has looked.
    async fn prove_by(
        &self,
        order: &mut Order,
        challenge: Challenge,
        shown: &mut Vec<Shown>,
    ) -> Result<(), AcmeError> {
        let kind = match challenge {
            Challenge::Http01 | Challenge::Auto => ChallengeType::Http01,
            Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
            Challenge::Dns01 => ChallengeType::Dns01,
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization =
                authorization.map_err(|error| self.authority("read the authorization", error))?;
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                other => return Err(self.unproved(challenge, format!("the authorization is {other:?}"))),
            }
            let Some(mut handle) = authorization.challenge(kind.clone()) else {
                return Err(self.unproved(challenge, "the authority does not offer it".to_owned()));
            };
            let answer = self.answer(challenge, &handle.token, &handle.key_authorization())?;
            // Withdrawn even if it fails: a command that was too slow may have set its record all the same.
            shown.push(answer.clone());
            match &answer {
                Shown::Front(answer) => {
                    self.front
                        .present(answer)
                        .await
                        .map_err(|source| AcmeError::Answer {
                            name: self.name.clone(),
                            source,
                        })?;
                }
                Shown::Dns(value) => {
                    if let Some(command) = &self.settings.dns {
                        dns::run(command, "present", self.name, value).await?;
                    }
                }
            }
            handle
                .set_ready()
                .await
                .map_err(|error| self.authority("start the verification", error))?;
        }
        let patient = RetryPolicy::new().timeout(Duration::from_secs(90));
        let status = match order.poll_ready(&patient).await {
            Ok(status) => status,
            // The order's own error is about its authorizations, which say it better.
            Err(Error::Api(problem)) if !is_nonce(&problem) => {
                let why = self.reason(order).await;
                return Err(self.unproved(challenge, why.unwrap_or_else(|| problem.to_string())));
            }
            Err(error) => return Err(self.authority("wait for the verification", error)),
        };
        if status == OrderStatus::Ready {
            return Ok(());
        }
        let why = self.reason(order).await;
        Err(self.unproved(
            challenge,
            why.unwrap_or_else(|| format!("the order is {status:?}")),
        ))
    }

    /// The authority's words about the challenge that failed.
    async fn reason(&self, order: &mut Order) -> Option<String> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.ok()?;
            let state = authorization.refresh().await.ok()?;
            let problem = state
                .challenges
                .iter()
                .find_map(|challenge| challenge.error.as_ref());
            if let Some(problem) = problem {
                return problem.detail.clone().or_else(|| problem.r#type.clone());
            }
        }
        None
    }

    fn answer(
        &self,
        challenge: Challenge,
        token: &str,
        authorization: &KeyAuthorization,
    ) -> Result<Shown, AcmeError> {
        Ok(match challenge {
            Challenge::Http01 | Challenge::Auto => Shown::Front(Answer::Http {
                token: token.to_owned(),
                authorization: authorization.as_str().to_owned(),
            }),
            Challenge::Dns01 => Shown::Dns(authorization.dns_value()),
            Challenge::TlsAlpn01 => {
                let mut params = CertificateParams::new(vec![self.name.as_str().to_owned()])
                    .map_err(|source| self.request(source))?;
                params.custom_extensions = vec![CustomExtension::new_acme_identifier(
                    authorization.digest().as_ref(),
                )];
                let key = KeyPair::generate().map_err(|source| self.request(source))?;
                let certificate = params.self_signed(&key).map_err(|source| self.request(source))?;
                Shown::Front(Answer::TlsAlpn {
                    name: self.name.clone(),
                    chain: certificate.pem(),
                    key: key.serialize_pem(),
                })
            }
        })
    }

    async fn withdraw(&self, shown: Shown) {
        let outcome = match &shown {
            Shown::Front(answer) => self
                .front
                .withdraw(answer)
                .await
                .map_err(|error| error.to_string()),
            Shown::Dns(value) => match &self.settings.dns {
                Some(command) => dns::run(command, "cleanup", self.name, value)
                    .await
                    .map_err(|error| error.to_string()),
                None => Ok(()),
            },
        };
        if let Err(why) = outcome {
            tracing::warn!("the answer for {} could not be withdrawn: {why}", self.name);
        }
    }

    fn request(&self, source: rcgen::Error) -> AcmeError {
        AcmeError::Request {
            name: self.name.clone(),
            source,
        }
    }

    fn unproved(&self, challenge: Challenge, why: String) -> AcmeError {
        AcmeError::Unproved {
            name: self.name.clone(),
            challenge: match challenge {
                Challenge::Http01 | Challenge::Auto => "http-01",
                Challenge::TlsAlpn01 => "tls-alpn-01",
                Challenge::Dns01 => "dns-01",
            },
            why,
        }
    }

    fn authority(&self, doing: &'static str, error: Error) -> AcmeError {
        if let Some(until) = http::asked() {
            return AcmeError::RateLimited {
                name: self.name.clone(),
                until,
                why: error.to_string(),
            };
        }
        let error = AcmeError::Authority {
            directory: self.settings.directory.clone(),
            doing,
            source: Box::new(error),
        };
        // Some authorities name no time; an hour is what Let's Encrypt's shortest limit needs.
        if error.problem() == Some("rateLimited") {
            return AcmeError::RateLimited {
                name: self.name.clone(),
                until: Timestamp::now() + jiff::SignedDuration::from_hours(1),
                why: error.to_string(),
            };
        }
        error
    }
}

fn is_nonce(problem: &instant_acme::Problem) -> bool {
    is_kind(problem, ":badNonce")
}

/// Whether an ordinary order may fare better than one that says what it replaces.
fn refuses_replacement(error: &Error) -> bool {
    match error {
        Error::Unsupported(_) => true,
        Error::Api(problem) => {
            let busy = is_kind(problem, ":rateLimited") || problem.status.is_some_and(|status| status >= 500);
            !busy && !is_nonce(problem)
        }
        // One that took the order without a word about it.
        other => other.to_string().contains("replaces field mismatch"),
    }
}

fn is_kind(problem: &instant_acme::Problem, kind: &str) -> bool {
    problem
        .r#type
        .as_deref()
        .is_some_and(|found| found.ends_with(kind))
}

/// The leaf of a chain, DER.
pub(crate) fn leaf(chain: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(chain.as_bytes()).next()?.ok()
}

/// How the authority calls a certificate (RFC 9773 §4.1).
pub(crate) fn identifier(chain: &str) -> Option<CertificateIdentifier<'static>> {
    let leaf = leaf(chain)?;
    CertificateIdentifier::try_from(&leaf)
        .ok()
        .map(CertificateIdentifier::into_owned)
}

/// When the leaf of a chain is valid.
pub(crate) fn validity(chain: &str) -> Result<Validity, String> {
    let leaf = leaf(chain).ok_or("it is not PEM")?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).map_err(|error| error.to_string())?;
    let instant = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|error| error.to_string())
    };
    Ok(Validity {
        not_before: instant(parsed.validity().not_before)?,
        not_after: instant(parsed.validity().not_after)?,
    })
}
