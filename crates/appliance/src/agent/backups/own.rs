//! What the host remembers of its own backups: whoever can write to their place can make them look like somebody else's,
//! or take them away, and must not get silence for it.

use std::collections::{BTreeMap, BTreeSet};

use appliance_backup::names::{BackupId, Subject};
use appliance_backup::repository::{Catalogue, Repository};
use serde::{Deserialize, Serialize};

/// The backups that this host made and has seen good.
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

    /// Whether there were backups of a subject and none of them can be used.
    pub fn lost(&self, repository: &Repository, subject: &Subject, catalogue: &Catalogue) -> Option<String> {
        let known = self.known(repository, subject)?;
        let left = (catalogue.backups.iter()).any(|found| known.contains(&found.manifest.id));
        (!left && !known.is_empty()).then(|| format!("all {} backups made before are gone", known.len()))
    }

    /// Remembers what is there of a subject, and of what was remembered that which is there and cannot be used.
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
        let ids = self.ids.entry(subject.prefix()).or_default();
        let spoiled = (catalogue.unusable.iter())
            .filter(|bad| !bad.uncommitted && ids.contains(&bad.id))
            .map(|bad| bad.id.clone());
        *ids = good.chain(spoiled).collect();
    }
}

#[cfg(test)]
mod tests;
