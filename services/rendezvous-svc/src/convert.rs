//! Between what the core keeps, encoded records and plain values, and what crosses the wire.

use std::error::Error as _;

use bytes::{BufMut, Bytes};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::PeerStatement;
use p2psb_proto::wire::common::v1::{LocatedPeer, Presence, SignedRecord};
use prost::{Message as _, encoding};
use tonic::{Code, Status};

use crate::core::directory::{Located, Stored};
use crate::core::table::{Entry, Item};

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

/// A peer that was found, on its way out: a `LocatedPeer` whose record goes out as it is stored.
pub(crate) struct StoredPeer<'a> {
    record: Record<'a>,
    presence: Presence,
}

enum Record<'a> {
    InTable(Entry<'a>),
    Encoded(&'a [u8]),
}

/// Of a `LocatedPeer`.
const RECORD: u32 = 1;
const PRESENCE: u32 = 2;

impl StoredPeer<'_> {
    /// How long it is as the field `tag` of an answer.
    pub(crate) fn field_len(&self, tag: u32) -> usize {
        field_len(tag, self.encoded_len())
    }

    /// Appends it as the field `tag` of an answer.
    pub(crate) fn put_field(&self, tag: u32, to: &mut impl BufMut) {
        put_key(tag, self.encoded_len(), to);
        put_key(RECORD, self.record.encoded_len(), to);
        match &self.record {
            Record::InTable(entry) => entry.encode(to),
            Record::Encoded(bytes) => to.put_slice(bytes),
        }
        encoding::message::encode(PRESENCE, &self.presence, to);
    }

    fn encoded_len(&self) -> usize {
        let presence = encoding::message::encoded_len(PRESENCE, &self.presence);
        field_len(RECORD, self.record.encoded_len()) + presence
    }
}

impl Record<'_> {
    fn encoded_len(&self) -> usize {
        match self {
            Self::InTable(entry) => entry.encoded_len(),
            Self::Encoded(bytes) => bytes.len(),
        }
    }
}

/// How long a field is that has so many bytes, with its tag and their number.
fn field_len(tag: u32, bytes: usize) -> usize {
    encoding::key_len(tag) + encoding::encoded_len_varint(bytes as u64) + bytes
}

/// Appends what stands before the bytes of a field.
fn put_key(tag: u32, bytes: usize, to: &mut impl BufMut) {
    encoding::encode_key(tag, encoding::WireType::LengthDelimited, to);
    encoding::encode_varint(bytes as u64, to);
}

impl<'a> From<Stored<'a>> for StoredPeer<'a> {
    fn from(found: Stored<'a>) -> Self {
        Self { record: Record::InTable(found.entry), presence: found.presence.to_wire() }
    }
}

impl<'a> From<&'a Located> for StoredPeer<'a> {
    fn from(found: &'a Located) -> Self {
        Self { record: Record::Encoded(&found.bytes), presence: found.presence.to_wire() }
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
    use crate::core::ledger::Bringer;
    use crate::core::table::Table;
    use crate::core::testing::{T0, peer, record, shares};

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
            let mut table = Table::new(shares(9), shares(9));
            table.offer(item(&record(1, 1, &["chat"])), Bringer::Own, T0).unwrap();
            let bytes = record(1, 1, &["chat"]).to_wire().encode_to_vec().into();
            let found = Located { peer: peer(1), bytes, presence: presence.clone() };
            let contract = LocateResponse { peer: Some(located(&found).unwrap()) }.encode_to_vec();
            let stored = Stored { entry: table.valid(&peer(1), T0).unwrap(), presence };
            for stored in [StoredPeer::from(&found), StoredPeer::from(stored)] {
                let mut answer = Vec::new();
                stored.put_field(1, &mut answer);
                assert_eq!((stored.field_len(1), answer), (contract.len(), contract.clone()));
            }
        }
    }
}
