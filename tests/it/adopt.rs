//! A host of stock Kamal is bootstrapped, adopted, pushed to, rolled back and given back, with visitors all the time.
//!
//! kamal-proxy is a stand-in that keeps the documented state file and certificate cache (see `images/kamal-proxy`).
#![allow(clippy::print_stdout)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro, Image};
use appliance_tests::World;
use appliance_tests::http::Target;
use appliance_tests::load::{Load, Shape};
use aws_lc_rs::digest;
use serde_json::{Value, json};

const DIRECTORY: &str = "https://acme.test/directory";
const VOLUME: &str = "/var/lib/docker/volumes/kamal-proxy-config/_data";
const STATE: &str = "/var/lib/docker/volumes/kamal-proxy-config/_data/kamal-proxy.state";
const VISITORS: Shape = Shape {
    connections: 4,
    per_connection: 20,
    pause: Duration::from_millis(10),
};

/// Puts an image of the machine's Docker into the host's.
async fn carry_in(world: &World, image: &Image, name: &str) -> anyhow::Result<()> {
    let built = world.bench.sandbox.ensure(image, &|_| ()).await?;
    world.bench.sandbox.tag(&built, name).await?;
    let saved = tokio::process::Command::new("docker")
        .args(["save", name])
        .output()
        .await?;
    let load = Command::new(["docker", "load"]).stdin(saved.stdout);
    let loaded = world.host.exec(&load).await?;
    ensure!(loaded.success(), "{}", loaded.error_text());
    Ok(())
}

/// A certificate authority's certificate, and chain and key of `demo.test`, PEM.
fn certificates() -> anyhow::Result<(String, String, String)> {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key)?;
    let leaf_key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec!["demo.test".to_owned()])?;
    let leaf = leaf.signed_by(&leaf_key, &Issuer::from_params(&params, &key))?;
    Ok((ca.pem(), leaf.pem(), leaf_key.serialize_pem()))
}

/// What `kamal setup` leaves: Docker, the network, two roles, an accessory, kamal-proxy with its state.
async fn stock_kamal(world: &World) -> anyhow::Result<String> {
    let install = [
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
        "docker.io",
        "docker-cli",
        "iptables",
    ];
    world.run(&["apt-get", "update", "--quiet=2"]).await?;
    world.run(&install).await?;
    let image = Image::Demo {
        version: "v1".to_owned(),
    };
    carry_in(world, &image, "demo:v1").await?;
    carry_in(world, &Image::KamalProxy, "basecamp/kamal-proxy:v0.9.2").await?;
    world.run(&["docker", "network", "create", "kamal"]).await?;
    let host = world.ip().await?.to_string();
    let kamal_host = format!("KAMAL_HOST={host}");
    let run = [
        "docker",
        "run",
        "--detach",
        "--restart",
        "unless-stopped",
        "--network",
        "kamal",
    ];
    let role = |role: &str| {
        [
            format!("--name=demo-{role}-v1"),
            format!("--env=KAMAL_CONTAINER_NAME=demo-{role}-v1"),
            format!("--label=role={role}"),
        ]
    };
    let kamals = [
        "--env=KAMAL_VERSION=v1",
        "--env",
        &kamal_host,
        "--env=GREETING=grüß $Gott\\n",
        "--log-opt=max-size=10m",
        "--label=service=demo",
        "--label=destination=",
    ];
    let web = role("web");
    let web: Vec<&str> = web.iter().map(String::as_str).collect();
    let web = [&run[..], &web, &kamals, &["--memory=128m", "demo:v1"]].concat();
    let web = world.run(&web).await?;
    let jobs = role("jobs");
    let jobs: Vec<&str> = jobs.iter().map(String::as_str).collect();
    world
        .run(&[&run[..], &jobs, &kamals, &["demo:v1", "sleep", "infinity"]].concat())
        .await?;
    let cache = [
        "--name=demo-cache",
        "--env",
        &kamal_host,
        "--log-opt=max-size=10m",
    ];
    let cache = [
        &run[..],
        &cache,
        &["--label=service=demo-cache", "demo:v1", "sleep", "infinity"],
    ];
    world.run(&cache.concat()).await?;
    let board = [
        "--name=demo-board",
        "--env",
        &kamal_host,
        "--log-opt=max-size=10m",
    ];
    let board = [&run[..], &board, &["--label=service=demo-board", "demo:v1"]];
    let board = world.run(&board.concat()).await?;

    let (ca, chain, key) = certificates()?;
    world
        .run(&["docker", "volume", "create", "kamal-proxy-config"])
        .await?;
    let mut routed = state(&board[..12]);
    routed["name"] = json!("demo-board");
    routed["options"]["hosts"] = json!(["board.test"]);
    routed["options"]["tls_enabled"] = json!(false);
    let state = json!([state(&web[..12]), routed]);
    world.host.copy_in(STATE, state.to_string(), 0o644).await?;
    let cache = hex::encode(digest::digest(&digest::SHA256, DIRECTORY.as_bytes()));
    let cache = format!("{VOLUME}/certs/{cache}");
    world.run(&["mkdir", "--parents", &cache]).await?;
    world
        .host
        .copy_in(&format!("{cache}/demo.test"), key + &chain, 0o600)
        .await?;
    world
        .run(
            &[
                &run[..],
                &[
                    "--name=kamal-proxy",
                    "--publish=80:80",
                    "--publish=443:443",
                    "--volume=kamal-proxy-config:/home/kamal-proxy/.config/kamal-proxy",
                    "basecamp/kamal-proxy:v0.9.2",
                ],
            ]
            .concat(),
        )
        .await?;
    Ok(ca)
}

