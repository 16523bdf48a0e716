//! The HTTP client: every request has an end, and `Retry-After` is remembered.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::error::AcmeError;
use crate::settings::Settings;

/// Longest time for one request; an authority that is slow must not hold a rollout up for ever.
const REQUEST: Duration = Duration::from_secs(30);

tokio::task_local! {
    /// What the answer to the last request of this piece of work asked for.
    static ASKED: Cell<Option<Timestamp>>;
}

/// Does some work that keeps its own answers' `Retry-After`, for [`asked`]; work at the same time has another.
pub(crate) async fn patiently<T>(work: impl Future<Output = T>) -> T {
    ASKED.scope(Cell::new(None), work).await
}

/// Until when the authority asked to be left alone, in its answer to the last request of this piece of work.
pub(crate) fn asked() -> Option<Timestamp> {
    ASKED.try_with(Cell::get).ok().flatten()
}

fn ask(until: Option<Timestamp>) {
    // Outside of `patiently` nobody wants to know.
    let _unheard = ASKED.try_with(|asked| asked.set(until));
}

/// A client of one authority.
pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
}

impl Http {
    /// A client that trusts what the settings say.
    pub(crate) fn new(settings: &Settings) -> Result<Self, AcmeError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let connector = match &settings.ca_file {
            Some(path) => {
                let unusable =
                    |why: String| AcmeError::Settings(format!("ca_file {}: {why}", path.display()));
                let mut roots = rustls::RootCertStore::empty();
                let read =
                    CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
                for certificate in read {
                    let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
                    roots
                        .add(certificate)
                        .map_err(|error| unusable(error.to_string()))?;
                }
                if roots.is_empty() {
                    return Err(unusable("it holds no certificate".to_owned()));
                }
                let config = rustls::ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .map_err(|error| AcmeError::Settings(error.to_string()))?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                HttpsConnectorBuilder::new().with_tls_config(config)
            }
            None => HttpsConnectorBuilder::new()
                .with_provider_and_platform_verifier(provider)
                .map_err(|error| AcmeError::Settings(format!("the system's trusted roots: {error}")))?,
        };
        let connector = connector.https_only().enable_http1().build();
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(10))
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(connector);
        Ok(Self { client })
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let answer = self.client.request(request);
        Box::pin(async move {
            ask(None);
            let answer = tokio::time::timeout(REQUEST, answer)
                .await
                .map_err(|_| Error::Other(format!("no answer within {} s", REQUEST.as_secs()).into()))?
                .map_err(|error| Error::Other(Box::new(error)))?;
            if matches!(
                answer.status(),
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
            ) && let Some(value) = answer.headers().get(header::RETRY_AFTER)
                && let Some(until) = retry_after(value.as_bytes(), Timestamp::now())
            {
                ask(Some(until));
            }
            Ok(BytesResponse::from(answer))
        })
    }
}

/// `Retry-After` (RFC 9110 §10.2.3): seconds, or a date; at most 30 days are believed.
fn retry_after(value: &[u8], now: Timestamp) -> Option<Timestamp> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let most = now.checked_add(SignedDuration::from_hours(30 * 24)).ok()?;
    let until = match text.parse::<u32>() {
        Ok(seconds) => now
            .checked_add(SignedDuration::from_secs(i64::from(seconds)))
            .ok()?,
        Err(_) => jiff::fmt::rfc2822::parse(text).ok()?.timestamp(),
    };
    Some(until.clamp(now, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_one_order_was_asked_is_no_other_orders_matter() {
        let until: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
        let told = patiently(async {
            ask(Some(until));
            tokio::task::yield_now().await;
            let told = asked();
            ask(None);
            (told, asked())
        });
        let untold = patiently(async {
            tokio::task::yield_now().await;
            asked()
        });
        let ((told, after), untold) = tokio::join!(told, untold);
        assert_eq!((told, untold), (Some(until), None));
        assert_eq!(after, None, "a later answer that asks for nothing counts");
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_bounded() {
        let now: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
        let read = |value: &str| retry_after(value.as_bytes(), now).map(|until| until.to_string());
        assert_eq!(read("90").as_deref(), Some("2026-03-01T00:01:30Z"));
        assert_eq!(
            read("Sun, 01 Mar 2026 02:00:00 GMT").as_deref(),
            Some("2026-03-01T02:00:00Z")
        );
        assert_eq!(read("4294967295").as_deref(), Some("2026-03-31T00:00:00Z"));
        assert_eq!(
            read("Sun, 01 Mar 2020 02:00:00 GMT").as_deref(),
            Some("2026-03-01T00:00:00Z")
        );
        assert_eq!(read("soon"), None);
    }
}
