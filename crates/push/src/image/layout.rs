//! OCI image layouts (image specification, `image-layout.md`): directories whose blobs are used where they lie.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{BlobFile, Contents, Found, ImageConfig, ImageError, Outline, Place};
use crate::change::{Digest, Platform};
use crate::store::{Compression, Descriptor, Manifest, media_type};

/// Largest index, manifest or configuration.
const DOCUMENT_LIMIT: u64 = 8 << 20;
/// Indexes inside indexes.
const DEPTH: usize = 4;

/// What a layout directory holds, without reading its layers.
///
/// # Errors
/// When it is no layout, or holds no image of the platform.
pub fn outline(path: &Path, platform: Option<&Platform>) -> Result<Outline, ImageError> {
    let (config, _) = documents(path, platform)?;
    Ok(Outline {
        id: Digest::of(&config),
        diff_ids: ImageConfig::parse(&config)?.diff_ids().to_vec(),
    })
}

pub(super) fn read(path: &Path, platform: Option<&Platform>) -> Result<Contents, ImageError> {
    let (config, layers) = documents(path, platform)?;
    let mut found = Vec::new();
    for layer in layers {
        let compression =
            Compression::of_media_type(&layer.media_type).ok_or_else(|| ImageError::NotAnImage {
                why: format!(
                    "a layer has the media type {}, which Linux images do not use",
                    layer.media_type
                ),
            })?;
        let file = blob_path(path, &layer.digest);
        let size = std::fs::metadata(&file)
            .map_err(ImageError::io("read", &file))?
            .len();
        if size != layer.size {
            let why = format!(
                "{} has {size} bytes, its manifest says {}",
                layer.digest, layer.size
            );
            return Err(ImageError::NotAnImage { why });
        }
        found.push(Found::Here {
            place: Place::File(Arc::new(BlobFile {
                path: file,
                _temporary: None,
            })),
            size,
            compression,
            digest: Some(layer.digest),
        });
    }
    Ok(Contents {
        config,
        layers: found,
    })
}

fn documents(path: &Path, platform: Option<&Platform>) -> Result<(Bytes, Vec<Descriptor>), ImageError> {
    let index = path.join("index.json");
    let top = std::fs::read(&index).map_err(ImageError::io("read", &index))?;
    resolve(top, platform, &mut |digest| {
        let file = blob_path(path, digest);
        let size = std::fs::metadata(&file)
            .map_err(ImageError::io("read", &file))?
            .len();
        if size > DOCUMENT_LIMIT {
            return Err(ImageError::NotAnImage {
                why: format!("{digest} is too large for a manifest"),
            });
        }
        std::fs::read(&file).map_err(ImageError::io("read", &file))
    })
}

/// Follows an index to the one image of the platform: its configuration and its layers.
pub(super) fn resolve(
    top: Vec<u8>,
    platform: Option<&Platform>,
    load: &mut dyn FnMut(&Digest) -> Result<Vec<u8>, ImageError>,
) -> Result<(Bytes, Vec<Descriptor>), ImageError> {
    let not = |why: String| ImageError::NotAnImage { why };
    let mut load_checked = |digest: &Digest, what: &'static str| {
        let bytes = load(digest)?;
        let found = Digest::of(&bytes);
        if found == *digest {
            Ok(bytes)
        } else {
            Err(ImageError::Damaged {
                what,
                wanted: digest.clone(),
                found,
            })
        }
    };
    let mut document = top;
    for _ in 0..DEPTH {
        let manifest = Manifest::parse(&document).map_err(|error| not(error.to_string()))?;
        if let Some(config) = manifest.config {
            let bytes = load_checked(&config.digest, "configuration")?;
            return Ok((bytes.into(), manifest.layers));
        }
        let chosen = choose(manifest.manifests, platform)?;
        document = load_checked(&chosen.digest, "manifest")?;
    }
    Err(not("its indexes are nested too deep".to_owned()))
}

/// The entry for the platform; attestations and other things that are no images are passed over.
fn choose(entries: Vec<Descriptor>, platform: Option<&Platform>) -> Result<Descriptor, ImageError> {
    let not = |why: String| ImageError::NotAnImage { why };
    let is_image = |entry: &Descriptor| {
        let kind = matches!(
            entry.media_type.as_str(),
            media_type::OCI_MANIFEST
                | media_type::OCI_INDEX
                | media_type::DOCKER_MANIFEST
                | media_type::DOCKER_LIST
        );
        kind && entry
            .platform
            .as_ref()
            .is_none_or(|platform| platform.os != "unknown")
    };
    let mut images: Vec<Descriptor> = entries.into_iter().filter(is_image).collect();
    if let Some(wanted) = platform {
        let fits = |entry: &Descriptor| {
            entry.platform.as_ref().is_none_or(|found| {
                let variants =
                    found.variant.is_none() || wanted.variant.is_none() || found.variant == wanted.variant;
                found.os == wanted.os && found.architecture == wanted.architecture && variants
            })
        };
        let held: Vec<String> = images
            .iter()
            .filter_map(|entry| Some(entry.platform.as_ref()?.to_string()))
            .collect();
        images.retain(fits);
        if images.is_empty() {
            return Err(not(format!(
                "it holds no image for {wanted}, only for {}",
                held.join(", ")
            )));
        }
    }
    match images.len() {
        1 => Ok(images.remove(0)),
        0 => Err(not("its index names no image".to_owned())),
        count => Err(not(format!(
            "it holds {count} images; name the platform or export one image"
        ))),
    }
}

fn blob_path(path: &Path, digest: &Digest) -> std::path::PathBuf {
    path.join("blobs/sha256").join(digest.hex())
}
