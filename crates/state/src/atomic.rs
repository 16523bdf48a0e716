//! Replacing a file so that a crash leaves the old bytes or the new ones.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt as _;

/// Writes `bytes` to `path` by temporary file, fsync, rename and fsync of the directory.
///
/// `mode` is the permission bits of the new file, whatever the umask and whatever the old file had.
/// On an error the old file is untouched and the temporary one is gone.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = directory_of(path);
    let mut temporary = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(directory)?;
    temporary.write_all(bytes)?;
    temporary
        .as_file()
        .set_permissions(std::fs::Permissions::from_mode(mode))?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|failed| failed.error)?;
    sync_directory(directory)
}

/// Makes renames, links and removals in `directory` survive a power cut.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    fs_err::File::open(directory)?.sync_all()
}

/// Like [`write`], for a caller who holds the lock on `path`: the temporary file is `<path>.new`, so one left by a crash is used up by the next write.
pub(crate) fn write_locked(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = beside(path, ".new");
    let mut file = fs_err::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs_err::rename(&temporary, path)) {
        let _ = fs_err::remove_file(&temporary);
        return Err(error);
    }
    sync_directory(directory_of(path))
}

/// Makes `path` a second name of the bytes that are at `from` now, replacing what `path` named.
///
/// For a caller who holds the lock on `from`.
pub(crate) fn link_over(from: &Path, path: &Path) -> io::Result<()> {
    let name = beside(path, ".new");
    match fs_err::hard_link(from, &name) {
        // Left by a crash.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs_err::remove_file(&name)?;
            fs_err::hard_link(from, &name)?;
        }
        linked => linked?,
    }
    fs_err::rename(&name, path)?;
    // A rename of a file over another name of itself does nothing, and leaves both names.
    match fs_err::remove_file(&name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `path` with `suffix` appended to its name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The directory that holds `path`; `.` for a bare name.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_contents_and_mode_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        write(&path, b"one", 0o644).expect("first");
        write(&path, b"two", 0o600).expect("second");
        assert_eq!(fs_err::read(&path).expect("read"), b"two");
        let mode = fs_err::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs_err::read_dir(directory.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_refused_write_keeps_the_old_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("taken");
        fs_err::create_dir(&path).expect("a directory in the way");
        fs_err::create_dir(path.join("inside")).expect("not empty");
        assert!(write(&path, b"bytes", 0o600).is_err());
        assert!(path.join("inside").is_dir());
        assert_eq!(fs_err::read_dir(directory.path()).expect("list").count(), 1);
    }
}
