//! From `x-appliance: proxy:` to the extras of a release.

use anyhow::Context as _;
use appliance_config::front::{Coding, Front, UpstreamProtocol};
use appliance_push::change::extras::{Auth, Compression, ProxyExtras, Rate, Redirect};

/// The extras of a proxied role.
///
/// # Errors
/// When a value is beyond what the wire form can say.
pub fn extras(front: &Front) -> anyhow::Result<ProxyExtras> {
    let coding = |coding: &Coding| match coding {
        Coding::Zstd => "zstd".to_owned(),
        Coding::Br => "br".to_owned(),
        Coding::Gzip => "gzip".to_owned(),
    };
    let mut headers = front.headers.clone();
    if let Some(hsts) = &front.hsts {
        headers.insert(
            "Strict-Transport-Security".to_owned(),
            format!("max-age={}", hsts.0),
        );
    }
    let rate = match &front.rate {
        None => None,
        Some(rate) => Some(Rate {
            requests: rate.requests,
            seconds: u32::try_from(rate.per.0.max(1)).context("x-appliance/proxy/rate/per")?,
            burst: rate.burst.unwrap_or(rate.requests),
        }),
    };
    Ok(ProxyExtras {
        compression: front.compression().map(|compression| Compression {
            codings: compression.codings.iter().map(coding).collect(),
            min_bytes: compression.min_size.0,
            types: compression.types,
        }),
        canonical_host: front.canonical_host.clone(),
        headers,
        redirects: front
            .redirects
            .iter()
            .map(|redirect| Redirect {
                from: redirect.from.clone(),
                to: redirect.to.clone(),
                status: redirect.status,
            })
            .collect(),
        auth: front.auth.as_ref().map(|auth| Auth {
            realm: auth.realm.clone(),
            users: auth.users.clone(),
            except: auth.except.clone(),
        }),
        rate,
        max_body: front.max_body.as_ref().map(|bytes| bytes.0),
        h2c: front.upstream_protocol == Some(UpstreamProtocol::H2c),
        log: front.log.as_ref().map(|log| log.requests),
        log_query: front.log.as_ref().is_some_and(|log| log.query),
    })
}
