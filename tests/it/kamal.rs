//! Kamal's verbs on a real host: commands with and without a terminal, logs, listings.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use appliance_sandbox::Distro;
use appliance_tests::World;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn push(world: &World, version: &str, more: &str) -> anyhow::Result<String> {
    world.developer.demo_app(version, world, more).await?;
    let ran = world
        .developer
        .appliance(["push", "--version", version])
        .run()
        .await?
        .expect_code(0)?;
    Ok(ran.stderr + &ran.stdout)
}

/// Runs a command line that must succeed; what it printed.
async fn ours(world: &World, arguments: &[&str]) -> anyhow::Result<String> {
    let ran = world.developer.appliance(arguments).run().await?.expect_code(0)?;
    Ok(ran.stdout)
}

#[tokio::test]
async fn kamals_verbs_do_on_a_real_host_what_they_say() -> anyhow::Result<()> {
    let world = World::bootstrapped("verbs", Distro::Debian12).await?;
    let aliases = "aliases:\n  hello: app exec --reuse 'sh -c \"echo hello $KAMAL_VERSION\"'\n\
                   env:\n  clear:\n    GREETING: good day\nretain_containers: 20\n";
    push(&world, "v1", aliases).await?;
    push(&world, "v2", aliases).await?;
    commands(&world).await?;
    terminal(&world).await?;
    listings(&world).await?;
    logs(&world).await?;
    crate::verbs::all(&world).await
}

async fn commands(world: &World) -> anyhow::Result<()> {
    let out = ours(
        world,
        &["app", "exec", "sh -c 'echo $GREETING; echo to-stderr >&2'"],
    )
    .await?;
    ensure!(out == "good day\n", "{out:?}");
    let out = ours(world, &["app", "exec", "--reuse", "printenv", "KAMAL_VERSION"]).await?;
    ensure!(out.trim() == "v2", "{out:?}");
    let out = ours(
        world,
        &[
            "app",
            "exec",
            "-e",
            "A:x y",
            "--version",
            "v1",
            "--",
            "printenv",
            "A",
        ],
    )
    .await?;
    ensure!(out == "x y\n", "{out:?}");
    let out = ours(world, &["hello"]).await?;
    ensure!(out.trim() == "hello v2", "an alias: {out:?}");

    let failed = world
        .developer
        .appliance(["app", "exec", "sh -c 'exit 37'"])
        .run()
        .await?;
    failed.expect_code(37)?;
    // One-off containers leave nothing behind.
    let left = world
        .run(&[
            "docker",
            "ps",
            "--all",
            "--quiet",
            "--filter",
            "label=appliance.exec",
        ])
        .await?;
    ensure!(left.is_empty(), "{left}");
    let audit = ours(world, &["audit"]).await?;
    ensure!(
        audit.contains("app-exec") && audit.contains(r#""exit":37"#),
        "{audit}"
    );

    // Standard input from a pipe, to its end.
    let mut child = world
        .developer
        .appliance(["app", "exec", "-i", "wc -c"])
        .command()?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("its input")?;
    stdin.write_all(&vec![b'x'; 300_000]).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && text.trim() == "300000", "{text}");
    Ok(())
}

