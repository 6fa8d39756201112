//! What other homes say of their peers.
//!
//! Invariants:
//! - A statement stands for its home's own session only, and the home alone can change it: one statement for each (peer,
//!   home), the one of the higher `session_seq`, or the later one of the same session. Who passes it on changes nothing.
//! - How fresh a statement is follows from its home's last mark ([`super::marks`]). A home that is silent for longer than [`MARKS_MISSED`] is
//!   not believed that its peers are there, only that they may be back; after its grace they are OFFLINE.
//! - When there is no room, whoever went is forgotten for one that is there: peers of homes that are gone first, then those that
//!   said goodbye, the one heard longest ago first.
//! - After a home has said all it knows, what it did not say again is OFFLINE.

use std::time::{Duration, Instant};

use bytes::Bytes;
use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::{PresenceSource, PresenceState, aliveness};

use super::marks::{Home, Marks, Pulse};
use super::places::Slot;
use super::session::REMEMBERED;
use super::statements::{Heard, Kept, Statements};

/// How often a member sends a mark.
pub const MARK_INTERVAL: Duration = Duration::from_secs(5);
/// Without a mark for so long, three of them, ONLINE becomes SUSPECT.
pub const MARKS_MISSED: Duration = Duration::from_secs(15);
/// Without a mark for so long everybody at that home is OFFLINE, at the earliest.
pub const HOME_LOSS_GRACE: Duration = Duration::from_secs(90);

/// How often it is looked which homes are gone, while there is no room.
const GONE_PAUSE: Duration = Duration::from_secs(5);

/// Homes whose word about one peer is kept, at most: a peer has up to three, and leaves some behind.
pub const HOMES_OF_PEER: usize = 5;

/// One home's word about one of its peers. Whoever makes one has verified the peer's proof, or asked [`Presence::knows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Which session; of a registration, the `seq` of its record.
    pub session_seq: u64,
    /// What the home says.
    pub state: PresenceState,
    /// What it rests on.
    pub source: PresenceSource,
    /// When the peer was last heard by the home.
    pub heard: Instant,
    /// When a registration ends.
    pub until: Option<Instant>,
}

/// A statement on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Whose word it is.
    pub home: PeerId,
    /// Of whom.
    pub peer: PeerId,
    /// What.
    pub statement: Statement,
    /// Of what a home says of one session the higher one counts.
    pub revision: u64,
    /// The wire form of the peer's proof of its session, which convinces others.
    pub proof: Bytes,
    /// Up to when the home was heard by who says so.
    pub as_of: Instant,
    /// The home itself says so, over its link with this server.
    pub is_direct: bool,
}

/// What follows for a peer from all its homes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// What is believed.
    pub state: PresenceState,
    /// What it rests on.
    pub source: PresenceSource,
    /// When the peer was last heard, at least.
    pub last_seen: Instant,
    /// Up to when this is known.
    pub as_of: Instant,
    /// Who says so.
    pub home: PeerId,
}

impl View {
    /// Of two views the one to believe: the peer is where it is most alive, then where it was heard last.
    #[must_use]
    pub fn better(self, other: Self) -> Self {
        let rank = |view: &Self| (aliveness(view.state), view.last_seen, view.as_of, view.home);
        if rank(&other) > rank(&self) { other } else { self }
    }
}

/// Whether what is said anew is older than what was heard: it is of an earlier session, or was overtaken. After the end of a session
/// any other may follow, and nothing is older than what the home has not said again since it began to tell all. Between a session and
/// a registration only their order in one life of the home decides.
fn outlives(heard: &Heard, said: &Said, telling: u64) -> bool {
    let (old, new) = (&heard.statement, &said.statement);
    if said.is_direct && heard.telling != telling {
        return false;
    }
    let is_overtaken = said.revision < heard.revision;
    if new.source != old.source {
        return is_overtaken && heard.telling == telling;
    }
    let is_earlier = new.session_seq < old.session_seq;
    if is_earlier && said.is_direct && old.state == PresenceState::Offline {
        return is_overtaken;
    }
    is_earlier || new.session_seq == old.session_seq && is_overtaken
}

/// How far a sweep has come.
#[derive(Clone, Copy, Debug)]
enum Swept {
    Statements(Option<Slot>),
    Homes(Option<Slot>),
}

/// See the module.
#[derive(Debug)]
pub struct Presence {
    marks: Marks,
    /// Of homes that have a place among the marks.
    statements: Statements,
    limit: usize,
    /// From where the sweep goes on.
    swept: Swept,
    /// Homes that were gone when it was looked last, which was then.
    gone: (Vec<Slot>, Option<Instant>),
    /// Silence after which a home calls a peer SUSPECT: what it calls ONLINE was heard within this time.
    suspect_after: Duration,
}

