//! The task that turns the ring: it notices who joined and left, goes on telling new owners what they own, and forgets what this
//! member owns no longer, at a pace that leaves room for everything else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use p2psb_proto::model::PeerId;

use super::hearing;
use crate::core::Now;
use crate::core::directory::Directory;
use crate::core::homes::HomeEvent;
use crate::core::members::LinkTicket;
use crate::core::places::Slot;
use crate::core::walk::{Held, Holdings};
use crate::node::Node;

/// How often the ring is looked at.
const INTERVAL: Duration = Duration::from_millis(250);
/// Entries that are looked at in one go while somebody has to be told what it owns,
const STEP: usize = 500;
/// and the pause behind them: at most 50,000 entries a second.
const PAUSE: Duration = Duration::from_millis(10);

/// The directory at one moment, page by page.
struct Page<'a>(&'a Directory, Now);

impl Holdings for Page<'_> {
    type Cursor = Slot;

    fn page(&self, after: Option<&Slot>, most: usize) -> Vec<Held<Slot>> {
        let Self(directory, now) = self;
        let held = |(at, peer)| Held {
            at,
            peer,
            services: directory.table.service_keys(&peer),
            is_here: directory.speaks_of(&peer, now.mono),
        };
        directory.table.after(after.copied()).take(most).map(held).collect()
    }
}

/// Turns until the server drains.
pub(crate) async fn turn(node: Arc<Node>) {
    let mut leftovers = Leftovers::default();
    loop {
        let is_over = step(&node) && leftovers.step(&node);
        let pause = if is_over { INTERVAL } else { PAUSE };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.hub.stirred() => {}
            () = node.drain.begun() => return,
        }
    }
}

/// Looks at the records of members that are known by the word of others only: they come later than the words, change and run out.
fn look_at_claims(node: &Node) {
    let hearsay: Vec<_> = node.hub.bridge.lock().ring().hearsay(node.now().mono).collect();
    for (member, known) in hearsay {
        let claim = hearing::claim(node, &member, known.map(|claim| claim.operator));
        if claim != known {
            node.hub.bridge.lock().claimed(&member, claim);
        }
    }
}

/// Looks once. Returns whether everybody was told what it owns.
pub(crate) fn step(node: &Node) -> bool {
    look_at_claims(node);
    let now = node.now();
    let (events, is_over, ring, view) = {
        let directory = node.directory.read();
        node.hub.tell(|bridge| {
            let events = bridge.tick(&Page(&directory, now), STEP, now.mono);
            let ring = (bridge.view().current().len(), bridge.disagreeing());
            (events, bridge.is_walk_over(), ring, bridge.view().clone())
        })
    };
    if !node.directory.read().sees(&view) {
        node.directory.write().see(view);
    }
    for event in events {
        let (HomeEvent::Lost(home) | HomeEvent::Back(home)) = event;
        tracing::info!(%home, lost = matches!(event, HomeEvent::Lost(_)), "a home went, or came back after its grace");
        node.hub.watching.home_changed(&home);
    }
    metrics::gauge!("rendezvous_ring_members").set(ring.0 as f64);
    metrics::gauge!("rendezvous_ring_disagreeing").set(ring.1 as f64);
    is_over
}

/// What this member held as an owner and owns no longer. It is forgotten once the ring of before does not count any more, and all
/// new owners have it: kept longer it would grow old, and be taken for the truth when this member comes to own it again.
#[derive(Debug, Default)]
struct Leftovers {
    /// The ring changed since it was looked last, or an edge went.
    pending: bool,
    /// Members that may not have all that they were told when the ring had come to rest.
    awaited: Option<BTreeMap<PeerId, Awaited>>,
    at: Option<Slot>,
}

/// What a member is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// Something waits for it, as ever since the ring came to rest, or it is out of reach for a moment.
    ToBeTold,
    /// Up to this batch of this link it is to have everything. What changes later does not count: there may always be something.
    UpTo(LinkTicket, u64),
}

impl Leftovers {
    /// Looks at some entries. Returns whether there is nothing to do now.
    fn step(&mut self, node: &Node) -> bool {
        let is_due = {
            let mut bridge = node.hub.bridge.lock();
            bridge.take_forsaken() || bridge.view().before().is_some()
        };
        if is_due {
            *self = Self { pending: true, ..Self::default() };
        }
        if !self.pending || !self.is_handed_over(node) {
            return true;
        }
        let (now, mut directory) = (node.now(), node.directory.write());
        let page: Vec<(Slot, PeerId)> = directory.table.after(self.at).take(STEP).collect();
        let stays = |peer: &PeerId| {
            let services = directory.table.service_keys(peer);
            *peer == node.id
                || directory.members.contains(peer)
                || directory.speaks_of(peer, now.mono)
                || node.hub.bridge.lock().has_to_hold(peer, &services)
        };
        let leaves: Vec<PeerId> = page.iter().map(|(_, peer)| *peer).filter(|peer| !stays(peer)).collect();
        for peer in &leaves {
            directory.table.forget(peer);
            directory.presence.forget(peer);
        }
        metrics::counter!("rendezvous_handed_over_total").increment(leaves.len() as u64);
        self.at = page.last().map(|(at, _)| *at);
        self.pending = page.len() == STEP;
        !self.pending
    }

    /// Whether the ring has come to rest, and its members have all that they were told up to then.
    fn is_handed_over(&mut self, node: &Node) -> bool {
        let (links, now) = (node.hub.links_of_ring(), node.now().mono);
        let bridge = node.hub.bridge.lock();
        if bridge.view().before().is_some() {
            return false;
        }
        let all = || links.keys().map(|member| (*member, Awaited::ToBeTold)).collect();
        let awaited = self.awaited.get_or_insert_with(all);
        awaited.retain(|member, awaited| {
            let link = links.get(member).copied();
            if link.is_none() && bridge.ring().dead_for(member, now).is_none() {
                // Only the way to it is cut: others reach it, and tell it.
                return false;
            }
            let is_told = |awaited: Awaited| matches!(awaited, Awaited::UpTo(by, _) if link == Some(by));
            if !is_told(*awaited) {
                let told = link.and_then(|link| Some((link, bridge.told_up_to(member)?)));
                *awaited = told.map_or(Awaited::ToBeTold, |(link, number)| Awaited::UpTo(link, number));
            }
            !matches!(*awaited, Awaited::UpTo(_, number) if bridge.has_arrived(member, number))
        });
        awaited.is_empty()
    }
}
