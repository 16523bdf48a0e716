//! Whole runs on a machine in memory.

use std::path::PathBuf;

use proptest::prelude::*;

use crate::apply::{ApplyError, Inputs, Outcome, apply};
use crate::catalogue;
use crate::facts::{Facts, observe};
use crate::firewall::opening::{Opening, Ports, Source};
use crate::firewall::rules::{Mode, Rules};
use crate::firewall::{FirewallError, State};
use crate::gate;
use crate::host::{Entry, Host as _, Kind, Owner};
use crate::memory::{Fixed, Memory};
use crate::options::Options;
use crate::plan::{Plan, Violation, check, plan};
use crate::want::Want;

const ANN: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk6wrqCgWWQfTaIv1CZo6bOw1tQ8kEBdNqUe2Ii3cMf ann@laptop";
const BOB: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk6wrqCgWWQfTaIv1CZo6bOw1tQ8kEBdNqUe2Ii3cMs bob@laptop";

fn options() -> Options {
    let mut options = Options::new("1.0.0");
    options.admin_keys = vec![ANN.parse().expect("a key")];
    options.deploy_keys = vec![BOB.parse().expect("a key")];
    options.binary = Some(PathBuf::from("/root/download"));
    options
}

fn look(host: &Memory, options: &Options) -> (Facts, Plan) {
    let facts = observe(host, options).expect("observes");
    let plan = plan(options, &facts);
    (facts, plan)
}

fn run(host: &Memory, options: &Options) -> Result<Outcome, ApplyError> {
    let (_, plan) = look(host, options);
    apply(host, options, &plan, &Inputs { secrets: &Fixed }, &mut |_| ())
}

/// A host after one undisturbed run.
fn finished(id: &str, version: &str) -> Memory {
    let host = Memory::bare(id, version);
    run(&host, &options()).expect("bootstraps");
    host
}

/// What tells two hosts apart, by name.
fn difference(one: &Memory, other: &Memory) -> Vec<String> {
    let mut different = Vec::new();
    let (files, others) = (one.files.borrow(), other.files.borrow());
    let paths: std::collections::BTreeSet<_> = files.keys().chain(others.keys()).collect();
    different.extend(
        paths
            .into_iter()
            .filter(|path| files.get(*path) != others.get(*path))
            .map(|path| path.display().to_string()),
    );
    let pairs = [
        (
            "packages",
            format!("{:?}", one.packages),
            format!("{:?}", other.packages),
        ),
        ("units", format!("{:?}", one.units), format!("{:?}", other.units)),
        (
            "kernel",
            format!("{:?}", one.kernel),
            format!("{:?}", other.kernel),
        ),
    ];
    different.extend(
        pairs
            .into_iter()
            .filter(|(_, one, other)| one != other)
            .map(|(what, one, other)| format!("{what}: {one} / {other}")),
    );
    different
}

#[test]
fn a_second_run_changes_nothing_on_every_supported_system() {
    for (id, version) in gate::SUPPORTED {
        let host = finished(id, version);
        let effects = host.effects.borrow().len();
        let outcome = run(&host, &options()).expect("runs again");
        assert_eq!(outcome, Outcome::default(), "{id} {version}");
        assert_eq!(host.effects.borrow().len(), effects, "{id} {version}");
        assert_eq!(look(&host, &options()).1.changes(), 0);
    }
}

#[test]
fn a_plan_touches_nothing() {
    let host = Memory::bare("debian", "12");
    let (_, plan) = look(&host, &options());
    assert!(plan.changes() > 10 && check(&plan).is_empty());
    assert_eq!(host.effects.borrow().len(), 0);
}

#[test]
fn a_run_cut_off_before_any_single_effect_is_finished_by_the_next() {
    let whole = finished("debian", "13");
    let total = whole.effects.borrow().len();
    assert!(total > 40, "only {total} effects");
    for cut in 0..total {
        let host = Memory::bare("debian", "13");
        host.power.set(Some(cut));
        run(&host, &options()).expect_err("the power went");
        host.power.set(None);
        run(&host, &options()).unwrap_or_else(|error| panic!("cut at {cut}: {error:?}"));
        assert_eq!(difference(&host, &whole), Vec::<String>::new(), "cut at {cut}");
        assert_eq!(
            run(&host, &options()).expect("again").changed_steps,
            0,
            "cut at {cut}"
        );
    }
}

