//! What is kept on disk: one file a name, and the accounts.
//!
//! ```text
//! <directory>/<name>.json            certificate, key, schedule (0600); `*.` is written `_.`
//!             accounts/<digest>.json the account at one directory (0600)
//! ```
//!
//! A file that cannot be read costs one name: it is moved aside as `.damaged`, and a new certificate is asked for.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::AcmeError;
use crate::name::Name;
use crate::schedule::{Failures, Validity, Window};

/// What a record with its certificate and an account need of the disk at most, bytes.
const ROOM: usize = 64 << 10;

/// Everything about one name's certificate.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The name.
    pub name: Name,
    /// The certificate, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// What went wrong since.
    #[serde(default)]
    pub failures: Failures,
    /// The order that is under way, from before it is finalized until its certificate is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

/// An order whose names are proved; whoever dies now fetches its certificate later instead of ordering another.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// Directory of the authority that was asked.
    pub directory: String,
    /// URL of the order (RFC 8555 §7.1.3).
    pub order: String,
    /// The new certificate's key, PEM.
    pub key: String,
    /// How often somebody came back to it in vain.
    #[serde(default)]
    pub attempts: u32,
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Chain, PEM, leaf first.
    pub chain: String,
    /// Key, PEM.
    pub key: String,
    /// When it is valid.
    pub validity: Validity,
    /// Directory of the authority that issued it.
    pub directory: String,
    /// Where in the time for its renewal it is renewed, 0 to 1.
    pub luck: f64,
    /// The authority's advice, as far as it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<Window>,
    /// When to ask for it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask_advice_at: Option<Timestamp>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("name", &self.name)
            .field("held", &self.held)
            .field("failures", &self.failures)
            .field("pending", &self.pending)
            .finish()
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending")
            .field("directory", &self.directory)
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("validity", &self.validity)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Record {
    /// A name without a certificate.
    pub fn new(name: Name) -> Self {
        Self {
            name,
            held: None,
            failures: Failures::default(),
            pending: None,
        }
    }
}

/// The directory of certificates.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> AcmeError {
    let path = path.to_owned();
    move |source| AcmeError::Store { path, source }
}

impl Store {
    /// The store in `directory`, which is made when something is written.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    fn path(&self, name: &Name) -> PathBuf {
        let file = match name.as_str().strip_prefix("*.") {
            Some(host) => format!("_.{host}.json"),
            None => format!("{name}.json"),
        };
        self.directory.join(file)
    }

    /// The record of `name`; `None` when there is none, or the file is damaged and was moved aside.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(&self, name: &Name) -> Result<Option<Record>, AcmeError> {
        let path = self.path(name);
        let text = match fs_err::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path)(error)),
        };
        match serde_json::from_slice::<Record>(&text) {
            Ok(record) if record.name == *name => Ok(Some(record)),
            damaged => {
                let why =
                    damaged.map_or_else(|error| error.to_string(), |_| "it is another name's".to_owned());
                tracing::error!(
                    "{}: {why}; moved aside, a new certificate is asked for",
                    path.display()
                );
                move_aside(&path)?;
                Ok(None)
            }
        }
    }

    /// Every record that can be read.
    pub fn all(&self) -> Vec<Record> {
        let Ok(entries) = fs_err::read_dir(&self.directory) else {
            return Vec::new();
        };
        let mut records: Vec<Record> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                (path.extension()? == "json").then_some(())?;
                serde_json::from_slice(&fs_err::read(path).ok()?).ok()
            })
            .collect();
        records.sort_by(|one, other| one.name.cmp(&other.name));
        records
    }

    /// Keeps a record.
    ///
    /// # Errors
    /// The failing system call's error; the former record stays.
    pub fn write(&self, record: &Record) -> Result<(), AcmeError> {
        let path = self.path(&record.name);
        let text = serde_json::to_vec_pretty(record).map_err(|error| failed(&path)(error.into()))?;
        replace(&path, &text).map_err(failed(&path))
    }

    /// Whether the disk takes what an order brings; nothing of it stays.
    ///
    /// # Errors
    /// The failing system call's error.
    pub(crate) fn try_out(&self) -> Result<(), AcmeError> {
        (|| {
            let mut temporary = temporary(&self.directory)?;
            temporary.write_all(&[0; ROOM])?;
            temporary.as_file().sync_all()
        })()
        .map_err(failed(&self.directory))
    }

    /// Forgets a record. Fine when there is none.
    ///
    /// # Errors
    /// The failing system call's error.
    pub fn remove(&self, name: &Name) -> Result<(), AcmeError> {
        let path = self.path(name);
        match fs_err::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => Ok(()),
        }
    }

    fn account_path(&self, directory: &str) -> PathBuf {
        // FNV-1a: a file name for a URL, nothing that anybody relies on being hard to guess.
        let digest = directory.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        self.directory
            .join("accounts")
            .join(format!("{digest:016x}.json"))
    }

    /// The account's credentials at an authority, as they were kept.
    pub(crate) fn account<T: serde::de::DeserializeOwned>(
        &self,
        directory: &str,
    ) -> Result<Option<T>, AcmeError> {
        let path = self.account_path(directory);
        let text = match fs_err::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path)(error)),
        };
        match serde_json::from_slice(&text) {
            Ok(account) => Ok(Some(account)),
            Err(error) => {
                tracing::error!("{}: {error}; moved aside, a new account is made", path.display());
                move_aside(&path)?;
                Ok(None)
            }
        }
    }

    /// Keeps an account's credentials.
    pub(crate) fn keep_account<T: Serialize>(&self, directory: &str, account: &T) -> Result<(), AcmeError> {
        let path = self.account_path(directory);
        let text = serde_json::to_vec_pretty(account).map_err(|error| failed(&path)(error.into()))?;
        replace(&path, &text).map_err(failed(&path))
    }
}

fn move_aside(path: &Path) -> Result<(), AcmeError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    match fs_err::rename(path, PathBuf::from(aside)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path)(error)),
        _ => Ok(()),
    }
}

/// A temporary file (0600) in `directory`, which is made if there is none.
fn temporary(directory: &Path) -> io::Result<tempfile::NamedTempFile> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    tempfile::Builder::new().prefix(".new-").tempfile_in(directory)
}

/// Temporary file, fsync, rename, fsync of the directory.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut temporary = temporary(directory)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|failed| failed.error)?;
    fs_err::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_private_and_a_damaged_file_costs_one_name() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::new(home.path().join("certificates"));
        let (one, star) = (Name::parse("a.io").unwrap(), Name::parse("*.a.io").unwrap());
        for name in [&one, &star] {
            store.write(&Record::new(name.clone())).unwrap();
        }
        let path = store.path(&one);
        let mode = |path: &Path| fs_err::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        fs_err::write(&path, "{\"name\": \"a.i").unwrap();
        assert_eq!(store.read(&one).unwrap(), None);
        assert_eq!(store.read(&star).unwrap().unwrap().name, star);
        assert!(
            path.with_extension("json.damaged").exists(),
            "kept for whoever looks into it"
        );
        assert_eq!(store.all().len(), 1);
    }
}
