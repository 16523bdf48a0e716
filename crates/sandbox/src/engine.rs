//! The connection to Docker, and the image cache.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bollard::models::{ContainerConfig, ContainerCreateBody};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateContainerOptions, CreateImageOptionsBuilder,
    RemoveContainerOptionsBuilder, TagImageOptionsBuilder, UploadToContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::TryStreamExt as _;
use tokio_util::io::ReaderStream;

use crate::apt::Apt;
use crate::error::{SandboxError, is_absent};
use crate::image::{Image, ImageRef, Recipe};
use crate::machine::Machine;
use crate::rootfs;

/// Where progress lines go; called from any thread.
pub type Progress<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// How long one request to Docker may take; importing a large image is one request. In seconds.
const REQUEST_SECONDS: u64 = 1800;

/// The instruction that names the signal by which a container is asked to end.
const STOP_SIGNAL: &str = "STOPSIGNAL ";

/// The local Docker daemon, seen as a place for throw-away hosts.
#[derive(Debug)]
pub struct Sandbox {
    docker: Docker,
    machine: Mutex<Machine>,
    scratch: PathBuf,
}

impl Sandbox {
    /// Connects to the Docker daemon.
    ///
    /// `docker_host` is what the variable `DOCKER_HOST` holds: only `unix://` addresses are understood, the default
    /// is `/var/run/docker.sock`.
    /// `scratch` is a directory for build files and the lock that keeps two processes from building the same image.
    ///
    /// # Errors
    /// [`SandboxError::Connect`] if no daemon answers.
    pub async fn connect(docker_host: Option<&str>, scratch: &Path) -> Result<Self, SandboxError> {
        let socket = docker_host
            .filter(|host| !host.is_empty())
            .unwrap_or("unix:///var/run/docker.sock");
        let refused = |source| SandboxError::Connect {
            socket: socket.to_owned(),
            source,
        };
        let docker =
            Docker::connect_with_unix(socket, REQUEST_SECONDS, API_DEFAULT_VERSION).map_err(refused)?;
        let docker = docker.negotiate_version().await.map_err(refused)?;
        let info = docker.info().await.map_err(refused)?;
        Ok(Self {
            docker,
            machine: Mutex::new(Machine::from_info(&info)),
            scratch: scratch.to_owned(),
        })
    }

    pub(crate) fn docker(&self) -> &Docker {
        &self.docker
    }

