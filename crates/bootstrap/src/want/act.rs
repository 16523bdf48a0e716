//! Acting.

use std::path::Path;
use std::time::Duration;

use super::compare::{new_contents, sysctl_text};
use super::file::{Content, FileWant};
use super::{FileSeen, Secrets, Seen, Want, WantError};
use crate::firewall;
use crate::host::{Command, Host, HostError, Owner, must};
use crate::sshd;
use crate::written::{self, Written};

/// Installs packages without a question; files that somebody edited stay.
pub(crate) const INSTALL: [&str; 9] = [
    "apt-get",
    "install",
    "--yes",
    "--quiet=2",
    "--no-install-recommends",
    "--option=DPkg::Lock::Timeout=300",
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
    "--option=Acquire::Retries=3",
];

/// How long we wait for whoever holds apt's locks, such as the first-boot upgrade.
const LOCK_WAIT: Duration = Duration::from_secs(300);

impl Want {
    /// Brings it about, starting from what was just seen.
    ///
    /// # Errors
    /// When something is in the way or the host does not do its part; what was there before then stands.
    pub fn act(&self, host: &dyn Host, seen: &Seen, secrets: &dyn Secrets) -> Result<(), WantError> {
        match (self, seen) {
            (Want::Packages { .. }, Seen::Packages { missing, interrupted }) => {
                install(host, missing, *interrupted)?
            }
            (Want::Accounts { .. }, _) => {
                must(
                    host,
                    &Command::new(["systemd-sysusers", "/etc/sysusers.d/appliance.conf"]),
                )?;
            }
            (
                Want::Login { user, home, groups },
                Seen::Login {
                    exists,
                    missing_groups,
                },
            ) => {
                let home = home.display().to_string();
                if !exists {
                    // `*` is no password at all; `!` would make sshd without PAM refuse keys too.
                    let argv = [
                        "useradd",
                        "--key",
                        "HOME_MODE=0750",
                        "--create-home",
                        "--home-dir",
                        &home,
                        "--shell",
                        "/bin/bash",
                        "--password",
                        "*",
                        user,
                    ];
                    must(host, &Command::new(argv))?;
                }
                let groups = if *exists { missing_groups } else { groups };
                for group in groups {
                    must(
                        host,
                        &Command::new(["usermod", "--append", "--groups", group, user]),
                    )?;
                }
            }
            (Want::Directory { path, mode, owner }, _) => host.directory(path, *mode, owner)?,
            (Want::Files { files, .. }, Seen::Files(found)) => {
                for (wanted, seen) in files.iter().zip(found).filter(|(_, seen)| !seen.edited) {
                    write(host, wanted, seen, secrets)?;
                }
            }
            (Want::Binary { source, target, .. }, _) => host.copy(source, target, 0o755)?,
            (Want::Unit { name }, Seen::Unit { enabled, active }) => start(host, name, enabled, active)?,
            (Want::Firewall(rules), Seen::Firewall { confirmed, .. }) => {
                let text = rules.render();
                check(
                    host,
                    firewall::CONFIRMED,
                    &["nft", "--check", "--file", "{}"],
                    text.as_bytes(),
                )?;
                firewall::pending::simulate(host, rules)?;
                let now = host.now();
                // The first rules are confirmed at once: there is nothing better to go back to.
                // Later ones have to prove themselves while somebody is connected.
                let differs = confirmed
                    .contents
                    .as_deref()
                    .is_some_and(|old| old != text.as_bytes());
                if differs && !firewall::pending::connected(host, rules)?.is_empty() {
                    firewall::pending::arm(host, rules, &secrets.nonce(), &secrets.session(), now)?;
                    return Ok(());
                }
                host.write(
                    Path::new(firewall::CONFIRMED),
                    text.as_bytes(),
                    0o600,
                    &Owner::root(),
                )?;
                firewall::load(host, now)?;
            }
            (Want::Sshd { settings }, _) => {
                let text = sshd::render(settings);
                // The candidate is read first, as the drop-in will be; then everything that is there now.
                let whole = format!("{text}Include {}\n", sshd::CONFIG);
                check(host, sshd::DROP_IN, &["sshd", "-t", "-f", "{}"], whole.as_bytes())?;
                sshd::pending::arm(host, &text)?;
                host.write(Path::new(sshd::DROP_IN), text.as_bytes(), 0o644, &Owner::root())?;
            }
            (Want::Sysctl { path, settings }, _) => {
                host.write(path, sysctl_text(settings).as_bytes(), 0o644, &Owner::root())?;
                let path = path.display().to_string();
                // Settings the kernel refuses are seen when looking again.
                host.run(&Command::new(["sysctl", "--quiet", "--load", &path]))?;
            }
            (Want::Rights { .. }, Seen::Rights(found)) => {
                for (path, mode, widest) in found {
                    if mode & !widest != 0 {
                        let mode = format!("{:o}", mode & widest);
                        must(host, &Command::new(["chmod", &mode, path]))?;
                    }
                }
            }
            (Want::Owned { .. }, Seen::Owned(found)) => {
                for (path, _) in found {
                    must(host, &Command::new(["chown", "root", path]))?;
                }
            }
            (Want::Gone { .. }, Seen::Gone(found)) => {
                let argv = [
                    "apt-get",
                    "purge",
                    "--yes",
                    "--quiet=2",
                    "--option=DPkg::Lock::Timeout=300",
                ]
                .into_iter()
                .chain(found.iter().map(String::as_str));
                let argv: Vec<&str> = argv.collect();
                patiently(host, &apt(&argv))?;
            }
            (Want::Swap { bytes }, _) => swap(host, *bytes)?,
            (Want::Timezone(zone), _) => {
                must(host, &Command::new(["timedatectl", "set-timezone", zone]))?;
            }
            (Want::Mount { path, flags }, _) => {
                let options = format!("remount,{}", flags.join(","));
                must(host, &Command::new(["mount", "--options", &options, path]))?;
            }
            (Want::Made { by, .. }, _) => {
                let command = Command::new(by.iter().copied()).timeout(Duration::from_secs(1800));
                must(host, &command)?;
            }
            (Want::Locked { user }, _) => {
                must(host, &Command::new(["passwd", "--quiet", "--lock", user]))?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn write(
    host: &dyn Host,
    wanted: &FileWant,
    seen: &FileSeen,
    secrets: &dyn Secrets,
) -> Result<(), WantError> {
    let bytes = match (new_contents(wanted, seen)?, &seen.contents) {
        (Some(_), _) if wanted.content == Content::HostIdentity => format!(
            "# identity of this host; whoever reads it can open its secrets\n{}\n",
            secrets.host_identity()
        )
        .into_bytes(),
        (Some(new), _) => new.text.into_bytes(),
        // Only mode or owner differ; written anew, because that is atomic too.
        (None, Some(contents)) => contents.clone(),
        (None, None) => return Ok(()),
    };
    let right = seen
        .entry
        .as_ref()
        .is_some_and(|entry| entry.mode == wanted.mode && entry.owner == wanted.owner);
    if right && seen.contents.as_deref() == Some(&bytes) {
        return Ok(());
    }
    if let Some(argv) = &wanted.check {
        check(host, &wanted.path.display().to_string(), argv.0, &bytes)?;
    }
    match (&wanted.content, &seen.contents) {
        (Content::Exactly(_), _) => Written::note(host, &wanted.path, &bytes)?,
        (
            Content::LoginDefs(_)
            | Content::ShellSettings(_)
            | Content::MainCf(_)
            | Content::PamSu
            | Content::Moduli
            | Content::Instead(_)
            | Content::DockerDaemon(_),
            Some(before),
        ) if *before != bytes => written::keep_original(host, &wanted.path, before)?,
        _ => {}
    }
    Ok(host.write(&wanted.path, &bytes, wanted.mode, &wanted.owner)?)
}

/// Lets the program that will read a file judge a copy of it; a program that is not installed has no opinion.
fn check(host: &dyn Host, path: &str, argv: &[&str], bytes: &[u8]) -> Result<(), WantError> {
    const CANDIDATE: &str = "/run/appliance-candidate";
    let candidate = Path::new(CANDIDATE);
    host.write(candidate, bytes, 0o600, &Owner::root())?;
    let command = Command::new(
        argv.iter()
            .map(|word| if *word == "{}" { CANDIDATE } else { word }),
    );
    let answer = host.run(&command);
    host.remove(candidate)?;
    match answer {
        Ok(output) if output.ok() || output.status == 127 => Ok(()),
        Ok(output) => Err(WantError::Check {
            path: path.to_owned(),
            source: crate::host::failed(&command, &output),
        }),
        Err(source) => Err(WantError::Check {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Our swap file.
pub(super) const SWAP_FILE: &str = "/swapfile";

fn swap(host: &dyn Host, bytes: u64) -> Result<(), HostError> {
    let mebibytes = format!("count={}", bytes >> 20);
    // Written, not only allocated: a file with holes cannot be swapped to.
    let fill = [
        "dd",
        "if=/dev/zero",
        "of=/swapfile",
        "bs=1M",
        &mebibytes,
        "status=none",
    ];
    let _not_in_use = host.run(&Command::new(["swapoff", SWAP_FILE]))?;
    host.write(Path::new(SWAP_FILE), b"", 0o600, &Owner::root())?;
    must(host, &Command::new(fill).timeout(Duration::from_secs(600)))?;
    must(host, &Command::new(["mkswap", SWAP_FILE]))?;
    let fstab = host.read(Path::new("/etc/fstab"))?.unwrap_or_default();
    let mut text = String::from_utf8_lossy(&fstab).into_owned();
    if !text.contains(SWAP_FILE) {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str("/swapfile none swap sw,nofail 0 0\n");
        host.write(Path::new("/etc/fstab"), text.as_bytes(), 0o644, &Owner::root())?;
    }
    must(host, &Command::new(["swapon", SWAP_FILE])).map(drop)
}

fn start(host: &dyn Host, name: &str, enabled: &str, active: &str) -> Result<(), WantError> {
    if enabled != "enabled" {
        must(host, &Command::new(["systemctl", "enable", name]))?;
    }
    if active != "active" {
        // A unit that crashed too often before its cause was repaired would not be started otherwise.
        let _not_failed_before = host.run(&Command::new(["systemctl", "reset-failed", name]))?;
        let command = Command::new(["systemctl", "start", name]).timeout(Duration::from_secs(120));
        must(host, &command).map_err(|source| WantError::Start {
            unit: name.to_owned(),
            source,
        })?;
    }
    Ok(())
}

fn install(host: &dyn Host, missing: &[String], interrupted: bool) -> Result<(), WantError> {
    let packages = missing.join(" ");
    let failed = |source| WantError::Install {
        packages: packages.clone(),
        source,
    };
    if interrupted {
        patiently(
            host,
            &apt(&["dpkg", "--force-confdef", "--force-confold", "--configure", "-a"]),
        )
        .map_err(failed)?;
    }
    // Lists can be months old in an image. Without a network, apt's cache may still hold what we need.
    let update = patiently(
        host,
        &apt(&["apt-get", "update", "--quiet=2", "--option=Acquire::Retries=2"]),
    );
    let argv: Vec<&str> = INSTALL
        .into_iter()
        .chain(missing.iter().map(String::as_str))
        .collect();
    match (patiently(host, &apt(&argv)), update) {
        (Ok(()), _) => Ok(()),
        // Without lists the installation fails for a reason that hides the true one.
        (Err(_), Err(update)) => Err(failed(update)),
        (Err(install), Ok(())) => Err(failed(install)),
    }
}

fn apt(argv: &[&str]) -> Command {
    Command::new(argv.iter().copied())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("NEEDRESTART_SUSPEND", "1")
        .timeout(Duration::from_secs(1800))
}

/// Tries again while another apt or dpkg holds a lock.
fn patiently(host: &dyn Host, command: &Command) -> Result<(), HostError> {
    let mut waited = Duration::ZERO;
    loop {
        let output = host.run(command)?;
        if output.ok() {
            return Ok(());
        }
        let locked = [
            "Could not get lock",
            "Unable to lock",
            "is locked by another process",
            "Unable to acquire the dpkg frontend lock",
        ]
        .iter()
        .any(|words| output.stderr.contains(words));
        if !locked || waited >= LOCK_WAIT {
            return Err(crate::host::failed(command, &output));
        }
        let pause = Duration::from_secs(5);
        host.pause(pause);
        waited += pause;
    }
}
