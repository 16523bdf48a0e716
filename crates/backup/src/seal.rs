//! The middle of a backup, both ways, in bounded memory.
//!
//! ```text
//! out:  source ─► tap, SHA-256 ─► zstd ─► age ─► parts of 8 MiB ─► (channel) ─► uploader
//! in:   fetcher ─► (channel) ─► age ─► zstd ─► tap, SHA-256 ─► sink
//! ```
//!
//! Both run on a thread of their own; the channels hold two parts.

use std::io::{self, Read, Write};

use age::x25519;
use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::store::PART;
use crate::tap::{Counts, Tap, TapError};

/// zstd's level: on databases 1 costs half of what 3 does, for the same size.
pub const LEVEL: i32 = 1;
/// What is read at once.
const CHUNK: usize = 256 << 10;
/// Largest window a reader accepts, as a power of two; ours are far smaller.
const WINDOW: u32 = 27;

/// What goes to the uploader.
#[derive(Debug)]
pub enum Piece {
    /// Bytes of the object; all but the last have [`PART`] of them.
    Part(Bytes),
    /// The content is whole. A channel that closes without it means: throw away what came.
    End,
}

/// Why a stream did not make it.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The source cannot be read.
    #[error("cannot read what is to be backed up")]
    Source(#[source] io::Error),
    /// The content is not whole.
    #[error("the content is not whole")]
    Content(#[source] TapError),
    /// The program that writes the content failed.
    #[error("the program that writes the content failed")]
    Verdict,
    /// There is nothing in it.
    #[error("the content is empty")]
    Empty,
    /// Compression or encryption failed.
    #[error("cannot compress and encrypt")]
    Seal(#[source] io::Error),
    /// The recipients are none.
    #[error("cannot encrypt for these recipients")]
    Recipients(#[source] age::EncryptError),
    /// The other side has gone.
    #[error("the upload was given up")]
    Gone,
    /// The key does not open it, or it was altered.
    #[error("cannot decrypt")]
    Decrypt(#[source] age::DecryptError),
    /// The stored bytes do not decode.
    #[error("cannot decrypt and decompress")]
    Open(#[source] io::Error),
    /// It decodes to something else than was backed up.
    #[error("the content is not what was backed up: {what}")]
    Differs {
        /// How it differs.
        what: &'static str,
    },
    /// Where the content goes does not take it.
    #[error("the content is not taken")]
    Sink(#[source] io::Error),
}

/// What was read from a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// What the tap counted.
    pub counts: Option<Counts>,
    /// Why it did not, where it should have.
    pub uncounted: Option<String>,
    /// What the program that wrote it complained about although it did its work.
    pub said: Option<String>,
}

/// The tap and the digest at the clear end of the pipeline.
struct Meter {
    tap: Option<Tap>,
    uncounted: Option<String>,
    digest: Context,
    bytes: u64,
}

impl Meter {
    fn new(tap: Option<Tap>) -> Self {
        Self {
            tap,
            uncounted: None,
            digest: Context::new(&SHA256),
            bytes: 0,
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), TapError> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        let Some(tap) = &mut self.tap else { return Ok(()) };
        match tap.feed(bytes) {
            // A newer form of archive: backed up all the same, and said.
            Err(error @ TapError::Unknown { .. }) => {
                self.uncounted = Some(error.to_string());
                self.tap = None;
                Ok(())
            }
            done => done,
        }
    }

    fn finish(self) -> Result<Summary, TapError> {
        let mut uncounted = self.uncounted;
        let counts = match self.tap.map(Tap::finish) {
            Some(Err(error @ TapError::Unknown { .. })) => {
                uncounted = Some(error.to_string());
                None
            }
            Some(counts) => Some(counts?),
            None => None,
        };
        Ok(Summary {
            bytes: self.bytes,
            sha256: hex::encode(self.digest.finish()),
            counts,
            uncounted,
            said: None,
        })
    }
}

/// Reads `source` to its end and sends it sealed, in parts.
///
/// `verdict` is asked once the source has ended, before the last part is let go: whether the program that wrote it
/// succeeded.
///
/// # Errors
/// When the source fails, is empty or not whole, the verdict is no, or nobody takes the parts.
pub fn seal(
    source: &mut dyn Read,
    tap: Option<Tap>,
    recipients: &[x25519::Recipient],
    parts: &mpsc::Sender<Piece>,
    verdict: impl FnOnce() -> bool,
) -> Result<Summary, SealError> {
    let mut meter = Meter::new(tap);
    let recipients = recipients
        .iter()
        .map(|recipient| recipient as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(recipients).map_err(SealError::Recipients)?;
    let gone = |error: io::Error| match error.kind() {
        io::ErrorKind::BrokenPipe => SealError::Gone,
        _ => SealError::Seal(error),
    };
    let encrypted = encryptor.wrap_output(Cutter::new(parts)).map_err(gone)?;
    let mut compressed = zstd::stream::write::Encoder::new(encrypted, LEVEL).map_err(gone)?;
    compressed.include_checksum(true).map_err(gone)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(SealError::Source(error)),
        };
        let chunk = buffer.get(..read).unwrap_or_default();
        meter.feed(chunk).map_err(SealError::Content)?;
        compressed.write_all(chunk).map_err(gone)?;
    }
    if !verdict() {
        return Err(SealError::Verdict);
    }
    if meter.bytes == 0 {
        return Err(SealError::Empty);
    }
    let summary = meter.finish().map_err(SealError::Content)?;
    let encrypted = compressed.finish().map_err(gone)?;
    let cutter = encrypted.finish().map_err(gone)?;
    cutter.finish().map_err(gone)?;
    Ok(summary)
}

/// Reads `source` to its end, and only looks at it.
///
/// # Errors
/// When the source fails or is not whole.
pub fn look(source: &mut dyn Read, tap: Tap) -> Result<Summary, SealError> {
    let mut meter = Meter::new(Some(tap));
    let mut buffer = vec![0; CHUNK];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return meter.finish().map_err(SealError::Content),
            Ok(read) => meter
                .feed(buffer.get(..read).unwrap_or_default())
                .map_err(SealError::Content)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SealError::Source(error)),
        }
    }
}

/// Cuts what is written into equal parts.
struct Cutter<'a> {
    parts: &'a mpsc::Sender<Piece>,
    buffer: BytesMut,
}

