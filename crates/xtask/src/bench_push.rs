//! `cargo xtask bench push`: how an image reaches a server, side by side.
//!
//! | way | what is measured |
//! |---|---|
//! | `docker save`, `ssh`, `docker load` | until the server's Docker has the image |
//! | `docker push` to a registry here, `docker pull` there through an SSH forward (as Kamal does with a local registry) | the same |
//! | `appliance push` | until the new release serves: upload, rollout and switch |
//!
//! Bytes are those that arrive at the server's network interface, SSH included.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use appliance_sandbox::{Distro, Host, HostOptions, Image, Name};
use appliance_tests::content::noise;

use crate::demo::{NAME, Stage, sandbox_files};
use crate::{cargo, host, prerequisites, say};

/// Where the registry listens on this machine.
const REGISTRY: &str = "localhost:5055";
/// The host without an appliance.
const BARE: &str = "bench-push-bare";
/// Files of the large layer.
const FILES: usize = 300;
/// Size of each, before the half that compresses well.
const FILE: usize = 512 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Build with optimisation (takes minutes the first time)
    #[arg(long)]
    release: bool,
    /// Take this binary instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<std::path::PathBuf>,
}

/// One way, one image.
#[derive(Debug, Clone, Copy)]
struct Figure {
    seconds: f64,
    bytes: u64,
}

/// Measures and prints the table.
///
/// # Errors
/// When something cannot be built, started or brought to the server.
pub(crate) async fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    prerequisites::ensure()?;
    let binary = match &args.binary {
        Some(file) => file.clone(),
        None => cargo::binary(args.release)?,
    };
    let stage = Stage::new(binary)?;
    let sandbox = host::connect().await?;
    let base = sandbox
        .ensure(
            &Image::Demo {
                version: "v1".to_owned(),
            },
            &say::detail,
        )
        .await?;
    sandbox.tag(&base, "demo:bench-base").await?;
    let step = say::step("building two images of 300 MB that differ in one line");
    images(stage.directory())?;
    step.done("");
    stage.appliance(&["sandbox", "down", "--name", NAME])?.success()?;
    stage
        .appliance(&[
            "sandbox",
            "up",
            "--name",
            NAME,
            "--distro",
            Distro::Debian12.name(),
        ])?
        .success()?;
    let host = sandbox.host(&Name::parse(NAME)?).await?;
    // What the others need (root by SSH, forwarded ports), an appliance does not have.
    let mut options = HostOptions::new(Name::parse(BARE)?, Distro::Debian12);
    let key = fs_err::read_to_string(sandbox_files(stage.home()).join("id_ed25519.pub"))?;
    options.authorized_keys = vec![key.trim().to_owned()];
    let bare = sandbox.start(&options, &say::detail).await?;
    let measured = async {
        bare.wait_booted().await?;
        for words in [
            &["update"][..],
            &[
                "install",
                "--yes",
                "--no-install-recommends",
                "docker.io",
                "iptables",
            ],
        ] {
            let apt = [&["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"], words].concat();
            let apt = appliance_sandbox::Command::new(apt).timeout(Duration::from_secs(180));
            let ran = bare.exec(&apt).await?;
            if !ran.success() {
                bail!("the bare host gets no Docker: {}", ran.error_text());
            }
        }
        measure(&stage, &bare, &host).await
    }
    .await;
    for name in [NAME, BARE] {
        sandbox.remove_container(name).await?;
    }
    for tag in ["demo:b1", "demo:b2", "demo:b3"] {
        quiet(Command::new("docker").args(["rmi", "--force", tag]));
    }
    print(&measured?);
    Ok(())
}

/// `b1`, `b2` (the same again under another name) and `b3` (one line more).
fn images(directory: &Path) -> anyhow::Result<()> {
    let context = directory.join("bench");
    fs_err::create_dir_all(context.join("app"))?;
    let content = noise(FILES * FILE);
    for (index, piece) in content.chunks(FILE).enumerate() {
        let text = "a line that compresses well, as source does\n".repeat(FILE / 44);
        let bytes = [text.as_bytes(), piece].concat();
        fs_err::write(context.join(format!("app/{index:03}")), bytes)?;
    }
    fs_err::write(
        context.join("Dockerfile"),
        "FROM demo:bench-base\nCOPY app /app-data\n",
    )?;
    let build = |tag: &str| {
        prerequisites::run(
            Command::new("docker")
                .args(["build", "--quiet", "-t", tag])
                .arg(&context)
                .stdout(Stdio::null()),
        )
    };
    build("demo:b1")?;
    prerequisites::run(Command::new("docker").args(["tag", "demo:b1", "demo:b2"]))?;
    let changed = context.join("app/150");
    let mut bytes = fs_err::read(&changed)?;
    bytes.splice(100_000..100_000, *b"one line of source more\n");
    fs_err::write(&changed, bytes)?;
    build("demo:b3")
}

