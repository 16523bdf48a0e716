//! Counters of requests, one set for each worker thread, added up when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::control::Counts;

/// Upper bounds of the latency buckets in milliseconds; one more bucket holds what is slower.
pub const BOUNDS_MS: [f64; 16] = [
    0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0, 30_000.0,
    60_000.0,
];

const BOUNDS_US: [u64; 16] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// What one worker counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    by_class: [AtomicU64; 5],
    failures: AtomicU64,
    latency: [AtomicU64; BOUNDS_MS.len() + 1],
    latency_sum_us: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    handshakes: AtomicU64,
}

impl Counters {
    /// Counts an answer with `status` after `took`.
    pub(crate) fn answered(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.by_class[class].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < micros);
        self.latency[bucket].fetch_add(1, Ordering::Relaxed);
        self.latency_sum_us.fetch_add(micros, Ordering::Relaxed);
    }

    /// Counts bytes sent to the upstream and to the client.
    pub(crate) fn moved(&self, received: u64, sent: u64) {
        self.received.fetch_add(received, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    /// Counts a TLS session that was made.
    pub(crate) fn shook_hands(&self) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an upstream that did not answer.
    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

/// Adds up the counters of all workers.
pub(crate) fn merge<'a>(shards: impl Iterator<Item = &'a Counters>) -> Counts {
    let mut sum = Counts {
        latency: vec![0; BOUNDS_MS.len() + 1],
        ..Counts::default()
    };
    for shard in shards {
        for (to, from) in sum.by_class.iter_mut().zip(&shard.by_class) {
            *to += from.load(Ordering::Relaxed);
        }
        for (to, from) in sum.latency.iter_mut().zip(&shard.latency) {
            *to += from.load(Ordering::Relaxed);
        }
        sum.latency_sum_us += shard.latency_sum_us.load(Ordering::Relaxed);
        sum.received_bytes += shard.received.load(Ordering::Relaxed);
        sum.sent_bytes += shard.sent.load(Ordering::Relaxed);
        sum.tls_handshakes += shard.handshakes.load(Ordering::Relaxed);
        sum.upstream_failures += shard.failures.load(Ordering::Relaxed);
    }
    sum.requests = sum.by_class.iter().sum();
    sum
}

/// See [`Counts::quantile_ms`].
pub(crate) fn quantile_ms(buckets: &[u64], share: f64) -> Option<f64> {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return None;
    }
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    let rank = ((total as f64 * share.clamp(0.0, 1.0)).ceil() as u64).max(1);
    let mut seen = 0;
    for (index, count) in buckets.iter().enumerate() {
        seen += count;
        if seen >= rank {
            return BOUNDS_MS.get(index).copied();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_name_the_bucket_in_which_they_end() {
        let counters = Counters::default();
        for _ in 0..99 {
            counters.answered(200, Duration::from_micros(800));
        }
        counters.answered(502, Duration::from_millis(70));
        let counts = merge([&counters].into_iter());
        assert_eq!(counts.requests, 100);
        assert_eq!(counts.by_class, [0, 99, 0, 0, 1]);
        assert_eq!(counts.quantile_ms(0.5), Some(1.0));
        assert_eq!(counts.quantile_ms(0.99), Some(1.0));
        assert_eq!(counts.quantile_ms(1.0), Some(100.0));
    }

    #[test]
    fn both_units_of_the_bounds_agree() {
        for (ms, us) in BOUNDS_MS.iter().zip(BOUNDS_US) {
            assert_eq!(Duration::from_secs_f64(ms / 1e3).as_micros(), u128::from(us));
        }
    }
}
