//! The index from outside: chains, hosts, and what it refuses.

use std::time::Duration;

use p2psb_client::{Connection, Dialer, Identity};
use p2psb_e2e::inside::endpoint;
use p2psb_e2e::peer::{network, now};
use p2psb_package_index_svc::server::Server as Index;
use p2psb_proto::error::{Reason, reason_of, record_of};
use p2psb_proto::model::record::Payload;
use p2psb_proto::model::{
    Action, Digest, HostClaim, HostLease, PackageEntry, PublisherId, Release, SecretKey, Signed,
};
use p2psb_proto::wire::package_index::v1::package_index_service_client::PackageIndexServiceClient;
use p2psb_proto::wire::package_index::v1::{
    AnnounceHostRequest, FindHostsRequest, PublishRequest, ResolveRequest, SearchPackagesRequest,
};
use tonic::Status;

use super::stage::{Backbone, bridged};

struct Catalogue {
    client: PackageIndexServiceClient<Connection>,
    key: SecretKey,
    _index: Index,
    _backbone: Backbone,
}

async fn stage() -> Catalogue {
    let backbone = bridged(1).await;
    let index = backbone.index().await;
    let connection = Dialer::new(None, None).unwrap().dial(&endpoint(&index).unwrap()).await.unwrap();
    let origin = connection.origin();
    let client = PackageIndexServiceClient::with_origin(connection, origin);
    Catalogue { client, key: SecretKey::from_seed(&[4; 32]), _index: index, _backbone: backbone }
}

fn sign<T: Payload>(value: &T, key: &SecretKey) -> Signed<T> {
    Signed::sign(value, key).unwrap()
}

impl Catalogue {
    fn publisher(&self) -> PublisherId {
        PublisherId::new(self.key.public())
    }

    fn entry(&self, seq: u64, prev: Option<Digest>, version: &str) -> Signed<PackageEntry> {
        let release = Release {
            version: version.parse().unwrap(),
            manifest: Digest::of(version.as_bytes()),
            total_size: 5,
            file_count: 1,
            title: "A test package".into(),
            description: String::new(),
            tags: vec!["testing".into()],
            license: String::new(),
        };
        let entry = PackageEntry {
            publisher: self.publisher(),
            name: "demo".parse().unwrap(),
            seq,
            prev,
            issued: now(),
            action: Action::Release(release),
        };
        sign(&entry, &self.key)
    }

    async fn publish(&mut self, entry: &Signed<PackageEntry>) -> Result<(), Status> {
        let request = PublishRequest { entry: Some(entry.to_wire()) };
        self.client.publish(request).await.map(|_| ())
    }

    async fn resolve(&mut self, requirement: &str) -> Result<String, Status> {
        let request =
            ResolveRequest { name: "demo".into(), requirement: requirement.into(), ..Default::default() };
        let answer = self.client.resolve(request).await?.into_inner();
        let entry = Signed::<PackageEntry>::verify_field(answer.entry).unwrap();
        Ok(entry.value().action.version().to_string())
    }
}

fn reason(result: Result<impl Sized, Status>) -> Option<Reason> {
    result.err().as_ref().and_then(reason_of)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_grows_by_what_follows_its_head_only() {
    let mut catalogue = stage().await;
    let first = catalogue.entry(1, None, "0.1.0");
    catalogue.publish(&first).await.unwrap();
    catalogue.publish(&first).await.unwrap();

    let second = catalogue.entry(2, Some(first.digest()), "0.2.0");
    catalogue.publish(&second).await.unwrap();
    let late = catalogue.entry(2, Some(first.digest()), "0.3.0");
    let status = catalogue.publish(&late).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::HeadMoved), "{status}");
    assert_eq!(record_of(&status), Some(second.to_wire()), "the head, to sign behind it");
    let again = catalogue.entry(3, Some(second.digest()), "0.2.0");
    assert_eq!(reason(catalogue.publish(&again).await), Some(Reason::VersionExists));

    let mut stolen = catalogue.entry(3, Some(second.digest()), "0.3.0").value().clone();
    stolen.publisher = catalogue.publisher();
    let stolen = sign(&stolen, &SecretKey::from_seed(&[5; 32]));
    assert_eq!(reason(catalogue.publish(&stolen).await), Some(Reason::NotOwner));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requirement_picks_the_highest_version_that_fits() {
    let mut catalogue = stage().await;
    let mut prev = None;
    for (i, version) in ["0.1.0", "1.0.0", "1.2.0", "2.0.0-rc.1"].iter().enumerate() {
        let entry = catalogue.entry(i as u64 + 1, prev, version);
        catalogue.publish(&entry).await.unwrap();
        prev = Some(entry.digest());
    }
    for (requirement, version) in
        [("", "1.2.0"), ("^0.1", "0.1.0"), ("=1.0.0", "1.0.0"), (">=2.0.0-rc.1", "2.0.0-rc.1")]
    {
        assert_eq!(catalogue.resolve(requirement).await.unwrap(), version, "{requirement:?}");
    }
    assert_eq!(reason(catalogue.resolve("^9").await), Some(Reason::ReleaseUnknown));
    assert_eq!(reason(catalogue.resolve("nonsense").await), Some(Reason::RequirementInvalid));
    let request = ResolveRequest { name: "nothing".into(), ..Default::default() };
    assert_eq!(reason(catalogue.client.resolve(request).await), Some(Reason::PackageUnknown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_those_with_a_running_lease() {
    let mut catalogue = stage().await;
    let first = catalogue.entry(1, None, "0.1.0");
    catalogue.publish(&first).await.unwrap();
    let manifest = Digest::of(b"0.1.0");
    let host = Identity::ephemeral().unwrap();
    let (network, issued) = (network().unwrap(), now());
    let lease = HostLease { network, seq: issued.0, issued, expires: issued.plus(Duration::from_secs(600)) };
    let claim = HostClaim { network, manifest, seq: issued.0, issued, withdrawn: false };
    let forged = sign(&claim, &SecretKey::from_seed(&[6; 32]));
    let request = AnnounceHostRequest {
        lease: Some(sign(&lease, host.key()).to_wire()),
        claims: vec![forged.to_wire(), sign(&claim, host.key()).to_wire()],
    };
    let answer = catalogue.client.announce_host(request).await.unwrap().into_inner();
    assert_eq!(
        answer.errors.iter().map(|e| e.index).collect::<Vec<_>>(),
        [0],
        "another's claim is refused alone"
    );
    assert_eq!(answer.known_claims, 1);

    let request = FindHostsRequest { manifest_digest: manifest.to_wire(), ..Default::default() };
    let hosts = catalogue.client.find_hosts(request).await.unwrap().into_inner().hosts;
    let found: Vec<_> =
        hosts.into_iter().map(|h| Signed::<HostClaim>::verify_field(h.claim).unwrap().host()).collect();
    assert_eq!(found, [host.peer_id()]);

    let request = SearchPackagesRequest { query: "demo testing".into(), ..Default::default() };
    let found = catalogue.client.search_packages(request).await.unwrap().into_inner().packages;
    assert_eq!(found.iter().map(|p| (p.name.as_str(), p.host_count)).collect::<Vec<_>>(), [("demo", 1)]);
}
