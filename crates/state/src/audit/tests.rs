//! What the log proves, and what it does after a crash.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("in range")
}

fn entry(verb: &str) -> Entry {
    Entry {
        who: "SHA256:abc".to_owned(),
        verb: verb.to_owned(),
        app: Some("blog".to_owned()),
        payload_sha256: None,
        result: Outcome::Done,
        detail: serde_json::json!({ "text": "quote \" newline \n umlaut ü", "number": 0.1 }),
    }
}

fn log_of(directory: &Path, records: i64) -> PathBuf {
    let path = directory.join("audit.log");
    let mut log = AuditLog::open(&path, at(0)).expect("open").log;
    for number in 0..records {
        log.append(entry("deploy"), at(number)).expect("append");
    }
    path
}

fn lines(path: &Path) -> Vec<String> {
    fs_err::read_to_string(path)
        .expect("read")
        .lines()
        .map(str::to_owned)
        .collect()
}

fn replace(path: &Path, lines: &[String]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    crate::atomic::write(path, text.as_bytes(), 0o600).expect("replace");
}

fn fault(path: &Path) -> (u64, Fault) {
    match verify(path) {
        Err(AuditError::Broken { line, why, .. }) => (line, why),
        other => panic!("expected a broken log, got {other:?}"),
    }
}

#[test]
fn records_chain_and_verify() {
    let directory = tempfile::tempdir().expect("directory");
    let path = log_of(directory.path(), 5);
    let verified = verify(&path).expect("verify");
    let records = read(&path).expect("read");
    assert_eq!(
        verified,
        Verified {
            records: 5,
            head: records[4].hash.clone()
        }
    );
    assert_eq!(records[0].prev_hash, chain::GENESIS);
    assert_eq!(records[3].prev_hash, records[2].hash);
    assert_eq!(records[2].detail, entry("deploy").detail);
}

#[test]
fn an_empty_log_verifies() {
    let directory = tempfile::tempdir().expect("directory");
    let path = log_of(directory.path(), 0);
    assert_eq!(verify(&path).expect("verify").records, 0);
}

#[test]
fn the_hash_is_that_of_the_line_without_its_last_member() {
    let directory = tempfile::tempdir().expect("directory");
    let path = log_of(directory.path(), 1);
    let line = lines(&path).remove(0);
    let (body, hash) = line.split_once(",\"hash\":\"").expect("last member");
    let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, format!("{body}}}").as_bytes());
    assert_eq!(hash, format!("{}\"}}", hex::encode(expected)));
}

#[test]
fn an_altered_record_is_found_at_its_line() {
    let directory = tempfile::tempdir().expect("directory");
    let path = log_of(directory.path(), 4);
    let mut text = lines(&path);
    text[2] = text[2].replace("deploy", "Deploy");
    replace(&path, &text);
    assert!(matches!(fault(&path), (3, Fault::Altered { .. })));
}

#[test]
fn removed_and_reordered_records_are_found() {
    let directory = tempfile::tempdir().expect("directory");
    let path = log_of(directory.path(), 4);
    let whole = lines(&path);
    let mut text = whole.clone();
    text.remove(1);
    replace(&path, &text);
    assert!(matches!(fault(&path), (2, Fault::Unlinked { .. })));
    let mut text = whole.clone();
    text.swap(1, 2);
    replace(&path, &text);
    assert!(matches!(fault(&path), (2, Fault::Unlinked { .. })));
    replace(&path, &whole[1..]);
    assert!(matches!(fault(&path), (1, Fault::Unlinked { .. })));
}

#[test]
fn records_cut_off_at_the_end_are_found_and_not_written_over() {
    let directory = tempfile::tempdir().expect("directory");
    let path = log_of(directory.path(), 4);
    let text = lines(&path);
    replace(&path, &text[..3]);
    assert_eq!(
        fault(&path),
        (
            4,
            Fault::CutShort {
                found: 3,
                acknowledged: 4
            }
        )
    );
    assert!(AuditLog::open(&path, at(9)).is_err());
    fs_err::remove_file(&path).expect("remove");
    assert!(matches!(
        fault(&path),
        (
            1,
            Fault::CutShort {
                found: 0,
                acknowledged: 4
            }
        )
    ));
}

