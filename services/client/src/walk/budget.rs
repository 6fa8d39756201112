//! How many searches may grow wide: to every rendezvous, or to peers. What keeps discovery from being an amplifier. Pure.
//!
//! Invariant: within any second at most [`PER_CALLER`] of them begin for one caller, and at most [`PER_SERVER`] in all.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// In any second, for one caller.
const PER_CALLER: usize = 1;
/// In any second, for all.
const PER_SERVER: usize = 100;
const SECOND: Duration = Duration::from_secs(1);
/// Under full load callers are asked to wait so many times as long.
const PATIENCE_UNDER_LOAD: f64 = 4.0;

/// In whose name a search is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Caller {
    /// The program's own.
    #[default]
    Own,
    /// Somebody's at this address, of IPv6 at this /64.
    At(IpAddr),
    /// Somebody's behind an address that many share: only what holds for all holds for them.
    Many,
}

impl Caller {
    /// Whoever calls from `ip`.
    #[must_use]
    pub fn at(ip: IpAddr) -> Self {
        Self::At(match ip.to_canonical() {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
        })
    }
}

/// Whose budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The caller's.
    Caller,
    /// That of all together.
    Server,
}

/// There is no budget now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spent {
    pub(crate) scope: Scope,
    /// When there is some again, if nobody else takes it.
    pub(crate) until: Instant,
}

/// See the module. Holds what began within the last second.
#[derive(Debug, Default)]
pub(crate) struct Budget(VecDeque<(Instant, Caller)>);

impl Budget {
    /// Begins one for `caller`, if there is budget.
    pub(crate) fn take(&mut self, caller: Caller, now: Instant) -> Result<(), Spent> {
        self.0.retain(|(at, _)| now.duration_since(*at) < SECOND);
        let of_caller = self.0.iter().filter(|(_, by)| *by == caller && caller != Caller::Many);
        for (count, first, most, scope) in [
            (of_caller.clone().count(), of_caller.clone().next(), PER_CALLER, Scope::Caller),
            (self.0.len(), self.0.front(), PER_SERVER, Scope::Server),
        ] {
            if let (true, Some((at, _))) = (count >= most, first) {
                return Err(Spent { scope, until: *at + SECOND });
            }
        }
        self.0.push_back((now, caller));
        Ok(())
    }

    /// How much of all that may be is used, 0 to 1.
    pub(crate) fn load(&self, now: Instant) -> f64 {
        let recent = self.0.iter().filter(|(at, _)| now.duration_since(*at) < SECOND).count();
        recent as f64 / PER_SERVER as f64
    }
}

/// How long to wait before asking again, where `base` would do without any load: longer the more there is (`load`, 0 to 1), and by up to
/// half of it longer as `chance` (0 to 1) has it, so that those who are told together do not come back together.
pub(crate) fn retry_after(base: Duration, load: f64, chance: f64) -> Duration {
    let (load, chance) = (load.clamp(0.0, 1.0), chance.clamp(0.0, 1.0));
    base.mul_f64((1.0 + (PATIENCE_UNDER_LOAD - 1.0) * load) * (1.0 + chance / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(n: u32) -> Caller {
        Caller::at(IpAddr::from(std::net::Ipv4Addr::from_bits(n)))
    }

    #[test]
    fn a_caller_has_one_in_any_second() {
        let (mut budget, t) = (Budget::default(), Instant::now());
        budget.take(caller(1), t).unwrap();
        let later = t + Duration::from_millis(999);
        assert_eq!(budget.take(caller(1), later), Err(Spent { scope: Scope::Caller, until: t + SECOND }));
        budget.take(caller(2), later).unwrap();
        budget.take(caller(1), t + SECOND).unwrap();
        assert!((0..9).all(|_| budget.take(Caller::Many, t + SECOND).is_ok()), "these are many");
    }

    #[test]
    fn all_together_have_a_hundred_in_any_second_however_many_they_are() {
        let (mut budget, t, seed) = (Budget::default(), Instant::now(), fastrand::u64(..));
        eprintln!("seed {seed}");
        let (mut rng, mut at, mut begun) = (fastrand::Rng::with_seed(seed), t, Vec::new());
        for n in 0..5000 {
            at += Duration::from_micros(rng.u64(..1500));
            match budget.take(caller(n), at) {
                Ok(()) => begun.push(at),
                Err(spent) => {
                    assert_eq!((spent.scope, budget.load(at) >= 1.0), (Scope::Server, true));
                    assert!(spent.until > at && spent.until <= at + SECOND);
                }
            }
        }
        assert!(begun.windows(PER_SERVER + 1).all(|w| w[PER_SERVER] >= w[0] + SECOND), "seed {seed}");
        assert!(begun.len() > PER_SERVER, "seed {seed}: it comes back");
        assert!(budget.0.len() <= PER_SERVER, "what it keeps is bounded");
    }

    #[test]
    fn who_is_told_to_wait_waits_longer_under_load_and_not_with_all_others() {
        let base = Duration::from_secs(10);
        assert_eq!(retry_after(base, 0.0, 0.0), base);
        assert_eq!(retry_after(base, 0.0, 1.0), base.mul_f64(1.5));
        assert_eq!(retry_after(base, 1.0, 0.0), base * 4);
        assert!(retry_after(base, 0.5, 0.0) > base && retry_after(base, 0.5, 0.0) < base * 4);
        assert_eq!(retry_after(base, 9.0, -1.0), base * 4);
    }

    #[test]
    fn one_machine_is_one_caller() {
        let at = |text: &str| Caller::at(text.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_ne!(at("192.0.2.2"), at("192.0.2.1"));
    }
}
