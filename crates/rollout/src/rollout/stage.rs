//! The stretches between two states, each with the effects that cover it.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Failure, Phase};
use crate::effect::{Effect, Route};
use crate::plan::{Deployment, Gate, Instance, Plan, Role};

/// What is being worked on. A stage is left when none of its effects is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    Verify,
    Fetch,
    Bridge,
    StartGate,
    Command,
    Primary,
    Others,
    SwitchGate,
    Canary,
    PromoteGate,
    /// Roles that a canary did not need.
    Rest,
    /// Where the promotion of several hosts is led.
    RestGate,
    Switch,
    Drain,
    Watch,
    SettleGate,
    Record,
    StopOld,
    /// A failure was seen; orders that change something are still being answered.
    Abandon,
    ReviveServing,
    SwitchBack,
    ReviveRest,
    RemoveNew,
    /// The old deployment could not be brought back: the new one keeps the traffic.
    Stay,
    Prune,
    Over,
}

impl Stage {
    /// The states that are reached by entering this stage, in order.
    pub(super) fn reaches(self, plan: &Plan) -> &'static [Phase] {
        match self {
            Stage::Verify => &[Phase::Received],
            Stage::Fetch => &[Phase::Verified],
            Stage::Command if plan.release_command => &[Phase::Prepared, Phase::ReleaseCommand],
            Stage::Command => &[Phase::Prepared],
            Stage::Primary => &[Phase::Starting],
            Stage::SwitchGate => &[Phase::Healthy],
            Stage::PromoteGate if plan.canary.is_some() => &[Phase::Canary],
            Stage::Drain => &[Phase::Switched, Phase::Draining],
            Stage::Watch => &[Phase::Watching],
            Stage::Record => &[Phase::Settled],
            Stage::Abandon => &[Phase::Reverting],
            Stage::Bridge
            | Stage::StartGate
            | Stage::Others
            | Stage::Canary
            | Stage::PromoteGate
            | Stage::Rest
            | Stage::RestGate
            | Stage::Switch
            | Stage::SettleGate
            | Stage::StopOld
            | Stage::ReviveServing
            | Stage::SwitchBack
            | Stage::ReviveRest
            | Stage::RemoveNew
            | Stage::Stay
            | Stage::Prune
            | Stage::Over => &[],
        }
    }

    /// The stage after this one, given whether the rollout is being reverted.
    pub(super) fn next(self, reverting: Option<Reverting>) -> Stage {
        match self {
            Stage::Verify => Stage::Fetch,
            Stage::Fetch => Stage::Bridge,
            Stage::Bridge => Stage::StartGate,
            Stage::StartGate => Stage::Command,
            Stage::Command => Stage::Primary,
            Stage::Primary => Stage::Others,
            Stage::Others => Stage::SwitchGate,
            Stage::SwitchGate => Stage::Canary,
            Stage::Canary => Stage::PromoteGate,
            Stage::PromoteGate => Stage::Rest,
            Stage::Rest => Stage::RestGate,
            Stage::RestGate => Stage::Switch,
            Stage::Switch => Stage::Drain,
            Stage::Drain => Stage::Watch,
            Stage::Watch => Stage::SettleGate,
            Stage::SettleGate => Stage::Record,
            Stage::Record => Stage::StopOld,
            Stage::StopOld => Stage::Prune,
            Stage::Abandon => match reverting {
                Some(Reverting::FromSwitched) => Stage::ReviveServing,
                _ => Stage::RemoveNew,
            },
            // Going back was given up.
            Stage::ReviveServing | Stage::SwitchBack if reverting.is_none() => Stage::Stay,
            Stage::Stay => Stage::Record,
            Stage::ReviveServing => Stage::SwitchBack,
            Stage::SwitchBack => Stage::ReviveRest,
            Stage::ReviveRest => Stage::RemoveNew,
            Stage::RemoveNew => Stage::Prune,
            Stage::Prune | Stage::Over => Stage::Over,
        }
    }

    /// Whether a failure in this stage leads to a revert.
    pub(super) fn can_revert(self) -> bool {
        self < Stage::Record
    }

    /// Whether the routes may differ from the old ones during this stage.
    pub(super) fn may_be_switched(self) -> bool {
        (Stage::Canary..=Stage::SettleGate).contains(&self)
    }

    /// How often a failed effect is tried again before it becomes a warning, or going back is given up; `None`: for ever.
    pub(super) fn attempts(self, new_died: bool) -> Option<u32> {
        match self {
            // Nothing serves now; an old container that does not seem ready is better than none.
            Stage::ReviveServing if new_died => Some(3),
            // About four minutes. Nobody could push a release that mends it meanwhile.
            Stage::ReviveServing => Some(10),
            // About 18 minutes: there is nothing else to serve, but a new push might.
            Stage::SwitchBack if new_died => Some(40),
            Stage::SwitchBack => Some(10),
            // Serving, and knowing what serves, depend on these.
            Stage::Record | Stage::Stay => None,
            // About 18 minutes: longer than an upgrade of Docker takes.
            Stage::StopOld | Stage::ReviveRest | Stage::RemoveNew => Some(40),
            _ => Some(0),
        }
    }

    /// The gate that has to be open before this stage is left.
    pub(super) fn gate(self) -> Option<Gate> {
        match self {
            Stage::StartGate => Some(Gate::Start),
            Stage::SwitchGate | Stage::RestGate => Some(Gate::Switch),
            Stage::PromoteGate => Some(Gate::Promote),
            Stage::SettleGate => Some(Gate::Settle),
            _ => None,
        }
    }

    /// What to order on entering.
    pub(super) fn effects(self, plan: &Plan, now: Timestamp) -> Vec<Effect> {
        let stop = |instance| Effect::Stop { instance };
        match self {
            Stage::Verify => vec![Effect::Verify],
            Stage::Fetch => {
                let images: BTreeSet<&String> = plan.fresh().iter().map(|role| &role.image).collect();
                let pulls = images
                    .into_iter()
                    .map(|image| Effect::Pull { image: image.clone() });
                pulls.chain([Effect::UnsealSecrets, Effect::Certify]).collect()
            }
            Stage::Bridge => {
                let fresh = plan.fresh();
                fresh
                    .into_iter()
                    .filter(|role| role.assets)
                    .map(|role| Effect::BridgeAssets {
                        role: role.name.clone(),
                    })
                    .collect()
            }
            Stage::Command if plan.release_command => vec![Effect::RunReleaseCommand],
            Stage::Primary => create(plan.created().take(1)),
            Stage::Others => together(plan, others(plan, false)),
            Stage::Canary if plan.canary.is_some() => vec![Effect::Canary {
                to: plan.shared().collect(),
            }],
            Stage::PromoteGate => plan
                .canary
                .map(|canary| Effect::Watch {
                    until: canary.hold.map_or(Timestamp::MAX, |hold| after(now, hold)),
                })
                .into_iter()
                .collect(),
            Stage::Rest => together(plan, others(plan, true)),
            Stage::Switch | Stage::Stay => switch(plan),
            Stage::Drain => {
                let until = after(now, plan.timing.drain);
                let drains = proxied(plan)
                    .into_iter()
                    .map(|instance| Effect::Drain { instance, until });
                drains.chain(workers(plan).into_iter().map(stop)).collect()
            }
            Stage::Watch if plan.timing.watch > SignedDuration::ZERO => {
                vec![Effect::Watch {
                    until: after(now, plan.timing.watch),
                }]
            }
            Stage::Record => vec![Effect::Record {
                current: plan.new.clone(),
            }],
            Stage::StopOld => plan.retired().map(stop).collect(),
            Stage::ReviveServing => start(proxied(plan)),
            Stage::SwitchBack => switch_back(plan),
            Stage::ReviveRest => start(workers(plan)),
            Stage::RemoveNew => plan
                .created()
                .map(|instance| Effect::Remove { instance })
                .collect(),
            Stage::Prune => vec![Effect::Prune],
            Stage::StartGate
            | Stage::Command
            | Stage::SwitchGate
            | Stage::RestGate
            | Stage::Canary
            | Stage::Watch
            | Stage::SettleGate
            | Stage::Abandon
            | Stage::Over => Vec::new(),
        }
    }
}

