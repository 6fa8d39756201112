//! What a rendezvous takes along from one life to the next, and what becomes of it there.
//!
//! Taken along are the statements that are worth telling, who is or was here, and who the other members are; piece by piece, so
//! that nobody waits for it. What others said of their peers is not: they say it again.
//!
//! Promises:
//! - Every statement enters the new table by the same merge as any other, counts by its own times, and is charged to whoever it
//!   was charged to. What has expired, or comes out of the future, stays behind.
//! - Who was here when the snapshot was written is SUSPECT for the usual time, as after a lost stream, if that was less than
//!   [`RECENT`] ago; else members have given it up already, and it is OFFLINE with the time it was last seen. So no peer is
//!   unknown only because its rendezvous restarted. A unary registration holds for as long from when it was heard
//!   as any other.
//! - Knowledge reaches as far back as before, if the last life ended with this snapshot and the gap is that short; else it begins
//!   anew: who came after the snapshot was begun is in nobody's memory, and how long that went on nobody knows.
//! - A clock that was set back or forward makes nothing hold longer than it could have if it were right.

use std::time::{Duration, Instant};

use bytes::Bytes;
use p2psb_proto::model::limits::{CLOCK_SKEW, RECORD_LIFETIME, WITHDRAWAL_GRACE};
use p2psb_proto::model::{NetworkId, PeerId, PeerStatement, UnixMillis};

use super::Now;
use super::admission::Admission;
use super::directory::Directory;
use super::ledger::Bringer;
use super::own::SERVICE;
use super::places::Slot;
use super::presence::HOME_LOSS_GRACE;
use super::session::{How, REMEMBERED, Stay};
use super::table::Item;

/// A gap of at most so long is one in which nobody has given the peers of this home up.
pub const RECENT: Duration = HOME_LOSS_GRACE;

/// Nothing in a snapshot of this age can count any more.
pub const LONGEST_AGE: Duration = Duration::from_secs(RECORD_LIFETIME.as_secs() + WITHDRAWAL_GRACE.as_secs());

/// What a snapshot says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The community.
    pub network: NetworkId,
    /// Whose it is.
    pub own: PeerId,
    /// When it was begun.
    pub begun: UnixMillis,
    /// How far back the knowledge in it reaches.
    pub knowledge_since: UnixMillis,
    /// The life that wrote it was over with it.
    pub is_last: bool,
}

/// One thing that is taken along. Times are those of the wall: the other clock does not outlive the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Another member.
    Member(PeerId),
    /// A peer that is, or was, here.
    Stay {
        /// Who.
        peer: PeerId,
        /// Of its session; of a registration, the `seq` of its record.
        session_seq: u64,
        /// When it was last heard.
        heard: UnixMillis,
        /// How it is here.
        how: How,
        /// What convinces others of it.
        proof: Bytes,
    },
    /// A record or withdrawal.
    Statement {
        /// Its wire form.
        bytes: Bytes,
        /// Until when older statements of the peer might count.
        keep: UnixMillis,
        /// Who pays for it.
        brought_by: Bringer,
    },
}

/// Where the walk over all that is taken along is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// At the beginning.
    #[default]
    Members,
    /// Behind this place of those who are here.
    Stays(Option<Slot>),
    /// Behind this statement.
    Statements(Option<Slot>),
}

impl Directory {
    /// What is at the `most` next places from `place` on, all members at once, and where to go on; `None`: that was all. What changes during
    /// the walk may be taken twice, or as it was.
    #[must_use]
    pub fn taken_along(&self, place: Place, most: usize, now: Now) -> (Vec<Kept>, Option<Place>) {
        match place {
            Place::Members => {
                let members = self.members.all().into_iter().map(|member| Kept::Member(member.peer));
                (members.collect(), Some(Place::Stays(None)))
            }
            Place::Stays(after) => {
                let (page, next) = self.sessions.page(after, most, now.mono);
                let next = next.map_or(Place::Statements(None), |at| Place::Stays(Some(at)));
                let kept = page.into_iter().filter_map(|(slot, stay)| {
                    let Stay { session_seq, heard, how, proof } = stay;
                    let (peer, heard) = (self.table.peer(slot)?, now.wall_at(heard));
                    Some(Kept::Stay { peer, session_seq, heard, how, proof: Bytes::copy_from_slice(proof) })
                });
                (kept.collect(), Some(next))
            }
            Place::Statements(after) => {
                let page: Vec<_> = self.table.after(after).take(most).collect();
                let next = page.last().map(|(at, _)| Place::Statements(Some(*at)));
                let entries = page.iter().filter_map(|(slot, _)| self.table.at(*slot));
                let kept =
                    entries.filter(|entry| entry.is_worth_telling(now.wall)).map(|entry| Kept::Statement {
                        bytes: entry.bytes(),
                        keep: entry.keep(),
                        brought_by: entry.brought_by(),
                    });
                (kept.collect(), next)
            }
        }
    }
}

