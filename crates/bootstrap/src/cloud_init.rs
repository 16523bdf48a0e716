//! First-boot instructions: `#cloud-config` user-data, or one line for a root shell.
//!
//! ```text
//!  network stage   keys, no passwords, host.yml, the script            cloud-init itself
//!  final stage     scripts-per-boot ─► fetch ─► checksum ─► signature ─► bootstrap ─► marker
//!  later boots     scripts-per-boot ─► marker fits ─► nothing          cut off before it ─► goes on
//! ```
//!
//! SSH is reachable before our program runs (hardening list §5.3), so keys and the password policy are given to cloud-init itself.
//! The script is one of `scripts/per-boot` rather than of `runcmd`: cloud-init marks `runcmd` as done before it ran it, so a
//! first boot that was cut off would never be finished.
//! The download is verified before it gets its name; nothing secret goes into user-data, which every process of the host can read.

use std::fmt::Write as _;

use crate::key::PublicKey;

/// The SSHSIG namespace of released binaries; a signature for another purpose never counts for them.
pub const NAMESPACE: &str = "appliance-release";

/// Where the script lies on the host; cloud-init runs what is there at every boot, in its final stage.
pub const SCRIPT: &str = "/var/lib/cloud/scripts/per-boot/appliance-first-boot";

/// The digest of the script that went through, so that it does its work once, and again for other instructions.
const MARKER: &str = "/var/lib/appliance/bootstrap/first-boot";

/// The program under the name it only gets once it is verified.
const PROGRAM: &str = "/usr/local/bin/appliance";

/// Where the program comes from, and what its bytes must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    url: String,
    sha256: String,
    signature: Option<Signature>,
    architecture: Option<Architecture>,
}

/// Which processors a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Intel and AMD.
    X86,
    /// ARM, 64 bits.
    Arm,
}

impl Architecture {
    /// As `uname -m` and Rust say: `x86_64`, `aarch64`.
    pub fn word(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "aarch64",
        }
    }

    /// From that word; `None` for processors there is no program for.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::X86, Self::Arm].into_iter().find(|one| one.word() == word)
    }
}

/// Who signed the program, and where the signature is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Signature {
    url: String,
    key: PublicKey,
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
        let digits = sha256.trim();
        if digits.len() != 64 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(DownloadError::Sha256(sha256.to_owned()));
        }
        Ok(Self {
            url: address(url)?,
            sha256: digits.to_ascii_lowercase(),
            signature: None,
            architecture: None,
        })
    }

    /// The same, and only on such a server: another would find out when it runs the program.
    #[must_use]
    pub fn only_on(self, architecture: Architecture) -> Self {
        Self {
            architecture: Some(architecture),
            ..self
        }
    }

    /// The same, and only if the SSHSIG at `url` is one of `key` over its bytes.
    ///
    /// # Errors
    /// When the address is not one.
    pub fn signed(self, url: &str, key: PublicKey) -> Result<Self, DownloadError> {
        Ok(Self {
            signature: Some(Signature {
                url: address(url)?,
                key,
            }),
            ..self
        })
    }
}

fn address(url: &str) -> Result<String, DownloadError> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:/?#[]@%=+,".contains(c);
    if !rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(plain)) {
        return Err(DownloadError::Url(url.to_owned()));
    }
    Ok(url.to_owned())
}

/// Who may do what from the first moment on, and what the host should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirstBoot {
    /// Administrators.
    pub admin: Vec<PublicKey>,
    /// Developers.
    pub deploy: Vec<PublicKey>,
    /// The text of `host.yml`, checked by whoever gives it.
    pub host_yml: Option<String>,
    /// Accept a container as the host, for tests and sandboxes.
    pub allow_container: bool,
}

impl FirstBoot {
    fn arguments(&self) -> String {
        let mut text = String::new();
        for (option, keys) in [("--admin-key", &self.admin), ("--deploy-key", &self.deploy)] {
            for key in keys {
                write!(text, " {option} {}", quoted(&key.line())).expect("writing to a String cannot fail");
            }
        }
        if self.allow_container {
            text.push_str(" --allow-container");
        }
        text
    }
}

