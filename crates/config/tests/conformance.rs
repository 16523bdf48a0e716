//! Real Kamal configurations, Kamal's fixtures and mutations of both, against what Kamal 2.12 itself makes of them.
//!
//! The data stands beside the checkout (`../shared/conformance`); where it is missing, the test says so and passes.
//! Fields only: the same cases go through the real binary in `tests/it`.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test tells what it left out, and fails loudly"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use appliance_config::runner::ProcessRunner;
use appliance_config::{LoadOptions, load};
use serde_json::Value;

/// Programs that ERB may call, with the answers the data was made with.
const STUBS: &[(&str, &str)] = &[
    (
        "git",
        "case \"$*\" in *describe*) echo v1.2.3;; *--short*) echo 0123456;; *) echo 0123456789abcdef0123456789abcdef01234567;; esac",
    ),
    ("date", "exec /bin/date -u -d 2026-01-01T00:00:00Z \"$@\""),
    ("aws", "echo stub-aws"),
    ("gh", "echo stub-gh"),
    ("op", "echo stub-op"),
    ("vault", "echo stub-vault"),
    ("sops", "echo stub-sops"),
    ("docker", "echo stub-docker"),
];

/// Runs decided differently on purpose.
const DIFFERENT: &[(&str, &str)] = &[
    ("mut-030", "a service name with a line break is refused"),
    (
        "sexagesimal",
        "a number in base 60 is refused, not silently changed",
    ),
    (
        "yaml11-port-2525",
        "a number in base 60 is refused, not silently changed",
    ),
    ("alias-bomb", "what aliases repeat is bounded"),
    (
        "tags-without-env",
        "Kamal crashes when it needs the environment; here the tags are simply unknown",
    ),
    (
        "real-065",
        "asks RubyGems where a gem is installed: needs Ruby itself",
    ),
];

/// Fields that are commands, need secrets, or tell what Kamal finds later.
const LEFT_OUT: &[&str] = &[
    "docker_run",
    "kamal_proxy_deploy",
    "login",
    "login_error",
    "create",
    "push",
    "command",
    "argv",
    "content",
    "error",
    "later_errors",
    "values",
    "substitutions",
    "accepted",
    "error_class",
    "rendered",
    "not_one_simple_command",
];

fn conformance() -> Option<PathBuf> {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance/kamal/cases");
    let found = cases.canonicalize().ok();
    if found.is_none() {
        println!("left out: no conformance data beside the checkout");
    }
    found
}

fn stubs(directory: &Path) {
    for (name, script) in STUBS {
        let file = directory.join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Where `ours` lacks or contradicts `expected`.
fn compare(path: &str, expected: &Value, ours: &Value, differences: &mut Vec<String>) {
    match (expected, ours) {
        (Value::Object(expected), Value::Object(found)) => {
            for (key, value) in expected
                .iter()
                .filter(|(key, _)| !LEFT_OUT.contains(&key.as_str()))
            {
                match found.get(key) {
                    Some(found) => compare(&format!("{path}.{key}"), value, found, differences),
                    None => differences.push(format!("{path}.{key}: missing, should be {value}")),
                }
            }
            let free = ["labels", "options", "env_clear", "args", "aliases", "healthcheck"];
            if free.iter().any(|name| path.ends_with(name)) {
                for key in found.keys().filter(|key| !expected.contains_key(*key)) {
                    differences.push(format!("{path}.{key}: too much"));
                }
            }
        }
        (Value::Array(expected), Value::Array(found)) => {
            if expected.len() != found.len() {
                differences.push(format!("{path}: should be {expected:?}, is {found:?}"));
                return;
            }
            for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
                compare(&format!("{path}[{index}]"), expected, found, differences);
            }
        }
        _ if expected != ours => differences.push(format!("{path}: should be {expected}, is {ours}")),
        _ => {}
    }
}

#[test]
fn every_case_is_decided_and_resolved_as_kamal_does() {
    let Some(cases) = conformance() else { return };
    let stub_directory = std::env::temp_dir().join(format!("appliance-config-stubs-{}", std::process::id()));
    std::fs::create_dir_all(&stub_directory).unwrap();
    stubs(&stub_directory);
    let only = std::env::var("CASE").ok();
    let mut names: Vec<_> = std::fs::read_dir(&cases)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| only.as_ref().is_none_or(|only| name.contains(only)))
        .collect();
    names.sort();
    let mut levels: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
    let mut failures = Vec::new();
    for name in &names {
        let case = cases.join(name);
        let expected: Value =
            serde_json::from_slice(&std::fs::read(case.join("expected.json")).unwrap()).unwrap();
        let extra: BTreeMap<String, String> =
            serde_json::from_slice(&std::fs::read(case.join("env.json")).unwrap()).unwrap();
        let level = expected["inputs"]["erb_level"].as_i64().unwrap_or(0);
        for run in expected["runs"].as_array().unwrap() {
            let mut env = BTreeMap::from(
                [
                    ("PATH", format!("{}:/usr/bin:/bin", stub_directory.display())),
                    ("HOME", "/root".to_owned()),
                    ("USER", "deploy".to_owned()),
                    ("LANG", "C.UTF-8".to_owned()),
                ]
                .map(|(name, value)| (name.to_owned(), value)),
            );
            env.extend(extra.clone());
            let now = "2026-01-01T00:00:00Z[UTC]".parse().unwrap();
            let mut options = LoadOptions::new(&case, env, now);
            options.destination = run["destination"].as_str().map(ToOwned::to_owned);
            options.version = Some("abc123".to_owned());
            let result = load(
                &options,
                &ProcessRunner {
                    forward_stderr: false,
                },
            );
            let mut differences = Vec::new();
            let deliberate = DIFFERENT.iter().any(|(part, _)| name.contains(part));
            match (&result, run["accepted"].as_bool().unwrap()) {
                (Ok(loaded), true) => {
                    let ours = serde_json::to_string(&loaded.config).unwrap();
                    let ours = ours.replace(case.to_str().unwrap(), "/app");
                    compare("", run, &serde_json::from_str(&ours).unwrap(), &mut differences);
                }
                (Err(problems), false) => {
                    let class = run["error_class"].as_str().unwrap();
                    if ["Kamal::ConfigurationError", "ArgumentError"].contains(&class)
                        && !run["error"].as_str().unwrap().starts_with("comparison of")
                        && problems.0[0].message != run["error"].as_str().unwrap()
                    {
                        differences.push(format!("should say {}, says {problems}", run["error"]));
                    }
                }
                (Ok(_), false) => differences.push(format!("accepted, should say {}", run["error"])),
                (Err(problems), true) => differences.push(format!("refused: {problems}")),
            }
            let entry = levels.entry(level).or_default();
            entry.1 += 1;
            if differences.is_empty() || deliberate {
                entry.0 += 1;
            } else {
                failures.push(format!(
                    "{name} {}: {}",
                    run["destination"],
                    differences.join("\n    ")
                ));
            }
        }
    }
    std::fs::remove_dir_all(&stub_directory).unwrap();
    for (level, (passed, all)) in &levels {
        println!("erb level {level}: {passed} of {all} runs");
    }
    assert!(
        failures.is_empty(),
        "{} failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
}
