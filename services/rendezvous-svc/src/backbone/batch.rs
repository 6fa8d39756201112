//! Batches: what is told to a member, made of what is so at the moment it is told.

use std::time::Instant;

use p2psb_proto::model::time::duration_to_wire;
use p2psb_proto::model::{PeerId, limits};
use p2psb_proto::wire::rendezvous::v1 as wire;

use super::stating;
use crate::convert;
use crate::core::Now;
use crate::core::bridge::Bridge;
use crate::core::directory::Directory;
use crate::core::homes::FOREVER;
use crate::core::members::{LinkTicket, Role};
use crate::core::outbox::Next;
use crate::core::places::Slot;
use crate::core::session::REMEMBERED;
use crate::node::Node;

/// Of everything at most so many go into a batch, so that it stays below the bound of a message: a record has at most 4 KiB, a
/// statement of presence less than 400 bytes, of which no batch has more than [`limits::BATCH_ITEMS`].
const MOST: usize = 64;
/// Bytes of the records of members in one batch.
const MEMBERS_BYTES: usize = 64 * 1024;

/// The next batch for a member, if there is anything to tell.
pub(super) fn next(
    node: &Node,
    (member, role): (&PeerId, Role),
    ticket: LinkTicket,
) -> Option<wire::BridgeBatch> {
    let (number, next) = node.hub.next(member, ticket, MOST)?;
    let directory = node.directory.read();
    let bridge = node.hub.bridge.lock();
    let filling = Filling { node, directory: &directory, bridge: &bridge, member, role, now: node.now() };
    Some(filling.batch(number, &next))
}

struct Filling<'a> {
    node: &'a Node,
    directory: &'a Directory,
    bridge: &'a Bridge<Slot>,
    member: &'a PeerId,
    /// What the other end is.
    role: Role,
    now: Now,
}

impl Filling<'_> {
    fn batch(&self, number: u64, next: &Next) -> wire::BridgeBatch {
        let mut batch = wire::BridgeBatch {
            number,
            begins: next.tells_all,
            synced: next.told_all,
            knowledge_age: next.told_all.then(|| duration_to_wire(self.bridge.knowledge(self.now.mono))),
            records: self.records(next),
            homes: next.homes.iter().map(|home| self.home(home, self.now.mono)).collect(),
            words: next.words.iter().filter_map(|about| self.word(about, self.now.mono)).collect(),
            interest: next.interest.iter().map(|peer| self.interest(peer)).chain(again(next)).collect(),
            members: self.members(next),
            ..wire::BridgeBatch::default()
        };
        for peer in &next.presence {
            self.presence(peer, &mut batch);
        }
        batch
    }

    fn records(&self, next: &Next) -> Vec<p2psb_proto::wire::common::v1::SignedRecord> {
        let told = next.records.iter().filter_map(|peer| self.directory.table.telling(peer, self.now.wall));
        told.filter_map(|bytes| convert::signed(&bytes).ok()).collect()
    }

    fn word(&self, about: &PeerId, now: Instant) -> Option<wire::MemberWord> {
        let word = self.bridge.ring().word(about, now)?;
        let age = (word.age != FOREVER).then(|| duration_to_wire(word.age));
        let member_id = about.to_wire();
        Some(wire::MemberWord { member_id, linked: word.linked, age, in_ring: word.in_ring })
    }

    /// A member is told of edges, and hears of their links with this server; an edge is told of all homes, as they are.
    fn home(&self, home: &PeerId, now: Instant) -> wire::HomeWord {
        let far = self.bridge.far();
        let dead_for = match self.role {
            // What others say of it they tell themselves.
            Role::Member => (!far.is_linked(home)).then(|| far.silent_for(home, now)),
            Role::Edge => self.bridge.dead_for(home, now),
        };
        let age = dead_for.map(|dead_for| duration_to_wire(dead_for.min(REMEMBERED)));
        wire::HomeWord { home_id: home.to_wire(), alive: dead_for.is_none(), age, boot_id: far.boot(home) }
    }

    fn interest(&self, peer: &PeerId) -> wire::PresenceInterest {
        let wanted = self.bridge.interest().wants(self.member, peer);
        wire::PresenceInterest { peer_id: peer.to_wire(), wanted }
    }

    /// The members that the words are about, who do not count without a record, and if asked for, as many others as there is room
    /// for.
    fn members(&self, next: &Next) -> Vec<p2psb_proto::wire::common::v1::SignedRecord> {
        let valid = |peer: &PeerId| Some(self.directory.table.valid(peer, self.now.wall)?.bytes());
        let others = next.words.iter().filter(|about| *about != self.member && **about != self.node.id);
        let spoken_of: Vec<_> = others.filter_map(valid).collect();
        let mut members = convert::cut(spoken_of.iter(), MEMBERS_BYTES);
        if next.members {
            let linked = self.directory.members.all().into_iter().take_while(|member| member.linked);
            let linked: Vec<_> = linked.filter_map(|member| valid(&member.peer)).collect();
            members.extend(convert::cut(linked.iter(), MEMBERS_BYTES));
            members.truncate(limits::MEMBERS);
        }
        members
    }

    /// What this home says of the peer; what other homes say, too, if the member asked for it or does not hear them itself.
    fn presence(&self, peer: &PeerId, batch: &mut wire::BridgeBatch) {
        let revision = self.node.hub.next_revision(self.now.wall);
        let own = stating::own(self.directory, peer, revision, self.now);
        let has_asked = self.bridge.is_subscribed(self.member, peer);
        let others = self.directory.presence.said(peer, self.now.mono).filter(|said| {
            said.home != *self.member && (has_asked || !self.bridge.hears(self.member, &said.home))
        });
        let before = batch.presence.len();
        batch.presence.extend(own);
        batch.presence.extend(others.map(|said| stating::to_wire(&said, self.now)));
        if has_asked && batch.presence.len() == before {
            batch.unheard.push(peer.to_wire());
        }
    }
}

/// Who is interested in a peer is told how it is, also who is no longer a moment later.
fn again(next: &Next) -> impl Iterator<Item = wire::PresenceInterest> {
    let both = |peer: &PeerId| {
        [true, false].map(|wanted| wire::PresenceInterest { peer_id: peer.to_wire(), wanted })
    };
    next.again.iter().flat_map(both)
}
