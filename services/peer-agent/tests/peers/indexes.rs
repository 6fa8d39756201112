//! Several indexes at once: ones that lack entries, went back, lie, or are not there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use p2psb_client::pool::Pool;
use p2psb_client::{Dialer, Identity};
use p2psb_peer_agent::index::{Directory, Draft, Indexes};
use p2psb_peer_agent::store::Store;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::presence::{LocatedPeer, Presence, PresenceSource, PresenceState};
use p2psb_proto::model::{
    Address, AddressKind, Digest, PackageEntry, PackageName, PeerRecord, PublisherId, Release, SecretKey,
    Signed, Transport, UnixMillis,
};
use p2psb_proto::wire::DESCRIPTORS;
use p2psb_proto::wire::package_index::v1 as wire;
use p2psb_proto::wire::package_index::v1::package_index_service_server::{
    PackageIndexService, PackageIndexServiceServer,
};
use p2psb_runtime::serve::{Listener, serve};
use p2psb_runtime::{Api, Clock, Running, ServeOptions};
use parking_lot::Mutex;
use semver::{Version, VersionReq};
use tonic::{Request, Response, Status};

use super::host::network;

type Chain = Vec<Signed<PackageEntry>>;
type Name = (PublisherId, PackageName);

/// An index with nothing but chains, as the contract says.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<BTreeMap<Name, Chain>>>);

impl Shelf {
    fn forget(&self, from: usize) {
        self.0.lock().values_mut().for_each(|chain| chain.truncate(from));
    }

    fn length(&self) -> usize {
        self.0.lock().values().map(Vec::len).sum()
    }

    fn chain(&self, publisher: &[u8], name: &str) -> Result<Chain, Status> {
        let publisher = PublisherId::from_slice(publisher).unwrap();
        let unknown = || Failure::new(Reason::PackageUnknown, "no such package").into_status();
        self.0
            .lock()
            .get(&(publisher, name.parse().unwrap()))
            .filter(|c| !c.is_empty())
            .cloned()
            .ok_or_else(unknown)
    }
}

fn version(entry: &Signed<PackageEntry>) -> &Version {
    entry.value().action.version()
}

fn nothing<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl PackageIndexService for Shelf {
    async fn publish(
        &self,
        request: Request<wire::PublishRequest>,
    ) -> Result<Response<wire::PublishResponse>, Status> {
        let entry =
            Signed::<PackageEntry>::verify_field(request.into_inner().entry).map_err(Failure::from)?;
        let mut chains = self.0.lock();
        let chain = chains.entry((entry.value().publisher, entry.value().name.clone())).or_default();
        if !chain.contains(&entry) {
            if chain.iter().any(|known| version(known) == version(&entry)) {
                return Err(Failure::new(Reason::VersionExists, "this version is there").into_status());
            }
            if chain.last().map(Signed::digest) != entry.value().prev {
                let moved = Failure::new(Reason::HeadMoved, "the chain has grown");
                let head = chain.last().map(Signed::to_wire);
                return Err(head.into_iter().fold(moved, Failure::attach).into_status());
            }
            chain.push(entry.clone());
        }
        Ok(Response::new(wire::PublishResponse { seq: entry.value().seq, digest: entry.digest().to_wire() }))
    }

    async fn get_head(
        &self,
        request: Request<wire::GetHeadRequest>,
    ) -> Result<Response<wire::GetHeadResponse>, Status> {
        let wire::GetHeadRequest { publisher_id, name } = request.into_inner();
        let chain = self.chain(&publisher_id, &name)?;
        Ok(Response::new(wire::GetHeadResponse { entry: chain.last().map(Signed::to_wire) }))
    }

    async fn resolve(
        &self,
        request: Request<wire::ResolveRequest>,
    ) -> Result<Response<wire::ResolveResponse>, Status> {
        let wire::ResolveRequest { publisher_id, name, requirement } = request.into_inner();
        let chain = if publisher_id.is_empty() {
            let chains = self.0.lock();
            chains
                .iter()
                .find(|((_, known), _)| known.as_str() == name)
                .map(|(_, chain)| chain.clone())
                .unwrap_or_default()
        } else {
            self.chain(&publisher_id, &name)?
        };
        let wanted = VersionReq::parse(if requirement.is_empty() { "*" } else { &requirement }).unwrap();
        let best =
            chain.iter().filter(|entry| wanted.matches(version(entry))).max_by_key(|entry| version(entry));
        let Some(best) = best else {
            return Err(Failure::new(Reason::ReleaseUnknown, "no release fits").into_status());
        };
        let head = chain.last().map(Signed::to_wire);
        Ok(Response::new(wire::ResolveResponse { entry: Some(best.to_wire()), head, yanked: false }))
    }

    async fn list_releases(
        &self,
        request: Request<wire::ListReleasesRequest>,
    ) -> Result<Response<wire::ListReleasesResponse>, Status> {
        // Two at a time, so that pages are read.
        let wire::ListReleasesRequest { publisher_id, name, page_token, .. } = request.into_inner();
        let chain = self.chain(&publisher_id, &name)?;
        let from: usize = page_token.parse().unwrap_or_default();
        let entries = chain.iter().rev().skip(from).take(2).map(Signed::to_wire).collect();
        let next_page_token = if from + 2 < chain.len() { (from + 2).to_string() } else { String::new() };
        Ok(Response::new(wire::ListReleasesResponse { entries, next_page_token }))
    }

    async fn list_packages(
        &self,
        _: Request<wire::ListPackagesRequest>,
    ) -> Result<Response<wire::ListPackagesResponse>, Status> {
        nothing()
    }

    async fn search_packages(
        &self,
        _: Request<wire::SearchPackagesRequest>,
    ) -> Result<Response<wire::SearchPackagesResponse>, Status> {
        nothing()
    }

    async fn announce_host(
        &self,
        _: Request<wire::AnnounceHostRequest>,
    ) -> Result<Response<wire::AnnounceHostResponse>, Status> {
        nothing()
    }

    async fn find_hosts(
        &self,
        _: Request<wire::FindHostsRequest>,
    ) -> Result<Response<wire::FindHostsResponse>, Status> {
        nothing()
    }
}

