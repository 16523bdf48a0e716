//! Running `images/rootfs.sh`: on this machine if it has mmdebstrap, else in a Debian container.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateImageOptionsBuilder, DownloadFromContainerOptionsBuilder, RemoveContainerOptionsBuilder,
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use crate::apt::Apt;
use crate::definition::{Definition, ROOTFS_SH};
use crate::engine::{Progress, Sandbox};
use crate::error::SandboxError;
use crate::image::Distro;

/// What builds where there is no mmdebstrap; any Debian release can build any other.
const BUILDER: &str = "debian:trixie-slim";

/// Builds the root file system of a definition; returns the tar's path inside `directory`.
pub(crate) async fn build(
    sandbox: &Sandbox,
    definition: Definition,
    distro: Distro,
    apt: &Apt,
    directory: &Path,
    progress: Progress<'_>,
) -> Result<PathBuf, SandboxError> {
    let context = directory.join("context");
    let files = context.join(definition.name);
    fs_err::create_dir_all(&files).map_err(SandboxError::io(format!("create {}", files.display())))?;
    definition.write(&files)?;
    let script = context.join("rootfs.sh");
    fs_err::write(&script, ROOTFS_SH).map_err(SandboxError::io(format!("write {}", script.display())))?;

    if has_mmdebstrap().await {
        let output = directory.join("rootfs.tar");
        let mut command = tokio::process::Command::new("sh");
        command.arg(&script).arg(&files).arg(distro.suite()).arg(&output);
        command.envs(environment(apt));
        run(command, definition.name, progress).await?;
        Ok(output)
    } else {
        progress("no mmdebstrap on this machine: building in a Debian container");
        in_container(sandbox, definition, distro, apt, directory, progress).await
    }
}

fn environment(apt: &Apt) -> [(&'static str, String); 3] {
    [
        ("DEBIAN_MIRROR", apt.mirror.clone()),
        ("DEBIAN_SECURITY_MIRROR", apt.security_mirror.clone()),
        ("APT_OPTIONS", apt.options.join("\n")),
    ]
}

async fn has_mmdebstrap() -> bool {
    tokio::process::Command::new("mmdebstrap")
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await
        .is_ok_and(|status| status.success())
}

/// The last lines a program wrote, for an error.
#[derive(Default)]
struct Tail(Vec<String>);

impl Tail {
    fn push(&mut self, line: &str) {
        if self.0.len() == 20 {
            self.0.remove(0);
        }
        self.0.push(line.to_owned());
    }
}

async fn run(
    mut command: tokio::process::Command,
    image: &str,
    progress: Progress<'_>,
) -> Result<(), SandboxError> {
    let program = |source| SandboxError::Program {
        program: "sh rootfs.sh".to_owned(),
        source,
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(program)?;
    let mut tail = Tail::default();
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr).lines();
        // A line that is not UTF-8 ends the reading, not the build.
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(step) = line.strip_prefix("I: ") {
                progress(step);
            }
            tail.push(&line);
        }
    }
    let status = child.wait().await.map_err(program)?;
    if status.success() {
        return Ok(());
    }
    Err(SandboxError::Rootfs {
        image: image.to_owned(),
        status: status.to_string(),
        tail: tail.0.join("\n"),
    })
}

/// Builds inside a container: the context goes in and the result comes out through Docker's archive calls,
/// so this works where Docker runs in a virtual machine and cannot see our files.
async fn in_container(
    sandbox: &Sandbox,
    definition: Definition,
    distro: Distro,
    apt: &Apt,
    directory: &Path,
    progress: Progress<'_>,
) -> Result<PathBuf, SandboxError> {
    let docker = sandbox.docker();
    if docker.inspect_image(BUILDER).await.is_err() {
        progress(&format!("pulling {BUILDER}"));
        let options = CreateImageOptionsBuilder::default().from_image(BUILDER).build();
        docker
            .create_image(Some(options), None, None)
            .try_for_each(|_| async { Ok(()) })
            .await
            .map_err(SandboxError::docker(format!("pull {BUILDER}")))?;
    }
    let machine = sandbox.machine();
    let install = "apt-get update -qq && apt-get install -qq -y --no-install-recommends mmdebstrap >/dev/null \
                   && exec sh /build/rootfs.sh \"$@\"";
    let words = ["sh", "-ec", install, "sh"].map(str::to_owned).into_iter();
    let body = ContainerCreateBody {
        image: Some(BUILDER.to_owned()),
        cmd: Some(
            words
                .chain([
                    format!("/build/{}", definition.name),
                    distro.suite().to_owned(),
                    "/build/rootfs.tar".to_owned(),
                ])
                .collect(),
        ),
        env: Some(
            environment(apt)
                .map(|(name, value)| format!("{name}={value}"))
                .into(),
        ),
        // mmdebstrap mounts /proc and makes device nodes inside the new root.
        host_config: Some(HostConfig {
            tmpfs: None,
            ..machine.host_config()
        }),
        ..ContainerCreateBody::default()
    };
    let doing = "start the image builder";
    let container = docker
        .create_container(None::<bollard::query_parameters::CreateContainerOptions>, body)
        .await
        .map_err(SandboxError::docker(doing))?
        .id;
    let result = drive(sandbox, &container, definition, directory, progress).await;
    let options = RemoveContainerOptionsBuilder::default()
        .force(true)
        .v(true)
        .build();
    let removed = docker.remove_container(&container, Some(options)).await;
    let output = result?;
    removed.map_err(SandboxError::docker("remove the image builder"))?;
    Ok(output)
}

