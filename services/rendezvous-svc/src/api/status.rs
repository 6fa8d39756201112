//! Errors on their way to a caller: each of the core's errors has its stable reason here, and nowhere else.

use std::time::Duration;

use p2psb_proto::error::{Failure, Reason};

use crate::backbone::trust::TrustError;
use crate::convert;
use crate::core::admission::LimitReached;
use crate::core::challenge::ChallengeExpired;
use crate::core::confirm::TooMany;
use crate::core::directory::{INCOMPLETE_RETRY, NotLocated, OFFLINE_RETRY, UNKNOWN_RETRY};
use crate::core::members::LinkRefused;
use crate::core::reconnect;
use crate::core::session::NotNewer;
use crate::core::table::TableError;

/// After how long a full server may have room again.
const FULL_RETRY: Duration = Duration::from_secs(60);
/// After how long a server that stops may be back.
const DRAINING_RETRY: Duration = Duration::from_secs(2);
/// A peer that lost against a newer session of its own does not come back by itself for this long.
const REPLACED_RETRY: Duration = Duration::from_secs(60);

impl From<TableError> for Failure {
    fn from(error: TableError) -> Self {
        let text = error.to_string();
        // A stored record that could not be decoded would be missed, not needed.
        let attached = |failure: Self, stored| match convert::signed(&stored) {
            Ok(stored) => failure.attach(stored),
            Err(_) => failure,
        };
        match error {
            TableError::Stale { stored_seq, stored, .. } => {
                attached(Self::new(Reason::RecordStale, text).with("stored_seq", stored_seq), stored)
            }
            TableError::Equivocation { stored, .. } => {
                attached(Self::new(Reason::RecordEquivocation, text), stored)
            }
            TableError::Expired { .. } => Self::new(Reason::RecordExpired, text),
            TableError::TooOften { wait } => {
                Self::new(Reason::LimitExceeded, text).with("limit", "record_changes").retry_after(wait)
            }
            TableError::Full(reached) => full(reached),
        }
    }
}

/// A message is none of the contract.
pub(crate) fn unreadable(why: &impl std::fmt::Display) -> tonic::Status {
    Failure::new(Reason::InvalidArgument, format!("a message can't be read: {why}")).into()
}

/// There is no room.
pub(crate) fn full(reached: LimitReached) -> Failure {
    Failure::new(Reason::LimitExceeded, reached.to_string())
        .with("limit", reached.limit)
        .retry_after(apart(FULL_RETRY))
}

impl From<TooMany> for Failure {
    fn from(error: TooMany) -> Self {
        Self::new(Reason::LimitExceeded, error.to_string()).with("limit", error.limit).retry_after(error.wait)
    }
}

impl From<ChallengeExpired> for Failure {
    fn from(error: ChallengeExpired) -> Self {
        Self::new(Reason::ChallengeExpired, error.to_string())
    }
}

impl From<NotNewer> for Failure {
    fn from(error: NotNewer) -> Self {
        Self::new(Reason::SessionReplaced, error.to_string())
            .with("session_seq", error.current)
            .retry_after(apart(REPLACED_RETRY))
    }
}

impl From<NotLocated> for Failure {
    fn from(error: NotLocated) -> Self {
        let text = error.to_string();
        match error {
            NotLocated::Unknown { since, .. } => Self::new(Reason::PeerUnknown, text)
                .with("knowledge_since", since)
                .retry_after(apart(UNKNOWN_RETRY)),
            NotLocated::Offline { last_seen, .. } => Self::new(Reason::PeerOffline, text)
                .with("last_seen_time", last_seen)
                .retry_after(apart(OFFLINE_RETRY)),
        }
    }
}

impl From<LinkRefused> for Failure {
    fn from(error: LinkRefused) -> Self {
        let failure = Self::new(
            match error {
                LinkRefused::Own | LinkRefused::Duplicate => Reason::LinkDuplicate,
                LinkRefused::Full { .. } => Reason::LimitExceeded,
            },
            error.to_string(),
        );
        match error {
            LinkRefused::Full { .. } => failure.with("limit", "members").retry_after(apart(FULL_RETRY)),
            LinkRefused::Own | LinkRefused::Duplicate => failure,
        }
    }
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        match error {
            TrustError::Proof(error) => error.into(),
            TrustError::Untrusted { .. } => Self::new(Reason::BridgeUntrusted, error.to_string()),
        }
    }
}

/// The session was replaced by a newer one.
pub(crate) fn session_replaced() -> Failure {
    Failure::new(Reason::SessionReplaced, "this peer opened a newer session here; is its key used twice?")
        .retry_after(apart(REPLACED_RETRY))
}

/// The server stops.
pub(crate) fn draining() -> Failure {
    Failure::new(Reason::Draining, "this rendezvous is stopping; use another one")
        .retry_after(apart(DRAINING_RETRY))
}

