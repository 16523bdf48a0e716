//! Bans: who fails to log in again and again is kept out for a while, longer each time.
//!
//! sshd's own lines are the source; [`login`] reads them from their end, because names in them are chosen by strangers.
//! [`Bans`] counts; what it decides goes into sets of the table, and into [`FILE`] so that it outlives a reload.
//! Who guesses passwords is kept from SSH alone, since a whole office or a carrier may share the address;
//! only a person keeps somebody from everything. Where somebody logged in lately, nobody is kept out for mistakes.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::opening::Net;

/// Bans in force, for the next load of the table.
pub const FILE: &str = "/var/lib/appliance/fw/bans.json";
/// Failures within [`WINDOW`] that lead to a ban.
const FAILURES: usize = 10;
/// Seconds in which failures are counted together.
const WINDOW: u64 = 600;
/// Seconds of the first ban; each further one is twice as long.
const FIRST: u64 = 3_600;
/// Seconds of the longest ban.
const LONGEST: u64 = 7 * 86_400;
/// Seconds for which a source is trusted after somebody logged in from there.
const TRUSTED: u64 = 86_400;
/// Seconds after which a further login is written down again.
const AGAIN: u64 = 3_600;
/// Sources counted, kept out and trusted, each at the same time; the oldest are forgotten first.
const SOURCES: usize = 8_192;

/// Who keeps failing, and who is out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bans {
    /// Bans in force or lately in force.
    #[serde(default)]
    bans: BTreeMap<IpAddr, Ban>,
    /// When somebody last logged in from a source, Unix seconds.
    #[serde(default)]
    trusted: BTreeMap<IpAddr, u64>,
    /// Times of failures, Unix seconds.
    #[serde(skip)]
    failures: BTreeMap<IpAddr, VecDeque<u64>>,
}

/// One ban.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// Until when, Unix seconds.
    pub until: u64,
    /// How many bans in a row.
    pub times: u32,
    /// What it is kept from.
    #[serde(default)]
    pub from: KeptFrom,
}

/// What a source is kept from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeptFrom {
    /// SSH.
    #[default]
    Ssh,
    /// Every port.
    Everything,
}

impl Bans {
    /// One failed login at `now` (Unix seconds); the seconds of the ban that follows from it, if one does.
    ///
    /// Networks in `exempt` are never banned, nor are sources from which somebody logged in within a day.
    pub fn failed(&mut self, address: IpAddr, now: u64, exempt: &[Net]) -> Option<u64> {
        let source = key(address);
        let trusted = self.trusted.get(&source).is_some_and(|at| at + TRUSTED > now);
        if trusted || address.is_loopback() || exempt.iter().any(|net| net.contains(address)) {
            return None;
        }
        if self.failures.len() >= SOURCES && !self.failures.contains_key(&source) {
            let oldest = self
                .failures
                .iter()
                .min_by_key(|(_, times)| times.back().copied())
                .map(|(source, _)| *source);
            oldest.and_then(|oldest| self.failures.remove(&oldest));
        }
        let times = self.failures.entry(source).or_default();
        times.push_back(now);
        while times.front().is_some_and(|first| first + WINDOW < now) {
            times.pop_front();
        }
        if times.len() < FAILURES {
            return None;
        }
        self.failures.remove(&source);
        let before = self
            .bans
            .get(&source)
            .filter(|ban| ban.until + LONGEST > now)
            .map_or(0, |ban| ban.times);
        let seconds = FIRST.checked_shl(before).unwrap_or(LONGEST).min(LONGEST);
        self.ban(source, now, seconds, before + 1, KeptFrom::Ssh);
        Some(seconds)
    }

    /// Somebody logged in at `now` (Unix seconds): what failed there before was a mistake.
    pub fn succeeded(&mut self, address: IpAddr, now: u64) {
        let source = key(address);
        self.failures.remove(&source);
        if self.trusted.get(&source).is_some_and(|at| at + AGAIN > now) {
            return;
        }
        self.trusted.retain(|_, at| *at + TRUSTED > now);
        if self.trusted.len() >= SOURCES {
            let oldest = self.trusted.iter().min_by_key(|(_, at)| **at);
            oldest
                .map(|(source, _)| *source)
                .and_then(|source| self.trusted.remove(&source));
        }
        self.trusted.insert(source, now);
    }

    fn ban(&mut self, source: IpAddr, now: u64, seconds: u64, times: u32, from: KeptFrom) {
        self.bans.retain(|_, ban| ban.until + LONGEST > now);
        if self.bans.len() >= SOURCES && !self.bans.contains_key(&source) {
            let soonest = self.bans.iter().min_by_key(|(_, ban)| ban.until);
            soonest
                .map(|(source, _)| *source)
                .and_then(|source| self.bans.remove(&source));
        }
        self.bans.insert(
            source,
            Ban {
                until: now + seconds,
                times,
                from,
            },
        );
    }

