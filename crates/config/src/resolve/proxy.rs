//! How the proxy serves a role or an accessory.

use super::text::{present_scalar, scalar, text_list};
use crate::model::{Buffering, CustomCertificate, Healthcheck, Proxy, ProxyRun, Timeouts};
use crate::validate::proxy::{has_own_certificate, proxy_hosts, ruby_split};
use crate::yaml::tree::{Map, Node};

/// Headers Kamal logs unless told otherwise.
const LOGGED_REQUEST_HEADERS: &[&str] = &["Cache-Control", "Last-Modified", "User-Agent"];

/// The settings of one service at the proxy.
pub(super) fn proxy(map: &Map, service_name: String, timeouts: &Timeouts) -> Proxy {
    let int = |key: &str| map.get(key).and_then(Node::as_int);
    let bool = |key: &str| map.get(key).and_then(Node::as_bool);
    let nested = |section: &str, key: &str| map.get(section).and_then(|section| section.get(key));
    let ssl = map.get("ssl").filter(|ssl| ssl.is_truthy());
    Proxy {
        service_name,
        hosts: proxy_hosts(map),
        app_port: int("app_port").unwrap_or(80),
        ssl: ssl.is_some(),
        custom_certificate: ssl.filter(|ssl| has_own_certificate(ssl)).map(|ssl| {
            let name = |key: &str| ssl.get(key).map(Node::to_s).unwrap_or_default();
            CustomCertificate {
                certificate_pem: name("certificate_pem"),
                private_key_pem: name("private_key_pem"),
            }
        }),
        ssl_redirect: bool("ssl_redirect"),
        path_prefixes: match map.get("path_prefixes") {
            Some(prefixes) => text_list(prefixes),
            None => map
                .get("path_prefix")
                .map(|prefix| ruby_split(&prefix.to_s()))
                .unwrap_or_default(),
        },
        strip_path_prefix: bool("strip_path_prefix"),
        healthcheck: Healthcheck {
            path: nested("healthcheck", "path").map(scalar),
            interval: nested("healthcheck", "interval").and_then(Node::as_int),
            timeout: nested("healthcheck", "timeout").and_then(Node::as_int),
        },
        response_timeout: int("response_timeout"),
        deploy_timeout: timeouts.deploy_timeout,
        drain_timeout: timeouts.drain_timeout,
        buffering: Buffering {
            requests: nested("buffering", "requests")
                .and_then(Node::as_bool)
                .unwrap_or(true),
            responses: nested("buffering", "responses")
                .and_then(Node::as_bool)
                .unwrap_or(true),
            memory: nested("buffering", "memory").and_then(Node::as_int),
            max_request_body: nested("buffering", "max_request_body").and_then(Node::as_int),
            max_response_body: nested("buffering", "max_response_body").and_then(Node::as_int),
            written_requests: nested("buffering", "requests").and_then(Node::as_bool),
            written_responses: nested("buffering", "responses").and_then(Node::as_bool),
        },
        log_request_headers: nested("logging", "request_headers").map_or_else(
            || LOGGED_REQUEST_HEADERS.iter().map(ToString::to_string).collect(),
            text_list,
        ),
        log_response_headers: nested("logging", "response_headers").map(text_list),
        forward_headers: bool("forward_headers"),
        run: map
            .get("run")
            .filter(|run| run.is_present())
            .and_then(Node::as_map)
            .map(run),
    }
}

fn run(map: &Map) -> ProxyRun {
    let int = |key: &str| map.get(key).and_then(Node::as_int);
    let bool = |key: &str| map.get(key).and_then(Node::as_bool);
    let text = |key: &str| map.get(key).and_then(present_scalar);
    ProxyRun {
        http_port: int("http_port"),
        https_port: int("https_port"),
        metrics_port: int("metrics_port"),
        debug: bool("debug"),
        log_max_size: text("log_max_size"),
        publish: bool("publish"),
        bind_ips: map
            .get("bind_ips")
            .and_then(Node::as_seq)
            .map(|ips| ips.iter().map(scalar).collect()),
        registry: text("registry"),
        repository: text("repository"),
        version: text("version"),
        options: map.get("options").map(Node::to_json),
    }
}
