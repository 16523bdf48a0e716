//! Asset bridging: visitors with a page of one release can fetch its assets while the other serves (Kamal's `asset_path`).
//!
//! ```text
//! assets/<app>/<role>/<rollout>/own      what the image of this rollout has
//!                              /volume   the union with the other release's, mounted into the container
//! ```
//!
//! Files are hard links, so a union costs no room; the mount is read-only, so that no container writes into another's files.
//! Where the configuration asks for `rw`, files are copied. A file that both releases have stays each one's own.

use std::io::Read;
use std::path::{Component, Path, PathBuf};

use appliance_rollout::RolloutNumber;

/// Says that a rollout's `own` is complete.
const COMPLETE: &str = "complete";

/// Why assets cannot be bridged.
#[derive(Debug, thiserror::Error)]
pub enum AssetsError {
    /// A file cannot be made.
    #[error("cannot write the assets")]
    Files(#[from] std::io::Error),
    /// A task was lost.
    #[error("the task that wrote the assets ended")]
    Thread(#[from] tokio::task::JoinError),
}

/// The directories of one role of one app.
#[derive(Debug, Clone)]
pub struct Assets {
    role: PathBuf,
}

impl Assets {
    /// Below the agent's state directory.
    pub fn of(state: &Path, app: &str, role: &str) -> Self {
        Self {
            role: state.join("assets").join(app).join(role),
        }
    }

    /// What is mounted into the container of a rollout.
    pub fn volume(&self, rollout: RolloutNumber) -> PathBuf {
        self.at(rollout).join("volume")
    }

    fn at(&self, rollout: RolloutNumber) -> PathBuf {
        self.role.join(rollout.0.to_string())
    }

    /// Whether the image's assets are here already.
    pub fn complete(&self, rollout: RolloutNumber) -> bool {
        self.at(rollout).join(COMPLETE).exists()
    }

    /// Takes the image's assets from the archive of a directory, as the engine sends it. Blocks.
    ///
    /// # Errors
    /// When the archive is damaged or files cannot be written.
    pub fn unpack(&self, rollout: RolloutNumber, archive: impl Read) -> std::io::Result<()> {
        let directory = self.at(rollout);
        remove_all(&directory)?;
        let own = directory.join("own");
        fs_err::create_dir_all(&own)?;
        unpack(archive, &own)?;
        fs_err::File::create(directory.join(COMPLETE))?.sync_all()
    }

    /// Forgets what was unpacked for a rollout. Blocks, briefly.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard(&self, rollout: RolloutNumber) -> std::io::Result<()> {
        remove_all(&self.at(rollout))
    }

    /// Makes the volume of `new`, the union with `old`'s, and adds the new files to the volume of `old`, which is in use. Blocks.
    ///
    /// # Errors
    /// When links cannot be made.
    pub fn unite(&self, new: RolloutNumber, old: Option<RolloutNumber>, copy: bool) -> std::io::Result<()> {
        let own = self.at(new).join("own");
        add(&own, &self.volume(new), copy)?;
        if let Some(old) = old.filter(|old| self.complete(*old)) {
            add(&self.at(old).join("own"), &self.volume(new), copy)?;
            add(&own, &self.volume(old), copy)?;
        }
        Ok(())
    }
}

/// Removes what no rollout of `app` but those in `keep` needs. Blocks.
///
/// # Errors
/// When the directories cannot be read or removed.
pub fn prune(state: &Path, app: &str, keep: &[String]) -> std::io::Result<()> {
    let app = state.join("assets").join(app);
    if !app.exists() {
        return Ok(());
    }
    for role in fs_err::read_dir(&app)? {
        for rollout in fs_err::read_dir(role?.path())? {
            let rollout = rollout?;
            let needed = rollout
                .file_name()
                .to_str()
                .is_some_and(|name| keep.iter().any(|keep| keep == name));
            if !needed {
                remove_all(&rollout.path())?;
            }
        }
    }
    Ok(())
}

fn remove_all(directory: &Path) -> std::io::Result<()> {
    match fs_err::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Adds the files of `from` to `to`, except those that are there.
fn add(from: &Path, to: &Path, copy: bool) -> std::io::Result<()> {
    fs_err::create_dir_all(to)?;
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            // A file in the place of a directory stays, as with `cp -n`.
            if !target.exists() || target.is_dir() {
                add(&entry.path(), &target, copy)?;
            }
        } else if fs_err::symlink_metadata(&target).is_err() {
            if copy {
                fs_err::copy(entry.path(), &target)?;
            } else {
                fs_err::hard_link(entry.path(), &target)?;
            }
        }
    }
    Ok(())
}

