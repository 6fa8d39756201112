//! One task notices what time has changed: silent and lost peers, expired records, members nobody names. It sleeps until the
//! next deadline, a second at most, and does a bounded amount of work at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use p2psb_runtime::status::Component;

use crate::backbone::dial::EDGE_LINKS;
use crate::core::members::Role;
use crate::core::seldom::Seldom;
use crate::core::session::Freed;
use crate::core::table::Equivocations;
use crate::core::telling::Origin;
use crate::node::Node;

/// It wakes at least this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// And not more often than this.
const SHORTEST_SLEEP: Duration = Duration::from_millis(10);
/// Peers that are looked at under one lock.
const AT_A_TIME: usize = 1000;
/// What other homes said is swept this often: it means looking at all of it, step by step.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(60);
/// Keys that contradict themselves are logged at most this often: anybody can make one that does.
const EQUIVOCATIONS_PAUSE: Duration = Duration::from_secs(60);

/// Sweeps until the server drains, and keeps the gauges and the state of the bridge up to date.
pub(crate) async fn sweep(node: Arc<Node>, bridge: Component, configured_members: usize) {
    let (mut presence_at, mut is_sweeping) = (node.clock.now() + PRESENCE_INTERVAL, false);
    let mut reports = Reports { equivocations: 0, seldom: Seldom::new(EQUIVOCATIONS_PAUSE) };
    loop {
        let now = node.now();
        let (due, next, more) = {
            let mut directory = node.directory.write();
            let more = directory.table.sweep(now.wall, AT_A_TIME) == AT_A_TIME;
            let due = directory.due(now.mono, AT_A_TIME);
            if now.mono >= presence_at {
                presence_at = now.mono + PRESENCE_INTERVAL;
                is_sweeping = true;
                directory.members.sweep(now.mono);
                directory.edges.sweep(now.mono);
                node.hub.bridge.lock().sweep(now.mono);
            }
            if is_sweeping {
                is_sweeping = !directory.presence.sweep(AT_A_TIME, now.mono);
            }
            (due, directory.sessions.next_deadline(), more || is_sweeping)
        };
        for Freed(from) in due.freed {
            node.registrations.lock().leave(from);
        }
        for peer in due.changed {
            node.presence(peer, Origin::Here);
        }
        let more = node.hub.watching.pass(now.mono, AT_A_TIME) || more;
        observe(&node, &bridge, configured_members);
        reports.equivocations(&node, now.mono);
        let wait = next.map_or(LONGEST_SLEEP, |next| next.saturating_duration_since(now.mono));
        // What did not fit into this round comes at once, but others take the lock in between.
        let wait = if more { Duration::ZERO } else { wait.clamp(SHORTEST_SLEEP, LONGEST_SLEEP) };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = node.drain.begun() => return,
        }
    }
}

/// What was reported already.
struct Reports {
    equivocations: u64,
    seldom: Seldom,
}

impl Reports {
    /// Counts keys that signed two statements with one `seq`, and logs now and then that there are some.
    fn equivocations(&mut self, node: &Node, now: Instant) {
        let Equivocations { count, last } = node.directory.read().table.equivocations();
        metrics::counter!("rendezvous_equivocations_total").absolute(count);
        let news = count.saturating_sub(self.equivocations);
        self.equivocations = count;
        if let (Some(times), Some(peer)) = (self.seldom.count(news, now), last) {
            tracing::warn!(times, %peer, "keys signed two records with one seq; the last was this one");
        }
    }
}

fn observe(node: &Node, bridge: &Component, configured_members: usize) {
    let (records, services, unlisted, links, edges) = {
        let directory = node.directory.read();
        let services = directory.table.services();
        (
            directory.table.len(),
            services.len(),
            services.unlisted(),
            directory.members.links(),
            directory.edges.links(),
        )
    };
    // A list of members may name this server, too: every member can have the same one.
    let configured = configured_members.saturating_sub(usize::from(node.hub.is_configured(&node.id)));
    let wanted = match node.role {
        Role::Member => configured,
        Role::Edge => configured.min(EDGE_LINKS),
    };
    metrics::gauge!("rendezvous_records").set(records as f64);
    metrics::gauge!("rendezvous_services").set(services as f64);
    metrics::gauge!("rendezvous_services_unlisted").set(unlisted as f64);
    metrics::gauge!("rendezvous_sessions").set(node.sessions.lock().total() as f64);
    metrics::gauge!("rendezvous_registrations").set(node.registrations.lock().total() as f64);
    metrics::gauge!("rendezvous_links").set(links as f64);
    metrics::gauge!("rendezvous_edges").set(edges as f64);
    metrics::gauge!("rendezvous_watched").set(node.watched.lock().total() as f64);
    if links >= wanted {
        bridge.ready();
    } else {
        bridge.degraded(format!("{links} of {wanted} configured members are linked"));
    }
}
