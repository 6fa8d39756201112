//! Homes that are lost: one event for all their peers.
//!
//! What a home says of its peers holds while the home lives. When it is gone its peers go elsewhere, spread over a time that
//! grows with their number; only after that are those that did not come up anywhere OFFLINE.

use std::collections::BTreeMap;
use std::time::Duration;

use p2psb_proto::model::PeerId;

use super::presence::HOME_LOSS_GRACE;

/// After a crash or drain so many peers reconnect in a second, at most.
pub const RECONNECTS_PER_SECOND: u64 = 2000;

/// A home that says that it has more sessions is not waited for any longer.
pub const SESSIONS: u64 = 1_000_000;

/// A home that nobody remembers has been dead for so long.
pub const FOREVER: Duration = Duration::MAX;

/// Over how long so many sessions reconnect.
#[must_use]
pub fn reconnect_spread(sessions: u64) -> Duration {
    Duration::from_millis(sessions.saturating_mul(1000) / RECONNECTS_PER_SECOND)
}

/// How long a home with so many sessions may be gone before its peers are OFFLINE.
#[must_use]
pub fn home_loss_grace(sessions: u64) -> Duration {
    HOME_LOSS_GRACE.max(reconnect_spread(sessions.min(SESSIONS)))
}

#[derive(Debug, Default)]
struct Home {
    sessions: u64,
    is_lost: bool,
}

/// What happened to a home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HomeEvent {
    /// Its grace is over: whoever is not elsewhere is OFFLINE.
    Lost(PeerId),
    /// It is here again after that: what it said holds again, until it says something else.
    Back(PeerId),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Homes(BTreeMap<PeerId, Home>);

impl Homes {
    /// A home says how many sessions it holds.
    pub fn said(&mut self, home: PeerId, sessions: u64) {
        self.0.entry(home).or_default().sessions = sessions;
    }

    /// Whether the peers of a home are OFFLINE because it has given no sign of life for so long.
    #[must_use]
    pub fn is_lost(&self, home: &PeerId, dead_for: Option<Duration>) -> bool {
        let sessions = self.0.get(home).map(|home| home.sessions).unwrap_or_default();
        dead_for.is_some_and(|dead_for| dead_for >= home_loss_grace(sessions))
    }

    /// Notices which homes were lost or came back; `dead_for` says how long one has given no sign of life, if it is not alive,
    /// and [`FOREVER`] of one that is forgotten.
    pub fn tick(&mut self, dead_for: impl Fn(&PeerId) -> Option<Duration>) -> Vec<HomeEvent> {
        let mut events = Vec::new();
        self.0.retain(|peer, home| {
            let dead_for = dead_for(peer);
            let is_lost = dead_for.is_some_and(|dead_for| dead_for >= home_loss_grace(home.sessions));
            if std::mem::replace(&mut home.is_lost, is_lost) != is_lost {
                events.push(if is_lost { HomeEvent::Lost(*peer) } else { HomeEvent::Back(*peer) });
            }
            dead_for != Some(FOREVER)
        });
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::peer;

    #[test]
    fn the_grace_grows_with_the_number_of_peers_that_have_to_go_elsewhere() {
        assert_eq!(home_loss_grace(0), Duration::from_secs(90));
        assert_eq!(home_loss_grace(10_000), Duration::from_secs(90));
        assert_eq!(home_loss_grace(1_000_000), Duration::from_secs(500));
        assert_eq!(reconnect_spread(10_000), Duration::from_secs(5));
        assert_eq!(home_loss_grace(u64::MAX), Duration::from_secs(500), "whatever a home says");
    }

    #[test]
    fn a_home_is_lost_once_and_comes_back_once() {
        let mut homes = Homes::default();
        homes.said(peer(1), 400_000);
        homes.said(peer(2), 10);
        let dead = |seconds| move |home: &PeerId| (*home == peer(1)).then(|| Duration::from_secs(seconds));
        assert_eq!(homes.tick(dead(199)), []);
        assert_eq!(homes.tick(dead(200)), [HomeEvent::Lost(peer(1))]);
        assert_eq!(homes.tick(dead(201)), []);
        let at = |seconds| Some(Duration::from_secs(seconds));
        assert!(homes.is_lost(&peer(1), at(200)) && !homes.is_lost(&peer(1), at(199)));
        assert!(homes.is_lost(&peer(2), at(90)) && !homes.is_lost(&peer(2), None));
        assert_eq!(homes.tick(|_| None), [HomeEvent::Back(peer(1))]);
        assert_eq!(homes.tick(|_| None), []);
        assert_eq!(homes.tick(|_| Some(FOREVER)).len(), 2);
        assert!(homes.0.is_empty(), "what nobody remembers is forgotten");
    }
}
