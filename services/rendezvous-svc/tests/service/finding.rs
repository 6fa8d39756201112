//! Owners of a service that lie, are slow, or do not know yet, and a member that owns nothing of it and asks them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use p2psb_proto::model::presence::{LocatedPeer, PresenceSource, PresenceState};
use p2psb_proto::model::proof::{ChannelBinding, ProofRole, Transcript};
use p2psb_proto::model::{PeerId, ServiceName, ServiceQuery};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer;
use p2psb_rendezvous_svc::core::page::{Cursor, Part};
use p2psb_rendezvous_svc::core::placement::{Key, Operator, Placement};
use p2psb_rendezvous_svc::core::ring::Timing;
use tokio::task::JoinHandle;

use crate::bridge::member;
use crate::harness::{TestServer, eventually};
use crate::member::{KeyFile, RawLink, Says};
use crate::peer::{Peer, network};
use crate::watch::Watch;

/// Whoever comes counts at once, and stays.
const QUICK: Timing = Timing {
    join_after: Duration::from_secs(2),
    leave_after: Duration::from_secs(60),
    overlap: Duration::from_secs(1),
};

/// A member, and a service whose three owners the test plays.
struct Asker {
    server: TestServer,
    ring: Placement,
    service: String,
    owners: Vec<RawLink>,
    /// Who is linked, too, and owns nothing of the service.
    others: Vec<JoinHandle<()>>,
}

/// How long a slow owner takes: longer than others are waited for once enough have answered.
const LATE: Duration = Duration::from_millis(300);

/// Where everybody looks for the owners.
fn ring(members: &[PeerId]) -> Placement {
    Placement::new(members.iter().map(|id| (*id, Operator::of(id, None))))
}

impl Asker {
    async fn start() -> Self {
        let key = KeyFile::new();
        let server = TestServer::start_turning(QUICK, member(&key, [])).await;
        let (mut links, mut members) = (Vec::new(), vec![server.id]);
        for _ in 0..4 {
            let other = Peer::new();
            members.push(other.id());
            let connection = server.connection().await;
            links.push((other.id(), RawLink::dial(&other, connection, Some(key.bytes())).await.unwrap()));
        }
        let whole = ring(&members);
        eventually!("all are in the ring", {
            for (id, link) in &mut links {
                link.acknowledge(link.received).await;
                link.locate(id).await.unwrap();
            }
            links.iter().all(|(_, link)| link.mark.ring_digest == whole.digest())
        });
        let owners = |name: &str| whole.owners(Key::service(name));
        let mut names = (0..).map(|n| format!("chat{n}"));
        let service = names.find(|name| !owners(name).contains(&server.id)).unwrap();
        let owns = |id: &PeerId| owners(&service).contains(id);
        let (owning, others): (Vec<_>, Vec<_>) = links.into_iter().partition(|(id, _)| owns(id));
        let silent = |_| async { None };
        let others = others.into_iter().map(|(_, link)| tokio::spawn(link.own(true, silent))).collect();
        let owning = owning.into_iter().map(|(_, link)| link).collect();
        Self { server, service, ring: whole, owners: owning, others }
    }

    /// Lets the next owner answer.
    fn owner(&mut self, finished: bool, says: impl Says) {
        let link = self.owners.pop().expect("one more owner");
        self.others.push(tokio::spawn(link.own(finished, says)));
    }

    fn query(&self) -> ServiceQuery {
        self.service.parse::<ServiceName>().unwrap().into()
    }

    /// A peer that provides the service.
    fn provider(&self) -> Peer {
        Peer::offering(&self.service)
    }

    /// Several, in the order of their ids.
    fn providers(&self, count: usize) -> Vec<Peer> {
        let mut peers: Vec<Peer> = (0..count).map(|_| self.provider()).collect();
        peers.sort_by_key(Peer::id);
        peers
    }

    async fn page(&self, page_token: String) -> wire::FindByServiceResponse {
        let request =
            wire::FindByServiceRequest { service: self.service.clone(), page_token, ..Default::default() };
        self.server.client().await.find_by_service(request).await.unwrap().into_inner()
    }

