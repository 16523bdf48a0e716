//! One JSON file that is read and replaced as a whole.
//!
//! ```json
//! {"generation": 7, "schema": 1, "data": {}}
//! ```
//!
//! Beside `keys.json` stand `keys.json.previous` (the generation before) and `keys.json.lock`.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::lock::{self, Mode};

/// Ledgers may hold nonces and sealed secrets: for their owner only.
const FILE_MODE: u32 = 0o600;

/// A handle on one ledger file; cheap, holds nothing open.
#[derive(Debug)]
pub struct Ledger<T> {
    path: PathBuf,
    schema: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for Ledger<T> {
    fn clone(&self) -> Self {
        Ledger {
            path: self.path.clone(),
            schema: self.schema,
            of: PhantomData,
        }
    }
}

/// What a ledger held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot<T> {
    /// 0 for a ledger that was never written, then one more with every write.
    pub generation: u64,
    /// The contents.
    pub data: T,
}

/// Why a ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file is there and cannot be read.
    #[error("cannot read the ledger {path}")]
    Read {
        /// The ledger.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The new contents could not be put in place; the old ones stand.
    #[error("cannot write the ledger {path}; its former contents stand")]
    Write {
        /// The ledger.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file of it could not be removed.
    #[error("cannot remove the ledger {path}")]
    Remove {
        /// The ledger.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The lock could not be taken.
    #[error("cannot lock the ledger {path}")]
    Lock {
        /// The ledger.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The bytes are not this ledger; they were copied aside and left where they are.
    #[error("the ledger {path} is corrupt, its bytes are kept in {set_aside}{}", way_back(path, previous.as_deref()))]
    Corrupt {
        /// The ledger.
        path: PathBuf,
        /// The copy of the bytes found.
        set_aside: PathBuf,
        /// The generation before, if there was one.
        previous: Option<PathBuf>,
        /// Where the text stops making sense.
        #[source]
        source: serde_json::Error,
    },
    /// The file is gone though it has been written before.
    #[error(
        "the ledger {path} is missing though it was written before{}",
        way_back(path, Some(previous))
    )]
    Vanished {
        /// The ledger.
        path: PathBuf,
        /// The copy that proves it.
        previous: PathBuf,
    },
    /// Written by a version of this program that lays the file out in another way.
    #[error(
        "the ledger {path} has layout {found}, this version understands {understood}: run the version that wrote it, or a newer one"
    )]
    Schema {
        /// The ledger.
        path: PathBuf,
        /// The layout number in the file.
        found: u32,
        /// The one this code writes.
        understood: u32,
    },
    /// The contents cannot be expressed as JSON.
    #[error("cannot turn the contents of the ledger {path} into JSON")]
    Encode {
        /// The ledger.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

fn way_back(path: &Path, previous: Option<&Path>) -> String {
    match previous {
        Some(previous) => format!(
            "; to go back to the generation before, run: mv {} {}",
            previous.display(),
            path.display()
        ),
        None => "; there is no generation before it".to_owned(),
    }
}

/// Why an update did not happen.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError<E: std::error::Error + 'static> {
    /// Reading or writing failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The closure refused; nothing was written.
    #[error("the change was refused")]
    Refused(#[source] E),
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    generation: u64,
    schema: u32,
    data: &'a T,
}

#[derive(Deserialize)]
struct Header {
    generation: u64,
    schema: u32,
}

#[derive(Deserialize)]
struct Body<T> {
    data: T,
}

impl<T: Serialize + DeserializeOwned + Default> Ledger<T> {
    /// The ledger at `path`, whose layout number is `schema`. Touches nothing.
    pub fn at(path: impl Into<PathBuf>, schema: u32) -> Self {
        Ledger {
            path: path.into(),
            schema,
            of: PhantomData,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The contents; the default with generation 0 if the ledger was never written.
    ///
    /// Takes no lock: the file is only ever replaced as a whole.
    pub fn read(&self) -> Result<Snapshot<T>, LedgerError> {
        let bytes = match fs_err::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.never_written(),
            Err(source) => {
                return Err(LedgerError::Read {
                    path: self.path.clone(),
                    source,
                });
            }
        };
        let header: Header = serde_json::from_slice(&bytes).map_err(|source| self.corrupt(&bytes, source))?;
        if header.schema != self.schema {
            return Err(LedgerError::Schema {
                path: self.path.clone(),
                found: header.schema,
                understood: self.schema,
            });
        }
        let body: Body<T> = serde_json::from_slice(&bytes).map_err(|source| self.corrupt(&bytes, source))?;
        Ok(Snapshot {
            generation: header.generation,
            data: body.data,
        })
    }

    /// Replaces the contents with what `change` makes of them, and returns its answer and the new generation.
    ///
    /// Readers and other writers see all of the change or none of it.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<(R, u64), LedgerError> {
        match self.try_update(|data| Ok::<R, std::convert::Infallible>(change(data))) {
            Ok(done) => Ok(done),
            Err(UpdateError::Ledger(error)) => Err(error),
            Err(UpdateError::Refused(never)) => match never {},
        }
    }

    /// Like [`Ledger::update`], with a closure that may refuse; then nothing is written.
    pub fn try_update<R, E: std::error::Error + 'static>(
        &self,
        change: impl FnOnce(&mut T) -> Result<R, E>,
    ) -> Result<(R, u64), UpdateError<E>> {
        let _held = lock::take(&self.path, Mode::Exclusive).map_err(|source| LedgerError::Lock {
            path: self.path.clone(),
            source,
        })?;
        let mut snapshot = self.read()?;
        let answer = change(&mut snapshot.data).map_err(UpdateError::Refused)?;
        let generation = snapshot.generation + 1;
        self.replace(generation, &snapshot.data)?;
        Ok((answer, generation))
    }

    /// Replaces the contents whole and returns the new generation.
    pub fn write(&self, data: T) -> Result<u64, LedgerError> {
        self.update(|held| *held = data).map(|(_, generation)| generation)
    }

    /// Removes it together with the generation before, so that it counts as never written; one that is not there is fine.
    pub fn remove(&self) -> Result<(), LedgerError> {
        let _held = lock::take(&self.path, Mode::Exclusive).map_err(|source| LedgerError::Lock {
            path: self.path.clone(),
            source,
        })?;
        // The former generation first: alone it would prove that the ledger vanished.
        for path in [self.previous(), self.path.clone()] {
            match fs_err::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(LedgerError::Remove { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn replace(&self, generation: u64, data: &T) -> Result<(), LedgerError> {
        let mut text = serde_json::to_vec_pretty(&Envelope {
            generation,
            schema: self.schema,
            data,
        })
        .map_err(|source| LedgerError::Encode {
            path: self.path.clone(),
            source,
        })?;
        text.push(b'\n');
        self.put(&text).map_err(|source| LedgerError::Write {
            path: self.path.clone(),
            source,
        })
    }

    fn put(&self, text: &[u8]) -> io::Result<()> {
        match atomic::link_over(&self.path, &self.previous()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        atomic::write_locked(&self.path, text, FILE_MODE)
    }

    fn never_written(&self) -> Result<Snapshot<T>, LedgerError> {
        let previous = self.previous();
        if previous.exists() {
            return Err(LedgerError::Vanished {
                path: self.path.clone(),
                previous,
            });
        }
        Ok(Snapshot {
            generation: 0,
            data: T::default(),
        })
    }

    /// Copies the bytes to a name made of their hash, so that reading again makes no second copy.
    fn corrupt(&self, bytes: &[u8], source: serde_json::Error) -> LedgerError {
        let hash = hex::encode(&aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref()[..6]);
        let set_aside = atomic::beside(&self.path, &format!(".corrupt-{hash}"));
        // The original stays in place as well, so a failure here (a full disk) loses nothing.
        if !set_aside.exists()
            && let Err(source) = atomic::write(&set_aside, bytes, FILE_MODE)
        {
            return LedgerError::Read {
                path: self.path.clone(),
                source,
            };
        }
        let previous = self.previous();
        LedgerError::Corrupt {
            path: self.path.clone(),
            set_aside,
            previous: previous.exists().then_some(previous),
            source,
        }
    }

    fn previous(&self) -> PathBuf {
        atomic::beside(&self.path, ".previous")
    }
}

#[cfg(test)]
mod tests;
