//! What is under way, written down before it happens, so that a crash leaves nothing that nobody knows of.
//!
//! One file per operation, replaced whole at each step and removed at the end. What is found at the start was interrupted;
//! [`crate::recover`] settles it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::names::{BackupId, Subject};

/// Extension of a file that is being written.
const TEMPORARY: &str = "new";

/// An operation that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Intent {
    /// A backup is being written. Without its manifest its objects are rubbish.
    Backup {
        /// What is backed up.
        subject: Subject,
        /// As which backup.
        id: BackupId,
        /// Uploads that were begun: key and the store's id.
        uploads: Vec<(String, String)>,
        /// Directory of what waits on the disk.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spool: Option<PathBuf>,
    },
    /// A side database is being filled.
    Restore {
        /// What the backup is of.
        subject: Subject,
        /// The side database.
        side: String,
        /// Random word in the side database's mark: only a database with this mark is dropped.
        mark: String,
    },
    /// Two databases are changing places. From here on the names tell how far it came.
    Swap {
        /// What the backup is of.
        subject: Subject,
        /// The live database.
        live: String,
        /// The one that takes its place.
        side: String,
        /// What the live one is called afterwards.
        before: String,
        /// The side database's mark, where it is to be dropped if it did not take the place.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<String>,
    },
    /// A live server, no PostgreSQL one, takes another's data and no writes meanwhile. Whoever began it settles it.
    TakeOver {
        /// What the data is of.
        subject: Subject,
    },
    /// Backups are being removed; their manifests first.
    Prune {
        /// What the backups are of.
        subject: Subject,
        /// Keys, in the order of their removal.
        keys: Vec<String>,
    },
}

impl Intent {
    /// Whether live data may not be reachable until it is settled.
    pub fn touches_live_data(&self) -> bool {
        matches!(
            self,
            Intent::Restore { .. } | Intent::Swap { .. } | Intent::TakeOver { .. }
        )
    }

    /// Whether settling it takes the place of the backups.
    pub fn is_about_what_is_stored(&self) -> bool {
        matches!(self, Intent::Backup { .. } | Intent::Prune { .. })
    }

    fn subject_mut(&mut self) -> &mut Subject {
        match self {
            Intent::Backup { subject, .. }
            | Intent::Restore { subject, .. }
            | Intent::Swap { subject, .. }
            | Intent::TakeOver { subject }
            | Intent::Prune { subject, .. } => subject,
        }
    }

    /// What it concerns.
    pub fn subject(&self) -> &Subject {
        match self {
            Intent::Backup { subject, .. }
            | Intent::Restore { subject, .. }
            | Intent::Swap { subject, .. }
            | Intent::TakeOver { subject }
            | Intent::Prune { subject, .. } => subject,
        }
    }
}

/// The directory of operations under way.
#[derive(Debug, Clone)]
pub struct Journal {
    directory: PathBuf,
    behalf: Option<Behalf>,
}

/// App and accessory that operations are noted for, where the data was another's.
#[derive(Debug, Clone)]
struct Behalf {
    app: String,
    accessory: String,
}

impl Behalf {
    fn put(behalf: Option<&Self>, mut intent: Intent) -> Intent {
        if let Some(Self { app, accessory }) = behalf {
            let subject = intent.subject_mut();
            subject.app.clone_from(app);
            subject.accessory.clone_from(accessory);
        }
        intent
    }
}

/// One operation's file; removed by [`Entry::done`] only.
#[derive(Debug)]
pub struct Entry {
    path: PathBuf,
    behalf: Option<Behalf>,
    /// What is under way.
    pub intent: Intent,
}

impl Journal {
    /// The journal in `directory`, which is made. What writes that a crash ended have left is removed: nobody else may
    /// write there yet.
    ///
    /// # Errors
    /// When it cannot be made or tidied.
    pub fn open(directory: impl Into<PathBuf>) -> io::Result<Self> {
        let directory = directory.into();
        fs_err::create_dir_all(&directory)?;
        for entry in fs_err::read_dir(&directory)? {
            let path = entry?.path();
            // Its entry, if it has one, still says what it said before.
            if path.extension().is_some_and(|extension| extension == TEMPORARY) {
                fs_err::remove_file(&path)?;
            }
        }
        Ok(Self {
            directory,
            behalf: None,
        })
    }

