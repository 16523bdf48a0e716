//! The hardening list on a real host: changes of sshd that wait for a confirmation, bans, what containers may not reach,
//! whose rules hold, what is undone, and the same commands from elsewhere.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro, Image, Outside, PortState};
use appliance_tests::World;

const PATIENCE: Duration = Duration::from_secs(1);

/// `ssh` from this machine, by the developer's key.
pub(crate) fn ssh(world: &World, address: &str, user: &str, more: &[&str]) -> tokio::process::Command {
    let home = world.developer.home();
    let mut ssh = tokio::process::Command::new("ssh");
    ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
        .arg("-o")
        .arg(format!(
            "UserKnownHostsFile={}",
            home.join(".ssh/known_hosts").display()
        ))
        .arg("-i")
        .arg(home.join(".ssh/id_ed25519"))
        .args(["-o", "ConnectTimeout=5", "-l", user, address])
        .args(more)
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    ssh
}

/// An SSH connection that is open until it is dropped.
pub(crate) async fn connected(world: &World, address: &str) -> anyhow::Result<tokio::process::Child> {
    connected_as(world, address, "root", "22").await
}

/// The same, as that user by that port.
pub(crate) async fn connected_as(
    world: &World,
    address: &str,
    user: &str,
    port: &str,
) -> anyhow::Result<tokio::process::Child> {
    let mut child = ssh(world, address, user, &["-p", port, "echo in; exec sleep 600"]).spawn()?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("has an output")?;
    tokio::io::AsyncBufReadExt::read_line(&mut tokio::io::BufReader::new(stdout), &mut line).await?;
    ensure!(line == "in\n", "no way in: {line:?}");
    Ok(child)
}

pub(crate) async fn effective(world: &World, keyword: &str) -> anyhow::Result<String> {
    let all = world.run(&["sshd", "-T"]).await?;
    let found = all
        .lines()
        .find_map(|line| line.strip_prefix(keyword)?.strip_prefix(' '));
    Ok(found.context("sshd says nothing of it")?.to_owned())
}

pub(crate) async fn apply(world: &World, host_yml: &str) -> anyhow::Result<String> {
    world
        .host
        .copy_in("/root/host.yml", host_yml.to_owned(), 0o644)
        .await?;
    let apply = Command::new([
        "appliance",
        "host",
        "apply",
        "--allow-container",
        "--host-yml",
        "/root/host.yml",
    ]);
    let output = world.host.exec(&apply).await?;
    ensure!(output.success(), "{}", output.error_text());
    Ok(output.error_text())
}

#[tokio::test]
async fn settings_of_sshd_stay_only_if_somebody_comes_in_after_them() -> anyhow::Result<()> {
    let world = World::bootstrapped("sshd", Distro::Debian13).await?;
    let address = world.ip().await?.to_string();
    let before = connected(&world, &address).await?;

    // Armed; who was there before proves nothing; and what the timer runs puts it back.
    let said = apply(&world, "ssh: {agent_forwarding: true}\n").await?;
    ensure!(said.contains("appliance host confirm"), "{said}");
    ensure!(effective(&world, "allowagentforwarding").await? == "yes");
    let timer = ["systemctl", "is-active", "appliance-ssh-revert.timer"];
    ensure!(world.run(&timer).await? == "active", "no timer was armed");
    let alone = world
        .host
        .exec(&Command::new(["appliance", "host", "confirm"]))
        .await?;
    ensure!(
        alone.status == 1
            && alone
                .error_text()
                .contains("no connection is open that began after"),
        "{}",
        alone.error_text()
    );
    world
        .run(&["systemctl", "start", "--wait", "appliance-ssh-revert.service"])
        .await?;
    ensure!(
        effective(&world, "allowagentforwarding").await? == "no",
        "it was not put back"
    );

    // Somebody new confirms.
    apply(&world, "ssh: {agent_forwarding: true}\n").await?;
    let confirmed = ssh(&world, &address, "root", &["appliance host confirm"])
        .output()
        .await?;
    ensure!(
        confirmed.status.success(),
        "{}",
        String::from_utf8_lossy(&confirmed.stderr)
    );
    let timer = world.host.exec(&Command::new(timer)).await?;
    ensure!(timer.text() == "inactive", "the timer is {}", timer.text());

    // Who is kept out for guesses and who is not; whose keys open which door.
    let (outside, _removal) = world.bench.outside(world.host.network()).await?;
    bans(&world, &outside, &address).await?;

    // Not confirmed, then the power goes: sshd starts with what was confirmed.
    loosely_mounted(&world).await?;
    apply(&world, "ssh: {agent_forwarding: true, tcp_forwarding: false}\n").await?;
    ensure!(effective(&world, "allowtcpforwarding").await? == "no");
    drop(before);
    world.host.reboot().await?;
    world.ready().await?;
    ensure!(
        effective(&world, "allowtcpforwarding").await? == "yes",
        "it outlived the reboot"
    );
    ensure!(
        effective(&world, "allowagentforwarding").await? == "yes",
        "what was confirmed did not"
    );
    let login = ssh(&world, &address, "root", &["true"]).output().await?;
    ensure!(
        login.status.success(),
        "{}",
        String::from_utf8_lossy(&login.stderr)
    );
    ensure!(
        flags(&world).await? && temporary_files(&world).await?["ok"] == true,
        "what fstab leaves out was not put right after the boot"
    );
    crate::sshd_door::doors(&world, &outside, &address).await?;
    keys(&world, &address).await
}