/// Measures the others on a bare host with Docker, and ourselves on an appliance.
async fn measure(
    stage: &Stage,
    bare: &Host,
    appliance: &Host,
) -> anyhow::Result<Vec<(&'static str, Vec<Figure>)>> {
    let mut table = Vec::new();
    let address = bare.ip().await?.to_string();
    let known = stage.directory().join("known_hosts");
    let host_key = String::from_utf8(bare.read("/etc/ssh/ssh_host_ed25519_key.pub").await?)?;
    fs_err::write(&known, format!("{address} {host_key}"))?;
    let key = sandbox_files(stage.home()).join("id_ed25519");
    let ssh = |more: &[&str], command: &[&str]| {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-l", "root", "-o"])
            .arg(format!("UserKnownHostsFile={}", known.display()))
            .arg("-i")
            .arg(&key)
            .args(more)
            .arg(&address)
            .args(command);
        ssh
    };
    let host = bare;

    let mut figures = Vec::new();
    for tag in ["demo:b1", "demo:b2", "demo:b3"] {
        figures.push(
            figure(host, || {
                let mut save = Command::new("docker")
                    .args(["save", tag])
                    .stdout(Stdio::piped())
                    .spawn()
                    .context("docker save")?;
                let from = save.stdout.take().context("docker save writes")?;
                prerequisites::run(ssh(&[], &["docker", "load"]).stdin(from).stdout(Stdio::null()))?;
                save.wait()?;
                Ok(())
            })
            .await?,
        );
    }
    table.push(("docker save | ssh docker load", figures));
    clean(host).await?;

    let registry = Registry::start(stage.directory())?;
    let mut figures = Vec::new();
    for tag in ["demo:b1", "demo:b2", "demo:b3"] {
        let name = format!("{REGISTRY}/{tag}");
        prerequisites::run(Command::new("docker").args(["tag", tag, &name]))?;
        figures.push(
            figure(host, || {
                prerequisites::run(
                    Command::new("docker")
                        .args(["push", "--quiet", &name])
                        .stdout(Stdio::null()),
                )?;
                let forward = format!("5055:{REGISTRY}");
                prerequisites::run(
                    ssh(&["-R", &forward], &["docker", "pull", "--quiet", &name]).stdout(Stdio::null()),
                )
            })
            .await?,
        );
        quiet(Command::new("docker").args(["rmi", &name]));
    }
    drop(registry);
    table.push(("docker push, docker pull", figures));

    let mut figures = Vec::new();
    for version in ["b1", "b2", "b3"] {
        stage.configure(version, "")?;
        figures.push(figure(appliance, || stage.appliance(&["push"])?.success().map(drop)).await?);
    }
    table.push(("appliance push, until it serves", figures));
    Ok(table)
}

/// Takes every image off the host's Docker again.
async fn clean(host: &Host) -> anyhow::Result<()> {
    host.run(["docker", "system", "prune", "--all", "--force"])
        .await?;
    Ok(())
}

async fn figure(host: &Host, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Figure> {
    let before = received(host).await?;
    let begun = Instant::now();
    work()?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Figure {
        seconds,
        bytes: received(host).await?.saturating_sub(before),
    })
}

/// Bytes that the host's interfaces have received, loopback and Docker's own left out.
async fn received(host: &Host) -> anyhow::Result<u64> {
    let text = host.run(["cat", "/proc/net/dev"]).await?.text();
    let count = text
        .lines()
        .filter_map(|line| line.trim().split_once(':'))
        .filter(|(name, _)| name.starts_with("eth"))
        .filter_map(|(_, figures)| figures.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    Ok(count)
}

/// Debian's `docker-registry` in a directory of its own.
struct Registry(Child);

impl Registry {
    fn start(directory: &Path) -> anyhow::Result<Self> {
        let file = directory.join("registry.yml");
        let root = directory.join("registry");
        fs_err::write(
            &file,
            format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:5055\n",
                root.display()
            ),
        )?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run docker-registry")?;
        let registry = Self(child);
        let begun = Instant::now();
        while std::net::TcpStream::connect("127.0.0.1:5055").is_err() {
            if begun.elapsed().as_secs() > 20 {
                bail!("docker-registry does not listen");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn quiet(command: &mut Command) {
    let _not_there = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
}

#[allow(clippy::cast_precision_loss)]
fn print(table: &[(&str, Vec<Figure>)]) {
    say::line(&format!(
        "{:<34} {:>20} {:>20} {:>20}",
        "", "first push", "unchanged", "one line changed"
    ));
    for (way, figures) in table {
        let cells: Vec<String> = figures
            .iter()
            .map(|figure| format!("{:.1} s {:>9.2} MB", figure.seconds, figure.bytes as f64 / 1e6))
            .collect();
        say::line(&format!(
            "{way:<34} {:>20} {:>20} {:>20}",
            cells.first().map_or("", String::as_str),
            cells.get(1).map_or("", String::as_str),
            cells.get(2).map_or("", String::as_str)
        ));
    }
    let last = |way: usize| table.get(way).and_then(|(_, figures)| figures.last());
    for (way, (name, _)) in table.iter().enumerate().take(2) {
        if let (Some(theirs), Some(ours)) = (last(way), last(2)) {
            say::line(&format!(
                "one line changed, beside {}: {:.0} times fewer bytes, {:.1} times the speed",
                name,
                theirs.bytes as f64 / ours.bytes.max(1) as f64,
                theirs.seconds / ours.seconds.max(1e-3)
            ));
        }
    }
}
