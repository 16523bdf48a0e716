//! The SSH doors: which keys sshd lets through to `appliance receive`, and which have a shell as root.
//!
//! A key that may sign must also reach the agent, and one that may not must not.
//! The deploy user's `authorized_keys` gets a line with a forced command for each enrolled key; other lines stay.
//! Root's file is bootstrap's to fill; a key that is removed loses its line there too, if we wrote it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use appliance_bootstrap::PublicKey;
use appliance_bootstrap::authorized_keys::{
    Removal, has_door, marked, receive_line, with_lines, without_key,
};

/// The user developers come in as.
const USER: &str = "deploy";

/// Lets a key through.
///
/// # Errors
/// When the file cannot be read or written, or the deploy user is missing.
pub fn open(key: &str) -> anyhow::Result<()> {
    let key: PublicKey = key.parse().context("the key")?;
    let file = File::of(USER)?;
    // One that host.yml lets through from some networks only stays as it is.
    if has_door(&file.text, &key) {
        return Ok(());
    }
    match with_lines(&file.text, &[marked(&receive_line(&key), false)]) {
        Some(edited) => file.replace(&edited.text),
        None => Ok(()),
    }
}

/// Lets a key through no more, neither to us nor as root; what an administrator should know, in sentences.
///
/// # Errors
/// When a file cannot be read or written, or the deploy user is missing.
pub fn close(key: &str) -> anyhow::Result<Vec<String>> {
    let key: PublicKey = key.parse().context("the key")?;
    let mut told = Vec::new();
    for user in [USER, "root"] {
        let file = File::of(user)?;
        let path = file.path.display();
        match without_key(&file.text, &key) {
            Removal::Absent => {}
            Removal::Removed { text, other } => {
                file.replace(&text)?;
                if user == "root" {
                    told.push("its shell as root is closed too".to_owned());
                }
                if other {
                    told.push(format!(
                        "{path} still holds it in a line that is not ours, and gives a shell as {user}: take that line out"
                    ));
                }
            }
            Removal::Other => told.push(format!(
                "{path} still holds it in a line that is not ours, and gives a shell as {user}: take that line out"
            )),
            Removal::Last => told.push(format!(
                "it is the only key in {path} and still gives a shell as {user}: add another, then take that line out"
            )),
        }
    }
    let host_yml = fs_err::read_to_string(appliance_config::host::PATH).unwrap_or_default();
    if host_yml.contains(&key.base64()) {
        told.push(format!(
            "{} still names it, and the next `appliance host apply` opens its doors again: take it out there",
            appliance_config::host::PATH
        ));
    }
    Ok(told)
}

/// A user's `authorized_keys`.
struct File {
    path: PathBuf,
    text: String,
    user: nix::unistd::User,
}

impl File {
    fn of(name: &str) -> anyhow::Result<Self> {
        let user = nix::unistd::User::from_name(name)
            .with_context(|| format!("cannot look up the user {name}"))?
            .with_context(|| format!("there is no user {name}; run `appliance bootstrap`"))?;
        let path = user.dir.join(".ssh/authorized_keys");
        let text = match fs_err::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { path, text, user })
    }

    /// sshd reads the file as the user, and refuses one that somebody else owns.
    fn replace(&self, text: &str) -> anyhow::Result<()> {
        let directory: &Path = self.path.parent().context("the file has a directory")?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        std::os::unix::fs::fchown(
            file.as_file(),
            Some(self.user.uid.as_raw()),
            Some(self.user.gid.as_raw()),
        )?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }
}
