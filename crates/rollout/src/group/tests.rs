use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::effect::{Effect, Event};
use crate::plan::{Canary, Plan};
use crate::rollout::Rollout;
use crate::rollout::world::{Fate, World, answer, deployment, plan, start};

/// Hosts with their rollouts, and a leader who hears of them.
struct Fleet {
    group: Group,
    hosts: Vec<(Rollout, World)>,
    told: Vec<Vec<Phase>>,
    /// Whether the leader still leads.
    led: bool,
    /// Hosts that the leader neither hears nor reaches.
    deaf: BTreeSet<usize>,
    /// What the leader has to do besides telling hosts.
    todo: Vec<Action>,
    switched: BTreeSet<usize>,
    /// Whether canaries are being promoted; then nobody else does.
    promoting: bool,
    /// Canaries that were told that nobody leads them.
    left: BTreeSet<usize>,
}

impl Fleet {
    fn new(roles: &[&[&str]], fates: &[Fate], limit: usize, canary: bool) -> Self {
        let members = roles.iter().enumerate().map(|(index, roles)| Member {
            name: format!("host{index}"),
            primary: roles.contains(&"web"),
        });
        let hosts = roles.iter().enumerate().map(|(index, roles)| {
            let mut plan: Plan = plan(Some(deployment(1, 1, roles)), deployment(2, 2, roles));
            plan.gates = [Gate::Start, Gate::Switch, Gate::Settle].into();
            plan.release_command = index == 0;
            plan.canary = (canary && plan.shared().next().is_some()).then_some(Canary { hold: None });
            let world = World::new(&plan, fates[index].clone());
            (Rollout::begin(plan, start()).expect("a good plan").0, world)
        });
        let hosts: Vec<_> = hosts.collect();
        let mut fleet = Self {
            group: Group::new(members.collect(), limit),
            told: vec![Vec::new(); hosts.len()],
            hosts,
            led: true,
            deaf: BTreeSet::new(),
            todo: Vec::new(),
            switched: BTreeSet::new(),
            promoting: false,
            left: BTreeSet::new(),
        };
        for host in 0..fleet.hosts.len() {
            fleet.tell_leader(host);
        }
        fleet
    }

    /// Hosts that all have the same canary, and a leader who has just joined them.
    fn of_canaries(roles: &[&[&str]], fates: &[Fate], limit: usize) -> Self {
        let mut fleet = Self::new(roles, fates, limit, true);
        let waits = |(rollout, _): &(Rollout, World)| rollout.waits_at() == Some(Gate::Promote);
        while !fleet.hosts.iter().all(waits) {
            for host in 0..fleet.hosts.len() {
                fleet.work(host);
            }
            fleet.lead(0);
        }
        // Whoever pushed them is gone.
        fleet.lose_leader();
        let members = fleet.group.hosts.iter().map(|host| host.member.clone());
        fleet.group = Group::promoting(members.collect(), limit);
        fleet.promoting = true;
        fleet.led = true;
        fleet.switched.clear();
        for host in 0..fleet.hosts.len() {
            // It tells where it stands.
            fleet.told[host].pop();
            fleet.step(host, &Event::Led);
        }
        fleet
    }

    /// Whether nothing more happens to a host.
    fn rests(&self, host: usize) -> bool {
        let (rollout, _) = &self.hosts[host];
        let stays = !self.led || self.left.contains(&host);
        rollout.is_over() || (self.promoting && stays && rollout.waits_at() == Some(Gate::Promote))
    }

    fn canaries(&self) -> usize {
        let waits = |(rollout, _): &&(Rollout, World)| rollout.waits_at() == Some(Gate::Promote);
        self.hosts.iter().filter(waits).count()
    }

    fn step(&mut self, host: usize, event: &Event) {
        let (rollout, world) = &mut self.hosts[host];
        *rollout = rollout.step(event, world.now).0;
        world.check(rollout);
        self.tell_leader(host);
    }

