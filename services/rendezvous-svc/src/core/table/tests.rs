//! What is newest stays, whoever brings it, and whoever brings something pays for it.

use p2psb_proto::model::PeerStatement;
use p2psb_proto::model::limits::{RECORD_LIFETIME, WITHDRAWAL_GRACE};
use proptest::prelude::*;

use super::*;
use crate::core::testing::{T0, item, peer, record, shares, withdrawal};

const HOUR: Duration = Duration::from_secs(3600);
const HERE: Bringer = Bringer::Peer(None);

fn table_of(most: usize) -> Table {
    Table::new(shares(most), shares(most))
}

fn table() -> Table {
    table_of(100)
}

/// So much later that the peer may say something else.
fn later() -> UnixMillis {
    T0.plus(CHANGE_INTERVAL)
}

fn from(ip: &str) -> Bringer {
    Bringer::Peer(Some(ip.parse().unwrap()))
}

#[test]
fn a_newer_record_replaces_an_older_one() {
    let mut table = table();
    assert_eq!(table.offer(item(&record(1, 10, &[])), HERE, T0), Ok(Merged::Changed));
    assert_eq!(table.offer(item(&record(1, 11, &[])), HERE, later()), Ok(Merged::Changed));
    assert_eq!(table.seq(&peer(1)), Some(11));
    assert_eq!(table.len(), 1);
}

#[test]
fn a_stale_record_is_refused_with_the_stored_one() {
    let mut table = table();
    let newest = item(&record(1, 11, &[]));
    let stored = newest.packed.encoded(newest.peer.key(), &newest.network);
    table.offer(newest, HERE, T0).unwrap();
    let error = table.offer(item(&record(1, 10, &[])), HERE, T0).unwrap_err();
    assert_eq!(error, TableError::Stale { seq: 10, stored_seq: 11, stored });
}

#[test]
fn two_truths_with_one_seq_are_refused_and_counted() {
    let mut table = table();
    table.offer(item(&record(1, 10, &[])), HERE, T0).unwrap();
    assert_eq!(table.offer(item(&record(1, 10, &[])), HERE, T0), Ok(Merged::Known));
    let error = table.offer(item(&record(1, 10, &["chat"])), HERE, T0).unwrap_err();
    assert!(matches!(error, TableError::Equivocation { seq: 10, .. }));
    assert_eq!(table.equivocations(), Equivocations { count: 1, last: Some(peer(1)) });
}

#[test]
fn a_record_counts_until_it_expires() {
    let mut table = table();
    table.offer(item(&record(1, 10, &["chat"])), HERE, T0).unwrap();
    let before = T0.plus(HOUR).minus(Duration::from_millis(1));
    assert!(table.valid(&peer(1), before).is_some());
    assert_eq!(table.providers("chat", None, before).count(), 1);
    assert!(table.valid(&peer(1), T0.plus(HOUR)).is_none());
    assert_eq!(table.providers("chat", None, T0.plus(HOUR)).count(), 0);
    assert_eq!(table.sweep(T0.plus(HOUR), 10), 1);
    assert_eq!(table.ledger.total(), 0);
    assert!(table.is_empty() && table.services.is_empty() && table.forgotten.first().is_none());
    assert!(table.places.after(None).next().is_none());
}

#[test]
fn a_withdrawn_record_cannot_come_back() {
    let mut table = table();
    let old = item(&record(1, 10, &["chat"]));
    table.offer(old.clone(), HERE, T0).unwrap();
    table.offer(item(&withdrawal(1, 11)), HERE, T0).unwrap();
    assert!(table.valid(&peer(1), T0).is_none());
    assert!(table.telling(&peer(1), T0).is_some(), "others are to hear of it");
    assert_eq!(table.providers("chat", None, T0).count(), 0);
    assert_eq!(table.merge(old.clone(), HERE, T0), Ok(Merged::Known));
    // Still so when the record would have expired, with the grace.
    let expired = T0.plus(HOUR);
    assert_eq!(table.sweep(expired, 10), 0);
    assert!(matches!(table.offer(old, HERE, expired), Err(TableError::Stale { .. })));
    assert_eq!(table.sweep(T0.plus(RECORD_LIFETIME + WITHDRAWAL_GRACE), 10), 1);
}

#[test]
fn an_older_record_with_a_longer_life_cannot_come_back() {
    let mut table = table();
    let mut short = item(&record(1, 11, &[]));
    short.expires = T0.plus(Duration::from_secs(60));
    short.keep = short.expires;
    let long = item(&record(1, 10, &[]));
    table.merge(long.clone(), HERE, T0).unwrap();
    table.merge(short, HERE, T0).unwrap();
    let later = T0.plus(Duration::from_secs(120));
    table.sweep(later, 10);
    assert!(matches!(table.offer(long, HERE, later), Err(TableError::Stale { .. })));
    assert!(table.valid(&peer(1), later).is_none());
}

