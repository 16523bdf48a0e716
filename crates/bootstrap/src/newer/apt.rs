//! What apt says, and how it is called: nobody is asked, settings of administrators stay, locks are waited for.

use std::time::Duration;

use serde::Serialize;

use crate::host::{Command, Host, HostError, Output, failed};
use crate::want::act::INSTALL;

/// How long we wait for whoever holds apt's locks.
const LOCK_WAIT: Duration = Duration::from_secs(300);
/// How long apt may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// One package that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The version that is there.
    pub from: Option<String>,
    /// The version that comes.
    pub to: String,
    /// It comes from the distribution's security archive.
    pub security: bool,
}

/// The lines of `apt-get --simulate`, as apt-get(8) describes: `Inst NAME [OLD] (NEW ORIGIN, … [ARCH])`.
pub(super) fn simulated(text: &str) -> Vec<Package> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
            let (before, coming) = rest.split_once('(')?;
            let (to, origins) = coming.split_once(' ').unwrap_or((coming, ""));
            let from = before
                .trim()
                .strip_prefix('[')
                .and_then(|old| old.split(']').next());
            Some(Package {
                name: name.to_owned(),
                from: from.map(str::to_owned),
                to: to.trim_end_matches(')').to_owned(),
                security: origins.contains("-security") || origins.contains("Debian-Security"),
            })
        })
        .collect()
}

/// A version that apt could install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    /// Its version.
    pub(super) version: String,
    /// The suite it is in: `bookworm`, `bookworm-security`.
    pub(super) suite: String,
}

/// The lines of `apt-cache madison`, newest first: `NAME | VERSION | URI SUITE/COMPONENT ARCH Packages`.
pub(super) fn offers(text: &str) -> Vec<Offer> {
    text.lines()
        .filter_map(|line| {
            let mut columns = line.split('|').map(str::trim);
            let (_name, version, source) = (columns.next()?, columns.next()?, columns.next()?);
            let suite = source.split_whitespace().nth(1)?.split('/').next()?;
            Some(Offer {
                version: version.to_owned(),
                suite: suite.to_owned(),
            })
        })
        .collect()
}

/// A call of apt that asks nobody.
pub(super) fn quietly(argv: &[&str]) -> Command {
    Command::new(argv.iter().copied())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .timeout(LIMIT)
}

/// Installs under a unit of its own: whoever began may go away, apt ends what it began.
pub(super) fn install(
    host: &dyn Host,
    what: &str,
    options: &[&str],
    packages: &[&str],
) -> Result<(), HostError> {
    let unit = format!("--unit=appliance-install-{what}");
    let argv: Vec<&str> = [
        "systemd-run",
        "--quiet",
        "--wait",
        "--pipe",
        "--collect",
        unit.as_str(),
        "--setenv=DEBIAN_FRONTEND=noninteractive",
        // Docker's jump restarts what it has to by itself.
        if what == "docker" {
            "--setenv=NEEDRESTART_SUSPEND=1"
        } else {
            "--setenv=NEEDRESTART_MODE=a"
        },
    ]
    .into_iter()
    .chain(INSTALL)
    .chain(options.iter().copied())
    .chain(packages.iter().copied())
    .collect();
    patiently(host, &quietly(&argv)).map(drop)
}

/// Tries again while another apt or dpkg holds a lock.
pub(super) fn patiently(host: &dyn Host, command: &Command) -> Result<Output, HostError> {
    let mut waited = Duration::ZERO;
    loop {
        let output = host.run(command)?;
        if output.ok() {
            return Ok(output);
        }
        let locked = [
            "Could not get lock",
            "Unable to lock",
            "is locked by another process",
        ];
        if !locked.iter().any(|words| output.stderr.contains(words)) || waited >= LOCK_WAIT {
            return Err(failed(command, &output));
        }
        let pause = Duration::from_secs(5);
        host.pause(pause);
        waited += pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulation_names_what_changes_and_where_it_comes_from() {
        let found = simulated(
            "Reading package lists...\n\
             Inst openssl [3.0.14-1] (3.0.15-1~deb12u1 Debian:12.8/oldstable, Debian-Security:12/oldstable-security [amd64])\n\
             Inst linux-image-6.1.0-27-amd64 (6.1.115-1 Debian:12.8/oldstable [amd64])\n\
             Inst libc6 [2.36-9] (2.36-10 Ubuntu:22.04/jammy-updates [amd64]) []\n\
             Conf openssl (3.0.15-1~deb12u1 Debian:12.8/oldstable [amd64])\n",
        );
        let shown: Vec<_> = found
            .iter()
            .map(|p| (p.name.as_str(), p.from.as_deref(), p.to.as_str(), p.security))
            .collect();
        assert_eq!(
            shown,
            [
                ("openssl", Some("3.0.14-1"), "3.0.15-1~deb12u1", true),
                ("linux-image-6.1.0-27-amd64", None, "6.1.115-1", false),
                ("libc6", Some("2.36-9"), "2.36-10", false),
            ]
        );
    }

    #[test]
    fn offers_come_with_their_suites() {
        let found = offers(
            " docker.io | 26.1.5+dfsg1-9 | http://deb.debian.org/debian trixie/main amd64 Packages\n\
             docker-ce | 5:28.0.1-1~debian.12~bookworm | https://download.docker.com/linux/debian bookworm/stable amd64 Packages\n\
             N: nothing\n",
        );
        let shown: Vec<_> = found
            .iter()
            .map(|o| (o.version.as_str(), o.suite.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                ("26.1.5+dfsg1-9", "trixie"),
                ("5:28.0.1-1~debian.12~bookworm", "bookworm")
            ]
        );
    }
}
