//! Compression of responses, for services that ask for it.
//!
//! Never twice (`Content-Encoding` is there), never against the app's or the visitor's will (`no-transform`,
//! `Accept-Encoding` with its q-values, RFC 9110 §12.5.3), never for parts (206) or what is compressed by nature.
//! What has been given to the encoder is flushed whenever no more is there, so that a stream is never held back.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use crate::snapshot::Compression;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coding {
    /// Zstandard (RFC 8878).
    Zstd,
    /// Brotli (RFC 7932).
    Br,
    /// gzip (RFC 1952).
    Gzip,
}

impl Coding {
    /// Its name in `Content-Encoding`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Br => "br",
            Self::Gzip => "gzip",
        }
    }
}

/// The coding to use for a visitor who sends this `Accept-Encoding`: the highest q-value, then the service's order.
pub(crate) fn negotiate(compression: &Compression, accept: Option<&[u8]>) -> Option<Coding> {
    let accept = std::str::from_utf8(accept?).ok()?;
    let mut best: Option<(Coding, f32)> = None;
    let quality = |name: &str| {
        let mut any = None;
        for item in accept.split(',') {
            let mut parts = item.split(';').map(str::trim);
            let coding = parts.next().unwrap_or_default();
            let q = parts
                .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
                .map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0));
            if coding.eq_ignore_ascii_case(name) {
                return q;
            }
            if coding == "*" {
                any = Some(q);
            }
        }
        any.unwrap_or(0.0)
    };
    for coding in &compression.codings {
        let q = quality(coding.as_str());
        if q > 0.0 && best.is_none_or(|(_, most)| q > most) {
            best = Some((*coding, q));
        }
    }
    best.map(|(coding, _)| coding)
}

/// What of a response decides.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Candidate<'a> {
    pub(crate) status: u16,
    /// Length, when it is announced.
    pub(crate) length: Option<u64>,
    pub(crate) content_type: Option<&'a [u8]>,
    pub(crate) content_encoding: Option<&'a [u8]>,
    pub(crate) cache_control: Option<&'a [u8]>,
}

/// Whether such a response is one that this service compresses, for visitors who can take it.
pub(crate) fn suits(compression: &Compression, response: &Candidate<'_>) -> bool {
    let kind = response.content_type.unwrap_or_default();
    let kind = kind.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let listed = |wanted: &String| match wanted.strip_suffix('*') {
        Some(start) => kind
            .get(..start.len())
            .is_some_and(|kind| kind.eq_ignore_ascii_case(start.as_bytes())),
        None => kind.eq_ignore_ascii_case(wanted.as_bytes()),
    };
    let no_transform = |value: &[u8]| {
        value
            .split(|b| *b == b',')
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
    };
    (200..300).contains(&response.status)
        && !matches!(response.status, 204 | 206)
        && response
            .content_encoding
            .is_none_or(|coding| coding.eq_ignore_ascii_case(b"identity"))
        && !response.cache_control.is_some_and(no_transform)
        && response
            .length
            .is_none_or(|length| length >= compression.min_bytes)
        && compression.types.iter().any(listed)
}

/// Encoders at the same time, for all services: each holds its window and tables for as long as its visitor reads.
const MOST: usize = 256;

/// How many there are.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// A place among the encoders.
#[derive(Debug)]
pub(crate) struct Place(());

