//! Who is where, and is it there? What is asked of a rendezvous, answered from its table, its sessions and what other homes
//! say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use p2psb_proto::model::limits::LOOKED_AT;
use p2psb_proto::model::presence::{Presence as Answer, PresenceSource, PresenceState};
use p2psb_proto::model::{PeerId, ServiceQuery, UnixMillis};

use super::Now;
use super::ledger::Shares;
use super::members::{Members, Role};
use super::page::{Cursor, Part};
use super::placement::{Key, OWNERS, Placement};
use super::places::Slot;
use super::presence::{Presence, View};
use super::ring;
use super::session::{Sessions, Timing};
pub use super::table::{Aim, Near};
use super::table::{Entry, Table};

/// What encoding adds to a record in an answer, at most: presence, tags and lengths.
const LOCATED_OVERHEAD: usize = 128;

/// After how long somebody who asked for an unknown peer may ask again.
pub const UNKNOWN_RETRY: Duration = Duration::from_secs(30);

/// How much may be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Peers with a record or withdrawal. Of each [`HOMES`] homes may say how it is, and as many peers are remembered after they
    /// went.
    pub records: Shares,
    /// Names of services.
    pub services: Shares,
    /// Members of the backbone.
    pub members: usize,
    /// Edges with a link.
    pub edges: usize,
}

/// A peer has so many homes in a backbone, each of which says how it is.
pub const HOMES: usize = 3;

/// After how long somebody who asked for a peer that was seen may ask again: it may be back any moment.
pub const OFFLINE_RETRY: Duration = Duration::from_secs(10);

/// After how long somebody may ask again for whom not enough owners could be asked.
pub const INCOMPLETE_RETRY: Duration = Duration::from_secs(1);

/// No valid record of the peer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLocated {
    /// As far as is known it never was here.
    #[error("{peer} was never seen in this backbone, as far as is known since {since}")]
    Unknown {
        /// Who was asked for.
        peer: PeerId,
        /// Since when this server knows what happens.
        since: UnixMillis,
    },
    /// It was, and went.
    #[error("{peer} is offline, last seen at {last_seen}: it left, or its record ran out")]
    Offline {
        /// Who was asked for.
        peer: PeerId,
        /// When it was last heard; when it signed its last statement, if it was not.
        last_seen: UnixMillis,
    },
}

/// A peer that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Who.
    pub peer: PeerId,
    /// The wire form of its record.
    pub bytes: Bytes,
    /// Whether it is there.
    pub presence: Answer,
}

/// The same, as it lies in the table.
#[derive(Clone, Debug)]
pub struct Stored<'a> {
    /// Its record.
    pub entry: Entry<'a>,
    /// Whether it is there.
    pub presence: Answer,
}

/// A peer that is watched, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Where it is.
    pub found: Result<Located, NotLocated>,
    /// Whose word its presence is.
    pub home: Option<PeerId>,
    /// When it may be something else by time alone.
    pub due: Option<Instant>,
}

/// A page of providers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T = Located> {
    /// The peers.
    pub peers: Vec<T>,
    /// Where the next page begins; `None` on the last one.
    pub next: Option<Cursor>,
    /// There may be providers that no page names.
    pub sampled: bool,
}

impl<T> Page<T> {
    /// The same place by place.
    pub fn map<U>(self, item: impl FnMut(T) -> U) -> Page<U> {
        Page { peers: self.peers.into_iter().map(item).collect(), next: self.next, sampled: self.sampled }
    }
}

/// Which providers are asked for, and from where on. It says all there is to say: whoever is asked it answers alike, as far as
/// they know the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The service, and what an offer has to meet.
    pub wanted: ServiceQuery,
    /// Where the page begins; `None`: with the first.
    pub from: Option<Cursor>,
    /// Where it ends.
    pub limits: PageLimits,
}

/// How large a page may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    /// Items.
    pub items: usize,
    /// Encoded bytes.
    pub bytes: usize,
}