    /// All pages, of which there may be only so many, and whether one was sampled.
    async fn walk(&self, most: usize) -> (Vec<LocatedPeer>, bool) {
        let (mut found, mut sampled, mut token) = (Vec::new(), false, String::new());
        for _ in 0..most {
            let page = self.page(token).await;
            found.extend(page.peers.into_iter().map(|peer| LocatedPeer::try_from(peer).unwrap()));
            sampled |= page.sampled;
            token = page.next_page_token;
            if token.is_empty() {
                return (found, sampled);
            }
        }
        panic!("no end after {most} pages")
    }
}

fn ids(found: &[LocatedPeer]) -> Vec<PeerId> {
    let mut ids: Vec<PeerId> = found.iter().map(LocatedPeer::peer_id).collect();
    ids.sort();
    ids
}

/// What an owner answers that knows these peers by their records.
fn page(peers: &[&Peer], next_page_token: String) -> Answer {
    let found = |peer: &&Peer| found(peer, Vec::new());
    Answer::Page(wire::BridgeProviders {
        peers: peers.iter().map(found).collect(),
        next_page_token,
        sampled: false,
    })
}

fn found(peer: &Peer, presence: Vec<wire::HomePresence>) -> wire::BridgeFound {
    wire::BridgeFound { record: Some(peer.record(1).to_wire()), presence }
}

/// An owner that knows these, and says so at once.
fn knowing(peers: &[Peer]) -> impl Says + use<> {
    let answer = page(&peers.iter().collect::<Vec<_>>(), String::new());
    move |_| {
        let answer = answer.clone();
        async move { Some(answer) }
    }
}

#[tokio::test]
async fn an_owner_that_claims_to_have_stopped_early_hides_nobody_and_ends_the_walk_for_nobody() {
    let mut asker = Asker::start().await;
    let (peers, query) = (asker.providers(3), asker.query());
    asker.owner(true, knowing(&peers));
    asker.owner(true, knowing(&peers));
    let asked = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&asked);
    // It says of one place after the other, all before those of the providers, that it came no further.
    let mut places: Vec<PeerId> = (0..64).map(|_| Peer::new().id()).collect();
    places.sort();
    asker.owner(true, move |_| {
        let after = places[counts.fetch_add(1, Ordering::Relaxed) % places.len()];
        let next = Cursor { part: Part::Online, after }.to_token(&query);
        async move { Some(page(&[], next)) }
    });
    let (found, _) = asker.walk(3).await;
    assert_eq!(ids(&found), peers.iter().map(Peer::id).collect::<Vec<_>>());
    assert!(asked.load(Ordering::Relaxed) > 0, "the liar was asked");
}

#[tokio::test]
async fn an_owner_that_leads_back_is_not_believed() {
    let mut asker = Asker::start().await;
    let (peers, query) = (asker.providers(3), asker.query());
    let first = Cursor { part: Part::Rest, after: peers[0].id() }.to_token(&query);
    let (again, begin) = (first.clone(), first.clone());
    asker.owner(true, knowing(&peers));
    asker.owner(true, knowing(&peers));
    asker.owner(true, move |_| {
        let next = again.clone();
        async move { Some(page(&[], next)) }
    });
    // From there on it says that there it goes on.
    let answer = asker.page(begin).await;
    assert_eq!((answer.peers.len(), answer.next_page_token), (2, String::new()));
}

/// The same, but late.
fn knowing_late(peers: &[Peer]) -> impl Says + use<> {
    let answer = page(&peers.iter().collect::<Vec<_>>(), String::new());
    move |_| {
        let answer = answer.clone();
        async move {
            // The fault itself: it takes that long.
            let _ = tokio::time::timeout(LATE, std::future::pending::<()>()).await;
            Some(answer)
        }
    }
}

#[tokio::test]
async fn the_first_answer_is_not_the_whole_truth_until_a_second_owner_has_answered() {
    let mut asker = Asker::start().await;
    let peers = asker.providers(4);
    asker.owner(true, knowing(&peers[..1]));
    asker.owner(true, knowing_late(&peers[1..]));
    asker.owner(true, |_| std::future::pending());
    let (found, sampled) = asker.walk(1).await;
    assert_eq!((ids(&found).len(), sampled), (4, false));
}

