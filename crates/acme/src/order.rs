//! One order: from the request for a name to its certificate.
//!
//! ```text
//! new order ─► authorization ─► answer shown ─► "ready" ─► polled ─► CSR ─► certificate
//!                                   └────────── withdrawn in every case ─┘
//! ```

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

/// How often an order is begun anew because the authority rejected valid nonces (RFC 8555 §6.5).
const NONCE_ATTEMPTS: u32 = 6;

/// A fresh certificate.
pub(crate) struct Issued {
    pub(crate) chain: String,
    pub(crate) key: String,
    pub(crate) validity: Validity,
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
enum Shown {
    Front(Answer),
    Dns(String),
}

impl Ordering<'_> {
    /// Orders by each kind of proof that may do, until one does.
    pub(crate) async fn issue(&self) -> Result<Issued, AcmeError> {
        let mut failure = AcmeError::NoProof(self.name.clone());
        for challenge in self.settings.challenges(self.name) {
            match self.by(challenge).await {
                Ok(issued) => return Ok(issued),
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

    async fn by(&self, challenge: Challenge) -> Result<Issued, AcmeError> {
        let mut attempt = 1;
        loop {
            match self.once(challenge).await {
                Err(error) if error.problem() == Some("badNonce") && attempt < NONCE_ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    async fn once(&self, challenge: Challenge) -> Result<Issued, AcmeError> {
        let mut order = self.begin().await?;
        let mut shown = Vec::new();
        let proved = self.prove(&mut order, challenge, &mut shown).await;
        for answer in shown {
            self.withdraw(answer).await;
        }
        proved?;
        let key = KeyPair::generate().map_err(|source| self.request(source))?;
        let mut params = CertificateParams::new(vec![self.name.as_str().to_owned()])
            .map_err(|source| self.request(source))?;
        // The subject alternative name says it all (RFC 8555 §7.4); common names are limited to 64 characters.
        params.distinguished_name = DistinguishedName::new();
        let request = params
            .serialize_request(&key)
            .map_err(|source| self.request(source))?;
        order
            .finalize_csr(request.der())
            .await
            .map_err(|error| self.authority("finalize the order", error))?;
        let chain = order
            .poll_certificate(&RetryPolicy::new().timeout(Duration::from_secs(90)))
            .await
            .map_err(|error| self.authority("fetch the certificate", error))?;
        let validity = validity(&chain).map_err(|why| AcmeError::Certificate {
            name: self.name.clone(),
            why,
        })?;
        Ok(Issued {
            chain,
            key: key.serialize_pem(),
            validity,
        })
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
    async fn prove(
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
            shown.push(answer);
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
    problem
        .r#type
        .as_deref()
        .is_some_and(|kind| kind.ends_with(":badNonce"))
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
