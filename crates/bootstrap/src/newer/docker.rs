//! Docker's jump from one packaged version to another, with containers running.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::apt::{self, Offer, Package};
use super::check::{self, ApiRange, Seen};
use super::{Jump, LookError, ask};
use crate::docker::{DAEMON_JSON, Engine, Origin, major};
use crate::host::{Command, Host, HostError, must};

/// Everything that belongs to an engine, in Docker's and in the distributions' packages.
pub(super) const PACKAGES: &[&str] = &[
    "docker-ce",
    "docker-ce-cli",
    "docker-ce-rootless-extras",
    "containerd.io",
    "docker-buildx-plugin",
    "docker-compose-plugin",
    "docker.io",
    "docker-cli",
    "containerd",
    "runc",
];
/// Packages that are of one version with the engine's.
const TOGETHER: &[&str] = &["docker-ce-cli", "docker-ce-rootless-extras", "docker-cli"];
/// How long the new daemon may take to answer.
const PATIENCE: u32 = 90;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    server_version: String,
    live_restore_enabled: bool,
    driver: String,
    docker_root_dir: String,
    swarm: Swarm,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Swarm {
    local_node_state: String,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Running {
    id: String,
    name: String,
    state: State,
    #[serde(default)]
    mounts: Vec<Mount>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    pid: i64,
    started_at: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mount {
    #[serde(default)]
    source: String,
}

impl Running {
    fn name(&self) -> String {
        self.name.trim_start_matches('/').to_owned()
    }
}

/// What came of a jump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landed {
    /// The version that runs now.
    pub version: String,
    /// Containers that ran on as if nothing had been.
    pub kept: Vec<String>,
    /// Containers that ran before and were started anew, or are gone.
    pub lost: Vec<String>,
}

/// Why a jump was not made, or not kept.
#[derive(Debug, thiserror::Error)]
pub enum JumpError {
    /// Before anything was changed.
    #[error("{what}; nothing was changed")]
    Before {
        /// What was being done.
        what: &'static str,
        /// Why.
        #[source]
        source: HostError,
    },
    /// What Docker said before was not understood.
    #[error("Docker's containers cannot be seen; nothing was changed")]
    Look(#[source] LookError),
    /// The new daemon does not take the settings of this host.
    #[error("Docker {to} refuses {DAEMON_JSON}: {why}; nothing was changed")]
    Settings {
        /// The new version.
        to: String,
        /// In its words.
        why: String,
    },
    /// The new one did not come up, and the former is back.
    #[error("Docker {to} did not come up ({why}); {from} is back")]
    Back {
        /// The version from before.
        from: String,
        /// The new version.
        to: String,
        /// Why.
        why: String,
    },
    /// The new one did not come up, nor the former.
    #[error(
        "Docker {to} did not come up ({why}), and the way back failed; containers run on, nobody supervises them"
    )]
    Stuck {
        /// The new version.
        to: String,
        /// Why.
        why: String,
        /// What the way back failed with.
        #[source]
        source: HostError,
    },
}