/// One service as kamal-proxy 0.9.2 writes it for Kamal 2.12.
fn state(container: &str) -> Value {
    json!({
        "name": "demo-web",
        "options": {
            "hosts": ["demo.test"], "path_prefixes": ["/"], "tls_enabled": true, "tls_certificate_path": "",
            "tls_private_key_path": "", "tls_redirect": true, "canonical_host": "", "acme_directory": DIRECTORY,
            "acme_cache_path": "/home/kamal-proxy/.config/kamal-proxy/certs", "error_page_path": "",
            "strip_prefix": true, "writer_affinity_timeout": 3_000_000_000_i64, "read_targets_accept_websockets": false
        },
        "target_options": {
            "health_check_config": {"path": "/up", "port": 0, "interval": 1_000_000_000, "timeout": 5_000_000_000_i64, "host": ""},
            "response_timeout": 30_000_000_000_i64, "buffer_requests": true, "buffer_responses": true,
            "max_memory_buffer_size": 1_048_576, "max_request_body_size": 0, "max_response_body_size": 0,
            "log_request_headers": ["Cache-Control", "Last-Modified", "User-Agent"], "log_response_headers": null,
            "forward_headers": false, "scope_cookie_paths": false
        },
        "active_targets": [format!("{container}:80")], "active_readers": [],
        "rollout_targets": null, "rollout_readers": null,
        "pause_controller": {"state": 0, "stop_message": "", "fail_after": 0}, "rollout_controller": null
    })
}

/// Who answers, which version, and what its environment is.
async fn served(site: &Target) -> anyhow::Result<(&'static str, String, Value)> {
    let answer = site.at("/env").get().await?;
    ensure!(answer.status == 200, "{answer:?}");
    let by = match answer.headers.contains_key("x-served-by") {
        true => "kamal-proxy",
        false => "appliance",
    };
    let env: Value = serde_json::from_slice(&answer.body)?;
    Ok((by, answer.version().unwrap_or_default().to_owned(), env))
}

/// Visitors over IPv4 and, where there is a second site, IPv6.
fn visitors(sites: &[Target]) -> Vec<Load> {
    let loads = sites.iter().map(|site| Load::start(site, VISITORS));
    loads.collect()
}

/// Ends a load; every request of it must have been answered well.
async fn unharmed(what: &str, loads: Vec<Load>) -> anyhow::Result<()> {
    for (mut load, family) in loads.into_iter().zip(["IPv4", "IPv6"]) {
        load.more(100).await;
        let report = load.stop().await;
        println!(
            "{what:<10} {family} {} requests, {} failed, slowest {} ms, {:?}",
            report.requests,
            report.failures,
            report.percentile(100).as_millis(),
            report.versions
        );
        ensure!(report.failures == 0, "{what}, {family}: {:?}", report.examples);
    }
    Ok(())
}

#[tokio::test]
async fn a_host_of_stock_kamal_is_adopted_and_given_back_without_a_failed_request() -> anyhow::Result<()> {
    let world = World::bare("adopt", Distro::Debian13).await?;
    let ca = stock_kamal(&world).await?;
    let Err(error) = there_and_back(&world, &ca).await else {
        return Ok(());
    };
    // The host is gone after this; what it has to say about the failure is not.
    let look = "docker ps --all; ss -Hltnp; docker logs --tail 20 kamal-proxy 2>&1; nft list table inet appliance_adopt; \
                journalctl --no-pager --output=cat --lines=60 --unit appliance-agent --unit appliance-proxy --unit docker; true";
    Err(error.context(world.run(&["sh", "-c", look]).await?))
}

