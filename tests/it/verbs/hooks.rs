//! Kamal's hooks in a table: which of them a command calls, in which order, and what each is told; and who stops what.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use appliance_tests::World;

use super::SOON;

/// Kamal 2.12's hooks, but for `pre-build`, which needs a build.
const HOOKS: [&str; 8] = [
    "pre-connect",
    "docker-setup",
    "pre-deploy",
    "pre-app-boot",
    "post-app-boot",
    "post-deploy",
    "pre-proxy-reboot",
    "post-proxy-reboot",
];
/// Hooks that Kamal hands every secret.
const WITH_SECRETS: [&str; 3] = ["pre-connect", "pre-deploy", "post-deploy"];
/// Hooks that run while their command holds the app or the proxy.
const LOCKED: [&str; 5] = [
    "pre-deploy",
    "pre-app-boot",
    "post-app-boot",
    "pre-proxy-reboot",
    "post-proxy-reboot",
];
/// What is said of the version where a command brings none.
const NO_VERSION: &str = "unversioned";

/// A command, what it is called in hooks, the version that it brings (pre-connect comes before one is known), the roles
/// that were named, and its hooks.
type Row<'a> = (&'a [&'a str], &'a str, (&'a str, &'a str), &'a str, &'a [&'a str]);

const DEPLOY: &[&str] = &[
    "pre-connect",
    "pre-deploy",
    "pre-app-boot",
    "post-app-boot",
    "post-deploy",
];
const BOOT: &[&str] = &["pre-connect", "pre-app-boot", "post-app-boot"];

const TABLE: &[Row<'_>] = &[
    (
        &["deploy", "--version", "v2"],
        "deploy/",
        ("v2", "v2"),
        "",
        DEPLOY,
    ),
    (
        &["push", "--version", "v2", "-H"],
        "deploy/",
        ("v2", "v2"),
        "",
        &[],
    ),
    (
        &["redeploy", "-P", "--version", "v2", "-r", "web"],
        "redeploy/",
        ("v2", "v2"),
        "web",
        DEPLOY,
    ),
    (&["rollback", "v1"], "rollback/", (NO_VERSION, "v1"), "", DEPLOY),
    (&["app", "boot"], "app/boot", (NO_VERSION, "v1"), "", BOOT),
    (
        &["app", "boot", "--version", "v2"],
        "app/boot",
        ("v2", "v2"),
        "",
        BOOT,
    ),
    (
        &["setup", "--version", "v2"],
        "setup/",
        ("v2", "v2"),
        "",
        &[
            "pre-connect",
            "docker-setup",
            "pre-deploy",
            "pre-app-boot",
            "post-app-boot",
            "post-deploy",
        ],
    ),
    (
        &["proxy", "reboot", "-y"],
        "proxy/reboot",
        (NO_VERSION, NO_VERSION),
        "",
        &["pre-connect", "pre-proxy-reboot", "post-proxy-reboot"],
    ),
    (
        &["server", "bootstrap"],
        "server/bootstrap",
        (NO_VERSION, NO_VERSION),
        "",
        &["pre-connect", "docker-setup"],
    ),
    (
        &["app", "version"],
        "app/version",
        (NO_VERSION, NO_VERSION),
        "",
        &["pre-connect"],
    ),
    (
        &["proxy", "restart"],
        "proxy/restart",
        (NO_VERSION, NO_VERSION),
        "",
        &["pre-connect"],
    ),
];

/// Releases v1 and v2 of `demo` are there, v2 serves, and the secrets have a TOKEN; so it is again at the end.
pub(super) async fn all(world: &World) -> anyhow::Result<()> {
    called(world).await?;
    failing(world).await?;
    interrupted(world).await?;
    for hook in HOOKS {
        let _was_not_there = fs_err::remove_file(world.developer.app().join(".kamal/hooks").join(hook));
    }
    Ok(())
}

fn write(world: &World, hook: &str, script: &str) -> anyhow::Result<()> {
    let path = format!(".kamal/hooks/{hook}");
    world.developer.write(&path, &format!("#!/bin/sh\n{script}\n"))?;
    let path = world.developer.app().join(path);
    Ok(fs_err::set_permissions(
        path,
        std::fs::Permissions::from_mode(0o755),
    )?)
}

/// What the hooks wrote since the last time.
fn told(world: &World) -> anyhow::Result<Vec<String>> {
    let file = world.developer.app().join("told");
    let text = match fs_err::read_to_string(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    fs_err::remove_file(&file)?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn tells(world: &World, hook: &str) -> anyhow::Result<()> {
    let script = format!(
        "echo \"{hook} $KAMAL_COMMAND/$KAMAL_SUBCOMMAND $KAMAL_VERSION $KAMAL_SERVICE_VERSION $KAMAL_SERVICE $KAMAL_HOSTS \
         roles=$KAMAL_ROLES lock=$KAMAL_LOCK $KAMAL_PERFORMER at=${{KAMAL_RECORDED_AT%%T*}} took=${{KAMAL_RUNTIME:+yes}} \
         dest=$KAMAL_DESTINATION secret=$TOKEN\" >> told"
    );
    write(world, hook, &script)
}

async fn called(world: &World) -> anyhow::Result<()> {
    for hook in HOOKS {
        tells(world, hook)?;
    }
    told(world)?;
    let ip = world.ip().await?;
    for (arguments, command, (before, version), roles, hooks) in TABLE {
        let ran = world.developer.appliance(*arguments).run().await?;
        ran.expect_code(0)?;
        let today = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
        let expected: Vec<String> = hooks
            .iter()
            .map(|hook| {
                let version = if *hook == "pre-connect" { before } else { version };
                let service_version: String = version.chars().take(7).collect();
                format!(
                    "{hook} {command} {version} demo@{service_version} demo {ip} roles={roles} lock={} developer at={today} \
                     took={} dest= secret={}",
                    LOCKED.contains(hook),
                    if *hook == "post-deploy" { "yes" } else { "" },
                    if WITH_SECRETS.contains(hook) {
                        "firstsecond"
                    } else {
                        ""
                    },
                )
            })
            .collect();
        let found = told(world)?;
        ensure!(
            found == expected,
            "{arguments:?} told its hooks\n{}\nnot\n{}",
            found.join("\n"),
            expected.join("\n")
        );
    }
    let staging = ["app", "version", "-d", "staging"];
    let ran = world.developer.appliance(staging).run().await?;
    ran.expect_code(0)?;
    let found = told(world)?;
    ensure!(
        found.len() == 1 && found[0].contains(" dest=staging "),
        "{found:?}"
    );
    Ok(())
}

/// What serves and how: the app's container, and the proxy's process.
async fn standing(world: &World) -> anyhow::Result<(String, String)> {
    let filter = ["docker", "ps", "--quiet", "--filter", "label=service=demo"];
    let show = [
        "systemctl",
        "show",
        "--property=MainPID",
        "appliance-proxy.service",
    ];
    Ok((world.run(&filter).await?, world.run(&show).await?))
}

/// A hook that fails before something stops it, and the command says so; nothing has changed then.
async fn failing(world: &World) -> anyhow::Result<()> {
    let before = standing(world).await?;
    for (hook, arguments) in [
        ("pre-connect", &["rollback", "v1"][..]),
        ("docker-setup", &["setup", "--version", "v1"]),
        ("pre-deploy", &["deploy", "--version", "v1"]),
        ("pre-deploy", &["rollback", "v1"]),
        ("pre-app-boot", &["redeploy", "--version", "v1"]),
        ("pre-app-boot", &["app", "boot"]),
        ("pre-proxy-reboot", &["proxy", "reboot", "-y"]),
    ] {
        write(world, hook, "echo not on a Friday; exit 3")?;
        told(world)?;
        let ran = world.developer.appliance(arguments).run().await?.expect_code(1)?;
        let ran = ran.expect_error(&format!("Hook `{hook}` failed: exit status: 3"))?;
        ran.expect_error("not on a Friday")?;
        let at = HOOKS
            .iter()
            .position(|name| name == &hook)
            .context("in the list")?;
        for line in told(world)? {
            let name = line.split(' ').next().unwrap_or_default();
            let place = HOOKS.iter().position(|hook| *hook == name).unwrap_or(HOOKS.len());
            ensure!(place < at, "{arguments:?}: after {hook} failed: {line}");
        }
        ensure!(
            standing(world).await? == before,
            "{arguments:?} changed something after {hook} failed"
        );
        tells(world, hook)?;
    }
    Ok(())
}

/// Ctrl-C while a hook runs ends command and hook, before the change without one.
async fn interrupted(world: &World) -> anyhow::Result<()> {
    let before = standing(world).await?;
    for (hook, said, changed) in [
        ("pre-app-boot", "interrupted; nothing was changed", false),
        ("post-app-boot", "has done what was asked of it", true),
    ] {
        write(world, hook, "echo $$ > waiting; exec sleep 600")?;
        let waiting = world.developer.app().join("waiting");
        let _none_yet = fs_err::remove_file(&waiting);
        let mut command = world.developer.appliance(["push", "--version", "v2"]).command()?;
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let id = child.id().context("it runs")?.to_string();
        let begun = Instant::now();
        let pid = loop {
            match fs_err::read_to_string(&waiting) {
                Ok(pid) if pid.ends_with('\n') => break pid.trim().to_owned(),
                _ => ensure!(begun.elapsed() < SOON, "{hook} is not run"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let kill = tokio::process::Command::new("kill")
            .args(["-INT", &id])
            .status()
            .await?;
        ensure!(kill.success(), "cannot interrupt {id}");
        let ended = tokio::time::timeout(SOON, child.wait_with_output())
            .await
            .with_context(|| format!("Ctrl-C does not end a push in {hook}"))??;
        let stderr = String::from_utf8_lossy(&ended.stderr);
        ensure!(
            ended.status.code() == Some(1) && stderr.contains(said),
            "{hook}: {}: {stderr}",
            ended.status
        );
        // Who ended it does not live to see it go.
        let begun = Instant::now();
        while fs_err::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep")) {
            ensure!(begun.elapsed() < SOON, "{hook} goes on without its command");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!((standing(world).await? != before) == changed, "{hook}: {stderr}");
        tells(world, hook)?;
    }
    Ok(())
}
