//! The transitions.

use jiff::{SignedDuration, Timestamp};

use super::stage::{Reverting, Stage, after, next_role};
use super::{Failure, Phase, Rollout};
use crate::effect::{Effect, Event, Observed, Order, Seen, Ticket};
use crate::plan::{Deployment, Gate, Instance};

/// A watch that was interrupted goes on for at least this long.
const SHORTEST_WATCH: SignedDuration = SignedDuration::from_secs(5);
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_secs(30);

impl Rollout {
    pub(super) fn handle(&mut self, event: &Event, now: Timestamp) -> Vec<Order> {
        match event {
            Event::Done { ticket } => match self.take(*ticket) {
                Some(effect) => self.done(effect, now),
                None => Vec::new(),
            },
            Event::Failed { ticket, why } => match self.take(*ticket) {
                Some(effect) => self.failed(effect, why, now),
                None => Vec::new(),
            },
            Event::Died { instance, why } if self.started(instance) && self.stage.can_revert() => {
                self.abandon(format!("{instance} ended: {why}"), true, now)
            }
            // What goes back has nothing to fall back on any more.
            Event::Died { instance, .. } if self.started(instance) && self.stage <= Stage::SwitchBack => {
                if let Some(failure) = &mut self.failure {
                    failure.died = true;
                }
                Vec::new()
            }
            Event::Cancel { why } if self.stage.can_revert() => self.abandon(why.clone(), false, now),
            Event::Died { .. } | Event::Cancel { .. } => Vec::new(),
            Event::Pass { gate } => self.pass(*gate, now),
            Event::Alone => self.alone(now),
            Event::Led => self.led(),
            Event::Moved { instance } => self.moved(instance, now),
            Event::Tick => self.tick(now),
        }
    }

    pub(super) fn restart(&mut self, observed: &Observed, now: Timestamp) -> Vec<Order> {
        let lost = self
            .ready
            .iter()
            .find(|instance| observed.containers.get(*instance) != Some(&Seen::Running));
        if let Some(lost) = lost
            && self.stage.can_revert()
        {
            let why = format!("{lost} was ready, but does not run any more after a restart");
            // What was open is not being worked on any more, so there is no answer to wait for.
            self.open.clear();
            let mut orders = self.abandon(why, true, now);
            let follow = self.follow();
            orders.extend(self.order(follow));
            return orders;
        }
        match self.stage {
            // What was begun is being undone anyway.
            Stage::Abandon => self.open.clear(),
            // The old containers may have ended meanwhile: nobody is to be sent to them before they run.
            Stage::SwitchBack if !self.old_serving_runs(observed) => {
                self.open.clear();
                self.again.clear();
                self.wakeup = None;
                return self.enter(Stage::ReviveServing, now);
            }
            _ => {}
        }
        let interrupted = std::mem::take(&mut self.open)
            .into_iter()
            .map(|order| order.effect);
        let again = std::mem::take(&mut self.again);
        self.wakeup = None;
        let mut effects: Vec<Effect> = interrupted.chain(again).collect();
        // While nobody looked, a container may have got another address.
        let routing = self.stage.routing(&self.plan, now);
        effects.retain(|effect| !matches!(effect, Effect::Follow { .. }) && !routing.contains(effect));
        effects.extend(routing);
        effects.extend(self.follow());
        let effects: Vec<Effect> = effects
            .into_iter()
            .map(|effect| self.renewed(effect, now))
            .collect();
        if effects.is_empty() {
            self.advance(now)
        } else {
            self.order(effects)
        }
    }

    /// Enters `stage`, passes through those that ask for nothing, and returns the orders of the one where it stays.
    pub(super) fn enter(&mut self, stage: Stage, now: Timestamp) -> Vec<Order> {
        self.stage = stage;
        self.attempts = 0;
        for phase in stage.reaches(&self.plan) {
            self.reach(*phase, now);
        }
        let effects = stage.effects(&self.plan, now);
        if effects.is_empty() {
            self.advance(now)
        } else {
            self.order(effects)
        }
    }

    /// Leaves the stage if nothing keeps it.
    fn advance(&mut self, now: Timestamp) -> Vec<Order> {
        let busy = !self.open.is_empty() || !self.again.is_empty();
        let closed = |gate: Gate| self.is_closed(gate);
        if busy || self.stage == Stage::Over || self.stage.gate().is_some_and(closed) {
            return Vec::new();
        }
        let reverting = self.going_back().map(|failure| match failure.switched {
            true => Reverting::FromSwitched,
            false => Reverting::FromUnswitched,
        });
        let next = self.stage.next(reverting);
        if next == Stage::Prune && reverting.is_some() {
            self.reach(Phase::Reverted, now);
        }
        self.enter(next, now)
    }

