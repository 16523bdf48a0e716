use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a time")
}

fn finding(kind: Kind, subject: &str) -> Finding {
    Finding {
        kind,
        subject: subject.to_owned(),
        message: format!("{subject} is wrong"),
        next: "look".to_owned(),
    }
}

fn policy() -> Policy {
    Policy {
        repeat: SignedDuration::from_secs(600),
        calm: SignedDuration::from_secs(90),
        mute: Vec::new(),
    }
}

fn told(book: &mut Book, second: i64, findings: &[Finding], policy: &Policy) -> Vec<String> {
    let look = Look {
        findings: findings.to_vec(),
        ..Look::default()
    };
    book.step(&look, at(second), policy)
        .iter()
        .map(Notice::title)
        .collect()
}

#[test]
fn an_alert_begins_once_is_told_again_and_ends_once() {
    let (mut book, policy) = (Book::default(), policy());
    let disk = [finding(Kind::Disk, "host")];
    assert_eq!(told(&mut book, 0, &disk, &policy), ["firing: disk host"]);
    for second in [30, 60, 570] {
        assert!(told(&mut book, second, &disk, &policy).is_empty());
    }
    assert_eq!(told(&mut book, 600, &disk, &policy), ["again: disk host"]);
    // It flutters for a moment, and is not over.
    assert!(told(&mut book, 630, &[], &policy).is_empty());
    assert!(told(&mut book, 690, &disk, &policy).is_empty());
    assert!(told(&mut book, 720, &[], &policy).is_empty());
    assert_eq!(told(&mut book, 810, &[], &policy), ["resolved: disk host"]);
    assert!(told(&mut book, 840, &[], &policy).is_empty());
    assert_eq!(book.standing, []);
}

#[test]
fn short_memory_is_told_once_it_lasts_and_nothing_is_taken_back_that_was_not_told() {
    let (mut book, policy) = (Book::default(), policy());
    let memory = [finding(Kind::Memory, "available")];
    assert!(told(&mut book, 0, &memory, &policy).is_empty());
    assert!(told(&mut book, 60, &[], &policy).is_empty());
    assert!(told(&mut book, 300, &[], &policy).is_empty());
    assert!(told(&mut book, 400, &memory, &policy).is_empty());
    assert_eq!(
        told(&mut book, 520, &memory, &policy),
        ["firing: memory available"]
    );
}

#[test]
fn what_is_muted_is_not_told_and_its_end_only_to_those_who_knew() {
    let (mut book, mut policy) = (Book::default(), policy());
    policy.mute = vec![Kind::Reboot];
    let reboot = [finding(Kind::Reboot, "host")];
    assert!(told(&mut book, 0, &reboot, &policy).is_empty());
    policy.mute.clear();
    assert_eq!(told(&mut book, 30, &reboot, &policy), ["firing: reboot host"]);
    policy.mute = vec![Kind::Reboot];
    assert!(told(&mut book, 900, &reboot, &policy).is_empty());
    assert!(told(&mut book, 930, &[], &policy).is_empty());
    assert_eq!(told(&mut book, 1_100, &[], &policy), ["resolved: reboot host"]);
}

/// What may be seen in one look: per alert wrong, right, or not to be seen.
fn sights() -> impl Strategy<Value = Vec<(i64, Vec<u8>)>> {
    prop::collection::vec((1_i64..200, prop::collection::vec(0_u8..3, 4)), 1..80)
}

const ALERTS: [(Kind, &str); 4] = [
    (Kind::Disk, "host"),
    (Kind::Errors, "web"),
    (Kind::RestartLoop, "one"),
    (Kind::Memory, "two"),
];

proptest! {
    #[test]
    fn beginnings_and_ends_take_turns_whatever_is_seen_and_whenever_the_agent_is_restarted(sights in sights()) {
        let policy = policy();
        let mut book = Book::default();
        let mut now = 0;
        let mut last: BTreeMap<(Kind, String), (What, Timestamp)> = BTreeMap::new();
        let mut number = 0;
        for (pause, seen) in sights {
            now += pause;
            let mut look = Look::default();
            for ((kind, subject), sight) in ALERTS.iter().zip(&seen) {
                match sight {
                    0 => look.findings.push(finding(*kind, subject)),
                    1 => {}
                    _ => { look.blind.insert(*kind); }
                }
            }
            // Written down and read back, as a restart does.
            let text = serde_json::to_string(&book).expect("serialises");
            book = serde_json::from_str(&text).expect("parses");
            for notice in book.step(&look, at(now), &policy) {
                prop_assert!(notice.id > number, "numbers count up");
                number = notice.id;
                let key = (notice.kind.expect("of a kind"), notice.subject.clone());
                let before = last.get(&key).copied();
                match notice.what {
                    What::Firing => prop_assert!(before.is_none_or(|(what, _)| what == What::Resolved)),
                    What::Again => {
                        let (what, told) = before.expect("it began");
                        prop_assert!(what != What::Resolved);
                        prop_assert!(notice.at.duration_since(told) >= policy.repeat);
                    }
                    What::Resolved => prop_assert!(before.is_some_and(|(what, _)| what != What::Resolved)),
                    What::Test => prop_assert!(false, "nobody asked for a test"),
                }
                prop_assert!(!look.blind.contains(&key.0), "what cannot be seen changes nothing");
                last.insert(key, (notice.what, notice.at));
            }
            for finding in &look.findings {
                prop_assert!(book.stands(finding.kind, &finding.subject), "what is wrong was told");
            }
        }
        // All is well, and stays so: everything that began is over.
        for step in 1..=3 {
            for notice in book.step(&Look::default(), at(now + step * 90), &policy) {
                last.insert((notice.kind.expect("of a kind"), notice.subject.clone()), (notice.what, notice.at));
            }
        }
        prop_assert_eq!(&book.standing, &[]);
        prop_assert!(last.values().all(|(what, _)| *what == What::Resolved));
    }
}
