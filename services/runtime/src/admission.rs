//! How many there may be: in all, from one address, from one network. Admission is O(1).
//!
//! Invariant: every count is the number of those that were counted and have not left; whoever is refused is not counted.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

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
#[error("{limit} is {most}, and there is no room for more; come back later, or go elsewhere")]
pub struct LimitReached {
    /// The key that names it.
    pub limit: &'static str,
    /// Its value.
    pub most: usize,
}

/// Where somebody comes from, as wide as it is counted. Written as `192.0.2.0/24`; one address needs no length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// An IPv4 network of this many bits.
    V4(u32, u8),
    /// An IPv6 network of this many bits.
    V6(u128, u8),
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

    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(self, ip: IpAddr) -> bool {
        let (Self::V4(_, bits) | Self::V6(_, bits)) = self;
        Self::cut(ip, bits.min(32), bits) == self
    }

    fn cut(ip: IpAddr, v4: u8, v6: u8) -> Self {
        let (far4, far6) = (32_u32.saturating_sub(v4.into()), 128_u32.saturating_sub(v6.into()));
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(u32::from(ip) & u32::MAX.checked_shl(far4).unwrap_or(0), v4),
            IpAddr::V6(ip) => Self::V6(u128::from(ip) & u128::MAX.checked_shl(far6).unwrap_or(0), v6),
        }
    }
}

/// A text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network such as 192.0.2.0/24 or 2001:db8::/32, nor an address")]
pub struct NoNetwork(String);

impl FromStr for Source {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let wrong = || NoNetwork(text.to_owned());
        let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let ip = ip.parse::<IpAddr>().map_err(|_| wrong())?.to_canonical();
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
        if bits > most { Err(wrong()) } else { Ok(Self::cut(ip, bits, bits)) }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::V4(network, bits) => write!(f, "{}/{bits}", Ipv4Addr::from(network)),
            Self::V6(network, bits) => write!(f, "{}/{bits}", Ipv6Addr::from(network)),
        }
    }
}

impl TryFrom<String> for Source {
    type Error = NoNetwork;

