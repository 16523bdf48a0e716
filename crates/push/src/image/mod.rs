//! An image on the developer's machine, as the OCI blobs that a host still needs.
//!
//! ```text
//! docker push ─┐   (a registry on the loopback; only what the host lacks)
//! docker save ─┤                     ┌─ layer on the host already: neither compressed nor sent
//! OCI layout  ─┼─► archive ─► layers ┤
//! OCI archive ─┘                     └─ layer not there: compressed once, digest remembered in the cache
//! ```
//!
//! Layers are known by the digest of their uncompressed bytes (`diff_id`), which Docker tells without an export.
//! Compression is deterministic, so the same layer has the same blob digest at the next push.

mod archive;
mod cache;
mod compress;
mod delta;
mod handed;
pub mod layout;
mod manifest;

#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncRead;

pub use cache::Cache;
pub use delta::{Ask, Delta};
pub use handed::{Handing, is_worth_it};
pub use manifest::ImageConfig;

use crate::change::{BlobRef, Digest, Platform};
use crate::store::{Compression, HaveAnswer, HaveQuery};

/// Where an image comes from.
pub enum Source {
    /// The stream of `docker save` (classic or containerd image store), or an OCI archive.
    Archive(Box<dyn AsyncRead + Send + Unpin>),
    /// A file of the same kinds.
    File(PathBuf),
    /// An OCI image layout directory.
    Layout(PathBuf),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Archive(_) => f.write_str("an image archive"),
            Source::File(path) | Source::Layout(path) => path.display().fmt(f),
        }
    }
}

/// What is known about an image before it is exported: from `docker inspect`, or read from a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// The image ID: the configuration's digest in the classic store, the manifest's in the containerd store.
    pub id: Digest,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

impl Outline {
    /// What to ask the host before anything is exported.
    pub fn query(&self, cache: &Cache) -> HaveQuery {
        HaveQuery {
            blobs: cache.blobs_of(&self.diff_ids),
            diff_ids: self.diff_ids.clone(),
        }
    }
}

/// How to prepare an image.
#[derive(Clone)]
pub struct PrepareOptions {
    /// Directory for large temporary files; they are removed with the [`Prepared`] image.
    pub scratch: PathBuf,
    /// Layers compressed at one time.
    pub threads: usize,
    /// The platform to take where there are several; the archive must hold it.
    pub platform: Option<Platform>,
    /// The image to take where the source holds several: its tag, or its whole name.
    pub name: Option<String>,
    /// The image ID under which [`prepare_from_cache`] is to find the configuration next time.
    pub id: Option<Digest>,
    /// Asks the host which chunks it has; without it, changed layers are sent whole.
    pub ask: Option<Ask>,
}

impl std::fmt::Debug for PrepareOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrepareOptions")
            .field("scratch", &self.scratch)
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
}

/// An image that is ready to be sent.
#[derive(Debug)]
pub struct Prepared {
    /// The image configuration's exact bytes.
    pub config: Bytes,
    /// The manifest's exact bytes.
    pub manifest: Bytes,
    /// Its media type.
    pub media_type: &'static str,
    /// What the image is built for.
    pub platform: Platform,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
}

/// One layer of a prepared image.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Digest of the uncompressed bytes.
    pub diff_id: Digest,
    /// The blob as it is on the host, or will be.
    pub blob: BlobRef,
    /// How the blob is compressed.
    pub compression: Compression,
    /// Where its bytes are.
    pub place: Place,
}

/// Where a blob's bytes are.
#[derive(Debug, Clone)]
pub enum Place {
    /// On the host already.
    OnHost,
    /// In memory.
    Memory(Bytes),
    /// In a file, which is removed with the last clone if it is a temporary one.
    File(Arc<BlobFile>),
    /// For the most part on the host, in other layers.
    Delta(Arc<Delta>),
}

/// A blob in a file of its own.
#[derive(Debug)]
pub struct BlobFile {
    /// The file.
    pub path: PathBuf,
    /// Set for files that are ours to remove.
    pub(crate) _temporary: Option<tempfile::TempPath>,
    /// The temporary directory it is in, where it has one.
    pub(crate) _directory: Option<Arc<tempfile::TempDir>>,
}

