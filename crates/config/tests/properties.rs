//! What holds for every input: no panic, no hang, no command the file does not name, twice the same.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails loudly, and its files need not outlive a crash"
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use appliance_config::runner::{Invocation, Outcome, Runner};
use appliance_config::{LoadOptions, Loaded, Problems, load};
use proptest::prelude::*;

/// Runs nothing, and tells what it was asked to run.
#[derive(Default)]
struct Recorder(Mutex<Vec<Invocation>>);

impl Runner for Recorder {
    fn run(&self, invocation: &Invocation) -> io::Result<Outcome> {
        self.0.lock().unwrap().push(invocation.clone());
        Ok(Outcome {
            code: Some(0),
            ..Outcome::default()
        })
    }
}

/// Loads files by name, in a directory of their own.
fn load_files(
    files: &[(&str, &str)],
    destination: Option<&str>,
    runner: &dyn Runner,
) -> Result<Loaded, Problems> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let env = BTreeMap::from([("PATH".to_owned(), "/nowhere".to_owned())]);
    let mut options = LoadOptions::new(
        directory.path(),
        env,
        "2026-01-01T00:00:00Z[UTC]".parse().unwrap(),
    );
    options.version = Some("v1".to_owned());
    options.destination = destination.map(ToOwned::to_owned);
    load(&options, runner)
}

fn load_text(text: &str, runner: &dyn Runner) -> Result<Loaded, Problems> {
    load_files(&[("config/deploy.yml", text)], None, runner)
}

/// A configuration with a bit of everything, to be cut up.
const WHOLE: &str = include_str!("golden/whole.yml");

/// What a YAML reader trips over.
fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[ -~]{0,12}",
        prop::sample::select(vec![
            "- ",
            ": ",
            "\n",
            "  ",
            "\t",
            "#",
            "&a ",
            "*a",
            "<<: *a",
            "!!binary ",
            "|",
            ">",
            "'",
            "\"",
            "{",
            "}",
            "[",
            "]",
            "? ",
            "---",
            "...",
            "%YAML 1.1",
            "\u{feff}",
            "\u{0}",
            "é",
            "0x1F",
            "12:30",
            "2024-01-01",
            ":sym",
            "~",
            "on",
            "\r",
            "${A}",
            "1e3",
            "- - - -",
            "!ruby/object:X ",
            "\u{2028}",
        ])
        .prop_map(ToOwned::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mangled_file_is_read_or_refused_and_runs_nothing(
        cuts in prop::collection::vec((0..WHOLE.len(), 0..40_usize, fragment()), 1..6),
    ) {
        let mut text = WHOLE.to_owned();
        for (at, length, fragment) in cuts {
            let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            let end = ((at + length).min(text.len())..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len());
            text.replace_range(at..end, &fragment);
        }
        let recorder = Recorder::default();
        // Whatever comes out, once more gives the same.
        match (load_text(&text, &recorder), load_text(&text, &recorder)) {
            (Ok(first), Ok(second)) => prop_assert_eq!(
                serde_json::to_value(&first.config).unwrap()["roles"].clone(),
                serde_json::to_value(&second.config).unwrap()["roles"].clone()
            ),
            (Err(first), Err(second)) => {
                prop_assert!(!first.0.is_empty());
                prop_assert_eq!(first, second);
            }
            _ => prop_assert!(false, "accepted once, refused once"),
        }
        prop_assert!(recorder.0.lock().unwrap().is_empty(), "ran {:?}", recorder.0.lock().unwrap());
    }

    #[test]
    fn text_without_tags_runs_nothing(text in "\\PC{0,200}") {
        prop_assume!(!text.contains("<%"));
        let recorder = Recorder::default();
        let _either = load_text(&text, &recorder);
        prop_assert!(recorder.0.lock().unwrap().is_empty());
    }

    #[test]
    fn the_destination_wins_key_by_key_and_keeps_the_order(
        base in prop::collection::btree_map("[a-e]", "[a-z]{1,3}x", 0..5),
        over in prop::collection::btree_map("[a-e]", "[a-z]{1,3}y", 0..5),
    ) {
        let section = |map: &BTreeMap<String, String>| {
            let pairs: Vec<_> = map.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            format!("{{{}}}", pairs.join(", "))
        };
        let file = format!(
            "service: app\nimage: app\nbuilder: {{arch: amd64}}\nregistry: {{username: u, password: p}}\nservers: [h]\nenv: {{clear: {}}}\n",
            section(&base)
        );
        let destination = format!("env: {{clear: {}}}\n", section(&over));
        let files = [("config/deploy.yml", file.as_str()), ("config/deploy.d.yml", destination.as_str())];
        let loaded = load_files(&files, Some("d"), &Recorder::default()).unwrap();
        let (clear, _) = loaded.config.roles[0].env("h").unwrap();
        let mut expected: Vec<String> = base.keys().cloned().collect();
        expected.extend(over.keys().filter(|name| !base.contains_key(*name)).cloned());
        prop_assert_eq!(clear.keys().cloned().collect::<Vec<_>>(), expected);
        for (name, value) in clear {
            prop_assert_eq!(value.as_ref(), over.get(name).or_else(|| base.get(name)));
        }
    }
}

#[test]
fn the_whole_file_loads() {
    let recorder = Recorder::default();
    let loaded = load_text(WHOLE, &recorder).unwrap();
    assert_eq!(loaded.config.roles.len(), 2);
    assert_eq!(loaded.config.accessories.len(), 2);
    assert!(recorder.0.lock().unwrap().is_empty());
}

#[test]
fn huge_inputs_are_answered() {
    let recorder = Recorder::default();
    let many_keys: String = (0..20_000).map(|index| format!("x-{index}: 1\n")).collect();
    for text in [
        "[".repeat(1 << 20),
        "{a: ".repeat(1 << 16),
        format!("x-long: {}\n", "a".repeat(10 << 20)),
        format!("x-quoted: \"{}\n", "a".repeat(1 << 20)),
        format!("? {}\n", "a".repeat(1 << 20)),
        many_keys,
        "- ".repeat(1 << 20),
        "&a ".repeat(1 << 18),
        format!(
            "x-a: &a {}\nx-b: [{}]\n",
            "b".repeat(1 << 20),
            "*a, ".repeat(1 << 14)
        ),
        format!(
            "x-int: {}\nx-hex: 0x{}\n",
            "9".repeat(1 << 20),
            "f".repeat(1 << 20)
        ),
    ] {
        let problems = load_text(&text, &recorder).expect_err("none of them is a configuration");
        assert!(
            problems.to_string().len() < 64 << 10,
            "a message that long helps nobody"
        );
    }
}
