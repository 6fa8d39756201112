//! What several backbones say of a peer, made one: the newest record, and the presence of where it is most alive. What a backbone
//! said before it was lost counts only where no other one says anything.

use std::collections::HashMap;

use p2psb_proto::model::presence::{LocatedPeer, PresenceState, aliveness};
use p2psb_proto::model::{Digest, PeerId, UnixMillis};

use super::WatchEvent;

/// What one backbone says.
#[derive(Clone, Debug)]
enum View {
    Is(Box<LocatedPeer>),
    Gone { last_seen: Option<UnixMillis> },
}

/// What tells two states of a peer apart.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Is { seq: u64, digest: Digest, state: PresenceState, home: Option<PeerId> },
    Gone,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Merge {
    views: HashMap<PeerId, HashMap<usize, View>>,
    told: HashMap<PeerId, Told>,
    backbones: Vec<Backbone>,
}

#[derive(Debug, Default)]
struct Backbone {
    /// None of its rendezvous is followed now.
    lost: bool,
    /// How far its stream has come; `None` before its first mark.
    progress: Option<UnixMillis>,
}

impl Merge {
    /// One more backbone is followed. Returns its number.
    pub(super) fn join(&mut self) -> usize {
        self.backbones.push(Backbone::default());
        self.backbones.len() - 1
    }

    /// A backbone knows the peer.
    pub(super) fn is(&mut self, backbone: usize, peer: Box<LocatedPeer>) -> Option<WatchEvent> {
        self.say(backbone, peer.peer_id(), View::Is(peer))
    }

    /// A backbone has no valid record of it.
    pub(super) fn gone(
        &mut self,
        backbone: usize,
        peer: PeerId,
        last_seen: Option<UnixMillis>,
    ) -> Option<WatchEvent> {
        self.say(backbone, peer, View::Gone { last_seen })
    }

    fn say(&mut self, backbone: usize, peer: PeerId, view: View) -> Option<WatchEvent> {
        self.views.entry(peer).or_default().insert(backbone, view);
        if let Some(known) = self.backbones.get_mut(backbone) {
            known.lost = false;
        }
        self.news(peer)
    }

    /// What is to be said of a peer, if it was not said already.
    fn news(&mut self, peer: PeerId) -> Option<WatchEvent> {
        let views = self.views.get(&peer)?;
        let is_lost = |number: &usize| self.backbones.get(*number).is_some_and(|backbone| backbone.lost);
        let all_lost = views.keys().all(is_lost);
        let counts = views.iter().filter(|(number, _)| all_lost || !is_lost(number));
        let event = best(peer, counts.map(|(_, view)| view));
        let told = match &event {
            WatchEvent::Is(found) => Told::Is {
                seq: found.record.value().seq,
                digest: found.record.digest(),
                state: found.presence.state,
                home: found.presence.home,
            },
            _ => Told::Gone,
        };
        if self.told.get(&peer) == Some(&told) {
            return None;
        }
        self.told.insert(peer, told);
        Some(event)
    }

    /// A backbone is out of reach. Returns what is believed differently without it.
    pub(super) fn lost(&mut self, backbone: usize) -> Vec<WatchEvent> {
        match self.backbones.get_mut(backbone) {
            Some(known) if !known.lost => known.lost = true,
            _ => return Vec::new(),
        }
        let peers: Vec<PeerId> = self.views.keys().copied().collect();
        peers.into_iter().filter_map(|peer| self.news(peer)).collect()
    }

    /// A backbone told all up to here. All that are followed have, up to the least.
    pub(super) fn progress(&mut self, backbone: usize, as_of: UnixMillis) -> Option<UnixMillis> {
        let known = self.backbones.get_mut(backbone)?;
        (known.progress, known.lost) = (Some(as_of), false);
        self.backbones.iter().filter(|known| !known.lost).map(|known| known.progress).min().flatten()
    }
}

fn best<'a>(peer: PeerId, views: impl Iterator<Item = &'a View>) -> WatchEvent {
    let mut found: Option<Box<LocatedPeer>> = None;
    let mut seen = None;
    for view in views {
        match view {
            View::Gone { last_seen } => seen = seen.max(*last_seen),
            View::Is(one) => {
                found = Some(match found {
                    None => one.clone(),
                    Some(other) => together(other, one),
                });
            }
        }
    }
    match found {
        Some(found) => WatchEvent::Is(found),
        None => WatchEvent::Gone { peer, last_seen: seen },
    }
}

