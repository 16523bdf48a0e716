//! The image configuration as far as it is needed, and the manifest made from it.

use bytes::Bytes;
use serde::Deserialize;

use super::{ImageError, Layer, Prepared};
use crate::change::{Digest, Platform};
use crate::store::{Descriptor, Manifest, media_type};

/// An image configuration (OCI image specification, `config.md`), which Docker's own form is a superset of.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    architecture: String,
    os: String,
    #[serde(default)]
    variant: Option<String>,
    rootfs: RootFs,
    #[serde(default)]
    config: Option<Runtime>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Runtime {
    #[serde(rename = "Labels", default)]
    labels: Option<std::collections::BTreeMap<String, String>>,
}

impl ImageConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        serde_json::from_slice(bytes).map_err(|error| ImageError::NotAnImage {
            why: format!("its configuration cannot be read: {error}"),
        })
    }

    /// Digests of the uncompressed layers, lowest first.
    pub fn diff_ids(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }

    /// What the image is built for.
    pub fn platform(&self) -> Platform {
        let variant = self.variant.clone().filter(|variant| !variant.is_empty());
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant,
        }
    }

    /// A label of the image, such as `service`.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.config
            .as_ref()?
            .labels
            .as_ref()?
            .get(name)
            .map(String::as_str)
    }

    /// Whether a host of this platform can run the image.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check_platform(&self, wanted: &Platform) -> Result<(), ImageError> {
        let found = self.platform();
        let variants = found.variant.is_none() || wanted.variant.is_none() || found.variant == wanted.variant;
        if found.os == wanted.os && found.architecture == wanted.architecture && variants {
            return Ok(());
        }
        Err(ImageError::Platform {
            wanted: Box::new(wanted.clone()),
            found: Box::new(found),
        })
    }
}

/// Makes the manifest; the same layers and configuration always give the same bytes.
pub(super) fn assemble(
    config: Bytes,
    parsed: &ImageConfig,
    layers: Vec<Layer>,
) -> Result<Prepared, ImageError> {
    let descriptor = Descriptor::new(media_type::OCI_CONFIG, Digest::of(&config), config.len() as u64);
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Some(descriptor),
        layers: layers
            .iter()
            .map(|layer| {
                Descriptor::new(
                    layer.compression.media_type(),
                    layer.blob.digest.clone(),
                    layer.blob.size,
                )
            })
            .collect(),
        manifests: Vec::new(),
        subject: None,
        annotations: Default::default(),
    };
    let bytes = serde_json::to_vec(&manifest).expect("plain data always has a JSON form");
    Ok(Prepared {
        platform: parsed.platform(),
        config,
        manifest: bytes.into(),
        media_type: media_type::OCI_MANIFEST,
        layers,
    })
}