/// What a jump would be; `None` if the newest runs already.
pub(super) fn look(
    host: &dyn Host,
    version: Option<&str>,
    ours: ApiRange,
) -> Result<Option<Jump>, LookError> {
    let Some((program, origin)) = engine_there(host)? else {
        return Ok(None);
    };
    let lead = match origin {
        Origin::Docker => "docker-ce",
        Origin::Distribution => "docker.io",
        Origin::Other => return Err(LookError::NotPackaged),
    };
    let codename = codename(host)?;
    let Some(installed) = installed(host, lead)? else {
        return Err(LookError::NotPackaged);
    };
    let offered = offers(host, lead)?;
    let chosen = choose(&offered, version, &codename).ok_or_else(|| LookError::NoSuchVersion {
        package: lead.to_owned(),
        version: version.unwrap_or(&codename).to_owned(),
        offered: offered
            .iter()
            .map(|offer| offer.version.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    });
    let chosen = match (chosen, version) {
        (Ok(offer), _) => offer.version.clone(),
        // Nobody asked for a certain one, and nothing is offered: what is there stays.
        (Err(_), None) => installed.clone(),
        (Err(error), Some(_)) => return Err(error),
    };
    let newer = |a: &str, b: &str| newer(host, a, b);
    if version.is_some() && newer(&installed, &chosen)? {
        return Err(LookError::Older {
            version: chosen,
            installed,
        });
    }
    let to = if newer(&chosen, &installed)? {
        chosen
    } else {
        installed.clone()
    };
    let mut packages = Vec::new();
    if to != installed {
        packages.push(change(lead, Some(&installed), &to));
    }
    for name in PACKAGES.iter().copied().filter(|name| *name != lead) {
        let there = self::installed(host, name)?;
        let offered = offers(host, name)?;
        // Debian moved the client into a package of its own; without it nobody could speak to the new engine.
        let wanted = there.is_some() || (name == "docker-cli" && lead == "docker.io" && to != installed);
        let coming = if TOGETHER.contains(&name) {
            offered.iter().find(|offer| offer.version == to)
        } else {
            choose(&offered, None, &codename)
        };
        if let Some(offer) = coming.filter(|_| wanted)
            && match &there {
                Some(there) => newer(&offer.version, there)?,
                None => true,
            }
        {
            packages.push(change(name, there.as_deref(), &offer.version));
        }
    }
    let (info, running) = engine(host)?;
    // What was installed and not restarted yet, by whoever was cut off.
    if packages.is_empty() && program == info.server_version {
        return Ok(None);
    }
    let seen = seen(host, &info, &running)?;
    let (from_major, to_major) = (
        major(&info.server_version).unwrap_or_default(),
        major(upstream(&to)).unwrap_or_default(),
    );
    Ok(Some(Jump {
        major: from_major != to_major,
        objections: check::objections(&seen, from_major, to_major, ours),
        notes: check::notes(&seen, from_major, to_major),
        running: running.iter().map(Running::name).collect(),
        from: info.server_version,
        to,
        packages,
    }))
}

/// Which engine is installed: the version its program has, and who packaged it.
fn engine_there(host: &dyn Host) -> Result<Option<(String, Origin)>, LookError> {
    let found = crate::facts::engine(host).map_err(|error| LookError::Answer {
        what: "itself",
        why: error.to_string(),
    })?;
    Ok(match found {
        Engine::Installed { version, origin, .. } => Some((version, origin)),
        Engine::Absent => None,
        Engine::Snap => Some((String::new(), Origin::Other)),
    })
}

fn change(name: &str, from: Option<&str>, to: &str) -> Package {
    Package {
        name: name.to_owned(),
        from: from.map(str::to_owned),
        to: to.to_owned(),
        security: false,
    }
}

/// `26.1.5+dfsg1` of `5:26.1.5+dfsg1-9`: what the program calls itself.
fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    version.rsplit_once('-').map_or(version, |(rest, _)| rest)
}

/// The newest that begins with `wanted`, wherever it comes from; else the newest of this release of the distribution.
fn choose<'a>(offered: &'a [Offer], wanted: Option<&str>, codename: &str) -> Option<&'a Offer> {
    offered.iter().find(|offer| match wanted {
        Some(wanted) => {
            let whole = upstream(&offer.version);
            offer.version == wanted
                || whole
                    .strip_prefix(wanted)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '+', '~', '-']))
        }
        None => {
            let rest = offer.suite.strip_prefix(codename);
            rest.is_some_and(|rest| matches!(rest, "" | "-updates" | "-security"))
        }
    })
}

fn codename(host: &dyn Host) -> Result<String, LookError> {
    let text = host
        .read(Path::new("/etc/os-release"))
        .map_err(ask("which distribution this is"))?
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .map(|value| value.trim_matches('"').to_owned())
    };
    Ok(line("VERSION_CODENAME=").unwrap_or_default())
}