/// Unpacks the archive of one directory into `root`, without that directory's own name.
///
/// The archive comes out of an image, so it is not trusted: no symbolic link is ever made, and nothing is written
/// through one. Links to files within the directory become those files, as in Kamal, which follows them.
fn unpack(archive: impl Read, root: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let mut links = Vec::new();
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let Some(path) = inside(&entry.path()?) else {
            continue;
        };
        let target = root.join(&path);
        let kind = entry.header().entry_type();
        // Visitors get these files through a process of any user.
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        if kind.is_dir() {
            fs_err::create_dir_all(&target)?;
        } else if kind.is_file() || kind.is_contiguous() {
            if let Some(parent) = target.parent() {
                fs_err::create_dir_all(parent)?;
            }
            let mut file = fs_err::File::create(&target)?;
            std::io::copy(&mut entry, &mut file)?;
            fs_err::set_permissions(&target, std::fs::Permissions::from_mode(mode | 0o444))?;
        } else if kind.is_symlink() {
            if let (Some(parent), Some(to)) = (path.parent(), entry.link_name()?) {
                links.extend(relative(parent, &to).map(|to| (path.clone(), to)));
            }
        } else if kind.is_hard_link() {
            let to = entry.link_name()?;
            links.extend(to.and_then(|to| inside(&to)).map(|to| (path.clone(), to)));
        }
    }
    for (path, to) in links {
        let (target, to) = (root.join(path), root.join(to));
        if fs_err::metadata(&to).is_ok_and(|found| found.is_file()) && !target.exists() {
            if let Some(parent) = target.parent() {
                fs_err::create_dir_all(parent)?;
            }
            fs_err::hard_link(to, target)?;
        }
    }
    Ok(())
}

/// The path without its first component; `None` for the directory itself and for what would lead out.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut components = path.components().filter(|part| *part != Component::CurDir);
    let _directory = components.next()?;
    let rest: PathBuf = components
        .map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect::<Option<_>>()?;
    (!rest.as_os_str().is_empty()).then_some(rest)
}

/// Where a link in `parent` leads, if it stays within the directory.
fn relative(parent: &Path, to: &Path) -> Option<PathBuf> {
    let mut path = parent.to_owned();
    for part in to.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o600);
            match content.strip_prefix("-> ") {
                Some(to) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    builder.append_link(&mut header, path, to).expect("link");
                }
                None => {
                    header.set_size(content.len() as u64);
                    // `append_data` refuses what leads out; a hostile archive is written by hand.
                    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
                    header.set_cksum();
                    builder.append(&header, content.as_bytes()).expect("file");
                }
            }
        }
        builder.into_inner().expect("archive")
    }

    fn read(path: &Path) -> String {
        fs_err::read_to_string(path).unwrap_or_else(|error| error.kind().to_string())
    }

    #[test]
    fn both_releases_serve_the_assets_of_both_without_a_second_copy() {
        let state = tempfile::tempdir().expect("directory");
        let assets = Assets::of(state.path(), "shop", "web");
        let (old, new) = (RolloutNumber(1), RolloutNumber(2));
        let first = archive(&[("public/a-1.js", "a1"), ("public/manifest", "m1")]);
        assets.unpack(old, &first[..]).expect("unpacked");
        assets.unite(old, None, false).expect("united");
        let second = archive(&[("public/css/b-2.css", "b2"), ("public/manifest", "m2")]);
        assets.unpack(new, &second[..]).expect("unpacked");
        for _ in 0..2 {
            assets.unite(new, Some(old), false).expect("united, also again");
        }
        for (rollout, manifest) in [(old, "m1"), (new, "m2")] {
            let volume = assets.volume(rollout);
            assert_eq!(read(&volume.join("a-1.js")), "a1");
            assert_eq!(read(&volume.join("css/b-2.css")), "b2");
            assert_eq!(read(&volume.join("manifest")), manifest);
        }
        let inode = |rollout| {
            fs_err::metadata(assets.volume(rollout).join("a-1.js"))
                .expect("there")
                .ino()
        };
        assert_eq!(inode(old), inode(new));

        prune(state.path(), "shop", &["2".to_owned()]).expect("pruned");
        assert!(!assets.complete(old) && assets.complete(new));
        assert_eq!(
            read(&assets.volume(new).join("a-1.js")),
            "a1",
            "a link outlives the other"
        );
    }

    #[test]
    fn an_archive_cannot_write_outside_and_links_within_are_followed() {
        let state = tempfile::tempdir().expect("directory");
        let assets = Assets::of(state.path(), "shop", "web");
        let hostile = archive(&[
            ("public/real.js", "real"),
            ("public/alias.js", "-> real.js"),
            ("public/out", "-> /etc"),
            ("public/out/passwd", "not there"),
            ("public/../../../../evil", "evil"),
        ]);
        assets.unpack(RolloutNumber(1), &hostile[..]).expect("unpacked");
        assets.unite(RolloutNumber(1), None, false).expect("united");
        let volume = assets.volume(RolloutNumber(1));
        assert_eq!(read(&volume.join("alias.js")), "real");
        assert_eq!(
            read(&volume.join("out/passwd")),
            "not there",
            "a directory, not a link"
        );
        assert!(!state.path().join("evil").exists());
    }
}
