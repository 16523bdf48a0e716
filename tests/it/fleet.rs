//! One app on two hosts with two roles, a release command, hooks and a canary: all hosts go together, or none does.
//!
//! It prints the timeline of each rollout.
#![allow(clippy::print_stdout)]

mod troubles;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use appliance_sandbox::{Command, Distro, Image};
use appliance_tests::http::Target;
use appliance_tests::load::{Load, Report, Shape};
use appliance_tests::{Developer, Ran, World};
use serde_json::Value;

const VISITORS: Shape = Shape {
    connections: 3,
    per_connection: 20,
    pause: Duration::from_millis(10),
};

/// Two hosts and the one developer who deploys to both.
pub(crate) struct Fleet {
    pub(crate) first: World,
    pub(crate) second: World,
    sites: Vec<Target>,
}

/// What differs between two pushes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Push {
    pub(crate) version: &'static str,
    /// YAML of `x-appliance:` besides the release command.
    pub(crate) extension: &'static str,
    /// The release command in the place of the good one.
    pub(crate) command: Option<&'static str>,
    /// Environment of hosts with the tag `second`.
    pub(crate) second: &'static str,
    /// What the worker runs in the place of `sleep infinity`.
    pub(crate) worker: Option<&'static str>,
    /// The proxy's host name.
    pub(crate) name: Option<&'static str>,
    /// More at the end.
    pub(crate) more: &'static str,
    pub(crate) arguments: &'static [&'static str],
}

impl Fleet {
    async fn start() -> anyhow::Result<Self> {
        // Hosts from one snapshot are one host to a signature, so the second is bootstrapped by itself.
        let (first, second) = tokio::try_join!(
            World::bootstrapped("fleet-1", Distro::Debian12),
            World::bare("fleet-2", Distro::Debian13)
        )?;
        second.bootstrap().await?;
        second.ready().await?;
        let key = first.developer.app().join("second.pub");
        fs_err::write(&key, second.developer.public_key().context("has a key")?)?;
        let on = format!("deploy@{}", first.ip().await?);
        let add = ["keys", "add", "second.pub", "--admin", "--on", &on];
        first.developer.appliance(add).run().await?.expect_code(0)?;
        second.developer.know(&first).await?;
        Ok(Self {
            first,
            second,
            sites: Vec::new(),
        })
    }

    pub(crate) fn developer(&self) -> &Developer {
        &self.second.developer
    }

    fn worlds(&self) -> [&World; 2] {
        [&self.first, &self.second]
    }

    /// `setup`, as somebody begins with it: with a database beside the app, which has to be there first.
    async fn set_up(&self, version: &'static str) -> anyhow::Result<Ran> {
        let image = Image::Demo {
            version: version.to_owned(),
        };
        let built = self.second.bench.sandbox.ensure(&image, &|_| ()).await?;
        let saved = tokio::process::Command::new("docker")
            .args(["save", built.as_str()])
            .output()
            .await?;
        let load = Command::new(["docker", "load"]).stdin(saved.stdout);
        let loaded = self.second.host.exec(&load).await?;
        ensure!(loaded.success(), "{}", loaded.error_text());
        let more = format!(
            "accessories:\n  cache:\n    image: {}\n    host: {}\n    cmd: sleep infinity\n",
            built.as_str(),
            self.second.ip().await?
        );
        let push = Push {
            version,
            ..Push::default()
        };
        self.configure(push, &more).await?;
        let first = self
            .developer()
            .appliance(["setup", "--version", version])
            .run()
            .await?
            .expect_code(0)?;
        let started = async |name: &str| {
            let format = "{{.State.StartedAt}}";
            let at = ["docker", "inspect", "--format", format, name];
            anyhow::Ok(self.second.run(&at).await?.parse::<jiff::Timestamp>()?)
        };
        ensure!(
            started("demo-cache").await? < started("demo-web-v1").await?,
            "the accessory came after the app"
        );
        for world in self.worlds() {
            let id = async |name: &str| {
                world
                    .run(&["docker", "inspect", "--format", "{{.Id}}", name])
                    .await
            };
            ensure!(
                id("demo:latest").await? == id("demo:v1").await?,
                "latest is another image"
            );
        }
        Ok(first)
    }

