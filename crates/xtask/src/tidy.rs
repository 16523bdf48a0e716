//! Rules of the repository, as tests: `cargo test --package xtask`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo::{cargo, root};

/// Crates that may use our other crates, and which.
const MAY_USE: &[(&str, &[&str])] = &[
    ("appliance", &["*"]),
    ("xtask", &["appliance-sandbox", "appliance-tests"]),
    ("appliance-tests", &["*"]),
];

/// Lines a Rust file may have at most.
const LONGEST: usize = 800;

#[test]
fn sibling_crates_do_not_know_each_other() {
    let output = cargo(&["metadata", "--no-deps", "--format-version=1"])
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    let ours: Vec<_> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    assert!(ours.len() > 5, "the workspace has crates: {ours:?}");
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let allowed = MAY_USE
            .iter()
            .find(|(user, _)| *user == name)
            .map_or(&[][..], |(_, used)| used);
        for dependency in package["dependencies"].as_array().expect("a list") {
            let used = dependency["name"].as_str().unwrap_or_default();
            if ours.contains(&used) && !allowed.contains(&used) && !allowed.contains(&"*") {
                wrong.push(format!("{name} -> {used}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "only `appliance` joins crates; see crates/README.md: {wrong:?}"
    );
}

#[test]
fn rust_files_stay_short() {
    let long: Vec<_> = tracked()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| {
            let lines = fs_err::read_to_string(&path).ok()?.lines().count();
            (lines > LONGEST).then(|| format!("{} has {lines} lines", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "split at a noun: {long:?}");
}

#[test]
fn no_file_names_somebodys_machine() {
    // Spelt in two parts, so that this file does not break its own rule.
    let places = [
        ["/home", "/runner"],
        ["/root", "/.cargo"],
        ["/root", "/.rustup"],
        ["/Users", "/"],
    ]
    .map(|parts| parts.concat());
    let mut found = Vec::new();
    for path in tracked() {
        let Ok(text) = fs_err::read_to_string(&path) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place.as_str())) {
                found.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "paths of one machine: {found:?}");
}

#[test]
fn no_module_is_called_by_what_it_is_not() {
    let vague: Vec<_> = tracked()
        .into_iter()
        .filter(|path| {
            path.extension().is_some_and(|extension| extension == "rs")
                && path
                    .file_stem()
                    .and_then(|stem| stem.to_str())
                    .is_some_and(|stem| {
                        ["utils", "util", "common", "core", "types", "helpers", "misc"].contains(&stem)
                    })
        })
        .collect();
    assert!(vague.is_empty(), "name the noun: {vague:?}");
}

#[test]
fn dependencies_are_declared_once() {
    // Fuzz targets are workspaces of their own, as cargo-fuzz wants them.
    let members = tracked().into_iter().filter(|path| {
        path.ends_with("Cargo.toml")
            && *path != root().join("Cargo.toml")
            && path
                .parent()
                .is_some_and(|directory| !directory.ends_with("fuzz"))
    });
    let mut wrong = Vec::new();
    for path in members {
        let text = fs_err::read_to_string(&path).expect("readable");
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            if line.contains("version = \"") {
                wrong.push(format!("{}: {line}", path.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "versions belong into the workspace's table: {wrong:?}"
    );
}

#[test]
fn a_table_of_failures_names_tests_that_are_there() {
    let page = fs_err::read_to_string(root().join("crates/backup/src/lib.rs")).expect("readable");
    let code: Vec<_> = tracked()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| fs_err::read_to_string(path).ok())
        .collect();
    let there = |name: &str| {
        let (function, program) = (format!("fn {name}("), format!("crates/backup/tests/{name}.rs"));
        code.iter().any(|text| text.contains(&function)) || root().join(program).is_file()
    };
    let rows = page.lines().filter_map(|line| line.strip_prefix("//! | "));
    let mut numbers = Vec::new();
    let mut missing = Vec::new();
    // The first row is the table's head.
    for row in rows.skip(1) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [number, _, tests, ""] = cells.as_slice() else {
            panic!("not three cells: {row}");
        };
        numbers.extend(number.parse::<u32>());
        let named: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
        assert!(
            !named.is_empty() || tests.contains("none is used"),
            "no test: {row}"
        );
        missing.extend(named.into_iter().filter(|name| !there(name)));
    }
    assert_eq!(
        numbers,
        (1..=21).collect::<Vec<_>>(),
        "each kind of failure has a row"
    );
    assert!(
        missing.is_empty(),
        "the table names tests that are not: {missing:?}"
    );
}

/// The files that git knows, or all below the workspace where there is no git.
fn tracked() -> Vec<PathBuf> {
    let root = root();
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(&root)
        .output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(|name| root.join(name))
            .filter(|path| path.is_file())
            .collect(),
        _ => {
            let mut found = Vec::new();
            walk(&root, &mut found);
            found
        }
    }
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs_err::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && name != ".git" {
                walk(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}
