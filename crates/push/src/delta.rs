//! Chunk-level delta: of a layer that changed, only the chunks travel that the host lacks.
//!
//! ```text
//! developer                                              host
//! uncompressed layer ─ FastCDC ─► ids ── POST chunks ──► which of them do the repository's newest images have?
//!                                     ◄── one bit each ──
//! zstd( recipe, missing chunks ) ────── PUT delta ─────► copies the rest from its own layers,
//!                                                        checks size and SHA-256 (= diff id), stores the layer
//! ```
//!
//! The layer is stored uncompressed on the host, so its digest is known to the developer without compressing anything.
//! Only layers of the same repository are looked into: what another app holds can be neither asked for nor copied.
//! A chunk id is cut to 128 bits; a wrong chunk is found by the digest of the whole, and the layer is then sent whole.
//!
//! The question's body is the ids one after the other, 16 bytes each; the answer has one bit for each, lowest first.
//! The delta's body is one zstd frame with, all numbers big endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `appdelta` |
//! | 8 | size of the layer |
//! | 4 | number of chunks, at most [`CHUNK_LIMIT`] |
//! | 20 each | id; then length, with the highest bit set if the bytes of the chunk follow |
//! | rest | the chunks that follow, in the order of the list |

use std::io::{Read, Write};

use aws_lc_rs::digest;
use fastcdc::v2020::StreamCDC;

/// Smallest chunk in bytes, but for the last.
pub const MIN_CHUNK: usize = 16 << 10;
/// Chunks are about this long.
pub const AVERAGE_CHUNK: usize = 64 << 10;
/// Longest chunk.
pub const MAX_CHUNK: usize = 256 << 10;
/// Most chunks of one layer: 32 GiB of average ones.
pub const CHUNK_LIMIT: usize = 1 << 19;
/// Layers smaller than this are sent whole.
pub const SMALLEST_LAYER: u64 = 1 << 20;

const MAGIC: &[u8; 8] = b"appdelta";
const FOLLOWS: u32 = 1 << 31;

/// The first 16 bytes of a chunk's SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub [u8; 16]);

impl ChunkId {
    /// The id of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let hash = digest::digest(&digest::SHA256, bytes);
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_ref()[..16]);
        Self(id)
    }
}

/// A chunk of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// What it is.
    pub id: ChunkId,
    /// Its length in bytes.
    pub length: u32,
}

/// Bytes that are no recipe.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// They could not be read.
    #[error("the delta cannot be read")]
    Read(#[from] std::io::Error),
    /// They begin otherwise.
    #[error("this is no delta of a version that is understood here")]
    Magic,
    /// Too many chunks.
    #[error("the delta has {0} chunks; the limit is {CHUNK_LIMIT}")]
    TooMany(u32),
    /// A chunk without bytes, or with too many.
    #[error("chunk {index} of the delta has {length} bytes; possible are 1 to {MAX_CHUNK}")]
    Length {
        /// Which, from 0.
        index: usize,
        /// Its length.
        length: u32,
    },
    /// The chunks do not make up the layer.
    #[error("the chunks of the delta have {found} bytes, the layer {wanted}")]
    Size {
        /// What the delta says.
        wanted: u64,
        /// The sum.
        found: u64,
    },
}

/// Cuts a layer into chunks; `each` sees the bytes of every one as they pass.
///
/// # Errors
/// When the layer cannot be read, or has more than [`CHUNK_LIMIT`] chunks.
pub fn cut(layer: impl Read, mut each: impl FnMut(&Chunk, &[u8])) -> std::io::Result<Vec<Chunk>> {
    let mut chunks = Vec::new();
    for piece in StreamCDC::new(layer, MIN_CHUNK, AVERAGE_CHUNK, MAX_CHUNK) {
        let piece = piece.map_err(std::io::Error::other)?;
        if chunks.len() == CHUNK_LIMIT {
            return Err(std::io::Error::other(format!("more than {CHUNK_LIMIT} chunks")));
        }
        let chunk = Chunk {
            id: ChunkId::of(&piece.data),
            length: u32::try_from(piece.data.len()).map_err(std::io::Error::other)?,
        };
        each(&chunk, &piece.data);
        chunks.push(chunk);
    }
    Ok(chunks)
}

/// The list at the head of a delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Size of the layer in bytes.
    pub size: u64,
    /// Its chunks in order, and whether the bytes of each follow.
    pub chunks: Vec<(Chunk, bool)>,
}