impl Stage {
    /// The containers that visitors are sent to during this stage, as far as it is certain, and that are not being
    /// switched to or from right now; those that stay as they are not included.
    ///
    /// `failure`: why the rollout goes back, if it does.
    pub(super) fn serving(self, plan: &Plan, failure: Option<&Failure>) -> Vec<Instance> {
        let switched = failure.is_some_and(Failure::after_switch);
        let perhaps = failure.is_some_and(|failure| failure.switched);
        let new = || {
            plan.new
                .proxied()
                .filter(|instance| !plan.stays(instance))
                .collect()
        };
        match self {
            Stage::Over => Vec::new(),
            _ if self.own_routes(plan) => Vec::new(),
            Stage::Abandon | Stage::ReviveServing if switched => new(),
            // Routes are put right in a moment.
            Stage::Abandon | Stage::ReviveServing if perhaps => Vec::new(),
            Stage::Drain | Stage::Watch | Stage::SettleGate | Stage::Record | Stage::StopOld => new(),
            Stage::Prune if failure.is_none() => new(),
            _ => proxied(plan),
        }
    }

    /// Whether the stage points routes itself, so that its own effects follow a container too.
    pub(super) fn own_routes(self, plan: &Plan) -> bool {
        match self {
            Stage::Canary | Stage::PromoteGate | Stage::Rest | Stage::RestGate => plan.canary.is_some(),
            Stage::Switch | Stage::SwitchBack | Stage::Stay => true,
            _ => false,
        }
    }

