//! `PackageIndexService`: decode, call, encode.

mod encode;
mod status;

use std::sync::Arc;

use p2psb_proto::model::limits::ANNOUNCED_CLAIMS;
use p2psb_proto::model::record::Signed;
use p2psb_proto::model::release::PackageEntry;
use p2psb_proto::model::time::{UnixMillis, duration_to_wire};
use p2psb_proto::model::{Digest, NetworkId, PackageName, PublisherId};
use p2psb_proto::wire::package_index::v1 as wire;
use p2psb_proto::wire::package_index::v1::package_index_service_server::PackageIndexService;
use p2psb_runtime::Clock;
use prost::Message as _;
use tonic::{Request, Response, Status};

use self::status::Refusal;
use crate::catalogue::{Catalogue, Verified};
use crate::core::limits::{AMBIGUOUS_SHOWN, HOSTS_PAGE, LIST_PAGE, SEARCH_PAGE};
use crate::core::page::{AfterPackage, PageSize, QueryKey};
use crate::core::resolve::Requirement;
use crate::core::search::Query;
use crate::core::{PackageId, chain, hosts};
use crate::store::{Announcement, PublishError, Resolution};

/// The service over a catalogue.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) network: NetworkId,
    pub(crate) clock: Clock,
}

impl Api {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.clock.unix_millis())
    }

    /// The package that a publisher, or a name alone, means.
    async fn named(&self, publisher: &[u8], name: &str) -> Result<PackageId, Refusal> {
        if !publisher.is_empty() {
            return package(publisher, name);
        }
        let name = package_name(name)?;
        let asked = name.clone();
        let mut owners = self.catalogue.read(move |store| store.owners(&asked, AMBIGUOUS_SHOWN + 1)).await?;
        match (owners.pop(), owners.is_empty()) {
            (None, _) => Err(Refusal::NameUnknown(name)),
            (Some(publisher), true) => Ok(PackageId { publisher, name }),
            (Some(last), false) => {
                owners.push(last);
                Err(Refusal::Ambiguous { name, owners })
            }
        }
    }
}

#[tonic::async_trait]
impl PackageIndexService for Api {
    async fn publish(
        &self,
        request: Request<wire::PublishRequest>,
    ) -> Result<Response<wire::PublishResponse>, Status> {
        let entry =
            Signed::<PackageEntry>::verify_field(request.into_inner().entry).map_err(Refusal::from)?;
        let now = self.now();
        chain::admit(&entry, now).map_err(PublishError::from).map_err(Refusal::from)?;
        let published = self.catalogue.publish(entry, now).await.map_err(Refusal::from)?;
        Ok(Response::new(encode::published(published.map_err(Refusal::from)?)))
    }

    async fn get_head(
        &self,
        request: Request<wire::GetHeadRequest>,
    ) -> Result<Response<wire::GetHeadResponse>, Status> {
        let request = request.into_inner();
        let package = package(&request.publisher_id, &request.name)?;
        let asked = package.clone();
        let head = self.catalogue.read(move |store| store.head(&asked)).await.map_err(Refusal::from)?;
        let entry = head.ok_or(Refusal::PackageUnknown(package))?;
        Ok(Response::new(wire::GetHeadResponse { entry: Some(entry) }))
    }

    async fn resolve(
        &self,
        request: Request<wire::ResolveRequest>,
    ) -> Result<Response<wire::ResolveResponse>, Status> {
        let request = request.into_inner();
        let wanted = Requirement::parse(&request.requirement).map_err(Refusal::from)?;
        let package = self.named(&request.publisher_id, &request.name).await?;
        let asked = package.clone();
        let resolution = self.catalogue.read(move |store| store.resolve(&asked, &wanted)).await;
        match resolution.map_err(Refusal::from)? {
            Resolution::Found(found) => Ok(Response::new(encode::resolved(*found))),
            Resolution::PackageUnknown => Err(Refusal::PackageUnknown(package).into()),
            Resolution::NoneFits { newest } => {
                Err(Refusal::NoneFits { package, requirement: request.requirement, newest }.into())
            }
        }
    }

    async fn list_releases(
        &self,
        request: Request<wire::ListReleasesRequest>,
    ) -> Result<Response<wire::ListReleasesResponse>, Status> {
        let request = request.into_inner();
        let package = package(&request.publisher_id, &request.name)?;
        let key = QueryKey::new("ListReleases", &[&request.publisher_id, request.name.as_bytes()]);
        let after = key.cursor(&request.page_token).map_err(Refusal::from)?;
        let size = PageSize::new(request.page_size, LIST_PAGE);
        let asked = package.clone();
        let page = self.catalogue.read(move |store| store.entries(&asked, after, size)).await;
        let page = page.map_err(Refusal::from)?.ok_or(Refusal::PackageUnknown(package))?;
        Ok(Response::new(encode::releases(page, key)))
    }

