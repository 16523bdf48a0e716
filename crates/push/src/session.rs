//! Frames of a session: a program on the host joined to a developer's terminal or pipes, and the logs of a container.
//!
//! ```text
//! ┌──────┬────────────┬───────────────┐
//! │ kind │ length     │ payload       │   kind: 1 byte; length: 4 bytes, big endian, at most [`PAYLOAD_LIMIT`]
//! └──────┴────────────┴───────────────┘
//! ```
//!
//! | kind | direction | payload |
//! |---|---|---|
//! | 0 | to the host | bytes of standard input |
//! | 1 | to the developer | bytes of standard output |
//! | 2 | to the developer | bytes of standard error |
//! | 3 | to the host | empty: the standard input has ended |
//! | 4 | to the host | rows and columns of the terminal, 2 bytes each, big endian |
//! | 5 | to the developer | exit code, 4 bytes, big endian, signed; the last frame |
//! | 6 | to the developer | UTF-8 text: why the session broke; the last frame |
//!
//! One stream carries the frames of one direction; it is the body of an HTTP/2 request or answer.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Largest payload in bytes; senders cut longer output into several frames.
pub const PAYLOAD_LIMIT: usize = 64 << 10;
/// Bytes before the payload.
const HEAD: usize = 5;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes for the program's standard input.
    Input(Bytes),
    /// Bytes of its standard output.
    Output(Bytes),
    /// Bytes of its standard error.
    Error(Bytes),
    /// Its standard input has ended.
    InputEnd,
    /// The terminal has this many rows and columns.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// It ended with this code.
    Exit(i32),
    /// The session broke, and why.
    Broken(String),
}

/// Bytes that are no frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A kind that this version does not know.
    #[error("a frame of the unknown kind {0}; are both sides of one version?")]
    Kind(u8),
    /// More than [`PAYLOAD_LIMIT`].
    #[error("a frame of {0} bytes; the limit is {PAYLOAD_LIMIT}")]
    TooLong(u32),
    /// The payload does not fit the kind.
    #[error("a frame of kind {kind} with {length} bytes")]
    Payload {
        /// Its kind.
        kind: u8,
        /// Its length.
        length: usize,
    },
}

impl Frame {
    /// The frame's bytes; payloads longer than [`PAYLOAD_LIMIT`] become several frames.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        let mut put = |kind: u8, payload: &[u8]| {
            out.put_u8(kind);
            out.put_u32(u32::try_from(payload.len()).expect("pieces are cut to the limit"));
            out.put_slice(payload);
        };
        match self {
            Frame::Input(bytes) => bytes.chunks(PAYLOAD_LIMIT).for_each(|piece| put(0, piece)),
            Frame::Output(bytes) => bytes.chunks(PAYLOAD_LIMIT).for_each(|piece| put(1, piece)),
            Frame::Error(bytes) => bytes.chunks(PAYLOAD_LIMIT).for_each(|piece| put(2, piece)),
            Frame::InputEnd => put(3, &[]),
            Frame::Resize { rows, columns } => {
                let [a, b] = rows.to_be_bytes();
                let [c, d] = columns.to_be_bytes();
                put(4, &[a, b, c, d]);
            }
            Frame::Exit(code) => put(5, &code.to_be_bytes()),
            Frame::Broken(why) => {
                let mut end = why.len().min(PAYLOAD_LIMIT);
                while !why.is_char_boundary(end) {
                    end -= 1;
                }
                put(6, &why.as_bytes()[..end]);
            }
        }
        out.freeze()
    }

    /// Takes the first frame off `buffer`; `None` while it is not whole.
    ///
    /// # Errors
    /// When the bytes are no frame; the stream cannot be read on then.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if buffer.len() < HEAD {
            return Ok(None);
        }
        let kind = buffer[0];
        let length = u32::from_be_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]);
        if kind > 6 {
            return Err(FrameError::Kind(kind));
        }
        let size = length as usize;
        if size > PAYLOAD_LIMIT {
            return Err(FrameError::TooLong(length));
        }
        if buffer.len() < HEAD + size {
            return Ok(None);
        }
        buffer.advance(HEAD);
        let payload = buffer.split_to(size).freeze();
        let odd = || FrameError::Payload { kind, length: size };
        Ok(Some(match kind {
            0 => Frame::Input(payload),
            1 => Frame::Output(payload),
            2 => Frame::Error(payload),
            3 if payload.is_empty() => Frame::InputEnd,
            4 if size == 4 => Frame::Resize {
                rows: u16::from_be_bytes([payload[0], payload[1]]),
                columns: u16::from_be_bytes([payload[2], payload[3]]),
            },
            5 if size == 4 => Frame::Exit(i32::from_be_bytes([
                payload[0], payload[1], payload[2], payload[3],
            ])),
            6 => Frame::Broken(String::from_utf8_lossy(&payload).into_owned()),
            _ => return Err(odd()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let bytes = || prop::collection::vec(any::<u8>(), 1..200).prop_map(Bytes::from);
        prop_oneof![
            bytes().prop_map(Frame::Input),
            bytes().prop_map(Frame::Output),
            bytes().prop_map(Frame::Error),
            Just(Frame::InputEnd),
            (any::<u16>(), any::<u16>()).prop_map(|(rows, columns)| Frame::Resize { rows, columns }),
            any::<i32>().prop_map(Frame::Exit),
            "\\PC{0,40}".prop_map(Frame::Broken),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
            sent in prop::collection::vec(frames(), 0..20),
            cut in 1_usize..50,
        ) {
            let stream: Vec<u8> = sent.iter().flat_map(Frame::encode).collect();
            let mut buffer = BytesMut::new();
            let mut got = Vec::new();
            for piece in stream.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = Frame::decode(&mut buffer).expect("our own frames") {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, sent);
            prop_assert!(buffer.is_empty());
        }
    }

    #[test]
    fn long_output_is_cut_and_long_frames_are_refused_before_they_are_there() {
        let long = Bytes::from(vec![7; PAYLOAD_LIMIT + 1]);
        let mut buffer = BytesMut::from(&Frame::Output(long).encode()[..]);
        let first = Frame::decode(&mut buffer).expect("a frame");
        assert!(matches!(first, Some(Frame::Output(bytes)) if bytes.len() == PAYLOAD_LIMIT));
        assert_eq!(
            Frame::decode(&mut buffer),
            Ok(Some(Frame::Output(Bytes::from_static(&[7]))))
        );
        for (bytes, expect) in [
            (&[1, 0, 1, 0, 1][..], FrameError::TooLong(65537)),
            (&[9, 0, 0, 0, 0][..], FrameError::Kind(9)),
            (
                &[4, 0, 0, 0, 1, 5][..],
                FrameError::Payload { kind: 4, length: 1 },
            ),
        ] {
            assert_eq!(Frame::decode(&mut BytesMut::from(bytes)), Err(expect));
        }
    }
}
