//! What git knows about who deploys.

use std::path::Path;
use std::process::Command;

/// Runs `git` in `directory` and returns its trimmed output when it succeeded.
fn git(directory: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .output()
        .ok()?;
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Who is at the keyboard, for people: git's e-mail address, else the login name (Kamal `KAMAL_PERFORMER`).
pub fn performer(directory: &Path) -> String {
    git(directory, &["config", "user.email"])
        .or_else(|| std::env::var("USER").ok())
        .unwrap_or_else(|| "unknown".to_owned())
}
