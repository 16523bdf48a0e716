//! Where a newer program comes from: a file, or where releases are published.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::version::Version;
use crate::release_key::RELEASES;

/// How long a download may take.
const LIMIT: Duration = Duration::from_secs(600);
/// Largest program, bytes.
const LARGEST: usize = 1 << 30;
/// Largest signature or version, bytes.
const SMALL: usize = 16 << 10;

/// A program and its signature, not yet proved.
pub struct Source {
    /// For people.
    pub name: String,
    /// Its bytes.
    pub program: Bytes,
    /// The SSHSIG beside it.
    pub signature: String,
}

impl Source {
    /// `FILE` with `FILE.sig`, or an address with `.sig` behind it.
    ///
    /// # Errors
    /// When one of the two cannot be read or fetched.
    pub async fn named(name: &str) -> anyhow::Result<Self> {
        let signature = format!("{name}.sig");
        let (program, signature) = if name.starts_with("http://") || name.starts_with("https://") {
            (get(name, LARGEST).await?, get(&signature, SMALL).await?.to_vec())
        } else {
            (
                Bytes::from(fs_err::tokio::read(Path::new(name)).await?),
                fs_err::tokio::read(Path::new(&signature)).await?,
            )
        };
        Ok(Self {
            name: name.to_owned(),
            program,
            signature: String::from_utf8(signature).context("the signature is no text")?,
        })
    }

    /// A release.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub async fn release(version: Version) -> anyhow::Result<Self> {
        Self::named(&format!(
            "{RELEASES}/v{version}/appliance-{}",
            std::env::consts::ARCH
        ))
        .await
    }
}

/// The version that was published last. What it says is proved by what is fetched: an older program is refused.
///
/// # Errors
/// When it cannot be asked.
pub async fn latest() -> anyhow::Result<Version> {
    let text = get(&format!("{RELEASES}/latest"), SMALL).await?;
    String::from_utf8_lossy(&text).parse()
}

async fn get(address: &str, limit: usize) -> anyhow::Result<Bytes> {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .try_with_platform_verifier()
        .context("no certificates are trusted on this host")?
        .https_or_http()
        .enable_http1()
        .build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let uri: http::Uri = address
        .parse()
        .with_context(|| format!("{address} is no address"))?;
    let fetching = async {
        let answer = client.get(uri).await?;
        if !answer.status().is_success() {
            bail!("it answered {}", answer.status());
        }
        Limited::new(answer.into_body(), limit)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .map_err(|error| anyhow::anyhow!("the download broke off: {error}"))
    };
    tokio::time::timeout(LIMIT, fetching)
        .await
        .with_context(|| format!("{address} took longer than {} s", LIMIT.as_secs()))?
        .with_context(|| format!("cannot fetch {address}; nothing was changed"))
}
