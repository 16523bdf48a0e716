//! Tells an outside watcher that a run went well: its silence is what alarms.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Gets `address`.
///
/// # Errors
/// When it cannot be reached or answers anything but 2xx.
pub async fn ping(address: &str) -> anyhow::Result<()> {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .try_with_platform_verifier()
        .context("no certificates are trusted on this host")?
        .https_or_http()
        .enable_http1()
        .build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let address: http::Uri = address.parse().context("the address to ping")?;
    let answer = tokio::time::timeout(LIMIT, client.get(address))
        .await
        .context("no answer within 20 s")??;
    if !answer.status().is_success() {
        bail!("it answered {}", answer.status());
    }
    Ok(())
}
