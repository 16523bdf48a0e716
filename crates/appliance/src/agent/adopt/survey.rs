//! Looks at what a stock Kamal left on the host; changes nothing.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use appliance_containers::engine::State;
use appliance_push::change::Digest;
use serde_json::Value;

use super::plan::{Found, Proxy, Served, Survey, cached};
use super::state::{self, Service, Tls};
use crate::agent::{Agent, chain, container};

/// The name Kamal gives its proxy's container.
pub const PROXY: &str = "kamal-proxy";
/// Where kamal-proxy keeps its state, inside its container.
const STATE: &str = "/home/kamal-proxy/.config/kamal-proxy/kamal-proxy.state";
/// Largest error page, certificate or state file.
const FILE_LIMIT: u64 = 8 << 20;

impl Agent {
    /// Everything an adoption depends on.
    ///
    /// # Errors
    /// When Docker does not answer, or the ledgers cannot be read.
    pub(super) async fn survey(&self) -> anyhow::Result<Survey> {
        let mut survey = Survey::default();
        for app in self.apps.ids()? {
            let state = self.apps.read(&app)?;
            // What an adoption that was cut off had recorded is recorded again.
            let adopted = state.adopted.map(|adopted| adopted.rollout);
            let current = state.numbers.current.map(|current| current.rollout);
            if current.is_some() && current != adopted {
                survey.known.insert(app);
            }
        }
        for image in self.docker.images().await? {
            // A list tells less of an image than a close look.
            if let Some(image) = self.docker.inspect_image(&image.id).await? {
                survey.images.insert(image.id.clone(), image);
            }
        }
        for found in self.docker.list(&["service".to_owned()]).await? {
            if found.labels.contains_key(container::APP) || found.state != State::Running {
                continue;
            }
            let Some(inspection) = self.docker.description(&found.id.0).await? else {
                continue;
            };
            let image = inspection["Config"]["Image"].as_str().unwrap_or(&found.image);
            survey.containers.push(Found {
                image: image.to_owned(),
                id: found.id.0,
                name: found.name,
                image_id: found.image_id,
                labels: found.labels,
                running: true,
                inspection,
            });
        }
        let Some(proxy) = self.docker.inspect(PROXY).await? else {
            return Ok(survey);
        };
        let Some(inspection) = self.docker.description(&proxy.id.0).await? else {
            return Ok(survey);
        };
        let files = Mounts::of(&inspection);
        let services = match files.read(STATE) {
            Ok(text) => match state::parse(&text) {
                Ok(services) => services,
                Err(error) => {
                    survey.troubles.push(chain(&error));
                    Vec::new()
                }
            },
            Err(error) => {
                survey
                    .troubles
                    .push(format!("kamal-proxy's state cannot be read: {}", chain(&*error)));
                Vec::new()
            }
        };
        let mut found = Proxy {
            id: proxy.id.0.clone(),
            running: proxy.state == State::Running,
            image: proxy.image.clone(),
            ports: (
                published(&inspection, "80/tcp"),
                published(&inspection, "443/tcp"),
            ),
            services: Vec::new(),
        };
        for service in services {
            match files.served(service) {
                Ok(served) => found.services.push(served),
                Err(error) => survey.troubles.push(chain(&*error)),
            }
        }
        survey.proxy = Some(found);
        Ok(survey)
    }
}

fn published(inspection: &Value, port: &str) -> Option<u16> {
    let bindings = inspection["HostConfig"]["PortBindings"][port].as_array()?;
    bindings.first()?["HostPort"].as_str()?.parse().ok()
}

/// What of a container's files is on the host: its volumes and bind mounts.
struct Mounts(BTreeMap<PathBuf, PathBuf>);

impl Mounts {
    fn of(inspection: &Value) -> Self {
        let mounts = inspection["Mounts"].as_array().into_iter().flatten();
        let pairs = mounts.filter_map(|mount| {
            Some((
                mount["Destination"].as_str()?.into(),
                mount["Source"].as_str()?.into(),
            ))
        });
        Self(pairs.collect())
    }

    /// Where a path of the container is on the host; none outside of its mounts.
    fn outside(&self, inside: &str) -> Option<PathBuf> {
        let inside = Path::new(inside);
        // The text comes from a file that the container may write.
        if inside
            .components()
            .any(|part| matches!(part, Component::ParentDir))
        {
            return None;
        }
        let mounts = self.0.iter().rev();
        let mut fitting =
            mounts.filter_map(|(target, source)| Some(source.join(inside.strip_prefix(target).ok()?)));
        fitting.next()
    }

    fn read(&self, inside: &str) -> anyhow::Result<Vec<u8>> {
        let path = self
            .outside(inside)
            .with_context(|| format!("{inside} of {PROXY} is on no volume of it"))?;
        let found = fs_err::symlink_metadata(&path)?;
        anyhow::ensure!(
            found.is_file() && found.len() <= FILE_LIMIT,
            "{} is no file of at most {FILE_LIMIT} bytes",
            path.display()
        );
        Ok(fs_err::read(&path)?)
    }

    fn text(&self, inside: &str) -> anyhow::Result<String> {
        String::from_utf8(self.read(inside)?).with_context(|| format!("{inside} of {PROXY} is no text"))
    }

    /// A service with its files.
    fn served(&self, service: Service) -> anyhow::Result<Served> {
        let doing = format!("kamal-proxy's service {}", service.name);
        let mut certificates = BTreeMap::new();
        let pem = match &service.tls {
            Tls::Off => None,
            Tls::Files {
                certificate,
                private_key,
            } => Some((
                self.text(certificate).with_context(|| doing.clone())?,
                self.text(private_key).with_context(|| doing.clone())?,
            )),
            Tls::Acme { directory, cache } => {
                let cache = format!("{cache}/{}", Digest::of(directory.as_bytes()).hex());
                for host in &service.hosts {
                    // A host without a certificate is none of ours to complain about: kamal-proxy had none either.
                    let file = self.text(&format!("{cache}/{host}")).ok();
                    if let Some(pair) = file.as_deref().and_then(cached) {
                        certificates.insert(host.clone(), pair);
                    }
                }
                None
            }
        };
        let mut pages = BTreeMap::new();
        if let Some(directory) = &service.error_pages {
            let outside = self
                .outside(directory)
                .with_context(|| format!("{doing}: {directory} of {PROXY} is on no volume of it"))?;
            for entry in fs_err::read_dir(outside).with_context(|| doing.clone())? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if name.ends_with(".html") {
                    pages.insert(name.clone(), self.text(&format!("{directory}/{name}"))?);
                }
            }
        }
        Ok(Served {
            service,
            pem,
            pages,
            certificates,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_mounted_is_looked_at() {
        let mounts = Mounts::of(&json!({"Mounts": [
            {"Destination": "/home/kamal-proxy/.config/kamal-proxy", "Source": "/var/lib/docker/volumes/x/_data"},
            {"Destination": "/home/kamal-proxy/.apps-config", "Source": "/root/.kamal/proxy/apps-config"},
        ]}));
        assert_eq!(
            mounts.outside(STATE),
            Some("/var/lib/docker/volumes/x/_data/kamal-proxy.state".into())
        );
        assert_eq!(
            mounts.outside("/home/kamal-proxy/.apps-config/shop/tls/web/cert.pem"),
            Some("/root/.kamal/proxy/apps-config/shop/tls/web/cert.pem".into())
        );
        for elsewhere in [
            "/etc/shadow",
            "/home/kamal-proxy/.apps-config/../../../etc/shadow",
        ] {
            assert_eq!(mounts.outside(elsewhere), None, "{elsewhere}");
        }
    }
}
