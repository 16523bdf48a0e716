//! Backups in a directory of this machine: `file:///var/backups`.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use jiff::Timestamp;

use super::{Answer, Listed, PART, Store, StoreError, StoreErrorKind, Unfinished, Upload};

/// Begins the name of a file that is not complete.
const UNFINISHED: &str = ".upload-";

/// A directory as a store.
#[derive(Debug, Clone)]
pub struct FileStore {
    root: PathBuf,
}

impl FileStore {
    /// The store in `root`, which is made when something is stored.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn error(&self, action: &'static str, key: &str, error: io::Error) -> StoreError {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => StoreErrorKind::Missing,
            io::ErrorKind::AlreadyExists => StoreErrorKind::Exists,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StoreErrorKind::Denied,
            _ => StoreErrorKind::Other,
        };
        StoreError::new(kind, action, key, &self.place(), error)
    }

    async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        key: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        tokio::task::spawn_blocking(work)
            .await
            .map_err(io::Error::other)
            .and_then(|done| done)
            .map_err(|error| self.error(action, key, error))
    }
}

impl Store for FileStore {
    fn place(&self) -> String {
        format!("file://{}", self.root.display())
    }

    fn put_new<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        let path = self.path(key);
        Box::pin(self.run("store", key, move || {
            let directory = parent(&path)?;
            let temporary = tempfile::Builder::new()
                .prefix(UNFINISHED)
                .tempfile_in(&directory)?;
            temporary.as_file().write_all_at(&bytes, 0)?;
            temporary.as_file().sync_all()?;
            temporary
                .persist_noclobber(&path)
                .map_err(|failed| failed.error)?;
            sync(&directory)
        }))
    }

    fn begin<'a>(&'a self, key: &'a str) -> Answer<'a, Box<dyn Upload>> {
        let path = self.path(key);
        Box::pin(async move {
            let (file, name) = self
                .run("begin", key, {
                    let path = path.clone();
                    move || {
                        let directory = parent(&path)?;
                        let temporary = tempfile::Builder::new()
                            .prefix(UNFINISHED)
                            .tempfile_in(&directory)?;
                        let (file, kept) = temporary.keep().map_err(|failed| failed.error)?;
                        let name = kept.file_name().map(|name| name.to_string_lossy().into_owned());
                        Ok((file, name.unwrap_or_default()))
                    }
                })
                .await?;
            Ok(Box::new(FileUpload {
                store: self.clone(),
                key: key.to_owned(),
                path,
                name,
                file: std::sync::Arc::new(file),
            }) as Box<dyn Upload>)
        })
    }

    fn abort<'a>(&'a self, key: &'a str, upload: &'a str) -> Answer<'a, ()> {
        let path = self.path(key);
        let name = upload.to_owned();
        Box::pin(self.run("abort", key, move || {
            if !name.starts_with(UNFINISHED) || name.contains('/') {
                return Ok(());
            }
            let Some(directory) = path.parent() else {
                return Ok(());
            };
            absent_is_fine(fs_err::remove_file(directory.join(name)))?;
            prune_directories(directory);
            Ok(())
        }))
    }

    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, Option<u64>> {
        let path = self.path(key);
        Box::pin(self.run("look at", key, move || match fs_err::metadata(&path) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }))
    }

    fn read<'a>(&'a self, key: &'a str, from: u64, length: u64) -> Answer<'a, Bytes> {
        let path = self.path(key);
        Box::pin(self.run("read", key, move || {
            let file = fs_err::File::open(&path)?;
            let available = file.metadata()?.len().saturating_sub(from).min(length);
            let mut bytes = vec![0; usize::try_from(available).map_err(io::Error::other)?];
            file.file().read_exact_at(&mut bytes, from)?;
            Ok(Bytes::from(bytes))
        }))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Listed>> {
        let (root, wanted) = (self.root.clone(), prefix.to_owned());
        Box::pin(self.run("list", prefix, move || {
            // Only the directories that can hold such keys.
            let start = wanted
                .rfind('/')
                .map_or_else(|| root.clone(), |at| root.join(&wanted[..at]));
            let mut found = Vec::new();
            walk(&root, &start, &mut |key, file| {
                if !unfinished(&key) {
                    let size = file.len();
                    found.push(Listed { key, size });
                }
            })?;
            found.retain(|listed: &Listed| listed.key.starts_with(&wanted));
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        }))
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        let path = self.path(key);
        Box::pin(self.run("remove", key, move || {
            absent_is_fine(fs_err::remove_file(&path))?;
            if let Some(directory) = path.parent() {
                prune_directories(directory);
            }
            Ok(())
        }))
    }

    fn unfinished<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Unfinished>> {
        let (root, wanted) = (self.root.clone(), prefix.to_owned());
        Box::pin(self.run("list", prefix, move || {
            let mut found = Vec::new();
            walk(&root, &root.join(&wanted), &mut |key, file| {
                let since = file.modified().ok().and_then(|at| Timestamp::try_from(at).ok());
                if unfinished(&key)
                    && let Some(since) = since
                {
                    let upload = key.rsplit('/').next().unwrap_or_default().to_owned();
                    found.push(Unfinished { key, upload, since });
                }
            })?;
            Ok(found)
        }))
    }

    fn clock_skew(&self) -> Answer<'_, Option<jiff::SignedDuration>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

struct FileUpload {
    store: FileStore,
    key: String,
    path: PathBuf,
    name: String,
    file: std::sync::Arc<std::fs::File>,
}

impl Upload for FileUpload {
    fn id(&self) -> &str {
        &self.name
    }

    fn part(&self, number: usize, bytes: Bytes) -> Answer<'_, ()> {
        let file = std::sync::Arc::clone(&self.file);
        let at = (number as u64 - 1) * PART as u64;
        Box::pin(
            self.store
                .run("write", &self.key, move || file.write_all_at(&bytes, at)),
        )
    }

    fn complete(&self, _parts: usize, size: u64) -> Answer<'_, ()> {
        let file = std::sync::Arc::clone(&self.file);
        let path = self.path.clone();
        let unfinished = self.path.with_file_name(&self.name);
        Box::pin(self.store.run("complete", &self.key, move || {
            if file.metadata()?.len() != size {
                return Err(io::Error::other("the file has another size than was written"));
            }
            file.sync_all()?;
            // A link, not a rename: it refuses a name that is taken.
            fs_err::hard_link(&unfinished, &path)?;
            fs_err::remove_file(&unfinished)?;
            sync(&parent(&path)?)
        }))
    }
}

/// The directory of `path`, made with mode 0700 where it is missing.
fn parent(path: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    let directory = path.parent().unwrap_or(path).to_owned();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)?;
    Ok(directory)
}

fn sync(directory: &Path) -> io::Result<()> {
    fs_err::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY)
        .open(directory)?
        .sync_all()
}

/// Removes directories that have become empty, so that lists stay short; one that is not stays.
fn prune_directories(directory: &Path) {
    let _not_empty = std::fs::remove_dir(directory);
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether a key is that of a file that is not complete.
fn unfinished(key: &str) -> bool {
    key.rsplit('/')
        .next()
        .is_some_and(|name| name.starts_with(UNFINISHED))
}

fn walk(root: &Path, directory: &Path, each: &mut dyn FnMut(String, &std::fs::Metadata)) -> io::Result<()> {
    let entries = match fs_err::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        // A file that goes while we look was never complete, or is being pruned.
        let Ok(kind) = entry.metadata() else { continue };
        if kind.is_dir() {
            walk(root, &entry.path(), each)?;
        } else if kind.is_file()
            && let Ok(relative) = entry.path().strip_prefix(root)
            && let Some(key) = relative.to_str()
        {
            each(key.to_owned(), &kind);
        }
    }
    Ok(())
}