/// Whether `/tmp` is a mount without devices and setuid programs, as large as fstab says.
async fn flags(world: &World) -> anyhow::Result<bool> {
    let options = ["findmnt", "--noheadings", "--output=OPTIONS", "/tmp"];
    let options = world.run(&options).await?;
    Ok(["nosuid", "nodev", "size=65536k"]
        .iter()
        .all(|flag| options.contains(flag)))
}

/// What the audit says of `/tmp`.
async fn temporary_files(world: &World) -> anyhow::Result<serde_json::Value> {
    let audit = ["appliance", "host", "audit", "--allow-container", "--json"];
    let told = world.host.exec(&Command::new(audit)).await?;
    let told: serde_json::Value = serde_json::from_slice(&told.stdout)?;
    let mut items = told["items"].as_array().into_iter().flatten();
    let item = items.find(|item| item["id"] == "temporary-files");
    Ok(item.context("no such item")?.clone())
}

/// Somebody's line of fstab mounts `/tmp` with nothing but a size: told, put right, and so after a boot.
async fn loosely_mounted(world: &World) -> anyhow::Result<()> {
    const LINE: &str = "systemctl disable --quiet tmp.mount 2>/dev/null || true; rm -f /etc/systemd/system/tmp.mount\n\
        echo 'tmpfs /tmp tmpfs size=64m 0 0' >>/etc/fstab; systemctl daemon-reload\n\
        umount --lazy /tmp || true; mount /tmp";
    world.run(&["bash", "-euc", LINE]).await?;
    let item = temporary_files(world).await?;
    ensure!(
        item["ok"] == false && item["differs"].to_string().contains("/tmp"),
        "{item}"
    );
    apply(world, "ssh: {agent_forwarding: true}\n").await?;
    ensure!(flags(world).await?, "it was not put right");
    Ok(())
}