async fn there_and_back(world: &World, ca: &str) -> anyhow::Result<()> {
    let (v4, v6) = world.host.addresses().await?;
    let at = |address: IpAddr| Target::https((address, 443).into(), "demo.test", "/", ca.as_bytes());
    let sites = [at(v4.into())?, at(v6.into())?];
    let site = sites[0].clone();
    let begun = Instant::now();
    while served(&site).await.is_err() {
        ensure!(begun.elapsed().as_secs() < 30, "the stand-in does not answer");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (by, version, before) = served(&site).await?;
    ensure!((by, version.as_str()) == ("kamal-proxy", "v1"), "{by} {version}");

    // Docker's helpers, which visitors over IPv6 come through here, end with the engine that bootstrap restarts.
    let load = visitors(&sites[..1]);
    world.bootstrap().await?;
    unharmed("bootstrap", load).await?;
    ensure!(served(&site).await?.0 == "kamal-proxy");
    let host_yml = format!("acme:\n  directory: {DIRECTORY}\n");
    world
        .host
        .copy_in("/etc/appliance/host.yml", host_yml, 0o644)
        .await?;

    let developer = &world.developer;
    let host = world.ip().await?;
    let more = format!(
        "accessories:\n  cache:\n    image: demo:v1\n    host: {host}\n    cmd: sleep infinity\n  \
         board:\n    image: demo:v1\n    host: {host}\n    proxy: {{host: board.test, app_port: 80}}\n"
    );
    developer.demo_app("v2", world, &more).await?;
    unknown_state(world).await?;
    let plan = developer
        .appliance(["adopt", "--dry-run"])
        .run()
        .await?
        .expect_code(0)?
        .stdout;
    for line in [
        "app demo v1 (demo:v1)",
        "web: container demo-web-v1, demo.test to port 80 (TLS)",
        "jobs: container demo-jobs-v1, no visitors",
        "certificate of demo.test",
        "accessory demo-board: board.test to port 80 (plain HTTP)",
    ] {
        ensure!(plan.contains(line), "{line:?} is not in the plan:\n{plan}");
    }
    ensure!(
        served(&site).await?.0 == "kamal-proxy",
        "--dry-run changed something"
    );

    let load = visitors(&sites);
    let begun = Instant::now();
    let adopted = developer
        .appliance(["adopt", "--drain", "10"])
        .run()
        .await?
        .expect_code(0)?;
    println!(
        "adopted in {:.1} s\n{}",
        begun.elapsed().as_secs_f64(),
        adopted.stderr
    );
    unharmed("adopt", load).await?;
    let (by, version, _) = served(&site).await?;
    ensure!((by, version.as_str()) == ("appliance", "v1"), "{by} {version}");
    // What runs is what ran, and a container made from the record would be the same.
    ensure!(!adopted.stderr.contains("with differences"), "{}", adopted.stderr);
    ensure!(
        adopted.stderr.contains("looked after from now on"),
        "{}",
        adopted.stderr
    );
    ensure!(board(world).await? == "appliance");
    let again = developer.appliance(["adopt"]).run().await?.expect_code(3)?;
    again.expect_error("kamal-proxy does not run")?;
    let status = developer.appliance(["status", "--json"]).run().await?.json()?;
    let apps = &status
        .as_object()
        .context("hosts")?
        .values()
        .next()
        .context("one")?["apps"];
    ensure!(apps[0]["current"]["version"] == "v1", "{apps}");

    let load = visitors(&sites);
    developer
        .appliance(["push", "--version", "v2"])
        .run()
        .await?
        .expect_code(0)?;
    unharmed("push", load).await?;
    ensure!(served(&site).await?.1 == "v2");
    let running = world.run(&["docker", "ps", "--format", "{{.Names}}"]).await?;
    ensure!(
        running.contains("demo-web-v2") && !running.contains("-v1") && running.contains("demo-cache"),
        "{running}"
    );

    no_way_back_yet(world).await?;
    let load = visitors(&sites);
    developer.appliance(["rollback"]).run().await?.expect_code(0)?;
    unharmed("rollback", load).await?;
    let (by, version, after) = served(&site).await?;
    ensure!((by, version.as_str()) == ("appliance", "v1"), "{by} {version}");
    for name in ["GREETING", "KAMAL_VERSION", "KAMAL_CONTAINER_NAME", "KAMAL_HOST"] {
        ensure!(
            before[name] == after[name],
            "{name}: {} became {}",
            before[name],
            after[name]
        );
    }

    let load = visitors(&sites);
    let begun = Instant::now();
    developer
        .appliance(["adopt", "--undo"])
        .run()
        .await?
        .expect_code(0)?;
    println!("given back in {:.1} s", begun.elapsed().as_secs_f64());
    unharmed("undo", load).await?;
    let (by, version, _) = served(&site).await?;
    ensure!((by, version.as_str()) == ("kamal-proxy", "v1"), "{by} {version}");
    let running = world.run(&["docker", "ps", "--format", "{{.Names}}"]).await?;
    let mut running: Vec<&str> = running.lines().collect();
    running.sort_unstable();
    ensure!(
        running
            == [
                "demo-board",
                "demo-cache",
                "demo-jobs-v1",
                "demo-web-v1",
                "kamal-proxy"
            ],
        "{running:?}"
    );
    let rules = world.run(&["nft", "list", "tables"]).await?;
    ensure!(!rules.contains("appliance_adopt"), "{rules}");
    let verified = developer.appliance(["audit", "--verify"]).run().await?;
    verified.expect_code(0)?;
    ensure!(board(world).await? == "kamal-proxy");
    let version = developer.appliance(["app", "version"]).run().await?;
    ensure!(
        version.expect_code(0)?.stdout.contains("nothing serves"),
        "the app is not ours any more"
    );

    // And once more, to stay; this time Docker has no helpers, but keeps the ports itself.
    without_helpers(world, &site).await?;
    let load = visitors(&sites[..1]);
    developer
        .appliance(["adopt", "--drain", "10"])
        .run()
        .await?
        .expect_code(0)?;
    unharmed("again", load).await?;
    ensure!(served(&site).await?.0 == "appliance");
    ensure!(board(world).await? == "appliance");
    // Numbers that containers of the first time carry are not given out again.
    let status = developer.appliance(["status", "--json"]).run().await?.json()?;
    let app = &status
        .as_object()
        .context("hosts")?
        .values()
        .next()
        .context("one")?["apps"][0];
    ensure!(app["current"]["number"] == 4, "{app}");
    Ok(())
}

/// Who serves the accessory behind the proxy.
async fn board(world: &World) -> anyhow::Result<&'static str> {
    let site = world.http("board.test", "/").await?;
    Ok(served(&site).await?.0)
}