#[tokio::test]
async fn an_owner_that_has_not_finished_syncing_is_no_witness() {
    let mut asker = Asker::start().await;
    let peers = asker.providers(4);
    asker.owner(false, knowing(&[]));
    asker.owner(true, knowing_late(&peers[..2]));
    asker.owner(true, knowing_late(&peers[2..]));
    let (found, sampled) = asker.walk(1).await;
    assert_eq!((ids(&found).len(), sampled), (4, false));
}

#[tokio::test]
async fn it_is_said_when_too_few_owners_have_answered() {
    let mut asker = Asker::start().await;
    let peers = asker.providers(2);
    asker.owner(true, knowing(&peers));
    asker.owner(false, knowing(&peers));
    asker.owner(true, |_| std::future::pending());
    let (found, sampled) = asker.walk(1).await;
    assert_eq!((ids(&found).len(), sampled), (2, true));
}

/// That the peer has a session with `home`, as it is told; signed by `by`.
fn session(peer: &Peer, home: PeerId, by: &Peer, binding: &ChannelBinding) -> wire::HomePresence {
    let nonces = ([5; 32], [6; 32]);
    let transcript = Transcript {
        network: network(),
        peer: peer.id(),
        server: home,
        client_nonce: nonces.0,
        server_nonce: nonces.1,
        session_seq: 7,
    };
    let proof = transcript.prove(ProofRole::SessionPeer, binding, by.identity.key());
    wire::HomePresence {
        peer_id: peer.id().to_wire(),
        session_seq: 7,
        state: PresenceState::Online as i32,
        source: PresenceSource::Session as i32,
        session_proof: Some(wire::SessionProof {
            client_nonce: Bytes::copy_from_slice(&nonces.0),
            server_nonce: Bytes::copy_from_slice(&nonces.1),
            proof: Some(proof),
            ..wire::SessionProof::default()
        }),
        home_id: home.to_wire(),
        revision: 1,
        ..wire::HomePresence::default()
    }
}

#[tokio::test]
async fn who_is_online_by_the_word_of_owners_alone_is_not() {
    let mut asker = Asker::start().await;
    let binding = asker.server.connection().await.binding();
    let (home, liar) = (Peer::new().id(), Peer::new());
    let [proven, bare, foreign, elsewhere, here] = [(); 5].map(|()| asker.provider());
    let claim = |peer: &Peer| session(peer, home, peer, &binding);
    let of_liar = liar.id().to_wire();
    let told = vec![
        found(&proven, vec![claim(&proven)]),
        found(&bare, vec![wire::HomePresence { session_proof: None, ..claim(&bare) }]),
        found(&foreign, vec![session(&foreign, home, &liar, &binding)]),
        found(&elsewhere, vec![wire::HomePresence { home_id: of_liar, ..claim(&elsewhere) }]),
        // Of its own sessions the member that asks knows better.
        found(&here, vec![session(&here, asker.server.id, &here, &binding)]),
    ];
    let lie = Answer::Page(wire::BridgeProviders { peers: told, ..wire::BridgeProviders::default() });
    for _ in 0..3 {
        let lie = lie.clone();
        asker.owner(true, move |_| {
            let lie = lie.clone();
            async move { Some(lie) }
        });
    }
    let (found, _) = asker.walk(1).await;
    assert_eq!(found.len(), 5);
    for peer in found {
        let said = (peer.presence.state, peer.presence.source, peer.presence.home);
        let expected = match peer.peer_id() == proven.id() {
            true => (PresenceState::Online, PresenceSource::Session, Some(home)),
            false => (PresenceState::Offline, PresenceSource::Record, None),
        };
        assert_eq!(said, expected);
    }
}

#[tokio::test]
async fn a_watch_whose_owners_have_not_answered_promises_nothing() {
    let mut asker = Asker::start().await;
    // None of them says anything of those in whom there is interest.
    for _ in 0..3 {
        asker.owner(true, knowing(&[]));
    }
    let foreign = |peer: &PeerId| !asker.ring.owners(Key::peer(peer)).contains(&asker.server.id);
    let peer = std::iter::repeat_with(|| Peer::new().id()).find(foreign).unwrap();
    let mut watch = Watch::open(&asker.server, &[peer]).await.unwrap();
    assert_eq!((watch.beginning().await.len(), watch.as_of), (1, None));
}