impl Presence {
    /// Nothing said yet; at most `limit` statements are kept.
    #[must_use]
    pub fn new(limit: usize, suspect_after: Duration) -> Self {
        let (marks, statements, gone) = (Marks::default(), Statements::default(), (Vec::new(), None));
        Self { marks, statements, limit, swept: Swept::Statements(None), gone, suspect_after }
    }

    /// A link with a member is up: it is alive.
    pub fn linked(&mut self, member: PeerId, now: Instant) {
        self.marks.linked(member, now);
    }

    /// The link with a home ended.
    pub fn unlinked(&mut self, home: &PeerId) {
        self.marks.unlinked(home);
    }

    /// The linked member `by` says whether it hears a home. Of one that was not known nothing is fresher than `up_to`.
    pub fn heard_by(&mut self, by: &PeerId, home: PeerId, is_heard: bool, up_to: Instant) {
        self.marks.heard_by(by, home, is_heard, up_to);
    }

    /// From here on a home tells all that it says of peers that this server owns.
    pub fn begin(&mut self, home: PeerId, now: Instant) {
        self.marks.speaks(home, now);
        if let Some(home) = self.marks.home_mut(&home) {
            home.telling += 1;
        }
    }

    /// A home that others hear restarted: it says everything again, but this server does not hear when that is all.
    pub fn begin_far(&mut self, home: PeerId, now: Instant) {
        if let Some(home) = self.marks.home_mut(&home) {
            home.telling += 1;
            home.repeated_by = Some(now + HOME_LOSS_GRACE);
        }
    }

    /// Whether what a home says of a peer now it said before it began to tell all: those that heard that may have forgotten it.
    #[must_use]
    pub fn is_repeated(&self, home: &PeerId, peer: &PeerId) -> bool {
        let telling = self.marks.home(home).map(|home| home.telling);
        self.find(home, peer).is_some_and(|(_, kept)| Some(kept.heard.telling) != telling)
    }

    fn find(&self, home: &PeerId, peer: &PeerId) -> Option<(Slot, &Kept)> {
        self.statements.find(peer, self.marks.slot(home)?)
    }

    /// A home made a mark over its link with this server; it holds so many sessions.
    pub fn mark(&mut self, home: &PeerId, sessions: u64, heard: Pulse) {
        self.marks.mark(home, sessions, heard);
    }

    /// Up to when it is known what a home says; `None` if it never said anything.
    #[must_use]
    pub fn marked(&self, home: &PeerId) -> Option<Instant> {
        self.marks.home(home).map(|home| self.marks.heard(home).as_of)
    }

    /// The homes that say of a peer that it may be there, and are believed.
    pub fn homes_of(&self, peer: &PeerId, now: Instant) -> impl Iterator<Item = PeerId> {
        let there = self.statements.of_peer(peer).filter(move |(_, kept)| {
            self.of(kept, now).is_some_and(|view| view.state != PresenceState::Offline)
        });
        there.filter_map(|(_, kept)| self.marks.get(kept.home)).map(|(home, _)| *home)
    }

    /// How many sessions a home holds, as it said last; 0 if it never did.
    #[must_use]
    pub fn sessions(&self, home: &PeerId) -> u64 {
        self.marks.home(home).map(|home| home.sessions).unwrap_or_default()
    }

    /// A member made a mark that counts for the homes that it says it hears, and for these other members.
    pub fn mark_through(&mut self, by: &PeerId, members: impl Iterator<Item = PeerId>, heard: Pulse) {
        self.marks.mark_through(by, heard);
        members.for_each(|member| self.marks.was_heard(&member, heard));
    }

    /// The home has told all it says of peers whom this server owns, as `owns` knows. Of those whom it did not name, what it said
    /// is over. Looks at `most` statements behind `after`; returns who went with that, and from where to go on.
    pub fn synced(
        &mut self,
        home: &PeerId,
        owns: impl Fn(&PeerId) -> bool,
        (after, most): (Option<Slot>, usize),
    ) -> (Vec<PeerId>, Option<Slot>) {
        let Some(at_home) = self.marks.slot(home) else { return (Vec::new(), None) };
        let telling = self.marks.home(home).map(|home| home.telling).unwrap_or_default();
        let page: Vec<_> = self.statements.of_home_behind(at_home, after).take(most).collect();
        let last = page.last().map(|(at, _)| *at).filter(|_| page.len() == most);
        let of_home = page.into_iter().filter_map(|(at, kept)| {
            let is_left = kept.heard.telling != telling && !kept.heard.is_offline();
            let peer = self.statements.peer(at).filter(|peer| is_left && owns(peer))?;
            Some((at, *peer, Heard { telling, ..kept.heard.clone() }))
        });
        let mut gone = Vec::new();
        for (at, peer, mut heard) in of_home.collect::<Vec<_>>() {
            heard.statement.state = PresenceState::Offline;
            self.statements.replace(at, heard);
            gone.push(peer);
        }
        (gone, last)
    }

