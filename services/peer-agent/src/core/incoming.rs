//! The requests of the other end of a link: which are open, which were cancelled.
//!
//! Invariant: at most `limits::OPEN_REQUESTS` are open; their ids rise; each one that was accepted is ended exactly once.

use std::collections::BTreeMap;

use bytes::Bytes;
use p2psb_proto::error::Reason;
use p2psb_proto::model::{Digest, limits};

/// What to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Of the request.
    pub id: u64,
    /// The manifest through which the chunks were found.
    pub manifest: Digest,
    /// What is wanted, in order.
    pub digests: Vec<Digest>,
}

/// A request that is answered with a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Of the request.
    pub id: u64,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub detail: String,
}

/// The other end broke the order of the protocol; the link ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request ids must rise: {found} came after {last}")]
pub struct IdOrder {
    /// Highest id so far.
    pub last: u64,
    /// The new one.
    pub found: u64,
}

/// Open requests of the other end.
#[derive(Debug, Default)]
pub struct Incoming {
    /// Open ids, and whether they were cancelled.
    open: BTreeMap<u64, bool>,
    last: Option<u64>,
}

impl Incoming {
    /// A request came. The inner result says whether it is served or refused.
    pub fn accept(
        &mut self,
        id: u64,
        manifest: &[u8],
        digests: &[Bytes],
    ) -> Result<Result<Asked, Refused>, IdOrder> {
        if let Some(last) = self.last.filter(|last| id <= *last) {
            return Err(IdOrder { last, found: id });
        }
        self.last = Some(id);
        if self.open.len() >= limits::OPEN_REQUESTS {
            let detail = format!("at most {} requests may be open on a link", limits::OPEN_REQUESTS);
            return Ok(Err(Refused { id, reason: Reason::LimitExceeded, detail }));
        }
        Ok(parse(id, manifest, digests).inspect(|_| {
            self.open.insert(id, false);
        }))
    }

    /// The other end lost interest.
    pub fn cancel(&mut self, id: u64) {
        if let Some(cancelled) = self.open.get_mut(&id) {
            *cancelled = true;
        }
    }

    /// Whether a request need not be served any more.
    #[must_use]
    pub fn is_cancelled(&self, id: u64) -> bool {
        self.open.get(&id).copied().unwrap_or(true)
    }

    /// A request is answered. Called before its `RequestDone` leaves, since the other end may send the next one at once.
    pub fn finish(&mut self, id: u64) {
        self.open.remove(&id);
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

fn parse(id: u64, manifest: &[u8], digests: &[Bytes]) -> Result<Asked, Refused> {
    let refuse = |detail: String| Refused { id, reason: Reason::InvalidArgument, detail };
    let digest = |bytes: &[u8]| Digest::from_slice(bytes).map_err(|error| refuse(error.to_string()));
    let count = digests.len();
    if count == 0 || count > limits::REQUEST_DIGESTS {
        return Err(refuse(format!(
            "a request names 1 to {} chunks, this one {count}",
            limits::REQUEST_DIGESTS
        )));
    }
    Ok(Asked {
        id,
        manifest: digest(manifest)?,
        digests: digests.iter().map(|bytes| digest(bytes)).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(incoming: &mut Incoming, id: u64, count: usize) -> Result<Result<Asked, Refused>, IdOrder> {
        let digests = vec![Digest::of(b"c").to_wire(); count];
        incoming.accept(id, Digest::of(b"m").as_bytes(), &digests)
    }

    #[test]
    fn the_sixty_fifth_open_request_is_refused_and_room_comes_back() {
        let mut incoming = Incoming::default();
        for id in 1..=64 {
            assert_eq!(ask(&mut incoming, id, 1).unwrap().unwrap().id, id);
        }
        let refused = ask(&mut incoming, 65, 1).unwrap().unwrap_err();
        assert_eq!(refused.reason, Reason::LimitExceeded);
        incoming.finish(3);
        assert!(ask(&mut incoming, 66, 1).unwrap().is_ok());
        assert_eq!(incoming.len(), 64);
    }

    #[test]
    fn malformed_requests_are_refused_by_name_and_take_no_room() {
        let mut incoming = Incoming::default();
        for (id, count) in [(1, 0), (2, 1025)] {
            assert_eq!(ask(&mut incoming, id, count).unwrap().unwrap_err().reason, Reason::InvalidArgument);
        }
        let short = [Bytes::from_static(b"short")];
        let refused = incoming.accept(3, Digest::of(b"m").as_bytes(), &short).unwrap().unwrap_err();
        assert_eq!(refused.reason, Reason::InvalidArgument);
        assert!(incoming.is_empty());
    }

    #[test]
    fn ids_that_do_not_rise_end_the_link() {
        let mut incoming = Incoming::default();
        assert!(ask(&mut incoming, 5, 1).unwrap().is_ok());
        assert_eq!(ask(&mut incoming, 5, 1), Err(IdOrder { last: 5, found: 5 }));
    }

    #[test]
    fn a_cancelled_request_stays_open_until_it_is_ended() {
        let mut incoming = Incoming::default();
        assert!(ask(&mut incoming, 1, 1).unwrap().is_ok());
        assert!(!incoming.is_cancelled(1));
        incoming.cancel(1);
        incoming.cancel(9);
        assert!(incoming.is_cancelled(1));
        incoming.finish(1);
        assert!(incoming.is_empty() && incoming.is_cancelled(1));
    }
}