    pub(crate) async fn push(&self, push: Push) -> anyhow::Result<Ran> {
        self.configure(push, "").await?;
        let arguments = [&["push", "--version", push.version][..], push.arguments].concat();
        self.developer().appliance(arguments).run().await
    }

    pub(crate) async fn configure(&self, push: Push, more: &str) -> anyhow::Result<()> {
        self.developer().demo_app(push.version, &self.second, "").await?;
        let (first, second) = (self.first.ip().await?, self.second.ip().await?);
        let arch = if std::env::consts::ARCH == "aarch64" {
            "arm64"
        } else {
            "amd64"
        };
        let command = push.command.unwrap_or("python3 -c \"print('tables migrated')\"");
        let yml = format!(
            "service: demo\nimage: demo\n\
             servers:\n  web:\n    hosts:\n      - {first}\n      - {second}: second\n  \
             jobs:\n    cmd: {}\n    hosts:\n      - {second}\n\
             proxy:\n  host: {}\n  app_port: 80\n\
             env:\n  clear: {{}}\n  tags:\n    second:\n      SECOND: \"yes\"\n{}\
             ssh:\n  user: deploy\nregistry:\n  server: localhost:5555\nbuilder:\n  arch: {arch}\n\
             deploy_timeout: 8\ndrain_timeout: 3\nreadiness_delay: 1\nhooks_output: verbose\n\
             x-appliance:\n  release: {}\n{}{}{more}",
            push.worker.unwrap_or("sleep infinity"),
            push.name.unwrap_or("demo.test"),
            push.second,
            serde_json::to_string(command)?,
            if push.extension.is_empty() {
                "  watch: false\n"
            } else {
                push.extension
            },
            push.more,
        );
        self.developer().write("config/deploy.yml", &yml)
    }

    /// A configuration of another app on the second host, by its file's name.
    pub(crate) async fn other_app(&self, name: &str) -> anyhow::Result<String> {
        let yml = appliance_tests::developer::demo_deploy_yml(&self.second.ip().await?.to_string(), None, "")
            .replace("service: demo", "service: other")
            .replace("host: demo.test\n  ssl: true", &format!("host: {name}"));
        self.developer().write("config/other.yml", &yml)?;
        Ok("config/other.yml".to_owned())
    }

    pub(crate) fn hook(&self, name: &str, script: &str) -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = format!(".kamal/hooks/{name}");
        self.developer().write(&path, &format!("#!/bin/sh\n{script}\n"))?;
        let file = self.developer().app().join(path);
        Ok(fs_err::set_permissions(
            file,
            std::fs::Permissions::from_mode(0o755),
        )?)
    }

    pub(crate) async fn serves(&self, version: &str) -> anyhow::Result<()> {
        for site in &self.sites {
            let answer = site.get().await?;
            ensure!(answer.version() == Some(version), "not {version} but {answer:?}");
        }
        // Exactly the containers of that version run, where the configuration places them.
        for (world, expect) in self.worlds().into_iter().zip([&["web"][..], &["jobs", "web"]]) {
            let names = [
                "docker",
                "ps",
                "--filter",
                "label=service=demo",
                "--format",
                "{{.Names}}",
            ];
            let names = world.run(&names).await?;
            let mut names: Vec<&str> = names.lines().collect();
            names.sort_unstable();
            let expect: Vec<String> = expect
                .iter()
                .map(|role| format!("demo-{role}-{version}"))
                .collect();
            ensure!(names == expect, "{names:?} run, not {expect:?}");
        }
        Ok(())
    }

    fn load(&self) -> Vec<Load> {
        self.sites
            .iter()
            .map(|site| Load::start(site, VISITORS))
            .collect()
    }

    /// Prints the states of the last rollout on each host with their times.
    pub(crate) async fn timeline(&self, what: &str) -> anyhow::Result<()> {
        for world in self.worlds() {
            let ledger = world.host.read("/var/lib/appliance/apps/demo.json").await?;
            let ledger: Value = serde_json::from_slice(&ledger)?;
            let states = ledger["data"]["rollout"]["timeline"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let mut line = String::new();
            let mut begun: Option<jiff::Timestamp> = None;
            for state in states {
                let at: jiff::Timestamp = state[1].as_str().context("a time")?.parse()?;
                let since = at.duration_since(*begun.get_or_insert(at));
                line.push_str(&format!(
                    " {} {:.1}s",
                    state[0].as_str().unwrap_or("?"),
                    since.as_secs_f64()
                ));
            }
            println!("{what:<28}{:<10}{line}", world.host.name().as_str());
        }
        Ok(())
    }
}

