//! Real Kamal configurations, Kamal's own fixtures and mutations of both, through the real binary:
//! decided, refused and resolved as Kamal 2.12 itself does.
//!
//! The data stands beside the checkout (`../shared/conformance`); where it is missing, the test says so and passes.
//! `CONFORMANCE_CASE=part-of-a-name` narrows it down.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::Context as _;
use appliance_tests::bench;
use serde_json::Value;

/// Programs that ERB may call, with the answers the data was made with.
const STUBS: &[(&str, &str)] = &[
    (
        "git",
        "case \"$*\" in *describe*) echo v1.2.3;; *--short*) echo 0123456;; \
         *) echo 0123456789abcdef0123456789abcdef01234567;; esac",
    ),
    ("date", "exec /bin/date -u -d 2026-01-01T00:00:00Z \"$@\""),
    ("aws", "echo stub-aws"),
    ("gh", "echo stub-gh"),
    ("op", "echo stub-op"),
    ("vault", "echo stub-vault"),
    ("sops", "echo stub-sops"),
    ("docker", "echo stub-docker"),
    // The shell of `$(...)` in secrets files: called as `SHELL -c TEXT`.
    (
        "stub-shell",
        "printf 'stub-%s' \"$(printf %s \"$2\" | sha256sum | cut -c1-8)\"",
    ),
];

/// Parts of case names that are decided differently on purpose, and why.
const DIFFERENT: &[(&str, &str)] = &[
    ("service-newline", "a service name with a line break is refused"),
    (
        "sexagesimal",
        "a number in base 60 is refused, not silently changed",
    ),
    (
        "port-2525",
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
    "rendered",
    "not_one_simple_command",
];

/// Maps whose keys are the user's: there, too much is a difference as well.
const FREE_MAPS: &[&str] = &["labels", "options", "env_clear", "args", "aliases", "healthcheck"];

#[test]
fn every_case_is_decided_and_resolved_as_kamal_does() -> anyhow::Result<()> {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/kamal/cases");
    if !cases.is_dir() {
        println!("left out: no conformance data beside the checkout");
        return Ok(());
    }
    let bench = Bench::new(cases.canonicalize()?)?;
    let only = std::env::var("CONFORMANCE_CASE").unwrap_or_default();
    let mut names = Vec::new();
    for entry in fs_err::read_dir(&bench.cases)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name.contains(&only));
    names.sort();
    let mut levels: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
    let mut failures = Vec::new();
    let mut different = 0;
    for name in &names {
        let case = Case::read(&bench, name)?;
        for run in case.expected["runs"].as_array().context("runs")? {
            let differences = case.run(&bench, run)?;
            let share = levels.entry(case.level()).or_default();
            share.1 += 1;
            if differences.is_empty() {
                share.0 += 1;
            } else if DIFFERENT.iter().any(|(part, _)| name.contains(part)) {
                different += 1;
            } else {
                failures.push(format!(
                    "{name} {}: {}",
                    run["destination"],
                    differences.join("\n    ")
                ));
            }
        }
    }
    for (level, (same, all)) in &levels {
        println!("erb level {level}: {same} of {all} runs as Kamal");
    }
    println!("{different} runs differ on purpose");
    anyhow::ensure!(
        failures.is_empty(),
        "{} runs differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
    Ok(())
}

/// The binary, the data and the stubs.
struct Bench {
    binary: PathBuf,
    cases: PathBuf,
    stubs: tempfile::TempDir,
}

impl Bench {
    fn new(cases: PathBuf) -> anyhow::Result<Self> {
        let stubs = tempfile::tempdir()?;
        for (name, script) in STUBS {
            let file = stubs.path().join(name);
            fs_err::write(&file, format!("#!/bin/sh\n{script}\n"))?;
            fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self {
            binary: bench::binary()?,
            cases,
            stubs,
        })
    }
}

struct Case {
    name: String,
    directory: PathBuf,
    env: BTreeMap<String, String>,
    expected: Value,
}

impl Case {
    fn read(bench: &Bench, name: &str) -> anyhow::Result<Self> {
        let directory = bench.cases.join(name);
        Ok(Self {
            name: name.to_owned(),
            env: serde_json::from_slice(&fs_err::read(directory.join("env.json"))?)?,
            expected: serde_json::from_slice(&fs_err::read(directory.join("expected.json"))?)?,
            directory,
        })
    }

    fn level(&self) -> i64 {
        self.expected["inputs"]["erb_level"].as_i64().unwrap_or(0)
    }

    /// What differs in one run.
    fn run(&self, bench: &Bench, run: &Value) -> anyhow::Result<Vec<String>> {
        let destination = run["destination"].as_str();
        let output = self.call(bench, &["config", "--json", "--version", "abc123"], destination)?;
        if run["accepted"] != Value::Bool(true) {
            return Ok(refusal(run, &output));
        }
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Ok(vec![format!("refused: {said}")]);
        }
        let mut differences = Vec::new();
        // Kamal ran in /app.
        let text = String::from_utf8(output.stdout)?.replace(&*self.directory.to_string_lossy(), "/app");
        let ours = serde_json::from_str(&text).with_context(|| self.name.clone())?;
        compare("", run, &ours, &mut differences);
        differences.extend(self.secrets(bench, run, destination)?);
        Ok(differences)
    }

    /// What differs in the values of the secrets files.
    fn secrets(&self, bench: &Bench, run: &Value, destination: Option<&str>) -> anyhow::Result<Vec<String>> {
        let Some(expected) = run["secrets"]["values"].as_object() else {
            return Ok(Vec::new());
        };
        let output = self.call(bench, &["secrets", "print", "--json"], destination)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Ok(vec![format!("secrets refused: {said}")]);
        }
        let ours: Value = serde_json::from_slice(&output.stdout).with_context(|| self.name.clone())?;
        let mut differences = Vec::new();
        for (name, value) in expected {
            if ours.get(name) != Some(value) {
                differences.push(format!(
                    ".secrets.values.{name}: should be {value}, is {:?}",
                    ours.get(name)
                ));
            }
        }
        Ok(differences)
    }

    fn call(&self, bench: &Bench, arguments: &[&str], destination: Option<&str>) -> anyhow::Result<Output> {
        let mut command = Command::new(&bench.binary);
        command
            .args(arguments)
            .current_dir(&self.directory)
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", bench.stubs.path().display()))
            .env("HOME", "/root")
            .env("USER", "deploy")
            .env("LANG", "C.UTF-8")
            // 2026-01-01, when Kamal ran.
            .env("SOURCE_DATE_EPOCH", "1767225600")
            .env("APPLIANCE_SECRETS_SHELL", "stub-shell")
            .envs(&self.env)
            .stdin(std::process::Stdio::null());
        if let Some(destination) = destination {
            command.args(["-d", destination]);
        }
        command
            .output()
            .with_context(|| format!("cannot run {}", bench.binary.display()))
    }
}

