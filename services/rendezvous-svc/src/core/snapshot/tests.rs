//! One life takes over what another one left, after gaps of any length and with clocks that were moved.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use p2psb_proto::model::UnixMillis;
use p2psb_proto::model::presence::{PresenceSource, PresenceState};

use super::*;
use crate::core::admission::Limits;
use crate::core::directory::{Capacity, NotLocated};
use crate::core::session::{Ending, Timing};
use crate::core::table::{Merged, TableError};
use crate::core::testing::{T0, Time, item, network, peer, record, shares, withdrawal};

const OWN: u8 = 200;
const MEMBER: u8 = 201;
const HEARTBEAT: Duration = Duration::from_secs(30);
/// The life before began so long before [`T0`].
const KNOWN_FOR: Duration = Duration::from_secs(5000);

fn directory() -> Directory {
    let timing = Timing { heartbeat: HEARTBEAT, registration: Duration::from_secs(300) };
    let capacity = Capacity { records: shares(100), services: shares(10), members: 10, edges: 10 };
    Directory::new(peer(OWN), timing, capacity)
}

fn admission(most: usize) -> Admission {
    Admission::new(Limits { total: (most, "total"), per_ip: (most, "ip"), per_prefix: (most, "prefix") })
}

fn source() -> IpAddr {
    [192, 0, 2, 1].into()
}

/// Peer 1 has a session, 2 is registered, 3 went at 40 s, 4 lost its stream, of 5 only the record is known, 6 withdrew; a member
/// is known.
fn before(t: Time) -> Directory {
    let mut d = directory();
    d.knowledge_since = T0.minus(KNOWN_FOR);
    for n in 1..=5 {
        d.table.offer(item(&record(n, 1, &["chat"])), Bringer::Peer(Some(source())), T0).unwrap();
    }
    d.table.offer(item(&record(6, 1, &[])), Bringer::Peer(None), T0).unwrap();
    d.table.offer(item(&withdrawal(6, 2)), Bringer::Peer(None), T0).unwrap();
    d.table.merge(item(&record(MEMBER, 1, &[SERVICE])), Bringer::Backbone, T0).unwrap();
    d.members.name(peer(MEMBER), None, t.at(0).mono);
    let proof = |n: u8| [n; 9];
    d.open(peer(1), 11, &proof(1), t.at(0).mono).unwrap();
    d.register(peer(2), 12, &proof(2), Some(source()), t.at(0).mono);
    for (n, ending) in [(3, Ending::Clean), (4, Ending::Lost)] {
        let opened = d.open(peer(n), 10 + u64::from(n), &proof(n), t.at(0).mono).unwrap().unwrap();
        d.close(&peer(n), opened.ticket, ending, t.at(40).mono);
    }
    d
}

/// All that is taken along, a few things at a time.
fn walk(directory: &Directory, most: usize, now: Now) -> Vec<Kept> {
    let (mut all, mut place) = (Vec::new(), Some(Place::default()));
    while let Some(at) = place {
        let (some, next) = directory.taken_along(at, most, now);
        all.extend(some);
        place = next;
    }
    all
}

fn head(directory: &Directory, begun: UnixMillis) -> Head {
    let knowledge_since = directory.knowledge_since;
    Head { network: network(), own: peer(OWN), begun, knowledge_since, is_last: true }
}

/// What the life at `now` makes of what the one before left at `begun`.
fn restored(begun: Now, now: Now) -> Result<(Directory, Admission, Restored), Useless> {
    let old = before(Time::start());
    restored_from(&old, begun, now)
}

fn restored_from(old: &Directory, begun: Now, now: Now) -> Result<(Directory, Admission, Restored), Useless> {
    let mut new =
        Restoring::new((directory(), admission(9)), peer(OWN), network(), &head(old, begun.wall), now)?;
    walk(old, 2, begun).into_iter().for_each(|kept| new.take(kept));
    Ok(new.finish())
}

/// At 50 s it is written; so many seconds later by the wall it is read.
fn after(seconds: i64) -> (Directory, Restored, Now) {
    let t = Time::start();
    let begun = t.at(50);
    let by = Duration::from_secs(seconds.unsigned_abs());
    let wall = if seconds < 0 { begun.wall.minus(by) } else { begun.wall.plus(by) };
    let now = Now { mono: begun.mono, wall };
    let (directory, _, counts) = restored_from(&before(t), begun, now).unwrap();
    (directory, counts, now)
}

fn state(directory: &Directory, n: u8, now: Now) -> PresenceState {
    directory.locate(&peer(n), now).unwrap().presence.state
}

#[test]
fn nothing_is_missed_however_little_is_taken_at_a_time() {
    let t = Time::start();
    let old = before(t);
    let whole = walk(&old, 1000, t.at(50));
    assert_eq!(whole.len(), 1 + 4 + 7);
    for most in [1, 2, 3, 5] {
        assert_eq!(walk(&old, most, t.at(50)), whole, "{most} at a time");
    }
}

