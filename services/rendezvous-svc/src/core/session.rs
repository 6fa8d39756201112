//! The peers that are here: live sessions, lost ones, and unary registrations.
//!
//! Invariants:
//! - A peer has one entry at most, and of two sessions the one with the higher `session_seq` holds it; whoever speaks for
//!   another ticket is not heard.
//! - What is said of a peer follows from its entry and the time alone; nobody has to act for a silent peer to become
//!   SUSPECT and then OFFLINE.
//! - Every entry has exactly one place in the row of deadlines: where its next change may be noticed at the earliest.
//!
//! Peers are named by their places in the table: see [`super::here`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use p2psb_proto::model::limits::RECORD_LIFETIME;
use p2psb_proto::model::presence::{PresenceSource, PresenceState};

use super::admission::Origin;
use super::places::Slot;
use super::presence::Statement;
use super::row::Row;
use entry::{Entry, Moment, PROOF, Phase, TICK, nanos};

mod entry;

/// How long a peer that went is remembered with the time it was last seen: no record of it lives longer.
pub const REMEMBERED: Duration = RECORD_LIFETIME;

/// So long one is remembered that is too many: members are told in this time that it is OFFLINE.
pub const TELLING: Duration = Duration::from_secs(60);

/// The durations of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a peer must be heard.
    pub heartbeat: Duration,
    /// How long a unary registration counts.
    pub registration: Duration,
}

impl Timing {
    /// Silence for so long makes a peer SUSPECT: 2.5 heartbeats.
    #[must_use]
    pub fn suspect_after(&self) -> Duration {
        self.heartbeat * 5 / 2
    }

    /// A peer is SUSPECT for so long before it is OFFLINE: one heartbeat.
    #[must_use]
    pub const fn suspected_for(&self) -> Duration {
        self.heartbeat
    }
}

/// Names one opening of a session or registration, so that an old one can't speak for a newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// The peer has a newer session here, or the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("session {offered} is not newer than session {current}, which is open")]
pub struct NotNewer {
    /// Of the newcomer.
    pub offered: u64,
    /// Of the session that is open.
    pub current: u64,
}

/// A session was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Of the new one.
    pub ticket: Ticket,
    /// Of a live one that it replaced, and whose stream must be told.
    pub replaced: Option<Ticket>,
    /// A registration ended with this.
    pub freed: Option<Freed>,
}

/// A registration that had been admitted ended; it had come from here, if that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed(pub Option<IpAddr>);

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The peer said goodbye, or closed the stream: OFFLINE at once.
    Clean,
    /// The stream broke, or this server goes: SUSPECT for a while.
    Lost,
    /// The peer was silent for so long that it is OFFLINE anyway.
    Silent,
}

/// How a peer is, or was, here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By a session, which may have been lost a moment ago.
    Present,
    /// By a unary registration.
    Registered {
        /// From where it was admitted.
        from: Option<IpAddr>,
    },
    /// It went.
    Gone,
}

/// A peer that is, or was, here: what the next life of this server has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay<'a> {
    /// Of its session; of a registration, the `seq` of its record.
    pub session_seq: u64,
    /// When it was last heard.
    pub heard: Instant,
    /// How it is here.
    pub how: How,
    /// What convinces others of it.
    pub proof: &'a [u8],
}

/// What the passing of time has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Peers of whom something else is to be said now.
    pub changed: Vec<Slot>,
    /// Registrations that ended.
    pub freed: Vec<Freed>,
}

/// See the module.
#[derive(Debug)]
pub struct Sessions {
    /// By the numbers of the peers' places.
    entries: Vec<Option<Entry>>,
    /// Proofs that do not stand in their entry.
    proofs: HashMap<Slot, Box<[u8]>>,
    count: usize,
    deadlines: Row,
    /// Peers that were forgotten since it was asked last.
    forgotten: Vec<Slot>,
    /// The first moment.
    start: Option<Instant>,
    timing: Timing,
    /// How many peers that went are remembered.
    remembered_limit: usize,
    next_ticket: u64,
}

