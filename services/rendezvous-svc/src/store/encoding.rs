//! How things lie in a snapshot, to the byte: integers little endian, ids 33 bytes, texts and records preceded by their length.
//!
//! Bytes that are none of ours are an error, never a panic and never a large allocation.

use std::net::IpAddr;

use bytes::Bytes;
use p2psb_proto::model::{NetworkId, PeerId, UnixMillis};

use crate::core::ledger::Bringer;
use crate::core::session::How;
use crate::core::snapshot::{Head, Kept};

/// Bytes of an encoded [`Head`].
pub(super) const HEAD_BYTES: usize = ID_BYTES + 32 + 8 + 8;
const ID_BYTES: usize = 33;

const MEMBER: u8 = 1;
const STAY: u8 = 2;
const STATEMENT: u8 = 3;

/// The bytes are no such thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Appends what a snapshot says of itself: [`HEAD_BYTES`].
pub(super) fn put_head(out: &mut Vec<u8>, head: &Head) {
    out.extend(head.own.to_bytes());
    out.extend(head.network.as_bytes());
    out.extend(head.begun.0.to_le_bytes());
    out.extend(head.knowledge_since.0.to_le_bytes());
}

/// What [`put_head`] has written. Whether the life was over with it is known only when it is.
pub(super) fn head(bytes: &[u8]) -> Result<Head, Malformed> {
    let mut from = Cut(bytes);
    let own = from.id()?;
    let network = NetworkId::from_slice(from.take(32)?).map_err(|_| Malformed)?;
    let head = Head { network, own, begun: from.time()?, knowledge_since: from.time()?, is_last: false };
    from.end().map(|()| head)
}

/// Appends one thing.
pub(super) fn put(out: &mut Vec<u8>, kept: &Kept) {
    match kept {
        Kept::Member(peer) => {
            out.push(MEMBER);
            out.extend(peer.to_bytes());
        }
        Kept::Stay { peer, session_seq, heard, how, proof } => {
            out.push(STAY);
            out.extend(peer.to_bytes());
            out.extend(session_seq.to_le_bytes());
            out.extend(heard.0.to_le_bytes());
            put_how(out, how);
            out.extend_from_slice(proof);
        }
        Kept::Statement { bytes, keep, brought_by } => {
            out.push(STATEMENT);
            out.extend(keep.0.to_le_bytes());
            put_bringer(out, brought_by);
            out.extend_from_slice(bytes);
        }
    }
}

/// What [`put`] has written.
pub(super) fn kept(bytes: &[u8]) -> Result<Kept, Malformed> {
    let mut from = Cut(bytes);
    let kept = match from.byte()? {
        MEMBER => Kept::Member(from.id()?),
        STAY => {
            let (peer, session_seq, heard) = (from.id()?, from.number()?, from.time()?);
            let how = from.how()?;
            Kept::Stay { peer, session_seq, heard, how, proof: from.rest() }
        }
        STATEMENT => {
            let keep = from.time()?;
            let brought_by = from.bringer()?;
            Kept::Statement { bytes: from.rest(), keep, brought_by }
        }
        _ => return Err(Malformed),
    };
    from.end().map(|()| kept)
}

fn put_how(out: &mut Vec<u8>, how: &How) {
    match how {
        How::Present => out.push(0),
        How::Registered { from } => {
            out.push(1);
            put_ip(out, *from);
        }
        How::Gone => out.push(2),
    }
}

fn put_bringer(out: &mut Vec<u8>, by: &Bringer) {
    match by {
        Bringer::Own => out.push(0),
        Bringer::Backbone => out.push(1),
        Bringer::Peer(from) => {
            out.push(2);
            put_ip(out, *from);
        }
        Bringer::Member(member) => {
            out.push(3);
            out.extend(member.to_bytes());
        }
    }
}

fn put_ip(out: &mut Vec<u8>, ip: Option<IpAddr>) {
    match ip {
        None => out.push(0),
        Some(IpAddr::V4(ip)) => {
            out.push(4);
            out.extend(ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            out.push(6);
            out.extend(ip.octets());
        }
    }
}

/// What is left to be read.
struct Cut<'a>(&'a [u8]);

