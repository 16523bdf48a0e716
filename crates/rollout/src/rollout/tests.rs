//! Named cases, and the property that no kill and no failure at any point breaks the rules of the simulated world.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use proptest::prelude::*;

use super::world::{Fate, World, answer, deployment, drive, plan, start};
use super::*;
use crate::effect::Route;
use crate::plan::{Deployment, ReleaseNumber, Role, RolloutNumber};

fn begin(plan: &Plan) -> Rollout {
    Rollout::begin(plan.clone(), start()).expect("a good plan").0
}

fn run(plan: &Plan, fate: Fate) -> (Rollout, World) {
    let mut world = World::new(plan, fate);
    let rollout = drive(begin(plan), &mut world);
    (rollout, world)
}

/// Drives without faults until the first open order satisfies `at`.
fn drive_to(plan: &Plan, world: &mut World, at: impl Fn(&Effect) -> bool) -> Rollout {
    let mut rollout = begin(plan);
    while !rollout.open().iter().any(|order| at(&order.effect)) {
        let order = rollout.open()[0].clone();
        let event = answer(&order, world, plan);
        rollout = rollout.step(&event, world.now).0;
    }
    rollout
}

fn ticket(rollout: &Rollout, of: impl Fn(&Effect) -> bool) -> Ticket {
    rollout
        .open()
        .iter()
        .find(|order| of(&order.effect))
        .expect("it is open")
        .ticket
}

fn upgrade() -> Plan {
    plan(
        Some(deployment(1, 1, &["web", "jobs"])),
        deployment(2, 2, &["web", "jobs"]),
    )
}

#[test]
fn an_upgrade_goes_through_every_state_in_order() {
    let mut plan = upgrade();
    plan.release_command = true;
    let (rollout, world) = run(&plan, Fate::default());
    let phases: Vec<Phase> = rollout.timeline().iter().map(|(phase, _)| *phase).collect();
    use Phase::*;
    assert_eq!(
        phases,
        [
            Received,
            Verified,
            Prepared,
            ReleaseCommand,
            Starting,
            Healthy,
            Switched,
            Draining,
            Watching,
            Settled
        ]
    );
    let watching = rollout.timeline()[8].1;
    assert_eq!(rollout.timeline()[9].1, watching + SignedDuration::from_secs(60));
    let said: Vec<String> = world.log.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "check the release",
            "fetch the image app@sha256:0000000000000000000000000000000000000000000000000000000000000002",
            "unseal the secrets",
            "bridge the assets of web",
            "run the release command",
            "create web of rollout #2",
            "start web of rollout #2",
            "wait until web of rollout #2 is ready",
            "create jobs of rollout #2",
            "start jobs of rollout #2",
            "wait until jobs of rollout #2 is ready",
            "switch the traffic",
            "drain web of rollout #1",
            "stop jobs of rollout #1",
            "watch the new release",
            "record v2 as current",
            "stop web of rollout #1",
            "stop jobs of rollout #1",
            "prune",
        ]
    );
}

#[test]
fn a_first_deploy_settles_or_leaves_nothing() {
    let first = plan(None, deployment(1, 1, &["web"]));
    assert_eq!(run(&first, Fate::default()).0.phase(), Phase::Settled);
    let (rollout, world) = run(
        &first,
        Fate {
            watch_trips: true,
            ..Fate::default()
        },
    );
    assert_eq!(rollout.phase(), Phase::Reverted);
    assert!(world.containers.is_empty() && world.routes.is_empty());
}

#[test]
fn the_same_release_can_be_rolled_out_again_and_an_older_one_too() {
    let again = plan(Some(deployment(2, 2, &["web"])), deployment(2, 3, &["web"]));
    assert_eq!(run(&again, Fate::default()).0.phase(), Phase::Settled);
    let back = plan(Some(deployment(2, 3, &["web"])), deployment(1, 4, &["web"]));
    assert_eq!(run(&back, Fate::default()).0.phase(), Phase::Settled);
}

