//! Presence: whether a peer is there, as far as is known, and how fresh that is.

use super::id::PeerId;
use super::record::{RecordError, Signed};
use super::time::UnixMillis;
use super::{PeerRecord, limits};
use crate::wire::common::v1 as wire;

pub use crate::wire::common::v1::{PresenceSource, PresenceState};

/// Of two states that are told of a peer, the higher one is to be believed: it is where it is most alive.
#[must_use]
pub const fn aliveness(state: PresenceState) -> u8 {
    match state {
        PresenceState::Online => 3,
        PresenceState::Suspect => 2,
        PresenceState::Offline => 1,
        PresenceState::Unspecified => 0,
    }
}

/// What is known of a peer's presence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// What is believed.
    pub state: PresenceState,
    /// When the peer was last heard by its home.
    pub last_seen: UnixMillis,
    /// Up to when the answering server's knowledge reaches.
    pub as_of: UnixMillis,
    /// What it rests on.
    pub source: PresenceSource,
    /// Who said so.
    pub home: Option<PeerId>,
}

impl Presence {
    /// The wire form.
    #[must_use]
    pub fn to_wire(&self) -> wire::Presence {
        wire::Presence {
            state: self.state as i32,
            last_seen_time: Some(self.last_seen.to_wire()),
            as_of_time: Some(self.as_of.to_wire()),
            source: self.source as i32,
            home: self.home.map(|h| h.to_wire()).unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::Presence> for Presence {
    type Error = RecordError;

    fn try_from(wire: wire::Presence) -> Result<Self, RecordError> {
        let time = |t: Option<prost_types::Timestamp>| {
            t.as_ref().and_then(UnixMillis::from_wire).unwrap_or_default()
        };
        let home = (!wire.home.is_empty()).then(|| PeerId::from_slice(&wire.home)).transpose();
        Ok(Self {
            state: PresenceState::try_from(wire.state).unwrap_or_default(),
            last_seen: time(wire.last_seen_time),
            as_of: time(wire.as_of_time),
            source: PresenceSource::try_from(wire.source).unwrap_or_default(),
            home: home.map_err(RecordError::malformed)?,
        })
    }
}

/// A peer as it was located: its verified record and what is known of its presence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedPeer {
    /// Signed by the peer.
    pub record: Signed<PeerRecord>,
    /// Stated by whoever answered.
    pub presence: Presence,
}

impl LocatedPeer {
    /// Whose it is.
    #[must_use]
    pub const fn peer_id(&self) -> PeerId {
        self.record.peer_id()
    }

    /// The wire form.
    #[must_use]
    pub fn to_wire(&self) -> wire::LocatedPeer {
        wire::LocatedPeer { record: Some(self.record.to_wire()), presence: Some(self.presence.to_wire()) }
    }
}

impl TryFrom<wire::LocatedPeer> for LocatedPeer {
    type Error = RecordError;

    fn try_from(wire: wire::LocatedPeer) -> Result<Self, RecordError> {
        let presence = wire.presence.ok_or_else(|| RecordError::malformed("no presence"))?;
        Ok(Self { record: Signed::verify_field(wire.record)?, presence: presence.try_into()? })
    }
}

/// How many results a query wants: 0 means `default`, more than `limits::PAGE_ITEMS` means that.
#[must_use]
pub fn page_size(asked: u32, default: usize) -> usize {
    match asked as usize {
        0 => default,
        n => n.min(limits::PAGE_ITEMS),
    }
}
