//! `known_hosts`: whether a host's key is the one we know (`sshd(8)`, SSH_KNOWN_HOSTS FILE FORMAT).
//!
//! Plain, `[host]:port`, wildcard, negated and hashed names are read, and `@revoked` lines;
//! `@cert-authority` lines are passed over, because we do not ask hosts for certificates.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use russh::keys::ssh_key::{Algorithm, PublicKey};

use super::SshError;
use super::config::wildcard;

/// One line that names the host.
#[derive(Debug, Clone)]
pub(super) struct KnownKey {
    pub(super) key: PublicKey,
    pub(super) revoked: bool,
    pub(super) file: PathBuf,
    pub(super) line: usize,
}

/// What the files say about a key that a host showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the one.
    Known,
    /// Nothing is known about this host.
    Unknown,
    /// Another key is known.
    Changed {
        file: PathBuf,
        line: usize,
        known: String,
    },
    /// This key is marked as stolen.
    Revoked { file: PathBuf, line: usize },
}

/// The name a host has in these files: `host`, or `[host]:port` for other ports than 22.
pub(super) fn name(host: &str, port: u16) -> String {
    if port == 22 {
        host.to_ascii_lowercase()
    } else {
        format!("[{}]:{port}", host.to_ascii_lowercase())
    }
}

/// Every key that the files hold for this name.
pub(super) fn lookup(files: &[PathBuf], name: &str) -> Result<Vec<KnownKey>, SshError> {
    let mut found = Vec::new();
    for file in files {
        let text = match std::fs::read(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(|source| SshError::ReadFile {
                path: file.clone(),
                source,
            })?,
        };
        for (index, line) in String::from_utf8_lossy(&text).lines().enumerate() {
            let mut fields = line.split_ascii_whitespace().peekable();
            let marker = fields.next_if(|field| field.starts_with('@'));
            let (Some(hosts), Some(kind), Some(key)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            if hosts.starts_with('#') || marker == Some("@cert-authority") || !matches(hosts, name) {
                continue;
            }
            // Lines we cannot read, such as keys of other types, say nothing; OpenSSH does the same.
            let Ok(key) = PublicKey::from_openssh(&format!("{kind} {key}")) else {
                continue;
            };
            found.push(KnownKey {
                key,
                revoked: marker == Some("@revoked"),
                file: file.clone(),
                line: index + 1,
            });
        }
    }
    Ok(found)
}

fn matches(hosts: &str, name: &str) -> bool {
    if let Some(hashed) = hosts.strip_prefix("|1|") {
        let Some((salt, hash)) = hashed.split_once('|') else {
            return false;
        };
        let (Ok(salt), Ok(hash)) = (BASE64.decode(salt), BASE64.decode(hash)) else {
            return false;
        };
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
        return hmac::verify(&key, name.as_bytes(), &hash).is_ok();
    }
    let mut one = false;
    for pattern in hosts.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if wildcard(pattern, name) => return false,
            Some(_) => {}
            None => one |= wildcard(pattern, name),
        }
    }
    one
}

/// Compares the key a host showed with the known ones.
///
/// A host that is known only by keys of other types counts as changed: accepting a new type on sight would let
/// somebody in the middle choose one.
pub(super) fn judge(known: &[KnownKey], shown: &PublicKey) -> Verdict {
    let same = |entry: &&KnownKey| entry.key.key_data() == shown.key_data();
    if let Some(entry) = known.iter().find(|entry| entry.revoked && same(entry)) {
        return Verdict::Revoked {
            file: entry.file.clone(),
            line: entry.line,
        };
    }
    let valid: Vec<&KnownKey> = known.iter().filter(|entry| !entry.revoked).collect();
    if valid.iter().any(same) {
        return Verdict::Known;
    }
    match valid.first() {
        None => Verdict::Unknown,
        Some(entry) => Verdict::Changed {
            file: entry.file.clone(),
            line: entry.line,
            known: format!(
                "{} {}",
                entry.key.algorithm(),
                entry.key.fingerprint(Default::default())
            ),
        },
    }
}

/// The host key types to ask for, those we know a key of first.
pub(super) fn preferred(known: &[KnownKey], supported: &[Algorithm]) -> Vec<Algorithm> {
    let is_known = |algorithm: &&Algorithm| known.iter().any(|entry| entry.key.algorithm() == **algorithm);
    let mut order: Vec<Algorithm> = supported.iter().filter(is_known).cloned().collect();
    order.extend(supported.iter().filter(|algorithm| !is_known(algorithm)).cloned());
    order
}