    fn try_from(text: String) -> Result<Self, NoNetwork> {
        text.parse()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
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

    /// Admits several that come together, or none of them.
    pub fn enter_many(&mut self, from: Option<IpAddr>, many: usize) -> Result<(), LimitReached> {
        have_room(self.total, many, self.limits.total)?;
        if let Some(ip) = from {
            have_room(self.count_of(Source::host(ip)), many, self.limits.per_ip)?;
            have_room(self.count_of(Source::network(ip)), many, self.limits.per_prefix)?;
        }
        self.count_many(from, many);
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

    /// Whether half of a limit is used up, in all or from there.
    pub fn is_half_full(&self, from: Option<IpAddr>) -> bool {
        let half = |count: usize, (most, _): (usize, &str)| count >= most.div_ceil(2);
        half(self.total, self.limits.total)
            || from.is_some_and(|ip| {
                half(self.count_of(Source::host(ip)), self.limits.per_ip)
                    || half(self.count_of(Source::network(ip)), self.limits.per_prefix)
            })
    }

    /// Counts one that needs no admission.
    pub fn count(&mut self, from: Option<IpAddr>) {
        self.count_many(from, 1);
    }

    /// The same for several, such as bytes.
    pub fn count_many(&mut self, from: Option<IpAddr>, many: usize) {
        self.total += many;
        let Some(ip) = from else { return };
        for source in [Source::host(ip), Source::network(ip)] {
            *self.sources.entry(source).or_default() += many;
        }
    }

    /// One that was counted from there leaves.
    pub fn leave(&mut self, from: Option<IpAddr>) {
        self.leave_many(from, 1);
    }

    /// The same for several.
    pub fn leave_many(&mut self, from: Option<IpAddr>, many: usize) {
        self.total = self.total.saturating_sub(many);
        let Some(ip) = from else { return };
        for source in [Source::host(ip), Source::network(ip)] {
            match self.sources.get_mut(&source) {
                Some(count) if *count > many => *count -= many,
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

/// Places of one kind. Clones share them.
#[derive(Clone, Debug)]
pub struct Places(Arc<Mutex<Admission>>);

impl Places {
    /// All are free.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Admission::new(limits))))
    }

    /// A place for one from there, until it is dropped.
    pub fn enter(&self, from: Option<IpAddr>) -> Result<Place, LimitReached> {
        self.0.lock().enter(from)?;
        Ok(Place { places: self.clone(), from })
    }
}

/// Held by whoever was admitted; dropping it makes room.
#[derive(Debug)]
pub struct Place {
    places: Places,
    from: Option<IpAddr>,
}

impl Place {
    /// Where its holder comes from, if that counts.
    #[must_use]
    pub const fn ip(&self) -> Option<IpAddr> {
        self.from
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.lock().leave(self.from);
    }
}

/// Whether one more fits below a limit.
pub fn below(count: usize, limit: (usize, &'static str)) -> Result<(), LimitReached> {
    have_room(count, 1, limit)
}

/// Whether so many more fit below a limit.
pub fn have_room(
    count: usize,
    many: usize,
    (most, limit): (usize, &'static str),
) -> Result<(), LimitReached> {
    if count.saturating_add(many) <= most { Ok(()) } else { Err(LimitReached { limit, most }) }
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

    #[test]
    fn several_come_together_or_not_at_all() {
        let mut a = admission();
        assert_eq!(refused(a.enter_many(ip("192.0.2.1"), 3)), "ip");
        a.enter_many(ip("192.0.2.1"), 2).unwrap();
        assert_eq!(refused(a.enter_many(ip("192.0.2.2"), 2)), "prefix");
        assert_eq!(refused(a.enter_many(None, 4)), "total");
        assert_eq!((a.total(), a.sources.len()), (2, 2));
    }

    #[test]
    fn half_of_any_limit_is_noticed_and_bytes_are_counted_like_heads() {
        let mut a =
            Admission::new(Limits { total: (100, "total"), per_ip: (20, "ip"), per_prefix: (30, "prefix") });
        a.count_many(ip("192.0.2.1"), 9);
        assert!(!a.is_half_full(ip("192.0.2.1")));
        a.count_many(ip("192.0.2.2"), 6);
        assert!(a.is_half_full(ip("192.0.2.1")), "half of the prefix");
        assert!(!a.is_half_full(ip("198.51.100.1")) && !a.is_half_full(None));
        a.count_many(None, 35);
        assert!(a.is_half_full(None));
        a.leave_many(ip("192.0.2.1"), 9);
        a.leave_many(ip("192.0.2.2"), 6);
        a.leave_many(None, 35);
        assert_eq!((a.total(), a.sources.len()), (0, 0));
    }

    #[test]
    fn a_place_is_free_again_once_it_is_dropped() {
        let places =
            Places::new(Limits { total: (1, "total"), per_ip: (1, "ip"), per_prefix: (1, "prefix") });
        let place = places.enter(ip("192.0.2.1")).unwrap();
        assert_eq!(places.enter(None).unwrap_err().limit, "total");
        drop(place);
        places.enter(ip("192.0.2.1")).unwrap();
    }

    #[test]
    fn networks_are_written_as_everybody_writes_them() {
        for (text, shown, inside, outside) in [
            ("10.1.2.3/8", "10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("127.0.0.1", "127.0.0.1/32", "::ffff:127.0.0.1", "127.0.0.2"),
            ("2001:db8:1::/32", "2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::1", "::1/128", "::1", "127.0.0.1"),
            ("0.0.0.0/0", "0.0.0.0/0", "203.0.113.7", "2001:db8::1"),
            ("::/0", "::/0", "2001:db8::1", "203.0.113.7"),
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!(source.to_string(), shown);
            assert!(source.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!source.contains(outside.parse().unwrap()), "{text} {outside}");
        }
        for wrong in ["", "x", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0/8"] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
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
}
