//! A release's extras and error pages in the words of the proxy.

use std::collections::BTreeMap;

use appliance_proxy::names::{HostPattern, NameError, PathPrefix};
use appliance_proxy::snapshot::{Auth, Compression, Redirect, Service};
use appliance_push::change::ProxySpec;

/// Sets on `service` what the role wants beyond Kamal's `proxy:`.
///
/// # Errors
/// When a host or a path is none; what else is wrong, the proxy says.
pub fn apply(
    service: &mut Service,
    spec: &ProxySpec,
    error_pages: &BTreeMap<String, String>,
) -> Result<(), NameError> {
    let extras = &spec.extras;
    service.canonical_host = extras
        .canonical_host
        .as_deref()
        .map(HostPattern::parse)
        .transpose()?;
    service.response_headers = extras.headers.clone();
    service.compression = extras.compression.as_ref().map(|wanted| {
        let mut compression = Compression {
            min_bytes: wanted.min_bytes,
            ..Compression::default()
        };
        let known = std::mem::take(&mut compression.codings);
        // A coding of a newer command line that this proxy does not know is left out.
        compression.codings = wanted
            .codings
            .iter()
            .filter_map(|name| known.iter().find(|coding| coding.as_str() == name).copied())
            .collect();
        compression.types.extend(wanted.types.iter().cloned());
        compression
    });
    service.redirects = extras
        .redirects
        .iter()
        .map(|redirect| Redirect {
            from: redirect.from.clone(),
            to: redirect.to.clone(),
            status: redirect.status,
        })
        .collect();
    if let Some(auth) = &extras.auth {
        let except = auth.except.iter().map(|prefix| PathPrefix::parse(prefix));
        service.auth = Some(Auth {
            realm: auth.realm.clone(),
            users: auth.users.clone(),
            except: except.collect::<Result<_, _>>()?,
        });
    }
    if let Some(rate) = &extras.rate {
        service.limits.requests_per_second = Some(f64::from(rate.requests) / f64::from(rate.seconds.max(1)));
        service.limits.burst = Some(rate.burst.max(1));
    }
    if extras.max_body.is_some() {
        service.limits.max_request_body = extras.max_body;
    }
    service.log.requests = extras.log.unwrap_or(true);
    service.log.query = extras.log_query;
    service.log.request_headers.clone_from(&spec.log_request_headers);
    service
        .log
        .response_headers
        .clone_from(&spec.log_response_headers);
    service.error_pages = error_pages
        .iter()
        .filter_map(|(file, page)| Some((file.strip_suffix(".html")?.parse().ok()?, page.clone())))
        .collect();
    Ok(())
}

#[cfg(test)]
mod tests {
    use appliance_config::Extension;
    use appliance_proxy::Snapshot;
    use appliance_proxy::snapshot::UpstreamProtocol;

    /// From the words of a configuration to a snapshot that the proxy accepts as it is.
    #[test]
    fn what_a_configuration_says_reaches_the_proxy() {
        let text = serde_json::json!({ "proxy": {
            "compression": true,
            "canonical_host": "shop.example.com",
            "hsts": "365d",
            "headers": { "X-Frame-Options": "DENY" },
            "redirects": [{ "from": "/blog/*", "to": "https://blog.example/*", "status": 308 }],
            "auth": { "users": { "ada": "$2b$10$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu" }, "except": ["/up"] },
            "rate": { "requests": 300, "per": "1m" },
            "max_body": "20m",
            "upstream_protocol": "h2c",
            "log": { "requests": true },
        }});
        let extension: Extension = serde_json::from_value(text).unwrap();
        let extras = crate::developer::front::extras(&extension.proxy).unwrap();
        // What travels is what arrives.
        let extras = serde_json::from_str(&serde_json::to_string(&extras).unwrap()).unwrap();
        let mut spec = super::super::certificates::example(&["shop.example.com", "www.example.com"]);
        spec.extras = extras;
        let mut service = super::super::route::service(&spec, &[[127, 0, 0, 1].into()], Vec::new()).unwrap();
        let pages = [("502.html".to_owned(), "<h1>{{ .Message }}</h1>".to_owned())].into();
        super::apply(&mut service, &spec, &pages).unwrap();
        assert_eq!(
            service.response_headers["Strict-Transport-Security"],
            "max-age=31536000"
        );
        assert_eq!(service.limits.requests_per_second, Some(5.0));
        assert_eq!(
            (service.limits.burst, service.limits.max_request_body),
            (Some(300), Some(20 << 20))
        );
        assert_eq!(service.upstream_protocol, UpstreamProtocol::H2c);
        assert_eq!(service.health_check.protocol, Some(UpstreamProtocol::H2c));
        assert!(service.log.requests && !service.log.query && service.compression.is_some());
        assert_eq!(service.error_pages[&502], "<h1>{{ .Message }}</h1>");
        // Nothing said: a line for each request, as with kamal-proxy.
        spec.extras = appliance_push::change::extras::ProxyExtras::default();
        super::apply(&mut service, &spec, &pages).unwrap();
        assert!(service.log.requests && !service.log.query);
        let snapshot = Snapshot {
            services: vec![service],
            ..Snapshot::default()
        };
        assert_eq!(snapshot.problems(), Vec::<String>::new());
    }
}
