//! `vagrant/`: its definitions are valid, and the one for Docker brings up an appliance that takes a push.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Distro, Image};
use appliance_tests::developer::demo_deploy_yml;
use appliance_tests::http::Target;
use appliance_tests::{Bench, Developer, bench};
use tokio::process::Command;

/// How long the box may take to come up on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(240);

/// A checkout's `vagrant/`, with a home of its own.
struct Boxes {
    directory: tempfile::TempDir,
    env: Vec<(String, String)>,
}

impl Boxes {
    async fn run(&self, argv: &[&str]) -> anyhow::Result<String> {
        let running = Command::new("vagrant")
            .args(argv)
            .current_dir(self.directory.path())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(LIMIT, running)
            .await
            .with_context(|| format!("vagrant {} took too long", argv.join(" ")))?
            .context("cannot start vagrant; run: cargo xtask test")?;
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(output.status.success(), "vagrant {}: {said}", argv.join(" "));
        Ok(said)
    }
}

async fn docker(argv: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("docker").args(argv).output().await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[tokio::test]
async fn a_box_comes_up_takes_a_push_and_leaves_nothing() -> anyhow::Result<()> {
    let bench = Bench::connect().await?;
    let image = bench
        .sandbox
        .ensure(&Image::Host(Distro::Debian12), &|_| ())
        .await?;
    let developer = Developer::new().await?;
    let directory = tempfile::tempdir()?;
    for entry in fs_err::read_dir(repository().join("vagrant"))? {
        let entry = entry?;
        // What Vagrant itself remembers of a checkout is a directory, and stays there.
        if entry.file_type()?.is_file() {
            fs_err::copy(entry.path(), directory.path().join(entry.file_name()))?;
        }
    }
    // Whatever is left by a test that dies is found by its label.
    let labels = Bench::labels();
    let labels = labels
        .iter()
        .map(|(name, value)| format!(" --label={name}={value}"));
    let machine = bench.sandbox.machine();
    let set = |name: &str, value: String| (name.to_owned(), value);
    let boxes = Boxes {
        env: vec![
            set("VAGRANT_DEFAULT_PROVIDER", "docker".to_owned()),
            set(
                "VAGRANT_HOME",
                directory.path().join("home").display().to_string(),
            ),
            set("APPLIANCE_BIN", bench::binary()?.display().to_string()),
            set(
                "APPLIANCE_KEY",
                developer.home().join(".ssh/id_ed25519.pub").display().to_string(),
            ),
            set("APPLIANCE_IMAGE_DEBIAN12", image.as_str().to_owned()),
            set(
                "APPLIANCE_DOCKER_ARGS",
                machine.arguments().join(" ") + &labels.collect::<String>(),
            ),
            set("APPLIANCE_DOCKER_INIT", machine.init_line(Distro::Debian12)),
        ],
        directory,
    };
    boxes.run(&["validate", "--ignore-provider"]).await?;

    let said = boxes.run(&["up", "container12", "--provider=docker"]).await?;
    ensure!(said.contains("0 changes"), "{said}");
    let id = fs_err::read_to_string(
        boxes
            .directory
            .path()
            .join(".vagrant/machines/container12/docker/id"),
    )?;
    let id = id.trim();
    let format = "--format={{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let ip = docker(&["inspect", format, id]).await?;

    let demo = Image::Demo {
        version: "v1".to_owned(),
    };
    let built = bench.sandbox.ensure(&demo, &|_| ()).await?;
    bench.sandbox.tag(&built, "demo:v1").await?;
    developer.write("config/deploy.yml", &demo_deploy_yml(&ip, None, ""))?;
    developer.write(".kamal/secrets", "")?;
    let key = docker(&["exec", id, "cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).await?;
    let words: Vec<_> = key.split_whitespace().take(2).collect();
    fs_err::write(
        developer.home().join(".ssh/known_hosts"),
        format!("{ip} {}\n", words.join(" ")),
    )?;
    developer
        .appliance(["push", "--version", "v1"])
        .run()
        .await?
        .expect_code(0)?;
    let ca = docker(&["exec", id, "cat", appliance_tests::world::CA]).await?;
    let target = Target::https(format!("{ip}:443").parse()?, "demo.test", "/", ca.as_bytes())?;
    let answer = target.get().await?;
    ensure!(answer.version() == Some("v1"), "{answer:?}");

    boxes.run(&["destroy", "--force"]).await?;
    let left = docker(&[
        "ps",
        "--all",
        "--quiet",
        "--no-trunc",
        "--filter",
        &format!("id={id}"),
    ])
    .await?;
    ensure!(left.is_empty(), "the container is still there");
    ensure!(
        !boxes
            .directory
            .path()
            .join(".vagrant/machines/container12/docker/id")
            .exists(),
        "vagrant still knows the box"
    );
    Ok(())
}