#[test]
fn a_rewritten_end_is_found() {
    let directory = tempfile::tempdir().expect("directory");
    let other = tempfile::tempdir().expect("directory");
    let path = log_of(directory.path(), 3);
    let forged = other.path().join("audit.log");
    let mut log = AuditLog::open(&forged, at(0)).expect("open").log;
    for number in 0..3 {
        log.append(entry("forged"), at(number)).expect("append");
    }
    replace(&path, &lines(&forged));
    assert_eq!(fault(&path), (4, Fault::Replaced { number: 3 }));
}

#[test]
fn a_lost_head_file_is_reported() {
    let directory = tempfile::tempdir().expect("directory");
    let path = log_of(directory.path(), 3);
    fs_err::remove_file(directory.path().join("audit.log.head")).expect("remove");
    assert!(matches!(fault(&path), (4, Fault::HeadLost { .. })));
}

#[test]
fn a_crash_between_record_and_head_is_no_fault() {
    let directory = tempfile::tempdir().expect("directory");
    let path = log_of(directory.path(), 3);
    let head = directory.path().join("audit.log.head");
    let before = fs_err::read(&head).expect("head");
    let mut log = AuditLog::open(&path, at(5)).expect("open").log;
    log.append(entry("deploy"), at(6)).expect("append");
    crate::atomic::write(&head, &before, 0o600).expect("as if the crash had come earlier");
    assert_eq!(verify(&path).expect("verify").records, 4);
    let mut log = AuditLog::open(&path, at(7)).expect("open").log;
    log.append(entry("deploy"), at(8)).expect("append");
    assert_eq!(verify(&path).expect("verify").records, 5);
}

#[test]
fn two_writers_share_one_chain() {
    let directory = tempfile::tempdir().expect("directory");
    let path = log_of(directory.path(), 0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut log = AuditLog::open(&path, at(0)).expect("open").log;
                for number in 0..10 {
                    log.append(entry("deploy"), at(number)).expect("append");
                }
            });
        }
    });
    assert_eq!(verify(&path).expect("verify").records, 30);
}

#[test]
fn a_record_longer_than_the_read_step_is_found_again() {
    let directory = tempfile::tempdir().expect("directory");
    let path = log_of(directory.path(), 1);
    let mut long = entry("deploy");
    long.detail = serde_json::json!("x".repeat(200_000));
    AuditLog::open(&path, at(1))
        .expect("open")
        .log
        .append(long, at(1))
        .expect("append");
    AuditLog::open(&path, at(2))
        .expect("open")
        .log
        .append(entry("deploy"), at(2))
        .expect("append");
    assert_eq!(verify(&path).expect("verify").records, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A crash can cut the last, never acknowledged line anywhere: opening repairs the log and says so.
    #[test]
    fn a_torn_last_line_is_cut_off_and_recorded(records in 0i64..4, cut in any::<prop::sample::Index>()) {
        let directory = tempfile::tempdir().expect("directory");
        let path = log_of(directory.path(), records);
        let whole = fs_err::read(&path).expect("read");
        let (_, torn) = chain::seal(&chain::Tip::genesis(), entry("torn"), at(50)).expect("seal");
        let torn = &torn.as_bytes()[..1 + cut.index(torn.len())];
        crate::atomic::write(&path, &[&whole[..], torn].concat(), 0o600).expect("tear");
        let is_torn = matches!(fault(&path), (_, Fault::Torn));
        prop_assert!(is_torn);
        let opened = AuditLog::open(&path, at(60)).expect("open");
        let repaired = opened.repaired.expect("a repair");
        prop_assert_eq!(repaired.verb, "audit.repair");
        prop_assert_eq!(&repaired.detail["torn_bytes_cut_off"], &serde_json::json!(torn.len()));
        prop_assert_eq!(verify(&path).expect("verify").records, records as u64 + 1);
    }

    /// No single changed byte goes unnoticed.
    #[test]
    fn any_changed_byte_is_found(position in any::<prop::sample::Index>(), flip in 1u8..=255) {
        let directory = tempfile::tempdir().expect("directory");
        let path = log_of(directory.path(), 3);
        let mut bytes = fs_err::read(&path).expect("read");
        let position = position.index(bytes.len());
        bytes[position] ^= flip;
        crate::atomic::write(&path, &bytes, 0o600).expect("damage");
        prop_assert!(verify(&path).is_err());
    }
}
