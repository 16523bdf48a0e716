//! A real daemon, a tiny real image, and the removal of everything a test made.

pub(crate) mod registry;

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use appliance_containers::engine::{Event, Happening};
use appliance_containers::{ContainerSpec, Docker, Engine as _, EngineError};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::stream::{self, BoxStream, StreamExt as _};

/// From Debian's package `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";
const SOCKET: &str = "/var/run/docker.sock";

/// What a test works with: the engine, and a name of its own for all it makes.
pub(crate) struct Bench {
    pub(crate) docker: Docker,
    pub(crate) name: String,
    pub(crate) image: String,
}

impl Bench {
    /// A container of this test that runs `script` in a shell.
    pub(crate) fn spec(&self, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            name: format!("{}-{name}", self.name),
            image: self.image.clone(),
            cmd: Some(["/bin/sh", "-c", script].map(str::to_owned).to_vec()),
            labels: [("appliance-test".to_owned(), self.name.clone())].into(),
            ..ContainerSpec::default()
        }
    }

    pub(crate) fn label(&self) -> String {
        format!("appliance-test={}", self.name)
    }

    pub(crate) async fn clean(&self) -> Result<(), EngineError> {
        for container in self.docker.list(&[self.label()]).await? {
            self.docker.remove(&container.id.0, true).await?;
        }
        // Nobody but these tests makes volumes and networks of such names.
        let client = bollard::Docker::connect_with_unix(SOCKET, 20, bollard::API_DEFAULT_VERSION)
            .expect("the socket is there")
            .negotiate_version()
            .await
            .expect("a version");
        let _ = client
            .remove_volume(
                &self.volume(),
                None::<bollard::query_parameters::RemoveVolumeOptions>,
            )
            .await;
        let _ = client.remove_network(&self.network()).await;
        Ok(())
    }

    /// A volume that is removed with the containers.
    pub(crate) fn volume(&self) -> String {
        format!("{}-volume", self.name)
    }

    /// A network that is removed with the containers.
    pub(crate) fn network(&self) -> String {
        format!("{}-network", self.name)
    }
}

/// Runs `test`, removes its containers whatever came out, and passes a panic on.
pub(crate) async fn with_engine<F: Future<Output = ()>>(test: impl FnOnce(std::sync::Arc<Bench>) -> F) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let docker = Docker::at(SOCKET);
    if let Err(error) = docker.ping().await {
        panic!("these tests need a Docker daemon on {SOCKET} ({error}); `cargo xtask test` starts one");
    }
    let name = format!(
        "engine-test-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let image = load_busybox(&docker).await;
    let bench = std::sync::Arc::new(Bench { docker, name, image });
    let outcome = std::panic::AssertUnwindSafe(test(std::sync::Arc::clone(&bench)))
        .catch_unwind()
        .await;
    bench
        .clean()
        .await
        .expect("the containers of the test can be removed");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Fails instead of hanging.
pub(crate) async fn within<T>(seconds: u64, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {seconds} s"))
}

/// Waits until this happens to the container of this name.
pub(crate) async fn wait_for(events: &mut BoxStream<'_, Event>, name: &str, what: &Happening) {
    while let Some(event) = events.next().await {
        if let Event::Container(event) = event
            && event.name == name
            && event.what == *what
        {
            return;
        }
    }
    panic!("the stream of events ended");
}

/// The image of these tests; the same bytes each time, so it is loaded once.
async fn load_busybox(docker: &Docker) -> String {
    const TAG: &str = "appliance-test-busybox:latest";
    let loaded = docker
        .load_image(archive(TAG))
        .await
        .expect("the archive can be loaded");
    assert_eq!(loaded, [TAG]);
    docker
        .inspect_image(TAG)
        .await
        .expect("inspect")
        .expect("the loaded image is there")
        .id
}

/// A `docker save` archive with one layer: a shell and its applets.
pub(crate) fn archive(tag: &str) -> BoxStream<'static, std::io::Result<Bytes>> {
    let (config, layer) = image();
    let config_name = format!("{}.json", sha256(&config));
    let manifest = serde_json::json!([{ "Config": config_name, "RepoTags": [tag], "Layers": ["layer.tar"] }])
        .to_string();
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, &config_name, &config, 0o644);
    add(&mut archive, "layer.tar", &layer, 0o644);
    add(&mut archive, "manifest.json", manifest.as_bytes(), 0o644);
    let archive = Bytes::from(archive.into_inner().expect("an archive"));
    let pieces: Vec<_> = (0..archive.len()).step_by(64 * 1024).collect();
    stream::iter(pieces)
        .map(move |start| Ok(archive.slice(start..archive.len().min(start + 64 * 1024))))
        .boxed()
}

/// The configuration and the one layer of the image; the same bytes each time.
pub(crate) fn image() -> (Vec<u8>, Vec<u8>) {
    const APPLETS: &[&str] = &[
        "sh", "sleep", "cat", "echo", "printf", "env", "hostname", "ls", "kill", "true", "false", "test",
        "df", "grep", "touch", "id", "pwd",
    ];
    assert!(
        Path::new(BUSYBOX).exists(),
        "{BUSYBOX} is missing: apt-get install busybox-static"
    );
    let mut layer = tar::Builder::new(Vec::new());
    let busybox = std::fs::read(BUSYBOX).expect("busybox can be read");
    let dynamic = busybox.windows(8).any(|bytes| bytes == b"/ld-linu");
    assert!(
        !dynamic,
        "{BUSYBOX} needs shared libraries: apt-get install busybox-static"
    );
    add(&mut layer, "bin/busybox", &busybox, 0o755);
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mtime(0);
        layer
            .append_link(&mut header, format!("bin/{applet}"), "busybox")
            .expect("a link");
    }
    let layer = layer.into_inner().expect("a layer");
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Labels": { "service": "engine-test" }, "ExposedPorts": { "80/tcp": {} } },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))] },
    });
    (config.to_string().into_bytes(), layer)
}

fn add(archive: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    archive.append_data(&mut header, path, bytes).expect("an entry");
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Passes connections on to the real daemon until it is stopped.
pub(crate) struct Relay {
    accepting: tokio::task::JoinHandle<()>,
    accepted: tokio::sync::watch::Receiver<usize>,
    socket: std::path::PathBuf,
}

impl Relay {
    /// Waits until this many connections have been made.
    pub(crate) async fn connections(&self, count: usize) {
        let mut accepted = self.accepted.clone();
        accepted
            .wait_for(|so_far| *so_far >= count)
            .await
            .expect("the relay runs");
    }

    /// Cuts every connection and takes the socket away, as a daemon does that stops.
    pub(crate) async fn stop(self) {
        self.accepting.abort();
        let _ = self.accepting.await;
        std::fs::remove_file(&self.socket).expect("the socket can be removed");
    }
}

pub(crate) fn relay(socket: &Path) -> Relay {
    let listener = tokio::net::UnixListener::bind(socket).expect("the socket can be made");
    let (count, accepted) = tokio::sync::watch::channel(0);
    let accepting = tokio::spawn(async move {
        // Dropped with the task, and every connection with it.
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            count.send_modify(|count| *count += 1);
            connections.spawn(async move {
                let mut far = tokio::net::UnixStream::connect(SOCKET)
                    .await
                    .expect("the daemon is there");
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    Relay {
        accepting,
        accepted,
        socket: socket.to_owned(),
    }
}
