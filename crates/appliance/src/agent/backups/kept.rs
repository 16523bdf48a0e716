//! Jobs that outlive the release that brought them.
//!
//! A job comes with a release, or by itself to a host that runs the accessory and no role of the app. It goes with a newer
//! release that does not have it, or with the accessory; neither a rollback nor the app's removal ends it: the data is
//! still there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::jobs::Spec;
use crate::agent::accessories::Which;
use crate::agent::{Agent, identity};

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The app.
    pub app: String,
    /// When what brought it was accepted.
    pub at: Timestamp,
    /// How, where and when.
    pub spec: Spec,
    /// Base64 of the credentials, sealed to this host; empty where none are needed.
    pub sealed: String,
    /// Whether it came by itself, not with a release.
    pub own: bool,
    /// Whether its accessory was removed since: no backups are made until a newer release has it, or the accessory is on
    /// this host again, however it came back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

/// Jobs by `app/accessory`.
pub type Jobs = BTreeMap<String, Kept>;

/// Whether the release of `app` that was accepted at `at` says something else than what is kept, and may: one that is
/// older than the last that brought jobs has been returned to.
fn stale(jobs: &Jobs, app: &str, at: Timestamp, specs: &[Spec]) -> bool {
    let with_releases = || jobs.values().filter(|kept| kept.app == app && !kept.own);
    if with_releases().any(|kept| kept.at > at) {
        return false;
    }
    let fits = |spec: &Spec| with_releases().any(|kept| kept.at == at && kept.spec == *spec);
    with_releases().count() != specs.len() || !specs.iter().all(fits)
}

/// Puts the jobs of a release into the place of those of the releases before it.
fn renew(jobs: &mut Jobs, app: &str, new: Vec<Kept>) {
    jobs.retain(|_, kept| kept.app != app || kept.own);
    for kept in new {
        jobs.insert(format!("{app}/{}", kept.spec.accessory), kept);
    }
}

/// Ends a job with its accessory, by a mark: the release that brought it would bring it again, and an accessory that
/// comes back is backed up as before.
fn end(jobs: &mut Jobs, key: &str) {
    if let Some(kept) = jobs.get_mut(key) {
        kept.gone = true;
    }
}

impl Kept {
    /// Whether backups are made of it; `here` says whether its accessory is on this host.
    fn stands(&self, here: impl FnOnce(&Which) -> bool) -> bool {
        !self.gone
            || here(&Which {
                app: self.app.clone(),
                name: self.spec.accessory.clone(),
            })
    }
}

impl Agent {
    /// The jobs of one app, those that its current release brings among them.
    ///
    /// # Errors
    /// When the ledgers or the release cannot be read.
    pub(super) fn kept_jobs(&self, app: &str) -> anyhow::Result<Vec<Kept>> {
        let ledger = &self.backups.jobs;
        let mut jobs = ledger
            .read()
            .context("cannot read which backups are made here")?
            .data;
        if let Some(current) = self.apps.read(app)?.numbers.current {
            let accepted = self.apps.release(app, current.release)?;
            let specs: Vec<Spec> = match accepted.release.extensions.get(super::SECTION) {
                Some(section) => serde_json::from_value(section.clone())
                    .context("the release's backups are not understood")?,
                None => Vec::new(),
            };
            if stale(&jobs, app, accepted.at, &specs) {
                let secrets = self.open_secrets(&accepted)?;
                let mut new = Vec::new();
                for spec in specs {
                    let sealed = self.seal_credentials(&spec, &secrets)?;
                    let (app, at) = (app.to_owned(), accepted.at);
                    new.push(Kept {
                        app,
                        at,
                        spec,
                        sealed,
                        own: false,
                        gone: false,
                    });
                }
                let (renewed, _) = ledger
                    .update(|jobs| {
                        renew(jobs, app, new);
                        jobs.clone()
                    })
                    .context("cannot write down which backups are made here")?;
                jobs = renewed;
            }
        }
        let stands = |kept: &Kept| kept.app == app && kept.stands(|which| self.has_accessory(which));
        Ok(jobs.into_values().filter(stands).collect())
    }