#[test]
fn a_full_table_refuses_newcomers_but_replaces() {
    let mut table = table_of(2);
    table.offer(item(&record(1, 1, &[])), HERE, T0).unwrap();
    table.offer(item(&record(2, 1, &[])), HERE, T0).unwrap();
    let full = Err(TableError::Full(LimitReached { limit: "total", most: 2 }));
    assert_eq!(table.offer(item(&record(3, 1, &[])), HERE, T0), full);
    assert_eq!(table.offer(item(&record(2, 2, &[])), HERE, later()), Ok(Merged::Changed));
}

#[test]
fn one_network_cannot_fill_the_table_by_peers_that_come_and_go() {
    let mut few = shares(100);
    (few.peers.per_ip.0, few.peers.per_prefix.0) = (2, 3);
    let mut table = Table::new(few, shares(100));
    let mut offer = |n, seq, by, at| table.offer(item(&record(n, seq, &[])), by, at);
    let full = |limit, most| Err(TableError::Full(LimitReached { limit, most }));
    offer(1, 1, from("192.0.2.1"), T0).unwrap();
    offer(2, 1, from("192.0.2.1"), T0).unwrap();
    assert_eq!(offer(3, 1, from("192.0.2.1"), T0), full("ip", 2));
    offer(3, 1, from("192.0.2.2"), T0).unwrap();
    assert_eq!(offer(4, 1, from("192.0.2.3"), T0), full("prefix", 3));
    offer(4, 1, from("198.51.100.1"), T0).unwrap();
    assert_eq!(offer(4, 2, from("192.0.2.1"), later()), Ok(Merged::Changed), "its own is never refused");
    assert_eq!(offer(5, 1, from("198.51.100.1"), T0), Ok(Merged::Changed));
    let withdrawn = item(&withdrawal(1, 2));
    table.offer(withdrawn, from("192.0.2.1"), T0).unwrap();
    assert_eq!(table.offer(item(&record(6, 1, &[])), from("192.0.2.1"), T0), full("ip", 2));
    table.sweep(T0.plus(HOUR), 10);
    assert_eq!((table.len(), table.ledger.total()), (1, 1), "the withdrawal stays, and is paid for");
}

#[test]
fn one_member_cannot_fill_the_table_by_what_it_passes_on() {
    let few = Shares { per_member: (2, "member"), ..shares(100) };
    let mut table = Table::new(few, shares(100));
    let (one, other) = (Bringer::Member(peer(101)), Bringer::Member(peer(102)));
    table.merge(item(&record(1, 1, &[])), one, T0).unwrap();
    table.merge(item(&withdrawal(2, 2)), one, T0).unwrap();
    let full = Err(TableError::Full(LimitReached { limit: "member", most: 2 }));
    assert_eq!(table.merge(item(&withdrawal(3, 2)), one, T0), full);
    assert_eq!(table.merge(item(&record(4, 1, &[])), one, T0), full);
    table.merge(item(&record(4, 1, &[])), other, T0).unwrap();
    assert_eq!(table.merge(item(&withdrawal(4, 2)), one, T0), Ok(Merged::Changed), "it is known");
    // The peer itself says something new here: the member does not pay for it any more.
    table.offer(item(&record(1, 2, &[])), from("192.0.2.1"), later()).unwrap();
    table.merge(item(&record(5, 1, &[])), one, T0).unwrap();
}

#[test]
fn a_withdrawal_wins_over_an_older_record_that_comes_later_by_another_member() {
    let mut table = table();
    let (one, other) = (Bringer::Member(peer(101)), Bringer::Member(peer(102)));
    assert_eq!(table.merge(item(&withdrawal(1, 2)), one, T0), Ok(Merged::Changed));
    assert_eq!(table.merge(item(&record(1, 1, &[])), other, T0), Ok(Merged::Known));
    assert!(table.valid(&peer(1), T0).is_none());
}

#[test]
fn a_peers_own_withdrawal_of_what_is_not_here_takes_no_room() {
    let mut table = table();
    assert_eq!(table.offer(item(&withdrawal(1, 2)), HERE, T0), Ok(Merged::Known));
    assert!(table.is_empty());
    table.offer(item(&record(1, 1, &[])), HERE, T0).unwrap();
    let expired = T0.plus(HOUR);
    assert_eq!(table.offer(item(&withdrawal(1, 2)), HERE, expired), Ok(Merged::Known));
    assert_eq!(table.sweep(expired, 10), 1);
}

