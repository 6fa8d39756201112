//! When peers leave a server that goes, or come back from one that died, and where they are sent: spread over time and over the
//! other members, so that nobody meets all of them at once. Pure: chance is an argument.

use std::time::Duration;

use super::homes::reconnect_spread;

/// The least time over which they are spread.
pub const LEAST_SPREAD: Duration = Duration::from_secs(1);
/// How long past its moment a peer may take to leave, at most.
const LONGEST_PATIENCE: Duration = Duration::from_secs(3);
/// Sessions that every member is taken to have beside those it has: small differences decide nothing.
const WEIGHT_BASE: f64 = 100.0;

/// Over how long the peers of so many sessions come back.
#[must_use]
pub fn spread(sessions: usize) -> Duration {
    reconnect_spread(u64::try_from(sessions).unwrap_or(u64::MAX)).max(LEAST_SPREAD)
}

/// A pause for somebody who is to come again: this long, or up to half of it longer, by `chance` in 0 to 1. Those who are told
/// together are not to come together.
#[must_use]
pub fn apart(pause: Duration, chance: f64) -> Duration {
    pause.mul_f64(1.0 + chance.clamp(0.0, 1.0) / 2.0)
}

/// The moments at which the peers of a draining server leave it.
///
/// Invariant: they all lie in the first part of the time there is, so that whoever keeps its moment is gone before it is cut; and
/// of any two peers that ask one after the other each has its own slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leaving {
    spread: Duration,
    patience: Duration,
    peers: u32,
    turn: u32,
}

impl Leaving {
    /// So many peers leave, before the deadline.
    #[must_use]
    pub fn new(peers: usize, deadline: Duration) -> Self {
        Self {
            spread: spread(peers).min(deadline / 2),
            patience: (deadline / 4).min(LONGEST_PATIENCE),
            peers: u32::try_from(peers).unwrap_or(u32::MAX).max(1),
            turn: 0,
        }
    }

    /// When the next peer leaves, counted from the beginning: somewhere in its slot, by `chance` in 0 to 1.
    pub fn next(&mut self, chance: f64) -> Duration {
        let slot = self.turn % self.peers;
        self.turn = slot + 1;
        self.spread.mul_f64((f64::from(slot) + chance.clamp(0.0, 1.0)) / f64::from(self.peers))
    }

    /// A moment for somebody who is none of the counted peers.
    #[must_use]
    pub fn any(&self, chance: f64) -> Duration {
        self.spread.mul_f64(chance.clamp(0.0, 1.0))
    }

    /// How long past its moment a peer is still served.
    #[must_use]
    pub const fn patience(&self) -> Duration {
        self.patience
    }

    /// When the last one has left, counted from the beginning.
    #[must_use]
    pub fn end(&self) -> Duration {
        self.spread + self.patience
    }
}

/// An order of members in which those with fewer sessions tend to come first, another one each time: `chance` gives numbers in 0 to 1.
pub fn shuffle<T>(members: &mut [T], sessions: impl Fn(&T) -> u64, mut chance: impl FnMut() -> f64) {
    // A race of exponential clocks: each is the first with a probability that falls with its load.
    let mut arrival = |member: &T| {
        let slowness = sessions(member) as f64 + WEIGHT_BASE;
        -(1.0 - chance().clamp(0.0, 0.999_999)).ln() * slowness
    };
    members.sort_by_cached_key(|member| ordered(arrival(member)));
}

/// Numbers that are not negative, in their order.
const fn ordered(number: f64) -> u64 {
    number.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_spread_by_their_number_and_never_over_less_than_a_second() {
        assert_eq!(spread(0), LEAST_SPREAD);
        assert_eq!(spread(10_000), Duration::from_secs(5));
        assert_eq!(spread(1_000_000), Duration::from_secs(500));
    }

    #[test]
    fn who_is_to_come_again_never_comes_sooner_and_by_half_later_at_most() {
        let pause = Duration::from_secs(10);
        assert_eq!(
            [0.0, 0.5, 1.0, 7.0].map(|chance| apart(pause, chance).as_millis()),
            [10_000, 12_500, 15_000, 15_000]
        );
    }

    #[test]
    fn peers_that_leave_do_so_evenly_and_before_the_deadline() {
        let deadline = Duration::from_secs(20);
        for peers in [1, 10, 10_000, 300_000] {
            let (mut leaving, mut rng) = (Leaving::new(peers, deadline), fastrand::Rng::with_seed(7));
            let mut moments: Vec<Duration> = (0..peers).map(|_| leaving.next(rng.f64())).collect();
            moments.sort_unstable();
            assert!(moments.last().unwrap() < &leaving.end() && leaving.end() < deadline);
            let bins = usize::try_from(leaving.spread.as_millis() / 100).unwrap();
            let mut bursts = vec![0; bins + 1];
            for moment in &moments {
                bursts[usize::try_from(moment.as_millis() / 100).unwrap()] += 1;
            }
            let mean = peers.div_ceil(bins);
            assert!(bursts.iter().all(|burst| *burst <= mean + 1), "{peers}: {bursts:?}");
        }
    }

    #[test]
    fn one_more_than_there_were_gets_a_moment_too() {
        let mut leaving = Leaving::new(2, Duration::from_secs(20));
        let moments: Vec<_> = (0..3).map(|_| leaving.next(0.0)).collect();
        assert_eq!(moments, [Duration::ZERO, LEAST_SPREAD / 2, Duration::ZERO]);
    }

    #[test]
    fn a_short_deadline_holds() {
        let leaving = Leaving::new(1_000_000, Duration::from_secs(2));
        assert!(leaving.end() < Duration::from_secs(2), "{leaving:?}");
        assert_eq!(Leaving::new(5, Duration::ZERO).next(0.5), Duration::ZERO);
    }

    #[test]
    fn members_with_fewer_sessions_tend_to_come_first_and_none_always_does() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut first = [0; 3];
        for _ in 0..3000 {
            let mut members = [0, 1, 2];
            shuffle(&mut members, |member| [100, 100, 700][*member], || rng.f64());
            first[members[0]] += 1;
        }
        // By weight 4 : 4 : 1.
        assert!(first[..2].iter().all(|n| (1200..1470).contains(n)), "{first:?}");
        assert!((250..420).contains(&first[2]), "{first:?}");
    }
}
