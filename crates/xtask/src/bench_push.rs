//! `cargo xtask bench push`: how an image reaches a server, side by side.
//!
//! | way | what is measured |
//! |---|---|
//! | `docker save`, `ssh`, `docker load` | until the server's Docker has the image |
//! | `docker push` to a registry here, `docker pull` there through an SSH forward (as Kamal does with a local registry) | the same |
//! | `appliance push` | until the new release serves: upload, rollout and switch |
//!
//! Bytes are those that arrive at the server's network interface, SSH included.
//! Two shapes of a 300 MB image are measured: all of it in one layer, of which one line changes,
//! and 280 MB of dependencies below 20 MB of source, as Dockerfiles are usually written.
//! The second is also pushed from an OCI layout, as BuildKit, buildah and CI systems write it:
//! `docker save` exports the whole image whatever is wanted of it, and its time is shown beside.

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
/// Files of the image, half a megabyte that compresses and half a megabyte that does not.
const FILES: usize = 300;
/// Size of each, before the half that compresses well.
const FILE: usize = 512 << 10;

/// How the image is cut into layers.
struct Shape {
    name: &'static str,
    /// First letter of its tags.
    letter: char,
    /// Files in a layer of their own, below the others.
    below: usize,
}

const SHAPES: [Shape; 2] = [
    Shape {
        name: "one layer of 300 MB",
        letter: 'b',
        below: 0,
    },
    Shape {
        name: "20 MB of source above 280 MB",
        letter: 'c',
        below: 280,
    },
];

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
    let step = say::step("building images of 300 MB that differ in one line");
    for shape in &SHAPES {
        images(stage.directory(), shape)?;
    }
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
        let mut tables = Vec::new();
        for shape in &SHAPES {
            tables.push((shape.name, measure(&stage, &bare, &host, shape).await?));
        }
        anyhow::Ok(tables)
    }
    .await;
    for name in [NAME, BARE] {
        sandbox.remove_container(name).await?;
    }
    for tag in SHAPES.iter().flat_map(|shape| shape.tags(4)) {
        quiet(Command::new("docker").args(["rmi", "--force", &tag]));
    }
    for (shape, table) in &measured? {
        print(shape, table);
    }
    Ok(())
}

impl Shape {
    /// The image's versions: as built, the same under another name, one line more, another line more.
    fn tags(&self, count: u8) -> Vec<String> {
        (1..=count)
            .map(|number| format!("demo:{}{number}", self.letter))
            .collect()
    }

    fn changed(&self) -> String {
        format!("app/{:03}", self.below + (FILES - self.below) / 2)
    }
}

/// Versions 1 and 2 (the same under another name), 3 (one line more) and 4 (one more again).
fn images(directory: &Path, shape: &Shape) -> anyhow::Result<()> {
    let context = directory.join(format!("bench-{}", shape.letter));
    for part in ["below", "app"] {
        fs_err::create_dir_all(context.join(part))?;
    }
    // No shape finds the other's chunks on the server.
    let content = noise(2 * FILES * FILE);
    let skipped = if shape.below > 0 { FILES } else { 0 };
    for (index, piece) in content.chunks(FILE).skip(skipped).take(FILES).enumerate() {
        let line = format!("a line of {} that compresses well, as source does\n", shape.name);
        let text = line.repeat(FILE / line.len());
        let part = if index < shape.below { "below" } else { "app" };
        let bytes = [text.as_bytes(), piece].concat();
        fs_err::write(context.join(format!("{part}/{index:03}")), bytes)?;
    }
    let dependencies = if shape.below > 0 {
        "COPY below /below\n"
    } else {
        ""
    };
    fs_err::write(
        context.join("Dockerfile"),
        format!("FROM demo:bench-base\n{dependencies}COPY app /app-data\n"),
    )?;
    let build = |tag: &str| {
        prerequisites::run(
            Command::new("docker")
                .args(["build", "--quiet", "-t", tag])
                .arg(&context)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )
    };
    let tags = shape.tags(4);
    build(&tags[0])?;
    prerequisites::run(Command::new("docker").args(["tag", &tags[0], &tags[1]]))?;
    for tag in &tags[2..] {
        let changed = context.join(shape.changed());
        let mut bytes = fs_err::read(&changed)?;
        bytes.splice(100_000..100_000, *b"one line of source more\n");
        fs_err::write(&changed, bytes)?;
        build(tag)?;
    }
    Ok(())
}

