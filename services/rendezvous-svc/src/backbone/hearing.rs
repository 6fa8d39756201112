//! What is made of what a member told. What proves nothing is passed over, the rest counts.

use std::time::Duration;

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::time::duration_from_wire;
use p2psb_proto::model::{PeerId, PeerRecord, Signed, limits};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;

use super::stating;
use crate::convert;
use crate::core::homes::FOREVER;
use crate::core::interest::TooManySubscriptions;
use crate::core::members::LinkTicket;
use crate::core::own::SERVICE;
use crate::core::placement::Operator;
use crate::core::ring::Word;
use crate::core::table::Merged;
use crate::core::telling::Origin;
use crate::node::Node;

/// What came of a batch.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Statements that proved nothing.
    pub(super) refused: usize,
    /// The reason of the first of them.
    pub(super) first: Option<Failure>,
    /// Somebody was heard of.
    pub(super) new_members: bool,
}

impl Heard {
    fn count(&mut self, failure: Failure) {
        self.refused += 1;
        self.first.get_or_insert(failure);
    }
}

/// How much a batch holds.
pub(super) fn size(batch: &wire::BridgeBatch) -> usize {
    batch.records.len() + batch.presence.len() + batch.members.len() + batch.words.len()
}

/// Checks the bounds of a batch.
pub(super) fn check(batch: &wire::BridgeBatch) -> Result<(), Failure> {
    for (what, count, limit) in [
        ("records", batch.records.len(), limits::BATCH_ITEMS),
        ("presence", batch.presence.len(), limits::BATCH_ITEMS),
        ("interest", batch.interest.len(), limits::BATCH_ITEMS),
        ("unheard", batch.unheard.len(), limits::BATCH_ITEMS),
        ("members", batch.members.len(), limits::MEMBERS),
        ("words", batch.words.len(), limits::MEMBERS),
    ] {
        if count > limit {
            let text = format!("a batch has at most {limit} {what}, this one {count}");
            return Err(Failure::new(Reason::InvalidArgument, text));
        }
    }
    Ok(())
}

/// A member that speaks, over this link.
pub(super) struct Hearing<'a> {
    pub(super) node: &'a Node,
    pub(super) from: PeerId,
    pub(super) link: LinkTicket,
}

