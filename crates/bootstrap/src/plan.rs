//! The plan: what would be done and why, as one value that is shown, checked and applied.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::catalogue;
use crate::docker::{Engine, Origin};
use crate::facts::Facts;
use crate::firewall::rules::Mode;
use crate::item::{Item, Level};
use crate::options::Options;
use crate::want::{Conflict, Handler, Seen, Want};

/// One want of an item, and what it would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Item and subject, unique in a plan.
    pub id: String,
    /// Which item of the plan it belongs to.
    pub item: &'static str,
    /// What changes, line by line; empty if it is as wanted.
    pub changes: Vec<String>,
    /// Why it cannot be done, if somebody else's file is in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
    /// What is wanted.
    #[serde(skip)]
    pub want: Want,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The list, with reasons.
    pub items: Vec<Item>,
    /// Every want of the list, in order, satisfied ones included.
    pub steps: Vec<Step>,
    /// What a run that was cut off still owes.
    pub owed: Vec<Handler>,
    /// What an administrator should know.
    pub notes: Vec<String>,
    /// What `host.yml` switches that cannot be switched.
    pub switches: Vec<String>,
    /// Keys that can push afterwards.
    pub keys: usize,
    /// Keys that can log in as root afterwards.
    pub root_keys: bool,
    /// UFW was asked to keep the host's own ports, and is not on: what turns it on and locks nobody out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ufw_off: Option<String>,
    /// Ports sshd listens on.
    pub ssh_ports: Vec<u16>,
    /// A run completed before, with this version or another.
    pub completed: bool,
}

impl Plan {
    /// Steps that change something.
    pub fn pending(&self) -> impl Iterator<Item = &Step> {
        self.steps
            .iter()
            .filter(|step| !step.changes.is_empty() || step.conflict.is_some())
    }

    /// How many steps change something; what is owed counts too.
    pub fn changes(&self) -> usize {
        self.pending().count() + usize::from(!self.owed.is_empty())
    }
}

/// Compares what is wanted with what is.
pub fn plan(options: &Options, facts: &Facts) -> Plan {
    let items = catalogue::items(options, facts);
    let mut steps = Vec::new();
    for item in &items {
        for want in &item.wants {
            let subject = want.subject();
            let unseen = Seen::Files(Vec::new());
            let (changes, conflict) = match want.changes(facts.seen.get(&subject).unwrap_or(&unseen)) {
                Ok(changes) => (changes, None),
                Err(conflict) => (Vec::new(), Some(conflict.to_string())),
            };
            steps.push(Step {
                id: format!("{}: {subject}", item.id),
                item: item.id,
                changes,
                conflict,
                want: want.clone(),
            });
        }
    }
    let admins = facts
        .enrolled
        .iter()
        .any(|entry| entry.permissions.contains(&crate::key::Permission::Admin));
    Plan {
        switches: switches(options, facts),
        steps,
        owed: facts.journal.owed.clone(),
        notes: notes(options, facts),
        keys: options.admin_keys.len()
            + options.deploy_keys.len()
            + options.limited_keys.len()
            + facts.enrolled.len(),
        root_keys: !options.admin_keys.is_empty() || facts.root_has_key || admins,
        ufw_off: (options.firewall.mode == Some(Mode::Ufw) && !facts.ufw_enabled)
            .then(|| turn_ufw_on(options, facts)),
        ssh_ports: facts
            .sshd
            .iter()
            .flat_map(|sshd| sshd.ports.iter().copied())
            .collect(),
        completed: facts.journal.completed.is_some(),
        items,
    }
}

/// UFW denies what it was not told to let in: SSH wherever sshd listens or will, and the proxy.
fn turn_ufw_on(options: &Options, facts: &Facts) -> String {
    let listens = facts.sshd.iter().flat_map(|sshd| sshd.ports.iter().copied());
    let ports: BTreeSet<u16> = listens.chain(options.ssh.port).collect();
    let mut commands: Vec<String> = ports.iter().map(|port| format!("ufw allow {port}/tcp")).collect();
    commands.push("ufw allow 80,443/tcp".to_owned());
    commands.push("ufw enable".to_owned());
    commands.join("; ")
}

