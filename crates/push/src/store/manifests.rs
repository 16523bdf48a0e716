//! Manifests, tags and referrers of repositories.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::change::{BadName, Digest, Repository, Tag};

/// Media types of the OCI image specification 1.1 and of Docker's image manifest v2, schema 2.
pub mod media_type {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// OCI layer, uncompressed.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// OCI layer, gzip.
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// OCI layer, zstd.
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker image manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker layer, uncompressed.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// Docker layer, zstd.
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
    /// Docker layer, gzip.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
}

/// How a manifest is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// By what it is.
    Digest(Digest),
    /// By a name that can be moved.
    Tag(Tag),
}

impl Reference {
    /// Parses the last part of a manifest's address.
    ///
    /// # Errors
    /// When it is neither a digest nor a tag.
    pub fn parse(value: &str) -> Result<Self, BadName> {
        if value.contains(':') {
            Digest::parse(value).map(Self::Digest)
        } else {
            Tag::parse(value).map(Self::Tag)
        }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reference::Digest(digest) => digest.fmt(f),
            Reference::Tag(tag) => tag.fmt(f),
        }
    }
}

/// A descriptor (OCI image specification, `descriptor.md`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Kind of artifact, in answers about referrers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// What the image is built for, in indexes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<crate::change::Platform>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Other places to fetch it from; such layers need not be here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
}

impl Descriptor {
    /// A descriptor with nothing optional.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            artifact_type: None,
            platform: None,
            annotations: BTreeMap::new(),
            urls: Vec::new(),
        }
    }
}

/// An image manifest or index, as far as the store needs to understand it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// What this is; may be left to the Content-Type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Kind of artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Image configuration, in an image manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    /// Layers, in an image manifest, lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Descriptor>,
    /// Manifests, in an index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Descriptor>,
    /// The manifest this one refers to (signatures, SBOMs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, StoreError> {
        let invalid = |why: String| StoreError::ManifestInvalid { why };
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if manifest.schema_version != 2 {
            return Err(invalid(format!(
                "schemaVersion is {}, not 2",
                manifest.schema_version
            )));
        }
        Ok(manifest)
    }

    /// Whether this is an index of manifests.
    pub fn is_index(&self, content_type: &str) -> bool {
        let kind = self.media_type.as_deref().unwrap_or(content_type);
        matches!(kind, media_type::OCI_INDEX | media_type::DOCKER_LIST)
    }
}

/// A manifest of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredManifest {
    /// Its digest.
    pub digest: Digest,
    /// Content-Type it was stored with.
    pub media_type: String,
    /// Its exact bytes.
    pub bytes: Vec<u8>,
}

