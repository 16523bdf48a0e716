//! A simulated host for the tests: containers, a proxy, and the rules that must never be broken.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::{Phase, Rollout};
use crate::effect::{Effect, Event, Observed, Order, Route, Seen};
use crate::plan::{Deployment, Gate, Instance, Plan, ReleaseNumber, Role, RolloutNumber, Timing};

/// What will go wrong by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    /// New containers of these roles never become ready.
    pub(crate) never_ready: BTreeSet<String>,
    pub(crate) command_fails: bool,
    pub(crate) watch_trips: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) containers: BTreeMap<Instance, Seen>,
    pub(crate) routes: BTreeMap<String, Instance>,
    /// Another one for every start of a container.
    addresses: BTreeMap<Instance, u32>,
    /// Where the proxy sends the requests for a role.
    targets: BTreeMap<String, u32>,
    /// The tester made it impossible to follow a container.
    pub(crate) lost_track: bool,
    /// New containers that get a part of the visitors.
    pub(crate) canary: BTreeSet<Instance>,
    pub(crate) recorded: Option<RolloutNumber>,
    pub(crate) command_runs: u32,
    pub(crate) log: Vec<Effect>,
    was_ready: BTreeSet<Instance>,
    crashed: BTreeSet<Instance>,
    command_exists: bool,
    fate: Fate,
}

impl World {
    pub(crate) fn new(plan: &Plan, fate: Fate) -> Self {
        let old = plan.old.iter();
        World {
            now: start(),
            containers: old
                .clone()
                .flat_map(Deployment::instances)
                .map(|i| (i, Seen::Running))
                .collect(),
            routes: old
                .clone()
                .flat_map(Deployment::proxied)
                .map(|i| (i.role.clone(), i))
                .collect(),
            addresses: BTreeMap::new(),
            targets: BTreeMap::new(),
            lost_track: false,
            canary: BTreeSet::new(),
            recorded: old.map(|old| old.rollout).next(),
            command_runs: 0,
            log: Vec::new(),
            was_ready: plan.old.iter().flat_map(Deployment::instances).collect(),
            crashed: BTreeSet::new(),
            command_exists: false,
            fate,
        }
    }