/// A newer kamal-proxy may mean something by it that visitors would miss: nothing is guessed.
async fn unknown_state(world: &World) -> anyhow::Result<()> {
    let before = world.host.read(STATE).await?;
    let mut state: Value = serde_json::from_slice(&before)?;
    state[0]["options"]["mirror_to"] = json!("elsewhere");
    world.host.copy_in(STATE, state.to_string(), 0o644).await?;
    let said = "is of a form that this version does not know";
    let shown = world.developer.appliance(["adopt", "--dry-run"]).run().await?;
    let shown = shown.expect_code(0)?.stdout;
    ensure!(
        shown.contains("cannot be adopted") && shown.contains(said) && shown.contains("mirror_to"),
        "{shown}"
    );
    let refused = world.developer.appliance(["adopt"]).run().await?;
    refused.expect_code(3)?.expect_error(said)?;
    Ok(world.host.copy_in(STATE, before, 0o644).await?)
}

/// What kamal-proxy knows nothing of, and what nobody has decided about, keeps the host from being given back.
async fn no_way_back_yet(world: &World) -> anyhow::Result<()> {
    let developer = &world.developer;
    let ours = async |arguments: &[&str], code| developer.appliance(arguments).run().await?.expect_code(code);
    ours(
        &["push", "--version", "v2", "--canary", "header=X-Tester: yes"],
        0,
    )
    .await?;
    let refused = ours(&["adopt", "--undo"], 3).await?;
    refused.expect_error("runs as a canary")?;
    ours(&["abort"], 0).await?;

    let yml = fs_err::read_to_string(developer.app().join("config/deploy.yml"))?;
    let (yml, _) = yml.split_once("accessories:").context("there are accessories")?;
    let native = yml
        .replace("service: demo", "service: native")
        .replace("host: demo.test", "host: native.test")
        .replace("ssl: true", "ssl: false");
    developer.write("config/native.yml", &native)?;
    ours(&["push", "--version", "v2", "-c", "config/native.yml"], 0).await?;
    let refused = ours(&["adopt", "--undo"], 3).await?;
    refused.expect_error("kamal-proxy knows nothing of native")?;
    ours(&["remove", "-y", "-c", "config/native.yml"], 0).await?;
    Ok(())
}

/// Docker as some run it: `userland-proxy: false`.
async fn without_helpers(world: &World, site: &Target) -> anyhow::Result<()> {
    const FILE: &str = "/etc/docker/daemon.json";
    let mut daemon: Value = serde_json::from_slice(&world.host.read(FILE).await?)?;
    daemon["userland-proxy"] = json!(false);
    world.host.copy_in(FILE, daemon.to_string(), 0o644).await?;
    world.run(&["systemctl", "restart", "docker.service"]).await?;
    world.run(&["docker", "restart", "kamal-proxy"]).await?;
    let begun = Instant::now();
    while served(site).await.is_err() || board(world).await.is_err() {
        ensure!(begun.elapsed().as_secs() < 60, "kamal-proxy does not come back");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let helpers = world.host.run(["pgrep", "docker-proxy"]).await;
    ensure!(helpers.is_err(), "Docker still has helpers");
    Ok(())
}
