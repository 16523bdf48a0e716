//! `x-appliance:` values of the right form that cannot work: names that nothing has, limits of nothing, schedules that
//! never fire. They are looked up in the file, so a mistake of form elsewhere hides none of them.

use std::collections::BTreeMap;

use crate::extension::{BackupKind, KEY};
use crate::problem::{Problem, did_you_mean};
use crate::secrets::shell;
use crate::source::Sources;
use crate::units::{Bytes, Schedule, Seconds, Share};
use crate::validate::raw::Raw;
use crate::warnings;
use crate::yaml::tree::{Map, Node, Place, Value};

/// Least memory that Docker accepts as a limit, in bytes.
const LEAST_MEMORY: u64 = 6 << 20;

/// Finds them.
pub(crate) fn check(root: &Node, sources: &Sources) -> Vec<Problem> {
    let (Some(map), Some(section)) = (root.as_map(), root.get(KEY)) else {
        return Vec::new();
    };
    let raw = Raw::new(map);
    let is_readable = |key: &str| {
        map.get(key)
            .is_none_or(|node| node.as_map().is_some() || node.as_seq().is_some())
    };
    let mut checker = Checker {
        section,
        sources,
        roles: is_readable("servers").then(|| raw.roles().into_iter().map(|role| role.name).collect()),
        accessories: is_readable("accessories").then(|| {
            let named = raw.accessories();
            named.iter().map(|(name, _)| name.to_s()).collect()
        }),
        images: (raw.accessories().into_iter())
            .filter_map(|(name, node)| Some((name.to_s(), node.get("image")?.as_str()?.to_owned())))
            .collect(),
        found: Vec::new(),
    };
    checker.release();
    checker.watch_and_canary();
    checker.cron();
    checker.backups();
    checker.limits();
    checker.silence();
    checker.found
}

struct Checker<'a> {
    section: &'a Node,
    sources: &'a Sources,
    /// Names of the roles; `None` when `servers` cannot be read.
    roles: Option<Vec<String>>,
    /// Names of the accessories; `None` when `accessories` cannot be read.
    accessories: Option<Vec<String>>,
    /// Their images.
    images: BTreeMap<String, String>,
    found: Vec<Problem>,
}

impl<'a> Checker<'a> {
    fn refuse(&mut self, place: Place, path: &[&str], message: &str, hint: impl Into<String>) {
        let path: Vec<&str> = std::iter::once(KEY).chain(path.iter().copied()).collect();
        let shown = path.join("/");
        let problem = self
            .sources
            .problem(place, &shown, format!("{shown}: {message}"))
            .with_hint(hint);
        self.found.push(problem);
    }

    fn entries(&self, key: &str) -> Vec<(&'a Node, String, &'a Node)> {
        let map = self.section.get(key).and_then(Node::as_map);
        map.into_iter()
            .flat_map(Map::iter)
            .map(|(name, value)| (name, name.to_s(), value))
            .collect()
    }

    /// A name must be one of those that exist.
    fn name(&mut self, node: &Node, path: &[&str], known: Option<Vec<String>>, what: &str) {
        let found = node.to_s();
        let Some(known) = known else { return };
        if known.contains(&found) {
            return;
        }
        let hint = match did_you_mean(&found, known.iter().map(String::as_str)) {
            Some(word) => format!("did you mean {word}?"),
            None if known.is_empty() => format!("the configuration has no {what}"),
            None => format!("there is: {}", known.join(", ")),
        };
        self.refuse(node.place, path, &format!("there is no {what} {found:?}"), hint);
    }

    fn role(&mut self, node: Option<&Node>, path: &[&str]) {
        if let Some(node) = node.filter(|node| node.as_str().is_some()) {
            self.name(node, path, self.roles.clone(), "role");
        }
    }

    fn command(&mut self, node: Option<&Node>, path: &[&str]) {
        let Some(node) = node else { return };
        let is_empty = match &node.value {
            Value::Str(line) => line.trim().is_empty(),
            Value::Seq(words) => words.first().is_none_or(|word| word.to_s().trim().is_empty()),
            _ => false,
        };
        if is_empty {
            return self.refuse(
                node.place,
                path,
                "the command is empty",
                "name the program to run, or remove the key",
            );
        }
        // A comment or a further line may hold an apostrophe that means nothing to a shell.
        let line = node.as_str().filter(|line| !line.contains(['#', '\n']));
        if line.is_some_and(|line| shell::split(line).is_err()) {
            self.refuse(
                node.place,
                path,
                "a quote in the command is not closed",
                "close it, or write the command as a list of words: [bin/task, \"it's\"]",
            );
        }
    }

