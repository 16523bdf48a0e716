//! What earlier pushes found out: which blob a layer was compressed to, and image configurations.
//!
//! Losing the cache costs time, never correctness, so a damaged file is as good as none.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::change::{BlobRef, Digest};
use crate::store::{Compression, HaveAnswer};

/// Configurations kept; each is a few KiB.
const CONFIGS: usize = 64;
/// Layers kept.
const LAYERS: usize = 4096;

/// The cache of one developer's machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// By digest of the uncompressed layer: the blobs made of it.
    #[serde(default)]
    layers: BTreeMap<Digest, BTreeMap<Compression, Made>>,
    /// By image ID: the configuration's bytes in base64.
    #[serde(default)]
    configs: BTreeMap<Digest, Used<String>>,
    /// By digest of the uncompressed layer: the blob that the local Docker pushes for it.
    #[serde(default)]
    handed: BTreeMap<Digest, Made>,
    /// Counts uses, so that the longest unused entries go first.
    #[serde(default)]
    clock: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Used<T> {
    used: u64,
    value: T,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    used: u64,
    #[serde(flatten)]
    blob: BlobRefFlat,
}

/// [`BlobRef`] without its refusal of unknown fields, which `flatten` cannot have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BlobRefFlat {
    digest: Digest,
    size: u64,
}

impl Cache {
    /// Reads the cache; a missing or damaged file is an empty cache.
    pub fn load(path: &Path) -> Self {
        std::fs::read(path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Writes the cache by temporary file and rename.
    ///
    /// # Errors
    /// When the directory cannot be made or written.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.persist(path)?;
        Ok(())
    }

    /// Blobs that earlier pushes made of these layers, to be asked for.
    pub(super) fn blobs_of(&self, diff_ids: &[Digest]) -> Vec<Digest> {
        let made = diff_ids.iter().filter_map(|diff_id| self.layers.get(diff_id));
        made.flat_map(|made| made.values().map(|made| made.blob.digest.clone()))
            .collect()
    }

    pub(super) fn made_of(&self, diff_id: &Digest) -> impl Iterator<Item = (Compression, BlobRef)> {
        self.layers
            .get(diff_id)
            .into_iter()
            .flatten()
            .map(|(compression, made)| {
                (
                    *compression,
                    BlobRef {
                        digest: made.blob.digest.clone(),
                        size: made.blob.size,
                    },
                )
            })
    }

    /// Compressed layers that are on the host in a form it reads, by our own records or its answer.
    pub(super) fn usable_blobs(&self, have: &HaveAnswer) -> BTreeSet<Digest> {
        let made = self.layers.values().flatten();
        let ours = made.filter(|(compression, made)| {
            have.accepts.contains(compression) && have.blobs.contains(&made.blob.digest)
        });
        let theirs = have.layers.values().map(|known| known.digest.clone());
        ours.map(|(_, made)| made.blob.digest.clone())
            .chain(theirs)
            .collect()
    }

    pub(super) fn remember(&mut self, diff_id: &Digest, compression: Compression, blob: &BlobRef) {
        self.clock += 1;
        let blob = BlobRefFlat {
            digest: blob.digest.clone(),
            size: blob.size,
        };
        self.layers.entry(diff_id.clone()).or_default().insert(
            compression,
            Made {
                used: self.clock,
                blob,
            },
        );
        if self.layers.len() > LAYERS {
            let used = |made: &BTreeMap<Compression, Made>| made.values().map(|made| made.used).max();
            let oldest = self
                .layers
                .iter()
                .min_by_key(|(_, made)| used(made))
                .map(|(diff_id, _)| diff_id.clone());
            oldest.map(|diff_id| self.layers.remove(&diff_id));
        }
    }

    /// The blob that the local Docker pushed for a layer.
    pub(super) fn handed(&self, diff_id: &Digest) -> Option<BlobRef> {
        let blob = &self.handed.get(diff_id)?.blob;
        Some(BlobRef {
            digest: blob.digest.clone(),
            size: blob.size,
        })
    }

    pub(super) fn remember_handed(&mut self, diff_id: &Digest, blob: &BlobRef) {
        self.clock += 1;
        let made = Made {
            used: self.clock,
            blob: BlobRefFlat {
                digest: blob.digest.clone(),
                size: blob.size,
            },
        };
        self.handed.insert(diff_id.clone(), made);
        if self.handed.len() > LAYERS {
            let oldest = self.handed.iter().min_by_key(|(_, made)| made.used);
            let oldest = oldest.map(|(diff_id, _)| diff_id.clone());
            oldest.map(|diff_id| self.handed.remove(&diff_id));
        }
    }

    pub(super) fn config_of(&self, id: &Digest) -> Option<Vec<u8>> {
        BASE64.decode(&self.configs.get(id)?.value).ok()
    }

    pub(super) fn remember_config(&mut self, id: &Digest, config: &[u8]) {
        self.clock += 1;
        self.configs.insert(
            id.clone(),
            Used {
                used: self.clock,
                value: BASE64.encode(config),
            },
        );
        if self.configs.len() > CONFIGS {
            let oldest = self
                .configs
                .iter()
                .min_by_key(|(_, entry)| entry.used)
                .map(|(id, _)| id.clone());
            oldest.map(|id| self.configs.remove(&id));
        }
    }
}
