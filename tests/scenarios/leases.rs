//! What is renewed stays, past its first end; what is not, goes with its last.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use p2psb_client::pool::Pool;
use p2psb_client::{Connection, Dialer, Endpoint, Identity};
use p2psb_e2e::eventually;
use p2psb_e2e::inside::endpoint;
use p2psb_e2e::peer::{Peer, client, locate, network, now};
use p2psb_e2e::tree::put;
use p2psb_package_index_svc::server::Server as Index;
use p2psb_peer_agent::announce::{Announcer, Changed};
use p2psb_peer_agent::content::publish::publish;
use p2psb_peer_agent::index::{Directory, Draft, Indexes};
use p2psb_peer_agent::store::Store;
use p2psb_proto::error::{Failure, Reason, reason_of};
use p2psb_proto::model::peer::ServiceOffer;
use p2psb_proto::model::presence::LocatedPeer;
use p2psb_proto::model::{
    Digest, HostLease, PeerId, PeerRecord, PublisherId, Release, SecretKey, Signed, UnixMillis,
};
use p2psb_proto::wire::package_index::v1::FindHostsRequest;
use p2psb_proto::wire::package_index::v1::package_index_service_client::PackageIndexServiceClient;
use p2psb_proto::wire::rendezvous::v1::FindByServiceRequest;
use p2psb_runtime::clock::ManualClock;
use p2psb_runtime::{Clock, Status};
use tokio_util::sync::CancellationToken;

use super::stage::{Backbone, bridged};

/// Life of a peer record: short enough to see its end, long enough to be renewed on a busy machine.
const LIFE: Duration = Duration::from_secs(4);

/// The service that peers of these tests provide.
const SERVICE: &str = "chat";

