//! The backbone as real processes: members are restarted, killed or stopped for a while under a stream of lookups through the SDK,
//! and no lookup is lost or late.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use p2psb_client::locator::Options;
use p2psb_client::walk::{Caller, Whom};
use p2psb_client::{Dialer, Endpoint, Locator};
use p2psb_e2e::peer::{Peer, client, network};
use p2psb_e2e::{Cluster, eventually};
use p2psb_proto::model::PeerId;
use p2psb_proto::wire::rendezvous::v1::ListRendezvousRequest;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// No lookup may take longer.
const DEADLINE: Duration = Duration::from_secs(1);
/// Each lookup asks the backbone.
const UNCACHED: Options = Options { deadline: None, ask_peers: false, cached: false, caller: Caller::Own };
/// A lookup begins this often.
const PACE: Duration = Duration::from_millis(4);

/// A stream of lookups of some peers, one after the other, whatever becomes of those before.
struct Lookups {
    done: Arc<AtomicUsize>,
    /// Who answered last.
    answered_by: Arc<Mutex<Option<Whom>>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Lookups {
    fn start(rendezvous: &[Endpoint], peers: &[(PeerId, u64)]) -> Self {
        let locator = Locator::new(network().unwrap(), rendezvous, Dialer::new(None, None).unwrap());
        let (done, answered_by) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Option<Whom>>>::default());
        let (stop, peers) = (CancellationToken::new(), peers.to_vec());
        let (counted, by, stopped) = (Arc::clone(&done), Arc::clone(&answered_by), stop.clone());
        let task = tokio::spawn(async move {
            let mut pace = interval(PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let (mut running, mut wrong) = (JoinSet::new(), Vec::new());
            for (peer, seq) in peers.into_iter().cycle() {
                tokio::select! {
                    _ = pace.tick() => {}
                    () = stopped.cancelled() => break,
                }
                let locator = locator.clone();
                running.spawn(async move {
                    match timeout(DEADLINE, locator.walk(&peer, UNCACHED)).await.map(|walked| walked.answer) {
                        Err(_) => Err(format!("{peer}: no answer within {DEADLINE:?}")),
                        Ok(Err(error)) => Err(error.to_string()),
                        Ok(Ok(found)) if found.peer.record.value().seq < seq => {
                            Err(format!("{peer}: an old record"))
                        }
                        Ok(Ok(found)) => Ok(found.answered_by),
                    }
                });
                while let Some(ended) = running.try_join_next() {
                    counted.fetch_add(1, Ordering::Relaxed);
                    match ended.unwrap() {
                        Ok(by_whom) => *by.lock().unwrap() = Some(by_whom),
                        Err(problem) => wrong.push(problem),
                    }
                }
            }
            while let Some(ended) = running.join_next().await {
                wrong.extend(ended.unwrap().err());
            }
            wrong
        });
        Self { done, answered_by, stop, task }
    }

    /// Waits for so many more.
    async fn more(&self, count: usize) {
        let goal = self.done.load(Ordering::Relaxed) + count;
        eventually!("lookups end", self.done.load(Ordering::Relaxed) >= goal);
    }

    /// Which of these answered last.
    fn answers(&self, cluster: &Cluster) -> usize {
        let by = match self.answered_by.lock().unwrap().clone() {
            Some(Whom::Rendezvous(endpoint)) => Some(endpoint.url()),
            Some(Whom::Peer(_)) | None => None,
        };
        cluster.rendezvous.iter().position(|service| Some(service.endpoint()) == by).unwrap()
    }

    /// All have been answered in time with the right record.
    async fn end(self) {
        self.stop.cancel();
        let wrong = self.task.await.unwrap();
        let (done, shown) = (self.done.load(Ordering::Relaxed), wrong.iter().take(10).collect::<Vec<_>>());
        assert!(wrong.is_empty(), "{} of {done} lookups failed: {shown:#?}", wrong.len());
        assert!(done > 100, "only {done} lookups");
    }
}

/// Peers that are online everywhere, with the `seq` that everybody knows.
async fn peers(cluster: &Cluster, count: usize) -> (Vec<Peer>, Vec<(PeerId, u64)>) {
    let (endpoints, homes) = (cluster.endpoints().unwrap(), cluster.rendezvous.len().min(3));
    let peers: Vec<Peer> = (0..count).map(|_| Peer::start(&endpoints).unwrap()).collect();
    let mut known = Vec::new();
    for peer in &peers {
        eventually!("it has all its homes", peer.online() == homes);
        let seq = peer.sessions.record().unwrap().value().seq;
        for at in &endpoints {
            let told = async || p2psb_e2e::peer::locate(at, &peer.id()).await.map(|p| p.record.value().seq);
            eventually!("everybody has its record", told().await.is_ok_and(|told| told >= seq));
        }
        known.push((peer.id(), seq));
    }
    (peers, known)
}

/// With how many members a rendezvous has a link.
async fn links(at: &Endpoint) -> usize {
    let Ok(mut client) = client(at).await else { return 0 };
    let listed = client.list_rendezvous(ListRendezvousRequest {}).await;
    listed.map_or(0, |l| l.into_inner().rendezvous.iter().filter(|one| one.connected).count() - 1)
}

async fn meshed(cluster: &Cluster) {
    for at in &cluster.endpoints().unwrap() {
        eventually!("it is linked with all others", links(at).await == cluster.rendezvous.len() - 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_the_backbone_loses_no_lookup() {
    let mut cluster = Cluster::plan().rendezvous(3).bare().start().await.unwrap();
    meshed(&cluster).await;
    let (peers, known) = peers(&cluster, 6).await;
    let lookups = Lookups::start(&cluster.endpoints().unwrap(), &known);
    lookups.more(50).await;
    for number in 0..3 {
        cluster.rendezvous[number].stop().await.unwrap();
        lookups.more(50).await;
        cluster.rendezvous[number].start().await.unwrap();
        meshed(&cluster).await;
        lookups.more(50).await;
    }
    lookups.end().await;
    for peer in &peers {
        eventually!("its homes are back", peer.online() == 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_dies_or_hangs_holds_up_no_lookup() {
    let mut cluster = Cluster::plan().rendezvous(3).bare().start().await.unwrap();
    meshed(&cluster).await;
    let (_peers, known) = peers(&cluster, 6).await;
    let lookups = Lookups::start(&cluster.endpoints().unwrap(), &known);
    lookups.more(50).await;
    let first = lookups.answers(&cluster);
    cluster.rendezvous[first].kill().await.unwrap();
    lookups.more(200).await;
    cluster.rendezvous[first].start().await.unwrap();
    meshed(&cluster).await;

    let second = lookups.answers(&cluster);
    cluster.rendezvous[second].process().unwrap().signal("STOP").unwrap();
    lookups.more(500).await;
    assert_ne!(lookups.answers(&cluster), second);
    cluster.rendezvous[second].process().unwrap().signal("CONT").unwrap();
    lookups.more(50).await;
    lookups.end().await;
}
