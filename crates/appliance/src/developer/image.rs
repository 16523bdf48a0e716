//! The image to send: found in the local Docker, checked, and turned into what the host lacks.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use appliance_config::Resolved;
use appliance_containers::engine::{Credentials, Engine as _, ImageInfo};
use appliance_containers::{Docker, EngineError};
use appliance_push::change::{Digest, Image, Platform, Repository, Tag};
use appliance_push::image::{
    Ask, Cache, Handing, Outline, PrepareOptions, Prepared, Source, is_worth_it, layout, prepare,
    prepare_from_cache,
};
use appliance_push::store::{Compression, HaveAnswer};
use appliance_push::upload;
use appliance_push::upload::Sent;
use futures_util::TryStreamExt as _;
use tokio_util::io::StreamReader;

use super::link::Link;
use crate::failure::{Kind, failure};
use crate::ui;

/// Blobs sent at one time; more does not help over one connection.
const PARALLEL: usize = 3;

/// Which image, and where it comes from
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ImageArgs {
    /// Image in the local Docker, oci:DIRECTORY[:TAG], an archive (FILE.tar, oci-archive:FILE[:TAG],
    /// docker-archive:FILE[:NAME]), or host:TAG for one pushed through a tunnel
    /// (default: the configuration's image, tagged with the version)
    #[arg(long, value_name = "NAME")]
    pub image: Option<String>,
    /// Let the hosts pull from the configured registry, with the release's own credentials
    #[arg(long)]
    pub from_registry: bool,
    /// Do not build; the image is there already
    #[arg(short = 'P', long)]
    pub skip_push: bool,
    /// Build without the build cache
    #[arg(long)]
    pub no_cache: bool,
}

/// An image that this machine sends to the hosts.
pub struct Local {
    from: Origin,
    name: String,
}

/// Where the image's bytes are.
enum Origin {
    Docker {
        docker: Docker,
        info: Box<ImageInfo>,
    },
    /// A file, and which of its images.
    Archive(PathBuf, Option<String>),
    /// A directory, and which of its images.
    Layout(PathBuf, Option<String>),
}

/// Kamal's label by which an image says whose it is.
const SERVICE: &str = "service";