fn installed(host: &dyn Host, package: &str) -> Result<Option<String>, LookError> {
    let argv = [
        "dpkg-query",
        "--show",
        "--showformat=${db:Status-Status} ${Version}",
        package,
    ];
    let output = host
        .run(&Command::new(argv))
        .map_err(ask("which packages are installed"))?;
    Ok(output
        .stdout
        .strip_prefix("installed ")
        .map(|version| version.trim().to_owned()))
}

fn offers(host: &dyn Host, package: &str) -> Result<Vec<Offer>, LookError> {
    let output = host
        .run(&Command::new(["apt-cache", "madison", package]))
        .map_err(ask("which versions apt offers"))?;
    Ok(apt::offers(&output.stdout))
}

fn newer(host: &dyn Host, a: &str, b: &str) -> Result<bool, LookError> {
    host.run(&Command::new(["dpkg", "--compare-versions", a, "gt", b]))
        .map(|output| output.ok())
        .map_err(ask("which version is newer"))
}

fn engine(host: &dyn Host) -> Result<(Info, Vec<Running>), LookError> {
    let told = |what: &'static str, error: &serde_json::Error| LookError::Answer {
        what,
        why: error.to_string(),
    };
    let text = must(host, &Command::new(["docker", "info", "--format={{json .}}"]))
        .map_err(ask("Docker; it has to run before it can be replaced"))?;
    let info = serde_json::from_str(&text).map_err(|error| told("itself", &error))?;
    Ok((info, running(host)?))
}

fn running(host: &dyn Host) -> Result<Vec<Running>, LookError> {
    let asked = ask("Docker's containers");
    let ids = must(host, &Command::new(["docker", "ps", "--quiet", "--no-trunc"])).map_err(&asked)?;
    if ids.trim().is_empty() {
        return Ok(Vec::new());
    }
    let argv = ["docker", "inspect", "--type=container"];
    // One that ended since is left out, with an exit code that says so.
    let output = host
        .run(&Command::new(argv.into_iter().chain(ids.lines())))
        .map_err(&asked)?;
    serde_json::from_str(&output.stdout).map_err(|error| LookError::Answer {
        what: "its containers",
        why: error.to_string(),
    })
}

fn seen(host: &dyn Host, info: &Info, running: &[Running]) -> Result<Seen, LookError> {
    let argv = [
        "df",
        "--output=avail",
        "--block-size=1",
        "/usr",
        "/var/cache/apt",
        info.docker_root_dir.as_str(),
    ];
    let free = must(host, &Command::new(argv)).map_err(ask("how full the disk is"))?;
    let audit = must(host, &Command::new(["dpkg", "--audit"])).map_err(ask("whether dpkg is at rest"))?;
    let speaks = |container: &&Running| {
        let sockets = ["/var/run/docker.sock", "/run/docker.sock"];
        container
            .mounts
            .iter()
            .any(|mount| sockets.contains(&mount.source.as_str()))
    };
    Ok(Seen {
        live_restore: info.live_restore_enabled,
        driver: info.driver.clone(),
        swarm: info.swarm.local_node_state == "active",
        free: free
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .min()
            .unwrap_or(0),
        half_done: !audit.trim().is_empty(),
        clients: running.iter().filter(speaks).map(Running::name).collect(),
    })
}