    /// Whether this session of the peer was proven before, so that its proof needs no second look.
    #[must_use]
    pub fn knows(&self, home: &PeerId, peer: &PeerId, session_seq: u64, source: PresenceSource) -> bool {
        let statement = self.find(home, peer).map(|(_, kept)| kept.heard.statement);
        statement.is_some_and(|said| (said.session_seq, said.source) == (session_seq, source))
    }

    /// A home speaks of a peer. Returns whether that is news: it is not when something later is known, or when there is no
    /// room: for a peer that is not OFFLINE another that is makes room.
    pub fn state(&mut self, said: Said, now: Instant) -> bool {
        let Said { home, peer, statement, revision, .. } = said;
        if said.is_direct {
            self.marks.speaks(home, said.as_of);
        } else {
            self.marks.was_heard(&home, Pulse::all_at(said.as_of));
        }
        let telling = self.marks.home(&home).map(|home| home.telling).unwrap_or_default();
        let new = Heard { telling, statement, revision, proof: said.proof.clone() };
        let Some((at, old)) = self.find(&home, &peer) else {
            return self.state_first((home, said.as_of), peer, new, now);
        };
        if outlives(&old.heard, &said, telling) {
            return false;
        }
        let before = old.heard.statement;
        // It was verified once; what came now was not, since the session was known.
        let proven = (before.session_seq, before.source) == (statement.session_seq, statement.source);
        let proof = if proven { old.heard.proof.clone() } else { said.proof };
        self.statements.replace(at, Heard { proof, ..new });
        // That it was heard since is said by the marks of its home.
        Statement { heard: statement.heard, ..before } != statement
    }

    /// A home, heard at `as_of`, speaks of a peer for the first time. Returns whether there is room.
    fn state_first(
        &mut self,
        (home, as_of): (PeerId, Instant),
        peer: PeerId,
        heard: Heard,
        now: Instant,
    ) -> bool {
        let is_full = self.statements.len() >= self.limit;
        if is_full && (heard.is_offline() || !self.make_room(now)) || !self.make_room_at(&peer) {
            return false;
        }
        let Some(at_home) = self.marks.enter(home, Pulse::all_at(as_of)) else { return false };
        self.statements.insert(peer, at_home, heard);
        true
    }

    /// What homes say of a peer, with their proofs, as it can be passed on.
    pub fn said(&self, peer: &PeerId, now: Instant) -> impl Iterator<Item = Said> {
        let peer = *peer;
        self.statements.of_peer(&peer).filter_map(move |(_, kept)| {
            let (home, at_home) =
                self.marks.get(kept.home).filter(|(_, home)| !is_over(&kept.heard, home, now))?;
            let Heard { statement, revision, ref proof, .. } = kept.heard;
            let (home, as_of, proof) = (*home, self.marks.heard(at_home).as_of, proof.clone());
            Some(Said { home, peer, statement, revision, proof, as_of, is_direct: false })
        })
    }

    /// Forgets what homes said of a peer: others own it, and what is said from now on is not heard here.
    pub fn forget(&mut self, peer: &PeerId) {
        let all: Vec<Slot> = self.statements.of_peer(peer).map(|(at, _)| at).collect();
        all.into_iter().for_each(|at| self.statements.remove(at));
    }

    /// Forgets one of a home that is gone, or else one that is OFFLINE. Returns whether there was any.
    fn make_room(&mut self, now: Instant) -> bool {
        let first = self.first_of_gone(now).or_else(|| self.statements.first_offline());
        first.into_iter().for_each(|at| self.statements.remove(at));
        first.is_some()
    }

    /// Some statement of a home that is gone. Which are is looked now and then: there are many homes.
    fn first_of_gone(&mut self, now: Instant) -> Option<Slot> {
        let (gone, looked) = &mut self.gone;
        if gone.is_empty() && looked.is_none_or(|looked| now.saturating_duration_since(looked) >= GONE_PAUSE)
        {
            self.gone = (self.marks.gone(now).collect(), Some(now));
        }
        while let Some(home) = self.gone.0.last().copied() {
            // It may be back, or somebody else may be at its place.
            let is_gone = self.marks.get(home).is_some_and(|(_, home)| self.marks.is_gone(home, now));
            if is_gone && let Some((at, _)) = self.statements.of_home(home).next() {
                return Some(at);
            }
            self.gone.0.pop();
        }
        None
    }

    /// Makes sure that one home more may speak of a peer: for it one is forgotten that says OFFLINE, if there are too many. Returns
    /// whether it may.
    fn make_room_at(&mut self, peer: &PeerId) -> bool {
        let all = || self.statements.of_peer(peer);
        if all().count() < HOMES_OF_PEER {
            return true;
        }
        let offline = all().filter(|(_, kept)| kept.heard.is_offline());
        let first = offline.map(|(at, kept)| (kept.heard.statement.heard, at)).min();
        first.into_iter().for_each(|(_, at)| self.statements.remove(at));
        first.is_some()
    }

