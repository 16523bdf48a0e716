//! The PROXY protocol's header, versions 1 and 2: who a load balancer in front speaks for.
//!
//! Source: the specification in HAProxy's `doc/proxy-protocol.txt`.
//! It is read strictly: on a listener that expects it, a connection that begins with anything else is closed, because
//! believing either form would let a client choose its own address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// First bytes of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1, CRLF included.
const MOST_LINE: usize = 107;
/// Most bytes after version 2's fixed part: addresses and what else a balancer wants to say.
const MOST_REST: usize = 4096;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Length of the header in bytes.
    pub length: usize,
    /// The client and the address it connected to; absent for the balancer's own connections (`LOCAL`, `UNKNOWN`).
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// What the bytes so far amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// At least this many bytes are needed in all; never more than the header has.
    More(usize),
    /// Here it is.
    Complete(Header),
}

/// The bytes are no PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection does not begin with a PROXY header")]
pub struct NoHeader;

/// Reads the header at the start of `bytes`.
///
/// # Errors
/// When they cannot be the start of one.
pub fn read(bytes: &[u8]) -> Result<Progress, NoHeader> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] == SIGNATURE[..known] && known > 0 {
        return version_2(bytes);
    }
    version_1(bytes)
}

fn version_1(bytes: &[u8]) -> Result<Progress, NoHeader> {
    const START: &[u8] = b"PROXY ";
    let known = bytes.len().min(START.len());
    if bytes[..known] != START[..known] {
        return Err(NoHeader);
    }
    let Some(end) = memchr::memchr(b'\n', &bytes[..bytes.len().min(MOST_LINE)]) else {
        return if bytes.len() < MOST_LINE {
            Ok(Progress::More(bytes.len() + 1))
        } else {
            Err(NoHeader)
        };
    };
    let line = bytes[START.len()..end].strip_suffix(b"\r").ok_or(NoHeader)?;
    let line = std::str::from_utf8(line).map_err(|_| NoHeader)?;
    let words: Vec<&str> = line.split(' ').collect();
    let addresses = match words[..] {
        // Whatever follows is to be ignored (§2.1).
        ["UNKNOWN", ..] => None,
        ["TCP4", from, to, from_port, to_port] => Some((
            SocketAddr::new(IpAddr::V4(from.parse().map_err(|_| NoHeader)?), port(from_port)?),
            SocketAddr::new(IpAddr::V4(to.parse().map_err(|_| NoHeader)?), port(to_port)?),
        )),
        ["TCP6", from, to, from_port, to_port] => Some((
            SocketAddr::new(IpAddr::V6(from.parse().map_err(|_| NoHeader)?), port(from_port)?),
            SocketAddr::new(IpAddr::V6(to.parse().map_err(|_| NoHeader)?), port(to_port)?),
        )),
        _ => return Err(NoHeader),
    };
    Ok(Progress::Complete(Header {
        length: end + 1,
        addresses,
    }))
}

/// A port in decimal digits without leading zeros (§2.1).
fn port(text: &str) -> Result<u16, NoHeader> {
    let fine = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if fine {
        text.parse().map_err(|_| NoHeader)
    } else {
        Err(NoHeader)
    }
}

fn version_2(bytes: &[u8]) -> Result<Progress, NoHeader> {
    let Some((fixed, rest)) = bytes.split_at_checked(16) else {
        return Ok(Progress::More(16));
    };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > MOST_REST {
        return Err(NoHeader);
    }
    let local = match fixed[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(NoHeader),
    };
    let Some(block) = rest.get(..length) else {
        return Ok(Progress::More(16 + length));
    };
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    let addresses = match fixed[13] {
        // The receiver must not use what a LOCAL header says (§2.2).
        _ if local => None,
        0x11 if length >= 12 => {
            let ip = |at: usize| Ipv4Addr::from([block[at], block[at + 1], block[at + 2], block[at + 3]]);
            Some((
                SocketAddr::from((ip(0), port(8))),
                SocketAddr::from((ip(4), port(10))),
            ))
        }
        0x21 if length >= 36 => {
            let ip = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&block[at..at + 16]);
                Ipv6Addr::from(octets)
            };
            Some((
                SocketAddr::from((ip(0), port(32))),
                SocketAddr::from((ip(16), port(34))),
            ))
        }
        // Unspecified, datagrams and Unix sockets: a connection that speaks for no address we know.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => None,
        _ => return Err(NoHeader),
    };
    Ok(Progress::Complete(Header {
        length: 16 + length,
        addresses,
    }))
}

