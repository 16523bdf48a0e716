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
        self.run_as(argv, &[]).await
    }

    /// With other settings than ours.
    async fn run_as(&self, argv: &[&str], more: &[(&str, &str)]) -> anyhow::Result<String> {
        let running = Command::new("vagrant")
            .args(argv)
            .current_dir(self.directory.path())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .envs(more.iter().copied())
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

/// Vagrant looks at a definition through its provider: libvirt's is a package of Debian's, VirtualBox's is part of Vagrant.
/// VirtualBox itself is not to be had from Debian; all that Vagrant asks of it here is which version it is.
async fn both_providers_take_the_definitions(boxes: &Boxes) -> anyhow::Result<()> {
    let stub = boxes.directory.path().join("VBoxManage");
    fs_err::write(&stub, "#!/bin/sh\necho 7.0.20r163906\n")?;
    fs_err::set_permissions(&stub, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", boxes.directory.path().display());
    // Where VirtualBox is, it is who Vagrant asks of the virtual machines unless told otherwise.
    let virtualbox = [("PATH", path.as_str()), ("VAGRANT_DEFAULT_PROVIDER", "")];
    let libvirt = [("VAGRANT_DEFAULT_PROVIDER", "libvirt")];
    let file = boxes.directory.path().join("Vagrantfile");
    let good = fs_err::read_to_string(&file)?;
    let bad = good.replace("settings.cpus", "settings.cpuz");
    ensure!(bad != good, "the definitions set no processors");
    for (name, env) in [("VirtualBox", &virtualbox[..]), ("Libvirt", &libvirt[..])] {
        boxes.run_as(&["validate"], env).await.context(name)?;
        fs_err::write(&file, &bad)?;
        let refused = boxes.run_as(&["validate"], env).await;
        fs_err::write(&file, &good)?;
        let said = match refused {
            Ok(said) => anyhow::bail!("{name} took a setting that there is not: {said}"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(
            said.contains(&format!("{name} Provider")) && said.contains("cpuz"),
            "{said}"
        );
    }
    Ok(())
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
    both_providers_take_the_definitions(&boxes).await?;

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

    // What came with it, by its own account: others make and remove things on this machine meanwhile.
    let volumes = "--format={{range .Mounts}}{{if eq .Type \"volume\"}}{{println .Name}}{{end}}{{end}}";
    let volumes = docker(&["inspect", volumes, id]).await?;
    let networks = "--format={{range $name, $of := .NetworkSettings.Networks}}{{println $name}}{{end}}";
    let networks = docker(&["inspect", networks, id]).await?;
    ensure!(networks == "bridge", "it brought networks: {networks}");
    let used = docker(&["inspect", "--format={{.Config.Image}}", id]).await?;
    ensure!(used == image.as_str(), "it brought an image of its own: {used}");

    boxes.run(&["destroy", "--force"]).await?;
    for volume in volumes.lines() {
        let left = docker(&["volume", "ls", "--quiet", "--filter", &format!("name={volume}")]).await?;
        ensure!(left.is_empty(), "the volume {volume} is still there");
    }
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
    let known = boxes.run(&["status", "container12"]).await?;
    ensure!(
        known.contains("not created"),
        "vagrant still knows the box: {known}"
    );
    Ok(())
}
