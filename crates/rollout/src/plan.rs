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
    /// Where it comes from, if not from the deployment's own release and rollout:
    /// a role that was left alone while others of its app were rolled out (Kamal's `-r`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Origin>,
}

/// Which container plays a role, and what it was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The release that the role was taken from.
    pub release: ReleaseNumber,
    /// The rollout that made the container.
    pub rollout: RolloutNumber,
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
        let found = self.roles.iter().find(|found| found.name == role)?;
        Some(self.of(found))
    }

    /// Where a role of this deployment comes from.
    pub fn origin(&self, role: &Role) -> Origin {
        role.from.unwrap_or(Origin {
            release: self.release,
            rollout: self.rollout,
        })
    }

    /// The release that a role was taken from, if there is such a role.
    pub fn release_of(&self, role: &str) -> Option<ReleaseNumber> {
        let found = self.roles.iter().find(|found| found.name == role)?;
        Some(self.origin(found).release)
    }

    /// Every release that it takes a role from, its own first.
    pub fn releases(&self) -> impl Iterator<Item = ReleaseNumber> + '_ {
        let others = self.roles.iter().filter_map(|role| role.from);
        std::iter::once(self.release).chain(others.map(|from| from.release))
    }

    /// Every instance, primary first.
    pub fn instances(&self) -> impl Iterator<Item = Instance> + '_ {
        self.roles.iter().map(|role| self.of(role))
    }

    /// The instances behind the proxy.
    pub fn proxied(&self) -> impl Iterator<Item = Instance> + '_ {
        self.roles
            .iter()
            .filter(|role| role.proxied)
            .map(|role| self.of(role))
    }

    /// The instances that the proxy knows nothing of.
    pub fn workers(&self) -> impl Iterator<Item = Instance> + '_ {
        self.roles
            .iter()
            .filter(|role| !role.proxied)
            .map(|role| self.of(role))
    }

    fn of(&self, role: &Role) -> Instance {
        Instance {
            role: role.name.clone(),
            rollout: self.origin(role).rollout,
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
    /// After `healthy`, before the switch; once more before a led promotion's switch.
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

/// Everything a rollout has to know. Immutable, but for the gates that close when a promotion is led.
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
    /// A role is to be left as it is, but there is none.
    #[error("there is no container for {0}, which was to be left as it is")]
    NotThere(Instance),
    /// A canary needs something beside it that gets the other visitors.
    #[error("a canary of {0} needs a role behind the proxy that serves already")]
    CanaryAlone(ReleaseNumber),
}

impl Plan {
    /// Whether the parts fit together.
    pub fn check(&self) -> Result<(), PlanError> {
        if let Some(old) = &self.old
            && old.rollout == self.new.rollout
        {
            return Err(PlanError::SameRollout(old.rollout));
        }
        if self.fresh().is_empty() {
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
            let instance = self.new.of(role);
            if instance.rollout != self.new.rollout && !self.stays(&instance) {
                return Err(PlanError::NotThere(instance));
            }
        }
        if self.canary.is_some() && self.shared().next().is_none() {
            return Err(PlanError::CanaryAlone(self.new.release));
        }
        Ok(())
    }

    /// Whether the container plays its role before and after: this rollout leaves it alone.
    pub fn stays(&self, instance: &Instance) -> bool {
        let old = self.old.as_ref();
        old.and_then(|old| old.instance(&instance.role)).as_ref() == Some(instance)
            && self.new.instance(&instance.role).as_ref() == Some(instance)
    }

    /// The roles that get a new container, the primary one first.
    pub fn fresh(&self) -> Vec<&Role> {
        let roles = self.new.roles.iter();
        roles.filter(|role| !self.stays(&self.new.of(role))).collect()
    }

    /// The containers to be made, the primary role's first.
    pub fn created(&self) -> impl Iterator<Item = Instance> + '_ {
        self.new.instances().filter(|instance| !self.stays(instance))
    }

    /// The containers of the old deployment that are not part of the new one.
    pub fn retired(&self) -> impl Iterator<Item = Instance> + '_ {
        let old = self.old.iter().flat_map(Deployment::instances);
        old.filter(|instance| !self.stays(instance))
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
            .filter(move |instance| served.contains(&instance.role) && !self.stays(instance))
    }
}