/// Takes the header off the front of a connection, and not a byte more.
///
/// # Errors
/// When there is none, or the connection ends before it does.
pub(crate) async fn take(stream: &mut TcpStream) -> io::Result<Header> {
    let mut bytes = Vec::with_capacity(MOST_LINE);
    loop {
        match read(&bytes).map_err(io::Error::other)? {
            Progress::Complete(header) => return Ok(header),
            Progress::More(least) => {
                let start = bytes.len();
                bytes.resize(least, 0);
                if start < 16 || bytes.starts_with(SIGNATURE) {
                    stream.read_exact(&mut bytes[start..]).await?;
                } else {
                    // The end of a line is looked for without taking what follows it.
                    let mut ahead = [0; MOST_LINE];
                    let there = stream.peek(&mut ahead).await?;
                    let wanted = memchr::memchr(b'\n', &ahead[..there]).map_or(there, |end| end + 1);
                    if wanted == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    bytes.resize(start + wanted, 0);
                    stream.read_exact(&mut bytes[start..]).await?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, block].concat()
    }

    fn addresses(bytes: &[u8]) -> Result<Option<(String, String)>, NoHeader> {
        match read(bytes)? {
            Progress::Complete(header) => {
                assert!(header.length <= bytes.len());
                Ok(header
                    .addresses
                    .map(|(from, to)| (from.to_string(), to.to_string())))
            }
            Progress::More(_) => panic!("{bytes:?} is complete"),
        }
    }

    #[test]
    fn both_versions_name_the_client() {
        let some = |from: &str, to: &str| Ok(Some((from.to_owned(), to.to_owned())));
        assert_eq!(
            addresses(b"PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\r\nGET"),
            some("203.0.113.7:56324", "198.51.100.1:443")
        );
        assert_eq!(
            addresses(b"PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n"),
            some("[2001:db8::7]:1", "[2001:db8::1]:65535")
        );
        assert_eq!(addresses(b"PROXY UNKNOWN\r\n"), Ok(None));
        assert_eq!(addresses(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"), Ok(None));
        let block = [203, 0, 113, 7, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb, 3, 0, 1, 9];
        assert_eq!(
            addresses(&v2(0x21, 0x11, &block)),
            some("203.0.113.7:56324", "198.51.100.1:443")
        );
        assert_eq!(addresses(&v2(0x20, 0x11, &block)), Ok(None));
        assert_eq!(addresses(&v2(0x20, 0x00, &[])), Ok(None));
        let mut six = vec![0; 36];
        (six[15], six[31], six[33]) = (1, 2, 80);
        assert_eq!(addresses(&v2(0x21, 0x21, &six)), some("[::1]:80", "[::2]:0"));
    }

    #[test]
    fn anything_else_is_no_header() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            b"PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
            b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            b"proxy UNKNOWN\r\n",
            &[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 120]].concat(),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 35]),
            &v2(0x21, 0x41, &[0; 12]),
            &v2(0x21, 0x11, &[0; 5000]),
        ] {
            assert_eq!(read(bytes), Err(NoHeader), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_asked_for_never_goes_beyond_the_header(ports in 0_u16..9, tail in "[a-z]{0,20}", version in 1..3) {
            let header = if version == 1 {
                format!("PROXY TCP4 10.0.0.1 10.0.0.2 {ports} {ports}\r\n").into_bytes()
            } else {
                v2(0x21, 0x11, &[0; 12])
            };
            let whole = [&header[..], tail.as_bytes()].concat();
            let mut there = 0;
            loop {
                match read(&whole[..there]).unwrap() {
                    Progress::More(least) => {
                        proptest::prop_assert!(least > there && least <= header.len());
                        there = least;
                    }
                    Progress::Complete(found) => {
                        proptest::prop_assert_eq!(found.length, header.len());
                        break;
                    }
                }
            }
        }
    }
}