/// Not enough of those could be asked that ought to know.
pub(crate) fn incomplete(text: impl Into<String>) -> Failure {
    Failure::new(Reason::LookupIncomplete, text).retry_after(apart(INCOMPLETE_RETRY))
}

/// At least this long: those who are refused together are not to come back together.
fn apart(pause: Duration) -> Duration {
    reconnect::apart(pause, fastrand::f64())
}

/// An id in a request is none.
pub(crate) fn not_an_id(field: &str, error: &p2psb_proto::model::id::IdError) -> Failure {
    Failure::new(Reason::InvalidArgument, format!("{field}: {error}"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use p2psb_proto::error::{fact_of, reason_of, record_of, retry_after_of};
    use p2psb_proto::model::UnixMillis;
    use tonic::Status;

    use super::*;
    use crate::core::ledger::Bringer;
    use crate::core::testing::{T0, item, peer, record, shares};

    fn status(error: impl Into<Failure>) -> Status {
        error.into().into_status()
    }

    #[test]
    fn a_stale_record_is_answered_with_the_stored_one() {
        let statement = record(1, 7, &[]);
        let mut table = crate::core::table::Table::new(shares(9), shares(9));
        let mut offer = |statement| table.offer(item(statement), Bringer::Peer(None), T0);
        offer(&statement).unwrap();
        let error = offer(&record(1, 6, &[])).unwrap_err();
        let status = status(error);
        assert_eq!(reason_of(&status), Some(Reason::RecordStale));
        assert_eq!(record_of(&status), Some(statement.to_wire()));
        assert_eq!(fact_of(&status, "stored_seq").as_deref(), Some("7"));
    }

    #[test]
    fn every_limit_is_named_and_says_when_to_come_back() {
        for status in [
            status(TableError::Full(LimitReached { limit: "limits.records", most: 1 })),
            full(LimitReached { limit: "limits.sessions", most: 1 }).into_status(),
            status(TableError::TooOften { wait: Duration::from_millis(300) }),
            status(LinkRefused::Full { limit: 1 }),
            status(TooMany { limit: "dials_per_peer", most: 1, wait: Duration::from_secs(60) }),
        ] {
            assert_eq!(reason_of(&status), Some(Reason::LimitExceeded));
            assert!(fact_of(&status, "limit").is_some() && retry_after_of(&status).is_some());
        }
    }

    #[test]
    fn those_who_are_told_together_to_come_again_do_not_come_together() {
        let unknown = || NotLocated::Unknown { peer: peer(1), since: UnixMillis(0) }.into();
        let offline = || NotLocated::Offline { peer: peer(1), last_seen: UnixMillis(0) }.into();
        let not_newer = || NotNewer { offered: 1, current: 2 }.into();
        let full_members = || LinkRefused::Full { limit: 1 }.into();
        let kinds: [(Duration, &dyn Fn() -> Failure); 8] = [
            (UNKNOWN_RETRY, &unknown),
            (OFFLINE_RETRY, &offline),
            (INCOMPLETE_RETRY, &|| incomplete("")),
            (REPLACED_RETRY, &session_replaced),
            (REPLACED_RETRY, &not_newer),
            (DRAINING_RETRY, &draining),
            (FULL_RETRY, &|| full(LimitReached { limit: "limits.sessions", most: 1 })),
            (FULL_RETRY, &full_members),
        ];
        for (pause, failure) in kinds {
            let pauses: Vec<Duration> =
                (0..100).map(|_| retry_after_of(&failure().into_status()).unwrap()).collect();
            assert!(pauses.iter().all(|one| (pause..=pause * 3 / 2).contains(one)), "{pauses:?}");
            let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
            // That a hundred lie in a fifth of the span by chance happens once in 10^60.
            assert!(*most - *least > pause / 10, "{pauses:?}");
        }
    }

    #[test]
    fn each_error_has_its_reason() {
        for (status, reason) in [
            (status(TableError::Equivocation { seq: 1, stored: Bytes::new() }), Reason::RecordEquivocation),
            (status(TableError::Expired { expired: UnixMillis(0) }), Reason::RecordExpired),
            (status(ChallengeExpired), Reason::ChallengeExpired),
            (status(NotNewer { offered: 1, current: 2 }), Reason::SessionReplaced),
            (status(NotLocated::Unknown { peer: peer(1), since: UnixMillis(0) }), Reason::PeerUnknown),
            (status(NotLocated::Offline { peer: peer(1), last_seen: UnixMillis(0) }), Reason::PeerOffline),
            (status(LinkRefused::Duplicate), Reason::LinkDuplicate),
            (status(TrustError::Untrusted { peer: peer(1) }), Reason::BridgeUntrusted),
        ] {
            assert_eq!(reason_of(&status), Some(reason));
        }
    }
}
