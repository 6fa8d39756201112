//! The start of every stream: versions, features, clocks, community.

use std::time::Duration;

use super::id::{IdError, PeerId};
use super::limits;
use super::network::NetworkId;
use super::time::UnixMillis;
use crate::error::{Failure, Reason};
use crate::wire::common::v1 as wire;

/// Oldest protocol version that this code speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// Newest protocol version that this code speaks.
pub const PROTOCOL_MAX: u32 = 1;
/// Optional features that this code knows. None is assigned yet.
pub const FEATURES: &[u32] = &[];

/// What the other end said of itself. Its id is a claim until it is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Highest version both ends speak.
    pub protocol: u32,
    /// Features both ends know.
    pub features: Vec<u32>,
    /// Program and version, for people.
    pub software: String,
    /// Its clock minus ours, in milliseconds.
    pub skew_millis: i64,
    /// Who it says it is.
    pub peer: PeerId,
}

/// Why two programs can't go on.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum HelloError {
    /// No hello where one must be.
    #[error("a hello is needed first")]
    Missing,
    /// No version in common.
    #[error(
        "the other end speaks protocol {min} to {max}, this one {PROTOCOL_MIN} to {PROTOCOL_MAX}; update the older one"
    )]
    Protocol {
        /// Oldest of the other end.
        min: u32,
        /// Newest of the other end.
        max: u32,
    },
    /// A required feature is unknown here.
    #[error("the other end requires feature {0}, which this version does not know; update it")]
    Feature(u32),
    /// Clocks differ by more than 5 min.
    #[error("the clocks differ by {seconds} s, at most 300 are tolerated; set the clock (here it is {now})")]
    ClockSkew {
        /// How far the other clock is ahead.
        seconds: i64,
        /// Clock of this end.
        now: UnixMillis,
    },
    /// Another community.
    #[error("the other end belongs to network {found}, this one to {expected}")]
    Network {
        /// Here.
        expected: NetworkId,
        /// There.
        found: NetworkId,
    },
    /// Lists or texts too long, ids that are none.
    #[error("the hello is malformed: {0}")]
    Malformed(String),
}

impl From<IdError> for HelloError {
    fn from(error: IdError) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl HelloError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Missing => Reason::UnexpectedMessage,
            Self::Protocol { .. } => Reason::ProtocolUnsupported,
            Self::Feature(_) => Reason::FeatureRequired,
            Self::ClockSkew { .. } => Reason::ClockSkew,
            Self::Network { .. } => Reason::NetworkMismatch,
            Self::Malformed(_) => Reason::InvalidArgument,
        }
    }
}

impl From<HelloError> for Failure {
    fn from(error: HelloError) -> Self {
        let failure = Self::new(error.reason(), error.to_string());
        match error {
            HelloError::ClockSkew { now, .. } => failure.with("server_time", now),
            _ => failure,
        }
    }
}

impl Hello {
    /// Our own hello, for the wire.
    #[must_use]
    pub fn own(network: NetworkId, peer: PeerId, software: &str, now: UnixMillis) -> wire::Hello {
        wire::Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            features: FEATURES.to_vec(),
            required_features: Vec::new(),
            software: software.chars().take(limits::SOFTWARE_BYTES / 4).collect(),
            time: Some(now.to_wire()),
            network_id: network.to_wire(),
            peer_id: peer.to_wire(),
        }
    }

    /// Checks the other end's hello against ours.
    pub fn accept(
        wire: Option<wire::Hello>,
        network: &NetworkId,
        now: UnixMillis,
    ) -> Result<Self, HelloError> {
        let wire = wire.ok_or(HelloError::Missing)?;
        let (min, max) = (wire.protocol_min, wire.protocol_max);
        if min > max || max < PROTOCOL_MIN || min > PROTOCOL_MAX {
            return Err(HelloError::Protocol { min, max });
        }
        if wire.features.len().max(wire.required_features.len()) > limits::FEATURES {
            return Err(HelloError::Malformed("too many features".into()));
        }
        if wire.software.len() > limits::SOFTWARE_BYTES {
            return Err(HelloError::Malformed("the software text is longer than 64 bytes".into()));
        }
        if let Some(unknown) = wire.required_features.iter().find(|f| !FEATURES.contains(f)) {
            return Err(HelloError::Feature(*unknown));
        }
        let found = NetworkId::from_slice(&wire.network_id)?;
        if found != *network {
            return Err(HelloError::Network { expected: *network, found });
        }
        let theirs = wire
            .time
            .as_ref()
            .and_then(UnixMillis::from_wire)
            .ok_or_else(|| HelloError::Malformed("no time".into()))?;
        let skew_millis = signed_difference(theirs, now);
        if Duration::from_millis(skew_millis.unsigned_abs()) > limits::CLOCK_SKEW {
            return Err(HelloError::ClockSkew { seconds: skew_millis / 1000, now });
        }
        Ok(Self {
            protocol: max.min(PROTOCOL_MAX),
            features: wire.features.into_iter().filter(|f| FEATURES.contains(f)).collect(),
            software: wire.software,
            skew_millis,
            peer: PeerId::from_slice(&wire.peer_id)?,
        })
    }
}

fn signed_difference(a: UnixMillis, b: UnixMillis) -> i64 {
    let clamp = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
    clamp(a.0).saturating_sub(clamp(b.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Genesis;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn network() -> NetworkId {
        Genesis::open("test").unwrap().network_id()
    }

    fn own() -> wire::Hello {
        Hello::own(network(), PeerId::from_slice(&[1; 33]).unwrap(), "test/1", NOW)
    }

    fn accept(change: impl FnOnce(&mut wire::Hello)) -> Result<Hello, HelloError> {
        let mut hello = own();
        change(&mut hello);
        Hello::accept(Some(hello), &network(), NOW)
    }

    #[test]
    fn two_of_the_same_version_understand_each_other() {
        let hello = accept(|_| ()).unwrap();
        assert_eq!((hello.protocol, hello.skew_millis, hello.software.as_str()), (1, 0, "test/1"));
    }

    #[test]
    fn a_newer_end_that_still_speaks_our_version_is_accepted() {
        assert_eq!(accept(|h| (h.protocol_max, h.features) = (9, vec![77])).unwrap().protocol, 1);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert_eq!(Hello::accept(None, &network(), NOW), Err(HelloError::Missing));
        assert!(matches!(
            accept(|h| (h.protocol_min, h.protocol_max) = (2, 3)),
            Err(HelloError::Protocol { .. })
        ));
        assert_eq!(accept(|h| h.required_features = vec![5]), Err(HelloError::Feature(5)));
        assert!(matches!(accept(|h| h.features = vec![0; 65]), Err(HelloError::Malformed(_))));
        let other = Genesis::open("other").unwrap().network_id();
        assert!(matches!(accept(|h| h.network_id = other.to_wire()), Err(HelloError::Network { .. })));
        for skew in [-301_000i64, 301_000] {
            let time = UnixMillis(NOW.0.checked_add_signed(skew).unwrap());
            assert!(matches!(accept(|h| h.time = Some(time.to_wire())), Err(HelloError::ClockSkew { .. })));
        }
    }
}