    /// Keeps a source out of everything because somebody said so.
    pub fn add(&mut self, address: IpAddr, now: u64, seconds: u64) {
        self.ban(key(address), now, seconds, 1, KeptFrom::Everything);
    }

    /// Lets a source in again, and forgets what it did; `false` if it was not out.
    pub fn lift(&mut self, address: IpAddr) -> bool {
        self.failures.remove(&key(address));
        self.bans.remove(&key(address)).is_some()
    }

    /// Who is out at `now` of SSH or of everything, and for how many seconds more.
    pub fn active(&self, now: u64, from: KeptFrom) -> impl Iterator<Item = (IpAddr, u64)> {
        self.bans
            .iter()
            .filter(move |(_, ban)| ban.until > now && ban.from == from)
            .map(move |(source, ban)| (*source, ban.until - now))
    }

    /// Whether what is written down of both would be the same; failures that led to nothing are not written.
    pub fn is_written_like(&self, other: &Self) -> bool {
        self.bans == other.bans && self.trusted == other.trusted
    }

    /// The nft commands that put the active bans of one kind into the table.
    ///
    /// One kind by itself: a table of another version may lack the sets of the other, and nft takes all or nothing.
    pub fn script(&self, now: u64, from: KeptFrom) -> String {
        self.active(now, from)
            .map(|(source, seconds)| {
                format!(
                    "add element inet appliance {} {{ {source} timeout {seconds}s }}\n",
                    set(source, from)
                )
            })
            .collect()
    }
}

/// The set a source belongs to.
pub fn set(source: IpAddr, from: KeptFrom) -> &'static str {
    match (source.is_ipv4(), from) {
        (true, KeptFrom::Ssh) => "ssh_ban4",
        (false, KeptFrom::Ssh) => "ssh_ban6",
        (true, KeptFrom::Everything) => "ban4",
        (false, KeptFrom::Everything) => "ban6",
    }
}

/// A source as the sets hold it: an IPv4 address, or the first address of an IPv6 /64.
pub fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX))),
        four => four,
    }
}

/// What a line of sshd's journal tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// A failure, from this source.
    Failed(IpAddr),
    /// Somebody came in, from this source.
    Succeeded(IpAddr),
}

/// What a line of sshd's journal tells, if it is about a login.
///
/// A user name may hold anything, also ` from 203.0.113.1 port 9`; so a line is read from its end.
pub fn login(line: &str) -> Option<Login> {
    const FAILURES: [&str; 6] = [
        "Failed password for ",
        "Invalid user ",
        "Connection closed by authenticating user ",
        "Connection closed by invalid user ",
        "Disconnected from authenticating user ",
        "Disconnected from invalid user ",
    ];
    let line = line.trim_end();
    // `Accepted publickey for root from 203.0.113.9 port 5 ssh2: ED25519 SHA256:…`: only users that exist get there.
    if line.starts_with("Accepted ") {
        let (line, _key) = line.split_once(" ssh2")?;
        return source(line).map(Login::Succeeded);
    }
    if !FAILURES.iter().any(|beginning| line.starts_with(beginning)) {
        return None;
    }
    let line = line.strip_suffix(" [preauth]").unwrap_or(line);
    let line = line.strip_suffix(" ssh2").unwrap_or(line);
    source(line).map(Login::Failed)
}