/// Who guesses is kept from SSH and from nothing else; who logged in lately is not, and nobody can be accused by others.
async fn bans(world: &World, outside: &Outside, address: &str) -> anyhow::Result<()> {
    let ip = world.ip().await?;
    let inspected = outside.exec(&Command::new(["hostname", "-i"])).await?.text();
    let stranger = inspected
        .split_whitespace()
        .find(|word| word.contains('.'))
        .context("has an address")?;
    let target = format!("deploy@{address}");
    let appliance = async |words: &[&str]| {
        let words = [words, &["--on", &target]].concat();
        world.developer.appliance(words).run().await?.expect_code(0)
    };
    let ports = async || -> anyhow::Result<[PortState; 2]> {
        let states = outside.probe(ip, &["22", "80"], PATIENCE).await?;
        Ok([states[&22], states[&80]])
    };
    let (open, silent) = (PortState::Open, PortState::Silent);
    // By hand: from everything, and let in again.
    appliance(&["firewall", "ban", stranger]).await?;
    ensure!(ports().await? == [silent; 2], "a banned address gets in");
    let listed = appliance(&["firewall", "list"]).await?;
    ensure!(
        listed
            .stdout
            .contains(&format!("banned: {stranger} from everything")),
        "{}",
        listed.stdout
    );
    appliance(&["firewall", "unban", stranger]).await?;
    ensure!(ports().await? == [open; 2], "it is still out");

    // Whoever else writes into the journal is no witness: neither nobody nor root, whatever he calls himself.
    for user in ["nobody", "root"] {
        for _ in 0..10 {
            let lie = "Invalid user x from 198.51.100.7 port 9";
            world
                .run(&["runuser", "--user", user, "--", "logger", "--tag", "sshd", lie])
                .await?;
        }
    }
    // A colleague's mistakes, where somebody logged in lately; then the same from a stranger's machine.
    for _ in 0..6 {
        let knock = ssh(world, address, "nobody-here", &["true"]).output().await?;
        ensure!(!knock.status.success(), "a stranger logged in");
    }
    let banned = async || -> anyhow::Result<bool> {
        let set = world
            .run(&["nft", "list", "set", "inet", "appliance", "ssh_ban4"])
            .await?;
        Ok(set.contains(&format!("{stranger} ")))
    };
    // On a slow machine sshd does not always come to ask before ssh gives up.
    let mut knocks = 0;
    while !banned().await? {
        knocks += 1;
        ensure!(knocks <= 20, "failures have no consequence");
        let knock = ssh(world, address, "nobody-here", &["true"]);
        let knock = within(outside, knock.as_std()).await?.output().await?;
        ensure!(!knock.status.success(), "a stranger logged in");
    }
    ensure!(
        ports().await? == [silent, open],
        "who guesses is kept from SSH, and from nothing else"
    );
    let shown = appliance(&["firewall", "list", "--json"]).await?.json()?;
    ensure!(
        shown["bans"] == serde_json::json!([])
            && shown["ssh_bans"].as_array().map(Vec::len) == Some(1)
            && shown["ssh_bans"][0][0] == stranger,
        "somebody else was accused, or banned for mistakes: {shown}"
    );
    let login = ssh(world, address, "root", &["true"]).output().await?;
    ensure!(
        login.status.success(),
        "{}",
        String::from_utf8_lossy(&login.stderr)
    );
    // Bans outlive the table.
    world.run(&["appliance", "firewall", "load"]).await?;
    ensure!(ports().await? == [silent, open], "a reload lets everybody in");
    appliance(&["firewall", "unban", stranger]).await?;
    ensure!(ports().await? == [open; 2], "it is still out");
    Ok(())
}

/// The same program, run in an outsider's network.
async fn within(
    outside: &Outside,
    command: &std::process::Command,
) -> anyhow::Result<tokio::process::Command> {
    let format = ["docker", "inspect", "--format", "{{.State.Pid}}"];
    let pid = machine(&[&format[..], &[outside.name().as_str()]].concat()).await?;
    let mut inside = tokio::process::Command::new("nsenter");
    inside
        .args(["--target", pid.trim(), "--net"])
        .arg(command.get_program())
        .args(command.get_args())
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok(inside)
}

