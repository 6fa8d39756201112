//! Between what the core keeps, encoded records and plain values, and what crosses the wire.

use std::error::Error as _;

use bytes::Bytes;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::PeerStatement;
use p2psb_proto::wire::common::v1::{LocatedPeer, Presence, SignedRecord};
use prost::Message as _;
use tonic::{Code, Status};

use crate::core::directory::Located;
use crate::core::table::Item;

/// A verified statement, ready for the table.
pub(crate) fn item(statement: &PeerStatement) -> Item {
    Item::new(statement)
}

/// A record out of the table. It shares the table's bytes.
pub(crate) fn signed(bytes: &Bytes) -> Result<SignedRecord, Failure> {
    SignedRecord::decode(bytes.clone())
        .map_err(|error| Failure::new(Reason::Internal, format!("a stored record can't be decoded: {error}")))
}

/// A peer that was found.
pub(crate) fn located(found: &Located) -> Result<LocatedPeer, Failure> {
    Ok(LocatedPeer { record: Some(signed(&found.bytes)?), presence: Some(found.presence.to_wire()) })
}

/// A peer that was found, on its way out: a `LocatedPeer` whose record goes out as it is stored. Bytes and messages look alike
/// on the wire.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct StoredPeer {
    #[prost(bytes = "bytes", tag = "1")]
    record: Bytes,
    #[prost(message, optional, tag = "2")]
    presence: Option<Presence>,
}

/// The same as a `LocateResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct StoredAnswer {
    #[prost(message, optional, tag = "1")]
    peer: Option<StoredPeer>,
}

impl From<Located> for StoredPeer {
    fn from(found: Located) -> Self {
        Self { record: found.bytes, presence: Some(found.presence.to_wire()) }
    }
}

impl From<Located> for StoredAnswer {
    fn from(found: Located) -> Self {
        Self { peer: Some(found.into()) }
    }
}

/// As many records as fit into `limit` encoded bytes, from the first on.
pub(crate) fn cut<'a>(records: impl Iterator<Item = &'a Bytes>, limit: usize) -> Vec<SignedRecord> {
    let mut room = limit;
    let fits = |bytes: &&Bytes| {
        // Tag and length of a record take less than 8 bytes.
        let size = bytes.len() + 8;
        let fits = size <= room;
        room = room.saturating_sub(size);
        fits
    };
    records.take_while(fits).filter_map(|bytes| signed(bytes).ok()).collect()
}

/// What was wrong if a stream ended because this end could not read what came; `None` if it broke in another way, which the
/// transport knows as the source.
pub(crate) fn unreadable(status: &Status) -> Option<Failure> {
    let is_unread = matches!(status.code(), Code::Internal | Code::OutOfRange) && status.source().is_none();
    let text = || format!("a message can't be read: {}", status.message());
    is_unread.then(|| Failure::new(Reason::InvalidArgument, text()))
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::presence::{Presence as Answer, PresenceSource, PresenceState};
    use p2psb_proto::wire::rendezvous::v1::LocateResponse;

    use super::*;
    use crate::core::testing::{T0, peer, record};

    #[test]
    fn what_is_answered_from_stored_bytes_is_what_the_contract_says() {
        for home in [None, Some(peer(2))] {
            let presence = Answer {
                state: PresenceState::Online,
                last_seen: T0,
                as_of: T0.plus(std::time::Duration::from_millis(1)),
                source: PresenceSource::Session,
                home,
            };
            let bytes = record(1, 1, &["chat"]).to_wire().encode_to_vec().into();
            let found = Located { peer: peer(1), bytes, presence };
            let contract = LocateResponse { peer: Some(located(&found).unwrap()) };
            assert_eq!(StoredAnswer::from(found).encode_to_vec(), contract.encode_to_vec());
        }
    }
}
