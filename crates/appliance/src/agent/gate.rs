//! The gate every change passes: check, spend the nonce, write the record, and only then act.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use appliance_push::change::{AppName, Destination, Envelope, Fingerprint, HostId, ReleaseNumber};
use appliance_push::trust::{
    self, KeyEntry, KeyRing, KeyRingError, NonceLedger, Refusal, Situation, Verified,
};
use appliance_state::{AuditLog, Entry, Key, Ledger, Outcome, Record, Store};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The keys of this host, and which keys bootstrap ever brought.
///
/// A key that bootstrap brought and an administrator removed stays removed, however often the agent starts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default)]
    ring: KeyRing,
    #[serde(default)]
    seeded: BTreeSet<Fingerprint>,
}

struct Inner {
    keys: Keys,
    nonces: NonceLedger,
    audit: AuditLog,
}

/// Keys, nonces and the audit log under one lock, so that two copies of one change cannot both pass.
pub struct Gate {
    host: HostId,
    inner: Mutex<Inner>,
    keys: Ledger<Keys>,
    nonces: Ledger<NonceLedger>,
    audit_path: PathBuf,
    /// Where bootstrap leaves keys.
    seeds: PathBuf,
    /// Its files there as last read.
    read: Mutex<Vec<(PathBuf, SystemTime)>>,
}

/// Why a change did not get through.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// A check refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be written down, so it must not happen.
    #[error("cannot {what}, so nothing was changed")]
    State {
        /// What could not be done.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A key change that would leave the host without an administrator, or brings an unusable key.
    #[error(transparent)]
    Keys(#[from] KeyRingError),
}

fn state<E: std::error::Error + Send + Sync + 'static>(what: &'static str) -> impl FnOnce(E) -> GateError {
    move |source| GateError::State {
        what,
        source: Box::new(source),
    }
}

impl Gate {
    /// Opens keys, nonces and log, and enrols the keys that bootstrap left in `seeds` (`*.json`).
    ///
    /// # Errors
    /// When a ledger or the log cannot be read or written. A bad seed file is reported and skipped.
    pub fn open(store: &Store, seeds: &Path, host: HostId, now: Timestamp) -> Result<Self, GateError> {
        let name = |text: &str| Key::new(text).map_err(state("name a ledger"));
        let keys: Ledger<Keys> = store.single(&name("keys")?, 1);
        let nonces: Ledger<NonceLedger> = store.single(&name("nonces")?, 1);
        let audit_path = store.root().join("audit.log");
        let opened = AuditLog::open(&audit_path, now).map_err(state("open the audit log"))?;
        if let Some(record) = &opened.repaired {
            tracing::warn!(
                seq = record.seq,
                "the audit log ended in a torn line; it was cut off and recorded"
            );
        }
        let gate = Self {
            host,
            inner: Mutex::new(Inner {
                keys: keys.read().map_err(state("read the keys"))?.data,
                nonces: nonces.read().map_err(state("read the nonces"))?.data,
                audit: opened.log,
            }),
            keys,
            nonces,
            audit_path,
            seeds: seeds.to_owned(),
            read: Mutex::default(),
        };
        gate.seed(seeds, now)?;
        Ok(gate)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enrols what bootstrap left since: whom `host.yml` names is let in at once, not when the agent next starts.
    fn look_for_seeds(&self, now: Timestamp) {
        let modified = |path: &Path| std::fs::metadata(path).ok()?.modified().ok();
        let found: Vec<(PathBuf, SystemTime)> = seed_files(&self.seeds)
            .into_iter()
            .filter_map(|path| modified(&path).map(|at| (path, at)))
            .collect();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if *read == found {
            return;
        }
        match self.seed(&self.seeds, now) {
            Ok(()) => *read = found,
            Err(error) => tracing::error!("cannot enrol keys: {}", super::chain(&error)),
        }
    }

    fn seed(&self, directory: &Path, now: Timestamp) -> Result<(), GateError> {
        let mut found = Vec::new();
        for path in seed_files(directory) {
            match fs_err::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|bytes| {
                    serde_json::from_slice::<Vec<KeyEntry>>(&bytes).map_err(|error| error.to_string())
                }) {
                Ok(entries) => found.extend(entries),
                Err(error) => {
                    tracing::error!(path = %path.display(), error, "cannot enrol the keys of this file");
                }
            }
        }
        let mut inner = self.lock();
        let mut keys = inner.keys.clone();
        for entry in found {
            if !keys.seeded.insert(entry.fingerprint.clone()) {
                continue;
            }
            let (fingerprint, comment) = (entry.fingerprint.to_string(), entry.comment.clone());
            keys.ring.insert(entry)?;
            inner
                .audit
                .append(
                    Entry {
                        who: "bootstrap".to_owned(),
                        verb: "key-add".to_owned(),
                        app: None,
                        payload_sha256: None,
                        result: Outcome::Done,
                        detail: serde_json::json!({ "fingerprint": fingerprint, "comment": comment }),
                    },
                    now,
                )
                .map_err(state("write the audit record"))?;
        }
        if keys.seeded != inner.keys.seeded {
            self.keys.write(keys.clone()).map_err(state("write the keys"))?;
            inner.keys = keys;
        }
        Ok(())
    }

