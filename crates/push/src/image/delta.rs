//! Layers of which only the missing chunks are sent.

use std::io::{Read, Seek as _, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest;

use super::compress::{check, open};
use super::{BlobFile, Found, ImageError, Layer, Place};
use crate::change::{BlobRef, Digest};
use crate::delta::{self, Chunk, Recipe, SMALLEST_LAYER};
use crate::store::Compression;

/// Asks the host which of these chunks it has; `None` when it cannot tell.
pub type Ask = Arc<dyn Fn(&[Chunk]) -> Option<Vec<bool>> + Send + Sync>;

/// zstd's level for the chunks: they are few, and the link is slow.
const LEVEL: i32 = 9;

/// A delta that is ready to be sent, and the whole layer in case the host cannot use it.
#[derive(Debug)]
pub struct Delta {
    /// The delta's bytes, compressed.
    pub bytes: BlobFile,
    /// Their number.
    pub size: u64,
    /// The uncompressed layer.
    pub whole: Arc<BlobFile>,
}

/// The layer as a delta, if the host has at least half of it.
///
/// # Errors
/// When the layer is damaged, or the scratch directory fails.
pub(super) fn layer(
    diff_id: &Digest,
    found: &Found,
    ask: &Ask,
    scratch: &Path,
) -> Result<Option<Layer>, ImageError> {
    let Found::Here {
        place,
        size,
        compression,
        ..
    } = found
    else {
        return Ok(None);
    };
    if *size < SMALLEST_LAYER {
        return Ok(None);
    }
    let failed = || ImageError::io("write", scratch);
    std::fs::create_dir_all(scratch).map_err(ImageError::io("create", scratch))?;
    let mut reader = compression.decoder(open(place)?).map_err(ImageError::Archive)?;
    // A layer that lies uncompressed in a file of ours is not copied once more.
    let mut copy = match (place, compression) {
        (Place::File(_), Compression::None) => None,
        _ => Some(tempfile::NamedTempFile::new_in(scratch).map_err(failed())?),
    };
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut length = 0;
    let mut spilled = Ok(());
    let chunks = delta::cut(&mut reader, |_, bytes| {
        hash.update(bytes);
        length += bytes.len() as u64;
        if let (Some(copy), Ok(())) = (&mut copy, &spilled) {
            spilled = copy.write_all(bytes);
        }
    })
    .map_err(ImageError::Archive)?;
    drop(reader);
    spilled.map_err(failed())?;
    check("layer", diff_id, Digest::from_hash(hash.finish().as_ref()))?;
    let Some(there) = ask(&chunks).filter(|there| there.len() == chunks.len()) else {
        return Ok(None);
    };
    let recipe = recipe(&chunks, &there, length);
    let missing: u64 = recipe
        .chunks
        .iter()
        .filter(|(_, follows)| *follows)
        .map(|(chunk, _)| u64::from(chunk.length))
        .sum();
    if missing * 2 > length {
        return Ok(None);
    }
    let whole = match (copy, place) {
        (Some(copy), _) => {
            let temporary = copy.into_temp_path();
            Arc::new(BlobFile {
                path: temporary.to_path_buf(),
                _temporary: Some(temporary),
                _directory: None,
            })
        }
        (None, Place::File(file)) => Arc::clone(file),
        (None, _) => return Ok(None),
    };
    let (bytes, size) = write(&recipe, &whole.path, scratch)?;
    Ok(Some(Layer {
        diff_id: diff_id.clone(),
        blob: BlobRef {
            digest: diff_id.clone(),
            size: length,
        },
        compression: Compression::None,
        place: Place::Delta(Arc::new(Delta { bytes, size, whole })),
    }))
}

/// Each missing chunk follows once.
fn recipe(chunks: &[Chunk], there: &[bool], size: u64) -> Recipe {
    let mut sent = std::collections::HashSet::new();
    Recipe {
        size,
        chunks: chunks
            .iter()
            .zip(there)
            .map(|(chunk, there)| (*chunk, !there && sent.insert(chunk.id)))
            .collect(),
    }
}

fn write(recipe: &Recipe, layer: &Path, scratch: &Path) -> Result<(BlobFile, u64), ImageError> {
    let failed = || ImageError::io("write", scratch);
    let mut layer_file = std::fs::File::open(layer).map_err(ImageError::io("open", layer))?;
    let file = tempfile::NamedTempFile::new_in(scratch).map_err(failed())?;
    let mut encoder = zstd::Encoder::new(file, LEVEL).map_err(failed())?;
    recipe.write(&mut encoder).map_err(failed())?;
    let mut offset = 0;
    for (chunk, follows) in &recipe.chunks {
        if *follows {
            layer_file
                .seek(SeekFrom::Start(offset))
                .map_err(ImageError::io("read", layer))?;
            let copied = std::io::copy(
                &mut Read::by_ref(&mut layer_file).take(u64::from(chunk.length)),
                &mut encoder,
            )
            .map_err(failed())?;
            if copied != u64::from(chunk.length) {
                return Err(ImageError::NotAnImage {
                    why: format!("{} became shorter while it was read", layer.display()),
                });
            }
        }
        offset += u64::from(chunk.length);
    }
    let file = encoder.finish().map_err(failed())?;
    let size = file.as_file().metadata().map_err(failed())?.len();
    let temporary = file.into_temp_path();
    let bytes = BlobFile {
        path: temporary.to_path_buf(),
        _temporary: Some(temporary),
        _directory: None,
    };
    Ok((bytes, size))
}
