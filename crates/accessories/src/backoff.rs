//! How long to wait before the next try.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Wait after the first failure.
pub const FIRST: SignedDuration = SignedDuration::from_secs(1);
/// No wait is longer.
pub const LONGEST: SignedDuration = SignedDuration::from_mins(5);
/// A run this long counts as well, and failures before it are forgotten.
pub const STABLE: SignedDuration = SignedDuration::from_mins(10);

/// Failures in a row, and when the next try is due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// Failures in a row.
    pub failures: u32,
    /// Earliest time of the next try; none after a success.
    pub next: Option<Timestamp>,
}

impl Backoff {
    /// The wait after that many failures in a row: 1 s, doubled up to five minutes.
    pub fn wait(failures: u32) -> SignedDuration {
        match failures {
            0 => SignedDuration::ZERO,
            // 2⁹ s are more than the longest wait.
            n => (FIRST * 2_i32.pow((n - 1).min(9))).min(LONGEST),
        }
    }

    /// One more failure, noticed at `now`.
    #[must_use]
    pub fn failed(self, now: Timestamp) -> Self {
        let failures = self.failures.saturating_add(1);
        Self {
            failures,
            next: Some(now.saturating_add(Self::wait(failures)).unwrap_or(Timestamp::MAX)),
        }
    }

    /// Forgets the failures once a run has lasted [`STABLE`].
    #[must_use]
    pub fn running_since(self, started: Timestamp, now: Timestamp) -> Self {
        if started.duration_until(now) >= STABLE {
            Self::default()
        } else {
            Self { next: None, ..self }
        }
    }

    /// Whether a try is due.
    pub fn due(self, now: Timestamp) -> bool {
        self.next.is_none_or(|next| next <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_up_to_five_minutes() {
        let seconds: Vec<i64> = (0..12).map(|n| Backoff::wait(n).as_secs()).collect();
        assert_eq!(seconds, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn only_a_long_run_forgets_the_failures() {
        let now = Timestamp::UNIX_EPOCH;
        let later = |seconds: i64| now + SignedDuration::from_secs(seconds);
        let bad = (0..7).fold(Backoff::default(), |backoff, _| backoff.failed(now));
        assert_eq!(bad.running_since(now, later(599)).failures, 7);
        assert_eq!(bad.running_since(now, later(600)), Backoff::default());
        assert!(!bad.due(later(63)) && bad.due(later(64)));
    }

    proptest! {
        #[test]
        fn no_number_of_failures_waits_longer_than_the_longest(failures in any::<u32>()) {
            prop_assert!(Backoff::wait(failures) <= LONGEST);
            prop_assert!(Backoff::wait(failures) >= Backoff::wait(failures.saturating_sub(1)));
        }
    }
}
