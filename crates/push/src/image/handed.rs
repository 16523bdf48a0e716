//! Images that the local Docker hands over by a push, without exporting the layers that the host has.

use std::path::Path;
use std::sync::Arc;

use super::{
    BlobFile, Cache, Contents, Found, ImageConfig, ImageError, Outline, Place, PrepareOptions, Prepared,
    finish, layout, on_host,
};
use crate::change::{BlobRef, Digest, Repository};
use crate::registry::{Credentials, Handover};
use crate::store::{Compression, Descriptor, HaveAnswer, Limits, Store};

/// Free bytes that are left on the developer's disk.
const RESERVE: u64 = 256 << 20;

/// Whether a push is quicker than an export.
///
/// Docker compresses what it pushes, at a quarter of the speed at which it exports; what it pushed once it need not push
/// again. `sizes` are those of the layers, lowest first and as far as they are known; without any there is no telling.
/// Several new layers that are most of an image are pushed as well: that is once, and the next time they are known.
pub fn is_worth_it(outline: &Outline, have: &HaveAnswer, cache: &Cache, sizes: &[u64]) -> bool {
    let size = |index: usize| sizes.get(index).copied().unwrap_or_default();
    let total: u64 = sizes.iter().sum();
    let (mut unknown, mut missing, mut layers) = (0, 0, 0);
    for (index, diff_id) in outline.diff_ids.iter().enumerate() {
        let on_host = on_host(diff_id, have, cache).is_some();
        if !on_host {
            missing += size(index);
            layers += 1;
        }
        if !on_host || cache.handed(diff_id).is_none() {
            unknown += size(index);
        }
    }
    total > 0 && (unknown <= total / 2 || (layers > 1 && missing > total / 2))
}

/// A push of the local Docker that is under way.
#[derive(Debug)]
pub struct Handing {
    registry: Handover,
    store: Store,
    directory: Arc<tempfile::TempDir>,
}

impl Handing {
    /// Waits for Docker on the loopback.
    ///
    /// # Errors
    /// When the scratch directory cannot be written or no port can be opened.
    pub async fn begin(
        outline: &Outline,
        have: &HaveAnswer,
        cache: &Cache,
        scratch: &Path,
    ) -> Result<Self, ImageError> {
        let failed = |error: &dyn std::error::Error| ImageError::Stopped {
            why: error.to_string(),
        };
        let directory = tempfile::Builder::new()
            .prefix("appliance-layers-")
            .tempdir_in(scratch)
            .map_err(ImageError::io("create a directory in", scratch))?;
        let limits = Limits {
            reserve: RESERVE,
            ..Limits::default()
        };
        let store = Store::open(directory.path(), limits).map_err(|error| failed(&error))?;
        let there = outline
            .diff_ids
            .iter()
            .filter(|diff_id| on_host(diff_id, have, cache).is_some())
            .filter_map(|diff_id| cache.handed(diff_id))
            .map(|blob| (blob.digest, blob.size))
            .collect();
        let registry = Handover::start(store.clone(), there)
            .await
            .map_err(|error| failed(&error))?;
        Ok(Self {
            registry,
            store,
            directory: Arc::new(directory),
        })
    }

    /// The repository as Docker is to call it.
    pub fn name(&self, repository: &Repository) -> String {
        self.registry.name(repository)
    }

    /// What Docker must present.
    pub fn credentials(&self) -> &Credentials {
        self.registry.credentials()
    }

