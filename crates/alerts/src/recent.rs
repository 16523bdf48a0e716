//! What happened within the last while: events, and counters that only grow.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};

/// Most events that are remembered of one subject.
const MOST: usize = 1_000;

/// Events by subject.
#[derive(Debug, Clone, Default)]
pub struct Recent(BTreeMap<String, VecDeque<Timestamp>>);

impl Recent {
    /// One more.
    pub fn happened(&mut self, subject: &str, at: Timestamp) {
        let events = self.0.entry(subject.to_owned()).or_default();
        events.push_back(at);
        if events.len() > MOST {
            events.pop_front();
        }
    }

    /// How often each happened within `window` before `now`; what is older is forgotten.
    pub fn counts(&mut self, now: Timestamp, window: SignedDuration) -> BTreeMap<String, u64> {
        self.forget(now, window);
        self.within(now, window)
    }

    /// How often each happened within `window` before `now`.
    pub fn within(&self, now: Timestamp, window: SignedDuration) -> BTreeMap<String, u64> {
        let count = |events: &VecDeque<Timestamp>| {
            events
                .iter()
                .filter(|at| now.duration_since(**at) <= window)
                .count() as u64
        };
        self.0
            .iter()
            .map(|(subject, events)| (subject.clone(), count(events)))
            .filter(|(_, times)| *times > 0)
            .collect()
    }

    /// Forgets what is older than `window`.
    pub fn forget(&mut self, now: Timestamp, window: SignedDuration) {
        for events in self.0.values_mut() {
            while events.front().is_some_and(|at| now.duration_since(*at) > window) {
                events.pop_front();
            }
        }
        self.0.retain(|_, events| !events.is_empty());
    }

    /// Who it happened to between the two, both included.
    pub fn between(&self, from: Timestamp, to: Timestamp) -> Vec<String> {
        self.0
            .iter()
            .filter(|(_, events)| events.iter().any(|at| (from..=to).contains(at)))
            .map(|(subject, _)| subject.clone())
            .collect()
    }

    /// Whether anything happened between the two, both included.
    pub fn any_between(&self, from: Timestamp, to: Timestamp) -> bool {
        self.0.values().flatten().any(|at| (from..=to).contains(at))
    }
}

/// Answers of one service within a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answered {
    /// All of them.
    pub requests: u64,
    /// Those with 5xx.
    pub errors: u64,
}

/// Two counters of a service, seen again and again.
#[derive(Debug, Clone, Default)]
pub struct Rate(VecDeque<(Timestamp, Answered)>);

impl Rate {
    /// What the counters show now; how much they grew within `window`.
    ///
    /// Counters that are smaller than before began anew, with the process that counts.
    pub fn see(&mut self, now: Timestamp, counters: Answered, window: SignedDuration) -> Answered {
        if self
            .0
            .back()
            .is_some_and(|(_, last)| counters.requests < last.requests || counters.errors < last.errors)
        {
            self.0.clear();
            self.0.push_back((now, Answered::default()));
        }
        self.0.push_back((now, counters));
        // The last look before the window is where the window's growth is counted from.
        while self.0.len() > 2 && now.duration_since(self.0[1].0) >= window {
            self.0.pop_front();
        }
        let first = self.0.front().map_or(counters, |(_, first)| *first);
        Answered {
            requests: counters.requests - first.requests,
            errors: counters.errors - first.errors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    const WINDOW: SignedDuration = SignedDuration::from_secs(60);

    #[test]
    fn events_count_within_the_window_and_are_forgotten_after_it() {
        let mut recent = Recent::default();
        for second in [0, 10, 20] {
            recent.happened("web", at(second));
        }
        assert_eq!(recent.counts(at(30), WINDOW)["web"], 3);
        assert_eq!(recent.counts(at(65), WINDOW)["web"], 2);
        assert!(recent.counts(at(81), WINDOW).is_empty());
    }

    #[test]
    fn a_rate_is_the_growth_within_the_window_also_when_the_counters_begin_anew() {
        let count = |requests, errors| Answered { requests, errors };
        let mut rate = Rate::default();
        assert_eq!(rate.see(at(0), count(1_000, 500), WINDOW), count(0, 0));
        assert_eq!(rate.see(at(30), count(1_100, 510), WINDOW), count(100, 10));
        assert_eq!(rate.see(at(60), count(1_200, 510), WINDOW), count(200, 10));
        assert_eq!(rate.see(at(90), count(1_200, 510), WINDOW), count(100, 0));
        // The proxy was started anew and has answered forty since.
        assert_eq!(rate.see(at(100), count(40, 1), WINDOW), count(40, 1));
        assert_eq!(rate.see(at(170), count(40, 1), WINDOW), count(0, 0));
    }
}
