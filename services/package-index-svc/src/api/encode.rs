//! From the catalogue's answers to the wire.

use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::package_index::v1 as wire;

use super::status::claim_reason;
use crate::core::Summary;
use crate::core::hosts::ClaimError;
use crate::core::page::{AfterHit, AfterPackage, BeforeSeq, Cursor, Page, QueryKey};
use crate::store::{Appended, Hosted, Resolved};

/// The token of the page after one that ends with `last`; empty on the last page.
fn next_token<C: Cursor>(more: bool, last: Option<C>, key: QueryKey) -> String {
    last.filter(|_| more).map(|cursor| key.token(&cursor)).unwrap_or_default()
}

pub(super) fn published(appended: Appended) -> wire::PublishResponse {
    if appended.fresh {
        metrics::counter!("index_entries_total").increment(1);
    }
    wire::PublishResponse { seq: appended.seq, digest: appended.digest.to_wire() }
}

pub(super) fn resolved(found: Resolved) -> wire::ResolveResponse {
    wire::ResolveResponse { entry: Some(found.entry), head: Some(found.head), yanked: found.yanked }
}

pub(super) fn releases(page: Page<(BeforeSeq, SignedRecord)>, key: QueryKey) -> wire::ListReleasesResponse {
    let next_page_token = next_token(page.more, page.items.last().map(|(cursor, _)| *cursor), key);
    let entries = page.items.into_iter().map(|(_, record)| record).collect();
    wire::ListReleasesResponse { entries, next_page_token }
}

pub(super) fn packages(page: Page<Summary>, key: QueryKey) -> wire::ListPackagesResponse {
    let last = page.items.last().map(|summary| AfterPackage {
        name: summary.package.name.clone(),
        publisher: summary.package.publisher,
    });
    let next_page_token = next_token(page.more, last, key);
    let packages = page.items.into_iter().map(summary).collect();
    wire::ListPackagesResponse { packages, next_page_token }
}

pub(super) fn hits(page: Page<(AfterHit, Summary)>, key: QueryKey) -> wire::SearchPackagesResponse {
    let last = page.items.last().map(|(cursor, _)| cursor.clone());
    let next_page_token = next_token(page.more, last, key);
    let packages = page.items.into_iter().map(|(_, found)| summary(found)).collect();
    wire::SearchPackagesResponse { packages, next_page_token }
}

pub(super) fn hosts(page: Page<Hosted>, key: QueryKey) -> wire::FindHostsResponse {
    let next_page_token = next_token(page.more, page.items.last().map(|hosted| hosted.cursor), key);
    let hosts = page.items.into_iter().map(|hosted| wire::HostRecord {
        claim: Some(hosted.claim),
        lease: Some(hosted.lease),
        last_seen_time: Some(hosted.seen.to_wire()),
    });
    wire::FindHostsResponse { hosts: hosts.collect(), next_page_token }
}

pub(super) fn claim_error((position, error): (usize, ClaimError)) -> wire::ClaimError {
    let reason = claim_reason(&error);
    metrics::counter!("index_claims_refused_total", "reason" => reason.as_str()).increment(1);
    wire::ClaimError {
        // A position lies below the number of claims in one message.
        index: u32::try_from(position).unwrap_or(u32::MAX),
        reason: reason.to_string(),
        detail: error.to_string(),
    }
}

fn summary(summary: Summary) -> wire::PackageSummary {
    wire::PackageSummary {
        publisher_id: summary.package.publisher.to_wire(),
        name: summary.package.name.to_string(),
        version: summary.version.to_string(),
        title: summary.title,
        description: summary.description,
        tags: summary.tags,
        license: summary.license,
        total_size: summary.total_size,
        file_count: summary.file_count,
        manifest_digest: summary.manifest.to_wire(),
        update_time: Some(summary.updated.to_wire()),
        host_count: summary.hosts,
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::time::UnixMillis;
    use p2psb_proto::model::{Digest, PublisherId, SecretKey};
    use prost::Message as _;

    use super::*;
    use crate::core::PackageId;

    #[test]
    fn a_summary_never_takes_more_than_its_stated_size() {
        let publisher = PublisherId::new(SecretKey::from_seed(&[1; 32]).public());
        let large = Summary {
            package: PackageId { publisher, name: "x".repeat(64).parse().unwrap() },
            version: format!("{0}.{0}.{0}-{1}", u64::MAX, "r".repeat(60)).parse().unwrap(),
            title: "t".repeat(200),
            description: "d".repeat(500),
            tags: vec!["g".repeat(64); 32],
            license: "l".repeat(255),
            total_size: u64::MAX,
            file_count: u64::MAX,
            manifest: Digest::of(b""),
            updated: UnixMillis(253_402_300_799_999),
            hosts: u32::MAX,
        };
        let stated = large.size();
        let message =
            wire::ListPackagesResponse { packages: vec![summary(large)], next_page_token: String::new() };
        assert!(message.encoded_len() <= stated, "{} > {stated}", message.encoded_len());
    }
}
