//! Own requests on a link: which are open, and the chunks that come back for them, put together out of their parts.
//!
//! Invariant: what is held in memory for a request is at most one chunk that is not complete, no larger than it was said to be.
//! Chunks of a request come in its order, each at most once; anything else ends the link. Whether a chunk's bytes are right is
//! not decided here.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use p2psb_proto::error::Reason;
use p2psb_proto::model::{Digest, limits};

/// The largest chunk there is: four times the largest average.
pub const MAX_CHUNK_BYTES: u32 = 4 << 20;

/// Longest reason or detail of the other end that is kept.
const MAX_TEXT_BYTES: usize = 512;

/// A chunk, or a page of a manifest, that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its digest.
    pub digest: Digest,
    /// The most bytes it may have.
    pub max_bytes: u32,
}

/// A chunk, or a part of one, as the other end sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Position of the chunk in the request.
    pub index: u32,
    /// Where in the chunk the data begins.
    pub offset: u32,
    /// Length of the whole chunk.
    pub total_size: u32,
    /// The bytes.
    pub data: Bytes,
}

/// A chunk that arrived whole, still to be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// As it was asked for.
    pub digest: Digest,
    /// What came.
    pub data: Bytes,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Of the request.
    pub id: u64,
    /// What was asked for and did not come.
    pub missing: Vec<Want>,
    /// Why the whole request was refused, if it was.
    pub refusal: Option<Refusal>,
}

/// The other end refused a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, if it is a known one.
    pub reason: Option<Reason>,
    /// For people.
    pub detail: String,
}

/// The other end broke the protocol; the link ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An answer to what was never asked.
    #[error("an answer came to request {0}, which was never made")]
    Unasked(u64),
    /// A frame with more data than allowed.
    #[error("a frame carries {0} bytes, at most 262144 are allowed")]
    FrameTooLarge(usize),
    /// Parts out of order, empty, or of a chunk that was not asked for.
    #[error("the parts of request {0} are out of order")]
    Order(u64),
    /// A chunk larger than it may be.
    #[error("a chunk of request {id} is said to have {size} bytes, at most {limit} are possible")]
    ChunkTooLarge {
        /// Of the request.
        id: u64,
        /// As the other end said.
        size: u32,
        /// As it may be.
        limit: u32,
    },
}

/// All requests that may be open are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {} requests of the link are open", limits::OPEN_REQUESTS)]
pub struct AllOpen;

#[derive(Debug)]
struct Request {
    wants: Vec<Want>,
    /// Position after the last chunk that came or began to come.
    next: usize,
    arrived: Vec<bool>,
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    index: usize,
    total: u32,
    data: BytesMut,
}

/// Own requests.
#[derive(Debug, Default)]
pub struct Outgoing {
    open: BTreeMap<u64, Request>,
    last_id: u64,
}

impl Outgoing {
    /// Opens a request for at most `limits::REQUEST_DIGESTS` chunks; returns its id.
    pub fn open(&mut self, wants: Vec<Want>) -> Result<u64, AllOpen> {
        if self.open.len() >= limits::OPEN_REQUESTS {
            return Err(AllOpen);
        }
        self.last_id = self.last_id.saturating_add(1);
        let arrived = vec![false; wants.len()];
        self.open.insert(self.last_id, Request { wants, next: 0, arrived, partial: None });
        Ok(self.last_id)
    }

    /// Loses interest in a request, if it is open. What still arrives for it is ignored.
    pub fn cancel(&mut self, id: u64) -> bool {
        self.open.remove(&id).is_some()
    }

    /// Parts came: the chunks that are whole now.
    pub fn on_chunks(&mut self, id: u64, parts: Vec<Part>) -> Result<Vec<Arrived>, Violation> {
        let bytes = parts.iter().map(|part| part.data.len()).sum();
        if bytes > limits::CHUNK_FRAME_BYTES {
            return Err(Violation::FrameTooLarge(bytes));
        }
        if id > self.last_id {
            return Err(Violation::Unasked(id));
        }
        // A request that was cancelled: its chunks were on their way.
        let Some(request) = self.open.get_mut(&id) else { return Ok(Vec::new()) };
        let mut arrived = Vec::new();
        for part in parts {
            arrived.extend(request.on_part(id, part)?);
        }
        Ok(arrived)
    }