impl Hearing<'_> {
    /// Takes what the member said.
    pub(super) fn take(&self, batch: wire::BridgeBatch) -> Heard {
        let mut heard = Heard::default();
        if batch.begins {
            self.if_current(|node| node.directory.write().presence.begin(self.from, node.now().mono));
        }
        for record in batch.members {
            self.member(record, &mut heard);
        }
        for word in batch.words {
            self.word(&word).unwrap_or_else(|failure| heard.count(failure));
        }
        for record in batch.records {
            self.merge(record, &mut heard);
        }
        let has_answers = !batch.presence.is_empty() || !batch.unheard.is_empty();
        for presence in batch.presence {
            self.presence(&presence).unwrap_or_else(|failure| heard.count(failure));
        }
        for id in batch.unheard {
            self.answered(&id);
        }
        for interest in batch.interest {
            self.interest(&interest).unwrap_or_else(|failure| heard.count(failure));
        }
        if has_answers {
            self.node.hub.heard_of_peers.notify_waiters();
        }
        if batch.synced {
            self.synced(duration_from_wire(batch.knowledge_age.as_ref()));
        }
        heard
    }

    /// Takes the member's word, unless another link took the place of this one: of two only that one may speak.
    fn if_current<T: Default>(&self, say: impl FnOnce(&Node) -> T) -> T {
        let is_current = self.node.directory.read().members.is_current(&self.from, self.link);
        if is_current { say(self.node) } else { T::default() }
    }

    /// Returns whether the record was good, known before or not.
    fn merge(&self, record: SignedRecord, heard: &mut Heard) -> bool {
        match self.node.merge(record, self.from) {
            Ok(Merged::Changed | Merged::Known) => true,
            Err(failure) => {
                heard.count(failure);
                false
            }
        }
    }

    fn member(&self, record: SignedRecord, heard: &mut Heard) {
        let peer = PeerId::from_slice(&with_algorithm(&record));
        if self.merge(record, heard)
            && let Ok(peer) = peer
        {
            let now = self.node.now();
            let mut directory = self.node.directory.write();
            if directory.table.provides(&peer, SERVICE, now.wall) {
                heard.new_members |= directory.members.name(peer, now.mono);
            }
        }
    }

    fn word(&self, said: &wire::MemberWord) -> Result<(), Failure> {
        let about = PeerId::from_slice(&said.member_id)
            .map_err(|error| Failure::new(Reason::InvalidArgument, format!("member_id: {error}")))?;
        let age = said.age.as_ref().map_or(FOREVER, |age| duration_from_wire(Some(age)));
        let word = Word { about, linked: said.linked, age, in_ring: said.in_ring };
        let operator = operator(self.node, &about);
        self.if_current(|node| {
            node.hub.tell(|bridge| bridge.word(&self.from, &word, operator, node.now().mono));
            node.hub.stir();
        });
        Ok(())
    }

    fn presence(&self, said: &wire::HomePresence) -> Result<(), Failure> {
        let said = stating::read(said, self.from, self.node.now())?;
        let (home, peer) = (said.home, said.peer);
        let (is_known, may_be) = {
            let directory = self.node.directory.read();
            let (seq, source) = (said.statement.session_seq, said.statement.source);
            let may_be = said.is_direct || directory.members.contains(&home);
            (directory.presence.knows(&home, &peer, seq, source), may_be)
        };
        if home != self.node.id && may_be {
            if !is_known {
                stating::verify(&said, self.node.network)?;
            }
            let is_news = self.if_current(|node| node.directory.write().presence.state(said));
            if is_news {
                self.node.presence(peer, Origin::Member(self.from));
            }
        }
        self.node.hub.tell(|bridge| bridge.answered(&self.from, &peer));
        Ok(())
    }

    fn answered(&self, id: &[u8]) {
        if let Ok(peer) = PeerId::from_slice(id) {
            self.node.hub.tell(|bridge| bridge.answered(&self.from, &peer));
        }
    }

    fn interest(&self, said: &wire::PresenceInterest) -> Result<(), Failure> {
        let peer = PeerId::from_slice(&said.peer_id)
            .map_err(|error| Failure::new(Reason::InvalidArgument, format!("interest: {error}")))?;
        let taken = self.node.hub.tell(|bridge| bridge.subscribed(self.from, peer, said.wanted));
        taken.map_err(|error: TooManySubscriptions| {
            Failure::new(Reason::LimitExceeded, error.to_string()).with("limit", "bridge.subscriptions")
        })
    }

    /// The member has told all that this server owns.
    fn synced(&self, knowledge: Duration) {
        let gone = self.if_current(|node| {
            let mut directory = node.directory.write();
            let bridge = node.hub.bridge.lock();
            directory.presence.synced(&self.from, |peer| bridge.owns(peer))
        });
        for peer in gone {
            self.node.presence(peer, Origin::Member(self.from));
        }
        let now = self.node.now().mono;
        self.if_current(|node| node.hub.tell(|bridge| bridge.told_all(self.from, knowledge, now)));
        self.node.hub.stir();
        tracing::debug!(member = %self.from, "knows all that the member has told it");
    }
}

/// Who runs a member, as its own record says.
pub(super) fn operator(node: &Node, member: &PeerId) -> Operator {
    let bytes = node.directory.read().table.known(member).map(|entry| entry.bytes());
    let record = bytes.and_then(|bytes| Signed::<PeerRecord>::verify(convert::signed(&bytes).ok()?).ok());
    match record {
        Some(record) => Operator::of_record(member, record.value()),
        None => Operator::of(member, None),
    }
}

/// The id of a record's key. Nothing is believed of it before the record is verified.
fn with_algorithm(record: &SignedRecord) -> Vec<u8> {
    let algorithm = u8::try_from(record.alg).unwrap_or_default();
    std::iter::once(algorithm).chain(record.key.iter().copied()).collect()
}
