//! What the configurations of all programs of a community share: `network`, `rendezvous` and `advertise`, as written → as
//! meant.
//!
//! ```toml
//! rendezvous = ["https://r1.example.org:7400", "https://r2.example.org:7400#peer1…"]
//! advertise = ["https://me.example.org:7430"]
//!
//! [network]
//! name = "p2psb"
//! ```
//!
//! These are types and checks alone. Where a value is written, and how its operator is told that it is wrong, is the
//! program's; so is what only one program asks for, such as that peers are reached by TLS. Lists are written as
//! [`Endpoint`]s, which are parsed while they are read: a wrong one is told with its place in the list.

use p2psb_proto::model::network::GenesisError;
use p2psb_proto::model::{Address, AddressKind, Genesis, NetworkId, RecordError, limits};
use serde::{Deserialize, Serialize};

use crate::endpoint::Endpoint;

/// The community that is joined where no other is named.
const DEFAULT_NETWORK: &str = "p2psb";

/// How many rendezvous a configuration may name; one of a backbone is enough to learn the others.
pub const MAX_RENDEZVOUS: usize = 64;

/// Section `network`: the community. Peers and servers meet only where they name the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Name of the open network.
    pub name: String,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self { name: DEFAULT_NETWORK.into() }
    }
}

impl NetworkConfig {
    /// Which community that is. An error concerns `name`.
    pub fn meant(&self) -> Result<NetworkId, GenesisError> {
        Genesis::open(&self.name).map(|genesis| genesis.network_id())
    }
}

/// A list in which more is named than anybody has use for.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("names {count} {what}, at most {most} are allowed")]
pub struct TooMany {
    what: &'static str,
    count: usize,
    most: usize,
}

impl TooMany {
    const fn check(what: &'static str, count: usize, most: usize) -> Result<(), Self> {
        if count <= most { Ok(()) } else { Err(Self { what, count, most }) }
    }
}

/// What `advertise` can't mean.
#[derive(Debug, thiserror::Error)]
pub enum AdvertiseError {
    /// More than fit into a record.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// A name that can't stand in a record.
    #[error(transparent)]
    Address(#[from] RecordError),
}

/// Key `rendezvous`: the servers to start from. Whether there must be one, the program knows.
pub fn rendezvous(written: Vec<Endpoint>) -> Result<Vec<Endpoint>, TooMany> {
    TooMany::check("rendezvous", written.len(), MAX_RENDEZVOUS)?;
    Ok(written)
}

/// Key `advertise`: where others reach this program, best first, for its own record.
pub fn advertise(written: &[Endpoint], kind: AddressKind) -> Result<Vec<Address>, AdvertiseError> {
    TooMany::check("addresses", written.len(), limits::ADDRESSES)?;
    let address =
        |(priority, endpoint): (u16, &Endpoint)| Ok(Address { priority, ..endpoint.to_address(kind)? });
    (0..).zip(written).map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: usize) -> Vec<Endpoint> {
        (0..count).map(|n| format!("https://r{n}.example:7400").parse().unwrap()).collect()
    }

    #[test]
    fn a_community_is_known_by_its_name() {
        let named = |name: &str| NetworkConfig { name: name.into() }.meant();
        assert_eq!(NetworkConfig::default().meant(), named("p2psb"));
        assert_ne!(named("other"), named("p2psb"));
        assert!(named("A B").unwrap_err().to_string().contains("\"A B\""));
    }

    #[test]
    fn lists_end_where_nobody_has_use_for_more() {
        assert_eq!(rendezvous(endpoints(MAX_RENDEZVOUS)).unwrap().len(), MAX_RENDEZVOUS);
        let error = rendezvous(endpoints(MAX_RENDEZVOUS + 1)).unwrap_err();
        assert_eq!(error.to_string(), "names 65 rendezvous, at most 64 are allowed");
        let error = advertise(&endpoints(limits::ADDRESSES + 1), AddressKind::Listen).unwrap_err();
        assert_eq!(error.to_string(), "names 17 addresses, at most 16 are allowed");
    }

    #[test]
    fn what_is_advertised_first_is_the_best_for_whoever_sorts() {
        let addresses = advertise(&endpoints(limits::ADDRESSES), AddressKind::Mapped).unwrap();
        assert!(addresses.is_sorted_by_key(|address| address.priority));
        assert_eq!(addresses[1].to_string(), "r1.example:7400 (mapped)");
        assert_eq!(addresses[1].priority, 1);
    }

    #[test]
    fn a_name_that_no_record_may_hold_is_not_advertised() {
        let endpoint: Endpoint = "https://a..b:1".parse().unwrap();
        let error = advertise(&[endpoint], AddressKind::Listen).unwrap_err();
        assert!(matches!(error, AdvertiseError::Address(_)), "{error}");
    }
}
