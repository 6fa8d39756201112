//! The newest statement of each peer: its record, or its withdrawal.
//!
//! Invariants:
//! - A statement is only ever replaced by one of a higher `(seq, digest)`, so merging is a maximum: in any order, any number
//!   of times, the same statements lead to the same table. Only [`Table::put_own`] may go back.
//! - An entry is remembered until every statement of its peer that was seen has expired, so that no older one can come back;
//!   it is *valid* only until its own expiry, and a withdrawal never is.
//! - Every entry is charged to whoever brought it, until it is forgotten; replacing a statement never needs room.
//! - The index of services knows exactly the offers of the entries.
//!
//! A withdrawal takes room like a record. One of a peer that nobody knows is kept only when a member brings it: an older record
//! may be on its way here by another member, and has to find it. So these are bounded by the member's share, and each goes two
//! hours and ten minutes after it was signed. A peer's own withdrawal of what is not here is of no use to anybody.
//!
//! There are millions, so an entry is as small as can be: of the bytes of a statement those are kept that are not known anyway,
//! in memory of their own, and times are told from when it was signed. A peer that is here keeps its place in the table also while nothing is known of
//! it, so that its session is found by the number of the place.

use std::cmp::Ordering;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use p2psb_proto::model::limits::{CLOCK_SKEW, RECORD_LIFETIME, SERVICE_PROVIDERS, WITHDRAWAL_GRACE};
use p2psb_proto::model::{Digest, NetworkId, Packed, PeerId, PeerStatement, UnixMillis};

use super::admission::LimitReached;
use super::arena::{Arena, Piece};
use super::ledger::{Bringer, Ledger, Payer, Shares};
use super::placement::Key;
use super::places::{Places, Slot};
use super::row::Row;
use super::services::{Day, Offers, Services};

/// A peer changes what it says at most this often.
pub const CHANGE_INTERVAL: Duration = Duration::from_secs(1);

/// A verified statement on its way into the table. That it belongs to this network and its clocks are sane was checked before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    peer: PeerId,
    seq: u64,
    digest: Digest,
    issued: UnixMillis,
    /// When it stops counting; zero for a withdrawal.
    expires: UnixMillis,
    /// Until when older statements of the peer might count.
    keep: UnixMillis,
    services: Box<[Box<str>]>,
    network: NetworkId,
    packed: Packed,
}

impl Item {
    /// Of a statement.
    #[must_use]
    pub fn new(statement: &PeerStatement) -> Self {
        let (seq, digest) = statement.rank();
        let (issued, expires, keep, services) = match statement {
            PeerStatement::Record(record) => {
                let r = record.value();
                let mut services: Vec<Box<str>> = r.services.iter().map(|s| s.name.as_str().into()).collect();
                services.sort_unstable();
                services.dedup();
                (r.issued, r.expires, r.expires, services.into())
            }
            PeerStatement::Withdrawal(withdrawal) => {
                let issued = withdrawal.value().issued;
                let keep = issued.plus(RECORD_LIFETIME + WITHDRAWAL_GRACE);
                (issued, UnixMillis::default(), keep, Box::default())
            }
        };
        let (network, packed) = (statement.network(), statement.pack());
        Self { peer: statement.peer_id(), seq, digest, issued, expires, keep, services, network, packed }
    }

    /// Whose it is.
    #[must_use]
    pub const fn peer(&self) -> PeerId {
        self.peer
    }

    /// Its place in the peer's sequence.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// When it stops counting.
    #[must_use]
    pub const fn expires(&self) -> UnixMillis {
        self.expires
    }

    fn is_withdrawal(&self) -> bool {
        self.expires == UnixMillis::default()
    }
}

/// What became of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// It is the newest now.
    Changed,
    /// It, or one that wins over it, was there.
    Known,
}

