//! What becomes of what is there: from what was seen to apps, releases and routes; pure.

use std::collections::{BTreeMap, BTreeSet};

use appliance_containers::engine::ImageInfo;
use appliance_containers::names;
use appliance_push::change::{
    AppName, Buffering, Destination, Digest, EnvName, Healthcheck, Image, Platform, ProxySpec, Release,
    RemoteRegistry, Repository, RoleName, Tag, extras::ProxyExtras,
};
use serde_json::Value;

use super::role;
use super::state::{Service, Tls};

/// Kamal's defaults (`deploy_timeout`, `drain_timeout`, `readiness_delay`, `retain_containers`): a container does not tell them.
const DEPLOY_TIMEOUT: u32 = 30;
const DRAIN_TIMEOUT: u32 = 30;
const READINESS_DELAY: u32 = 7;
const RETAIN: u32 = 5;
/// Secrets that hold a role's own certificate.
const CERTIFICATE: &str = "ADOPTED_CERTIFICATE_";
const PRIVATE_KEY: &str = "ADOPTED_PRIVATE_KEY_";

/// Everything that was looked at.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// kamal-proxy's container; none if there is none of that name.
    pub proxy: Option<Proxy>,
    /// Containers with Kamal's labels, newest first.
    pub containers: Vec<Found>,
    /// Images by id.
    pub images: BTreeMap<String, ImageInfo>,
    /// Apps that have a current release here already.
    pub known: BTreeSet<String>,
    /// What could not be looked at.
    pub troubles: Vec<String>,
}

/// kamal-proxy's container.
#[derive(Debug, Clone, Default)]
pub struct Proxy {
    /// Its id.
    pub id: String,
    /// Whether it runs.
    pub running: bool,
    /// The image's name.
    pub image: String,
    /// Ports on the host that lead to its 80 and 443.
    pub ports: (Option<u16>, Option<u16>),
    /// What it serves.
    pub services: Vec<Served>,
}

/// A service with the files it needs.
#[derive(Debug, Clone)]
pub struct Served {
    /// The service.
    pub service: Service,
    /// Its own certificate and key, PEM.
    pub pem: Option<(String, String)>,
    /// Error pages by file name.
    pub pages: BTreeMap<String, String>,
    /// Certificates of its hosts from kamal-proxy's cache: chain and key, PEM.
    pub certificates: BTreeMap<String, (String, String)>,
}

/// A container.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The id of its image.
    pub image_id: String,
    /// The name of its image, as it was started.
    pub image: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it runs.
    pub running: bool,
    /// Docker's whole description of it.
    pub inspection: Value,
}

/// What would be done.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Apps to take over, by id.
    pub apps: Vec<App>,
    /// Routes of accessories, which their own boot takes over later.
    pub accessories: Vec<Accessory>,
    /// Certificates to take over: host, authority, chain, key.
    pub certificates: Vec<Certificate>,
    /// What somebody should know.
    pub notes: Vec<String>,
    /// Why it cannot be done.
    pub refusals: Vec<String>,
}

/// One app to be taken over.
#[derive(Debug, Clone)]
pub struct App {
    /// `service` or `service@destination`.
    pub id: String,
    /// What runs, as the release that would make it again; nothing is sealed yet.
    pub release: Release,
    /// What is to be sealed.
    pub secrets: BTreeMap<String, String>,
    /// The container of each role: id and name.
    pub containers: BTreeMap<String, (String, String)>,
    /// The message of the maintenance page, while it is stopped.
    pub stopped: Option<String>,
}

/// An accessory behind kamal-proxy.
#[derive(Debug, Clone)]
pub struct Accessory {
    /// Its container.
    pub container: String,
    /// How it is served.
    pub spec: ProxySpec,
}

/// A certificate from kamal-proxy's cache.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The host name.
    pub host: String,
    /// Directory of the authority.
    pub directory: String,
    /// Chain, PEM.
    pub chain: String,
    /// Key, PEM.
    pub key: String,
}

