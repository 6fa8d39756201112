//! What comes into the table.

use std::cmp::Ordering;

use p2psb_proto::model::limits::{RECORD_LIFETIME, WITHDRAWAL_GRACE};
use p2psb_proto::model::{Digest, NetworkId, Packed, PeerId, PeerStatement, UnixMillis};

use super::Entry;

/// A verified statement on its way into the table. That it belongs to this network and its clocks are sane was checked before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub(super) peer: PeerId,
    pub(super) seq: u64,
    pub(super) digest: Digest,
    pub(super) issued: UnixMillis,
    /// When it stops counting; zero for a withdrawal.
    pub(super) expires: UnixMillis,
    /// Until when older statements of the peer might count.
    pub(super) keep: UnixMillis,
    pub(super) services: Box<[Box<str>]>,
    pub(super) network: NetworkId,
    pub(super) packed: Packed,
}

impl Item {
    /// Of a statement.
    #[must_use]
    pub fn new(statement: &PeerStatement) -> Self {
        let (seq, digest) = statement.rank();
        let (issued, expires, keep, services) = match statement {
            PeerStatement::Record(record) => {
                let r = record.value();
                let mut services: Vec<Box<str>> = r.services.iter().map(|s| s.name.as_str().into()).collect();
                services.sort_unstable();
                services.dedup();
                (r.issued, r.expires, r.expires, services.into())
            }
            PeerStatement::Withdrawal(withdrawal) => {
                let issued = withdrawal.value().issued;
                let keep = issued.plus(RECORD_LIFETIME + WITHDRAWAL_GRACE);
                (issued, UnixMillis::default(), keep, Box::default())
            }
        };
        let (network, packed) = (statement.network(), statement.pack());
        Self { peer: statement.peer_id(), seq, digest, issued, expires, keep, services, network, packed }
    }

    /// Whose it is.
    #[must_use]
    pub const fn peer(&self) -> PeerId {
        self.peer
    }

    /// Its place in the peer's sequence.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// When it stops counting.
    #[must_use]
    pub const fn expires(&self) -> UnixMillis {
        self.expires
    }

    pub(super) fn is_withdrawal(&self) -> bool {
        self.expires == UnixMillis::default()
    }

    pub(super) fn wins_over(&self, known: Entry<'_>) -> bool {
        match self.seq.cmp(&known.stated.seq) {
            Ordering::Equal => self.digest > known.digest(),
            other => other == Ordering::Greater,
        }
    }
}
