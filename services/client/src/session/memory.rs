//! What is remembered of the rendezvous that others list, in a file over restarts: a peer whose configured rendezvous are gone for good
//! still comes home.
//!
//! Invariants: at most [`MOST`] rendezvous are remembered, each with its id, so that nobody can stand in for it; what was learnt for
//! another community, or from rendezvous none of which is configured any more, does not count; a file that is damaged is worth what can
//! be read of it.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use p2psb_proto::model::{NetworkId, PeerId, PeerRecord, Signed};

use super::{Kind, SessionState, Shared, State};
use crate::backoff::Backoff;
use crate::endpoint::Endpoint;
use crate::files::{self, Existing};

/// How many rendezvous are remembered.
const MOST: usize = super::MAX_LEARNT;
/// How many addresses of each.
const MOST_ADDRESSES: usize = 4;
/// A file is no longer than this.
const MOST_BYTES: u64 = 64 * 1024;
/// The file is written at most this often.
const WRITTEN_EVERY: Duration = Duration::from_secs(5);
/// Those that are remembered are tried again after this pause, once all of them failed; the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

const TITLE: &str =
    "# Rendezvous that others listed, best first. They are used when none that is configured answers.\n";
/// Begins the line that says for whom the list is.
const FOR: &str = "for";

/// Under which configuration something was learnt.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) network: NetworkId,
    pub(super) configured: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    id: PeerId,
    /// Each with the id.
    endpoints: Vec<Endpoint>,
    /// There was a session with it in this life.
    proven: bool,
}

/// See the module. The best come first: those with which there were sessions, then those that were listed last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory(Vec<Known>);

impl Memory {
    /// Somebody lists these as the rendezvous of its backbone.
    pub(super) fn listed(&mut self, records: &[Signed<PeerRecord>], but: Option<PeerId>) {
        let named = |record: &Signed<PeerRecord>| {
            let id = record.peer_id();
            let addresses = record.value().addresses.iter();
            let endpoints = addresses.filter_map(|a| Endpoint::of(a, id)).take(MOST_ADDRESSES).collect();
            Known { id, endpoints, proven: self.0.iter().any(|known| known.id == id && known.proven) }
        };
        let mut all: Vec<Known> = records
            .iter()
            .filter(|record| Some(record.peer_id()) != but)
            .map(named)
            .filter(|known| !known.endpoints.is_empty())
            .collect();
        let ids: BTreeSet<PeerId> = all.iter().map(|known| known.id).collect();
        all.extend(self.0.drain(..).filter(|known| !ids.contains(&known.id)));
        all.sort_by_key(|known| !known.proven);
        all.truncate(MOST);
        self.0 = all;
    }

    /// There is a session with it.
    pub(super) fn proven(&mut self, server: &PeerId) {
        if let Some(known) = self.0.iter_mut().find(|known| known.id == *server) {
            known.proven = true;
        }
        self.0.sort_by_key(|known| !known.proven);
    }

    /// It answers no more, while others do.
    pub(super) fn forget(&mut self, server: &PeerId) {
        self.0.retain(|known| known.id != *server);
    }