    /// Prepares what Docker has pushed; `cache` learns what it need not push again.
    ///
    /// # Errors
    /// When it is not the image of `outline`, a layer that the host lacks did not come, or as [`super::prepare`].
    pub async fn end(
        self,
        outline: Outline,
        have: HaveAnswer,
        cache: Cache,
        options: PrepareOptions,
    ) -> Result<(Prepared, Cache), ImageError> {
        let work = move || self.contents(&outline, have, cache, &options);
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| ImageError::Stopped {
                why: error.to_string(),
            })?
    }

    fn contents(
        &self,
        outline: &Outline,
        have: HaveAnswer,
        cache: Cache,
        options: &PrepareOptions,
    ) -> Result<(Prepared, Cache), ImageError> {
        let not = |why: &str| ImageError::NotAnImage { why: why.to_owned() };
        let documents = self.registry.documents();
        let top = documents
            .tagged
            .and_then(|digest| documents.by_digest.get(&digest))
            .ok_or_else(|| not("Docker pushed no manifest"))?;
        let platform = options.platform.as_ref();
        let (config, layers) = layout::resolve(top.to_vec(), platform, None, &mut |digest| match documents
            .by_digest
            .get(digest)
        {
            Some(bytes) => Ok(bytes.to_vec()),
            None => layout::document(&self.store.blob_path(digest), digest),
        })?;
        // The image ID is the configuration's digest, or in containerd's store the manifest's.
        if Digest::of(&config) != outline.id && !documents.by_digest.contains_key(&outline.id) {
            return Err(not("Docker pushed another image"));
        }
        let diff_ids = ImageConfig::parse(&config)?.diff_ids().to_vec();
        let found = layers
            .iter()
            .map(|layer| self.layer(layer))
            .collect::<Result<Vec<_>, _>>()?;
        let contents = Contents {
            config,
            layers: found,
        };
        let (prepared, mut cache) = finish(contents, &have, cache, options)?;
        for (diff_id, layer) in diff_ids.iter().zip(&layers) {
            let blob = BlobRef {
                digest: layer.digest.clone(),
                size: layer.size,
            };
            cache.remember_handed(diff_id, &blob);
        }
        Ok((prepared, cache))
    }

    fn layer(&self, layer: &Descriptor) -> Result<Found, ImageError> {
        let compression =
            Compression::of_media_type(&layer.media_type).ok_or_else(|| ImageError::NotAnImage {
                why: format!("a layer has the media type {}", layer.media_type),
            })?;
        let path = self.store.blob_path(&layer.digest);
        let Ok(about) = std::fs::metadata(&path) else {
            return Ok(Found::Skipped);
        };
        Ok(Found::Here {
            place: Place::File(Arc::new(BlobFile {
                path,
                _temporary: None,
                _directory: Some(Arc::clone(&self.directory)),
            })),
            size: about.len(),
            compression,
            digest: Some(layer.digest.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::KnownLayer;

    fn digest(byte: u8) -> Digest {
        Digest::of(&[byte])
    }

    fn outline(count: u8) -> Outline {
        Outline {
            id: digest(99),
            diff_ids: (0..count).map(digest).collect(),
        }
    }

    fn have(layers: &[u8]) -> HaveAnswer {
        HaveAnswer {
            blobs: Vec::new(),
            layers: layers
                .iter()
                .map(|layer| {
                    let known = KnownLayer {
                        digest: digest(100 + layer),
                        size: 1,
                        compression: Compression::Zstd,
                    };
                    (digest(*layer), known)
                })
                .collect(),
            accepts: vec![Compression::Zstd, Compression::None],
            available: u64::MAX,
        }
    }

    fn cache(handed: &[u8]) -> Cache {
        let mut cache = Cache::default();
        for layer in handed {
            let blob = BlobRef {
                digest: digest(200 + layer),
                size: 1,
            };
            cache.remember_handed(&digest(*layer), &blob);
        }
        cache
    }

    /// A push is chosen where Docker has little to compress, and for the first image of a kind.
    #[test]
    fn docker_pushes_where_that_is_less_work_than_an_export() {
        let sizes = [100, 280, 20];
        for (there, handed, wanted, why) in [
            (&[][..], &[][..], true, "the first one"),
            (&[0, 1], &[0, 1], true, "a small layer changed"),
            (&[0], &[0], true, "dependencies and source changed"),
            (&[0, 1], &[], false, "Docker would compress what the host has"),
            (&[0, 2], &[0, 2], false, "a large layer changed"),
            (&[0, 1, 2], &[0, 1, 2], true, "only the configuration changed"),
        ] {
            let found = is_worth_it(&outline(3), &have(there), &cache(handed), &sizes);
            assert_eq!(found, wanted, "{why}");
        }
        assert!(
            !is_worth_it(&outline(1), &have(&[]), &Cache::default(), &[300]),
            "an image of one layer is new each time"
        );
        assert!(
            !is_worth_it(&outline(3), &have(&[]), &Cache::default(), &[]),
            "Docker did not tell the sizes"
        );
    }
}