    /// The other end is done with a request.
    pub fn on_done(&mut self, id: u64, reason: String, detail: String) -> Result<Option<Ended>, Violation> {
        if id > self.last_id {
            return Err(Violation::Unasked(id));
        }
        let Some(request) = self.open.remove(&id) else { return Ok(None) };
        // Believed is what came; whatever the other end calls missing, the rest is.
        let came = request.arrived.iter().copied();
        let missing =
            request.wants.iter().zip(came).filter(|(_, came)| !came).map(|(want, _)| *want).collect();
        let refusal = (!reason.is_empty()).then(|| Refusal {
            reason: Reason::parse(&reason),
            detail: cut(if detail.is_empty() { reason } else { detail }),
        });
        Ok(Some(Ended { id, missing, refusal }))
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

impl Request {
    fn on_part(&mut self, id: u64, part: Part) -> Result<Option<Arrived>, Violation> {
        let index = usize::try_from(part.index).map_err(|_| Violation::Order(id))?;
        let Some(want) = self.wants.get(index).copied() else { return Err(Violation::Order(id)) };
        if part.total_size > want.max_bytes.min(MAX_CHUNK_BYTES) {
            let limit = want.max_bytes.min(MAX_CHUNK_BYTES);
            return Err(Violation::ChunkTooLarge { id, size: part.total_size, limit });
        }
        let total = part.total_size as usize;
        let data = match self.partial.take() {
            None if part.offset == 0 && index >= self.next && !part.data.is_empty() => {
                self.next = index + 1;
                if part.data.len() < total {
                    let mut data = BytesMut::with_capacity(total);
                    data.extend_from_slice(&part.data);
                    self.partial = Some(Partial { index, total: part.total_size, data });
                    return Ok(None);
                }
                part.data
            }
            Some(mut partial)
                if partial.index == index
                    && partial.total == part.total_size
                    && part.offset as usize == partial.data.len()
                    && !part.data.is_empty()
                    && partial.data.len() + part.data.len() <= total =>
            {
                partial.data.extend_from_slice(&part.data);
                if partial.data.len() < total {
                    self.partial = Some(partial);
                    return Ok(None);
                }
                partial.data.freeze()
            }
            _ => return Err(Violation::Order(id)),
        };
        if data.len() != total {
            return Err(Violation::Order(id));
        }
        if let Some(arrived) = self.arrived.get_mut(index) {
            *arrived = true;
        }
        Ok(Some(Arrived { digest: want.digest, data }))
    }
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(name: &[u8]) -> Want {
        Want { digest: Digest::of(name), max_bytes: 100 }
    }

    fn part(index: u32, offset: u32, total_size: u32, data: &'static [u8]) -> Part {
        Part { index, offset, total_size, data: Bytes::from_static(data) }
    }

    fn opened(count: usize) -> Outgoing {
        let mut outgoing = Outgoing::default();
        outgoing.open((0..count).map(|i| want(&[i as u8])).collect()).unwrap();
        outgoing
    }

    #[test]
    fn chunks_are_put_together_out_of_their_parts() {
        let mut outgoing = opened(3);
        let arrived = outgoing.on_chunks(1, vec![part(0, 0, 2, b"ab"), part(2, 0, 4, b"cd")]).unwrap();
        assert_eq!(arrived, [Arrived { digest: Digest::of(&[0]), data: Bytes::from_static(b"ab") }]);
        let arrived = outgoing.on_chunks(1, vec![part(2, 2, 4, b"ef")]).unwrap();
        assert_eq!(arrived, [Arrived { digest: Digest::of(&[2]), data: Bytes::from_static(b"cdef") }]);
        let ended = outgoing.on_done(1, String::new(), String::new()).unwrap().unwrap();
        assert_eq!((ended.missing, ended.refusal), (vec![want(&[1])], None));
        assert!(outgoing.is_empty());
    }

    #[test]
    fn parts_out_of_order_oversized_or_empty_end_the_link() {
        for bad in [
            vec![part(0, 1, 4, b"a")],
            vec![part(0, 0, 4, b"")],
            vec![part(0, 0, 0, b"")],
            vec![part(0, 0, 1, b"ab")],
            vec![part(9, 0, 1, b"a")],
            vec![part(1, 0, 1, b"a"), part(0, 0, 1, b"a")],
            vec![part(0, 0, 1, b"a"), part(0, 0, 1, b"a")],
            vec![part(0, 0, 4, b"ab"), part(1, 0, 1, b"a")],
            vec![part(0, 0, 4, b"ab"), part(0, 2, 5, b"cd")],
            vec![part(0, 0, 4, b"ab"), part(0, 2, 4, b"cde")],
        ] {
            assert_eq!(opened(2).on_chunks(1, bad.clone()), Err(Violation::Order(1)), "{bad:?}");
        }
        let large = Violation::ChunkTooLarge { id: 1, size: 101, limit: 100 };
        assert_eq!(opened(1).on_chunks(1, vec![part(0, 0, 101, b"a")]), Err(large));
        let stuffed = Part { data: Bytes::from(vec![0; 262_145]), ..part(0, 0, 100, b"") };
        assert_eq!(opened(1).on_chunks(1, vec![stuffed]), Err(Violation::FrameTooLarge(262_145)));
    }

    #[test]
    fn answers_to_nothing_end_the_link_but_those_to_a_cancelled_request_are_ignored() {
        let mut outgoing = opened(1);
        assert!(outgoing.cancel(1) && !outgoing.cancel(1));
        assert_eq!(outgoing.on_chunks(1, vec![part(0, 0, 1, b"a")]), Ok(vec![]));
        assert_eq!(outgoing.on_done(1, String::new(), String::new()), Ok(None));
        assert_eq!(outgoing.on_done(2, String::new(), String::new()), Err(Violation::Unasked(2)));
        assert_eq!(outgoing.on_chunks(2, Vec::new()), Err(Violation::Unasked(2)));
    }

    #[test]
    fn a_refusal_says_why_and_everything_is_missing() {
        let mut outgoing = opened(2);
        let reason = Reason::ManifestUnknown.as_str().to_owned();
        let ended = outgoing.on_done(1, reason, "x".repeat(2000)).unwrap().unwrap();
        let refusal = ended.refusal.unwrap();
        assert_eq!((refusal.reason, refusal.detail.len()), (Some(Reason::ManifestUnknown), MAX_TEXT_BYTES));
        assert_eq!(ended.missing.len(), 2);
    }

    #[test]
    fn no_more_than_sixty_four_requests_are_open() {
        let mut outgoing = Outgoing::default();
        for _ in 0..limits::OPEN_REQUESTS {
            outgoing.open(vec![want(b"x")]).unwrap();
        }
        assert_eq!(outgoing.open(vec![want(b"x")]).unwrap_err(), AllOpen);
    }
}