/// What there is to do about what was seen.
pub fn plan(survey: &Survey) -> Plan {
    let mut plan = Plan {
        refusals: survey.troubles.clone(),
        ..Plan::default()
    };
    let Some(proxy) = &survey.proxy else {
        plan.refusals.push(
            "there is no container named kamal-proxy on this host; there is nothing to adopt".to_owned(),
        );
        return plan;
    };
    if !proxy.running {
        plan.refusals.push(
            "kamal-proxy does not run; start it (docker start kamal-proxy), so that visitors are served until we do"
                .to_owned(),
        );
        return plan;
    }
    if proxy.ports != (Some(80), Some(443)) {
        plan.refusals.push(
            "kamal-proxy is not published on the ports 80 and 443 (proxy.run of deploy.yml); the appliance serves no others"
                .to_owned(),
        );
    }
    let mut routed = BTreeMap::new();
    for served in &proxy.services {
        match container_of(survey, &served.service) {
            Some(found) => {
                routed.insert(found.id.clone(), served);
            }
            None => plan.refusals.push(format!(
                "kamal-proxy's service {} leads to the container {}, which does not run or has no labels of Kamal; \
                 remove it first: docker exec kamal-proxy kamal-proxy remove {}",
                served.service.name, served.service.container, served.service.name
            )),
        }
        certificates(served, &mut plan);
    }
    for (id, containers) in by_app(survey, &routed, &mut plan) {
        if survey.known.contains(&id) {
            plan.refusals.push(format!(
                "{id} has a release of the appliance already; take it away first (appliance app remove), or stop Kamal's containers"
            ));
            continue;
        }
        match app(survey, &id, &containers, &routed, &mut plan.notes) {
            Ok(app) => plan.apps.push(app),
            Err(why) => plan.refusals.push(format!("{id}: {why}")),
        }
    }
    for found in survey.containers.iter().filter(|found| is_accessory(found)) {
        if let Some(served) = routed.get(&found.id) {
            plan.accessories.push(Accessory {
                container: found.id.clone(),
                spec: spec(&served.service, None),
            });
            plan.notes.push(format!(
                "the accessory {} keeps its route; its own care begins with: appliance accessory boot",
                found.name
            ));
        }
    }
    if plan.apps.is_empty() && plan.refusals.is_empty() {
        plan.refusals
            .push("no app of Kamal runs on this host; there is nothing to adopt".to_owned());
    }
    plan
}

fn container_of<'a>(survey: &'a Survey, service: &Service) -> Option<&'a Found> {
    survey.containers.iter().find(|found| {
        found.running && (found.id.starts_with(&service.container) || found.name == service.container)
    })
}

fn is_accessory(found: &Found) -> bool {
    !found.labels.contains_key("role")
}

fn certificates(served: &Served, plan: &mut Plan) {
    let Tls::Acme { directory, .. } = &served.service.tls else {
        return;
    };
    for host in &served.service.hosts {
        match served.certificates.get(host) {
            Some((chain, key)) => plan.certificates.push(Certificate {
                host: host.clone(),
                directory: directory.clone(),
                chain: chain.clone(),
                key: key.clone(),
            }),
            None => plan.notes.push(format!(
                "kamal-proxy has no certificate of {host} yet; one is asked for as soon as it is ours"
            )),
        }
    }
}

/// Running containers by app and role; of two for one role, the one with the traffic, else the newest.
fn by_app<'a>(
    survey: &'a Survey,
    routed: &BTreeMap<String, &Served>,
    plan: &mut Plan,
) -> BTreeMap<String, BTreeMap<String, &'a Found>> {
    let mut apps: BTreeMap<String, BTreeMap<String, &Found>> = BTreeMap::new();
    for found in survey
        .containers
        .iter()
        .filter(|found| found.running && !is_accessory(found))
    {
        let label = |name: &str| found.labels.get(name).map(String::as_str).unwrap_or_default();
        let id = match label("destination") {
            "" => label("service").to_owned(),
            destination => format!("{}@{destination}", label("service")),
        };
        let roles = apps.entry(id).or_default();
        let (kept, left) = match roles.get(label("role")) {
            None => (found, None),
            // They come newest first.
            Some(other) if routed.contains_key(&found.id) && !routed.contains_key(&other.id) => {
                (found, Some(*other))
            }
            Some(other) => (*other, Some(found)),
        };
        roles.insert(label("role").to_owned(), kept);
        if let Some(left) = left {
            plan.notes.push(format!(
                "{} runs beside {} and is left alone; a stale container is stopped with: docker stop {}",
                left.name, kept.name, left.name
            ));
        }
    }
    apps
}