impl Recipe {
    /// Writes the list.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, mut out: impl Write) -> std::io::Result<()> {
        out.write_all(MAGIC)?;
        out.write_all(&self.size.to_be_bytes())?;
        let count = u32::try_from(self.chunks.len()).map_err(std::io::Error::other)?;
        out.write_all(&count.to_be_bytes())?;
        for (chunk, follows) in &self.chunks {
            out.write_all(&chunk.id.0)?;
            let length = chunk.length | if *follows { FOLLOWS } else { 0 };
            out.write_all(&length.to_be_bytes())?;
        }
        Ok(())
    }

    /// Reads the list; the chunks that follow are left to be read.
    ///
    /// # Errors
    /// When it is none, or beyond the limits; no more than the limits is ever allocated.
    pub fn read(mut from: impl Read) -> Result<Self, RecipeError> {
        let mut magic = [0; 8];
        from.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(RecipeError::Magic);
        }
        let mut size = [0; 8];
        from.read_exact(&mut size)?;
        let size = u64::from_be_bytes(size);
        let mut count = [0; 4];
        from.read_exact(&mut count)?;
        let count = u32::from_be_bytes(count);
        if count as usize > CHUNK_LIMIT {
            return Err(RecipeError::TooMany(count));
        }
        let mut chunks = Vec::new();
        let mut found = 0;
        for index in 0..count as usize {
            let mut entry = [0; 20];
            from.read_exact(&mut entry)?;
            let mut id = [0; 16];
            id.copy_from_slice(&entry[..16]);
            let word = u32::from_be_bytes([entry[16], entry[17], entry[18], entry[19]]);
            let length = word & !FOLLOWS;
            if length == 0 || length as usize > MAX_CHUNK {
                return Err(RecipeError::Length { index, length });
            }
            found += u64::from(length);
            let chunk = Chunk {
                id: ChunkId(id),
                length,
            };
            chunks.push((chunk, word & FOLLOWS != 0));
        }
        if found != size {
            return Err(RecipeError::Size { wanted: size, found });
        }
        Ok(Self { size, chunks })
    }
}

/// The ids of a question's body; `None` if it is not made of ids or asks for too many.
pub fn ids(body: &[u8]) -> Option<Vec<ChunkId>> {
    if !body.len().is_multiple_of(16) || body.len() / 16 > CHUNK_LIMIT {
        return None;
    }
    let ids = body.chunks_exact(16).map(|id| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(id);
        ChunkId(bytes)
    });
    Some(ids.collect())
}

/// The answer's body: one bit each, lowest first.
pub fn bits(there: impl ExactSizeIterator<Item = bool>) -> Vec<u8> {
    let mut bytes = vec![0_u8; there.len().div_ceil(8)];
    for (index, there) in there.enumerate() {
        bytes[index / 8] |= u8::from(there) << (index % 8);
    }
    bytes
}

/// Whether the answer says yes to the question at `index`.
pub fn bit(bytes: &[u8], index: usize) -> bool {
    bytes
        .get(index / 8)
        .is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::noise;

    fn chunks(bytes: &[u8]) -> Vec<Chunk> {
        cut(bytes, |_, _| ()).expect("memory can be read")
    }

    #[test]
    fn a_change_in_the_middle_leaves_the_other_chunks_as_they_were() {
        let before = noise(1, 4 << 20);
        let mut after = before.clone();
        after.splice(2_000_000..2_000_010, *b"one line more or less");
        let (before, after) = (chunks(&before), chunks(&after));
        let new = after.iter().filter(|chunk| !before.contains(chunk)).count();
        assert!((1..=3).contains(&new), "{new} of {} chunks are new", after.len());
    }

    #[test]
    fn a_recipe_is_read_as_it_was_written() {
        let layer = noise(2, 1 << 20);
        let recipe = Recipe {
            size: layer.len() as u64,
            chunks: chunks(&layer)
                .into_iter()
                .enumerate()
                .map(|(index, chunk)| (chunk, index % 3 == 0))
                .collect(),
        };
        let mut bytes = Vec::new();
        recipe.write(&mut bytes).expect("memory can be written");
        bytes.extend_from_slice(b"what follows");
        let mut rest = &bytes[..];
        assert_eq!(Recipe::read(&mut rest).expect("a recipe"), recipe);
        assert_eq!(rest, b"what follows");
    }

    #[test]
    fn what_is_no_recipe_or_beyond_the_limits_is_refused() {
        let recipe = |size: u64, count: u32, words: &[u32]| {
            let mut bytes = b"appdelta".to_vec();
            bytes.extend_from_slice(&size.to_be_bytes());
            bytes.extend_from_slice(&count.to_be_bytes());
            for word in words {
                bytes.extend_from_slice(&[0; 16]);
                bytes.extend_from_slice(&word.to_be_bytes());
            }
            Recipe::read(&bytes[..])
        };
        assert!(recipe(5, 1, &[5]).is_ok());
        assert!(matches!(Recipe::read(&b"nonsense"[..]), Err(RecipeError::Magic)));
        assert!(matches!(recipe(5, u32::MAX, &[]), Err(RecipeError::TooMany(_))));
        assert!(matches!(
            recipe(0, 1, &[0]),
            Err(RecipeError::Length { index: 0, .. })
        ));
        assert!(matches!(
            recipe(1 << 20, 1, &[1 << 20]),
            Err(RecipeError::Length { .. })
        ));
        assert!(matches!(
            recipe(6, 1, &[5 | FOLLOWS]),
            Err(RecipeError::Size { wanted: 6, found: 5 })
        ));
        assert!(matches!(recipe(5, 2, &[5]), Err(RecipeError::Read(_))));
    }

    #[test]
    fn questions_and_answers_have_one_form() {
        assert_eq!(ids(&[7; 33]), None);
        assert_eq!(ids(&[7; 32]), Some(vec![ChunkId([7; 16]); 2]));
        let there = [true, false, false, true, true, false, false, false, false, true];
        let bytes = bits(there.into_iter());
        assert_eq!(bytes, [0b0001_1001, 0b10]);
        for (index, there) in there.into_iter().enumerate() {
            assert_eq!(bit(&bytes, index), there);
        }
        assert!(!bit(&bytes, 99));
    }
}
