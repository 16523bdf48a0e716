//! Addresses below `/v2`, parsed once.

use crate::change::{Digest, Repository};
use crate::store::{Reference, UploadId};

use super::answer::Problem;

/// What an address names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Base,
    Blob(Repository, Digest),
    Uploads(Repository),
    Upload(Repository, UploadId),
    Manifest(Repository, Reference),
    Tags(Repository),
    Referrers(Repository, Digest),
}

impl Route {
    /// Repository names contain slashes, so the address is read from its end.
    pub(super) fn parse(path: &str) -> Result<Self, Problem> {
        let rest = path.strip_prefix("/v2").ok_or_else(|| Problem::not_found(path))?;
        if matches!(rest, "" | "/") {
            return Ok(Route::Base);
        }
        let rest = rest.strip_prefix('/').ok_or_else(|| Problem::not_found(path))?;
        let name = |name: &str| Repository::parse(name).map_err(Problem::name_invalid);
        let digest = |digest: &str| Digest::parse(digest).map_err(Problem::digest_invalid);
        if let Some(repository) = rest.strip_suffix("/tags/list") {
            return Ok(Route::Tags(name(repository)?));
        }
        if let Some(repository) = rest
            .strip_suffix("/blobs/uploads/")
            .or_else(|| rest.strip_suffix("/blobs/uploads"))
        {
            return Ok(Route::Uploads(name(repository)?));
        }
        let (before, last) = rest.rsplit_once('/').ok_or_else(|| Problem::not_found(path))?;
        if let Some(repository) = before.strip_suffix("/blobs/uploads") {
            let id = UploadId::parse(last).map_err(|_| Problem::upload_unknown(last))?;
            return Ok(Route::Upload(name(repository)?, id));
        }
        if let Some(repository) = before.strip_suffix("/blobs") {
            return Ok(Route::Blob(name(repository)?, digest(last)?));
        }
        if let Some(repository) = before.strip_suffix("/manifests") {
            let reference = Reference::parse(last).map_err(Problem::manifest_reference)?;
            return Ok(Route::Manifest(name(repository)?, reference));
        }
        if let Some(repository) = before.strip_suffix("/referrers") {
            return Ok(Route::Referrers(name(repository)?, digest(last)?));
        }
        Err(Problem::not_found(path))
    }
}

/// The parameters behind `?`.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Self {
        let pairs = query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}

/// Percent-decoding (RFC 3986 §2.1); what is not valid stays as it is and fails later as a name.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let pair = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let byte = pair
            .and_then(|pair| std::str::from_utf8(pair).ok())
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match byte {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_slashes_and_awkward_parts_are_found() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let name = |name: &str| Repository::parse(name).expect("a name");
        for (path, repository) in [
            (format!("/v2/blobs/blobs/{digest}"), "blobs"),
            (format!("/v2/a/manifests/blobs/{digest}"), "a/manifests"),
        ] {
            let Ok(Route::Blob(found, _)) = Route::parse(&path) else {
                panic!("{path}")
            };
            assert_eq!(found, name(repository));
        }
        assert!(matches!(Route::parse("/v2/a/b/tags/list"), Ok(Route::Tags(found)) if found == name("a/b")));
        assert!(matches!(Route::parse("/v2/"), Ok(Route::Base)));
        assert!(matches!(
            Route::parse("/v2/a/blobs/uploads/"),
            Ok(Route::Uploads(_))
        ));
        for bad in [
            "/v1/",
            "/v2x",
            "/v2/a",
            "/v2/../blobs/x",
            "/v2//tags/list",
            "/v2/a/blobs/uploads/../../etc",
        ] {
            assert!(Route::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parameters_are_decoded_once() {
        let query = Query::parse(Some("digest=sha256%3Aab&x&from=a%2Fb&odd=%zz%2"));
        assert_eq!(query.get("digest"), Some("sha256:ab"));
        assert_eq!(query.get("x"), Some(""));
        assert_eq!(query.get("from"), Some("a/b"));
        assert_eq!(query.get("odd"), Some("%zz%2"));
    }
}
