//! The ring turns: members come late, die, come back, and hand over what they own no longer.
//!
//! What a member knows by itself is asked over a link of its own, which ends before whoever asks counts in any ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use p2psb_client::Connection;
use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::{LocatedPeer, PresenceState};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer;
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_client::RendezvousServiceClient;
use p2psb_rendezvous_svc::core::placement::{Key, Operator, Placement};
use p2psb_rendezvous_svc::core::presence::MARK_INTERVAL;
use p2psb_rendezvous_svc::core::ring::Timing;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::bridge::member;
use crate::edge::true_statement;
use crate::harness::{TestServer, eventually};
use crate::member::{KeyFile, RawLink};
use crate::peer::Peer;

/// Quick, and slow enough for a look to end before whoever looks counts.
const QUICK: Timing = Timing {
    join_after: Duration::from_secs(2),
    leave_after: Duration::from_secs(7),
    overlap: Duration::from_secs(1),
};

/// The ring of these members, none of which names an operator.
fn ring(members: impl IntoIterator<Item = PeerId>) -> Placement {
    Placement::new(members.into_iter().map(|id| (id, Operator::of(&id, None))))
}

fn ids(servers: &[TestServer]) -> Vec<PeerId> {
    servers.iter().map(|server| server.id).collect()
}

/// Members that are linked with each other, and have been up for long enough that nobody who comes counts at once.
async fn settled(key: &KeyFile, timing: Timing, count: usize) -> Vec<TestServer> {
    let mut servers: Vec<TestServer> = Vec::new();
    for _ in 0..count {
        let server = TestServer::start_turning(timing, member(key, servers.iter().take(1))).await;
        servers.push(server);
    }
    let whole = ring(ids(&servers)).digest();
    for server in &servers {
        eventually!("it sees the whole ring", {
            let look = Look::at(server, key, timing).await;
            look.is_some_and(|look| look.link.mark.ring_digest == whole && look.link.mark.finished)
        });
    }
    servers
}

/// A look at what a member knows by itself.
struct Look {
    link: RawLink,
    until: Instant,
}

impl Look {
    /// `None` while whoever looks would count at once.
    async fn at(server: &TestServer, key: &KeyFile, timing: Timing) -> Option<Self> {
        let until = Instant::now() + timing.join_after;
        let link = RawLink::dial(&Peer::new(), server.connection().await, Some(key.bytes())).await.unwrap();
        (link.oldest_up_for >= timing.join_after).then_some(Self { link, until })
    }

    /// Whom of these it holds.
    async fn held(&mut self, peers: &[PeerId]) -> Vec<PeerId> {
        let mut held = Vec::new();
        for peer in peers {
            if let Answer::Found(_) = self.link.locate(peer).await.unwrap() {
                held.push(*peer);
            }
        }
        assert!(Instant::now() < self.until, "the look took so long that it counts");
        held
    }
}

/// Whom of these a member holds, and the digest of the ring that it sees.
async fn held(server: &TestServer, key: &KeyFile, peers: &[PeerId]) -> Vec<PeerId> {
    Look::at(server, key, QUICK).await.expect("an old backbone").held(peers).await
}

/// Whom of these `member` has to hold: those that it owns in this ring, and those that are there.
fn to_hold(member: PeerId, ring: &Placement, peers: &[(PeerId, PeerId)]) -> Vec<PeerId> {
    let has =
        |(peer, home): &&(PeerId, PeerId)| *home == member || ring.owners(Key::peer(peer)).contains(&member);
    peers.iter().filter(has).map(|(peer, _)| *peer).collect()
}

/// Peers that are registered at some of the members, in turn, and known everywhere. Each with its home.
async fn registered(count: usize, homes: &[TestServer], all: &[TestServer]) -> Vec<(PeerId, PeerId)> {
    let mut peers = Vec::new();
    for n in 0..count {
        let (peer, home) = (Peer::new(), &homes[n % homes.len()]);
        peer.register(home, 1).await.unwrap();
        peers.push((peer.id(), home.id));
    }
    for server in all {
        for (peer, _) in &peers {
            server.knows(peer, PresenceState::Online).await;
        }
    }
    peers
}

