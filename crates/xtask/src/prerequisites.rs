//! What the tasks need on the machine, installed if missing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::say;

/// The one list: a program (or a file) that shows the package is there, and the package.
const PACKAGES: &[(&str, &str)] = &[
    ("cc", "build-essential"),
    ("mmdebstrap", "mmdebstrap"),
    ("dockerd", "docker.io"),
    ("iptables", "iptables"),
    ("ssh", "openssh-client"),
    ("git", "git"),
    // Statically linked, for images of one file.
    ("busybox", "busybox-static"),
    ("skopeo", "skopeo"),
    // Images that a host pulls from a registry, as Kamal has it.
    ("docker-registry", "docker-registry"),
    // Backups are tested on an unprivileged server, and restored with common tools alone.
    ("pg_ctlcluster", "postgresql"),
    ("age", "age"),
    ("zstd", "zstd"),
    ("aws", "awscli"),
    // The lax S3 server of the tests is a Python program.
    ("python3", "python3"),
    // For templates beyond the native subset of ERB.
    ("ruby", "ruby"),
    // Load for the proxy's tests.
    ("wrk", "wrk"),
    // A certificate authority for tests, with its DNS server.
    ("pebble", "pebble"),
    // A mail server for the alerts.
    ("aiosmtpd", "python3-aiosmtpd"),
    // A developer whose clock is wrong.
    ("faketime", "faketime"),
    // Test boxes, as people without a container at hand start them.
    ("vagrant", "vagrant"),
    // A plugin has no program; this is its own file.
    ("/usr/share/doc/vagrant-libvirt/copyright", "vagrant-libvirt"),
];

/// What pip installs for the lax S3 server.
const MOTO: &[&str] = &["moto[s3]==5.2.5", "flask", "flask-cors"];

/// Where Docker listens.
const SOCKET: &str = "/var/run/docker.sock";

/// How long the Docker daemon may take to start.
const DOCKER_LIMIT: Duration = Duration::from_secs(60);

/// Installs what is missing and makes sure that Docker runs.
pub(crate) fn ensure() -> anyhow::Result<()> {
    install(PACKAGES)?;
    moto()?;
    docker()
}

/// The lax S3 server of the backups' tests, in an environment of its own below `target`.
fn moto() -> anyhow::Result<()> {
    let place = crate::cargo::root().join("target/moto");
    if place.join("bin/moto_server").is_file() {
        return Ok(());
    }
    install(&[("python3", "python3")])?;
    let step = say::step("installing moto, a lax S3 server");
    // Without `ensurepip` a Debian's own Python makes no environment; its package brings it.
    if run(Command::new("python3")
        .args(["-m", "ensurepip", "--version"])
        .stdout(Stdio::null()))
    .is_err()
    {
        run(as_root("apt-get").args(["update", "-qq"]))?;
        run(as_root("apt-get")
            .args([
                "install",
                "--yes",
                "-qq",
                "--no-install-recommends",
                "python3-venv",
            ])
            .env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&place))?;
    run(Command::new(place.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(MOTO))?;
    step.done("");
    Ok(())
}

/// Installs the packages whose program is missing; what they bring as services is not started.
pub(crate) fn install(wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if find("apt-get").is_none() {
        bail!(
            "this machine lacks {} and has no apt-get; install them and run this again",
            missing.join(", ")
        );
    }
    let step = say::step(format!("installing {}", missing.join(", ")));
    run(as_root("apt-get").args(["update", "-qq"]))?;
    run(as_root("apt-get")
        .args(["install", "--yes", "-qq", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1"))?;
    step.done("");
    Ok(())
}

/// A command that runs as root: itself, or through sudo.
pub(crate) fn as_root(program: &str) -> Command {
    // The owner of our own process entry is our effective user.
    let root = std::os::unix::fs::MetadataExt::uid(&match std::fs::metadata("/proc/self") {
        Ok(metadata) => metadata,
        Err(_) => return Command::new(program),
    }) == 0;
    if root {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args([
        "--non-interactive",
        "--preserve-env=DEBIAN_FRONTEND,RUNLEVEL",
        program,
    ]);
    command
}

fn docker() -> anyhow::Result<()> {
    if answers() {
        return Ok(());
    }
    let step = say::step("starting Docker");
    if Path::new("/run/systemd/system").exists() {
        run(as_root("systemctl").args(["enable", "--now", "docker.service"]))?;
    } else {
        // No service manager: the daemon outlives us in a session of its own.
        let log = fs_err::File::create(std::env::temp_dir().join("dockerd.log"))?
            .into_parts()
            .0;
        as_root("setsid")
            .arg("dockerd")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start dockerd")?;
    }
    let begun = Instant::now();
    while !answers() {
        if begun.elapsed() > DOCKER_LIMIT {
            bail!(
                "Docker does not answer at {SOCKET} after {} s; see `journalctl -u docker` or {}",
                DOCKER_LIMIT.as_secs(),
                std::env::temp_dir().join("dockerd.log").display()
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    step.done("");
    Ok(())
}

fn answers() -> bool {
    Command::new("docker")
        .args(["version", "--format", "{{.Server.Version}}"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A program's path, as a shell would find it; administrators' directories are looked at too.
fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown} failed ({status})");
    }
    Ok(())
}
