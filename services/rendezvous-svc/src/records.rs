//! Statements on their way in: verified outside every lock, then put into the table, then told to the backbone.

use std::net::IpAddr;
use std::time::Duration;

use p2psb_proto::error::Failure;
use p2psb_proto::model::{PeerId, PeerRecord, PeerStatement, RecordError, Signed};
use p2psb_proto::wire::common::v1::SignedRecord;
use prost::Message as _;

use crate::convert;
use crate::core::ledger::Bringer;
use crate::core::placement::Key;
use crate::core::table::{Merged, TableError};
use crate::core::telling::Origin;
use crate::node::Node;

/// Who passes a statement on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Teller {
    /// A member.
    Member,
    /// An edge at this address, if it is known. Its peers are this server's to tell of, and are charged to that address.
    Edge(Option<IpAddr>),
}

impl Teller {
    /// Where a change comes from that `from` told of.
    pub(crate) const fn origin(self, from: PeerId) -> Origin {
        match self {
            Self::Member => Origin::Member(from),
            Self::Edge(_) => Origin::Here,
        }
    }
}

/// Why a statement that somebody passes on is not taken.
#[derive(Debug)]
pub(crate) enum NotMerged {
    /// It proves nothing, or does not count here and now.
    Unproven(RecordError),
    /// That of this peer is refused.
    Refused(PeerId, TableError),
}

impl From<RecordError> for NotMerged {
    fn from(error: RecordError) -> Self {
        Self::Unproven(error)
    }
}

impl From<NotMerged> for Failure {
    fn from(refused: NotMerged) -> Self {
        match refused {
            NotMerged::Unproven(error) => error.into(),
            NotMerged::Refused(_, error) => error.into(),
        }
    }
}

impl Node {
    /// Verifies a statement, and that it counts here and now.
    pub(crate) fn verify(&self, record: SignedRecord) -> Result<PeerStatement, RecordError> {
        let statement = PeerStatement::verify(record)?;
        statement.check(&self.network, self.now().wall)?;
        Ok(statement)
    }

    /// Takes a verified statement from its peer, which is there.
    pub(crate) fn offer(
        &self,
        statement: &PeerStatement,
        from: Option<IpAddr>,
    ) -> Result<Merged, TableError> {
        let (item, peer) = (convert::item(statement), statement.peer_id());
        let (before, merged) = {
            let mut directory = self.directory.write();
            let before = directory.table.service_keys(&peer);
            (before, directory.table.offer(item, Bringer::Peer(from), self.now().wall))
        };
        self.account(&peer, before, Origin::Here, &merged);
        merged
    }

    /// Takes a record from a member or edge, unless it is known; it need not be that one's own. An edge has to hold its peers to
    /// their pace, as this server does its own; a member is believed that it did.
    pub(crate) fn merge(
        &self,
        record: SignedRecord,
        from: PeerId,
        teller: Teller,
    ) -> Result<Merged, NotMerged> {
        let encoded = record.encode_to_vec();
        let claimed = <[u8; 32]>::try_from(record.key.as_ref()).ok();
        if let Some(key) = claimed {
            let peer = PeerId::new(p2psb_proto::model::PublicKey::from_bytes(key));
            if self.directory.read().table.holds(&peer, &encoded) {
                return Ok(Merged::Known);
            }
        }
        let statement = self.verify(record)?;
        let peer = statement.peer_id();
        let (item, now) = (convert::item(&statement), self.now().wall);
        let (before, merged) = {
            let mut directory = self.directory.write();
            let before = directory.table.service_keys(&peer);
            let by = match teller {
                _ if peer == self.id => Bringer::Own,
                _ if directory.members.contains(&peer) => Bringer::Backbone,
                Teller::Member if peer == from => Bringer::Backbone,
                Teller::Member => Bringer::Member(from),
                Teller::Edge(from) => Bringer::Peer(from),
            };
            let merged = match teller {
                Teller::Member => directory.table.merge(item, by, now),
                Teller::Edge(_) => directory.table.merge_paced(item, by, now),
            };
            (before, merged)
        };
        self.account(&peer, before, teller.origin(from), &merged);
        if peer == self.id && merged == Ok(Merged::Changed) {
            self.sign_anew.notify_one();
        }
        merged.map_err(|error| NotMerged::Refused(peer, error))
    }

    /// Counts what became of a statement of a peer that offered these services before, and tells the backbone of a change.
    pub(crate) fn account(
        &self,
        peer: &PeerId,
        mut services: Vec<Key>,
        origin: Origin,
        merged: &Result<Merged, TableError>,
    ) {
        let outcome = match merged {
            Ok(Merged::Changed) => "changed",
            Ok(Merged::Known) => "known",
            Err(TableError::Stale { .. }) => "stale",
            Err(TableError::Expired { .. }) => "expired",
            Err(TableError::TooOften { .. }) => "too_often",
            Err(TableError::Full(_)) => "full",
            // Anybody can do that at will, so the sweeper reports it, now and then.
            Err(TableError::Equivocation { .. }) => "equivocation",
        };
        metrics::counter!("rendezvous_records_total", "outcome" => outcome).increment(1);
        if *merged == Ok(Merged::Changed) {
            let is_member = {
                let directory = self.directory.read();
                services.extend(directory.table.service_keys(peer));
                *peer == self.id || directory.members.contains(peer)
            };
            self.hub.record(*peer, &services, origin);
            if is_member {
                self.hub.record_of_member(*peer);
            }
        }
    }

    /// The presence of a peer changed; tells the backbone.
    pub(crate) fn presence(&self, peer: PeerId, origin: Origin) {
        let services = self.directory.read().table.service_keys(&peer);
        self.hub.presence(peer, &services, origin);
    }
}

/// The record in a statement that must be one.
pub(crate) fn only_record(statement: PeerStatement) -> Result<Signed<PeerRecord>, RecordError> {
    match statement {
        PeerStatement::Record(record) => Ok(record),
        PeerStatement::Withdrawal(_) => Err(RecordError::Type {
            expected: "RECORD_TYPE_PEER",
            found: p2psb_proto::model::record::RecordType::PeerWithdrawal as i32,
        }),
    }
}

/// A statement that must be a withdrawal.
pub(crate) fn only_withdrawal(statement: PeerStatement) -> Result<PeerStatement, RecordError> {
    match statement {
        PeerStatement::Withdrawal(_) => Ok(statement),
        PeerStatement::Record(_) => Err(RecordError::Type {
            expected: "RECORD_TYPE_PEER_WITHDRAWAL",
            found: p2psb_proto::model::record::RecordType::Peer as i32,
        }),
    }
}

/// When to send the next record: half of what is left of this one's life, a tenth more or less by `chance` in 0 to 1.
pub(crate) fn refresh_after(left: Duration, chance: f64) -> Duration {
    left.mul_f64(0.4 + 0.2 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_renewed_around_half_of_their_life() {
        let left = Duration::from_secs(1000);
        assert_eq!(refresh_after(left, 0.0), Duration::from_secs(400));
        assert_eq!(refresh_after(left, 0.5), Duration::from_secs(500));
        assert_eq!(refresh_after(left, 9.0), Duration::from_secs(600));
    }
}
