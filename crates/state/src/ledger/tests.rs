//! What a ledger keeps, refuses and reports.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Numbers = BTreeMap<String, u64>;

fn ledger(directory: &Path) -> Ledger<Numbers> {
    Ledger::at(directory.join("numbers.json"), 1)
}

fn put(ledger: &Ledger<Numbers>, name: &str, number: u64) -> u64 {
    ledger
        .update(|data| data.insert(name.to_owned(), number))
        .expect("update")
        .1
}

#[test]
fn begins_empty_and_counts_generations() {
    let directory = tempfile::tempdir().expect("directory");
    let ledger = ledger(directory.path());
    assert_eq!(
        ledger.read().expect("read"),
        Snapshot {
            generation: 0,
            data: Numbers::new()
        }
    );
    assert_eq!(put(&ledger, "a", 1), 1);
    assert_eq!(put(&ledger, "b", 2), 2);
    let held = ledger.read().expect("read");
    assert_eq!(held.generation, 2);
    assert_eq!(
        held.data,
        Numbers::from([("a".to_owned(), 1), ("b".to_owned(), 2)])
    );
}

#[test]
fn the_generation_before_is_kept() {
    let directory = tempfile::tempdir().expect("directory");
    let ledger = ledger(directory.path());
    put(&ledger, "a", 1);
    put(&ledger, "a", 2);
    fs_err::rename(ledger.previous(), ledger.path()).expect("the documented way back");
    let held = ledger.read().expect("read");
    assert_eq!((held.generation, held.data["a"]), (1, 1));
}

#[test]
fn a_refused_change_writes_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let ledger = ledger(directory.path());
    put(&ledger, "a", 1);
    let refused = ledger.try_update(|data| {
        data.clear();
        Err::<(), _>(io::Error::other("no"))
    });
    assert!(matches!(refused, Err(UpdateError::Refused(_))));
    assert_eq!(ledger.read().expect("read").generation, 1);
}

#[test]
fn a_corrupt_ledger_is_named_kept_and_never_overwritten() {
    let directory = tempfile::tempdir().expect("directory");
    let ledger = ledger(directory.path());
    put(&ledger, "a", 1);
    put(&ledger, "a", 2);
    let torn = b"{\"generation\": 2, \"schema\": 1, \"da";
    atomic::write(ledger.path(), torn, 0o600).expect("damage");
    for _ in 0..2 {
        let error = ledger.read().expect_err("corrupt");
        let LedgerError::Corrupt {
            path,
            set_aside,
            previous,
            ..
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!(path, ledger.path());
        assert_eq!(fs_err::read(set_aside).expect("set aside"), torn);
        assert_eq!(previous.as_deref(), Some(ledger.previous().as_path()));
        assert!(error.to_string().contains("run: mv "));
        assert!(error.to_string().contains(&set_aside.display().to_string()));
    }
    assert!(ledger.update(|data| data.clear()).is_err());
    assert_eq!(fs_err::read(ledger.path()).expect("still there"), torn);
}

#[test]
fn an_empty_file_is_corrupt_and_not_an_empty_ledger() {
    let directory = tempfile::tempdir().expect("directory");
    let ledger = ledger(directory.path());
    atomic::write(ledger.path(), b"", 0o600).expect("damage");
    let error = ledger.read().expect_err("corrupt");
    assert!(matches!(error, LedgerError::Corrupt { previous: None, .. }));
    assert!(!error.to_string().contains("run: mv "), "{error}");
}

#[test]
fn a_ledger_that_disappeared_is_not_an_empty_one() {
    let directory = tempfile::tempdir().expect("directory");
    let ledger = ledger(directory.path());
    put(&ledger, "a", 1);
    put(&ledger, "a", 2);
    fs_err::remove_file(ledger.path()).expect("remove");
    assert!(matches!(ledger.read(), Err(LedgerError::Vanished { .. })));
}

#[test]
fn a_removed_ledger_begins_anew() {
    let directory = tempfile::tempdir().expect("directory");
    let ledger = ledger(directory.path());
    put(&ledger, "a", 1);
    put(&ledger, "a", 2);
    ledger.remove().expect("removed");
    assert_eq!(ledger.read().expect("as never written").generation, 0);
    ledger.remove().expect("nothing to remove");
    assert_eq!(put(&ledger, "b", 1), 1);
}

#[test]
fn another_layout_is_refused_before_its_contents_are_read() {
    let directory = tempfile::tempdir().expect("directory");
    let ledger = ledger(directory.path());
    atomic::write(
        ledger.path(),
        br#"{"generation": 5, "schema": 2, "data": ["else"]}"#,
        0o600,
    )
    .expect("write");
    assert!(matches!(
        ledger.read(),
        Err(LedgerError::Schema {
            found: 2,
            understood: 1,
            ..
        })
    ));
}

#[test]
fn writers_in_parallel_lose_no_update() {
    let directory = tempfile::tempdir().expect("directory");
    let ledger = ledger(directory.path());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    ledger
                        .update(|data| *data.entry("n".to_owned()).or_default() += 1)
                        .expect("update");
                }
            });
        }
    });
    let held = ledger.read().expect("read");
    assert_eq!((held.generation, held.data["n"]), (40, 40));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any text survives, and any cut of the file is an error, never other contents.
    #[test]
    fn round_trip_and_no_prefix_is_taken_for_the_whole(
        contents in prop::collection::btree_map(".{0,12}", any::<u64>(), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let directory = tempfile::tempdir().expect("directory");
        let ledger = ledger(directory.path());
        ledger.write(contents.clone()).expect("write");
        prop_assert_eq!(ledger.read().expect("read").data, contents);
        let bytes = fs_err::read(ledger.path()).expect("bytes");
        // The final newline is no part of the JSON text.
        let cut = cut.index(bytes.len() - 1);
        atomic::write(ledger.path(), &bytes[..cut], 0o600).expect("cut");
        let corrupt = matches!(ledger.read(), Err(LedgerError::Corrupt { .. }));
        prop_assert!(corrupt);
    }
}
