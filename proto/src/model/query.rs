//! Which providers of a service are wanted: its name, and what an offer has to meet.
//!
//! Promises: a [`ServiceQuery`] keeps the bounds of the contract; two that ask for the same, in whatever order, are equal and have
//! the same digest.

use bytes::Bytes;
use prost::Message as _;

use super::digest::{Digest, framed};
use super::name::{NameError, ServiceName};
use super::peer::PeerRecord;
use super::{excerpt, limits};
use crate::error::{Failure, Reason};
use crate::wire::common::v1 as wire;

const DOMAIN: &str = "p2psb/service-query/1";

/// What asks for something that can't be.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueryError {
    /// No name of a service.
    #[error("service: {0}")]
    Service(#[from] NameError),
    /// Too many filters.
    #[error("filters: {count} were given, at most {} are allowed", limits::FILTERS)]
    Filters {
        /// Given.
        count: usize,
    },
    /// A key that no attribute can have.
    #[error("filters: {key:?} is no key of an attribute: 1 to {} bytes", limits::ATTRIBUTE_KEY_BYTES)]
    Key {
        /// Its beginning.
        key: String,
    },
    /// Too many values.
    #[error("filters: {key:?} has {count} values, at most {} are allowed", limits::FILTER_VALUES)]
    Values {
        /// Of which filter.
        key: String,
        /// Given.
        count: usize,
    },
    /// A value that no attribute can have.
    #[error(
        "filters: a value of {key:?} has {size} bytes, at most {} are allowed",
        limits::ATTRIBUTE_VALUE_BYTES
    )]
    Value {
        /// Of which filter.
        key: String,
        /// Bytes.
        size: usize,
    },
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        Self::new(Reason::InvalidArgument, error.to_string())
    }
}

/// An attribute that an offer has to have, with one of these values; without any, with whatever value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Filter {
    key: String,
    /// In order, none twice.
    values: Vec<String>,
}

impl Filter {
    fn new(key: String, mut values: Vec<String>) -> Result<Self, QueryError> {
        if key.is_empty() || key.len() > limits::ATTRIBUTE_KEY_BYTES {
            return Err(QueryError::Key { key: excerpt(&key) });
        }
        if values.len() > limits::FILTER_VALUES {
            return Err(QueryError::Values { key, count: values.len() });
        }
        if let Some(long) = values.iter().find(|value| value.len() > limits::ATTRIBUTE_VALUE_BYTES) {
            return Err(QueryError::Value { key, size: long.len() });
        }
        values.sort_unstable();
        values.dedup();
        Ok(Self { key, values })
    }

