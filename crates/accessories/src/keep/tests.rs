use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;
use crate::backoff::LONGEST;

fn seen(life: Life) -> Seen {
    Seen {
        life,
        exit_code: 137,
        started: None,
        restarts: 0,
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
}

#[test]
fn what_is_missing_is_made_and_what_ended_is_started_after_a_wait() {
    let fresh = Backoff::default();
    let (step, _) = decide(Goal::Running, Policy::Always, seen(Life::Missing), fresh, at(0));
    assert_eq!(step, Step::Create);
    let (step, waiting) = decide(Goal::Running, Policy::Always, seen(Life::Exited), fresh, at(0));
    assert_eq!(step, Step::Wait(at(1)));
    let (step, started) = decide(Goal::Running, Policy::Always, seen(Life::Exited), waiting, at(1));
    assert_eq!((step, started.failures), (Step::Start, 1));
    let (step, _) = decide(Goal::Running, Policy::Always, seen(Life::Exited), started, at(2));
    assert_eq!(step, Step::Wait(at(4)), "the second wait is longer");
}

#[test]
fn an_end_that_the_policy_accepts_is_left() {
    let done = Seen {
        exit_code: 0,
        ..seen(Life::Exited)
    };
    for (policy, container, left) in [
        (Policy::No, seen(Life::Exited), true),
        (Policy::OnFailure { retries: 0 }, done, true),
        (Policy::OnFailure { retries: 0 }, seen(Life::Exited), false),
        (
            Policy::OnFailure { retries: 3 },
            Seen {
                restarts: 3,
                ..seen(Life::Exited)
            },
            true,
        ),
        (Policy::Always, done, false),
    ] {
        let (step, _) = decide(Goal::Running, policy, container, Backoff::default(), at(0));
        assert_eq!(matches!(step, Step::Leave(_)), left, "{policy:?} {container:?}");
    }
}

#[test]
fn what_should_be_stopped_is_stopped_and_stays() {
    for (life, step) in [
        (Life::Running, Step::Stop),
        (Life::Exited, Step::Nothing),
        (Life::Missing, Step::Nothing),
    ] {
        let (found, _) = decide(
            Goal::Stopped,
            Policy::Always,
            seen(life),
            Backoff::default(),
            at(0),
        );
        assert_eq!(found, step);
    }
}

/// What may happen to a container between two looks.
#[derive(Debug, Clone, Copy)]
enum Accident {
    Killed,
    Removed,
    StartFails,
}

proptest! {
    /// Whatever happened, once accidents end the container runs again after at most the longest wait, and no two starts
    /// are closer than the back-off allows.
    #[test]
    fn it_comes_back_and_never_in_a_hurry(
        accidents in proptest::collection::vec(
            (0_i64..400, prop_oneof![Just(Accident::Killed), Just(Accident::Removed), Just(Accident::StartFails)]),
            0..25,
        ),
    ) {
        let (mut life, mut backoff, mut now) = (Life::Running, Backoff::default(), 0_i64);
        let mut started = Some(at(0));
        let mut fails = false;
        for (pause, accident) in accidents {
            match accident {
                Accident::Killed if life != Life::Missing => life = Life::Exited,
                Accident::Killed => {}
                Accident::Removed => life = Life::Missing,
                Accident::StartFails => fails = true,
            }
            let until = now + pause;
            while now <= until {
                let container = Seen { life, exit_code: 137, started, restarts: 0 };
                let (step, after) = decide(Goal::Running, Policy::Always, container, backoff, at(now));
                backoff = after;
                match step {
                    Step::Create | Step::Start => {
                        if step == Step::Create { prop_assert_eq!(life, Life::Missing); }
                        if fails { backoff = backoff.failed(at(now)); if step == Step::Create { life = Life::Created; } }
                        else { life = Life::Running; started = Some(at(now)); }
                    }
                    Step::Wait(next) => prop_assert!(at(now).duration_until(next) <= LONGEST),
                    Step::Nothing => prop_assert_eq!(life, Life::Running),
                    other => prop_assert!(false, "{:?}", other),
                }
                now += 1;
            }
            fails = false;
        }
        for second in 0..=LONGEST.as_secs() + 1 {
            let container = Seen { life, exit_code: 137, started, restarts: 0 };
            let (step, after) = decide(Goal::Running, Policy::Always, container, backoff, at(now + second));
            backoff = after;
            if matches!(step, Step::Create | Step::Start) { life = Life::Running; }
        }
        prop_assert_eq!(life, Life::Running);
    }
}