impl Place {
    /// `None` while all are taken: the response then goes out as it is.
    pub(crate) fn take() -> Option<Self> {
        let taken = OPEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
            (open < MOST).then_some(open + 1)
        });
        taken.ok().map(|_| Self(()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An encoder that writes into a buffer of its own.
pub(crate) enum Encoder {
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
    Br(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(Box<flate2::write::GzEncoder<Vec<u8>>>),
    Done,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Encoder {
    /// An encoder at a level that costs little: this happens for every response anew.
    pub(crate) fn new(coding: Coding) -> Self {
        let out = Vec::with_capacity(4 << 10);
        match coding {
            Coding::Zstd => match zstd_encoder(out) {
                Ok(encoder) => Self::Zstd(Box::new(encoder)),
                Err(_) => Self::Done,
            },
            Coding::Br => Self::Br(Box::new(brotli::CompressorWriter::new(out, 4 << 10, 4, 18))),
            Coding::Gzip => {
                let encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(5));
                Self::Gzip(Box::new(encoder))
            }
        }
    }

    /// Encodes `data` and flushes it if `flush`; what came of it is appended to `out`. False when the encoder failed.
    pub(crate) fn encode(&mut self, data: &[u8], flush: bool, out: &mut Vec<u8>) -> bool {
        fn write<W: Write>(encoder: &mut W, data: &[u8], flush: bool) -> bool {
            encoder.write_all(data).is_ok() && (!flush || encoder.flush().is_ok())
        }
        match self {
            Self::Zstd(encoder) => {
                let fine = write(&mut **encoder, data, flush);
                out.append(encoder.get_mut());
                fine
            }
            Self::Br(encoder) => {
                let fine = write(&mut **encoder, data, flush);
                out.append(encoder.get_mut());
                fine
            }
            Self::Gzip(encoder) => {
                let fine = write(&mut **encoder, data, flush);
                out.append(encoder.get_mut());
                fine
            }
            Self::Done => false,
        }
    }

    /// Ends the stream; the rest is appended to `out`. False when the encoder failed.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) -> bool {
        let rest = match std::mem::replace(self, Self::Done) {
            Self::Zstd(encoder) => encoder.finish().ok(),
            Self::Br(encoder) => Some(encoder.into_inner()),
            Self::Gzip(encoder) => encoder.finish().ok(),
            Self::Done => None,
        };
        match rest {
            Some(mut rest) => {
                out.append(&mut rest);
                true
            }
            None => false,
        }
    }
}

/// With a window and tables that fit web pages; the library's own for this level are many times larger.
fn zstd_encoder(out: Vec<u8>) -> std::io::Result<zstd::stream::write::Encoder<'static, Vec<u8>>> {
    use zstd::zstd_safe::CParameter;
    let mut encoder = zstd::stream::write::Encoder::new(out, 3)?;
    encoder.set_parameter(CParameter::WindowLog(17))?;
    encoder.set_parameter(CParameter::HashLog(15))?;
    encoder.set_parameter(CParameter::ChainLog(15))?;
    Ok(encoder)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn q_values_decide_then_the_services_order() {
        let compression = Compression::default();
        for (accept, expected) in [
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("gzip, br;q=0.9", Some(Coding::Gzip)),
            ("br;q=0, gzip;q=0", None),
            ("*", Some(Coding::Zstd)),
            ("*;q=0.5, zstd;q=0", Some(Coding::Br)),
            ("identity", None),
            ("", None),
            ("gzip;q=junk", None),
        ] {
            assert_eq!(
                negotiate(&compression, Some(accept.as_bytes())),
                expected,
                "{accept}"
            );
        }
        assert_eq!(negotiate(&compression, None), None);
    }

    #[test]
    fn what_is_small_packed_partial_or_protected_stays_as_it_is() {
        let compression = Compression::default();
        let page = Candidate {
            status: 200,
            length: Some(5_000),
            content_type: Some(b"text/html; charset=utf-8"),
            ..Candidate::default()
        };
        assert!(suits(&compression, &page));
        for (why, response) in [
            (
                "small",
                Candidate {
                    length: Some(10),
                    ..page
                },
            ),
            ("partial", Candidate { status: 206, ..page }),
            ("an error page of the app", Candidate { status: 500, ..page }),
            (
                "packed",
                Candidate {
                    content_encoding: Some(b"gzip"),
                    ..page
                },
            ),
            (
                "an image",
                Candidate {
                    content_type: Some(b"image/png"),
                    ..page
                },
            ),
            (
                "protected",
                Candidate {
                    cache_control: Some(b"public, No-Transform"),
                    ..page
                },
            ),
            (
                "of no kind",
                Candidate {
                    content_type: None,
                    ..page
                },
            ),
        ] {
            assert!(!suits(&compression, &response), "{why}");
        }
    }

    #[test]
    fn every_coding_gives_back_what_went_in_and_flushes_at_once() {
        for coding in [Coding::Zstd, Coding::Br, Coding::Gzip] {
            let mut encoder = Encoder::new(coding);
            let mut out = Vec::new();
            assert!(encoder.encode(b"data: first\n\n", true, &mut out));
            let decode = |bytes: &[u8]| {
                let mut text = Vec::new();
                let mut reader: Box<dyn std::io::Read> = match coding {
                    Coding::Zstd => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
                    Coding::Br => Box::new(brotli::Decompressor::new(bytes, 4096)),
                    Coding::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
                };
                let mut part = [0; 4096];
                while let Ok(count @ 1..) = reader.read(&mut part) {
                    text.extend_from_slice(&part[..count]);
                }
                String::from_utf8(text).unwrap()
            };
            assert_eq!(decode(&out), "data: first\n\n", "{coding:?} holds nothing back");
            assert!(encoder.encode(&[b'x'; 100_000], false, &mut out));
            assert!(encoder.finish(&mut out));
            assert_eq!(decode(&out).len(), 100_013);
            assert!(out.len() < 2_000, "{coding:?}: {}", out.len());
        }
    }
}