impl Prepared {
    /// Digest of the manifest: what the release names and the host starts.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Digest of the configuration: the image ID in Docker's classic store.
    pub fn config_digest(&self) -> Digest {
        Digest::of(&self.config)
    }

    /// The blobs that the host lacks, and where they are; the configuration always comes along.
    pub fn to_send(&self) -> Vec<(BlobRef, Place)> {
        let mut seen = std::collections::BTreeSet::new();
        let mut blobs: Vec<(BlobRef, Place)> = self
            .layers
            .iter()
            .filter(|layer| !matches!(layer.place, Place::OnHost))
            .filter(|layer| seen.insert(layer.blob.digest.clone()))
            .map(|layer| (layer.blob.clone(), layer.place.clone()))
            .collect();
        blobs.push((reference(&self.config), Place::Memory(self.config.clone())));
        blobs
    }

    /// What the `upload` change must name: the whole image, so that what is there already stays until it is complete.
    pub fn permission(&self) -> Vec<BlobRef> {
        let mut seen = std::collections::BTreeSet::new();
        let layers = self.layers.iter().map(|layer| layer.blob.clone());
        layers
            .chain([reference(&self.config), reference(&self.manifest)])
            .filter(|blob| seen.insert(blob.digest.clone()))
            .collect()
    }

    /// Sizes for people.
    pub fn summary(&self) -> Summary {
        let on_host = |layer: &&Layer| matches!(layer.place, Place::OnHost);
        Summary {
            layers: self.layers.len(),
            layers_there: self.layers.iter().filter(on_host).count(),
            bytes: self.layers.iter().map(|layer| layer.blob.size).sum::<u64>() + self.config.len() as u64,
            bytes_to_send: self
                .to_send()
                .iter()
                .map(|(blob, place)| match place {
                    Place::Delta(delta) => delta.size,
                    _ => blob.size,
                })
                .sum(),
        }
    }
}

fn reference(bytes: &Bytes) -> BlobRef {
    BlobRef {
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
    }
}

/// How large an image is and how much of it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Layers of the image.
    pub layers: usize,
    /// Layers that the host has.
    pub layers_there: usize,
    /// Bytes of all blobs, compressed.
    pub bytes: u64,
    /// Bytes that are sent.
    pub bytes_to_send: u64,
}

/// Prepares an image without its bytes, where the cache and the host together know all of it.
pub fn prepare_from_cache(outline: &Outline, have: &HaveAnswer, cache: &Cache) -> Option<Prepared> {
    let config = Bytes::from(cache.config_of(&outline.id)?);
    let parsed = ImageConfig::parse(&config).ok()?;
    if parsed.diff_ids() != outline.diff_ids.as_slice() {
        return None;
    }
    let layers: Option<Vec<Layer>> = outline
        .diff_ids
        .iter()
        .map(|diff_id| on_host(diff_id, have, cache))
        .collect();
    manifest::assemble(config, &parsed, layers?).ok()
}

/// The layer as the host has it: by what it knows about the layer itself, or by a blob we made earlier.
fn on_host(diff_id: &Digest, have: &HaveAnswer, cache: &Cache) -> Option<Layer> {
    let layer = |blob: BlobRef, compression| Layer {
        diff_id: diff_id.clone(),
        blob,
        compression,
        place: Place::OnHost,
    };
    if let Some(known) = have.layers.get(diff_id) {
        let blob = BlobRef {
            digest: known.digest.clone(),
            size: known.size,
        };
        return Some(layer(blob, known.compression));
    }
    cache
        .made_of(diff_id)
        .find(|(compression, blob)| have.blobs.contains(&blob.digest) && have.accepts.contains(compression))
        .map(|(compression, blob)| layer(blob, compression))
}

