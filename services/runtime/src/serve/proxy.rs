//! What a proxy says of its client: the header of the PROXY protocol, version 2, with which each of its connections begins
//! (haproxy's `proxy-protocol.txt`; nginx, Envoy and load balancers of clouds speak it, too).
//!
//! Promise: of the connection exactly the header is read. Only who is named as a proxy may say such a thing, and it has to.

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt as _};

const MARK: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Mark, version, kind, and how much follows.
const FIRST: usize = 16;
/// What may follow: addresses, and what else the proxy wants to tell.
const LONGEST: usize = 2048;

/// The address of the client that a proxy connects for; `None` if it calls for itself, as it does to see whether this server lives, or
/// for nobody with an IP address.
pub(super) async fn client(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut header = vec![0; FIRST];
    stream.read_exact(&mut header).await?;
    let follows = header.last_chunk().map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
    if !header.starts_with(MARK) || follows > LONGEST {
        return Err(wrong("a proxy has to begin with a header of the PROXY protocol, version 2"));
    }
    header.resize(FIRST + follows, 0);
    stream.read_exact(header.get_mut(FIRST..).unwrap_or_default()).await?;
    let only_v2 = ParseConfig { allow_v1: false, include_tlvs: false, ..ParseConfig::default() };
    let (header, _) = ProxyHeader::parse(&header, only_v2).map_err(|error| wrong(&error.to_string()))?;
    let source = header.proxied_address().map(|both| both.source);
    Ok(source.map(|source| SocketAddr::new(source.ip().to_canonical(), source.port())))
}

fn wrong(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: [u8; 2], rest: &[u8]) -> Vec<u8> {
        [MARK, &kind, &(rest.len() as u16).to_be_bytes(), rest].concat()
    }

    async fn read(bytes: &[u8]) -> (io::Result<Option<SocketAddr>>, Vec<u8>) {
        let mut stream = bytes;
        let client = client(&mut stream).await;
        (client, stream.to_vec())
    }

    #[tokio::test]
    async fn the_client_is_who_the_proxy_says_and_nothing_behind_is_read() {
        let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x34, 0x1c, 0xe8];
        let mut v6 = [0; 36];
        v6[0..2].copy_from_slice(&[0x20, 0x01]);
        v6[15] = 9;
        v6[32..34].copy_from_slice(&[0, 80]);
        let mapped = [&[0; 10][..], &[0xff, 0xff, 192, 0, 2, 8], &[0; 16], &[0, 81, 0, 82]].concat();
        let more = [&v4[..], &[0x04, 0, 2, 1, 2]].concat();
        for (kind, rest, client) in [
            ([0x21, 0x11], &v4[..], Some("192.0.2.7:4660")),
            ([0x21, 0x11], &more, Some("192.0.2.7:4660")),
            ([0x21, 0x21], &v6, Some("[2001::9]:80")),
            ([0x21, 0x21], &mapped, Some("192.0.2.8:81")),
            ([0x20, 0x00], &[], None),
            ([0x20, 0x11], &v4, None),
            ([0x21, 0x00], &[], None),
        ] {
            let (said, left) = read(&[&header(kind, rest), &b"hello"[..]].concat()).await;
            assert_eq!(said.unwrap(), client.map(|client| client.parse().unwrap()), "{kind:02x?}");
            assert_eq!(left, b"hello");
        }
    }

    #[tokio::test]
    async fn what_is_no_such_header_is_refused() {
        let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x34, 0x1c, 0xe8];
        for wrong in [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4660 7400\r\n".to_vec(),
            header([0x21, 0x11], &v4)[..20].to_vec(),
            header([0x21, 0x11], &v4[..8]),
            header([0x31, 0x11], &v4),
            header([0x21, 0x11], &[0; LONGEST + 1]),
        ] {
            assert!(read(&wrong).await.0.is_err(), "{wrong:02x?}");
        }
    }
}