    /// A duration that must be longer than nothing.
    fn duration(&mut self, node: Option<&Node>, path: &[&str], hint: &str) {
        if let Some(node) = node
            && serde_json::from_value::<Seconds>(node.to_json()).is_ok_and(|found| found.0 == 0)
        {
            self.refuse(node.place, path, "should be longer than 0", hint);
        }
    }

    fn timezone(&mut self, node: Option<&Node>, path: &[&str]) {
        let Some((node, zone)) = node.and_then(|node| Some((node, node.as_str()?))) else {
            return;
        };
        let zones = jiff::tz::db();
        // Where no database of zones is installed, none can be judged.
        if zones.is_definitively_empty() || zones.get(zone).is_ok() {
            return;
        }
        let known: Vec<String> = zones.available().map(|name| name.to_string()).collect();
        let near = did_you_mean(zone, known.iter().map(String::as_str)).or_else(|| {
            let ends_alike = |name: &&String| {
                let end = name.rsplit('/').next().unwrap_or(name);
                end.eq_ignore_ascii_case(zone)
            };
            known.iter().find(ends_alike).map(String::as_str)
        });
        let hint = match near {
            Some(name) => format!("did you mean {name}?"),
            None => "name it as the IANA database does, such as Europe/Berlin".to_owned(),
        };
        self.refuse(node.place, path, &format!("{zone:?} is no time zone"), hint);
    }

    fn schedule(&mut self, node: Option<&Node>, path: &[&str]) {
        let Some(node) = node else { return };
        if serde_json::from_value::<Schedule>(node.to_json()).is_ok_and(|schedule| !fires(&schedule)) {
            self.refuse(
                node.place,
                path,
                &format!("{:?} never comes: no such month has that day", node.to_s()),
                "choose a day that the month has",
            );
        }
    }

    fn release(&mut self) {
        let Some(release) = self.section.get("release") else {
            return;
        };
        if release.as_map().is_none() {
            return self.command(Some(release), &["release"]);
        }
        self.command(release.get("command"), &["release", "command"]);
        self.role(release.get("role"), &["release", "role"]);
        let path = ["release", "timeout"];
        self.duration(
            release.get("timeout"),
            &path,
            "it would be stopped before it begins; the default is 10m",
        );
    }

    fn watch_and_canary(&mut self) {
        let canary = self.section.get("canary");
        if let Some(node) = canary.and_then(|canary| canary.get("share"))
            && serde_json::from_value::<Share>(node.to_json()).is_ok_and(|share| share.0 == 0.0)
        {
            self.refuse(
                node.place,
                &["canary", "share"],
                "a share of 0 shows the new release to nobody",
                "give a share such as 5%, or remove `canary`",
            );
        }
        self.duration(
            canary.and_then(|canary| canary.get("for")),
            &["canary", "for"],
            "give a time such as 5m, or remove `canary`",
        );
    }

    fn cron(&mut self) {
        for (key, name, job) in self.entries("cron") {
            let is_plain = name
                .chars()
                .all(|letter| !letter.is_whitespace() && !letter.is_control() && letter != '/');
            if name.is_empty() || !is_plain {
                self.refuse(
                    key.place,
                    &["cron"],
                    &format!("{name:?} cannot name a job"),
                    "give it a name without blanks and slashes, such as nightly-report",
                );
            }
            let path = |last| ["cron", name.as_str(), last];
            self.schedule(job.get("schedule"), &path("schedule"));
            self.timezone(job.get("timezone"), &path("timezone"));
            self.command(job.get("command"), &path("command"));
            self.role(job.get("role"), &path("role"));
            self.duration(
                job.get("timeout"),
                &path("timeout"),
                "it would be stopped before it begins; the default is 1h",
            );
        }
    }

    fn backups(&mut self) {
        for (key, name, backup) in self.entries("backups") {
            self.name(key, &["backups", &name], self.accessories.clone(), "accessory");
            if let Some(image) = self.images.get(&name) {
                let kind = backup
                    .get("kind")
                    .map(|node| serde_json::from_value(node.to_json()));
                // One that is no kind is told as that.
                if let Ok(kind) = kind.transpose()
                    && let Some((why, way)) = BackupKind::refusal(kind, image)
                {
                    self.refuse(key.place, &["backups", &name], &why, way);
                }
            }
            let path = |last| ["backups", name.as_str(), last];
            self.schedule(backup.get("schedule"), &path("schedule"));
            self.timezone(backup.get("timezone"), &path("timezone"));
            if let Some(node) = backup.get("bandwidth")
                && serde_json::from_value::<Bytes>(node.to_json()).is_ok_and(|found| found.0 == 0)
            {
                self.refuse(
                    node.place,
                    &path("bandwidth"),
                    "at 0 bytes a second no backup ends",
                    "give a rate such as 10m, or remove it for no limit",
                );
            }
        }
    }

