//! Files and directories of an accessory on the host.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use appliance_push::change::{Accessory, MountedFile};
use base64::Engine as _;
use nix::unistd::{Gid, Group, Uid, User, chown};

use super::Opened;

/// Why a file or directory is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// It cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The change carries no content for it, or not as base64.
    #[error("the change carries no content for {0}; boot the accessory again")]
    Content(String),
    /// Not octal digits.
    #[error("{path}: {mode:?} is not a file mode (such as 644)")]
    Mode {
        /// Of what.
        path: String,
        /// What was given.
        mode: String,
    },
    /// Nobody of that name.
    #[error("{path}: this host knows no user or group {owner:?}; give numbers, such as 999:999")]
    Owner {
        /// Of what.
        path: String,
        /// What was given.
        owner: String,
    },
}

/// Writes the files and makes the directories of a definition below `directory`.
///
/// Each file is replaced whole, with its mode and owner from its first moment.
/// Answers with sentences about what was left alone.
///
/// # Errors
/// The first that cannot be written.
pub fn lay_out(directory: &Path, definition: &Accessory, opened: &Opened) -> Result<Vec<String>, FilesError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| FilesError::Write { path, source }
    };
    fs_err::create_dir_all(directory).map_err(failed(directory))?;
    // Processes in containers, which are not root, have to get through; what is above is for root alone.
    fs_err::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).map_err(failed(directory))?;
    for file in &definition.files {
        let path = directory.join(&file.host_path);
        let parent = path.parent().unwrap_or(directory);
        make_directories(directory, parent).map_err(failed(parent))?;
        let content = content(file, opened)?;
        let mode = mode(&file.host_path, &file.mode)?;
        let owner = owner(&file.host_path, file.owner.as_deref())?;
        let write = || -> std::io::Result<()> {
            let mut temporary = tempfile::NamedTempFile::new_in(parent)?;
            temporary.write_all(&content)?;
            let (user, group) = owner.unwrap_or((None, None));
            chown(temporary.path(), user, group)?;
            // After the owner: changing that clears bits.
            temporary
                .as_file()
                .set_permissions(std::fs::Permissions::from_mode(mode))?;
            temporary.as_file().sync_all()?;
            temporary.persist(&path)?;
            Ok(())
        };
        write().map_err(failed(&path))?;
    }
    let mut left = Vec::new();
    for wanted in &definition.directories {
        let mode = wanted
            .mode
            .as_deref()
            .map(|text| mode(&wanted.host_path, text))
            .transpose()?;
        let owner = owner(&wanted.host_path, wanted.owner.as_deref())?;
        if Path::new(&wanted.host_path).is_absolute() {
            // Docker makes it if it is missing; outside of our own directory the agent may write nothing.
            if mode.is_some() || owner.is_some() {
                left.push(format!(
                    "{} is outside of the appliance's own directory: its mode and owner are left as they are",
                    wanted.host_path
                ));
            }
            continue;
        }
        let path = directory.join(&wanted.host_path);
        make_directories(directory, &path).map_err(failed(&path))?;
        if let Some((user, group)) = owner {
            chown(&path, user, group)
                .map_err(std::io::Error::from)
                .map_err(failed(&path))?;
        }
        if let Some(mode) = mode {
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(failed(&path))?;
        }
    }
    Ok(left)
}

/// The files on disk that are not what was sent.
pub fn edited(directory: &Path, definition: &Accessory, opened: &Opened) -> Vec<String> {
    definition
        .files
        .iter()
        .filter(|file| {
            let Ok(wanted) = content(file, opened) else {
                return false;
            };
            fs_err::read(directory.join(&file.host_path)).map_or(true, |found| found != wanted)
        })
        .map(|file| format!("the file {} is not the one that was sent", file.container_path))
        .collect()
}

