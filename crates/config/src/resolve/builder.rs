//! The registry and how the image is built.

use super::text::{pairs, present_scalar, text_list, to_i};
use crate::model::{Builder, BuilderKind, Credential, Pack, Registry, Scalar};
use crate::validate::sections::is_local_registry;
use crate::yaml::tree::{Map, Node};

/// The buildpack that writes the labels by which images are found; Kamal always adds it.
const LABEL_BUILDPACK: &str = "paketo-buildpacks/image-labels";

/// Options of the `gha` cache that also go to `--cache-from`.
const GHA_FROM: &[&str] = &["url", "url_v2", "token", "scope", "timeout"];

/// A registry section.
pub(super) fn registry(map: Option<&Map>) -> Registry {
    let get = |key: &str| map.and_then(|map| map.get(key)).filter(|value| value.is_truthy());
    let server = get("server").map(Node::to_s);
    let local = server.as_deref().is_some_and(is_local_registry);
    let credential = |key: &str| {
        get(key).map(|value| match value.as_seq() {
            Some(names) => Credential::Secret {
                secret: names.first().map(Node::to_s).unwrap_or_default(),
            },
            None => Credential::Literal(value.to_s()),
        })
    };
    Registry {
        local,
        local_port: server
            .as_deref()
            .filter(|_| local)
            .map(|server| to_i(server.rsplit(':').next().unwrap_or_default())),
        server,
        username: credential("username"),
        password: credential("password"),
    }
}

/// Architectures to build for.
pub(crate) fn arches(map: &Map) -> Vec<String> {
    match map.get("arch") {
        Some(arch) => match arch.as_seq() {
            Some(_) => text_list(arch),
            None => vec![arch.to_s()],
        },
        None => Vec::new(),
    }
}

/// Architectures built on this machine: all of them without a remote builder, else only its own.
pub(crate) fn local_arches(map: &Map, arches: &[String], machine: &str) -> Vec<String> {
    if map.get("local").and_then(Node::as_bool) == Some(false) {
        Vec::new()
    } else if map.get("remote").is_some_and(Node::is_truthy) {
        arches
            .iter()
            .filter(|arch| *arch == machine)
            .take(1)
            .cloned()
            .collect()
    } else {
        arches.to_vec()
    }
}

/// The builder section.
pub(super) fn builder(map: Option<&Map>, registry: &Registry, image: &str, machine: &str) -> Builder {
    let empty = Map::default();
    let map = map.unwrap_or(&empty);
    let get = |key: &str| map.get(key);
    let arches = arches(map);
    let local_arches = local_arches(map, &arches, machine);
    let has_remote = get("remote").is_some_and(Node::is_truthy);
    let builds_remotely = has_remote && arches.iter().any(|arch| !local_arches.contains(arch));
    let local_disabled = get("local").and_then(Node::as_bool) == Some(false);
    let builds_locally = !local_disabled && (arches.is_empty() || !local_arches.is_empty());
    let driver = get("driver").map_or_else(|| "docker-container".to_owned(), Node::to_s);
    let pack = get("pack").filter(|pack| pack.is_truthy());
    let kind = match (builds_remotely, builds_locally) {
        (true, true) => BuilderKind::Hybrid,
        (true, false) => BuilderKind::Remote,
        _ if pack.is_some() => BuilderKind::Pack,
        _ if driver.starts_with("cloud") => BuilderKind::Cloud,
        _ => BuilderKind::Local,
    };
    let (cache_to, cache_from) = cache(get("cache"), registry, image);
    Builder {
        kind,
        driver,
        arches,
        local_arches,
        remote: get("remote").map(super::text::scalar),
        context: get("context")
            .and_then(present_scalar)
            .unwrap_or_else(|| Scalar::Text(".".to_owned())),
        dockerfile: get("dockerfile")
            .and_then(present_scalar)
            .unwrap_or_else(|| Scalar::Text("Dockerfile".to_owned())),
        target: get("target").map(super::text::scalar),
        args: pairs(get("args").and_then(Node::as_map)),
        secret_names: get("secrets").map(text_list).unwrap_or_default(),
        ssh: get("ssh").map(super::text::scalar),
        provenance: get("provenance").map(super::text::scalar),
        sbom: get("sbom").and_then(Node::as_bool),
        cache_to,
        cache_from,
        git_clone: get("context").is_none(),
        pack: pack.map(|pack| Pack {
            builder: pack.get("builder").map(Node::to_s),
            buildpacks: pack
                .get("buildpacks")
                .map(text_list)
                .unwrap_or_default()
                .into_iter()
                .chain([LABEL_BUILDPACK.to_owned()])
                .collect(),
        }),
    }
}

/// `--cache-to` and `--cache-from`.
fn cache(cache: Option<&Node>, registry: &Registry, image: &str) -> (Option<String>, Option<String>) {
    let Some(cache) = cache else { return (None, None) };
    let options = cache
        .get("options")
        .filter(|options| options.is_truthy())
        .map(Node::to_s);
    match cache.get("type").and_then(Node::as_str) {
        Some("gha") => {
            let from: Vec<String> = options
                .iter()
                .flat_map(|options| options.split(','))
                .filter(|option| {
                    let name = option.split('=').next().unwrap_or_default();
                    GHA_FROM.contains(&name)
                })
                .map(ToOwned::to_owned)
                .collect();
            (
                Some(comma("type=gha", options)),
                Some(comma("type=gha", (!from.is_empty()).then(|| from.join(",")))),
            )
        }
        Some("registry") => {
            let name = cache
                .get("image")
                .filter(|image| image.is_truthy())
                .map_or_else(|| format!("{image}-build-cache"), Node::to_s);
            let from = match &registry.server {
                Some(server) => format!("type=registry,ref={server}/{name}"),
                None => format!("type=registry,ref={name}"),
            };
            (Some(comma(&from, options)), Some(from))
        }
        _ => (None, None),
    }
}

fn comma(first: &str, more: Option<String>) -> String {
    match more {
        Some(more) => format!("{first},{more}"),
        None => first.to_owned(),
    }
}
