//! What a rollout asks for, and what it is told.

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::plan::{Deployment, Gate, Instance, Timing};

/// The number of an order, unique within a rollout; an answer to a number that is no longer open is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticket(pub u64);

/// Something to be carried out now. Orders that are open together may be carried out together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// To be named in the answer.
    pub ticket: Ticket,
    /// What to do.
    pub effect: Effect,
}

/// One thing to do. Each has to be safe to do again: after a crash it is ordered again whether it had happened or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Look once more at what was accepted: that the release has its roles, that the stored image is whole, and that the disk has room for it.
    Verify,
    /// Have this image in the engine.
    Pull {
        /// By digest.
        image: String,
    },
    /// Decrypt the secrets of the release into memory. `Create` after a restart has to do the same for itself.
    UnsealSecrets,
    /// Have a certificate for every host of the release, before the first visitor comes.
    Certify,
    /// Give the old and the new container of this role the union of their assets.
    BridgeAssets {
        /// The role.
        role: String,
    },
    /// Run the release command in a container whose name is made of the rollout's number.
    ///
    /// If that container exists, wait for its end instead of running it again; leave it there until `Prune`.
    RunReleaseCommand,
    /// Create the container, unless it exists; move a container that has its name out of the way.
    Create {
        /// Which.
        instance: Instance,
    },
    /// Start the container, unless it runs. One that somebody removed by hand is made again.
    Start {
        /// Which.
        instance: Instance,
    },
    /// Wait until it is ready: the proxy's probe for proxied roles, else Docker's health check, else running and stable.
    AwaitReady {
        /// Which.
        instance: Instance,
        /// Not ready by then is a failure.
        until: Timestamp,
    },
    /// Let the proxy send a part of the visitors to these new containers and the rest to the old ones.
    Canary {
        /// The new containers, each beside the old one of its role.
        to: Vec<Instance>,
    },
    /// Point the proxy at the new containers, all routes in one change.
    Switch {
        /// The routes, one for each role that the proxy serves before or after.
        routes: Vec<Route>,
    },
    /// Point the route of this container's role at its present address, if the container has one.
    Follow {
        /// Which.
        instance: Instance,
    },
    /// Wait until no request is left in a container that gets no new ones.
    Drain {
        /// Which.
        instance: Instance,
        /// What is left then is cut off.
        until: Timestamp,
    },
    /// Stop the container, but keep it.
    Stop {
        /// Which.
        instance: Instance,
    },
    /// Watch error rate, latency and crash loops of the new deployment against the old one's.
    Watch {
        /// Good until then is good.
        until: Timestamp,
    },
    /// Point the proxy back at the old containers, all routes in one change.
    SwitchBack {
        /// The routes; without a target for a role that had none before.
        routes: Vec<Route>,
    },
    /// Stop and remove a container of the new deployment, after its last lines have been kept.
    Remove {
        /// Which.
        instance: Instance,
    },
    /// Write down that this deployment is the current one, and the one before it.
    Record {
        /// The deployment.
        current: Deployment,
    },
    /// Remove what is not needed any more: old containers, images, old assets, and the release command's container unless it still runs.
    Prune,
}

impl Effect {
    /// Whether it changes nothing, so that the driver can simply stop waiting for it.
    pub fn only_waits(&self) -> bool {
        matches!(
            self,
            Effect::Verify
                | Effect::Pull { .. }
                | Effect::UnsealSecrets
                | Effect::Certify
                | Effect::AwaitReady { .. }
                | Effect::Drain { .. }
                | Effect::Watch { .. }
        )
    }