#[test]
fn what_a_cut_off_step_owed_is_paid_by_the_next_run() {
    let host = Memory::bare("debian", "12");
    run(&host, &options()).expect("bootstraps");
    // Another value in force, so that the next run has to write the file and reload sshd.
    host.put(crate::sshd::DROP_IN, "# edited\n");
    let write = {
        let probe = Memory::bare("debian", "12");
        run(&probe, &options()).expect("bootstraps");
        probe.put(crate::sshd::DROP_IN, "# edited\n");
        probe.effects.borrow_mut().clear();
        run(&probe, &options()).expect("repairs");
        let effects = probe.effects.borrow().clone();
        effects
            .iter()
            .position(|effect| effect == "try-reload-or-restart ssh.service")
            .expect("reloads sshd")
    };
    host.power.set(Some(write));
    run(&host, &options()).expect_err("the power went between the file and the reload");
    host.power.set(None);
    host.effects.borrow_mut().clear();
    let outcome = run(&host, &options()).expect("resumes");
    assert_eq!(outcome.changes, ["reload sshd"]);
    assert!(
        host.effects
            .borrow()
            .iter()
            .any(|effect| effect == "try-reload-or-restart ssh.service")
    );
}

#[test]
fn unsupported_systems_are_refused_with_every_reason_and_looked_at_no_further() {
    for (id, version) in [
        ("debian", "11"),
        ("ubuntu", "20.04"),
        ("fedora", "40"),
        ("linuxmint", "22"),
        ("debian", ""),
    ] {
        let host = Memory::bare(id, version);
        host.put("/sys/fs/cgroup/cgroup.controllers", "");
        host.put("/proc/1/comm", "init\n");
        let (facts, _) = look(&host, &options());
        let refusals = gate::refusals(&options(), &facts);
        assert_eq!(refusals.len(), 2, "{refusals:?}");
        assert!(facts.seen.is_empty());
        assert_eq!(host.effects.borrow().len(), 0);
    }
}

#[test]
fn another_firewall_that_is_on_is_refused_and_one_that_is_off_is_not() {
    let host = Memory::bare("ubuntu", "24.04");
    host.put("/etc/ufw/ufw.conf", "ENABLED=no\n");
    assert!(gate::refusals(&options(), &look(&host, &options()).0).is_empty());
    host.put("/etc/ufw/ufw.conf", "# x\nENABLED=yes\n");
    // UFW stays, and its rules are followed for containers too.
    host.put(
        "/etc/ufw/user.rules",
        "### tuple ### allow tcp 8080 0.0.0.0/0 any 0.0.0.0/0 in\n### tuple ### allow tcp 9 0.0.0.0/0 any 0.0.0.0/0 in_eth1\n",
    );
    let (facts, plan) = look(&host, &options());
    assert!(gate::refusals(&options(), &facts).is_empty());
    let rules = plan.steps.iter().find_map(|step| match &step.want {
        Want::Firewall(rules) => Some(rules.clone()),
        _ => None,
    });
    let rules = rules.expect("is planned");
    assert_eq!(
        (rules.mode, rules.ufw.len(), rules.openings.len()),
        (Mode::Ufw, 1, 0)
    );
    assert!(
        plan.notes.iter().any(|note| note.contains("in_eth1")),
        "{:?}",
        plan.notes
    );
    // Who turns UFW on later gets a second lock; our own rules stay as they are.
    let later = finished("ubuntu", "24.04");
    later.put("/etc/ufw/ufw.conf", "ENABLED=yes\n");
    assert_eq!(look(&later, &options()).1.changes(), 0);
}

#[test]
fn a_host_that_got_into_trouble_is_told_so_and_still_served() {
    let host = finished("debian", "12");
    let iptables = "netfilter-persistent.service".to_owned();
    host.units.borrow_mut().insert(iptables, (true, true));
    let (facts, plan) = look(&host, &options());
    assert_eq!(gate::troubles(&options(), &facts).len(), 1);
    assert!(gate::refusals(&options(), &facts).is_empty());
    assert!(!facts.seen.is_empty(), "every item is looked at");
    let told = |note: &String| note.contains("iptables-persistent is active");
    assert!(plan.notes.iter().any(told), "{:?}", plan.notes);
    // A fresh one is refused.
    let fresh = Memory::bare("debian", "12");
    fresh.units.borrow_mut().clone_from(&host.units.borrow());
    let facts = look(&fresh, &options()).0;
    assert_eq!(gate::refusals(&options(), &facts).len(), 1);
}