    /// Whether one of the homes that `is_asked` names said something of a peer.
    #[must_use]
    pub fn is_said_by(&self, peer: &PeerId, is_asked: impl Fn(&PeerId) -> bool) -> bool {
        let mut homes = self.statements.of_peer(peer).filter_map(|(_, kept)| self.marks.get(kept.home));
        homes.any(|(home, _)| is_asked(home))
    }

    /// What follows for a peer.
    #[must_use]
    pub fn view(&self, peer: &PeerId, now: Instant) -> Option<View> {
        let views = self.statements.of_peer(peer).filter_map(|(_, kept)| self.of(kept, now));
        views.reduce(View::better)
    }

    /// When, by time alone, something else may follow for a peer. Homes that `speaks` names are not expected to fall silent: their
    /// end is an event of its own.
    #[must_use]
    pub fn next_change(
        &self,
        peer: &PeerId,
        speaks: impl Fn(&PeerId) -> bool,
        now: Instant,
    ) -> Option<Instant> {
        let homes =
            self.statements.of_peer(peer).filter_map(|(_, kept)| Some((kept, self.marks.get(kept.home)?)));
        let changes = homes.flat_map(|(kept, (home, at_home))| {
            let alive = (!speaks(home)).then(|| self.marks.heard(at_home).alive);
            let silent = alive.map(|alive| [alive + MARKS_MISSED, alive + at_home.grace()]);
            silent.into_iter().flatten().chain(kept.heard.statement.until).chain(at_home.repeated_by)
        });
        changes.filter(|at| *at > now).min()
    }

    fn of(&self, kept: &Kept, now: Instant) -> Option<View> {
        let (home, at_home) = self.marks.get(kept.home)?;
        let (heard, patience) = (self.marks.heard(at_home), (at_home.grace(), self.suspect_after));
        let mut view = follow(*home, &kept.heard.statement, heard, patience, now);
        if is_over(&kept.heard, at_home, now) {
            view.state = PresenceState::Offline;
        }
        Some(view)
    }

    /// What follows from a home's word that was just brought, and is not kept. Whether the home is alive may be known here better.
    #[must_use]
    pub fn follow(&self, said: &Said, now: Instant) -> View {
        let home = self.marks.home(&said.home);
        let alive = home.map_or(said.as_of, |home| self.marks.heard(home).alive.max(said.as_of));
        let (heard, grace) = (Pulse { as_of: said.as_of, alive }, home.map_or(HOME_LOSS_GRACE, Home::grace));
        follow(said.home, &said.statement, heard, (grace, self.suspect_after), now)
    }

    /// Forgets statements nobody will ask for any more, and homes without any: looks at `most`, from where it stopped. Returns whether
    /// that was the last of them.
    pub fn sweep(&mut self, most: usize, now: Instant) -> bool {
        let after = match self.swept {
            Swept::Statements(after) => after,
            Swept::Homes(after) => {
                let statements = &self.statements;
                let is_spoken = |home| statements.of_home(home).next().is_some();
                let last = self.marks.sweep((after, most), is_spoken, now);
                self.swept = last.map_or(Swept::Statements(None), |last| Swept::Homes(Some(last)));
                return last.is_none();
            }
        };
        let page = self.statements.after(after).take(most);
        let page: Vec<(Slot, bool)> = page.map(|(at, kept)| (at, self.is_left(kept, now))).collect();
        let last = page.last().map(|(at, _)| *at).filter(|_| page.len() == most);
        self.swept = last.map_or(Swept::Homes(None), |last| Swept::Statements(Some(last)));
        page.iter().filter(|(_, is_left)| *is_left).for_each(|(at, _)| self.statements.remove(*at));
        false
    }

    /// Whether nobody will ask for a statement any more.
    fn is_left(&self, kept: &Kept, now: Instant) -> bool {
        let Statement { heard, until, .. } = kept.heard.statement;
        let is_over = until.is_some_and(|until| until <= now);
        let is_old = now.saturating_duration_since(heard) >= REMEMBERED;
        is_old && (is_over || self.of(kept, now).is_none_or(|view| view.state == PresenceState::Offline))
    }
}

/// Whether a home restarted since it said this, and ought to have said it again.
fn is_over(heard: &Heard, home: &Home, now: Instant) -> bool {
    heard.telling != home.telling && home.repeated_by.is_some_and(|by| by <= now)
}