/// Why a snapshot is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Useless {
    /// It belongs to another server.
    #[error("it is a snapshot of {0}, not of this server")]
    Foreign(PeerId),
    /// It belongs to another community.
    #[error("it is a snapshot of network {0}, not of this one")]
    Network(NetworkId),
    /// Nothing in it can count any more.
    #[error("it is of {begun}, and nothing in it counts any more")]
    TooOld {
        /// When it was written.
        begun: UnixMillis,
    },
}

/// What became of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Statements that count.
    pub statements: usize,
    /// Peers that are believed to come back, or are registered.
    pub present: usize,
    /// Peers that are remembered.
    pub gone: usize,
    /// Things that do not count any more, or have no room.
    pub dropped: usize,
}

/// A new life, while it takes over what the last one left. What is half done is given up by dropping it.
#[derive(Debug)]
pub struct Restoring {
    directory: Directory,
    registrations: Admission,
    members: Vec<PeerId>,
    network: NetworkId,
    now: Now,
    /// How long ago the snapshot was written; `None` if the clock was set back since.
    gap: Option<Duration>,
    knowledge_since: UnixMillis,
    counts: Restored,
}

impl Restoring {
    /// Into an empty directory, of the server with this id, and the admission of its unary registrations.
    pub fn new(
        (directory, registrations): (Directory, Admission),
        own: PeerId,
        network: NetworkId,
        head: &Head,
        now: Now,
    ) -> Result<Self, Useless> {
        if head.own != own {
            return Err(Useless::Foreign(head.own));
        }
        if head.network != network {
            return Err(Useless::Network(head.network));
        }
        let begun = head.begun;
        let gap = (begun <= now.wall.plus(CLOCK_SKEW)).then(|| now.wall.since(begun));
        if gap.is_some_and(|gap| gap > LONGEST_AGE) {
            return Err(Useless::TooOld { begun });
        }
        let knowledge_since = match gap {
            Some(gap) if gap <= RECENT && head.is_last => head.knowledge_since.min(now.wall),
            _ => now.wall,
        };
        let (members, counts) = (Vec::new(), Restored::default());
        Ok(Self { directory, registrations, members, network, now, gap, knowledge_since, counts })
    }

    /// Takes one thing over.
    pub fn take(&mut self, kept: Kept) {
        let taken = match kept {
            Kept::Member(peer) => {
                // Whether it is one is seen from its record, when that is here.
                self.members.push(peer);
                return;
            }
            Kept::Stay { peer, session_seq, heard, how, proof } => {
                let heard_at = self.heard(heard);
                let how = self.how(how, heard, heard_at);
                self.stay(peer, Stay { session_seq, heard: heard_at, how, proof: &proof })
            }
            Kept::Statement { bytes, keep, brought_by } => self.statement(bytes, keep, brought_by),
        };
        self.counts.dropped += usize::from(!taken);
    }

    fn statement(&mut self, bytes: Bytes, keep: UnixMillis, brought_by: Bringer) -> bool {
        let now = self.now.wall;
        let Ok(statement) = PeerStatement::verified_before(&bytes) else { return false };
        if statement.check(&self.network, now).is_err() {
            return false;
        }
        let keep = keep.min(now.plus(LONGEST_AGE + CLOCK_SKEW));
        let taken = self.directory.table.restore(Item::new(&statement), keep, brought_by, now).is_ok();
        self.counts.statements += usize::from(taken);
        taken
    }

    /// When it was by the clock of this life.
    fn heard(&self, heard: UnixMillis) -> Instant {
        let Now { mono, wall } = self.now;
        mono.checked_sub(wall.since(heard).min(REMEMBERED)).unwrap_or(mono)
    }

    /// How a peer is here now that was last heard then, by the clock of the wall and by that of this life. A registration is
    /// admitted with this.
    fn how(&mut self, how: How, heard: UnixMillis, heard_at: Instant) -> How {
        let timing = self.directory.sessions.timing();
        match how {
            How::Present => {
                // So long ago it was heard at least who was here, also where one life after the other is short.
                let silent = self.now.wall.since(heard);
                let believed = silent <= RECENT + timing.suspect_after() + timing.suspected_for();
                if believed && self.gap.is_some_and(|gap| gap <= RECENT) { how } else { How::Gone }
            }
            How::Registered { from } => {
                let runs = self.gap.is_some() && heard_at + timing.registration > self.now.mono;
                if runs && self.registrations.enter(from).is_ok() { how } else { How::Gone }
            }
            How::Gone => how,
        }
    }

    fn stay(&mut self, peer: PeerId, stay: Stay<'_>) -> bool {
        let taken = self.directory.restore(peer, stay, self.now.mono);
        match stay.how {
            How::Registered { from } if !taken => self.registrations.leave(from),
            How::Gone => self.counts.gone += usize::from(taken),
            How::Present | How::Registered { .. } => self.counts.present += usize::from(taken),
        }
        taken
    }

    /// All was taken over.
    #[must_use]
    pub fn finish(mut self) -> (Directory, Admission, Restored) {
        self.directory.knowledge_since = self.knowledge_since;
        for peer in self.members {
            if self.directory.table.provides(&peer, SERVICE, self.now.wall) {
                self.directory.members.name(peer, None, self.now.mono);
            }
        }
        (self.directory, self.registrations, self.counts)
    }
}

#[cfg(test)]
mod tests;
