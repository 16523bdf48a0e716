//! One HTTP/1.1 request over a connection of its own, and the connection itself for more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper::header::HeaderMap;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// How long a connection or an answer may take.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Target {
    /// The address to connect to.
    pub address: SocketAddr,
    /// What `Host` and SNI say.
    pub host: String,
    /// The path with its query.
    pub path: String,
    tls: Option<Arc<ClientConfig>>,
}

impl Target {
    /// A plain one.
    #[must_use]
    pub fn http(address: SocketAddr, host: &str, path: &str) -> Self {
        Self {
            address,
            host: host.to_owned(),
            path: path.to_owned(),
            tls: None,
        }
    }

    /// One over TLS that trusts the given CA certificates (PEM) and nothing else.
    ///
    /// # Errors
    /// If there is no certificate in `ca`.
    pub fn https(address: SocketAddr, host: &str, path: &str, ca: &[u8]) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca) {
            roots.add(certificate.context("this is no CA certificate")?)?;
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: Some(Arc::new(config)),
            ..Self::http(address, host, path)
        })
    }

    /// The same with another path.
    #[must_use]
    pub fn at(&self, path: &str) -> Self {
        Self {
            path: path.to_owned(),
            ..self.clone()
        }
    }

    /// Connects; the connection is driven by a task until it closes.
    ///
    /// # Errors
    /// If TCP, TLS or the handshake fails within [`LIMIT`].
    pub async fn connect(&self) -> anyhow::Result<http1::SendRequest<Empty<Bytes>>> {
        tokio::time::timeout(LIMIT, async {
            let stream = TcpStream::connect(self.address).await.context("cannot connect")?;
            stream.set_nodelay(true)?;
            match &self.tls {
                None => handshake(stream).await,
                Some(config) => {
                    let name = ServerName::try_from(self.host.clone())?;
                    let tls = TlsConnector::from(Arc::clone(config))
                        .connect(name, stream)
                        .await
                        .context("TLS failed")?;
                    handshake(tls).await
                }
            }
        })
        .await
        .context("connecting took too long")?
    }

    /// The request.
    ///
    /// # Errors
    /// If the host or path has characters that HTTP does not allow.
    pub fn request(&self) -> anyhow::Result<hyper::Request<Empty<Bytes>>> {
        Ok(hyper::Request::get(&self.path)
            .header("host", &self.host)
            .body(Empty::new())?)
    }

    /// One request over a new connection.
    ///
    /// # Errors
    /// If no whole answer came; any status is an answer.
    pub async fn get(&self) -> anyhow::Result<Answer> {
        let mut connection = self.connect().await?;
        send(&mut connection, self).await
    }
}

async fn handshake<S>(stream: S) -> anyhow::Result<http1::SendRequest<Empty<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the connection; its errors show in the requests.
    tokio::spawn(connection);
    Ok(sender)
}

/// One request over an open connection; the answer is read to its end.
///
/// # Errors
/// If no whole answer came within [`LIMIT`].
pub async fn send(
    connection: &mut http1::SendRequest<Empty<Bytes>>,
    target: &Target,
) -> anyhow::Result<Answer> {
    tokio::time::timeout(LIMIT, async {
        connection.ready().await.context("the connection was closed")?;
        let response = connection
            .send_request(target.request()?)
            .await
            .context("no answer")?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("the answer broke off")?.to_bytes();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    })
    .await
    .context("the answer took too long")?
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The version of the demo app that answered.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.headers.get("x-version")?.to_str().ok()
    }
}
