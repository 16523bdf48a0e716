//! The chunks of the layers that are here, and layers put together from them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::unix::fs::FileExt as _;

use aws_lc_rs::digest;

use super::diffs::Compression;
use super::manifests::names;
use super::{Descriptor, KnownLayer, Manifest, Reference, Store, StoreError};
use crate::change::{BlobRef, Digest, Repository};
use crate::delta::{self, Chunk, ChunkId, Recipe};

/// Images of a repository whose layers are looked into, newest first.
const IMAGES: usize = 4;
/// Bytes of one chunk in an index file.
const ENTRY: usize = 20;

/// Where a chunk is: which of the layers, at which byte of its uncompressed content.
#[derive(Debug, Clone, Copy)]
struct Found {
    layer: usize,
    offset: u64,
    length: u32,
}

/// The layers of a repository's newest images with all their chunks.
struct Bases {
    layers: Vec<(Digest, Compression)>,
    chunks: HashMap<ChunkId, Found>,
}

impl Store {
    /// Which of these chunks the newest images of the repository have.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn have_chunks(&self, repository: &Repository, ids: &[ChunkId]) -> Result<Vec<bool>, StoreError> {
        let bases = self.bases(repository)?;
        Ok(ids.iter().map(|id| bases.chunks.contains_key(id)).collect())
    }

    /// Puts a layer together from `delta` (see [`crate::delta`]) and the layers that are here, and stores it uncompressed.
    ///
    /// # Errors
    /// When the delta is none, names a chunk that is not here, does not result in `wanted`, there is no room, or the
    /// file system fails. Nothing of it is left then.
    pub fn assemble(
        &self,
        repository: &Repository,
        wanted: &BlobRef,
        delta: impl Read,
    ) -> Result<(), StoreError> {
        let invalid = |why: String| StoreError::DeltaInvalid { why };
        let _link = self
            .inner
            .collecting
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut delta = zstd::Decoder::new(delta).map_err(|error| invalid(error.to_string()))?;
        delta
            .window_log_max(super::diffs::WINDOW_LOG)
            .map_err(|error| invalid(error.to_string()))?;
        let recipe = Recipe::read(&mut delta).map_err(|error| invalid(super::error::chain(&error)))?;
        if recipe.size != wanted.size {
            return Err(StoreError::SizeMismatch {
                wanted: wanted.size,
                found: recipe.size,
            });
        }
        if recipe.size > self.inner.limits.max_blob {
            return Err(StoreError::TooLarge {
                size: recipe.size,
                limit: self.inner.limits.max_blob,
            });
        }
        let bases = self.bases(repository)?;
        // The layer itself and, at worst, one unpacked base at a time.
        self.check_room(recipe.size.saturating_mul(2))?;
        let mut sources: HashMap<usize, File> = HashMap::new();
        let temporary = self.inner.root.join("temporary");
        let mut out = tempfile::NamedTempFile::new_in(&temporary)
            .map_err(StoreError::io("create a file in", &temporary))?;
        let path = out.path().to_owned();
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut sent: HashMap<ChunkId, u64> = HashMap::new();
        let mut offset = 0;
        let mut buffer = vec![0; delta::MAX_CHUNK];
        for (chunk, follows) in &recipe.chunks {
            let bytes = &mut buffer[..chunk.length as usize];
            if *follows {
                delta
                    .read_exact(bytes)
                    .map_err(|error| invalid(format!("a chunk is cut off: {error}")))?;
                sent.insert(chunk.id, offset);
            } else if let Some(found) = bases
                .chunks
                .get(&chunk.id)
                .filter(|found| found.length == chunk.length)
            {
                let source = match sources.entry(found.layer) {
                    Entry::Occupied(open) => open.into_mut(),
                    Entry::Vacant(vacant) => {
                        let (blob, compression) = &bases.layers[found.layer];
                        vacant.insert(self.unpacked(blob, *compression)?)
                    }
                };
                source
                    .read_exact_at(bytes, found.offset)
                    .map_err(StoreError::io("read", &temporary))?;
            } else if let Some(at) = sent.get(&chunk.id) {
                // The same chunk twice in one layer travels once.
                out.as_file()
                    .read_exact_at(bytes, *at)
                    .map_err(StoreError::io("read", &path))?;
            } else {
                return Err(invalid(format!(
                    "the chunk {} is not here (any more)",
                    hex::encode(chunk.id.0)
                )));
            }
            hash.update(bytes);
            out.write_all(bytes).map_err(StoreError::io("write", &path))?;
            offset += u64::from(chunk.length);
        }
        let found = Digest::from_hash(hash.finish().as_ref());
        if found != wanted.digest {
            return Err(StoreError::DigestMismatch {
                wanted: wanted.digest.clone(),
                found,
            });
        }
        out.as_file().sync_all().map_err(StoreError::io("write", &path))?;
        let blob = self.blob_path(&found);
        let directory = super::parent(&blob);
        super::private_directory(directory).map_err(StoreError::io("create", directory))?;
        out.persist(&blob)
            .map_err(|error| StoreError::io("write", &blob)(error.error))?;
        super::sync_directory(directory)?;
        // Its chunks are known already; the next delta need not read it again.
        let chunks: Vec<Chunk> = recipe.chunks.iter().map(|(chunk, _)| *chunk).collect();
        self.remember_chunks(&found, &chunks)?;
        self.remember_diff(
            &found,
            &KnownLayer {
                digest: found.clone(),
                size: wanted.size,
                compression: Compression::None,
            },
        )
    }

    /// The uncompressed content of a layer, for reading anywhere in it.
    fn unpacked(&self, blob: &Digest, compression: Compression) -> Result<File, StoreError> {
        let path = self.blob_path(blob);
        let file = self
            .blob(blob)?
            .ok_or_else(|| StoreError::BlobUnknown { digest: blob.clone() })?
            .file;
        if compression == Compression::None {
            return Ok(file);
        }
        let temporary = self.inner.root.join("temporary");
        let mut out =
            tempfile::tempfile_in(&temporary).map_err(StoreError::io("create a file in", &temporary))?;
        let unpacked = compression
            .decoder(file)
            .and_then(|decoder| std::io::copy(&mut decoder.take(super::diffs::UNPACKED_LIMIT), &mut out));
        unpacked.map_err(StoreError::io("decompress", &path))?;
        Ok(out)
    }

    fn bases(&self, repository: &Repository) -> Result<Bases, StoreError> {
        let mut bases = Bases {
            layers: Vec::new(),
            chunks: HashMap::new(),
        };
        let images = self.newest_images(repository)?;
        let mut layers: Vec<(&Descriptor, Compression)> = images
            .iter()
            .flat_map(|manifest| &manifest.layers)
            .filter_map(|layer| Some((layer, Compression::of_media_type(&layer.media_type)?)))
            .filter(|(layer, _)| layer.size >= delta::SMALLEST_LAYER / 16)
            .collect();
        // A chunk that several layers have is taken from the one that is the least work to unpack.
        layers.sort_by_key(|(layer, compression)| (*compression != Compression::None, layer.size));
        for (layer, compression) in layers {
            if bases.layers.iter().any(|(digest, _)| *digest == layer.digest) {
                continue;
            }
            let Some(chunks) = self.chunks_of(&layer.digest, compression)? else {
                continue;
            };
            let place = bases.layers.len();
            bases.layers.push((layer.digest.clone(), compression));
            let mut offset = 0;
            for chunk in chunks {
                bases.chunks.entry(chunk.id).or_insert(Found {
                    layer: place,
                    offset,
                    length: chunk.length,
                });
                offset += u64::from(chunk.length);
            }
        }
        Ok(bases)
    }

    fn newest_images(&self, repository: &Repository) -> Result<Vec<Manifest>, StoreError> {
        let directory = self.repository_path(repository).join("manifests");
        let mut found = Vec::new();
        for name in names(&directory)? {
            let time = std::fs::metadata(directory.join(&name)).and_then(|about| about.modified());
            if let (Ok(time), Ok(digest)) = (time, Digest::parse(&format!("sha256:{name}"))) {
                found.push((time, digest));
            }
        }
        found.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        let mut images = Vec::new();
        for (_, digest) in found {
            if images.len() == IMAGES {
                break;
            }
            let Ok(stored) = self.manifest(repository, &Reference::Digest(digest)) else {
                continue;
            };
            if let Ok(manifest) = Manifest::parse(&stored.bytes)
                && !manifest.layers.is_empty()
            {
                images.push(manifest);
            }
        }
        Ok(images)
    }

    /// The chunks of a layer, from its index or computed now; `None` if the blob is not here.
    fn chunks_of(&self, blob: &Digest, compression: Compression) -> Result<Option<Vec<Chunk>>, StoreError> {
        let index = self.inner.root.join("chunks").join(blob.hex());
        if let Ok(bytes) = std::fs::read(&index) {
            let chunks: Option<Vec<Chunk>> = bytes.is_empty().then(Vec::new).or_else(|| {
                (bytes.len().is_multiple_of(ENTRY)).then(|| bytes.chunks_exact(ENTRY).map(entry).collect())
            });
            if chunks.is_some() {
                return Ok(chunks);
            }
        }
        let Some(found) = self.blob(blob)? else {
            return Ok(None);
        };
        let path = self.blob_path(blob);
        let chunks = compression
            .decoder(found.file)
            .and_then(|decoder| delta::cut(decoder.take(super::diffs::UNPACKED_LIMIT), |_, _| ()))
            .map_err(StoreError::io("decompress", &path))?;
        self.remember_chunks(blob, &chunks)?;
        Ok(Some(chunks))
    }

    /// Writes the chunks of a layer down.
    pub(super) fn remember_chunks(&self, blob: &Digest, chunks: &[Chunk]) -> Result<(), StoreError> {
        let mut bytes = Vec::with_capacity(chunks.len() * ENTRY);
        for chunk in chunks {
            bytes.extend_from_slice(&chunk.id.0);
            bytes.extend_from_slice(&chunk.length.to_be_bytes());
        }
        self.write_file(&self.inner.root.join("chunks").join(blob.hex()), &bytes)
    }
}

fn entry(bytes: &[u8]) -> Chunk {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[..16]);
    Chunk {
        id: ChunkId(id),
        length: u32::from_be_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]),
    }
}