/// `'…'` for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A text of several lines as the format of `printf`, on one.
fn on_one_line(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('%', "%%");
    escaped.replace('\n', "\\n")
}

/// The name of the file until it is verified.
const NEW: &str = "/usr/local/bin/.appliance.download";

/// Fetch, verify, put in place; each line is a command that must succeed.
///
/// The file only gets its name once checksum and signature fit: a broken download leaves nothing that could be run.
fn fetch(download: &Download) -> Vec<String> {
    let curl = |url: &str, to: &str| {
        format!(
            "curl --fail --silent --show-error --location --connect-timeout 20 --speed-limit 1000 --speed-time 60 --max-time 1800 --retry 5 --output {to} {}",
            quoted(url)
        )
    };
    let mut commands = Vec::new();
    if let Some(architecture) = download.architecture {
        let word = architecture.word();
        commands.push(format!(
            "[ \"$(uname -m)\" = {word} ] || {{ echo \"this program is for {word}, and the server is $(uname -m): print this anew, with --arch $(uname -m)\" >&2; exit 1; }}"
        ));
    }
    commands.push(curl(&download.url, NEW));
    commands.push(format!(
        "echo '{}  {NEW}' | sha256sum --check --quiet -",
        download.sha256
    ));
    if let Some(signature) = &download.signature {
        let allowed = format!("release namespaces=\"{NAMESPACE}\" {}", bare(&signature.key));
        commands.push(curl(&signature.url, &format!("{NEW}.sig")));
        commands.push(format!("echo {} > {NEW}.key", quoted(&allowed)));
        commands.push(format!(
            "ssh-keygen -Y verify -f {NEW}.key -I release -n {NAMESPACE} -s {NEW}.sig < {NEW}"
        ));
    }
    if let Some(signature) = &download.signature {
        // Updates have to be signed by the same.
        commands.push("install -d /etc/appliance".to_owned());
        commands.push(format!(
            "echo {} > /etc/appliance/release.pub",
            quoted(&bare(&signature.key))
        ));
    }
    commands.push(format!("chmod 0755 {NEW}"));
    commands.push(format!("mv {NEW} {PROGRAM}"));
    commands
}

/// Type and key, without the comment.
fn bare(key: &PublicKey) -> String {
    let line = key.line();
    line.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// What the line needs and a minimal server has not.
fn tools() -> String {
    "{ { command -v curl && command -v ssh-keygen && [ -s /etc/ssl/certs/ca-certificates.crt ]; } >/dev/null || { \
     apt-get -qq -o Acquire::Retries=5 update && DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
     -o Acquire::Retries=5 install --yes --no-install-recommends ca-certificates curl openssh-client; }; }"
        .to_owned()
}

/// One line for a root shell; stops at the first thing that fails, and leaves no half of a download.
pub fn one_liner(download: &Download, boot: &FirstBoot) -> String {
    let mut words = vec![format!("trap 'rm -f {NEW} {NEW}.sig {NEW}.key' EXIT")];
    let mut commands = fetch(download);
    // Before anything else only what refuses the server.
    let first = usize::from(download.architecture.is_some());
    commands.insert(first, tools());
    words.extend(commands);
    if let Some(text) = &boot.host_yml {
        words.push("install -d /etc/appliance".to_owned());
        words.push(format!(
            // What begins with a dash, as much YAML does, would be taken for an option.
            "printf -- {} > /etc/appliance/host.yml",
            quoted(&on_one_line(text))
        ));
    }
    words.push(format!("appliance bootstrap{}", boot.arguments()));
    // A shell of its own, which may end and clean up without ending the one it was pasted into.
    format!("( {} )", words.join(" && "))
}