/// Who is named in `host.yml`, from where, and who is named no more.
async fn keys(world: &World, address: &str) -> anyhow::Result<()> {
    let bob = world.developer.home().join("bob");
    let made = tokio::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "bob", "-f"])
        .arg(&bob)
        .status()
        .await?;
    ensure!(made.success(), "ssh-keygen");
    let public = fs_err::read_to_string(bob.with_extension("pub"))?;
    let public = public.trim();
    let enters = async |user: &str| -> anyhow::Result<bool> {
        let mut ssh = tokio::process::Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "ConnectTimeout=5", "-o"])
            .arg(format!(
                "UserKnownHostsFile={}",
                world.developer.home().join(".ssh/known_hosts").display()
            ))
            .arg("-i")
            .arg(&bob)
            .args(["-l", user, address, "true"])
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null());
        let output = ssh.output().await?;
        // The agent's door runs no `true`; it is open if sshd took the key.
        Ok(!String::from_utf8_lossy(&output.stderr).contains("Permission denied"))
    };
    let named = format!("admins: [{{name: bob, keys: ['{public}']}}]\n");
    apply(world, &named).await?;
    ensure!(
        enters("root").await? && enters("deploy").await?,
        "a new administrator"
    );
    let far = format!("admins: [{{name: bob, keys: ['{public}'], from: [192.0.2.0/24]}}]\n");
    apply(world, &far).await?;
    ensure!(
        !enters("root").await? && !enters("deploy").await?,
        "his key works from everywhere"
    );
    apply(world, &named).await?;
    ensure!(enters("root").await?, "the limit was lifted");
    let said = apply(world, "admins: []\n").await?;
    ensure!(
        !enters("root").await? && !enters("deploy").await?,
        "he is named no more, and still gets in: {said}"
    );
    ensure!(said.contains("appliance keys remove"), "{said}");

    // By the agent: root's door is closed with the other, and whoever would open it again is told.
    apply(world, &named).await?;
    ensure!(enters("root").await?, "a new administrator");
    let target = format!("deploy@{address}");
    let listed = world
        .developer
        .appliance(["keys", "list", "--json", "--on", &target])
        .run()
        .await?
        .expect_code(0)?
        .json()?
        .to_string();
    let fingerprint = machine(&["ssh-keygen", "-lf", &bob.display().to_string()]).await?;
    let fingerprint = fingerprint.split(' ').nth(1).context("a fingerprint")?;
    ensure!(listed.contains(fingerprint), "{listed}");
    let removed = world
        .developer
        .appliance(["keys", "remove", fingerprint, "--on", &target])
        .run()
        .await?
        .expect_code(0)?;
    let said = format!("{}{}", removed.stdout, removed.stderr);
    ensure!(
        said.contains("its shell as root is closed too") && said.contains("host.yml still names it"),
        "{said}"
    );
    ensure!(
        !enters("root").await? && !enters("deploy").await?,
        "a removed key gets in"
    );
    let login = ssh(world, address, "root", &["true"]).output().await?;
    ensure!(login.status.success(), "somebody else's key was taken along");
    apply(world, "admins: []\n").await.map(drop)
}

