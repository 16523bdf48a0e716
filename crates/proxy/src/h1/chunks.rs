//! The chunked transfer coding (RFC 9112 §7.1), read strictly and written anew.
//!
//! ```text
//!  Size ──► Data(n) ──► DataEnd ──► Size …
//!    │ 0
//!    ▼
//!  Trailer ──► Done
//! ```
//!
//! Chunk extensions are read and dropped; trailer fields are the caller's (see [`super::trailer`]).

/// Longest chunk-size line, extensions included.
const MOST_LINE: usize = 256;
/// Most bytes of trailer fields.
const MOST_TRAILER: usize = 8192;

/// The chunks break the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body's chunks are malformed")]
pub(super) struct Malformed;

/// Where a body in chunks has been read to.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    state: State,
    /// Bytes of the trailer so far.
    trailer: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailer,
    Done,
}

/// What [`Decoder::next`] found at the start of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// This many bytes of framing: skip them.
    Framing(usize),
    /// This many bytes of data.
    Data(usize),
    /// This many bytes are a trailer field's line, well formed.
    Trailer(usize),
    /// More bytes are needed.
    More,
    /// The body is complete; what follows belongs to the next message.
    End,
}

impl Decoder {
    /// Looks at the start of `bytes`; the caller takes off what it is told.
    ///
    /// # Errors
    /// When the rules are broken: a size that is not hexadecimal digits, a bare LF or CR, a line without end.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Result<Piece, Malformed> {
        match self.state {
            State::Done => Ok(Piece::End),
            State::Data(left) => {
                if bytes.is_empty() {
                    return Ok(Piece::More);
                }
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                self.state = match left - length as u64 {
                    0 => State::DataEnd,
                    left => State::Data(left),
                };
                Ok(Piece::Data(length))
            }
            State::DataEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.state = State::Size;
                    Ok(Piece::Framing(2))
                }
                [] | [b'\r'] => Ok(Piece::More),
                _ => Err(Malformed),
            },
            State::Size => {
                let Some(line) = line(bytes, MOST_LINE)? else {
                    return Ok(Piece::More);
                };
                self.state = match size(line)? {
                    0 => State::Trailer,
                    size => State::Data(size),
                };
                Ok(Piece::Framing(line.len() + 2))
            }
            State::Trailer => {
                let Some(line) = line(bytes, MOST_TRAILER)? else {
                    return Ok(Piece::More);
                };
                self.trailer += line.len() + 2;
                if self.trailer > MOST_TRAILER {
                    return Err(Malformed);
                }
                if line.is_empty() {
                    self.state = State::Done;
                    return Ok(Piece::Framing(2));
                }
                if !super::trailer::is_well_formed(line) {
                    return Err(Malformed);
                }
                Ok(Piece::Trailer(line.len() + 2))
            }
        }
    }
}

/// The line at the start of `bytes` without its CRLF; `None` when it is not complete.
fn line(bytes: &[u8], most: usize) -> Result<Option<&[u8]>, Malformed> {
    match memchr::memchr2(b'\r', b'\n', bytes) {
        Some(end) if end > most => Err(Malformed),
        Some(end) if bytes[end] == b'\n' => Err(Malformed),
        Some(end) => match bytes.get(end + 1) {
            Some(b'\n') => Ok(Some(&bytes[..end])),
            Some(_) => Err(Malformed),
            None => Ok(None),
        },
        None if bytes.len() > most => Err(Malformed),
        None => Ok(None),
    }
}

/// The size in a chunk's first line: 1–16 hexadecimal digits, then nothing or an extension.
fn size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let rest = &line[digits..];
    let extension = rest
        .iter()
        .position(|b| !matches!(b, b' ' | b'\t'))
        .map(|at| rest[at]);
    // Space is allowed before an extension only (§7.1.1); control bytes nowhere.
    let fine = (rest.is_empty() || extension == Some(b';')) && rest.iter().all(|b| *b == b'\t' || *b >= b' ');
    if !(1..=15).contains(&digits) || !fine {
        return Err(Malformed);
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| Malformed)?;
    u64::from_str_radix(text, 16).map_err(|_| Malformed)
}

