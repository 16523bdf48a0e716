//! Logs that are followed until Ctrl-C.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use appliance_tests::World;
use tokio::io::AsyncReadExt as _;

use super::{SOON, ours};

pub(super) async fn logs(world: &World) -> anyhow::Result<()> {
    let arguments = ["app", "logs", "-f", "-n", "1", "-g", "followed"];
    let write = async || {
        let line = "sh -c 'echo followed > /proc/1/fd/1'";
        ours(world, &["app", "exec", "--reuse", line]).await.map(drop)
    };
    until_ctrl_c(world, &arguments, "followed", write).await?;
    let arguments = ["proxy", "logs", "-f", "-n", "1", "-g", "/asked-for"];
    let visit = async || {
        let site = world.http("demo.test", "/asked-for").await?;
        site.get().await.map(drop)
    };
    until_ctrl_c(world, &arguments, "/asked-for", visit).await
}

/// `cause` is repeated until what it writes is seen: which of the two comes first is not known.
async fn until_ctrl_c(
    world: &World,
    arguments: &[&str],
    said: &str,
    cause: impl AsyncFn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // Somebody may run these tests in the background of a shell, where Ctrl-C is ignored and inherited so.
    let mut child = world
        .developer
        .appliance(["unused"])
        .command_of("env")
        .arg("--default-signal=INT")
        .arg(appliance_tests::bench::binary()?)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = child.stdout.take().context("its output")?;
    let causing = async {
        loop {
            cause().await?;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        #[allow(unreachable_code)]
        Ok::<(), anyhow::Error>(())
    };
    let seeing = async {
        let mut seen = String::new();
        let mut buffer = [0; 4096];
        while !seen.contains(said) {
            let count = stdout.read(&mut buffer).await?;
            ensure!(count > 0, "it ended after {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        Ok(())
    };
    let seen = tokio::time::timeout(SOON, async {
        tokio::select! {
            seen = seeing => seen,
            failed = causing => failed,
        }
    });
    seen.await
        .with_context(|| format!("{arguments:?} do not show {said}"))??;
    let pid = child.id().context("it runs")?.to_string();
    let killed = tokio::process::Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .await?;
    ensure!(killed.success());
    tokio::time::timeout(SOON, child.wait())
        .await
        .context("Ctrl-C does not end it")??;
    Ok(())
}