impl Local {
    /// Finds the image: `wanted`, or the configuration's image with the version as its tag, or `or_latest` tagged `latest`.
    ///
    /// # Errors
    /// When Docker does not answer or has no such image, or the file is not there.
    pub async fn find(config: &Resolved, wanted: Option<&str>, or_latest: bool) -> anyhow::Result<Self> {
        if let Some(from) = wanted.map(file_of).transpose()?.flatten() {
            return Ok(Self {
                from,
                name: wanted.unwrap_or_default().to_owned(),
            });
        }
        let docker = Docker::at(socket()?);
        let candidates = match wanted {
            Some(name) => vec![name.to_owned()],
            None => candidates(config, or_latest),
        };
        for name in &candidates {
            match docker.inspect_image(name).await {
                Ok(Some(info)) => {
                    if wanted.is_none() && is_latest(config, name) {
                        ui::warn(&format!(
                            "the local Docker has no image {}, so {name} is brought as version {}",
                            candidates[0], config.version
                        ));
                    }
                    return Ok(Self {
                        from: Origin::Docker {
                            docker,
                            info: Box::new(info),
                        },
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
            "docker build -t {} ., or appliance build push (or name another one: appliance push --image NAME)",
            candidates[0]
        ))
        .into())
    }

    /// What Docker calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Refuses an image that this host cannot run, before anything is sent; a file is looked into when it is prepared.
    ///
    /// # Errors
    /// When operating system or architecture differ.
    pub fn check_platform(&self, host: &Platform) -> anyhow::Result<()> {
        let Origin::Docker { info, .. } = &self.from else {
            return Ok(());
        };
        let found = Platform {
            os: info.os.clone(),
            architecture: info.architecture.clone(),
            variant: info.variant.clone().filter(|variant| !variant.is_empty()),
        };
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
        if let Origin::Docker { info, .. } = &self.from
            && let Some(label) = info.labels.get(SERVICE)
            && label != service
        {
            ui::warn(&format!(
                "the image {} has the label service={label}, not {service}",
                self.name
            ));
        }
    }

    /// Asks the host what it has, and prepares the rest; exports nothing when the host has it all.
    ///
    /// # Errors
    /// When the host cannot be asked, or the image cannot be exported or is built for another platform.
    pub async fn prepare(
        &self,
        link: &Link,
        host: &Platform,
        repository: &Repository,
    ) -> anyhow::Result<Prepared> {
        let outline = self.outline(host).await?;
        let path = cache_file();
        let cache = path.as_deref().map_or_else(Cache::default, Cache::load);
        let have = upload::have(link.client(), &outline.query(&cache)).await?;
        if let Some(prepared) = prepare_from_cache(&outline, &have, &cache) {
            return Ok(prepared);
        }
        let options = PrepareOptions {
            id: Some(outline.id.clone()),
            ask: Some(ask(link, repository)),
            ..self.options(host)
        };
        let handed = self.handed(&outline, &have, &cache, &options).await;
        let (prepared, cache) = match handed {
            Some(done) => done,
            None => prepare(self.source(), have, cache, options)
                .await
                .with_context(|| format!("the image {}", self.name))?,
        };
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

    /// The image by a push of the local Docker, where that is quicker than an export and Docker reaches this process: one
    /// in a virtual machine does not.
    async fn handed(
        &self,
        outline: &Outline,
        have: &HaveAnswer,
        cache: &Cache,
        options: &PrepareOptions,
    ) -> Option<(Prepared, Cache)> {
        let Origin::Docker { docker, info } = &self.from else {
            return None;
        };
        // Taking away the only name of an image would remove it.
        if info.tags.is_empty() {
            return None;
        }
        let sizes = docker.layer_sizes(&info.id).await.unwrap_or_default();
        if !is_worth_it(outline, have, cache, &sizes) {
            return None;
        }
        let done = hand_over(docker, &info.id, outline, have, cache, options).await;
        done.inspect_err(|error| ui::detail(&format!("the image is exported instead: {error:#}")))
            .ok()
    }

    fn options(&self, host: &Platform) -> PrepareOptions {
        PrepareOptions {
            scratch: std::env::temp_dir(),
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            platform: Some(host.clone()),
            name: match &self.from {
                Origin::Docker { .. } => None,
                Origin::Archive(_, name) | Origin::Layout(_, name) => name.clone(),
            },
            id: None,
            ask: None,
        }
    }

    fn source(&self) -> Source {
        match &self.from {
            Origin::Docker { docker, info } => {
                let docker = Docker::at(docker.socket());
                Source::Archive(Box::new(async_stream(docker, info.id.clone())))
            }
            Origin::Archive(file, _) => Source::File(file.clone()),
            Origin::Layout(directory, _) => Source::Layout(directory.clone()),
        }
    }

    /// What the image is made of, without its bytes where that is possible.
    async fn outline(&self, host: &Platform) -> anyhow::Result<Outline> {
        let digest = |text: &String| Digest::parse(text).context("Docker's description of the image");
        match &self.from {
            Origin::Docker { info, .. } => Ok(Outline {
                id: digest(&info.id)?,
                diff_ids: info.diff_ids.iter().map(digest).collect::<anyhow::Result<_>>()?,
            }),
            Origin::Layout(directory, name) => Ok(layout::outline(directory, Some(host), name.as_deref())
                .with_context(|| format!("the image {}", self.name))?),
            // An archive tells only at its end what it holds: it is read twice, the first time without compressing.
            Origin::Archive(..) => {
                let nothing = HaveAnswer {
                    blobs: Vec::new(),
                    layers: std::collections::BTreeMap::new(),
                    accepts: vec![Compression::None],
                    available: u64::MAX,
                };
                let (found, _) = prepare(self.source(), nothing, Cache::default(), self.options(host))
                    .await
                    .with_context(|| format!("the image {}", self.name))?;
                Ok(Outline {
                    id: found.config_digest(),
                    diff_ids: found.layers.into_iter().map(|layer| layer.diff_id).collect(),
                })
            }
        }
    }
}

/// `oci:DIRECTORY[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]` (as skopeo spells them), or an archive's
/// file; anything else is a name in Docker.
fn file_of(wanted: &str) -> anyhow::Result<Option<Origin>> {
    let missing =
        |path: &std::path::Path| failure(Kind::Config, format!("there is no image at {}", path.display()));
    if let Some(text) = wanted.strip_prefix("oci:") {
        let (directory, name) = named(text, |path| path.join("index.json").is_file());
        if !directory.join("index.json").is_file() {
            return Err(missing(&directory)
                .hint("an OCI layout is a directory with index.json and blobs/, such as: oci:DIRECTORY:TAG")
                .into());
        }
        return Ok(Some(Origin::Layout(directory, name)));
    }
    let prefixed = ["docker-archive:", "oci-archive:"]
        .iter()
        .find_map(|prefix| wanted.strip_prefix(prefix));
    let (file, name) = match prefixed {
        Some(text) => named(text, std::path::Path::is_file),
        None => (PathBuf::from(wanted), None),
    };
    match (file.is_file(), prefixed.is_some() || wanted.ends_with(".tar")) {
        (true, true) => Ok(Some(Origin::Archive(file, name))),
        (false, true) => Err(missing(&file).into()),
        _ => Ok(None),
    }
}

/// A path, and the image's name behind a colon: the longest path that is there counts.
fn named(text: &str, is_there: impl Fn(&std::path::Path) -> bool) -> (PathBuf, Option<String>) {
    let whole = PathBuf::from(text);
    if is_there(&whole) {
        return (whole, None);
    }
    for (place, _) in text.rmatch_indices(':') {
        let path = PathBuf::from(&text[..place]);
        if is_there(&path) {
            return (path, Some(text[place + 1..].to_owned()));
        }
    }
    (whole, None)
}

/// Asks the host about chunks, from the threads that cut layers; a host that cannot tell gets whole layers.
fn ask(link: &Link, repository: &Repository) -> Ask {
    let (client, repository) = (link.client().clone(), repository.clone());
    let runtime = tokio::runtime::Handle::current();
    Arc::new(move |chunks| {
        runtime
            .block_on(upload::have_chunks(&client, &repository, chunks))
            .inspect_err(|error| ui::detail(&format!("no delta: {}", crate::agent::chain(error))))
            .ok()
    })
}

/// Has Docker push the image to this process; the name that this takes is taken away again.
async fn hand_over(
    docker: &Docker,
    id: &str,
    outline: &Outline,
    have: &HaveAnswer,
    cache: &Cache,
    options: &PrepareOptions,
) -> anyhow::Result<(Prepared, Cache)> {
    let handing = Handing::begin(outline, have, cache, &options.scratch).await?;
    let name = handing.name(&Repository::parse("appliance/handover")?);
    let credentials = Credentials {
        username: handing.credentials().username.clone(),
        password: handing.credentials().password.clone(),
        server: name.clone(),
    };
    docker.tag_image(id, &name, "latest").await?;
    let pushed = docker.push_image(&name, "latest", &credentials).await;
    let untagged = docker.remove_image(&format!("{name}:latest")).await;
    pushed?;
    untagged?;
    Ok(handing
        .end(outline.clone(), have.clone(), cache.clone(), options.clone())
        .await?)
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
    let summary = prepared.summary();
    let bar = ui::bar(summary.bytes_to_send);
    bar.say(&format!(
        "{} of {} layers already there",
        summary.layers_there, summary.layers
    ));
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
///
/// # Errors
/// When it is no repository name.
pub fn repository(config: &Resolved) -> anyhow::Result<Repository> {
    Repository::parse(bare(config)).map_err(|error| failure(Kind::Config, format!("image: {error}")).into())
}

/// The configuration's image as it is written there, without its registry.
pub fn bare(config: &Resolved) -> &str {
    let whole = &config.image.repository;
    config
        .registry
        .server
        .as_ref()
        .and_then(|server| whole.strip_prefix(server.as_str())?.strip_prefix('/'))
        .unwrap_or(whole)
}

/// The names of an image that nobody named, the likeliest first.
fn candidates(config: &Resolved, or_latest: bool) -> Vec<String> {
    let mut names = vec![
        format!("{}:{}", bare(config), config.version),
        config.image.absolute.clone(),
    ];
    if or_latest {
        names.extend(latest(config));
    }
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

fn latest(config: &Resolved) -> [String; 2] {
    let tag = config.image.latest.rsplit(':').next().unwrap_or("latest");
    [format!("{}:{tag}", bare(config)), config.image.latest.clone()]
}

/// Whether it is an image of no certain version.
fn is_latest(config: &Resolved, name: &str) -> bool {
    let [version, absolute] = [
        format!("{}:{}", bare(config), config.version),
        config.image.absolute.clone(),
    ];
    name != version && name != absolute && latest(config).iter().any(|latest| latest == name)
}

/// The local Docker's socket.
///
/// # Errors
/// When `DOCKER_HOST` names one that is not on this machine.
pub fn socket() -> anyhow::Result<PathBuf> {
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
