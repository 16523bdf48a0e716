//! Image archives, read once from front to end: `docker save` of both image stores, and OCI archives.
//!
//! The classic store writes `<id>/layer.tar` and tells only at the end (`manifest.json`) which layer is which;
//! newer engines and the containerd store write `blobs/sha256/<digest>` (and both kinds of index).
//! Layers go to temporary files as they pass, except those that the host is known to have.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, Read, Write as _};
use std::path::{Component, Path};
use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::Bytes;
use serde::Deserialize;

use super::{BlobFile, Cache, Contents, Found, ImageError, Place, PrepareOptions, layout, on_host};
use crate::change::Digest;
use crate::store::{Compression, HaveAnswer};

/// Documents and small layers stay in memory up to this size.
const SMALL: u64 = 1 << 20;
/// Largest document.
const DOCUMENT_LIMIT: usize = 8 << 20;
/// Entries of an honest archive: three for each of 127 layers, and some.
const ENTRIES: usize = 4096;

/// An entry's content and the digest it was seen to have.
enum Entry {
    Here {
        place: Place,
        size: u64,
        digest: Digest,
        compression: Compression,
    },
    /// Passed over, because the host has the layer of this digest.
    Skipped,
    /// The same as another entry.
    Link(String),
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

impl Saved {
    fn is_called(&self, wanted: &str) -> bool {
        let mut names = self.repo_tags.iter().flatten();
        names.any(|name| layout::is_called(name, wanted))
    }
}

pub(super) fn read(
    input: impl Read,
    have: &HaveAnswer,
    cache: &Cache,
    options: &PrepareOptions,
) -> Result<Contents, ImageError> {
    let skip = Skip {
        have,
        cache,
        blobs: cache.usable_blobs(have),
    };
    let entries = entries(input, &skip, options)?;
    // Layers of `docker save` are named by the one list that also says which configuration is theirs.
    match document(&entries, "manifest.json")? {
        Some(list) => docker(&entries, &list, options),
        None => match document(&entries, "index.json")? {
            Some(index) => oci(&entries, index, options),
            None => Err(ImageError::NotAnImage {
                why: "it holds neither manifest.json nor index.json".to_owned(),
            }),
        },
    }
}

/// Which entries need not be read.
struct Skip<'a> {
    have: &'a HaveAnswer,
    cache: &'a Cache,
    /// Compressed layers on the host.
    blobs: BTreeSet<Digest>,
}

impl Skip<'_> {
    /// Whether the host has what an entry of this name holds; only names that are digests can tell.
    fn is_there(&self, named: Option<&Digest>) -> bool {
        named.is_some_and(|digest| {
            self.blobs.contains(digest) || on_host(digest, self.have, self.cache).is_some()
        })
    }
}

fn entries(
    input: impl Read,
    skip: &Skip<'_>,
    options: &PrepareOptions,
) -> Result<BTreeMap<String, Entry>, ImageError> {
    let mut archive = tar::Archive::new(unpacked(input)?);
    let mut found = BTreeMap::new();
    for (count, entry) in archive.entries().map_err(ImageError::Archive)?.enumerate() {
        if count >= ENTRIES {
            return Err(ImageError::NotAnImage {
                why: format!("it has more than {ENTRIES} entries"),
            });
        }
        let mut entry = entry.map_err(ImageError::Archive)?;
        let Some(name) = plain(&entry.path().map_err(ImageError::Archive)?, Path::new("")) else {
            continue;
        };
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            // Layers that occur twice are links to the first one.
            let target = entry.link_name().map_err(ImageError::Archive)?;
            let base = if kind.is_symlink() {
                Path::new(&name).parent()
            } else {
                None
            };
            if let Some(target) = target.and_then(|target| plain(&target, base.unwrap_or(Path::new("")))) {
                found.insert(name, Entry::Link(target));
            }
            continue;
        }
        if !kind.is_file() {
            continue;
        }
        let named = name
            .strip_prefix("blobs/sha256/")
            .and_then(|hex| Digest::parse(&format!("sha256:{hex}")).ok());
        let content = if entry.size() > SMALL && skip.is_there(named.as_ref()) {
            Entry::Skipped
        } else {
            let content = take(&mut entry, options)?;
            if let (Some(wanted), Entry::Here { digest: found, .. }) = (named, &content)
                && wanted != *found
            {
                return Err(ImageError::Damaged {
                    what: "archive",
                    wanted,
                    found: found.clone(),
                });
            }
            // A layer that only its content shows to be there already need not wait on the disk.
            match content {
                Entry::Here { digest, size, .. } if size > SMALL && skip.is_there(Some(&digest)) => {
                    Entry::Skipped
                }
                content => content,
            }
        };
        found.insert(name, content);
    }
    Ok(found)
}

/// The tar stream, also of an archive that was compressed as a whole.
fn unpacked<'a>(input: impl Read + 'a) -> Result<Box<dyn Read + 'a>, ImageError> {
    let mut input = std::io::BufReader::with_capacity(256 << 10, input);
    let compression = guess(input.fill_buf().map_err(ImageError::Archive)?);
    compression.decoder(input).map_err(ImageError::Archive)
}