    /// What is known of the machine so far.
    #[must_use]
    pub fn machine(&self) -> Machine {
        *self
            .machine
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Remembers that Docker refuses privileged containers.
    pub(crate) fn without_privilege(&self) -> Machine {
        let mut machine = self
            .machine
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        machine.privileged = false;
        *machine
    }

    /// Makes sure an image is there, building it if no image of the same content is.
    ///
    /// Only one process builds at a time; the others wait, then find the result.
    ///
    /// # Errors
    /// [`SandboxError::Rootfs`] if packages cannot be fetched or unpacked, [`SandboxError::Docker`] if Docker refuses.
    pub async fn ensure(&self, image: &Image, progress: Progress<'_>) -> Result<ImageRef, SandboxError> {
        let apt = Apt::of_this_machine().await;
        let reference = image.reference(&apt);
        if self.has(&reference).await? {
            return Ok(reference);
        }
        let _lock = self.lock().await?;
        self.build(image, &apt, progress).await
    }

    /// Builds an image and what it stands on, unless they are there.
    async fn build(
        &self,
        image: &Image,
        apt: &Apt,
        progress: Progress<'_>,
    ) -> Result<ImageRef, SandboxError> {
        let reference = image.reference(apt);
        if self.has(&reference).await? {
            return Ok(reference);
        }
        progress(&format!("building image {image}"));
        match image.recipe() {
            Recipe::Rootfs { definition, distro } => {
                let directory = tempfile::Builder::new()
                    .prefix("appliance-image-")
                    .tempdir_in(&self.scratch)
                    .map_err(SandboxError::io(format!(
                        "make a directory in {}",
                        self.scratch.display()
                    )))?;
                let tar = rootfs::build(self, definition, distro, apt, directory.path(), progress).await?;
                progress("importing into Docker");
                self.import(&tar, &reference, &definition.instructions()).await?;
            }
            Recipe::Layer {
                definition,
                base,
                files,
            } => {
                let base = Box::pin(self.build(&base, apt, progress)).await?;
                self.layer(&base, &reference, &files, &definition.instructions())
                    .await?;
            }
        }
        Ok(reference)
    }

    /// Whether an image of that name is there.
    async fn has(&self, reference: &ImageRef) -> Result<bool, SandboxError> {
        match self.docker.inspect_image(reference.as_str()).await {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(SandboxError::docker(format!("look for image {reference}"))(error)),
        }
    }

    /// Gives an image a further name, such as `demo:v1`.
    ///
    /// # Errors
    /// [`SandboxError::Docker`] if Docker refuses the name.
    pub async fn tag(&self, image: &ImageRef, name: &str) -> Result<(), SandboxError> {
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        let options = TagImageOptionsBuilder::default()
            .repo(repository)
            .tag(tag)
            .build();
        self.docker
            .tag_image(image.as_str(), Some(options))
            .await
            .map_err(SandboxError::docker(format!("tag image {image} as {name}")))
    }

    async fn lock(&self) -> Result<std::fs::File, SandboxError> {
        let path = self.scratch.join("appliance-images.lock");
        let doing = format!("lock {}", path.display());
        tokio::task::spawn_blocking(move || {
            let file = std::fs::File::options().create(true).append(true).open(path)?;
            file.lock()?;
            Ok(file)
        })
        .await
        .map_err(|source| SandboxError::Task { source })?
        .map_err(SandboxError::io(doing))
    }

    async fn import(
        &self,
        tar: &Path,
        reference: &ImageRef,
        instructions: &[String],
    ) -> Result<(), SandboxError> {
        let file = tokio::fs::File::open(tar)
            .await
            .map_err(SandboxError::io(format!("open {}", tar.display())))?;
        let body = bollard::body_try_stream(ReaderStream::with_capacity(file, 1 << 20));
        let (repository, tag) = split(reference);
        let mut options = CreateImageOptionsBuilder::default()
            .from_src("-")
            .repo(repository)
            .tag(tag)
            .build();
        // Docker takes every instruction but this one at an import; a commit does take it.
        let (signals, rest): (Vec<_>, Vec<_>) = instructions
            .iter()
            .cloned()
            .partition(|instruction| instruction.starts_with(STOP_SIGNAL));
        options.changes = rest;
        self.docker
            .create_image(Some(options), Some(body), None)
            .try_for_each(|_| async { Ok(()) })
            .await
            .map_err(SandboxError::docker(format!("import image {reference}")))?;
        if signals.is_empty() {
            return Ok(());
        }
        self.layer(reference, reference, &[], instructions).await
    }

    /// Puts files on top of an image: a container that is never started, filled and committed.
    ///
    /// Works alike with both of Docker's image stores, and needs no builder.
    async fn layer(
        &self,
        base: &ImageRef,
        reference: &ImageRef,
        files: &[(String, String, u32)],
        instructions: &[String],
    ) -> Result<(), SandboxError> {
        let doing = || format!("make image {reference} on {base}");
        let body = ContainerCreateBody {
            image: Some(base.as_str().to_owned()),
            cmd: Some(vec!["true".to_owned()]),
            ..ContainerCreateBody::default()
        };
        let container = self
            .docker
            .create_container(None::<CreateContainerOptions>, body)
            .await
            .map_err(SandboxError::docker(doing()))?
            .id;
        let result = async {
            let archive = pack(files).map_err(SandboxError::io("pack the files of an image"))?;
            let options = UploadToContainerOptionsBuilder::default().path("/").build();
            self.docker
                .upload_to_container(&container, Some(options), bollard::body_full(archive.into()))
                .await
                .map_err(SandboxError::docker(doing()))?;
            self.commit(&container, reference, instructions).await
        }
        .await;
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        let removed = self.docker.remove_container(&container, Some(options)).await;
        result?;
        removed.map_err(SandboxError::docker(doing()))
    }

    pub(crate) async fn commit(
        &self,
        container: &str,
        reference: &ImageRef,
        instructions: &[String],
    ) -> Result<(), SandboxError> {
        let (repository, tag) = split(reference);
        let mut config = ContainerConfig::default();
        let mut changes = Vec::new();
        for instruction in instructions {
            match instruction.strip_prefix(STOP_SIGNAL) {
                Some(signal) => config.stop_signal = Some(signal.to_owned()),
                None => changes.push(instruction.as_str()),
            }
        }
        let mut options = CommitContainerOptionsBuilder::default()
            .container(container)
            .repo(repository)
            .tag(tag)
            .build();
        // Docker takes an empty list for a file that lacks its instructions.
        options.changes = (!changes.is_empty()).then(|| changes.join("\n"));
        self.docker
            .commit_container(options, config)
            .await
            .map(drop)
            .map_err(SandboxError::docker(format!("commit image {reference}")))
    }

    /// Whether a snapshot of that name is there, as made by [`crate::Host::snapshot`].
    ///
    /// # Errors
    /// [`SandboxError::Docker`] if Docker cannot say.
    pub async fn snapshot(&self, name: &str) -> Result<Option<ImageRef>, SandboxError> {
        let reference = ImageRef(format!("appliance-snapshot:{name}"));
        Ok(self.has(&reference).await?.then_some(reference))
    }
}

fn split(reference: &ImageRef) -> (&str, &str) {
    reference
        .as_str()
        .rsplit_once(':')
        .unwrap_or((reference.as_str(), "latest"))
}

/// Packs files with fixed owner and time, so that equal content makes equal layers.
fn pack(files: &[(String, String, u32)]) -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(0);
        builder.append_data(&mut header, path, text.as_bytes())?;
    }
    builder.into_inner()
}
