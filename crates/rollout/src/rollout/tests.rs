//! Named cases.

use super::world::{Fate, World, answer, deployment, drive, plan, start};
use super::*;
use crate::effect::Route;
use crate::plan::{ReleaseNumber, RolloutNumber};
use jiff::SignedDuration;

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
            "have the certificates",
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
fn a_role_that_is_not_asked_for_is_left_alone() {
    let mut plan = upgrade();
    let old = plan.old.clone().expect("there is one");
    let mut jobs = old.roles[1].clone();
    jobs.from = Some(old.origin(&jobs));
    plan.new.roles[1] = jobs;
    let (rollout, world) = run(&plan, Fate::default());
    assert_eq!(rollout.phase(), Phase::Settled);
    let touched = |role: &str| world.log.iter().any(|effect| effect.to_string().contains(role));
    assert!(touched("web of rollout #2") && !touched("jobs"));
    assert_eq!(rollout.plan().new.release_of("jobs"), Some(ReleaseNumber(1)));
    assert_eq!(rollout.plan().new.release_of("web"), Some(ReleaseNumber(2)));
    let (rollout, world) = run(
        &plan,
        Fate {
            watch_trips: true,
            ..Fate::default()
        },
    );
    assert_eq!(rollout.phase(), Phase::Reverted);
    assert!(!world.log.iter().any(|effect| effect.to_string().contains("jobs")));
    // What runs afterwards can be the old one of the next rollout.
    let next = super::world::plan(Some(plan.new), deployment(3, 3, &["web", "jobs"]));
    assert_eq!(run(&next, Fate::default()).0.phase(), Phase::Settled);
}

