//! Where a newer program comes from: a file, an address, or a place where releases are published.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use appliance_bootstrap::PublicKey;
use appliance_push::sign::{PublicKey as SigningKey, Signature};
use bytes::Bytes;

use super::fetch::get;
use super::manifest::{self, Kind, Manifest, Pick};
use super::version::Version;
use crate::failure::{Kind as Failing, failure};

/// Largest program, bytes.
const LARGEST: u64 = 1 << 30;
/// Largest signature or manifest, bytes.
const SMALL: u64 = 64 << 10;

/// A program, and what proves where it comes from.
pub struct Source {
    /// For people.
    pub name: String,
    /// Its bytes.
    pub program: Bytes,
    /// What is to be proved of them.
    pub proof: Proof,
}

/// Why a program would be one of the releases.
pub enum Proof {
    /// This SSHSIG beside it is of its bytes.
    Signature(String),
    /// A manifest, proved already, names its version and this checksum, lower-case hexadecimal.
    Checksum(Version, String),
}

/// A manifest that was proved, and where it lies.
pub struct Published {
    /// Its address.
    pub url: String,
    manifest: Manifest,
}

impl Published {
    /// The version that was published last.
    ///
    /// # Errors
    /// When the manifest names none.
    pub fn version(&self) -> anyhow::Result<Version> {
        self.manifest.version()
    }

    /// Fetches the program for this machine.
    ///
    /// # Errors
    /// When there is none for its processors, or it cannot be fetched whole.
    pub async fn fetch(&self, patience: Duration) -> anyhow::Result<Source> {
        let picked = self.manifest.pick(&self.url, std::env::consts::ARCH);
        let Pick {
            version,
            url,
            size,
            sha256,
        } = picked.map_err(|error| failure(Failing::Refused, format!("{}: {error:#}", self.url)))?;
        Ok(Source {
            program: get(&url, size, patience).await?,
            name: url,
            proof: Proof::Checksum(version, sha256),
        })
    }
}

/// What `place` says was published last; `None` if that address is a program's own.
///
/// # Errors
/// When it cannot be fetched, or is not signed by `key`.
pub async fn published(
    place: &str,
    key: &PublicKey,
    patience: Duration,
) -> anyhow::Result<Option<Published>> {
    let Kind::Manifest(url) = manifest::kind(place) else {
        return Ok(None);
    };
    let bytes = get(&url, SMALL, patience).await?;
    let signature = get(&format!("{url}.sig"), SMALL, patience).await?;
    let manifest = String::from_utf8(signature.to_vec())
        .context("the signature is no text")
        .and_then(|signature| {
            let signature = Signature::parse(&signature)?;
            Ok(signature.verify_as(manifest::NAMESPACE, &SigningKey::parse(&key.line())?, &bytes)?)
        })
        .and_then(|()| Manifest::parse(&bytes))
        .map_err(|error| {
            failure(
                Failing::Refused,
                format!(
                    "{url} is not taken, nothing was changed: it has to be signed by the key of the releases ({}): {error:#}",
                    key.fingerprint()
                ),
            )
            .hint(format!(
                "its signature is expected as {url}.sig, made by: ssh-keygen -Y sign -n {} -f KEY release.json",
                manifest::NAMESPACE
            ))
        })?;
    Ok(Some(Published { url, manifest }))
}

impl Source {
    /// `FILE` with `FILE.sig`, or a program's address with `.sig` behind it.
    ///
    /// # Errors
    /// When one of the two cannot be read or fetched.
    pub async fn named(name: &str, patience: Duration) -> anyhow::Result<Self> {
        let signature = format!("{name}.sig");
        let (program, signature) = if is_address(name) {
            // The small one first: without it the large one is of no use.
            let signature = get(&signature, SMALL, patience).await?.to_vec();
            (get(name, LARGEST, patience).await?, signature)
        } else {
            (
                Bytes::from(fs_err::tokio::read(Path::new(name)).await?),
                fs_err::tokio::read(Path::new(&signature)).await?,
            )
        };
        Ok(Self {
            name: name.to_owned(),
            program,
            proof: Proof::Signature(String::from_utf8(signature).context("the signature is no text")?),
        })
    }
}

/// Whether this is an address rather than a file.
pub fn is_address(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}