/// Indexes that an agent was told of.
struct Known(Vec<LocatedPeer>);

#[tonic::async_trait]
impl Directory for Known {
    async fn indexes(&self) -> Result<Vec<LocatedPeer>, Failure> {
        Ok(self.0.clone())
    }
}

fn now() -> UnixMillis {
    SystemTime::now().into()
}

fn located(address: std::net::SocketAddr) -> LocatedPeer {
    let identity = Identity::ephemeral().unwrap();
    let record = PeerRecord {
        network: network("test"),
        seq: now().0,
        issued: now(),
        expires: now().plus(std::time::Duration::from_secs(600)),
        addresses: vec![Address::ip(address, Transport::Plaintext, AddressKind::Listen)],
        services: Vec::new(),
        homes: Vec::new(),
        endorsements: Vec::new(),
    };
    let presence = Presence {
        state: PresenceState::Online,
        last_seen: now(),
        as_of: now(),
        source: PresenceSource::Session,
        home: None,
    };
    LocatedPeer { record: Signed::sign(&record, identity.key()).unwrap(), presence }
}

/// Two indexes and an address where nobody answers.
struct World {
    shelves: [Shelf; 2],
    known: Vec<LocatedPeer>,
    _running: Vec<Running>,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let shelves = [Shelf::default(), Shelf::default()];
        let (mut running, mut known) = (Vec::new(), vec![located("127.0.0.1:9".parse().unwrap())]);
        for shelf in &shelves {
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            known.push(located(listener.addr()));
            let api = Api::new(&[DESCRIPTORS]).add_service(PackageIndexServiceServer::new(shelf.clone()));
            let options = ServeOptions::default();
            running.push(serve(api, listener.plaintext(&options.http2), options).unwrap());
        }
        Self { shelves, known, _running: running, dir: tempfile::tempdir().unwrap() }
    }

    /// An agent with a memory of its own, which knows these of the indexes.
    fn agent(&self, name: &str, indexes: &[usize]) -> Indexes {
        let folder = self.dir.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let store = Arc::new(Store::open(&folder).unwrap());
        let known = indexes.iter().map(|index| self.known[*index].clone()).collect();
        let pool = Pool::new(Dialer::new(None, None).unwrap());
        Indexes::new(Arc::new(Known(known)), pool, store, network("test"), Clock::system())
    }
}

const DEAD: usize = 0;
const ONE: usize = 1;
const TWO: usize = 2;

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn draft(version: Option<&str>, content: &[u8]) -> Draft {
    let release = Release {
        version: Version::new(0, 0, 0),
        manifest: Digest::of(content),
        total_size: 1,
        file_count: 1,
        title: String::new(),
        description: String::new(),
        tags: Vec::new(),
        license: String::new(),
    };
    Draft { name: "demo".parse().unwrap(), version: version.map(|text| text.parse().unwrap()), release }
}

async fn publish(agent: &Indexes, version: Option<&str>, content: &[u8]) -> Result<(String, usize), Failure> {
    let published = agent.publish(&key(1), draft(version, content)).await?;
    let version = published.reference.rsplit('@').next().unwrap().to_owned();
    Ok((version, published.indexes.len()))
}

