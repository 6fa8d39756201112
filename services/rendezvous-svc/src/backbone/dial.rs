//! Dialing: configured members for as long as the server lives, members heard of for as long as somebody names them.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use p2psb_client::{Dialer, Endpoint, resolve};
use p2psb_proto::error::Reason;
use p2psb_proto::model::{PeerId, PeerRecord, Signed};
use p2psb_runtime::retry::Backoff;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;

use super::handshake::{self, Refused};
use super::link::Ended;
use super::trust::Trust;
use crate::convert;
use crate::core::members::Role;
use crate::core::public::is_public;
use crate::node::Node;

/// The first pause between attempts, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A link that held for so long was a success: the next pause is short again.
const HELD: Duration = Duration::from_secs(10);
/// The higher of two ids gives the lower one this much time to dial first.
const COURTESY: Duration = Duration::from_secs(1);
/// How often it is looked whom nobody dials.
const LOOK: Duration = Duration::from_secs(15);
/// An address that leads back to this server is tried again only after this long.
const OWN_PAUSE: Duration = Duration::from_secs(600);
/// Links that an edge keeps.
pub(crate) const EDGE_LINKS: usize = 3;

/// What dialing needs.
#[derive(Clone)]
pub(crate) struct Work {
    pub(crate) node: Arc<Node>,
    pub(crate) dialer: Dialer,
    pub(crate) trust: Trust,
    /// Dial private addresses that others told.
    pub(crate) allow_private: bool,
    /// Links that may be at once.
    places: Arc<Semaphore>,
}

impl Work {
    /// Links with all members, or of an edge with some.
    pub(crate) fn new(node: &Arc<Node>, dialer: Dialer, trust: Trust, allow_private: bool) -> Self {
        let links = match node.role {
            Role::Member => Semaphore::MAX_PERMITS,
            Role::Edge => EDGE_LINKS,
        };
        Self { node: Arc::clone(node), dialer, trust, allow_private, places: Arc::new(Semaphore::new(links)) }
    }

