//! What is asked of which authority.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::error::AcmeError;
use crate::name::Name;

/// Let's Encrypt's production directory.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// How certificates are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// URL of the authority's directory.
    pub directory: String,
    /// Address that the authority may write to about certificates and terms.
    pub email: Option<String>,
    /// PEM file of the root that the directory's own certificate is checked against; the system's roots when absent.
    pub ca_file: Option<PathBuf>,
    /// External Account Binding (RFC 8555 §7.3.4), which ZeroSSL and company authorities ask for.
    pub external_account: Option<ExternalAccount>,
    /// Which proof is given.
    pub challenge: Challenge,
    /// How DNS records are set.
    pub dns: Option<DnsCommand>,
    /// Profile to ask for, such as `shortlived`; the authority's default when absent.
    pub profile: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            directory: LETS_ENCRYPT.to_owned(),
            email: None,
            ca_file: None,
            external_account: None,
            challenge: Challenge::Auto,
            dns: None,
            profile: None,
        }
    }
}

/// An account that the authority knows by other means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    /// Key identifier.
    pub key_id: String,
    /// File with the MAC key, base64url; read only when an account is made, so that it may be removed afterwards.
    pub key_file: PathBuf,
}

impl ExternalAccount {
    /// The MAC key's bytes.
    pub(crate) fn key(&self) -> Result<Vec<u8>, AcmeError> {
        let failed = |why: String| {
            let file = self.key_file.display();
            AcmeError::Settings(format!("external_account/key_file {file}: {why}"))
        };
        let text = fs_err::read_to_string(&self.key_file).map_err(|error| failed(error.to_string()))?;
        URL_SAFE_NO_PAD
            .decode(text.trim().trim_end_matches('='))
            .map_err(|error| failed(format!("it is not base64url: {error}")))
    }
}

/// Which proof of control is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Challenge {
    /// dns-01 for wildcards; else http-01 (which also works behind a CDN), and tls-alpn-01 where that fails.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// A file on port 80 (RFC 8555 §8.3).
    #[serde(rename = "http-01")]
    Http01,
    /// A handshake on port 443 (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// A DNS record (RFC 8555 §8.4).
    #[serde(rename = "dns-01")]
    Dns01,
}

/// A command that sets and removes DNS records; see [`crate::settings`].
///
/// It is started without a shell, as `command… present` or `command… cleanup`, with this environment:
/// `ACME_ACTION` (`present` or `cleanup`), `ACME_HOST` (the name that is proved), `ACME_RECORD`
/// (`_acme-challenge.` and that name, without a trailing dot), `ACME_VALUE` (the TXT record's content), and `PATH`.
/// It ends with 0 once the record is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsCommand {
    /// Program and leading arguments.
    pub command: Vec<String>,
    /// How long one run may take.
    pub timeout: Duration,
    /// How long is waited after the record was set, so that every name server has it.
    pub propagation: Duration,
}

impl Settings {
    /// The proofs to try for `name`, in order; none when nothing configured can prove it.
    pub fn challenges(&self, name: &Name) -> Vec<Challenge> {
        let dns = self.dns.is_some().then_some(Challenge::Dns01);
        if name.is_wildcard() {
            return dns.into_iter().collect();
        }
        // An address has no DNS record to set (RFC 8738 §4).
        let is_address = name.address().is_some();
        match self.challenge {
            Challenge::Auto => {
                let mut all = vec![Challenge::Http01, Challenge::TlsAlpn01];
                all.extend(dns.filter(|_| !is_address));
                all
            }
            Challenge::Dns01 => dns.filter(|_| !is_address).into_iter().collect(),
            one => vec![one],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_need_dns_and_the_rest_has_a_choice() {
        let name = |text: &str| Name::parse(text).unwrap();
        let mut settings = Settings::default();
        assert_eq!(settings.challenges(&name("*.a.io")), []);
        assert_eq!(
            settings.challenges(&name("a.io")),
            [Challenge::Http01, Challenge::TlsAlpn01]
        );
        settings.dns = Some(DnsCommand {
            command: vec!["true".into()],
            timeout: Duration::from_secs(1),
            propagation: Duration::ZERO,
        });
        assert_eq!(settings.challenges(&name("*.a.io")), [Challenge::Dns01]);
        settings.challenge = Challenge::TlsAlpn01;
        assert_eq!(settings.challenges(&name("a.io")), [Challenge::TlsAlpn01]);
        assert_eq!(settings.challenges(&name("*.a.io")), [Challenge::Dns01]);
        settings.challenge = Challenge::Dns01;
        assert_eq!(settings.challenges(&name("192.0.2.1")), []);
    }
}