fn notes(options: &Options, facts: &Facts) -> Vec<String> {
    let mut notes = facts.account_notes.clone();
    if facts.journal.completed.is_some() {
        let troubles = crate::gate::troubles(options, facts).into_iter();
        notes.extend(troubles.map(|trouble| format!("{}: {}", trouble.fact, trouble.next)));
    }
    if options.firewall.off {
        notes.push(
            "the firewall is off: every port Docker publishes is open to everyone; a table of ours that is still there goes, and is not put back by the agent, with: systemctl disable --now appliance-firewall; rm /var/lib/appliance/fw/confirmed.nft; nft delete table inet appliance".to_owned(),
        );
    } else if keeps_by_ufw(options, facts) && !facts.ufw_enabled {
        notes.push(format!(
            "UFW keeps this host's own ports, and is off: they are open to everyone; next: {}, or `firewall: {{mode: own}}` in host.yml",
            turn_ufw_on(options, facts)
        ));
    } else if facts.ufw_enabled {
        notes.extend(facts.ufw_warnings.iter().cloned());
    }
    if !facts.su_users.is_empty() {
        let names = facts.su_users.join(", ");
        notes.push(format!(
            "the group sudo is empty, so item su is left out: {names} would have no way to become root; next: usermod --append --groups sudo NAME"
        ));
    }
    for seen in facts.seen.values() {
        if let Seen::Files(files) = seen {
            let edited = files.iter().filter(|file| file.edited).count();
            if edited > 0 {
                notes.push(format!(
                    "{edited} file(s) among {} were edited by somebody; they are kept as they are, `--force` replaces them",
                    facts.seen.iter().find(|(_, other)| *other == seen).map_or("", |(subject, _)| subject)
                ));
            }
        }
    }
    if options.docker_group {
        notes.push("the deploy user is in the group docker: whoever may push is root".to_owned());
    }
    if facts.sshd.is_some() && options.ssh.no_root {
        notes.push("root may not log in by SSH, and keys of administrators open root's shell and no other: without an account of one's own the provider's console is the only shell".to_owned());
    }
    match &facts.engine {
        Engine::Absent if facts.engine_from == Origin::Distribution => notes.push(
            "Docker's own repository is not used: the engine comes from the distribution, and is older".to_owned(),
        ),
        engine @ Engine::Installed { version, .. } if engine.degraded() => notes.push(format!(
            "Docker Engine {version} is older than 28: only our firewall keeps neighbours away from ports published on 127.0.0.1"
        )),
        _ => {}
    }
    if facts.kamal_proxy {
        notes.push(
            "kamal-proxy has the ports 80 and 443: the proxy is not started until `appliance adopt` takes them over".to_owned(),
        );
    }
    if !facts.apparmor && facts.container.is_none() {
        notes.push("AppArmor is off in this kernel, so containers run without Docker's profile; to switch it on, boot with: apparmor=1 security=apparmor".to_owned());
    }
    if facts.cgroup != 2 {
        notes.push("cgroup v1: limits and statistics of containers are less exact".to_owned());
    }
    if facts.sshd.is_none() {
        notes.push("there is no sshd on this host: nobody can push from elsewhere".to_owned());
    }
    if let Some(step) = &facts.journal.step {
        notes.push(format!("a former run was cut off at: {step}"));
    }
    notes
}

/// Whether UFW is to keep the ports of a host that is set up.
fn keeps_by_ufw(options: &Options, facts: &Facts) -> bool {
    match options.firewall.mode {
        Some(mode) => mode == Mode::Ufw && facts.journal.completed.is_some(),
        None => facts
            .firewall_rules
            .as_ref()
            .is_some_and(|rules| rules.mode == Mode::Ufw),
    }
}