    /// What points the routes of such a stage.
    pub(super) fn routing(self, plan: &Plan, now: Timestamp) -> Vec<Effect> {
        match self {
            _ if !self.own_routes(plan) => Vec::new(),
            Stage::PromoteGate | Stage::Rest | Stage::RestGate => Stage::Canary.effects(plan, now),
            other => other.effects(plan, now),
        }
    }
}

/// From where a revert comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reverting {
    /// The routes are as they were.
    FromUnswitched,
    /// The routes may have been changed.
    FromSwitched,
}

/// `now + time`, or the end of time.
pub(super) fn after(now: Timestamp, time: SignedDuration) -> Timestamp {
    now.checked_add(time).unwrap_or(Timestamp::MAX)
}

/// The new instances after the primary one that start before the switch gate, or `late`: only when a canary is promoted.
///
/// A second set of workers beside the old one would do the old one's work with the new code, for all visitors.
fn others(plan: &Plan, late: bool) -> Vec<Instance> {
    let waits = |role: &Role| plan.canary.is_some() && !role.proxied;
    let others = plan.fresh().into_iter().skip(1);
    others
        .filter(|role| waits(role) == late)
        .filter_map(|role| plan.new.instance(&role.name))
        .collect()
}

/// All of them, or only the first if each waits for the one before.
fn together(plan: &Plan, instances: Vec<Instance>) -> Vec<Effect> {
    let count = if plan.parallel_roles { instances.len() } else { 1 };
    create(instances.into_iter().take(count))
}

/// What starts once `ready` is: the next role, where they start one after the other.
pub(super) fn next_role(stage: Stage, plan: &Plan, ready: &Instance) -> Option<Instance> {
    if plan.parallel_roles {
        return None;
    }
    let line = match stage {
        Stage::Others => others(plan, false),
        Stage::Rest => others(plan, true),
        _ => return None,
    };
    let at = line.iter().position(|instance| instance == ready)?;
    line.get(at + 1).cloned()
}

fn create(instances: impl Iterator<Item = Instance>) -> Vec<Effect> {
    instances.map(|instance| Effect::Create { instance }).collect()
}

fn start(instances: Vec<Instance>) -> Vec<Effect> {
    instances
        .into_iter()
        .map(|instance| Effect::Start { instance })
        .collect()
}

/// The containers behind the proxy that are to be replaced or taken away.
fn proxied(plan: &Plan) -> Vec<Instance> {
    let old = plan.old.iter().flat_map(Deployment::proxied);
    old.filter(|instance| !plan.stays(instance)).collect()
}

/// The other containers that are to be replaced or taken away.
fn workers(plan: &Plan) -> Vec<Instance> {
    let old = plan.old.iter().flat_map(Deployment::workers);
    old.filter(|instance| !plan.stays(instance)).collect()
}

fn switch(plan: &Plan) -> Vec<Effect> {
    let routes = routes(plan, Some(&plan.new));
    if routes.is_empty() {
        Vec::new()
    } else {
        vec![Effect::Switch { routes }]
    }
}

fn switch_back(plan: &Plan) -> Vec<Effect> {
    let routes = routes(plan, plan.old.as_ref());
    if routes.is_empty() {
        Vec::new()
    } else {
        vec![Effect::SwitchBack { routes }]
    }
}

/// One route for each role that is proxied before or after and does not stay as it is, leading to `target`'s container if it has one there.
fn routes(plan: &Plan, target: Option<&Deployment>) -> Vec<Route> {
    let both = plan.old.iter().chain([&plan.new]);
    let roles: BTreeSet<String> = both
        .flat_map(Deployment::proxied)
        .filter(|instance| !plan.stays(instance))
        .map(|instance| instance.role)
        .collect();
    let to = |role: &str| {
        target
            .into_iter()
            .flat_map(Deployment::proxied)
            .find(|instance| instance.role == role)
    };
    roles
        .into_iter()
        .map(|role| Route { to: to(&role), role })
        .collect()
}