    fn is_closed(&self, gate: Gate) -> bool {
        let there = match gate {
            Gate::Promote => self.plan.canary.is_some(),
            _ => self.plan.gates.contains(&gate),
        };
        there && !self.passed.contains(&gate)
    }

    fn pass(&mut self, gate: Gate, now: Timestamp) -> Vec<Order> {
        // Nobody can promote what no visitor has seen.
        if gate == Gate::Promote && self.stage != Stage::PromoteGate {
            return Vec::new();
        }
        self.passed.insert(gate);
        if gate == Gate::Promote {
            // The canary was watched for as long as somebody wanted.
            self.open.retain(|order| !order.effect.only_waits());
        }
        self.advance(now)
    }

    /// What points every route at the present address of the container that it leads to.
    fn follow(&self) -> Vec<Effect> {
        let stays = self
            .plan
            .new
            .proxied()
            .filter(|instance| self.plan.stays(instance));
        let serving = self.stage.serving(&self.plan, self.going_back());
        let all = serving.into_iter().chain(stays);
        all.map(|instance| Effect::Follow { instance }).collect()
    }

    /// Why it goes back, unless that was given up.
    fn going_back(&self) -> Option<&Failure> {
        self.failure.as_ref().filter(|_| !self.stayed)
    }

    /// A container has another address; if visitors are sent to it, the proxy has to know.
    fn moved(&mut self, instance: &Instance, now: Timestamp) -> Vec<Order> {
        let mut effects = self.follow();
        effects.retain(|effect| matches!(effect, Effect::Follow { instance: other } if other == instance));
        let concerned = self
            .plan
            .created()
            .chain(self.plan.retired())
            .any(|one| one == *instance);
        if concerned {
            effects.extend(self.stage.routing(&self.plan, now));
        }
        self.order(effects)
    }

    /// The promotion of a canary is led: what was passed on the way to it is closed once more.
    fn led(&mut self) -> Vec<Order> {
        if self.is_canary() {
            for gate in [Gate::Switch, Gate::Settle] {
                self.plan.gates.insert(gate);
                self.passed.remove(&gate);
            }
        }
        Vec::new()
    }

    /// Whether it is a canary that nobody has promoted yet.
    fn is_canary(&self) -> bool {
        self.stage == Stage::PromoteGate && self.is_closed(Gate::Promote)
    }

    /// Nobody leads any more: back before the switch, on by itself after it. A canary stays.
    fn alone(&mut self, now: Timestamp) -> Vec<Order> {
        if self.is_canary() {
            self.passed.insert(Gate::Switch);
        }
        let waits = self.is_closed(Gate::Start) || self.is_closed(Gate::Switch);
        if self.stage <= Stage::RestGate && waits {
            let why = "whoever led the hosts was gone before the switch".to_owned();
            return self.abandon(why, false, now);
        }
        self.passed.insert(Gate::Settle);
        self.advance(now)
    }

    fn done(&mut self, effect: Effect, now: Timestamp) -> Vec<Order> {
        let follow = match effect {
            Effect::Create { instance } => Some(Effect::Start { instance }),
            // A worker that is revived is only started; nobody waits for it.
            Effect::Start { instance } if self.stage != Stage::ReviveRest => Some(Effect::AwaitReady {
                instance,
                until: after(now, self.plan.timing.ready),
            }),
            Effect::AwaitReady { instance, .. } => {
                let next = next_role(self.stage, &self.plan, &instance);
                if instance.rollout == self.plan.new.rollout {
                    self.ready.insert(instance);
                }
                next.map(|instance| Effect::Create { instance })
            }
            // A canary that was good for as long as it should be.
            Effect::Watch { .. } if self.stage == Stage::PromoteGate => {
                self.passed.insert(Gate::Promote);
                None
            }
            _ => None,
        };
        match follow {
            // While abandoning, what was begun comes to its end, but nothing new is begun.
            Some(effect) if self.stage != Stage::Abandon => self.order(vec![effect]),
            _ => self.advance(now),
        }
    }