#[test]
fn what_is_not_there_cannot_be_left_alone() {
    let mut plan = upgrade();
    plan.new.roles[1].from = Some(crate::plan::Origin {
        release: ReleaseNumber(1),
        rollout: RolloutNumber(9),
    });
    assert!(matches!(plan.check(), Err(crate::plan::PlanError::NotThere(_))));
    let old = plan.old.clone().expect("there is one");
    plan.new.roles = old.roles.clone();
    for role in &mut plan.new.roles {
        role.from = Some(old.origin(role));
    }
    assert!(matches!(plan.check(), Err(crate::plan::PlanError::NoRoles(_))));
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

/// The watch trips, and the first open order is what should bring the old one back.
fn going_back(plan: &Plan) -> (Rollout, World) {
    let fate = Fate {
        watch_trips: true,
        ..Fate::default()
    };
    let mut world = World::new(plan, fate);
    let rollout = drive_to(plan, &mut world, |effect| matches!(effect, Effect::Watch { .. }));
    let order = rollout.open()[0].clone();
    let rollout = rollout.step(&answer(&order, &mut world, plan), world.now).0;
    (rollout, world)
}

/// Every order that is open fails until `until`, as often as it is given.
fn fail_until(mut rollout: Rollout, world: &mut World, until: impl Fn(&Rollout) -> bool) -> (Rollout, u32) {
    let mut failures = 0;
    while !until(&rollout) {
        assert!(failures < 400, "it never gives up");
        if let Some(order) = rollout.open().first() {
            failures += 1;
            let failed = Event::Failed {
                ticket: order.ticket,
                why: "no such table".to_owned(),
            };
            rollout = rollout.step(&failed, world.now).0;
        } else {
            world.now = rollout.wakeup().expect("another attempt");
            rollout = rollout.step(&Event::Tick, world.now).0;
        }
    }
    (rollout, failures)
}

#[test]
fn a_led_promotion_waits_between_the_workers_and_the_switch_and_a_canary_needs_no_leader() {
    let mut plan = upgrade();
    plan.canary = Some(crate::plan::Canary { hold: None });
    let mut world = World::new(&plan, Fate::default());
    let endless = |order: &Order| matches!(order.effect, Effect::Watch { until } if until == Timestamp::MAX);
    let go_on = |mut rollout: Rollout, world: &mut World| {
        while let Some(order) = rollout.open().iter().find(|order| !endless(order)).cloned() {
            let event = answer(&order, world, &plan);
            rollout = rollout.step(&event, world.now).0;
        }
        rollout
    };
    let canary = go_on(begin(&plan), &mut world);
    assert_eq!(canary.waits_at(), Some(Gate::Promote));

    let led = canary.step(&Event::Led, world.now).0;
    let left = led.step(&Event::Alone, world.now).0;
    assert_eq!((left.waits_at(), left.failure()), (Some(Gate::Promote), None));
    let promote = Event::Pass { gate: Gate::Promote };
    let by_hand = drive(left.step(&promote, world.now).0, &mut world.clone());
    assert_eq!(by_hand.phase(), Phase::Settled);

    let promoted = go_on(led.step(&promote, world.now).0, &mut world);
    assert_eq!(promoted.waits_at(), Some(Gate::Switch));
    assert!(
        world
            .log
            .iter()
            .any(|effect| effect.to_string() == "start jobs of rollout #2")
            && !world
                .log
                .iter()
                .any(|effect| matches!(effect, Effect::Switch { .. })),
        "workers start, nobody switches"
    );
    let alone = drive(promoted.step(&Event::Alone, world.now).0, &mut world.clone());
    assert_eq!(alone.phase(), Phase::Reverted);
    let switched = promoted.step(&Event::Pass { gate: Gate::Switch }, world.now).0;
    assert_eq!(drive(switched, &mut world).phase(), Phase::Settled);
}

#[test]
fn going_back_is_given_up_where_the_old_one_cannot_be_revived_and_the_new_one_lives() {
    let plan = upgrade();
    let (rollout, mut world) = going_back(&plan);
    let (rollout, failures) = fail_until(rollout, &mut world, Rollout::stayed);
    assert_eq!(failures, 11);
    let rollout = drive(rollout, &mut world);
    assert_eq!(rollout.phase(), Phase::Settled);
    assert_eq!(world.recorded, Some(RolloutNumber(2)));
    let said = rollout.warnings().join("\n");
    assert!(
        said.contains("v1 cannot be brought back") && said.contains("no such table"),
        "{said}"
    );
    // The former one is what a rollback would go to again, and another push is possible.
    let next = super::world::plan(Some(plan.new), deployment(3, 3, &["web", "jobs"]));
    assert_eq!(run(&next, Fate::default()).0.phase(), Phase::Settled);
}

#[test]
fn going_back_from_a_dead_release_ends_too() {
    let plan = upgrade();
    let web = plan.new.instance("web").expect("a role");
    let (rollout, mut world) = going_back(&plan);
    let died = Event::Died {
        instance: web.clone(),
        why: "exit code 1".to_owned(),
    };
    world.crash(&web);
    let rollout = rollout.step(&died, world.now).0;
    assert!(rollout.failure().is_some_and(|failure| failure.died));
    let (rollout, _) = fail_until(rollout, &mut world, Rollout::is_over);
    assert_eq!(rollout.phase(), Phase::Reverted);
    assert!(!rollout.stayed());
}

#[test]
fn a_container_with_visitors_is_followed_wherever_the_rollout_stands() {
    let plan = upgrade();
    let (old, new) = (
        plan.old
            .as_ref()
            .and_then(|old| old.instance("web"))
            .expect("a role"),
        plan.new.instance("web").expect("a role"),
    );
    let jobs = plan.new.instance("jobs").expect("a role");
    let followed = |rollout: &Rollout, instance: &Instance| {
        let moved = Event::Moved {
            instance: instance.clone(),
        };
        let (_, orders) = rollout.step(&moved, start());
        orders
            .iter()
            .any(|order| matches!(&order.effect, Effect::Follow { instance: other } if other == instance))
    };
    let resumed = |rollout: &Rollout, world: &World, instance: &Instance| {
        let (_, orders) = rollout.resume(&world.observe(), start());
        orders
            .iter()
            .any(|order| matches!(&order.effect, Effect::Follow { instance: other } if other == instance))
    };
    for (at, serves) in [
        (
            (|effect: &Effect| matches!(effect, Effect::Pull { .. })) as fn(&Effect) -> bool,
            &old,
        ),
        (|effect| matches!(effect, Effect::AwaitReady { .. }), &old),
        (|effect| matches!(effect, Effect::Drain { .. }), &new),
        (|effect| matches!(effect, Effect::Watch { .. }), &new),
        (|effect| matches!(effect, Effect::Prune), &new),
    ] {
        let mut world = World::new(&plan, Fate::default());
        let rollout = drive_to(&plan, &mut world, at);
        let other = if *serves == old { &new } else { &old };
        assert!(followed(&rollout, serves), "{}", rollout.phase());
        assert!(
            !followed(&rollout, other) && !followed(&rollout, &jobs),
            "{}",
            rollout.phase()
        );
        assert!(resumed(&rollout, &world, serves), "{}", rollout.phase());
    }
}

#[test]
fn an_address_that_cannot_be_followed_is_no_reason_to_go_back() {
    let plan = upgrade();
    let mut world = World::new(&plan, Fate::default());
    let rollout = drive_to(&plan, &mut world, |effect| matches!(effect, Effect::Watch { .. }));
    let moved = Event::Moved {
        instance: plan.new.instance("web").expect("a role"),
    };
    let (rollout, orders) = rollout.step(&moved, world.now);
    let failed = Event::Failed {
        ticket: orders[0].ticket,
        why: "no address".to_owned(),
    };
    let (rollout, _) = rollout.step(&failed, world.now);
    assert_eq!(rollout.phase(), Phase::Watching);
    assert!(rollout.warnings().is_empty());
}
