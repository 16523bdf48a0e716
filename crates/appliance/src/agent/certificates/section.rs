//! The `acme:` section of `host.yml`: as it stands now, and as it stood when it could last be read.
//!
//! What is served and renewed follows the last good one, which outlives restarts; new names want the file to be right.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use appliance_config::edge::Acme;
use appliance_config::host;

use super::CertificatesError;
use crate::agent::chain;

/// The section and where it stands.
pub struct Section {
    host_yml: PathBuf,
    /// Where the last good one is kept.
    kept: PathBuf,
    good: Mutex<Option<Acme>>,
    /// Whether it stands in that file too.
    is_kept: AtomicBool,
}

impl Section {
    /// The section of `host_yml`; the last good one is kept in the file `kept`.
    pub fn new(host_yml: PathBuf, kept: PathBuf) -> Self {
        Self {
            host_yml,
            kept,
            good: Mutex::default(),
            is_kept: AtomicBool::new(false),
        }
    }

    /// Where the host's settings stand.
    pub fn host_yml(&self) -> &std::path::Path {
        &self.host_yml
    }

    /// As it stands in the file now; without a file, the default.
    ///
    /// # Errors
    /// When the file is there and wrong.
    pub fn now(&self) -> Result<Acme, CertificatesError> {
        let failed = |why: String| CertificatesError::Host {
            path: self.host_yml.display().to_string(),
            why,
        };
        let acme = match fs_err::read_to_string(&self.host_yml) {
            Ok(text) => host::read(&self.host_yml.display().to_string(), &text)
                .map(|host| host.acme)
                .map_err(|problems| failed(problems.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Acme::default(),
            Err(error) => return Err(failed(error.to_string())),
        };
        self.remember(&acme);
        Ok(acme)
    }

    /// As it stood when the file could last be read, now included; `None` when it never could.
    pub fn last_good(&self) -> Option<Acme> {
        if let Ok(acme) = self.now() {
            return Some(acme);
        }
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.is_none() {
            *good = fs_err::read(&self.kept)
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok());
        }
        good.clone()
    }

    fn remember(&self, acme: &Acme) {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.as_ref() == Some(acme) && self.is_kept.load(Ordering::Relaxed) {
            return;
        }
        *good = Some(acme.clone());
        // Only the way back from a mistake in the file: what cannot be kept is read from the file itself.
        let kept = serde_json::to_vec_pretty(acme)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(appliance_state::atomic::write(&self.kept, &text, 0o600)?));
        self.is_kept.store(kept.is_ok(), Ordering::Relaxed);
        if let Err(error) = kept {
            tracing::warn!("the acme section cannot be kept: {}", chain(&*error));
        }
    }
}
