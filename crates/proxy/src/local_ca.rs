//! A certificate authority of one's own, for development and for hosts without a public name.
//!
//! The CA is one ECDSA P-256 key, kept as `ca.key` (0600) beside its certificate `ca.pem` in a directory.
//! Leaves live 398 days, the longest that browsers accept; each is signed at the start of a process, and again when two
//! thirds of that are over.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::control::CertificatePem;
use crate::durable;
use crate::names::HostPattern;

const DAY: Duration = Duration::from_secs(86_400);
const CA_LIFE: Duration = Duration::from_secs(86_400 * 3_650);
const LEAF_LIFE: Duration = Duration::from_secs(86_400 * 398);
/// How long a leaf is shown before the next one is signed.
pub(crate) const LEAF_SHOWN: Duration = Duration::from_secs(86_400 * 265);

/// The local CA could not be opened, created or used.
#[derive(Debug, thiserror::Error)]
pub enum LocalCaError {
    /// A file of the CA could not be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The CA's files do not hold a CA certificate with its key.
    #[error("{} does not hold a usable CA; move it away to have a new one made", directory.display())]
    Unusable {
        /// Where.
        directory: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// Signing failed.
    #[error("cannot sign a certificate for {subject}")]
    Sign {
        /// For whom.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

/// A CA that signs leaf certificates.
#[derive(Debug)]
pub struct LocalCa {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl LocalCa {
    /// Opens the CA in `directory`, creating it when it is not there.
    ///
    /// # Errors
    /// When its files cannot be read or written, or do not hold a CA.
    pub fn open_or_create(directory: &Path, now: SystemTime) -> Result<Self, LocalCaError> {
        let (certificate_path, key_path) = (directory.join("ca.pem"), directory.join("ca.key"));
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| LocalCaError::File { path, source }
        };
        match (
            fs_err::read_to_string(&certificate_path),
            fs_err::read_to_string(&key_path),
        ) {
            (Ok(certificate_pem), Ok(key_pem)) => Self::from_pem(directory, certificate_pem, &key_pem),
            (Err(error), _) | (_, Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                Err(at(directory)(error))
            }
            _ => {
                durable::create_private_dir(directory).map_err(at(directory))?;
                let (certificate_pem, key_pem) = create(now)?;
                // The key first: a certificate without its key would be an unusable CA after a crash.
                durable::write(&key_path, key_pem.as_bytes(), 0o600).map_err(at(&key_path))?;
                durable::write(&certificate_path, certificate_pem.as_bytes(), 0o644)
                    .map_err(at(&certificate_path))?;
                Self::from_pem(directory, certificate_pem, &key_pem)
            }
        }
    }

    fn from_pem(directory: &Path, certificate_pem: String, key_pem: &str) -> Result<Self, LocalCaError> {
        let unusable = |source| LocalCaError::Unusable {
            directory: directory.to_owned(),
            source,
        };
        let key = KeyPair::from_pem(key_pem).map_err(unusable)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(unusable)?;
        Ok(Self {
            issuer,
            certificate_pem,
        })
    }

    /// The CA's own certificate, PEM: what a client has to trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A new key and a certificate for `hosts`, valid from yesterday for 398 days; the chain includes the CA.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(&self, hosts: &[HostPattern], now: SystemTime) -> Result<CertificatePem, LocalCaError> {
        let subject = || {
            hosts
                .iter()
                .map(HostPattern::as_str)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let sign = |source| LocalCaError::Sign {
            subject: subject(),
            source,
        };
        let mut params = CertificateParams::new(Vec::new()).map_err(sign)?;
        for host in hosts {
            let bare = host.as_str().trim_start_matches('[').trim_end_matches(']');
            params.subject_alt_names.push(match bare.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(bare.try_into().map_err(sign)?),
            });
        }
        params.distinguished_name.push(
            DnType::CommonName,
            hosts.first().map_or("localhost", HostPattern::as_str),
        );
        params.not_before = (now - DAY).into();
        params.not_after = (now - DAY + LEAF_LIFE).into();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(sign)?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(sign)?;
        Ok(CertificatePem {
            chain: format!("{}{}", leaf.pem(), self.certificate_pem),
            key: key.serialize_pem(),
        })
    }
}

fn create(now: SystemTime) -> Result<(String, String), LocalCaError> {
    let sign = |source| LocalCaError::Sign {
        subject: "the CA itself".into(),
        source,
    };
    let key = KeyPair::generate().map_err(sign)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(sign)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "appliance local CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - DAY).into();
    params.not_after = (now + CA_LIFE).into();
    let certificate = params.self_signed(&key).map_err(sign)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_same_ca_is_opened_again_and_its_key_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("local-ca");
        let first = LocalCa::open_or_create(&home, SystemTime::now()).unwrap();
        let again = LocalCa::open_or_create(&home, SystemTime::now()).unwrap();
        assert_eq!(first.certificate_pem(), again.certificate_pem());
        let mode = fs_err::metadata(home.join("ca.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_broken_ca_is_named_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        durable::write(&directory.path().join("ca.pem"), b"junk", 0o644).unwrap();
        durable::write(&directory.path().join("ca.key"), b"junk", 0o600).unwrap();
        let error = LocalCa::open_or_create(directory.path(), SystemTime::now()).unwrap_err();
        assert!(error.to_string().contains("move it away"), "{error}");
        assert_eq!(fs_err::read(directory.path().join("ca.pem")).unwrap(), b"junk");
    }
}