    /// Waits until one more link may be; `None` when the server drains.
    async fn place(&self) -> Option<SemaphorePermit<'_>> {
        tokio::select! {
            place = self.places.acquire() => place.ok(),
            () = self.node.drain.begun() => None,
        }
    }

    /// Dials whoever has to be dialed until the server drains; ends when the dialed links have ended.
    pub(crate) async fn run(self, configured: Vec<Endpoint>) {
        let mut configured: JoinSet<()> =
            configured.into_iter().map(|endpoint| self.clone().keep_configured(endpoint)).collect();
        let mut named = self.keep_whom_others_name().await;
        while named.join_next().await.is_some() || configured.join_next().await.is_some() {}
    }

    async fn keep_whom_others_name(&self) -> JoinSet<PeerId> {
        let mut changes = self.node.hub.changes();
        let mut dialing = JoinSet::new();
        let mut dialed = HashSet::new();
        loop {
            for peer in self.to_dial(&dialed) {
                dialed.insert(peer);
                let work = self.clone();
                dialing.spawn(work.keep_named(peer));
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
                Some(ended) = dialing.join_next() => if let Ok(peer) = ended { dialed.remove(&peer); },
                () = self.node.drain.begun() => return dialing,
            }
        }
    }

    /// Members without a link whom no task dials yet.
    fn to_dial(&self, dialed: &HashSet<PeerId>) -> Vec<PeerId> {
        let mut members = self.node.directory.read().members.all();
        if self.node.role == Role::Edge {
            // Not every edge is to have its links with the same members.
            fastrand::shuffle(&mut members);
        }
        let open = members.into_iter().filter(|member| !member.linked).map(|member| member.peer);
        open.filter(|peer| !dialed.contains(peer) && !self.node.hub.is_configured(peer)).collect()
    }

    fn draining(&self) -> bool {
        self.node.drain.has_begun()
    }

    /// A pause that the drain cuts short.
    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.node.drain.begun() => {}
        }
    }

    async fn unlinked(&self, peer: &PeerId) {
        let mut changes = self.node.hub.changes();
        while self.node.directory.read().members.is_linked(peer) {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.node.drain.begun() => return,
            }
        }
    }

    /// Keeps a link with a configured member.
    async fn keep_configured(self, endpoint: Endpoint) {
        let mut backoff = backoff();
        let mut who = endpoint.pin();
        while !self.draining() {
            if let Some(peer) = who {
                self.unlinked(&peer).await;
                if self.draining() {
                    break;
                }
            }
            let Some(place) = self.place().await else { break };
            let attempt = self.dial(&endpoint).await;
            drop(place);
            who = match &attempt {
                Ok(ended) => Some(ended.peer),
                Err(refused) => refused.peer.or(who),
            };
            if let Some(peer) = who {
                self.node.hub.configure(&endpoint, peer);
            }
            let pause = self.after(&endpoint, &attempt, &mut backoff);
            self.pause(pause).await;
        }
    }

    /// Keeps a link with a member that others named, while they do.
    async fn keep_named(self, peer: PeerId) -> PeerId {
        let mut backoff = backoff();
        while !self.draining() && self.node.directory.read().members.contains(&peer) {
            // An edge is dialed by nobody, and goes to those first that it was configured with.
            if self.node.id > peer || self.node.role == Role::Edge {
                self.pause(COURTESY.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            self.unlinked(&peer).await;
            let Some(place) = self.place().await else { break };
            if self.draining() || self.node.hub.is_configured(&peer) {
                break;
            }
            let mut pause = backoff.next_delay();
            for endpoint in self.endpoints(&peer) {
                if self.draining() || self.node.directory.read().members.is_linked(&peer) {
                    break;
                }
                let Some(attempt) = self.dial_told(&endpoint).await else { continue };
                pause = self.after(&endpoint, &attempt, &mut backoff);
                if attempt.is_ok() {
                    break;
                }
            }
            drop(place);
            self.pause(pause).await;
        }
        peer
    }

    async fn dial(&self, endpoint: &Endpoint) -> Result<Ended, Refused> {
        let connection = self.dialer.dial_unproven(endpoint).await?;
        handshake::dialed(&self.node, &self.trust, connection, endpoint).await
    }

    /// Dials where others told that a member is; `None` if this server may not. The name is resolved once: what is dialed is
    /// what was looked at.
    async fn dial_told(&self, endpoint: &Endpoint) -> Option<Result<Ended, Refused>> {
        let addresses = match resolve(endpoint).await {
            Ok(addresses) => addresses,
            Err(error) => return Some(Err(error.into())),
        };
        if !may_dial(&addresses, self.allow_private) {
            tracing::debug!(
                endpoint = endpoint.url(),
                "not dialed: a private address, and dial.allow_private is off"
            );
            return None;
        }
        let dialed = match self.dialer.dial_unproven_at(endpoint, &addresses).await {
            Ok(connection) => handshake::dialed(&self.node, &self.trust, connection, endpoint).await,
            Err(error) => Err(error.into()),
        };
        Some(dialed)
    }

    /// How long to wait after an attempt; what failed is said.
    fn after(
        &self,
        endpoint: &Endpoint,
        attempt: &Result<Ended, Refused>,
        backoff: &mut Backoff,
    ) -> Duration {
        let refused = match attempt {
            Ok(ended) => {
                if ended.held >= HELD {
                    backoff.reset();
                }
                return backoff.next_delay();
            }
            Err(refused) => refused,
        };
        let failure = &refused.failure;
        let is_own = refused.peer == Some(self.node.id);
        let retry_in = match failure.retry_after {
            _ if is_own => OWN_PAUSE,
            Some(asked) => backoff.at_least(asked),
            None => backoff.next_delay(),
        };
        let (endpoint, reason, problem) = (endpoint.url(), failure.reason, failure.message.as_str());
        if is_own || reason == Reason::LinkDuplicate {
            tracing::debug!(endpoint, %reason, problem, ?retry_in, "no link is needed");
        } else {
            tracing::warn!(endpoint, %reason, problem, ?retry_in, "no link");
        }
        retry_in
    }

    /// Where a member says that it is.
    fn endpoints(&self, peer: &PeerId) -> Vec<Endpoint> {
        let now = self.node.now().wall;
        let bytes = self.node.directory.read().table.valid(peer, now).map(|entry| entry.bytes());
        let record = bytes.and_then(|bytes| Signed::<PeerRecord>::verify(convert::signed(&bytes).ok()?).ok());
        let addresses = record.map(|record| record.value().addresses.clone()).unwrap_or_default();
        addresses.iter().filter_map(|address| Endpoint::of(address, *peer)).collect()
    }
}

/// Whether a name that leads to these addresses may be dialed: one that is not public speaks against all of them.
fn may_dial(addresses: &[SocketAddr], allow_private: bool) -> bool {
    allow_private || addresses.iter().all(|address| is_public(address.ip()))
}

fn backoff() -> Backoff {
    Backoff::new(BACKOFF.0, BACKOFF.1, fastrand::Rng::new())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn one_private_address_behind_a_name_speaks_against_all() {
        let at = |all: &[&str]| all.iter().map(|ip| (ip.parse::<IpAddr>().unwrap(), 7400).into()).collect();
        let (public, mixed): (Vec<_>, Vec<_>) = (at(&["8.8.8.8", "9.9.9.9"]), at(&["8.8.8.8", "10.0.0.1"]));
        assert!(may_dial(&public, false) && !may_dial(&mixed, false) && may_dial(&mixed, true));
    }
}
