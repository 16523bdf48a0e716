//! Which of a service's sets of upstreams a request goes to: the main one, the canary, or the readers; pure.
//!
//! The canary's share is decided by a cookie's value: the app's own (`kamal-rollout`, as kamal-proxy reads it), else one
//! that the proxy gives out.
//! A value's place between 0 and 100 % never changes, so whoever is in the canary stays in it while its share grows.

use crate::snapshot::{Canary, Service};

/// The cookie that an app may set, as in kamal-proxy.
const APP_COOKIE: &str = "kamal-rollout";
/// The cookie that the proxy sets when the app does not.
const OWN_COOKIE: &str = "appliance-canary";
/// The cookie that keeps a client with the writers; its value is when that ends, in milliseconds since 1970.
const WRITER_COOKIE: &str = "kamal-writer";

/// A set of upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Lane {
    #[default]
    Main,
    Canary,
    Read,
}

/// Where a request goes, and what the response has to set.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) lane: Lane,
    /// Value of a `Set-Cookie` field.
    pub(crate) cookie: Option<String>,
    /// Whether the response, unless the app says otherwise, keeps the client with the writers for a while.
    pub(crate) writes: bool,
}

/// What a request shows.
pub(crate) trait Shown {
    /// The first value of a field.
    fn field(&self, name: &str) -> Option<&[u8]>;
    /// The first cookie of that name.
    fn cookie(&self, name: &str) -> Option<&[u8]>;
}

/// Whether requests of this service have to be looked at.
pub(crate) fn is_needed(service: &Service) -> bool {
    service.canary.is_some() || !service.read_upstreams.is_empty()
}

/// Assigns a request. `new_id` is used for a client without a cookie; `now` is in milliseconds since 1970.
pub(crate) fn assign(
    service: &Service,
    shown: &dyn Shown,
    is_read: bool,
    is_upgrade: bool,
    new_id: &[u8],
    now: u64,
) -> Assignment {
    if let Some(canary) = &service.canary {
        let (chosen, cookie) = in_canary(canary, shown, new_id);
        if chosen || cookie.is_some() {
            let lane = if chosen { Lane::Canary } else { Lane::Main };
            return Assignment {
                lane,
                cookie,
                writes: false,
            };
        }
    }
    if service.read_upstreams.is_empty() {
        return Assignment::default();
    }
    let wants_reader = if is_upgrade {
        service.read_websockets
    } else {
        is_read
    };
    let bound = shown
        .cookie(WRITER_COOKIE)
        .and_then(|value| std::str::from_utf8(value).ok()?.parse::<u64>().ok())
        .is_some_and(|until| until > now);
    Assignment {
        lane: if wants_reader && !bound {
            Lane::Read
        } else {
            Lane::Main
        },
        cookie: None,
        writes: !is_read && !is_upgrade && !service.writer_affinity.is_zero(),
    }
}

fn in_canary(canary: &Canary, shown: &dyn Shown, new_id: &[u8]) -> (bool, Option<String>) {
    if let Some(header) = &canary.header
        && shown.field(&header.name) == Some(header.value.as_bytes())
    {
        return (true, None);
    }
    let listed = |value: &[u8]| canary.values.iter().any(|listed| listed.as_bytes() == value);
    for name in [APP_COOKIE, OWN_COOKIE] {
        if let Some(value) = shown.cookie(name) {
            return (listed(value) || within(value, canary.percent), None);
        }
    }
    if canary.percent <= 0.0 {
        return (false, None);
    }
    let cookie = format!(
        "{OWN_COOKIE}={}; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax",
        String::from_utf8_lossy(new_id)
    );
    (within(new_id, canary.percent), Some(cookie))
}

/// kamal-proxy's rule: FNV-1a of the value, as a share of all values, is at most `percent`.
fn within(value: &[u8], percent: f64) -> bool {
    let hash = value.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    percent > 0.0 && f64::from(hash) <= f64::from(u32::MAX) * percent / 100.0
}

/// The `Set-Cookie` value that keeps a client with the writers.
pub(crate) fn writer_cookie(service: &Service, now: u64) -> String {
    let affinity = service.writer_affinity;
    let until = now.saturating_add(u64::try_from(affinity.as_millis()).unwrap_or(u64::MAX));
    let seconds = affinity.as_secs() + u64::from(affinity.subsec_nanos() > 0);
    format!("{WRITER_COOKIE}={until}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax")
}

