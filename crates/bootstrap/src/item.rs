//! One line of the hardening list.

use serde::Serialize;

use crate::options::Options;
use crate::want::Want;

/// Whether an item can be switched in `host.yml`, and how it stands if nobody says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The rest depends on it; it cannot be switched off.
    Must,
    /// On unless switched off.
    Should,
    /// On in the profile `strict`.
    Optional,
    /// Off unless switched on by name.
    Chosen,
}

/// What is wanted and why; an item is satisfied when each of its wants is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Short stable name, as in `appliance host explain ID`.
    pub id: &'static str,
    /// How firm it is.
    pub level: Level,
    /// What it is, for a person.
    pub title: &'static str,
    /// Why it is worth having.
    pub reason: &'static str,
    /// Row of the hardening list and ids of the benchmarks it answers (CIS Ubuntu `U…`, CIS Docker `D…`, Lynis `L…`).
    pub references: &'static [&'static str],
    /// How to undo it.
    pub rollback: &'static str,
    /// What it consists of, in order.
    #[serde(skip)]
    pub wants: Vec<Want>,
}

impl Item {
    /// Whether `name` means this item: its id, or one of its references.
    pub fn is_called(&self, name: &str) -> bool {
        self.id == name
            || self
                .references
                .iter()
                .any(|reference| reference.eq_ignore_ascii_case(name))
    }

    /// Whether it is part of the list for these options.
    pub fn is_on(&self, options: &Options) -> bool {
        let said = options
            .items
            .iter()
            .find(|(name, _)| self.is_called(name))
            .map(|(_, on)| *on);
        match self.level {
            Level::Must => true,
            Level::Should => said.unwrap_or(true),
            Level::Optional => said.unwrap_or(options.strict),
            Level::Chosen => said.unwrap_or(false),
        }
    }
}