/// Measures the others on a bare host with Docker, and ourselves on an appliance.
async fn measure(
    stage: &Stage,
    bare: &Host,
    appliance: &Host,
    shape: &Shape,
) -> anyhow::Result<Vec<(&'static str, Vec<Figure>)>> {
    let tags = shape.tags(4);
    let three = &tags[..3];
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
    for tag in three {
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
                Ok(Instant::now())
            })
            .await?,
        );
    }
    table.push(("docker save | ssh docker load", figures));
    clean(host).await?;

    let registry = Registry::start(stage.directory())?;
    let mut figures = Vec::new();
    for tag in three {
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
                )?;
                Ok(Instant::now())
            })
            .await?,
        );
        quiet(Command::new("docker").args(["rmi", &name]));
    }
    drop(registry);
    table.push(("docker push, docker pull", figures));

    clean(host).await?;

    let mut figures = Vec::new();
    for tag in three {
        let version = tag.trim_start_matches("demo:");
        stage.configure(version, "")?;
        figures.push(figure(appliance, || serves(stage, &["push"])).await?);
    }
    table.push(("appliance push", figures));

    let layout = format!(
        "oci:{}:{}",
        stage.directory().join("layout").display(),
        shape.letter
    );
    for tag in &tags[2..] {
        // The layout has the layers as a builder leaves them: those of the version before are there already.
        let from = format!("docker-daemon:{tag}");
        prerequisites::run(
            Command::new("skopeo")
                .args(["copy", "--quiet", &from, &layout])
                .stdout(Stdio::null()),
        )?;
    }
    stage.configure(tags[3].trim_start_matches("demo:"), "")?;
    let last = figure(appliance, || serves(stage, &["push", "--image", &layout])).await?;
    table.push(("appliance push of an OCI layout", vec![last]));

    let exported = figure(appliance, || {
        prerequisites::run(
            Command::new("docker")
                .args(["save", &tags[2]])
                .stdout(Stdio::null()),
        )?;
        Ok(Instant::now())
    })
    .await?;
    table.push(("docker save > /dev/null", vec![Figure { bytes: 0, ..exported }]));
    Ok(table)
}

/// Pushes; when the new release had the traffic.
fn serves(stage: &Stage, words: &[&str]) -> anyhow::Result<Instant> {
    let mut moment = None;
    let ran = stage.appliance_lines(words, &mut |line| {
        // The first release has nothing to drain.
        if line.trim_start().starts_with("draining") || (moment.is_none() && line.contains("settled")) {
            moment = Some(Instant::now());
        }
    })?;
    ran.success()?;
    moment.context("push did not say when the release began to serve")
}

/// Takes every image off the host's Docker again.
async fn clean(host: &Host) -> anyhow::Result<()> {
    host.run(["docker", "system", "prune", "--all", "--force"])
        .await?;
    Ok(())
}

/// Runs `work`, which tells when it was done.
async fn figure(host: &Host, work: impl FnOnce() -> anyhow::Result<Instant>) -> anyhow::Result<Figure> {
    let before = received(host).await?;
    let begun = Instant::now();
    let seconds = work()?.duration_since(begun).as_secs_f64();
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
fn print(shape: &str, table: &[(&str, Vec<Figure>)]) {
    say::line("");
    say::line(&format!(
        "| {shape} | first push | unchanged | one line changed |"
    ));
    say::line("|---|---|---|---|");
    for (way, figures) in table {
        let mut cells: Vec<String> = figures
            .iter()
            .map(|figure| match figure.bytes {
                0 => format!("{:.1} s", figure.seconds),
                bytes => format!("{:.1} s, {:.2} MB", figure.seconds, bytes as f64 / 1e6),
            })
            .collect();
        while cells.len() < 3 {
            cells.insert(0, String::new());
        }
        say::line(&format!("| {way} | {} |", cells.join(" | ")));
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