/// Why a statement is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Older than what is known.
    #[error("seq {seq} is older than {stored_seq}, which is known; sign the next one with a higher seq")]
    Stale {
        /// Offered.
        seq: u64,
        /// Known.
        stored_seq: u64,
        /// The wire form of what is known.
        stored: Bytes,
    },
    /// The key signed two statements with one `seq`.
    #[error("another record with seq {seq} is known: is the key used on two machines?")]
    Equivocation {
        /// Of both.
        seq: u64,
        /// The wire form of what is known.
        stored: Bytes,
    },
    /// Its time is over.
    #[error("the statement expired at {expired}")]
    Expired {
        /// When.
        expired: UnixMillis,
    },
    /// The peer changed what it says less than a second ago.
    #[error("a peer may change its record once a second; try again in {wait:?}")]
    TooOften {
        /// How long it has to wait.
        wait: Duration,
    },
    /// No room for one more peer.
    #[error(transparent)]
    Full(#[from] LimitReached),
}

/// The newest statement of a peer, as it is kept, without its bytes.
#[derive(Debug)]
struct Stated {
    seq: u64,
    issued: UnixMillis,
    /// How long after `issued` it counts, in milliseconds; 0 for a withdrawal.
    life: u32,
    /// How long after `issued` it is remembered, in milliseconds.
    keep: u32,
    /// How long after `issued` it came, in milliseconds.
    changed: i32,
    payer: Payer,
    offers: Offers,
}

/// Three weeks before it was signed: nobody waits for that.
const LONG_AGO: i32 = i32::MIN;

/// Weeks fit, and no statement is remembered for three hours.
fn millis(by: Duration) -> u32 {
    u32::try_from(by.as_millis()).unwrap_or(u32::MAX)
}

impl Stated {
    fn expires(&self) -> UnixMillis {
        let at = self.issued.plus(Duration::from_millis(self.life.into()));
        if self.is_withdrawal() { UnixMillis::default() } else { at }
    }

    fn keep(&self) -> UnixMillis {
        self.issued.plus(Duration::from_millis(self.keep.into()))
    }

    fn changed(&self) -> UnixMillis {
        UnixMillis(self.issued.0.saturating_add_signed(self.changed.into()))
    }

    const fn is_withdrawal(&self) -> bool {
        self.life == 0
    }

    fn is_valid(&self, now: UnixMillis) -> bool {
        self.expires() > now
    }

    /// A statement that is newest but neither counts nor voids another one is of no use to anybody.
    fn is_worth_telling(&self, now: UnixMillis) -> bool {
        self.is_valid(now) || (self.is_withdrawal() && self.keep() > now)
    }
}

/// What is at a place.
#[derive(Debug, Default)]
struct Place {
    stated: Option<Stated>,
}

/// What is known of one peer.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    slot: Slot,
    peer: &'a PeerId,
    network: &'a NetworkId,
    stated: &'a Stated,
    packed: Packed<&'a [u8]>,
}

impl Entry<'_> {
    /// Where it is kept.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        self.slot
    }

    /// The statement's wire form.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.packed.encoded(self.peer.key(), self.network)
    }

    /// How long the wire form is.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.packed.encoded_len()
    }

    /// Appends the wire form.
    pub fn encode(&self, to: &mut impl BufMut) {
        self.packed.encode(self.peer.key(), self.network, to);
    }

    /// When it was signed.
    #[must_use]
    pub const fn issued(&self) -> UnixMillis {
        self.stated.issued
    }

    /// When it stops counting; zero for a withdrawal.
    #[must_use]
    pub fn expires(&self) -> UnixMillis {
        self.stated.expires()
    }

    /// Whether it is a record that counts at `now`.
    #[must_use]
    pub fn is_valid(&self, now: UnixMillis) -> bool {
        self.stated.is_valid(now)
    }

    /// The services that it offers.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.stated.offers.as_slice().iter().map(super::services::Offer::name)
    }

    /// Until when older statements of the peer might count.
    #[must_use]
    pub fn keep(&self) -> UnixMillis {
        self.stated.keep()
    }

    /// Who pays for it.
    #[must_use]
    pub fn brought_by(&self) -> Bringer {
        self.stated.payer.bringer()
    }

    /// Whether it is of use to anybody: it counts, or voids another one.
    #[must_use]
    pub fn is_worth_telling(&self, now: UnixMillis) -> bool {
        self.stated.is_worth_telling(now)
    }

    fn digest(&self) -> Digest {
        self.packed.digest(self.peer.key(), self.network)
    }
}

