//! Two hosts when something comes between: Ctrl-C, somebody else's push, a slow hook, a cut network, a part of the hosts.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr};

use super::{Fleet, Push};

const PATIENCE: Duration = Duration::from_secs(150);
/// Long enough to be interrupted in, whatever the machine does besides.
const WATCHED: &str = "  watch: {window: 100}\n";
/// As an editor and a shell leave them: quotes of both kinds, a dollar, a backslash, no ASCII, no newline at the end.
const SECRET: &str = "pa$$\\wörd \"ß\" #1 ";

#[tokio::test]
async fn two_hosts_stay_alike_whatever_their_developers_do() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    changed_and_restored(&mut fleet).await?;
    two_developers_at_once(&fleet).await?;
    interrupted(&fleet).await
}

#[tokio::test]
async fn two_hosts_stay_alike_whatever_comes_between() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    fleet.push(good("v3")).await?.expect_code(0)?;
    fleet.sites = vec![
        fleet.first.http("demo.test", "/").await?,
        fleet.second.http("demo.test", "/").await?,
    ];
    aborted_by_another(&fleet).await?;
    a_part_of_the_hosts(&fleet).await?;
    half_a_canary(&fleet).await?;
    a_hook_longer_than_the_silence(&fleet).await?;
    a_network_cut_while_watched(&fleet).await
}

fn good(version: &'static str) -> Push {
    Push {
        version,
        ..Push::default()
    }
}

/// Secrets, roles and the proxy's host change with one release, and come back with the one before.
async fn changed_and_restored(fleet: &mut Fleet) -> anyhow::Result<()> {
    let with_secret = Push {
        second: "  secret:\n    - TOKEN\n",
        ..good("v1")
    };
    fleet.configure(with_secret, "").await?;
    fleet
        .developer()
        .write(".kamal/secrets", &format!("TOKEN='{SECRET}'\n"))?;
    ours(fleet, &["push", "--version", "v1"], 0).await?;
    fleet.sites = vec![
        fleet.first.http("demo.test", "/").await?,
        fleet.second.http("demo.test", "/").await?,
    ];
    fleet.serves("v1").await?;

    let changed = Push {
        version: "v2",
        name: Some("moved.test"),
        ..with_secret
    };
    fleet.configure(changed, "").await?;
    // The worker's role is another one now.
    let yml = fs_err::read_to_string(fleet.developer().app().join("config/deploy.yml"))?;
    ensure!(yml.contains("\n  jobs:\n"), "no role to rename: {yml}");
    fleet
        .developer()
        .write("config/deploy.yml", &yml.replace("\n  jobs:\n", "\n  mail:\n"))?;
    fleet.developer().write(".kamal/secrets", "TOKEN=another\n")?;
    ours(fleet, &["push", "--version", "v2"], 0).await?;
    let token = async |container: &str| {
        let value = ["docker", "exec", container, "python3", "-c"];
        let print = "import os; print(os.environb[b'TOKEN'].hex())";
        fleet.second.run(&[&value[..], &[print]].concat()).await
    };
    ensure!(token("demo-web-v2").await? == hex::encode("another"));
    ensure!(running(fleet).await? == "demo-mail-v2 demo-web-v2");
    for site in &fleet.sites {
        ensure!(
            site.get().await?.status == 404,
            "the former name still leads somewhere"
        );
    }

    ours(fleet, &["rollback"], 0).await?;
    fleet
        .serves("v1")
        .await
        .context("rollback over a changed configuration")?;
    for container in ["demo-web-v1", "demo-jobs-v1"] {
        let found = token(container).await?;
        ensure!(
            found == hex::encode(SECRET),
            "{container} has another secret: {found}"
        );
    }
    let moved = fleet.first.http("moved.test", "/").await?.get().await?;
    ensure!(
        moved.status == 404,
        "the name of the later release still leads somewhere"
    );
    fleet.configure(good("v1"), "").await
}

