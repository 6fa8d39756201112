//! What is made of what a member told. What proves nothing is passed over, the rest counts.

use std::time::Duration;

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::time::duration_from_wire;
use p2psb_proto::model::{PeerId, PeerRecord, Signed, limits};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;

use super::stating;
use crate::convert;
use crate::core::again::Why;
use crate::core::directory::Directory;
use crate::core::far::News;
use crate::core::homes::FOREVER;
use crate::core::interest::TooManySubscriptions;
use crate::core::members::{LinkTicket, Role};
use crate::core::own::SERVICE;
use crate::core::placement::Operator;
use crate::core::presence::{MARK_INTERVAL, Said};
use crate::core::ring::{Claim, Word};
use crate::core::session::REMEMBERED;
use crate::core::table::{Merged, TableError};
use crate::node::Node;
use crate::records::{NotMerged, Teller};

/// Statements that are looked at under one lock.
const AT_A_TIME: usize = 1000;

/// What came of a batch.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Statements that proved nothing.
    pub(super) refused: usize,
    /// The reason of the first of them.
    pub(super) first: Option<Failure>,
    /// Somebody was heard of.
    pub(super) new_members: bool,
    /// Peers of an edge whose records may be taken later.
    pub(super) put_off: Vec<(PeerId, Why)>,
}

impl Heard {
    fn count(&mut self, failure: Failure) {
        self.refused += 1;
        self.first.get_or_insert(failure);
    }
}

/// How much a batch holds.
pub(super) fn size(batch: &wire::BridgeBatch) -> usize {
    let (about_peers, about_members) =
        (batch.records.len() + batch.presence.len(), batch.members.len() + batch.words.len());
    about_peers + about_members + batch.interest.len() + batch.unheard.len() + batch.homes.len()
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
        ("homes", batch.homes.len(), limits::MEMBERS),
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
    pub(super) teller: Teller,
    pub(super) link: LinkTicket,
}