/// Makes the jump; `told` hears of each step.
///
/// # Errors
/// [`JumpError`], which says whether anything changed.
pub fn jump(host: &dyn Host, jump: &Jump, told: &mut dyn FnMut(&str)) -> Result<Landed, JumpError> {
    let before = |what| move |source| JumpError::Before { what, source };
    let forth: Vec<String> = versions(&jump.packages, |package| Some(&package.to));
    let back: Vec<String> = versions(&jump.packages, |package| package.from.as_ref());
    let mut way_back = true;
    if !forth.is_empty() {
        told(&format!("fetching Docker {}", jump.to));
        fetch(host, &forth, &[]).map_err(before("the new packages cannot be fetched"))?;
        if let Err(error) = fetch(host, &back, &["--reinstall"]) {
            told(&format!(
                "the packages of {} are not to be had any more, so there is no way back by itself: {error}",
                jump.from
            ));
            way_back = false;
        }
        told("asking the new daemon about this host's settings");
        settings(host, jump)?;
    }
    let ran = running(host).map_err(JumpError::Look)?;
    if !forth.is_empty() {
        told("installing");
        if let Err(error) = apt::install(host, "docker", &[], &texts(&forth)) {
            return Err(give_up(host, jump, &back, way_back, error.to_string()));
        }
    }
    told("restarting the daemon; containers run on");
    let restarted = must(
        host,
        &Command::new(["systemctl", "restart", "docker.service"]).timeout(Duration::from_secs(180)),
    );
    let version = match restarted
        .map_err(|error| error.to_string())
        .and_then(|_| answers(host))
    {
        Ok(version) => version,
        Err(why) => return Err(give_up(host, jump, &back, way_back, why)),
    };
    let runs = running(host).unwrap_or_default();
    let (kept, lost): (Vec<_>, Vec<_>) = ran.iter().partition(|container| {
        runs.iter()
            .any(|now| now.id == container.id && now.state == container.state)
    });
    let names = |list: Vec<&Running>| list.into_iter().map(Running::name).collect();
    Ok(Landed {
        version,
        kept: names(kept),
        lost: names(lost),
    })
}

fn versions(packages: &[Package], which: impl Fn(&Package) -> Option<&String>) -> Vec<String> {
    packages
        .iter()
        .filter_map(|package| Some(format!("{}={}", package.name, which(package)?)))
        .collect()
}

