//! A file by HTTP: whole, not too large, and not waited for when nothing comes any more.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use http::{Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// How long a whole download may take.
const LIMIT: Duration = Duration::from_secs(1_800);
/// Most redirects that are followed.
const REDIRECTS: usize = 5;

/// What `address` answers, of at most `largest` bytes.
///
/// # Errors
/// When it answers anything but 200, more than that, or nothing more for `patience`.
pub async fn get(address: &str, largest: u64, patience: Duration) -> anyhow::Result<Bytes> {
    let fetching = follow(address, largest, patience);
    tokio::time::timeout(LIMIT, fetching)
        .await
        .with_context(|| format!("it took longer than {} s", LIMIT.as_secs()))
        .flatten()
        .with_context(|| format!("cannot fetch {address}; nothing was changed"))
}

async fn follow(address: &str, largest: u64, patience: Duration) -> anyhow::Result<Bytes> {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .try_with_platform_verifier()
        .context("no certificates are trusted on this host")?
        .https_or_http()
        .enable_http1()
        .build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let mut uri: Uri = address.parse().context("it is no address")?;
    for _ in 0..=REDIRECTS {
        match once(&client, uri.clone(), largest, patience).await? {
            Answer::Whole(bytes) => return Ok(bytes),
            Answer::Elsewhere(next) => uri = elsewhere(&uri, &next)?,
        }
    }
    bail!("it was redirected more than {REDIRECTS} times")
}

enum Answer {
    Whole(Bytes),
    Elsewhere(String),
}

type Https = Client<hyper_rustls::HttpsConnector<HttpConnector>, Empty<Bytes>>;

async fn once(client: &Https, uri: Uri, largest: u64, patience: Duration) -> anyhow::Result<Answer> {
    let stalled = || format!("nothing came for {} s", patience.as_secs());
    let answer = tokio::time::timeout(patience, client.get(uri))
        .await
        .with_context(stalled)??;
    if answer.status().is_redirection() {
        let next = answer.headers().get(header::LOCATION);
        let next = next.context("it was redirected to nowhere")?.to_str()?;
        return Ok(Answer::Elsewhere(next.to_owned()));
    }
    ensure!(
        answer.status() == http::StatusCode::OK,
        "it answered {}",
        answer.status()
    );
    let mut body = answer.into_body();
    let mut whole = BytesMut::new();
    while let Some(frame) = tokio::time::timeout(patience, body.frame())
        .await
        .with_context(stalled)?
    {
        let frame = frame.context("the download broke off")?;
        if let Some(data) = frame.data_ref() {
            ensure!(
                (whole.len() + data.len()) as u64 <= largest,
                "it is longer than {largest} bytes"
            );
            whole.extend_from_slice(data);
        }
    }
    Ok(Answer::Whole(whole.freeze()))
}

/// Where a redirect leads; never from https to http.
fn elsewhere(from: &Uri, to: &str) -> anyhow::Result<Uri> {
    let to: Uri = to.parse().context("it was redirected to no address")?;
    let mut parts = to.into_parts();
    if parts.scheme.is_none() {
        parts.scheme = from.scheme().cloned();
        parts.authority = from.authority().cloned();
    }
    let to = Uri::from_parts(parts).context("it was redirected to no address")?;
    ensure!(
        from.scheme_str() != Some("https") || to.scheme_str() == Some("https"),
        "it was redirected from https to {to}"
    );
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_encrypted() {
        let from = |text: &'static str| Uri::from_static(text);
        let to = |base, next| elsewhere(&from(base), next).map(|uri| uri.to_string());
        assert_eq!(
            to("https://a.test/x", "/y").expect("leads on"),
            "https://a.test/y"
        );
        assert_eq!(
            to("http://a.test/x", "https://b.test/y").expect("leads on"),
            "https://b.test/y"
        );
        let down = to("https://a.test/x", "http://a.test/y").expect_err("not in clear");
        assert!(down.to_string().contains("from https to"), "{down}");
    }
}
