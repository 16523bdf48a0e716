//! Which release each host goes back to: the same one of the app, whatever number it has there.
//!
//! Numbers are a host's own. They differ as soon as a host was added later, or a push went to a part of the hosts.

use appliance_push::change::ReleaseNumber;

use crate::failure::{Failure, Kind, failure};
use crate::wire::{App, Release};

/// The target of a rollback on several hosts.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// The app's own version of it.
    pub version: String,
    /// Its number on each host; none where it serves already and another host has to go back to it.
    pub numbers: Vec<Option<ReleaseNumber>>,
}

/// Finds the release that `wanted` names on every host: `v42`, as the first host that has it counts, or the app's own
/// version; without it, the one before the current on the host whose current release is the newest.
///
/// # Errors
/// When a host does not have it, with what each has.
pub fn target(hosts: &[(&str, &App)], wanted: Option<&str>) -> Result<Target, Failure> {
    let example = match wanted {
        Some(wanted) => named(hosts, wanted)?,
        None => before_the_newest(hosts)?,
    };
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for (name, app) in hosts {
        // Several pushes of one version are told apart by their time: hosts take one within moments of each other.
        let same = all(app).filter(|release| release.version == example.version);
        match same.min_by_key(|release| release.at.duration_since(example.at).abs()) {
            Some(release) => found.push((release.number, is_current(app, release))),
            None => missing.push(format!("{name}: {}", list(app))),
        }
    }
    if !missing.is_empty() {
        let have: Vec<&str> = hosts
            .iter()
            .filter(|(_, app)| all(app).any(|release| release.version == example.version))
            .map(|(name, _)| *name)
            .collect();
        return Err(failure(
            Kind::Refused,
            format!(
                "not every host has {}, so none was rolled back\n{}",
                example.version,
                missing.join("\n")
            ),
        )
        .hint(format!(
            "name a release that all of them have, or: appliance rollback {} -h {}",
            example.version,
            have.join(",")
        )));
    }
    // Where all serve it already, rolling it out again is what was asked for.
    let everywhere = found.iter().all(|(_, current)| *current);
    Ok(Target {
        version: example.version.clone(),
        numbers: found
            .into_iter()
            .map(|(number, current)| (everywhere || !current).then_some(number))
            .collect(),
    })
}

/// The release that `wanted` names on one host.
///
/// # Errors
/// When there is none, with those that are there.
pub fn find<'a>(app: &'a App, wanted: &str) -> Result<&'a Release, Failure> {
    let number = wanted
        .strip_prefix('v')
        .and_then(|number| number.parse().ok())
        .map(ReleaseNumber);
    all(app)
        .find(|release| Some(release.number) == number || release.version == wanted)
        .ok_or_else(|| {
            failure(
                Kind::Refused,
                format!(
                    "{} has no release {wanted}; earlier releases on this host: {}",
                    app.app,
                    list(app)
                ),
            )
        })
}

