//! One line of the hardening list.

use serde::Serialize;

use crate::want::Want;

/// What is wanted and why; an item is satisfied when each of its wants is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Short stable name, as in `appliance host explain ID`.
    pub id: &'static str,
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
