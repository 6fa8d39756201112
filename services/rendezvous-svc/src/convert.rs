//! Between what the core keeps, encoded records and plain values, and what crosses the wire.

use bytes::Bytes;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::PeerStatement;
use p2psb_proto::wire::common::v1::{LocatedPeer, SignedRecord};
use prost::Message as _;

use crate::core::directory::Located;
use crate::core::table::Item;

/// A verified statement, ready for the table.
pub(crate) fn item(statement: &PeerStatement) -> Item {
    Item::new(statement, Bytes::from(statement.to_wire().encode_to_vec()))
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
