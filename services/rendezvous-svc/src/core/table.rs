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
use p2psb_proto::model::limits::{CLOCK_SKEW, SERVICE_PROVIDERS};
use p2psb_proto::model::{Digest, NetworkId, Packed, PeerId, UnixMillis};

use super::admission::LimitReached;
use super::arena::{Arena, Piece};
use super::ledger::{Bringer, Ledger, Payer, Shares};
use super::placement::Key;
use super::places::{Places, Slot};
use super::row::Row;
use super::services::{Day, Offers, Services};

mod item;

pub use item::Item;

/// A peer changes what it says at most this often.
pub const CHANGE_INTERVAL: Duration = Duration::from_secs(1);

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

/// The newest statement of a peer, as it is kept.
#[derive(Debug)]
struct Stated {
    /// Its bytes.
    piece: Piece,
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

/// The way to what is known of a peer, in steps of which each touches what the next one needs and does nothing else: what is touched
/// for many peers memory gives in the time of a few. Of one peer, too, it gives together what lies at several places.
#[derive(Clone, Copy, Debug)]
pub struct Aim(u32);

/// Where what is known of a peer lies, if it is not another one's.
#[derive(Clone, Copy, Debug)]
pub struct Near(pub Slot);

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
/// Their statements find room in so many bytes, or until the system gives no memory any more.
const NO_ROOM: LimitReached = LimitReached { limit: "memory", most: 1 << 36 };

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
        self.merge_paced(item, by, now)
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

    /// The same of an edge, which has to hold its peers to their pace: what comes too soon after the last change is refused.
    pub fn merge_paced(&mut self, item: Item, by: Bringer, now: UnixMillis) -> Result<Merged, TableError> {
        match self.known(&item.peer).and_then(|known| wait(known, &item, now)) {
            Some(wait) => Err(TableError::TooOften { wait }),
            None => self.merge(item, by, now),
        }
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
        self.places.set_piece(&peer, slot, Some(piece));
        let Some(place) = self.places.get_mut(slot) else { return };
        let mut before = Box::default();
        match place.stated.take() {
            Some(old) => {
                self.forgotten.remove(second(old.keep()), slot);
                self.arena.take(old.piece);
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
        let stated = Stated { piece, seq, issued, life, keep, changed, payer, offers };
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
        self.arena.take(stated.piece);
        if let Some(place) = self.places.get_mut(slot) {
            place.stated = None;
        }
        self.places.set_piece(&peer, slot, None);
        self.clear(slot);
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
        let stated = place.stated.as_ref()?;
        let packed = Packed::from_bytes(self.arena.get(stated.piece));
        Some(Entry { slot, peer, network: self.network.as_ref()?, stated, packed })
    }

    /// The way to what is known of a peer.
    #[must_use]
    pub fn aim(&self, peer: &PeerId) -> Aim {
        Aim(self.places.hash(peer))
    }

    /// Touches what says where that is.
    pub fn touch(&self, aim: Aim) {
        self.places.touch(aim.0);
    }

    /// Where it lies, most likely: found without a look at it, which begins here.
    #[must_use]
    pub fn near(&self, aim: Aim) -> Option<Near> {
        let (slot, piece) = self.places.near(aim.0)?;
        let place = self.places.get(slot);
        let key = place.map(|(peer, _)| peer.key().as_bytes().last());
        let life = place.and_then(|(_, place)| place.stated.as_ref()).map(|stated| stated.life);
        std::hint::black_box((key, life, piece.map(|piece| self.arena.touch(piece))));
        Some(Near(slot))
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

    /// Whether there is room for one more peer, brought by somebody.
    #[must_use]
    pub fn has_room(&self, by: Bringer) -> bool {
        self.ledger.has_room(by).is_ok()
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
fn wait(known: Entry<'_>, item: &Item, now: UnixMillis) -> Option<Duration> {
    let withdraws = item.is_withdrawal() && known.is_valid(now);
    // After the clock was set back nobody waits for it.
    let changed = known.stated.changed();
    let since = (changed <= now).then(|| now.since(changed))?;
    let wait = CHANGE_INTERVAL.checked_sub(since).filter(|wait| !withdraws && !wait.is_zero())?;
    item.wins_over(known).then_some(wait)
}

#[cfg(test)]
mod tests;
