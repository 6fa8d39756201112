//! What other homes say of their peers.
//!
//! Invariants:
//! - A statement stands for its home's own session only, and the home alone can change it: one statement for each (peer,
//!   home), the one of the higher `session_seq`, or the later one of the same session. Who passes it on changes nothing.
//! - How fresh a statement is follows from its home's last mark. A home that is silent for longer than [`MARKS_MISSED`] is
//!   not believed that its peers are there, only that they may be back; after its grace they are OFFLINE.
//! - When there is no room, whoever went is forgotten for one that is there, the one heard longest ago first.
//! - After a home has said all it knows, what it did not say again is OFFLINE.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::{PresenceSource, PresenceState, aliveness};

use super::homes::home_loss_grace;
use super::session::REMEMBERED;

/// How often a member sends a mark.
pub const MARK_INTERVAL: Duration = Duration::from_secs(5);
/// Without a mark for so long, three of them, ONLINE becomes SUSPECT.
pub const MARKS_MISSED: Duration = Duration::from_secs(15);
/// Without a mark for so long everybody at that home is OFFLINE, at the earliest.
pub const HOME_LOSS_GRACE: Duration = Duration::from_secs(90);

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

#[derive(Clone, Debug)]
struct Heard {
    home: PeerId,
    /// In which telling of the home.
    telling: u64,
    statement: Statement,
    revision: u64,
    proof: Bytes,
}

impl Heard {
    /// Whether what is said anew is older than this: it is of an earlier session, or was overtaken. After the end of a session
    /// any other may follow, and nothing is older than what the home has not said again since it began to tell all.
    fn outlives(&self, said: &Said, telling: u64) -> bool {
        let (old, new) = (&self.statement, &said.statement);
        if said.is_direct && self.telling != telling {
            return false;
        }
        let is_earlier = new.session_seq < old.session_seq;
        if is_earlier && said.is_direct && new.source == old.source && old.state == PresenceState::Offline {
            return said.revision < self.revision;
        }
        new.source == old.source && (new.session_seq, said.revision) < (old.session_seq, self.revision)
    }
}

#[derive(Clone, Copy, Debug)]
struct Home {
    as_of: Instant,
    /// Counts how often this home began to tell all it knows.
    telling: u64,
    /// Its live sessions, as it said last.
    sessions: u64,
    /// Of a home that others hear: from then on only what it said again since it restarted counts.
    repeated_by: Option<Instant>,
}