/// The script that user-data leaves on the host.
fn script(download: &Download, boot: &FirstBoot) -> String {
    let mut text = format!(
        "#!/bin/sh\n\
         # Written by `appliance cloud-init`. Run again, by the next boot or by hand, it goes on where it stopped.\n\
         set -eu\n\
         self=$(sha256sum < \"$0\")\n\
         if [ \"$(cat {MARKER} 2>/dev/null)\" = \"$self\" ]; then exit 0; fi\n\
         trap 'rm -f {NEW} {NEW}.sig {NEW}.key' EXIT\n\
         # What is there was verified when it came; updates since then stay.\n\
         if ! [ -x {PROGRAM} ]; then\n\
         \x20 if ! command -v curl >/dev/null || ! command -v ssh-keygen >/dev/null || ! [ -s /etc/ssl/certs/ca-certificates.crt ]; then\n\
         \x20   export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1\n\
         \x20   # apt waits for dpkg's lock by itself, and not for that of the lists: the daily timers run at the same time.\n\
         \x20   tries=60\n\
         \x20   until apt-get -qq -o Acquire::Retries=5 update; do\n\
         \x20     tries=$((tries - 1)); [ \"$tries\" -gt 0 ] || exit 1; sleep 5\n\
         \x20   done\n\
         \x20   apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=5 install --yes --no-install-recommends ca-certificates curl openssh-client\n\
         \x20 fi\n"
    );
    for line in fetch(download) {
        writeln!(text, "  {line}").expect("writing to a String cannot fail");
    }
    writeln!(
        text,
        "fi\n{PROGRAM} bootstrap{}\necho \"$self\" > {MARKER}",
        boot.arguments()
    )
    .expect("writing to a String cannot fail");
    text
}