/// Appends `data` as one chunk.
pub(super) fn write(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut left = data.len();
    while left > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[left & 15];
        left >>= 4;
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Appends the last chunk with the trailer fields that were kept.
pub(super) fn write_end(out: &mut Vec<u8>, trailer: &[u8]) {
    out.extend_from_slice(&END[..3]);
    out.extend_from_slice(trailer);
    out.extend_from_slice(&END[3..]);
}

/// The last chunk, without trailer.
pub(super) const END: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes `bytes` given in parts of `step`; the data and what is left over.
    fn decode(bytes: &[u8], step: usize) -> Result<Option<(Vec<u8>, usize)>, Malformed> {
        let mut decoder = Decoder::default();
        let (mut data, mut start, mut end) = (Vec::new(), 0, 0);
        loop {
            match decoder.next(&bytes[start..end])? {
                Piece::Framing(length) | Piece::Trailer(length) => start += length,
                Piece::Data(length) => {
                    data.extend_from_slice(&bytes[start..start + length]);
                    start += length;
                }
                Piece::End => return Ok(Some((data, start))),
                Piece::More if end == bytes.len() => return Ok(None),
                Piece::More => end = (end + step).min(bytes.len()),
            }
        }
    }

    #[test]
    fn chunks_are_read_strictly() {
        for (body, expect) in [
            ("5\r\nhello\r\n0\r\n\r\n", Ok(Some("hello"))),
            ("5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\n", Ok(Some("hello"))),
            ("5 ;a\r\nhello\r\n0\r\n\r\n", Ok(Some("hello"))),
            ("A\r\n0123456789\r\n0\r\n\r\n", Ok(Some("0123456789"))),
            ("5\r\nhel", Ok(None)),
            ("0\r\n", Ok(None)),
            ("5\nhello\r\n0\r\n\r\n", Err(Malformed)),
            ("5\r\nhello\n0\r\n\r\n", Err(Malformed)),
            ("5\r\nhello!\r\n0\r\n\r\n", Err(Malformed)),
            ("5\r\nhello\r\n0\n\n", Err(Malformed)),
            ("0x5\r\nhello\r\n0\r\n\r\n", Err(Malformed)),
            ("+5\r\nhello\r\n0\r\n\r\n", Err(Malformed)),
            (" 5\r\nhello\r\n0\r\n\r\n", Err(Malformed)),
            ("5 \r\nhello\r\n0\r\n\r\n", Err(Malformed)),
            ("-1\r\n\r\n", Err(Malformed)),
            ("\r\nhello", Err(Malformed)),
            ("10000000000000005\r\nhello", Err(Malformed)),
            ("5\rX\nhello", Err(Malformed)),
            ("0\r\n folded\r\n\r\n", Err(Malformed)),
            ("0\r\nno colon\r\n\r\n", Err(Malformed)),
            ("0\r\nA : b\r\n\r\n", Err(Malformed)),
            ("0\r\nA: \0\r\n\r\n", Err(Malformed)),
        ] {
            let expect = expect.map(|data| data.map(str::to_owned));
            for step in [1, 3, 1000] {
                let found = decode(body.as_bytes(), step)
                    .map(|found| found.map(|(data, _)| String::from_utf8(data).unwrap()));
                assert_eq!(found, expect, "{body:?} in steps of {step}");
            }
        }
        assert_eq!(decode(&[b'1'; 300], 1000), Err(Malformed));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..600), 0..6), step in 1_usize..64) {
            let mut wire = Vec::new();
            for part in &parts {
                write(&mut wire, part);
            }
            wire.extend_from_slice(END);
            let length = wire.len();
            wire.extend_from_slice(b"GET / HTTP/1.1");
            prop_assert_eq!(decode(&wire, step), Ok(Some((parts.concat(), length))));
        }
    }
}