/// Items that are named in `host.yml` and cannot be switched.
fn switches(options: &Options, facts: &Facts) -> Vec<String> {
    let every = catalogue::every(options, facts);
    let mut wrong = Vec::new();
    for (name, on) in &options.items {
        match every.iter().find(|item| item.is_called(name)) {
            None => {
                let ids: Vec<&str> = every
                    .iter()
                    .filter(|item| item.level != Level::Must)
                    .map(|item| item.id)
                    .collect();
                wrong.push(format!("there is no item {name}; there are {}", ids.join(", ")));
            }
            Some(item) if item.level == Level::Must && !on => {
                wrong.push(format!("{name} cannot be switched off: {}", item.reason));
            }
            Some(_) => {}
        }
    }
    wrong
}

/// Why a plan must not be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Violation {
    /// Nobody could use the host.
    #[error(
        "nobody could push to this host: no key was given; add --admin-key \"$(cat ~/.ssh/id_ed25519.pub)\""
    )]
    NoKey,
    /// Closing the firewall would close SSH.
    #[error("the firewall would close port {0}, where sshd listens")]
    SshClosed(u16),
    /// Nobody would keep the host's own ports; what turns UFW on.
    #[error(
        "`firewall: {{mode: ufw}}` leaves the host's own ports to UFW, which is not on: they would be open to everyone; first: apt-get install ufw; {0}; or take mode own"
    )]
    UfwOff(String),
    /// Passwords off, and no key.
    #[error("passwords would be turned off although no key opens root's door; add --admin-key")]
    PasswordsOff,
    /// Something would run before what it needs.
    #[error("{later} is planned before {earlier}; this is a mistake in the program")]
    Order {
        /// What has to come first.
        earlier: &'static str,
        /// What came first.
        later: &'static str,
    },
    /// Somebody else's file is in the way.
    #[error("{0}")]
    Conflict(String),
    /// `host.yml` switches something that is not there, or has to stay on.
    #[error("hardening: {0}")]
    Switch(String),
}

/// Checks invariants of a plan, without regard to how it was made.
pub fn check(plan: &Plan) -> Vec<Violation> {
    let mut violations = Vec::new();
    if plan.keys == 0 {
        violations.push(Violation::NoKey);
    }
    violations.extend(plan.switches.iter().cloned().map(Violation::Switch));
    // A host that is set up and in trouble needs its settings applied most, such as a key taken away: there it is a note.
    if let Some(turn_on) = plan.ufw_off.as_ref().filter(|_| !plan.completed) {
        violations.push(Violation::UfwOff(turn_on.clone()));
    }
    for step in &plan.steps {
        if let Some(conflict) = &step.conflict {
            violations.push(Violation::Conflict(conflict.clone()));
        }
        match &step.want {
            Want::Firewall(rules) => {
                let closed = plan
                    .ssh_ports
                    .iter()
                    .filter(|port| !rules.ssh_ports.contains(port));
                violations.extend(closed.map(|port| Violation::SshClosed(*port)));
            }
            Want::Sshd { settings }
                if settings.contains(&("PasswordAuthentication", "no".to_owned())) && !plan.root_keys =>
            {
                violations.push(Violation::PasswordsOff);
            }
            _ => {}
        }
    }
    for (earlier, later) in ORDER {
        let place = |item: &str| plan.steps.iter().position(|step| step.item == item);
        if let (Some(first), Some(second)) = (place(earlier), place(later))
            && second < first
        {
            violations.push(Violation::Order { earlier, later });
        }
    }
    violations
}

/// Items of which the first has to come before the second.
const ORDER: [(&str, &str); 6] = [
    ("accounts", "keys"),
    ("keys", "ssh"),
    ("docker-config", "docker"),
    ("firewall-boot", "firewall"),
    ("docker", "firewall"),
    ("identity", "services"),
];

impl From<Conflict> for Violation {
    fn from(conflict: Conflict) -> Self {
        Violation::Conflict(conflict.to_string())
    }
}