#[test]
fn the_hierarchy_of_cgroups_is_told_apart_and_the_old_one_is_for_sandboxes() {
    // A mount of version 2; version 1, where each controller is a directory; both side by side (hybrid).
    for (files, version) in [
        (&["/sys/fs/cgroup/cgroup.controllers"][..], 2),
        (
            &[
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/pids/tasks",
            ],
            1,
        ),
        (
            &[
                "/sys/fs/cgroup/unified/cgroup.controllers",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            ],
            1,
        ),
    ] {
        let host = Memory::bare("debian", "12");
        host.files
            .borrow_mut()
            .retain(|path, _| !path.starts_with("/sys/fs/cgroup"));
        for file in files {
            host.put(file, "memory pids\n");
        }
        let facts = look(&host, &options()).0;
        assert_eq!(facts.cgroup, version, "{files:?}");
        let refused = gate::refusals(&options(), &facts);
        assert_eq!(
            refused.iter().any(|refusal| refusal.fact.contains("cgroup v2")),
            version == 1
        );
        let mut sandbox = options();
        sandbox.allow_container = true;
        let (facts, plan) = look(&host, &sandbox);
        assert!(gate::refusals(&sandbox, &facts).is_empty());
        assert_eq!(
            plan.notes.iter().any(|note| note.starts_with("cgroup v1")),
            version == 1
        );
    }
}

#[test]
fn ufw_that_is_off_is_not_trusted_with_the_hosts_ports() {
    let host = Memory::bare("debian", "12");
    let mut wanted = options();
    wanted.firewall.mode = Some(Mode::Ufw);
    wanted.ssh.port = Some(2222);
    let violations = check(&look(&host, &wanted).1);
    assert!(
        matches!(&violations[..], [Violation::UfwOff(turn_on)]
            if turn_on.contains("ufw allow 2222/tcp;") && turn_on.contains("80,443/tcp; ufw enable")),
        "whoever does as told is not locked out: {violations:?}"
    );
    wanted.ssh.port = None;
    assert!(matches!(run(&host, &wanted), Err(ApplyError::Refused(_))));
    host.put("/etc/ufw/ufw.conf", "ENABLED=yes\n");
    host.ufw.set((true, true));
    run(&host, &wanted).expect("bootstraps");
    assert_eq!(host.stead.borrow().as_ref(), None, "nobody stands in for it");
    // Whoever turns it off later is told, and can change the host all the same.
    host.put("/etc/ufw/ufw.conf", "ENABLED=no\n");
    for wanted in [options(), wanted] {
        let plan = look(&host, &wanted).1;
        assert_eq!(check(&plan), []);
        assert!(
            plan.notes.iter().any(|note| note.contains("open to everyone")),
            "{:?}",
            plan.notes
        );
    }
}

#[test]
fn who_is_taken_out_of_host_yml_loses_root_and_the_door() {
    let host = Memory::bare("debian", "12");
    let (ann, bob): (crate::PublicKey, crate::PublicKey) =
        (ANN.parse().expect("a key"), BOB.parse().expect("a key"));
    let both = || {
        let mut wanted = options();
        wanted.deploy_keys.clear();
        wanted.admin_keys = vec![ann.clone(), bob.clone()];
        wanted.declared = [ann.fingerprint(), bob.fingerprint()].into();
        wanted
    };
    run(&host, &both()).expect("bootstraps");
    let files = || {
        ["/root/.ssh/authorized_keys", "/home/deploy/.ssh/authorized_keys"]
            .map(|path| host.text(path).expect("is there"))
    };
    for text in files() {
        assert!(
            text.contains(&ann.base64()) && text.contains(&bob.base64()),
            "{text}"
        );
    }
    // Limited: the line that was not is gone.
    let mut limited = both();
    let networks = vec!["10.0.0.0/8".parse().expect("network")];
    limited.key_networks.insert(bob.fingerprint(), networks);
    run(&host, &limited).expect("applies");
    for text in files() {
        assert_eq!(text.matches(&bob.base64()).count(), 1, "{text}");
        assert!(text.contains("from=\"10.0.0.0/8\""), "{text}");
    }
    let mut without = both();
    without.admin_keys.pop();
    without.declared = [ann.fingerprint()].into();
    let plan = look(&host, &without).1;
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("appliance keys remove")),
        "{:?}",
        plan.notes
    );
    run(&host, &without).expect("applies");
    for text in files() {
        assert!(!text.contains(&bob.base64()), "{text}");
    }
    assert_eq!(run(&host, &without).expect("again").changed_steps, 0);
    // The last of them stays, and is told: somebody has to get in.
    let mut nobody = options();
    nobody.admin_keys.clear();
    let (_, plan) = look(&host, &nobody);
    run(&host, &nobody).expect("applies");
    assert!(files()[0].contains(&ann.base64()));
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("/root/.ssh/authorized_keys are no administrator's")),
        "{:?}",
        plan.notes
    );
}