#[test]
fn who_was_here_a_moment_ago_is_suspect_for_the_usual_time() {
    let (d, counts, now) = after(20);
    assert_eq!((counts.statements, counts.present, counts.gone, counts.dropped), (7, 3, 1, 0));
    for n in [1, 4] {
        let found = d.locate(&peer(n), now).unwrap().presence;
        assert_eq!((found.state, found.home), (PresenceState::Suspect, Some(peer(OWN))));
        let later = |seconds| Now { mono: now.mono + Duration::from_secs(seconds), ..now };
        assert_eq!(state(&d, n, later(29)), PresenceState::Suspect);
        assert_eq!(state(&d, n, later(30)), PresenceState::Offline);
    }
    assert_eq!(d.proof(&peer(1)).unwrap(), Bytes::from(vec![1; 9]), "others are convinced by it");
    let gone = d.locate(&peer(3), now).unwrap().presence;
    assert_eq!((gone.state, gone.last_seen), (PresenceState::Offline, T0.plus(Duration::from_secs(40))));
    assert_eq!(state(&d, 5, now), PresenceState::Offline);
    assert_eq!(d.knowledge_since, T0.minus(KNOWN_FOR));
}

#[test]
fn a_session_comes_back_only_by_a_newer_one() {
    let (mut d, _, now) = after(20);
    assert!(d.open(peer(1), 11, b"", now.mono).is_err(), "a replayed hello");
    assert!(d.open(peer(1), 12, b"", now.mono).unwrap().unwrap().replaced.is_none());
    assert_eq!(state(&d, 1, now), PresenceState::Online);
}

#[test]
fn a_server_that_dies_again_and_again_does_not_keep_the_silent_suspect() {
    let t = Time::start();
    let mut life = before(t);
    let mut lives = 0;
    for seconds in (60..).step_by(20) {
        let (begun, now) = (t.at(seconds), t.at(seconds + 10));
        life = restored_from(&life, begun, now).unwrap().0;
        if state(&life, 1, now) == PresenceState::Offline {
            break;
        }
        lives += 1;
    }
    assert!((2..10).contains(&lives), "{lives}");
}

#[test]
fn after_a_life_that_did_not_end_with_it_knowledge_begins_anew_however_short_the_gap_seems() {
    let t = Time::start();
    let (old, now) = (before(t), t.at(51));
    for (is_last, expected) in [(true, T0.minus(KNOWN_FOR)), (false, now.wall)] {
        let head = Head { is_last, ..head(&old, t.at(50).wall) };
        let mut new = Restoring::new((directory(), admission(9)), peer(OWN), network(), &head, now).unwrap();
        walk(&old, 2, t.at(50)).into_iter().for_each(|kept| new.take(kept));
        let (d, ..) = new.finish();
        assert_eq!((d.knowledge_since, state(&d, 1, now)), (expected, PresenceState::Suspect));
    }
}

#[test]
fn a_registration_holds_for_as_long_as_it_was_granted_and_frees_its_place() {
    let t = Time::start();
    let now = Now { mono: t.at(50).mono, wall: t.at(100).wall };
    let (mut d, registrations, _) = restored_from(&before(t), t.at(50), now).unwrap();
    assert_eq!(registrations.total(), 1);
    let found = d.locate(&peer(2), now).unwrap().presence;
    assert_eq!((found.state, found.source), (PresenceState::Online, PresenceSource::Registration));
    let end = now.mono + Duration::from_secs(200);
    assert_eq!(d.due(end - Duration::from_secs(1), 100).freed, []);
    let freed = d.due(end, 100).freed;
    assert_eq!(freed.iter().map(|freed| freed.0).collect::<Vec<_>>(), [Some(source())]);
}

#[test]
fn a_registration_without_room_or_time_is_only_remembered() {
    let t = Time::start();
    let (old, begun) = (before(t), t.at(50));
    let mut full =
        Restoring::new((directory(), admission(0)), peer(OWN), network(), &head(&old, begun.wall), begun)
            .unwrap();
    walk(&old, 9, begun).into_iter().for_each(|kept| full.take(kept));
    assert_eq!(state(&full.finish().0, 2, begun), PresenceState::Offline);
    let (d, _, now) = after(300);
    assert_eq!(state(&d, 2, now), PresenceState::Offline);
}

#[test]
fn after_a_long_gap_nobody_is_here_and_knowledge_begins_anew() {
    let (d, counts, now) = after(91);
    assert_eq!((counts.statements, counts.gone), (7, 3));
    for n in [1, 4] {
        let found = d.locate(&peer(n), now).unwrap().presence;
        assert_eq!((found.state, found.source), (PresenceState::Offline, PresenceSource::Session));
        assert_eq!(found.last_seen, T0);
    }
    assert_eq!(state(&d, 2, now), PresenceState::Online, "its lease still runs");
    assert_eq!(d.knowledge_since, now.wall);
    let (recent, _, now) = after(90);
    assert_eq!(
        (recent.knowledge_since, state(&recent, 1, now)),
        (T0.minus(KNOWN_FOR), PresenceState::Suspect)
    );
}

