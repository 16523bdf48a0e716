//! Moving an accessory to a newer image: on the same data, or on a copy of it.
//!
//! ```text
//!   same data:  backup ─► replace ─► verify ─────────────────────────────────────────────────► finished
//!   on a copy:  backup ─► stop ─► copy ─► compare ─► clear ─► replace ─► verify ─► kept ──confirm──► drop old ─► finished
//!                 │         │       │         │         │         │         │       │  ▲
//!                 └─────────┴───────┴─────────┴─────────┴─────────┴─────────┤   undo│  │undo
//!                                                       going back:         │       ▼  │
//!                         clear copies ─► replace by old ─► verify ─┬───────┘    undone ──confirm──► drop new ─► returned
//!                                                                   └─ never served ───────────────► drop new ─► returned
//! ```
//!
//! Data that has served is dropped by a word only: going back after that keeps the new data as the old was kept.
//!
//! The state is written down before each order is carried out. An order may be carried out again after a crash.
//! An upgrade that was cut off goes back: the old image and the old data are there until somebody confirms.

use serde::{Deserialize, Serialize};

/// One of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// From before the upgrade.
    Old,
    /// Of the upgrade.
    New,
}

/// What the driver has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Take a backup, if backups are configured.
    Backup,
    /// Stop the accessory's container, so that nobody writes any more.
    Stop,
    /// Fill the new data from the old, with a server of each image that nobody else reaches.
    Copy,
    /// Compare the two.
    Compare,
    /// Remove the two servers that nobody else reaches.
    ClearCopies,
    /// Replace the accessory's container by one of this side's image on this side's data, and start it.
    Replace(Side),
    /// Wait until the accessory is healthy.
    Verify(Side),
    /// Delete this side's data.
    DropData(Side),
}

/// Where an upgrade is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Before anything is touched.
    Backup,
    /// Nobody may write from here on.
    Stop,
    /// The new data is being filled.
    Copy,
    /// Old and new are being compared.
    Compare,
    /// The copying servers go.
    Clear,
    /// The new image takes over.
    Replace,
    /// The new image has to show that it is well.
    Verify,
    /// The new image serves; the old data waits for a word.
    Kept,
    /// The old data goes.
    DropOld,
    /// Over: the new image serves.
    Finished,
    /// Going back: the copying servers go.
    BackClear,
    /// Going back: the old image takes over.
    BackReplace,
    /// Going back: the old image has to show that it is well.
    BackVerify,
    /// Somebody went back: the old image serves; the newer data, which has served, waits for a word.
    Undone,
    /// Going back: the new data goes.
    BackDrop,
    /// Over: the old image serves.
    Returned,
}

/// An upgrade in progress, or how the last one ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// Whether the new image gets a copy of the data.
    pub on_copy: bool,
    /// Where it is.
    pub stage: Stage,
    /// Why it goes or went back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The new data has served: it holds what was written since, and is dropped by a word only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub served: bool,
}

impl Upgrade {
    /// A new upgrade.
    pub fn begin(on_copy: bool) -> Self {
        Self {
            on_copy,
            stage: Stage::Backup,
            why: None,
            served: false,
        }
    }

    /// What to do now; nothing while it waits for a word or is over.
    pub fn order(&self) -> Option<Order> {
        Some(match self.stage {
            Stage::Backup => Order::Backup,
            Stage::Stop => Order::Stop,
            Stage::Copy => Order::Copy,
            Stage::Compare => Order::Compare,
            Stage::Clear | Stage::BackClear => Order::ClearCopies,
            Stage::Replace => Order::Replace(Side::New),
            Stage::Verify => Order::Verify(Side::New),
            Stage::DropOld => Order::DropData(Side::Old),
            Stage::BackReplace => Order::Replace(Side::Old),
            Stage::BackVerify => Order::Verify(Side::Old),
            Stage::BackDrop => Order::DropData(Side::New),
            Stage::Kept | Stage::Undone | Stage::Finished | Stage::Returned => return None,
        })
    }

    /// The order was carried out.
    #[must_use]
    pub fn done(mut self) -> Self {
        self.served |= self.on_copy && self.stage == Stage::Verify;
        self.stage = match (self.stage, self.on_copy) {
            (Stage::Backup, true) => Stage::Stop,
            (Stage::Backup, false) => Stage::Replace,
            (Stage::Stop, _) => Stage::Copy,
            (Stage::Copy, _) => Stage::Compare,
            (Stage::Compare, _) => Stage::Clear,
            (Stage::Clear, _) => Stage::Replace,
            (Stage::Replace, _) => Stage::Verify,
            (Stage::Verify, true) => Stage::Kept,
            (Stage::Verify, false) | (Stage::DropOld, _) => Stage::Finished,
            (Stage::BackClear, _) => Stage::BackReplace,
            (Stage::BackReplace, _) => Stage::BackVerify,
            (Stage::BackVerify, true) if self.served => Stage::Undone,
            (Stage::BackVerify, true) => Stage::BackDrop,
            (Stage::BackVerify, false) | (Stage::BackDrop, _) => Stage::Returned,
            (over @ (Stage::Kept | Stage::Undone | Stage::Finished | Stage::Returned), _) => over,
        };
        self
    }

    /// The order failed. On the way back it is tried again later; dropping the old data may be left half done.
    #[must_use]
    pub fn failed(mut self, why: String) -> Self {
        match self.stage {
            // Nothing was touched yet.
            Stage::Backup => self.stage = Stage::Returned,
            Stage::Stop | Stage::Copy | Stage::Compare | Stage::Clear | Stage::Replace | Stage::Verify => {
                self.stage = Stage::BackClear
            }
            _ => {}
        }
        if self.why.is_none() {
            self.why = Some(why);
        }
        self
    }

    /// The agent went away in the middle.
    #[must_use]
    pub fn interrupted(self) -> Self {
        self.failed("the agent was interrupted".to_owned())
    }

    /// What serves is to stay: the data of the other side may go. `None` if nothing waits for that word.
    #[must_use]
    pub fn confirm(mut self) -> Option<Self> {
        self.stage = match self.stage {
            Stage::Kept => Stage::DropOld,
            Stage::Undone => Stage::BackDrop,
            _ => return None,
        };
        Some(self)
    }

    /// Let the other side serve, on its own data; what serves now is kept. `None` if that is not possible (any more).
    #[must_use]
    pub fn undo(mut self) -> Option<Self> {
        self.served = true;
        (self.stage, self.why) = match self.stage {
            Stage::Kept => (Stage::BackClear, Some("somebody asked for it".to_owned())),
            Stage::Undone => (Stage::Replace, None),
            _ => return None,
        };
        Some(self)
    }

    /// Whether the data of the side that does not serve waits for a word.
    pub fn waits(&self) -> bool {
        matches!(self.stage, Stage::Kept | Stage::Undone)
    }

    /// Whether somebody is at work on it, or should be.
    pub fn in_progress(&self) -> bool {
        self.order().is_some()
    }

    /// Whether the accessory's container is left alone by the keeper: it is down on purpose, or being replaced.
    pub fn owns_container(&self) -> bool {
        self.in_progress() && self.stage != Stage::DropOld && self.stage != Stage::Backup
    }
}

#[cfg(test)]
mod tests;
