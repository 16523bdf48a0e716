//! When a certificate is renewed, and when a failure is tried again; pure.
//!
//! The authority's own advice (ARI, RFC 9773) counts first: a random instant in its window.
//! Without it a certificate is renewed when two thirds of its life are over, which is right for 90, 47 and 6 days alike;
//! a part of the last third before that is spread at random, so that certificates of one day do not come back on one day.
//! Failures back off from one minute to one day, never beyond a tenth of the life that is left, and never before the
//! instant that the authority named in `Retry-After`.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Shortest pause after a failure.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_mins(1);
/// Longest pause after a failure.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(24);
/// How often the authority's advice is asked for when it does not say.
pub const ADVICE_EVERY: SignedDuration = SignedDuration::from_hours(6);
/// A certificate with less life than this is as good as none for a new release.
pub const HARDLY_ALIVE: SignedDuration = SignedDuration::from_mins(30);

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// From.
    pub not_before: Timestamp,
    /// Until.
    pub not_after: Timestamp,
}

/// The authority's advice (RFC 9773 §4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Begin of the window.
    pub start: Timestamp,
    /// Its end.
    pub end: Timestamp,
}

/// What went wrong the last times.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How many in a row.
    pub count: u32,
    /// When the last one was.
    pub last: Option<Timestamp>,
    /// Until when the authority asked to be left alone.
    pub wait_until: Option<Timestamp>,
    /// What the last one was, for people.
    pub why: String,
}

/// When the renewal is due, failures not counted. `luck` (0 to 1) was drawn when the certificate was issued.
pub fn due(validity: Validity, advice: Option<Window>, luck: f64) -> Timestamp {
    let luck = if luck.is_finite() {
        luck.clamp(0.0, 1.0)
    } else {
        0.5
    };
    if let Some(window) = advice
        && window.start < window.end
    {
        return window.start + part(window.end.duration_since(window.start), luck);
    }
    let life = validity.not_after.duration_since(validity.not_before);
    let spread = part(life, 0.05 * luck);
    let third = part(life, 1.0 / 3.0);
    later(validity.not_before, validity.not_after - third - spread)
}

/// The first instant at which an order may be tried, given when it is due.
pub fn next_try(due: Timestamp, failures: &Failures, not_after: Option<Timestamp>) -> Timestamp {
    let mut at = due;
    if let (count @ 1.., Some(last)) = (failures.count, failures.last) {
        let doubled = i32::try_from(count - 1).unwrap_or(i32::MAX).min(20);
        let mut pause = FIRST_PAUSE
            .checked_mul(1 << doubled)
            .unwrap_or(LONGEST_PAUSE)
            .min(LONGEST_PAUSE);
        if let Some(end) = not_after {
            let left = end.duration_since(last);
            // After the end nothing is left to be in time for.
            if left > SignedDuration::ZERO {
                pause = pause.min(part(left, 0.1)).max(FIRST_PAUSE);
            }
        }
        at = later(at, saturating(last, pause));
    }
    match failures.wait_until {
        Some(until) => later(at, until),
        None => at,
    }
}

fn part(whole: SignedDuration, share: f64) -> SignedDuration {
    SignedDuration::try_from_secs_f64(whole.as_secs_f64() * share).unwrap_or(SignedDuration::ZERO)
}

fn later(one: Timestamp, other: Timestamp) -> Timestamp {
    one.max(other)
}

fn saturating(from: Timestamp, pause: SignedDuration) -> Timestamp {
    from.checked_add(pause).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    const DAY: i64 = 86_400;

    #[test]
    fn without_advice_two_thirds_of_the_life_are_used() {
        for days in [6, 47, 90] {
            let validity = Validity {
                not_before: at(0),
                not_after: at(days * DAY),
            };
            let (early, late) = (due(validity, None, 1.0), due(validity, None, 0.0));
            assert_eq!(late, at(days * DAY * 2 / 3));
            assert!(early < late && early > at(days * DAY * 6 / 10), "{early}");
        }
    }

    #[test]
    fn advice_counts_first_even_when_it_means_now() {
        let validity = Validity {
            not_before: at(0),
            not_after: at(90 * DAY),
        };
        let window = Window {
            start: at(-2 * DAY),
            end: at(-DAY),
        };
        assert!(
            due(validity, Some(window), 0.3) < at(0),
            "a revoked certificate is renewed at once"
        );
    }

    #[test]
    fn a_name_whose_certificate_has_ended_is_not_ordered_every_minute() {
        let failures = |count| Failures {
            count,
            last: Some(at(10 * DAY)),
            wait_until: None,
            why: String::new(),
        };
        let end = Some(at(9 * DAY));
        assert_eq!(next_try(at(0), &failures(1), end), at(10 * DAY + 60));
        assert_eq!(next_try(at(0), &failures(12), end), at(11 * DAY));
    }

    proptest! {
        #[test]
        fn a_renewal_falls_into_the_life_of_the_certificate(
            begin in 0_i64..4_000_000_000,
            life in 3_600_i64..400 * DAY,
            luck in 0.0_f64..=1.0,
        ) {
            let validity = Validity { not_before: at(begin), not_after: at(begin + life) };
            let due = due(validity, None, luck);
            prop_assert!(due >= validity.not_before);
            prop_assert!(validity.not_after.duration_since(due).as_secs() >= life / 4);
        }

        #[test]
        fn advice_is_met_inside_its_window(start in 0_i64..4_000_000_000, width in 1_i64..60 * DAY, luck in 0.0_f64..=1.0) {
            let validity = Validity { not_before: at(0), not_after: at(90 * DAY) };
            let window = Window { start: at(start), end: at(start + width) };
            let due = due(validity, Some(window), luck);
            prop_assert!(due >= window.start && due <= window.end);
        }

        #[test]
        fn failures_wait_longer_and_longer_but_leave_time_for_nine_more(
            last in 0_i64..4_000_000_000,
            left in DAY..400 * DAY,
            count in 1_u32..100,
        ) {
            let failures = |count| Failures { count, last: Some(at(last)), wait_until: None, why: String::new() };
            let end = Some(at(last + left));
            let one = next_try(at(0), &failures(count), end);
            let next = next_try(at(0), &failures(count + 1), end);
            prop_assert!(one <= next, "never less patient");
            let pause = one.duration_since(at(last));
            prop_assert!(pause >= FIRST_PAUSE && pause <= LONGEST_PAUSE);
            prop_assert!(pause.as_secs() <= left / 10 + 1);
        }

        #[test]
        fn retry_after_is_kept_whatever_else_holds(
            last in 0_i64..4_000_000_000,
            wait in 0_i64..30 * DAY,
            count in 0_u32..50,
            due_at in 0_i64..4_000_000_000,
        ) {
            let until = at(last + wait);
            let failures = Failures { count, last: Some(at(last)), wait_until: Some(until), why: String::new() };
            prop_assert!(next_try(at(due_at), &failures, Some(at(last + 5))) >= until);
        }
    }
}
