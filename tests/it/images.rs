//! Where a deploy's image may come from, on a real host: deltas, files, stock clients, a build, a registry.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use appliance_sandbox::Distro;
use appliance_tests::World;
use tokio::net::{TcpListener, TcpStream};

const MIB: f64 = 1024.0 * 1024.0;
/// More than manifests and configurations take, less than any layer of these tests.
const NO_LAYER: f64 = 64.0 * 1024.0;
/// The registry's user `ada`, with a password that a shell or YAML could spoil (bcrypt).
const HTPASSWD: &str = "ada:$2y$04$abcdefghijklmnopqrstuuoBpIrM0OnplXjsOI8DWYJTHUhJDuUv.\n";
const PASSWORD: &str = "s3cret pass";

/// A program on the developer's machine that must succeed; what it printed.
async fn local(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .output()
        .await
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

async fn skopeo(from: &str, to: &str) -> anyhow::Result<()> {
    local("skopeo", &["--insecure-policy", "copy", from, to])
        .await
        .map(drop)
}

/// Pushes a version from the app's directory; what it said.
async fn push(world: &World, version: &str, more: &[&str]) -> anyhow::Result<String> {
    let mut arguments = vec!["push", "--version", version];
    arguments.extend(more);
    let ran = world.developer.appliance(arguments).run().await?.expect_code(0)?;
    Ok(ran.stderr)
}

/// What a program prints in the running container of a version.
async fn inside(world: &World, version: &str, argv: &[&str]) -> anyhow::Result<String> {
    let container = format!("demo-web-{version}");
    let mut whole = vec!["docker", "exec", &container];
    whole.extend(argv);
    world.run(&whole).await
}

#[tokio::test]
async fn images_come_as_deltas_from_files_through_the_tunnel_and_from_builds() -> anyhow::Result<()> {
    let world = World::bootstrapped("images", Distro::Debian13).await?;
    world.developer.demo_app("v1", &world, "").await?;
    let content = delta(&world).await?;
    let files = tempfile::tempdir()?;
    let archive = files.path().join("image.tar").to_string_lossy().into_owned();
    local("docker", &["save", "-o", &archive, "demo:big2"]).await?;
    from_files(&world, files.path(), &archive).await?;
    platforms(&world, files.path()).await?;
    tunnel(&world, &archive, &content).await?;
    for version in ["big1", "big2"] {
        local("docker", &["rmi", "--force", &format!("demo:{version}")]).await?;
    }
    built(&world).await?;
    registry(&world).await
}

/// A layer of 24 MiB that no compression makes smaller, and one more line in it; the second content.
async fn delta(world: &World) -> anyhow::Result<Vec<u8>> {
    let mut content = appliance_tests::content::noise(24 << 20);
    let build = async |version: &str, content: &[u8]| -> anyhow::Result<()> {
        let context = tempfile::tempdir()?;
        fs_err::write(context.path().join("app.bin"), content)?;
        let dockerfile = "FROM demo:v1\nCOPY app.bin /app.bin\n";
        fs_err::write(context.path().join("Dockerfile"), dockerfile)?;
        let path = context.path().to_string_lossy().into_owned();
        let tag = format!("demo:{version}");
        local("docker", &["build", "--quiet", "-t", &tag, &path])
            .await
            .map(drop)
    };
    build("big1", &content).await?;
    // On a terminal a line shows how far it is, how fast, and how long it will take; none of it goes into a pipe.
    let line = format!(
        "stty rows 40 cols 120; exec {} push --version big1",
        appliance_tests::bench::binary()?.display()
    );
    let shown = world
        .developer
        .appliance(["unused"])
        .command_of("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("TERM", "xterm")
        .output()
        .await?;
    let text = String::from_utf8_lossy(&shown.stdout);
    ensure!(shown.status.success(), "{text}");
    for part in ["0 of 3 layers already there", "MiB/s ", " MiB/"] {
        ensure!(text.contains(part), "no {part:?} in {text:?}");
    }
    content.splice(9_000_000..9_000_000, *b"one line of source more");
    build("big2", &content).await?;
    let said = push(world, "big2", &[]).await?;
    ensure!(sent_bytes(&said)? < 2.0 * MIB, "a delta: {said}");
    let sum = inside(world, "big2", &["sha256sum", "/app.bin"]).await?;
    let wanted = appliance_tests::content::sha256(&content);
    ensure!(sum.starts_with(&wanted), "{sum}, not {wanted}");
    Ok(content)
}

/// Archives and layouts of an image that the host has: no layer travels.
async fn from_files(world: &World, directory: &std::path::Path, archive: &str) -> anyhow::Result<()> {
    let layout = format!("{}/layout", directory.display());
    let oci_archive = format!("{}/image.oci", directory.display());
    skopeo(&format!("docker-archive:{archive}"), &format!("oci:{layout}:big")).await?;
    skopeo(
        &format!("oci:{layout}:big"),
        &format!("oci-archive:{oci_archive}:big"),
    )
    .await?;
    for (version, image) in [
        ("big3", archive.to_owned()),
        ("big4", format!("docker-archive:{archive}:demo:big2")),
        ("big5", format!("oci:{layout}")),
        ("big6", format!("oci:{layout}:big")),
        ("big7", format!("oci-archive:{oci_archive}:big")),
    ] {
        let said = push(world, version, &["--image", &image]).await?;
        ensure!(sent_bytes(&said)? < NO_LAYER, "{image}: {said}");
    }
    for (image, complaint) in [
        ("/not/there.tar".to_owned(), "there is no image at /not/there.tar"),
        (format!("oci:{layout}:other"), "it holds no image other, only big"),
        (format!("docker-archive:{archive}:other"), "only demo:big2"),
    ] {
        world
            .developer
            .appliance(["push", "--version", "x", "--image", &image])
            .run()
            .await?
            .expect_error(complaint)?;
    }
    Ok(())
}

/// An index for two platforms: the host's is taken; one for another platform alone is refused with nothing sent.
async fn platforms(world: &World, directory: &std::path::Path) -> anyhow::Result<()> {
    let layout = directory.join("layout");
    let read = |digest: &str| -> anyhow::Result<serde_json::Value> {
        let hex = digest.trim_start_matches("sha256:");
        Ok(serde_json::from_slice(&fs_err::read(
            layout.join("blobs/sha256").join(hex),
        )?)?)
    };
    let write = |value: &serde_json::Value| -> anyhow::Result<(String, usize)> {
        let bytes = value.to_string().into_bytes();
        let hex = appliance_tests::content::sha256(&bytes);
        fs_err::write(layout.join("blobs/sha256").join(&hex), &bytes)?;
        Ok((format!("sha256:{hex}"), bytes.len()))
    };
    let index: serde_json::Value = serde_json::from_slice(&fs_err::read(layout.join("index.json"))?)?;
    let mut ours = index["manifests"][0].clone();
    let mut manifest = read(ours["digest"].as_str().context("a digest")?)?;
    let mut config = read(manifest["config"]["digest"].as_str().context("a digest")?)?;
    let here = config["architecture"].clone();
    let other = if here == "arm64" { "amd64" } else { "arm64" };
    config["architecture"] = other.into();
    let (digest, size) = write(&config)?;
    manifest["config"]["digest"] = digest.into();
    manifest["config"]["size"] = size.into();
    let (digest, size) = write(&manifest)?;
    let theirs = serde_json::json!({
        "mediaType": ours["mediaType"], "digest": digest, "size": size,
        "platform": { "os": "linux", "architecture": other },
    });
    ours["platform"] = serde_json::json!({ "os": "linux", "architecture": here });
    let put = |manifests: serde_json::Value| {
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
        fs_err::write(layout.join("index.json"), index.to_string())
    };
    let image = format!("oci:{}", layout.display());
    put(serde_json::json!([theirs, ours]))?;
    let said = push(world, "big8", &["--image", &image]).await?;
    ensure!(sent_bytes(&said)? < NO_LAYER, "{said}");
    put(serde_json::json!([theirs]))?;
    let refused = world
        .developer
        .appliance(["push", "--version", "x", "--image", &image])
        .run()
        .await?
        .expect_error(&format!("only for linux/{other}"))?;
    ensure!(
        refused.code != 0 && !refused.stderr.contains(" sent ("),
        "{refused:?}"
    );
    Ok(())
}

/// Stock clients push through the tunnel and pull through it; what they pushed can be deployed.
async fn tunnel(world: &World, archive: &str, content: &[u8]) -> anyhow::Result<()> {
    let through = async |port: &str, command: &[&str]| {
        let mut arguments = vec!["tunnel", "--port", port, "--"];
        arguments.extend(command);
        world.developer.appliance(arguments).run().await?.expect_code(0)
    };
    let from = format!("docker-archive:{archive}");
    let copy = ["skopeo", "--insecure-policy", "copy"];
    let to = [
        "--dest-tls-verify=false",
        &from,
        "docker://localhost:5611/demo:by-skopeo",
    ];
    through("5611", &[copy, to].concat()).await?;
    // What skopeo reads back is what it wrote.
    let back = tempfile::tempdir()?;
    let target = format!("dir:{}", back.path().display());
    let again = [
        "--src-tls-verify=false",
        "docker://localhost:5611/demo:by-skopeo",
        &target,
    ];
    through("5611", &[copy, again].concat()).await?;
    ensure!(back.path().join("manifest.json").is_file());

    let tag = "localhost:5612/demo:by-docker";
    local("docker", &["tag", "demo:big1", tag]).await?;
    through("5612", &["docker", "push", tag]).await?;
    local("docker", &["rmi", tag]).await?;
    let pulled = "localhost:5612/demo:by-skopeo";
    through("5612", &["docker", "pull", pulled]).await?;
    let id = async |name: &str| local("docker", &["image", "inspect", "--format", "{{.Id}}", name]).await;
    ensure!(
        id(pulled).await? == id("demo:big2").await?,
        "another image came back"
    );
    local("docker", &["rmi", pulled]).await?;

    push(world, "big9", &["--image", "host:by-docker"]).await?;
    let sum = inside(world, "big9", &["sha256sum", "/app.bin"]).await?;
    ensure!(
        !sum.starts_with(&appliance_tests::content::sha256(content)),
        "the first image's file"
    );
    let elsewhere = [
        "--dest-tls-verify=false",
        &from,
        "docker://localhost:5613/other:v1",
    ];
    let mut arguments = vec!["tunnel", "--port", "5613", "--"];
    arguments.extend([copy, elsewhere].concat());
    let refused = world.developer.appliance(arguments).run().await?;
    ensure!(refused.code != 0, "another repository may not be written");
    Ok(())
}

/// The `builder` section, really built: what is committed, with its arguments, file and target.
async fn built(world: &World) -> anyhow::Result<()> {
    let developer = &world.developer;
    let yaml = developer.app().join("config/deploy.yml");
    let before = fs_err::read_to_string(&yaml)?;
    let builder = before
        .lines()
        .find(|line| line.starts_with("builder: "))
        .context("a builder")?;
    let more = builder.replace(
        '}',
        ", dockerfile: Dockerfile.app, target: final, args: {COLOUR: 'light $blue'}}",
    );
    developer.write("config/deploy.yml", &before.replace(builder, &more))?;
    developer.write(
        "Dockerfile.app",
        "FROM demo:v1 AS final\nARG COLOUR=none\nENV COLOUR=$COLOUR\nCOPY text /text\nFROM final AS beyond\nENV COLOUR=wrong\n",
    )?;
    developer.write("text", "committed\n")?;
    let git = async |arguments: &[&str]| -> anyhow::Result<String> {
        let app = developer.app().display().to_string();
        let who = ["-C", &app, "-c", "user.name=dev", "-c", "user.email=dev@test"];
        local("git", &[&who, arguments].concat()).await
    };
    git(&["init", "--quiet"]).await?;
    git(&["add", "."]).await?;
    git(&["commit", "--quiet", "-m", "first"]).await?;
    let revision = git(&["rev-parse", "HEAD"]).await?;
    developer.write("text", "not committed\n")?;
    let ran = developer
        .appliance(["deploy"])
        .run()
        .await?
        .expect_code(0)?
        .expect_error("uncommitted changes are not built")?;
    let version = format!("{revision}_uncommitted");
    let version = if ran.stderr.contains(&version) {
        &version[..]
    } else {
        &revision
    };
    ensure!(inside(world, version, &["cat", "/text"]).await? == "committed");
    ensure!(inside(world, version, &["printenv", "COLOUR"]).await? == "light $blue");
    let label = local(
        "docker",
        &[
            "image",
            "inspect",
            "--format",
            "{{index .Config.Labels \"service\"}}",
            &format!("localhost:5555/demo:{version}"),
        ],
    )
    .await?;
    ensure!(label == "demo", "{label}");

    // The working tree as it is, under a tag of its own; and no builder to make without buildx.
    developer
        .appliance(["build", "dev", "--version", "wip"])
        .run()
        .await?
        .expect_code(0)?;
    let text = local(
        "docker",
        &["run", "--rm", "localhost:5555/demo:wip-dirty", "cat", "/text"],
    )
    .await?;
    ensure!(text == "not committed", "{text}");
    // What must not be built is not.
    let hook = developer.app().join(".kamal/hooks/pre-build");
    developer.write(".kamal/hooks/pre-build", "#!/bin/sh\necho a dirty tree; exit 3\n")?;
    fs_err::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    developer
        .appliance(["build", "push", "--version", "refused"])
        .run()
        .await?
        .expect_code(1)?
        .expect_error("a dirty tree")?;
    let refused = ["image", "inspect", "localhost:5555/demo:refused"];
    ensure!(local("docker", &refused).await.is_err(), "it was built");
    fs_err::remove_file(hook)?;
    developer
        .appliance(["build", "push", "--no-cache", "--version", "pushed"])
        .run()
        .await?
        .expect_code(0)?;
    push(world, "pushed", &["--skip-push"]).await?;
    let delivered = developer
        .appliance(["build", "deliver", "--version", "v8"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(sent_bytes(&delivered.stderr)? < NO_LAYER, "{}", delivered.stderr);
    let serves = developer
        .appliance(["app", "version"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(serves.stdout.contains("\npushed\n"), "{}", serves.stdout);
    for verb in ["create", "details", "remove"] {
        let ran = developer.appliance(["build", verb]).run().await?;
        if local("docker", &["buildx", "version"]).await.is_err() {
            ran.expect_code(2)?.expect_error("has no buildx")?;
        }
    }
    for tag in [version, "latest", "wip-dirty", "latest-dirty", "pushed", "v8"] {
        let _absent = local(
            "docker",
            &["rmi", "--force", &format!("localhost:5555/demo:{tag}")],
        )
        .await;
    }
    Ok(())
}

/// Debian's `docker-registry` with a password, which the host reaches by the name that the configuration says.
struct Registry {
    _process: tokio::process::Child,
    _directory: tempfile::TempDir,
    port: u16,
}

impl Registry {
    async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
        let path = directory.path().display();
        fs_err::write(directory.path().join("htpasswd"), HTPASSWD)?;
        fs_err::write(
            directory.path().join("config.yml"),
            format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {path}/data\n\
                 http:\n  addr: 127.0.0.1:{port}\n\
                 auth:\n  htpasswd:\n    realm: test\n    path: {path}/htpasswd\n"
            ),
        )?;
        let process = tokio::process::Command::new("docker-registry")
            .arg("serve")
            .arg(directory.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run docker-registry; `cargo xtask test` installs it")?;
        let begun = std::time::Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            ensure!(begun.elapsed().as_secs() < 20, "docker-registry does not listen");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Ok(Self {
            _process: process,
            _directory: directory,
            port,
        })
    }

    /// On the host, the same address leads here: systemd's own forwarder there, and one of ours on the bridge here.
    async fn lead(&self, world: &World) -> anyhow::Result<tokio::task::JoinHandle<()>> {
        let route = world.run(&["ip", "-4", "route", "show", "default"]).await?;
        let gateway = route.split_whitespace().nth(2).context("a gateway")?.to_owned();
        let bridge = TcpListener::bind((gateway.as_str(), 0)).await?;
        let target = bridge.local_addr()?.to_string();
        let port = self.port;
        let task = tokio::spawn(async move {
            while let Ok((mut inner, _)) = bridge.accept().await {
                tokio::spawn(async move {
                    let mut outer = TcpStream::connect(("127.0.0.1", port)).await?;
                    tokio::io::copy_bidirectional(&mut inner, &mut outer).await
                });
            }
        });
        let listen = format!("--socket-property=ListenStream=127.0.0.1:{port}");
        let forward = "/usr/lib/systemd/systemd-socket-proxyd";
        world
            .run(&["systemd-run", "--unit=to-registry", &listen, forward, &target])
            .await?;
        Ok(task)
    }
}

/// Kamal's own way: build, push to a registry, pull from there, with a password that travels sealed.
async fn registry(world: &World) -> anyhow::Result<()> {
    let registry = Registry::start().await?;
    let bridge = registry.lead(world).await?;
    let developer = &world.developer;
    let yaml = fs_err::read_to_string(developer.app().join("config/deploy.yml"))?;
    let server = format!(
        "server: 127.0.0.1:{}\n  username: ada\n  password: [REGISTRY_PASSWORD]",
        registry.port
    );
    developer.write(
        "config/deploy.yml",
        &yaml.replace("server: localhost:5555", &server),
    )?;
    developer.write(".kamal/secrets", "REGISTRY_PASSWORD=not-it\n")?;
    let login = developer.appliance(["registry", "login"]).run().await?;
    ensure!(login.code != 0, "a wrong password: {login:?}");
    // Hosts need no login, and this machine is left out.
    let elsewhere = developer.appliance(["registry", "login", "-L"]).run().await?;
    elsewhere.expect_code(0)?;
    developer.write(".kamal/secrets", &format!("REGISTRY_PASSWORD='{PASSWORD}'\n"))?;
    developer
        .appliance(["registry", "login"])
        .run()
        .await?
        .expect_code(0)?;
    developer
        .appliance(["registry", "logout"])
        .run()
        .await?
        .expect_code(0)?;
    // Building for the registry logs in by itself, as in Kamal.
    developer
        .appliance(["build", "push", "--version", "r1"])
        .run()
        .await?
        .expect_code(0)?;
    for tag in ["r1", "latest"] {
        let name = format!("127.0.0.1:{}/demo:{tag}", registry.port);
        local("docker", &["rmi", "--force", &name]).await?;
    }
    let said = push(world, "r1", &["--from-registry", "--skip-push"]).await?;
    ensure!(
        said.contains("from the registry") && !said.contains(" sent ("),
        "{said}"
    );
    ensure!(inside(world, "r1", &["printenv", "COLOUR"]).await? == "light $blue");
    let left = world
        .run(&["find", "/root", "/etc/appliance", "-name", "config.json"])
        .await?;
    ensure!(left.is_empty(), "the password is kept: {left}");
    developer
        .appliance([
            "push",
            "--from-registry",
            "--skip-push",
            "--version",
            "never-pushed",
        ])
        .run()
        .await?
        .expect_code(2)?
        .expect_error("appliance build push")?;
    bridge.abort();
    Ok(())
}

/// The bytes of the line `✓ HOST: upload: 1.2 MiB sent (…)`.
fn sent_bytes(said: &str) -> anyhow::Result<f64> {
    let line = said
        .lines()
        .find(|line| line.contains(" sent ("))
        .with_context(|| format!("no upload: {said}"))?;
    let (head, _) = line.split_once(" sent (").context("the figure")?;
    let mut words = head.rsplit(' ');
    let unit = match words.next().context("a unit")? {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => MIB,
        other => anyhow::bail!("{other} are many: {line}"),
    };
    Ok(words.next().context("a number")?.parse::<f64>()? * unit)
}
