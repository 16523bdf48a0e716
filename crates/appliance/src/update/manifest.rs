//! What was published last: `release.json`, and beside it `release.json.sig` by the key of the releases.
//!
//! ```json
//! {
//!   "version": "0.2.0",
//!   "programs": {
//!     "x86_64":  { "url": "v0.2.0/appliance-x86_64",  "size": 41943040, "sha256": "…" },
//!     "aarch64": { "url": "v0.2.0/appliance-aarch64", "size": 40894464, "sha256": "…" }
//!   }
//! }
//! ```
//!
//! Addresses are relative to the manifest's own. Nothing of it is looked at before its signature was proved, which is of
//! a namespace of its own, so that no signed program can be taken for a manifest: `ssh-keygen -Y sign -n appliance-manifest`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::version::Version;

/// The SSHSIG namespace of manifests.
pub const NAMESPACE: &str = "appliance-manifest";

/// Its name, where an address names a place only.
const NAME: &str = "release.json";

/// Largest program, bytes.
const LARGEST: u64 = 1 << 30;

/// What was published last. Later versions may say more, which this one does not look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: String,
    programs: BTreeMap<String, Entry>,
}

/// A program for one kind of processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    url: String,
    size: u64,
    sha256: String,
}

/// The program to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    /// What it has to say it is.
    pub version: Version,
    /// Where it is.
    pub url: String,
    /// Bytes; what is longer is broken off.
    pub size: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

/// What an address leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A program itself, by the beginning of its name, with its signature beside it.
    Program,
    /// The manifest at this address.
    Manifest(String),
}

/// A place is where a manifest lies; a name that begins with `appliance` is a program's.
pub fn kind(address: &str) -> Kind {
    let path = address
        .split_once("://")
        .map_or(address, |(_, rest)| rest)
        .split_once('/')
        .map_or("", |(_, path)| path);
    let last = path.rsplit('/').next().unwrap_or_default();
    if last.starts_with("appliance") {
        Kind::Program
    } else if last.ends_with(".json") {
        Kind::Manifest(address.to_owned())
    } else {
        Kind::Manifest(format!("{}/{NAME}", address.trim_end_matches('/')))
    }
}

impl Manifest {
    /// From its bytes, whose signature was proved.
    ///
    /// # Errors
    /// When they are no manifest.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        serde_json::from_slice(bytes).context("it is signed, and no manifest that this version understands")
    }

    /// The version that it is about.
    ///
    /// # Errors
    /// When that is none.
    pub fn version(&self) -> anyhow::Result<Version> {
        self.version.parse()
    }

    /// The program for these processors, seen from the manifest's own address.
    ///
    /// # Errors
    /// When there is none, or what is said of it cannot be.
    pub fn pick(&self, own: &str, architecture: &str) -> anyhow::Result<Pick> {
        let version = self.version()?;
        let entry = self.programs.get(architecture).with_context(|| {
            let there: Vec<&str> = self.programs.keys().map(String::as_str).collect();
            format!(
                "there is no {version} for {architecture}, only for {}",
                there.join(", ")
            )
        })?;
        anyhow::ensure!(
            entry.sha256.len() == 64 && entry.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "the checksum for {architecture} is none"
        );
        anyhow::ensure!(
            (1..=LARGEST).contains(&entry.size),
            "a program of {} bytes is not taken",
            entry.size
        );
        Ok(Pick {
            version,
            url: beside(own, &entry.url),
            size: entry.size,
            sha256: entry.sha256.to_ascii_lowercase(),
        })
    }
}

/// An address as seen from another one.
fn beside(own: &str, url: &str) -> String {
    if url.contains("://") {
        return url.to_owned();
    }
    if let Some(path) = url.strip_prefix('/') {
        let (scheme, rest) = own.split_once("://").unwrap_or(("https", own));
        let host = rest.split('/').next().unwrap_or_default();
        return format!("{scheme}://{host}/{path}");
    }
    match own.rsplit_once('/') {
        Some((place, _)) => format!("{place}/{url}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://x.test/get/release.json";

    fn manifest(programs: serde_json::Value) -> Manifest {
        let whole = serde_json::json!({ "version": "0.2.0", "programs": programs, "notes": "later" });
        Manifest::parse(whole.to_string().as_bytes()).expect("a manifest")
    }

    fn entry(url: &str) -> serde_json::Value {
        serde_json::json!({ "url": url, "size": 9, "sha256": "A".repeat(64) })
    }

    #[test]
    fn a_place_a_manifest_and_a_program_are_told_apart() {
        let of = |address: &str| match kind(address) {
            Kind::Program => "program".to_owned(),
            Kind::Manifest(address) => address,
        };
        assert_eq!(of("https://x.test/get/appliance-x86_64"), "program");
        assert_eq!(of("https://x.test/get/"), URL);
        assert_eq!(of("https://x.test/get"), URL);
        assert_eq!(
            of("https://appliance.test"),
            "https://appliance.test/release.json"
        );
        assert_eq!(of("https://x.test/beta.json"), "https://x.test/beta.json");
    }

    #[test]
    fn the_program_of_these_processors_is_picked_beside_the_manifest() {
        for (url, found) in [
            ("v2/appliance", "https://x.test/get/v2/appliance"),
            ("/v2/appliance", "https://x.test/v2/appliance"),
            ("https://y.test/appliance", "https://y.test/appliance"),
        ] {
            let pick = manifest(serde_json::json!({ "x86_64": entry(url) }))
                .pick(URL, "x86_64")
                .expect("picked");
            assert_eq!((pick.url.as_str(), pick.size), (found, 9));
            assert_eq!(pick.sha256, "a".repeat(64));
        }
    }

    #[test]
    fn what_is_missing_or_cannot_be_is_said() {
        let said = |programs: serde_json::Value| {
            let picked = manifest(programs).pick(URL, "x86_64");
            format!("{:#}", picked.expect_err("nothing to pick"))
        };
        assert_eq!(
            said(serde_json::json!({ "aarch64": entry("a") })),
            "there is no 0.2.0 for x86_64, only for aarch64"
        );
        let sum = serde_json::json!({ "x86_64": { "url": "a", "size": 9, "sha256": "ab" } });
        assert!(said(sum).contains("checksum"));
        let size = serde_json::json!({ "x86_64": { "url": "a", "size": 0, "sha256": "a".repeat(64) } });
        assert!(said(size).contains("0 bytes"));
        assert!(Manifest::parse(b"{}").is_err());
    }
}