/// The first cookie named `name` in the value of a `Cookie` field.
pub(crate) fn cookie_in<'v>(value: &'v [u8], name: &str) -> Option<&'v [u8]> {
    value.split(|b| *b == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::*;
    use crate::names::ServiceName;
    use crate::snapshot::CanaryHeader;

    struct Request(HashMap<&'static str, String>);

    impl Shown for Request {
        fn field(&self, name: &str) -> Option<&[u8]> {
            self.0.get(name).map(|value| value.as_bytes())
        }
        fn cookie(&self, name: &str) -> Option<&[u8]> {
            cookie_in(self.field("cookie")?, name)
        }
    }

    fn request(cookie: &str) -> Request {
        Request(HashMap::from([("cookie", cookie.to_owned())]))
    }

    fn canary(percent: f64) -> Service {
        let mut service = Service::new(ServiceName::parse("s").unwrap(), vec![], vec![]);
        service.canary = Some(Canary {
            upstreams: vec![],
            percent,
            values: vec!["friend".into()],
            header: Some(CanaryHeader {
                name: "x-canary".into(),
                value: "yes".into(),
            }),
        });
        service
    }

    #[test]
    fn the_share_is_what_was_asked_for_and_only_grows() {
        let in_it = |percent| -> Vec<u32> {
            let service = canary(percent);
            let chosen = |id: &u32| {
                let shown = request(&format!("a=b; kamal-rollout=user-{id}"));
                assign(&service, &shown, true, false, b"", 0).lane == Lane::Canary
            };
            (0..10_000).filter(chosen).collect()
        };
        let (ten, half) = (in_it(10.0), in_it(50.0));
        assert!((900..1100).contains(&ten.len()), "{}", ten.len());
        assert!((4800..5200).contains(&half.len()), "{}", half.len());
        assert!(ten.iter().all(|id| half.contains(id)));
        assert!(in_it(0.0).is_empty());
        assert_eq!(in_it(100.0).len(), 10_000);
    }

    #[test]
    fn lists_and_headers_choose_too() {
        let service = canary(0.0);
        let lane = |shown: &Request| assign(&service, shown, true, false, b"", 0).lane;
        assert_eq!(lane(&request("kamal-rollout=friend")), Lane::Canary);
        assert_eq!(lane(&request("kamal-rollout=stranger")), Lane::Main);
        assert_eq!(
            lane(&Request(HashMap::from([("x-canary", "yes".into())]))),
            Lane::Canary
        );
    }

    #[test]
    fn a_client_without_a_cookie_gets_one_that_puts_it_in_the_same_place_again() {
        let service = canary(50.0);
        for id in 0..100 {
            let id = format!("{id:032x}");
            let first = assign(&service, &request(""), true, false, id.as_bytes(), 0);
            let cookie = first.cookie.unwrap();
            let again = assign(
                &service,
                &request(cookie.split(';').next().unwrap()),
                true,
                false,
                b"",
                0,
            );
            assert_eq!((again.lane, again.cookie), (first.lane, None));
        }
    }

    #[test]
    fn reads_go_to_readers_until_the_client_wrote() {
        let mut service = canary(0.0);
        service.canary = None;
        service.read_upstreams = vec!["127.0.0.1:1".parse().unwrap()];
        service.writer_affinity = Duration::from_millis(1500);
        let lane = |cookie: &str, is_read, upgrade| {
            let assignment = assign(&service, &request(cookie), is_read, upgrade, b"", 1000);
            (assignment.lane, assignment.writes)
        };
        assert_eq!(lane("", true, false), (Lane::Read, false));
        assert_eq!(lane("", false, false), (Lane::Main, true));
        assert_eq!(lane("", true, true), (Lane::Main, false));
        let cookie = writer_cookie(&service, 1000);
        assert!(
            cookie.starts_with("kamal-writer=2500; Path=/; Max-Age=2;"),
            "{cookie}"
        );
        assert_eq!(lane("kamal-writer=2500", true, false), (Lane::Main, false));
        assert_eq!(lane("kamal-writer=999", true, false), (Lane::Read, false));
        assert_eq!(lane("xkamal-writer=2500", true, false), (Lane::Read, false));
    }
}