#[test]
fn without_any_key_the_plan_is_refused_and_passwords_stay() {
    let host = Memory::bare("debian", "12");
    let mut options = options();
    options.admin_keys.clear();
    options.deploy_keys.clear();
    let (_, plan) = look(&host, &options);
    assert_eq!(check(&plan), [Violation::NoKey]);
    let sshd = plan.steps.iter().find_map(|step| match &step.want {
        Want::Sshd { settings } => Some(settings.clone()),
        _ => None,
    });
    assert!(
        !sshd
            .expect("is planned")
            .contains(&("PasswordAuthentication", "no".to_owned()))
    );
    assert!(matches!(run(&host, &options), Err(ApplyError::Refused(_))));
    assert_eq!(host.effects.borrow().len(), 0);
}

#[test]
fn a_plan_that_closes_ssh_or_locks_everybody_out_is_refused() {
    let (_, plan) = look(&Memory::bare("debian", "12"), &options());
    let mut closed = plan.clone();
    closed.ssh_ports = vec![22, 2222];
    assert_eq!(check(&closed), [Violation::SshClosed(2222)]);
    let mut keyless = plan.clone();
    keyless.root_keys = false;
    assert_eq!(check(&keyless), [Violation::PasswordsOff]);
    let mut reversed = plan;
    reversed.steps.reverse();
    assert!(
        check(&reversed)
            .iter()
            .any(|violation| matches!(violation, Violation::Order { .. }))
    );
}

#[test]
fn keys_and_settings_of_others_survive() {
    let host = Memory::bare("debian", "12");
    host.put("/root/.ssh/authorized_keys", "ssh-rsa AAAAB3NzaC1yc2E somebody\n");
    host.put("/etc/docker/daemon.json", "{\"dns\": [\"192.0.2.53\"]}");
    run(&host, &options()).expect("bootstraps");
    let root = host.text("/root/.ssh/authorized_keys").expect("is there");
    assert_eq!(
        root,
        format!("ssh-rsa AAAAB3NzaC1yc2E somebody\n{ANN} appliance:key\n")
    );
    let deploy = host.text("/home/deploy/.ssh/authorized_keys").expect("is there");
    assert_eq!(
        deploy
            .lines()
            .filter(|line| line.starts_with("restrict,command="))
            .count(),
        2
    );
    assert!(
        host.text("/etc/docker/daemon.json")
            .expect("is there")
            .contains("192.0.2.53")
    );
}

#[test]
fn one_key_for_both_roles_is_one_administrator() {
    let host = Memory::bare("debian", "12");
    let mut both = options();
    both.deploy_keys = both.admin_keys.clone();
    run(&host, &both).expect("bootstraps");
    let entries: serde_json::Value =
        serde_json::from_str(&host.text(crate::facts::KEYS).expect("is there")).expect("JSON");
    assert_eq!(entries.as_array().map(Vec::len), Some(1));
    assert_eq!(entries[0]["permissions"], serde_json::json!(["admin"]));
    assert_eq!(run(&host, &both).expect("again").changed_steps, 0);
}

#[test]
fn a_link_where_a_file_belongs_stops_everything_before_it_begins() {
    let host = Memory::bare("debian", "12");
    run(&host, &options()).expect("bootstraps");
    host.put("/home/deploy/.ssh/authorized_keys", "");
    let link = Entry {
        kind: Kind::Symlink,
        mode: 0o777,
        owner: Owner::new("deploy", "deploy"),
    };
    host.files
        .borrow_mut()
        .get_mut(&PathBuf::from("/home/deploy/.ssh/authorized_keys"))
        .expect("is there")
        .entry = link;
    let effects = host.effects.borrow().len();
    let error = run(&host, &options()).expect_err("refused").to_string();
    assert!(
        error.contains("/home/deploy/.ssh/authorized_keys is a link"),
        "{error}"
    );
    assert_eq!(host.effects.borrow().len(), effects);
}

#[test]
fn a_broken_daemon_json_is_reported_before_anything_is_touched() {
    let host = Memory::bare("debian", "12");
    host.put("/etc/docker/daemon.json", "{");
    let error = run(&host, &options()).expect_err("refused").to_string();
    assert!(error.contains("/etc/docker/daemon.json is not JSON"), "{error}");
    assert_eq!(host.effects.borrow().len(), 0);
}