async fn unharmed(when: &str, loads: Vec<Load>) -> anyhow::Result<()> {
    for load in loads {
        let report: Report = load.stop().await;
        ensure!(
            report.failures == 0 && report.requests > 0,
            "{when}: {} of {} requests failed: {:?}",
            report.failures,
            report.requests,
            report.examples
        );
    }
    Ok(())
}

#[tokio::test]
async fn two_hosts_go_together_or_not_at_all() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    for hook in [
        "pre-connect",
        "docker-setup",
        "pre-deploy",
        "pre-app-boot",
        "post-app-boot",
        "post-deploy",
    ] {
        fleet.hook(hook, &format!("env | grep ^KAMAL_ | sort > hook-{hook}.txt"))?;
    }
    let good = |version| Push {
        version,
        ..Push::default()
    };

    let first = fleet.set_up("v1").await?;
    let migrations = first.stderr.matches("| tables migrated").count();
    ensure!(
        migrations == 1,
        "the release command ran {migrations} times:\n{}",
        first.stderr
    );
    fleet.sites = vec![
        fleet.first.http("demo.test", "/").await?,
        fleet.second.http("demo.test", "/").await?,
    ];
    fleet.serves("v1").await?;
    fleet.timeline("v1").await?;
    hooks_were_told(&fleet).await?;

    let loads = fleet.load();
    for version in ["v0", "v2", "v3"] {
        fleet.push(good(version)).await?.expect_code(0)?;
        fleet.timeline(version).await?;
    }
    fleet.serves("v3").await?;
    crate::stages::forced(&fleet).await?;
    for (what, push, said) in failures() {
        let begun = Instant::now();
        let failed = fleet.push(push).await?;
        ensure!(
            failed.code == 5,
            "{what}: ended with {}:\n{}",
            failed.code,
            failed.stderr
        );
        ensure!(
            failed.stderr.contains(said),
            "{what}: does not say {said:?}:\n{}",
            failed.stderr
        );
        fleet.timeline(what).await?;
        fleet.serves("v3").await.with_context(|| what.to_owned())?;
        println!(
            "{what:<28}taken back after {:.1} s",
            begun.elapsed().as_secs_f64()
        );
    }
    // The last state before it is settled: the leader itself fails, after every host has switched.
    fleet.hook("post-app-boot", "echo not today; exit 1")?;
    let failed = fleet.push(good("v4")).await?;
    ensure!(
        failed.code != 0 && failed.stderr.contains("not today"),
        "{}",
        failed.stderr
    );
    fleet.timeline("cancelled after the switch").await?;
    fleet.serves("v3").await.context("cancelled after the switch")?;
    fleet.hook("post-app-boot", "true")?;

    fleet
        .developer()
        .appliance(["rollback"])
        .run()
        .await?
        .expect_code(0)?;
    fleet.timeline("rollback").await?;
    fleet.serves("v2").await?;
    unharmed("deploys, failures and a rollback", loads).await?;

    leader_lost(&fleet).await?;
    canary(&fleet).await?;
    boots(&fleet).await?;
    crash_while_watched(&fleet).await?;
    crate::stages::selected(&fleet).await
}