    /// All, each with its addresses.
    fn all(&self) -> impl Iterator<Item = (PeerId, Vec<Endpoint>)> + '_ {
        self.0.iter().map(|known| (known.id, known.endpoints.clone()))
    }

    /// As it is written: a line for whom it is, then one for each rendezvous.
    fn to_text(&self, origin: &Origin) -> String {
        let line =
            |endpoints: &[Endpoint]| endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let mut text = format!("{TITLE}{FOR} {} {}\n", origin.network, line(&origin.configured));
        self.0.iter().for_each(|known| text.extend([line(&known.endpoints).as_str(), "\n"]));
        text
    }

    /// What counts of a text under this configuration.
    fn parse(text: &str, origin: &Origin) -> Self {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let is_ours = lines.next().is_some_and(|line| {
            let mut words = line.split(' ');
            let is_for = words.next() == Some(FOR) && words.next() == Some(&origin.network.to_string());
            let urls: BTreeSet<String> = origin.configured.iter().map(Endpoint::url).collect();
            is_for && words.filter_map(|word| word.parse::<Endpoint>().ok()).any(|e| urls.contains(&e.url()))
        });
        if !is_ours {
            return Self::default();
        }
        let mut known: Vec<Known> = Vec::new();
        for line in lines {
            let endpoints: Vec<Endpoint> =
                line.split(' ').take(MOST_ADDRESSES).filter_map(|word| word.parse().ok()).collect();
            let Some(id) = endpoints.first().and_then(Endpoint::pin) else { continue };
            let is_whole = endpoints.iter().all(|endpoint| endpoint.pin() == Some(id));
            if is_whole && known.len() < MOST && known.iter().all(|other| other.id != id) {
                known.push(Known { id, endpoints, proven: false });
            }
        }
        Self(known)
    }

    /// What a file holds; nothing if there is none, or it can't be read.
    pub(super) fn read(file: &Path, origin: &Origin) -> Self {
        match files::read_bounded(file, MOST_BYTES) {
            Ok(bytes) => Self::parse(&String::from_utf8_lossy(&bytes), origin),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "remembered rendezvous can't be read");
                Self::default()
            }
        }
    }
}

impl State {
    /// Whether every rendezvous that is configured has failed, and none is left that others listed.
    fn is_lost(&self) -> bool {
        let mut others = self.sessions.iter().filter(|(_, session)| !session.own);
        others.all(|(number, session)| session.configured && self.failed.contains(number))
    }

    /// Whether any rendezvous but the own one is a home.
    pub(super) fn is_home(&self) -> bool {
        self.sessions.values().any(|session| !session.own && session.state == SessionState::Online)
    }
}

impl Shared {
    /// Tries those that are remembered as if somebody had listed them.
    fn recall(self: &Arc<Self>) {
        let recalled: Vec<_> = {
            let mut state = self.state.lock();
            let all: Vec<_> = state.memory.all().collect();
            let fresh: Vec<_> = all.into_iter().filter(|(id, _)| state.known.insert(*id)).collect();
            state.learnt += fresh.len();
            fresh
        };
        let backbone: BTreeSet<PeerId> = recalled.iter().map(|(id, _)| *id).collect();
        if !recalled.is_empty() {
            tracing::info!(
                count = recalled.len(),
                "no configured rendezvous answers; those that were known before are tried"
            );
        }
        for (_, endpoints) in recalled {
            self.spawn(endpoints, Kind::Learnt, backbone.clone());
        }
    }
}

/// Tries those that are remembered whenever nobody else is left, until the peer stops.
pub(super) async fn keep_recalling(shared: Arc<Shared>) {
    let mut changes = shared.changes.subscribe();
    let mut pauses = Backoff::new(PAUSE.0, PAUSE.1);
    loop {
        let (is_lost, is_home) = {
            let state = shared.state.lock();
            (state.is_lost(), state.is_home())
        };
        if is_home {
            pauses.reset();
        }
        let pause = is_lost.then(|| {
            shared.recall();
            pauses.next(fastrand::f64())
        });
        tokio::select! {
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            changed = changes.changed(), if pause.is_none() => if changed.is_err() { return },
            () = shared.stop.cancelled() => return,
        }
    }
}