    /// Carries out an effect, as a driver would that does everything at most once more.
    pub(crate) fn perform(&mut self, effect: &Effect, plan: &Plan) -> Result<(), String> {
        self.log.push(effect.clone());
        let is_new = |instance: &Instance| instance.rollout == plan.new.rollout;
        match effect {
            Effect::Create { instance } => {
                assert!(is_new(instance), "only new containers are created");
                if *instance != plan.created().next().expect("a primary role") {
                    let primary = plan.created().next().expect("a primary role");
                    assert!(
                        self.was_ready.contains(&primary),
                        "{instance} was created before the primary was ready"
                    );
                }
                self.containers.entry(instance.clone()).or_insert(Seen::Created);
            }
            Effect::Start { instance } => match self.containers.get_mut(instance) {
                Some(seen) => {
                    if *seen != Seen::Running {
                        *self.addresses.entry(instance.clone()).or_default() += 1;
                    }
                    *seen = Seen::Running;
                    self.crashed.remove(instance);
                }
                None => return Err("no such container".to_owned()),
            },
            Effect::AwaitReady { instance, until } => {
                let runs = self.containers.get(instance) == Some(&Seen::Running);
                if !runs || (is_new(instance) && self.fate.never_ready.contains(&instance.role)) {
                    self.now = self.now.max(*until);
                    return Err("not ready in time".to_owned());
                }
                self.was_ready.insert(instance.clone());
            }
            Effect::RunReleaseCommand => {
                assert!(
                    !self.containers.keys().any(is_new),
                    "the release command comes before any container"
                );
                if !self.command_exists {
                    self.command_exists = true;
                    self.command_runs += 1;
                }
                if self.fate.command_fails {
                    return Err("exit code 1".to_owned());
                }
            }
            Effect::Canary { to } => {
                assert!(to.iter().all(is_new), "a canary is new");
                for instance in to {
                    assert!(
                        self.was_ready.contains(instance) && self.routes.contains_key(&instance.role),
                        "{instance} is to get visitors, but is not ready or has none beside it"
                    );
                }
                let worker = plan.new.workers().find(|worker| {
                    plan.created().next().as_ref() != Some(worker)
                        && !plan.stays(worker)
                        && self.containers.contains_key(worker)
                });
                assert!(
                    worker.is_none() || !self.canary.is_empty(),
                    "{worker:?} of a canary must not run beside the old one, before it is promoted"
                );
                self.canary = to.iter().cloned().collect();
            }
            Effect::Switch { routes } => {
                self.canary.clear();
                assert!(
                    routes.iter().flat_map(|route| &route.to).all(is_new),
                    "the switch leads to new containers"
                );
                self.point(routes);
            }
            Effect::SwitchBack { routes } => {
                self.canary.clear();
                assert!(
                    !routes.iter().flat_map(|route| &route.to).any(is_new),
                    "the way back leads to old ones"
                );
                self.point(routes);
            }
            Effect::Stop { instance } => {
                assert!(!is_new(instance), "new containers are removed, not stopped");
                assert!(!plan.stays(instance), "{instance} stays as it is");
                if let Some(seen) = self.containers.get_mut(instance) {
                    *seen = Seen::Stopped;
                }
            }
            Effect::Remove { instance } => {
                assert!(is_new(instance), "old containers are not removed by a rollout");
                self.containers.remove(instance);
            }
            Effect::Watch { until } => {
                if *until < Timestamp::MAX {
                    self.now = self.now.max(*until);
                }
                if self.fate.watch_trips {
                    return Err("too many errors".to_owned());
                }
            }
            Effect::Record { current } => self.recorded = Some(current.rollout),
            Effect::Prune => self.command_exists = false,
            Effect::Follow { instance } => {
                assert_eq!(
                    self.routes.get(&instance.role),
                    Some(instance),
                    "a container is followed that has no visitors"
                );
                let address = self.address(instance);
                self.targets.insert(instance.role.clone(), address);
            }
            Effect::Verify
            | Effect::Pull { .. }
            | Effect::UnsealSecrets
            | Effect::Certify
            | Effect::BridgeAssets { .. }
            | Effect::Drain { .. } => {}
        }
        Ok(())
    }

    fn address(&self, instance: &Instance) -> u32 {
        self.addresses.get(instance).copied().unwrap_or_default()
    }

    /// Docker starts a running container again.
    pub(crate) fn restart(&mut self, instance: &Instance) {
        *self.addresses.entry(instance.clone()).or_default() += 1;
    }

    pub(crate) fn crash(&mut self, instance: &Instance) {
        self.containers.insert(instance.clone(), Seen::Stopped);
        self.crashed.insert(instance.clone());
    }

    pub(crate) fn observe(&self) -> Observed {
        Observed {
            containers: self.containers.clone(),
        }
    }

    fn point(&mut self, routes: &[Route]) {
        for route in routes {
            match &route.to {
                Some(instance) => {
                    self.targets.insert(route.role.clone(), self.address(instance));
                    self.routes.insert(route.role.clone(), instance.clone())
                }
                None => self.routes.remove(&route.role),
            };
        }
    }

    /// What must hold at every moment.
    pub(crate) fn check(&self, rollout: &Rollout) {
        let plan = rollout.plan();
        for (role, target) in &self.routes {
            if self.crashed.contains(target) {
                continue;
            }
            assert_eq!(
                self.containers.get(target),
                Some(&Seen::Running),
                "{role} is sent to a container that is away"
            );
            assert!(
                self.was_ready.contains(target),
                "{role} is sent to a container that was never ready"
            );
        }
        for instance in &self.canary {
            assert!(
                self.crashed.contains(instance) || self.containers.get(instance) == Some(&Seen::Running),
                "visitors of the canary are sent to {instance}, which is away"
            );
        }
        if let Some(old) = &plan.old {
            for instance in old.proxied() {
                let stays = plan.new.proxied().any(|new| new.role == instance.role);
                assert!(
                    !stays || self.routes.contains_key(&instance.role),
                    "{} is served by nobody",
                    instance.role
                );
                if rollout.phase() != Phase::Settled {
                    let seen = self.containers.get(&instance);
                    assert_eq!(
                        seen,
                        Some(&Seen::Running),
                        "{instance} was stopped before the rollout settled"
                    );
                }
            }
        }
        if self.recorded == Some(plan.new.rollout) {
            assert_eq!(
                rollout.phase(),
                Phase::Settled,
                "a deployment is current only when it has settled"
            );
        }
        assert!(self.command_runs <= 1, "the release command ran twice");
    }