impl Home {
    /// Without a mark for so long its peers are OFFLINE.
    fn grace(&self) -> Duration {
        home_loss_grace(self.sessions)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Presence {
    homes: HashMap<PeerId, Home>,
    peers: HashMap<PeerId, Vec<Heard>>,
    /// The statements that say OFFLINE, by when the peer was heard: peer and home.
    offline: BTreeSet<(Instant, PeerId, PeerId)>,
    statements: usize,
    limit: usize,
    /// Silence after which a home calls a peer SUSPECT: what it calls ONLINE was heard within this time.
    suspect_after: Duration,
}

impl Presence {
    /// Nothing said yet; at most `limit` statements are kept.
    #[must_use]
    pub fn new(limit: usize, suspect_after: Duration) -> Self {
        let (homes, peers, offline) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        Self { homes, peers, offline, statements: 0, limit, suspect_after }
    }

    /// A link with a home is up: it is alive.
    pub fn linked(&mut self, home: PeerId, now: Instant) {
        self.home(home, now);
    }

    fn home(&mut self, home: PeerId, as_of: Instant) -> &mut Home {
        self.homes.entry(home).or_insert(Home { as_of, telling: 0, sessions: 0, repeated_by: None })
    }

    /// From here on a home tells all that it says of peers that this server owns.
    pub fn begin(&mut self, home: PeerId, now: Instant) {
        self.home(home, now).telling += 1;
    }

    /// A home that others hear restarted: it says everything again, but this server does not hear when that is all.
    pub fn begin_far(&mut self, home: PeerId, now: Instant) {
        if let Some(home) = self.homes.get_mut(&home) {
            home.telling += 1;
            home.repeated_by = Some(now + HOME_LOSS_GRACE);
        }
    }

    /// Whether what a home says of a peer now it said before it began to tell all: those that heard that may have forgotten it.
    #[must_use]
    pub fn is_repeated(&self, home: &PeerId, peer: &PeerId) -> bool {
        let Some(telling) = self.homes.get(home).map(|home| home.telling) else { return false };
        let said = self.peers.get(peer).into_iter().flatten().find(|heard| heard.home == *home);
        said.is_some_and(|heard| heard.telling != telling)
    }

    /// What the home told is complete up to `as_of`; it holds so many sessions.
    pub fn mark(&mut self, home: &PeerId, sessions: u64, as_of: Instant) {
        if let Some(home) = self.homes.get_mut(home) {
            home.as_of = home.as_of.max(as_of);
            home.sessions = sessions;
        }
    }

    /// Up to when it is known what a home says; `None` if it never said anything.
    #[must_use]
    pub fn marked(&self, home: &PeerId) -> Option<Instant> {
        self.homes.get(home).map(|home| home.as_of)
    }

    /// The homes that say of a peer that it may be there, and are believed.
    pub fn homes_of(&self, peer: &PeerId, now: Instant) -> impl Iterator<Item = PeerId> {
        let heards = self.peers.get(peer).into_iter().flatten();
        heards
            .filter(move |heard| self.of(heard, now).is_some_and(|view| view.state != PresenceState::Offline))
            .map(|heard| heard.home)
    }

    /// How many sessions a home holds, as it said last; 0 if it never did.
    #[must_use]
    pub fn sessions(&self, home: &PeerId) -> u64 {
        self.homes.get(home).map(|home| home.sessions).unwrap_or_default()
    }

    /// Others hear the home, and pass on what it says: of those that `hears` names that is so up to `as_of`.
    pub fn mark_through(&mut self, hears: impl Fn(&PeerId) -> bool, as_of: Instant) {
        for (_, home) in self.homes.iter_mut().filter(|(home, _)| hears(home)) {
            home.as_of = home.as_of.max(as_of);
        }
    }

    /// The home has told all it says of peers whom this server owns, as `owns` knows. Of those whom it did not name, what it said
    /// is over. Returns who went with that.
    pub fn synced(&mut self, home: &PeerId, owns: impl Fn(&PeerId) -> bool) -> Vec<PeerId> {
        let Some(telling) = self.homes.get(home).map(|home| home.telling) else { return Vec::new() };
        let mut gone = Vec::new();
        for (peer, heards) in &mut self.peers {
            let of_home = heards.iter_mut().filter(|heard| heard.home == *home && heard.telling != telling);
            for heard in of_home.filter(|heard| heard.statement.state != PresenceState::Offline && owns(peer))
            {
                heard.telling = telling;
                heard.statement.state = PresenceState::Offline;
                self.offline.insert((heard.statement.heard, *peer, *home));
                gone.push(*peer);
            }
        }
        gone
    }

    /// Whether this session of the peer was proven before, so that its proof needs no second look.
    #[must_use]
    pub fn knows(&self, home: &PeerId, peer: &PeerId, session_seq: u64, source: PresenceSource) -> bool {
        self.peers.get(peer).into_iter().flatten().any(|heard| {
            heard.home == *home
                && heard.statement.session_seq == session_seq
                && heard.statement.source == source
        })
    }

    /// A home speaks of a peer. Returns whether that is news: it is not when something later is known, or when there is no
    /// room: for a peer that is not OFFLINE another that is makes room.
    pub fn state(&mut self, said: Said) -> bool {
        let Said { home, peer, statement, revision, .. } = said;
        let at_home = self.home(home, said.as_of);
        if !said.is_direct {
            at_home.as_of = at_home.as_of.max(said.as_of);
        }
        let telling = at_home.telling;
        let offline = statement.state == PresenceState::Offline;
        let new = Heard { home, telling, statement, revision, proof: said.proof.clone() };
        let known = self.peers.get_mut(&peer).and_then(|all| all.iter_mut().find(|heard| heard.home == home));
        let before = match known {
            Some(old) if old.outlives(&said, telling) => return false,
            Some(old) => {
                self.offline.remove(&(old.statement.heard, peer, home));
                let is_same = |one: &Statement| (one.session_seq, one.source);
                // It was verified once; what came now was not, since the session was known.
                let proven = is_same(&old.statement) == is_same(&statement);
                let proof = if proven { old.proof.clone() } else { said.proof };
                Some(std::mem::replace(old, Heard { proof, ..new }).statement)
            }
            None => {
                if self.statements >= self.limit && (offline || !self.make_room())
                    || !self.make_room_at(&peer)
                {
                    return false;
                }
                self.peers.entry(peer).or_default().push(new);
                self.statements += 1;
                None
            }
        };
        if offline {
            self.offline.insert((statement.heard, peer, home));
        }
        // That it was heard since is said by the marks of its home.
        before.is_none_or(|before| Statement { heard: statement.heard, ..before } != statement)
    }

    /// What homes say of a peer, with their proofs, as it can be passed on.
    pub fn said(&self, peer: &PeerId, now: Instant) -> impl Iterator<Item = Said> {
        let peer = *peer;
        self.peers.get(&peer).into_iter().flatten().filter_map(move |heard| {
            let Heard { home, statement, revision, ref proof, .. } = *heard;
            let as_of = self.homes.get(&home).filter(|home| !is_over(heard, home, now))?.as_of;
            Some(Said { home, peer, statement, revision, proof: proof.clone(), as_of, is_direct: false })
        })
    }

    /// Forgets what homes said of a peer: others own it, and what is said from now on is not heard here.
    pub fn forget(&mut self, peer: &PeerId) {
        for heard in self.peers.remove(peer).unwrap_or_default() {
            self.offline.remove(&(heard.statement.heard, *peer, heard.home));
            self.statements = self.statements.saturating_sub(1);
        }
    }

    /// Forgets one that is OFFLINE. Returns whether there was any.
    fn make_room(&mut self) -> bool {
        let Some((_, peer, home)) = self.offline.pop_first() else { return false };
        if let Some(heards) = self.peers.get_mut(&peer) {
            heards.retain(|heard| heard.home != home);
            if heards.is_empty() {
                self.peers.remove(&peer);
            }
        }
        self.statements = self.statements.saturating_sub(1);
        true
    }

    /// Makes sure that one home more may speak of a peer: for it one is forgotten that says OFFLINE, if there are too many. Returns
    /// whether it may.
    fn make_room_at(&mut self, peer: &PeerId) -> bool {
        let Some(heards) = self.peers.get_mut(peer).filter(|heards| heards.len() >= HOMES_OF_PEER) else {
            return true;
        };
        let offline = heards.iter().filter(|heard| heard.statement.state == PresenceState::Offline);
        let Some((at, home)) = offline.map(|heard| (heard.statement.heard, heard.home)).min() else {
            return false;
        };
        heards.retain(|heard| heard.home != home);
        self.offline.remove(&(at, *peer, home));
        self.statements = self.statements.saturating_sub(1);
        true
    }

    /// Whether one of the homes that `is_asked` names said something of a peer.
    #[must_use]
    pub fn is_said_by(&self, peer: &PeerId, is_asked: impl Fn(&PeerId) -> bool) -> bool {
        self.peers.get(peer).into_iter().flatten().any(|heard| is_asked(&heard.home))
    }

    /// What follows for a peer.
    #[must_use]
    pub fn view(&self, peer: &PeerId, now: Instant) -> Option<View> {
        let views = self.peers.get(peer)?.iter().filter_map(|heard| self.of(heard, now));
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
        let changes = self.peers.get(peer)?.iter().flat_map(|heard| {
            let silent = self.homes.get(&heard.home).filter(|_| !speaks(&heard.home));
            let silent =
                silent.into_iter().flat_map(|home| [home.as_of + MARKS_MISSED, home.as_of + home.grace()]);
            let repeated = self.homes.get(&heard.home).and_then(|home| home.repeated_by);
            silent.chain(heard.statement.until).chain(repeated)
        });
        changes.filter(|at| *at > now).min()
    }

    fn of(&self, heard: &Heard, now: Instant) -> Option<View> {
        let home = self.homes.get(&heard.home)?;
        let mut view =
            follow(heard.home, &heard.statement, home.as_of, (home.grace(), self.suspect_after), now);
        if is_over(heard, home, now) {
            view.state = PresenceState::Offline;
        }
        Some(view)
    }

    /// What follows from a home's word that was just brought, and is not kept.
    #[must_use]
    pub fn follow(&self, said: &Said, now: Instant) -> View {
        let grace = self.homes.get(&said.home).map_or(HOME_LOSS_GRACE, Home::grace);
        follow(said.home, &said.statement, said.as_of, (grace, self.suspect_after), now)
    }

    /// Forgets statements nobody will ask for any more, and homes without any.
    pub fn sweep(&mut self, now: Instant) {
        let homes = &self.homes;
        let matters = |heard: &Heard| {
            let silent_since = homes.get(&heard.home);
            let offline = heard.statement.state == PresenceState::Offline
                || heard.statement.until.is_some_and(|until| until <= now)
                || silent_since.is_some_and(|home| is_over(heard, home, now))
                || silent_since.is_none_or(|home| now.saturating_duration_since(home.as_of) >= home.grace());
            !offline || now.saturating_duration_since(heard.statement.heard) < REMEMBERED
        };
        let offline = &mut self.offline;
        self.peers.retain(|peer, heards| {
            heards.retain(|heard| {
                let stays = matters(heard);
                if !stays {
                    offline.remove(&(heard.statement.heard, *peer, heard.home));
                }
                stays
            });
            !heards.is_empty()
        });
        self.statements = self.peers.values().map(Vec::len).sum();
        let spoken: HashSet<PeerId> = self.peers.values().flatten().map(|heard| heard.home).collect();
        self.homes.retain(|peer, home| {
            let silent = now.saturating_duration_since(home.as_of);
            silent < home.grace() || spoken.contains(peer) && silent < 2 * REMEMBERED
        });
    }
}

/// Whether a home restarted since it said this, and ought to have said it again.
fn is_over(heard: &Heard, home: &Home, now: Instant) -> bool {
    heard.telling != home.telling && home.repeated_by.is_some_and(|by| by <= now)
}

/// What follows from the word of a home that was last heard at `as_of`.
fn follow(
    home: PeerId,
    statement: &Statement,
    as_of: Instant,
    (grace, suspect_after): (Duration, Duration),
    now: Instant,
) -> View {
    let Statement { state, source, heard: at, until, .. } = *statement;
    let silent = now.saturating_duration_since(as_of);
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
        presence.state(by(home, peer, statement, 1))
    }

    fn by(home: PeerId, peer: PeerId, statement: Statement, revision: u64) -> Said {
        let as_of = statement.heard;
        Said { home, peer, statement, revision, proof: Bytes::new(), as_of, is_direct: true }
    }

    fn state(presence: &Presence, at: Instant) -> PresenceState {
        presence.view(&peer(1), at).unwrap().state
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
        assert!(p.state(far(1, 5, 1)) && p.state(far(2, 5, 1)));
        assert!(!p.is_repeated(&peer(HOME), &peer(1)));
        p.begin_far(peer(HOME), t.at(100).mono);
        assert!(p.is_repeated(&peer(HOME), &peer(1)));
        p.state(far(1, 5, 2));
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
        let homes = |p: &Presence| p.said(&peer(1), now).map(|said| said.home).collect::<BTreeSet<_>>();
        assert_eq!(homes(&p), (5..10).map(peer).collect(), "the last that it left");
        for home in 20..30 {
            say(&mut p, peer(home), peer(1), said(1, PresenceState::Online, now));
        }
        assert_eq!(homes(&p), (20..25).map(peer).collect(), "none that it is at had to go");
        assert_eq!((p.statements, p.offline.len()), (HOMES_OF_PEER, 0));
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
        p.state(proven(1, 1, b"first"));
        p.state(proven(1, 2, b"anything"));
        assert_eq!(kept(&p), &b"first"[..]);
        p.state(proven(2, 3, b"second"));
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
        assert!(p.state(by(peer(HOME), peer(1), said(5, PresenceState::Offline, now), 7)));
        assert!(!p.state(passed_on(PresenceState::Online, 6)), "it was overtaken");
        assert_eq!(state(&p, now), PresenceState::Offline);
        assert!(p.state(passed_on(PresenceState::Online, 8)));
        assert!(!p.state(passed_on(PresenceState::Online, 9)), "the same again is no news");
        assert!(!p.state(by(peer(HOME), peer(1), said(5, PresenceState::Suspect, now), 8)));
        // The home tells all anew, with a clock that was set back.
        p.begin(peer(HOME), now);
        assert!(p.state(by(peer(HOME), peer(1), said(5, PresenceState::Suspect, now), 2)));
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
        p.mark_through(|home| *home == peer(HOME), at(12));
        assert_eq!(state(&p, at(26)), PresenceState::Online);
        assert_eq!(p.view(&peer(2), at(26)).unwrap().state, PresenceState::Suspect);
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
        assert_eq!((p.statements, p.offline.len()), (1, 0));
    }

    #[test]
    fn a_home_with_many_peers_has_more_time_to_come_back() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Online, at(0)));
        p.mark(&peer(HOME), 400_000, at(0));
        assert_eq!(state(&p, at(199)), PresenceState::Suspect);
        assert_eq!(state(&p, at(200)), PresenceState::Offline);
    }

    #[test]
    fn without_marks_online_becomes_suspect_and_after_the_grace_offline() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Online, at(0)));
        p.mark(&peer(HOME), 0, at(10));
        assert_eq!(state(&p, at(24)), PresenceState::Online);
        assert_eq!(state(&p, at(25)), PresenceState::Suspect);
        assert_eq!(state(&p, at(99)), PresenceState::Suspect);
        assert_eq!(state(&p, at(100)), PresenceState::Offline);
        assert_eq!(p.view(&peer(1), at(100)).unwrap().as_of, at(10), "no fresher than the last mark");
        p.mark(&peer(HOME), 0, at(101));
        assert_eq!(state(&p, at(101)), PresenceState::Online, "the home is back and says nothing else");
    }

    #[test]
    fn last_seen_of_an_online_peer_is_at_most_the_silence_that_would_make_it_suspect() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        say(&mut p, peer(HOME), peer(1), said(1, PresenceState::Online, at(0)));
        assert_eq!(p.view(&peer(1), at(5)).unwrap().last_seen, at(0));
        p.mark(&peer(HOME), 0, at(1000));
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
        assert_eq!(p.synced(&peer(HOME), |one| *one != peer(9)), [peer(1)]);
        assert!(p.synced(&peer(HOME), |_| true).is_empty(), "who went goes once");
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
        assert_eq!((p.peers.len(), p.offline.len()), (2, 1));
        let later = t.at(0).mono + REMEMBERED;
        p.mark(&peer(HOME), 0, later);
        p.sweep(later);
        assert!(p.view(&peer(1), later).is_none());
        assert!(p.view(&peer(2), later).is_some());
        assert_eq!((p.statements, p.offline.len()), (1, 0));
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
        assert!(p.offline.is_empty());
        assert!(!say(&mut p, peer(HOME), peer(4), said(1, PresenceState::Online, at(3))), "all are there");
        assert_eq!((p.statements, p.peers.len()), (2, 2));
    }
}