/// Peers that signed two statements with one `seq`, as far as it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Equivocations {
    /// How often.
    pub count: u64,
    /// The last of them.
    pub last: Option<PeerId>,
}

/// See the module.
#[derive(Debug)]
pub struct Table {
    places: Places<Place>,
    /// The bytes of statements.
    arena: Arena,
    /// Where they lie there, by the numbers of places: apart, so that they come from memory while the place does.
    pieces: Vec<Option<Piece>>,
    /// By sessions, by the numbers of places: these stay when the statement goes.
    claimed: Vec<bool>,
    /// Of all statements, once there is one.
    network: Option<NetworkId>,
    ledger: Ledger,
    services: Services,
    /// When entries are forgotten, by the second.
    forgotten: Row,
    /// Places with a statement.
    count: usize,
    equivocations: Equivocations,
}

/// Four billion peers have one.
const NO_PLACE: LimitReached = LimitReached { limit: "places", most: u32::MAX as usize };
/// Or until the system gives no memory any more.
const NO_ROOM: LimitReached = LimitReached { limit: "memory", most: 1 << 37 };

/// The first second in which a statement is forgotten.
const fn second(keep: UnixMillis) -> u64 {
    keep.0.div_ceil(1000)
}

impl Table {
    /// An empty table, with room for so many peers and names of services.
    #[must_use]
    pub fn new(records: Shares, services: Shares) -> Self {
        Self {
            places: Places::default(),
            arena: Arena::default(),
            pieces: Vec::new(),
            claimed: Vec::new(),
            network: None,
            ledger: Ledger::new(records),
            services: Services::new(services, SERVICE_PROVIDERS),
            forgotten: Row::default(),
            count: 0,
            equivocations: Equivocations::default(),
        }
    }

    /// Takes a statement from its peer. The same one again changes nothing, and neither does a withdrawal of what is not here;
    /// an older or contradicting one is refused, and one that comes too soon after the last.
    pub fn offer(&mut self, item: Item, by: Bringer, now: UnixMillis) -> Result<Merged, TableError> {
        let known = self.known(&item.peer);
        if item.is_withdrawal() && known.is_none_or(|known| known.stated.keep() <= now) {
            return Ok(Merged::Known);
        }
        let Some(known) = known else { return self.merge(item, by, now) };
        let (seq, stored_seq) = (item.seq, known.stated.seq);
        if seq < stored_seq {
            let stored = known.bytes();
            self.remember_longer(&item.peer, item.keep);
            return Err(TableError::Stale { seq, stored_seq, stored });
        }
        if seq == stored_seq && item.digest != known.digest() {
            let stored = known.bytes();
            self.remember_longer(&item.peer, item.keep);
            self.equivocated(item.peer);
            return Err(TableError::Equivocation { seq, stored });
        }
        if let Some(wait) = wait(known.stated, &item, now) {
            return Err(TableError::TooOften { wait });
        }
        self.merge(item, by, now)
    }

    /// Takes a statement from another rendezvous: the higher `(seq, digest)` wins.
    pub fn merge(&mut self, item: Item, by: Bringer, now: UnixMillis) -> Result<Merged, TableError> {
        let Some(known) = self.known(&item.peer) else {
            if item.keep <= now {
                return Err(TableError::Expired { expired: item.keep });
            }
            let slot = self.place(item.peer).ok_or(NO_PLACE)?;
            let entered = self.ledger.enter(by).and_then(|()| {
                let piece = self.arena.put(item.packed.bytes()).ok_or(NO_ROOM);
                piece.inspect_err(|_| self.ledger.leave(by))
            });
            match entered {
                Ok(piece) => self.put_in(slot, (item, piece), by, now),
                Err(full) => {
                    self.clear(slot);
                    return Err(full.into());
                }
            }
            return Ok(Merged::Changed);
        };
        let is_newer = match item.seq.cmp(&known.stated.seq) {
            Ordering::Equal => {
                let digest = known.digest();
                if item.digest != digest {
                    self.equivocated(item.peer);
                }
                item.digest > digest
            }
            other => other == Ordering::Greater,
        };
        if !is_newer {
            self.remember_longer(&item.peer, item.keep);
            return Ok(Merged::Known);
        }
        self.replace(item, by, now)
    }

