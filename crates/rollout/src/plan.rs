//! What a rollout is about: the deployment that serves and the one that shall.

use std::collections::BTreeSet;
use std::fmt;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

/// A release of an app: immutable, numbered from 1, shown as `v42`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReleaseNumber(pub u64);

impl fmt::Display for ReleaseNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// One attempt to make a release serve, numbered from 1 per app. The same release may be rolled out several times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RolloutNumber(pub u64);

impl fmt::Display for RolloutNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A role of a deployment; one container each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// The role's name.
    pub name: String,
    /// Whether the proxy sends it requests.
    pub proxied: bool,
    /// The image to fetch, by digest.
    pub image: String,
    /// Whether it serves files that the old and the new deployment must both have (`asset_path`).
    pub assets: bool,
}

/// One run of a release on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// What runs.
    pub release: ReleaseNumber,
    /// The rollout that started it, which tells two runs of one release apart.
    pub rollout: RolloutNumber,
    /// Its roles on this host, the primary one first.
    pub roles: Vec<Role>,
}

impl Deployment {
    /// The instance of a role, if there is such a role.
    pub fn instance(&self, role: &str) -> Option<Instance> {
        self.roles.iter().any(|r| r.name == role).then(|| self.of(role))
    }

    /// Every instance, primary first.
    pub fn instances(&self) -> impl Iterator<Item = Instance> + '_ {
        self.roles.iter().map(|role| self.of(&role.name))
    }

    /// The instances behind the proxy.
    pub fn proxied(&self) -> impl Iterator<Item = Instance> + '_ {
        self.roles
            .iter()
            .filter(|role| role.proxied)
            .map(|role| self.of(&role.name))
    }

    /// The instances that the proxy knows nothing of.
    pub fn workers(&self) -> impl Iterator<Item = Instance> + '_ {
        self.roles
            .iter()
            .filter(|role| !role.proxied)
            .map(|role| self.of(&role.name))
    }

    fn of(&self, role: &str) -> Instance {
        Instance {
            role: role.to_owned(),
            rollout: self.rollout,
        }
    }
}

/// One container: a role of one rollout. The driver puts both on the container as labels and finds it by them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Instance {
    /// The role.
    pub role: String,
    /// The rollout that made it.
    pub rollout: RolloutNumber,
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of rollout {}", self.role, self.rollout)
    }
}

/// How long each part may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// From start to ready, for each container (Kamal's `deploy_timeout`).
    pub ready: SignedDuration,
    /// For requests still in the old container after the switch (Kamal's `drain_timeout`).
    pub drain: SignedDuration,
    /// How long the new deployment is watched after the switch; not at all if zero.
    pub watch: SignedDuration,
    /// For the release command.
    pub command: SignedDuration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            ready: SignedDuration::from_secs(30),
            drain: SignedDuration::from_secs(30),
            watch: SignedDuration::from_secs(30),
            command: SignedDuration::from_secs(600),
        }
    }
}

/// A point at which a rollout waits for leave to go on: when several hosts go together, or for a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// After everything is prepared, before the release command and the first container.
    Start,
    /// After `healthy`, before the switch.
    Switch,
    /// While a part of the visitors gets the new deployment; closed exactly if the plan has a [`Canary`].
    Promote,
    /// After the watch window, before the old deployment is stopped for good.
    Settle,
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gate::Start => "start",
            Gate::Switch => "switch",
            Gate::Promote => "promote",
            Gate::Settle => "settle",
        })
    }
}

/// A part of the visitors gets the new deployment first. Which part is the proxy's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// How long a good canary lasts until it is promoted by itself; `None`: until somebody says so.
    pub hold: Option<SignedDuration>,
}

/// Everything a rollout has to know. Immutable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The app and destination, for messages.
    pub app: String,
    /// What serves now; `None` at the first deploy.
    pub old: Option<Deployment>,
    /// What shall serve.
    pub new: Deployment,
    /// Whether a command has to run once, with the new image, before any new container starts.
    pub release_command: bool,
    /// Time limits.
    pub timing: Timing,
    /// Where to wait for leave of whoever leads several hosts; [`Gate::Promote`] need not be among them.
    pub gates: BTreeSet<Gate>,
    /// Whether a part of the visitors goes first.
    #[serde(default)]
    pub canary: Option<Canary>,
    /// Whether roles after the primary one start together (Kamal's `boot.parallel_roles`), not one after the other.
    #[serde(default)]
    pub parallel_roles: bool,
}

/// Why a plan cannot be rolled out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is nothing to start.
    #[error("release {0} has no role on this host")]
    NoRoles(ReleaseNumber),
    /// Two roles of one name.
    #[error("release {release} names the role {role} twice")]
    RoleTwice {
        /// The release.
        release: ReleaseNumber,
        /// The role.
        role: String,
    },
    /// The new deployment carries the number of the old one.
    #[error("rollout {0} is the one that serves already")]
    SameRollout(RolloutNumber),
    /// A canary needs something beside it that gets the other visitors.
    #[error("a canary of {0} needs a role behind the proxy that serves already")]
    CanaryAlone(ReleaseNumber),
}

impl Plan {
    /// Whether the parts fit together.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.new.roles.is_empty() {
            return Err(PlanError::NoRoles(self.new.release));
        }
        let mut seen = BTreeSet::new();
        for role in &self.new.roles {
            if !seen.insert(&role.name) {
                return Err(PlanError::RoleTwice {
                    release: self.new.release,
                    role: role.name.clone(),
                });
            }
        }
        if self.canary.is_some() && self.shared().next().is_none() {
            return Err(PlanError::CanaryAlone(self.new.release));
        }
        match &self.old {
            Some(old) if old.rollout == self.new.rollout => Err(PlanError::SameRollout(old.rollout)),
            _ => Ok(()),
        }
    }

    /// The new instances behind the proxy whose role the old deployment has behind the proxy too.
    pub fn shared(&self) -> impl Iterator<Item = Instance> + '_ {
        let served: BTreeSet<String> = self
            .old
            .iter()
            .flat_map(Deployment::proxied)
            .map(|instance| instance.role)
            .collect();
        self.new
            .proxied()
            .filter(move |instance| served.contains(&instance.role))
    }
}
