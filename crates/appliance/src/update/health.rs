//! Whether agent and proxy are well, and are the program that lies in its place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use appliance_bootstrap::Local;
use appliance_bootstrap::host::{Command, Host as _, must};

use crate::agent::{PROXY_SOCKET, SOCKET};
use crate::developer::link::Link;
use crate::wire;

/// How long each of them may take until it answers.
const LIMIT: Duration = Duration::from_secs(45);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(200);
/// How long both have to stay as they are: a program that ends a few seconds after its start is not healthy.
const STAYS: Duration = Duration::from_secs(8);

const AGENT: &str = "appliance-agent.service";
const PROXY: &str = "appliance-proxy.service";

/// The routes that a proxy served well.
#[derive(Debug, Default)]
pub(super) struct Picture(BTreeSet<String>);

/// Which routes are served well now; none while the proxy does not answer.
pub(super) async fn picture() -> Picture {
    let services = appliance_proxy::Client::new(PROXY_SOCKET)
        .list()
        .await
        .unwrap_or_default();
    let well = services.iter().filter(|status| {
        !status.upstreams.is_empty() && status.upstreams.iter().any(|upstream| upstream.healthy)
    });
    Picture(well.map(|status| status.service.name.to_string()).collect())
}

fn show(unit: &str, property: &str) -> String {
    let asked = Local.run(&Command::new([
        "systemctl",
        "show",
        "--value",
        "--property",
        property,
        unit,
    ]));
    asked
        .map(|output| output.stdout.trim().to_owned())
        .unwrap_or_default()
}

fn executable(unit: &str) -> PathBuf {
    Path::new("/proc").join(show(unit, "MainPID")).join("exe")
}

/// Whether a unit's main process is the program in its place. One that does not run is none.
pub fn runs_program(unit: &str) -> bool {
    super::is_program(&executable(unit))
}

/// Whether a unit's main process runs at all.
pub fn runs(unit: &str) -> bool {
    let asked = Local.run(&Command::new(["systemctl", "is-active", "--quiet", unit]));
    asked.is_ok_and(|output| output.ok())
}

/// Restarts the agent; rollouts under way are gone on with by the next one.
pub(super) fn restart_agent() -> anyhow::Result<()> {
    // It is started again by systemd for ever: what counts is whether it answers, not whether the job went well.
    Local
        .run(&Command::new(["systemctl", "restart", "--no-block", AGENT]).timeout(Duration::from_secs(30)))?;
    Ok(())
}

/// Waits until the agent is the new program and answers as that version.
pub(super) async fn agent(version: &str) -> anyhow::Result<()> {
    let asking = async {
        loop {
            if runs_program(AGENT)
                && let Ok(link) = Link::local(Path::new(SOCKET)).await
                && let Ok(host) = link.get::<wire::Host>("/v1/host").await
                && host.version == version
            {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(LIMIT, asking).await.with_context(|| {
        format!(
            "the agent did not answer as {version} within {} s",
            LIMIT.as_secs()
        )
    })
}

/// Lets a successor take the proxy over, from the program in its place, and waits until it has.
pub(super) async fn succeed_proxy() -> anyhow::Result<()> {
    if show(PROXY, "ActiveState") != "active" {
        must(&Local, &Command::new(["systemctl", "start", PROXY]))?;
        return Ok(());
    }
    must(
        &Local,
        &Command::new(["systemctl", "kill", "--kill-who=main", "--signal=SIGUSR2", PROXY]),
    )?;
    let taking_over = async {
        while !runs_program(PROXY) {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(LIMIT, taking_over).await.with_context(|| {
        format!(
            "no successor took the proxy over within {} s; the former one serves on",
            LIMIT.as_secs()
        )
    })
}

/// Waits until every route that was served well is again.
pub(super) async fn proxy(before: &Picture) -> anyhow::Result<()> {
    let mut lost = Vec::new();
    let looking = async {
        loop {
            let now = picture().await;
            lost = before.0.difference(&now.0).cloned().collect();
            if lost.is_empty() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    if tokio::time::timeout(LIMIT, looking).await.is_err() {
        bail!(
            "the proxy did not serve {} again within {} s",
            lost.join(", "),
            LIMIT.as_secs()
        );
    }
    Ok(())
}

/// Looks once more after a while: the same processes still answer.
pub(super) async fn stays(version: &str) -> anyhow::Result<()> {
    let before = [AGENT, PROXY].map(|unit| show(unit, "MainPID"));
    tokio::time::sleep(STAYS).await;
    let after = [AGENT, PROXY].map(|unit| show(unit, "MainPID"));
    if before != after {
        bail!("agent or proxy ended within {} s of its start", STAYS.as_secs());
    }
    agent(version).await
}
