//! What Kamal's own integration tests show, on a real host: each row is one push and what came of it.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use appliance_sandbox::Distro;
use appliance_tests::World;
use appliance_tests::http::Target;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

/// An image `demo:VERSION` with one asset of its own, on top of the demo app.
async fn image_with_asset(world: &World, version: &str) -> anyhow::Result<()> {
    world.developer.demo_app(version, world, "").await?;
    let mut build = tokio::process::Command::new("docker")
        .args(["build", "--quiet", "--tag", &format!("demo:{version}"), "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run docker build")?;
    let file = format!(
        "FROM demo:{version}\nRUN mkdir /app/public && echo {version} > /app/public/{version}.txt && echo {version} > /app/public/both.txt\n"
    );
    let mut stdin = build.stdin.take().context("piped above")?;
    stdin.write_all(file.as_bytes()).await?;
    drop(stdin);
    ensure!(build.wait().await?.success(), "docker build failed");
    Ok(())
}

/// Writes `config/deploy.yml` from the lines of one app on this world's host.
async fn configure(world: &World, service: &str, name: &str, more: &str) -> anyhow::Result<()> {
    let arch = if std::env::consts::ARCH == "aarch64" {
        "arm64"
    } else {
        "amd64"
    };
    let yml = format!(
        "service: {service}\nimage: demo\nservers:\n  web:\n    hosts:\n      - {}: [site, unknown]\n\
         proxy:\n  host: {name}\n  app_port: 80\n{more}\
         ssh:\n  user: deploy\nregistry:\n  server: localhost:5555\nbuilder:\n  arch: {arch}\n\
         deploy_timeout: 10\nreadiness_delay: 1\nx-appliance:\n  watch: false\n  limits: {{pids: 200, memory: 200m}}\n",
        world.ip().await?
    );
    world.developer.write("config/deploy.yml", &yml)
}

async fn env(site: &Target) -> anyhow::Result<Value> {
    let answer = site.at("/env").get().await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(serde_json::from_slice(&answer.body)?)
}

#[tokio::test]
async fn what_kamals_own_tests_show_holds_here() -> anyhow::Result<()> {
    let world = World::bootstrapped("kamal", Distro::Debian12).await?;
    let host_token = "HOST_TOKEN=\"host $token\"\n";
    world.host.copy_in("/etc/environment", host_token, 0o644).await?;
    environment(&world).await?;
    assets(&world).await?;
    failed_image(&world).await?;
    maintenance(&world).await?;
    one_role_of_two(&world).await?;
    lock(&world).await?;
    destinations_and_certificates(&world).await?;
    crate::parts::of_one_app(&world).await
}

/// Every byte arrives, whatever shells and files make of it elsewhere.
async fn environment(world: &World) -> anyhow::Result<()> {
    image_with_asset(world, "v1").await?;
    let more = "env:\n  clear:\n    UMLAUT: größe ✓\n    DOLLAR: \"$HOME $(id) `id`\"\n    BACKSLASH: 'a\\nb\\\\'\n    \
                LINES: \"one\\ntwo\\n\"\n    HOST: \"<${HOST_TOKEN}>\"\n    BLANK: \"\"\n    FLAG: false\n  \
                secret:\n    - SECRET\n    - RENAMED:OTHER\n  tags:\n    site:\n      TAGGED: here\n    \
                elsewhere:\n      ABSENT: there\nvolumes:\n  - kept:/kept\nasset_path: /app/public\n";
    configure(world, "demo", "demo.test", more).await?;
    world.developer.write(
        ".kamal/secrets",
        "SECRET='line one\nline $two\\n'\nOTHER=\"größe\"\n",
    )?;
    let push = world.developer.appliance(["push", "--version", "v1"]);
    push.run().await?.expect_code(0)?;
    let env = env(&world.http("demo.test", "/").await?).await?;
    for (name, expect) in [
        ("UMLAUT", "größe ✓"),
        ("DOLLAR", "$HOME $(id) `id`"),
        ("BACKSLASH", "a\\nb\\\\"),
        ("LINES", "one\ntwo\n"),
        ("HOST", "<host $token>"),
        ("FLAG", "false"),
        ("SECRET", "line one\nline $two\\n"),
        ("RENAMED", "größe"),
        ("TAGGED", "here"),
        ("KAMAL_VERSION", "v1"),
        ("KAMAL_CONTAINER_NAME", "demo-web-v1"),
    ] {
        ensure!(env[name] == expect, "{name} is {:?}, not {expect:?}", env[name]);
    }
    for name in ["BLANK", "ABSENT", "OTHER", "KAMAL_DESTINATION"] {
        ensure!(env.get(name).is_none(), "{name} is there: {}", env[name]);
    }
    let format = "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.RestartPolicy.Name}}";
    let limits = world
        .run(&["docker", "inspect", "--format", format, "demo-web-v1"])
        .await?;
    ensure!(limits == format!("{} 200 unless-stopped", 200 << 20), "{limits}");
    Ok(())
}

/// Both releases have the assets of both, and no container can write into them.
async fn assets(world: &World) -> anyhow::Result<()> {
    image_with_asset(world, "v2").await?;
    let more = "asset_path: /app/public\nerror_pages_path: public/errors\n";
    world
        .developer
        .write("public/errors/503.html", "<h1>Closed: {{ .Message }}</h1>")?;
    world
        .developer
        .write("public/errors/readme.html", "no page of a status")?;
    configure(world, "demo", "demo.test", more).await?;
    let push = world.developer.appliance(["push", "--version", "v2"]);
    push.run().await?.expect_code(0)?;
    let read = async |file: &str| world.run(&["docker", "exec", "demo-web-v2", "cat", file]).await;
    for (file, expect) in [("v1.txt", "v1"), ("v2.txt", "v2"), ("both.txt", "v2")] {
        let found = read(&format!("/app/public/{file}")).await?;
        ensure!(found == expect, "{file} holds {found:?}");
    }
    let touch = ["docker", "exec", "demo-web-v2", "touch", "/app/public/new"];
    ensure!(world.run(&touch).await.is_err(), "the assets can be written");
    // The older release's volume has them too: it served them until its last request.
    let root = "/var/lib/appliance/assets/demo/web";
    let volumes = world.run(&["ls", root]).await?;
    ensure!(volumes == "1\n2", "{volumes}");
    for file in ["v1.txt", "v2.txt"] {
        world
            .run(&["test", "-f", &format!("{root}/1/volume/{file}")])
            .await?;
        let links = world
            .run(&["stat", "--format=%h", &format!("{root}/2/volume/{file}")])
            .await?;
        ensure!(links == "3", "{file} is a copy: {links} links");
    }
    Ok(())
}

/// The old version keeps serving, its container keeps its name, and no worker of the new one was started.
async fn failed_image(world: &World) -> anyhow::Result<()> {
    let more = "env:\n  clear:\n    HEALTH: fail\n";
    configure(world, "demo", "demo.test", more).await?;
    let yml = fs_err::read_to_string(world.developer.app().join("config/deploy.yml"))?;
    let worker = format!(
        "  jobs:\n    cmd: sleep infinity\n    hosts: [{}]\nproxy:\n",
        world.ip().await?
    );
    world
        .developer
        .write("config/deploy.yml", &yml.replacen("proxy:\n", &worker, 1))?;
    // The same version again: the container that serves makes room, and gets its name back.
    let push = world.developer.appliance(["push", "--version", "v2"]);
    push.run().await?.expect_code(5)?;
    let site = world.http("demo.test", "/").await?;
    ensure!(site.get().await?.version() == Some("v2"));
    let filter = [
        "docker",
        "ps",
        "--all",
        "--filter",
        "label=service=demo",
        "--format",
        "{{.Names}} {{.State}}",
    ];
    let mut containers: Vec<String> = world.run(&filter).await?.lines().map(str::to_owned).collect();
    containers.sort();
    ensure!(
        containers == ["demo-web-v1 exited", "demo-web-v2 running"],
        "{containers:?}"
    );
    Ok(())
}

async fn maintenance(world: &World) -> anyhow::Result<()> {
    let site = world.http("demo.test", "/").await?;
    let command = |arguments: &[&'static str]| world.developer.appliance(arguments.to_vec());
    let stop = command(&["app", "maintenance", "--message", "Back at noon"]);
    stop.run().await?.expect_code(0)?;
    let answer = site.get().await?;
    ensure!(
        answer.status == 503 && answer.text() == "<h1>Closed: Back at noon</h1>",
        "{answer:?}"
    );
    command(&["app", "live"]).run().await?.expect_code(0)?;
    let status = site.get().await?.status;
    ensure!(status == 200, "live again with status {status}");
    Ok(())
}

/// What is closed for one role is open for the other; a role that comes alone misses the release command aloud.
async fn one_role_of_two(world: &World) -> anyhow::Result<()> {
    configure(world, "demo", "demo.test", "").await?;
    let yml = fs_err::read_to_string(world.developer.app().join("config/deploy.yml"))?;
    let admin = format!(
        "  admin:\n    hosts: [{}]\n    proxy: {{host: admin.test, app_port: 80}}\nproxy:\n",
        world.ip().await?
    );
    let yml = yml.replacen("proxy:\n", &admin, 1).replace(
        "  watch: false\n",
        "  watch: false\n  release: python3 -c \"print('tables migrated')\"\n",
    );
    world.developer.write("config/deploy.yml", &yml)?;
    let ours = async |arguments: &[&'static str]| {
        let ran = world.developer.appliance(arguments.to_vec()).run().await?;
        ran.expect_code(0)
    };
    let said = ours(&["push", "--version", "v2", "-r", "admin"]).await?.stderr;
    ensure!(
        said.contains("runs in the role web, which this command leaves out: the new code starts without it")
            && !said.contains("tables migrated"),
        "{said}"
    );
    let web = world.http("demo.test", "/").await?;
    let admin = world.http("admin.test", "/").await?;
    let both = async || anyhow::Ok((web.get().await?.status, admin.get().await?.status));
    ensure!(both().await? == (200, 200));
    ours(&["app", "maintenance", "-r", "admin"]).await?;
    ensure!(
        both().await? == (200, 503),
        "one role was closed: {:?}",
        both().await?
    );
    // Over a rollout, too.
    ours(&["app", "boot"]).await?;
    ensure!(both().await? == (200, 503), "after a boot: {:?}", both().await?);
    ours(&["app", "maintenance"]).await?;
    ours(&["app", "live", "-r", "admin"]).await?;
    ensure!(
        both().await? == (503, 200),
        "one role was opened: {:?}",
        both().await?
    );
    ours(&["app", "live"]).await?;
    ensure!(both().await? == (200, 200));
    let nobody = world
        .developer
        .appliance(["app", "maintenance", "-r", "nobody"])
        .run()
        .await?;
    nobody
        .expect_code(2)?
        .expect_error("No --roles match for nobody")?;
    configure(world, "demo", "demo.test", "").await
}

async fn lock(world: &World) -> anyhow::Result<()> {
    let command = |arguments: &[&'static str]| world.developer.appliance(arguments.to_vec());
    let acquired = command(&["lock", "acquire", "-m", "audit in progress"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(
        acquired.stdout.contains("Acquired the deploy lock"),
        "{}",
        acquired.stdout
    );
    let status = command(&["lock", "status"]).run().await?.expect_code(0)?;
    for part in [
        "Locked by: developer at 2",
        "Version: ",
        "Message: audit in progress",
    ] {
        ensure!(
            status.stdout.contains(part),
            "{part:?} is missing:\n{}",
            status.stdout
        );
    }
    // An agent that starts again has not forgotten it.
    world.crash("appliance-agent.service").await?;
    world.ready().await?;
    let rollback = command(&["rollback"]).run().await?.expect_code(3)?;
    let rollback = rollback.expect_error("Deploy lock found")?;
    rollback.expect_error("Message: audit in progress")?;
    let again = command(&["lock", "acquire", "-m", "me too"])
        .run()
        .await?
        .expect_code(3)?;
    again.expect_error("audit in progress")?;
    // A lock taken by hand ends when somebody wants it to, so nobody waits for it.
    let waits = command(&["rollback", "--lock-wait"])
        .run()
        .await?
        .expect_code(3)?;
    waits.expect_error("Deploy lock held manually, not waiting")?;
    command(&["lock", "release"]).run().await?.expect_code(0)?;
    let status = command(&["lock", "status"]).run().await?.expect_code(0)?;
    ensure!(
        status.stdout.contains("There is no deploy lock"),
        "{}",
        status.stdout
    );
    turns(world).await
}

/// Who comes while somebody else deploys is told who that is, and with `--lock-wait` waits for the end.
async fn turns(world: &World) -> anyhow::Result<()> {
    let command = |arguments: &[&'static str]| world.developer.appliance(arguments.to_vec());
    let more = "asset_path: /app/public\nenv:\n  clear:\n    SLOW_START: 6\n";
    configure(world, "demo", "demo.test", more).await?;
    let push = tokio::spawn(command(&["push", "--version", "v2"]).run());
    let begun = std::time::Instant::now();
    loop {
        let status = command(&["lock", "status"]).run().await?.expect_code(0)?;
        if status.stdout.contains("is being changed by") && status.stdout.contains("(deploy)") {
            break;
        }
        ensure!(
            begun.elapsed().as_secs() < 30 && !push.is_finished(),
            "{}",
            status.stdout
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let refused = command(&["app", "boot"]).run().await?.expect_code(3)?;
    refused.expect_error("is being changed by")?;
    let short = command(&["rollback", "--lock-wait=1"])
        .run()
        .await?
        .expect_code(3)?;
    short.expect_error("Timed out waiting for deploy lock")?;
    let waited = command(&[
        "rollback",
        "--lock-wait",
        "--lock-wait-timeout",
        "60",
        "--lock-wait-interval",
        "2",
    ])
    .run()
    .await?
    .expect_code(0)?;
    waited.expect_error("waiting up to 60 s")?;
    push.await??.expect_code(0)?;
    let answer = world.http("demo.test", "/").await?.get().await?;
    ensure!(answer.version() == Some("v2"), "{answer:?}");
    Ok(())
}

/// A second app, for a destination and with a certificate of its own, comes and goes without touching the first.
async fn destinations_and_certificates(world: &World) -> anyhow::Result<()> {
    let signed = rcgen::generate_simple_self_signed(vec!["other.test".to_owned()])?;
    let (certificate, key) = (signed.cert.pem(), signed.signing_key.serialize_pem());
    configure(world, "other", "base.test", "env:\n  clear:\n    FROM: base\n").await?;
    world.developer.write(
        "config/deploy.staging.yml",
        "proxy:\n  host: other.test\n  ssl:\n    certificate_pem: CERTIFICATE\n    private_key_pem: KEY\n\
         env:\n  clear:\n    FROM: staging\n",
    )?;
    let secrets = format!("CERTIFICATE='{certificate}'\nKEY='{key}'\n");
    world.developer.write(".kamal/secrets.staging", &secrets)?;
    let command = |arguments: &[&'static str]| world.developer.appliance(arguments.to_vec());
    let push = command(&["push", "-d", "staging", "--version", "v2"]);
    push.run().await?.expect_code(0)?;

    let address = std::net::SocketAddr::new(world.ip().await?, 443);
    let site = Target::https(address, "other.test", "/", certificate.as_bytes())?;
    let env = env(&site).await.context("with the certificate of the secrets")?;
    ensure!(
        env["FROM"] == "staging" && env["KAMAL_DESTINATION"] == "staging",
        "{env}"
    );
    ensure!(env["KAMAL_CONTAINER_NAME"] == "other-web-staging-v2", "{env}");
    // Keys and ledgers are for their owners alone.
    let secret = [
        "find",
        "/var/lib/appliance-proxy",
        "/var/lib/appliance/apps",
        "/etc/appliance/host.key",
    ];
    let open = [&secret[..], &["-type", "f", "-perm", "/o=rwx", "-name", "*.key"]].concat();
    let open = world.run(&open).await?;
    ensure!(open.is_empty(), "others may read {open}");

    let remove = command(&["app", "remove", "-d", "staging", "--confirm", "other"]);
    remove.run().await?.expect_code(0)?;
    let first = world.http("demo.test", "/").await?.get().await?;
    ensure!(
        first.version() == Some("v2"),
        "the first app went with the second: {first:?}"
    );
    ensure!(
        site.get().await.is_err() || site.get().await?.status == 404,
        "the second app still answers"
    );
    Ok(())
}
