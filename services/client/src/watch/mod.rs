//! Following up to 1000 peers over whichever rendezvous answer: for each known backbone one stream at a time, opened again
//! elsewhere when it ends, from where it was left if it is the same rendezvous. What the backbones say is made one here.
//!
//! Promises: every change that a followed rendezvous tells is told once, unless another one follows before it is read; a
//! peer is gone only if no backbone has a valid record of it; what is told was signed by the peer it is about.

mod follow;
mod merge;

use std::collections::BTreeSet;
use std::time::Duration;

use p2psb_proto::model::presence::LocatedPeer;
use p2psb_proto::model::{PeerId, UnixMillis};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use self::follow::{Follower, Heard};
use self::merge::Merge;
use crate::identity::Identity;
use crate::locator::Locator;

/// Peers that one watch may follow.
pub const WATCH_PEERS: usize = 1000;
/// Events that may wait to be read; behind them the rendezvous keep only who changed.
const QUEUE: usize = 64;
/// How often it is looked whether there is a backbone that is not followed yet.
const LOOK: Duration = Duration::from_secs(15);
/// Backbones that are followed.
const BACKBONES: usize = 64;

/// What a watch tells.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// A peer as it is now.
    Is(Box<LocatedPeer>),
    /// No backbone that was heard has a valid record of a peer.
    Gone {
        /// Who.
        peer: PeerId,
        /// When it was last seen, if it ever was.
        last_seen: Option<UnixMillis>,
    },
    /// All that was known up to here, in every backbone that is followed, was told.
    Progress(UnixMillis),
    /// No rendezvous of a backbone can be followed now: what was told of it may be old. It is tried again.
    Lost {
        /// What was tried, and how it failed.
        detail: String,
    },
}

/// A watch can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a watch follows 1 to {WATCH_PEERS} peers, not {count}; open several")]
pub struct WatchSize {
    /// How many were to be followed.
    pub count: usize,
}

/// See the module. Dropping it ends it.
#[derive(Debug)]
pub struct PresenceWatch {
    events: mpsc::Receiver<WatchEvent>,
    _task: AbortOnDropHandle<()>,
}

impl PresenceWatch {
    /// Begins to follow `peers`, in the name of `watcher`, at the rendezvous that `locator` knows and learns.
    pub fn open(locator: Locator, watcher: Identity, peers: &BTreeSet<PeerId>) -> Result<Self, WatchSize> {
        let count = peers.len();
        if !(1..=WATCH_PEERS).contains(&count) {
            return Err(WatchSize { count });
        }
        let (tell, events) = mpsc::channel(QUEUE);
        let task = tokio::spawn(run(locator, watcher, peers.iter().copied().collect(), tell));
        Ok(Self { events, _task: AbortOnDropHandle::new(task) })
    }

    /// The next event. There is always one more.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.events.recv().await
    }
}

async fn run(locator: Locator, watcher: Identity, peers: Vec<PeerId>, tell: mpsc::Sender<WatchEvent>) {
    let (said, mut heard) = mpsc::channel(1);
    let mut followers = JoinSet::new();
    let mut anchors = Vec::new();
    let mut merge = Merge::default();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = looks.tick() => {
                locator.refresh().await;
                for members in locator.backbones() {
                    let is_new = !members.iter().any(|endpoint| anchors.contains(endpoint));
                    let Some(anchor) = members.first().filter(|_| is_new && followers.len() < BACKBONES) else {
                        continue;
                    };
                    anchors.push(anchor.clone());
                    let follower = Follower {
                        number: merge.join(),
                        locator: locator.clone(),
                        watcher: watcher.clone(),
                        peers: peers.clone(),
                        anchor: anchor.clone(),
                        token: None,
                    };
                    followers.spawn(follower.run(said.clone()));
                }
            }
            Some((backbone, one)) = heard.recv() => {
                let events = match one {
                    Heard::Is(peer) => merge.is(backbone, peer).into_iter().collect(),
                    Heard::Gone { peer, last_seen } => {
                        merge.gone(backbone, peer, last_seen).into_iter().collect()
                    }
                    Heard::Progress(as_of) => {
                        merge.progress(backbone, as_of).map(WatchEvent::Progress).into_iter().collect()
                    }
                    Heard::Lost { detail } => {
                        let mut events = merge.lost(backbone);
                        events.push(WatchEvent::Lost { detail });
                        events
                    }
                };
                for event in events {
                    if tell.send(event).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