impl Hearing<'_> {
    /// Takes what the member said.
    pub(super) fn take(&self, batch: wire::BridgeBatch) -> Heard {
        let mut heard = Heard::default();
        if batch.begins {
            let now = self.node.now().mono;
            self.if_current(|directory| directory.presence.begin(self.from, now));
        }
        if self.teller == Teller::Member {
            for record in batch.members {
                self.member(record, &mut heard);
            }
            for word in batch.words {
                self.word(&word).unwrap_or_else(|failure| heard.count(failure));
            }
            for word in batch.homes {
                self.home(&word).unwrap_or_else(|failure| heard.count(failure));
            }
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

    /// Takes the word of the other end, unless another link took the place of this one, or it ended: of two only one may speak, and
    /// who went does not. That stays so until it is taken.
    fn if_current<T: Default>(&self, say: impl FnOnce(&mut Directory) -> T) -> T {
        let mut directory = self.node.directory.write();
        let is_current = match self.teller {
            Teller::Member => directory.members.is_current(&self.from, self.link),
            Teller::Edge(_) => directory.edges.is_current(&self.from, self.link),
        };
        if is_current { say(&mut directory) } else { T::default() }
    }

    /// Returns whether the record was good, known before or not.
    fn merge(&self, record: SignedRecord, heard: &mut Heard) -> bool {
        match self.node.merge(record, self.from, self.teller) {
            Ok(Merged::Changed | Merged::Known) => true,
            Err(refused) => {
                match may_be_later(&refused).filter(|_| self.teller != Teller::Member) {
                    Some(put_off) => heard.put_off.push(put_off),
                    None => heard.count(refused.into()),
                }
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
            let may_bridge = may_bridge(self.node, &peer);
            let mut directory = self.node.directory.write();
            if may_bridge && directory.table.provides(&peer, SERVICE, now.wall) {
                heard.new_members |= directory.members.name(peer, Some(self.from), now.mono);
            }
        }
    }

    fn word(&self, said: &wire::MemberWord) -> Result<(), Failure> {
        let about = PeerId::from_slice(&said.member_id)
            .map_err(|error| Failure::new(Reason::InvalidArgument, format!("member_id: {error}")))?;
        let age = said.age.as_ref().map_or(FOREVER, |age| duration_from_wire(Some(age)));
        let word = Word { about, linked: said.linked, age, in_ring: said.in_ring };
        let claim = claim(self.node, &about, None);
        let now = self.node.now().mono;
        self.if_current(|_| {
            self.node.hub.tell(|bridge| bridge.word(&self.from, &word, claim, now));
            self.node.hub.stir();
        });
        Ok(())
    }

    fn home(&self, said: &wire::HomeWord) -> Result<(), Failure> {
        let home = PeerId::from_slice(&said.home_id)
            .map_err(|error| Failure::new(Reason::InvalidArgument, format!("home_id: {error}")))?;
        let age = duration_from_wire(said.age.as_ref()).min(REMEMBERED);
        let (how, now) = ((said.alive, said.boot_id), self.node.now().mono);
        self.if_current(|directory| {
            let (news, is_known) = self.node.hub.tell(|bridge| {
                (bridge.home_word(self.from, home, how, age, now), bridge.far().contains(&home))
            });
            if is_known {
                let up_to = now.checked_sub(MARK_INTERVAL).unwrap_or(now);
                directory.presence.heard_by(&self.from, home, said.alive, up_to);
            }
            if news == News::Restarted {
                directory.presence.begin_far(home, now);
            }
        });
        Ok(())
    }

    /// Whose word a member or edge may bring: an edge its own, of peers whose records are known and paid for; a member also that of
    /// homes that are known, and to an edge that of any home of a peer that the edge asked for.
    fn may_bring(&self, said: &Said) -> Result<bool, Failure> {
        let directory = self.node.directory.read();
        if let Teller::Edge(_) = self.teller {
            if said.is_direct && directory.table.known(&said.peer).is_none() {
                let text = "an edge speaks of a peer whose record is not known, or has no room";
                return Err(Failure::new(Reason::InvalidArgument, text));
            }
            return Ok(said.is_direct);
        }
        let bridge = self.node.hub.bridge.lock();
        let is_asked_for = bridge.role() == Role::Edge && bridge.interest().is_watched(&said.peer);
        Ok(said.is_direct
            || directory.members.contains(&said.home)
            || bridge.far().contains(&said.home)
            || is_asked_for)
    }

    fn presence(&self, said: &wire::HomePresence) -> Result<(), Failure> {
        let said = stating::read(said, self.from, self.node.now())?;
        let (home, peer) = (said.home, said.peer);
        let may_be = self.may_bring(&said)?;
        let is_known = {
            let (seq, source) = (said.statement.session_seq, said.statement.source);
            self.node.directory.read().presence.knows(&home, &peer, seq, source)
        };
        if home != self.node.id && may_be {
            if !is_known {
                stating::verify(&said, self.node.network)?;
            }
            let (is_news, spoke_first) = self.if_current(|directory| {
                let is_edge = matches!(self.teller, Teller::Edge(_));
                // Others may have restarted since they heard it.
                let is_repeated = is_edge && directory.presence.is_repeated(&home, &peer);
                let now = self.node.now().mono;
                let is_news = directory.presence.state(said, now) || is_repeated;
                let spoke_first =
                    is_news && is_edge && self.node.hub.tell(|bridge| bridge.edge_speaks(home, now));
                (is_news, spoke_first)
            });
            if spoke_first {
                self.node.hub.watching.home_changed(&home);
            }
            if is_news {
                self.node.presence(peer, self.teller.origin(self.from));
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
        let subscribed =
            |_: &mut Directory| self.node.hub.tell(|bridge| bridge.subscribed(self.from, peer, said.wanted));
        let taken = self.if_current(|directory| Some(subscribed(directory)));
        taken.unwrap_or(Ok(())).map_err(|error: TooManySubscriptions| {
            Failure::new(Reason::LimitExceeded, error.to_string()).with("limit", "bridge.subscriptions")
        })
    }

    /// The member has told all that this server owns.
    fn synced(&self, knowledge: Duration) {
        // An edge tells all of its peers to each of its members, a member each owner what it owns.
        let is_edge = matches!(self.teller, Teller::Edge(_));
        let mut after = None;
        loop {
            let page = self.if_current(|directory| {
                let bridge = self.node.hub.bridge.lock();
                let owns = |peer: &PeerId| is_edge || bridge.owns(peer);
                Some(directory.presence.synced(&self.from, owns, (after, AT_A_TIME)))
            });
            let Some((gone, last)) = page else { return };
            for peer in gone {
                self.node.presence(peer, self.teller.origin(self.from));
            }
            after = last;
            if after.is_none() {
                break;
            }
        }
        if self.teller != Teller::Member {
            return;
        }
        let now = self.node.now().mono;
        self.if_current(|_| self.node.hub.tell(|bridge| bridge.told_all(self.from, knowledge, now)));
        self.node.hub.stir();
        tracing::debug!(member = %self.from, "knows all that the member has told it");
    }
}

/// Whether somebody may be a member, by its own record and by what this server was told to trust. Who runs it is taken from `known`,
/// or read from the record.
pub(super) fn claim(node: &Node, member: &PeerId, known: Option<Operator>) -> Option<Claim> {
    let offers = || node.directory.read().table.provides(member, SERVICE, node.now().wall);
    (may_bridge(node, member) && offers()).then(|| Claim {
        operator: known.unwrap_or_else(|| operator(node, member)),
        is_listed: node.trust.as_ref().is_some_and(|trust| trust.lists(member)),
    })
}

/// An edge has links with whoever is a member.
fn may_bridge(node: &Node, member: &PeerId) -> bool {
    node.trust.as_ref().is_none_or(|trust| trust.may_bridge(member))
}

/// Whose record is refused now and may be taken later, and why.
const fn may_be_later(refused: &NotMerged) -> Option<(PeerId, Why)> {
    match refused {
        NotMerged::Refused(peer, TableError::TooOften { wait }) => Some((*peer, Why::TooSoon(*wait))),
        NotMerged::Refused(peer, TableError::Full(limit)) => Some((*peer, Why::NoRoom(*limit))),
        NotMerged::Refused(..) | NotMerged::Unproven(_) => None,
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
