//! What we wrote, so that a later edit by somebody else is told from an older version of ours.
//!
//! A file whose contents we never wrote is kept and reported.
//! The first state of a file that we merge into is copied aside before the first change: that is what a rollback restores.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest;
use crate::host::{Host, HostError, Owner};

/// Where the digests lie.
pub const LEDGER: &str = "/var/lib/appliance/bootstrap/written.json";
/// Where first states lie.
pub const ORIGINALS: &str = "/var/lib/appliance/bootstrap/originals";
/// Digests kept for each file: the write that is under way, and those before it.
const KEPT: usize = 4;
/// What every file of ours says, since its first version.
const MARK: &str = "managed by appliance";

/// Digests by path, newest last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written(BTreeMap<PathBuf, Vec<String>>);

impl Written {
    /// The ledger of this host; a missing or damaged one is an empty one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(host: &dyn Host) -> Result<Self, HostError> {
        Ok(host
            .read(Path::new(LEDGER))?
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default())
    }

    /// Whether these contents are somebody else's: neither written by us nor an unlisted file of ours.
    pub fn is_edited(&self, path: &Path, contents: &[u8]) -> bool {
        match self.0.get(path) {
            Some(digests) => !digests.contains(&digest::hex(contents)),
            None => !String::from_utf8_lossy(contents).contains(MARK),
        }
    }

    /// Notes that these contents are about to be written; before they are, so that a cut-off run never looks like an edit.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn note(host: &dyn Host, path: &Path, contents: &[u8]) -> Result<(), HostError> {
        let mut written = Self::read(host)?;
        let digests = written.0.entry(path.to_owned()).or_default();
        let digest = digest::hex(contents);
        if digests.contains(&digest) {
            return Ok(());
        }
        digests.push(digest);
        let surplus = digests.len().saturating_sub(KEPT);
        digests.drain(..surplus);
        let json = serde_json::to_vec_pretty(&written).expect("paths and digests always serialise");
        host.write(Path::new(LEDGER), &json, 0o600, &Owner::root())
    }
}

/// Where the first state of a file is kept.
pub fn original(path: &Path) -> PathBuf {
    let name = path
        .display()
        .to_string()
        .trim_start_matches('/')
        .replace('/', "%");
    Path::new(ORIGINALS).join(name)
}

/// Copies a file aside before it is first changed.
///
/// # Errors
/// When the copy cannot be written.
pub fn keep_original(host: &dyn Host, path: &Path, contents: &[u8]) -> Result<(), HostError> {
    let kept = original(path);
    if host.entry(&kept)?.is_some() {
        return Ok(());
    }
    host.write(&kept, contents, 0o600, &Owner::root())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[test]
    fn an_edit_is_told_from_every_version_of_ours() {
        let host = Memory::default();
        let path = Path::new("/etc/x");
        for version in ["one", "two"] {
            Written::note(&host, path, version.as_bytes()).expect("writes");
        }
        let written = Written::read(&host).expect("reads");
        assert!(!written.is_edited(path, b"one") && !written.is_edited(path, b"two"));
        assert!(written.is_edited(path, b"edited"));
        assert!(written.is_edited(Path::new("/etc/theirs"), b"theirs"));
        assert!(
            !written.is_edited(Path::new("/etc/old"), b"# managed by appliance\n"),
            "from before the ledger"
        );
    }

    #[test]
    fn the_first_state_is_kept_and_never_replaced() {
        let host = Memory::default();
        let path = Path::new("/etc/ssh/moduli");
        for state in ["first", "second"] {
            keep_original(&host, path, state.as_bytes()).expect("writes");
        }
        assert_eq!(
            host.text("/var/lib/appliance/bootstrap/originals/etc%ssh%moduli")
                .as_deref(),
            Some("first")
        );
    }
}