fn app(
    survey: &Survey,
    id: &str,
    containers: &BTreeMap<String, &Found>,
    routed: &BTreeMap<String, &Served>,
    notes: &mut Vec<String>,
) -> Result<App, String> {
    let (service, destination) = match id.split_once('@') {
        Some((service, destination)) => (service, Some(destination)),
        None => (id, None),
    };
    let primary = ["web"]
        .into_iter()
        .find(|role| containers.contains_key(*role))
        .or_else(|| {
            let mut roles = containers
                .iter()
                .filter(|(_, found)| routed.contains_key(&found.id));
            roles.next().map(|(role, _)| role.as_str())
        })
        .or_else(|| containers.keys().next().map(String::as_str))
        .ok_or("no role of it runs")?;
    let mut order: Vec<(&String, &&Found)> = containers.iter().collect();
    order.sort_by_key(|(role, _)| role.as_str() != primary);
    let first = order[0].1;
    let image_info = |found: &Found| {
        survey
            .images
            .get(&found.image_id)
            .ok_or_else(|| format!("Docker does not know the image of {}", found.name))
    };
    let mut version = None;
    let mut secrets = BTreeMap::new();
    let mut roles = Vec::new();
    let mut pages = BTreeMap::new();
    let mut stopped = None;
    for (name, found) in &order {
        let role_name = RoleName::parse(name).map_err(|error| error.to_string())?;
        let prefix = names::role_prefix(service, name, destination);
        let own = found
            .name
            .strip_prefix(&prefix)
            .map(|rest| rest.trim_start_matches('-'))
            .and_then(|rest| rest.split("_replaced_").next())
            .filter(|version| !version.is_empty())
            .ok_or_else(|| {
                format!(
                    "the container {} is not named {prefix}-VERSION, as Kamal names it",
                    found.name
                )
            })?;
        match &version {
            None => version = Some(own.to_owned()),
            Some(version) if version != own => notes.push(format!(
                "{id}: {} is not of the version {version} that the primary role runs; a deploy was cut off here",
                found.name
            )),
            Some(_) => {}
        }
        if found.image_id != first.image_id {
            notes.push(format!(
                "{id}: {} runs another image than the primary role; after a rollback it would run that one",
                found.name
            ));
        }
        let served = routed.get(&found.id);
        let proxy = served.map(|served| spec(&served.service, served.pem.as_ref().map(|_| name.as_str())));
        if let Some(served) = served {
            if let Some((certificate, key)) = &served.pem {
                secrets.insert(format!("{CERTIFICATE}{name}"), certificate.clone());
                secrets.insert(format!("{PRIVATE_KEY}{name}"), key.clone());
            }
            pages.extend(served.pages.clone());
            stopped = stopped.or_else(|| served.service.stopped.clone());
        }
        let made = role::role(
            role_name,
            *name == primary,
            &found.inspection,
            image_info(found)?,
            proxy,
        );
        secrets.extend(made.secrets);
        roles.push(made.role);
    }
    let text = |error: appliance_push::change::BadName| error.to_string();
    let release = Release {
        service: AppName::parse(service).map_err(text)?,
        destination: destination.map(Destination::parse).transpose().map_err(text)?,
        version: Tag::parse(&version.unwrap_or_default()).map_err(text)?,
        host: kamal_host(first).unwrap_or_else(|| "localhost".to_owned()),
        image: image(first, image_info(first)?)?,
        roles,
        partial: false,
        parallel_roles: false,
        deploy_timeout: DEPLOY_TIMEOUT,
        drain_timeout: DRAIN_TIMEOUT,
        readiness_delay: READINESS_DELAY,
        retain: RETAIN,
        release_command: None,
        watch: None,
        canary: None,
        error_pages: pages,
        sealed_secrets: String::new(),
        config_digest: Digest::of(first.inspection.to_string().as_bytes()),
        created_by: "adopted from Kamal".to_owned(),
        extensions: BTreeMap::new(),
    };
    let containers = order
        .iter()
        .map(|(role, found)| ((*role).clone(), (found.id.clone(), found.name.clone())));
    Ok(App {
        id: id.to_owned(),
        release,
        secrets,
        containers: containers.collect(),
        stopped,
    })
}

fn kamal_host(found: &Found) -> Option<String> {
    let mut env = found.inspection["Config"]["Env"].as_array()?.iter();
    env.find_map(|entry| entry.as_str()?.strip_prefix("KAMAL_HOST=").map(str::to_owned))
}