impl<'a> Cut<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Result<UnixMillis, Malformed> {
        self.number().map(UnixMillis)
    }

    fn id(&mut self) -> Result<PeerId, Malformed> {
        PeerId::from_slice(self.take(ID_BYTES)?).map_err(|_| Malformed)
    }

    fn ip(&mut self) -> Result<Option<IpAddr>, Malformed> {
        Ok(match self.byte()? {
            0 => None,
            4 => Some(IpAddr::from(self.array::<4>()?)),
            6 => Some(IpAddr::from(self.array::<16>()?)),
            _ => return Err(Malformed),
        })
    }

    fn how(&mut self) -> Result<How, Malformed> {
        Ok(match self.byte()? {
            0 => How::Present,
            1 => How::Registered { from: self.ip()? },
            2 => How::Gone,
            _ => return Err(Malformed),
        })
    }

    fn bringer(&mut self) -> Result<Bringer, Malformed> {
        Ok(match self.byte()? {
            0 => Bringer::Own,
            1 => Bringer::Backbone,
            2 => Bringer::Peer(self.ip()?),
            3 => Bringer::Member(self.id()?),
            _ => return Err(Malformed),
        })
    }

    fn rest(&mut self) -> Bytes {
        Bytes::copy_from_slice(std::mem::take(&mut self.0))
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{T0, network, peer};

    fn everything() -> Vec<Kept> {
        let ip = |text: &str| Some(text.parse().unwrap());
        let stay = |how| Kept::Stay {
            peer: peer(2),
            session_seq: u64::MAX,
            heard: T0,
            how,
            proof: Bytes::from_static(b"proof"),
        };
        let statement = |brought_by| Kept::Statement {
            bytes: Bytes::from_static(b"statement"),
            keep: UnixMillis(7),
            brought_by,
        };
        let registered = |from| stay(How::Registered { from });
        vec![
            Kept::Member(peer(1)),
            stay(How::Present),
            stay(How::Gone),
            registered(None),
            registered(ip("192.0.2.1")),
            registered(ip("2001:db8::1")),
            statement(Bringer::Own),
            statement(Bringer::Backbone),
            statement(Bringer::Peer(None)),
            statement(Bringer::Peer(ip("192.0.2.1"))),
            statement(Bringer::Member(peer(3))),
        ]
    }

    #[test]
    fn everything_comes_back_as_it_was() {
        let own = Head {
            network: network(),
            own: peer(1),
            begun: T0,
            knowledge_since: UnixMillis(3),
            is_last: false,
        };
        let mut bytes = Vec::new();
        put_head(&mut bytes, &own);
        assert_eq!((bytes.len(), head(&bytes)), (HEAD_BYTES, Ok(own)));
        for one in everything() {
            let mut bytes = Vec::new();
            put(&mut bytes, &one);
            assert_eq!(kept(&bytes).as_ref(), Ok(&one));
        }
    }

    #[test]
    fn what_is_cut_short_or_unknown_is_refused() {
        assert_eq!(head(&[0; HEAD_BYTES - 1]), Err(Malformed));
        assert_eq!(head(&[9; HEAD_BYTES]), Err(Malformed), "no id begins so");
        assert_eq!(kept(&[]), Err(Malformed));
        assert_eq!(kept(&[77, 1, 2]), Err(Malformed));
        let member = |extra: usize| {
            let mut bytes = Vec::new();
            put(&mut bytes, &Kept::Member(peer(1)));
            bytes.resize(bytes.len() + extra, 0);
            bytes
        };
        assert_eq!(kept(&member(1)), Err(Malformed));
        for one in everything() {
            let mut bytes = Vec::new();
            put(&mut bytes, &one);
            for at in 0..bytes.len() {
                // What is cut inside its last, open part is something else, not a panic; the seal of the file notices.
                let _ = kept(&bytes[..at]);
            }
            bytes[0] = 200;
            assert_eq!(kept(&bytes), Err(Malformed));
        }
    }
}