/// What follows from the word of a home that was heard so.
fn follow(
    home: PeerId,
    statement: &Statement,
    Pulse { as_of, alive }: Pulse,
    (grace, suspect_after): (Duration, Duration),
    now: Instant,
) -> View {
    let Statement { state, source, heard: at, until, .. } = *statement;
    let silent = now.saturating_duration_since(alive);
    let state = match state {
        _ if silent >= grace => PresenceState::Offline,
        PresenceState::Online if until.is_some_and(|until| until <= now) => PresenceState::Offline,
        PresenceState::Online if silent >= MARKS_MISSED => PresenceState::Suspect,
        state => state,
    };
    // Heartbeats are not passed on; but whom the home calls ONLINE it has heard within this time.
    let surely = match (state, source) {
        (PresenceState::Online, PresenceSource::Session) => as_of.checked_sub(suspect_after),
        _ => None,
    };
    let last_seen = surely.map_or(at, |surely| surely.max(at));
    View { state, source, last_seen, as_of, home }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Time, peer};

    const HOME: u8 = 100;
    const OTHER: u8 = 101;

    fn presence(t: Time) -> Presence {
        let mut presence = Presence::new(100, Duration::from_secs(75));
        presence.begin(peer(HOME), t.at(0).mono);
        presence.begin(peer(OTHER), t.at(0).mono);
        presence
    }

    fn said(session_seq: u64, state: PresenceState, heard: Instant) -> Statement {
        Statement { session_seq, state, source: PresenceSource::Session, heard, until: None }
    }

    /// The home itself says so.
    fn say(presence: &mut Presence, home: PeerId, peer: PeerId, statement: Statement) -> bool {
        presence.state(by(home, peer, statement, 1), statement.heard)
    }

    fn by(home: PeerId, peer: PeerId, statement: Statement, revision: u64) -> Said {
        let as_of = statement.heard;
        Said { home, peer, statement, revision, proof: Bytes::new(), as_of, is_direct: true }
    }

    fn state(presence: &Presence, at: Instant) -> PresenceState {
        presence.view(&peer(1), at).unwrap().state
    }

    fn sweep(presence: &mut Presence, now: Instant) {
        while !presence.sweep(1, now) {}
    }

    #[test]
    fn a_peer_is_online_if_any_home_says_so() {
        let t = Time::start();
        let (mut p, now) = (presence(t), t.at(1).mono);
        say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Online, now));
        say(&mut p, peer(OTHER), peer(1), said(7, PresenceState::Offline, now));
        let view = p.view(&peer(1), now).unwrap();
        assert_eq!((view.state, view.home), (PresenceState::Online, peer(HOME)));
        say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Offline, now));
        assert_eq!(state(&p, now), PresenceState::Offline);
    }

    #[test]
    fn an_older_session_of_the_same_home_is_not_heard() {
        let t = Time::start();
        let (mut p, now) = (presence(t), t.at(1).mono);
        assert!(say(&mut p, peer(HOME), peer(1), said(5, PresenceState::Online, now)));
        assert!(!say(&mut p, peer(HOME), peer(1), said(4, PresenceState::Offline, now)));
        assert_eq!(state(&p, now), PresenceState::Online);
        assert!(p.knows(&peer(HOME), &peer(1), 5, PresenceSource::Session));
        assert!(!p.knows(&peer(HOME), &peer(1), 6, PresenceSource::Session));
        assert!(!p.knows(&peer(OTHER), &peer(1), 5, PresenceSource::Session));
        assert!(!p.knows(&peer(HOME), &peer(1), 5, PresenceSource::Registration));
    }

    #[test]
    fn a_home_that_others_hear_says_again_what_holds_after_it_restarted() {
        let t = Time::start();
        let (mut p, now) = (presence(t), t.at(1).mono);
        let far = |n, seq, revision| {
            let said = by(peer(HOME), peer(n), said(seq, PresenceState::Online, now), revision);
            Said { is_direct: false, as_of: t.at(200).mono, ..said }
        };
        assert!(p.state(far(1, 5, 1), now) && p.state(far(2, 5, 1), now));
        assert!(!p.is_repeated(&peer(HOME), &peer(1)));
        p.begin_far(peer(HOME), t.at(100).mono);
        assert!(p.is_repeated(&peer(HOME), &peer(1)));
        p.state(far(1, 5, 2), now);
        assert!(!p.is_repeated(&peer(HOME), &peer(1)));
        assert_eq!(p.next_change(&peer(2), |_| true, t.at(100).mono), Some(t.at(190).mono));
        let at = |p: &Presence, n, at| p.view(&peer(n), t.at(at).mono).unwrap().state;
        assert_eq!(at(&p, 2, 189), PresenceState::Online, "it has some time to say so");
        assert_eq!((at(&p, 1, 190), at(&p, 2, 190)), (PresenceState::Online, PresenceState::Offline));
        assert_eq!(p.said(&peer(1), t.at(190).mono).count(), 1);
        assert_eq!(p.said(&peer(2), t.at(190).mono).count(), 0, "it is not passed on");
    }

    #[test]
    fn of_one_peer_a_few_homes_are_heard_and_those_it_left_make_room() {
        let t = Time::start();
        let (mut p, now) = (presence(t), t.at(1).mono);
        for home in 0..10 {
            say(&mut p, peer(home), peer(1), said(1, PresenceState::Offline, t.at(u64::from(home)).mono));
        }
        let homes = |p: &Presence| {
            let mut homes: Vec<_> = p.said(&peer(1), now).map(|said| said.home).collect();
            homes.sort_unstable();
            homes
        };
        let sorted = |homes: std::ops::Range<u8>| {
            let mut homes: Vec<_> = homes.map(peer).collect();
            homes.sort_unstable();
            homes
        };
        assert_eq!(homes(&p), sorted(5..10), "the last that it left");
        for home in 20..30 {
            say(&mut p, peer(home), peer(1), said(1, PresenceState::Online, now));
        }
        assert_eq!(homes(&p), sorted(20..25), "none that it is at had to go");
        assert_eq!((p.statements.len(), p.statements.first_offline()), (HOMES_OF_PEER, None));
    }

    #[test]
    fn a_proof_that_was_verified_stays() {
        let t = Time::start();
        let (mut p, now) = (presence(t), t.at(1).mono);
        let proven = |seq, revision, proof: &'static [u8]| {
            let said = by(peer(HOME), peer(1), said(seq, PresenceState::Online, now), revision);
            Said { proof: Bytes::from_static(proof), ..said }
        };
        let kept = |p: &Presence| p.said(&peer(1), now).next().unwrap().proof;
        p.state(proven(1, 1, b"first"), now);
        p.state(proven(1, 2, b"anything"), now);
        assert_eq!(kept(&p), &b"first"[..]);
        p.state(proven(2, 3, b"second"), now);
        assert_eq!(kept(&p), &b"second"[..]);
    }

    #[test]
    fn what_others_pass_on_never_outlives_what_came_later() {
        let t = Time::start();
        let (mut p, now) = (presence(t), t.at(1).mono);
        let passed_on = |state, revision| {
            let said = by(peer(HOME), peer(1), said(5, state, now), revision);
            Said { is_direct: false, ..said }
        };
        assert!(p.state(by(peer(HOME), peer(1), said(5, PresenceState::Offline, now), 7), now));
        assert!(!p.state(passed_on(PresenceState::Online, 6), now), "it was overtaken");
        assert_eq!(state(&p, now), PresenceState::Offline);
        assert!(p.state(passed_on(PresenceState::Online, 8), now));
        assert!(!p.state(passed_on(PresenceState::Online, 9), now), "the same again is no news");
        assert!(!p.state(by(peer(HOME), peer(1), said(5, PresenceState::Suspect, now), 8), now));
        // The home tells all anew, with a clock that was set back.
        p.begin(peer(HOME), now);
        assert!(p.state(by(peer(HOME), peer(1), said(5, PresenceState::Suspect, now), 2), now));
        assert_eq!(state(&p, now), PresenceState::Suspect);
        let told: Vec<_> =
            p.said(&peer(1), now).map(|said| (said.home, said.revision, said.is_direct)).collect();
        assert_eq!(told, [(peer(HOME), 2, false)]);
    }

    #[test]
    fn a_home_that_others_hear_is_as_fresh_as_they_say() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Online, at(0)));
        say(&mut p, peer(OTHER), peer(2), said(1, PresenceState::Online, at(0)));
        [HOME, OTHER].iter().for_each(|home| p.unlinked(&peer(*home)));
        p.linked(peer(102), at(1));
        p.heard_by(&peer(102), peer(HOME), true, at(1));
        p.mark_through(&peer(102), std::iter::empty(), Pulse::all_at(at(12)));
        assert_eq!(state(&p, at(26)), PresenceState::Online);
        assert_eq!(p.next_change(&peer(1), |_| false, at(26)), Some(at(27)));
        assert_eq!(p.said(&peer(1), at(26)).next().unwrap().as_of, at(12));
        assert_eq!(p.view(&peer(2), at(26)).unwrap().state, PresenceState::Suspect);
        p.mark_through(&peer(102), [peer(OTHER)].into_iter(), Pulse::all_at(at(20)));
        assert_eq!(p.view(&peer(2), at(26)).unwrap().state, PresenceState::Online);
        sweep(&mut p, at(50) + REMEMBERED);
        assert!(p.view(&peer(1), at(50)).is_none() && p.marks.home(&peer(HOME)).is_some());
        assert!(p.marks.home(&peer(OTHER)).is_none(), "nobody speaks of it, or hears it");
    }

    #[test]
    fn what_others_own_is_forgotten_as_a_whole() {
        let t = Time::start();
        let (mut p, now) = (presence(t), t.at(1).mono);
        say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Offline, now));
        say(&mut p, peer(OTHER), peer(1), said(1, PresenceState::Online, now));
        say(&mut p, peer(OTHER), peer(2), said(1, PresenceState::Online, now));
        p.forget(&peer(1));
        p.forget(&peer(3));
        assert!(p.view(&peer(1), now).is_none() && p.view(&peer(2), now).is_some());
        assert_eq!((p.statements.len(), p.statements.first_offline()), (1, None));
    }

    #[test]
    fn a_home_with_many_peers_has_more_time_to_come_back() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Online, at(0)));
        p.mark(&peer(HOME), 400_000, Pulse::all_at(at(0)));
        assert_eq!(state(&p, at(199)), PresenceState::Suspect);
        assert_eq!(state(&p, at(200)), PresenceState::Offline);
    }

    #[test]
    fn without_marks_online_becomes_suspect_and_after_the_grace_offline() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Online, at(0)));
        p.mark(&peer(HOME), 0, Pulse::all_at(at(10)));
        assert_eq!(state(&p, at(24)), PresenceState::Online);
        assert_eq!(state(&p, at(25)), PresenceState::Suspect);
        assert_eq!(state(&p, at(99)), PresenceState::Suspect);
        assert_eq!(state(&p, at(100)), PresenceState::Offline);
        assert_eq!(p.view(&peer(1), at(100)).unwrap().as_of, at(10), "no fresher than the last mark");
        p.mark(&peer(HOME), 0, Pulse::all_at(at(101)));
        assert_eq!(state(&p, at(101)), PresenceState::Online, "the home is back and says nothing else");
    }

    #[test]
    fn last_seen_of_an_online_peer_is_at_most_the_silence_that_would_make_it_suspect() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Online, at(0)));
        assert_eq!(p.view(&peer(1), at(5)).unwrap().last_seen, at(0));
        p.mark(&peer(HOME), 0, Pulse::all_at(at(1000)));
        assert_eq!(p.view(&peer(1), at(1001)).unwrap().last_seen, at(925));
    }

    #[test]
    fn a_registration_ends_by_itself() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        let source = PresenceSource::Registration;
        let statement = Statement { source, until: Some(at(12)), ..said(1, PresenceState::Online, at(0)) };
        say(&mut p, peer(HOME), peer(1), statement);
        assert_eq!(state(&p, at(11)), PresenceState::Online);
        assert_eq!(state(&p, at(12)), PresenceState::Offline);
    }

    #[test]
    fn whom_a_home_does_not_name_again_is_offline() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Online, at(0)));
        say(&mut p, peer(HOME), peer(2), said(1, PresenceState::Online, at(0)));
        say(&mut p, peer(OTHER), peer(3), said(1, PresenceState::Online, at(0)));
        p.begin(peer(HOME), at(5));
        say(&mut p, peer(HOME), peer(2), said(1, PresenceState::Online, at(5)));
        assert_eq!(state(&p, at(5)), PresenceState::Online, "not before the home has said all");
        let (mut gone, mut after) = (Vec::new(), None);
        loop {
            let (some, last) = p.synced(&peer(HOME), |one| *one != peer(9), (after, 1));
            gone.extend(some);
            after = last;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(gone, [peer(1)]);
        assert_eq!(p.synced(&peer(HOME), |_| true, (None, 9)), (vec![], None), "who went goes once");
        assert_eq!(state(&p, at(6)), PresenceState::Offline);
        assert_eq!(p.view(&peer(2), at(6)).unwrap().state, PresenceState::Online);
        assert_eq!(p.view(&peer(3), at(6)).unwrap().state, PresenceState::Online);
    }

    #[test]
    fn what_is_kept_is_bounded_and_swept() {
        let t = Time::start();
        let mut p = Presence::new(2, Duration::from_secs(75));
        p.begin(peer(HOME), t.at(0).mono);
        assert!(say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Offline, t.at(0).mono)));
        assert!(say(&mut p, peer(HOME), peer(2), said(1, PresenceState::Online, t.at(0).mono)));
        assert!(!say(&mut p, peer(HOME), peer(3), said(1, PresenceState::Offline, t.at(0).mono)), "no room");
        assert_eq!((p.statements.len(), p.statements.first_offline().is_some()), (2, true));
        let later = t.at(0).mono + REMEMBERED;
        p.mark(&peer(HOME), 0, Pulse::all_at(later));
        sweep(&mut p, later);
        assert!(p.view(&peer(1), later).is_none());
        assert!(p.view(&peer(2), later).is_some());
        assert_eq!((p.statements.len(), p.statements.first_offline()), (1, None));
    }

    #[test]
    fn who_went_makes_room_for_who_is_there() {
        let t = Time::start();
        let (mut p, at) = (Presence::new(2, Duration::from_secs(75)), |s| t.at(s).mono);
        p.begin(peer(HOME), at(0));
        assert!(say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Offline, at(2))));
        assert!(say(&mut p, peer(HOME), peer(2), said(1, PresenceState::Offline, at(1))));
        assert!(say(&mut p, peer(HOME), peer(3), said(1, PresenceState::Online, at(3))));
        assert!(p.view(&peer(2), at(3)).is_none(), "it was heard longest ago");
        assert!(say(&mut p, peer(HOME), peer(1), said(2, PresenceState::Online, at(3))), "it came back");
        assert_eq!(p.statements.first_offline(), None);
        assert!(!say(&mut p, peer(HOME), peer(4), said(1, PresenceState::Online, at(3))), "all are there");
        assert_eq!(p.statements.len(), 2);
    }

    #[test]
    fn peers_of_homes_that_are_gone_make_room_before_those_that_said_goodbye() {
        let t = Time::start();
        let (mut p, at) = (Presence::new(4, Duration::from_secs(75)), |s| t.at(s).mono);
        let mut say =
            |home, n, state, now| p.state(by(peer(home), peer(n), said(1, state, at(now)), 1), at(now));
        assert!(say(OTHER, 1, PresenceState::Online, 0) && say(OTHER, 2, PresenceState::Online, 0));
        assert!(say(HOME, 3, PresenceState::Offline, 0));
        assert!(say(HOME, 4, PresenceState::Online, 80));
        assert!(say(HOME, 5, PresenceState::Online, 80), "the one that said goodbye makes room");
        assert!(!say(HOME, 6, PresenceState::Online, 89), "all are there");
        assert!(!say(HOME, 6, PresenceState::Online, 90), "it was looked a moment ago");
        p.mark(&peer(HOME), 0, Pulse::all_at(at(94)));
        let mut say = |home, n, state| p.state(by(peer(home), peer(n), said(1, state, at(94)), 1), at(94));
        assert!(say(HOME, 4, PresenceState::Offline));
        assert!(say(HOME, 6, PresenceState::Online) && say(HOME, 7, PresenceState::Online));
        assert!(!say(HOME, 8, PresenceState::Offline), "whoever went takes nobody's place");
        let known =
            |p: &Presence| (1..=8).filter(|n| p.view(&peer(*n), at(94)).is_some()).collect::<Vec<_>>();
        assert_eq!(known(&p), [4, 5, 6, 7]);
    }

    #[test]
    fn a_home_that_is_back_keeps_what_it_said() {
        let t = Time::start();
        let (mut p, at) = (Presence::new(2, Duration::from_secs(75)), |s| t.at(s).mono);
        let mut say = |home, n, now| {
            p.state(by(peer(home), peer(n), said(1, PresenceState::Online, at(now)), 1), at(now))
        };
        assert!(say(OTHER, 1, 0) && say(OTHER, 2, 0));
        assert!(say(HOME, 3, 95), "it is gone");
        p.mark(&peer(OTHER), 0, Pulse::all_at(at(96)));
        let mut say = |n| p.state(by(peer(HOME), peer(n), said(1, PresenceState::Online, at(97)), 1), at(97));
        assert!(!say(4), "it is back");
    }

    #[test]
    fn a_home_that_lives_and_lags_behind_is_believed_as_far_as_it_has_told() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Online, at(0)));
        p.mark(&peer(HOME), 0, Pulse { as_of: at(2), alive: at(200) });
        let view = p.view(&peer(1), at(201)).unwrap();
        assert_eq!((view.state, view.as_of), (PresenceState::Online, at(2)));
        // Others are told the same, and know as well that it lives.
        let passed_on = p.said(&peer(1), at(201)).next().unwrap();
        assert_eq!(passed_on.as_of, at(2));
        assert_eq!(p.follow(&passed_on, at(201)).state, PresenceState::Online);
        assert_eq!(p.next_change(&peer(1), |_| false, at(201)), Some(at(215)));
        assert_eq!(state(&p, at(215)), PresenceState::Suspect);
        assert_eq!(state(&p, at(290)), PresenceState::Offline);
    }

    #[test]
    fn a_registration_that_was_overtaken_by_a_session_is_not_heard() {
        let t = Time::start();
        let (mut p, now) = (presence(t), t.at(1).mono);
        let passed_on = |source, revision| {
            let statement = Statement { source, ..said(5, PresenceState::Online, now) };
            Said { is_direct: false, ..by(peer(HOME), peer(1), statement, revision) }
        };
        let (session, registration) = (PresenceSource::Session, PresenceSource::Registration);
        let source = |p: &Presence| p.view(&peer(1), now).unwrap().source;
        assert!(p.state(passed_on(session, 10), now));
        assert!(!p.state(passed_on(registration, 9), now), "two carry it, and one is late");
        assert_eq!(source(&p), session);
        assert!(p.state(passed_on(registration, 11), now));
        assert_eq!(source(&p), registration);
        // In another life the clock of the home may have been set back.
        p.begin_far(peer(HOME), now);
        assert!(p.state(passed_on(session, 3), now));
    }
}