impl Sessions {
    /// None yet.
    #[must_use]
    pub fn new(timing: Timing, remembered_limit: usize) -> Self {
        Self {
            entries: Vec::new(),
            proofs: HashMap::new(),
            count: 0,
            deadlines: Row::default(),
            forgotten: Vec::new(),
            start: None,
            timing,
            remembered_limit,
            next_ticket: 0,
        }
    }

    /// The durations.
    #[must_use]
    pub const fn timing(&self) -> &Timing {
        &self.timing
    }

    fn get(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(slot.index())?.as_ref()
    }

    fn get_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot.index())?.as_mut()
    }

    fn moment(&self, at: Instant) -> Moment {
        let passed = self.start.map(|start| at.saturating_duration_since(start));
        Moment(nanos(passed.unwrap_or_default()))
    }

    fn instant(&self, moment: Moment) -> Option<Instant> {
        self.start?.checked_add(Duration::from_nanos(moment.0))
    }

    /// Whether a session could be opened.
    pub fn may_open(&self, slot: Slot, session_seq: u64, now: Instant) -> Result<(), NotNewer> {
        match self.get(slot) {
            Some(entry)
                if entry.source() == PresenceSource::Session
                    && entry.state(&self.timing, self.moment(now)) != PresenceState::Offline
                    && entry.session_seq >= session_seq =>
            {
                Err(NotNewer { offered: session_seq, current: entry.session_seq })
            }
            _ => Ok(()),
        }
    }

    /// Whether a session is open.
    #[must_use]
    pub fn is_open(&self, slot: Slot) -> bool {
        matches!(self.get(slot).map(|entry| entry.phase), Some(Phase::Live(_)))
    }

    /// Opens a session whose proof was verified; `proof` is what convinces others.
    pub fn open(
        &mut self,
        slot: Slot,
        session_seq: u64,
        proof: &[u8],
        now: Instant,
    ) -> Result<Opened, NotNewer> {
        self.may_open(slot, session_seq, now)?;
        let before = self.get(slot).map(|entry| entry.phase);
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.put_in(slot, session_seq, Phase::Live(ticket), proof, now);
        let (mut replaced, mut freed) = (None, None);
        match before {
            Some(Phase::Live(ticket)) => replaced = Some(ticket),
            Some(Phase::Registered { from }) => freed = Some(Freed(from.ip())),
            Some(Phase::Lost { .. } | Phase::Ended) | None => {}
        }
        Ok(Opened { ticket, replaced, freed })
    }

    /// Lists a peer by a unary registration. A live session stays what it is, and says more.
    ///
    /// Returns whether this is a registration that was not there before, which has to be admitted, and counts until
    /// [`Due::freed`], [`Opened::freed`] or `unregister` says that it ended.
    pub fn register(
        &mut self,
        slot: Slot,
        seq: u64,
        proof: &[u8],
        from: Option<IpAddr>,
        now: Instant,
    ) -> bool {
        match self.get(slot).map(|entry| entry.phase) {
            Some(Phase::Live(_)) => {
                self.heard(slot, now);
                false
            }
            Some(phase @ Phase::Registered { .. }) => {
                self.put_in(slot, seq, phase, proof, now);
                false
            }
            Some(Phase::Lost { .. } | Phase::Ended) | None => {
                self.put_in(slot, seq, Phase::Registered { from: Origin::of(from) }, proof, now);
                true
            }
        }
    }

    /// Whether `register` would have to be admitted.
    #[must_use]
    pub fn registers_anew(&self, slot: Slot) -> bool {
        let phase = self.get(slot).map(|entry| entry.phase);
        !matches!(phase, Some(Phase::Live(_) | Phase::Registered { .. }))
    }

    /// Ends a registration, not a session.
    pub fn unregister(&mut self, slot: Slot, now: Instant) -> Option<Freed> {
        let Phase::Registered { from } = self.get(slot)?.phase else { return None };
        self.heard(slot, now);
        self.end(slot, Phase::Ended, now);
        Some(Freed(from.ip()))
    }

    fn put_in(&mut self, slot: Slot, session_seq: u64, phase: Phase, proof: &[u8], now: Instant) {
        self.start.get_or_insert(now);
        let now = self.moment(now);
        let told = PresenceState::Online;
        let here = <[u8; PROOF]>::try_from(proof).ok();
        let inside = here.unwrap_or([0; PROOF]);
        let mut entry = Entry { session_seq, phase, heard: now, proof: inside, due: 0, told };
        entry.due = entry.next_change(&self.timing, now).tick();
        let due = entry.due;
        self.forget(slot);
        if here.is_none() {
            self.proofs.insert(slot, proof.into());
        }
        if self.entries.len() <= slot.index() {
            self.entries.resize_with(slot.index() + 1, || None);
        }
        if let Some(place) = self.entries.get_mut(slot.index()) {
            *place = Some(entry);
            self.count += 1;
            self.deadlines.insert(due.into(), slot);
        }
    }

    /// Takes an entry out, if there is one.
    fn forget(&mut self, slot: Slot) {
        let Some(entry) = self.entries.get_mut(slot.index()).and_then(Option::take) else { return };
        self.deadlines.remove(entry.due.into(), slot);
        self.proofs.remove(&slot);
        self.count = self.count.saturating_sub(1);
    }

    /// Gives an entry another place in the row of deadlines.
    fn put_off(&mut self, slot: Slot, until: Moment) {
        let due = until.tick();
        let Some(entry) = self.get_mut(slot) else { return };
        let before = std::mem::replace(&mut entry.due, due);
        self.deadlines.remove(before.into(), slot);
        self.deadlines.insert(due.into(), slot);
    }

    fn live(&self, slot: Slot, ticket: Ticket) -> Option<&Entry> {
        self.get(slot).filter(|entry| entry.phase == Phase::Live(ticket))
    }

    fn heard(&mut self, slot: Slot, now: Instant) {
        let now = self.moment(now);
        if let Some(entry) = self.get_mut(slot) {
            entry.heard = now;
        }
    }

    /// The peer was heard in a session. Returns whether that is news: it had been SUSPECT.
    pub fn beat(&mut self, slot: Slot, ticket: Ticket, now: Instant) -> bool {
        if self.live(slot, ticket).is_none() {
            return false;
        }
        // The deadline stays where it is: what pops too early is put back.
        self.heard(slot, now);
        let Some(entry) = self.get_mut(slot).filter(|entry| entry.told != PresenceState::Online) else {
            return false;
        };
        entry.told = PresenceState::Online;
        self.put_off(slot, self.moment(now).plus(self.timing.suspect_after()));
        true
    }

    /// A session ended. Returns whether it was the peer's current one.
    pub fn close(&mut self, slot: Slot, ticket: Ticket, ending: Ending, now: Instant) -> bool {
        if self.live(slot, ticket).is_none() {
            return false;
        }
        let phase = match ending {
            Ending::Clean | Ending::Silent => Phase::Ended,
            Ending::Lost => Phase::Lost { at: self.moment(now) },
        };
        if ending == Ending::Clean {
            self.heard(slot, now);
        }
        self.end(slot, phase, now);
        true
    }

    fn end(&mut self, slot: Slot, phase: Phase, now: Instant) {
        let (full, overfull) = (self.is_full(), self.count / 2 > self.remembered_limit);
        if overfull && phase == Phase::Ended {
            self.forget(slot);
            self.forgotten.push(slot);
            return;
        }
        let (timing, now) = (self.timing, self.moment(now));
        let Some(entry) = self.get_mut(slot) else { return };
        entry.phase = phase;
        entry.told = entry.state(&timing, now);
        let due = entry.due_after(&timing, full, now);
        self.put_off(slot, due);
    }

    /// Whether who goes now is one too many to be remembered.
    const fn is_full(&self) -> bool {
        self.count > self.remembered_limit
    }

    /// When [`Self::due`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let (tick, _) = self.deadlines.first()?;
        self.instant(Moment(tick.saturating_mul(nanos(TICK))))
    }

    /// Notices what time has changed, for at most `most` peers.
    pub fn due(&mut self, now: Instant, most: usize) -> Due {
        let (mut due, now, timing) = (Due::default(), self.moment(now), self.timing);
        let passed = now.0 / nanos(TICK);
        for _ in 0..most {
            let Some((_, slot)) = self.deadlines.first().filter(|(tick, _)| *tick <= passed) else { break };
            let full = self.is_full();
            let Some(entry) = self.get_mut(slot) else { break };
            let state = entry.state(&timing, now);
            if state == PresenceState::Offline && entry.told == PresenceState::Offline {
                self.forget(slot);
                self.forgotten.push(slot);
                continue;
            }
            if state != entry.told {
                entry.told = state;
                due.changed.push(slot);
            }
            if let (Phase::Registered { from }, PresenceState::Offline) = (entry.phase, state) {
                entry.phase = Phase::Ended;
                due.freed.push(Freed(from.ip()));
            }
            let next = entry.due_after(&timing, full, now);
            self.put_off(slot, next);
        }
        due
    }

    /// Those of whom nothing is kept here any more since it was asked last.
    pub fn take_forgotten(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.forgotten)
    }

    /// Touches what is kept of a peer; see [`Aim`](super::table::Aim).
    #[must_use]
    pub fn touch(&self, slot: Slot) -> u8 {
        self.get(slot).map(|entry| entry.told as u8).unwrap_or_default()
    }

    /// What this server, as a home, says of a peer that is, or was, here.
    #[must_use]
    pub fn stated(&self, slot: Slot, now: Instant) -> Option<Statement> {
        let entry = self.get(slot)?;
        let until = matches!(entry.phase, Phase::Registered { .. }).then(|| entry.until(&self.timing));
        Some(Statement {
            session_seq: entry.session_seq,
            state: entry.state(&self.timing, self.moment(now)),
            source: entry.source(),
            heard: self.instant(entry.heard)?,
            until: until.and_then(|until| self.instant(until)),
        })
    }

    /// The stays at the `most` places behind `after`, and where to go on; `None`: that was all. Who stays is met once on a walk
    /// in steps, whoever comes and goes meanwhile.
    #[must_use]
    pub fn page(
        &self,
        after: Option<Slot>,
        most: usize,
        now: Instant,
    ) -> (Vec<(Slot, Stay<'_>)>, Option<Slot>) {
        let (from, now) = (after.map_or(0, |slot| slot.number().saturating_add(1)), self.moment(now));
        let rest = self.entries.get(Slot::of(from).index()..).unwrap_or_default();
        let places = (from..).map(Slot::of).zip(rest).take(most);
        let next = places.clone().last().filter(|_| rest.len() > most).map(|(slot, _)| slot);
        let stays = places.filter_map(|(slot, entry)| Some((slot, self.stay(slot, entry.as_ref()?, now)?)));
        (stays.collect(), next)
    }

    fn stay(&self, slot: Slot, entry: &Entry, now: Moment) -> Option<Stay<'_>> {
        let how = match (entry.state(&self.timing, now), entry.phase) {
            (PresenceState::Offline, _) | (_, Phase::Ended) => How::Gone,
            (_, Phase::Registered { from }) => How::Registered { from: from.ip() },
            (_, Phase::Live(_) | Phase::Lost { .. }) => How::Present,
        };
        let heard = self.instant(entry.heard)?;
        Some(Stay { session_seq: entry.session_seq, heard, how, proof: self.proof(slot)? })
    }

    /// Whether a stay in an earlier life matters, and there is room for it.
    #[must_use]
    pub fn may_restore(&self, how: How, heard: Instant, now: Instant) -> bool {
        let is_remembered = self.count < self.remembered_limit && heard + REMEMBERED > now;
        how != How::Gone || is_remembered
    }

    /// Takes a stay in an earlier life over, of a peer of which nothing is kept: who had a session lost it now. A registration
    /// holds for a while from when it was heard, as any other.
    pub fn restore(&mut self, slot: Slot, stay: Stay<'_>, now: Instant) {
        // Nothing before the first moment can be told.
        self.start.get_or_insert_with(|| now.checked_sub(REMEMBERED).unwrap_or(now));
        let (at, heard, timing) = (self.moment(now), self.moment(stay.heard), self.timing);
        let phase = match stay.how {
            How::Present => Phase::Lost { at },
            How::Registered { from } => Phase::Registered { from: Origin::of(from) },
            How::Gone => Phase::Ended,
        };
        self.put_in(slot, stay.session_seq, phase, stay.proof, now);
        let Some(entry) = self.get_mut(slot) else { return };
        entry.heard = heard;
        entry.told = entry.state(&timing, at);
        let due = entry.next_change(&timing, at);
        self.put_off(slot, due);
    }

    /// What convinces others of a peer's session or registration.
    #[must_use]
    pub fn proof(&self, slot: Slot) -> Option<&[u8]> {
        let entry = self.get(slot)?;
        Some(self.proofs.get(&slot).map_or(entry.proof.as_slice(), |proof| proof))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::Time;

    fn peer(n: u32) -> Slot {
        Slot::of(n)
    }

    const TIMING: Timing =
        Timing { heartbeat: Duration::from_secs(30), registration: Duration::from_secs(300) };

    fn sessions() -> Sessions {
        Sessions::new(TIMING, 100)
    }

    fn state(sessions: &Sessions, at: Instant) -> PresenceState {
        sessions.stated(peer(1), at).unwrap().state
    }

    fn open(sessions: &mut Sessions, seq: u64, at: Instant) -> Opened {
        sessions.open(peer(1), seq, &[], at).unwrap()
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Option<Entry>>() <= 168, "{}", size_of::<Option<Entry>>());
    }

    #[test]
    fn a_proof_of_any_size_is_kept_as_long_as_its_entry() {
        let (mut s, t) = (sessions(), Time::start());
        let proofs = [0, PROOF - 1, PROOF, PROOF + 1, 160].map(|size| vec![7; size]);
        for (seq, proof) in (1..).zip(&proofs) {
            s.open(peer(1), seq, proof, t.at(0).mono).unwrap();
            assert_eq!(s.proof(peer(1)).unwrap(), proof);
            assert_eq!(s.page(None, 9, t.at(0).mono).0[0].1.proof, proof);
        }
        s.forget(peer(1));
        assert_eq!((s.proof(peer(1)), s.proofs.len()), (None, 0));
    }

    #[test]
    fn a_silent_peer_is_suspect_after_two_and_a_half_heartbeats_and_offline_one_later() {
        let (mut s, t) = (sessions(), Time::start());
        let at = |seconds| t.at(seconds).mono;
        open(&mut s, 1, at(0));
        assert_eq!(state(&s, at(74)), PresenceState::Online);
        assert_eq!(state(&s, at(75)), PresenceState::Suspect);
        assert_eq!(state(&s, at(104)), PresenceState::Suspect);
        assert_eq!(state(&s, at(105)), PresenceState::Offline);
        assert_eq!(s.next_deadline(), Some(at(75)));
        assert_eq!(s.due(at(75), 10).changed, [peer(1)]);
        assert_eq!(s.due(at(104), 10), Due::default());
        assert_eq!(s.due(at(105), 10).changed, [peer(1)]);
    }

    #[test]
    fn a_heartbeat_keeps_a_peer_online_and_brings_a_suspect_one_back() {
        let (mut s, t) = (sessions(), Time::start());
        let at = |seconds| t.at(seconds).mono;
        let ticket = open(&mut s, 1, at(0)).ticket;
        assert!(!s.beat(peer(1), ticket, at(70)));
        assert_eq!(s.due(at(75), 10), Due::default(), "the early deadline was put back");
        assert_eq!(s.next_deadline(), Some(at(145)));
        assert_eq!(s.due(at(150), 10).changed, [peer(1)]);
        assert!(s.beat(peer(1), ticket, at(151)), "that is news");
        assert_eq!(state(&s, at(151)), PresenceState::Online);
    }

    #[test]
    fn a_clean_close_is_offline_at_once_and_a_lost_stream_suspect_first() {
        let (mut s, t) = (sessions(), Time::start());
        let at = |seconds| t.at(seconds).mono;
        let ticket = open(&mut s, 1, at(0)).ticket;
        assert!(s.close(peer(1), ticket, Ending::Clean, at(10)));
        let stated = s.stated(peer(1), at(10)).unwrap();
        assert_eq!((stated.state, stated.heard), (PresenceState::Offline, at(10)));

        let ticket = open(&mut s, 2, at(20)).ticket;
        assert!(s.close(peer(1), ticket, Ending::Lost, at(25)));
        assert!(!s.close(peer(1), ticket, Ending::Clean, at(26)), "it had ended");
        assert_eq!(state(&s, at(25)), PresenceState::Suspect);
        assert_eq!(s.due(at(54), 10), Due::default());
        assert_eq!(s.due(at(55), 10).changed, [peer(1)]);
        assert_eq!(state(&s, at(55)), PresenceState::Offline);
    }

    #[test]
    fn the_session_with_the_higher_seq_wins() {
        let (mut s, t) = (sessions(), Time::start());
        let now = t.at(0).mono;
        let first = open(&mut s, 5, now);
        assert_eq!(
            s.open(peer(1), 5, &[], now),
            Err(NotNewer { offered: 5, current: 5 }),
            "a replayed hello"
        );
        let second = open(&mut s, 6, now);
        assert_eq!(second.replaced, Some(first.ticket));
        assert!(!s.close(peer(1), first.ticket, Ending::Clean, now), "the old one does not speak any more");
        assert_eq!(state(&s, now), PresenceState::Online);
    }

    #[test]
    fn after_the_end_any_seq_may_come() {
        let (mut s, t) = (sessions(), Time::start());
        let now = t.at(0).mono;
        let ticket = open(&mut s, 5, now).ticket;
        s.close(peer(1), ticket, Ending::Clean, now);
        assert_eq!(open(&mut s, 3, now).replaced, None);
    }

    #[test]
    fn a_registration_counts_until_its_end_and_frees_its_source() {
        let (mut s, t) = (sessions(), Time::start());
        let at = |seconds| t.at(seconds).mono;
        let from = Some(IpAddr::from([192, 0, 2, 1]));
        assert!(s.registers_anew(peer(1)));
        assert!(s.register(peer(1), 1, &[], from, at(0)));
        assert!(!s.register(peer(1), 2, &[], from, at(100)), "renewing is no second one");
        let stated = s.stated(peer(1), at(399)).unwrap();
        assert_eq!((stated.state, stated.source), (PresenceState::Online, PresenceSource::Registration));
        assert_eq!(s.due(at(399), 10), Due::default());
        let due = s.due(at(400), 10);
        assert_eq!((due.changed, due.freed), (vec![peer(1)], vec![Freed(from)]));
        assert_eq!(state(&s, at(400)), PresenceState::Offline);
    }

    #[test]
    fn a_session_takes_the_place_of_a_registration_and_keeps_it() {
        let (mut s, t) = (sessions(), Time::start());
        let now = t.at(0).mono;
        let from = Some(IpAddr::from([192, 0, 2, 1]));
        s.register(peer(1), 9, &[], from, now);
        assert_eq!(open(&mut s, 3, now).freed, Some(Freed(from)));
        assert!(!s.register(peer(1), 10, &[], from, now));
        assert_eq!(s.stated(peer(1), now).unwrap().source, PresenceSource::Session);
        assert_eq!(s.unregister(peer(1), now), None, "a session is not ended by a call");
        assert_eq!(state(&s, now), PresenceState::Online);
    }

    #[test]
    fn a_peer_that_went_is_remembered_for_a_while_and_then_forgotten() {
        let (mut s, t) = (sessions(), Time::start());
        let ticket = open(&mut s, 1, t.at(0).mono).ticket;
        s.close(peer(1), ticket, Ending::Clean, t.at(10).mono);
        let end = t.at(10).mono + REMEMBERED;
        assert_eq!(s.due(end - Duration::from_secs(1), 10), Due::default());
        assert!(s.stated(peer(1), end).is_some());
        assert_eq!(s.due(end, 10), Due::default());
        assert!(s.stated(peer(1), end).is_none());
        assert!(s.deadlines.first().is_none());
        assert_eq!(s.take_forgotten(), [peer(1)]);
    }

    #[test]
    fn no_more_than_the_limit_are_remembered() {
        for ending in [Ending::Clean, Ending::Lost] {
            let (mut s, t) = (Sessions::new(TIMING, 2), Time::start());
            for n in 1..=5 {
                let ticket = s.open(peer(n), 1, &[], t.at(0).mono).unwrap().ticket;
                s.close(peer(n), ticket, ending, t.at(0).mono);
            }
            let offline = t.at(30).mono;
            let told = s.due(offline, 10).changed.len();
            assert_eq!(told, if ending == Ending::Lost { 5 } else { 0 }, "the clean ones were told before");
            for n in 1..=5 {
                assert_eq!(s.stated(peer(n), offline).unwrap().state, PresenceState::Offline);
            }
            s.due(offline + TELLING, 10);
            assert_eq!(s.count, s.entries.iter().flatten().count());
            assert!(s.count <= 2, "{ending:?}: {}", s.count);
        }
    }

    #[test]
    fn a_flood_of_ended_sessions_is_bounded_at_once() {
        let (mut s, now) = (Sessions::new(TIMING, 2), Time::start().at(0).mono);
        for n in 1..=50 {
            let ticket = s.open(peer(n), 1, &[], now).unwrap().ticket;
            s.close(peer(n), ticket, Ending::Clean, now);
        }
        assert_eq!((s.count, s.entries.iter().flatten().count()), (5, 5));
    }

    #[test]
    fn every_entry_has_one_deadline_after_any_history() {
        let (mut s, t) = (sessions(), Time::start());
        let mut rng = fastrand::Rng::with_seed(3);
        let mut tickets = std::collections::HashMap::new();
        for step in 0..5_000_u64 {
            let now = t.at(step).mono;
            let who = peer(rng.u32(1..8));
            match (rng.u8(0..6), tickets.get(&who).copied()) {
                (0, _) => {
                    if let Ok(opened) = s.open(who, step, &[], now) {
                        tickets.insert(who, opened.ticket);
                    }
                }
                (1, Some(ticket)) => drop(s.close(who, ticket, Ending::Clean, now)),
                (2, Some(ticket)) => drop(s.close(who, ticket, Ending::Lost, now)),
                (3, Some(ticket)) => drop(s.beat(who, ticket, now)),
                (4, _) => drop(s.register(who, step, &[], None, now)),
                _ => drop(s.due(now, 3)),
            }
            assert_eq!(s.count, s.entries.iter().flatten().count());
        }
    }
}
