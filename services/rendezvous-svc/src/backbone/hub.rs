//! The links that are up, and what each still has to be told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use p2psb_client::Endpoint;
use p2psb_proto::model::PeerId;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::core::members::LinkTicket;
use crate::core::outbox::{Next, Outbox};
use crate::core::placement::push_to;
use crate::core::seldom::Seldom;
use crate::watching::Watching;

/// Refused links are logged at most this often.
const REFUSALS_PAUSE: Duration = Duration::from_secs(10);

/// What one member still has to be told, and how its link is woken and cut.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    outbox: Mutex<Outbox>,
    filled: Notify,
    cut: CancellationToken,
}

impl Mailbox {
    fn put(&self, put: impl FnOnce(&mut Outbox)) {
        put(&mut self.outbox.lock());
        self.filled.notify_one();
    }

    /// Everything has to be told.
    pub(super) fn fill(&self, records: impl Iterator<Item = PeerId>, presence: impl Iterator<Item = PeerId>) {
        self.put(|outbox| {
            records.for_each(|peer| outbox.record(peer));
            presence.for_each(|peer| outbox.presence(peer));
            outbox.members();
        });
    }

    pub(super) fn next(&self, most: usize) -> Next {
        self.outbox.lock().next(most)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.outbox.lock().is_empty()
    }

    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Resolves when another link took this one's place.
    pub(super) async fn replaced(&self) {
        self.cut.cancelled().await;
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Hub {
    links: RwLock<HashMap<PeerId, (LinkTicket, Arc<Mailbox>)>>,
    /// Told of every link that comes or goes, and of members that were heard of.
    changed: watch::Sender<()>,
    /// Links that were refused.
    refused: Mutex<Seldom>,
    /// Who stands behind each configured endpoint, as far as that was proven.
    configured: Mutex<HashMap<Endpoint, PeerId>>,
    /// Who watches peers at this server: told of the same changes as the members.
    pub(crate) watching: Watching,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            links: RwLock::default(),
            changed: watch::Sender::new(()),
            refused: Mutex::new(Seldom::new(REFUSALS_PAUSE)),
            configured: Mutex::default(),
            watching: Watching::default(),
        }
    }
}

impl Hub {
    /// The record of a peer changed; `from` is the member that said so.
    pub(crate) fn record(&self, peer: PeerId, from: Option<&PeerId>) {
        self.watching.changed(peer);
        let links = self.links.read();
        for member in push_to(&peer, from, links.keys()) {
            if let Some((_, mailbox)) = links.get(member) {
                mailbox.put(|outbox| outbox.record(peer));
            }
        }
    }

    /// The presence of a peer at this server changed.
    pub(crate) fn presence(&self, peer: PeerId) {
        self.watching.changed(peer);
        for (_, mailbox) in self.links.read().values() {
            mailbox.put(|outbox| outbox.presence(peer));
        }
    }

    /// A link is up. The one it replaces is cut.
    pub(super) fn join(&self, peer: PeerId, ticket: LinkTicket) -> Arc<Mailbox> {
        let mailbox = Arc::<Mailbox>::default();
        let old = self.links.write().insert(peer, (ticket, Arc::clone(&mailbox)));
        if let Some((_, old)) = old {
            old.cut.cancel();
        }
        mailbox
    }

    /// A link ended.
    pub(super) fn leave(&self, peer: &PeerId, ticket: LinkTicket) {
        let mut links = self.links.write();
        if links.get(peer).is_some_and(|(current, _)| *current == ticket) {
            links.remove(peer);
        }
    }

    /// The members, or the links with them, are not what they were.
    pub(super) fn members_changed(&self) {
        for (_, mailbox) in self.links.read().values() {
            mailbox.put(Outbox::members);
        }
        self.changed.send_replace(());
    }

    /// Somebody was heard of: only who dials has to know.
    pub(super) fn heard_of_members(&self) {
        self.changed.send_replace(());
    }

    /// A link was refused. Returns how many were since this was last logged, when it may be again.
    pub(super) fn refused_link(&self, now: Instant) -> Option<u64> {
        self.refused.lock().count(1, now)
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