fn together(mut one: Box<LocatedPeer>, other: &LocatedPeer) -> Box<LocatedPeer> {
    let rank = |peer: &LocatedPeer| (peer.record.value().seq, peer.record.digest());
    if rank(other) > rank(&one) {
        one.record = other.record.clone();
    }
    let alive = |peer: &LocatedPeer| (aliveness(peer.presence.state), peer.presence.as_of);
    if alive(other) > alive(&one) {
        one.presence = other.presence.clone();
    }
    one
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use p2psb_proto::model::presence::{Presence, PresenceSource};
    use p2psb_proto::model::{Genesis, PeerRecord, SecretKey, Signed};

    use super::*;

    fn peer(seq: u64, state: PresenceState) -> Box<LocatedPeer> {
        let now = UnixMillis(1_700_000_000_000);
        let record = PeerRecord {
            network: Genesis::open("test").unwrap().network_id(),
            seq,
            issued: now,
            expires: now.plus(Duration::from_secs(60)),
            addresses: Vec::new(),
            services: Vec::new(),
            homes: Vec::new(),
            endorsements: Vec::new(),
        };
        let record = Signed::sign(&record, &SecretKey::from_seed(&[1; 32])).unwrap();
        let presence =
            Presence { state, last_seen: now, as_of: now, source: PresenceSource::Session, home: None };
        Box::new(LocatedPeer { record, presence })
    }

    fn shown(event: Option<WatchEvent>) -> Option<(u64, PresenceState)> {
        match event? {
            WatchEvent::Is(peer) => Some((peer.record.value().seq, peer.presence.state)),
            WatchEvent::Gone { last_seen, .. } => {
                Some((last_seen.unwrap_or_default().0, PresenceState::Unspecified))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_newest_record_and_the_liveliest_presence_win_and_nothing_is_told_twice() {
        use PresenceState::{Offline, Online, Unspecified};
        let mut merge = Merge::default();
        let (a, b) = (merge.join(), merge.join());
        assert_eq!(shown(merge.is(a, peer(1, Online))), Some((1, Online)));
        assert_eq!(shown(merge.is(b, peer(1, Online))), None);
        assert_eq!(shown(merge.is(b, peer(2, Offline))), Some((2, Online)));
        let id = peer(1, Online).peer_id();
        assert_eq!(shown(merge.gone(a, id, Some(UnixMillis(7)))), Some((2, Offline)));
        assert_eq!(shown(merge.gone(b, id, Some(UnixMillis(5)))), Some((7, Unspecified)));
        assert_eq!(shown(merge.gone(b, id, None)), None);
    }

    #[test]
    fn a_lost_backbone_counts_only_where_no_other_speaks_until_it_is_back() {
        use PresenceState::{Offline, Online};
        let mut merge = Merge::default();
        let (a, b) = (merge.join(), merge.join());
        merge.is(a, peer(1, Online));
        assert!(merge.lost(a).is_empty(), "nobody else knows better");
        assert_eq!(shown(merge.is(b, peer(1, Offline))), Some((1, Offline)));
        assert_eq!(shown(merge.is(a, peer(1, Online))), Some((1, Online)));
        let without: Vec<_> = merge.lost(a).into_iter().map(|event| shown(Some(event))).collect();
        assert_eq!(without, [Some((1, Offline))]);
        assert_eq!(merge.progress(b, UnixMillis(9)), Some(UnixMillis(9)), "nobody waits for the lost one");
    }

    #[test]
    fn progress_is_that_of_the_backbone_that_is_furthest_behind() {
        let mut merge = Merge::default();
        let (a, b) = (merge.join(), merge.join());
        assert_eq!(merge.progress(a, UnixMillis(9)), None, "nothing is known of the other yet");
        assert_eq!(merge.progress(b, UnixMillis(5)), Some(UnixMillis(5)));
        assert_eq!(merge.progress(b, UnixMillis(10)), Some(UnixMillis(9)));
    }
}