#[tokio::test]
async fn items_are_undone_kept_and_asked_for_from_elsewhere() -> anyhow::Result<()> {
    let world = World::bootstrapped("items", Distro::Debian12).await?;
    let address = world.ip().await?.to_string();
    let target = format!("deploy@{address}");
    let host = async |words: &[&str], code: i32| {
        let words = [&["host"][..], words, &["--allow-container", "--on", &target]].concat();
        world.developer.appliance(words).run().await?.expect_code(code)
    };

    // From elsewhere, as signed changes.
    let audit = host(&["audit", "--json"], 0).await?.json()?;
    ensure!(audit["failing"] == 0, "{audit}");
    let explained = host(&["explain", "S29"], 0).await?;
    ensure!(
        explained.stdout.contains("Defaults timestamp_timeout") || explained.stdout.contains("sudo"),
        "{}",
        explained.stdout
    );
    let plan = host(&["plan"], 0).await?;
    ensure!(plan.stdout.contains("0 changes planned"), "{}", plan.stdout);

    // What should not be there since is told item by item, by a host that goes on being looked after.
    world
        .run(&[
            "systemd-run",
            "--collect",
            "--unit=open-docker",
            "systemd-socket-activate",
            "--listen=127.0.0.1:2375",
            "cat",
        ])
        .await?;
    let told = host(&["audit", "--json"], 1).await?.json()?;
    ensure!(
        told["failing"] == 1 && told.to_string().contains("Docker's API listens on port 2375"),
        "{told}"
    );
    world.run(&["systemctl", "stop", "open-docker"]).await?;

    // By effect, not by text.
    const HELD: &str = "import apt_pkg, re; apt_pkg.init()\n\
        patterns = apt_pkg.config.value_list('Unattended-Upgrade::Package-Blacklist')\n\
        names = 'docker-ce docker-ce-cli docker.io docker-cli containerd containerd.io runc libc6'.split()\n\
        print([name for name in names if not any(re.match(pattern, name) for pattern in patterns)])";
    let upgraded = world.run(&["python3", "-c", HELD]).await?;
    ensure!(upgraded == "['libc6']", "unattended upgrades take {upgraded}");
    world
        .run(&["useradd", "--create-home", "--shell", "/bin/bash", "visitor"])
        .await?;
    let su = world
        .host
        .exec(
            &Command::new([
                "setpriv",
                "--reuid=visitor",
                "--regid=visitor",
                "--init-groups",
                "su",
                "--command",
                "true",
                "root",
            ])
            .stdin("x\n"),
        )
        .await?;
    ensure!(
        !su.success() && su.error_text().contains("Permission denied"),
        "{}",
        su.error_text()
    );
    world.run(&["su", "--command", "true", "visitor"]).await?;
    let motd = world.run(&["cat", "/etc/motd"]).await?;
    ensure!(
        motd.contains("appliance status") && !motd.contains("ABSOLUTELY NO WARRANTY"),
        "{motd}"
    );
    ensure!(world.run(&["stat", "--format=%a", "/home/deploy"]).await? == "750");
    world.run(&["umount", "/tmp"]).await?;
    world
        .run(&["appliance", "host", "apply", "--allow-container"])
        .await?;
    let flags = world
        .run(&["findmnt", "--noheadings", "--output=OPTIONS", "/tmp"])
        .await?;
    ensure!(
        flags.contains("nosuid") && flags.contains("nodev"),
        "/tmp has {flags}"
    );
    ensure!(
        world
            .run(&["appliance", "bootstrap", "--allow-container"])
            .await?
            == "0 changes"
    );

    // Undone, and done again.
    const BLOCKED: &str = "/etc/modprobe.d/50-appliance.conf";
    host(&["rollback", "modules"], 0).await?;
    ensure!(
        !world
            .host
            .exec(&Command::new(["test", "-e", BLOCKED]))
            .await?
            .success()
    );
    host(&["rollback", "su"], 0).await?;
    let pam = world.run(&["cat", "/etc/pam.d/su"]).await?;
    ensure!(
        !pam.lines()
            .any(|line| line.starts_with("auth") && line.contains("pam_wheel")),
        "{pam}"
    );
    let failing = host(&["audit", "--json"], 1).await?.json()?;
    ensure!(failing["failing"] == 2, "{failing}");
    // Who becomes root by su alone is not shut out by it, and is told of.
    world
        .run(&["useradd", "--create-home", "--shell", "/bin/bash", "alice"])
        .await?;
    let password = Command::new(["chpasswd"]).stdin("alice:correct horse battery staple\n");
    ensure!(world.host.exec(&password).await?.success(), "chpasswd");
    let left_out = host(&["audit", "--json"], 1).await?.json()?;
    ensure!(
        left_out["failing"] == 1 && left_out["notes"].to_string().contains("the group sudo is empty"),
        "{left_out}"
    );
    world.run(&["userdel", "--remove", "alice"]).await?;
    let refused = host(&["rollback", "firewall"], 1).await?;
    ensure!(refused.stderr.contains("left as it is"), "{}", refused.stderr);

    // A file of ours that somebody edited is kept and told, and replaced when asked to.
    world
        .host
        .copy_in("/etc/logrotate.d/appliance", "# mine\n", 0o644)
        .await?;
    let yml = world.developer.home().join("host.yml");
    fs_err::write(
        &yml,
        "hardening: {items: {modules: false}}\nlimits: {log_size: 20m}\n",
    )?;
    let path = yml.display().to_string();
    let applied = host(&["apply", "--host-yml", &path], 0).await?;
    ensure!(
        applied.stderr.contains("were edited by somebody"),
        "{}",
        applied.stderr
    );
    ensure!(world.run(&["cat", "/etc/logrotate.d/appliance"]).await? == "# mine");
    ensure!(
        world
            .run(&["cat", "/etc/appliance/host.yml"])
            .await?
            .contains("modules: false")
    );
    ensure!(
        !world
            .host
            .exec(&Command::new(["test", "-e", BLOCKED]))
            .await?
            .success(),
        "it was switched off"
    );
    host(&["apply", "--force"], 0).await?;
    ensure!(
        world
            .run(&["cat", "/etc/logrotate.d/appliance"])
            .await?
            .contains("rotate 8")
    );
    // A mistake is told before anything leaves.
    fs_err::write(&yml, "firewall: {mode: iptables}\n")?;
    let mistake = host(&["apply", "--host-yml", &path], 2).await?;
    ensure!(
        mistake.stderr.contains("none of: own, ufw, off"),
        "{}",
        mistake.stderr
    );
    // The record has the words.
    let record = world
        .developer
        .appliance(["audit", "--json", "--on", &target])
        .run()
        .await?
        .stdout;
    ensure!(record.contains("host-exec"), "{record}");

    containers(&world).await?;
    whose_rules(&world).await
}

