//! The SSH door: which keys sshd lets through to `appliance receive`.
//!
//! A key that may sign must also reach the agent, and one that may not must not.
//! The deploy user's `authorized_keys` gets a line with a forced command for each enrolled key; other lines stay.

use std::path::PathBuf;

use anyhow::Context as _;
use appliance_bootstrap::PublicKey;
use appliance_bootstrap::authorized_keys::{receive_line, with_lines, without_key};

/// The user developers come in as.
const USER: &str = "deploy";

/// Lets a key through.
///
/// # Errors
/// When the file cannot be read or written, or the deploy user is missing.
pub fn open(key: &str) -> anyhow::Result<()> {
    let key: PublicKey = key.parse().context("the key")?;
    edit(|text| with_lines(text, &[receive_line(&key)]))
}

/// Lets a key through no more.
///
/// # Errors
/// When the file cannot be read or written, or the deploy user is missing.
pub fn close(key: &str) -> anyhow::Result<()> {
    let key: PublicKey = key.parse().context("the key")?;
    edit(|text| without_key(text, &key))
}

fn edit(change: impl FnOnce(&str) -> Option<String>) -> anyhow::Result<()> {
    let user = nix::unistd::User::from_name(USER)
        .with_context(|| format!("cannot look up the user {USER}"))?
        .with_context(|| format!("there is no user {USER}; run `appliance bootstrap`"))?;
    let path: PathBuf = user.dir.join(".ssh/authorized_keys");
    let text = match fs_err::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.into()),
    };
    let Some(text) = change(&text) else {
        return Ok(());
    };
    // sshd reads the file as the user, and refuses one that somebody else owns.
    let directory = path.parent().context("the file has a directory")?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    std::os::unix::fs::fchown(file.as_file(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
}