/// One failure at each state that a rollout passes.
fn failures() -> Vec<(&'static str, Push, &'static str)> {
    let push = Push {
        version: "v4",
        ..Push::default()
    };
    vec![
        (
            "assets that are not there",
            Push {
                more: "asset_path: /nowhere\n",
                ..push
            },
            "/nowhere",
        ),
        (
            "the release command fails",
            Push {
                command: Some("python3 -c \"print('no such table'); raise SystemExit(3)\""),
                ..push
            },
            "no such table",
        ),
        (
            "one host is not healthy",
            Push {
                second: "      HEALTH: fail\n",
                ..push
            },
            "GET /up",
        ),
        (
            "the worker cannot start",
            Push {
                worker: Some("/no/such/program"),
                ..push
            },
            "/no/such/program",
        ),
        (
            "the worker ends",
            Push {
                worker: Some("python3 -c \"raise SystemExit('no queue')\""),
                ..push
            },
            "no queue",
        ),
    ]
}

async fn hooks_were_told(fleet: &Fleet) -> anyhow::Result<()> {
    let (first, second) = (fleet.first.ip().await?, fleet.second.ip().await?);
    let read = |hook: &str| fs_err::read_to_string(fleet.developer().app().join(format!("hook-{hook}.txt")));
    for hook in [
        "pre-connect",
        "docker-setup",
        "pre-deploy",
        "pre-app-boot",
        "post-app-boot",
        "post-deploy",
    ] {
        let said = read(hook).with_context(|| format!("{hook} did not run"))?;
        for line in [
            "KAMAL_COMMAND=setup\n",
            "KAMAL_SERVICE=demo\n",
            "KAMAL_VERSION=v1\n",
            "KAMAL_SERVICE_VERSION=demo@v1\n",
            "KAMAL_PERFORMER=developer\n",
            "KAMAL_RECORDED_AT=2",
            &format!("KAMAL_HOSTS={first},{second}\n"),
        ] {
            ensure!(said.contains(line), "{hook} was not told {line:?}:\n{said}");
        }
    }
    ensure!(read("post-deploy")?.contains("KAMAL_RUNTIME="));
    ensure!(
        read("pre-connect")?.contains("KAMAL_LOCK=false") && read("pre-deploy")?.contains("KAMAL_LOCK=true")
    );
    Ok(())
}

