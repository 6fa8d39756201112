//! The task that turns the ring: it notices who joined and left, and goes on telling new owners what they own, at a pace that
//! leaves room for everything else.

use std::sync::Arc;
use std::time::Duration;

use crate::core::Now;
use crate::core::directory::Directory;
use crate::core::homes::HomeEvent;
use crate::core::table::Place;
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
    type Cursor = Place;

    fn page(&self, after: Option<&Place>, most: usize) -> Vec<Held<Place>> {
        let Self(directory, now) = self;
        let held = |(at, peer)| Held {
            at,
            peer,
            services: directory.table.service_keys(&peer),
            is_here: directory.sessions.stated(&peer, now.mono).is_some(),
        };
        directory.table.after(after.copied()).take(most).map(held).collect()
    }
}

/// Turns until the server drains.
pub(crate) async fn turn(node: Arc<Node>) {
    loop {
        let pause = if step(&node) { INTERVAL } else { PAUSE };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.hub.stirred() => {}
            () = node.drain.begun() => return,
        }
    }
}

/// Looks once. Returns whether everybody was told what it owns.
pub(crate) fn step(node: &Node) -> bool {
    let now = node.now();
    let (events, is_over, ring) = {
        let directory = node.directory.read();
        node.hub.tell(|bridge| {
            let events = bridge.tick(&Page(&directory, now), STEP, now.mono);
            (events, bridge.is_walk_over(), (bridge.view().current().len(), bridge.disagreeing()))
        })
    };
    for event in events {
        let (HomeEvent::Lost(home) | HomeEvent::Back(home)) = event;
        tracing::info!(%home, lost = matches!(event, HomeEvent::Lost(_)), "a home went, or came back after its grace");
        node.hub.watching.home_changed(&home);
    }
    metrics::gauge!("rendezvous_ring_members").set(ring.0 as f64);
    metrics::gauge!("rendezvous_ring_disagreeing").set(ring.1 as f64);
    is_over
}
