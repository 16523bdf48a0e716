//! The image to send: found in the local Docker, checked, and turned into what the host lacks.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use appliance_config::Resolved;
use appliance_containers::engine::{Engine as _, ImageInfo};
use appliance_containers::{Docker, EngineError};
use appliance_push::change::{Digest, Image, Platform, Repository, Tag};
use appliance_push::image::{Cache, Outline, PrepareOptions, Prepared, Source, prepare, prepare_from_cache};
use appliance_push::upload;
use appliance_push::upload::Sent;
use futures_util::TryStreamExt as _;
use tokio_util::io::StreamReader;

use super::link::Link;
use crate::failure::{Kind, failure};
use crate::ui;

/// Blobs sent at one time; more does not help over one connection.
const PARALLEL: usize = 3;

/// An image in the local Docker.
pub struct Local {
    docker: Docker,
    info: ImageInfo,
    name: String,
}

/// Kamal's label by which an image says whose it is.
const SERVICE: &str = "service";

impl Local {
    /// Finds the image: `wanted`, or the configuration's image with the version as its tag, or tagged `latest`.
    ///
    /// # Errors
    /// When Docker does not answer or has no such image.
    pub async fn find(config: &Resolved, wanted: Option<&str>) -> anyhow::Result<Self> {
        let docker = Docker::at(socket()?);
        let candidates = match wanted {
            Some(name) => vec![name.to_owned()],
            None => candidates(config),
        };
        for name in &candidates {
            match docker.inspect_image(name).await {
                Ok(Some(info)) => {
                    return Ok(Self {
                        docker,
                        info,
                        name: name.clone(),
                    });
                }
                Ok(None) => {}
                Err(error) => return Err(unreachable(error)),
            }
        }
        Err(failure(
            Kind::Config,
            format!("the local Docker has no image {}", candidates.join(", nor ")),
        )
        .hint(format!(
            "docker build -t {} . (or name another one: appliance push --image NAME)",
            candidates[0]
        ))
        .into())
    }

    /// What Docker calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Refuses an image that this host cannot run, before anything is sent.
    ///
    /// # Errors
    /// When operating system or architecture differ.
    pub fn check_platform(&self, host: &Platform) -> anyhow::Result<()> {
        let found = self.platform();
        if found.os == host.os && found.architecture == host.architecture {
            return Ok(());
        }
        Err(failure(
            Kind::Config,
            format!(
                "the image {} is built for {found}, the server runs {host}",
                self.name
            ),
        )
        .hint(format!("docker build --platform {host} -t {} .", self.name))
        .into())
    }

    /// Warns where the image says that it belongs to another service.
    pub fn check_service(&self, service: &str) {
        if let Some(label) = self.info.labels.get(SERVICE)
            && label != service
        {
            ui::warn(&format!(
                "the image {} has the label service={label}, not {service}",
                self.name
            ));
        }
    }

    fn platform(&self) -> Platform {
        Platform {
            os: self.info.os.clone(),
            architecture: self.info.architecture.clone(),
            variant: self.info.variant.clone().filter(|variant| !variant.is_empty()),
        }
    }

    fn outline(&self) -> anyhow::Result<Outline> {
        let digest = |text: &String| Digest::parse(text).context("Docker's description of the image");
        Ok(Outline {
            id: digest(&self.info.id)?,
            diff_ids: self
                .info
                .diff_ids
                .iter()
                .map(digest)
                .collect::<anyhow::Result<_>>()?,
        })
    }

