//! A backbone of five members whose network breaks: packets between some of them are lost, while everybody else reaches them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use p2psb_client::Endpoint;
use p2psb_e2e::network::{Entered, Network, Site, enter};
use p2psb_e2e::peer::{Peer, client, locate, watch};
use p2psb_e2e::{Cluster, Service, eventually};
use p2psb_proto::error::{Reason, reason_of};
use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::{LocatedPeer, PresenceState};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::watch_presence_response::Message;
use p2psb_rendezvous_svc::core::placement::{Key, Operator, Placement};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

/// A member notices that another one is silent after 15 s, and dials it again some seconds after it could be reached.
const PATIENCE: Duration = Duration::from_secs(60);
const MEMBERS: usize = 5;

/// The test of this name goes on if this gives a network; it has run if not.
fn inside(test: &str) -> Option<Network> {
    match enter(&format!("partitions::{test}")) {
        Ok(Entered::Inside(network)) => Some(network),
        Ok(Entered::Ran(output)) => {
            let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
            // A name that is no test's would succeed as well.
            let has_run = output.status.success() && said[0].contains("1 passed");
            assert!(has_run, "{}", said.concat());
            None
        }
        Err(trouble) => {
            // Past the capture of the test runner: who reads the log must see it.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {trouble}");
            None
        }
    }
}

/// Five members, and peers at home at each of them.
struct Backbone {
    network: Network,
    sites: Vec<Site>,
    cluster: Cluster,
    all: Vec<Endpoint>,
    /// Each with the number of its home.
    peers: Vec<(usize, Peer)>,
}

impl Backbone {
    async fn start(mut network: Network) -> Self {
        let sites: Vec<Site> = (0..MEMBERS).map(|_| network.site().unwrap()).collect();
        let cluster = Cluster::plan().bare().rendezvous(MEMBERS).at(&sites).start().await.unwrap();
        let all = cluster.endpoints().unwrap();
        for at in &all {
            eventually!("it is linked with all others", links(at).await == MEMBERS - 1);
        }
        let mut backbone = Self { network, sites, cluster, all, peers: Vec::new() };
        for home in (0..MEMBERS).flat_map(|home| [home; 3]) {
            let peer = backbone.come(home);
            backbone.peers.push((home, peer));
        }
        for at in 0..MEMBERS {
            for (_, peer) in &backbone.peers {
                backbone.says(at, &peer.id(), PresenceState::Online).await;
            }
        }
        backbone
    }

    /// One more peer, which has one home.
    fn come(&self, home: usize) -> Peer {
        Peer::start_with_homes(1, &self.all[home..=home]).unwrap()
    }

    /// Waits until a member says so.
    async fn says(&self, at: usize, peer: &PeerId, state: PresenceState) {
        eventually!(format!("member {at} says that {peer} is {state:?}"), within PATIENCE, {
            let found = locate(&self.all[at], peer).await.map_err(|status| status.to_string());
            found.map(|found| found.presence).and_then(|presence| {
                if presence.state == state { Ok(()) } else { Err(format!("{presence:?}")) }
            })
        });
    }

    fn cut(&self, between: impl IntoIterator<Item = (usize, usize)>) {
        for (one, other) in between {
            self.network.cut(&self.sites[one], &self.sites[other]).unwrap();
        }
    }

    async fn linked(&self, with: [usize; MEMBERS]) {
        for (at, with) in self.all.iter().zip(with) {
            eventually!("links came or went", within PATIENCE, {
                let links = links(at).await;
                if links == with { Ok(()) } else { Err(format!("{links} links, not {with}")) }
            });
        }
    }

    /// Ways are open again: everybody is linked, sees the same ring of five, and knows the newest record and state of all.
    async fn mend(&self, between: impl IntoIterator<Item = (usize, usize)>, gone: &[PeerId]) {
        for (one, other) in between {
            self.network.mend(&self.sites[one], &self.sites[other]).unwrap();
        }
        self.linked([MEMBERS - 1; MEMBERS]).await;
        for service in &self.cluster.rendezvous {
            eventually!("all see the same ring", within PATIENCE, ring(service).await == (5.0, 0.0));
        }
        for at in 0..MEMBERS {
            for (_, peer) in &self.peers {
                self.says(at, &peer.id(), PresenceState::Online).await;
                let seq = peer.sessions.record().unwrap().value().seq;
                let told =
                    async || locate(&self.all[at], &peer.id()).await.map(|found| found.record.value().seq);
                eventually!("the record is the newest", told().await.is_ok_and(|told| told >= seq));
            }
            for gone in gone {
                self.says(at, gone, PresenceState::Offline).await;
            }
        }
    }
}

