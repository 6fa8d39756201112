//! The links that are up, this server's part in the backbone, and who has to be woken when something changed.
//!
//! Locks, in this order: the directory, the bridge, the list of links.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use p2psb_client::Endpoint;
use p2psb_proto::model::{PeerId, UnixMillis};
use p2psb_proto::wire::rendezvous::v1 as wire;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot, watch};

use super::mailbox::{Mailbox, Says};
use crate::core::bridge::Bridge;
use crate::core::members::{LinkTicket, Role};
use crate::core::outbox::Next;
use crate::core::placement::Key;
use crate::core::places::Slot;
use crate::core::ring::Introduction;
use crate::core::seldom::Seldom;
use crate::core::telling::Origin;
use crate::watching::Watching;

/// Refused links are logged at most this often.
const REFUSALS_PAUSE: Duration = Duration::from_secs(10);

/// Edges without room are logged at most this often.
const ROOM_PAUSE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(crate) struct Hub {
    /// Who owns what, who is told what, who is asked.
    pub(crate) bridge: Mutex<Bridge<Slot>>,
    links: RwLock<HashMap<PeerId, (LinkTicket, Arc<Mailbox>)>>,
    /// The ring has to be looked at sooner than it would be.
    stirred: Notify,
    /// Some member said how peers are that this server asked for.
    pub(crate) heard_of_peers: Notify,
    /// Of what this server said last as a home.
    revision: AtomicU64,
    /// Told of every link that comes or goes, and of members that were heard of.
    changed: watch::Sender<()>,
    /// Links that were refused.
    refused: Mutex<Seldom>,
    /// Records that edges brought, and for which they had no room.
    without_room: Mutex<Seldom>,
    /// Who stands behind each configured endpoint, as far as that was proven.
    configured: Mutex<HashMap<Endpoint, PeerId>>,
    /// Who watches peers at this server: told of the same changes as the members.
    pub(crate) watching: Watching,
}

impl Hub {
    /// No links yet.
    pub(crate) fn new(bridge: Bridge<Slot>) -> Self {
        Self {
            bridge: Mutex::new(bridge),
            links: RwLock::default(),
            stirred: Notify::new(),
            heard_of_peers: Notify::new(),
            revision: AtomicU64::new(0),
            changed: watch::Sender::new(()),
            refused: Mutex::new(Seldom::new(REFUSALS_PAUSE)),
            without_room: Mutex::new(Seldom::new(ROOM_PAUSE)),
            configured: Mutex::default(),
            watching: Watching::default(),
        }
    }

    /// The record of a peer changed, which offers these services, or did.
    pub(crate) fn record(&self, peer: PeerId, services: &[Key], origin: Origin) {
        self.watching.changed(peer);
        self.tell(|bridge| bridge.record(peer, services, origin));
    }

    /// The record of a member, or of this one, changed.
    pub(crate) fn record_of_member(&self, member: PeerId) {
        self.tell(|bridge| bridge.record_of_member(member));
    }

    /// The presence of a peer changed.
    pub(crate) fn presence(&self, peer: PeerId, services: &[Key], origin: Origin) {
        self.watching.changed(peer);
        self.tell(|bridge| bridge.presence(peer, services, origin));
    }

    /// Lets the bridge have something to tell, and wakes the links that tell it.
    pub(crate) fn tell<T>(&self, what: impl FnOnce(&mut Bridge<Slot>) -> T) -> T {
        let (told, ready) = {
            let mut bridge = self.bridge.lock();
            let told = what(&mut bridge);
            (told, bridge.ready())
        };
        let mut ready = ready.peekable();
        if ready.peek().is_some() {
            let links = self.links.read();
            ready.filter_map(|member| links.get(&member)).for_each(|(_, mailbox)| mailbox.wake());
        }
        told
    }

    /// What is to be told next over a link, if that is the link with the member.
    pub(super) fn next(&self, member: &PeerId, ticket: LinkTicket, most: usize) -> Option<(u64, Next)> {
        let mut bridge = self.bridge.lock();
        let is_current = self.links.read().get(member).is_some_and(|(current, _)| *current == ticket);
        if is_current { bridge.next(member, most) } else { None }
    }