/// Writes what is remembered whenever it is something else, until the peer stops, and then once more.
pub(super) async fn keep_writing(shared: Arc<Shared>, file: std::path::PathBuf, origin: Origin) {
    let text = || shared.state.lock().memory.to_text(&origin);
    let mut changes = shared.changes.subscribe();
    let mut written = text();
    loop {
        let stops = tokio::select! {
            changed = changes.changed() => changed.is_err(),
            () = shared.stop.cancelled() => true,
        };
        let now = text();
        if now != written {
            written.clone_from(&now);
            let to = file.clone();
            let write = move || files::write_atomically(&to, now.as_bytes(), 0o600, Existing::Replace);
            let outcome =
                tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(io::Error::other(error)));
            if let Err(error) = outcome {
                tracing::warn!(file = %file.display(), %error, "known rendezvous can't be remembered");
            }
            tokio::select! {
                () = tokio::time::sleep(WRITTEN_EVERY), if !stops => {}
                () = shared.stop.cancelled() => {}
            }
        }
        if stops {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::{Address, AddressKind, Genesis, SecretKey, Transport, UnixMillis};

    use super::*;

    fn origin(configured: &[&str]) -> Origin {
        let configured = configured.iter().map(|text| text.parse().unwrap()).collect();
        Origin { network: Genesis::open("test").unwrap().network_id(), configured }
    }

    fn record(n: u8, addresses: usize) -> Signed<PeerRecord> {
        let address = |port: usize| {
            let addr = ([127, 0, 0, n], u16::try_from(port).unwrap()).into();
            Address::ip(addr, Transport::Tls, AddressKind::Listen)
        };
        let record = PeerRecord {
            network: Genesis::open("test").unwrap().network_id(),
            seq: 1,
            issued: UnixMillis(1),
            expires: UnixMillis(2),
            addresses: (1..=addresses).map(address).collect(),
            services: Vec::new(),
            homes: Vec::new(),
            endorsements: Vec::new(),
        };
        Signed::sign(&record, &SecretKey::from_seed(&[n; 32])).unwrap()
    }

    fn hosts(memory: &Memory) -> Vec<String> {
        memory
            .all()
            .map(|(_, endpoints)| endpoints[0].host().rsplit('.').next().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn homes_come_first_then_who_was_listed_last_and_there_is_an_end() {
        let mut memory = Memory::default();
        memory.listed(&[record(1, 1), record(2, 9), record(3, 0)], None);
        assert_eq!(hosts(&memory), ["1", "2"], "who names no address can't be found again");
        assert_eq!(memory.all().nth(1).unwrap().1.len(), MOST_ADDRESSES);
        memory.proven(&record(2, 1).peer_id());
        memory.listed(&[record(4, 1), record(9, 1)], Some(record(9, 1).peer_id()));
        assert_eq!(hosts(&memory), ["2", "4", "1"]);
        memory.forget(&record(4, 1).peer_id());
        assert_eq!(hosts(&memory), ["2", "1"]);
        let many: Vec<_> = (10..90).map(|n| record(n, 1)).collect();
        memory.listed(&many, None);
        assert_eq!((memory.0.len(), hosts(&memory)[0].as_str()), (MOST, "2"));
    }

    #[test]
    fn it_is_read_as_it_was_written_where_something_is_configured_still() {
        let mut memory = Memory::default();
        memory.listed(&[record(1, 2), record(2, 1)], None);
        let text = memory.to_text(&origin(&["https://a:1", "https://b:1"]));
        assert_eq!(Memory::parse(&text, &origin(&["https://b:1", "https://c:1"])), memory);
        assert_eq!(Memory::parse(&text, &origin(&["https://c:1"])), Memory::default());
        let other =
            Origin { network: Genesis::open("other").unwrap().network_id(), ..origin(&["https://a:1"]) };
        assert_eq!(Memory::parse(&text, &other), Memory::default());
    }

    #[test]
    fn what_is_damaged_is_worth_what_can_be_read_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (file, origin) = (dir.path().join("known_rendezvous"), origin(&["https://a:1"]));
        let read = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            hosts(&Memory::read(&file, &origin)).len()
        };
        let mut memory = Memory::default();
        memory.listed(&[record(1, 1), record(2, 1), record(3, 1)], None);
        let text = memory.to_text(&origin);
        let second = text.lines().nth(3).unwrap();
        assert_eq!(read(text.as_bytes()), 3);
        assert_eq!(
            read(text.replace(second, "https://b:1 nonsense \u{0}").as_bytes()),
            2,
            "who it is is not said"
        );
        assert_eq!(read(text.replace(second, &format!("{second} https://b:1")).as_bytes()), 2);
        assert_eq!(read(&text.as_bytes()[..text.len() - 20]), 2);
        assert_eq!(read(&[text.as_bytes(), text.as_bytes()].concat()), 3, "nobody is there twice");
        let garbage: Vec<u8> =
            (0..5000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        assert_eq!(read(&garbage), 0);
        assert_eq!(read(&vec![b'x'; 70_000]), 0);
        assert_eq!(hosts(&Memory::read(&dir.path().join("nowhere"), &origin)).len(), 0);
    }
}