#[test]
fn roles_come_and_go_in_one_change_of_routes() {
    let change = plan(
        Some(deployment(1, 1, &["web", "web-admin"])),
        deployment(2, 2, &["web", "web-api", "jobs"]),
    );
    let (rollout, world) = run(&change, Fate::default());
    assert_eq!(rollout.phase(), Phase::Settled);
    let switches: Vec<&Vec<Route>> = world
        .log
        .iter()
        .filter_map(|effect| match effect {
            Effect::Switch { routes } => Some(routes),
            _ => None,
        })
        .collect();
    let told: Vec<(&str, bool)> = switches[0]
        .iter()
        .map(|r| (r.role.as_str(), r.to.is_some()))
        .collect();
    assert_eq!(
        (switches.len(), told),
        (1, vec![("web", true), ("web-admin", false), ("web-api", true)])
    );
}

#[test]
fn a_release_that_never_becomes_ready_takes_no_traffic() {
    let fate = Fate {
        never_ready: ["jobs".to_owned()].into(),
        ..Fate::default()
    };
    let (rollout, world) = run(&upgrade(), fate);
    let failure = rollout.failure().expect("a failure");
    assert_eq!((failure.phase, failure.switched), (Phase::Starting, false));
    assert_eq!(
        failure.why,
        "wait until jobs of rollout #2 is ready: not ready in time"
    );
    let touched = |effect: &Effect| {
        matches!(
            effect,
            Effect::Switch { .. } | Effect::SwitchBack { .. } | Effect::Stop { .. }
        )
    };
    assert!(!world.log.iter().any(touched));
}

#[test]
fn a_failing_release_command_stops_before_any_container() {
    let mut plan = upgrade();
    plan.release_command = true;
    let (rollout, world) = run(
        &plan,
        Fate {
            command_fails: true,
            ..Fate::default()
        },
    );
    assert_eq!(rollout.phase(), Phase::Reverted);
    assert_eq!(
        rollout.failure().map(|failure| failure.phase),
        Some(Phase::ReleaseCommand)
    );
    assert!(
        !world
            .log
            .iter()
            .any(|effect| matches!(effect, Effect::Create { .. } | Effect::Remove { .. }))
    );
}

#[test]
fn a_tripped_watch_puts_the_old_release_back_before_anything_is_removed() {
    let (rollout, world) = run(
        &upgrade(),
        Fate {
            watch_trips: true,
            ..Fate::default()
        },
    );
    assert_eq!(
        rollout.failure().map(|failure| failure.phase),
        Some(Phase::Watching)
    );
    let place = |of: fn(&Effect) -> bool| world.log.iter().position(of).expect("it happened");
    let back = place(|effect| matches!(effect, Effect::SwitchBack { .. }));
    let worker = world
        .log
        .iter()
        .rposition(|effect| matches!(effect, Effect::Start { .. }))
        .expect("revived");
    let removed = place(|effect| matches!(effect, Effect::Remove { .. }));
    assert!(back < worker && worker < removed);
}

#[test]
fn without_a_watch_window_there_is_no_watching() {
    let mut plan = upgrade();
    plan.timing.watch = SignedDuration::ZERO;
    let (_, world) = run(
        &plan,
        Fate {
            watch_trips: true,
            ..Fate::default()
        },
    );
    assert!(
        !world
            .log
            .iter()
            .any(|effect| matches!(effect, Effect::Watch { .. }))
    );
}

#[test]
fn a_gate_holds_until_leave_is_given_and_leave_may_come_early() {
    let mut plan = upgrade();
    plan.gates = [Gate::Switch, Gate::Settle].into();
    let mut world = World::new(&plan, Fate::default());
    let mut rollout = begin(&plan).step(&Event::Pass { gate: Gate::Settle }, start()).0;
    while let Some(order) = rollout.open().first().cloned() {
        let event = answer(&order, &mut world, &plan);
        rollout = rollout.step(&event, world.now).0;
    }
    assert_eq!(
        (rollout.phase(), rollout.waits_at()),
        (Phase::Healthy, Some(Gate::Switch))
    );
    assert!(!rollout.is_over());
    let (reverted, _) = rollout.step(
        &Event::Cancel {
            why: "another host failed".to_owned(),
        },
        world.now,
    );
    let reverted = drive(reverted, &mut world.clone());
    assert_eq!(
        reverted.failure().map(|failure| failure.why.as_str()),
        Some("another host failed")
    );
    let rollout = rollout.step(&Event::Pass { gate: Gate::Switch }, world.now).0;
    assert_eq!(drive(rollout, &mut world).phase(), Phase::Settled);
}

