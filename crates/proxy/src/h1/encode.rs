//! A response's body on its way through an encoder: out of one framing, compressed, into chunks.

use super::chunks::{self, Decoder, Malformed, Piece};
use crate::buffer::Buffer;
use crate::compress::{self, Coding, Encoder};

/// How the upstream frames what comes.
#[derive(Debug)]
pub(super) enum Source {
    Length(u64),
    Chunked(Decoder),
    UntilClose,
}

/// A body that is being compressed.
#[derive(Debug)]
pub(super) struct Encoding {
    from: Source,
    encoder: Encoder,
    encoded: Vec<u8>,
    _place: compress::Place,
}

/// Why it cannot go on.
#[derive(Debug)]
pub(super) struct Broken;

impl From<Malformed> for Broken {
    fn from(_: Malformed) -> Self {
        Self
    }
}

impl Encoding {
    pub(super) fn new(from: Source, coding: Coding, place: compress::Place) -> Self {
        Self {
            from,
            encoder: Encoder::new(coding),
            encoded: Vec::new(),
            _place: place,
        }
    }

    /// Takes all that is there and appends what comes of it; true when the body is complete.
    pub(super) fn step(&mut self, from: &mut Buffer, out: &mut Vec<u8>) -> Result<bool, Broken> {
        let (mut fed, mut complete) = (false, false);
        while !complete {
            let there = from.bytes();
            let count = match &mut self.from {
                Source::Length(left) => {
                    let count = there.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= count as u64;
                    complete = *left == 0;
                    count
                }
                Source::UntilClose => there.len(),
                Source::Chunked(decoder) => match decoder.next(there)? {
                    // Responses that announce trailer fields are not compressed; others have no reader for them.
                    Piece::Framing(count) | Piece::Trailer(count) => {
                        from.consume(count);
                        continue;
                    }
                    Piece::Data(count) => count,
                    Piece::More => 0,
                    Piece::End => {
                        complete = true;
                        0
                    }
                },
            };
            if count == 0 {
                break;
            }
            fed = true;
            if !self.encoder.encode(&there[..count], false, &mut self.encoded) {
                return Err(Broken);
            }
            from.consume(count);
        }
        if complete {
            self.finish(out)?;
        } else if fed {
            // Nothing more is there: what the visitor can have, he gets now.
            if !self.encoder.encode(&[], true, &mut self.encoded) {
                return Err(Broken);
            }
            self.give(out);
        }
        Ok(complete)
    }

    /// Whether the end of the connection is the end of the body.
    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self.from, Source::UntilClose)
    }

    /// Appends what is left, and the last chunk.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        if !self.encoder.finish(&mut self.encoded) {
            return Err(Broken);
        }
        self.give(out);
        out.extend_from_slice(chunks::END);
        Ok(())
    }

    fn give(&mut self, out: &mut Vec<u8>) {
        if !self.encoded.is_empty() {
            chunks::write(out, &self.encoded);
            self.encoded.clear();
        }
    }
}