    /// Asks the host what it has, and prepares the rest; exports nothing when the host has it all.
    ///
    /// # Errors
    /// When the host cannot be asked, or the image cannot be exported.
    pub async fn prepare(&self, link: &Link, host: &Platform) -> anyhow::Result<Prepared> {
        let outline = self.outline()?;
        let path = cache_file();
        let cache = path.as_deref().map_or_else(Cache::default, Cache::load);
        let have = upload::have(link.client(), &outline.query(&cache)).await?;
        if let Some(prepared) = prepare_from_cache(&outline, &have, &cache) {
            return Ok(prepared);
        }
        let docker = Docker::at(self.docker.socket());
        let reference = self.info.id.clone();
        let stream = async_stream(docker, reference);
        let options = PrepareOptions {
            scratch: std::env::temp_dir(),
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            platform: Some(host.clone()),
            id: Some(outline.id.clone()),
        };
        let (prepared, cache) = prepare(Source::Archive(Box::new(stream)), have, cache, options)
            .await
            .with_context(|| format!("the image {}", self.name))?;
        if let Some(path) = &path
            && let Err(error) = cache.save(path)
        {
            ui::detail(&format!(
                "the next push will compress again: cannot write {}: {error}",
                path.display()
            ));
        }
        Ok(prepared)
    }
}

/// The export as a reader that owns its connection to Docker.
fn async_stream(docker: Docker, reference: String) -> impl tokio::io::AsyncRead + Send + Unpin {
    let (mut writer, reader) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let references = [reference.as_str()];
        let stream = docker.export_image(&references).map_err(std::io::Error::other);
        let mut source = StreamReader::new(stream);
        if let Err(error) = tokio::io::copy(&mut source, &mut writer).await {
            // The reader notices that the archive ends early and says so; this is the cause.
            ui::detail(&format!("docker save: {error}"));
        }
    });
    reader
}

/// Sends what the host lacks.
///
/// # Errors
/// When the host refuses, or the connection is lost and cannot be had again.
pub async fn send(
    link: &Link,
    prepared: &Prepared,
    repository: &Repository,
    token: String,
) -> anyhow::Result<Sent> {
    let bar = ui::bar(prepared.summary().bytes_to_send);
    let shown = bar.clone();
    let options = upload::UploadOptions {
        repository: repository.clone(),
        token,
        parallel: PARALLEL,
        progress: Arc::new(move |progress| shown.at(progress.bytes)),
    };
    let sent = upload::upload(link.transport(), link.client().clone(), prepared, &options).await;
    bar.finish();
    Ok(sent.map_err(|error| failure(Kind::Unreachable, crate::agent::chain(&error)))?)
}

/// The image as a release names it.
///
/// # Errors
/// When the configuration's image is not a repository name.
pub fn describe(config: &Resolved, prepared: &Prepared) -> anyhow::Result<Image> {
    Ok(Image {
        repository: repository(config)?,
        digest: prepared.digest(),
        config: Some(prepared.config_digest()),
        tag: Tag::parse(&config.version).context("version")?,
        platform: prepared.platform.clone(),
        registry: None,
    })
}

/// The configuration's image without its registry: on the host it needs none.
fn repository(config: &Resolved) -> anyhow::Result<Repository> {
    Repository::parse(bare(config)).map_err(|error| failure(Kind::Config, format!("image: {error}")).into())
}

fn bare(config: &Resolved) -> &str {
    let whole = &config.image.repository;
    config
        .registry
        .server
        .as_ref()
        .and_then(|server| whole.strip_prefix(server.as_str())?.strip_prefix('/'))
        .unwrap_or(whole)
}

fn candidates(config: &Resolved) -> Vec<String> {
    let bare = bare(config);
    let latest = config.image.latest.rsplit(':').next().unwrap_or("latest");
    let mut names = vec![
        format!("{bare}:{}", config.version),
        config.image.absolute.clone(),
        format!("{bare}:{latest}"),
        config.image.latest.clone(),
    ];
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

fn socket() -> anyhow::Result<PathBuf> {
    match std::env::var("DOCKER_HOST") {
        Ok(host) if !host.is_empty() => host.strip_prefix("unix://").map(PathBuf::from).ok_or_else(|| {
            failure(
                Kind::Config,
                format!("DOCKER_HOST is {host}; images are taken from a Docker on this machine (unix://…)"),
            )
            .into()
        }),
        _ => Ok(PathBuf::from("/var/run/docker.sock")),
    }
}

fn unreachable(error: EngineError) -> anyhow::Error {
    failure(Kind::Config, crate::agent::chain(&error))
        .hint("start Docker on this machine, or see that you may use it: docker info")
        .into()
}

fn cache_file() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(base.join("appliance/layers.json"))
}