/// With how many members a rendezvous has a link.
async fn links(at: &Endpoint) -> usize {
    let Ok(mut client) = client(at).await else { return 0 };
    let listed = client.list_rendezvous(wire::ListRendezvousRequest {}).await;
    listed.map_or(0, |l| l.into_inner().rendezvous.iter().filter(|one| one.connected).count() - 1)
}

/// How many members a member sees in the ring, and how many see another ring.
async fn ring(member: &Service) -> (f64, f64) {
    let figure = async |name| member.figure(name).await.unwrap();
    (figure("rendezvous_ring_members").await, figure("rendezvous_ring_disagreeing").await)
}

/// What lookups may say of a peer at a member.
type Allowed = dyn Fn(usize, &PeerId, &Result<LocatedPeer, tonic::Status>) -> bool + Send + Sync;

/// Lookups of all peers at all members, again and again.
struct Lookups {
    stop: CancellationToken,
    task: JoinHandle<usize>,
}

impl Lookups {
    fn start(backbone: &Backbone, allowed: Arc<Allowed>) -> Self {
        let (all, stop) = (backbone.all.clone(), CancellationToken::new());
        let peers: Vec<PeerId> = backbone.peers.iter().map(|(_, peer)| peer.id()).collect();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            let mut done = 0;
            for (peer, at) in peers.iter().flat_map(|peer| (0..all.len()).map(move |at| (peer, at))).cycle() {
                tokio::select! {
                    _ = pace.tick() => {}
                    () = stopped.cancelled() => return done,
                }
                let said = locate(&all[at], peer).await;
                assert!(allowed(at, peer, &said), "member {at} of {peer}: {said:?}");
                done += 1;
            }
            done
        });
        Self { stop, task }
    }

    async fn end(self) {
        self.stop.cancel();
        let done = self.task.await.unwrap();
        assert!(done > 200, "only {done} lookups");
    }
}

/// Follows peers as one member tells of them.
struct Watch {
    messages: Streaming<wire::WatchPresenceResponse>,
}

impl Watch {
    async fn open(at: &Endpoint, peers: &[PeerId]) -> Self {
        Self { messages: watch(at, peers).await.unwrap() }
    }

