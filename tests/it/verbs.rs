//! Kamal's verbs in a table: what each prints on a real host, with which exit code, and what it leaves behind.

mod follow;
mod hooks;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_tests::World;
use appliance_tests::load::{Load, Shape};

/// How long something that was asked for may take to be seen.
const SOON: Duration = Duration::from_secs(120);

/// A command line, its exit code, and what must be in its standard output (`+`), must not (`-`), or is in its standard
/// error (`!`).
type Row<'a> = (&'a [&'a str], i32, &'a [&'a str]);

async fn table(world: &World, rows: &[Row<'_>]) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for (arguments, code, expected) in rows {
        let ran = world.developer.appliance(*arguments).run().await?;
        let mut missed: Vec<String> = expected
            .iter()
            .filter(|expected| {
                let (kind, text) = expected.split_at(1);
                !match kind {
                    "+" => ran.stdout.contains(text),
                    "-" => !ran.stdout.contains(text),
                    _ => ran.stderr.contains(text),
                }
            })
            .map(|expected| format!("{expected:?}"))
            .collect();
        if ran.code != *code {
            missed.push(format!("code {code}, not {}", ran.code));
        }
        if !missed.is_empty() {
            wrong.push(format!(
                "appliance {}\nmissed: {}\nstdout: {}\nstderr: {}",
                arguments.join(" "),
                missed.join(", "),
                ran.stdout,
                ran.stderr
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

/// Runs a command line that must succeed; what it printed.
async fn ours(world: &World, arguments: &[&str]) -> anyhow::Result<String> {
    let ran = world.developer.appliance(arguments).run().await?.expect_code(0)?;
    Ok(ran.stdout)
}

/// Waits until the app answers with `status`; the answer's body.
async fn answers(world: &World, status: u16) -> anyhow::Result<String> {
    let target = world.https("demo.test", "/").await?;
    let begun = std::time::Instant::now();
    loop {
        match target.get().await {
            Ok(answer) if answer.status == status => {
                return Ok(String::from_utf8_lossy(&answer.body).into_owned());
            }
            other => ensure!(begun.elapsed() < SOON, "no {status} but {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn containers(world: &World, more: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut argv = vec![
        "docker",
        "ps",
        "--format",
        "{{.Names}}",
        "--filter",
        "label=service=demo",
    ];
    argv.extend(more);
    Ok(world.run(&argv).await?.lines().map(str::to_owned).collect())
}

/// Releases v1 and v2 of `demo` are there, and v2 serves.
pub(crate) async fn all(world: &World) -> anyhow::Result<()> {
    reads(world).await?;
    filters(world).await?;
    locks(world).await?;
    proxy(world).await?;
    server(world).await?;
    follow::logs(world).await?;
    detached(world).await?;
    hooks::all(world).await?;
    maintenance(world).await?;
    stop_and_start(world).await?;
    stale(world).await?;
    prune(world).await?;
    remove(world).await
}

async fn reads(world: &World) -> anyhow::Result<()> {
    let newest = world
        .run(&[
            "docker",
            "ps",
            "--quiet",
            "--latest",
            "--filter",
            "label=service=demo",
        ])
        .await?;
    world.developer.write(
        ".kamal/secrets",
        "TOKEN=$(printf first; echo second)\nPLAIN='x y'\nBOTH=$PLAIN!\n",
    )?;
    table(
        world,
        &[
            (&["details"], 0, &["+demo-web-v2", "+demo.test", "+running"]),
            (&["audit"], 0, &["+deploy"]),
            (&["audit", "--verify"], 0, &[]),
            (&["config", "--version", "v2"], 0, &["+demo.test"]),
            (&["docs"], 0, &["+proxy", "+x-appliance"]),
            (&["docs", "proxy"], 0, &["+app_port"]),
            (&["docs", "nonsense"], 2, &["!there is no section nonsense"]),
            (&["version"], 0, &["+."]),
            (&["upgrade", "-y"], 0, &["+appliance update"]),
            (
                &["app", "remove_container", "v1"],
                0,
                &["+nothing was done", "+prune all"],
            ),
            (&["accessory", "directories", "db"], 0, &["+nothing was done"]),
            (
                &["proxy", "upgrade"],
                0,
                &["+nothing was done", "+appliance update"],
            ),
            (&["app", "version"], 0, &["+App Host: ", "+\nv2\n"]),
            (&["app", "details"], 0, &["+demo-web-v2", "-demo-web-v1"]),
            (&["app", "containers"], 0, &["+demo-web-v1", "+demo-web-v2"]),
            (&["app", "images"], 0, &["+demo:v1", "+demo:v2", "+current"]),
            (&["app", "stale_containers"], 0, &["+no stale container runs"]),
            (&["app", "logs", "--container-id", &newest, "-n", "2"], 0, &[]),
            (
                &["app", "logs", "--container-id", "beef0000"],
                1,
                &["!app containers"],
            ),
            (
                &["app", "exec", "--raw", "--reuse", "echo 'a  b'"],
                0,
                &["+a  b\n"],
            ),
            (&["app", "logs", "-s", "1h", "-T"], 0, &[]),
            (
                &["app", "logs", "--since", "yesterday"],
                2,
                &["!--since yesterday"],
            ),
            (&["registry", "setup"], 0, &["+no registry is needed"]),
            (&["registry", "remove"], 0, &["+no registry is needed"]),
            (&["registry", "login"], 2, &["!local registry"]),
            (
                &["secrets", "print"],
                0,
                &["+PLAIN=x y", "+BOTH=x y!", "+TOKEN=firstsecond"],
            ),
            (&["secrets", "extract", "A", r#"{"vault/A":"b"}"#], 0, &["+b\n"]),
            (
                &["secrets", "fetch", "--adapter", "nonsense", "A"],
                2,
                &["!nonsense"],
            ),
            (&["rollback", "v77"], 3, &["!v77"]),
        ],
    )
    .await
}

/// Kamal's global flags.
async fn filters(world: &World) -> anyhow::Result<()> {
    let ip = world.ip().await?.to_string();
    let yaml = fs_err::read_to_string(world.developer.app().join("config/deploy.yml"))?;
    world.developer.write(
        "config/other.yml",
        &yaml.replace("service: demo", "service: elsewhere"),
    )?;
    world
        .developer
        .write("config/deploy.staging.yml", "proxy:\n  host: staging.test\n")?;
    let glob = format!("{}*", &ip[..ip.len() - 1]);
    table(
        world,
        &[
            (&["-h", &ip, "app", "version"], 0, &["+v2"]),
            (&["app", "version", "--hosts", &glob], 0, &["+v2"]),
            (
                &["app", "version", "-h", "10.9.9.9"],
                2,
                &["!No --hosts match for 10.9.9.9"],
            ),
            (&["app", "containers", "-r", "w*"], 0, &["+demo-web-v2"]),
            (
                &["app", "version", "-r", "nope"],
                2,
                &["!No --roles match for nope"],
            ),
            (&["-p", "app", "exec", "echo", "once"], 0, &["+once"]),
            (
                &["app", "version", "-c", "config/other.yml"],
                0,
                &["+nothing serves"],
            ),
            (&["app", "version", "-d", "staging"], 0, &["+nothing serves"]),
            (&["app", "version", "-d", "nowhere"], 2, &["!deploy.nowhere.yml"]),
            (&["-v", "app", "version"], 0, &["+v2", "!connecting to"]),
            (
                &["app", "exec", "--reuse", "--version", "v9", "true"],
                1,
                &["!v9"],
            ),
        ],
    )
    .await?;
    world
        .developer
        .write(".kamal/hooks/pre-connect", "#!/bin/sh\nexit 3\n")?;
    let hook = world.developer.app().join(".kamal/hooks/pre-connect");
    fs_err::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    table(
        world,
        &[
            (&["deploy", "--version", "v2"], 1, &["!pre-connect"]),
            // Whatever connects asks it first.
            (&["app", "version"], 1, &["!pre-connect"]),
        ],
    )
    .await?;
    let quiet = world
        .developer
        .appliance(["deploy", "-q", "-H", "--version", "v2"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(quiet.stderr.is_empty(), "quiet: {}", quiet.stderr);
    fs_err::remove_file(hook)?;
    Ok(())
}

async fn locks(world: &World) -> anyhow::Result<()> {
    table(
        world,
        &[
            (&["lock", "status"], 0, &["+There is no deploy lock"]),
            (&["lock", "acquire", "-m", "Holidays"], 0, &[]),
            (&["lock", "status"], 0, &["+Locked by: ", "+Message: Holidays"]),
            (&["deploy", "--version", "v2"], 3, &["!Holidays"]),
            (&["app", "version"], 0, &["+v2"]),
            (&["lock", "release"], 0, &[]),
            (&["lock", "status"], 0, &["+There is no deploy lock"]),
        ],
    )
    .await
}

async fn proxy(world: &World) -> anyhow::Result<()> {
    world.https("demo.test", "/a-page-to-find").await?.get().await?;
    world
        .journal_says("appliance-proxy.service", "/a-page-to-find", SOON)
        .await?;
    let before = world
        .run(&[
            "systemctl",
            "show",
            "--property=MainPID",
            "appliance-proxy.service",
        ])
        .await?;
    table(
        world,
        &[
            (
                &["proxy", "details"],
                0,
                &["+Proxy Host: ", "+demo-web", "+demo.test"],
            ),
            (&["proxy", "logs", "-n", "500"], 0, &["+/a-page-to-find"]),
            (
                &["proxy", "logs", "--grep", "a-page-to-find", "-T"],
                0,
                &["+{", "+a-page-to-find"],
            ),
            (
                &["proxy", "logs", "--since", "2030-01-01T00:00:00Z"],
                0,
                &["-page"],
            ),
            (&["proxy", "boot"], 0, &["!the proxy runs"]),
            (&["proxy", "start"], 0, &["!the proxy runs"]),
            (&["proxy", "stop"], 3, &["!every app of the host"]),
            (&["proxy", "reboot", "-y"], 0, &["!took over from"]),
            (&["proxy", "reboot", "--rolling"], 0, &["!took over from"]),
            (&["proxy", "remove"], 0, &["+app remove"]),
            (&["proxy", "boot_config", "get"], 0, &["+host.yml"]),
        ],
    )
    .await?;
    let after = world
        .run(&[
            "systemctl",
            "show",
            "--property=MainPID",
            "appliance-proxy.service",
        ])
        .await?;
    ensure!(before != after, "the same process: {after}");
    answers(world, 200).await?;
    // Visitors notice neither this one nor the one before.
    let mut load = Load::start(&world.https("demo.test", "/").await?, Shape::default());
    load.more(100).await;
    table(world, &[(&["proxy", "restart"], 0, &["!took over from"])]).await?;
    load.more(100).await;
    let report = load.stop().await;
    ensure!(
        report.failures == 0,
        "proxy restart: {} of {}: {:?}",
        report.failures,
        report.requests,
        report.examples
    );
    // The whole proxy down and up again, by its verbs.
    table(world, &[(&["proxy", "stop", "-y"], 0, &["!stopped"])]).await?;
    ensure!(
        world.https("demo.test", "/").await?.get().await.is_err(),
        "it still listens"
    );
    table(world, &[(&["proxy", "start"], 0, &["!runs"])]).await?;
    answers(world, 200).await.map(drop)
}

async fn server(world: &World) -> anyhow::Result<()> {
    // A login of one's own is the system's ssh; who has one is the host's business.
    let programs = world.developer.app().join("programs");
    world
        .developer
        .write("programs/ssh", "#!/bin/sh\necho \"ssh $*\"; exit 4\n")?;
    fs_err::set_permissions(
        programs.join("ssh"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
    let shell = world
        .developer
        .appliance(["server", "exec", "-i", "top"])
        .env("PATH", &path)
        .run()
        .await?
        .expect_code(4)?;
    ensure!(
        shell.stdout == format!("ssh -t -- {} top\n", world.ip().await?),
        "{}",
        shell.stdout
    );
    let hostname = world.run(&["cat", "/etc/hostname"]).await?;
    table(
        world,
        &[
            // Outside of the agent's own sandbox, where nothing could be written.
            (&["server", "exec", "touch", "/usr/local/written"], 0, &[]),
            (
                &[
                    "server",
                    "exec",
                    "id -u; ls /usr/local/written; cat /etc/hostname",
                ],
                0,
                &["+0\n/usr/local/written\n", &format!("+{hostname}\n")],
            ),
            (
                &["server", "exec", "--raw", "echo a; echo b >&2; exit 9"],
                9,
                &["+a\n", "!b"],
            ),
            (&["server", "bootstrap"], 0, &["+appliance "]),
        ],
    )
    .await
}

/// A detached command goes on without us, and leaves nothing behind.
async fn detached(world: &World) -> anyhow::Result<()> {
    let out = ours(
        world,
        &[
            "app",
            "exec",
            "--detach",
            "sh -c 'read line < /proc/1/fd/0; sleep 1'",
        ],
    )
    .await?;
    ensure!(out.contains("started demo-web-exec-v2-"), "{out}");
    let id = out
        .rsplit_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(id, _)| id.to_owned())
        .context("an id")?;
    let ended = tokio::time::timeout(SOON, world.run(&["docker", "wait", &id]))
        .await
        .context("a detached command does not end")?;
    // Gone already, or seen ending.
    ensure!(ended.is_err() || ended.is_ok_and(|code| code == "0"));
    Ok(())
}

async fn maintenance(world: &World) -> anyhow::Result<()> {
    table(
        world,
        &[(
            &[
                "app",
                "maintenance",
                "--message",
                "Back at noon",
                "--drain-timeout",
                "5",
            ],
            0,
            &[],
        )],
    )
    .await?;
    let body = answers(world, 503).await?;
    ensure!(body.contains("Back at noon"), "{body}");
    table(world, &[(&["app", "live"], 0, &[])]).await?;
    answers(world, 200).await.map(drop)
}

/// While a container takes its time to stop, the event of another start must not bring its route back.
async fn slow_stop(world: &World) -> anyhow::Result<()> {
    let slow = world.https("demo.test", "/slow?ms=9000").await?;
    let visitor = tokio::spawn(async move { slow.get().await });
    let old = containers(world, &["--all"]).await?;
    let old = old.iter().find(|name| name.contains("-v1"));
    let old = old.context("a container of v1 is retained")?;
    let stop = async { table(world, &[(&["app", "stop"], 0, &["!stopped demo-web-v2"])]).await };
    let site = world.https("demo.test", "/").await?;
    let start = async {
        // Without a route there is no certificate either: the handshake is refused.
        let begun = std::time::Instant::now();
        while site.get().await.is_ok_and(|answer| answer.status == 200) {
            ensure!(begun.elapsed() < SOON, "the route stays");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        world.run(&["docker", "start", old]).await
    };
    tokio::try_join!(stop, start)?;
    table(world, &[(&["proxy", "details"], 0, &["-demo-web"])]).await?;
    world
        .run(&["docker", "stop", "--time", "1", old.as_str()])
        .await?;
    // Whoever was in it when it began was let finish.
    let answer = visitor.await??;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

async fn stop_and_start(world: &World) -> anyhow::Result<()> {
    slow_stop(world).await?;
    let running = containers(world, &[]).await?;
    ensure!(running.is_empty(), "{running:?}");
    let answer = world.https("demo.test", "/").await?.get().await;
    ensure!(
        answer.map_or(true, |answer| answer.status != 200),
        "the route is gone"
    );
    table(
        world,
        &[
            (&["app", "exec", "--reuse", "true"], 1, &["!app start"]),
            (&["app", "start"], 0, &["!started demo-web-v2"]),
        ],
    )
    .await?;
    answers(world, 200).await?;
    table(
        world,
        &[
            (&["app", "boot"], 0, &[]),
            (&["app", "version"], 0, &["+\nv2\n"]),
            (&["app", "boot", "--version", "v1"], 0, &[]),
            (&["app", "version"], 0, &["+\nv1\n"]),
            (&["rollback", "v2"], 0, &[]),
            (&["app", "version"], 0, &["+\nv2\n"]),
        ],
    )
    .await?;
    answers(world, 200).await.map(drop)
}

/// Somebody started an earlier release's container by hand.
async fn stale(world: &World) -> anyhow::Result<()> {
    let old = containers(world, &["--all"])
        .await?
        .into_iter()
        .find(|name| name.contains("-v1"))
        .context("a container of v1 is retained")?;
    world.run(&["docker", "start", &old]).await?;
    let named = format!("+{old}");
    let stopped = format!("!stopped {old}");
    table(
        world,
        &[
            (&["app", "stale_containers"], 0, &[&named]),
            (&["app", "stale_containers", "--stop"], 0, &[&stopped]),
            (&["app", "stale_containers"], 0, &["+no stale container runs"]),
        ],
    )
    .await
}

async fn prune(world: &World) -> anyhow::Result<()> {
    let before = containers(world, &["--all"]).await?.len();
    table(
        world,
        &[
            (&["prune", "images"], 0, &["!no release needs"]),
            (
                &["prune", "containers", "--retain", "1"],
                0,
                &["!containers removed"],
            ),
            (&["prune", "all"], 0, &["!containers removed"]),
        ],
    )
    .await?;
    let after = containers(world, &["--all"]).await?;
    ensure!(
        after.len() < before && !after.is_empty(),
        "{before} before, then {after:?}"
    );
    answers(world, 200).await.map(drop)
}

async fn remove(world: &World) -> anyhow::Result<()> {
    table(
        world,
        &[
            (&["remove"], 3, &["!it was not confirmed", "!--confirm demo"]),
            (&["app", "remove", "--confirm", "dem"], 3, &["!--confirm demo"]),
        ],
    )
    .await?;
    answers(world, 200).await?;
    table(
        world,
        &[
            (&["remove", "-y"], 0, &[]),
            (&["app", "version"], 0, &["+nothing serves"]),
            (&["app", "exec", "true"], 2, &["!appliance deploy"]),
            (&["app", "logs"], 2, &[]),
            (&["details"], 0, &["-demo-web"]),
        ],
    )
    .await?;
    let left = containers(world, &["--all"]).await?;
    ensure!(left.is_empty(), "{left:?}");
    // And it can come again.
    table(
        world,
        &[
            (&["setup", "--version", "v2"], 0, &[]),
            (&["app", "version"], 0, &["+\nv2\n"]),
        ],
    )
    .await?;
    answers(world, 200).await.map(drop)
}
