//! `cargo xtask demo`: the whole path, from a bare server to a rolled-back release, with figures.
//!
//! Everything is done through the command line, as a newcomer would, in a home of the demo's own.

use std::io::{BufRead as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use appliance_sandbox::{Distro, Image, Name, Sandbox};
use appliance_tests::developer::demo_deploy_yml;
use appliance_tests::http::Target;
use appliance_tests::load::{Load, Report, Shape};
use clap::Args;

use crate::cargo::binary;
use crate::{host, prerequisites, say};

/// The sandbox's name, so that a user's own sandbox is left alone.
pub(crate) const NAME: &str = "appliance-demo";

/// What the app is called by its visitors.
const HOST: &str = "demo.test";

/// Requests that must go by after each change before the next.
const REQUESTS_BETWEEN: u64 = 1_000;

/// Requests of the whole load, at least.
const REQUESTS: u64 = 5_000;

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// The distribution of the sandbox: debian12 or debian13
    #[arg(long, default_value = "debian13", value_parser = |text: &str| Distro::parse(text).ok_or("debian12 or debian13"))]
    distro: Distro,
    /// Leave the sandbox running at the end
    #[arg(long)]
    keep: bool,
    /// Build with optimisation (takes minutes the first time)
    #[arg(long)]
    release: bool,
}

/// Runs the demo.
///
/// # Errors
/// The step that failed, with what the command printed.
pub(crate) async fn demo(args: &DemoArgs) -> anyhow::Result<()> {
    let begun = Instant::now();
    prerequisites::ensure()?;
    let mut stage = Stage::new(binary(args.release)?)?;
    let sandbox = host::connect().await?;

    let step = say::step("building images");
    sandbox.ensure(&Image::Host(args.distro), &say::detail).await?;
    for version in ["v1", "v2", "v3", "v4"] {
        let image = Image::Demo {
            version: version.to_owned(),
        };
        let built = sandbox.ensure(&image, &say::detail).await?;
        sandbox.tag(&built, &format!("demo:{version}")).await?;
    }
    step.done("");

    // One that an interrupted run left would not be bare.
    stage.appliance(&["sandbox", "down", "--name", NAME])?.success()?;
    let result = play(args, &stage, &sandbox).await;
    if args.keep {
        say::line(&format!(
            "the sandbox is kept: HOME={} {} sandbox ssh --name {NAME}",
            stage.home.display(),
            stage.binary.display()
        ));
        stage.keep();
    } else {
        sandbox.remove_container(NAME).await?;
    }
    result?;
    say::line(&format!("the whole demo took {} s", begun.elapsed().as_secs()));
    Ok(())
}

async fn play(args: &DemoArgs, stage: &Stage, sandbox: &std::sync::Arc<Sandbox>) -> anyhow::Result<()> {
    let step = say::step("sandbox up: a bare server becomes an appliance");
    stage
        .appliance(&["sandbox", "up", "--name", NAME, "--distro", args.distro.name()])?
        .success()?;
    step.done("");
    let host = sandbox.host(&Name::parse(NAME)?).await?;

    let step = say::step("bootstrap again");
    let again = Instant::now();
    let output = host
        .run(["/usr/local/bin/appliance", "bootstrap", "--allow-container"])
        .await?;
    let said = output.text() + &output.error_text();
    ensure!(
        said.contains("0 changes"),
        "a second bootstrap changed something:\n{said}"
    );
    step.done(&format!("0 changes in {:.1} s", again.elapsed().as_secs_f64()));

    stage.configure("v1", "")?;
    let step = say::step("push v1");
    let first = stage.appliance(&["push"])?.success()?;
    step.done(&first.sent());

    let ca = host
        .read("/var/lib/appliance-proxy/local-ca/ca.pem")
        .await
        .context("the proxy made no local CA")?;
    let target = Target::https((host.ip().await?, 443).into(), HOST, "/", &ca)?;
    let step = say::step(format!("GET https://{HOST}/"));
    let answer = target.get().await?;
    ensure!(
        answer.status == 200 && answer.version() == Some("v1"),
        "{}: {}",
        answer.status,
        answer.text()
    );
    step.done("v1 answers, certificate by the local CA");

    say::note("load begins: every request from here to the end is counted");
    let mut load = Load::start(&target, Shape::default());
    load.more(REQUESTS_BETWEEN).await;

    stage.configure("v2", "")?;
    let step = say::step("push v2 under load (one changed line)");
    let second = stage.appliance(&["push"])?.success()?;
    step.done(&second.sent());
    load.more(REQUESTS_BETWEEN).await;
    serves(&target, "v2").await?;

    stage.configure("v3", "env:\n  clear:\n    HEALTH: fail\ndeploy_timeout: 8\n")?;
    let step = say::step("push v3, whose health check fails");
    let bad = stage.appliance(&["push"])?;
    ensure!(
        bad.code == 5,
        "a release that is not healthy must end with 5, not {}:\n{}",
        bad.code,
        bad.all()
    );
    serves(&target, "v2").await?;
    step.done("refused with exit code 5; v2 still serves");

    stage.configure("v4", "")?;
    let step = say::step("push v4 under load");
    let fourth = stage.appliance(&["push"])?.success()?;
    step.done(&fourth.sent());
    load.more(REQUESTS_BETWEEN).await;
    serves(&target, "v4").await?;

    let step = say::step("roll back under load");
    stage.appliance(&["rollback"])?.success()?;
    load.more(REQUESTS_BETWEEN).await;
    serves(&target, "v2").await?;
    step.done("v2 serves again");

    let made = load.made();
    load.more(REQUESTS.saturating_sub(made)).await;
    let report = load.stop().await;
    show(&report)?;

    let status = stage.appliance(&["status"])?.success()?;
    say::line(&status.stdout);
    Ok(())
}

