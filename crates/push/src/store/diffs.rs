//! Which blob holds which uncompressed layer, so that a developer need not compress what the host has.
//!
//! Two developers may compress one layer to different bytes.
//! The host therefore remembers the uncompressed digest (`diff_id`) of each layer it holds, computed here from the blob
//! itself: believing the uploader would let one app's deployer spoil another's layers.

use std::collections::BTreeMap;
use std::io::Read;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use super::manifests::{media_type, names};
use super::{Manifest, Store, StoreError};
use crate::change::Digest;
use crate::delta::{self, Chunk};

/// Memory that reading one zstd blob may take, as a power of two: 32 MiB, above every ordinary level.
pub(super) const WINDOW_LOG: u32 = 25;
/// Bytes that a layer may unpack to before we stop looking: no image we run is near it, a bomb is soon.
pub(super) const UNPACKED_LIMIT: u64 = 64 << 30;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, which every Docker Engine reads.
    Gzip,
    /// zstd, which Docker Engine 23 and later reads.
    Zstd,
}

impl Compression {
    /// What a layer's media type says; `None` for types that are no layers of a Linux image.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            media_type::OCI_LAYER | media_type::DOCKER_LAYER => Some(Self::None),
            media_type::OCI_LAYER_GZIP | media_type::DOCKER_LAYER_GZIP => Some(Self::Gzip),
            media_type::OCI_LAYER_ZSTD | media_type::DOCKER_LAYER_ZSTD => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The OCI media type of a layer compressed so.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => media_type::OCI_LAYER,
            Self::Gzip => media_type::OCI_LAYER_GZIP,
            Self::Zstd => media_type::OCI_LAYER_ZSTD,
        }
    }

    /// Reads the uncompressed bytes.
    pub(crate) fn decoder<'a>(self, blob: impl Read + 'a) -> std::io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(blob),
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(blob)),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::new(blob)?;
                decoder.window_log_max(WINDOW_LOG)?;
                Box::new(decoder)
            }
        })
    }
}

/// What a developer asks before sending anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaveQuery {
    /// Blobs by digest.
    #[serde(default)]
    pub blobs: Vec<Digest>,
    /// Layers by the digest of their uncompressed bytes.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

/// What the host has of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaveAnswer {
    /// Blobs that are here.
    pub blobs: Vec<Digest>,
    /// Layers that are here, by the digest of their uncompressed bytes.
    pub layers: BTreeMap<Digest, KnownLayer>,
    /// Compressions that this host's engine reads, best first.
    pub accepts: Vec<Compression>,
    /// Bytes that may be uploaded.
    pub available: u64,
}

/// A layer that the host holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownLayer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
}

/// Most digests in one question; an image has at most 127 layers.
const HAVE_LIMIT: usize = 1024;

impl Store {
    /// Answers what is here; `accepts` is what this host's engine reads, best first.
    ///
    /// Everything named in the answer counts as freshly used, so a collection does not take it before the upload ends.
    ///
    /// # Errors
    /// When too much is asked at once or the file system fails.
    pub fn have(&self, query: &HaveQuery, accepts: &[Compression]) -> Result<HaveAnswer, StoreError> {
        let asked = query.blobs.len() + query.diff_ids.len();
        if asked > HAVE_LIMIT {
            return Err(StoreError::TooLarge {
                size: asked as u64,
                limit: HAVE_LIMIT as u64,
            });
        }
        let _link = self
            .inner
            .collecting
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut answer = HaveAnswer {
            blobs: Vec::new(),
            layers: BTreeMap::new(),
            accepts: accepts.to_vec(),
            available: self.room()?.available(),
        };
        for digest in &query.blobs {
            if self.touch(digest)?.is_some() {
                answer.blobs.push(digest.clone());
            }
        }
        for diff_id in &query.diff_ids {
            for known in self.known_layers(diff_id)? {
                if accepts.contains(&known.compression) && self.touch(&known.digest)? == Some(known.size) {
                    answer.layers.insert(diff_id.clone(), known);
                    break;
                }
            }
        }
        Ok(answer)
    }

    /// Computes the uncompressed digests of an image's layers that are not known yet; returns how many.
    ///
    /// It reads whole layers, so it runs in the background once an image is complete.
    ///
    /// # Errors
    /// When a layer is not there or cannot be decompressed.
    pub fn index_layers(&self, manifest: &Manifest) -> Result<usize, StoreError> {
        let mut indexed = 0;
        for layer in &manifest.layers {
            let Some(compression) = Compression::of_media_type(&layer.media_type) else {
                continue;
            };
            let seen = self.inner.root.join("indexed").join(layer.digest.hex());
            if seen.exists() {
                continue;
            }
            let Some(blob) = self.blob(&layer.digest)? else {
                return Err(StoreError::BlobUnknown {
                    digest: layer.digest.clone(),
                });
            };
            let path = self.blob_path(&layer.digest);
            let size = blob.size;
            let (diff_id, chunks) =
                look(compression, blob.file).map_err(StoreError::io("decompress", &path))?;
            self.remember_chunks(&layer.digest, &chunks)?;
            let known = KnownLayer {
                digest: layer.digest.clone(),
                size,
                compression,
            };
            self.remember_diff(&diff_id, &known)?;
            indexed += 1;
        }
        Ok(indexed)
    }

    /// Writes down which layer a blob holds.
    pub(super) fn remember_diff(&self, diff_id: &Digest, known: &KnownLayer) -> Result<(), StoreError> {
        let text = serde_json::to_vec(known).expect("plain data always has a JSON form");
        let root = &self.inner.root;
        let holder = root.join("diffs").join(diff_id.hex()).join(known.digest.hex());
        self.write_file(&holder, &text)?;
        let seen = root.join("indexed").join(known.digest.hex());
        self.write_file(&seen, diff_id.as_str().as_bytes())
    }

    fn known_layers(&self, diff_id: &Digest) -> Result<Vec<KnownLayer>, StoreError> {
        let directory = self.inner.root.join("diffs").join(diff_id.hex());
        let mut known = Vec::new();
        for name in names(&directory)? {
            let text = self.read_link(directory.join(name))?;
            known.extend(text.and_then(|text| serde_json::from_str(&text).ok()));
        }
        Ok(known)
    }

    /// Marks a blob as used now, so that a collection leaves it; returns its size if it is there.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn touch(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let Some(blob) = self.blob(digest)? else {
            return Ok(None);
        };
        let path = self.blob_path(digest);
        blob.file
            .set_modified(std::time::SystemTime::now())
            .map_err(StoreError::io("touch", &path))?;
        Ok(Some(blob.size))
    }
}

/// The digest of the uncompressed bytes, and the chunks they fall into, in one pass.
fn look(compression: Compression, blob: std::fs::File) -> std::io::Result<(Digest, Vec<Chunk>)> {
    let mut reader = compression.decoder(blob)?.take(UNPACKED_LIMIT + 1);
    let mut hash = digest::Context::new(&digest::SHA256);
    let chunks = delta::cut(&mut reader, |_, bytes| hash.update(bytes))?;
    if reader.limit() == 0 {
        return Err(std::io::Error::other(format!(
            "it unpacks to more than {UNPACKED_LIMIT} bytes"
        )));
    }
    Ok((Digest::from_hash(hash.finish().as_ref()), chunks))
}
