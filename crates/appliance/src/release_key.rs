//! Whose signature makes a file a released `appliance`.

use std::path::Path;

use anyhow::Context as _;
use appliance_bootstrap::PublicKey;

use crate::failure::{Kind, failure};

/// Compiled in: set `APPLIANCE_RELEASE_KEY` to the public key's line when building a release.
const COMPILED_IN: Option<&str> = option_env!("APPLIANCE_RELEASE_KEY");

/// Where this build's releases are published, if anywhere; set `APPLIANCE_RELEASES` when building.
pub const RELEASES: Option<&str> = option_env!("APPLIANCE_RELEASES");

/// The key that the host's first boot was verified by.
const HOSTS: &str = "/etc/appliance/release.pub";

/// The key in `given`, a `.pub` file; else the host's; else the one compiled in, if this build has one.
///
/// # Errors
/// When the file cannot be read, or either is no public key.
pub fn find(given: Option<&Path>) -> anyhow::Result<Option<PublicKey>> {
    let hosts = Path::new(HOSTS);
    let line = match (given, COMPILED_IN) {
        (Some(path), _) => fs_err::read_to_string(path).context("cannot read the release key")?,
        (None, _) if hosts.exists() => {
            fs_err::read_to_string(hosts).context("cannot read the release key")?
        }
        (None, Some(line)) => line.to_owned(),
        (None, None) => return Ok(None),
    };
    match line.trim().parse() {
        Ok(key) => Ok(Some(key)),
        Err(error) => Err(failure(Kind::Config, format!("the release key: {error}"))
            .hint("--release-key FILE.pub takes the public half of the key that signs releases")
            .into()),
    }
}
