//! The client of the control socket, for the agent and the command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{
    Applied, Batch, CertificatePem, Drain, Drained, Probe, Probed, Refusal, ServiceStats, ServiceStatus,
    Status,
};
use crate::challenges::Challenge;
use crate::names::{CertificateName, ServiceName, UpstreamAddress};
use crate::on_demand::{Unwanted, Wanted};
use crate::snapshot::{Gate, HealthCheck, Service, Settings, Snapshot};

/// Asking the proxy failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens on the socket, or we may not open it.
    #[error("cannot reach the proxy at {}", socket.display())]
    Connect {
        /// The socket's path.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke before the answer was complete; the step may be repeated.
    #[error("the proxy at {} did not complete its answer to {what}", socket.display())]
    Exchange {
        /// The socket's path.
        socket: PathBuf,
        /// Method and path.
        what: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// No answer in time; the step may be repeated.
    #[error("the proxy did not answer {what} within {} s", after.as_secs())]
    Timeout {
        /// Method and path.
        what: String,
        /// How long we waited.
        after: Duration,
    },
    /// The proxy refused; nothing was changed.
    #[error("the proxy refused {what}: {}", refusal.message)]
    Refused {
        /// Method and path.
        what: String,
        /// Why.
        refusal: Refusal,
    },
    /// The answer is not what this version understands.
    #[error("the proxy's answer to {what} is not understood (status {status})")]
    Answer {
        /// Method and path.
        what: String,
        /// HTTP status.
        status: u16,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Talks to one proxy; every call opens its own connection, so a restarted proxy needs nothing.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// How long steps that wait for nothing may take.
const PROMPT: Duration = Duration::from_secs(30);

/// What a step that waits may take on top of its own timeout.
const SLACK: Duration = Duration::from_secs(10);

impl Client {
    /// A client of the control socket at this path.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until all upstreams answer their health check, or the time is over; look at [`Probed::all_healthy`].
    ///
    /// # Errors
    /// When the proxy cannot be asked; unhealthy upstreams are no error here.
    pub async fn probe(
        &self,
        upstreams: &[UpstreamAddress],
        health_check: &HealthCheck,
        timeout: Duration,
    ) -> Result<Probed, ControlError> {
        let body = Probe {
            upstreams: upstreams.to_vec(),
            health_check: health_check.clone(),
            timeout,
        };
        self.call(Method::POST, "/v1/probe", Some(&body), timeout + SLACK)
            .await
    }

    /// Makes `service` live in one step, in place of a former one of that name.
    ///
    /// # Errors
    /// A refusal names the conflict or the bad certificate; the live service was not touched then.
    pub async fn put_service(&self, service: &Service) -> Result<Applied, ControlError> {
        let path = format!("/v1/services/{}", service.name);
        self.call(Method::PUT, &path, Some(service), PROMPT).await
    }

    /// Makes several services live and takes others away, all in one step.
    ///
    /// # Errors
    /// A refusal names what is wrong with one of them; nothing was changed then.
    pub async fn put_services(&self, batch: &Batch) -> Result<Applied, ControlError> {
        self.call(Method::PUT, "/v1/services", Some(batch), PROMPT).await
    }

    /// Takes a service away; its upstreams finish what they have. Fine when it is not there.
    ///
    /// # Errors
    /// When the proxy cannot be asked or cannot write it down.
    pub async fn remove_service(&self, name: &ServiceName) -> Result<Applied, ControlError> {
        self.call::<(), _>(Method::DELETE, &format!("/v1/services/{name}"), None, PROMPT)
            .await
    }

    /// Waits until `upstream` has nothing in flight for this service, and cuts off the rest at the timeout.
    ///
    /// An upstream that the proxy does not know has nothing in flight.
    ///
    /// # Errors
    /// Refused while the upstream is in use.
    pub async fn drain(
        &self,
        service: &ServiceName,
        upstream: &UpstreamAddress,
        timeout: Duration,
    ) -> Result<Drained, ControlError> {
        let body = Drain {
            upstream: upstream.clone(),
            timeout,
        };
        let path = format!("/v1/services/{service}/drain");
        self.call(Method::POST, &path, Some(&body), timeout + SLACK).await
    }

    /// Lets requests wait, each at most `max_wait`, then 504.
    ///
    /// # Errors
    /// When there is no such service.
    pub async fn pause(&self, service: &ServiceName, max_wait: Duration) -> Result<Applied, ControlError> {
        self.gate(service, &Gate::Paused { max_wait }).await
    }

    /// Answers requests with 503 and `message`.
    ///
    /// # Errors
    /// When there is no such service.
    pub async fn stop(&self, service: &ServiceName, message: &str) -> Result<Applied, ControlError> {
        let message = message.to_owned();
        self.gate(service, &Gate::Stopped { message }).await
    }

    /// Lets requests through again.
    ///
    /// # Errors
    /// When there is no such service.
    pub async fn resume(&self, service: &ServiceName) -> Result<Applied, ControlError> {
        self.gate(service, &Gate::Open).await
    }

    async fn gate(&self, service: &ServiceName, gate: &Gate) -> Result<Applied, ControlError> {
        let path = format!("/v1/services/{service}/gate");
        self.call(Method::POST, &path, Some(gate), PROMPT).await
    }

    /// Every service with its upstreams' states.
    ///
    /// # Errors
    /// When the proxy cannot be asked.
    pub async fn list(&self) -> Result<Vec<ServiceStatus>, ControlError> {
        self.call::<(), _>(Method::GET, "/v1/services", None, PROMPT)
            .await
    }

    /// Counts of one service.
    ///
    /// # Errors
    /// When there is no such service.
    pub async fn stats(&self, service: &ServiceName) -> Result<ServiceStats, ControlError> {
        self.call::<(), _>(
            Method::GET,
            &format!("/v1/services/{service}/stats"),
            None,
            PROMPT,
        )
        .await
    }

    /// Stores a certificate; services that name it show it from their next handshake on.
    ///
    /// # Errors
    /// Refused when the PEM does not parse or the key does not fit the leaf.
    pub async fn put_certificate(
        &self,
        name: &CertificateName,
        pem: &CertificatePem,
    ) -> Result<Applied, ControlError> {
        self.call(
            Method::PUT,
            &format!("/v1/certificates/{name}"),
            Some(pem),
            PROMPT,
        )
        .await
    }

    /// Forgets a certificate. Fine when it is not there.
    ///
    /// # Errors
    /// Refused while a service names it.
    pub async fn remove_certificate(&self, name: &CertificateName) -> Result<Applied, ControlError> {
        self.call::<(), _>(Method::DELETE, &format!("/v1/certificates/{name}"), None, PROMPT)
            .await
    }

    /// Replaces the settings that concern every service.
    ///
    /// # Errors
    /// Refused when a value is out of its range.
    pub async fn put_settings(&self, settings: &Settings) -> Result<Applied, ControlError> {
        self.call(Method::PUT, "/v1/settings", Some(settings), PROMPT)
            .await
    }

    /// Gives an answer to a certificate authority, for at most an hour.
    ///
    /// # Errors
    /// Refused when it is no answer that can be given.
    pub async fn put_challenge(&self, challenge: &Challenge) -> Result<(), ControlError> {
        self.call(Method::PUT, "/v1/challenge", Some(challenge), PROMPT)
            .await
    }

    /// Withdraws an answer. Fine when it is not given.
    ///
    /// # Errors
    /// When the proxy cannot be asked.
    pub async fn remove_challenge(&self, challenge: &Challenge) -> Result<(), ControlError> {
        self.call(Method::DELETE, "/v1/challenge", Some(challenge), PROMPT)
            .await
    }

    /// Names that visitors came for since the last call and that have no certificate; waits up to `most` for the first.
    ///
    /// # Errors
    /// When the proxy cannot be asked.
    pub async fn wanted(&self, most: Duration) -> Result<Wanted, ControlError> {
        let path = format!("/v1/wanted/{}", most.as_secs());
        self.call::<(), _>(Method::GET, &path, None, most + SLACK).await
    }

    /// Lets the handshakes for a name fail at once for a while.
    ///
    /// # Errors
    /// When the proxy cannot be asked.
    pub async fn refuse(&self, unwanted: &Unwanted) -> Result<(), ControlError> {
        self.call(Method::PUT, "/v1/unwanted", Some(unwanted), PROMPT)
            .await
    }

    /// The process itself.
    ///
    /// # Errors
    /// When the proxy cannot be asked.
    pub async fn status(&self) -> Result<Status, ControlError> {
        self.call::<(), _>(Method::GET, "/v1/status", None, PROMPT).await
    }

    /// The live snapshot.
    ///
    /// # Errors
    /// When the proxy cannot be asked.
    pub async fn snapshot(&self) -> Result<Snapshot, ControlError> {
        self.call::<(), _>(Method::GET, "/v1/snapshot", None, PROMPT)
            .await
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        limit: Duration,
    ) -> Result<T, ControlError> {
        let what = format!("{method} {path}");
        let tries = async {
            let mut tries = 0;
            loop {
                let outcome = self.exchange(method.clone(), path, body, &what).await;
                // The proxy is being replaced by a newer one; every step may be repeated.
                let passing = matches!(
                    outcome,
                    Err(ControlError::Exchange { .. } | ControlError::Connect { .. })
                );
                if !passing || tries == 3 {
                    return outcome;
                }
                tries += 1;
                tokio::time::sleep(Duration::from_millis(100) * tries).await;
            }
        };
        match tokio::time::timeout(limit, tries).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ControlError::Timeout { what, after: limit }),
        }
    }

    async fn exchange<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        what: &str,
    ) -> Result<T, ControlError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ControlError::Connect {
                socket: self.socket.clone(),
                source,
            })?;
        let broken = |source| ControlError::Exchange {
            socket: self.socket.clone(),
            what: what.to_owned(),
            source,
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).expect("our own types turn into JSON"),
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "proxy")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .expect("paths are built from checked names");
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, body))
        };
        // The connection is driven beside the exchange, so that nothing outlives this call.
        tokio::pin!(connection);
        tokio::pin!(exchange);
        let mut open = true;
        let (status, body) = loop {
            tokio::select! {
                biased;
                outcome = &mut exchange => break outcome.map_err(broken)?,
                _ = &mut connection, if open => open = false,
            }
        };
        let unclear = |source| ControlError::Answer {
            what: what.to_owned(),
            status: status.as_u16(),
            source,
        };
        if status == StatusCode::OK {
            serde_json::from_slice(&body).map_err(unclear)
        } else {
            Err(ControlError::Refused {
                what: what.to_owned(),
                refusal: serde_json::from_slice(&body).map_err(unclear)?,
            })
        }
    }
}
