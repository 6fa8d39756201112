//! Dialing: configured members for as long as the server lives, members heard of for as long as somebody names them.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use p2psb_client::{Dialer, Endpoint, resolve};
use p2psb_proto::error::Reason;
use p2psb_proto::model::{PeerId, PeerRecord, Signed};
use p2psb_runtime::retry::Backoff;
use tokio::task::JoinSet;

use super::handshake::{self, Refused};
use super::link::Ended;
use super::trust::Trust;
use crate::convert;
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

/// What dialing needs.
#[derive(Clone)]
pub(crate) struct Work {
    pub(crate) node: Arc<Node>,
    pub(crate) dialer: Dialer,
    pub(crate) trust: Trust,
    /// Dial private addresses that others told.
    pub(crate) allow_private: bool,
}

impl Work {
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
        let members = self.node.directory.read().members.all();
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
            let attempt = self.dial(&endpoint).await;
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
            if self.node.id > peer {
                self.pause(COURTESY.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
            self.unlinked(&peer).await;
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

/// Whether an address lies on the open internet.
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocols = (a, b, c) == (192, 0, 0);
    let benchmarks = a == 198 && (18..20).contains(&b);
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        || shared
        || protocols
        || benchmarks)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    // A translator (NAT64) or a 6to4 relay leads to the IPv4 address inside.
    let inside = |high: u16, low: u16| is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match segments {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => return inside(high, low),
        [0x2002, high, low, ..] => return inside(high, low),
        _ => {}
    }
    let [first, second, ..] = segments;
    // Everything that is in use lies in here; documentation and Teredo lie there, too.
    first & 0xe000 == 0x2000 && !(first == 0x2001 && matches!(second, 0 | 0xdb8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_count_as_public() {
        let public = |text: &str| is_public(text.parse().unwrap());
        for yes in
            ["8.8.8.8", "100.128.0.1", "192.0.1.1", "2606:4700::1", "64:ff9b::8.8.8.8", "2002:808:808::1"]
        {
            assert!(public(yes), "{yes}");
        }
        for no in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "172.16.0.1",
            "169.254.1.1",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "::127.0.0.1",
            "fec0::1",
            "100::1",
            "2001:db8::1",
            "2001::1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:a00:1::1",
        ] {
            assert!(!public(no), "{no}");
        }
    }
    #[test]
    fn one_private_address_behind_a_name_speaks_against_all() {
        let at = |all: &[&str]| all.iter().map(|ip| (ip.parse::<IpAddr>().unwrap(), 7400).into()).collect();
        let (public, mixed): (Vec<_>, Vec<_>) = (at(&["8.8.8.8", "9.9.9.9"]), at(&["8.8.8.8", "10.0.0.1"]));
        assert!(may_dial(&public, false) && !may_dial(&mixed, false) && may_dial(&mixed, true));
    }
}