async fn drive(
    sandbox: &Sandbox,
    container: &str,
    definition: Definition,
    directory: &Path,
    progress: Progress<'_>,
) -> Result<PathBuf, SandboxError> {
    use bollard::container::LogOutput;

    let docker = sandbox.docker();
    let context = directory.join("context");
    let archive = tokio::task::spawn_blocking(move || -> std::io::Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_dir_all("build", &context)?;
        builder.into_inner()
    })
    .await
    .map_err(|source| SandboxError::Task { source })?
    .map_err(SandboxError::io("pack the image definition"))?;
    let options = bollard::query_parameters::UploadToContainerOptionsBuilder::default()
        .path("/")
        .build();
    docker
        .upload_to_container(container, Some(options), bollard::body_full(archive.into()))
        .await
        .map_err(SandboxError::docker("hand the definition to the image builder"))?;

    let attach = bollard::query_parameters::AttachContainerOptionsBuilder::default()
        .stdout(true)
        .stderr(true)
        .stream(true)
        .build();
    let mut attached = docker
        .attach_container(container, Some(attach))
        .await
        .map_err(SandboxError::docker("listen to the image builder"))?;
    docker
        .start_container(
            container,
            None::<bollard::query_parameters::StartContainerOptions>,
        )
        .await
        .map_err(SandboxError::docker("start the image builder"))?;
    let mut tail = Tail::default();
    while let Some(Ok(output)) = attached.output.next().await {
        if let LogOutput::StdErr { message } | LogOutput::StdOut { message } = output {
            for line in String::from_utf8_lossy(&message).lines() {
                if let Some(step) = line.strip_prefix("I: ") {
                    progress(step);
                }
                tail.push(line);
            }
        }
    }
    let ended = docker
        .wait_container(container, None::<bollard::query_parameters::WaitContainerOptions>)
        .next()
        .await;
    let status = match ended {
        Some(Ok(answer)) => answer.status_code,
        Some(Err(bollard::errors::Error::DockerContainerWaitError { code, .. })) => code,
        Some(Err(source)) => return Err(SandboxError::docker("wait for the image builder")(source)),
        None => 0,
    };
    if status != 0 {
        return Err(SandboxError::Rootfs {
            image: definition.name.to_owned(),
            status: format!("status {status}"),
            tail: tail.0.join("\n"),
        });
    }
    fetch(docker, container, directory).await
}

/// Takes `/build/rootfs.tar` out: Docker wraps it in a tar of its own.
async fn fetch(docker: &bollard::Docker, container: &str, directory: &Path) -> Result<PathBuf, SandboxError> {
    let wrapped = directory.join("wrapped.tar");
    let output = directory.join("rootfs.tar");
    let writing = || format!("write {}", wrapped.display());
    let mut file = tokio::fs::File::create(&wrapped)
        .await
        .map_err(SandboxError::io(writing()))?;
    let options = DownloadFromContainerOptionsBuilder::default()
        .path("/build/rootfs.tar")
        .build();
    let mut stream = docker.download_from_container(container, Some(options));
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(SandboxError::docker("fetch the built root file system"))?;
        file.write_all(&chunk)
            .await
            .map_err(SandboxError::io(writing()))?;
    }
    file.flush().await.map_err(SandboxError::io(writing()))?;
    let (from, to) = (wrapped.clone(), output.clone());
    let found = tokio::task::spawn_blocking(move || -> std::io::Result<bool> {
        let mut archive = tar::Archive::new(fs_err::File::open(&from)?);
        for entry in archive.entries()? {
            let mut entry = entry?;
            if entry.header().entry_type().is_file() {
                std::io::copy(&mut entry, &mut fs_err::File::create(&to)?)?;
                fs_err::remove_file(&from)?;
                return Ok(true);
            }
        }
        Ok(false)
    })
    .await
    .map_err(|source| SandboxError::Task { source })?
    .map_err(SandboxError::io("unpack the built root file system"))?;
    if found {
        Ok(output)
    } else {
        Err(SandboxError::Missing {
            what: PathBuf::from("/build/rootfs.tar"),
        })
    }
}
