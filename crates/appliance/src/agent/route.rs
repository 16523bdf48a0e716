//! From a release's `proxy:` to a service of the proxy.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use appliance_proxy::names::{
    CertificateName, HostPattern, NameError, PathPrefix, ServiceName, UpstreamAddress,
};
use appliance_proxy::snapshot::{Buffering, Certificate, HealthCheck, Log, Service, Tls, UpstreamProtocol};
use appliance_push::change::{self, ProxySpec};

/// The service of one proxied role, served by containers at `upstreams`; the hosts in `local_ca` show the host's own CA.
///
/// # Errors
/// When a host, path or name of the release is not one the proxy can serve.
pub fn service(
    spec: &ProxySpec,
    upstreams: &[IpAddr],
    local_ca: Vec<HostPattern>,
) -> Result<Service, NameError> {
    let name = ServiceName::parse(&spec.service_name)?;
    let hosts = spec
        .hosts
        .iter()
        .map(|host| HostPattern::parse(host))
        .collect::<Result<Vec<_>, _>>()?;
    let upstreams = upstreams.iter().map(|address| upstream(spec, *address)).collect();
    let mut service = Service::new(name, hosts, upstreams);
    if !spec.path_prefixes.is_empty() {
        service.path_prefixes = spec
            .path_prefixes
            .iter()
            .map(|prefix| PathPrefix::parse(prefix))
            .collect::<Result<Vec<_>, _>>()?;
    }
    service.strip_path_prefix = spec.strip_path_prefix;
    service.tls = match &spec.tls {
        change::Tls::Off => None,
        change::Tls::Auto => Some(Tls {
            redirect: spec.ssl_redirect,
            certificate: Certificate::PerHost { local_ca },
        }),
        change::Tls::Secrets { .. } => Some(Tls {
            redirect: spec.ssl_redirect,
            certificate: Certificate::Named(certificate_name(spec)?),
        }),
    };
    // As kamal-proxy does; queries stay out of it.
    service.log = Log {
        requests: true,
        query: false,
        request_headers: spec.log_request_headers.clone(),
        response_headers: spec.log_response_headers.clone(),
    };
    service.health_check = health_check(spec);
    if spec.extras.h2c {
        service.upstream_protocol = UpstreamProtocol::H2c;
    }
    service.response_timeout = Duration::from_secs(u64::from(spec.response_timeout));
    // Kamal believes the visitor's headers exactly where the proxy does not end TLS itself.
    service.forward_headers = spec
        .forward_headers
        .unwrap_or(matches!(spec.tls, change::Tls::Off));
    service.limits.max_request_body = spec
        .buffering
        .as_ref()
        .and_then(|buffering| buffering.max_request_body)
        .filter(|bytes| *bytes > 0);
    service.buffering = spec.buffering.as_ref().and_then(buffering);
    Ok(service)
}

/// Which bodies the proxy holds back; `None` when everything streams.
fn buffering(wanted: &change::Buffering) -> Option<Buffering> {
    let defaults = Buffering::default();
    (wanted.requests || wanted.responses).then(|| Buffering {
        requests: wanted.requests,
        responses: wanted.responses,
        memory_bytes: wanted.memory.unwrap_or(defaults.memory_bytes),
        max_response_body: wanted.max_response_body.filter(|bytes| *bytes > 0),
    })
}

/// Where the proxy reaches a container of this role.
pub fn upstream(spec: &ProxySpec, address: IpAddr) -> UpstreamAddress {
    SocketAddr::new(address, spec.app_port).into()
}

/// How the proxy asks a container whether it is ready.
pub fn health_check(spec: &ProxySpec) -> HealthCheck {
    HealthCheck {
        path: spec.healthcheck.path.clone(),
        interval: Duration::from_secs(u64::from(spec.healthcheck.interval)),
        timeout: Duration::from_secs(u64::from(spec.healthcheck.timeout)),
        protocol: spec.extras.h2c.then_some(UpstreamProtocol::H2c),
        ..HealthCheck::default()
    }
}

/// The name under which a release's own certificate is handed to the proxy.
///
/// # Errors
/// When the service's name is not one the proxy accepts.
pub fn certificate_name(spec: &ProxySpec) -> Result<CertificateName, NameError> {
    CertificateName::parse(&spec.service_name)
}