impl Store {
    /// Stores a manifest under its digest, and under a tag if the reference is one.
    ///
    /// Everything that an image manifest names must be here already; an index may be sparse.
    ///
    /// # Errors
    /// When it is not a manifest, too large, names absent content, or has another digest than its reference.
    pub fn put_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        content_type: &str,
        bytes: &[u8],
    ) -> Result<Manifest, StoreError> {
        let size = bytes.len() as u64;
        if size > self.inner.limits.max_manifest {
            return Err(StoreError::TooLarge {
                size,
                limit: self.inner.limits.max_manifest,
            });
        }
        let found = Digest::of(bytes);
        if let Reference::Digest(wanted) = reference
            && *wanted != found
        {
            return Err(StoreError::DigestMismatch {
                wanted: wanted.clone(),
                found,
            });
        }
        let manifest = Manifest::parse(bytes)?;
        if let Some(own) = manifest.media_type.as_deref().filter(|own| *own != content_type) {
            let why = format!("its mediaType is {own:?}, but it came as {content_type:?}");
            return Err(StoreError::ManifestInvalid { why });
        }
        let _link = self
            .inner
            .collecting
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if !manifest.is_index(content_type) {
            let Some(config) = &manifest.config else {
                return Err(StoreError::ManifestInvalid {
                    why: "it names no configuration".to_owned(),
                });
            };
            for named in std::iter::once(config)
                .chain(&manifest.layers)
                .filter(|named| named.urls.is_empty())
            {
                match self.blob_size(&named.digest)? {
                    None => {
                        return Err(StoreError::ManifestBlobUnknown {
                            digest: named.digest.clone(),
                        });
                    }
                    Some(found) if found != named.size => {
                        // Either the manifest is wrong, or the disk: then it has to be sent again.
                        if self.drop_if_damaged(&named.digest)? {
                            return Err(StoreError::ManifestBlobUnknown {
                                digest: named.digest.clone(),
                            });
                        }
                        return Err(StoreError::SizeMismatch {
                            wanted: named.size,
                            found,
                        });
                    }
                    Some(_) => {}
                }
            }
        }
        self.put_blob(bytes)?;
        let path = self.repository_path(repository);
        self.write_file(&path.join("manifests").join(found.hex()), content_type.as_bytes())?;
        if let Some(subject) = &manifest.subject {
            let link = path
                .join("referrers")
                .join(subject.digest.hex())
                .join(found.hex());
            self.write_file(&link, content_type.as_bytes())?;
        }
        if let Reference::Tag(tag) = reference {
            self.write_file(&path.join("tags").join(tag.as_str()), found.as_str().as_bytes())?;
        }
        Ok(manifest)
    }

    /// Reads a manifest of a repository.
    ///
    /// # Errors
    /// When it is not there or damaged on the disk.
    pub fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<StoredManifest, StoreError> {
        let unknown = || StoreError::ManifestUnknown {
            repository: repository.clone(),
            reference: reference.to_string(),
        };
        let path = self.repository_path(repository);
        let digest = match reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(tag) => {
                let text = self
                    .read_link(path.join("tags").join(tag.as_str()))?
                    .ok_or_else(unknown)?;
                Digest::parse(&text).map_err(|_| unknown())?
            }
        };
        let media_type = self
            .read_link(path.join("manifests").join(digest.hex()))?
            .ok_or_else(unknown)?;
        let bytes = self.read_blob(&digest, self.inner.limits.max_manifest)?;
        Ok(StoredManifest {
            digest,
            media_type,
            bytes,
        })
    }

    /// Takes a tag away, or a manifest with all its tags; the content goes with the next collection.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete_manifest(&self, repository: &Repository, reference: &Reference) -> Result<(), StoreError> {
        let unknown = || StoreError::ManifestUnknown {
            repository: repository.clone(),
            reference: reference.to_string(),
        };
        let path = self.repository_path(repository);
        let remove = |link: PathBuf| match std::fs::remove_file(&link) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(unknown()),
            other => other.map_err(StoreError::io("remove", &link)),
        };
        match reference {
            Reference::Tag(tag) => remove(path.join("tags").join(tag.as_str())),
            Reference::Digest(digest) => {
                let stored = self.manifest(repository, reference)?;
                for tag in self.tags(repository)? {
                    let link = path.join("tags").join(tag.as_str());
                    if self.read_link(link.clone())?.as_deref() == Some(digest.as_str()) {
                        remove(link)?;
                    }
                }
                if let Some(subject) = Manifest::parse(&stored.bytes)?.subject {
                    let link = path
                        .join("referrers")
                        .join(subject.digest.hex())
                        .join(digest.hex());
                    let _already_gone = remove(link);
                }
                remove(path.join("manifests").join(digest.hex()))
            }
        }
    }

    /// The tags of a repository in lexical order.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn tags(&self, repository: &Repository) -> Result<Vec<Tag>, StoreError> {
        let names = names(&self.repository_path(repository).join("tags"))?;
        let mut tags: Vec<Tag> = names.iter().filter_map(|name| Tag::parse(name).ok()).collect();
        tags.sort();
        Ok(tags)
    }

    /// Whether anything was ever stored in this repository.
    pub fn knows_repository(&self, repository: &Repository) -> bool {
        self.repository_path(repository).is_dir()
    }

    /// Descriptors of the manifests that refer to `subject` (OCI distribution 1.1, listing referrers).
    ///
    /// # Errors
    /// When the file system fails or a manifest is damaged.
    pub fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, StoreError> {
        let directory = self
            .repository_path(repository)
            .join("referrers")
            .join(subject.hex());
        let mut found = Vec::new();
        for name in names(&directory)? {
            let Ok(digest) = Digest::parse(&format!("sha256:{name}")) else {
                continue;
            };
            let stored = match self.manifest(repository, &Reference::Digest(digest.clone())) {
                Err(StoreError::ManifestUnknown { .. } | StoreError::BlobUnknown { .. }) => continue,
                other => other?,
            };
            let manifest = Manifest::parse(&stored.bytes)?;
            let mut descriptor = Descriptor::new(&stored.media_type, digest, stored.bytes.len() as u64);
            // Without an artifact type the configuration's media type stands for it (image specification 1.1).
            descriptor.artifact_type = manifest
                .artifact_type
                .or_else(|| manifest.config.map(|config| config.media_type));
            descriptor.annotations = manifest.annotations;
            found.push(descriptor);
        }
        found.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(found)
    }

    pub(super) fn read_link(&self, path: PathBuf) -> Result<Option<String>, StoreError> {
        match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).map_err(StoreError::io("read", &path)),
        }
    }
}

/// The names in a directory; none when it is not there.
pub(super) fn names(directory: &std::path::Path) -> Result<Vec<String>, StoreError> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(StoreError::io("list", directory))?,
    };
    Ok(entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}
