//! What the host remembers of its apps: numbers, releases, the rollout in progress.

use std::collections::{BTreeMap, BTreeSet};

use appliance_push::change::{self, Fingerprint};
use appliance_rollout::{Deployment, Instance, Numbers, ReleaseNumber, Rollout, RolloutNumber};
use appliance_state::store::StoreError;
use appliance_state::{Key, Ledger, LedgerError, Store};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

const SCHEMA: u32 = 1;

/// One app with one destination, small enough to be written at every step of a rollout.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// Release and rollout numbers, and what is current.
    #[serde(default)]
    pub numbers: Numbers,
    /// The last rollout; it may be in progress.
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// Release numbers at hand, oldest first.
    #[serde(default)]
    pub releases: Vec<ReleaseNumber>,
    /// Releases that have served; a rollback goes to one of these.
    #[serde(default)]
    pub served: BTreeSet<ReleaseNumber>,
    /// Taken by hand; nobody changes the app until it is released.
    #[serde(default)]
    pub lock: Option<crate::wire::Lock>,
    /// Message of the maintenance page, while the app is stopped.
    #[serde(default)]
    pub stopped: Option<String>,
    /// Messages of the maintenance page by role, where not the whole app is stopped.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stopped_roles: BTreeMap<String, String>,
    /// Of releases that brought only a part of the roles: the others, with the release that each came from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<ReleaseNumber, BTreeMap<String, ReleaseNumber>>,
    /// Containers that Kamal had made when the host was adopted.
    #[serde(default)]
    pub adopted: Option<Adopted>,
}

/// A deployment whose containers we did not make, so that no label of ours tells what they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopted {
    /// The rollout that stands for it.
    pub rollout: RolloutNumber,
    /// The release that was made of it.
    pub release: ReleaseNumber,
    /// Container ids by role.
    pub containers: BTreeMap<String, String>,
}

impl App {
    /// The id of an adopted container.
    pub fn adopted_container(&self, instance: &Instance) -> Option<&str> {
        let adopted = self
            .adopted
            .as_ref()
            .filter(|adopted| adopted.rollout == instance.rollout)?;
        adopted.containers.get(&instance.role).map(String::as_str)
    }

    /// Releases that nothing needs when `keep` are kept, oldest first.
    fn superfluous(&self, keep: usize) -> Vec<ReleaseNumber> {
        let mut needed: BTreeSet<ReleaseNumber> = [&self.numbers.current, &self.numbers.previous]
            .into_iter()
            .flatten()
            .flat_map(Deployment::releases)
            .collect();
        // One that is on its way, or went back, is none of those that somebody can go back to.
        let coming = self.rollout.as_ref().map(|rollout| rollout.plan().new.release);
        let coming = coming.filter(|number| !self.served.contains(number));
        needed.extend(coming);
        // The way back to Kamal asks what its containers were.
        needed.extend(self.adopted.as_ref().map(|adopted| adopted.release));
        let counted = self.releases.iter().filter(|number| Some(**number) != coming);
        let excess = counted.count().saturating_sub(keep);
        let unneeded = self.releases.iter().filter(|number| !needed.contains(number));
        let mut dropped: Vec<ReleaseNumber> = unneeded.take(excess).copied().collect();
        // A kept release that brought only some roles needs those that the others came from, and so on.
        loop {
            let kept = self.releases.iter().filter(|number| !dropped.contains(number));
            let beside = kept.filter_map(|number| self.beside.get(number));
            needed.extend(beside.flat_map(BTreeMap::values));
            let before = dropped.len();
            dropped.retain(|number| !needed.contains(number));
            if dropped.len() == before {
                return dropped;
            }
        }
    }
}

/// An accepted release, immutable.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// What was signed; absent only in a ledger that was never written.
    pub release: Option<Box<change::Release>>,
    /// Who signed it.
    pub signer: Option<Fingerprint>,
    /// When it was accepted.
    pub at: Timestamp,
}

/// A release with its number and signer.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// `v42`.
    pub number: ReleaseNumber,
    /// What was signed.
    pub release: Box<change::Release>,
    /// Who signed it.
    pub signer: Fingerprint,
    /// When it was accepted.
    pub at: Timestamp,
}