    fn limits(&mut self) {
        let limits = self.section.get("limits");
        self.memory(
            limits.and_then(|limits| limits.get("memory")),
            &["limits", "memory"],
        );
        let roles = limits
            .and_then(|limits| limits.get("roles"))
            .and_then(Node::as_map);
        for (key, own) in roles.into_iter().flat_map(Map::iter) {
            let name = key.to_s();
            self.role(Some(key), &["limits", "roles", &name]);
            self.memory(own.get("memory"), &["limits", "roles", &name, "memory"]);
        }
    }

    fn memory(&mut self, node: Option<&Node>, path: &[&str]) {
        if let Some(node) = node
            && serde_json::from_value::<Bytes>(node.to_json()).is_ok_and(|found| found.0 < LEAST_MEMORY)
        {
            self.refuse(
                node.place,
                path,
                "Docker starts no container with less than 6m of memory",
                "give a size such as 512m, or remove it for no limit",
            );
        }
    }

    fn silence(&mut self) {
        let names = self.section.get("silence").and_then(Node::as_seq);
        for (index, node) in names.unwrap_or_default().iter().enumerate() {
            if node.as_str().is_some() {
                let known = warnings::NAMES.iter().map(|name| (*name).to_owned()).collect();
                self.name(node, &["silence", &index.to_string()], Some(known), "warning");
            }
        }
    }
}

