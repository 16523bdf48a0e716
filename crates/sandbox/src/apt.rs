//! Where this machine gets Debian packages from, read from apt itself.
//!
//! A machine behind a mirror or a proxy builds from that mirror, and the hosts it builds use it too.

use std::process::Stdio;

/// Mirrors and settings for building images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Apt {
    pub(crate) mirror: String,
    pub(crate) security_mirror: String,
    /// Settings such as `Acquire::http::Proxy "http://proxy:3128";`.
    pub(crate) options: Vec<String>,
}

impl Default for Apt {
    fn default() -> Self {
        Self {
            mirror: "http://deb.debian.org/debian".to_owned(),
            security_mirror: "http://deb.debian.org/debian-security".to_owned(),
            options: Vec::new(),
        }
    }
}

/// Settings without which this machine's mirror may be out of reach or look out of date.
const CARRIED: [&str; 6] = [
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::ForceIPv4",
    "Acquire::ForceIPv6",
];

impl Apt {
    /// What apt on this machine says; Debian's own mirrors where there is no apt or no Debian.
    pub(crate) async fn of_this_machine() -> Self {
        let targets = ask(
            "apt-get",
            &[
                "indextargets",
                "--format",
                "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
                "Created-By: Packages",
            ],
        )
        .await;
        let settings = ask("apt-config", &["dump"]).await;
        Self::parse(&targets, &settings)
    }

    fn parse(targets: &str, settings: &str) -> Self {
        let mut apt = Self::default();
        let find = |label: &str| {
            targets
                .lines()
                .find_map(|line| {
                    line.strip_prefix("Debian|")?
                        .strip_prefix(label)?
                        .strip_prefix('|')
                })
                .filter(|uri| uri.starts_with("http://") || uri.starts_with("https://"))
                .map(|uri| uri.trim_end_matches('/').to_owned())
        };
        if let Some(mirror) = find("Debian") {
            apt.mirror = mirror;
        }
        if let Some(mirror) = find("Debian-Security") {
            apt.security_mirror = mirror;
        }
        apt.options = settings
            .lines()
            .filter(|line| {
                line.split_once(' ')
                    .is_some_and(|(name, value)| CARRIED.contains(&name) && value != "\"\";")
            })
            .map(str::to_owned)
            .collect();
        apt
    }
}

/// The standard output of a program; empty if it is not there or fails.
async fn ask(program: &str, arguments: &[&str]) -> String {
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .await;
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_and_settings_are_those_of_the_machine() {
        let apt = Apt::parse(
            "Docker|Docker CE|https://download.docker.com/linux/debian/\n\
             Debian|Debian|http://mirror.example/debian/\n\
             Debian|Debian-Security|http://mirror.example/debian-security/\n",
            "APT \"\";\nAcquire::http::Proxy \"\";\nAcquire::Check-Valid-Until \"false\";\n",
        );
        assert_eq!(apt.mirror, "http://mirror.example/debian");
        assert_eq!(apt.security_mirror, "http://mirror.example/debian-security");
        assert_eq!(apt.options, ["Acquire::Check-Valid-Until \"false\";"]);
    }

    #[test]
    fn ubuntu_and_machines_without_apt_use_debians_own_mirror() {
        for targets in [
            "",
            "Ubuntu|Ubuntu|http://archive.ubuntu.com/ubuntu/\n",
            "Debian|Debian|file:/srv/debian/\n",
        ] {
            assert_eq!(Apt::parse(targets, ""), Apt::default());
        }
    }
}