#[test]
fn a_cancelled_rollout_waits_for_what_changes_something_and_gives_up_the_rest() {
    let mut world = World::new(&upgrade(), Fate::default());
    let creating = drive_to(&upgrade(), &mut world, |effect| {
        matches!(effect, Effect::Create { .. })
    });
    let create = ticket(&creating, |effect| matches!(effect, Effect::Create { .. }));
    let (cancelled, orders) = creating.step(
        &Event::Cancel {
            why: "stop".to_owned(),
        },
        world.now,
    );
    assert_eq!((orders.len(), cancelled.open().len()), (0, 1));
    let (_, orders) = cancelled.step(&Event::Done { ticket: create }, world.now);
    assert!(matches!(orders[0].effect, Effect::Remove { .. }), "{orders:?}");

    let mut world = World::new(&upgrade(), Fate::default());
    let waiting = drive_to(&upgrade(), &mut world, |effect| {
        matches!(effect, Effect::AwaitReady { .. })
    });
    let wait = ticket(&waiting, |effect| matches!(effect, Effect::AwaitReady { .. }));
    let (cancelled, orders) = waiting.step(
        &Event::Cancel {
            why: "stop".to_owned(),
        },
        world.now,
    );
    assert!(
        orders
            .iter()
            .all(|order| matches!(order.effect, Effect::Remove { .. }))
    );
    let (same, none) = cancelled.step(&Event::Done { ticket: wait }, world.now);
    assert_eq!(
        (same, none),
        (cancelled, Vec::new()),
        "an answer that nobody waits for changes nothing"
    );
}

#[test]
fn a_death_reverts_until_settled_and_not_after() {
    let plan = upgrade();
    let web = plan.new.instance("web").expect("a role");
    let died = Event::Died {
        instance: web.clone(),
        why: "exit code 137".to_owned(),
    };
    let mut world = World::new(&plan, Fate::default());
    let watching = drive_to(&plan, &mut world, |effect| matches!(effect, Effect::Watch { .. }));
    let recording = drive_to(&plan, &mut World::new(&plan, Fate::default()), |effect| {
        matches!(effect, Effect::Record { .. })
    });
    world.crash(&web);
    let (reverting, _) = watching.step(&died, world.now);
    assert!(
        reverting
            .failure()
            .is_some_and(|failure| failure.died && failure.switched)
    );
    assert_eq!(drive(reverting, &mut world).phase(), Phase::Reverted);
    assert_eq!(recording.step(&died, start()), (recording, Vec::new()));
}

#[test]
fn a_way_back_that_fails_is_tried_again_with_growing_pauses() {
    let plan = upgrade();
    let mut world = World::new(
        &plan,
        Fate {
            watch_trips: true,
            ..Fate::default()
        },
    );
    let mut rollout = drive_to(&plan, &mut world, |effect| matches!(effect, Effect::Watch { .. }));
    let order = rollout.open()[0].clone();
    rollout = rollout.step(&answer(&order, &mut world, &plan), world.now).0;
    while !matches!(rollout.open()[0].effect, Effect::SwitchBack { .. }) {
        let order = rollout.open()[0].clone();
        rollout = rollout.step(&answer(&order, &mut world, &plan), world.now).0;
    }
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let failed = Event::Failed {
            ticket: rollout.open()[0].ticket,
            why: "no proxy".to_owned(),
        };
        rollout = rollout.step(&failed, world.now).0;
        assert_eq!(rollout.phase(), Phase::Reverting);
        let at = rollout.wakeup().expect("another attempt");
        assert!(
            rollout.step(&Event::Tick, world.now).1.is_empty(),
            "not before the time"
        );
        pauses.push(world.now.duration_until(at).as_secs());
        world.now = at;
        rollout = rollout.step(&Event::Tick, world.now).0;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    assert_eq!(drive(rollout, &mut world).phase(), Phase::Reverted);
}

