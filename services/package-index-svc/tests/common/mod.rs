//! What the tests of the running service share: publishers and hosts, and a way to call the index as an agent does.

#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::Duration;

use p2psb_client::{Connection, Dialer, Endpoint};
use p2psb_proto::model::host::{HostClaim, HostLease};
use p2psb_proto::model::record::Signed;
use p2psb_proto::model::release::{Action, PackageEntry, Release};
use p2psb_proto::model::time::UnixMillis;
use p2psb_proto::model::{Digest, Genesis, NetworkId, PublisherId, SecretKey};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::package_index::v1 as wire;
use p2psb_proto::wire::package_index::v1::package_index_service_client::PackageIndexServiceClient;
use tonic::Status;

pub const NETWORK: &str = "test";

pub fn network() -> NetworkId {
    Genesis::open(NETWORK).unwrap().network_id()
}

pub fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

pub fn release(version: &str) -> Release {
    Release {
        version: version.parse().unwrap(),
        manifest: Digest::of(version.as_bytes()),
        total_size: 10,
        file_count: 1,
        title: "A demo".into(),
        description: "Shows what a package is.".into(),
        tags: vec!["sample".into()],
        license: "MIT".into(),
    }
}

/// A publisher's side of one chain.
pub struct Chain {
    pub key: SecretKey,
    pub name: String,
    pub seq: u64,
    pub prev: Option<Digest>,
    pub issued: UnixMillis,
}

impl Chain {
    pub fn new(seed: u8, name: &str, issued: UnixMillis) -> Self {
        Self { key: key(seed), name: name.to_owned(), seq: 0, prev: None, issued }
    }

    pub fn publisher(&self) -> PublisherId {
        PublisherId::new(self.key.public())
    }

    /// An entry behind the last one; the chain does not go on.
    pub fn draft(&self, action: Action) -> Signed<PackageEntry> {
        let entry = PackageEntry {
            publisher: self.publisher(),
            name: self.name.parse().unwrap(),
            seq: self.seq + 1,
            prev: self.prev,
            issued: self.issued,
            action,
        };
        Signed::sign(&entry, &self.key).unwrap()
    }

    pub fn follow(&mut self, entry: &Signed<PackageEntry>) {
        (self.seq, self.prev) = (entry.value().seq, Some(entry.digest()));
    }

    pub fn next(&mut self, action: Action) -> Signed<PackageEntry> {
        let entry = self.draft(action);
        self.follow(&entry);
        entry
    }

    pub fn release(&mut self, version: &str) -> Signed<PackageEntry> {
        self.next(Action::Release(release(version)))
    }
}

pub fn lease(seed: u8, issued: UnixMillis, life: Duration) -> Signed<HostLease> {
    let lease = HostLease { network: network(), seq: issued.0, issued, expires: issued.plus(life) };
    Signed::sign(&lease, &key(seed)).unwrap()
}

pub fn claim(seed: u8, manifest: Digest, seq: u64, issued: UnixMillis) -> Signed<HostClaim> {
    let claim = HostClaim { network: network(), manifest, seq, issued, withdrawn: false };
    Signed::sign(&claim, &key(seed)).unwrap()
}

/// An index, as agents see it.
#[derive(Clone)]
pub struct Index(pub PackageIndexServiceClient<Connection>);

impl Index {
    pub async fn dial(endpoint: &Endpoint) -> Self {
        let connection = Dialer::new(None, None).unwrap().dial(endpoint).await.unwrap();
        let origin = connection.origin();
        Self(PackageIndexServiceClient::with_origin(connection, origin))
    }

    pub async fn at(addr: SocketAddr) -> Self {
        Self::dial(&format!("https://{addr}").parse().unwrap()).await
    }

    pub async fn publish_wire(&mut self, entry: SignedRecord) -> Result<wire::PublishResponse, Status> {
        Ok(self.0.publish(wire::PublishRequest { entry: Some(entry) }).await?.into_inner())
    }

    pub async fn publish(&mut self, entry: &Signed<PackageEntry>) -> Result<wire::PublishResponse, Status> {
        self.publish_wire(entry.to_wire()).await
    }

    pub async fn head(&mut self, chain: &Chain) -> Result<SignedRecord, Status> {
        let request =
            wire::GetHeadRequest { publisher_id: chain.publisher().to_wire(), name: chain.name.clone() };
        Ok(self.0.get_head(request).await?.into_inner().entry.unwrap())
    }

    /// Version and whether it is yanked.
    pub async fn resolve(
        &mut self,
        publisher: Option<PublisherId>,
        name: &str,
        requirement: &str,
    ) -> Result<(String, bool), Status> {
        let request = wire::ResolveRequest {
            publisher_id: publisher.map(|id| id.to_wire()).unwrap_or_default(),
            name: name.into(),
            requirement: requirement.into(),
        };
        let found = self.0.resolve(request).await?.into_inner();
        let entry = Signed::<PackageEntry>::verify_field(found.entry).unwrap();
        let head = Signed::<PackageEntry>::verify_field(found.head).unwrap();
        assert!(head.value().seq >= entry.value().seq);
        Ok((entry.value().action.version().to_string(), found.yanked))
    }

    pub async fn search(&mut self, query: &str) -> Result<Vec<wire::PackageSummary>, Status> {
        let request = wire::SearchPackagesRequest { query: query.into(), ..Default::default() };
        Ok(self.0.search_packages(request).await?.into_inner().packages)
    }

    pub async fn announce(
        &mut self,
        lease: &Signed<HostLease>,
        claims: &[Signed<HostClaim>],
    ) -> Result<wire::AnnounceHostResponse, Status> {
        let claims = claims.iter().map(Signed::to_wire).collect();
        let request = wire::AnnounceHostRequest { lease: Some(lease.to_wire()), claims };
        Ok(self.0.announce_host(request).await?.into_inner())
    }

    pub async fn hosts(&mut self, manifest: Digest) -> Result<Vec<wire::HostRecord>, Status> {
        let request = wire::FindHostsRequest { manifest_digest: manifest.to_wire(), ..Default::default() };
        Ok(self.0.find_hosts(request).await?.into_inner().hosts)
    }
}
