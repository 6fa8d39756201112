//! What other homes say of their peers.
//!
//! Invariants:
//! - A statement stands for its home's own session only, and the home alone can change it: one statement for each (peer,
//!   home), the one of the higher `session_seq`, or the later one of the same session.
//! - How fresh a statement is follows from its home's last mark. A home that is silent for longer than [`MARKS_MISSED`] is
//!   not believed that its peers are there, only that they may be back; after [`HOME_LOSS_GRACE`] they are OFFLINE.
//! - When there is no room, whoever went is forgotten for one that is there, the one heard longest ago first.
//! - After a home has said all it knows, what it did not say again is OFFLINE.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::{PresenceSource, PresenceState, aliveness};

use super::session::REMEMBERED;

/// How often a member sends a mark.
pub const MARK_INTERVAL: Duration = Duration::from_secs(5);
/// Without a mark for so long, three of them, ONLINE becomes SUSPECT.
pub const MARKS_MISSED: Duration = Duration::from_secs(15);
/// Without a mark for so long everybody at that home is OFFLINE.
pub const HOME_LOSS_GRACE: Duration = Duration::from_secs(90);

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

#[derive(Clone, Copy, Debug)]
struct Heard {
    home: PeerId,
    /// In which telling of the home.
    telling: u64,
    statement: Statement,
}

#[derive(Clone, Copy, Debug)]
struct Home {
    as_of: Instant,
    /// Counts the links with this home: each begins with all it knows.
    telling: u64,
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

    /// A link with a home is up, and begins with all that the home knows.
    pub fn begin(&mut self, home: PeerId, now: Instant) {
        let entry = self.homes.entry(home).or_insert(Home { as_of: now, telling: 0 });
        entry.telling += 1;
    }

    /// The home says: what I told you is complete up to now.
    pub fn mark(&mut self, home: &PeerId, now: Instant) {
        if let Some(home) = self.homes.get_mut(home) {
            home.as_of = now;
        }
    }

    /// The home has said all it knows. Whom it did not name is not there any more.
    pub fn synced(&mut self, home: &PeerId, now: Instant) {
        self.mark(home, now);
        let Some(telling) = self.homes.get(home).map(|home| home.telling) else { return };
        for (peer, heards) in &mut self.peers {
            for heard in heards.iter_mut().filter(|heard| heard.home == *home && heard.telling != telling) {
                heard.telling = telling;
                heard.statement.state = PresenceState::Offline;
                self.offline.insert((heard.statement.heard, *peer, *home));
            }
        }
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

    /// A home speaks of a peer. Returns whether it was heard: it is not when it speaks of an older session than before, or
    /// when there is no room: for a peer that is not OFFLINE another that is makes room.
    pub fn state(&mut self, home: PeerId, peer: PeerId, statement: Statement) -> bool {
        let Some(telling) = self.homes.get(&home).map(|home| home.telling) else { return false };
        let new = Heard { home, telling, statement };
        let offline = statement.state == PresenceState::Offline;
        let known = self.peers.get_mut(&peer).and_then(|all| all.iter_mut().find(|heard| heard.home == home));
        match known {
            Some(old) if is_older(&statement, &old.statement) => {
                // It was spoken of at least: the session that is known replaced this one.
                return false;
            }
            Some(old) => {
                self.offline.remove(&(old.statement.heard, peer, home));
                *old = new;
            }
            None => {
                if self.statements >= self.limit && (offline || !self.make_room()) {
                    return false;
                }
                self.peers.entry(peer).or_default().push(new);
                self.statements += 1;
            }
        }
        if offline {
            self.offline.insert((statement.heard, peer, home));
        }
        true
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
            let silent = self.homes.get(&heard.home).filter(|_| !speaks(&heard.home)).map(|home| home.as_of);
            let silent = silent.into_iter().flat_map(|at| [at + MARKS_MISSED, at + HOME_LOSS_GRACE]);
            silent.chain(heard.statement.until)
        });
        changes.filter(|at| *at > now).min()
    }

    fn of(&self, heard: &Heard, now: Instant) -> Option<View> {
        let as_of = self.homes.get(&heard.home)?.as_of;
        let Statement { state, source, heard: at, until, .. } = heard.statement;
        let silent = now.saturating_duration_since(as_of);
        let state = match state {
            _ if silent >= HOME_LOSS_GRACE => PresenceState::Offline,
            PresenceState::Online if until.is_some_and(|until| until <= now) => PresenceState::Offline,
            PresenceState::Online if silent >= MARKS_MISSED => PresenceState::Suspect,
            state => state,
        };
        // Heartbeats are not passed on; but whom the home calls ONLINE it has heard within this time.
        let surely = match (state, source) {
            (PresenceState::Online, PresenceSource::Session) => as_of.checked_sub(self.suspect_after),
            _ => None,
        };
        let last_seen = surely.map_or(at, |surely| surely.max(at));
        Some(View { state, source, last_seen, as_of, home: heard.home })
    }

    /// Forgets statements nobody will ask for any more, and homes without any.
    pub fn sweep(&mut self, now: Instant) {
        let homes = &self.homes;
        let matters = |heard: &Heard| {
            let silent_since = homes.get(&heard.home).map(|home| home.as_of);
            let offline = heard.statement.state == PresenceState::Offline
                || heard.statement.until.is_some_and(|until| until <= now)
                || silent_since.is_none_or(|since| now.saturating_duration_since(since) >= HOME_LOSS_GRACE);
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
        self.homes.retain(|_, home| now.saturating_duration_since(home.as_of) < 2 * REMEMBERED);
    }
}