impl<'a> Cutter<'a> {
    fn new(parts: &'a mpsc::Sender<Piece>) -> Self {
        Self {
            parts,
            buffer: BytesMut::with_capacity(PART),
        }
    }

    fn send(&self, piece: Piece) -> io::Result<()> {
        self.parts
            .blocking_send(piece)
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }

    fn finish(mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let last = self.buffer.split().freeze();
            self.send(Piece::Part(last))?;
        }
        self.send(Piece::End)
    }
}

impl Write for Cutter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART - self.buffer.len());
        self.buffer
            .extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if self.buffer.len() == PART {
            let full = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(PART));
            self.send(Piece::Part(full.freeze()))?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens what [`seal`] closed and writes it to `sink`.
///
/// # Errors
/// When it does not open with `identity`, was altered, is not whole, or the sink does not take it.
pub fn open(
    source: impl Read,
    identity: &x25519::Identity,
    tap: Option<Tap>,
    sink: &mut dyn Write,
) -> Result<Summary, SealError> {
    let mut meter = Meter::new(tap);
    let decryptor = age::Decryptor::new(source).map_err(SealError::Decrypt)?;
    let clear = decryptor
        .decrypt(std::iter::once(identity as &dyn age::Identity))
        .map_err(SealError::Decrypt)?;
    let mut plain = zstd::stream::read::Decoder::new(clear).map_err(SealError::Open)?;
    plain.window_log_max(WINDOW).map_err(SealError::Open)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = match plain.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(SealError::Open(error)),
        };
        let chunk = buffer.get(..read).unwrap_or_default();
        meter.feed(chunk).map_err(SealError::Content)?;
        sink.write_all(chunk).map_err(SealError::Sink)?;
    }
    sink.flush().map_err(SealError::Sink)?;
    meter.finish().map_err(SealError::Content)
}

/// Reads what arrives on a channel.
pub struct Arriving {
    chunks: mpsc::Receiver<Result<Bytes, io::Error>>,
    current: Bytes,
}

impl Arriving {
    /// A reader of `chunks`; an error among them is an error of the read.
    pub fn new(chunks: mpsc::Receiver<Result<Bytes, io::Error>>) -> Self {
        Self {
            chunks,
            current: Bytes::new(),
        }
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        let taken = self.current.split_to(count);
        if let Some(place) = buffer.get_mut(..count) {
            place.copy_from_slice(&taken);
        }
        Ok(count)
    }
}