/// The image of a release, by the digest that Docker knows it under.
fn image(found: &Found, info: &ImageInfo) -> Result<Image, String> {
    let (named, tag) = match found.image.rsplit_once(':') {
        Some((named, tag)) if !tag.contains('/') => (named, tag),
        _ => (found.image.as_str(), "latest"),
    };
    let named = named.split('@').next().unwrap_or(named);
    // The first word is a registry if it has a dot or a port, or is the local one (distribution/reference).
    let (server, repository) = match named.split_once('/') {
        Some((server, rest)) if server.contains(['.', ':']) || server == "localhost" => (Some(server), rest),
        _ => (None, named),
    };
    let digest = info
        .digests
        .iter()
        .find_map(|name| {
            name.strip_prefix(named)?
                .strip_prefix('@')
                .map(|digest| (digest.to_owned(), true))
        })
        .or_else(|| {
            let mut any = info.digests.iter();
            any.find_map(|name| name.split_once('@').map(|(_, digest)| (digest.to_owned(), false)))
        });
    let bad = |error: appliance_push::change::BadName| format!("the image {}: {error}", found.image);
    // An image that never saw a registry is found again by its id.
    let (digest, pullable) = digest.unwrap_or_else(|| (info.id.clone(), false));
    Ok(Image {
        repository: Repository::parse(repository).map_err(bad)?,
        digest: Digest::parse(&digest).map_err(bad)?,
        config: Digest::parse(&info.id).ok(),
        tag: Tag::parse(tag).map_err(bad)?,
        platform: Platform {
            os: info.os.clone(),
            architecture: info.architecture.clone(),
            variant: info.variant.clone().filter(|variant| !variant.is_empty()),
        },
        registry: server
            .filter(|server| pullable && !server.starts_with("localhost"))
            .map(|server| RemoteRegistry {
                server: server.to_owned(),
                username: None,
                password_secret: None,
            }),
    })
}

/// A service of kamal-proxy in the words of a release; `own` is the role with a certificate of its own.
fn spec(service: &Service, own: Option<&str>) -> ProxySpec {
    let secret = |prefix: &str, role: &str| EnvName::parse(&format!("{prefix}{role}"));
    let tls = match (&service.tls, own) {
        (Tls::Off, _) => appliance_push::change::Tls::Off,
        (Tls::Files { .. }, Some(role)) => match (secret(CERTIFICATE, role), secret(PRIVATE_KEY, role)) {
            (Ok(certificate), Ok(private_key)) => appliance_push::change::Tls::Secrets {
                certificate,
                private_key,
            },
            _ => appliance_push::change::Tls::Auto,
        },
        _ => appliance_push::change::Tls::Auto,
    };
    let (requests, responses, memory, max_request, max_response) = service.buffering;
    ProxySpec {
        service_name: service.name.clone(),
        hosts: service.hosts.clone(),
        app_port: service.port,
        tls,
        ssl_redirect: service.tls_redirect,
        path_prefixes: service.path_prefixes.clone(),
        strip_path_prefix: service.strip_prefix,
        healthcheck: Healthcheck {
            path: service.health_path.clone(),
            interval: service.health_interval,
            timeout: service.health_timeout,
        },
        response_timeout: service.response_timeout,
        deploy_timeout: DEPLOY_TIMEOUT,
        drain_timeout: DRAIN_TIMEOUT,
        forward_headers: Some(service.forward_headers),
        buffering: Some(Buffering {
            requests,
            responses,
            memory: Some(memory).filter(|bytes| *bytes > 0),
            max_request_body: Some(max_request).filter(|bytes| *bytes > 0),
            max_response_body: Some(max_response).filter(|bytes| *bytes > 0),
        }),
        extras: ProxyExtras {
            canonical_host: service.canonical_host.clone(),
            ..ProxyExtras::default()
        },
        log_request_headers: service.log_request_headers.clone(),
        log_response_headers: service.log_response_headers.clone(),
    }
}

/// The private key and the chain of a file in kamal-proxy's cache: PEM blocks, the key first (Go's `autocert`).
pub fn cached(text: &str) -> Option<(String, String)> {
    let (mut chain, mut key) = (String::new(), String::new());
    let mut rest = text;
    while let Some(start) = rest.find("-----BEGIN ") {
        let block = &rest[start..];
        let label = block["-----BEGIN ".len()..].split("-----").next()?;
        let end = format!("-----END {label}-----");
        let length = block.find(&end)? + end.len();
        let into = match label {
            "CERTIFICATE" => &mut chain,
            label if label.ends_with("PRIVATE KEY") => &mut key,
            _ => return None,
        };
        into.push_str(&block[..length]);
        into.push('\n');
        rest = &block[length..];
    }
    (!chain.is_empty() && !key.is_empty()).then_some((chain, key))
}

#[cfg(test)]
mod tests;