    /// Whether nothing waits for a member.
    pub(super) fn has_told(&self, member: &PeerId) -> bool {
        self.bridge.lock().has_told(member)
    }

    /// The link with each linked member of the ring.
    pub(super) fn links_of_ring(&self) -> HashMap<PeerId, LinkTicket> {
        let bridge = self.bridge.lock();
        let links = self.links.read();
        let of_ring = links.iter().filter(|(member, _)| bridge.view().current().contains(member));
        of_ring.map(|(member, (ticket, _))| (*member, *ticket)).collect()
    }

    /// Asks a member; `None` if it can't be asked now.
    pub(super) fn ask(
        &self,
        member: &PeerId,
        question: wire::bridge_question::Question,
    ) -> Option<oneshot::Receiver<wire::BridgeAnswer>> {
        let mailbox = self.links.read().get(member).map(|(_, mailbox)| Arc::clone(mailbox))?;
        mailbox.ask(question)
    }

    /// The number of what this server says as a home now.
    pub(super) fn next_revision(&self, now: UnixMillis) -> u64 {
        let next = |last: u64| Some((last + 1).max(now.0));
        let last = self.revision.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        last.map_or(now.0, |last| (last + 1).max(now.0))
    }

    /// A link with a member or edge is up. The one it replaces is cut.
    pub(super) fn join(
        &self,
        (peer, role): (PeerId, Role),
        ticket: LinkTicket,
        said: &Introduction,
        now: Instant,
    ) -> (Arc<Mailbox>, Says) {
        let (mailbox, says) = Mailbox::new();
        let mailbox = Arc::new(mailbox);
        let mut bridge = self.bridge.lock();
        let old = self.links.write().insert(peer, (ticket, Arc::clone(&mailbox)));
        if let Some((_, old)) = old {
            old.replace();
        }
        match role {
            Role::Member => bridge.linked(peer, said, now),
            Role::Edge => bridge.edge_linked(peer, said.boot),
        }
        (mailbox, says)
    }

    /// A link ended, whose other end had been silent for so long.
    pub(super) fn leave(
        &self,
        (peer, role): (&PeerId, Role),
        ticket: LinkTicket,
        silent_for: Duration,
        now: Instant,
    ) {
        let mut bridge = self.bridge.lock();
        let mut links = self.links.write();
        if links.get(peer).is_some_and(|(current, _)| *current == ticket) {
            links.remove(peer);
            match role {
                Role::Member => bridge.unlinked(peer, silent_for, now),
                Role::Edge => bridge.edge_unlinked(peer, silent_for, now),
            }
        }
    }

    /// The members, or the links with them, are not what they were.
    pub(super) fn members_changed(&self) {
        self.tell(Bridge::members_changed);
        self.stir();
        self.changed.send_replace(());
    }

    /// A link came or went.
    pub(super) fn links_changed(&self, role: Role) {
        match role {
            Role::Member => self.members_changed(),
            Role::Edge => self.tell(|_| ()),
        }
    }

    /// Somebody was heard of: only who dials has to know.
    pub(super) fn heard_of_members(&self) {
        self.changed.send_replace(());
    }

    /// The ring is to be looked at now.
    pub(crate) fn stir(&self) {
        self.stirred.notify_one();
    }

    /// Resolves when the ring is to be looked at.
    pub(super) async fn stirred(&self) {
        self.stirred.notified().await;
    }

    /// A link was refused. Returns how many were since this was last logged, when it may be again.
    pub(super) fn refused_link(&self, now: Instant) -> Option<u64> {
        self.refused.lock().count(1, now)
    }

    /// Edges had no room for so many records. Returns how many that were since this was last logged, when it may be again.
    pub(super) fn had_no_room(&self, records: u64, now: Instant) -> Option<u64> {
        self.without_room.lock().count(records, now)
    }

    /// This id stands behind a configured endpoint: its task keeps the link. Who is there now takes the place of who was.
    pub(super) fn configure(&self, endpoint: &Endpoint, peer: PeerId) {
        self.configured.lock().insert(endpoint.clone(), peer);
    }

    /// Whether the id stands behind a configured endpoint.
    pub(crate) fn is_configured(&self, peer: &PeerId) -> bool {
        self.configured.lock().values().any(|one| one == peer)
    }

    /// Follows the changes.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