    fn tell_leader(&mut self, host: usize) {
        if !self.led || self.deaf.contains(&host) {
            return;
        }
        let (rollout, _) = &self.hosts[host];
        let mut news = Vec::new();
        for (phase, _) in rollout.timeline().iter().skip(self.told[host].len()) {
            self.told[host].push(*phase);
            news.push(Heard::Reached(*phase));
        }
        news.extend(rollout.waits_at().map(Heard::Waits));
        if rollout.is_decided() {
            news.push(match rollout.phase() {
                Phase::Settled => Heard::Good,
                _ => Heard::Bad("reverted".to_owned()),
            });
        }
        for heard in news {
            let actions = self.group.heard(host, heard);
            self.todo.extend(actions);
        }
    }

    fn lead(&mut self, at: usize) {
        if self.todo.is_empty() {
            return;
        }
        let actions = match self.todo.remove(at % self.todo.len()) {
            Action::Open(_) => self.group.opened(),
            Action::Close(_) => self.group.closed(),
            Action::Pass(host, _) | Action::Cancel(host, _) if self.deaf.contains(&host) => Vec::new(),
            Action::Pass(host, gate) => {
                if gate == Gate::Switch {
                    self.switched.insert(host);
                }
                self.step(host, &Event::Pass { gate });
                Vec::new()
            }
            Action::Cancel(host, why) => {
                self.step(host, &Event::Cancel { why });
                Vec::new()
            }
            Action::Leave(host) => {
                self.left.insert(host);
                self.step(host, &Event::Alone);
                self.group.heard(host, Heard::Bad("it stays a canary".to_owned()))
            }
        };
        self.todo.extend(actions);
    }

    /// Carries out one order of a host, or lets its clock go on.
    fn work(&mut self, host: usize) {
        let (rollout, world) = &mut self.hosts[host];
        let order = rollout
            .open()
            .iter()
            .find(|order| !matches!(order.effect, Effect::Watch { until } if until == jiff::Timestamp::MAX))
            .cloned();
        let event = match (order, rollout.wakeup()) {
            (Some(order), _) => {
                if matches!(order.effect, Effect::RunReleaseCommand) {
                    let prepared = self
                        .hosts
                        .iter()
                        .all(|(other, _)| other.phase() >= Phase::Verified);
                    assert!(prepared, "the release command ran before every host was prepared");
                }
                let (rollout, world) = &mut self.hosts[host];
                answer(&order, world, rollout.plan())
            }
            (None, Some(at)) => {
                world.now = world.now.max(at);
                Event::Tick
            }
            (None, None) => return,
        };
        self.step(host, &event);
    }

    /// The host is alone, and the leader knows what it told last.
    fn lose_host(&mut self, host: usize) {
        self.deaf.insert(host);
        self.step(host, &Event::Alone);
        let actions = self.group.heard(host, Heard::Lost("no answer".to_owned()));
        self.todo.extend(actions);
    }

    fn lose_leader(&mut self) {
        self.led = false;
        self.todo.clear();
        for host in 0..self.hosts.len() {
            self.step(host, &Event::Alone);
        }
    }

    fn finish(&mut self) {
        for _ in 0..4000 {
            if (0..self.hosts.len()).all(|host| self.rests(host)) {
                for (rollout, world) in &self.hosts {
                    if rollout.is_over() {
                        world.check_end(rollout);
                    }
                }
                return;
            }
            for host in 0..self.hosts.len() {
                self.work(host);
                // A canary waits for a person, not for the leader.
                if !self.promoting && self.hosts[host].0.waits_at() == Some(Gate::Promote) {
                    self.step(host, &Event::Pass { gate: Gate::Promote });
                }
            }
            self.lead(0);
        }
        let phases: Vec<Phase> = self.hosts.iter().map(|(rollout, _)| rollout.phase()).collect();
        panic!("the group does not come to an end: {phases:?} {:?}", self.group);
    }

    fn settled(&self) -> usize {
        let settled = |(rollout, _): &&(Rollout, World)| rollout.phase() == Phase::Settled;
        self.hosts.iter().filter(settled).count()
    }
}