#[test]
fn what_expired_meanwhile_stays_behind_and_a_withdrawal_still_holds() {
    let (mut d, counts, now) = after(3600);
    assert_eq!((counts.statements, counts.dropped), (1, 6));
    assert!(matches!(d.locate(&peer(1), now), Err(NotLocated::Offline { last_seen, .. }) if last_seen == T0));
    assert!(matches!(d.locate(&peer(6), now), Err(NotLocated::Offline { .. })));
    let old = d.table.offer(item(&record(6, 1, &[])), Bringer::Peer(None), now.wall);
    assert!(matches!(old, Err(TableError::Stale { seq: 1, stored_seq: 2, .. })), "{old:?}");
}

#[test]
fn a_snapshot_in_which_nothing_counts_or_of_somebody_else_is_of_no_use() {
    let t = Time::start();
    let begun = t.at(50);
    let at = |by| Now { mono: begun.mono, wall: begun.wall.plus(by) };
    assert!(restored(begun, at(LONGEST_AGE)).is_ok());
    let late = restored(begun, at(LONGEST_AGE + Duration::from_millis(1))).err();
    assert_eq!(late, Some(Useless::TooOld { begun: begun.wall }));
    let old = head(&directory(), begun.wall);
    let new =
        |own: u8, network| Restoring::new((directory(), admission(1)), peer(own), network, &old, begun).err();
    assert_eq!(new(OWN + 1, network()), Some(Useless::Foreign(peer(OWN))));
    let other = NetworkId::from_slice(&[1; 32]).unwrap();
    assert_eq!(new(OWN, other), Some(Useless::Network(network())));
}

#[test]
fn a_clock_set_back_a_little_is_no_gap_and_set_back_a_lot_one_of_unknown_length() {
    let (d, counts, now) = after(-60);
    assert_eq!((counts.statements, state(&d, 1, now)), (7, PresenceState::Suspect), "all within the skew");
    assert_eq!(d.knowledge_since, T0.minus(KNOWN_FOR));
    assert!(d.locate(&peer(1), now).unwrap().presence.last_seen <= now.wall);

    let (d, counts, now) = after(-1000);
    assert_eq!((counts.statements, counts.present), (0, 0), "all were signed in what is now the future");
    assert_eq!(d.knowledge_since, now.wall);
    let Err(NotLocated::Offline { last_seen, .. }) = d.locate(&peer(1), now) else { panic!("it was here") };
    assert!(last_seen <= now.wall);
}

#[test]
fn charges_members_and_sequences_are_as_they_were() {
    let (mut d, _, now) = after(20);
    assert_eq!(d.table.known(&peer(1)).unwrap().brought_by(), Bringer::Peer(Some(source())));
    assert_eq!(d.table.known(&peer(MEMBER)).unwrap().brought_by(), Bringer::Backbone);
    assert!(d.members.contains(&peer(MEMBER)) && !d.members.contains(&peer(1)));
    assert_eq!(d.table.providers("chat", None, now.wall).count(), 5);
    let newer = d.table.offer(item(&record(1, 2, &[])), Bringer::Peer(None), now.wall);
    assert_eq!(newer, Ok(Merged::Changed), "nobody waits for what was said in another life");
}

#[test]
fn a_statement_that_has_to_outlive_an_older_one_still_does() {
    let t = Time::start();
    let mut old = directory();
    let short = |seq| crate::core::testing::record_for(1, seq, Duration::from_secs(600));
    old.table.offer(item(&record(1, 1, &[])), Bringer::Peer(None), T0).unwrap();
    old.table.offer(item(&short(2)), Bringer::Peer(None), T0.plus(Duration::from_secs(2))).unwrap();
    let begun = t.at(50);
    let (mut d, _, _) = restored_from(&old, begun, begun).unwrap();
    let later = T0.plus(Duration::from_secs(700));
    d.table.sweep(later, 100);
    let back = d.table.merge(item(&record(1, 1, &[])), Bringer::Backbone, later);
    assert_eq!(back, Ok(Merged::Known), "the older one, which lives longer, does not come back");
}

#[test]
fn things_that_are_no_statements_are_dropped() {
    let t = Time::start();
    let old = directory();
    let mut new =
        Restoring::new((directory(), admission(1)), peer(OWN), network(), &head(&old, T0), t.at(0)).unwrap();
    let bytes = Bytes::from_static(b"no record");
    new.take(Kept::Statement { bytes, keep: UnixMillis(u64::MAX), brought_by: Bringer::Own });
    new.take(Kept::Member(peer(1)));
    let (d, _, counts) = new.finish();
    assert_eq!((counts.dropped, d.table.len(), d.members.contains(&peer(1))), (1, 0, false));
}