async fn serves(target: &Target, version: &str) -> anyhow::Result<()> {
    let answer = target.get().await?;
    ensure!(
        answer.version() == Some(version),
        "{version} should serve, but {:?} does",
        answer.version()
    );
    Ok(())
}

fn show(report: &Report) -> anyhow::Result<()> {
    let versions: Vec<_> = report
        .versions
        .iter()
        .map(|(version, count)| format!("{version} {count}"))
        .collect();
    say::line(&format!(
        "load: {} requests, {} failures in {:.1} s ({}); median {:.1} ms, p99 {:.1} ms, slowest {:.1} ms",
        report.requests,
        report.failures,
        report.elapsed.as_secs_f64(),
        versions.join(", "),
        millis(report.percentile(50)),
        millis(report.percentile(99)),
        millis(report.percentile(100)),
    ));
    if report.failures > 0 {
        bail!("requests failed: {:?}", report.examples);
    }
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A home, an app's directory and the binary.
#[derive(Debug)]
pub(crate) struct Stage {
    directory: tempfile::TempDir,
    home: PathBuf,
    app: PathBuf,
    binary: PathBuf,
}

impl Stage {
    pub(crate) fn new(binary: PathBuf) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("appliance-demo-").tempdir()?;
        let (home, app) = (directory.path().join("home"), directory.path().join("app"));
        fs_err::create_dir_all(home.join(".ssh"))?;
        fs_err::create_dir_all(app.join("config"))?;
        fs_err::create_dir_all(app.join(".kamal"))?;
        fs_err::write(app.join(".kamal/secrets"), "")?;
        Ok(Self {
            directory,
            home,
            app,
            binary,
        })
    }

    /// Writes the app's configuration for a version of its image.
    pub(crate) fn configure(&self, version: &str, more: &str) -> anyhow::Result<()> {
        let key = sandbox_files(&self.home).join("id_ed25519");
        fs_err::write(
            self.app.join("config/deploy.yml"),
            demo_deploy_yml(NAME, Some(&key), more),
        )?;
        fs_err::write(self.app.join("version"), version)?;
        Ok(())
    }

    pub(crate) fn appliance(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        self.appliance_lines(arguments, &mut |_| {})
    }

    /// As [`Stage::appliance`]; `heard` gets each line of standard error as it comes.
    pub(crate) fn appliance_lines(
        &self,
        arguments: &[&str],
        heard: &mut dyn FnMut(&str),
    ) -> anyhow::Result<Ran> {
        let mut command = std::process::Command::new(&self.binary);
        command.args(arguments);
        if arguments[0] == "push" {
            let version = fs_err::read_to_string(self.app.join("version"))?;
            command.args(["--version", &version]);
        }
        let mut child = command
            .current_dir(&self.app)
            .env("HOME", &self.home)
            .env_remove("XDG_STATE_HOME")
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.binary.display()))?;
        let mut stdout = child.stdout.take().context("it has a standard output")?;
        let printed = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes)
        });
        let mut stderr = String::new();
        let mut lines = std::io::BufReader::new(child.stderr.take().context("it has a standard error")?);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line);
            heard(&text);
            stderr.push_str(&text);
            line.clear();
        }
        let stdout = printed
            .join()
            .map_err(|_panicked| anyhow::anyhow!("the reader of its output panicked"))??;
        let ran = Ran {
            shown: arguments.join(" "),
            code: child.wait()?.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr,
        };
        ran.all().lines().for_each(say::note);
        Ok(ran)
    }

    /// Everything of it is below.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// `$HOME` of what it runs.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Leaves the files when the demo ends.
    fn keep(&mut self) {
        self.directory.disable_cleanup(true);
    }
}

pub(crate) fn sandbox_files(home: &Path) -> PathBuf {
    home.join(".local/state/appliance/sandbox").join(NAME)
}

/// What a command printed.
#[derive(Debug)]
pub(crate) struct Ran {
    shown: String,
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn all(&self) -> String {
        format!("{}{}", self.stderr, self.stdout)
    }

    pub(crate) fn success(self) -> anyhow::Result<Self> {
        if self.code == 0 {
            return Ok(self);
        }
        bail!(
            "`appliance {}` ended with {}:\n{}",
            self.shown,
            self.code,
            self.all()
        );
    }

    /// What the push says it sent: `3.4 KiB sent (1 of 2 layers were there, …)`.
    fn sent(&self) -> String {
        let all = self.all();
        let found = all.lines().find_map(|line| Some(line.split_once("upload: ")?.1));
        found.unwrap_or_default().trim().to_owned()
    }
}
