//! Compressing layers, several at a time, the same way every time.

use std::io::{Read, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest;
use bytes::Bytes;

use super::{BlobFile, Found, ImageError, Layer, Place, PrepareOptions};
use crate::change::{BlobRef, Digest};
use crate::store::{Compression, HaveAnswer};

/// gzip's own default: a slower level gains little on layers.
const GZIP_LEVEL: u32 = 6;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;
/// Blobs up to this size stay in memory.
const IN_MEMORY: usize = 256 << 10;

type Work = (usize, Digest, Found);

/// Brings every layer into a form the host accepts; results carry the index of their layer.
pub(super) fn all(
    work: Vec<Work>,
    have: &HaveAnswer,
    options: &PrepareOptions,
) -> Result<Vec<(usize, Layer)>, ImageError> {
    let threads = options.threads.clamp(1, work.len().max(1));
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(work.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((index, diff_id, found)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let layer = one(diff_id, found, &have.accepts, options).map(|layer| (*index, layer));
                    done.lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push(layer);
                }
            });
        }
    });
    done.into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .into_iter()
        .collect()
}

fn one(
    diff_id: &Digest,
    found: &Found,
    accepts: &[Compression],
    options: &PrepareOptions,
) -> Result<Layer, ImageError> {
    let scratch = options.scratch.as_path();
    let Found::Here {
        place,
        size,
        compression,
        digest,
    } = found
    else {
        return Err(ImageError::NotAnImage {
            why: format!("the layer {diff_id} is missing"),
        });
    };
    if let Some(ask) = &options.ask
        && accepts.contains(&Compression::None)
        && let Some(layer) = super::delta::layer(diff_id, found, ask, scratch)?
    {
        return Ok(layer);
    }
    let compressed_fine = *compression != Compression::None && accepts.contains(compression);
    if let (true, Some(named)) = (compressed_fine, digest) {
        // Sent as it is: the base image's own blobs keep their digests.
        let (raw, content) = hashes(place, *compression)?;
        check("layer", named, raw)?;
        check("layer", diff_id, content)?;
        let blob = BlobRef {
            digest: named.clone(),
            size: *size,
        };
        return Ok(Layer {
            diff_id: diff_id.clone(),
            blob,
            compression: *compression,
            place: place.clone(),
        });
    }
    let target = accepts
        .iter()
        .copied()
        .find(|target| *target != Compression::None)
        .or_else(|| accepts.first().copied());
    let target = target.ok_or(ImageError::NoCompression)?;
    let mut input = compression.decoder(open(place)?).map_err(ImageError::Archive)?;
    let mut sink = Sink::new(scratch)?;
    let content = match target {
        Compression::None => copy(&mut input, &mut sink)?,
        Compression::Gzip => {
            // No name and no time in the header, so that equal content gives equal bytes.
            let mut encoder = flate2::GzBuilder::new().write(&mut sink, flate2::Compression::new(GZIP_LEVEL));
            let content = copy(&mut input, &mut encoder)?;
            encoder.finish().map_err(ImageError::io("write", scratch))?;
            content
        }
        Compression::Zstd => {
            let mut encoder =
                zstd::Encoder::new(&mut sink, ZSTD_LEVEL).map_err(ImageError::io("write", scratch))?;
            let content = copy(&mut input, &mut encoder)?;
            encoder.finish().map_err(ImageError::io("write", scratch))?;
            content
        }
    };
    check("layer", diff_id, content)?;
    let (blob, place) = sink.finish(scratch)?;
    Ok(Layer {
        diff_id: diff_id.clone(),
        blob,
        compression: target,
        place,
    })
}

pub(super) fn check(what: &'static str, wanted: &Digest, found: Digest) -> Result<(), ImageError> {
    if *wanted == found {
        Ok(())
    } else {
        Err(ImageError::Damaged {
            what,
            wanted: wanted.clone(),
            found,
        })
    }
}

pub(super) fn open(place: &Place) -> Result<Box<dyn Read + Send + '_>, ImageError> {
    Ok(match place {
        Place::Memory(bytes) => Box::new(&bytes[..]),
        Place::File(file) => {
            Box::new(std::fs::File::open(&file.path).map_err(ImageError::io("open", &file.path))?)
        }
        Place::OnHost | Place::Delta(_) => Box::new(std::io::empty()),
    })
}

/// Digests of the bytes as they are and of what they hold, in one pass.
fn hashes(place: &Place, compression: Compression) -> Result<(Digest, Digest), ImageError> {
    let mut raw = Hashing {
        inner: open(place)?,
        hash: digest::Context::new(&digest::SHA256),
    };
    let content = {
        let mut input = compression.decoder(&mut raw).map_err(ImageError::Archive)?;
        copy(&mut input, &mut std::io::sink())?
    };
    // Bytes behind the end of the compressed data belong to the blob as well.
    std::io::copy(&mut raw, &mut std::io::sink()).map_err(ImageError::Archive)?;
    Ok((Digest::from_hash(raw.hash.finish().as_ref()), content))
}

struct Hashing<R> {
    inner: R,
    hash: digest::Context,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// Copies and hashes what passes.
fn copy(input: &mut dyn Read, output: &mut dyn std::io::Write) -> Result<Digest, ImageError> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 128 << 10];
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => return Ok(Digest::from_hash(hash.finish().as_ref())),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ImageError::Archive(error)),
        };
        hash.update(&buffer[..count]);
        output
            .write_all(&buffer[..count])
            .map_err(ImageError::io("write", Path::new("the scratch directory")))?;
    }
}

/// Where compressed bytes go: into memory while they are few, then into a temporary file.
struct Sink {
    memory: Vec<u8>,
    file: Option<tempfile::NamedTempFile>,
    scratch: std::path::PathBuf,
    hash: digest::Context,
    size: u64,
}

impl Sink {
    fn new(scratch: &Path) -> Result<Self, ImageError> {
        std::fs::create_dir_all(scratch).map_err(ImageError::io("create", scratch))?;
        Ok(Self {
            memory: Vec::new(),
            file: None,
            scratch: scratch.to_owned(),
            hash: digest::Context::new(&digest::SHA256),
            size: 0,
        })
    }

    fn finish(self, scratch: &Path) -> Result<(BlobRef, Place), ImageError> {
        let blob = BlobRef {
            digest: Digest::from_hash(self.hash.finish().as_ref()),
            size: self.size,
        };
        let place = match self.file {
            None => Place::Memory(Bytes::from(self.memory)),
            Some(mut file) => {
                file.flush().map_err(ImageError::io("write", scratch))?;
                let temporary = file.into_temp_path();
                Place::File(Arc::new(BlobFile {
                    path: temporary.to_path_buf(),
                    _temporary: Some(temporary),
                    _directory: None,
                }))
            }
        };
        Ok((blob, place))
    }
}

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.file.is_none() && self.memory.len() + bytes.len() > IN_MEMORY {
            let mut file = tempfile::NamedTempFile::new_in(&self.scratch)?;
            file.write_all(&self.memory)?;
            self.memory = Vec::new();
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => file.write_all(bytes)?,
            None => self.memory.extend_from_slice(bytes),
        }
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