    /// What must hold at the end.
    pub(crate) fn check_end(&self, rollout: &Rollout) {
        assert!(rollout.is_over() && rollout.is_decided() && rollout.wakeup().is_none());
        let plan = rollout.plan();
        let settled = rollout.phase() == Phase::Settled;
        let serving = if settled {
            Some(&plan.new)
        } else {
            plan.old.as_ref()
        };
        let routes: BTreeMap<_, _> = serving
            .into_iter()
            .flat_map(Deployment::proxied)
            .map(|i| (i.role.clone(), i))
            .collect();
        assert_eq!(self.routes, routes);
        for (role, instance) in self.routes.iter().filter(|_| !self.lost_track) {
            let target = self.targets.get(role).copied().unwrap_or_default();
            assert_eq!(target, self.address(instance), "{instance} was not followed");
        }
        assert!(self.canary.is_empty(), "a canary outlived its rollout");
        let running: BTreeSet<&Instance> = self
            .containers
            .iter()
            .filter(|(_, seen)| **seen == Seen::Running)
            .map(|(i, _)| i)
            .collect();
        let wanted: BTreeSet<Instance> = serving.into_iter().flat_map(Deployment::instances).collect();
        assert_eq!(running, wanted.iter().collect(), "exactly one deployment runs");
        assert_eq!(self.recorded, serving.map(|deployment| deployment.rollout));
        assert_eq!(rollout.failure().is_some(), !settled || rollout.stayed());
        if settled {
            assert_eq!(self.command_runs, u32::from(plan.release_command));
        } else {
            assert!(
                !self.containers.keys().any(|i| i.rollout == plan.new.rollout),
                "new containers are gone"
            );
        }
    }
}

/// Carries out everything without faults until nothing is left to do.
pub(crate) fn drive(mut rollout: Rollout, world: &mut World) -> Rollout {
    for _ in 0..2000 {
        world.check(&rollout);
        if rollout.is_over() {
            world.check_end(&rollout);
            return rollout;
        }
        let event = next_event(&rollout, world);
        rollout = rollout.step(&event, world.now).0;
    }
    panic!("the rollout does not come to an end: {rollout:#?}");
}

fn next_event(rollout: &Rollout, world: &mut World) -> Event {
    if let Some(order) = rollout.open().first() {
        return answer(order, world, rollout.plan());
    }
    if let Some(gate) = rollout.waits_at() {
        return Event::Pass { gate };
    }
    world.now = rollout
        .wakeup()
        .expect("a rollout that is not over waits for something");
    Event::Tick
}

/// Carries out an order and tells how it ended.
pub(crate) fn answer(order: &Order, world: &mut World, plan: &Plan) -> Event {
    match world.perform(&order.effect, plan) {
        Ok(()) => Event::Done { ticket: order.ticket },
        Err(why) => Event::Failed {
            ticket: order.ticket,
            why,
        },
    }
}

pub(crate) fn start() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("in range")
}

/// `web` is proxied, everything else is not.
pub(crate) fn deployment(release: u64, rollout: u64, roles: &[&str]) -> Deployment {
    let role = |name: &&str| Role {
        name: (*name).to_owned(),
        proxied: name.starts_with("web"),
        image: format!("app@sha256:{release:064}"),
        assets: *name == "web",
        from: None,
    };
    Deployment {
        release: ReleaseNumber(release),
        rollout: RolloutNumber(rollout),
        roles: roles.iter().map(role).collect(),
    }
}

pub(crate) fn plan(old: Option<Deployment>, new: Deployment) -> Plan {
    Plan {
        app: "blog".to_owned(),
        old,
        new,
        release_command: false,
        timing: Timing {
            watch: SignedDuration::from_secs(60),
            ..Timing::default()
        },
        gates: BTreeSet::<Gate>::new(),
        canary: None,
        parallel_roles: true,
    }
}
