//! The routing table: a snapshot compiled for look-ups, and the decision for one request.
//!
//! Host: exact, then `*.` and everything after the first dot, then the services without hosts.
//! Within a host the longest path prefix wins; a host that matches but none of whose prefixes do is not found
//! (it does not fall back), as in kamal-proxy.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Response, StatusCode};

use crate::assign::Lane;
use crate::challenges::Challenges;
use crate::names::{HostPattern, ServiceName};
use crate::pages;
use crate::snapshot::{Service, Settings, Snapshot};
use crate::stats::Counters;
use crate::template::Template;
use crate::tls::Certificates;
use crate::upstream::Upstream;

/// Everything a worker needs to decide; immutable.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) generation: u64,
    pub(crate) settings: Settings,
    pub(crate) trusted: crate::headers::Networks,
    pub(crate) certificates: Certificates,
    /// Shared with every other table.
    pub(crate) challenges: Arc<Challenges>,
    exact: HashMap<Box<str>, Prefixes>,
    wildcard: HashMap<Box<str>, Prefixes>,
    any: Prefixes,
    /// Every service by name.
    pub(crate) routes: BTreeMap<ServiceName, Arc<Route>>,
}

/// The services of one host, longest prefix first.
#[derive(Debug, Default)]
struct Prefixes(Vec<(Box<str>, Arc<Route>)>);

/// One service as the workers use it.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) service: Service,
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    /// Those of the canary.
    pub(crate) canary: Vec<Arc<Upstream>>,
    /// Those that only read.
    pub(crate) readers: Vec<Arc<Upstream>>,
    /// Counts of the whole service, kept over switches; one for each worker.
    pub(crate) counters: Arc<[Counters]>,
    /// Whether it was stored in an earlier boot, and nobody has put it again.
    pub(crate) held: bool,
    /// Whether plain HTTP is redirected; a service on a path takes it from the host's root service.
    pub(crate) redirect_to_https: bool,
    /// The port of the HTTPS listener, when there is one.
    pub(crate) https_port: Option<u16>,
    /// [`Service::response_headers`], checked.
    pub(crate) response_headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// [`Service::error_pages`], read.
    pub(crate) error_pages: HashMap<u16, Template>,
    turn: AtomicUsize,
}

/// The parts of a route that live longer than a table.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    pub(crate) canary: Vec<Arc<Upstream>>,
    pub(crate) readers: Vec<Arc<Upstream>>,
    pub(crate) counters: Arc<[Counters]>,
}

/// A request's route and what is left of its path.
#[derive(Debug)]
pub(crate) struct Found<'t> {
    pub(crate) route: &'t Arc<Route>,
    /// Length of the path prefix to take off; 0 for none.
    pub(crate) strip: usize,
}

impl Table {
    /// Compiles `snapshot`, which has been checked; `upstreams` and `counters` give each service its live parts.
    pub(crate) fn build(
        snapshot: &Snapshot,
        certificates: Certificates,
        challenges: Arc<Challenges>,
        https_port: Option<u16>,
        mut live: impl FnMut(&Service) -> Live,
    ) -> Self {
        let mut table = Self {
            generation: snapshot.generation,
            settings: snapshot.settings.clone(),
            trusted: crate::headers::Networks::parse(&snapshot.settings.trusted_proxies).unwrap_or_default(),
            certificates,
            challenges,
            ..Self::default()
        };
        for service in &snapshot.services {
            let Live {
                upstreams,
                canary,
                readers,
                counters,
            } = live(service);
            let route = Arc::new(Route {
                held: snapshot.held.contains(&service.name),
                redirect_to_https: redirects(service, snapshot),
                https_port,
                response_headers: service
                    .response_headers
                    .iter()
                    .filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)))
                    .collect(),
                error_pages: service
                    .error_pages
                    .iter()
                    .filter_map(|(status, page)| Some((*status, Template::parse(page).ok()?)))
                    .collect(),
                service: service.clone(),
                upstreams,
                canary,
                readers,
                counters,
                turn: AtomicUsize::new(0),
            });
            for prefix in &service.path_prefixes {
                let entry = (Box::from(prefix.as_str()), Arc::clone(&route));
                if service.hosts.is_empty() {
                    table.any.0.push(entry);
                    continue;
                }
                for host in &service.hosts {
                    let (map, key) = match host.wildcard_suffix() {
                        Some(suffix) => (&mut table.wildcard, suffix),
                        None => (&mut table.exact, host.as_str()),
                    };
                    map.entry(key.into()).or_default().0.push(entry.clone());
                }
            }
            table.routes.insert(service.name.clone(), route);
        }
        let every = table.exact.values_mut().chain(table.wildcard.values_mut());
        for prefixes in every.chain([&mut table.any]) {
            prefixes
                .0
                .sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        }
        table
    }

    /// A service of this host, the one at its root if there is one.
    pub(crate) fn of_host(&self, host: &str) -> Option<&Arc<Route>> {
        let mut room = [0_u8; 254];
        let host = normalise_host(host, &mut room)?;
        let prefixes = self
            .exact
            .get(host)
            .or_else(|| {
                host.split_once('.')
                    .and_then(|(_, suffix)| self.wildcard.get(suffix))
            })
            .unwrap_or(&self.any);
        prefixes.0.last().map(|(_, route)| route)
    }

    /// The route for a host as the client wrote it (any case, with or without port and trailing dot) and a raw path.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<Found<'_>> {
        let mut room = [0_u8; 254];
        let host = normalise_host(host, &mut room)?;
        let prefixes = self
            .exact
            .get(host)
            .or_else(|| {
                host.split_once('.')
                    .and_then(|(_, suffix)| self.wildcard.get(suffix))
            })
            .unwrap_or(&self.any);
        let (prefix, route) = prefixes
            .0
            .iter()
            .find(|(prefix, _)| matches_prefix(path, prefix))?;
        let strip = if route.service.strip_path_prefix && prefix.len() > 1 {
            prefix.len()
        } else {
            0
        };
        Some(Found { route, strip })
    }
}