/// A rendezvous of the backbone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRendezvous {
    /// The wire form of its record.
    pub bytes: Bytes,
    /// Whether there is a link with it, or it is this one.
    pub connected: bool,
    /// When it was last heard; when it signed its record, if never.
    pub last_seen: UnixMillis,
    /// Its live sessions, as it said last.
    pub sessions: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Directory {
    own: PeerId,
    /// Since when it is known who comes and goes; set by whoever starts the server.
    pub knowledge_since: UnixMillis,
    /// Records and withdrawals.
    pub table: Table,
    /// Peers that are here.
    pub sessions: Sessions,
    /// What other homes say.
    pub presence: Presence,
    /// Other rendezvous.
    pub members: Members,
    /// Edges that have a link with this one.
    pub edges: Members,
    /// What this server owns, a moment ago at most.
    owned: Owned,
}

/// Whose owner this server is.
#[derive(Debug)]
struct Owned {
    view: ring::View,
    /// Of everybody: the ring has no more members than a key has owners.
    all: bool,
}

impl Directory {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(own: PeerId, timing: Timing, capacity: Capacity) -> Self {
        let (peers, _) = capacity.records.peers.total;
        Self {
            own,
            knowledge_since: UnixMillis::default(),
            table: Table::new(capacity.records, capacity.services),
            sessions: Sessions::new(timing, peers),
            presence: Presence::new(peers.saturating_mul(HOMES), timing.suspect_after()),
            members: Members::new(own, capacity.members),
            edges: Members::new(own, capacity.edges).apart(),
            owned: Owned::by(ring::View::of(own, Arc::new(Placement::new([])), None)),
        }
    }

    /// Whether this is the ring that is reckoned with here.
    #[must_use]
    pub fn sees(&self, ring: &ring::View) -> bool {
        Arc::ptr_eq(self.owned.view.current(), ring.current())
    }

    /// The ring is another one.
    pub fn see(&mut self, ring: ring::View) {
        self.owned = Owned::by(ring);
    }

    /// This server.
    #[must_use]
    pub const fn own(&self) -> PeerId {
        self.own
    }

    /// Where is this peer?
    pub fn locate(&self, peer: &PeerId, now: Now) -> Result<Located, NotLocated> {
        match self.table.valid(peer, now.wall) {
            Some(entry) => Ok(self.located(peer, entry, now)),
            None => Err(self.not_located(*peer, now)),
        }
    }

    /// The way to what is known of a peer. Of many peers take each of its steps, this one, [`Self::touch`] and [`Self::near`], for
    /// all before the next.
    #[must_use]
    pub fn aim(&self, peer: &PeerId) -> Aim {
        self.table.aim(peer)
    }

    /// Touches what says where that is; for one peer alone it is of no use.
    pub fn touch(&self, aim: Aim) {
        self.table.touch(aim);
    }

    /// Where what is known of a peer lies, most likely.
    #[must_use]
    pub fn near(&self, aim: Aim) -> Option<Near> {
        let near = self.table.near(aim)?;
        std::hint::black_box(self.sessions.touch(near.0));
        Some(near)
    }

