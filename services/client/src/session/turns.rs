//! Whose turn it is to become a home where a backbone has room for one: of the known rendezvous the near ones with few sessions come
//! first, and no more are tried at a time than there is room for. Pure: `now` and chance are arguments.
//!
//! Invariant: as long as somebody waits where there is room, somebody's turn begins or began within [`HEAD_START`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use p2psb_proto::model::PeerId;
use tokio::time::Instant;

use super::plan::related;

/// So long one is tried before the next may be tried beside it.
pub(super) const HEAD_START: Duration = Duration::from_secs(1);
/// What is assumed of a rendezvous that was never reached.
const ASSUMED_LATENCY: Duration = Duration::from_millis(100);
/// What every rendezvous costs: small differences of latency decide nothing.
const BASE: Duration = Duration::from_millis(10);
/// A session more at a rendezvous counts as much as if it were so much further away.
const PER_SESSION: Duration = Duration::from_micros(10);
/// More sessions than that make no difference.
const MOST_SESSIONS: u64 = 1_000_000;

/// What a rendezvous costs as a home, the less the better. `chance` in 0 to 1 moves it by a quarter up or down: peers that see the same
/// must not all choose the same.
pub(super) fn cost(latency: Option<Duration>, sessions: u64, chance: f64) -> Duration {
    let load = PER_SESSION * u32::try_from(sessions.min(MOST_SESSIONS)).unwrap_or(u32::MAX);
    (BASE + latency.unwrap_or(ASSUMED_LATENCY) + load).mul_f64(0.75 + chance.clamp(0.0, 1.0) / 2.0)
}

/// One that waits, or is being tried.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) server: Option<PeerId>,
    pub(super) backbone: BTreeSet<PeerId>,
    pub(super) cost: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: BTreeMap<usize, Candidate>,
    /// Whose turn it is, and since when.
    tried: BTreeMap<usize, (Candidate, Instant)>,
}

impl Turns {
    /// Waits, as it is now.
    pub(super) fn wait(&mut self, number: usize, candidate: Candidate) {
        self.tried.remove(&number);
        self.waiting.insert(number, candidate);
    }

    /// Begins the turn of one that waits, if it is, where its backbone has room for so many more homes.
    pub(super) fn begin(&mut self, number: usize, room: usize, now: Instant) -> bool {
        let Some(mine) = self.waiting.get(&number) else { return false };
        let is_rival = |other: &Candidate| {
            related((other.server.as_ref(), &other.backbone), (mine.server.as_ref(), &mine.backbone))
        };
        let better = self
            .waiting
            .iter()
            .filter(|(n, other)| (other.cost, **n) < (mine.cost, number) && is_rival(other));
        let since = |at: &Instant| now.saturating_duration_since(*at) < HEAD_START;
        let tried = self.tried.values().filter(|(other, at)| since(at) && is_rival(other));
        if better.count() + tried.count() >= room {
            return false;
        }
        if let Some(mine) = self.waiting.remove(&number) {
            self.tried.insert(number, (mine, now));
        }
        true
    }

    /// Waits no more, and is not tried any more.
    pub(super) fn end(&mut self, number: usize) {
        self.waiting.remove(&number);
        self.tried.remove(&number);
    }

    /// Whether anybody of a backbone waits or is tried.
    pub(super) fn any(&self, backbone: &BTreeSet<PeerId>) -> bool {
        let all = self.waiting.values().chain(self.tried.values().map(|(tried, _)| tried));
        let mut all = all.filter(|one| related((one.server.as_ref(), &one.backbone), (None, backbone)));
        all.next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::PublicKey;

    use super::*;

    fn id(n: u8) -> PeerId {
        PeerId::new(PublicKey::from_bytes([n; 32]))
    }

    fn candidate(n: u8, cost: u64) -> Candidate {
        let backbone = [id(1), id(2), id(3)].into();
        Candidate { server: Some(id(n)), backbone, cost: Duration::from_millis(cost) }
    }

    #[test]
    fn near_ones_with_few_sessions_are_cheap() {
        let ms = |n| Some(Duration::from_millis(n));
        assert!(cost(ms(1), 0, 1.0) < cost(ms(80), 0, 0.0));
        assert!(cost(ms(1), 0, 1.0) < cost(ms(1), 10_000, 0.0));
        assert!(cost(ms(1), 500, 1.0) > cost(ms(1), 510, 0.0), "small differences are left to chance");
        assert!(cost(ms(20), 0, 0.5) < cost(None, 0, 0.5) && cost(None, 0, 0.5) < cost(ms(300), 0, 0.5));
        assert!(cost(ms(1), u64::MAX, 1.0) < Duration::from_secs(20));
    }

    #[test]
    fn the_cheapest_goes_first_and_as_many_as_there_is_room_for() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        for (n, cost) in [(1, 30), (2, 10), (3, 20)] {
            turns.wait(n.into(), candidate(n, cost));
        }
        assert!(!turns.begin(1, 1, now) && !turns.begin(3, 1, now));
        assert!(turns.begin(2, 1, now));
        assert!(!turns.begin(3, 1, now), "one is tried, for one place");
        assert!(turns.begin(3, 2, now), "there is room for another");
        turns.end(2);
        turns.end(3);
        assert!(turns.begin(1, 1, now) && !turns.begin(1, 1, now));
        assert!(turns.any(&[id(3)].into()) && !turns.any(&[id(9)].into()));
    }

    #[test]
    fn one_that_does_not_answer_holds_up_the_next_for_a_moment_only() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        turns.wait(1, candidate(1, 1));
        turns.wait(2, candidate(2, 2));
        assert!(turns.begin(1, 1, now) && !turns.begin(2, 1, now));
        assert!(turns.begin(2, 1, now + HEAD_START));
    }

    #[test]
    fn backbones_do_not_wait_for_one_another() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        turns.wait(1, candidate(1, 1));
        let elsewhere =
            Candidate { server: Some(id(9)), backbone: [id(9)].into(), cost: Duration::from_secs(1) };
        turns.wait(2, elsewhere);
        assert!(turns.begin(2, 1, now) && turns.begin(1, 1, now));
        assert!(!turns.begin(3, 1, now), "who does not wait has no turn");
    }
}
