//! What one who was asked says, and what it is worth. Pure.
//!
//! Invariant: a [`Word::Found`] is a record that the peer signed that is looked for, of this network, whose time has come and is not over.
//! Whoever answers is trusted for freshness only, and not for one that lies in the future.

use std::time::Duration;

use p2psb_proto::error::{Reason, fact_of, reason_of, retry_after_of};
use p2psb_proto::model::limits::CLOCK_SKEW;
use p2psb_proto::model::presence::LocatedPeer;
use p2psb_proto::model::{Digest, NetworkId, PeerId, RecordError, UnixMillis};
use p2psb_proto::wire::common::v1 as wire;
use tonic::{Code, Status};

/// Who began to know less than that ago may have to learn of a peer still.
const SETTLED: Duration = Duration::from_secs(60);
/// Longest text of an answer that is kept.
const MAX_TEXT: usize = 200;

/// An answer that no honest one gives.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Lie {
    /// It is about somebody else.
    #[error("answered with the record of {0}")]
    OtherPeer(PeerId),
    /// The record is forged, damaged, over, or of another network.
    #[error("answered with a record that does not count: {0}")]
    Record(RecordError),
}

/// What one who was asked says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Here is the peer.
    Found(Box<LocatedPeer>),
    /// It was never seen there.
    Unknown {
        /// How far back its knowledge reaches, if it says so.
        since: Option<UnixMillis>,
        /// Whether that is long enough to believe it.
        settled: bool,
        /// When to ask again.
        retry_after: Option<Duration>,
    },
    /// It was seen, but no record of it is valid any more.
    Offline {
        /// When it was seen last.
        last_seen: Option<UnixMillis>,
        /// When to ask again.
        retry_after: Option<Duration>,
    },
    /// Something untrue.
    Lied(Lie),
    /// It does not answer now.
    Refused {
        /// Why, as it says.
        detail: String,
        /// When it may.
        retry_after: Option<Duration>,
    },
    /// A record whose time has not come by the clock here. That is no fault of whoever passes it on.
    Early(RecordError),
    /// The call broke.
    Failed(String),
    /// Nothing, for as long as it had.
    TimedOut,
}

impl Word {
    /// What an answer about `peer` is worth at `now`.
    pub(crate) fn of(
        peer: &PeerId,
        network: &NetworkId,
        now: UnixMillis,
        answer: Result<Option<wire::LocatedPeer>, Status>,
    ) -> Self {
        match answer {
            Ok(told) => verified(peer, network, now, told)
                .map_or_else(|word| word, |located| Self::Found(Box::new(located))),
            Err(status) => Self::of_status(&status, now),
        }
    }

    fn of_status(status: &Status, now: UnixMillis) -> Self {
        let time = |name| fact_of(status, name).and_then(|text| UnixMillis::parse(&text));
        let retry_after = retry_after_of(status);
        let detail = || status.message().chars().take(MAX_TEXT).collect::<String>();
        match reason_of(status) {
            Some(Reason::PeerUnknown) => {
                let since = time("knowledge_since");
                let settled = since.is_none_or(|since| now.since(since) >= SETTLED);
                Self::Unknown { since, settled, retry_after }
            }
            Some(Reason::PeerOffline) => {
                Self::Offline { last_seen: time("last_seen_time").map(|seen| seen.min(now)), retry_after }
            }
            _ if status.code() == Code::DeadlineExceeded => Self::TimedOut,
            _ if retry_after.is_some() => Self::Refused { detail: detail(), retry_after },
            _ => Self::Failed(detail()),
        }
    }
}

/// Only what the peer itself signed, and only while it counts; else what the answer is worth. Clocks differ, and a record may run out
/// on its way: whoever passes on what is over, or has not begun, by some minutes does not lie.
fn verified(
    peer: &PeerId,
    network: &NetworkId,
    now: UnixMillis,
    told: Option<wire::LocatedPeer>,
) -> Result<LocatedPeer, Word> {
    let lied = |error| Word::Lied(Lie::Record(error));
    let told = told.ok_or(lied(RecordError::Missing))?;
    let mut located = LocatedPeer::try_from(told).map_err(lied)?;
    if located.peer_id() != *peer {
        return Err(Word::Lied(Lie::OtherPeer(located.peer_id())));
    }
    located.presence.as_of = located.presence.as_of.min(now);
    located.presence.last_seen = located.presence.last_seen.min(now);
    let record = located.record.value();
    match record.check(network, now) {
        Ok(()) => Ok(located),
        Err(RecordError::Expired { .. }) if record.expires.plus(CLOCK_SKEW) > now => {
            Err(Word::Offline { last_seen: Some(located.presence.last_seen), retry_after: None })
        }
        Err(error @ (RecordError::ClockSkew { .. } | RecordError::SeqAhead { .. })) => {
            Err(Word::Early(error))
        }
        Err(error) => Err(lied(error)),
    }
}

