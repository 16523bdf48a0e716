//! What the host remembers of its own backups: whoever can write to their place can make them look like somebody else's,
//! or take them away, and must not get silence for it.

use std::collections::{BTreeMap, BTreeSet};

use appliance_backup::names::{BackupId, Subject};
use appliance_backup::repository::{Catalogue, Repository};
use serde::{Deserialize, Serialize};

/// So many that are gone are told by name.
const NAMED: usize = 5;

/// The backups that this host made, has seen good and did not remove.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Own {
    /// The repository they are in.
    repository: String,
    /// The key that signed them: a host with another key has none of its own yet.
    key: String,
    /// Ids by the prefix of their subject.
    ids: BTreeMap<String, BTreeSet<BackupId>>,
}

impl Own {
    fn of(&self, repository: &Repository) -> bool {
        self.repository == repository.id && self.key == repository.keys.signer.public().to_string()
    }

    fn known(&self, repository: &Repository, subject: &Subject) -> Option<&BTreeSet<BackupId>> {
        self.of(repository)
            .then(|| self.ids.get(&subject.prefix()))
            .flatten()
    }

    /// Takes what was ours for ours, whoever its manifest names now.
    pub fn recall(&self, repository: &Repository, catalogue: &mut Catalogue) {
        for bad in catalogue.unusable.iter_mut().filter(|bad| bad.foreign) {
            let known = self.known(repository, &bad.subject);
            if known.is_some_and(|ids| ids.contains(&bad.id)) {
                bad.foreign = false;
                bad.why = "this host made it, and somebody put another manifest into its place".to_owned();
            }
        }
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Which backups of a subject somebody took away; of those that are there and damaged others tell.
    pub fn lost(&self, repository: &Repository, subject: &Subject, catalogue: &Catalogue) -> Option<String> {
        let known = self.known(repository, subject)?;
        let good = catalogue.backups.iter().map(|found| &found.manifest.id);
        // Without its manifest a backup is none.
        let bad = catalogue.unusable.iter().filter(|bad| !bad.uncommitted);
        let there: BTreeSet<&BackupId> = good.chain(bad.map(|bad| &bad.id)).collect();
        let gone: Vec<String> = (known.iter())
            .filter(|id| !there.contains(id))
            .map(ToString::to_string)
            .collect();
        let named = gone.get(..gone.len().min(NAMED))?.join(", ");
        let more = match gone.len() > NAMED {
            true => ", …",
            false => "",
        };
        match gone.len() {
            0 => None,
            all if all == known.len() => {
                Some(format!("all {all} backups made before are gone: {named}{more}"))
            }
            some => Some(format!(
                "{some} of {} backups made before are gone, which this host did not remove: {named}{more}",
                known.len()
            )),
        }
    }

    /// Takes backups out that are about to be removed as they should: what goes after that is nobody's loss. One that
    /// stays after all is learned again.
    pub fn forget<'a>(&mut self, subject: &Subject, going: impl IntoIterator<Item = &'a BackupId>) {
        if let Some(ids) = self.ids.get_mut(&subject.prefix()) {
            for id in going {
                ids.remove(id);
            }
        }
    }

    /// Remembers what is there of a subject, beside what was there before.
    pub fn learn(&mut self, repository: &Repository, subject: &Subject, catalogue: &Catalogue) {
        let ours = repository.keys.signer.public();
        if !self.of(repository) {
            *self = Self {
                repository: repository.id.clone(),
                key: ours.to_string(),
                ids: BTreeMap::new(),
            };
        }
        let good = (catalogue.backups.iter())
            .filter(|found| found.signer == ours)
            .map(|found| found.manifest.id.clone());
        self.ids.entry(subject.prefix()).or_default().extend(good);
    }
}

#[cfg(test)]
mod tests;
