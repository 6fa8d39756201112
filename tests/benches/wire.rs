//! A gRPC client that costs little, so that a server is what is measured: one HTTP/2 connection whose frames are written by
//! hand. It speaks to servers of this tree only, and of HTTP/2 it knows what they say.
//!
//! What it leaves out: it looks into no header of an answer (an answer without a message is a failed one), takes no message
//! that is split over frames, and heeds no flow control of what it sends; so whoever uses it keeps less than 64 KiB of
//! requests in flight.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, BytesMut};
use p2psb_e2e::trouble::{Context as _, Result, Trouble};
use p2psb_proto::model::proof::{ChannelBinding, EXPORTER_LABEL};
use prost::Message;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// How much is read at once.
const READ: usize = 8 * 1024;
/// The largest window there is: what a server answers never waits for us.
const WINDOW: u32 = (1 << 31) - 1;
/// The window of a connection before anybody has said anything.
const FIRST_WINDOW: u32 = 65_535;
/// A frame's header, and what gRPC puts before a message.
const FRAME_HEADER: usize = 9;
const GRPC_HEADER: usize = 5;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames.
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
}

/// Flags of frames; `ACK` and `END_STREAM` belong to different kinds.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A server to connect to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) addr: SocketAddr,
    /// The certificate to trust; without one the server speaks plaintext.
    pub(crate) pem: Option<PathBuf>,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard<'a> {
    /// A message of a stream.
    Message(u32, &'a [u8]),
    /// The end of a stream.
    End(u32),
}

/// A connection.
pub(crate) struct Wire {
    io: Box<dyn Io>,
    binding: ChannelBinding,
    incoming: BytesMut,
    outgoing: BytesMut,
    headers: Headers,
    next_stream: u32,
    /// Bytes of messages since the server was last given a window.
    taken: u32,
}

impl Wire {
    /// Connects, from `source` if one is given.
    pub(crate) async fn connect(target: &Target, source: Option<IpAddr>) -> Result<Self> {
        let failed = format!("connecting to {}", target.addr);
        let socket = TcpSocket::new_v4().context(&failed)?;
        if let Some(source) = source {
            socket.bind(SocketAddr::new(source, 0)).context(&failed)?;
        }
        let stream = socket.connect(target.addr).await.context(&failed)?;
        stream.set_nodelay(true).context(&failed)?;
        let (io, binding) = match &target.pem {
            None => (Box::new(stream) as Box<dyn Io>, None),
            Some(pem) => shake_hands(stream, pem).await?,
        };
        let scheme = if binding.is_some() { HTTPS } else { HTTP };
        let mut wire = Self {
            io,
            binding,
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
            headers: Headers { scheme, authority: target.addr.to_string(), were_sent: false },
            next_stream: 1,
            taken: 0,
        };
        wire.outgoing.put_slice(PREFACE);
        frame(&mut wire.outgoing, kind::SETTINGS, 0, 0, |out| {
            // No pushing (2), and a window (4) for each stream.
            for (setting, value) in [(2, 0), (4, WINDOW)] {
                out.put_u16(setting);
                out.put_u32(value);
            }
        });
        wire.widen(WINDOW - FIRST_WINDOW);
        wire.flush().await?;
        Ok(wire)
    }

    /// What proofs on this connection are bound to.
    pub(crate) const fn binding(&self) -> ChannelBinding {
        self.binding
    }

