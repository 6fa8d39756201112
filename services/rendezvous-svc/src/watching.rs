//! The watches of this server: the core's book of them, and how those who tell them are woken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use p2psb_proto::model::{PeerId, UnixMillis};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::core::progress::known_up_to;
use crate::core::resume::Left;
use crate::core::watch::{Begin, Taken, WatchId, Watches};

/// How long a watch waits for the owners of its peers before it begins.
const PATIENCE: Duration = Duration::from_millis(800);

/// Peers that are looked at under one lock.
const AT_A_TIME: usize = 100;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Watching(Mutex<Watches<Arc<Notify>>>);

impl Watching {
    /// The record or presence of a peer changed.
    pub(crate) fn changed(&self, peer: PeerId) {
        wake(self.0.lock().changed(peer));
    }

    /// A home is out of reach, or back. It is one that peers meet at, and a peer itself.
    pub(crate) fn home_changed(&self, home: &PeerId) {
        let mut watches = self.0.lock();
        wake(watches.home_changed(home));
        wake(watches.changed(*home));
    }

    /// Time passed. Returns whether more is due than was looked at.
    pub(crate) fn pass(&self, now: Instant, most: usize) -> bool {
        let woken = self.0.lock().pass(now, most);
        let more = woken.len() >= most;
        wake(woken);
        more
    }
}

fn wake(woken: Vec<Arc<Notify>>) {
    for one in woken {
        one.notify_one();
    }
}

/// A watch that is open; it ends when this is dropped.
pub(crate) struct OpenWatch {
    node: Arc<crate::node::Node>,
    peers: Box<[PeerId]>,
    id: WatchId,
    wake: Arc<Notify>,
    /// How it began.
    pub(crate) begin: Begin,
}

impl OpenWatch {
    /// Begins to watch, here and at the owners of the peers.
    pub(crate) fn new(node: &Arc<crate::node::Node>, peers: Box<[PeerId]>, from: Option<&Left>) -> Self {
        let wake = Arc::<Notify>::default();
        let (id, begin) = node.hub.watching.0.lock().open(peers.clone(), from, Arc::clone(&wake));
        node.hub.tell(|bridge| peers.iter().for_each(|peer| bridge.watch(*peer)));
        Self { node: Arc::clone(node), peers, id, wake, begin }
    }

    /// Resolves when owners of all the peers have said how they are, or have had time enough.
    pub(crate) async fn settled(&self) {
        let hub = &self.node.hub;
        let all = async {
            loop {
                let mut heard = std::pin::pin!(hub.heard_of_peers.notified());
                heard.as_mut().enable();
                if self.peers.iter().all(|peer| hub.bridge.lock().interest().is_settled(peer)) {
                    return;
                }
                heard.await;
            }
        };
        // What is heard later is told as a change.
        let _ = tokio::time::timeout(PATIENCE, all).await;
    }

    /// Up to when all that happened is known here, and waits in this watch if it was not taken before.
    pub(crate) fn known_up_to(&self) -> Option<UnixMillis> {
        let now = self.node.now();
        let mut least = now.mono;
        for some in self.peers.chunks(AT_A_TIME) {
            let directory = self.node.directory.read();
            let bridge = self.node.hub.bridge.lock();
            least = least.min(known_up_to(&directory, &bridge, some, now)?);
        }
        Some(now.wall_at(least))
    }

    /// Whom to tell of next, `most` at most.
    pub(crate) fn take(&self, most: usize) -> Option<Taken> {
        self.node.hub.watching.0.lock().take(self.id, most)
    }

    /// A peer was looked at. Whoever calls this still holds the directory as it was then: a home that is lost behind it finds its
    /// peer here.
    pub(crate) fn looked(&self, peer: &PeerId, home: Option<PeerId>, due: Option<Instant>) {
        self.node.hub.watching.0.lock().looked(peer, home, due);
    }

    /// Resolves when there may be something to tell.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.node.hub.watching.0.lock().close(self.id);
        self.node.hub.tell(|bridge| self.peers.iter().for_each(|peer| bridge.unwatch(peer)));
    }
}