/// Adds a host's key.
pub(super) fn learn(file: &Path, name: &str, key: &PublicKey) -> Result<(), SshError> {
    let failed = |source| SshError::WriteFile {
        path: file.to_owned(),
        source,
    };
    if let Some(directory) = file.parent() {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
    }
    let mut opened = std::fs::OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(file)
        .map_err(failed)?;
    let mut line = String::new();
    if opened.seek(SeekFrom::End(-1)).is_ok() {
        let mut last = [0];
        opened.read_exact(&mut last).map_err(failed)?;
        if last[0] != b'\n' {
            line.push('\n');
        }
    }
    let mut key = key.clone();
    key.set_comment("");
    line.push_str(&format!("{name} {}\n", key.to_string().trim_end()));
    // One write of one line in append mode: two processes cannot mix their lines.
    opened.write_all(line.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G2sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X";

    fn key(line: &str) -> PublicKey {
        PublicKey::from_openssh(line).expect("a key")
    }

    fn verdict(text: &str, host: &str, port: u16, shown: &str) -> Verdict {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("known_hosts");
        std::fs::File::create(&file)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .expect("written");
        judge(&lookup(&[file], &name(host, port)).expect("reads"), &key(shown))
    }

    #[test]
    fn plain_ported_and_wildcard_names() {
        let text =
            format!("# comment\nhost,192.0.2.1 {A}\n[host]:2222 {B}\n*.example.com,!x.example.com {A}\n");
        assert_eq!(verdict(&text, "HOST", 22, A), Verdict::Known);
        assert_eq!(verdict(&text, "192.0.2.1", 22, A), Verdict::Known);
        assert_eq!(verdict(&text, "host", 2222, B), Verdict::Known);
        assert!(matches!(
            verdict(&text, "host", 2222, A),
            Verdict::Changed { line: 3, .. }
        ));
        assert_eq!(verdict(&text, "host", 23, A), Verdict::Unknown);
        assert_eq!(verdict(&text, "a.example.com", 22, A), Verdict::Known);
        assert_eq!(verdict(&text, "x.example.com", 22, A), Verdict::Unknown);
    }

    #[test]
    fn names_hashed_by_ssh_keygen_are_found() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("known_hosts");
        learn(&file, &name("secret.example.com", 2222), &key(A)).expect("learnt");
        let hashed = std::process::Command::new("ssh-keygen")
            .arg("-H")
            .arg("-f")
            .arg(&file)
            .output()
            .expect("ssh-keygen");
        assert!(hashed.status.success(), "{hashed:?}");
        let text = std::fs::read_to_string(&file).expect("text");
        assert!(text.starts_with("|1|"), "{text}");
        assert_eq!(verdict(&text, "secret.example.com", 2222, A), Verdict::Known);
        assert_eq!(verdict(&text, "secret.example.com", 22, A), Verdict::Unknown);
    }

    #[test]
    fn a_revoked_key_is_refused_even_where_it_is_listed() {
        let text = format!("host {A}\n@revoked * {A}\n");
        assert!(matches!(
            verdict(&text, "host", 22, A),
            Verdict::Revoked { line: 2, .. }
        ));
    }

    #[test]
    fn a_key_of_another_type_than_the_known_one_counts_as_changed() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("key");
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ecdsa", "-N", "", "-f"])
            .arg(&file)
            .status()
            .expect("ssh-keygen");
        assert!(made.success());
        let other = std::fs::read_to_string(file.with_extension("pub")).expect("public key");
        let found = verdict(&format!("host {other}"), "host", 22, A);
        assert!(matches!(found, Verdict::Changed { line: 1, .. }), "{found:?}");
    }

    #[test]
    fn learning_ends_an_unfinished_line_and_ssh_keygen_finds_the_host() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("new/known_hosts");
        learn(&file, "one", &key(A)).expect("learnt");
        let text = std::fs::read_to_string(&file).expect("text");
        std::fs::File::create(&file)
            .and_then(|mut file| file.write_all(text.trim_end().as_bytes()))
            .expect("written");
        learn(&file, "two", &key(B)).expect("learnt");
        assert_eq!(
            std::fs::read_to_string(&file).expect("text"),
            format!("one {A}\ntwo {B}\n")
        );
        let found = std::process::Command::new("ssh-keygen")
            .args(["-F", "two", "-f"])
            .arg(&file)
            .output()
            .expect("runs");
        assert!(found.status.success(), "{found:?}");
    }
}
