//! What `host.yml` says of sshd's door itself: whose names may be used, root not at all, another port.
//!
//! Each is taken back where nobody who has a shell comes in after it, and stays where somebody does.

use std::time::Duration;

use anyhow::ensure;
use appliance_sandbox::{Command, Outside, PortState};
use appliance_tests::World;
use appliance_tests::developer::demo_deploy_yml;

use crate::hardening::{apply, connected_as, effective, ssh};

const PATIENCE: Duration = Duration::from_secs(1);

/// Leaves sshd as it was.
pub(crate) async fn doors(world: &World, outside: &Outside, address: &str) -> anyhow::Result<()> {
    names(world, address).await?;
    port(world, outside, address).await
}

async fn enters(world: &World, address: &str, user: &str, port: &str) -> anyhow::Result<bool> {
    let mut ssh = ssh(world, address, user, &["-p", port, "true"]);
    Ok(ssh.output().await?.status.success())
}

/// What the timer runs.
async fn revert(world: &World) -> anyhow::Result<()> {
    let unit = ["systemctl", "start", "--wait", "appliance-ssh-revert.service"];
    world.run(&unit).await.map(drop)
}

async fn confirm(world: &World) -> anyhow::Result<(bool, String)> {
    let output = world
        .host
        .exec(&Command::new(["appliance", "host", "confirm"]))
        .await?;
    Ok((output.success(), output.error_text()))
}

/// `allow_users` and `root_login`.
async fn names(world: &World, address: &str) -> anyhow::Result<()> {
    let target = format!("deploy@{address}");
    let before = connected_as(world, address, "root", "22").await?;
    // A name that nobody has: whoever pushes still comes in, and that proves nothing about a shell.
    apply(world, "ssh: {allow_users: [nobody-here]}\n").await?;
    ensure!(
        !enters(world, address, "root", "22").await?,
        "root is not among the names"
    );
    let pushes = ["host", "confirm", "--on", &target];
    world
        .developer
        .appliance(pushes)
        .run()
        .await?
        .expect_code(1)?
        .expect_error("log in as an administrator")?;
    revert(world).await?;
    ensure!(enters(world, address, "root", "22").await?, "it was not put back");

    // An account of one's own, and root's door is shut for good.
    for argv in [
        &[
            "useradd",
            "--create-home",
            "--shell",
            "/bin/bash",
            "--password",
            "*",
            "ops",
        ][..],
        &[
            "install",
            "--directory",
            "--owner=ops",
            "--mode=700",
            "/home/ops/.ssh",
        ],
        &[
            "install",
            "--owner=ops",
            "--mode=600",
            "/root/.ssh/authorized_keys",
            "/home/ops/.ssh/authorized_keys",
        ],
    ] {
        world.run(argv).await?;
    }
    let said = apply(world, "ssh: {root_login: never, allow_users: [ops]}\n").await?;
    ensure!(said.contains("root may not log in by SSH"), "{said}");
    ensure!(!enters(world, address, "root", "22").await?, "root gets in");
    let ops = connected_as(world, address, "ops", "22").await?;
    let (kept, said) = confirm(world).await?;
    ensure!(kept, "{said}");
    drop(before);
    world.run(&["systemctl", "restart", "ssh"]).await?;
    ensure!(
        effective(world, "permitrootlogin").await? == "no" && effective(world, "allowusers").await? == "ops",
        "what was confirmed did not stay"
    );
    ensure!(!enters(world, address, "root", "22").await?, "root gets in again");
    // Back, as it came: confirmed by who gets in only now.
    apply(world, "ssh: {}\n").await?;
    let root = connected_as(world, address, "root", "22").await?;
    let (kept, said) = confirm(world).await?;
    ensure!(kept, "{said}");
    drop((ops, root));
    world
        .run(&["userdel", "--force", "--remove", "ops"])
        .await
        .map(drop)
}

/// `port`: the firewall opens it first, it is confirmed over the new one, and the old one is closed after.
async fn port(world: &World, outside: &Outside, address: &str) -> anyhow::Result<()> {
    let developer = &world.developer;
    let yml = demo_deploy_yml(address, None, "");
    developer.write("config/deploy.yml", &yml)?;
    developer.write(".kamal/secrets", "")?;
    let by_port = |port: u16| yml.replace("ssh:\n", &format!("ssh:\n  port: {port}\n"));
    let host_yml = developer.home().join("host.yml");
    let path = host_yml.display().to_string();
    let from_elsewhere = ["host", "apply", "--allow-container", "--host-yml", &path];
    let doors = async || -> anyhow::Result<[PortState; 2]> {
        let states = outside.probe(address.parse()?, &["22", "2222"], PATIENCE).await?;
        Ok([states[&22], states[&2222]])
    };
    fs_err::write(&host_yml, "ssh: {port: 2222}\n")?;
    let moved = developer.appliance(from_elsewhere).run().await?.expect_code(0)?;
    for said in [
        "sshd listens on port 2222 now",
        "sshd's settings stay",
        "port 22, where sshd was, is closed",
    ] {
        ensure!(moved.stderr.contains(said), "not {said:?}: {}", moved.stderr);
    }
    ensure!(
        doors().await? == [PortState::Silent, PortState::Open],
        "{:?}",
        doors().await?
    );
    ensure!(!enters(world, address, "root", "22").await?, "by the old port");
    ensure!(enters(world, address, "root", "2222").await?, "by the new port");
    // The project's own file says where, to every command.
    let status = developer.appliance(["status"]).run().await?;
    ensure!(status.code != 0, "port 22 was said to answer: {}", status.stdout);
    developer.write("config/deploy.yml", &by_port(2222))?;
    let plan = ["host", "plan", "--allow-container"];
    let plan = developer.appliance(plan).run().await?.expect_code(0)?;
    ensure!(plan.stdout.contains("0 changes planned"), "{}", plan.stdout);
    let listed = developer
        .appliance(["firewall", "list"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(
        listed.stdout.contains(" 2222/tcp to everyone  (sshd)"),
        "{}",
        listed.stdout
    );
    let doctor = developer.appliance(["doctor", "--json"]).run().await?.json()?;
    ensure!(!doctor.to_string().contains("unreachable"), "{doctor}");

    // Moved again, and nobody comes in there: it moves back.
    let waits = connected_as(world, address, "root", "2222").await?;
    apply(world, "ssh: {port: 2022}\n").await?;
    ensure!(effective(world, "port").await? == "2022", "it did not move");
    let (kept, said) = confirm(world).await?;
    ensure!(
        !kept && said.contains("no connection is open that began after"),
        "{said}"
    );
    revert(world).await?;
    ensure!(
        enters(world, address, "root", "2222").await?,
        "it did not move back"
    );
    drop(waits);
    fs_err::write(&host_yml, "ssh: {port: 22}\n")?;
    developer.appliance(from_elsewhere).run().await?.expect_code(0)?;
    ensure!(
        doors().await? == [PortState::Open, PortState::Silent],
        "{:?}",
        doors().await?
    );
    Ok(())
}