/// Containers may not ask the cloud who this host is, unless they are let.
async fn containers(world: &World) -> anyhow::Result<()> {
    let (cloud, _removal) = world.bench.outside(world.host.network()).await?;
    let inside = async |argv: &[&str]| -> anyhow::Result<()> {
        let pid = machine(&[
            "docker",
            "inspect",
            "--format",
            "{{.State.Pid}}",
            cloud.name().as_str(),
        ])
        .await?;
        let argv = [&["nsenter", "--target", pid.trim(), "--net"][..], argv].concat();
        machine(&argv).await.map(drop)
    };
    inside(&["ip", "address", "add", "169.254.169.254/32", "dev", "eth0"]).await?;
    let server = cloud.exec(&Command::new(["hostname", "-i"])).await?.text();
    let via = server
        .split_whitespace()
        .find(|word| word.starts_with("1") && !word.starts_with("169"))
        .context("an address")?;
    cloud
        .exec(&Command::new(["python3", "-c", "import subprocess; subprocess.Popen(['python3', '-m', 'http.server', '80'], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"]))
        .await?;
    world
        .run(&["ip", "route", "replace", "169.254.169.254", "via", via])
        .await?;
    load_demo(world).await?;
    const ASK: &str =
        "import urllib.request; print(urllib.request.urlopen('http://169.254.169.254/', timeout=2).status)";
    world
        .run(&[
            "curl",
            "--silent",
            "--fail",
            "--retry",
            "10",
            "--retry-all-errors",
            "--retry-delay",
            "1",
            "--output",
            "/dev/null",
            "http://169.254.169.254/",
        ])
        .await
        .context("the host itself may")?;
    let ask = async || {
        world
            .host
            .exec(&Command::new(["docker", "exec", "pub", "python3", "-c", ASK]))
            .await
    };
    world
        .run(&[
            "docker",
            "run",
            "--detach",
            "--name=pub",
            "--publish=8080:80",
            "demo",
        ])
        .await?;
    let blocked = ask().await?;
    ensure!(!blocked.success(), "a container reads the metadata");
    // A container's own address is nobody's business outside, unless its network is said to be routed to.
    let straight = world
        .run(&[
            "docker",
            "inspect",
            "--format",
            "{{.NetworkSettings.IPAddress}}",
            "pub",
        ])
        .await?;
    let (v4, _) = world.host.addresses().await?;
    inside(&["ip", "route", "replace", &straight, "via", &v4.to_string()]).await?;
    let direct = async || -> anyhow::Result<PortState> {
        Ok(cloud.probe(straight.parse()?, &["80"], PATIENCE).await?[&80])
    };
    ensure!(
        direct().await? == PortState::Silent,
        "a container is reached by its own address"
    );
    let routed = format!(
        "firewall: {{block_metadata: false, routed: [{{network: {straight}/32, port: 80, from: [{via}]}}]}}\n"
    );
    apply(world, &routed).await?;
    let allowed = ask().await?;
    ensure!(allowed.text() == "200", "{}", allowed.error_text());
    ensure!(
        direct().await? == PortState::Open,
        "a network that is routed to is not reached"
    );
    apply(world, "firewall: {block_metadata: true}\n").await?;
    ensure!(direct().await? == PortState::Silent, "it stayed open");
    Ok(())
}