    /// Lets a change through, or says why not; either way there is a record of it before this returns.
    ///
    /// # Errors
    /// The first check that failed, or that the record cannot be written.
    pub fn admit(
        &self,
        envelope: &Envelope,
        now: Timestamp,
        current_release: &dyn Fn(&AppName, Option<&Destination>) -> Option<ReleaseNumber>,
    ) -> Result<Verified, GateError> {
        self.look_for_seeds(now);
        let mut inner = self.lock();
        let checked = trust::check(
            envelope,
            &Situation {
                now,
                host: &self.host,
                keys: &inner.keys.ring,
                nonces: &inner.nonces,
                current_release,
            },
        );
        let verified = match checked {
            Ok(verified) => verified,
            Err(refusal) => {
                let entry = refused(envelope, &refusal);
                inner
                    .audit
                    .append(entry, now)
                    .map_err(state("write the audit record"))?;
                return Err(refusal.into());
            }
        };
        let mut nonces = inner.nonces.clone();
        nonces.spend(&verified.change, now);
        self.nonces
            .write(nonces.clone())
            .map_err(state("remember the change"))?;
        inner.nonces = nonces;
        inner
            .audit
            .append(entry(&verified, Outcome::Begun, serde_json::Value::Null), now)
            .map_err(state("write the audit record"))?;
        Ok(verified)
    }

    /// Records how an admitted change ended.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn conclude(
        &self,
        verified: &Verified,
        outcome: Outcome,
        detail: serde_json::Value,
        now: Timestamp,
    ) -> Result<Record, GateError> {
        self.lock()
            .audit
            .append(entry(verified, outcome, detail), now)
            .map_err(state("write the audit record"))
    }

    /// Records what the agent does on its own, such as a recovery.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn record(
        &self,
        verb: &str,
        app: &str,
        outcome: Outcome,
        detail: serde_json::Value,
        now: Timestamp,
    ) -> Result<Record, GateError> {
        self.lock()
            .audit
            .append(
                Entry {
                    who: "agent".to_owned(),
                    verb: verb.to_owned(),
                    app: Some(app.to_owned()),
                    payload_sha256: None,
                    result: outcome,
                    detail,
                },
                now,
            )
            .map_err(state("write the audit record"))
    }

    /// Carries out a verified change of the keys.
    ///
    /// # Errors
    /// When the key is unusable, the last administrator would go, or it cannot be written.
    pub fn change_keys(&self, verified: &Verified) -> Result<KeyRing, GateError> {
        let mut inner = self.lock();
        let mut keys = inner.keys.clone();
        keys.ring.apply(verified)?;
        self.keys.write(keys.clone()).map_err(state("write the keys"))?;
        inner.keys = keys.clone();
        Ok(keys.ring)
    }

    /// The keys as they are now.
    pub fn keys(&self) -> KeyRing {
        self.look_for_seeds(Timestamp::now());
        self.lock().keys.ring.clone()
    }

    /// Where the audit log is.
    pub fn audit_path(&self) -> &Path {
        &self.audit_path
    }
}

fn seed_files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    files
}

/// `service` or `service@destination`: how an app is called in state, API and audit.
pub fn app_id(app: &AppName, destination: Option<&Destination>) -> String {
    match destination {
        Some(destination) => format!("{app}@{destination}"),
        None => app.to_string(),
    }
}

fn entry(verified: &Verified, result: Outcome, detail: serde_json::Value) -> Entry {
    let change = &verified.change;
    Entry {
        who: verified.fingerprint.to_string(),
        verb: change.verb.name().to_owned(),
        app: change
            .app
            .as_ref()
            .map(|app| app_id(app, change.destination.as_ref())),
        payload_sha256: Some(verified.payload_digest.hex().to_owned()),
        result,
        detail,
    }
}

/// The record of a refusal: nothing of the payload is believed but its digest.
fn refused(envelope: &Envelope, refusal: &Refusal) -> Entry {
    let payload_sha256 = envelope
        .payload_bytes()
        .ok()
        .map(|bytes| appliance_push::change::Digest::of(&bytes).hex().to_owned());
    Entry {
        who: refusal
            .fingerprint()
            .map_or_else(|| "unknown".to_owned(), ToString::to_string),
        verb: "change".to_owned(),
        app: None,
        payload_sha256,
        result: Outcome::Refused,
        detail: serde_json::json!({ "code": refusal.code(), "why": refusal.to_string() }),
    }
}
