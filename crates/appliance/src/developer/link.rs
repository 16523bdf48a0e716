//! A connection to one agent: over SSH from elsewhere, over its socket on the host itself.

use std::path::Path;

use anyhow::Context as _;
use appliance_push::change::Envelope;
use appliance_push::ssh::Target;
use appliance_push::transport::{Body, Client, Transport, TransportError};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::failure::{Kind, failure};
use crate::wire::{End, Event};

/// Error answers are short.
const ERROR_LIMIT: usize = 64 << 10;

/// One connection to an agent, and the way to make another.
#[derive(Clone)]
pub struct Link {
    transport: Transport,
    client: Client,
}

impl Link {
    /// Over the agent's own socket, on the host.
    ///
    /// # Errors
    /// When nobody listens there, or we may not open it.
    pub async fn local(socket: &Path) -> anyhow::Result<Self> {
        Self::open(
            Transport::Local(socket.to_owned()),
            "systemctl status appliance-agent",
        )
        .await
    }

    /// Over SSH, through `appliance receive`.
    ///
    /// # Errors
    /// When the host cannot be reached or entered, or is not an appliance.
    pub async fn ssh(target: Target) -> anyhow::Result<Self> {
        let hint = format!("ssh {} shows whether the way is open", target.name());
        Self::open(Transport::Ssh(Box::new(target)), &hint).await
    }

    async fn open(transport: Transport, hint: &str) -> anyhow::Result<Self> {
        match transport.client().await {
            Ok(client) => Ok(Self { transport, client }),
            Err(error) => Err(broken(&error).hint(hint).into()),
        }
    }

    /// `user@host:port`, or the socket.
    pub fn name(&self) -> String {
        self.transport.name()
    }

    /// Whether this is the agent of the machine we run on.
    pub fn is_local(&self) -> bool {
        matches!(self.transport, Transport::Local(_))
    }

    /// A new connection to the same agent.
    ///
    /// # Errors
    /// When the host cannot be reached or entered.
    pub async fn again(&self) -> anyhow::Result<Self> {
        Self::open(self.transport.clone(), "the connection that is open still works").await
    }

    /// A new connection to the same agent, by another port of sshd; none on the host itself.
    ///
    /// # Errors
    /// When the host cannot be reached or entered there.
    pub async fn again_at(&self, port: u16) -> anyhow::Result<Option<Self>> {
        let Transport::Ssh(target) = &self.transport else {
            return Ok(None);
        };
        let mut target = target.as_ref().clone();
        target.port = Some(port);
        let transport = Transport::Ssh(Box::new(target));
        Self::open(transport, "the connection that is open still works")
            .await
            .map(Some)
    }

    /// The host's address as this machine resolves it; `None` on the host itself.
    pub async fn address(&self) -> Option<std::net::IpAddr> {
        self.addresses().await.first().copied()
    }

    /// All of the host's addresses as this machine resolves them, the preferred one first; none on the host itself.
    pub async fn addresses(&self) -> Vec<std::net::IpAddr> {
        let Transport::Ssh(target) = &self.transport else {
            return Vec::new();
        };
        match tokio::net::lookup_host((target.host.as_str(), 22)).await {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// The way to the agent, for uploads that connect again when a link is cut.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The HTTP/2 connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a request and returns the answer whatever its status.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn send(&self, request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        Ok(self.client.send(request).await.map_err(|error| broken(&error))?)
    }

    /// `GET path` as JSON.
    ///
    /// # Errors
    /// When the connection breaks, the agent refuses, or answers something else.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let bytes = self.get_bytes(path).await?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{} answers GET {path} in a way we do not understand", self.name()))
    }

    /// `GET path` as it is.
    ///
    /// # Errors
    /// When the connection breaks or the agent refuses.
    pub async fn get_bytes(&self, path: &str) -> anyhow::Result<Bytes> {
        let answer = self.send(request(Method::GET, path, Bytes::new())).await?;
        self.whole(path, answer).await
    }

    /// The answer itself if it is a success; its body is not read then.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn checked(
        &self,
        path: &str,
        answer: Response<Incoming>,
    ) -> anyhow::Result<Response<Incoming>> {
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        Err(self.problem(path, status, &bytes))
    }

    /// `GET path`, with a body that goes on.
    ///
    /// # Errors
    /// When the connection breaks or the agent refuses.
    pub async fn open_stream(&self, path: &str) -> anyhow::Result<Incoming> {
        let answer = self.send(request(Method::GET, path, Bytes::new())).await?;
        Ok(self.checked(path, answer).await?.into_body())
    }

    async fn whole(&self, path: &str, answer: Response<Incoming>) -> anyhow::Result<Bytes> {
        let status = answer.status();
        let body = answer
            .into_body()
            .collect()
            .await
            .with_context(|| format!("{}: {path}", self.name()))?;
        let bytes = body.to_bytes();
        if status.is_success() {
            return Ok(bytes);
        }
        Err(self.problem(path, status, &bytes))
    }

    fn problem(&self, path: &str, status: StatusCode, bytes: &[u8]) -> anyhow::Error {
        #[derive(serde::Deserialize)]
        struct Problem {
            message: String,
        }
        let message = serde_json::from_slice::<Problem>(&bytes[..bytes.len().min(ERROR_LIMIT)]).map_or_else(
            |_| format!("{path} was answered with {status}"),
            |problem| problem.message,
        );
        let kind = if status == StatusCode::FORBIDDEN {
            Kind::Refused
        } else {
            Kind::Other
        };
        failure(kind, format!("{}: {message}", self.name())).into()
    }

    /// Submits a signed change and returns how it ended; `show` gets everything before that.
    ///
    /// # Errors
    /// When the connection breaks before the end is known.
    pub async fn submit(&self, envelope: &Envelope, mut show: impl FnMut(Event)) -> anyhow::Result<End> {
        let body = serde_json::to_vec(envelope)?;
        let answer = self
            .send(request(Method::POST, "/v1/changes", body.into()))
            .await?;
        if !answer.status().is_success() {
            let status = answer.status();
            let bytes = answer.into_body().collect().await?.to_bytes();
            return Err(self.problem("/v1/changes", status, &bytes));
        }
        let mut body = answer.into_body();
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => {
                    return Err(failure(
                        Kind::Unreachable,
                        format!(
                            "the connection to {} broke: {}; the host goes on without us",
                            self.name(),
                            crate::agent::chain(&error)
                        ),
                    )
                    .hint("appliance status")
                    .into());
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1);
                match serde_json::from_slice(&line)
                    .with_context(|| format!("{}: an event we do not understand", self.name()))?
                {
                    Event::End(end) => return Ok(end),
                    event => show(event),
                }
            }
        }
        Err(failure(
            Kind::Unreachable,
            format!(
                "{} ended the answer before the result; the host goes on without us",
                self.name()
            ),
        )
        .hint("appliance status")
        .into())
    }
}

fn request(method: Method, path: &str, body: Bytes) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body).map_err(|never| match never {}).boxed())
        .expect("our own paths are good URIs")
}

fn broken(error: &TransportError) -> crate::failure::Failure {
    failure(Kind::Unreachable, crate::agent::chain(error))
}