/// Ours, UFW's, none.
async fn whose_rules(world: &World) -> anyhow::Result<()> {
    let (outside, _removal) = world.bench.outside(world.host.network()).await?;
    let (v4, _) = world.host.addresses().await?;
    let published = async || -> anyhow::Result<PortState> {
        Ok(outside.probe(v4.into(), &["8080"], PATIENCE).await?[&8080])
    };
    ensure!(
        published().await? == PortState::Silent,
        "published, and open to everyone"
    );
    world
        .run(&["apt-get", "install", "--yes", "--quiet=2", "ufw"])
        .await?;
    for rule in [
        &["ufw", "allow", "22/tcp"][..],
        &["ufw", "allow", "80,443/tcp"],
        &["ufw", "--force", "enable"],
    ] {
        world.run(rule).await?;
    }
    apply(world, "firewall: {mode: ufw}\n").await?;
    ensure!(published().await? == PortState::Silent, "UFW says nothing of it");
    // What UFW's user says holds for containers, as soon as UFW has written it down.
    let rules = async |expect: bool| -> anyhow::Result<()> {
        let script = format!(
            "until {} appliance firewall list | grep --quiet 'UFW allows 8080/tcp'; do read -rt 0.2 <> <(:); done; true",
            if expect { "" } else { "!" }
        );
        let wait = Command::new(["bash", "-c", &script]).timeout(Duration::from_secs(30));
        let waited = world.host.exec(&wait).await?;
        ensure!(
            waited.success(),
            "UFW was not followed ({expect}, {}): {}\n{}",
            waited.status,
            waited.error_text(),
            world.run(&["appliance", "firewall", "list"]).await?
        );
        Ok(())
    };
    world.run(&["ufw", "allow", "8080/tcp"]).await?;
    rules(true).await?;
    ensure!(
        published().await? == PortState::Open,
        "ufw allow has no effect for a container"
    );
    world.run(&["ufw", "delete", "allow", "8080/tcp"]).await?;
    rules(false).await?;
    ensure!(
        published().await? == PortState::Silent,
        "ufw delete has no effect"
    );

    world.run(&["ufw", "disable"]).await?;
    crate::doctor::mended(world, "firewall-ufw").await?;

    // Off is said, and what it means.
    let said = apply(world, "firewall: {mode: 'off'}\n").await?;
    ensure!(said.contains("the firewall is off"), "{said}");
    world
        .run(&["systemctl", "disable", "--now", "appliance-firewall"])
        .await?;
    // As it says, with the agent running.
    world.run(&["rm", "/var/lib/appliance/fw/confirmed.nft"]).await?;
    world
        .run(&["nft", "delete", "table", "inet", "appliance"])
        .await?;
    ensure!(published().await? == PortState::Open, "somebody still closes it");
    apply(world, "firewall: {mode: own}\n").await?;
    ensure!(
        published().await? == PortState::Silent,
        "ours again, and still open"
    );
    Ok(())
}

async fn load_demo(world: &World) -> anyhow::Result<()> {
    let demo = Image::Demo {
        version: "v1".to_owned(),
    };
    let image = world.bench.sandbox.ensure(&demo, &|_| ()).await?;
    let saved = tokio::process::Command::new("docker")
        .args(["save", image.as_str()])
        .output()
        .await?;
    let loaded = world
        .host
        .exec(&Command::new(["docker", "load"]).stdin(saved.stdout))
        .await?;
    ensure!(loaded.success(), "{}", loaded.error_text());
    world
        .run(&["docker", "tag", image.as_str(), "demo"])
        .await
        .map(drop)
}

/// Runs a program of this machine.
async fn machine(argv: &[&str]) -> anyhow::Result<String> {
    let output = tokio::process::Command::new(argv[0])
        .args(&argv[1..])
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{argv:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
