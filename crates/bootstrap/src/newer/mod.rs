//! Newer packages on a host that serves: the distribution's at once, Docker as a decision of its own.
//!
//! ```text
//!  look() ─► Plan { packages, docker: Jump { objections } }      shown, nothing touched
//!                │                │
//!  install() ◄───┘                └──► jump(): fetch new and old ─► does the new daemon take daemon.json?
//!                                        ─► install ─► restart ─► the same containers run on?
//!                                                                    │ no daemon
//!                                                                    └─► install the old, restart
//! ```
//!
//! Docker is left out of unattended upgrades, because its upgrade restarts the daemon (see the item `updates`).

mod apt;
mod check;
mod docker;

use serde::Serialize;

use crate::host::{Command, Host, HostError, must};

pub use apt::Package;
pub use check::{ApiRange, Objection};
pub use docker::{JumpError, Landed, jump};

/// What somebody wants to be brought up to date.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Everything but Docker.
    pub packages: bool,
    /// Docker.
    pub docker: bool,
    /// A version of Docker, or its beginning (`26.1`); the newest of this release of the distribution if absent.
    pub version: Option<String>,
}

/// What would be done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Everything but Docker.
    pub packages: Vec<Package>,
    /// Another Docker Engine.
    pub docker: Option<Jump>,
}

/// From one Docker Engine to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Jump {
    /// The version that runs now.
    pub from: String,
    /// The package version that comes.
    pub to: String,
    /// Whether the two are of different majors.
    pub major: bool,
    /// All packages that change; none if only the daemon has still to be restarted.
    pub packages: Vec<Package>,
    /// Containers that run now, by name.
    pub running: Vec<String>,
    /// Why it may not be done now.
    pub objections: Vec<Objection>,
    /// What else to know.
    pub notes: Vec<String>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// A question to the host failed.
    #[error("cannot see {what}")]
    Ask {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: HostError,
    },
    /// Docker says something that nobody expects of it.
    #[error("Docker's answer about {what} is not understood: {why}")]
    Answer {
        /// What was asked for.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Docker does not come from packages.
    #[error("this Docker Engine did not come from a package, so no package can replace it")]
    NotPackaged,
    /// No package offers the version.
    #[error("apt offers no {package} {version}; it has {}", if offered.is_empty() { "none" } else { offered })]
    NoSuchVersion {
        /// The package.
        package: String,
        /// What was asked for.
        version: String,
        /// What there is.
        offered: String,
    },
    /// An older one.
    #[error(
        "{version} is older than {installed}, and Docker does not promise to read its newer self's files"
    )]
    Older {
        /// What was asked for.
        version: String,
        /// What is installed.
        installed: String,
    },
}

fn ask(what: &'static str) -> impl Fn(HostError) -> LookError {
    move |source| LookError::Ask { what, source }
}

/// What there is to do for `wish`; `ours` is the range of Docker's API that our own agent speaks.
///
/// apt's lists are fetched anew first; without a network the old ones are looked at, and `told` says so.
///
/// # Errors
/// [`LookError`]; nothing was changed.
pub fn look(
    host: &dyn Host,
    wish: &Wish,
    ours: ApiRange,
    told: &mut dyn FnMut(&str),
) -> Result<Plan, LookError> {
    let lists = apt::quietly(&["apt-get", "update", "--quiet=2", "--option=Acquire::Retries=2"]);
    if let Err(error) = apt::patiently(host, &lists) {
        told(&format!(
            "apt's lists could not be fetched, the former ones are looked at: {error}"
        ));
    }
    let mut plan = Plan::default();
    if wish.packages {
        let simulation = must(
            host,
            &Command::new(["apt-get", "--simulate", "--with-new-pkgs", "upgrade"]),
        )
        .map_err(ask("which packages are newer"))?;
        plan.packages = apt::simulated(&simulation)
            .into_iter()
            .filter(|package| !docker::PACKAGES.contains(&package.name.as_str()))
            .collect();
    }
    if wish.docker {
        plan.docker = docker::look(host, wish.version.as_deref(), ours)?;
    }
    Ok(plan)
}

/// Installs them; services that use them are restarted as the item `needrestart` has it.
///
/// # Errors
/// When apt fails; running it again goes on where it stopped.
pub fn install(host: &dyn Host, packages: &[Package]) -> Result<(), HostError> {
    // Naming a package makes apt think that somebody wanted it.
    let automatic = must(host, &Command::new(["apt-mark", "showauto"]))?;
    let upgraded: Vec<&str> = packages
        .iter()
        .filter(|package| package.from.is_some())
        .map(|package| package.name.as_str())
        .collect();
    if upgraded.is_empty() {
        return Ok(());
    }
    let installed = apt::install(host, "packages", &["--only-upgrade"], &upgraded);
    let marked: Vec<&str> = upgraded
        .iter()
        .copied()
        .filter(|name| automatic.lines().any(|line| line == *name))
        .collect();
    if !marked.is_empty() {
        must(
            host,
            &Command::new(["apt-mark", "auto"].into_iter().chain(marked.iter().copied())),
        )?;
    }
    installed
}