/// Whatever the two do to each other, one of them gets through, and the hosts are alike.
async fn two_developers_at_once(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.configure(good("v4"), "").await?;
    fleet.configure(good("v3"), "").await?;
    let push = |version, more: &'static [&'static str]| {
        let arguments = [&["push", "--version", version][..], more].concat();
        fleet.developer().appliance(arguments).run()
    };
    let (one, other) = tokio::try_join!(push("v3", &[]), push("v4", &[]))?;
    let (version, loser) = match (one.code, other.code) {
        (0, 3) => ("v3", other),
        (3, 0) => ("v4", one),
        codes => bail!("ended with {codes:?}:\n{}\n{}", one.stderr, other.stderr),
    };
    ensure!(
        loser.stderr.contains("is being changed by"),
        "was not told who: {}",
        loser.stderr
    );
    fleet.serves(version).await.context("two pushes at once")?;

    let waits = &["--lock-wait=200"][..];
    let (one, other) = tokio::try_join!(push("v3", waits), push("v4", waits))?;
    one.expect_code(0)?;
    other.expect_code(0)?;
    if fleet.sites[0].get().await?.version() == Some("v4") {
        ours(fleet, &["rollback"], 0).await?;
    }
    fleet.serves("v3").await.context("two pushes one after the other")
}

/// Ctrl-C takes back what has not settled, on two hosts and on one, and nobody has to wait for anything after it.
async fn interrupted(fleet: &Fleet) -> anyhow::Result<()> {
    let push = Push {
        extension: WATCHED,
        ..good("v4")
    };
    fleet.configure(push, "").await?;
    let first = fleet.first.ip().await?.to_string();
    for more in [&[][..], &["-h", &first]] {
        let mut push = Background::start(fleet, &[&["push", "--version", "v4"][..], more].concat())?;
        push.says("watching v").await?;
        push.interrupt().await?;
        push.ends_with(5).await?;
        free(fleet).await?;
        fleet
            .serves("v3")
            .await
            .with_context(|| format!("Ctrl-C: push {more:?}"))?;
    }
    Ok(())
}

/// The wrong branch, pushed by somebody whose terminal is out of reach.
async fn aborted_by_another(fleet: &Fleet) -> anyhow::Result<()> {
    let push = Push {
        extension: WATCHED,
        ..good("v4")
    };
    fleet.configure(push, "").await?;
    let mut push = Background::start(fleet, &["push", "--version", "v4"])?;
    push.says("watching v").await?;
    ours(fleet, &["abort"], 0).await?;
    let told = push.ends_with(5).await?;
    ensure!(told.contains("was aborted by"), "does not say who: {told}");
    free(fleet).await?;
    fleet.serves("v3").await.context("aborted")?;
    let nothing = ours(fleet, &["abort"], 3).await?;
    ensure!(nothing.contains("no rollout in progress"), "{nothing}");
    Ok(())
}

/// A release that went to one host alone is left there, and nowhere else; the release command is missed aloud.
async fn a_part_of_the_hosts(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.configure(good("v4"), "").await?;
    let second = fleet.second.ip().await?.to_string();
    let told = ours(fleet, &["push", "--version", "v4", "-h", &second], 0).await?;
    ensure!(told.contains("starts without it on"), "{told}");
    let told = ours(fleet, &["rollback"], 0).await?;
    let first = fleet.first.ip().await?;
    ensure!(told.contains(&format!("{first}: serves v3 already")), "{told}");
    fleet.serves("v3").await.context("rollback of one host's push")
}

/// A canary that is left on a part of the hosts is not promoted there.
async fn half_a_canary(fleet: &Fleet) -> anyhow::Result<()> {
    let canary = Push {
        arguments: &["--canary", "header=X-Tester: yes"],
        ..good("v4")
    };
    fleet.push(canary).await?.expect_code(0)?;
    let first = fleet.first.ip().await?.to_string();
    ours(fleet, &["abort", "-h", &first], 0).await?;
    let refused = ours(fleet, &["promote"], 3).await?;
    ensure!(
        refused.contains("do not all have the same canary") && refused.contains("has no canary, v3 serves"),
        "{refused}"
    );
    ours(fleet, &["abort"], 0).await?;
    fleet.serves("v3").await.context("half a canary")?;

    // Of several hosts none promotes by itself: whoever pushed does, on all of them.
    let timed = Push {
        arguments: &["--canary", "header=X-Tester: yes", "--canary-for", "3s"],
        ..good("v4")
    };
    fleet.push(timed).await?.expect_code(0)?;
    fleet.serves("v4").await.context("a canary with a time")
}