    /// Where is this peer, if it is here, so that nobody knows better?
    #[must_use]
    pub fn locate_here(&self, peer: &PeerId, near: Option<Near>, now: Now) -> Option<Stored<'_>> {
        let entry = self.table.valid_at(near?.0, peer, now.wall)?;
        let is_here = self.is_here_at(Some(entry.slot()), peer, now);
        is_here.then(|| Stored { entry, presence: self.presence_of(peer, entry, now) })
    }

    /// Where is this peer, and until when is that sure to be so if nothing happens?
    #[must_use]
    pub fn observe(&self, peer: &PeerId, now: Now) -> Observed {
        let entry = self.table.valid(peer, now.wall);
        let ends = entry.map(|entry| now.mono + entry.expires().since(now.wall));
        let changes = self.presence.next_change(peer, |home| self.is_linked(home), now.mono);
        let home = self.view(peer, now).map(|view| view.home);
        Observed { found: self.locate(peer, now), home, due: [ends, changes].into_iter().flatten().min() }
    }

    /// Whether there is a link with this member or edge.
    fn is_linked(&self, home: &PeerId) -> bool {
        self.members.is_linked(home) || self.edges.is_linked(home)
    }

    /// Links with those that play this role.
    pub const fn links_with(&mut self, role: Role) -> &mut Members {
        match role {
            Role::Member => &mut self.members,
            Role::Edge => &mut self.edges,
        }
    }

    /// Whether this server is the one to tell others of a peer: it is or was here, or at an edge that has a link with this server.
    #[must_use]
    pub fn speaks_of(&self, peer: &PeerId, now: Instant) -> bool {
        self.stated(peer, now).is_some() || self.presence.is_said_by(peer, |home| self.edges.is_linked(home))
    }

    fn not_located(&self, peer: PeerId, now: Now) -> NotLocated {
        let said = self.table.known(&peer).map(|entry| entry.issued().min(now.wall));
        let heard = self.view(&peer, now).map(|view| now.wall_at(view.last_seen));
        match said.max(heard) {
            Some(last_seen) => NotLocated::Offline { peer, last_seen },
            None => NotLocated::Unknown { peer, since: self.knowledge_since },
        }
    }

    fn located(&self, peer: &PeerId, entry: Entry<'_>, now: Now) -> Located {
        let presence = self.presence_of(peer, entry, now);
        Located { peer: *peer, bytes: entry.bytes(), presence }
    }

    /// Which peers provide a service? Those that are online first, each part in the order of ids. Looks at [`LOOKED_AT`]
    /// providers at most, so a page may be empty and not the last one. Who comes, goes or changes its presence between two pages
    /// may be missed, or be named twice.
    #[must_use]
    pub fn find(&self, query: &Query, now: Now) -> Page {
        let service = query.wanted.service().as_str();
        let mut page = Page { peers: Vec::new(), next: None, sampled: self.table.is_sampled(service) };
        let (mut bytes, mut last) = (0, None);
        for (looked_at, (at, entry)) in self.providers(query, now).enumerate() {
            let online = self.state_of(&at.after, now) == PresenceState::Online;
            let fits = online == (at.part == Part::Online)
                && (query.wanted.is_for_all() || query.wanted.is_met_by_stored(&entry.bytes()));
            bytes += if fits { entry.bytes().len() + LOCATED_OVERHEAD } else { 0 };
            let full = fits && page.peers.len() >= query.limits.items;
            let too_large = fits && bytes > query.limits.bytes && !page.peers.is_empty();
            if full || too_large || looked_at >= LOOKED_AT {
                page.next = last;
                break;
            }
            if fits {
                page.peers.push(self.located(&at.after, entry, now));
            }
            last = Some(at);
        }
        page
    }

    /// The places of all providers behind the beginning of a page, each provider once in every part.
    fn providers(&self, query: &Query, now: Now) -> impl Iterator<Item = (Cursor, Entry<'_>)> {
        let after = |part| query.from.filter(|cursor| cursor.part == part).map(|cursor| cursor.after);
        let is_in_rest = query.from.is_some_and(|cursor| cursor.part == Part::Rest);
        let service = query.wanted.service().as_str();
        let part = move |part| {
            let providers = self.table.providers(service, after(part), now.wall);
            providers.map(move |(peer, entry)| (Cursor { part, after: peer }, entry))
        };
        (!is_in_rest).then(|| part(Part::Online)).into_iter().flatten().chain(part(Part::Rest))
    }

    fn state_of(&self, peer: &PeerId, now: Now) -> PresenceState {
        self.view(peer, now).map_or(PresenceState::Offline, |view| view.state)
    }

    fn presence_of(&self, peer: &PeerId, entry: Entry<'_>, now: Now) -> Answer {
        presence(self.view_at(Some(entry.slot()), peer, now), entry.issued(), now)
    }

    /// Whether some home has said how the peer is.
    #[must_use]
    pub fn is_spoken_of(&self, peer: &PeerId, now: Now) -> bool {
        self.view(peer, now).is_some()
    }

    /// Whether this server hears the peer itself, so that nobody knows better: it has a session here, or a link as a member. Who is
    /// registered may have registered elsewhere since, of which only its owners are told.
    #[must_use]
    pub fn is_here(&self, peer: &PeerId, now: Now) -> bool {
        self.is_here_at(self.table.slot(peer), peer, now)
    }

    fn is_here_at(&self, slot: Option<Slot>, peer: &PeerId, now: Now) -> bool {
        let stated = slot.and_then(|slot| self.sessions.stated(slot, now.mono));
        *peer == self.own
            || self.members.is_linked(peer)
            || stated.is_some_and(|stated| {
                stated.state == PresenceState::Online
                    && (stated.source == PresenceSource::Session || self.owned.has(peer))
            })
    }

    /// What is believed of a peer: by its session here, by a link with it, or by the word of another home.
    fn view(&self, peer: &PeerId, now: Now) -> Option<View> {
        self.view_at(self.table.slot(peer), peer, now)
    }

    /// The same of one whose place was found already.
    fn view_at(&self, slot: Option<Slot>, peer: &PeerId, now: Now) -> Option<View> {
        let here =
            |state, source, last_seen| View { state, source, last_seen, as_of: now.mono, home: self.own };
        if *peer == self.own {
            return Some(here(PresenceState::Online, PresenceSource::Session, now.mono));
        }
        let linked = self.members.view(peer).filter(|member| member.linked);
        let by_link = linked.map(|member| {
            here(PresenceState::Online, PresenceSource::Session, member.heard.unwrap_or(now.mono))
        });
        let by_session = slot
            .and_then(|slot| self.sessions.stated(slot, now.mono))
            .map(|stated| here(stated.state, stated.source, stated.heard));
        let by_others = self.presence.view(peer, now.mono);
        [by_link, by_session, by_others].into_iter().flatten().reduce(View::better)
    }

    /// Every rendezvous of the backbone with a valid record, this one with its `own_sessions` first, then those with a link.
    #[must_use]
    pub fn rendezvous(&self, own_sessions: usize, now: Now) -> Vec<KnownRendezvous> {
        let known = |peer: &PeerId, connected, heard: Option<_>, sessions| {
            let entry = self.table.valid(peer, now.wall)?;
            let last_seen = heard.map_or_else(|| entry.issued().min(now.wall), |at| now.wall_at(at));
            Some(KnownRendezvous { bytes: entry.bytes(), connected, last_seen, sessions })
        };
        let own_sessions = u64::try_from(own_sessions).unwrap_or(u64::MAX);
        let own = known(&self.own, true, Some(now.mono), own_sessions).into_iter();
        let others = self.members.all().into_iter();
        let others = others
            .filter_map(|one| known(&one.peer, one.linked, one.heard, self.presence.sessions(&one.peer)));
        own.chain(others).collect()
    }
}

