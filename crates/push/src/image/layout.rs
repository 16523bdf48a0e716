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

/// Annotations by which an index names its images: the image specification's (a tag, mostly), and containerd's (a whole
/// name).
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

/// What a layout directory holds, without reading its layers; `name` says which image where there are several.
///
/// # Errors
/// When it is no layout, or holds no image of the platform or name.
pub fn outline(path: &Path, platform: Option<&Platform>, name: Option<&str>) -> Result<Outline, ImageError> {
    let (config, _) = documents(path, platform, name)?;
    Ok(Outline {
        id: Digest::of(&config),
        diff_ids: ImageConfig::parse(&config)?.diff_ids().to_vec(),
    })
}

pub(super) fn read(
    path: &Path,
    platform: Option<&Platform>,
    name: Option<&str>,
) -> Result<Contents, ImageError> {
    let (config, layers) = documents(path, platform, name)?;
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
                _directory: None,
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

fn documents(
    path: &Path,
    platform: Option<&Platform>,
    name: Option<&str>,
) -> Result<(Bytes, Vec<Descriptor>), ImageError> {
    let index = path.join("index.json");
    let top = std::fs::read(&index).map_err(ImageError::io("read", &index))?;
    resolve(top, platform, name, &mut |digest| {
        document(&blob_path(path, digest), digest)
    })
}

/// A manifest, index or configuration from its file.
pub(super) fn document(file: &Path, digest: &Digest) -> Result<Vec<u8>, ImageError> {
    let size = std::fs::metadata(file)
        .map_err(ImageError::io("read", file))?
        .len();
    if size > DOCUMENT_LIMIT {
        return Err(ImageError::NotAnImage {
            why: format!("{digest} is too large for a manifest"),
        });
    }
    std::fs::read(file).map_err(ImageError::io("read", file))
}

/// Follows an index to the one image of the platform: its configuration and its layers.
pub(super) fn resolve(
    top: Vec<u8>,
    platform: Option<&Platform>,
    name: Option<&str>,
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
    let mut name = name;
    for _ in 0..DEPTH {
        let manifest = Manifest::parse(&document).map_err(|error| not(error.to_string()))?;
        if let Some(config) = manifest.config {
            let bytes = load_checked(&config.digest, "configuration")?;
            return Ok((bytes.into(), manifest.layers));
        }
        // Only the outermost index has names.
        let named = match name.take() {
            Some(name) => named(manifest.manifests, name)?,
            None => manifest.manifests,
        };
        let chosen = choose(named, platform)?;
        document = load_checked(&chosen.digest, "manifest")?;
    }
    Err(not("its indexes are nested too deep".to_owned()))
}

/// The entries of this name: a tag, or all of what the index calls it.
fn named(entries: Vec<Descriptor>, wanted: &str) -> Result<Vec<Descriptor>, ImageError> {
    let names = |entry: &Descriptor| -> Vec<String> {
        NAMES
            .iter()
            .filter_map(|key| entry.annotations.get(*key).cloned())
            .collect()
    };
    let there: Vec<String> = entries.iter().flat_map(names).collect();
    let found: Vec<Descriptor> = entries
        .into_iter()
        .filter(|entry| names(entry).iter().any(|name| is_called(name, wanted)))
        .collect();
    if found.is_empty() {
        return Err(ImageError::NotAnImage {
            why: format!("it holds no image {wanted}, only {}", there.join(", ")),
        });
    }
    Ok(found)
}

/// Whether an image's name is `wanted`, or ends with it as its tag.
pub(super) fn is_called(name: &str, wanted: &str) -> bool {
    name == wanted || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
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
            "it holds {count} images; name the platform or the image, or export one"
        ))),
    }
}

fn blob_path(path: &Path, digest: &Digest) -> std::path::PathBuf {
    path.join("blobs/sha256").join(digest.hex())
}