    /// Takes this server's own record. It takes the place of one with a `seq` out of the future, too, which was signed while
    /// the clock was wrong.
    pub fn put_own(&mut self, item: Item, now: UnixMillis) -> Result<Merged, TableError> {
        let latest = now.plus(CLOCK_SKEW).0;
        if self.seq(&item.peer).is_some_and(|stored| stored > latest && item.seq < stored) {
            return self.replace(item, Bringer::Own, now);
        }
        self.merge(item, Bringer::Own, now)
    }

    /// Takes a statement out of the snapshot of an earlier life, for as long as it was to be remembered. It may change at once.
    pub fn restore(
        &mut self,
        item: Item,
        keep: UnixMillis,
        by: Bringer,
        now: UnixMillis,
    ) -> Result<Merged, TableError> {
        let peer = item.peer;
        let merged = self.merge(item, by, now)?;
        self.remember_longer(&peer, keep);
        let place = self.places.slot(&peer).and_then(|slot| self.places.get_mut(slot));
        if let Some(stated) = place.and_then(|place| place.stated.as_mut()) {
            stated.changed = LONG_AGO;
        }
        Ok(merged)
    }

    fn equivocated(&mut self, peer: PeerId) {
        self.equivocations.count += 1;
        self.equivocations.last = Some(peer);
    }

    /// An older statement that expires later: what is known must outlive it.
    fn remember_longer(&mut self, peer: &PeerId, keep: UnixMillis) {
        let Some(slot) = self.places.slot(peer) else { return };
        let stated = self.places.get_mut(slot).and_then(|place| place.stated.as_mut());
        if let Some(stated) = stated.filter(|stated| stated.keep() < keep) {
            self.forgotten.remove(second(stated.keep()), slot);
            stated.keep = millis(keep.since(stated.issued));
            self.forgotten.insert(second(stated.keep()), slot);
        }
    }

    /// Replaces what is known of the peer.
    fn replace(&mut self, item: Item, by: Bringer, now: UnixMillis) -> Result<Merged, TableError> {
        let slot = self.places.slot(&item.peer).ok_or(NO_PLACE)?;
        let piece = self.arena.put(item.packed.bytes()).ok_or(NO_ROOM)?;
        let old = self.places.get(slot).and_then(|(_, place)| place.stated.as_ref());
        let payer = old.map_or(by, |old| self.ledger.hand_over(old.payer.bringer(), by));
        self.put_in(slot, (item, piece), payer, now);
        Ok(Merged::Changed)
    }

    /// Puts in what is charged to `by` already, and its bytes, in the place of what was there.
    fn put_in(&mut self, slot: Slot, (item, piece): (Item, Piece), by: Bringer, now: UnixMillis) {
        let Item { peer, seq, issued, expires, mut keep, services, network, .. } = item;
        self.network = Some(network);
        self.keep_piece(slot, Some(piece));
        let Some(place) = self.places.get_mut(slot) else { return };
        let mut before = Box::default();
        match place.stated.take() {
            Some(old) => {
                self.forgotten.remove(second(old.keep()), slot);
                keep = keep.max(old.keep());
                before = old.offers.into();
            }
            None => self.count += 1,
        }
        let offers = self.services.replace(peer, before, &services, by, Day::of(now)).into();
        // A record that counts counts for a moment at least.
        let life = if expires == UnixMillis::default() { 0 } else { millis(expires.since(issued)).max(1) };
        let changed = now.0.wrapping_sub(issued.0).cast_signed();
        let changed = i32::try_from(changed).unwrap_or(if changed < 0 { i32::MIN } else { i32::MAX });
        let (keep, payer) = (millis(keep.since(issued)), self.ledger.payer(by));
        let stated = Stated { seq, issued, life, keep, changed, payer, offers };
        self.forgotten.insert(second(stated.keep()), slot);
        place.stated = Some(stated);
    }

    fn take_out(&mut self, slot: Slot) {
        let Some((peer, place)) = self.places.get(slot) else { return };
        let peer = *peer;
        let Some(stated) = &place.stated else { return };
        self.forgotten.remove(second(stated.keep()), slot);
        self.services.remove(&peer, stated.offers.as_slice());
        self.ledger.leave(stated.payer.bringer());
        self.count = self.count.saturating_sub(1);
        if let Some(place) = self.places.get_mut(slot) {
            place.stated = None;
        }
        self.keep_piece(slot, None);
        self.clear(slot);
    }