/// Lookups at some members, again and again: every one of them finds its peer, online.
struct Lookups {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Result<(), String>>>,
}

impl Lookups {
    async fn start(at: impl IntoIterator<Item = &TestServer>, peers: &[PeerId]) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = Vec::new();
        for server in at {
            let (client, id) = (server.client().await, server.id);
            let (stop, done, peers) = (Arc::clone(&stop), Arc::clone(&done), peers.to_vec());
            tasks.push(tokio::spawn(async move {
                let mut pace = tokio::time::interval(Duration::from_millis(5));
                for peer in peers.into_iter().cycle() {
                    pace.tick().await;
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    online(client.clone(), &peer).await.map_err(|problem| format!("at {id}: {problem}"))?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        Self { stop, done, tasks }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap().unwrap();
        }
        assert!(self.done.load(Ordering::Relaxed) > 100, "hardly any lookup was done");
    }
}

async fn online(mut client: RendezvousServiceClient<Connection>, peer: &PeerId) -> Result<(), String> {
    let answer = client.locate(wire::LocateRequest { peer_id: peer.to_wire() }).await;
    let found = answer.map_err(|status| format!("{peer}: {status}"))?.into_inner();
    let presence = LocatedPeer::try_from(found.peer.unwrap()).unwrap().presence;
    if presence.state == PresenceState::Online { Ok(()) } else { Err(format!("{peer}: {presence:?}")) }
}

#[tokio::test]
async fn who_joins_late_is_told_what_it_owns_and_only_then_do_the_others_forget_it() {
    let key = KeyFile::new();
    let mut servers = settled(&key, QUICK, 3).await;
    let peers = registered(45, &servers, &servers).await;
    let known: Vec<PeerId> = peers.iter().map(|(peer, _)| *peer).collect();
    for server in &servers {
        assert_eq!(held(server, &key, &known).await, known, "three members hold everything");
    }
    let lookups = Lookups::start(&servers, &known).await;

    let (came, old) = (Instant::now(), ring(ids(&servers)));
    let newcomer = TestServer::start_turning(QUICK, member(&key, servers.iter().take(1))).await;
    eventually!("the newcomer can ask the others", newcomer.links().await >= 3);
    let at_newcomer = Lookups::start([&newcomer], &known[..9]).await;
    servers.push(newcomer);
    let new = ring(ids(&servers));
    let late = servers.last().unwrap();
    let its_own = to_hold(late.id, &new, &peers);
    assert!(its_own.len() > 20, "{} of 45", its_own.len());

    // The others count it once it has been there for a while, and believe that it knows once it does.
    eventually!("the others count the newcomer", {
        let mut look = Look::at(&servers[0], &key, QUICK).await.unwrap();
        let digest = look.link.mark.ring_digest;
        assert!(digest == old.digest() || digest == new.digest());
        assert!(digest == old.digest() || came.elapsed() >= QUICK.join_after, "it counts too soon");
        // What one of the three does not own in the new ring it may forget only once the newcomer has it.
        let forgotten = look.held(&known).await.len() < known.len();
        assert!(!forgotten || held(late, &key, &its_own).await == its_own, "forgotten too soon");
        digest == new.digest()
    });
    eventually!("the newcomer knows that it was told all", {
        let mut look = Look::at(late, &key, QUICK).await.unwrap();
        let finished = look.link.mark.finished;
        assert!(!finished || look.held(&its_own).await == its_own, "it has finished without having all");
        finished
    });

    // In the end each holds what it owns, and the peers that are there: nothing else.
    for server in &servers {
        let expected = to_hold(server.id, &new, &peers);
        eventually!("it has forgotten what it owns no longer", {
            let all = held(server, &key, &known).await;
            let missing: Vec<_> = expected.iter().filter(|peer| !all.contains(peer)).collect();
            assert!(missing.is_empty(), "{missing:?} are missing at {}", server.id);
            assert!(held(late, &key, &its_own).await == its_own, "the newcomer has it all the time");
            all == expected
        });
    }
    let all: usize = servers.iter().map(|server| to_hold(server.id, &new, &peers).len()).sum();
    assert!(all < 4 * known.len(), "somebody had something to forget");
    lookups.end().await;
    at_newcomer.end().await;
}

#[tokio::test]
async fn who_dies_loses_its_place_and_the_new_owners_have_everything() {
    let key = KeyFile::new();
    let mut servers = settled(&key, QUICK, 5).await;
    let whole = ring(ids(&servers));
    let peers = registered(40, &servers[..4], &servers).await;
    let known: Vec<PeerId> = peers.iter().map(|(peer, _)| *peer).collect();
    let mut dead = servers.pop().unwrap();
    let its_own = to_hold(dead.id, &whole, &peers);
    let lookups = Lookups::start(&servers, &known).await;

    let died = Instant::now();
    dead.kill();
    let rest = ring(ids(&servers));
    for server in &servers {
        eventually!("the dead one has no place any more", {
            let look = Look::at(server, &key, QUICK).await.unwrap();
            let digest = look.link.mark.ring_digest;
            assert!(digest == whole.digest() || digest == rest.digest());
            // Its last sign of life was its last mark, at the latest that long before.
            assert!(
                digest == whole.digest() || died.elapsed() + MARK_INTERVAL >= QUICK.leave_after,
                "too soon"
            );
            digest == rest.digest()
        });
    }
    let moved = |server: &TestServer| {
        let before = to_hold(server.id, &whole, &peers);
        to_hold(server.id, &rest, &peers).into_iter().filter(|peer| !before.contains(peer)).count()
    };
    let moved: usize = servers.iter().map(moved).sum();
    assert!(moved > 0 && moved <= its_own.len(), "{moved} of {}", its_own.len());
    for server in &servers {
        let expected = to_hold(server.id, &rest, &peers);
        eventually!("it has all that it owns now, and nothing else", {
            held(server, &key, &known).await == expected
        });
    }
    lookups.end().await;
}

#[tokio::test]
async fn who_restarts_within_the_grace_keeps_its_place_and_is_told_all_again() {
    let timing = Timing { leave_after: Duration::from_secs(15), ..QUICK };
    let key = KeyFile::new();
    let mut servers = settled(&key, timing, 4).await;
    let whole = ring(ids(&servers));
    let peers = registered(30, &servers[..3], &servers).await;
    let known: Vec<PeerId> = peers.iter().map(|(peer, _)| *peer).collect();
    let restarted = servers.pop().unwrap();
    let its_own = to_hold(restarted.id, &whole, &peers);
    let lookups = Lookups::start(&servers, &known).await;

    let again = restarted.restart().await;
    let digests = async || {
        let mut digests = Vec::new();
        for server in &servers {
            digests.push(Look::at(server, &key, timing).await.unwrap().link.mark.ring_digest);
        }
        digests
    };
    eventually!("it has heard again all that it owns", {
        assert_eq!(digests().await, [whole.digest(); 3], "nobody takes its place away");
        match Look::at(&again, &key, timing).await {
            Some(mut look) => {
                let (finished, digest) = (look.link.mark.finished, look.link.mark.ring_digest);
                let has_all = look.held(&its_own).await == its_own;
                assert!(!finished || has_all, "it has finished without having all");
                finished && digest == whole.digest()
            }
            None => false,
        }
    });
    for peer in &known {
        assert_eq!(again.state(peer).await, Some(PresenceState::Online));
    }
    lookups.end().await;
}

/// A server whose knowledge of some peers came from members that took part in no ring yet, and which fill its ring now. They say
/// what a test wants, and acknowledge when it wants.
struct Handover {
    server: TestServer,
    others: Vec<RawLink>,
    known: Vec<PeerId>,
    /// What the server owns in the ring of all.
    its_own: Vec<PeerId>,
    whole: Placement,
}

impl Handover {
    async fn begin() -> Self {
        let key = KeyFile::new();
        let server = settled(&key, QUICK, 1).await.remove(0);
        let (mut others, mut members) = (Vec::new(), vec![server.id]);
        for _ in 0..4 {
            let other = Peer::new();
            members.push(other.id());
            let connection = server.connection().await;
            others.push(RawLink::dial(&other, connection, Some(key.bytes())).await.unwrap());
        }
        let peers: Vec<Peer> = (0..40).map(|_| Peer::new()).collect();
        let known: Vec<PeerId> = peers.iter().map(Peer::id).collect();
        others[0].records(peers.iter().map(|peer| peer.record(1).to_wire()).collect()).await;
        let whole = ring(members);
        let digest = whole.digest();
        let mut handover = Self { server, others, known: Vec::new(), its_own: Vec::new(), whole };
        handover.follow(known);
        eventually!("every member was told all that it owns", {
            handover.held().await == handover.known
                && handover.others.iter().all(|other| other.told_all)
                && handover.others[0].mark.ring_digest == digest
        });
        handover
    }

    /// Looks for these peers from now on.
    fn follow(&mut self, known: Vec<PeerId>) {
        let owned = |peer: &&PeerId| self.whole.owners(Key::peer(peer)).contains(&self.server.id);
        self.its_own = known.iter().filter(owned).copied().collect();
        self.known = known;
    }

    /// Everybody has what was told so far.
    async fn acknowledge(&self) {
        for other in &self.others {
            other.acknowledge(other.received).await;
        }
    }

    /// Whom the server holds. Each of the others is heard, and hears, meanwhile.
    async fn held(&mut self) -> Vec<PeerId> {
        let mut held = Vec::new();
        for (n, peer) in self.known.iter().enumerate() {
            let by = n % self.others.len();
            if let Answer::Found(_) = self.others[by].locate(peer).await.unwrap() {
                held.push(*peer);
            }
        }
        held
    }
}

#[tokio::test]
async fn what_a_member_owns_no_longer_it_keeps_until_the_last_owner_has_it() {
    let mut handover = Handover::begin().await;
    assert!(handover.its_own.len() < handover.known.len());
    // All but one have it; what is only under way may get lost.
    for other in &handover.others[1..] {
        other.acknowledge(other.received).await;
    }
    let begun = Instant::now();
    while begun.elapsed() < QUICK.overlap + Duration::from_secs(1) {
        assert_eq!(handover.held().await, handover.known, "forgotten before the last owner has it");
    }
    let last = &handover.others[0];
    last.acknowledge(last.received).await;
    eventually!("it keeps what it owns, and forgets the rest", handover.held().await == handover.its_own);
}

#[tokio::test]
async fn what_a_member_owns_no_longer_it_forgets_also_while_there_is_always_something_to_tell() {
    let mut handover = Handover::begin().await;
    let mut newcomers = Vec::new();
    eventually!("it forgets what it owns no longer", {
        for _ in 0..4 {
            let newcomer = Peer::new();
            newcomer.register(&handover.server, 1).await.unwrap();
            newcomers.push(newcomer);
        }
        // Everybody is behind by a batch, always.
        let held = handover.held().await;
        for other in &handover.others {
            other.acknowledge(other.received - 1).await;
        }
        held == handover.its_own
    });
}

#[tokio::test]
async fn what_a_member_holds_for_an_edge_it_forgets_when_the_edge_went() {
    let mut handover = Handover::begin().await;
    let edge = Peer::new();
    let peers: Vec<Peer> = (0..40).map(|_| Peer::new()).collect();
    let link = RawLink::dial_edge(&edge, handover.server.connection().await).await.unwrap();
    link.records(peers.iter().map(|peer| peer.record(1).to_wire()).collect()).await;
    let online = |peer| true_statement(&edge, peer, PresenceState::Online, 1);
    let presence = peers.iter().map(online).collect();
    link.send(wire::BridgeBatch { presence, ..Default::default() }).await;
    handover.server.knows(&peers[39].id(), PresenceState::Online).await;
    let before = handover.its_own.clone();
    eventually!("it forgets what it owns no longer", {
        handover.acknowledge().await;
        handover.held().await == before
    });
    handover.follow(peers.iter().map(Peer::id).collect());
    assert!(handover.its_own.len() < peers.len());
    assert_eq!(handover.held().await, handover.known, "but not what it tells for the edge");
    drop(link);
    eventually!("it keeps what it owns of that, and forgets the rest", {
        handover.acknowledge().await;
        handover.held().await == handover.its_own
    });
}
