//! Ids for requests that bring none.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

use http::HeaderValue;

/// Source of ids of one worker: unique, not secret.
#[derive(Debug)]
pub(crate) struct Ids {
    high: u64,
    next: Cell<u64>,
}

impl Ids {
    /// A source that differs from every other, in this process or another.
    pub(crate) fn new() -> Self {
        // The standard library keys its hashers from the system's random source.
        let seed = || RandomState::new().hash_one(std::process::id());
        Self {
            high: seed(),
            next: Cell::new(seed()),
        }
    }

    /// The next id: 32 hexadecimal digits.
    pub(crate) fn next(&self) -> [u8; 32] {
        let low = self.next.get();
        self.next.set(low.wrapping_add(1));
        // An odd multiplier keeps the low half a permutation, so that ids of neighbours do not look alike.
        let value = (u128::from(self.high) << 64) | u128::from(low.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut text = [0; 32];
        for (index, digit) in text.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(value >> (124 - 4 * index)) as usize & 15];
        }
        text
    }

    /// The next id as a header value.
    pub(crate) fn next_value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.next()).expect("hexadecimal digits are a header value")
    }
}

/// Whether an id that a client brought is fit to be passed on and logged.
pub(crate) fn acceptable(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(|b| b.is_ascii_graphic() && *b != b'"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ() {
        let ids = Ids::new();
        let other = Ids::new();
        let many: std::collections::HashSet<_> =
            (0..1000).map(|_| ids.next()).chain([other.next()]).collect();
        assert_eq!(many.len(), 1001);
        assert!(acceptable(&ids.next()));
    }

    #[test]
    fn strange_ids_are_not_passed_on() {
        for id in ["", "a b", "a\"b", &"x".repeat(129)] {
            assert!(!acceptable(id.as_bytes()), "{id:?}");
        }
    }
}