    /// Opens a stream; goes out with the next [`Self::flush`].
    pub(crate) fn open(&mut self, path: &str) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        let headers = &mut self.headers;
        frame(&mut self.outgoing, kind::HEADERS, END_HEADERS, stream, |out| headers.put(out, path));
        stream
    }

    /// Says a message, and with `is_last` that none follows; goes out with the next [`Self::flush`].
    pub(crate) fn say(&mut self, stream: u32, message: &[u8], is_last: bool) {
        let flags = if is_last { END_STREAM } else { 0 };
        frame(&mut self.outgoing, kind::DATA, flags, stream, |out| {
            out.put_u8(0);
            out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
            out.put_slice(message);
        });
    }

    /// Says that nothing follows on a stream; goes out with the next [`Self::flush`].
    pub(crate) fn finish(&mut self, stream: u32) {
        frame(&mut self.outgoing, kind::DATA, END_STREAM, stream, |_| ());
    }

    /// Sends what was said.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        if self.outgoing.is_empty() {
            return Ok(());
        }
        self.io.write_all(&self.outgoing).await.context("writing to the server")?;
        self.outgoing.clear();
        self.io.flush().await.context("writing to the server")
    }

    /// Waits until the server says something, and tells it. Safe to drop while it waits.
    pub(crate) async fn hear(&mut self, mut tell: impl FnMut(Heard<'_>)) -> Result<()> {
        self.incoming.reserve(READ);
        if self.io.read_buf(&mut self.incoming).await.context("reading from the server")? == 0 {
            return Err(Trouble::new("the server closed the connection"));
        }
        while let Some((header, payload)) = Frame::parse(&self.incoming) {
            let size = FRAME_HEADER + payload.len();
            take(&mut self.outgoing, &mut self.taken, &header, payload, &mut tell)?;
            self.incoming.advance(size);
        }
        if self.taken > WINDOW / 2 {
            self.widen(self.taken);
            self.taken = 0;
        }
        Ok(())
    }

    fn widen(&mut self, by: u32) {
        frame(&mut self.outgoing, kind::WINDOW_UPDATE, 0, 0, |out| out.put_u32(by));
    }

    /// One call from its request to its answer, with nothing beside it.
    pub(crate) async fn call<A: Message + Default>(
        &mut self,
        path: &str,
        request: &impl Message,
    ) -> Result<A> {
        let stream = self.open(path);
        self.say(stream, &request.encode_to_vec(), true);
        self.flush().await?;
        let (mut answer, mut ended) = (None, false);
        while !ended {
            self.hear(|heard| match heard {
                Heard::Message(from, message) if from == stream => answer = Some(A::decode(message)),
                Heard::End(from) if from == stream => ended = true,
                Heard::Message(..) | Heard::End(_) => {}
            })
            .await?;
            self.flush().await?;
        }
        answer.context(format_args!("{path} was refused"))?.context(path)
    }
}

async fn shake_hands(stream: TcpStream, pem: &Path) -> Result<(Box<dyn Io>, ChannelBinding)> {
    let name = ServerName::try_from("localhost").context("a name for TLS")?;
    let stream = connector(pem)?.connect(name, stream).await.context("shaking hands")?;
    let (_, session) = stream.get_ref();
    let binding =
        session.export_keying_material([0; 32], EXPORTER_LABEL, None).context("the channel binding")?;
    Ok((Box::new(stream), Some(binding)))
}

/// TLS that trusts one certificate.
fn connector(pem: &Path) -> Result<TlsConnector> {
    let certificate = CertificateDer::from_pem_file(pem).context(pem.display())?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).context(pem.display())?;
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("preparing TLS")?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Every session is a new one, as a peer's first is.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    /// The first frame of `bytes`, if all of it is there.
    fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (mut header, rest) = bytes.split_at_checked(FRAME_HEADER)?;
        let size = usize::try_from(header.get_uint(3)).ok()?;
        let (kind, flags, stream) = (header.get_u8(), header.get_u8(), header.get_u32());
        Some((Self { kind, flags, stream }, rest.get(..size)?))
    }
}

