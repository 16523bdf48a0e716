//! The time of day, as responses and logs tell it.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock of one worker.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    second: Cell<u64>,
    date: Cell<[u8; 29]>,
}

impl Clock {
    /// Milliseconds since 1970.
    pub(crate) fn millis() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// The same as a header value.
    pub(crate) fn date_value(&self) -> http::HeaderValue {
        http::HeaderValue::from_bytes(&self.date()).expect("a formatted date is a header value")
    }

    /// The time as in a `Date` field (RFC 9110 §5.6.7); formatted once a second.
    pub(crate) fn date(&self) -> [u8; 29] {
        let now = SystemTime::now();
        let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.second.replace(second) != second {
            let text = httpdate::fmt_http_date(now);
            if let Ok(date) = text.as_bytes().try_into() {
                self.date.set(date);
            }
        }
        self.date.get()
    }
}