/// Hosts that hear nothing for half a minute believe that nobody leads them: a hook must not silence their leader.
async fn a_hook_longer_than_the_silence(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.hook("post-app-boot", "sleep 34; echo too cold; exit 1")?;
    let slow = Push {
        more: "boot:\n  limit: 1\n",
        ..good("v5")
    };
    let failed = fleet.push(slow).await?;
    ensure!(
        failed.code == 1 || failed.code == 5,
        "ended with {}:\n{}",
        failed.code,
        failed.stderr
    );
    ensure!(
        failed.stderr.contains("too cold") && failed.stderr.contains("no host changed its release"),
        "{}",
        failed.stderr
    );
    fleet.hook("post-app-boot", "true")?;
    fleet.serves("v4").await.context("a slow hook")
}

/// A host that cannot be heard after its switch goes on by itself; the others do not leave it alone there.
async fn a_network_cut_while_watched(fleet: &Fleet) -> anyhow::Result<()> {
    let watched = Push {
        extension: "  watch: {window: 20}\n",
        ..good("v5")
    };
    fleet.configure(watched, "").await?;
    let mut push = Background::start(fleet, &["push", "--version", "v5"])?;
    push.says(&format!("{}: watching", fleet.second.ip().await?))
        .await?;
    let rules =
        "table inet trouble { chain in { type filter hook input priority -400; tcp dport 22 drop; }; }";
    fleet.second.run(&["nft", rules]).await?;
    push.says("asking what became of it").await?;
    fleet
        .second
        .run(&["nft", "delete", "table", "inet", "trouble"])
        .await?;
    push.ends_with(0).await?;
    fleet.serves("v5").await.context("a cut network")
}

/// Runs a command that ends with `code`; all it said.
async fn ours(fleet: &Fleet, arguments: &[&str], code: i32) -> anyhow::Result<String> {
    let ran = fleet.developer().appliance(arguments).run().await?;
    Ok(ran.expect_code(code)?.stderr)
}

/// Names of the app's containers that run on the second host.
async fn running(fleet: &Fleet) -> anyhow::Result<String> {
    let filter = "label=service=demo";
    let list = ["docker", "ps", "--filter", filter, "--format", "{{.Names}}"];
    let names = fleet.second.run(&list).await?;
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    Ok(names.join(" "))
}

/// Nobody holds the app on any host.
async fn free(fleet: &Fleet) -> anyhow::Result<()> {
    let status = fleet
        .developer()
        .appliance(["status", "--json"])
        .run()
        .await?
        .json()?;
    for (host, status) in status.as_object().context("hosts")? {
        let holder = &status["apps"][0]["changing"];
        ensure!(*holder == Value::Null, "{host} is still held: {holder}");
    }
    Ok(())
}

/// A command that runs while others do.
struct Background {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    said: String,
}

impl Background {
    fn start(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = fleet.developer().appliance(arguments).command()?;
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let stderr = child.stderr.take().context("it was asked for")?;
        Ok(Self {
            child,
            lines: BufReader::new(stderr).lines(),
            said: String::new(),
        })
    }

    async fn says(&mut self, text: &str) -> anyhow::Result<()> {
        let reading = async {
            while let Some(line) = self.lines.next_line().await? {
                self.said.push_str(&line);
                self.said.push('\n');
                if line.contains(text) {
                    return Ok(());
                }
            }
            bail!("it ended before")
        };
        let found = tokio::time::timeout(PATIENCE, reading).await;
        found
            .context("it takes too long")
            .flatten()
            .with_context(|| format!("waiting for {text:?} after:\n{}", self.said))
    }

    async fn interrupt(&self) -> anyhow::Result<()> {
        let id = self.child.id().context("it runs")?.to_string();
        let kill = tokio::process::Command::new("kill")
            .args(["-INT", &id])
            .status()
            .await?;
        ensure!(kill.success(), "cannot interrupt {id}");
        Ok(())
    }

    async fn ends_with(mut self, code: i32) -> anyhow::Result<String> {
        let ending = async {
            while let Some(line) = self.lines.next_line().await? {
                self.said.push_str(&line);
                self.said.push('\n');
            }
            anyhow::Ok(self.child.wait().await?)
        };
        let status = tokio::time::timeout(PATIENCE, ending)
            .await
            .context("it does not end")??;
        ensure!(
            status.code() == Some(code),
            "ended with {status}, not {code}:\n{}",
            self.said
        );
        Ok(self.said)
    }
}