    fn failed(&mut self, effect: Effect, why: &str, now: Timestamp) -> Vec<Order> {
        let told = format!("{effect}: {why}");
        // Whatever made it impossible is followed by another start, and by the keeper's look at the end.
        if self.stage == Stage::Abandon || matches!(effect, Effect::Follow { .. }) {
            // It is being undone anyway.
            return self.advance(now);
        }
        let harmless = self.stage == Stage::Drain;
        if self.stage.can_revert() && !harmless {
            return self.abandon(told, false, now);
        }
        // Several failures between two attempts are one failed attempt.
        if self.wakeup.is_none() {
            self.attempts += 1;
        }
        let died = self.failure.as_ref().is_some_and(|failure| failure.died);
        let exhausted = self.stage.attempts(died).is_some_and(|most| self.attempts > most);
        let reviving = matches!(self.stage, Stage::ReviveServing | Stage::SwitchBack);
        if exhausted && reviving && !died && self.going_back().is_some_and(Failure::after_switch) {
            return self.stay(&told, now);
        }
        if harmless || exhausted {
            self.warnings.push(told);
            return self.advance(now);
        }
        // A container that did not become ready is started again.
        self.again.push(match effect {
            Effect::AwaitReady { instance, .. } => Effect::Start { instance },
            other => other,
        });
        let pause = SignedDuration::from_secs(1 << (self.attempts - 1).min(5)).min(LONGEST_PAUSE);
        self.wakeup = Some(after(now, pause));
        Vec::new()
    }

    fn abandon(&mut self, why: String, died: bool, now: Timestamp) -> Vec<Order> {
        self.failure = Some(Failure {
            phase: self.phase,
            switched: self.stage.may_be_switched(),
            died,
            why,
        });
        self.again.clear();
        self.wakeup = None;
        self.open.retain(|order| !order.effect.only_waits());
        let created = self.stage >= Stage::Primary;
        self.stage = Stage::Abandon;
        self.reach(Phase::Reverting, now);
        if !created && self.open.is_empty() {
            // Nothing was made, so there is nothing to remove.
            self.reach(Phase::Reverted, now);
            return self.enter(Stage::Prune, now);
        }
        self.advance(now)
    }

    /// Gives up going back: the new deployment runs and has the traffic, and somebody must be able to bring another.
    fn stay(&mut self, told: &str, now: Timestamp) -> Vec<Order> {
        let new = self.plan.new.release;
        let old = self.plan.old.as_ref().map(|old| old.release.to_string());
        self.warnings.push(format!(
            "{} cannot be brought back ({told}); {new} goes on serving",
            old.as_deref().unwrap_or("the former state"),
        ));
        self.stayed = true;
        self.again.clear();
        self.wakeup = None;
        self.open.retain(|order| !order.effect.only_waits());
        self.advance(now)
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Order> {
        if self.wakeup.is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.wakeup = None;
        let again = std::mem::take(&mut self.again);
        self.order(again)
    }

    fn order(&mut self, effects: Vec<Effect>) -> Vec<Order> {
        let mut orders = Vec::with_capacity(effects.len());
        for effect in effects {
            orders.push(Order {
                ticket: self.next_ticket,
                effect,
            });
            self.next_ticket = Ticket(self.next_ticket.0 + 1);
        }
        self.open.extend(orders.iter().cloned());
        orders
    }

    fn take(&mut self, ticket: Ticket) -> Option<Effect> {
        let at = self.open.iter().position(|order| order.ticket == ticket)?;
        Some(self.open.remove(at).effect)
    }

    fn reach(&mut self, phase: Phase, now: Timestamp) {
        if self.phase != phase {
            self.phase = phase;
            self.timeline.push((phase, now));
        }
    }

    /// The effect with a fresh time limit, where the old one has lost its meaning by the interruption.
    fn renewed(&self, effect: Effect, now: Timestamp) -> Effect {
        match effect {
            Effect::AwaitReady { instance, .. } => Effect::AwaitReady {
                instance,
                until: after(now, self.plan.timing.ready),
            },
            Effect::Watch { until } => Effect::Watch {
                until: until.max(after(now, SHORTEST_WATCH.min(self.plan.timing.watch))),
            },
            other => other,
        }
    }

    fn old_serving_runs(&self, observed: &Observed) -> bool {
        let old = self.plan.old.iter().flat_map(Deployment::proxied);
        let mut replaced = old.filter(|instance| !self.plan.stays(instance));
        replaced.all(|instance| observed.containers.get(&instance) == Some(&Seen::Running))
    }

    /// Whether it is a container of the new deployment that was ordered to start.
    fn started(&self, instance: &Instance) -> bool {
        let starting = self.open.iter().any(|order| {
            matches!(&order.effect, Effect::Start { instance: i } | Effect::AwaitReady { instance: i, .. } if i == instance)
        });
        instance.rollout == self.plan.new.rollout && (starting || self.ready.contains(instance))
    }
}