    async fn list_packages(
        &self,
        request: Request<wire::ListPackagesRequest>,
    ) -> Result<Response<wire::ListPackagesResponse>, Status> {
        let request = request.into_inner();
        let by = (!request.publisher_id.is_empty()).then(|| publisher(&request.publisher_id)).transpose()?;
        let key = QueryKey::new("ListPackages", &[&request.publisher_id]);
        let after = key.cursor::<AfterPackage>(&request.page_token).map_err(Refusal::from)?;
        let (size, now) = (PageSize::new(request.page_size, LIST_PAGE), self.now());
        let page = self
            .catalogue
            .search(move |store| store.packages(by.as_ref(), after.as_ref(), size, now))
            .await
            .map_err(Refusal::from)?;
        Ok(Response::new(encode::packages(page, key)))
    }

    async fn search_packages(
        &self,
        request: Request<wire::SearchPackagesRequest>,
    ) -> Result<Response<wire::SearchPackagesResponse>, Status> {
        let request = request.into_inner();
        let query = Query::parse(&request.query).map_err(Refusal::from)?;
        let key = QueryKey::new("SearchPackages", &[request.query.as_bytes()]);
        let after = key.cursor(&request.page_token).map_err(Refusal::from)?;
        let (size, now) = (PageSize::new(request.page_size, SEARCH_PAGE), self.now());
        let page = self
            .catalogue
            .search(move |store| store.search(&query, after.as_ref(), size, now))
            .await
            .map_err(Refusal::from)?;
        Ok(Response::new(encode::hits(page, key)))
    }

    async fn announce_host(
        &self,
        request: Request<wire::AnnounceHostRequest>,
    ) -> Result<Response<wire::AnnounceHostResponse>, Status> {
        let request = request.into_inner();
        if request.claims.len() > ANNOUNCED_CLAIMS {
            return Err(Refusal::TooManyClaims(request.claims.len()).into());
        }
        let bytes = request.encoded_len();
        let verified = self.catalogue.verify(request.lease, request.claims).await.map_err(Refusal::from)?;
        let Verified { lease, claims } = verified.map_err(Refusal::from)?;
        let now = self.now();
        lease.value().check(&self.network, now).map_err(Refusal::from)?;
        let (claims, mut refused) = hosts::admit_claims(claims, lease.host(), &self.network, now);
        let refresh = hosts::refresh_after(lease.value(), now, fastrand::f64());
        let announced = self.catalogue.announce(Announcement { lease, claims }, bytes, now).await;
        let announced = announced.map_err(Refusal::from)?.map_err(Refusal::from)?;
        refused.extend(announced.refused);
        refused.sort_by_key(|(position, _)| *position);
        Ok(Response::new(wire::AnnounceHostResponse {
            errors: refused.into_iter().map(encode::claim_error).collect(),
            known_claims: announced.known_claims,
            refresh_after: Some(duration_to_wire(refresh)),
        }))
    }

    async fn find_hosts(
        &self,
        request: Request<wire::FindHostsRequest>,
    ) -> Result<Response<wire::FindHostsResponse>, Status> {
        let request = request.into_inner();
        let manifest = Digest::from_slice(&request.manifest_digest)
            .map_err(|error| Refusal::argument("manifest_digest", error))?;
        let key = QueryKey::new("FindHosts", &[&request.manifest_digest]);
        let after = key.cursor(&request.page_token).map_err(Refusal::from)?;
        let (size, now) = (PageSize::new(request.page_size, HOSTS_PAGE), self.now());
        let page = self.catalogue.read(move |store| store.hosts(&manifest, after, size, now)).await;
        Ok(Response::new(encode::hosts(page.map_err(Refusal::from)?, key)))
    }
}

fn publisher(bytes: &[u8]) -> Result<PublisherId, Refusal> {
    PublisherId::from_slice(bytes).map_err(|error| Refusal::argument("publisher_id", error))
}

fn package_name(name: &str) -> Result<PackageName, Refusal> {
    name.parse().map_err(|error| Refusal::argument("name", error))
}

fn package(publisher_id: &[u8], name: &str) -> Result<PackageId, Refusal> {
    Ok(PackageId { publisher: publisher(publisher_id)?, name: package_name(name)? })
}