fn named<'a>(hosts: &[(&'a str, &'a App)], wanted: &str) -> Result<&'a Release, Failure> {
    let mut refused = None;
    for (_, app) in hosts {
        match find(app, wanted) {
            Ok(release) => return Ok(release),
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    Err(refused.unwrap_or_else(|| failure(Kind::Refused, "there is no host to roll back")))
}

/// A push to a part of the hosts leaves the others behind: it is the one that is gone back from.
fn before_the_newest<'a>(hosts: &[(&'a str, &'a App)]) -> Result<&'a Release, Failure> {
    let current = |(_, app): &(&'a str, &'a App)| app.current.as_ref().map(|current| (current, *app));
    let mut serving: Vec<(&Release, &App)> = hosts.iter().filter_map(current).collect();
    let alike = serving
        .windows(2)
        .all(|pair| pair[0].0.version == pair[1].0.version);
    if !alike {
        serving.sort_by_key(|(current, _)| std::cmp::Reverse(current.at));
    }
    let back = serving.first().and_then(|(_, app)| {
        let back = app.back?;
        app.previous.iter().find(|release| release.number == back)
    });
    back.ok_or_else(|| {
        let told: Vec<String> = hosts
            .iter()
            .map(|(name, app)| format!("{name}: {}", list(app)))
            .collect();
        failure(
            Kind::Refused,
            format!("there is no earlier release to go back to\n{}", told.join("\n")),
        )
        .hint("appliance status")
    })
}

fn all(app: &App) -> impl Iterator<Item = &Release> {
    app.previous.iter().chain(&app.current)
}

fn is_current(app: &App, release: &Release) -> bool {
    app.current
        .as_ref()
        .is_some_and(|current| current.number == release.number)
}

fn list(app: &App) -> String {
    let there: Vec<String> = app
        .previous
        .iter()
        .map(|release| format!("{} ({})", release.number, release.version))
        .collect();
    if there.is_empty() {
        "none".to_owned()
    } else {
        there.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host's releases as number, version and time of day; the first serves, the second did before it.
    fn app(releases: &[(u64, &str, i64)]) -> App {
        let mut releases = releases.iter().map(|(number, version, at)| Release {
            number: ReleaseNumber(*number),
            version: (*version).to_owned(),
            digest: String::new(),
            created_by: String::new(),
            signer: String::new(),
            at: jiff::Timestamp::from_second(*at).expect("in range"),
        });
        let current = releases.next();
        let previous: Vec<Release> = releases.collect();
        App {
            app: "shop".to_owned(),
            current,
            back: previous.first().map(|release| release.number),
            previous,
            ..App::default()
        }
    }

    fn numbers(hosts: &[&App], wanted: Option<&str>) -> Result<(String, Vec<Option<u64>>), String> {
        let names = ["one", "two", "three"];
        let hosts: Vec<(&str, &App)> = names.into_iter().zip(hosts.iter().copied()).collect();
        target(&hosts, wanted)
            .map(|target| {
                let numbers = target.numbers.into_iter();
                (
                    target.version,
                    numbers.map(|number| number.map(|number| number.0)).collect(),
                )
            })
            .map_err(|failed| failed.message)
    }

    #[test]
    fn hosts_go_back_to_one_version_whatever_its_number() {
        let (one, two) = (
            app(&[(32, "c", 30), (31, "b", 20), (30, "a", 10)]),
            app(&[(2, "c", 31), (1, "b", 21)]),
        );
        let b = || Ok(("b".to_owned(), vec![Some(31), Some(1)]));
        assert_eq!(numbers(&[&one, &two], None), b());
        assert_eq!(numbers(&[&one, &two], Some("b")), b());
        assert_eq!(numbers(&[&one, &two], Some("v31")), b());
        assert_eq!(
            numbers(&[&one, &two], Some("v2")),
            Ok(("c".to_owned(), vec![Some(32), Some(2)])),
            "it serves everywhere, so it is rolled out again"
        );
        let lacks = numbers(&[&one, &two], Some("a")).expect_err("two was added later");
        assert!(lacks.ends_with("\ntwo: v1 (b)"), "{lacks}");
        assert!(numbers(&[&one, &two], Some("v9")).is_err());
    }

    #[test]
    fn what_a_part_of_the_hosts_got_is_taken_from_them_alone() {
        let ahead = app(&[(3, "c", 30), (2, "b", 20), (1, "a", 10)]);
        let behind = app(&[(2, "b", 21), (1, "a", 11)]);
        assert_eq!(
            numbers(&[&ahead, &behind], None),
            Ok(("b".to_owned(), vec![Some(2), None]))
        );
        assert_eq!(
            numbers(&[&behind, &ahead], None),
            Ok(("b".to_owned(), vec![None, Some(2)]))
        );
    }

    #[test]
    fn one_version_pushed_twice_is_told_apart_by_its_time() {
        let one = app(&[(2, "a", 500), (1, "a", 10)]);
        let two = app(&[(9, "a", 503), (8, "a", 12)]);
        assert_eq!(
            numbers(&[&one, &two], None),
            Ok(("a".to_owned(), vec![Some(1), Some(8)]))
        );
    }

    #[test]
    fn where_there_is_nothing_to_go_back_to_it_says_so() {
        let only = app(&[(1, "a", 10)]);
        assert!(numbers(&[&only], None).expect_err("none").contains("one: none"));
        assert!(numbers(&[&app(&[])], None).is_err());
    }
}