/// Whether any day of any year is one of the schedule's.
fn fires(schedule: &Schedule) -> bool {
    const DAYS: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    let fields: Vec<&str> = schedule.fields().split_ascii_whitespace().collect();
    let [_, _, days, months, weekday] = fields[..] else {
        return true;
    };
    // With a weekday as well, either of the two suffices, and every month has every weekday.
    if !weekday.starts_with('*') {
        return true;
    }
    let number = |part: &str| {
        let word = MONTHS.iter().position(|month| part.eq_ignore_ascii_case(month));
        word.and_then(|index| u32::try_from(index + 1).ok())
            .or_else(|| part.parse().ok())
            .unwrap_or(0)
    };
    let holds = |field: &str, value: u32, least: u32, most: u32| {
        field.split(',').any(|item| {
            let (range, step) = item
                .split_once('/')
                .map_or((item, None), |(range, step)| (range, step.parse::<u32>().ok()));
            let (from, to) = match range.split_once('-') {
                _ if range == "*" => (least, most),
                Some((from, to)) => (number(from), number(to)),
                None if step.is_some() => (number(range), most),
                None => (number(range), number(range)),
            };
            (from..=to).contains(&value) && (value - from).is_multiple_of(step.unwrap_or(1).max(1))
        })
    };
    (1..=12)
        .zip(DAYS)
        .any(|(month, last)| holds(months, month, 1, 12) && (1..=last).any(|day| holds(days, day, 1, 31)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(section: &str) -> Vec<String> {
        let text = format!(
            "servers: {{web: [192.0.2.1], job: [192.0.2.2]}}\naccessories: {{db: {{image: x}}}}\nx-appliance:\n{section}"
        );
        let mut sources = Sources::default();
        let number = sources.add("config/deploy.yml", text.as_str());
        let document = crate::yaml::read(&text, number, &|line, column| (line, column)).expect("YAML");
        check(&document.root.expect("a root"), &sources)
            .into_iter()
            .map(|problem| {
                let hint = problem.hint.expect("every problem says what to do");
                format!(
                    "{}: {} ({hint})",
                    problem.line.unwrap_or_default(),
                    problem.message
                )
            })
            .collect()
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let section = "  release: {command: ' ', role: wep, timeout: 0s}\n  canary: {share: 0%, for: 0}\n  cron:\n    \
            '': {schedule: '0 0 30 2 *', timezone: Berlin, command: \"echo 'x\", timeout: 0}\n    \
            ok: {schedule: '0 0 31 4,6 *', command: [], timezone: Europe/Belrin, role: jobs}\n  \
            backups: {dbs: {schedule: '0 3 31 feb *', bandwidth: 0}}\n  \
            limits: {memory: 0, roles: {wbe: {memory: 5m}}}\n  silence: [latest-tags]\n";
        // Where no database of time zones is installed, none is judged.
        let zones = !jiff::tz::db().is_definitively_empty();
        let expected: Vec<&str> = [
                "4: x-appliance/release/command: the command is empty (name the program to run, or remove the key)",
                "4: x-appliance/release/role: there is no role \"wep\" (did you mean web?)",
                "4: x-appliance/release/timeout: should be longer than 0 (it would be stopped before it begins; the default is 10m)",
                "5: x-appliance/canary/share: a share of 0 shows the new release to nobody (give a share such as 5%, or remove `canary`)",
                "5: x-appliance/canary/for: should be longer than 0 (give a time such as 5m, or remove `canary`)",
                "7: x-appliance/cron: \"\" cannot name a job (give it a name without blanks and slashes, such as nightly-report)",
                "7: x-appliance/cron//schedule: \"0 0 30 2 *\" never comes: no such month has that day (choose a day that the month has)",
                "7: x-appliance/cron//timezone: \"Berlin\" is no time zone (did you mean Europe/Berlin?)",
                "7: x-appliance/cron//command: a quote in the command is not closed (close it, or write the command as a list of words: [bin/task, \"it's\"])",
                "7: x-appliance/cron//timeout: should be longer than 0 (it would be stopped before it begins; the default is 1h)",
                "8: x-appliance/cron/ok/schedule: \"0 0 31 4,6 *\" never comes: no such month has that day (choose a day that the month has)",
                "8: x-appliance/cron/ok/timezone: \"Europe/Belrin\" is no time zone (did you mean Europe/Berlin?)",
                "8: x-appliance/cron/ok/command: the command is empty (name the program to run, or remove the key)",
                "8: x-appliance/cron/ok/role: there is no role \"jobs\" (did you mean job?)",
                "9: x-appliance/backups/dbs: there is no accessory \"dbs\" (did you mean db?)",
                "9: x-appliance/backups/dbs/schedule: \"0 3 31 feb *\" never comes: no such month has that day (choose a day that the month has)",
                "9: x-appliance/backups/dbs/bandwidth: at 0 bytes a second no backup ends (give a rate such as 10m, or remove it for no limit)",
                "10: x-appliance/limits/memory: Docker starts no container with less than 6m of memory (give a size such as 512m, or remove it for no limit)",
                "10: x-appliance/limits/roles/wbe: there is no role \"wbe\" (did you mean web?)",
                "10: x-appliance/limits/roles/wbe/memory: Docker starts no container with less than 6m of memory (give a size such as 512m, or remove it for no limit)",
                "11: x-appliance/silence/0: there is no warning \"latest-tags\" (did you mean latest-tag?)",
            ]
        .into_iter()
        .filter(|line| zones || !line.contains("time zone"))
        .collect();
        assert_eq!(problems(section), expected);
    }

    #[test]
    fn a_server_whose_files_are_no_backup_is_not_backed_up_as_files() {
        let told = |image: &str, kind: &str| {
            let text = format!(
                "servers: [192.0.2.1]\naccessories: {{x: {{image: '{image}'}}}}\nx-appliance:\n  backups: {{x: {{{kind}}}}}\n"
            );
            let mut sources = Sources::default();
            let number = sources.add("config/deploy.yml", text.as_str());
            let document = crate::yaml::read(&text, number, &|line, column| (line, column)).expect("YAML");
            let found = check(&document.root.expect("a root"), &sources);
            let told =
                |problem: Problem| format!("{} ({})", problem.message, problem.hint.unwrap_or_default());
            found.into_iter().map(told).collect::<Vec<_>>().join("; ")
        };
        for (image, kind) in [
            ("postgres:17", ""),
            ("ghcr.io/acme/db:1", "kind: postgres"),
            ("timescale/timescaledb:latest-pg17", ""),
            ("valkey/valkey:8", ""),
            ("nginx", "kind: volume"),
            ("mysql:8", "kind: volume"),
        ] {
            assert_eq!(told(image, kind), "", "{image} {kind}");
        }
        for image in [
            "mongo:7",
            "clickhouse/clickhouse-server",
            "elasticsearch:8.15.0",
            "ghcr.io/acme/db:1",
        ] {
            let told = told(image, "");
            assert!(told.contains(image) && told.contains("kind: volume"), "{told}");
        }
        for (image, kind) in [
            ("mysql:8", ""),
            ("mariadb:11", ""),
            ("ghcr.io/acme/db:1", "kind: mysql"),
        ] {
            assert!(told(image, kind).contains("mariadb-dump"), "{image} {kind}");
        }
    }

    #[test]
    fn what_works_passes() {
        let section = "  release: \"echo \\\"it's\\\" && true # don't\"\n  watch: false\n  canary: {share: 5%}\n  cron:\n    \
            leap: {schedule: '0 0 29 2 *', timezone: Europe/Berlin, command: x}\n    \
            either: {schedule: '0 0 31 2 mon', timezone: UTC, command: x}\n    \
            last: {schedule: '0 0 */31 1-3 *', command: [x, '']}\n  limits: {memory: 6m}\n";
        assert_eq!(problems(section), [""; 0]);
    }
}