/// `#cloud-config` user-data.
///
/// The script's failure is cloud-init's: `cloud-init status` shows `error`, and `/var/log/cloud-init-output.log` says why.
pub fn user_data(download: &Download, boot: &FirstBoot) -> String {
    let mut text = String::from("#cloud-config\nssh_pwauth: false\ndisable_root: false\n");
    if !boot.admin.is_empty() {
        text.push_str(
            "users:\n  - default\n  - name: root\n    lock_passwd: true\n    ssh_authorized_keys:\n",
        );
        for key in &boot.admin {
            writeln!(text, "      - {}", yaml(&key.line())).expect("writing to a String cannot fail");
        }
    }
    text.push_str("write_files:\n");
    let mut file = |path: &str, mode: &str, content: &str| {
        writeln!(
            text,
            "  - path: {path}\n    permissions: \"{mode}\"\n    content: {}",
            yaml(content)
        )
        .expect("writing to a String cannot fail");
    };
    if let Some(host_yml) = &boot.host_yml {
        file("/etc/appliance/host.yml", "0644", host_yml);
    }
    file(SCRIPT, "0700", &script(download, boot));
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

    fn key() -> PublicKey {
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk6wrqCgWWQfTaIv1CZo6bOw1tQ8kEBdNqUe2Ii3cMf it's ann: #1"
            .parse()
            .expect("key")
    }

    fn boot() -> FirstBoot {
        FirstBoot {
            admin: vec![key()],
            ..FirstBoot::default()
        }
    }

    fn signed() -> Download {
        Download::new("https://x/y", &SHA.to_uppercase())
            .expect("fine")
            .signed("https://x/y.sig", key())
            .expect("fine")
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
            let refused = Err(DownloadError::Url(url.to_owned()));
            assert_eq!(Download::new(url, SHA), refused, "{url}");
            let download = Download::new("https://x/y", SHA).expect("fine");
            assert_eq!(download.signed(url, key()), refused, "{url}");
        }
        assert!(matches!(
            Download::new("https://x/y", "abc"),
            Err(DownloadError::Sha256(_))
        ));
        let line = one_liner(&signed(), &boot());
        assert!(line.contains("--admin-key 'ssh-ed25519 AAAA"), "{line}");
        assert!(line.contains("it'\\''s ann: #1'"), "{line}");
    }

    #[test]
    fn a_server_of_another_architecture_is_refused_before_the_download() {
        let run = |architecture| {
            let download = signed().only_on(architecture);
            let line = one_liner(&download, &boot());
            // Everything after the check would have to go to the network.
            let (check, rest) = line.split_once(" && { { command -v curl").expect("a download");
            assert!(check.contains("uname -m") && !rest.contains("uname -m"), "{line}");
            let script = format!("{check} && echo fetched )");
            let output = std::process::Command::new("sh")
                .args(["-c", &script])
                .output()
                .expect("sh runs");
            (
                output.status.success(),
                String::from_utf8_lossy(&output.stdout).into_owned(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        };
        let own = Architecture::parse(std::env::consts::ARCH).expect("a server's processor");
        assert_eq!(run(own), (true, "fetched\n".to_owned(), String::new()));
        let other = match own {
            Architecture::X86 => Architecture::Arm,
            Architecture::Arm => Architecture::X86,
        };
        let (fine, stdout, stderr) = run(other);
        assert!(!fine && stdout.is_empty(), "{stdout}");
        assert!(stderr.contains(&format!("--arch {}", own.word())), "{stderr}");
    }

    #[test]
    fn the_line_is_one_line_and_carries_the_settings_unharmed() {
        let text = "---\ntimezone: \"Europe/Berlin\"\n# it's 100%: \\n\n";
        let mut boot = boot();
        boot.host_yml = Some(text.to_owned());
        let line = one_liner(&signed(), &boot);
        assert_eq!(line.lines().count(), 1, "{line}");
        let (_, rest) = line.split_once("&& printf ").expect("settings");
        let (word, _) = rest.split_once(" > /etc/appliance/host.yml").expect("their file");
        let printed = std::process::Command::new("sh")
            .args(["-c", &format!("printf {word}")])
            .output()
            .expect("sh runs");
        assert_eq!(String::from_utf8_lossy(&printed.stdout), text);
    }

    #[test]
    fn a_download_that_stalls_ends() {
        let line = one_liner(&signed(), &boot());
        assert!(
            line.contains("--speed-limit 1000 --speed-time 60 --max-time 1800"),
            "{line}"
        );
    }

    #[test]
    fn checksum_and_signature_stand_between_the_download_and_its_name() {
        let line = one_liner(&signed(), &boot());
        let place = |word: &str| line.find(word).unwrap_or_else(|| panic!("{word} in {line}"));
        let order = [
            "curl ",
            SHA,
            "ssh-keygen -Y verify",
            "mv /usr/local/bin/.appliance.download",
            "appliance bootstrap",
        ];
        assert!(order.map(place).is_sorted(), "{line}");
        assert!(
            line.contains("release namespaces=\"appliance-release\" ssh-ed25519 AAAA"),
            "{line}"
        );
    }

    #[test]
    fn user_data_carries_keys_settings_and_the_script_through_yaml_unharmed() {
        let mut boot = boot();
        boot.host_yml = Some("timezone: \"Europe/Berlin\"\n# it's: #1\n".to_owned());
        let text = user_data(&signed(), &boot);
        assert!(text.starts_with("#cloud-config\n"));
        let content = |path: &str| -> String {
            let (_, after) = text.split_once(path).expect("the file is there");
            let (_, after) = after.split_once("content: ").expect("it has a content");
            serde_json::from_str(after.lines().next().expect("a line")).expect("a JSON string")
        };
        assert_eq!(Some(content("/etc/appliance/host.yml")), boot.host_yml);
        let script = content(SCRIPT);
        assert!(
            script.starts_with("#!/bin/sh\n") && script.contains("\nset -eu\n"),
            "{script}"
        );
        assert!(text.contains("- \"ssh-ed25519 AAAA"), "{text}");
        assert!(!text.contains("runcmd"), "{text}");
    }
}
