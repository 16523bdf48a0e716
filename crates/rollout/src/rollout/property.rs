//! The property that no kill and no failure at any point breaks the rules of the simulated world.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use proptest::prelude::*;

use super::world::{Fate, World, answer, drive, plan, start};
use super::*;
use crate::plan::{Canary, Deployment, ReleaseNumber, Role, RolloutNumber};

fn begin(plan: &Plan) -> Rollout {
    Rollout::begin(plan.clone(), start()).expect("a good plan").0
}

/// What the tester does next.
#[derive(Debug, Clone)]
enum Choice {
    /// One of the open orders is carried out and answered.
    Answer(prop::sample::Index),
    /// It is carried out, but reported as failed.
    FailAfter(prop::sample::Index),
    /// It is not carried out and reported as failed.
    FailBefore(prop::sample::Index),
    /// The driver is killed before it could carry out anything.
    KillBefore,
    /// The driver is killed after it carried out an order, before the answer.
    KillAfter(prop::sample::Index),
    /// A new container crashes, and the driver hears of it.
    Crash(prop::sample::Index),
    /// A new container crashes while the driver is away.
    CrashAndKill(prop::sample::Index),
    Cancel,
    Pass(Gate),
    /// Whoever led is gone.
    Alone,
    /// Somebody leads the promotion.
    Led,
    /// A container has another address.
    Moved(prop::sample::Index),
    /// The same while the driver is away.
    MovedAndKill(prop::sample::Index),
    /// Time passes.
    Wait(u16),
}

fn gate() -> impl Strategy<Value = Gate> {
    prop::sample::select(vec![Gate::Start, Gate::Switch, Gate::Promote, Gate::Settle])
}

fn choices() -> impl Strategy<Value = Vec<Choice>> {
    let index = any::<prop::sample::Index>;
    let choice = prop_oneof![
        30 => index().prop_map(Choice::Answer),
        6 => index().prop_map(Choice::KillAfter),
        5 => Just(Choice::KillBefore),
        1 => index().prop_map(Choice::FailAfter),
        1 => index().prop_map(Choice::FailBefore),
        1 => index().prop_map(Choice::Crash),
        1 => index().prop_map(Choice::CrashAndKill),
        1 => Just(Choice::Cancel),
        3 => gate().prop_map(Choice::Pass),
        1 => Just(Choice::Alone),
        2 => Just(Choice::Led),
        2 => index().prop_map(Choice::Moved),
        1 => index().prop_map(Choice::MovedAndKill),
        3 => (0u16..100).prop_map(Choice::Wait),
    ];
    prop::collection::vec(choice, 0..60)
}

fn roles() -> impl Strategy<Value = Vec<Role>> {
    let names = prop::sample::subsequence(vec!["web", "api", "jobs", "cron"], 1..=4).prop_shuffle();
    names.prop_flat_map(|names| {
        let count = names.len();
        (
            Just(names),
            prop::collection::vec((any::<bool>(), any::<bool>()), count),
        )
            .prop_map(|(names, flags)| {
                let role = |(name, (proxied, assets)): (&str, (bool, bool))| Role {
                    name: name.to_owned(),
                    proxied,
                    image: "app@sha256:1".to_owned(),
                    assets: proxied && assets,
                    from: None,
                };
                names.into_iter().zip(flags).map(role).collect()
            })
    })
}

/// Leaves one role of the old deployment as it is, if there is another that is rolled out.
fn keep(plan: &mut Plan, kept: &prop::sample::Index) {
    let Some(old) = &plan.old else { return };
    let mut role = kept.get(&old.roles).clone();
    role.from = Some(old.origin(&role));
    let mut roles = plan.new.roles.clone();
    roles.retain(|other| other.name != role.name);
    if !roles.is_empty() {
        roles.push(role);
        plan.new.roles = roles;
    }
}

fn plans() -> impl Strategy<Value = Plan> {
    let deployed = |release: u64, rollout: u64| {
        roles().prop_map(move |roles| Deployment {
            release: ReleaseNumber(release),
            rollout: RolloutNumber(rollout),
            roles,
        })
    };
    let gates = prop::collection::btree_set(gate(), 0..=3);
    let canary = prop::option::weighted(
        0.3,
        prop::option::of(0i64..600).prop_map(|hold| Canary {
            hold: hold.map(SignedDuration::from_secs),
        }),
    );
    (
        prop::option::of(deployed(1, 1)),
        deployed(2, 2),
        (any::<bool>(), any::<bool>(), any::<bool>()),
        gates,
        canary,
        prop::option::weighted(0.3, any::<prop::sample::Index>()),
    )
        .prop_map(
            |(old, new, (release_command, watched, parallel), gates, canary, kept)| {
                let mut plan = plan(old, new);
                if let Some(kept) = kept {
                    keep(&mut plan, &kept);
                }
                plan.parallel_roles = parallel;
                plan.canary = canary.filter(|_| plan.shared().next().is_some());
                plan.release_command = release_command;
                plan.gates = gates;
                if !watched {
                    plan.timing.watch = SignedDuration::ZERO;
                }
                plan
            },
        )
}

fn fates() -> impl Strategy<Value = Fate> {
    let some = prop::collection::btree_set(prop::sample::select(vec!["web", "api", "jobs", "cron"]), 0..=1);
    (
        prop::option::weighted(0.2, some),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(never_ready, command_fails, watch_trips)| Fate {
            never_ready: never_ready
                .unwrap_or_default()
                .into_iter()
                .map(str::to_owned)
                .collect::<BTreeSet<_>>(),
            command_fails,
            watch_trips,
        })
}