async fn offers(at: &Endpoint) -> Vec<PeerId> {
    let request = FindByServiceRequest { service: SERVICE.into(), ..Default::default() };
    let answer = client(at).await.unwrap().find_by_service(request).await.unwrap().into_inner();
    let verified = answer.peers.into_iter().map(|p| Signed::<PeerRecord>::verify_field(p.record).unwrap());
    verified.map(|record| record.peer_id()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_found_past_the_end_of_its_first_record_and_not_past_that_of_its_last() {
    let backbone = bridged(2).await;
    let services = vec![ServiceOffer::new(SERVICE.parse().unwrap())];
    let identity = Identity::ephemeral().unwrap();
    let home = &backbone.endpoints[..1];
    let peer = Peer::start_lasting(LIFE, identity, home, services, None).unwrap();
    let id = peer.id();
    for at in &backbone.endpoints {
        eventually!("the peer is found here", locate(at, &id).await.is_ok());
    }
    let first = locate(&backbone.endpoints[0], &id).await.unwrap().record;

    let end = first.value().expires.plus(LIFE / 2);
    eventually!("the first record is over", {
        // All the while it is found, at its home and at the other one.
        for at in &backbone.endpoints {
            let record = locate(at, &id).await.unwrap().record;
            assert!(record.value().expires > now(), "the record that is told is over");
            assert_eq!(offers(at).await, [id]);
        }
        now() > end
    });
    let last = locate(&backbone.endpoints[1], &id).await.unwrap().record;
    assert!(last.value().seq > first.value().seq && last.value().expires > first.value().expires);

    // Gone without a word, it is known until its record ends, and then no more.
    drop(peer);
    for at in &backbone.endpoints {
        let refused = eventually!("nobody knows it any more", locate(at, &id).await.err());
        assert_eq!(reason_of(&refused), Some(Reason::PeerOffline), "{refused}");
        assert!(offers(at).await.is_empty());
    }
    assert!(now() >= last.value().expires, "it was forgotten before its record was over");
}

/// The one index there is.
struct Known(LocatedPeer);

#[tonic::async_trait]
impl Directory for Known {
    async fn indexes(&self) -> Result<Vec<LocatedPeer>, Failure> {
        Ok(vec![self.0.clone()])
    }
}

/// An agent that hosts one folder, and an index, both by a clock that the test moves.
struct Hosting {
    hand: ManualClock,
    clock: Clock,
    host: PeerId,
    manifest: Digest,
    indexes: Indexes,
    changed: Changed,
    alive: CancellationToken,
    client: PackageIndexServiceClient<Connection>,
    _index: Index,
    _backbone: Backbone,
}

async fn hosting() -> Hosting {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let backbone = bridged(1).await;
    let index = backbone.index_at(clock.clone()).await;
    let known =
        eventually!("the index is found", locate(&backbone.endpoints[0], &index.peer_id()).await.ok());

    let (folder, input) = (backbone.folder("agent"), backbone.folder("input"));
    std::fs::create_dir(&folder).unwrap();
    put(&input, "file", b"content").unwrap();
    let store = Arc::new(Store::open(&folder).unwrap());
    let content = publish(&store, &[input], &mut |_| (), &AtomicBool::new(false)).unwrap();

    let identity = Identity::ephemeral().unwrap();
    let pool = Pool::new(Dialer::new(Some(&identity), None).unwrap());
    let indexes =
        Indexes::new(Arc::new(Known(known)), pool, Arc::clone(&store), network().unwrap(), clock.clone());
    let key = SecretKey::from_seed(&[1; 32]);
    let release = Release {
        version: semver::Version::new(1, 0, 0),
        manifest: content.manifest,
        total_size: content.total_size,
        file_count: content.file_count,
        title: String::new(),
        description: String::new(),
        tags: Vec::new(),
        license: String::new(),
    };
    // Content is claimed once a release points at it.
    let draft = Draft { name: "demo".parse().unwrap(), version: None, release };
    indexes.publish(&key, draft).await.unwrap();
    let (changed, alive, host) = (Changed::default(), CancellationToken::new(), identity.peer_id());
    let announcer = Announcer {
        indexes: indexes.clone(),
        store,
        identity,
        publisher: PublisherId::new(key.public()),
        network: network().unwrap(),
        clock: clock.clone(),
        changed: changed.clone(),
        component: Status::new().component("announce"),
    };
    tokio::spawn(announcer.run(alive.clone()));
    let connection = Dialer::new(None, None).unwrap().dial(&endpoint(&index).unwrap()).await.unwrap();
    let origin = connection.origin();
    let client = PackageIndexServiceClient::with_origin(connection, origin);
    Hosting {
        hand,
        clock,
        host,
        manifest: content.manifest,
        indexes,
        changed,
        alive,
        client,
        _index: index,
        _backbone: backbone,
    }
}

impl Hosting {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.clock.unix_millis())
    }

    /// The lease under which the index lists the host.
    async fn lease(&self) -> Option<HostLease> {
        let request =
            FindHostsRequest { manifest_digest: self.manifest.to_wire(), ..FindHostsRequest::default() };
        let hosts = self.client.clone().find_hosts(request).await.unwrap().into_inner().hosts;
        let leases: Vec<_> =
            hosts.into_iter().map(|host| Signed::<HostLease>::verify_field(host.lease).unwrap()).collect();
        assert!(leases.len() <= 1 && leases.iter().all(|lease| lease.host() == self.host), "{leases:?}");
        leases.first().map(|lease| lease.value().clone())
    }

    /// The hosts that an agent is told.
    async fn hosts(&self) -> Vec<PeerId> {
        self.indexes.hosts(self.manifest).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_listed_past_the_end_of_its_first_lease_and_not_past_that_of_its_last() {
    let hosting = hosting().await;
    let first = eventually!("the host is listed", hosting.lease().await);
    let mut last = first.clone();
    while hosting.now() <= first.expires {
        // Past the time at which it is renewed, and well before its end.
        hosting.hand.advance((last.expires.since(hosting.now())).mul_f64(0.65));
        assert_eq!(hosting.hosts().await, [hosting.host], "it is listed before it is renewed");
        // The agent looks at its clock once a minute; this is that minute.
        hosting.changed.tell();
        last = eventually!("its lease is renewed", {
            hosting.lease().await.filter(|lease| lease.expires > last.expires)
        });
    }
    assert!(last.seq > first.seq);
    assert_eq!(hosting.hosts().await, [hosting.host], "it is listed past its first lease");

    hosting.alive.cancel();
    hosting.hand.advance(last.expires.since(hosting.now()).saturating_sub(Duration::from_millis(1)));
    assert_eq!(hosting.hosts().await, [hosting.host], "a lease holds to its end");
    hosting.hand.advance(Duration::from_millis(1));
    assert_eq!(hosting.lease().await, None, "and no longer");
    assert!(hosting.hosts().await.is_empty());
}
