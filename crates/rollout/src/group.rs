//! Several hosts that go together: who may pass which gate when, decided for whoever leads them.
//!
//! ```text
//!   preparing ──all wait at start──► opening ──opened()──► booting ──all of the slice watch──► closing ──closed()─┐
//!                                       ▲                 (in slices of boot.limit)                             │
//!                                       └────────────────────────── next slice ◄───────────────────────────────┤
//!   over ◄──all ended── settling ◄──────────────────────────── no slice left ◄──────────────────────────────────┘
//!     ▲
//!     └──all ended── cancelling ◄── any host failed, was lost, or somebody cancelled
//! ```
//!
//! - Nothing moves on any host before every host has image, secrets and assets.
//! - The first host passes first: it runs the release command. Hosts with the primary role follow when it is done;
//!   hosts without it when one container of the primary role is ready (Kamal's barrier).
//! - A slice switches when all of its hosts are ready, and the next one begins when all of them are watched.
//! - No host stops its old containers for good before all hosts are good, so that a failure takes all of them back.
//! - A host that is lost after its switch goes on by itself, so the others go on too: taking them back would split the group.
//! - The promotion of a canary is led in the same way, from the gate where the canaries wait; until the first of them is
//!   told to go on, a failure leaves them all as they are.

use std::collections::BTreeSet;

use crate::plan::Gate;
use crate::rollout::Phase;

/// A host of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// For messages.
    pub name: String,
    /// Whether it runs the primary role.
    pub primary: bool,
}

/// What a host told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Its rollout entered a state.
    Reached(Phase),
    /// Its rollout waits for leave.
    Waits(Gate),
    /// The new release serves there, for good, or as a canary that no leader is needed for.
    Good,
    /// The old release serves there, or nothing was changed.
    Bad(String),
    /// It cannot be heard any more.
    Lost(String),
}

/// What the leader shall do. Hosts are named by their index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// These hosts are about to boot: run hooks, then call [`Group::opened`].
    Open(Vec<usize>),
    /// These hosts serve the new release: run hooks, wait, then call [`Group::closed`].
    Close(Vec<usize>),
    /// Tell a host that it may pass.
    Pass(usize, Gate),
    /// Tell a host to go back.
    Cancel(usize, String),
    /// Tell a host that nobody leads it: its canary stays as it is.
    Leave(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Preparing,
    Opening,
    Booting,
    Closing,
    Settling,
    Cancelling,
}

#[derive(Debug, Clone)]
struct Standing {
    member: Member,
    waits: Option<Gate>,
    phase: Option<Phase>,
    passed: BTreeSet<Gate>,
    /// Told to go back, or left.
    dismissed: bool,
    /// `Some(true)`: the new release serves.
    ended: Option<bool>,
    /// Nobody heard how it ended; where it stood decides what it does without a leader.
    lost: bool,
    /// The gate where it waits first.
    begins: Gate,
}

impl Standing {
    /// Whether the release command, if this host had to run it, is done.
    fn begun(&self) -> bool {
        self.phase >= Some(Phase::Starting) || self.ended == Some(true)
    }

    fn healthy(&self) -> bool {
        let passed = self
            .waits
            .is_some_and(|gate| gate >= Gate::Switch && gate != self.begins);
        passed || self.serves()
    }

    /// Whether it told that its visitors get the new release, and not that it goes back.
    fn switched(&self) -> bool {
        self.phase
            .is_some_and(|phase| (Phase::Switched..=Phase::Settled).contains(&phase))
    }

    fn serves(&self) -> bool {
        let watched = self.phase >= Some(Phase::Watching);
        let canary = self.waits == Some(Gate::Promote) && self.begins != Gate::Promote;
        watched || canary || self.ended == Some(true)
    }
}

/// The leader's decisions; no I/O.
#[derive(Debug, Clone)]
pub struct Group {
    hosts: Vec<Standing>,
    limit: usize,
    /// Hosts before this one have been opened, the present slice included.
    opened: usize,
    slice: usize,
    step: Step,
    why: Option<String>,
}

impl Group {
    /// A group in the order in which its hosts boot, at most `limit` of them at once (Kamal's `boot.limit`).
    pub fn new(members: Vec<Member>, limit: usize) -> Self {
        Self::from(members, limit, Gate::Start)
    }

    /// A group whose hosts all have the same canary, which shall get all visitors.
    pub fn promoting(members: Vec<Member>, limit: usize) -> Self {
        Self::from(members, limit, Gate::Promote)
    }

    fn from(members: Vec<Member>, limit: usize, begins: Gate) -> Self {
        let standing = |member| Standing {
            member,
            waits: None,
            phase: None,
            passed: BTreeSet::new(),
            dismissed: false,
            ended: None,
            lost: false,
            begins,
        };
        Self {
            hosts: members.into_iter().map(standing).collect(),
            limit: limit.max(1),
            opened: 0,
            slice: 0,
            step: Step::Preparing,
            why: None,
        }
    }

    /// Whether any host was told to go on; before that, nothing has changed anywhere.
    pub fn has_begun(&self) -> bool {
        self.hosts.iter().any(|host| host.passed.contains(&host.begins))
    }