fn pick(rollout: &Rollout, index: &prop::sample::Index) -> Option<Order> {
    (!rollout.open().is_empty()).then(|| index.get(rollout.open()).clone())
}

/// A restart reads back what was written down.
fn restarted(rollout: &Rollout, world: &World) -> Rollout {
    let text = serde_json::to_string(rollout).expect("it can be written down");
    let read: Rollout = serde_json::from_str(&text).expect("it can be read back");
    assert_eq!(&read, rollout);
    read.resume(&world.observe(), world.now).0
}

fn play(rollout: &Rollout, choice: &Choice, world: &mut World) -> Rollout {
    let plan = rollout.plan().clone();
    let crashable: Vec<Instance> = if rollout.phase() < Phase::Settled {
        plan.created()
            .filter(|i| world.containers.get(i) == Some(&crate::effect::Seen::Running))
            .collect()
    } else {
        Vec::new()
    };
    match choice {
        Choice::Answer(index) => match pick(rollout, index) {
            Some(order) => rollout.step(&answer(&order, world, &plan), world.now).0,
            None => rollout.clone(),
        },
        Choice::FailAfter(index) | Choice::FailBefore(index) => match pick(rollout, index) {
            Some(order) => {
                world.lost_track |= matches!(order.effect, Effect::Follow { .. });
                if matches!(choice, Choice::FailAfter(_)) {
                    let _ = world.perform(&order.effect, &plan);
                }
                let why = "the tester says so".to_owned();
                rollout
                    .step(
                        &Event::Failed {
                            ticket: order.ticket,
                            why,
                        },
                        world.now,
                    )
                    .0
            }
            None => rollout.clone(),
        },
        Choice::KillBefore => restarted(rollout, world),
        Choice::KillAfter(index) => {
            if let Some(order) = pick(rollout, index) {
                let _ = world.perform(&order.effect, &plan);
            }
            restarted(rollout, world)
        }
        Choice::Crash(index) | Choice::CrashAndKill(index) if !crashable.is_empty() => {
            let instance = index.get(&crashable).clone();
            world.crash(&instance);
            match choice {
                Choice::Crash(_) => {
                    let died = Event::Died {
                        instance,
                        why: "exit code 1".to_owned(),
                    };
                    rollout.step(&died, world.now).0
                }
                _ => restarted(rollout, world),
            }
        }
        Choice::Crash(_) | Choice::CrashAndKill(_) => rollout.clone(),
        Choice::Cancel => {
            rollout
                .step(
                    &Event::Cancel {
                        why: "the tester says so".to_owned(),
                    },
                    world.now,
                )
                .0
        }
        Choice::Alone => rollout.step(&Event::Alone, world.now).0,
        Choice::Led => rollout.step(&Event::Led, world.now).0,
        Choice::Moved(index) | Choice::MovedAndKill(index) => {
            let mut running: Vec<Instance> = world.containers.keys().cloned().collect();
            running.retain(|instance| world.containers[instance] == crate::effect::Seen::Running);
            // At its end the keeper takes over.
            if running.is_empty() || rollout.is_over() {
                return rollout.clone();
            }
            let instance = index.get(&running).clone();
            world.restart(&instance);
            match choice {
                Choice::Moved(_) => rollout.step(&Event::Moved { instance }, world.now).0,
                _ => restarted(rollout, world),
            }
        }
        Choice::Pass(gate) => rollout.step(&Event::Pass { gate: *gate }, world.now).0,
        Choice::Wait(seconds) => {
            world.now += SignedDuration::from_secs(i64::from(*seconds));
            rollout.step(&Event::Tick, world.now).0
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    /// Killed, failed, crashed and cancelled anywhere: the rules of the world hold at every moment and at the end.
    #[test]
    fn nothing_breaks_the_rules(plan in plans(), fate in fates(), choices in choices()) {
        let mut world = World::new(&plan, fate);
        let mut rollout = begin(&plan);
        for choice in &choices {
            world.check(&rollout);
            rollout = play(&rollout, choice, &mut world);
        }
        drive(rollout, &mut world);
    }

    /// A kill at every single place of an otherwise undisturbed rollout changes nothing about its outcome.
    #[test]
    fn kills_alone_never_change_the_outcome(plan in plans(), fate in fates()) {
        let undisturbed = drive(begin(&plan), &mut World::new(&plan, fate.clone()));
        for after in [false, true] {
            let mut world = World::new(&plan, fate.clone());
            let mut rollout = begin(&plan);
            for _ in 0..500 {
                world.check(&rollout);
                if rollout.is_over() {
                    break;
                }
                if after && let Some(order) = rollout.open().first().cloned() {
                    let _ = world.perform(&order.effect, &plan);
                    world.check(&rollout);
                }
                rollout = restarted(&rollout, &world);
                // Every restart orders to follow the containers, which would never end if each one were cut off.
                let follows = |order: &&Order| matches!(order.effect, Effect::Follow { .. });
                while let Some(order) = rollout.open().iter().find(follows).cloned() {
                    rollout = rollout.step(&answer(&order, &mut world, &plan), world.now).0;
                }
                let event = match (rollout.open().first().cloned(), rollout.waits_at()) {
                    (Some(order), _) => answer(&order, &mut world, &plan),
                    (None, Some(gate)) => Event::Pass { gate },
                    (None, None) => Event::Tick,
                };
                if let Some(at) = rollout.wakeup() {
                    world.now = world.now.max(at);
                }
                rollout = rollout.step(&event, world.now).0;
            }
            world.check_end(&rollout);
            prop_assert_eq!(rollout.phase(), undisturbed.phase());
        }
    }
}