    /// Those secrets alone that a job needs, sealed to this host.
    fn seal_credentials(&self, spec: &Spec, secrets: &BTreeMap<String, String>) -> anyhow::Result<String> {
        use base64::Engine as _;
        let names = &spec.settings.credentials;
        let own: BTreeMap<String, String> = [&names.access_key_id, &names.secret_access_key]
            .into_iter()
            .filter_map(|name| Some((name.clone(), secrets.get(name)?.clone())))
            .collect();
        if own.is_empty() {
            return Ok(String::new());
        }
        let sealed = identity::seal(self.host.as_str(), &own)?;
        Ok(base64::engine::general_purpose::STANDARD.encode(sealed))
    }

    /// Opens what [`Kept::sealed`] holds.
    ///
    /// # Errors
    /// When it is not sealed for this host.
    pub(super) fn open_credentials(&self, sealed: &str) -> anyhow::Result<BTreeMap<String, String>> {
        use base64::Engine as _;
        if sealed.is_empty() {
            return Ok(BTreeMap::new());
        }
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(sealed)
            .context("the credentials of the backups did not arrive whole")?;
        self.identity
            .unseal(&bytes)
            .context("the credentials of the backups")
    }

    /// Every app that has something here: a release, or backups.
    ///
    /// # Errors
    /// When a ledger cannot be read.
    pub fn apps_and_backups(&self) -> anyhow::Result<Vec<String>> {
        let mut apps: BTreeSet<String> = self.apps.ids()?.into_iter().collect();
        let jobs = self
            .backups
            .jobs
            .read()
            .context("cannot read which backups are made here")?;
        let stand = (jobs.data.into_values()).filter(|kept| kept.stands(|which| self.has_accessory(which)));
        apps.extend(stand.map(|kept| kept.app));
        Ok(apps.into_iter().collect())
    }

    /// Takes a job that came by itself, or with no `spec` ends it; answers with what is so now.
    ///
    /// # Errors
    /// When it is not understood, or cannot be written down.
    pub(super) fn set_job(
        &self,
        app: &str,
        accessory: &str,
        spec: Option<&serde_json::Value>,
        sealed: &str,
        now: Timestamp,
    ) -> anyhow::Result<String> {
        let key = format!("{app}/{accessory}");
        let Some(spec) = spec else {
            self.backups.jobs.update(|jobs| {
                jobs.retain(|name, kept| *name != key || !kept.own);
            })?;
            return Ok(format!("no backups of {accessory} are made on this host"));
        };
        let spec: Spec = serde_json::from_value(spec.clone()).context("the backups are not understood")?;
        anyhow::ensure!(
            spec.accessory == accessory,
            "these are backups of {}, not of {accessory}",
            spec.accessory
        );
        self.open_credentials(sealed)?;
        let (schedule, to) = (spec.settings.schedule.0.clone(), spec.settings.to.0.clone());
        let kept = Kept {
            app: app.to_owned(),
            at: now,
            spec,
            sealed: sealed.to_owned(),
            own: true,
            gone: false,
        };
        self.backups
            .jobs
            .update(|jobs| jobs.insert(key, kept))
            .context("cannot write down which backups are made here")?;
        Ok(format!("{accessory} is backed up to {to}: {schedule}"))
    }

