//! First-boot instructions: `#cloud-config` user-data, or one line for a root shell.
//!
//! SSH is reachable before our program runs (hardening list §5.3), so keys and the password policy are given to cloud-init itself.
//! The download is verified before it is run; nothing secret goes into user-data, which every process of the host can read.

use std::fmt::Write as _;

use crate::key::PublicKey;

/// Where the program comes from, and what its bytes must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    url: String,
    sha256: String,
}

/// Why a download is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownloadError {
    /// Not an address curl should be given.
    #[error("{0:?} is not an http or https URL without blanks and quotes")]
    Url(String),
    /// Not a checksum.
    #[error("{0:?} is not a SHA-256 checksum: expected 64 hexadecimal digits, as `sha256sum` prints them")]
    Sha256(String),
}

impl Download {
    /// A download that is safe to stand in a shell line.
    ///
    /// # Errors
    /// When either is not what it should be.
    pub fn new(url: &str, sha256: &str) -> Result<Self, DownloadError> {
        let address = url
            .strip_prefix("https://")
            .or_else(|| url.strip_prefix("http://"));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:/?#[]@%=+,".contains(c);
        if !address.is_some_and(|rest| !rest.is_empty() && rest.chars().all(plain)) {
            return Err(DownloadError::Url(url.to_owned()));
        }
        let digits = sha256.trim();
        if digits.len() != 64 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(DownloadError::Sha256(sha256.to_owned()));
        }
        Ok(Self {
            url: url.to_owned(),
            sha256: digits.to_ascii_lowercase(),
        })
    }
}

/// Who may do what from the first moment on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// Administrators.
    pub admin: Vec<PublicKey>,
    /// Developers.
    pub deploy: Vec<PublicKey>,
}

impl Keys {
    fn arguments(&self) -> String {
        let mut text = String::new();
        for (option, keys) in [("--admin-key", &self.admin), ("--deploy-key", &self.deploy)] {
            for key in keys {
                write!(text, " {option} {}", quoted(&key.line())).expect("writing to a String cannot fail");
            }
        }
        text
    }
}

/// `'…'` for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Fetch, verify, put in place.
///
/// The file only gets its name once the checksum fits: a broken download leaves nothing that could be run.
fn fetch(download: &Download) -> Vec<String> {
    const NEW: &str = "/usr/local/bin/.appliance.download";
    vec![
        format!(
            "curl --fail --silent --show-error --location --retry 5 --output {NEW} {}",
            quoted(&download.url)
        ),
        format!("echo '{}  {NEW}' | sha256sum --check --quiet -", download.sha256),
        format!("chmod 0755 {NEW}"),
        format!("mv {NEW} /usr/local/bin/appliance"),
    ]
}

/// One line for a root shell; stops at the first thing that fails.
pub fn one_liner(download: &Download, keys: &Keys) -> String {
    let mut words = fetch(download);
    words.push(format!("appliance bootstrap{}", keys.arguments()));
    words.join(" && ")
}

/// `#cloud-config` user-data.
///
/// The script is a file, so that a failure stops it and cloud-init reports the error.
/// It can be run again by hand.
pub fn user_data(download: &Download, keys: &Keys) -> String {
    let mut text = String::from("#cloud-config\nssh_pwauth: false\ndisable_root: false\n");
    if !keys.admin.is_empty() {
        text.push_str(
            "users:\n  - default\n  - name: root\n    lock_passwd: true\n    ssh_authorized_keys:\n",
        );
        for key in &keys.admin {
            writeln!(text, "      - {}", yaml(&key.line())).expect("writing to a String cannot fail");
        }
    }
    text.push_str("packages:\n  - ca-certificates\n  - curl\n");
    text.push_str("write_files:\n  - path: /usr/local/sbin/appliance-first-boot\n    permissions: \"0700\"\n    content: |\n      #!/bin/sh\n      set -eu\n");
    for line in fetch(download) {
        writeln!(text, "      {line}").expect("writing to a String cannot fail");
    }
    writeln!(
        text,
        "      /usr/local/bin/appliance bootstrap{}",
        keys.arguments()
    )
    .expect("writing to a String cannot fail");
    text.push_str("runcmd:\n  - [/usr/local/sbin/appliance-first-boot]\n");
    text
}

/// A double-quoted YAML scalar, which JSON's strings are.
fn yaml(text: &str) -> String {
    serde_json::to_string(text).expect("a text always serialises")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn keys() -> Keys {
        let line =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk6wrqCgWWQfTaIv1CZo6bOw1tQ8kEBdNqUe2Ii3cMf it's ann: #1";
        Keys {
            admin: vec![line.parse().expect("key")],
            deploy: Vec::new(),
        }
    }

    #[test]
    fn what_could_end_a_shell_word_is_refused_or_quoted() {
        for url in [
            "ftp://x/y",
            "https://",
            "https://x/'; rm",
            "https://x/ y",
            "https://x/$(id)",
            "https://x/`id`",
        ] {
            assert!(
                matches!(Download::new(url, SHA), Err(DownloadError::Url(_))),
                "{url}"
            );
        }
        assert!(matches!(
            Download::new("https://x/y", "abc"),
            Err(DownloadError::Sha256(_))
        ));
        let line = one_liner(&Download::new("https://x/y", SHA).expect("fine"), &keys());
        assert!(line.contains("--admin-key 'ssh-ed25519 AAAA"), "{line}");
        assert!(line.contains("it'\\''s ann: #1'"), "{line}");
    }

    #[test]
    fn the_checksum_stands_between_the_download_and_its_name() {
        let line = one_liner(
            &Download::new("https://x/y", &SHA.to_uppercase()).expect("fine"),
            &keys(),
        );
        let place = |word: &str| line.find(word).unwrap_or_else(|| panic!("{word} in {line}"));
        assert!(
            place("curl ") < place(SHA)
                && place(SHA) < place("mv ")
                && place("mv ") < place("appliance bootstrap")
        );
    }

    #[test]
    fn user_data_begins_as_cloud_init_needs_it_and_quotes_keys() {
        let text = user_data(&Download::new("https://x/y", SHA).expect("fine"), &keys());
        assert!(text.starts_with("#cloud-config\n"));
        assert!(text.contains("- \"ssh-ed25519 AAAA"), "{text}");
        assert!(text.contains("set -eu"), "{text}");
    }
}
