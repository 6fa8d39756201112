//! Confirming addresses: how often one is dialed for others, and which member does it.
//!
//! Invariant: of the dials of any minute no peer has more than one, no target more than [`PER_TARGET`], all together no more
//! than [`PER_MINUTE`]; no more than [`AT_ONCE`] run. What is remembered is bounded by that.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use p2psb_proto::model::PeerId;

use super::admission::Source;

/// The time in which dials are counted.
pub const MINUTE: Duration = Duration::from_secs(60);
/// Dials of one target, an IPv4 address or IPv6 /64, in a minute.
pub const PER_TARGET: usize = 10;
/// Dials in a minute.
pub const PER_MINUTE: usize = 600;
/// How long a dial may take.
pub const DIAL: Duration = Duration::from_secs(5);
/// Dials at once.
pub const AT_ONCE: usize = 16;

/// One more would be too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} is {most}, and as many were dialed just now")]
pub struct TooMany {
    /// Which limit.
    pub limit: &'static str,
    /// Its value.
    pub most: usize,
    /// After how long there may be room.
    pub wait: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Dial {
    at: Instant,
    peer: PeerId,
    target: Source,
}

/// What was dialed in the last minute, and what is being dialed.
#[derive(Debug, Default)]
pub struct Budget {
    /// The oldest first.
    recent: VecDeque<Dial>,
    running: usize,
}

impl Budget {
    /// A dial of `peer` at `target` may begin, and does. When it has ended, [`Self::end`] is to be called.
    pub fn begin(&mut self, peer: PeerId, target: IpAddr, now: Instant) -> Result<(), TooMany> {
        let passed = |dial: &Dial| now.saturating_duration_since(dial.at) >= MINUTE;
        while self.recent.front().is_some_and(passed) {
            self.recent.pop_front();
        }
        let target = Source::host(target);
        let of_peer = |dial: &Dial| dial.peer == peer;
        let of_target = |dial: &Dial| dial.target == target;
        self.below(1, "dials_per_peer", of_peer, now)?;
        self.below(PER_TARGET, "dials_per_target", of_target, now)?;
        self.below(PER_MINUTE, "dials_per_minute", |_| true, now)?;
        if self.running >= AT_ONCE {
            return Err(TooMany { limit: "dials_at_once", most: AT_ONCE, wait: DIAL });
        }
        self.running += 1;
        self.recent.push_back(Dial { at: now, peer, target });
        Ok(())
    }

    /// A dial has ended.
    pub const fn end(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// The oldest of those that count makes room first.
    fn below(
        &self,
        most: usize,
        limit: &'static str,
        counts: impl Fn(&Dial) -> bool,
        now: Instant,
    ) -> Result<(), TooMany> {
        let mut counted = self.recent.iter().filter(|dial| counts(dial));
        let Some(first) = counted.next() else { return Ok(()) };
        if counted.count() + 1 < most {
            return Ok(());
        }
        Err(TooMany { limit, most, wait: (first.at + MINUTE).saturating_duration_since(now) })
    }
}

/// Who is asked to dial a peer back: any of the `linked` members that is no home of it, by `chance` in 0 to 1; if all are,
/// any of them, unless `shares_port`.
///
/// A NAT or firewall lets in whom the peer has spoken to, at the very port it spoke from. So a home proves as much as any other
/// member when the peer's sessions come from another port than the one it listens on, and nothing when they come from that one.
#[must_use]
pub fn choose(linked: &[PeerId], homes: &[PeerId], shares_port: bool, chance: f64) -> Option<PeerId> {
    let (known, strange): (Vec<PeerId>, Vec<PeerId>) =
        linked.iter().partition(|member| homes.contains(member));
    let among = if strange.is_empty() && !shares_port { known } else { strange };
    // Cut on purpose: an index below the length, except at 1.0, where the last one is meant.
    let at = (chance.clamp(0.0, 1.0) * among.len() as f64) as usize;
    among.get(at).or(among.last()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::peer;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn refused(result: Result<(), TooMany>) -> (&'static str, u64) {
        let error = result.unwrap_err();
        (error.limit, error.wait.as_secs())
    }

    #[test]
    fn a_peer_is_dialed_once_a_minute_wherever_it_is() {
        let start = Instant::now();
        let mut budget = Budget::default();
        budget.begin(peer(1), ip(1), start).unwrap();
        budget.end();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(refused(budget.begin(peer(1), ip(2), at(20))), ("dials_per_peer", 40));
        budget.begin(peer(2), ip(1), at(20)).unwrap();
        budget.begin(peer(1), ip(2), at(60)).unwrap();
    }

    #[test]
    fn a_target_is_dialed_ten_times_a_minute_whoever_is_there() {
        let start = Instant::now();
        let mut budget = Budget::default();
        for n in 0..PER_TARGET {
            budget.begin(peer(n as u8), ip(1), start).unwrap();
        }
        assert_eq!(refused(budget.begin(peer(99), ip(1), start)), ("dials_per_target", 60));
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(refused(budget.begin(peer(99), mapped, start)), ("dials_per_target", 60));
        budget.begin(peer(99), ip(2), start).unwrap();
        budget.begin(peer(100), ip(1), start + MINUTE).unwrap();
        let mut v6 = Budget::default();
        for n in 0..PER_TARGET {
            v6.begin(peer(n as u8), format!("2001:db8::{n}").parse().unwrap(), start).unwrap();
        }
        let same_network = "2001:db8::ffff".parse().unwrap();
        assert_eq!(refused(v6.begin(peer(99), same_network, start)), ("dials_per_target", 60));
    }

    #[test]
    fn a_flood_is_bounded_in_number_and_memory_and_is_over_after_a_minute() {
        let start = Instant::now();
        let mut budget = Budget::default();
        let nth = |n: usize| {
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&n.to_le_bytes());
            (
                PeerId::new(p2psb_proto::model::PublicKey::from_bytes(seed)),
                IpAddr::from((n as u32).to_be_bytes()),
            )
        };
        let mut begun = 0;
        for n in 0..100_000 {
            let (peer, ip) = nth(n);
            if budget.begin(peer, ip, start).is_ok() {
                begun += 1;
                budget.end();
            }
        }
        assert_eq!((begun, budget.recent.len()), (PER_MINUTE, PER_MINUTE));
        for n in 0..AT_ONCE {
            let (peer, ip) = nth(200_000 + n);
            budget.begin(peer, ip, start + MINUTE).unwrap();
        }
        assert_eq!(budget.recent.len(), AT_ONCE, "nothing older is remembered");
        let (peer, ip) = nth(300_000);
        assert_eq!(refused(budget.begin(peer, ip, start + MINUTE)), ("dials_at_once", 5));
        budget.end();
        budget.begin(peer, ip, start + MINUTE).unwrap();
    }

    #[test]
    fn a_member_that_is_no_home_is_asked_and_a_home_only_if_it_proves_as_much() {
        let (all, homes) = ([peer(1), peer(2), peer(3)], [peer(2), peer(9)]);
        assert_eq!(choose(&all, &homes, false, 0.0), Some(peer(1)));
        assert_eq!(choose(&all, &homes, true, 0.99), Some(peer(3)));
        assert_eq!(choose(&all, &homes, false, 1.0), Some(peer(3)));
        assert_eq!(choose(&all, &all, false, 0.5), Some(peer(2)));
        assert_eq!(choose(&all, &all, true, 0.5), None);
        assert_eq!(choose(&[], &homes, false, 0.5), None);
    }
}