    /// The same journal, in which all that begins is noted for this accessory: backups of a former name, or of another
    /// app, are restored into it.
    #[must_use]
    pub fn on_behalf_of(&self, app: &str, accessory: &str) -> Self {
        Self {
            directory: self.directory.clone(),
            behalf: Some(Behalf {
                app: app.to_owned(),
                accessory: accessory.to_owned(),
            }),
        }
    }

    /// Writes down that something begins; `name` is unique.
    ///
    /// # Errors
    /// When it cannot be written: then it must not begin.
    pub fn begin(&self, name: &str, intent: Intent) -> io::Result<Entry> {
        let entry = Entry {
            path: self.directory.join(format!("{name}.json")),
            intent: Behalf::put(self.behalf.as_ref(), intent),
            behalf: self.behalf.clone(),
        };
        entry.write()?;
        Ok(entry)
    }

    /// What is under way or was interrupted, oldest first. A file that makes no sense is set aside and said; others may
    /// begin, go on and end meanwhile.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn interrupted(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut paths: Vec<PathBuf> = fs_err::read_dir(&self.directory)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        for path in paths {
            if path.extension().is_none_or(|extension| extension != "json") {
                // Somebody may be about to give it its name.
                continue;
            }
            let bytes = match fs_err::read(&path) {
                // It ended since the directory was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                read => read?,
            };
            match serde_json::from_slice(&bytes) {
                Ok(intent) => entries.push(Entry {
                    path,
                    behalf: None,
                    intent,
                }),
                Err(error) => {
                    tracing::error!("{} makes no sense and is set aside: {error}", path.display());
                    fs_err::rename(&path, path.with_extension("damaged"))?;
                }
            }
        }
        Ok(entries)
    }
}

impl Entry {
    /// Notes a further upload of a backup.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_upload(&mut self, key: &str, upload: &str) -> io::Result<()> {
        if let Intent::Backup { uploads, .. } = &mut self.intent {
            uploads.push((key.to_owned(), upload.to_owned()));
        }
        self.write()
    }

    /// Goes over to the next step.
    ///
    /// # Errors
    /// When it cannot be written: then the step must not be taken.
    pub fn proceed(&mut self, intent: Intent) -> io::Result<()> {
        self.intent = Behalf::put(self.behalf.as_ref(), intent);
        self.write()
    }

    /// It has ended, one way or the other, and left nothing to settle.
    ///
    /// # Errors
    /// When the file cannot be removed; settling it again does no harm.
    pub fn done(self) -> io::Result<()> {
        match fs_err::remove_file(&self.path) {
            // Somebody else has settled it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| self.sync()),
        }
    }

    fn write(&self) -> io::Result<()> {
        let temporary = self.path.with_extension(TEMPORARY);
        let mut file = fs_err::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(&self.intent)?)?;
        file.sync_all()?;
        fs_err::rename(&temporary, &self.path)?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        fs_err::File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taking_over() -> Intent {
        let subject = Subject {
            app: "shop".to_owned(),
            kind: crate::names::Kind::Redis,
            accessory: "cache".to_owned(),
            unit: "data".to_owned(),
        };
        Intent::TakeOver { subject }
    }

    #[test]
    fn whoever_looks_is_in_nobodys_way() {
        let place = tempfile::tempdir().expect("a directory");
        let journal = Journal::open(place.path()).expect("opens");
        let entry = journal.begin("one", taking_over()).expect("begins");
        // Somebody writes, and is about to give it its name.
        let half = place.path().join("one.new");
        fs_err::write(&half, "half").expect("written");
        // Somebody has ended since the directory was listed.
        std::os::unix::fs::symlink(place.path().join("gone"), place.path().join("two.json")).expect("linked");
        let found = journal.interrupted().expect("what ends meanwhile is no failure");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].intent, taking_over());
        assert!(half.exists(), "it is another's");

        // The next process finds what a crash left of a write, and what the entry said before.
        let journal = Journal::open(place.path()).expect("opens");
        assert!(!half.exists());
        assert_eq!(journal.interrupted().expect("read").len(), 1);
        entry.done().expect("ends");
        assert!(journal.interrupted().expect("read").is_empty());
    }
}