#[test]
fn what_cannot_be_tidied_up_becomes_a_warning() {
    let plan = upgrade();
    let mut world = World::new(&plan, Fate::default());
    let mut rollout = drive_to(&plan, &mut world, |effect| matches!(effect, Effect::Prune));
    let failed = Event::Failed {
        ticket: rollout.open()[0].ticket,
        why: "in use".to_owned(),
    };
    rollout = rollout.step(&failed, world.now).0;
    assert!(rollout.is_over());
    assert_eq!(rollout.phase(), Phase::Settled);
    assert_eq!(rollout.warnings(), ["prune: in use"]);
}

#[test]
fn a_resumed_watch_is_not_cut_short() {
    let plan = upgrade();
    let mut world = World::new(&plan, Fate::default());
    let rollout = drive_to(&plan, &mut world, |effect| matches!(effect, Effect::Watch { .. }));
    let late = world.now + SignedDuration::from_hours(1);
    let (_, orders) = rollout.resume(&world.observe(), late);
    assert_eq!(
        orders[0].effect,
        Effect::Watch {
            until: late + SignedDuration::from_secs(5)
        }
    );
    let (_, orders) = rollout.resume(&world.observe(), world.now);
    assert_eq!(
        orders[0].effect,
        Effect::Watch {
            until: world.now + SignedDuration::from_secs(60)
        }
    );
}

#[test]
fn a_ready_container_that_is_gone_after_a_restart_reverts() {
    let plan = upgrade();
    let mut world = World::new(&plan, Fate::default());
    let rollout = drive_to(&plan, &mut world, |effect| {
        matches!(effect, Effect::Switch { .. })
    });
    world.crash(&plan.new.instance("web").expect("a role"));
    let (rollout, _) = rollout.resume(&world.observe(), world.now);
    assert_eq!(drive(rollout, &mut world).phase(), Phase::Reverted);
}

#[test]
fn plans_that_make_no_sense_are_refused() {
    let refused = |plan: Plan| Rollout::begin(plan, start()).expect_err("no sense");
    assert_eq!(
        refused(plan(None, deployment(3, 1, &[]))),
        PlanError::NoRoles(ReleaseNumber(3))
    );
    assert!(matches!(
        refused(plan(None, deployment(3, 1, &["web", "web"]))),
        PlanError::RoleTwice { .. }
    ));
    let same = plan(Some(deployment(1, 7, &["web"])), deployment(2, 7, &["web"]));
    assert_eq!(refused(same), PlanError::SameRollout(RolloutNumber(7)));
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
    /// Time passes.
    Wait(u16),
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
        2 => prop_oneof![Just(Gate::Switch), Just(Gate::Settle)].prop_map(Choice::Pass),
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
                };
                names.into_iter().zip(flags).map(role).collect()
            })
    })
}

fn plans() -> impl Strategy<Value = Plan> {
    let deployed = |release: u64, rollout: u64| {
        roles().prop_map(move |roles| Deployment {
            release: ReleaseNumber(release),
            rollout: RolloutNumber(rollout),
            roles,
        })
    };
    let gates = prop::collection::btree_set(prop_oneof![Just(Gate::Switch), Just(Gate::Settle)], 0..=2);
    (
        prop::option::of(deployed(1, 1)),
        deployed(2, 2),
        any::<bool>(),
        any::<bool>(),
        gates,
    )
        .prop_map(|(old, new, release_command, watched, gates)| {
            let mut plan = plan(old, new);
            plan.release_command = release_command;
            plan.gates = gates;
            if !watched {
                plan.timing.watch = SignedDuration::ZERO;
            }
            plan
        })
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
        plan.new
            .instances()
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
        let (undisturbed, _) = run(&plan, fate.clone());
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
