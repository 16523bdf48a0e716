//! Limits per visitor: connections at once, and requests a second by token buckets.
//!
//! A visitor is an IPv4 address or an IPv6 /64, the smallest network that one party gets.
//! Buckets are shared by all workers, in shards, so that a visitor with many connections gains nothing; they are only
//! touched by services that ask for a limit. The table is bounded: when a shard is full, a bucket that rested long
//! is forgotten, which can only be to a visitor's advantage.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

const SHARDS: usize = 64;
/// Buckets in one shard.
const MOST: usize = 1_024;

/// Whom a limit concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Visitor(u128);

impl Visitor {
    pub(crate) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits() & !u128::from(u64::MAX),
        })
    }
}

/// Connections at once, by visitor.
#[derive(Debug, Default)]
pub(crate) struct Connections(Mutex<HashMap<Visitor, u32>>);

/// One connection that is counted.
#[derive(Debug)]
pub(crate) struct Counted {
    all: Arc<Connections>,
    visitor: Visitor,
}

impl Connections {
    /// Counts one more, unless the visitor has `most` already.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr, most: u32) -> Option<Counted> {
        let visitor = Visitor::of(address);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(visitor).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted {
            all: Arc::clone(self),
            visitor,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.visitor) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.visitor);
            }
        }
    }
}

/// Token buckets, by service and visitor.
#[derive(Debug)]
pub(crate) struct Rates {
    shards: Box<[Mutex<HashMap<Key, Bucket>>]>,
    hasher: std::hash::RandomState,
}

type Key = (u64, Visitor);

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    last: Instant,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: std::hash::RandomState::new(),
        }
    }
}

impl Rates {
    /// Takes a token for one request; `Err` holds the whole seconds until there is one.
    pub(crate) fn take(
        &self,
        service: &str,
        address: IpAddr,
        rate: f64,
        burst: f64,
        now: Instant,
    ) -> Result<(), u64> {
        let key = (self.hasher.hash_one(service), Visitor::of(address));
        let place = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        let mut shard = self.shards[place].lock().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= MOST
            && !shard.contains_key(&key)
            && let Some(oldest) = rested_longest(&shard)
        {
            shard.remove(&oldest);
        }
        let bucket = shard.entry(key).or_insert(Bucket {
            tokens: burst,
            last: now,
        });
        let rested = now.saturating_duration_since(bucket.last).as_secs_f64();
        bucket.tokens = (bucket.tokens + rested * rate).min(burst);
        bucket.last = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let wait = ((1.0 - bucket.tokens) / rate).ceil().clamp(1.0, 3_600.0) as u64;
        Err(wait)
    }
}

/// The bucket that rested longest among a few: looking at all of them would be work that a flood could ask for.
fn rested_longest(shard: &HashMap<Key, Bucket>) -> Option<Key> {
    let some = shard.iter().take(16);
    some.min_by_key(|(_, bucket)| bucket.last).map(|(key, _)| *key)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_bucket_allows_its_burst_and_then_its_rate() {
        let (rates, now) = (Rates::default(), Instant::now());
        let take = |at| rates.take("web", ip("192.0.2.1"), 2.0, 5.0, now + Duration::from_millis(at));
        assert_eq!((0..5).filter(|_| take(0).is_ok()).count(), 5);
        assert_eq!(take(0), Err(1));
        assert_eq!(take(500), Ok(()));
        assert_eq!(take(500), Err(1));
        let other = rates.take("api", ip("192.0.2.1"), 2.0, 5.0, now);
        assert_eq!(other, Ok(()), "another service counts for itself");
    }

    #[test]
    fn ipv6_counts_by_64_and_mapped_ipv4_as_ipv4() {
        assert_eq!(
            Visitor::of(ip("2001:db8::1")),
            Visitor::of(ip("2001:db8::ffff:1"))
        );
        assert_ne!(Visitor::of(ip("2001:db8:0:1::1")), Visitor::of(ip("2001:db8::1")));
        assert_eq!(Visitor::of(ip("::ffff:192.0.2.1")), Visitor::of(ip("192.0.2.1")));
    }

    #[test]
    fn the_table_is_bounded_whoever_comes() {
        let (rates, now) = (Rates::default(), Instant::now());
        for number in 0..100_000_u32 {
            let address = IpAddr::from(number.to_be_bytes());
            let _taken = rates.take("web", address, 1.0, 1.0, now);
        }
        let kept: usize = rates.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(kept <= SHARDS * MOST, "{kept}");
    }

    #[test]
    fn connections_are_given_back() {
        let all = Arc::new(Connections::default());
        let one = all.enter(ip("192.0.2.1"), 2).unwrap();
        let two = all.enter(ip("192.0.2.1"), 2).unwrap();
        assert!(all.enter(ip("192.0.2.1"), 2).is_none());
        assert!(all.enter(ip("192.0.2.2"), 2).is_some());
        drop((one, two));
        assert!(all.enter(ip("192.0.2.1"), 2).is_some());
        assert!(all.0.lock().unwrap().is_empty(), "nothing is left behind");
    }
}