    /// How long the driver waits for this effect before it reports a failure, so that a hanging daemon cannot hold a rollout for ever.
    ///
    /// Effects with a moment of their own (`until`) get a margin after it.
    pub fn patience(&self, now: Timestamp, timing: &Timing) -> SignedDuration {
        let margin = SignedDuration::from_secs(30);
        match self {
            Effect::Pull { .. } | Effect::Prune => SignedDuration::from_secs(1800),
            Effect::BridgeAssets { .. } | Effect::Certify => SignedDuration::from_secs(600),
            Effect::RunReleaseCommand => timing.command + margin,
            Effect::AwaitReady { until, .. } | Effect::Drain { until, .. } | Effect::Watch { until } => {
                now.duration_until(*until).max(SignedDuration::ZERO) + margin
            }
            Effect::Stop { .. } | Effect::Remove { .. } => timing.drain + SignedDuration::from_secs(120),
            Effect::Verify
            | Effect::UnsealSecrets
            | Effect::Create { .. }
            | Effect::Start { .. }
            | Effect::Canary { .. }
            | Effect::Follow { .. }
            | Effect::Switch { .. }
            | Effect::SwitchBack { .. }
            | Effect::Record { .. } => SignedDuration::from_secs(120),
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::Verify => write!(f, "check the release"),
            Effect::Pull { image } => write!(f, "fetch the image {image}"),
            Effect::UnsealSecrets => write!(f, "unseal the secrets"),
            Effect::Certify => write!(f, "have the certificates"),
            Effect::BridgeAssets { role } => write!(f, "bridge the assets of {role}"),
            Effect::RunReleaseCommand => write!(f, "run the release command"),
            Effect::Create { instance } => write!(f, "create {instance}"),
            Effect::Start { instance } => write!(f, "start {instance}"),
            Effect::AwaitReady { instance, .. } => write!(f, "wait until {instance} is ready"),
            Effect::Canary { .. } => write!(f, "send a part of the visitors to the new release"),
            Effect::Switch { .. } => write!(f, "switch the traffic"),
            Effect::Follow { instance } => write!(f, "follow {instance} to its address"),
            Effect::Drain { instance, .. } => write!(f, "drain {instance}"),
            Effect::Stop { instance } => write!(f, "stop {instance}"),
            Effect::Watch { .. } => write!(f, "watch the new release"),
            Effect::SwitchBack { .. } => write!(f, "switch the traffic back"),
            Effect::Remove { instance } => write!(f, "remove {instance}"),
            Effect::Record { current } => write!(f, "record {} as current", current.release),
            Effect::Prune => write!(f, "prune"),
        }
    }
}

/// Where the proxy shall send the requests for a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The role.
    pub role: String,
    /// The container; `None`: take the route away.
    pub to: Option<Instance>,
}

/// What the driver tells a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// An order was carried out.
    Done {
        /// Which.
        ticket: Ticket,
    },
    /// An order failed.
    Failed {
        /// Which.
        ticket: Ticket,
        /// For a person: what and why, with the container's last lines where there are any.
        why: String,
    },
    /// A container of the new deployment ended though nobody asked it to.
    Died {
        /// Which.
        instance: Instance,
        /// For a person.
        why: String,
    },
    /// A person, or another host of the group, wants it undone. Ignored once settled.
    Cancel {
        /// For a person.
        why: String,
    },
    /// Leave to pass a gate.
    Pass {
        /// Which.
        gate: Gate,
    },
    /// Nobody leads the group any more. Before the switch that is a reason to revert; after it the host settles by itself.
    Alone,
    /// Somebody leads the promotion of a canary on several hosts: it waits for leave before the switch, and before it
    /// settles. Ignored anywhere else.
    Led,
    /// A container was started, so its address may be another one than before.
    Moved {
        /// Which.
        instance: Instance,
    },
    /// The moment given by [`crate::Rollout::wakeup`] has come.
    Tick,
}

/// What the driver sees after a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The containers of both deployments; one that is missing here does not exist.
    pub containers: BTreeMap<Instance, Seen>,
}

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// Made, never started.
    Created,
    /// Running, or about to be started again by Docker.
    Running,
    /// Ended.
    Stopped,
}