/// `script` gives the command line a real terminal; the size is set before and changed while it runs.
async fn terminal(world: &World) -> anyhow::Result<()> {
    let program = appliance_tests::bench::binary()?;
    let inner = format!(
        "stty rows 40 cols 100; tty; exec {} app exec -i --reuse sh",
        program.display()
    );
    let mut child = world
        .developer
        .appliance(["unused"])
        .command_of("script")
        .args(["--quiet", "--return", "--command", &inner, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("its input")?;
    let mut stdout = child.stdout.take().context("its output")?;
    let mut seen = String::new();
    let mut wait_for = async |what: &str, seen: &mut String| -> anyhow::Result<()> {
        let mut buffer = [0; 4096];
        while !seen.contains(what) {
            let count = tokio::time::timeout(std::time::Duration::from_secs(30), stdout.read(&mut buffer))
                .await
                .with_context(|| format!("{what:?} did not come: {seen}"))??;
            ensure!(count > 0, "it ended before {what:?}: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        Ok(())
    };
    // What is typed comes back as echo: the answers are spelled so that the echo is no answer.
    wait_for("# ", &mut seen).await?;
    stdin.write_all(b"test -t 0 && echo is-a-\"terminal\"\n").await?;
    wait_for("is-a-terminal", &mut seen).await?;
    stdin.write_all(b"stty size | sed 's/^/size=/'\n").await?;
    wait_for("size=40 100", &mut seen).await?;
    // Somebody drags the window: the kernel says so to whoever runs in it, and the program in the container learns it.
    let tty = seen
        .split_whitespace()
        .find(|word| word.starts_with("/dev/pts/"))
        .context("a terminal")?;
    let resized = tokio::process::Command::new("stty")
        .args(["-F", tty, "rows", "33", "cols", "77"])
        .status()
        .await?;
    ensure!(resized.success(), "{tty}");
    stdin
        .write_all(b"until [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; echo re\"sized\"\n")
        .await?;
    wait_for("resized", &mut seen).await?;
    // Ctrl-C ends the program in the container, not the command line.
    stdin.write_all(b"echo begin\"ning\"; sleep 600\n").await?;
    wait_for("beginning", &mut seen).await?;
    stdin.write_all(b"\x03").await?;
    stdin.write_all(b"echo still-\"here\"\n").await?;
    wait_for("still-here", &mut seen).await?;
    stdin.write_all(b"exit 5\n").await?;
    let status = child.wait().await?;
    ensure!(status.code() == Some(5), "{status}: {seen}");
    Ok(())
}

async fn listings(world: &World) -> anyhow::Result<()> {
    let out = ours(world, &["app", "containers"]).await?;
    ensure!(
        out.contains("App Host: ") && out.contains("demo-web-v1") && out.contains("demo-web-v2"),
        "{out}"
    );
    let out = ours(world, &["app", "version"]).await?;
    ensure!(out.contains("\nv2\n"), "{out}");
    let out = ours(world, &["app", "images"]).await?;
    ensure!(out.contains("demo:v1") && out.contains("demo:v2"), "{out}");
    let out = ours(world, &["details"]).await?;
    ensure!(
        out.contains("demo-web") && out.contains("demo.test") && out.contains("running"),
        "{out}"
    );
    let out = ours(world, &["app", "stale_containers"]).await?;
    ensure!(out.contains("no stale container runs"), "{out}");
    let out = ours(world, &["app", "details", "--json"]).await?;
    let json: serde_json::Value = serde_json::from_str(&out)?;
    let rows = json
        .as_object()
        .and_then(|hosts| hosts.values().next())
        .context("a host")?;
    ensure!(rows[0]["current"] == true, "{rows}");
    // The same on the host, over the socket, without a configuration.
    let out = world.run(&["appliance", "app", "containers"]).await?;
    ensure!(out.contains("demo-web-v2"), "{out}");
    Ok(())
}

async fn logs(world: &World) -> anyhow::Result<()> {
    let all = ours(world, &["app", "logs"]).await?;
    ensure!(!all.is_empty());
    let one = ours(world, &["app", "logs", "-n", "1", "-T"]).await?;
    ensure!(one.lines().count() == 1, "{one}");
    let found = ours(
        world,
        &["app", "logs", "--grep", "v[0-9]", "--grep-options", "-c"],
    )
    .await?;
    ensure!(found.trim().parse::<u32>().is_ok(), "{found}");
    let none = ours(world, &["app", "logs", "--grep", "nothing-like-this"]).await?;
    ensure!(none.is_empty(), "{none}");
    Ok(())
}