/// Whether the binary refuses as Kamal does: exit code 2, nothing on standard output, one JSON object for each problem,
/// and first what Kamal says where the error is Kamal's own.
fn refusal(run: &Value, output: &Output) -> Vec<String> {
    let mut differences = Vec::new();
    if output.status.code() != Some(2) || !output.stdout.is_empty() {
        differences.push(format!("should refuse with {}, {}", run["error"], output.status));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let problems: Vec<Value> = said
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let kamals_own = ["Kamal::ConfigurationError", "ArgumentError"].contains(&run["error_class"].as_str().unwrap_or(""))
        // Ruby's own complaint about keys of several types.
        && !run["error"].as_str().is_some_and(|error| error.starts_with("comparison of"));
    match problems.first() {
        None => differences.push(format!("no problem told as JSON: {said}")),
        Some(first) if kamals_own && first["message"] != run["error"] => {
            differences.push(format!("should say {}, says {}", run["error"], first["message"]));
        }
        Some(_) => {}
    }
    differences
}

/// Where `ours` lacks or contradicts `expected`.
fn compare(path: &str, expected: &Value, ours: &Value, differences: &mut Vec<String>) {
    match (expected, ours) {
        (Value::Object(expected), Value::Object(found)) => {
            let wanted = expected
                .iter()
                .filter(|(key, _)| !LEFT_OUT.contains(&key.as_str()));
            for (key, value) in wanted {
                match found.get(key) {
                    Some(found) => compare(&format!("{path}.{key}"), value, found, differences),
                    None => differences.push(format!("{path}.{key}: missing, should be {value}")),
                }
            }
            if FREE_MAPS.iter().any(|name| path.ends_with(name)) {
                let extra = found.keys().filter(|key| !expected.contains_key(*key));
                differences.extend(extra.map(|key| format!("{path}.{key}: too much")));
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
                compare(&format!("{path}[{index}]"), expected, found, differences);
            }
        }
        _ if expected != ours => differences.push(format!("{path}: should be {expected}, is {ours}")),
        _ => {}
    }
}
