//! The peers that are here, by their ids: to [`Sessions`](super::session::Sessions) each is named by its place in the table.
//!
//! Invariant: a peer has claimed its place while anything is kept of its session.

use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;
use p2psb_proto::model::PeerId;

use super::directory::Directory;
use super::presence::Statement;
use super::session::{Ending, Freed, NotNewer, Opened, Stay, Ticket};

/// What the passing of time has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Peers of whom something else is to be said now.
    pub changed: Vec<PeerId>,
    /// Registrations that ended.
    pub freed: Vec<Freed>,
}

impl Directory {
    /// Whether a session could be opened.
    pub fn may_open(&self, peer: &PeerId, session_seq: u64, now: Instant) -> Result<(), NotNewer> {
        self.table.slot(peer).map_or(Ok(()), |slot| self.sessions.may_open(slot, session_seq, now))
    }

    /// Whether the peer has a session whose stream has not ended, so that a newer one takes its place.
    #[must_use]
    pub fn has_session(&self, peer: &PeerId) -> bool {
        self.table.slot(peer).is_some_and(|slot| self.sessions.is_open(slot))
    }

    /// Opens a session whose proof was verified; `proof` is what convinces others. `None` if the table has no place left.
    pub fn open(
        &mut self,
        peer: PeerId,
        session_seq: u64,
        proof: &[u8],
        now: Instant,
    ) -> Result<Option<Opened>, NotNewer> {
        self.may_open(&peer, session_seq, now)?;
        let Some(slot) = self.table.claim(peer) else { return Ok(None) };
        self.sessions.open(slot, session_seq, proof, now).map(Some)
    }

    /// Lists a peer by a unary registration; see [`Sessions::register`](super::session::Sessions::register).
    pub fn register(
        &mut self,
        peer: PeerId,
        seq: u64,
        proof: &[u8],
        from: Option<IpAddr>,
        now: Instant,
    ) -> bool {
        let slot = self.table.claim(peer);
        slot.is_some_and(|slot| self.sessions.register(slot, seq, proof, from, now))
    }

    /// Whether `register` would have to be admitted.
    #[must_use]
    pub fn registers_anew(&self, peer: &PeerId) -> bool {
        self.table.slot(peer).is_none_or(|slot| self.sessions.registers_anew(slot))
    }

    /// Ends a registration, not a session.
    pub fn unregister(&mut self, peer: &PeerId, now: Instant) -> Option<Freed> {
        let freed = self.sessions.unregister(self.table.slot(peer)?, now);
        self.forget();
        freed
    }

    /// The peer was heard in a session. Returns whether that is news: it had been SUSPECT.
    pub fn beat(&mut self, peer: &PeerId, ticket: Ticket, now: Instant) -> bool {
        self.table.slot(peer).is_some_and(|slot| self.sessions.beat(slot, ticket, now))
    }

    /// A session ended. Returns whether it was the peer's current one.
    pub fn close(&mut self, peer: &PeerId, ticket: Ticket, ending: Ending, now: Instant) -> bool {
        let slot = self.table.slot(peer);
        let was_current = slot.is_some_and(|slot| self.sessions.close(slot, ticket, ending, now));
        self.forget();
        was_current
    }

    /// Notices what time has changed, for at most `most` peers.
    pub fn due(&mut self, now: Instant, most: usize) -> Due {
        let due = self.sessions.due(now, most);
        let changed = due.changed.iter().filter_map(|slot| self.table.peer(*slot)).collect();
        self.forget();
        Due { changed, freed: due.freed }
    }

    /// Takes a stay in an earlier life over. Returns whether it matters, and there is room for it.
    pub fn restore(&mut self, peer: PeerId, stay: Stay<'_>, now: Instant) -> bool {
        let is_new = self.stated(&peer, now).is_none();
        if !is_new || !self.sessions.may_restore(stay.how, stay.heard, now) {
            return false;
        }
        let Some(slot) = self.table.claim(peer) else { return false };
        self.sessions.restore(slot, stay, now);
        true
    }

    fn forget(&mut self) {
        for slot in self.sessions.take_forgotten() {
            self.table.unclaim(slot);
        }
    }

    /// What this server, as a home, says of a peer that is, or was, here.
    #[must_use]
    pub fn stated(&self, peer: &PeerId, now: Instant) -> Option<Statement> {
        self.sessions.stated(self.table.slot(peer)?, now)
    }

    /// What convinces others of a peer's session or registration.
    #[must_use]
    pub fn proof(&self, peer: &PeerId) -> Option<Bytes> {
        self.sessions.proof(self.table.slot(peer)?).map(Bytes::copy_from_slice)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::directory::Capacity;
    use crate::core::session::{REMEMBERED, Timing};
    use crate::core::testing::{Time, peer, shares};

    #[test]
    fn a_peer_that_is_forgotten_gives_its_place_back() {
        let timing = Timing { heartbeat: Duration::from_secs(30), registration: Duration::from_secs(300) };
        let capacity = Capacity { records: shares(9), services: shares(9), members: 9, edges: 9 };
        let (mut d, t) = (Directory::new(peer(200), timing, capacity), Time::start());
        let ticket = d.open(peer(1), 1, b"proof", t.at(0).mono).unwrap().unwrap().ticket;
        assert_eq!(d.proof(&peer(1)).unwrap(), b"proof"[..]);
        assert!(d.close(&peer(1), ticket, Ending::Clean, t.at(10).mono));
        assert!(d.stated(&peer(1), t.at(11).mono).is_some());
        assert_eq!(d.due(t.at(10).mono + REMEMBERED, 9), Due::default());
        assert_eq!((d.table.slot(&peer(1)), d.stated(&peer(1), t.at(11).mono)), (None, None));
        assert!(d.registers_anew(&peer(1)));
    }
}