#[test]
fn the_own_record_and_those_of_members_need_no_room() {
    let mut table = table_of(1);
    table.offer(item(&record(1, 1, &[])), HERE, T0).unwrap();
    assert_eq!(table.merge(item(&record(2, 1, &["chat"])), Bringer::Backbone, T0), Ok(Merged::Changed));
    assert_eq!(table.put_own(item(&record(3, 1, &[])), T0), Ok(Merged::Changed));
    assert!(table.provides(&peer(2), "chat", T0) && !table.provides(&peer(3), "chat", T0));
    table.merge(item(&withdrawal(2, 2)), HERE, T0).unwrap();
    assert!(!table.provides(&peer(2), "chat", T0));
}

#[test]
fn an_own_record_out_of_the_future_is_replaced_when_the_clock_is_right_again() {
    let mut table = table();
    let ahead = T0.plus(CLOCK_SKEW + Duration::from_millis(1)).0;
    table.put_own(item(&record(1, ahead, &[])), T0).unwrap();
    assert_eq!(table.put_own(item(&record(1, T0.0, &[])), T0), Ok(Merged::Changed));
    assert_eq!(table.seq(&peer(1)), Some(T0.0));
    assert_eq!(table.put_own(item(&record(1, T0.0 - 1, &[])), T0), Ok(Merged::Known));
}

#[test]
fn what_is_known_outlives_a_stale_statement_that_was_refused() {
    let mut table = table();
    let mut short = item(&record(1, 11, &[]));
    short.expires = T0.plus(Duration::from_secs(60));
    short.keep = short.expires;
    let long = item(&record(1, 10, &[]));
    table.offer(short, HERE, T0).unwrap();
    assert!(matches!(table.offer(long.clone(), HERE, T0), Err(TableError::Stale { .. })));
    let later = T0.plus(Duration::from_secs(120));
    assert_eq!(table.sweep(later, 10), 0);
    assert!(matches!(table.offer(long, HERE, later), Err(TableError::Stale { .. })));
}

#[test]
fn a_peer_changes_what_it_says_once_a_second_but_may_withdraw_at_once() {
    let mut table = table();
    let at = |millis| T0.plus(Duration::from_millis(millis));
    let wait = |table: &Table, statement: &PeerStatement, millis| {
        let item = item(statement);
        table.known(&item.peer).and_then(|known| super::wait(known, &item, at(millis)))
    };
    assert_eq!(wait(&table, &record(1, 1, &[]), 0), None, "the first one");
    table.offer(item(&record(1, 1, &[])), HERE, T0).unwrap();
    assert_eq!(wait(&table, &record(1, 1, &[]), 0), None, "nothing would change");
    assert_eq!(wait(&table, &record(1, 2, &[]), 300), Some(Duration::from_millis(700)));
    let too_often = Err(TableError::TooOften { wait: Duration::from_millis(700) });
    assert_eq!(table.offer(item(&record(1, 2, &[])), HERE, at(300)), too_often);
    assert_eq!(wait(&table, &record(1, 2, &[]), 1000), None);
    assert_eq!(wait(&table, &withdrawal(1, 2), 300), None);
    table.offer(item(&withdrawal(1, 2)), HERE, at(300)).unwrap();
    for next in [&withdrawal(1, 3), &record(1, 3, &[])] {
        assert_eq!(wait(&table, next, 301), Some(Duration::from_millis(999)));
        assert_eq!(wait(&table, next, 0), None, "the clock was set back");
    }
}

#[test]
fn what_an_edge_passes_on_keeps_the_pace_of_its_peer_and_what_a_member_does_has_none() {
    let mut table = table();
    let at = |millis| T0.plus(Duration::from_millis(millis));
    table.merge_paced(item(&record(1, 1, &[])), HERE, T0).unwrap();
    let soon = Err(TableError::TooOften { wait: Duration::from_millis(600) });
    for next in [&record(1, 2, &[]), &record(1, 2, &["chat"])] {
        assert_eq!(table.merge_paced(item(next), HERE, at(400)), soon);
    }
    // Of two with one seq one wins, and whoever has the key makes as many as he likes.
    let mut same: Vec<Item> = ["a", "b", "c"].iter().map(|name| item(&record(1, 1, &[name]))).collect();
    same.sort_by_key(|one| one.digest);
    let first = table.known(&peer(1)).unwrap().digest();
    for one in same {
        let expected = if one.digest > first { soon.clone() } else { Ok(Merged::Known) };
        assert_eq!(table.merge_paced(one, HERE, at(400)), expected);
    }
    assert_eq!(table.merge_paced(item(&record(1, 1, &[])), HERE, at(400)), Ok(Merged::Known));
    assert_eq!(table.merge_paced(item(&withdrawal(1, 3)), HERE, at(400)), Ok(Merged::Changed));
    assert_eq!(table.merge(item(&record(1, 4, &[])), HERE, at(401)), Ok(Merged::Changed));
    assert_eq!(table.merge_paced(item(&record(1, 5, &[])), HERE, at(1401)), Ok(Merged::Changed));
}

