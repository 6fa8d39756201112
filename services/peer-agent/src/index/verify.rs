//! What may be believed of an index's answer.

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::{
    Action, Digest, HostClaim, HostLease, NetworkId, PackageEntry, PackageName, PeerId, PublisherId, Release,
    Signed, UnixMillis,
};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::package_index::v1 as wire;

use crate::core::reference::Reference;

/// An entry, signed by the owner of its package.
pub(super) fn entry(record: Option<SignedRecord>) -> Result<Signed<PackageEntry>, Failure> {
    let entry = Signed::<PackageEntry>::verify_field(record)?;
    if !entry.signed_by_owner() {
        let problem = format!(
            "entry {} of {}/{} is signed by another key than its owner's",
            entry.value().seq,
            entry.value().publisher,
            entry.value().name
        );
        return Err(Failure::new(Reason::NotOwner, problem));
    }
    Ok(entry)
}

/// An entry of this chain.
pub(super) fn entry_of(
    record: Option<SignedRecord>,
    publisher: &PublisherId,
    name: &PackageName,
) -> Result<Signed<PackageEntry>, Failure> {
    let entry = entry(record)?;
    if entry.value().publisher != *publisher || entry.value().name != *name {
        return Err(foreign("an entry of another package was returned"));
    }
    Ok(entry)
}

fn foreign(what: &str) -> Failure {
    Failure::new(Reason::RecordMalformed, format!("the index does not answer what was asked: {what}"))
}

/// The answer to a reference: entry and head.
pub(super) fn resolved(
    answer: wire::ResolveResponse,
    reference: &Reference,
) -> Result<(Signed<PackageEntry>, Signed<PackageEntry>), Failure> {
    let entry = entry(answer.entry)?;
    let (publisher, name) = (entry.value().publisher, entry.value().name.clone());
    let head = entry_of(answer.head, &publisher, &name)?;
    if name != reference.name || reference.publisher.is_some_and(|asked| asked != publisher) {
        return Err(foreign("a release of another package was returned"));
    }
    let version = &release(&entry).ok_or_else(|| foreign("the entry is no release"))?.version;
    if !reference.admits(version) {
        return Err(foreign("the version does not meet the requirement"));
    }
    let (at, reaches) = (entry.value().seq, head.value().seq);
    if reaches < at || (reaches == at && head.digest() != entry.digest()) {
        return Err(foreign("the chain ends before the release"));
    }
    Ok((entry, head))
}

/// The release in an entry.
pub(super) fn release(entry: &Signed<PackageEntry>) -> Option<&Release> {
    match &entry.value().action {
        Action::Release(release) => Some(release),
        Action::Yank { .. } | Action::Unyank { .. } => None,
    }
}

/// Who says, by claim and lease, that it hosts this content now.
pub(super) fn host(
    record: wire::HostRecord,
    manifest: &Digest,
    network: &NetworkId,
    now: UnixMillis,
) -> Result<PeerId, Failure> {
    let claim = Signed::<HostClaim>::verify_field(record.claim)?;
    let lease = Signed::<HostLease>::verify_field(record.lease)?;
    claim.value().check(network, now)?;
    lease.value().check(network, now)?;
    if claim.host() != lease.host() {
        return Err(foreign("claim and lease are of different hosts"));
    }
    if claim.value().manifest != *manifest || claim.value().withdrawn {
        return Err(foreign("the host does not claim this content"));
    }
    Ok(claim.host())
}