#[test]
fn the_identity_is_made_once() {
    let host = finished("debian", "12");
    let first = host.text(catalogue::IDENTITY).expect("is there");
    host.put(catalogue::IDENTITY, &first.replace("TEST", "KEPT"));
    run(&host, &options()).expect("again");
    assert!(host.text(catalogue::IDENTITY).expect("is there").contains("KEPT"));
    let mode = host
        .entry(catalogue::IDENTITY.as_ref())
        .expect("looks")
        .expect("is there")
        .mode;
    assert_eq!(mode, 0o600, "put() left 0644, the run tightens it");
}

#[test]
fn dockers_repository_is_used_where_it_answers_and_the_choice_is_said() {
    let host = Memory::bare("ubuntu", "24.04");
    host.docker_repository.set(true);
    run(&host, &options()).expect("bootstraps");
    assert!(host.packages.borrow().contains("docker-ce"));
    assert!(
        host.text(crate::docker::SOURCES_FILE)
            .expect("is there")
            .contains("linux/ubuntu\nSuites: name\n")
    );
    assert_eq!(run(&host, &options()).expect("again").changed_steps, 0);

    let host = Memory::bare("debian", "13");
    let (_, plan) = look(&host, &options());
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("comes from the distribution")),
        "{:?}",
        plan.notes
    );
    run(&host, &options()).expect("bootstraps");
    assert!(host.packages.borrow().contains("docker-cli"));
    assert_eq!(host.text(crate::docker::SOURCES_FILE), None);
}

#[test]
fn apts_lock_is_waited_for() {
    let host = Memory::bare("debian", "12");
    host.locked.set(5);
    run(&host, &options()).expect("bootstraps once the lock is free");
    let host = Memory::bare("debian", "12");
    host.locked.set(u32::MAX);
    let error = run(&host, &options()).expect_err("never free");
    let ApplyError::Step { source, .. } = &error else {
        panic!("{error}")
    };
    assert!(source.to_string().starts_with("cannot install"), "{source}");
}

#[test]
fn a_file_of_ours_that_somebody_edited_is_kept_and_reported() {
    const FILE: &str = "/etc/logrotate.d/appliance";
    let host = finished("debian", "12");
    host.put(FILE, "# mine now\n");
    let (_, plan) = look(&host, &options());
    assert_eq!(plan.changes(), 0);
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains(FILE) && note.contains("--force")),
        "{:?}",
        plan.notes
    );
    run(&host, &options()).expect("runs");
    assert_eq!(host.text(FILE).as_deref(), Some("# mine now\n"));
    let forced = Options {
        force: true,
        ..options()
    };
    assert_eq!(run(&host, &forced).expect("runs").changed_steps, 1);
    assert!(host.text(FILE).expect("is there").contains("rotate 8"));
}

#[test]
fn items_are_switched_by_id_or_reference_and_a_must_is_not() {
    let host = Memory::bare("debian", "12");
    let has = |items: &[(&str, bool)], strict, id: &str| {
        let mut options = options();
        options.items = items.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect();
        options.strict = strict;
        let (_, plan) = look(&host, &options);
        (plan.items.iter().any(|item| item.id == id), plan.switches.len())
    };
    assert_eq!(has(&[], false, "modules"), (true, 0));
    assert_eq!(has(&[("S19", false)], false, "modules"), (false, 0));
    assert_eq!(has(&[], false, "aide"), (false, 0));
    assert_eq!(has(&[], true, "aide"), (true, 0));
    assert_eq!(has(&[("aide", false)], true, "aide"), (false, 0));
    assert_eq!(has(&[], true, "root-lock"), (false, 0), "only by name");
    assert_eq!(has(&[("firewall", false)], false, "firewall"), (true, 1));
    assert_eq!(has(&[("typo", true)], false, "firewall"), (true, 1));
}