/// Whether `new` speaks of an older session than `old`. After the end of a session any other may follow.
fn is_older(new: &Statement, old: &Statement) -> bool {
    new.session_seq < old.session_seq && old.state != PresenceState::Offline && new.source == old.source
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

    fn state(presence: &Presence, at: Instant) -> PresenceState {
        presence.view(&peer(1), at).unwrap().state
    }

    #[test]
    fn a_peer_is_online_if_any_home_says_so() {
        let t = Time::start();
        let (mut p, now) = (presence(t), t.at(1).mono);
        p.state(peer(HOME), peer(1), said(1, PresenceState::Online, now));
        p.state(peer(OTHER), peer(1), said(7, PresenceState::Offline, now));
        let view = p.view(&peer(1), now).unwrap();
        assert_eq!((view.state, view.home), (PresenceState::Online, peer(HOME)));
        p.state(peer(HOME), peer(1), said(1, PresenceState::Offline, now));
        assert_eq!(state(&p, now), PresenceState::Offline);
    }

    #[test]
    fn an_older_session_of_the_same_home_is_not_heard() {
        let t = Time::start();
        let (mut p, now) = (presence(t), t.at(1).mono);
        assert!(p.state(peer(HOME), peer(1), said(5, PresenceState::Online, now)));
        assert!(!p.state(peer(HOME), peer(1), said(4, PresenceState::Offline, now)));
        assert_eq!(state(&p, now), PresenceState::Online);
        assert!(p.knows(&peer(HOME), &peer(1), 5, PresenceSource::Session));
        assert!(!p.knows(&peer(HOME), &peer(1), 6, PresenceSource::Session));
        assert!(!p.knows(&peer(OTHER), &peer(1), 5, PresenceSource::Session));
        assert!(!p.knows(&peer(HOME), &peer(1), 5, PresenceSource::Registration));
    }

    #[test]
    fn a_home_without_a_link_is_not_heard() {
        let t = Time::start();
        let mut p = presence(t);
        assert!(!p.state(peer(99), peer(1), said(1, PresenceState::Online, t.at(0).mono)));
        assert!(p.view(&peer(1), t.at(0).mono).is_none());
    }

    #[test]
    fn without_marks_online_becomes_suspect_and_after_the_grace_offline() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        p.state(peer(HOME), peer(1), said(1, PresenceState::Online, at(0)));
        p.mark(&peer(HOME), at(10));
        assert_eq!(state(&p, at(24)), PresenceState::Online);
        assert_eq!(state(&p, at(25)), PresenceState::Suspect);
        assert_eq!(state(&p, at(99)), PresenceState::Suspect);
        assert_eq!(state(&p, at(100)), PresenceState::Offline);
        assert_eq!(p.view(&peer(1), at(100)).unwrap().as_of, at(10), "no fresher than the last mark");
        p.mark(&peer(HOME), at(101));
        assert_eq!(state(&p, at(101)), PresenceState::Online, "the home is back and says nothing else");
    }

    #[test]
    fn last_seen_of_an_online_peer_is_at_most_the_silence_that_would_make_it_suspect() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        p.state(peer(HOME), peer(1), said(1, PresenceState::Online, at(0)));
        assert_eq!(p.view(&peer(1), at(5)).unwrap().last_seen, at(0));
        p.mark(&peer(HOME), at(1000));
        assert_eq!(p.view(&peer(1), at(1001)).unwrap().last_seen, at(925));
    }

    #[test]
    fn a_registration_ends_by_itself() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        let source = PresenceSource::Registration;
        let statement = Statement { source, until: Some(at(12)), ..said(1, PresenceState::Online, at(0)) };
        p.state(peer(HOME), peer(1), statement);
        assert_eq!(state(&p, at(11)), PresenceState::Online);
        assert_eq!(state(&p, at(12)), PresenceState::Offline);
    }

    #[test]
    fn whom_a_home_does_not_name_again_is_offline() {
        let t = Time::start();
        let (mut p, at) = (presence(t), |s| t.at(s).mono);
        p.state(peer(HOME), peer(1), said(1, PresenceState::Online, at(0)));
        p.state(peer(HOME), peer(2), said(1, PresenceState::Online, at(0)));
        p.state(peer(OTHER), peer(3), said(1, PresenceState::Online, at(0)));
        p.begin(peer(HOME), at(5));
        p.state(peer(HOME), peer(2), said(1, PresenceState::Online, at(5)));
        assert_eq!(state(&p, at(5)), PresenceState::Online, "not before the home has said all");
        p.synced(&peer(HOME), at(6));
        assert_eq!(state(&p, at(6)), PresenceState::Offline);
        assert_eq!(p.view(&peer(2), at(6)).unwrap().state, PresenceState::Online);
        assert_eq!(p.view(&peer(3), at(6)).unwrap().state, PresenceState::Online);
    }

    #[test]
    fn what_is_kept_is_bounded_and_swept() {
        let t = Time::start();
        let mut p = Presence::new(2, Duration::from_secs(75));
        p.begin(peer(HOME), t.at(0).mono);
        assert!(p.state(peer(HOME), peer(1), said(1, PresenceState::Offline, t.at(0).mono)));
        assert!(p.state(peer(HOME), peer(2), said(1, PresenceState::Online, t.at(0).mono)));
        assert!(!p.state(peer(HOME), peer(3), said(1, PresenceState::Offline, t.at(0).mono)), "no room");
        assert_eq!((p.peers.len(), p.offline.len()), (2, 1));
        let later = t.at(0).mono + REMEMBERED;
        p.mark(&peer(HOME), later);
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
        assert!(p.state(peer(HOME), peer(1), said(1, PresenceState::Offline, at(2))));
        assert!(p.state(peer(HOME), peer(2), said(1, PresenceState::Offline, at(1))));
        assert!(p.state(peer(HOME), peer(3), said(1, PresenceState::Online, at(3))));
        assert!(p.view(&peer(2), at(3)).is_none(), "it was heard longest ago");
        assert!(p.state(peer(HOME), peer(1), said(2, PresenceState::Online, at(3))), "it came back");
        assert!(p.offline.is_empty());
        assert!(!p.state(peer(HOME), peer(4), said(1, PresenceState::Online, at(3))), "all are there");
        assert_eq!((p.statements, p.peers.len()), (2, 2));
    }
}