/// Makes the directories between `from` and `to` that are missing, open to read; those that are there keep their mode.
fn make_directories(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut path = from.to_owned();
    for part in to.strip_prefix(from).unwrap_or(Path::new("")).components() {
        path.push(part);
        match std::fs::create_dir(&path) {
            Ok(()) => fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn content(file: &MountedFile, opened: &Opened) -> Result<Vec<u8>, FilesError> {
    let none = || FilesError::Content(file.container_path.clone());
    let text = opened.get(&file.sealed_as).ok_or_else(none)?;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|_| none())
}

fn mode(path: &str, text: &str) -> Result<u32, FilesError> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| FilesError::Mode {
            path: path.to_owned(),
            mode: text.to_owned(),
        })
}

type Owner = (Option<Uid>, Option<Gid>);

fn owner(path: &str, text: Option<&str>) -> Result<Option<Owner>, FilesError> {
    let Some(text) = text else { return Ok(None) };
    let unknown = || FilesError::Owner {
        path: path.to_owned(),
        owner: text.to_owned(),
    };
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let user = match user.parse() {
        Ok(number) => Uid::from_raw(number),
        Err(_) => User::from_name(user).ok().flatten().ok_or_else(unknown)?.uid,
    };
    let group = match (group, group.parse()) {
        ("", _) => None,
        (_, Ok(number)) => Some(Gid::from_raw(number)),
        (name, Err(_)) => Some(Group::from_name(name).ok().flatten().ok_or_else(unknown)?.gid),
    };
    Ok(Some((Some(user), group)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(file: serde_json::Value, directory: serde_json::Value) -> Accessory {
        serde_json::from_value(serde_json::json!({
            "name": "db", "container": "shop-db", "host": "h", "image": "postgres:17", "network": "kamal",
            "restart": "unless-stopped", "sealed": "", "files": [file], "directories": [directory],
        }))
        .expect("a definition")
    }

    fn opened(text: &str) -> Opened {
        let content = base64::engine::general_purpose::STANDARD.encode(text);
        Opened([("=file/0".to_owned(), content)].into())
    }

    fn bits(path: &Path) -> u32 {
        fs_err::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn files_come_with_their_mode_and_are_replaced_whole() {
        let root = tempfile::tempdir().expect("directory");
        let directory = root.path().join("shop-db");
        let file = serde_json::json!({ "sealed_as": "=file/0", "host_path": "etc/app/x.conf", "container_path": "/etc/app/x.conf", "mode": "640" });
        let made = serde_json::json!({ "host_path": "data", "container_path": "/data", "mode": "0700" });
        let definition = definition(file, made);
        for text in ["first, and longer", "second"] {
            let left = lay_out(&directory, &definition, &opened(text)).expect("laid out");
            assert!(left.is_empty());
            assert_eq!(
                fs_err::read_to_string(directory.join("etc/app/x.conf")).expect("read"),
                text
            );
        }
        assert_eq!(bits(&directory.join("etc/app/x.conf")), 0o640);
        assert_eq!(bits(&directory.join("data")), 0o700);
        assert!(edited(&directory, &definition, &opened("second")).is_empty());
        fs_err::write(directory.join("etc/app/x.conf"), "by hand").expect("written");
        assert_eq!(
            edited(&directory, &definition, &opened("second")),
            ["the file /etc/app/x.conf is not the one that was sent"]
        );
    }

    #[test]
    fn a_mode_or_owner_that_is_none_is_refused_by_name() {
        let root = tempfile::tempdir().expect("directory");
        let made = serde_json::json!({ "host_path": "data", "container_path": "/data" });
        for (mode, owner, word) in [
            ("999", None, "999"),
            ("4755", None, "4755"),
            ("644", Some("nobody-here"), "nobody-here"),
        ] {
            let file = serde_json::json!({
                "sealed_as": "=file/0", "host_path": "x", "container_path": "/x", "mode": mode, "owner": owner,
            });
            let error =
                lay_out(root.path(), &definition(file, made.clone()), &opened("x")).expect_err("refused");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