async fn resolve(agent: &Indexes, reference: &str) -> Result<String, Failure> {
    Ok(agent.resolve(&reference.parse()?).await?.release.version.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_index_does_not_matter_and_versions_count_up() {
    let world = World::new();
    let agent = world.agent("a", &[DEAD, ONE, TWO]);
    assert_eq!(publish(&agent, None, b"1").await.unwrap(), ("0.1.0".into(), 2));
    assert_eq!(publish(&agent, None, b"2").await.unwrap(), ("0.2.0".into(), 2));
    assert_eq!(publish(&agent, Some("3.1.4"), b"3").await.unwrap(), ("3.1.4".into(), 2));
    assert_eq!(publish(&agent, None, b"3").await.unwrap(), ("3.2.0".into(), 2));
    assert_eq!(resolve(&agent, "demo@^0.1").await.unwrap(), "0.1.0");
    let failure = resolve(&agent, "demo@9").await.unwrap_err();
    assert_eq!(failure.reason, Reason::ReleaseUnknown);
    let alone = world.agent("b", &[DEAD]);
    assert_eq!(resolve(&alone, "demo").await.unwrap_err().reason, Reason::NoProvider);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_version_again_is_fine_with_the_same_content_only() {
    let world = World::new();
    let agent = world.agent("a", &[ONE, TWO]);
    publish(&agent, Some("1.0.0"), b"1").await.unwrap();
    publish(&agent, Some("1.1.0"), b"2").await.unwrap();
    assert_eq!(publish(&agent, Some("1.0.0"), b"1").await.unwrap().0, "1.0.0");
    assert_eq!(publish(&agent, Some("1.0.0"), b"9").await.unwrap_err().reason, Reason::VersionExists);
    assert_eq!(world.shelves[0].length(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lacks_entries_is_given_them() {
    let world = World::new();
    let agent = world.agent("a", &[ONE]);
    for content in [b"1", b"2", b"3"] {
        publish(&agent, None, content).await.unwrap();
    }
    drop(agent);
    // The same agent, now with a second index that has heard of nothing.
    let agent = world.agent("a", &[ONE, TWO]);
    assert_eq!(publish(&agent, None, b"4").await.unwrap(), ("0.4.0".into(), 2));
    assert_eq!((world.shelves[0].length(), world.shelves[1].length()), (4, 4));
    // Another machine with the same publisher key, and nothing in its memory.
    world.shelves[1].forget(1);
    let other = world.agent("b", &[ONE, TWO]);
    assert_eq!(publish(&other, None, b"5").await.unwrap(), ("0.5.0".into(), 2));
    assert_eq!((world.shelves[0].length(), world.shelves[1].length()), (5, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_went_back_is_not_believed() {
    let world = World::new();
    let publisher = world.agent("p", &[ONE, TWO]);
    for content in [b"1", b"2", b"3"] {
        publish(&publisher, None, content).await.unwrap();
    }
    let agent = world.agent("a", &[ONE, TWO]);
    assert_eq!(resolve(&agent, "demo").await.unwrap(), "0.3.0");
    world.shelves[0].forget(2);
    assert_eq!(resolve(&agent, "demo").await.unwrap(), "0.3.0", "the other index knows better");
    world.shelves[1].forget(2);
    let failure = resolve(&agent, "demo").await.unwrap_err();
    assert_eq!(failure.reason, Reason::ChainForked, "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_stops_everything() {
    let world = World::new();
    // One key on two machines that see different indexes.
    publish(&world.agent("p", &[ONE]), Some("1.0.0"), b"1").await.unwrap();
    publish(&world.agent("q", &[TWO]), Some("2.0.0"), b"2").await.unwrap();
    let agent = world.agent("a", &[ONE]);
    assert_eq!(resolve(&agent, "demo").await.unwrap(), "1.0.0");
    drop(agent);
    let agent = world.agent("a", &[TWO]);
    assert_eq!(resolve(&agent, "demo").await.unwrap_err().reason, Reason::ChainForked);
    drop(agent);
    let failure = publish(&world.agent("p", &[TWO]), Some("3.0.0"), b"3").await.unwrap_err();
    assert_eq!(failure.reason, Reason::ChainForked, "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_two_publishers_must_be_said_whole() {
    let world = World::new();
    publish(&world.agent("p", &[ONE]), Some("1.0.0"), b"1").await.unwrap();
    world.agent("q", &[TWO]).publish(&key(2), draft(Some("2.0.0"), b"2")).await.unwrap();
    let agent = world.agent("a", &[ONE, TWO]);
    let failure = resolve(&agent, "demo").await.unwrap_err();
    assert_eq!(failure.reason, Reason::NameAmbiguous);
    let whose = PublisherId::new(key(2).public());
    assert!(failure.message.contains(&whose.to_string()));
    assert_eq!(resolve(&agent, &format!("{whose}/demo")).await.unwrap(), "2.0.0");
}