const LAYOUT: [&[&str]; 4] = [&["web"], &["web", "jobs"], &["jobs"], &["web"]];

#[test]
fn hosts_go_in_slices_and_settle_together() {
    let mut fleet = Fleet::new(&LAYOUT, &vec![Fate::default(); 4], 2, false);
    let mut switches = Vec::new();
    while !fleet.group.is_over() {
        for host in 0..4 {
            fleet.work(host);
        }
        while let Some(action) = fleet.todo.first() {
            match action {
                Action::Pass(host, Gate::Switch) => switches.push(*host),
                Action::Open(slice) => switches.push(100 + slice[0]),
                _ => {}
            }
            fleet.lead(0);
        }
        let old_runs = |(rollout, world): &(Rollout, World)| {
            let mut old = rollout.plan().old.iter().flat_map(crate::Deployment::proxied);
            old.all(|instance| world.containers.get(&instance) == Some(&crate::Seen::Running))
        };
        if fleet.settled() == 0 {
            assert!(
                fleet.hosts.iter().all(old_runs),
                "an old release went before all hosts were good"
            );
        }
    }
    assert_eq!(fleet.settled(), 4);
    assert_eq!(switches, [100, 0, 1, 102, 2, 3]);
    assert_eq!(fleet.switched, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn the_barrier_holds_hosts_without_the_primary_role() {
    let member = |name: &str, primary| Member {
        name: name.to_owned(),
        primary,
    };
    let mut group = Group::new(
        vec![member("a", true), member("b", true), member("jobs", false)],
        9,
    );
    for host in 0..2 {
        assert_eq!(group.heard(host, Heard::Waits(Gate::Start)), []);
    }
    assert_eq!(
        group.heard(2, Heard::Waits(Gate::Start)),
        [Action::Open(vec![0, 1, 2])]
    );
    assert_eq!(
        group.opened(),
        [Action::Pass(0, Gate::Start)],
        "the release command is first"
    );
    assert_eq!(group.heard(0, Heard::Reached(Phase::ReleaseCommand)), []);
    assert_eq!(
        group.heard(0, Heard::Reached(Phase::Starting)),
        [Action::Pass(1, Gate::Start)]
    );
    assert_eq!(group.heard(1, Heard::Reached(Phase::Healthy)), []);
    assert_eq!(
        group.heard(1, Heard::Waits(Gate::Switch)),
        [Action::Pass(2, Gate::Start)]
    );
    let cancelled = group.heard(2, Heard::Bad("no room".to_owned()));
    let why = || "jobs: no room".to_owned();
    assert_eq!(cancelled, [Action::Cancel(0, why()), Action::Cancel(1, why())]);
    assert_eq!(
        group.heard(0, Heard::Bad("cancelled".to_owned())),
        [],
        "told once"
    );
    assert_eq!(group.failure(), Some("jobs: no room"));
    assert!(!group.is_over());
}

/// What both hosts of a group told until they are watched.
fn watched() -> Group {
    let member = |name: &str| Member {
        name: name.to_owned(),
        primary: true,
    };
    let mut group = Group::new(vec![member("a"), member("b")], 9);
    for host in 0..2 {
        group.heard(host, Heard::Waits(Gate::Start));
    }
    group.opened();
    for host in 0..2 {
        group.heard(host, Heard::Reached(Phase::Healthy));
        group.heard(host, Heard::Waits(Gate::Switch));
    }
    for host in 0..2 {
        group.heard(host, Heard::Reached(Phase::Watching));
    }
    assert_eq!(group.closed(), []);
    group
}

#[test]
fn a_host_lost_after_its_switch_goes_on_and_so_do_the_others() {
    let mut group = watched();
    assert_eq!(group.heard(1, Heard::Lost("no answer".to_owned())), []);
    assert_eq!(group.failure(), None);
    assert!(group.goes_on_alone(1) && !group.goes_on_alone(0));
    assert_eq!(
        group.heard(0, Heard::Waits(Gate::Settle)),
        [Action::Pass(0, Gate::Settle)]
    );
    group.heard(0, Heard::Good);
    assert!(group.is_over());
}

#[test]
fn a_host_lost_while_it_goes_back_takes_the_others_along() {
    let mut group = watched();
    let cancelled = group.heard(1, Heard::Reached(Phase::Reverting));
    assert!(
        matches!(&cancelled[..], [Action::Cancel(0, _), Action::Cancel(1, _)]),
        "{cancelled:?}"
    );
    assert_eq!(group.heard(1, Heard::Lost("no answer".to_owned())), []);
    assert!(!group.goes_on_alone(1));
}

const CANARIES: [&[&str]; 3] = [&["web"], &["web", "jobs"], &["web", "jobs"]];

#[test]
fn canaries_are_promoted_in_slices_and_old_workers_wait_for_all() {
    let mut fleet = Fleet::of_canaries(&CANARIES, &vec![Fate::default(); 3], 2);
    assert_eq!(
        fleet.todo,
        [Action::Open(vec![0, 1])],
        "nothing moves before all are heard"
    );
    fleet.finish();
    assert_eq!((fleet.settled(), fleet.canaries()), (3, 0));
}

#[test]
fn a_worker_that_does_not_start_takes_every_canary_back() {
    let mut fates = vec![Fate::default(); 3];
    fates[2].never_ready = ["jobs".to_owned()].into();
    let mut fleet = Fleet::of_canaries(&CANARIES, &fates, 9);
    fleet.finish();
    assert!(fleet.switched.is_empty(), "a host switched: {:?}", fleet.switched);
    assert_eq!((fleet.settled(), fleet.canaries()), (0, 0));
    assert!(fleet.group.failure().is_some_and(|why| why.contains("host2")));
}

#[test]
fn canaries_stay_when_one_cannot_be_promoted_from_the_start() {
    let member = |name: &str| Member {
        name: name.to_owned(),
        primary: true,
    };
    let mut group = Group::promoting(vec![member("a"), member("b")], 9);
    group.heard(0, Heard::Reached(Phase::Canary));
    assert_eq!(group.heard(0, Heard::Waits(Gate::Promote)), []);
    let refused = group.heard(1, Heard::Bad("busy".to_owned()));
    assert_eq!(refused, [Action::Leave(0)]);
    assert_eq!(group.heard(0, Heard::Bad("it stays".to_owned())), []);
    assert!(group.is_over() && !group.has_begun());

    // Once the first was told to go on, there is no staying.
    let mut group = Group::promoting(vec![member("a"), member("b")], 1);
    for host in 0..2 {
        group.heard(host, Heard::Waits(Gate::Promote));
    }
    assert_eq!(group.opened(), [Action::Pass(0, Gate::Promote)]);
    let cancelled = group.heard(1, Heard::Lost("no answer".to_owned()));
    assert_eq!(cancelled, [Action::Cancel(0, "b: no answer".to_owned())]);
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = (
        prop::option::weighted(0.1, prop::sample::select(vec!["web", "jobs"])),
        prop::bool::weighted(0.05),
        prop::bool::weighted(0.1),
    );
    let fate = fate.prop_map(|(never_ready, command_fails, watch_trips)| Fate {
        never_ready: never_ready.into_iter().map(str::to_owned).collect(),
        command_fails,
        watch_trips,
    });
    prop::collection::vec(fate, 4)
}

#[derive(Debug, Clone)]
enum Choice {
    Work(usize),
    Lead(usize),
    /// The agent of a host is killed and the leader loses it.
    KillAgent(usize),
    /// The network between the leader and a host is gone for good.
    LoseHost(usize),
    Cancel,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever fails wherever: with a leader, all hosts end alike; a leader lost before any switch takes all back.
    #[test]
    fn hosts_end_alike(
        fates in fates(),
        limit in 1usize..5,
        canary in prop::bool::weighted(0.2),
        choices in prop::collection::vec(
            prop_oneof![
                20 => (0usize..4).prop_map(Choice::Work),
                10 => (0usize..9).prop_map(Choice::Lead),
                1 => (0usize..4).prop_map(Choice::KillAgent),
                1 => (0usize..4).prop_map(Choice::LoseHost),
                1 => Just(Choice::Cancel),
            ],
            0..200,
        ),
        lost in prop::option::weighted(0.3, Just(())),
    ) {
        let mut fleet = Fleet::new(&LAYOUT, &fates, limit, canary);
        let mut killed = false;
        let mut cut = false;
        for choice in choices {
            match choice {
                Choice::Work(host) => fleet.work(host),
                Choice::Lead(at) => fleet.lead(at),
                // A word to switch that was said and not seen to arrive may have arrived or not: nobody can know.
                // A failure of the release after that, here or elsewhere, splits the group as well.
                Choice::LoseHost(host) => {
                    let unclear = fleet.switched.contains(&host)
                        && fleet.hosts[host].0.phase() < Phase::Switched;
                    let spoilt = fleet.switched.contains(&host)
                        && (fates.iter().any(|fate| *fate != Fate::default())
                            || fleet.group.failure().is_some());
                    killed |= unclear || spoilt;
                    cut |= fleet.switched.contains(&host);
                    if !fleet.deaf.contains(&host) {
                        fleet.lose_host(host);
                    }
                }
                Choice::Cancel => {
                    killed |= cut;
                    let actions = fleet.group.cancel("the tester says so");
                    fleet.todo.extend(actions);
                }
                // An agent that starts again has no leader; the leader hears later how it ended.
                Choice::KillAgent(host) => {
                    killed |= fleet.switched.contains(&host) || !fleet.deaf.is_empty();
                    let (rollout, world) = &mut fleet.hosts[host];
                    *rollout = rollout.resume(&world.observe(), world.now).0;
                    fleet.step(host, &Event::Alone);
                }
            }
        }
        let before_switch = fleet.switched.is_empty();
        if lost.is_some() {
            fleet.lose_leader();
        }
        fleet.finish();
        let settled = fleet.settled();
        if lost.is_some() && before_switch {
            prop_assert_eq!(settled, 0);
        }
        // A canary is promoted host by host, and a host without a leader after its switch settles by itself.
        if lost.is_none() && !killed && !canary {
            prop_assert!(settled == 0 || settled == 4, "{} of 4 hosts settled", settled);
        }
    }

    /// A promotion that is led ends alike everywhere; without its leader before any switch nobody is promoted.
    #[test]
    fn canaries_end_alike(
        broken in prop::option::of((1usize..3, any::<bool>())),
        limit in 1usize..4,
        choices in prop::collection::vec(
            prop_oneof![
                20 => (0usize..3).prop_map(Choice::Work),
                10 => (0usize..9).prop_map(Choice::Lead),
                1 => Just(Choice::Cancel),
            ],
            0..80,
        ),
        lost in prop::bool::weighted(0.4),
    ) {
        let mut fates = vec![Fate::default(); 3];
        if let Some((host, watched)) = broken {
            fates[host].watch_trips = watched;
            if !watched {
                fates[host].never_ready = ["jobs".to_owned()].into();
            }
        }
        let mut fleet = Fleet::of_canaries(&CANARIES, &fates, limit);
        for choice in choices {
            match choice {
                Choice::Work(host) => fleet.work(host),
                Choice::Lead(at) => fleet.lead(at),
                _ => {
                    let actions = fleet.group.cancel("the tester says so");
                    fleet.todo.extend(actions);
                }
            }
        }
        let (begun, switched) = (fleet.group.has_begun(), !fleet.switched.is_empty());
        if lost {
            fleet.lose_leader();
        }
        fleet.finish();
        let (settled, canaries) = (fleet.settled(), fleet.canaries());
        if lost && !begun {
            prop_assert_eq!(canaries, 3, "a canary needs no leader");
        }
        if lost && !switched {
            prop_assert_eq!(settled, 0);
        }
        if !lost {
            prop_assert!(settled == 0 || settled == 3, "{} of 3 hosts settled", settled);
            prop_assert!(canaries == 0 || canaries == 3, "{} of 3 stay canaries", canaries);
        }
    }
}