/// Takes a frame: tells what it says, and queues what has to be answered.
fn take(
    out: &mut BytesMut,
    taken: &mut u32,
    header: &Frame,
    payload: &[u8],
    tell: &mut impl FnMut(Heard<'_>),
) -> Result<()> {
    let ends = header.flags & END_STREAM != 0;
    match header.kind {
        kind::DATA => {
            *taken += u32::try_from(payload.len()).unwrap_or(u32::MAX);
            let mut rest = payload;
            while !rest.is_empty() {
                let (message, after) = split_message(rest)?;
                tell(Heard::Message(header.stream, message));
                rest = after;
            }
            if ends {
                tell(Heard::End(header.stream));
            }
        }
        kind::HEADERS if ends => tell(Heard::End(header.stream)),
        kind::RST_STREAM => tell(Heard::End(header.stream)),
        kind::SETTINGS if header.flags & ACK == 0 => frame(out, kind::SETTINGS, ACK, 0, |_| ()),
        kind::PING if header.flags & ACK == 0 => frame(out, kind::PING, ACK, 0, |out| out.put_slice(payload)),
        kind::GOAWAY => return Err(Trouble::new("the server asked to leave")),
        _ => {}
    }
    Ok(())
}

fn split_message(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let split = bytes.split_at_checked(GRPC_HEADER).and_then(|(mut header, rest)| {
        header.advance(1);
        rest.split_at_checked(usize::try_from(header.get_u32()).ok()?)
    });
    split.context("the server split a message over frames")
}

fn frame(out: &mut BytesMut, kind: u8, flags: u8, stream: u32, content: impl FnOnce(&mut BytesMut)) {
    let begin = out.len();
    out.put_uint(0, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
    content(out);
    let size = out.len().saturating_sub(begin + FRAME_HEADER).to_be_bytes();
    if let (Some(place), Some(size)) = (out.get_mut(begin..begin + 3), size.last_chunk::<3>()) {
        place.copy_from_slice(size);
    }
}

/// Entries of HPACK's static table (RFC 7541, appendix A), as they are referred to.
const POST: u8 = 0x83;
const HTTP: u8 = 0x86;
const HTTPS: u8 = 0x87;

/// The headers of a request. As of any client that goes on using a connection, all but the path are in the server's table
/// after the first.
struct Headers {
    scheme: u8,
    authority: String,
    were_sent: bool,
}

impl Headers {
    fn put(&mut self, out: &mut BytesMut, path: &str) {
        out.put_u8(POST);
        out.put_u8(self.scheme);
        // Literal, not for the table, with the name of entry 4.
        out.put_u8(0x04);
        put_text(out, path);
        if self.were_sent {
            // The newest entry of the table is 62, which is written as 0x80 + 62.
            out.put_slice(&[0xc1, 0xc0, 0xbf, 0xbe]);
            return;
        }
        self.were_sent = true;
        for (entry, name, value) in [
            (1, None, self.authority.as_str()),
            (31, None, "application/grpc"),
            (0, Some("te"), "trailers"),
            (58, None, "bench-net"),
        ] {
            // Literal, for the table.
            out.put_u8(0x40 | entry);
            if let Some(name) = name {
                put_text(out, name);
            }
            put_text(out, value);
        }
    }
}

/// A text of less than 127 bytes, without Huffman's code.
fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u8(u8::try_from(text.len()).unwrap_or(u8::MAX).min(126));
    out.put_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written_and_not_before_it_is_whole() {
        let mut bytes = BytesMut::new();
        frame(&mut bytes, kind::DATA, END_STREAM, 5, |out| out.put_slice(b"\0\0\0\0\x02hi"));
        for short in 0..bytes.len() {
            assert_eq!(Frame::parse(&bytes[..short]), None);
        }
        let (header, payload) = Frame::parse(&bytes).unwrap();
        assert_eq!(header, Frame { kind: kind::DATA, flags: END_STREAM, stream: 5 });
        let (mut out, mut taken, mut heard) = (BytesMut::new(), 0, Vec::new());
        take(&mut out, &mut taken, &header, payload, &mut |said| heard.push(format!("{said:?}"))).unwrap();
        assert_eq!((heard.join(" "), taken), ("Message(5, [104, 105]) End(5)".to_owned(), 7));
        assert!(out.is_empty());
    }

    #[test]
    fn pings_and_settings_are_answered() {
        let mut out = BytesMut::new();
        for (kind, payload) in [(kind::PING, &b"12345678"[..]), (kind::SETTINGS, &[])] {
            let header = Frame { kind, flags: 0, stream: 0 };
            take(&mut out, &mut 0, &header, payload, &mut |_| ()).unwrap();
            let (answer, payload_back) = Frame::parse(&out).unwrap();
            assert_eq!(answer, Frame { kind, flags: ACK, stream: 0 });
            assert_eq!(payload_back, payload);
            out.clear();
            take(&mut out, &mut 0, &answer, payload, &mut |_| ()).unwrap();
            assert!(out.is_empty(), "an acknowledgement is the end of it");
        }
    }
}