    /// Takes in what a host told.
    pub fn heard(&mut self, host: usize, heard: Heard) -> Vec<Action> {
        let Some(standing) = self.hosts.get_mut(host) else {
            return Vec::new();
        };
        if standing.ended.is_some() {
            return Vec::new();
        }
        let name = standing.member.name.clone();
        match heard {
            Heard::Reached(phase) => {
                standing.phase = Some(phase);
                standing.waits = None;
                if phase >= Phase::Reverting {
                    self.fail(format!("{name} goes back"));
                }
            }
            Heard::Waits(gate) => standing.waits = Some(gate),
            Heard::Good => standing.ended = Some(true),
            // Without a leader it settles by itself.
            Heard::Lost(_) if standing.switched() => {
                standing.ended = Some(true);
                standing.lost = true;
            }
            Heard::Lost(why) => {
                standing.ended = Some(false);
                standing.lost = true;
                self.fail(format!("{name}: {why}"));
            }
            Heard::Bad(why) => {
                standing.ended = Some(false);
                self.fail(format!("{name}: {why}"));
            }
        }
        self.decide()
    }

    /// The slice that [`Action::Open`] named may boot.
    pub fn opened(&mut self) -> Vec<Action> {
        if self.step == Step::Opening {
            self.step = Step::Booting;
        }
        self.decide()
    }

    /// What follows the slice that [`Action::Close`] named may begin.
    pub fn closed(&mut self) -> Vec<Action> {
        if self.step == Step::Closing {
            self.slice = self.opened;
            self.step = if self.opened < self.hosts.len() {
                Step::Opening
            } else {
                Step::Settling
            };
            if self.step == Step::Opening {
                return self.open();
            }
        }
        self.decide()
    }

    /// Takes all hosts back, as far as they still can.
    pub fn cancel(&mut self, why: &str) -> Vec<Action> {
        self.fail(why.to_owned());
        self.decide()
    }

    /// Whether every host has ended.
    pub fn is_over(&self) -> bool {
        self.hosts.iter().all(|host| host.ended.is_some())
    }

    /// Whether this host was lost after its switch: without a leader it goes on with the new release.
    pub fn goes_on_alone(&self, host: usize) -> bool {
        self.hosts
            .get(host)
            .is_some_and(|host| host.lost && host.switched())
    }

    /// Why the group goes back, if it does.
    pub fn failure(&self) -> Option<&str> {
        self.why.as_deref()
    }

    fn fail(&mut self, why: String) {
        self.step = Step::Cancelling;
        self.why.get_or_insert(why);
    }

    fn open(&mut self) -> Vec<Action> {
        self.opened = (self.slice + self.limit).min(self.hosts.len());
        vec![Action::Open((self.slice..self.opened).collect())]
    }

    fn decide(&mut self) -> Vec<Action> {
        match self.step {
            // One that was promoted by itself in this moment is where the others shall be.
            Step::Preparing
                if self
                    .hosts
                    .iter()
                    .all(|host| host.waits == Some(host.begins) || host.ended == Some(true)) =>
            {
                self.step = Step::Opening;
                self.open()
            }
            Step::Booting => {
                let actions = self.boot();
                if self.hosts[self.slice..self.opened].iter().all(Standing::serves) {
                    self.step = Step::Closing;
                    return [actions, vec![Action::Close((self.slice..self.opened).collect())]].concat();
                }
                actions
            }
            Step::Settling => {
                let ready = |host: &Standing| host.waits == Some(Gate::Settle) || host.ended == Some(true);
                if self.hosts.iter().all(ready) {
                    self.pass(0..self.hosts.len(), Gate::Settle)
                } else {
                    Vec::new()
                }
            }
            Step::Cancelling => {
                let why = self.why.clone().unwrap_or_default();
                let begun = self.has_begun();
                let mut actions = Vec::new();
                for (index, host) in self.hosts.iter_mut().enumerate() {
                    if host.ended.is_some() || std::mem::replace(&mut host.dismissed, true) {
                        continue;
                    }
                    actions.push(if host.begins == Gate::Promote && !begun {
                        Action::Leave(index)
                    } else {
                        Action::Cancel(index, why.clone())
                    });
                }
                actions
            }
            Step::Preparing | Step::Opening | Step::Closing => Vec::new(),
        }
    }

    fn boot(&mut self) -> Vec<Action> {
        let barrier_open = {
            let mut primary = self.hosts.iter().filter(|host| host.member.primary).peekable();
            primary.peek().is_none() || primary.any(Standing::healthy)
        };
        let command_done = self.hosts.first().is_none_or(Standing::begun);
        let mut actions = Vec::new();
        for index in self.slice..self.opened {
            let member = &self.hosts[index].member;
            let may = index == 0 || (command_done && (member.primary || barrier_open));
            if may {
                let begins = self.hosts[index].begins;
                actions.extend(self.pass(index..index + 1, begins));
            }
        }
        if self.hosts[self.slice..self.opened].iter().all(Standing::healthy) {
            actions.extend(self.pass(self.slice..self.opened, Gate::Switch));
        }
        actions
    }

    fn pass(&mut self, hosts: std::ops::Range<usize>, gate: Gate) -> Vec<Action> {
        let mut actions = Vec::new();
        for index in hosts {
            let host = &mut self.hosts[index];
            if host.waits == Some(gate) && host.passed.insert(gate) {
                actions.push(Action::Pass(index, gate));
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests;