/// A developer who is gone before the switch takes no half of the hosts along.
async fn leader_lost(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.hook("pre-app-boot", "touch booting; sleep 60")?;
    let flag = fleet.developer().app().join("booting");
    let lost = fleet.push(Push {
        version: "v4",
        ..Push::default()
    });
    {
        tokio::pin!(lost);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !flag.exists() {
            ensure!(Instant::now() < deadline, "pre-app-boot did not run");
            tokio::select! {
                ended = &mut lost => bail!("the push ended before: {:?}", ended?),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
        // Dropping it kills the command.
    }
    fleet.hook("pre-app-boot", "true")?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = fleet
            .developer()
            .appliance(["status", "--json"])
            .run()
            .await?
            .json()?;
        let phases: Vec<&Value> = status
            .as_object()
            .context("hosts")?
            .values()
            .map(|host| &host["apps"][0]["rollout"]["phase"])
            .collect();
        if phases.iter().all(|phase| *phase == "reverted") {
            break;
        }
        ensure!(Instant::now() < deadline, "a lost leader left {phases:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    fleet.serves("v2").await.context("the leader was lost")
}

async fn canary(fleet: &Fleet) -> anyhow::Result<()> {
    let push = Push {
        version: "v5",
        arguments: &["--canary", "header=X-Tester: yes"],
        ..Push::default()
    };
    fleet.push(push).await?.expect_code(0)?;
    for site in &fleet.sites {
        let answer = site.get().await?;
        ensure!(
            answer.version() == Some("v2"),
            "the canary is not for everybody: {answer:?}"
        );
    }
    let refused = fleet.push(push).await?.expect_code(3)?;
    let refused = refused.expect_error("appliance promote, or appliance abort")?;
    let status = fleet.developer().appliance(["status"]).run().await?;
    ensure!(status.stdout.contains("canary"), "{}", status.stdout);
    drop(refused);
    // It is the agent's, not the developer's: also across its restart.
    for world in fleet.worlds() {
        world.crash("appliance-agent.service").await?;
        world.ready().await?;
    }
    let developer = fleet.developer();
    developer.appliance(["abort"]).run().await?.expect_code(0)?;
    fleet.serves("v2").await.context("the canary was aborted")?;
    developer
        .appliance(["promote"])
        .run()
        .await?
        .expect_code(3)?
        .expect_error("has no canary")?;

    // Workers start with the promotion: where they cannot, no host keeps the canary.
    let broken = Push {
        worker: Some("/no/such/program"),
        ..push
    };
    fleet.push(broken).await?.expect_code(0)?;
    let failed = developer.appliance(["promote"]).run().await?.expect_code(5)?;
    failed.expect_error("no host changed its release")?;
    fleet.timeline("a promotion that fails").await?;
    fleet
        .serves("v2")
        .await
        .context("one host could not be promoted")?;

    let share = Push {
        arguments: &["--canary", "40%"],
        ..push
    };
    fleet.push(share).await?.expect_code(0)?;
    shared(fleet).await?;
    let loads = fleet.load();
    developer.appliance(["promote"]).run().await?.expect_code(0)?;
    fleet.timeline("a promotion").await?;
    fleet.serves("v5").await.context("the canary was promoted")?;
    unharmed("a promotion", loads).await
}

/// Two fifths of the visitors get v5, and whoever got it once gets it again.
async fn shared(fleet: &Fleet) -> anyhow::Result<()> {
    const VISITORS: u32 = 150;
    for site in &fleet.sites {
        let mut chosen = 0;
        let mut cookies = Vec::new();
        for _ in 0..VISITORS {
            let answer = site.get().await?;
            let version = answer.version().context("a version")?.to_owned();
            chosen += u32::from(version == "v5");
            let cookie = answer.headers.get("set-cookie").context("a cookie")?;
            let cookie = cookie.to_str()?.split(';').next().context("a value")?;
            cookies.push((cookie.to_owned(), version));
        }
        // Nine of ten thousand runs are further than this from 60 of 150.
        ensure!(
            (40..=80).contains(&chosen),
            "{chosen} of {VISITORS} got the canary"
        );
        for (cookie, version) in cookies.iter().take(20) {
            let mut request = site.request()?;
            request.headers_mut().insert("cookie", cookie.parse()?);
            let answer = site.connect().await?.send_request(request).await?;
            ensure!(
                answer
                    .headers()
                    .get("x-version")
                    .is_some_and(|shown| shown == version.as_str()),
                "{cookie} got {version} before, and now {answer:?}"
            );
        }
    }
    Ok(())
}

/// `app boot` changes all hosts or none, too. v5 serves, and v2 did before.
async fn boots(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.hook("post-app-boot", "echo not today; exit 1")?;
    let boot = ["app", "boot", "--version", "v2"];
    let failed = fleet.developer().appliance(boot).run().await?;
    ensure!(
        failed.code != 0 && failed.stderr.contains("no host changed its release"),
        "ended with {}:\n{}",
        failed.code,
        failed.stderr
    );
    fleet.serves("v5").await.context("a boot that fails")?;
    fleet.hook("post-app-boot", "true")?;
    let again = fleet.developer().appliance(["app", "boot"]).run().await?;
    again.expect_code(0)?;
    fleet.serves("v5").await.context("a boot of what runs")
}

/// A release that dies on one host while it is watched is taken back on both.
async fn crash_while_watched(fleet: &Fleet) -> anyhow::Result<()> {
    let failed = fleet
        .push(Push {
            version: "v6",
            extension: "  watch: {window: 40}\n",
            second: "      CRASH_AFTER: \"12\"\n",
            ..Push::default()
        })
        .await?;
    ensure!(failed.code == 5, "ended with {}:\n{}", failed.code, failed.stderr);
    fleet.timeline("a crash while watched").await?;
    fleet.serves("v5").await.context("a crash while watched")
}