fn texts(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

fn fetch(host: &dyn Host, packages: &[String], options: &[&str]) -> Result<(), HostError> {
    let argv: Vec<&str> = [
        "apt-get",
        "install",
        "--download-only",
        "--yes",
        "--quiet=2",
        "--no-install-recommends",
        "--allow-downgrades",
        "--option=Acquire::Retries=3",
    ]
    .into_iter()
    .chain(options.iter().copied())
    .chain(packages.iter().map(String::as_str))
    .collect();
    apt::patiently(host, &apt::quietly(&argv)).map(drop)
}

/// Unpacks the new daemon beside the old one, and has it read this host's settings.
fn settings(host: &dyn Host, jump: &Jump) -> Result<(), JumpError> {
    const PLACE: &str = "/var/lib/appliance/docker-next";
    let cannot = |source| JumpError::Before {
        what: "the new daemon cannot be tried",
        source,
    };
    let present = host.read(Path::new(DAEMON_JSON)).map_err(cannot)?;
    // `dockerd --validate` came with 23.
    let lead = jump
        .packages
        .iter()
        .find(|package| matches!(package.name.as_str(), "docker.io" | "docker-ce"));
    let Some(lead) = lead.filter(|lead| major(upstream(&lead.to)) >= Some(23) && present.is_some()) else {
        return Ok(());
    };
    let architecture = must(host, &Command::new(["dpkg", "--print-architecture"])).map_err(cannot)?;
    // apt writes a colon in a file's name as %3a.
    let file = format!(
        "/var/cache/apt/archives/{}_{}_{}.deb",
        lead.name,
        lead.to.replace(':', "%3a"),
        architecture.trim()
    );
    let clean = || host.run(&Command::new(["rm", "-rf", PLACE])).map(drop);
    clean().map_err(cannot)?;
    must(
        host,
        &Command::new(["dpkg-deb", "--extract", &file, PLACE]).timeout(Duration::from_secs(120)),
    )
    .map_err(cannot)?;
    let daemon = ["/usr/bin/dockerd", "/usr/sbin/dockerd"]
        .iter()
        .map(|path| format!("{PLACE}{path}"))
        .find(|path| matches!(host.entry(Path::new(path)), Ok(Some(_))));
    let tried = daemon.map(|daemon| {
        host.run(&Command::new([
            daemon.as_str(),
            "--validate",
            "--config-file",
            DAEMON_JSON,
        ]))
    });
    clean().map_err(cannot)?;
    match tried.transpose().map_err(cannot)? {
        Some(output) if !output.ok() => Err(JumpError::Settings {
            to: jump.to.clone(),
            why: output.stderr.trim().to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Waits for the daemon; its version.
fn answers(host: &dyn Host) -> Result<String, String> {
    let ask = Command::new(["docker", "version", "--format={{.Server.Version}}"]);
    let mut why = String::new();
    for _ in 0..PATIENCE {
        match host.run(&ask) {
            Ok(output) if output.ok() => return Ok(output.stdout.trim().to_owned()),
            Ok(output) => why = output.stderr.trim().to_owned(),
            Err(error) => why = error.to_string(),
        }
        host.pause(Duration::from_secs(1));
    }
    Err(why)
}

/// Back to the packages from before.
fn give_up(host: &dyn Host, jump: &Jump, back: &[String], way_back: bool, why: String) -> JumpError {
    let to = jump.to.clone();
    if !way_back || back.is_empty() {
        let source = HostError::Failed {
            command: "apt-get install".to_owned(),
            status: 100,
            complaint: "there are no packages to go back to".to_owned(),
        };
        return JumpError::Stuck { to, why, source };
    }
    // What came along goes: Debian's older engine brings a client of its own, and the two are in each other's way.
    let gone = jump
        .packages
        .iter()
        .filter(|package| package.from.is_none())
        .map(|package| format!("{}-", package.name));
    let named: Vec<String> = back.iter().cloned().chain(gone).collect();
    let returned = apt::install(host, "docker", &["--allow-downgrades"], &texts(&named)).and_then(|()| {
        // What failed too often waits otherwise.
        host.run(&Command::new(["systemctl", "reset-failed", "docker.service"]))?;
        must(
            host,
            &Command::new(["systemctl", "restart", "docker.service"]).timeout(Duration::from_secs(180)),
        )
    });
    match returned {
        Ok(_) => JumpError::Back {
            from: jump.from.clone(),
            to,
            why,
        },
        Err(source) => JumpError::Stuck { to, why, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(version: &str, suite: &str) -> Offer {
        Offer {
            version: version.to_owned(),
            suite: suite.to_owned(),
        }
    }

    #[test]
    fn a_version_is_named_by_its_beginning_and_else_the_release_decides() {
        let offered = [
            offer("5:29.1.0-1~debian.12~bookworm", "bookworm"),
            offer("26.1.5+dfsg1-9", "trixie"),
            offer("20.10.24+dfsg1-1+deb12u1", "bookworm-security"),
            offer("2.0", "bookworm-backports"),
        ];
        let chosen =
            |wanted: Option<&str>| choose(&offered, wanted, "bookworm").map(|offer| offer.version.as_str());
        assert_eq!(chosen(None), Some("5:29.1.0-1~debian.12~bookworm"));
        assert_eq!(chosen(Some("26.1")), Some("26.1.5+dfsg1-9"));
        assert_eq!(chosen(Some("26.1.5+dfsg1-9")), Some("26.1.5+dfsg1-9"));
        assert_eq!(chosen(Some("29")), Some("5:29.1.0-1~debian.12~bookworm"));
        assert_eq!(chosen(Some("2")), Some("2.0"), "not 29, nor 26, nor 20");
        assert_eq!(chosen(Some("28")), None);
        let later = &offered[2..];
        assert_eq!(
            choose(later, None, "bookworm").map(|offer| offer.suite.as_str()),
            Some("bookworm-security")
        );
    }

    #[test]
    fn a_package_and_its_program_name_the_same_version() {
        assert_eq!(upstream("5:28.0.1-1~debian.12~bookworm"), "28.0.1");
        assert_eq!(upstream("20.10.24+dfsg1-1+deb12u1+b6"), "20.10.24+dfsg1");
        assert_eq!(upstream("28.0.1"), "28.0.1");
    }
}