#[test]
fn rules_that_somebody_asked_for_outlive_a_run_and_later_ones_wait_for_a_confirmation() {
    let host = finished("debian", "12");
    let text = host.text(crate::firewall::CONFIRMED).expect("is there");
    let mut rules = Rules::from_file(&text).expect("is ours");
    rules.openings.push(Opening {
        ports: Ports::tcp(8080),
        from: Vec::new(),
        comment: String::new(),
        source: Source::Request {
            by: "SHA256:x".into(),
            at: "2026-01-01T00:00:00Z".into(),
        },
    });
    host.put(crate::firewall::CONFIRMED, &rules.render());
    crate::firewall::load(&host, 0).expect("loads");
    assert_eq!(look(&host, &options()).1.changes(), 0, "the request stays");
    // Nobody is connected: a change of host.yml is confirmed at once.
    let mut more = options();
    more.firewall.openings.push(Opening {
        ports: Ports::tcp(9999),
        from: Vec::new(),
        comment: String::new(),
        source: Source::HostYml,
    });
    let (_, plan) = look(&host, &more);
    let changes: Vec<&String> = plan.pending().flat_map(|step| &step.changes).collect();
    assert_eq!(changes, ["open 9999/tcp to everyone"]);
    // Somebody is: it waits.
    *host.sockets.borrow_mut() = "0 0 192.0.2.1:22 203.0.113.9:51000\n".to_owned();
    run(&host, &more).expect("arms");
    let confirmed = host.text(crate::firewall::CONFIRMED).expect("is there");
    assert!(!confirmed.contains("9999"), "boot loads what was confirmed");
    assert_eq!(crate::firewall::state(&host).expect("known"), State::Pending);
    assert_eq!(look(&host, &more).1.changes(), 0, "armed is as wanted");
    let confirm =
        |nonce: &str, session: &str| crate::firewall::pending::confirm(&host, nonce, session, host.now());
    assert!(matches!(confirm("other", "new"), Err(FirewallError::OtherNonce)));
    confirm("nonce", "new").expect("confirms");
    assert!(
        host.text(crate::firewall::CONFIRMED)
            .expect("is there")
            .contains("9999")
    );
    // And rules that would lock out who is connected are not even armed.
    more.ssh.from = ["198.51.100.0/24".parse().expect("network")].into();
    let error = run(&host, &more).expect_err("refused");
    let ApplyError::Step { source, .. } = error else {
        panic!("{error}")
    };
    assert!(source.to_string().contains("lock out 203.0.113.9"), "{source}");
    assert_eq!(crate::firewall::state(&host).expect("known"), State::Confirmed);
}

#[test]
fn a_change_cannot_be_confirmed_over_the_connection_it_came_over_nor_too_late() {
    let host = finished("debian", "12");
    let text = host.text(crate::firewall::CONFIRMED).expect("is there");
    let mut rules = Rules::from_file(&text).expect("is ours");
    rules.openings.remove(0);
    let now = host.now();
    crate::firewall::pending::arm(&host, &rules, "n", "one", now).expect("arms");
    let confirm = |session: &str, now| crate::firewall::pending::confirm(&host, "n", session, now);
    assert!(matches!(confirm("one", now), Err(FirewallError::SameConnection)));
    assert!(matches!(
        confirm("two", now + 121),
        Err(FirewallError::NothingArmed)
    ));
    crate::firewall::load(&host, now).expect("what the timer runs");
    assert_eq!(crate::firewall::state(&host).expect("known"), State::Confirmed);
    assert_eq!(host.text(crate::firewall::PENDING), None);
    assert!(matches!(confirm("two", now), Err(FirewallError::NothingArmed)));
}

/// What somebody may do to a finished host.
fn damage() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(0..7_usize, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn from_any_damage_and_any_cut_a_run_leads_back_to_the_same_state(damages in damage(), cut in 0..60_usize) {
        let whole = finished("debian", "12");
        let host = finished("debian", "12");
        for kind in damages {
            match kind {
                0 => *host.kernel.borrow_mut() = None,
                1 => host.put("/etc/systemd/system/appliance-agent.service", "# edited\n"),
                2 => { host.files.borrow_mut().remove(&PathBuf::from("/etc/logrotate.d/appliance")); }
                3 => { host.units.borrow_mut().insert("docker.service".to_owned(), (false, false)); }
                4 => { host.packages.borrow_mut().remove("nftables"); }
                5 => { host.files.borrow_mut().remove(&PathBuf::from(crate::firewall::CONFIRMED)); }
                _ => host.put("/usr/local/bin/appliance", "another version"),
            }
        }
        host.power.set(Some(cut));
        let options = Options { force: true, ..options() };
        let _may_be_cut_off = run(&host, &options);
        host.power.set(None);
        run(&host, &options).expect("converges");
        prop_assert_eq!(difference(&host, &whole), Vec::<String>::new());
        prop_assert_eq!(run(&host, &options).expect("again").changed_steps, 0);
    }
}