#[test]
fn an_expired_statement_does_not_enter() {
    let mut table = table();
    let late = T0.plus(HOUR);
    assert!(matches!(table.merge(item(&record(1, 1, &[])), HERE, late), Err(TableError::Expired { .. })));
    let late = T0.plus(RECORD_LIFETIME + WITHDRAWAL_GRACE);
    assert!(matches!(table.merge(item(&withdrawal(1, 1)), HERE, late), Err(TableError::Expired { .. })));
    assert!(table.is_empty());
}

#[test]
fn providers_come_in_the_order_of_their_ids_and_continue_behind_one() {
    let mut table = table();
    for n in 1..=5 {
        table.offer(item(&record(n, 1, &["chat", "chat"])), HERE, T0).unwrap();
    }
    table.offer(item(&record(6, 1, &["other"])), HERE, T0).unwrap();
    let all: Vec<_> = table.providers("chat", None, T0).map(|(peer, _)| peer).collect();
    let mut sorted = all.clone();
    sorted.sort_unstable();
    assert_eq!((all.len(), &all), (5, &sorted));
    let rest: Vec<_> = table.providers("chat", Some(all[2]), T0).map(|(peer, _)| peer).collect();
    assert_eq!(rest, all[3..]);
    // A record without the service takes the peer out of the index.
    table.offer(item(&record(1, 2, &[])), HERE, later()).unwrap();
    assert_eq!(table.providers("chat", None, T0).count(), 4);
}

#[test]
fn a_claimed_place_stays_when_its_statement_goes() {
    let mut table = table();
    table.offer(item(&record(1, 1, &[])), HERE, T0).unwrap();
    let slot = table.claim(peer(1)).unwrap();
    assert_eq!(table.sweep(T0.plus(HOUR), 10), 1);
    assert_eq!((table.slot(&peer(1)), table.peer(slot), table.len()), (Some(slot), Some(peer(1)), 0));
    assert!(table.at(slot).is_none() && table.after(None).next().is_none());
    table.offer(item(&record(1, 2, &[])), HERE, T0).unwrap();
    assert_eq!(table.slot(&peer(1)), Some(slot));
    table.unclaim(slot);
    assert!(table.at(slot).is_some());
    table.sweep(T0.plus(HOUR), 10);
    assert_eq!(table.slot(&peer(1)), None);
}

#[test]
fn who_finds_no_room_has_no_place_either() {
    let mut table = table_of(1);
    table.offer(item(&record(1, 1, &[])), HERE, T0).unwrap();
    assert!(table.offer(item(&record(2, 1, &[])), HERE, T0).is_err());
    assert_eq!(table.slot(&peer(2)), None);
}

#[test]
fn an_entry_is_small() {
    assert!(size_of::<Option<(PeerId, Place)>>() <= 96, "{}", size_of::<Option<(PeerId, Place)>>());
}

fn statements() -> Vec<Item> {
    let mut items = Vec::new();
    for n in 1..=3 {
        for seq in 1..=3 {
            items.push(item(&record(n, seq, &[])));
            items.push(item(&record(n, seq, &["chat"])));
            items.push(item(&withdrawal(n, seq)));
        }
    }
    items
}

fn shown(table: &Table) -> Vec<(PeerId, u64, Digest, UnixMillis)> {
    let shown = |(slot, peer)| {
        let entry = table.at(slot).unwrap();
        (peer, entry.stated.seq, entry.digest(), entry.stated.keep())
    };
    let mut all: Vec<_> = table.after(None).map(shown).collect();
    all.sort_unstable();
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn merging_is_a_maximum_in_any_order_any_number_of_times(
        picks in proptest::collection::vec(0usize..27, 0..40),
        seed: u64,
    ) {
        let items = statements();
        let mut other = picks.clone();
        let mut rng = fastrand::Rng::with_seed(seed);
        rng.shuffle(&mut other);
        other.extend(picks.iter().take(5));
        let merge_all = |picks: &[usize]| {
            let mut table = table();
            for pick in picks {
                table.merge(items[*pick].clone(), HERE, T0).unwrap();
            }
            table
        };
        let (one, two) = (merge_all(&picks), merge_all(&other));
        prop_assert_eq!(shown(&one), shown(&two));
        let providers = |table: &Table| table.services.providers("chat", None).copied().collect::<Vec<_>>();
        prop_assert_eq!(providers(&one), providers(&two));
        prop_assert_eq!(one.ledger.total(), one.len());
    }
}
