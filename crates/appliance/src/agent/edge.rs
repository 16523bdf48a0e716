//! `proxy:` of `host.yml`, handed to the proxy whenever the file changes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use appliance_config::edge::Edge;
use appliance_config::host;
use appliance_proxy::snapshot::Settings;
use tokio_util::sync::CancellationToken;

use super::{Agent, chain};

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(10);

/// Follows the file until `stop`. A file that is wrong changes nothing, and says so once.
pub async fn keep(agent: Arc<Agent>, stop: CancellationToken) {
    let path = agent.certificates.host_yml().to_owned();
    let mut seen: Option<Option<SystemTime>> = None;
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let changed = fs_err::metadata(&path).and_then(|found| found.modified()).ok();
        if seen == Some(changed) {
            continue;
        }
        match hand_over(&agent.proxy, &path).await {
            Ok(()) => seen = Some(changed),
            // Without the proxy there is nobody to tell: again at the next look.
            Err(Failure::Proxy(error)) => tracing::debug!("{}", chain(&error)),
            Err(Failure::File(why)) => {
                tracing::error!("{}: {why}; the proxy keeps the settings it has", path.display());
                seen = Some(changed);
            }
        }
        agent.certificates.look_again();
    }
}

/// Why the settings are not the proxy's.
#[derive(Debug)]
enum Failure {
    File(String),
    Proxy(appliance_proxy::control::ControlError),
}

async fn hand_over(proxy: &appliance_proxy::Client, path: &Path) -> Result<(), Failure> {
    let (edge, on_demand) = match fs_err::read_to_string(path) {
        Ok(text) => {
            let host = host::read(&path.display().to_string(), &text)
                .map_err(|problems| Failure::File(problems.to_string()))?;
            (host.proxy, host.acme.enabled && host.acme.on_demand.is_some())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (Edge::default(), false),
        Err(error) => return Err(Failure::File(error.to_string())),
    };
    let live = proxy.snapshot().await.map_err(Failure::Proxy)?.settings;
    let wanted = Settings {
        on_demand,
        ..merge(&edge, live.clone())
    };
    if wanted != live {
        proxy.put_settings(&wanted).await.map_err(Failure::Proxy)?;
        tracing::info!("the proxy has the settings of {}", path.display());
    }
    Ok(())
}

/// The proxy's settings with what the section says; what it has no word for stays.
fn merge(edge: &Edge, live: Settings) -> Settings {
    Settings {
        trusted_proxies: edge
            .trusted_proxies
            .iter()
            .map(|network| network.0.to_string())
            .collect(),
        client_ip_header: edge.client_ip_header.clone(),
        forwarded: edge.forwarded,
        max_connections: usize::try_from(edge.max_connections).unwrap_or(usize::MAX),
        connections_per_ip: edge.connections_per_ip,
        ..live
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sections_words_replace_only_their_own_settings() {
        let text = "proxy:\n  trusted_proxies: [173.245.48.0/20, '2400:cb00::/32']\n  client_ip_header: CF-Connecting-IP\n  connections_per_ip: 50\n";
        let edge = host::read("host.yml", text).unwrap().proxy;
        let live = Settings {
            idle_timeout: Duration::from_secs(5),
            ..Settings::default()
        };
        let merged = merge(&edge, live);
        assert_eq!(merged.trusted_proxies, ["173.245.48.0/20", "2400:cb00::/32"]);
        assert_eq!(merged.client_ip_header.as_deref(), Some("CF-Connecting-IP"));
        assert_eq!(
            (merged.connections_per_ip, merged.idle_timeout),
            (Some(50), Duration::from_secs(5))
        );
        let problems = host::read("host.yml", "proxy:\n  trusted_proxies: [everybody]\n").unwrap_err();
        assert!(problems.to_string().contains("host.yml:2"), "{problems}");
    }
}