    /// Reads until it is said that `peer` is `state`. Nothing may be said meanwhile that is not `allowed`.
    async fn until(
        &mut self,
        peer: PeerId,
        state: PresenceState,
        allowed: impl Fn(&PeerId, Option<PresenceState>) -> bool,
    ) {
        let reading = async {
            loop {
                let (said, is) = match self.messages.message().await.unwrap().unwrap().message.unwrap() {
                    Message::Peer(found) => {
                        let found = LocatedPeer::try_from(found).unwrap();
                        (found.peer_id(), Some(found.presence.state))
                    }
                    Message::Gone(gone) => (PeerId::from_slice(&gone.peer_id).unwrap(), None),
                    Message::Progress(_) => continue,
                    Message::Resync(_) => panic!("it lost something"),
                };
                if (said, is) == (peer, Some(state)) {
                    return;
                }
                assert!(allowed(&said, is), "{said} is {is:?}");
            }
        };
        let read = tokio::time::timeout(PATIENCE, reading).await;
        assert!(read.is_ok(), "{peer} was never said to be {state:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_that_reach_each_other_through_others_alone_know_all_that_happens_at_each_other() {
    let test = "two_members_that_reach_each_other_through_others_alone_know_all_that_happens_at_each_other";
    let Some(network) = inside(test) else { return };
    let mut backbone = Backbone::start(network).await;
    // Nobody is missed, and nobody is OFFLINE: whose home was not heard for a moment may be SUSPECT.
    let lookups = Lookups::start(
        &backbone,
        Arc::new(|_, _, said| {
            said.as_ref().is_ok_and(|found| found.presence.state != PresenceState::Offline)
        }),
    );
    let (leaves, stays) =
        (backbone.come(1), backbone.peers.iter().find(|(home, _)| *home == 1).unwrap().1.id());
    backbone.says(0, &leaves.id(), PresenceState::Online).await;
    let mut watch = Watch::open(&backbone.all[0], &[leaves.id(), stays]).await;
    watch.until(leaves.id(), PresenceState::Online, |_, is| is == Some(PresenceState::Online)).await;

    backbone.cut([(0, 1)]);
    backbone.linked([MEMBERS - 2, MEMBERS - 2, MEMBERS - 1, MEMBERS - 1, MEMBERS - 1]).await;
    for service in &backbone.cluster.rendezvous {
        assert_eq!(ring(service).await.0, 5.0, "who is reached by others stays in the ring");
    }
    // What happens at one of them is known at the other, and told to who watches there.
    for (home, other) in [(0, 1), (1, 0)] {
        let peer = backbone.come(home);
        backbone.says(other, &peer.id(), PresenceState::Online).await;
        backbone.peers.push((home, peer));
    }
    let gone = leaves.id();
    leaves.sessions.shutdown().await;
    let told = |said: &PeerId, is: Option<PresenceState>| {
        if *said == stays { is != Some(PresenceState::Offline) && is.is_some() } else { true }
    };
    watch.until(gone, PresenceState::Offline, told).await;
    for at in 0..MEMBERS {
        backbone.says(at, &gone, PresenceState::Offline).await;
        for (_, peer) in &backbone.peers {
            backbone.says(at, &peer.id(), PresenceState::Online).await;
        }
    }

    backbone.mend([(0, 1)], &[gone]).await;
    lookups.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backbone_that_was_split_agrees_again_and_took_nobody_for_offline() {
    let Some(network) = inside("a_backbone_that_was_split_agrees_again_and_took_nobody_for_offline") else {
        return;
    };
    const SMALL: [usize; 2] = [0, 1];
    const LARGE: [usize; 3] = [2, 3, 4];
    let across = || SMALL.into_iter().flat_map(|one| LARGE.map(|other| (one, other)));
    let mut backbone = Backbone::start(network).await;
    let ids: Vec<PeerId> =
        backbone.cluster.rendezvous.iter().map(|service| service.peer_id().unwrap()).collect();
    let ring = Placement::new(ids.iter().map(|id| (*id, Operator::of(id, None))));
    let homes: BTreeMap<PeerId, usize> =
        backbone.peers.iter().map(|(home, peer)| (peer.id(), *home)).collect();
    // A side without any owner of a peer can't say where it is, unless it is at home where it is asked. It says so, and
    // nothing else.
    let allowed = move |at: usize, peer: &PeerId, said: &Result<LocatedPeer, tonic::Status>| match said {
        Ok(found) => found.presence.state != PresenceState::Offline,
        Err(status) => {
            let side = if SMALL.contains(&at) { &SMALL[..] } else { &LARGE[..] };
            let has_owner = side.iter().any(|member| ring.owners(Key::peer(peer)).contains(&ids[*member]));
            reason_of(status) == Some(Reason::LookupIncomplete) && !has_owner && homes[peer] != at
        }
    };
    let lookups = Lookups::start(&backbone, Arc::new(allowed));
    let leaving = [backbone.come(SMALL[0]), backbone.come(LARGE[0])];
    for at in 0..MEMBERS {
        for peer in &leaving {
            backbone.says(at, &peer.id(), PresenceState::Online).await;
        }
    }

    backbone.cut(across());
    backbone.linked([1, 1, 2, 2, 2]).await;
    let gone = leaving.each_ref().map(Peer::id);
    for (peer, home) in leaving.into_iter().zip([SMALL[0], LARGE[0]]) {
        peer.sessions.shutdown().await;
        backbone.says(home, &gone[usize::from(home == LARGE[0])], PresenceState::Offline).await;
    }
    for home in [SMALL[1], LARGE[1]] {
        let peer = backbone.come(home);
        backbone.says(home, &peer.id(), PresenceState::Online).await;
        backbone.peers.push((home, peer));
    }

    backbone.mend(across(), &gone).await;
    lookups.end().await;
}
