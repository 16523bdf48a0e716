//! Mistakes on the developer's side: one clear error, exit code 2, and the host never hears of it.

use anyhow::{Context as _, ensure};
use appliance_push::Digest;
use appliance_sandbox::Distro;
use appliance_tests::World;
use appliance_tests::developer::demo_deploy_yml;

use crate::door::{self, Door};
use crate::relay::Relay;

/// A mistake and what must be said about it.
struct Mistake {
    what: &'static str,
    yml: String,
    secrets: &'static str,
    version: &'static str,
    /// All of these.
    said: &'static [&'static str],
    /// Whether the host has to be asked to find it out; it is never told anything.
    asks: bool,
}

#[tokio::test]
async fn a_mistake_here_is_one_clear_error_before_anything_is_sent() -> anyhow::Result<()> {
    let world = World::bootstrapped("refusals", Distro::Debian12).await?;
    world.developer.demo_app("v1", &world, "").await?;
    world
        .developer
        .appliance(["push", "--version", "v1"])
        .run()
        .await?
        .expect_code(0)?;
    foreign_image().await?;
    // Whatever is tagged so is of no certain version.
    let tag = ["tag", "demo:v1", "demo:latest"];
    let tag = tokio::process::Command::new("docker").args(tag).status();
    ensure!(tag.await?.success());

    let relay = Relay::start(&world, &world.developer).await?;
    let door = Door::open(&world).await?;
    let before = door::picture(&world).await?;
    let records = door.records().await?;

    let server = world.ip().await?.to_string();
    let good = demo_deploy_yml(&server, None, "");
    for mistake in mistakes(&server, &good) {
        let what = mistake.what;
        world.developer.write("config/deploy.yml", &mistake.yml)?;
        world.developer.write(".kamal/secrets", mistake.secrets)?;
        relay.lead(&world.developer)?;
        let connections = relay.connections();
        let ran = world
            .developer
            .appliance(["push", "--version", mistake.version])
            .run()
            .await?
            .expect_code(2)
            .context(what)?;
        for text in mistake.said {
            ensure!(
                ran.stderr.contains(text),
                "{what}: nothing about {text:?} in:\n{}",
                ran.stderr
            );
        }
        ensure!(
            ran.stderr.matches("error:").count() <= 1,
            "{what}: more than one error:\n{}",
            ran.stderr
        );
        let asked = relay.connections() - connections;
        ensure!(mistake.asks || asked == 0, "{what}: the host was connected to");
        ensure!(
            door.records().await? == records,
            "{what}: the host's audit log has a new record"
        );
        door::unchanged(&before, &door::picture(&world).await?).context(what)?;
    }

    // And what is right after all this goes through.
    world.developer.write("config/deploy.yml", &good)?;
    world.developer.write(".kamal/secrets", "")?;
    world
        .developer
        .appliance(["push", "--version", "v1"])
        .run()
        .await?
        .expect_code(0)?;
    Ok(())
}

fn mistakes(server: &str, good: &str) -> Vec<Mistake> {
    let with = |more: &str| demo_deploy_yml(server, None, more);
    let mistake = |what, yml: String, said| Mistake {
        what,
        yml,
        secrets: "",
        version: "v1",
        said,
        asks: false,
    };
    let mut all = vec![
        mistake(
            "YAML that is none",
            with("env: [unclosed\n"),
            &["config/deploy.yml:16:6: "],
        ),
        mistake(
            "a tab for indentation",
            with("env:\n\tclear: {}\n"),
            &["config/deploy.yml:17:1: ", "tabs cannot indent"],
        ),
        mistake(
            "an unknown key",
            with("healtcheck:\n  path: /up\n"),
            &["config/deploy.yml:16:1: unknown key: healtcheck"],
        ),
        mistake(
            "a misspelt key",
            with("retain_container: 3\n"),
            &["config/deploy.yml:", "did you mean `retain_containers`"],
        ),
        mistake(
            "a value of the wrong kind",
            with("retain_containers: many\n"),
            &["config/deploy.yml:", "retain_containers"],
        ),
        mistake(
            "no server",
            good.replace(&format!("servers:\n  - {server}\n"), "servers: []\n"),
            &["config/deploy.yml:3:1: ", "No servers specified"],
        ),
        mistake(
            "a missing secret",
            with("env:\n  secret:\n    - DATABASE_PASSWORD\n    - API_KEY\n"),
            &["DATABASE_PASSWORD", ".kamal/secrets"],
        ),
        Mistake {
            secrets: "API_KEY=$(exit 3)\n",
            ..mistake(
                "a secret whose command fails",
                with("env:\n  secret:\n    - API_KEY\n"),
                &["API_KEY"],
            )
        },
        mistake(
            "a release command in a role that is not there",
            with("x-appliance:\n  release: {command: bin/migrate, role: jobs}\n"),
            &[
                "x-appliance/release/role: there is no role \"jobs\"",
                "there is: web",
            ],
        ),
        Mistake {
            version: "v0-never-built",
            ..mistake(
                "an image that is not there",
                good.to_owned(),
                &["demo:v0-never-built", "docker build"],
            )
        },
    ];
    all.push(Mistake {
        version: "foreign",
        asks: true,
        ..mistake(
            "an image for another architecture",
            good.to_owned(),
            &["linux/s390x", "demo:foreign", "docker build --platform"],
        )
    });
    all
}

/// `demo:foreign`: an empty image that says it is for a machine nobody here has.
///
/// Written as `docker save` would: older Dockers ignore the platform of `docker import`.
async fn foreign_image() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    // Two zero blocks are the end of a tar archive, here of one without entries.
    let layer = [0; 1024];
    let config = serde_json::json!({
        "architecture": "s390x",
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer)] },
    });
    let manifest = serde_json::json!([{
        "Config": "config.json",
        "RepoTags": ["demo:foreign"],
        "Layers": ["layer.tar"],
    }]);
    fs_err::write(scratch.path().join("layer.tar"), layer)?;
    fs_err::write(scratch.path().join("config.json"), config.to_string())?;
    fs_err::write(scratch.path().join("manifest.json"), manifest.to_string())?;
    let archive = scratch.path().join("image.tar");
    let mut tar = tokio::process::Command::new("tar");
    tar.arg("-cf").arg(&archive).arg("-C").arg(scratch.path());
    tar.args(["manifest.json", "config.json", "layer.tar"]);
    let mut load = tokio::process::Command::new("docker");
    load.arg("load").arg("-i").arg(&archive);
    for mut command in [tar, load] {
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {said}");
    }
    Ok(())
}