    /// Ends the job of an accessory that is gone, until it is back.
    pub fn forget_job(&self, app: &str, accessory: &str) {
        let key = format!("{app}/{accessory}");
        if let Err(error) = self.backups.jobs.update(|jobs| end(jobs, &key)) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the backups of {key}, which is gone, are still listed"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(accessory: &str, image: &str) -> Spec {
        Spec {
            accessory: accessory.to_owned(),
            container: format!("shop-{accessory}"),
            image: image.to_owned(),
            settings: appliance_config::extension::Backup::default(),
        }
    }

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(hour * 3600).expect("a time")
    }

    /// What is kept after a look at a release.
    fn look(jobs: &mut Jobs, hour: i64, specs: &[Spec]) -> Vec<String> {
        if stale(jobs, "shop", at(hour), specs) {
            let kept = |spec: &Spec| Kept {
                app: "shop".to_owned(),
                at: at(hour),
                spec: spec.clone(),
                sealed: String::new(),
                own: false,
                gone: false,
            };
            renew(jobs, "shop", specs.iter().map(kept).collect());
        }
        assert!(
            !stale(jobs, "shop", at(hour), specs),
            "looking again changes nothing"
        );
        jobs.values()
            .filter(|kept| !kept.gone)
            .map(|kept| format!("{}={}", kept.spec.accessory, kept.spec.image))
            .collect()
    }

    #[test]
    fn a_newer_release_decides_and_one_that_was_returned_to_does_not() {
        let mut jobs = Jobs::new();
        assert_eq!(look(&mut jobs, 1, &[]), [""; 0]);
        assert_eq!(
            look(&mut jobs, 2, &[spec("db", "postgres:15"), spec("cache", "redis")]),
            ["cache=redis", "db=postgres:15"]
        );
        assert_eq!(
            look(&mut jobs, 3, &[spec("db", "postgres:17")]),
            ["db=postgres:17"]
        );
        // Rolled back: to the form of yesterday, and to before there were backups.
        assert_eq!(
            look(&mut jobs, 2, &[spec("db", "postgres:15")]),
            ["db=postgres:17"]
        );
        assert_eq!(look(&mut jobs, 1, &[]), ["db=postgres:17"]);
        assert_eq!(look(&mut jobs, 4, &[]), [""; 0]);
    }

    #[test]
    fn what_goes_with_its_accessory_comes_back_with_a_newer_release_only() {
        let mut jobs = Jobs::new();
        let db = [spec("db", "postgres:17")];
        assert_eq!(look(&mut jobs, 1, &db), ["db=postgres:17"]);
        end(&mut jobs, "shop/db");
        assert_eq!(look(&mut jobs, 1, &db), [""; 0], "the same release");
        assert_eq!(look(&mut jobs, 2, &db), ["db=postgres:17"]);
    }

    #[test]
    fn an_accessory_that_is_back_is_backed_up_however_it_came_back() {
        for own in [false, true] {
            let mut jobs = Jobs::new();
            look(&mut jobs, 1, &[spec("db", "postgres:17")]);
            jobs.get_mut("shop/db").expect("it is there").own = own;
            end(&mut jobs, "shop/db");
            let kept = jobs.get("shop/db").expect("only marked");
            assert!(!kept.stands(|_| false), "it was removed");
            assert!(
                kept.stands(|which| which.to_string() == kept_name()),
                "it was booted"
            );
        }
    }

    fn kept_name() -> String {
        let (app, name) = ("shop".to_owned(), "db".to_owned());
        Which { app, name }.to_string()
    }

    #[test]
    fn what_came_by_itself_is_no_releases_affair_unless_the_release_brings_it() {
        let mut jobs = Jobs::new();
        let own = Kept {
            app: "shop".to_owned(),
            at: at(1),
            spec: spec("db", "postgres:15"),
            sealed: String::new(),
            own: true,
            gone: false,
        };
        jobs.insert("shop/db".to_owned(), own.clone());
        jobs.insert(
            "blog/db".to_owned(),
            Kept {
                app: "blog".to_owned(),
                ..own
            },
        );
        assert_eq!(look(&mut jobs, 2, &[]).len(), 2);
        assert_eq!(
            look(&mut jobs, 3, &[spec("db", "postgres:17")]),
            ["db=postgres:15", "db=postgres:17"]
        );
        assert_eq!(look(&mut jobs, 4, &[]), ["db=postgres:15"], "another app's stays");
    }
}
