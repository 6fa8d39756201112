//! How many there may be: in all, from one address, from one network. Admission is O(1).
//!
//! Invariant: every count is the number of those that were admitted and have not left; whoever is refused is not counted.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The limits of one kind of thing, with the names of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub total: (usize, &'static str),
    /// From one IPv4 address or IPv6 /64.
    pub per_ip: (usize, &'static str),
    /// From one IPv4 /24 or IPv6 /48.
    pub per_prefix: (usize, &'static str),
}

/// A limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} is {most}, and as many are here; come back later, or go to another rendezvous")]
pub struct LimitReached {
    /// The key that names it.
    pub limit: &'static str,
    /// Its value.
    pub most: usize,
}

/// Where somebody comes from, as wide as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// An IPv4 network of this many bits.
    V4(u32, u8),
    /// An IPv6 network of this many bits, 64 at most: its upper half.
    V6(u64, u8),
}

impl Source {
    /// One user, most likely: an IPv4 address, an IPv6 /64.
    #[must_use]
    pub fn host(ip: IpAddr) -> Self {
        Self::cut(ip, 32, 64)
    }

    /// One network: an IPv4 /24, an IPv6 /48.
    #[must_use]
    pub fn network(ip: IpAddr) -> Self {
        Self::cut(ip, 24, 48)
    }

    fn cut(ip: IpAddr, v4: u8, v6: u8) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(u32::from(ip) & (u32::MAX << (32 - v4)), v4),
            IpAddr::V6(ip) => Self::V6(upper(ip) & (u64::MAX << (64 - v6)), v6),
        }
    }
}

fn upper(ip: Ipv6Addr) -> u64 {
    // What is left of the shift fits.
    (u128::from(ip) >> 64) as u64
}

/// Where somebody came from, as exactly as it is ever counted, in 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody knows.
    Unknown,
    /// An IPv4 address.
    V4(u32),
    /// The network of an IPv6 address.
    V6(u64),
}

impl Origin {
    /// Of an address.
    #[must_use]
    pub fn of(ip: Option<IpAddr>) -> Self {
        match ip.map(|ip| ip.to_canonical()) {
            None => Self::Unknown,
            Some(IpAddr::V4(ip)) => Self::V4(u32::from(ip)),
            Some(IpAddr::V6(ip)) => Self::V6(upper(ip)),
        }
    }

    /// An address that counts as the one it was made of.
    #[must_use]
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Unknown => None,
            Self::V4(ip) => Some(Ipv4Addr::from(ip).into()),
            Self::V6(upper) => Some(Ipv6Addr::from(u128::from(upper) << 64).into()),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    total: usize,
    sources: HashMap<Source, usize>,
}

impl Admission {
    /// Nobody is here yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, total: 0, sources: HashMap::new() }
    }

    /// Admits one. Behind a proxy that does not tell, nobody knows from where.
    pub fn enter(&mut self, from: Option<IpAddr>) -> Result<(), LimitReached> {
        self.has_room()?;
        self.has_room_for(from)?;
        self.count(from);
        Ok(())
    }

    /// Whether one more may be here in all.
    pub fn has_room(&self) -> Result<(), LimitReached> {
        below(self.total, self.limits.total)
    }

    /// Whether one more may be from there.
    pub fn has_room_for(&self, from: Option<IpAddr>) -> Result<(), LimitReached> {
        let Some(ip) = from else { return Ok(()) };
        below(self.count_of(Source::host(ip)), self.limits.per_ip)?;
        below(self.count_of(Source::network(ip)), self.limits.per_prefix)
    }

    /// Counts one that needs no admission.
    pub fn count(&mut self, from: Option<IpAddr>) {
        self.total += 1;
        let Some(ip) = from else { return };
        for source in [Source::host(ip), Source::network(ip)] {
            *self.sources.entry(source).or_default() += 1;
        }
    }

    /// One that was admitted from there leaves.
    pub fn leave(&mut self, from: Option<IpAddr>) {
        self.total = self.total.saturating_sub(1);
        let Some(ip) = from else { return };
        for source in [Source::host(ip), Source::network(ip)] {
            match self.sources.get_mut(&source) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.sources.remove(&source)),
            }
        }
    }

    fn count_of(&self, source: Source) -> usize {
        self.sources.get(&source).copied().unwrap_or_default()
    }

    /// How many are here.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }
}

/// Whether one more fits below a limit.
pub(super) fn below(count: usize, (most, limit): (usize, &'static str)) -> Result<(), LimitReached> {
    if count < most { Ok(()) } else { Err(LimitReached { limit, most }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        Admission::new(Limits { total: (5, "total"), per_ip: (2, "ip"), per_prefix: (3, "prefix") })
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn refused(result: Result<(), LimitReached>) -> &'static str {
        result.unwrap_err().limit
    }

    #[test]
    fn an_address_a_network_and_the_whole_have_their_limits() {
        let mut a = admission();
        a.enter(ip("192.0.2.1")).unwrap();
        a.enter(ip("::ffff:192.0.2.1")).unwrap();
        assert_eq!(refused(a.enter(ip("192.0.2.1"))), "ip");
        a.enter(ip("192.0.2.2")).unwrap();
        assert_eq!(refused(a.enter(ip("192.0.2.3"))), "prefix");
        a.enter(ip("198.51.100.1")).unwrap();
        a.enter(None).unwrap();
        assert_eq!(refused(a.enter(ip("203.0.113.1"))), "total");
    }

    #[test]
    fn ipv6_is_counted_by_64_and_48_bits() {
        let mut a = admission();
        a.enter(ip("2001:db8:0:1::1")).unwrap();
        a.enter(ip("2001:db8:0:1::2")).unwrap();
        assert_eq!(refused(a.enter(ip("2001:db8:0:1:ffff::3"))), "ip");
        a.enter(ip("2001:db8:0:2::1")).unwrap();
        assert_eq!(refused(a.enter(ip("2001:db8:0:3::1"))), "prefix");
        a.enter(ip("2001:db8:1::1")).unwrap();
    }

    #[test]
    fn an_origin_counts_as_the_address_it_was_made_of() {
        for text in ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8:0:1:2:3:4:5"] {
            let address: IpAddr = text.parse().unwrap();
            let kept = Origin::of(Some(address)).ip().unwrap();
            let counted = |ip| (Source::host(ip), Source::network(ip));
            assert_eq!(counted(kept), counted(address), "{text}");
        }
        assert_eq!((Origin::of(None).ip(), size_of::<Origin>()), (None, 16));
    }

    #[test]
    fn who_leaves_makes_room_and_leaves_nothing_behind() {
        let mut a = admission();
        for from in [ip("192.0.2.1"), ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1"), None] {
            a.enter(from).unwrap();
        }
        for from in [ip("192.0.2.1"), ip("192.0.2.2"), None, ip("192.0.2.1"), ip("2001:db8::1")] {
            a.leave(from);
        }
        assert_eq!((a.total(), a.sources.len()), (0, 0));
        a.enter(ip("192.0.2.1")).unwrap();
    }
}