    /// In the place of the one that is there.
    fn keep_piece(&mut self, slot: Slot, piece: Option<Piece>) {
        if self.pieces.len() <= slot.index() {
            self.pieces.resize_with(slot.index() + 1, || None);
        }
        let Some(place) = self.pieces.get_mut(slot.index()) else { return };
        if let Some(before) = std::mem::replace(place, piece) {
            self.arena.take(before);
        }
    }

    /// The place of a peer; a new one, if it has none.
    fn place(&mut self, peer: PeerId) -> Option<Slot> {
        match self.places.slot(&peer) {
            Some(slot) => Some(slot),
            None => self.places.insert(peer, Place::default()),
        }
    }

    /// Takes a place back that nobody needs any more.
    fn clear(&mut self, slot: Slot) {
        let is_claimed = self.claimed.get(slot.index()).is_some_and(|is_claimed| *is_claimed);
        if self.at(slot).is_none() && !is_claimed {
            self.places.remove(slot);
        }
    }

    /// The place of a peer, which it keeps until [`Self::unclaim`] is called, whatever becomes of its statement. `None` if no
    /// place is left.
    pub fn claim(&mut self, peer: PeerId) -> Option<Slot> {
        let slot = self.place(peer)?;
        if self.claimed.len() <= slot.index() {
            self.claimed.resize(slot.index() + 1, false);
        }
        *self.claimed.get_mut(slot.index())? = true;
        Some(slot)
    }

    /// The place is not needed for a session any more.
    pub fn unclaim(&mut self, slot: Slot) {
        if let Some(is_claimed) = self.claimed.get_mut(slot.index()) {
            *is_claimed = false;
        }
        self.clear(slot);
    }

    /// The place of a peer, if it has one.
    #[must_use]
    pub fn slot(&self, peer: &PeerId) -> Option<Slot> {
        self.places.slot(peer)
    }

    /// Whose place it is.
    #[must_use]
    pub fn peer(&self, slot: Slot) -> Option<PeerId> {
        self.places.peer(slot).copied()
    }

    fn entry<'a>(&'a self, slot: Slot, (peer, place): &'a (PeerId, Place)) -> Option<Entry<'a>> {
        let packed = Packed::from_bytes(self.packed(slot)?);
        Some(Entry { slot, peer, network: self.network.as_ref()?, stated: place.stated.as_ref()?, packed })
    }

    fn packed(&self, slot: Slot) -> Option<&[u8]> {
        self.pieces.get(slot.index())?.as_ref().map(|piece| self.arena.get(piece))
    }

    /// Touches what is known of a peer, so that it is near when it is asked for: what memory takes to give it passes while
    /// something else is done, such as touching what is known of another one.
    #[must_use]
    pub fn touch(&self, slot: Slot) -> u8 {
        let bytes = self.packed(slot).and_then(<[u8]>::first).copied().unwrap_or_default();
        let place = self.places.get(slot).and_then(|(peer, _)| peer.key().as_bytes().last().copied());
        bytes ^ place.unwrap_or_default()
    }

    /// The place of a peer if it has one, found without a look at it: it may be another one's.
    #[must_use]
    pub fn likely_slot(&self, peer: &PeerId) -> Option<Slot> {
        self.places.likely_slot(peer)
    }