/// Of two answers the one with the newer record counts, of equal records the fresher one.
pub(crate) fn rank(peer: &LocatedPeer) -> ((u64, Digest), UnixMillis) {
    (version(peer), peer.presence.as_of)
}

/// The newer of two records has the higher one.
pub(crate) fn version(peer: &LocatedPeer) -> (u64, Digest) {
    (peer.record.value().seq, peer.record.digest())
}

#[cfg(test)]
mod tests {
    use p2psb_proto::error::Failure;

    use super::*;
    use crate::walk::testing::{NOW, located, network, peer};

    fn word(answer: Result<Option<wire::LocatedPeer>, Status>) -> Word {
        Word::of(&peer(1), &network(), NOW, answer)
    }

    fn lie(told: Option<wire::LocatedPeer>) -> Lie {
        match word(Ok(told)) {
            Word::Lied(lie) => lie,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_the_peer_signed_counts_and_only_in_its_time() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        let good = located(1, 7, NOW.minus(minute), hour);
        assert_eq!(word(Ok(Some(good.to_wire()))), Word::Found(Box::new(good.clone())));

        assert_eq!(lie(None), Lie::Record(RecordError::Missing));
        assert_eq!(lie(Some(located(2, 7, NOW.minus(minute), hour).to_wire())), Lie::OtherPeer(peer(2)));
        let over = located(1, 7, NOW.minus(hour + CLOCK_SKEW), hour);
        assert!(matches!(lie(Some(over.to_wire())), Lie::Record(RecordError::Expired { .. })));
        let mut forged = good.to_wire();
        forged.record.as_mut().unwrap().signature = vec![7; 64].into();
        assert_eq!(lie(Some(forged)), Lie::Record(RecordError::Signature));
        let other = p2psb_proto::model::Genesis::open("other").unwrap().network_id();
        let elsewhere = Word::of(&peer(1), &other, NOW, Ok(Some(good.to_wire())));
        assert!(matches!(elsewhere, Word::Lied(Lie::Record(RecordError::Network { .. }))));
    }

    #[test]
    fn clocks_differ_and_nobody_lies_by_that() {
        let hour = Duration::from_secs(3600);
        let over = located(1, 7, NOW.minus(hour), hour);
        let last_seen = Some(over.presence.last_seen);
        assert_eq!(word(Ok(Some(over.to_wire()))), Word::Offline { last_seen, retry_after: None });
        let early = located(1, 7, NOW.plus(hour), hour);
        let early = word(Ok(Some(early.to_wire())));
        assert!(matches!(early, Word::Early(RecordError::ClockSkew { .. })), "{early:?}");
    }

    #[test]
    fn nobody_knows_the_future() {
        let mut told = located(1, 7, NOW, Duration::from_secs(60));
        told.presence.as_of = NOW.plus(Duration::from_secs(900));
        told.presence.last_seen = told.presence.as_of;
        let Word::Found(found) = word(Ok(Some(told.to_wire()))) else { panic!("it is true") };
        assert_eq!((found.presence.as_of, found.presence.last_seen), (NOW, NOW));
    }

    #[test]
    fn one_that_began_a_moment_ago_is_not_sure_that_it_knows_no_peer() {
        let settled = |since: UnixMillis| {
            let failure = Failure::new(Reason::PeerUnknown, "unknown").with("knowledge_since", since);
            match word(Err(failure.into_status())) {
                Word::Unknown { settled, .. } => settled,
                other => panic!("{other:?}"),
            }
        };
        assert!(!settled(NOW));
        assert!(!settled(NOW.plus(Duration::from_secs(300))), "its clock is ahead");
        assert!(settled(NOW.minus(SETTLED)));
    }

    #[test]
    fn every_status_has_its_meaning() {
        let retry_after = Some(Duration::from_secs(3));
        let said = |reason, after: Option<Duration>| {
            let failure = Failure::new(reason, "as it is").with("last_seen_time", NOW);
            word(Err(Failure { retry_after: after, ..failure }.into_status()))
        };
        // A moment travels to the second.
        let last_seen = Some(UnixMillis(NOW.0 / 1000 * 1000));
        assert_eq!(said(Reason::PeerOffline, retry_after), Word::Offline { last_seen, retry_after });
        let detail = "as it is".to_owned();
        assert_eq!(said(Reason::Draining, retry_after), Word::Refused { detail, retry_after });
        assert_eq!(said(Reason::Unreachable, None), Word::Failed("as it is".into()));
        assert_eq!(word(Err(Status::deadline_exceeded("late"))), Word::TimedOut);
        let Word::Failed(text) = word(Err(Status::internal("x".repeat(9999)))) else { panic!("it failed") };
        assert_eq!(text.len(), MAX_TEXT);
    }
}