impl Owned {
    fn by(view: ring::View) -> Self {
        let all = view.current().len() <= OWNERS && view.current().contains(&view.own());
        Self { view, all }
    }

    fn has(&self, peer: &PeerId) -> bool {
        self.all || self.view.owns(Key::peer(peer))
    }
}

/// What is said of a peer whose record was signed at `issued`, and of whom its homes say this.
#[must_use]
pub fn presence(views: impl IntoIterator<Item = View>, issued: UnixMillis, now: Now) -> Answer {
    match views.into_iter().reduce(View::better) {
        Some(view) => Answer {
            state: view.state,
            last_seen: now.wall_at(view.last_seen),
            as_of: now.wall_at(view.as_of),
            source: view.source,
            home: Some(view.home),
        },
        None => Answer {
            state: PresenceState::Offline,
            last_seen: issued.min(now.wall),
            as_of: now.wall,
            source: PresenceSource::Record,
            home: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::PeerStatement;

    use super::*;
    use crate::core::ledger::Bringer;
    use crate::core::marks::Pulse;
    use crate::core::members::DialedBy;
    use crate::core::placement::Operator;
    use crate::core::presence::{Said, Statement};
    use crate::core::session::Ending;
    use crate::core::testing::{
        T0, Time, item, key_of, offer, offering, peer, query, record, shares, signed_by, withdrawal,
    };

    const OWN: u8 = 200;
    const MEMBER: u8 = 201;

    const LARGE: PageLimits = PageLimits { items: 100, bytes: 1_000_000 };

    fn directory() -> Directory {
        directory_of(1000)
    }

    fn directory_of(records: usize) -> Directory {
        let timing = Timing { heartbeat: Duration::from_secs(30), registration: Duration::from_secs(300) };
        Directory::new(
            peer(OWN),
            timing,
            Capacity { records: shares(records), services: shares(10), members: 10, edges: 10 },
        )
    }

    fn know(directory: &mut Directory, statement: &PeerStatement) {
        directory.table.offer(item(statement), Bringer::Peer(None), T0).unwrap();
    }

    #[test]
    fn a_peer_of_whom_only_the_record_is_known_is_offline_by_its_record() {
        let (mut d, t) = (directory(), Time::start());
        know(&mut d, &record(1, 1, &[]));
        let found = d.locate(&peer(1), t.at(60)).unwrap().presence;
        assert_eq!((found.state, found.source), (PresenceState::Offline, PresenceSource::Record));
        assert_eq!((found.last_seen, found.home), (T0, None));
        assert_eq!(found.as_of, t.at(60).wall);
        d.knowledge_since = T0;
        assert_eq!(d.locate(&peer(2), t.at(0)), Err(NotLocated::Unknown { peer: peer(2), since: T0 }));
    }

    #[test]
    fn a_withdrawn_or_expired_peer_is_offline_with_the_time_it_was_last_seen() {
        let (mut d, t) = (directory(), Time::start());
        know(&mut d, &record(1, 1, &[]));
        assert!(d.locate(&peer(1), t.at(3599)).is_ok());
        let offline = |last_seen| Err(NotLocated::Offline { peer: peer(1), last_seen });
        assert_eq!(d.locate(&peer(1), t.at(3600)), offline(T0));
        let ticket = d.open(peer(1), 1, &[], t.at(50).mono).unwrap().unwrap().ticket;
        d.close(&peer(1), ticket, Ending::Clean, t.at(60).mono);
        know(&mut d, &withdrawal(1, 2));
        let found = d.locate(&peer(1), t.at(70));
        assert!(
            matches!(found, Err(NotLocated::Offline { last_seen, .. }) if last_seen >= t.at(50).wall),
            "{found:?}"
        );
    }

    #[test]
    fn a_session_here_outweighs_what_another_home_says() {
        let (mut d, t) = (directory(), Time::start());
        know(&mut d, &record(1, 1, &[]));
        let now = t.at(0);
        let statement = Statement {
            session_seq: 1,
            state: PresenceState::Suspect,
            source: PresenceSource::Session,
            heard: now.mono,
            until: None,
        };
        d.presence.state(
            Said {
                home: peer(MEMBER),
                peer: peer(1),
                statement,
                revision: 1,
                proof: Bytes::new(),
                as_of: now.mono,
                is_direct: true,
            },
            now.mono,
        );
        let opened = d.open(peer(1), 2, &[], now.mono).unwrap().unwrap();
        let found = d.locate(&peer(1), t.at(1)).unwrap().presence;
        assert_eq!((found.state, found.home), (PresenceState::Online, Some(peer(OWN))));
        d.close(&peer(1), opened.ticket, Ending::Clean, now.mono);
        let found = d.locate(&peer(1), t.at(1)).unwrap().presence;
        assert_eq!((found.state, found.home), (PresenceState::Suspect, Some(peer(MEMBER))));
    }

    #[test]
    fn each_peer_there_is_room_for_may_be_at_three_homes() {
        let (mut d, t) = (directory_of(4), Time::start());
        let now = t.at(0).mono;
        let mut taken = 0;
        for (n, home) in (1..=4).flat_map(|n| (101..=103).map(move |home| (n, home))) {
            let (source, state) = (PresenceSource::Session, PresenceState::Online);
            let statement = Statement { session_seq: 1, state, source, heard: now, until: None };
            let (home, peer, proof) = (peer(home), peer(n), Bytes::new());
            let said = Said { home, peer, statement, revision: 1, proof, as_of: now, is_direct: true };
            taken += usize::from(d.presence.state(said, now));
        }
        assert_eq!(taken, 12);
    }

    #[test]
    fn who_is_registered_is_here_for_owners_only_and_who_has_a_session_for_all() {
        let (mut d, t) = (directory(), Time::start());
        for n in [1, 2] {
            know(&mut d, &record(n, 1, &[]));
        }
        d.register(peer(1), 1, &[], None, t.at(0).mono);
        d.open(peer(2), 1, &[], t.at(0).mono).unwrap().unwrap();
        let is_here = |d: &Directory| {
            [1, 2].map(|n| d.locate_here(&peer(n), d.near(d.aim(&peer(n))), t.at(1)).is_some())
        };
        let ring = |members: &[u8]| {
            let operator = |n: u8| Operator::of(&peer(n), None);
            Arc::new(Placement::new(members.iter().map(|n| (peer(*n), operator(*n)))))
        };
        let others: Vec<u8> = (202..=210).collect();
        let five = |n: u8| [OWN, n, n + 1, n + 2, n + 3];
        let owns = |members: &[u8; 5]| ring(members).owners(Key::peer(&peer(1))).contains(&peer(OWN));
        let owning = (202..=250).map(five).find(owns).unwrap();
        let other = (202..=250).map(five).find(|members| !owns(members)).unwrap();
        for (members, before, expected) in [
            (&[][..], None, false),
            (&[OWN], None, true),
            (&[OWN, 202, 203], None, true),
            (&others, None, false),
            (&others, Some(&[OWN, 202][..]), false),
            (&other, None, false),
            (&owning, None, true),
        ] {
            let view = ring::View::of(peer(OWN), ring(members), before.map(ring));
            assert!(!d.sees(&view));
            d.see(view.clone());
            assert!(d.sees(&view));
            assert_eq!(is_here(&d), [expected, true], "{members:?} {before:?}");
        }
    }

    fn ask(from: Option<Cursor>, limits: PageLimits) -> Query {
        Query { wanted: query("chat"), from, limits }
    }

    /// All pages of a query, and how many there were.
    fn all(directory: &Directory, mut query: Query, now: Now) -> (Vec<Located>, usize) {
        let (mut found, mut pages) = (Vec::new(), 0);
        loop {
            let page = directory.find(&query, now);
            assert!(page.peers.len() <= query.limits.items);
            found.extend(page.peers);
            pages += 1;
            query.from = page.next;
            if query.from.is_none() {
                return (found, pages);
            }
        }
    }

    #[test]
    fn providers_that_are_online_come_first_and_pages_follow_one_another() {
        let (mut d, t) = (directory(), Time::start());
        let now = t.at(0);
        for n in 1..=9 {
            know(&mut d, &record(n, 1, &["chat"]));
        }
        for n in [3, 5, 8] {
            d.open(peer(n), 1, &[], now.mono).unwrap().unwrap();
        }
        let whole = d.find(&ask(None, LARGE), now);
        assert_eq!((whole.peers.len(), whole.next), (9, None));
        assert!(whole.peers[..3].iter().all(|p| p.presence.state == PresenceState::Online));
        for items in [1, 2, 3, 4, 9] {
            let (paged, _) = all(&d, ask(None, PageLimits { items, ..LARGE }), now);
            assert_eq!(paged, whole.peers, "pages of {items}");
        }
        assert!(d.find(&Query { wanted: query("other"), ..ask(None, LARGE) }, now).peers.is_empty());
    }

    #[test]
    fn only_providers_whose_record_meets_the_filters_are_found_whatever_the_size_of_pages() {
        let (mut d, t) = (directory(), Time::start());
        let now = t.at(0);
        for n in 1..=12 {
            let region = if n % 3 == 0 { "eu" } else { "us" };
            know(&mut d, &offering(n, 1, "chat", &[("region", region)]));
        }
        know(&mut d, &record(13, 1, &["chat"]));
        d.open(peer(6), 1, &[], now.mono).unwrap().unwrap();
        let wanted = query("chat").having("region", ["eu", "asia"]).unwrap();
        let mut expected = [3, 9, 12].map(peer);
        expected.sort_unstable();
        for items in [1, 2, 3, 100] {
            let limits = PageLimits { items, ..LARGE };
            let (found, _) = all(&d, Query { wanted: wanted.clone(), from: None, limits }, now);
            let bytes: Vec<_> = found.into_iter().map(|found| found.bytes).collect();
            let known = |peer: &PeerId| d.locate(peer, now).unwrap().bytes;
            let wanted: Vec<_> = std::iter::once(&peer(6)).chain(&expected).map(known).collect();
            assert_eq!(bytes, wanted, "pages of {items}");
        }
    }

    #[test]
    fn a_page_looks_at_so_many_providers_and_goes_on_behind_them() {
        const PROVIDERS: usize = LOOKED_AT + 10;
        let (mut d, t) = (directory_of(PROVIDERS), Time::start());
        for n in 0..PROVIDERS as u64 {
            let statement = signed_by(&key_of(n), 1, vec![offer("chat", &[("n", &n.to_string())])]);
            know(&mut d, &statement);
        }
        let (peer, entry) = d.table.providers("chat", None, T0).last().unwrap();
        let (last, n) =
            (entry.bytes(), (0_u64..).find(|n| PeerId::new(key_of(*n).public()) == peer).unwrap());
        let wanted = query("chat").having("n", [n.to_string()]).unwrap();
        let first = d.find(&Query { wanted: wanted.clone(), ..ask(None, LARGE) }, t.at(0));
        assert!(first.peers.is_empty() && first.next.is_some(), "nobody is online, and it is not the end");
        let (found, pages) = all(&d, Query { wanted, ..ask(None, LARGE) }, t.at(0));
        assert_eq!(found.iter().map(|found| &found.bytes).collect::<Vec<_>>(), [&last]);
        assert_eq!(pages, 3, "each provider is looked at in both parts");
    }

    #[test]
    fn a_page_is_cut_where_it_would_be_too_large() {
        let (mut d, t) = (directory(), Time::start());
        for n in 1..=4 {
            know(&mut d, &record(n, 1, &["chat"]));
        }
        let size = d.locate(&peer(1), t.at(0)).unwrap().bytes.len() + LOCATED_OVERHEAD;
        let page = d.find(&ask(None, PageLimits { items: 9, bytes: 2 * size + 8 }), t.at(0));
        assert_eq!((page.peers.len(), page.next.is_some()), (2, true));
        let page = d.find(&ask(None, PageLimits { items: 9, bytes: 1 }), t.at(0));
        assert_eq!(page.peers.len(), 1, "never empty because of its size");
    }

    #[test]
    fn rendezvous_are_listed_with_this_one_first() {
        let (mut d, t) = (directory(), Time::start());
        for n in [OWN, MEMBER, 202, 203] {
            know(&mut d, &record(n, 1, &[]));
        }
        let ticket = d.members.link(peer(MEMBER), DialedBy::Us, 1, t.at(10).mono).unwrap().ticket;
        d.members.name(peer(202), None, t.at(0).mono);
        d.members.name(peer(204), None, t.at(0).mono);
        let own = d.locate(&peer(OWN), t.at(20)).unwrap();
        d.presence.linked(peer(MEMBER), t.at(10).mono);
        d.presence.mark(&peer(MEMBER), 9, Pulse::all_at(t.at(10).mono));
        let list = d.rendezvous(5, t.at(20));
        assert_eq!(list.len(), 3, "203 is no member, of 204 no record is known");
        assert_eq!((&list[0].bytes, list[0].connected, list[0].sessions), (&own.bytes, true, 5));
        assert_eq!((list[1].connected, list[1].last_seen, list[1].sessions), (true, t.at(10).wall, 9));
        assert_eq!((list[2].connected, list[2].last_seen), (false, T0));
        assert_eq!(d.locate(&peer(MEMBER), t.at(20)).unwrap().presence.state, PresenceState::Online);
        d.members.unlink(&peer(MEMBER), ticket);
        assert_eq!(d.locate(&peer(MEMBER), t.at(20)).unwrap().presence.state, PresenceState::Offline);
    }
}