    fn is_met_by(&self, key: &str, value: &str) -> bool {
        key == self.key && (self.values.is_empty() || self.values.iter().any(|wanted| wanted == value))
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceQuery {
    service: ServiceName,
    /// In order, none twice.
    filters: Vec<Filter>,
}

impl From<ServiceName> for ServiceQuery {
    /// Every provider of the service.
    fn from(service: ServiceName) -> Self {
        Self { service, filters: Vec::new() }
    }
}

impl ServiceQuery {
    /// What a request asks for.
    pub fn parse(service: &str, filters: Vec<wire::AttributeFilter>) -> Result<Self, QueryError> {
        if filters.len() > limits::FILTERS {
            return Err(QueryError::Filters { count: filters.len() });
        }
        let query = Self::from(service.parse::<ServiceName>()?);
        filters.into_iter().try_fold(query, |query, filter| query.having(filter.key, filter.values))
    }

    /// Of those only who has the attribute `key`, with one of `values`; with none: whatever its value.
    pub fn having(
        mut self,
        key: impl Into<String>,
        values: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Self, QueryError> {
        if self.filters.len() >= limits::FILTERS {
            return Err(QueryError::Filters { count: self.filters.len() + 1 });
        }
        self.filters.push(Filter::new(key.into(), values.into_iter().map(Into::into).collect())?);
        self.filters.sort_unstable();
        self.filters.dedup();
        Ok(self)
    }

    /// Of which service.
    #[must_use]
    pub const fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The filters as a request holds them.
    #[must_use]
    pub fn filters_to_wire(&self) -> Vec<wire::AttributeFilter> {
        let filter = |f: &Filter| wire::AttributeFilter { key: f.key.clone(), values: f.values.clone() };
        self.filters.iter().map(filter).collect()
    }

    /// Whether the peer says itself that it provides what is wanted.
    #[must_use]
    pub fn is_met_by(&self, record: &PeerRecord) -> bool {
        record.services.iter().filter(|offer| offer.name == self.service).any(|offer| {
            self.filters
                .iter()
                .all(|filter| offer.attributes.iter().any(|(key, value)| filter.is_met_by(key, value)))
        })
    }

    /// The same of the wire form of a record that was verified before; only its offers are decoded.
    #[must_use]
    pub fn is_met_by_stored(&self, record: &Bytes) -> bool {
        let Ok(record) = wire::SignedRecord::decode(record.clone()) else { return false };
        let Ok(said) = Offers::decode(record.payload) else { return false };
        said.services.iter().filter(|offer| offer.name == self.service.as_str()).any(|offer| {
            self.filters.iter().all(|filter| {
                offer.attributes.iter().any(|attribute| filter.is_met_by(&attribute.key, &attribute.value))
            })
        })
    }

    /// Whether every provider will do.
    #[must_use]
    pub fn is_for_all(&self) -> bool {
        self.filters.is_empty()
    }

    /// Names what is asked for.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut parts: Vec<&[u8]> = vec![self.service.as_str().as_bytes()];
        let counts: Vec<_> = self.filters.iter().map(|f| (f.values.len() as u64).to_le_bytes()).collect();
        for (filter, count) in self.filters.iter().zip(&counts) {
            parts.extend([filter.key.as_bytes(), count]);
            parts.extend(filter.values.iter().map(String::as_bytes));
        }
        Digest::of(&framed(DOMAIN, &parts))
    }
}

/// The services of a `PeerRecord`, whose other fields are passed over.
#[derive(Clone, PartialEq, prost::Message)]
struct Offers {
    #[prost(message, repeated, tag = "6")]
    services: Vec<wire::ServiceOffer>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::peer::ServiceOffer;
    use super::super::{Genesis, SecretKey, Signed, UnixMillis};
    use super::*;

    const T0: UnixMillis = UnixMillis(1_800_000_000_000);

    fn offer(name: &str, attributes: &[(&str, &str)]) -> ServiceOffer {
        let attributes = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ServiceOffer { name: name.parse().unwrap(), attributes }
    }

    fn record(services: Vec<ServiceOffer>) -> Signed<PeerRecord> {
        let record = PeerRecord {
            network: Genesis::open("test").unwrap().network_id(),
            seq: 1,
            issued: T0,
            expires: T0.plus(Duration::from_secs(60)),
            addresses: vec!["https://192.0.2.1:7430"; 2].into_iter().map(|_| address()).collect(),
            services,
            homes: vec![],
            endorsements: vec![],
        };
        Signed::sign(&record, &SecretKey::from_seed(&[1; 32])).unwrap()
    }

    fn address() -> super::super::Address {
        use super::super::{Address, AddressKind, Transport};
        Address::ip(([192, 0, 2, 1], 7430).into(), Transport::Tls, AddressKind::Listen)
    }

    /// Whether the query is met: by the value, and by what is stored of it, which must agree.
    #[track_caller]
    fn met(query: &ServiceQuery, record: &Signed<PeerRecord>) -> bool {
        let met = query.is_met_by(record.value());
        assert_eq!(query.is_met_by_stored(&record.to_wire().encode_to_vec().into()), met);
        met
    }

    fn query(filters: &[(&str, &[&str])]) -> ServiceQuery {
        let all = ServiceQuery::from("chat".parse::<ServiceName>().unwrap());
        filters.iter().fold(all, |query, (key, values)| query.having(*key, values.iter().copied()).unwrap())
    }

    #[test]
    fn every_filter_has_to_be_met_by_one_of_its_values() {
        let eu =
            record(vec![offer("chat", &[("region", "eu"), ("tier", "1"), ("lang", "de"), ("lang", "en")])]);
        for (filters, meets) in [
            (&[][..], true),
            (&[("region", &["eu"][..])], true),
            (&[("region", &["us", "eu"])], true),
            (&[("region", &["us"])], false),
            (&[("region", &["EU"])], false),
            (&[("Region", &["eu"])], false),
            (&[("region", &["e"])], false),
            (&[("region", &[])], true),
            (&[("zone", &[])], false),
            (&[("region", &["eu"]), ("tier", &["1", "2"])], true),
            (&[("region", &["eu"]), ("tier", &["2"])], false),
            (&[("lang", &["de"]), ("lang", &["en"])], true),
            (&[("lang", &["de"]), ("lang", &["fr"])], false),
        ] {
            assert_eq!(met(&query(filters), &eu), meets, "{filters:?}");
        }
    }

    #[test]
    fn one_offer_has_to_meet_them_all_and_it_must_be_of_the_service() {
        let both = query(&[("region", &["eu"]), ("tier", &["1"])]);
        let (region, tier) = (offer("chat", &[("region", "eu")]), offer("chat", &[("tier", "1")]));
        let other = offer("mail", &[("region", "eu"), ("tier", "1")]);
        assert!(!met(&both, &record(vec![region.clone(), tier, other.clone()])));
        assert!(!met(&query(&[]), &record(vec![other])));
        let whole = offer("chat", &[("tier", "1"), ("region", "eu")]);
        assert!(met(&both, &record(vec![region, whole])));
    }

    #[test]
    fn what_is_no_record_meets_nothing() {
        assert!(!query(&[]).is_met_by_stored(&Bytes::from_static(b"no record")));
    }

    #[test]
    fn order_and_repetition_mean_nothing() {
        let one = query(&[("a", &["1", "2"]), ("b", &[])]);
        let same = query(&[("b", &[]), ("a", &["2", "1", "2"]), ("b", &[])]);
        assert_eq!((&one, one.digest()), (&same, same.digest()));
        let parsed = ServiceQuery::parse("chat", one.filters_to_wire()).unwrap();
        assert_eq!(parsed, one);
        for other in [
            query(&[("a", &["1"]), ("b", &[])]),
            query(&[("a", &["1", "2"]), ("b", &[""])]),
            query(&[("a", &["1"]), ("a", &["2"]), ("b", &[])]),
            query(&[("a", &["1", "2", "b"])]),
            query(&[]),
        ] {
            assert_ne!(one.digest(), other.digest(), "{other:?}");
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let filter = |key: &str, values: Vec<String>| wire::AttributeFilter { key: key.into(), values };
        let parse = |filters| ServiceQuery::parse("chat", filters);
        let name = |n: usize| "k".repeat(n);
        assert!(parse(vec![filter(&name(63), vec![name(255); 16]); 8]).is_ok());
        assert!(matches!(parse(vec![filter("k", vec![]); 9]), Err(QueryError::Filters { count: 9 })));
        assert!(matches!(parse(vec![filter("", vec![])]), Err(QueryError::Key { .. })));
        assert!(matches!(parse(vec![filter(&name(64), vec![])]), Err(QueryError::Key { .. })));
        assert!(matches!(
            parse(vec![filter("k", vec![name(1); 17])]),
            Err(QueryError::Values { count: 17, .. })
        ));
        assert!(matches!(
            parse(vec![filter("k", vec![name(256)])]),
            Err(QueryError::Value { size: 256, .. })
        ));
        assert!(matches!(ServiceQuery::parse("No Name", vec![]), Err(QueryError::Service(_))));
    }
}
