//! A directory of ledgers whose names are checked, so that no app name can reach outside it.

use std::fmt;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ledger::Ledger;

/// A name that is safe as a file name: 1 to 128 of `A-Z a-z 0-9 _ . @ -`, not starting with `.` or `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

/// The text cannot be a [`Key`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} cannot name a record: use 1 to 128 letters, digits, _ . @ - and begin with a letter, digit or _"
)]
pub struct KeyError {
    given: String,
}

impl Key {
    const LONGEST: usize = 128;

    /// Checks `text`.
    pub fn new(text: impl Into<String>) -> Result<Self, KeyError> {
        let text = text.into();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.@-".contains(c);
        let good_start = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '@');
        if good_start && text.len() <= Self::LONGEST && text.chars().all(allowed) {
            Ok(Key(text))
        } else {
            Err(KeyError { given: text })
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Key::new(text)
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        Key::new(text)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> String {
        key.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A directory cannot be made.
    #[error("cannot create the state directory {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A directory cannot be listed.
    #[error("cannot list the state directory {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The state directory of a host.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`; makes the directory (mode 0700) if it is not there.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Store { root: root.into() };
        store.make(&store.root)?;
        Ok(store)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `<root>/<name>.json`: a ledger there is one of.
    pub fn single<T: Serialize + DeserializeOwned + Default>(&self, name: &Key, schema: u32) -> Ledger<T> {
        Ledger::at(self.root.join(format!("{name}.json")), schema)
    }

    /// `<root>/<collection>/<key>.json`: one ledger of a family. Makes the directory.
    pub fn keyed<T: Serialize + DeserializeOwned + Default>(
        &self,
        collection: &Key,
        key: &Key,
        schema: u32,
    ) -> Result<Ledger<T>, StoreError> {
        let directory = self.root.join(collection.as_str());
        self.make(&directory)?;
        Ok(Ledger::at(directory.join(format!("{key}.json")), schema))
    }

    /// The keys of a family, sorted; empty if nothing was ever written to it.
    pub fn keys(&self, collection: &Key) -> Result<Vec<Key>, StoreError> {
        let directory = self.root.join(collection.as_str());
        let fail = |source| StoreError::List {
            path: directory.clone(),
            source,
        };
        let entries = match fs_err::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(fail(source)),
        };
        let mut keys = Vec::new();
        for entry in entries {
            let name = entry.map_err(fail)?.file_name();
            let key = name
                .to_str()
                .and_then(|name| name.strip_suffix(".json"))
                .map(Key::new);
            if let Some(Ok(key)) = key {
                keys.push(key);
            }
        }
        keys.sort();
        Ok(keys)
    }

    fn make(&self, directory: &Path) -> Result<(), StoreError> {
        let fail = |source| StoreError::Create {
            path: directory.to_path_buf(),
            source,
        };
        if directory.is_dir() {
            return Ok(());
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(fail)?;
        crate::atomic::sync_directory(crate::atomic::directory_of(directory)).map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).expect("a key")
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a\0b",
            "-rf",
            ".hidden",
            "a b",
            "é",
            &"x".repeat(129),
        ] {
            assert!(Key::new(bad).is_err(), "{bad:?}");
            assert!(
                serde_json::from_value::<Key>(serde_json::json!(bad)).is_err(),
                "{bad:?}"
            );
        }
        for good in ["blog", "blog@staging", "My_App-2", "a.b", "_x", &"x".repeat(128)] {
            assert_eq!(key(good).as_str(), good);
        }
    }

    #[test]
    fn a_family_lists_its_ledgers_and_none_of_their_side_files() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path().join("state")).expect("open");
        let family = key("releases");
        assert_eq!(store.keys(&family).expect("keys"), []);
        for app in ["shop", "blog"] {
            let ledger = store.keyed::<Vec<u32>>(&family, &key(app), 1).expect("ledger");
            ledger.write(vec![1]).expect("write");
            ledger.write(vec![2]).expect("write, which makes a previous copy");
        }
        assert_eq!(store.keys(&family).expect("keys"), [key("blog"), key("shop")]);
        let single = store.single::<Vec<u32>>(&key("keys"), 1);
        assert_eq!(single.path(), directory.path().join("state/keys.json"));
    }
}
