//! How often containers ended without anybody having asked for it.
//!
//! ```text
//!   kill … die … stop        somebody stopped it: no loop, and what was counted before is over with it
//!   kill … die               somebody killed it
//!   die … start … die …      on its own, whatever the exit code: a worker that has nothing to do loops as well
//!   die, destroy             made for one run (`docker run --rm`): an end in good order is none of ours
//! ```

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};

/// Most ends that are remembered of one container.
const MOST: usize = 1_000;
/// A signal that was sent this long before an end is why it ended.
const SIGNAL: SignedDuration = SignedDuration::from_secs(10);
/// A container that is removed this soon after its end removed itself.
const AT_ONCE: SignedDuration = SignedDuration::from_secs(3);

/// Exit codes that say nothing bad: done, or ended by SIGTERM.
const GOOD: [i64; 2] = [0, 143];

/// One end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    at: Timestamp,
    good: bool,
}

/// The ends of one container.
#[derive(Debug, Clone, Default)]
struct Life {
    ends: VecDeque<End>,
    signalled: Option<Timestamp>,
    /// Which container had the name last, and how often that one ended: what removes itself does so after its first end.
    last: (String, u64),
    /// Its last end was asked for.
    asked: bool,
}

/// How often a container ended within the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// All ends.
    pub times: u64,
    /// Each of them was in good order: a loop only where Docker starts it again by itself.
    pub good: bool,
}

/// Ends that nobody asked for, by container.
#[derive(Debug, Clone, Default)]
pub struct Ends(BTreeMap<String, Life>);

impl Ends {
    /// Docker sent it a signal, for whoever asked.
    pub fn signalled(&mut self, name: &str, at: Timestamp) {
        self.0.entry(name.to_owned()).or_default().signalled = Some(at);
    }

    /// It ended; whether that counts. `id` is the container's, which the next one of that name has not.
    pub fn ended(&mut self, name: &str, id: &str, code: i64, at: Timestamp) -> bool {
        let life = self.0.entry(name.to_owned()).or_default();
        if life.last.0 != id {
            life.last = (id.to_owned(), 0);
        }
        life.last.1 += 1;
        life.asked = life
            .signalled
            .take()
            .is_some_and(|signal| at.duration_since(signal) <= SIGNAL);
        if life.asked {
            return false;
        }
        let good = GOOD.contains(&code);
        life.ends.push_back(End { at, good });
        if life.ends.len() > MOST {
            life.ends.pop_front();
        }
        true
    }

    /// Somebody stopped it, however long that took: whatever looped does so no more.
    pub fn stopped(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// It is gone. What ended badly and removed itself may be started again under its name, and counts on.
    pub fn removed(&mut self, name: &str, at: Timestamp) {
        let Some(life) = self.0.get_mut(name) else { return };
        let soon = |end: &End| at.duration_since(end.at) <= AT_ONCE;
        let itself = !life.asked && life.last.1 == 1 && life.ends.back().is_some_and(soon);
        if itself {
            life.ends.retain(|end| !end.good);
        } else {
            life.ends.clear();
        }
        life.signalled = None;
        if life.ends.is_empty() {
            self.0.remove(name);
        }
    }

    /// How often each ended within `window` before `now`; what is older is forgotten.
    pub fn counts(&mut self, now: Timestamp, window: SignedDuration) -> BTreeMap<String, Count> {
        for life in self.0.values_mut() {
            let old = |end: &End| now.duration_since(end.at) > window;
            while life.ends.front().is_some_and(old) {
                life.ends.pop_front();
            }
            life.signalled = life
                .signalled
                .filter(|signal| now.duration_since(*signal) <= SIGNAL);
        }
        self.0
            .retain(|_, life| !life.ends.is_empty() || life.signalled.is_some());
        let count = |life: &Life| Count {
            times: life.ends.len() as u64,
            good: life.ends.iter().all(|end| end.good),
        };
        self.0
            .iter()
            .filter(|(_, life)| !life.ends.is_empty())
            .map(|(name, life)| (name.clone(), count(life)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    const WINDOW: SignedDuration = SignedDuration::from_secs(60);

    fn times(ends: &mut Ends, second: i64) -> u64 {
        let counts = ends.counts(at(second), WINDOW);
        counts.get("web").map_or(0, |count| count.times)
    }

    #[test]
    fn a_worker_that_ends_with_0_over_and_over_is_counted() {
        for code in [0, 143, 1] {
            let mut ends = Ends::default();
            for second in [0, 1, 3] {
                assert!(ends.ended("web", "1", code, at(second)));
            }
            let count = ends.counts(at(4), WINDOW)["web"];
            assert_eq!((count.times, count.good), (3, code != 1));
            assert_eq!(times(&mut ends, 64), 0, "forgotten after the window");
        }
    }

    #[test]
    fn what_somebody_asked_for_is_no_end_on_its_own() {
        // `docker restart`, again and again; the grace may be longer than a signal is remembered.
        let mut ends = Ends::default();
        for second in [0, 20, 40] {
            ends.signalled("web", at(second));
            ends.ended("web", "1", 143, at(second + 15));
            ends.stopped("web");
        }
        assert_eq!(times(&mut ends, 56), 0);
        // `docker kill`: no stop is told.
        for second in [60, 61, 62] {
            ends.signalled("web", at(second));
            assert!(!ends.ended("web", "1", 137, at(second)));
        }
        assert_eq!(times(&mut ends, 63), 0);
        // A signal that was for something else explains no end long after.
        ends.signalled("web", at(70));
        assert!(ends.ended("web", "1", 1, at(90)));
        assert_eq!(times(&mut ends, 91), 1);
    }

    #[test]
    fn a_loop_is_over_once_somebody_stops_or_removes_it() {
        let mut ends = Ends::default();
        let three = |ends: &mut Ends, from: i64| {
            for second in from..from + 3 {
                ends.ended("web", "1", 1, at(second));
            }
        };
        three(&mut ends, 0);
        ends.signalled("web", at(3));
        ends.stopped("web");
        assert_eq!(times(&mut ends, 4), 0);
        // `docker rm --force` while it runs, and while it waits for its next start.
        three(&mut ends, 10);
        ends.signalled("web", at(13));
        ends.ended("web", "1", 137, at(13));
        ends.removed("web", at(13));
        assert_eq!(times(&mut ends, 13), 0);
        three(&mut ends, 20);
        ends.removed("web", at(22));
        assert_eq!(times(&mut ends, 22), 0);
    }

    #[test]
    fn a_job_of_one_run_is_no_loop_and_one_that_fails_is() {
        let mut ends = Ends::default();
        for second in [0, 10, 20] {
            ends.ended("web", &second.to_string(), 0, at(second));
            ends.removed("web", at(second));
        }
        assert_eq!(times(&mut ends, 21), 0);
        for second in [30, 31, 32] {
            ends.ended("web", &second.to_string(), 1, at(second));
            ends.removed("web", at(second));
        }
        assert_eq!(times(&mut ends, 33), 3);
    }
}