/// The ledgers of all apps.
#[derive(Debug, Clone)]
pub struct Apps {
    store: Store,
    apps: Key,
    releases: Key,
}

/// A ledger of an app cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AppsError {
    /// The app's name cannot be a file name.
    #[error("{0:?} cannot name an app here")]
    Name(String),
    /// The directory of ledgers cannot be used.
    #[error("cannot open the state of {app}")]
    Store {
        /// Which app.
        app: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The ledger cannot be read or written.
    #[error("cannot use the state of {app}")]
    Ledger {
        /// Which app.
        app: String,
        /// Why.
        #[source]
        source: LedgerError,
    },
    /// The release is not at hand any more.
    #[error(
        "release {number} of {app} is not on this host any more; `appliance status` lists those that are"
    )]
    NoRelease {
        /// Which app.
        app: String,
        /// Which release.
        number: ReleaseNumber,
    },
}

impl Apps {
    /// The ledgers under the agent's state directory.
    pub fn new(store: Store) -> Self {
        let key = |text: &str| Key::new(text).expect("our own names are good keys");
        Self {
            store,
            apps: key("apps"),
            releases: key("releases"),
        }
    }

    /// Every app that was ever deployed here, by its id.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn ids(&self) -> Result<Vec<String>, AppsError> {
        let keys = self.store.keys(&self.apps).map_err(|source| AppsError::Store {
            app: "the apps".to_owned(),
            source,
        })?;
        Ok(keys.into_iter().map(String::from).collect())
    }

    fn ledger(&self, app: &str) -> Result<Ledger<App>, AppsError> {
        let key = Key::new(app).map_err(|_| AppsError::Name(app.to_owned()))?;
        self.store
            .keyed(&self.apps, &key, SCHEMA)
            .map_err(|source| AppsError::Store {
                app: app.to_owned(),
                source,
            })
    }

    fn release_ledger(&self, app: &str, number: ReleaseNumber) -> Result<Ledger<Stored>, AppsError> {
        let key = Key::new(format!("{app}.{number}")).map_err(|_| AppsError::Name(app.to_owned()))?;
        self.store
            .keyed(&self.releases, &key, SCHEMA)
            .map_err(|source| AppsError::Store {
                app: app.to_owned(),
                source,
            })
    }

    /// The app as it is written down; the default for one that never was.
    ///
    /// # Errors
    /// When its ledger is unreadable or damaged.
    pub fn read(&self, app: &str) -> Result<App, AppsError> {
        let snapshot = self.ledger(app)?.read().map_err(|source| AppsError::Ledger {
            app: app.to_owned(),
            source,
        })?;
        Ok(snapshot.data)
    }

    /// Changes the app and returns the closure's answer once it is on disk.
    ///
    /// # Errors
    /// When its ledger cannot be read or written.
    pub fn update<R>(&self, app: &str, change: impl FnOnce(&mut App) -> R) -> Result<R, AppsError> {
        let (answer, _) = self
            .ledger(app)?
            .update(change)
            .map_err(|source| AppsError::Ledger {
                app: app.to_owned(),
                source,
            })?;
        Ok(answer)
    }

    /// Stores a new release under the next number.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn accept(
        &self,
        app: &str,
        release: &change::Release,
        signer: &Fingerprint,
        at: Timestamp,
    ) -> Result<ReleaseNumber, AppsError> {
        // The number is spent first: a crash in between leaves a gap, never two releases of one number.
        let number = self.update(app, |state| state.numbers.next_release())?;
        let stored = Stored {
            release: Some(Box::new(release.clone())),
            signer: Some(signer.clone()),
            at,
        };
        self.release_ledger(app, number)?
            .write(stored)
            .map_err(|source| AppsError::Ledger {
                app: app.to_owned(),
                source,
            })?;
        self.update(app, |state| state.releases.push(number))?;
        Ok(number)
    }

    /// A release by its number.
    ///
    /// # Errors
    /// When it is not at hand, or its ledger is damaged.
    pub fn release(&self, app: &str, number: ReleaseNumber) -> Result<Accepted, AppsError> {
        let stored = self
            .release_ledger(app, number)?
            .read()
            .map_err(|source| AppsError::Ledger {
                app: app.to_owned(),
                source,
            })?
            .data;
        match (stored.release, stored.signer) {
            (Some(release), Some(signer)) => Ok(Accepted {
                number,
                release,
                signer,
                at: stored.at,
            }),
            _ => Err(AppsError::NoRelease {
                app: app.to_owned(),
                number,
            }),
        }
    }

    /// Forgets releases, oldest first, until `keep` remain besides what the current, the previous one and those
    /// that are kept need.
    ///
    /// # Errors
    /// When the app's ledger cannot be written; a file that stays behind is harmless.
    pub fn forget_old(&self, app: &str, keep: usize) -> Result<Vec<ReleaseNumber>, AppsError> {
        let dropped = self.update(app, |state| {
            let dropped = state.superfluous(keep);
            state.releases.retain(|number| !dropped.contains(number));
            state.served.retain(|number| !dropped.contains(number));
            state.beside.retain(|number, _| !dropped.contains(number));
            dropped
        })?;
        for number in &dropped {
            self.remove_file(self.release_ledger(app, *number)?.path());
        }
        Ok(dropped)
    }

    /// Forgets a release that was reverted before it ever served: nobody can want it back.
    ///
    /// # Errors
    /// When the app's ledger cannot be written.
    pub fn forget_unserved(&self, app: &str, number: ReleaseNumber) -> Result<(), AppsError> {
        let forgotten = self.update(app, |state| {
            let unserved = !state.served.contains(&number);
            if unserved {
                state.releases.retain(|other| *other != number);
                state.beside.remove(&number);
            }
            unserved
        })?;
        if forgotten {
            self.remove_file(self.release_ledger(app, number)?.path());
        }
        Ok(())
    }

    /// Forgets the app altogether: the next release of that name is its first.
    ///
    /// # Errors
    /// When its ledger cannot be read or removed.
    pub fn forget(&self, app: &str) -> Result<(), AppsError> {
        let ledger = self.ledger(app)?;
        let releases = self.read(app)?.releases;
        ledger.remove().map_err(|source| AppsError::Ledger {
            app: app.to_owned(),
            source,
        })?;
        for number in releases {
            self.remove_file(self.release_ledger(app, number)?.path());
        }
        Ok(())
    }

    fn remove_file(&self, path: &std::path::Path) {
        if let Err(error) = fs_err::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "a ledger stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apps() -> (tempfile::TempDir, Apps) {
        let directory = tempfile::tempdir().expect("directory");
        let store = Store::open(directory.path().join("state")).expect("store");
        (directory, Apps::new(store))
    }

    fn current(number: u64, rollout: u64) -> Deployment {
        Deployment {
            release: ReleaseNumber(number),
            rollout: RolloutNumber(rollout),
            roles: Vec::new(),
        }
    }

    #[test]
    fn an_app_that_was_removed_can_come_again() {
        let (_keep, apps) = apps();
        for number in 1..4 {
            apps.update("shop", |app| app.numbers.record(current(number, number)))
                .expect("written");
        }
        apps.forget("shop").expect("forgotten");
        assert!(
            apps.read("shop")
                .expect("as never written")
                .numbers
                .current
                .is_none()
        );
        assert!(apps.ids().expect("listed").is_empty());
        apps.update("shop", |app| app.numbers.record(current(1, 1)))
            .expect("written again");
    }

    #[test]
    fn what_was_adopted_stays_known_as_long_as_there_is_a_way_back() {
        let (_keep, apps) = apps();
        apps.update("shop", |app| {
            app.releases = (1..=5).map(ReleaseNumber).collect();
            app.numbers.record(current(5, 5));
            app.adopted = Some(Adopted {
                rollout: RolloutNumber(1),
                release: ReleaseNumber(1),
                containers: BTreeMap::new(),
            });
        })
        .expect("written");
        let dropped = apps.forget_old("shop", 1).expect("pruned");
        assert_eq!(dropped, [2, 3, 4].map(ReleaseNumber));
    }

    #[test]
    fn old_releases_go_but_never_the_current_or_the_previous_one() {
        let (_keep, apps) = apps();
        apps.update("shop", |app| {
            app.releases = (1..=8).map(ReleaseNumber).collect();
            app.numbers.record(current(8, 8));
            app.numbers.record(current(1, 9));
        })
        .expect("written");
        let dropped = apps.forget_old("shop", 3).expect("pruned");
        assert_eq!(dropped, [2, 3, 4, 5, 6].map(ReleaseNumber));
        let left = apps.read("shop").expect("read").releases;
        assert_eq!(left, [1, 7, 8].map(ReleaseNumber));
        assert!(matches!(
            apps.release("shop", ReleaseNumber(2)),
            Err(AppsError::NoRelease { .. })
        ));
    }

    #[test]
    fn a_release_that_went_back_costs_nobody_their_rollback() {
        let (_keep, apps) = apps();
        let role = appliance_rollout::Role {
            name: "web".to_owned(),
            proxied: true,
            image: "shop@sha256:1".to_owned(),
            assets: false,
            from: None,
        };
        let coming = Deployment {
            roles: vec![role],
            ..current(4, 4)
        };
        let plan = appliance_rollout::Plan {
            app: "shop".to_owned(),
            old: Some(current(3, 3)),
            new: coming,
            release_command: false,
            timing: appliance_rollout::Timing::default(),
            gates: BTreeSet::new(),
            canary: None,
            parallel_roles: false,
        };
        let (rollout, _) = Rollout::begin(plan, Timestamp::UNIX_EPOCH).expect("a good plan");
        apps.update("shop", |app| {
            app.releases = (1..=4).map(ReleaseNumber).collect();
            app.served = (1..=3).map(ReleaseNumber).collect();
            app.numbers.record(current(2, 2));
            app.numbers.record(current(3, 3));
            app.rollout = Some(rollout);
        })
        .expect("written");
        assert_eq!(apps.forget_old("shop", 3).expect("pruned"), []);
        apps.update("shop", |app| app.served.insert(ReleaseNumber(4)))
            .expect("written");
        assert_eq!(apps.forget_old("shop", 3).expect("pruned"), [ReleaseNumber(1)]);
    }

    #[test]
    fn a_release_of_some_roles_keeps_those_that_the_others_came_from() {
        let (_keep, apps) = apps();
        apps.update("shop", |app| {
            app.releases = (1..=8).map(ReleaseNumber).collect();
            app.numbers.record(current(8, 8));
            let jobs = |release| BTreeMap::from([("jobs".to_owned(), ReleaseNumber(release))]);
            app.beside = BTreeMap::from([(ReleaseNumber(7), jobs(3)), (ReleaseNumber(3), jobs(2))]);
        })
        .expect("written");
        let dropped = apps.forget_old("shop", 2).expect("pruned");
        assert_eq!(dropped, [1, 4, 5, 6].map(ReleaseNumber));
        let dropped = apps.forget_old("shop", 1).expect("pruned");
        assert_eq!(dropped, [2, 3, 7].map(ReleaseNumber));
        assert!(apps.read("shop").expect("read").beside.is_empty());
    }

    #[test]
    fn a_release_that_never_served_is_forgotten_and_one_that_did_is_kept() {
        let (_keep, apps) = apps();
        apps.update("shop", |app| {
            app.releases = vec![ReleaseNumber(1), ReleaseNumber(2)];
            app.served = BTreeSet::from([ReleaseNumber(1)]);
        })
        .expect("written");
        for number in [1, 2] {
            apps.forget_unserved("shop", ReleaseNumber(number))
                .expect("forgotten");
        }
        assert_eq!(apps.read("shop").expect("read").releases, [ReleaseNumber(1)]);
    }

    #[test]
    fn a_name_that_could_leave_the_directory_is_refused() {
        let (_keep, apps) = apps();
        assert!(matches!(apps.read("../keys"), Err(AppsError::Name(_))));
    }
}