/// Reads an image and prepares what the host lacks; `cache` learns what was compressed.
///
/// # Errors
/// When the source is not an image, is damaged, or the scratch directory fails.
pub async fn prepare(
    source: Source,
    have: HaveAnswer,
    cache: Cache,
    options: PrepareOptions,
) -> Result<(Prepared, Cache), ImageError> {
    let work =
        |input: Box<dyn std::io::Read + Send>, have: HaveAnswer, cache: Cache, options: PrepareOptions| {
            let contents = archive::read(input, &have, &cache, &options)?;
            finish(contents, &have, cache, &options)
        };
    let done = match source {
        Source::Archive(stream) => {
            let input = Box::new(tokio_util::io::SyncIoBridge::new(stream));
            tokio::task::spawn_blocking(move || work(input, have, cache, options)).await
        }
        Source::File(path) => {
            tokio::task::spawn_blocking(move || {
                let file = std::fs::File::open(&path).map_err(ImageError::io("open", &path))?;
                work(Box::new(file), have, cache, options)
            })
            .await
        }
        Source::Layout(path) => {
            tokio::task::spawn_blocking(move || {
                let contents = layout::read(&path, options.platform.as_ref(), options.name.as_deref())?;
                finish(contents, &have, cache, &options)
            })
            .await
        }
    };
    done.map_err(|error| ImageError::Stopped {
        why: error.to_string(),
    })?
}

/// What was found in a source: the configuration and the layers that may be needed, lowest first.
pub(crate) struct Contents {
    pub(crate) config: Bytes,
    pub(crate) layers: Vec<Found>,
}

/// A layer as it lies in the source.
pub(crate) enum Found {
    /// Not read, because the host has it.
    Skipped,
    /// Its bytes, in the given compression; the digest of these bytes where the source names it.
    Here {
        place: Place,
        size: u64,
        compression: Compression,
        digest: Option<Digest>,
    },
}

fn finish(
    contents: Contents,
    have: &HaveAnswer,
    mut cache: Cache,
    options: &PrepareOptions,
) -> Result<(Prepared, Cache), ImageError> {
    let config = ImageConfig::parse(&contents.config)?;
    let diff_ids = config.diff_ids().to_vec();
    if diff_ids.len() != contents.layers.len() {
        return Err(ImageError::NotAnImage {
            why: format!(
                "its configuration names {} layers, but there are {}",
                diff_ids.len(),
                contents.layers.len()
            ),
        });
    }
    if let Some(wanted) = &options.platform {
        config.check_platform(wanted)?;
    }
    let mut slots: Vec<Option<Layer>> = diff_ids
        .iter()
        .map(|diff_id| on_host(diff_id, have, &cache))
        .collect();
    let mut work = Vec::new();
    for (index, found) in contents.layers.into_iter().enumerate() {
        match (slots[index].is_some(), found) {
            (true, _) => {}
            (false, Found::Skipped) => {
                return Err(ImageError::NotAnImage {
                    why: format!("the layer {} is missing", diff_ids[index]),
                });
            }
            (false, found) => work.push((index, diff_ids[index].clone(), found)),
        }
    }
    for (index, layer) in compress::all(work, have, options)? {
        cache.remember(&layer.diff_id, layer.compression, &layer.blob);
        slots[index] = Some(layer);
    }
    let layers = slots.into_iter().flatten().collect();
    let prepared = manifest::assemble(contents.config, &config, layers)?;
    cache.remember_config(
        options.id.as_ref().unwrap_or(&prepared.config_digest()),
        &prepared.config,
    );
    Ok((prepared, cache))
}

/// Why an image could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file could not be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The export stopped or is no tar archive.
    #[error("the image archive cannot be read")]
    Archive(#[source] std::io::Error),
    /// The source holds something else.
    #[error("this is not an image we can send: {why}")]
    NotAnImage {
        /// What is missing or wrong.
        why: String,
    },
    /// Content that does not have its digest.
    #[error("the {what} of the image has the digest {found}, not {wanted}; export the image again")]
    Damaged {
        /// Which part.
        what: &'static str,
        /// Expected.
        wanted: Digest,
        /// Computed.
        found: Digest,
    },
    /// Built for another machine.
    #[error("the image is built for {found}, the host needs {wanted}; build it with --platform {wanted}")]
    Platform {
        /// What the host runs.
        wanted: Box<Platform>,
        /// What the image is for.
        found: Box<Platform>,
    },
    /// The host reads none of the compressions we write.
    #[error(
        "the host accepts no layer compression that this version writes; update `appliance` on both sides"
    )]
    NoCompression,
    /// The work was stopped.
    #[error("preparing the image was stopped: {why}")]
    Stopped {
        /// By what.
        why: String,
    },
}

impl ImageError {
    pub(crate) fn io(what: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}