    /// What is known at a place.
    #[must_use]
    pub fn at(&self, slot: Slot) -> Option<Entry<'_>> {
        self.entry(slot, self.places.get(slot)?)
    }

    /// The valid record of a peer.
    #[must_use]
    pub fn valid(&self, peer: &PeerId, now: UnixMillis) -> Option<Entry<'_>> {
        self.known(peer).filter(|entry| entry.is_valid(now))
    }

    /// The valid record at a place, if it is this peer's.
    #[must_use]
    pub fn valid_at(&self, slot: Slot, peer: &PeerId, now: UnixMillis) -> Option<Entry<'_>> {
        self.at(slot).filter(|entry| entry.peer == peer && entry.is_valid(now))
    }

    /// The newest statement of a peer, whether it still counts or not.
    #[must_use]
    pub fn known(&self, peer: &PeerId) -> Option<Entry<'_>> {
        self.at(self.places.slot(peer)?)
    }

    /// What other rendezvous should know of a peer: its record or its withdrawal.
    #[must_use]
    pub fn telling(&self, peer: &PeerId, now: UnixMillis) -> Option<Bytes> {
        self.known(peer).filter(|entry| entry.is_worth_telling(now)).map(|entry| entry.bytes())
    }

    /// Whether exactly this statement of the peer is the newest known: then there is nothing to verify.
    #[must_use]
    pub fn holds(&self, peer: &PeerId, bytes: &[u8]) -> bool {
        self.known(peer).is_some_and(|entry| entry.bytes() == bytes)
    }

    /// The highest `seq` known of a peer.
    #[must_use]
    pub fn seq(&self, peer: &PeerId) -> Option<u64> {
        self.known(peer).map(|entry| entry.stated.seq)
    }

    /// Whether the newest statement of a peer is a valid record that offers a service.
    #[must_use]
    pub fn provides(&self, peer: &PeerId, service: &str, now: UnixMillis) -> bool {
        self.valid(peer, now).is_some_and(|entry| entry.services().any(|name| name == service))
    }

    /// Valid providers of a service behind `after`, in the order of their ids: at most [`SERVICE_PROVIDERS`] in all.
    pub fn providers(
        &self,
        service: &str,
        after: Option<PeerId>,
        now: UnixMillis,
    ) -> impl Iterator<Item = (PeerId, Entry<'_>)> {
        let peers = self.services.providers(service, after);
        peers.filter_map(move |peer| Some((*peer, self.valid(peer, now)?)))
    }

    /// Whether there may be other providers than [`Self::providers`] names.
    #[must_use]
    pub fn is_sampled(&self, service: &str) -> bool {
        self.services.is_sampled(service)
    }

    /// The index of services.
    #[must_use]
    pub const fn services(&self) -> &Services {
        &self.services
    }

    /// The places behind `cursor` of which something is known, in an order that stays: who is known all the while is met once
    /// on a walk in steps, whoever comes and goes meanwhile.
    pub fn after(&self, cursor: Option<Slot>) -> impl Iterator<Item = (Slot, PeerId)> {
        let known = self.places.after(cursor).filter(|(_, (_, place))| place.stated.is_some());
        known.map(|(slot, (peer, _))| (slot, *peer))
    }

    /// The keys of the services that a peer offers, as far as they are listed.
    #[must_use]
    pub fn service_keys(&self, peer: &PeerId) -> Vec<Key> {
        let known = self.known(peer);
        known.iter().flat_map(Entry::services).map(Key::service).collect()
    }

    /// Forgets a peer: others own it.
    pub fn forget(&mut self, peer: &PeerId) {
        if let Some(slot) = self.places.slot(peer) {
            self.take_out(slot);
        }
    }

    /// Forgets at most `most` peers whose time is over; returns how many.
    pub fn sweep(&mut self, now: UnixMillis, most: usize) -> usize {
        for swept in 0..most {
            match self.forgotten.first() {
                Some((second, slot)) if second <= now.0 / 1000 => self.take_out(slot),
                _ => return swept,
            }
        }
        most
    }

    /// How many peers are known.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing is known.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Peers that signed two truths.
    #[must_use]
    pub const fn equivocations(&self) -> Equivocations {
        self.equivocations
    }
}

/// How long a peer must wait before `item` may take the place of what it said last. A record may be withdrawn at once.
fn wait(stored: &Stated, item: &Item, now: UnixMillis) -> Option<Duration> {
    let is_newer = stored.seq < item.seq;
    let withdraws = item.is_withdrawal() && stored.is_valid(now);
    // After the clock was set back nobody waits for it.
    let changed = stored.changed();
    let since = (changed <= now).then(|| now.since(changed))?;
    CHANGE_INTERVAL.checked_sub(since).filter(|wait| is_newer && !withdraws && !wait.is_zero())
}

#[cfg(test)]
mod tests {
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
            table.known(&item.peer).and_then(|known| super::wait(known.stated, &item, at(millis)))
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
}
