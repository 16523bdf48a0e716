//! Whose process it was that the kernel killed for want of memory.
//!
//! The kernel counts kills and names nobody; Docker names the container, sometimes a moment later, sometimes not at all.
//! So a kill is the host's only once no container was named around it, and none ended by a SIGKILL that nobody asked for.
//! Whichever it is, it is told once: a name that comes after a kill was given to the host changes nothing any more.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::recent::Recent;
use crate::rules::HOST;

/// How long Docker may take to name the container.
const GRACE: SignedDuration = SignedDuration::from_secs(10);
/// A name that comes later than this is that of another kill.
const LATE: SignedDuration = SignedDuration::from_secs(60);
/// The exit code of a process that SIGKILL ended.
const KILLED: i64 = 137;

/// Kills of the last while.
#[derive(Debug, Clone, Default)]
pub struct Kills {
    counter: Option<(Timestamp, u64)>,
    unnamed: Vec<Unnamed>,
    named: Recent,
    /// Containers that SIGKILL ended, and nobody had asked for it.
    suspects: Recent,
    host: Recent,
}

/// Kills between two looks at the kernel's counter.
#[derive(Debug, Clone, Copy)]
struct Unnamed {
    from: Timestamp,
    to: Timestamp,
    times: u64,
}

impl Kills {
    /// Docker named a container.
    pub fn container(&mut self, name: &str, at: Timestamp) {
        let named_before = self.named.any_between(at - LATE, at);
        if !named_before && self.host.any_between(at - LATE, at) {
            return;
        }
        self.named.happened(name, at);
    }

    /// A container ended with this exit code, and nobody had asked for it.
    pub fn ended(&mut self, name: &str, code: i64, at: Timestamp) {
        if code == KILLED {
            self.suspects.happened(name, at);
        }
    }

    /// The kernel's counter, `oom_kill` of `/proc/vmstat`; it holds those of containers too.
    pub fn kernel(&mut self, now: Timestamp, count: u64) {
        if let Some((from, before)) = self.counter
            && count > before
        {
            self.unnamed.push(Unnamed {
                from,
                to: now,
                times: count - before,
            });
        }
        self.counter = Some((now, count));
    }

    /// How often something was killed within `window` before `now`, by container or [`HOST`].
    pub fn counts(&mut self, now: Timestamp, window: SignedDuration) -> BTreeMap<String, u64> {
        let (named, suspects, host) = (&mut self.named, &self.suspects, &mut self.host);
        self.unnamed.retain(|kills| {
            if now.duration_since(kills.to) < GRACE {
                return true;
            }
            let (from, to) = (kills.from - GRACE, kills.to + GRACE);
            if named.any_between(from, to) {
                return false;
            }
            let suspects = suspects.between(from, to);
            for suspect in &suspects {
                named.happened(suspect, kills.to);
            }
            if suspects.is_empty() {
                for _ in 0..kills.times {
                    host.happened(HOST, kills.to);
                }
            }
            false
        });
        // What has still to be compared with must not be forgotten before.
        let oldest = self
            .unnamed
            .iter()
            .map(|kills| now.duration_since(kills.from) + GRACE);
        let kept = oldest.fold(window.max(LATE), SignedDuration::max);
        let mut counts = self.named.within(now, window);
        self.named.forget(now, kept);
        self.suspects.forget(now, kept);
        counts.extend(self.host.within(now, window));
        self.host.forget(now, window.max(LATE));
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    const WINDOW: SignedDuration = SignedDuration::from_secs(60);

    fn told(kills: &mut Kills, second: i64) -> Vec<String> {
        let counts = kills.counts(at(second), WINDOW);
        counts
            .iter()
            .map(|(name, times)| format!("{name} {times}"))
            .collect()
    }

    #[test]
    fn a_kill_is_the_containers_whichever_of_the_two_is_quicker() {
        for named_at in [1, 6, 12] {
            let mut kills = Kills::default();
            kills.kernel(at(0), 7);
            if named_at < 5 {
                kills.container("eater", at(named_at));
            }
            kills.kernel(at(5), 9);
            let early: &[&str] = if named_at < 5 { &["eater 1"] } else { &[] };
            assert_eq!(told(&mut kills, 5), early);
            if named_at > 5 {
                kills.container("eater", at(named_at));
            }
            for second in [15, 30] {
                kills.kernel(at(second), 9);
                assert_eq!(told(&mut kills, second), ["eater 1"], "named at {named_at}");
            }
        }
    }

    #[test]
    fn a_kill_that_nobody_names_is_the_hosts_and_passes() {
        let mut kills = Kills::default();
        kills.kernel(at(0), 7);
        kills.kernel(at(5), 9);
        assert!(told(&mut kills, 14).is_empty(), "not yet");
        assert_eq!(told(&mut kills, 15), ["host 2"]);
        assert_eq!(told(&mut kills, 65), ["host 2"]);
        assert!(told(&mut kills, 66).is_empty());
        // A container's kill long after is its own.
        kills.kernel(at(100), 10);
        kills.container("eater", at(100));
        assert_eq!(told(&mut kills, 110), ["eater 1"]);
    }

    #[test]
    fn a_container_that_sigkill_ended_is_who_it_was_where_docker_names_none() {
        let mut kills = Kills::default();
        kills.kernel(at(0), 7);
        kills.ended("eater", 137, at(3));
        kills.ended("other", 1, at(3));
        kills.kernel(at(5), 8);
        assert_eq!(told(&mut kills, 15), ["eater 1"]);
        // SIGKILL alone, without the kernel's counter, says nothing.
        kills.ended("other", 137, at(100));
        kills.kernel(at(110), 8);
        assert!(told(&mut kills, 120).is_empty());
    }

    #[test]
    fn a_name_that_comes_after_the_host_was_told_is_not_told_as_another_kill() {
        let mut kills = Kills::default();
        kills.kernel(at(0), 7);
        kills.kernel(at(5), 8);
        assert_eq!(told(&mut kills, 15), ["host 1"]);
        kills.container("eater", at(40));
        assert_eq!(told(&mut kills, 41), ["host 1"]);
        // The next one is told, and named.
        kills.kernel(at(200), 9);
        kills.container("eater", at(200));
        assert_eq!(told(&mut kills, 211), ["eater 1"]);
    }

    #[test]
    fn a_window_shorter_than_the_grace_forgets_no_name_too_early() {
        let mut kills = Kills::default();
        let short = SignedDuration::from_secs(2);
        kills.kernel(at(0), 0);
        kills.container("eater", at(1));
        kills.kernel(at(4), 1);
        for second in 4..30 {
            let counts = kills.counts(at(second), short);
            assert!(!counts.contains_key(HOST), "{second}: {counts:?}");
        }
    }
}