/// `… 203.0.113.9 port 5`
fn source(line: &str) -> Option<IpAddr> {
    let (rest, port) = line.rsplit_once(" port ")?;
    port.parse::<u16>().ok()?;
    rest.rsplit_once(' ')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn ten_failures_in_ten_minutes_are_an_hour_and_twice_that_the_next_time() {
        let mut bans = Bans::default();
        for second in 0..9 {
            assert_eq!(bans.failed(ip("203.0.113.9"), second, &[]), None);
        }
        assert_eq!(bans.failed(ip("203.0.113.9"), 9, &[]), Some(3_600));
        assert_eq!(
            bans.script(9, KeptFrom::Ssh),
            "add element inet appliance ssh_ban4 { 203.0.113.9 timeout 3600s }\n"
        );
        assert_eq!(bans.active(3_700, KeptFrom::Ssh).count(), 0);
        for second in 0..9 {
            assert_eq!(bans.failed(ip("203.0.113.9"), 4_000 + second, &[]), None);
        }
        assert_eq!(bans.failed(ip("203.0.113.9"), 4_010, &[]), Some(7_200));
        assert!(bans.lift(ip("203.0.113.9")) && !bans.lift(ip("203.0.113.9")));
    }

    #[test]
    fn slow_mistakes_administrators_and_ourselves_are_never_banned() {
        let mut bans = Bans::default();
        for time in 0..40 {
            assert_eq!(bans.failed(ip("203.0.113.9"), time * 120, &[]), None);
            assert_eq!(bans.failed(ip("127.0.0.1"), time, &[]), None);
            assert_eq!(
                bans.failed(ip("10.0.5.1"), time, &["10.0.0.0/8".parse().expect("network")]),
                None
            );
        }
    }

    #[test]
    fn a_colleagues_wrong_key_does_not_lock_out_the_office() {
        let mut bans = Bans::default();
        for second in 0..5 {
            bans.failed(ip("203.0.113.9"), second, &[]);
        }
        bans.succeeded(ip("203.0.113.9"), 10);
        let json = serde_json::to_string(&bans).expect("JSON");
        // A restart forgets nothing.
        let mut bans: Bans = serde_json::from_str(&json).expect("JSON");
        for second in 11..60 {
            assert_eq!(bans.failed(ip("203.0.113.9"), second, &[]), None);
        }
        // A day later nobody there is known any more.
        let banned = (0..10).filter_map(|second| bans.failed(ip("203.0.113.9"), 10 + TRUSTED + second, &[]));
        assert_eq!(banned.count(), 1);
    }

    #[test]
    fn only_a_person_keeps_somebody_from_everything() {
        let mut bans = Bans::default();
        bans.add(ip("203.0.113.9"), 0, 60);
        for second in 0..10 {
            bans.failed(ip("198.51.100.1"), second, &[]);
        }
        assert_eq!(
            bans.script(9, KeptFrom::Ssh),
            "add element inet appliance ssh_ban4 { 198.51.100.1 timeout 3600s }\n"
        );
        assert_eq!(
            bans.script(9, KeptFrom::Everything),
            "add element inet appliance ban4 { 203.0.113.9 timeout 51s }\n"
        );
    }

    #[test]
    fn one_customers_ipv6_addresses_are_one_source() {
        let mut bans = Bans::default();
        let banned = (0..10)
            .filter_map(|number| bans.failed(ip(&format!("2001:db8:1:2::{number:x}")), 5, &[]))
            .count();
        assert_eq!(banned, 1);
        assert_eq!(
            bans.script(5, KeptFrom::Ssh),
            "add element inet appliance ssh_ban6 { 2001:db8:1:2:: timeout 3600s }\n"
        );
    }

    #[test]
    fn a_flood_of_sources_does_not_fill_the_memory() {
        let mut bans = Bans::default();
        for number in 0..20_000_u32 {
            bans.failed(
                IpAddr::from((0x0b00_0000 + number).to_be_bytes()),
                u64::from(number),
                &[],
            );
        }
        assert!(bans.failures.len() <= SOURCES);
        for number in 0..8_500_u32 {
            bans.add(
                IpAddr::from((0x0b00_0000 + number).to_be_bytes()),
                0,
                60 + u64::from(number),
            );
        }
        assert_eq!(
            bans.active(0, KeptFrom::Everything).count(),
            SOURCES,
            "the kernel's sets hold them all"
        );
        let number = |number: u32| IpAddr::from((0x0b00_0000 + number).to_be_bytes());
        bans.trusted = (0..8_192)
            .map(|count| (number(count), u64::from(count)))
            .collect();
        bans.succeeded(number(9_000), 9_000);
        assert!(bans.trusted.contains_key(&number(9_000)) && !bans.trusted.contains_key(&number(0)));
        assert_eq!(bans.trusted.len(), SOURCES);
    }

    #[test]
    fn a_user_name_cannot_accuse_somebody_else() {
        for (line, expect) in [
            (
                "Invalid user admin from 203.0.113.9 port 51234",
                Some("203.0.113.9"),
            ),
            (
                "Connection closed by authenticating user root 2001:db8::9 port 9 [preauth]",
                Some("2001:db8::9"),
            ),
            (
                "Failed password for invalid user x from 203.0.113.9 port 5 ssh2",
                Some("203.0.113.9"),
            ),
            (
                "Invalid user x from 198.51.100.1 port 22 from 203.0.113.9 port 5",
                Some("203.0.113.9"),
            ),
            ("Accepted publickey for root from 203.0.113.9 port 5 ssh2", None),
            ("Accepted publickey for root from nowhere", None),
            ("Invalid user x from 203.0.113.9", None),
            ("Invalid user from nowhere port 5", None),
        ] {
            let failed = match login(line) {
                Some(Login::Failed(address)) => Some(address),
                _ => None,
            };
            assert_eq!(failed, expect.map(ip), "{line}");
        }
        assert_eq!(
            login("Accepted publickey for root from 2001:db8::9 port 5 ssh2: ED25519 SHA256:abc"),
            Some(Login::Succeeded(ip("2001:db8::9")))
        );
    }
}