/// A service on a path without TLS settings of its own follows the root service of its first host.
fn redirects(service: &Service, snapshot: &Snapshot) -> bool {
    if let Some(tls) = &service.tls {
        return tls.redirect;
    }
    let is_root = |other: &&Service| other.path_prefixes.iter().any(crate::names::PathPrefix::is_root);
    service.hosts.first().is_some_and(|host| {
        snapshot
            .services
            .iter()
            .filter(is_root)
            .any(|other| other.hosts.contains(host) && other.tls.as_ref().is_some_and(|tls| tls.redirect))
    })
}

/// Whether `path` lies under `prefix`, by whole segments: `/api` holds `/api` and `/api/x`, not `/apiary`.
pub(crate) fn matches_prefix(path: &str, prefix: &str) -> bool {
    prefix.len() == 1
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Lower case, no port, no trailing dot; `None` when it cannot be a host.
pub(crate) fn normalise_host<'r>(host: &str, room: &'r mut [u8; 254]) -> Option<&'r str> {
    let bytes = without_port(host).as_bytes();
    let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
    let to = room.get_mut(..bytes.len())?;
    for (to, from) in to.iter_mut().zip(bytes) {
        *to = from.to_ascii_lowercase();
    }
    std::str::from_utf8(to).ok()
}

/// `host` without `:port`; an IPv6 address keeps its brackets.
pub(crate) fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    }
}

impl Route {
    /// The upstream of `lane` with the fewest requests in flight among the healthy ones, skipping `tried`; equals take
    /// turns. A lane without one falls back to the main one.
    pub(crate) fn pick(&self, lane: Lane, tried: &[u64]) -> Option<&Arc<Upstream>> {
        let set = match lane {
            Lane::Main => &self.upstreams,
            Lane::Canary => &self.canary,
            Lane::Read => &self.readers,
        };
        self.pick_among(set, tried).or_else(|| match lane {
            Lane::Main => None,
            Lane::Canary | Lane::Read => self.pick_among(&self.upstreams, tried),
        })
    }

    fn pick_among<'r>(&self, upstreams: &'r [Arc<Upstream>], tried: &[u64]) -> Option<&'r Arc<Upstream>> {
        if let [only] = upstreams {
            return (only.is_healthy() && !tried.contains(&only.id)).then_some(only);
        }
        let count = upstreams.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..count)
            .map(|step| &upstreams[first.wrapping_add(step) % count])
            .filter(|upstream| upstream.is_healthy() && !tried.contains(&upstream.id))
            .min_by_key(|upstream| upstream.in_flight())
    }

    /// The page of an answer of our own: the app's, where it has one.
    pub(crate) fn page(&self, status: StatusCode, message: &str) -> Response<Bytes> {
        let mut page = pages::page(status, message);
        if let Some(template) = self.error_pages.get(&status.as_u16()) {
            *page.body_mut() = Bytes::from(template.fill(message));
        }
        page
    }

    /// Whether requests wait for what [`crate::hold`] waits for.
    pub(crate) fn waits(&self) -> bool {
        self.held || !self.upstreams.iter().any(|upstream| upstream.is_proven())
    }

    /// Every upstream that it may send requests to.
    pub(crate) fn every_upstream(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.upstreams.iter().chain(&self.canary).chain(&self.readers)
    }

    /// Where a client that came by another of the hosts is sent.
    pub(crate) fn canonical(&self, host: &str) -> Option<&HostPattern> {
        let canonical = self.service.canonical_host.as_ref()?;
        let mut room = [0_u8; 254];
        (normalise_host(host, &mut room)? != canonical.as_str()).then_some(canonical)
    }
}

#[cfg(test)]
mod tests;