/// A path inside the archive without `.` and `..`; none for those that lead out of it.
fn plain(path: &Path, base: &Path) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    for component in base.join(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?.to_owned()),
            Component::CurDir => {}
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn take(entry: &mut impl Read, options: &PrepareOptions) -> Result<Entry, ImageError> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut memory = Vec::new();
    entry
        .take(SMALL + 1)
        .read_to_end(&mut memory)
        .map_err(ImageError::Archive)?;
    hash.update(&memory);
    let compression = guess(&memory);
    let mut size = memory.len() as u64;
    if size <= SMALL {
        let digest = Digest::from_hash(hash.finish().as_ref());
        return Ok(Entry::Here {
            place: Place::Memory(Bytes::from(memory)),
            size,
            digest,
            compression,
        });
    }
    let scratch = &options.scratch;
    std::fs::create_dir_all(scratch).map_err(ImageError::io("create", scratch))?;
    let mut file = tempfile::NamedTempFile::new_in(scratch).map_err(ImageError::io("write", scratch))?;
    file.write_all(&memory)
        .map_err(ImageError::io("write", scratch))?;
    memory.resize(256 << 10, 0);
    memory.shrink_to_fit();
    loop {
        let count = entry.read(&mut memory).map_err(ImageError::Archive)?;
        if count == 0 {
            break;
        }
        hash.update(&memory[..count]);
        file.write_all(&memory[..count])
            .map_err(ImageError::io("write", scratch))?;
        size += count as u64;
    }
    let temporary = file.into_temp_path();
    let file = BlobFile {
        path: temporary.to_path_buf(),
        _temporary: Some(temporary),
        _directory: None,
    };
    let digest = Digest::from_hash(hash.finish().as_ref());
    Ok(Entry::Here {
        place: Place::File(Arc::new(file)),
        size,
        digest,
        compression,
    })
}

/// How a layer is compressed, from its first bytes; archives do not always say.
fn guess(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

fn follow<'a>(entries: &'a BTreeMap<String, Entry>, name: &str) -> Option<&'a Entry> {
    let mut seen = BTreeSet::new();
    let mut name = plain(Path::new(name), Path::new(""))?;
    while let Entry::Link(target) = entries.get(&name)? {
        if !seen.insert(name) {
            return None;
        }
        name = target.clone();
    }
    entries.get(&name)
}

fn document(entries: &BTreeMap<String, Entry>, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
    let bytes = match follow(entries, name) {
        None => return Ok(None),
        Some(Entry::Here {
            place: Place::Memory(bytes),
            ..
        }) => bytes.to_vec(),
        Some(Entry::Here {
            place: Place::File(file),
            size,
            ..
        }) if *size <= DOCUMENT_LIMIT as u64 => {
            std::fs::read(&file.path).map_err(ImageError::io("read", &file.path))?
        }
        Some(_) => {
            return Err(ImageError::NotAnImage {
                why: format!("{name} is too large"),
            });
        }
    };
    Ok(Some(bytes))
}

fn layer(entries: &BTreeMap<String, Entry>, name: &str) -> Result<Found, ImageError> {
    match follow(entries, name) {
        None | Some(Entry::Link(_)) => Err(ImageError::NotAnImage {
            why: format!("it names the layer {name}, which is not in it"),
        }),
        Some(Entry::Skipped) => Ok(Found::Skipped),
        Some(Entry::Here {
            place,
            size,
            digest,
            compression,
        }) => Ok(Found::Here {
            place: place.clone(),
            size: *size,
            compression: *compression,
            digest: Some(digest.clone()),
        }),
    }
}

fn docker(
    entries: &BTreeMap<String, Entry>,
    list: &[u8],
    options: &PrepareOptions,
) -> Result<Contents, ImageError> {
    let not = |why: String| ImageError::NotAnImage { why };
    let saved: Vec<Saved> = serde_json::from_slice(list)
        .map_err(|error| not(format!("manifest.json cannot be read: {error}")))?;
    let mut fitting = Vec::new();
    let mut others = Vec::new();
    if let Some(wanted) = &options.name
        && !saved.iter().any(|image| image.is_called(wanted))
    {
        let names: Vec<String> = saved
            .into_iter()
            .flat_map(|image| image.repo_tags.unwrap_or_default())
            .collect();
        return Err(not(format!(
            "it holds no image {wanted}, only {}",
            names.join(", ")
        )));
    }
    for image in saved {
        if options
            .name
            .as_ref()
            .is_some_and(|wanted| !image.is_called(wanted))
        {
            continue;
        }
        let config = document(entries, &image.config)?.ok_or_else(|| {
            not(format!(
                "it names the configuration {}, which is not in it",
                image.config
            ))
        })?;
        let parsed = super::ImageConfig::parse(&config)?;
        match options
            .platform
            .as_ref()
            .map(|wanted| parsed.check_platform(wanted))
        {
            Some(Err(error)) => others.push(error),
            _ => fitting.push((config, image)),
        }
    }
    match (fitting.len(), others.pop()) {
        (1, _) => {}
        (0, Some(error)) => return Err(error),
        (0, None) => return Err(not("manifest.json names no image".to_owned())),
        (count, _) => return Err(not(format!("it holds {count} images; export one, or name it"))),
    }
    let (config, image) = fitting.remove(0);
    let layers = image
        .layers
        .iter()
        .map(|name| layer(entries, name))
        .collect::<Result<_, _>>()?;
    Ok(Contents {
        config: config.into(),
        layers,
    })
}

fn oci(
    entries: &BTreeMap<String, Entry>,
    index: Vec<u8>,
    options: &PrepareOptions,
) -> Result<Contents, ImageError> {
    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let (platform, name) = (options.platform.as_ref(), options.name.as_deref());
    let (config, descriptors) = layout::resolve(index, platform, name, &mut |digest| {
        document(entries, &path(digest))?.ok_or_else(|| ImageError::NotAnImage {
            why: format!("it names {digest}, which is not in it"),
        })
    })?;
    let layers = descriptors
        .iter()
        .map(|named| layer(entries, &path(&named.digest)))
        .collect::<Result<_, _>>()?;
    Ok(Contents { config, layers })
}
