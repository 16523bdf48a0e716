//! Whether a new release does worse than the one before, from the proxy's counts of both.

use appliance_proxy::control::Counts;
use appliance_push::change::Watch;

/// At least this many answers before a share of errors means anything.
const ENOUGH_FOR_ERRORS: u64 = 20;
/// At least this many answers of each before a percentile means anything.
const ENOUGH_FOR_LATENCY: u64 = 100;
/// Below this many milliseconds nobody minds, however fast the former release was.
const UNNOTICED_MS: f64 = 100.0;
/// Which percentile is compared.
const SHARE: f64 = 0.95;

/// What is wrong with the new release, if anything is.
///
/// `warm` are its counts of a moment ago when it had just begun: what it answered until then does not count for latency,
/// because caches and connections were cold. Without `old`, errors are compared with none, and latency is not.
pub fn verdict(
    service: &str,
    new: &Counts,
    warm: &Counts,
    old: Option<&Counts>,
    limits: &Watch,
) -> Option<String> {
    if let Some(limit) = limits.error_rate
        && new.requests >= ENOUGH_FOR_ERRORS
    {
        let (now, before) = (errors(new), old.map_or(0.0, errors));
        if now > before + limit {
            return Some(format!(
                "{service} answered {:.1} % of {} requests with 5xx, the release before {:.1} %; {:.1} % more are allowed (x-appliance: watch)",
                now * 100.0,
                new.requests,
                before * 100.0,
                limit * 100.0
            ));
        }
    }
    let factor = limits.latency_factor?;
    let old = old.filter(|old| old.requests >= ENOUGH_FOR_LATENCY)?;
    let settled = since(&new.latency, &warm.latency);
    if settled.iter().sum::<u64>() < ENOUGH_FOR_LATENCY {
        return None;
    }
    let slow = |latency: &[u64]| {
        let counts = Counts {
            latency: latency.to_vec(),
            ..Counts::default()
        };
        // Beyond the last bound is slower than any number.
        counts.quantile_ms(SHARE).unwrap_or(f64::INFINITY)
    };
    let (now, before) = (slow(&settled), slow(&old.latency));
    (now > UNNOTICED_MS && now > before * factor).then(|| {
        format!(
            "{service} answers 95 % of its requests within {now:.0} ms, the release before within {before:.0} ms; {factor} times as much is allowed (x-appliance: watch)"
        )
    })
}

fn errors(counts: &Counts) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let share = counts.by_class[4] as f64 / counts.requests.max(1) as f64;
    share
}

fn since(now: &[u64], before: &[u64]) -> Vec<u64> {
    let before = before.iter().chain(std::iter::repeat(&0));
    now.iter()
        .zip(before)
        .map(|(now, before)| now.saturating_sub(*before))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `requests` answers, `failed` of them 5xx, all in bucket `bucket`.
    fn counts(requests: u64, failed: u64, bucket: usize) -> Counts {
        let mut latency = vec![0; 16];
        latency[bucket] = requests;
        Counts {
            requests,
            by_class: [0, requests - failed, 0, 0, failed],
            latency,
            ..Counts::default()
        }
    }

    #[test]
    fn errors_count_against_what_the_release_before_did() {
        let limits = Watch {
            window: 30,
            error_rate: Some(0.05),
            latency_factor: None,
        };
        for (new, old, worse) in [
            (counts(100, 6, 0), None, true),
            (counts(100, 5, 0), None, false),
            (counts(10, 10, 0), None, false),
            (counts(100, 20, 0), Some(counts(100, 18, 0)), false),
            (counts(100, 20, 0), Some(counts(100, 10, 0)), true),
        ] {
            let said = verdict("shop-web", &new, &Counts::default(), old.as_ref(), &limits);
            assert_eq!(said.is_some(), worse, "{said:?}");
        }
    }

    #[test]
    fn latency_counts_once_warm_and_once_there_is_enough_of_it() {
        let limits = Watch {
            window: 30,
            error_rate: None,
            latency_factor: Some(3.0),
        };
        let last = counts(1, 0, 0).latency.len() - 2;
        let none = Counts::default();
        for (new, warm, old, worse) in [
            (counts(200, 0, last), none.clone(), counts(500, 0, 1), true),
            (
                counts(200, 0, last),
                counts(150, 0, last),
                counts(500, 0, 1),
                false,
            ),
            (counts(200, 0, last), none.clone(), counts(50, 0, 1), false),
            (counts(200, 0, last), none.clone(), counts(500, 0, last), false),
            // 30 times as slow, but nobody notices.
            (counts(200, 0, 2), none.clone(), counts(500, 0, 0), false),
        ] {
            let said = verdict("shop-web", &new, &warm, Some(&old), &limits);
            assert_eq!(said.is_some(), worse, "{said:?}");
        }
    }
}
