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

#[cfg(test)]
mod tests {
    use p2psb_proto::error::Reason;
    use p2psb_proto::model::{Genesis, SecretKey};
    use semver::Version;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn sign_entry(owner: u8, signer: u8, seq: u64, version: Version) -> Signed<PackageEntry> {
        let release = Release {
            version,
            manifest: Digest::of(b"m"),
            total_size: 1,
            file_count: 1,
            title: String::new(),
            description: String::new(),
            tags: Vec::new(),
            license: String::new(),
        };
        let entry = PackageEntry {
            publisher: PublisherId::new(key(owner).public()),
            name: "demo".parse().unwrap(),
            seq,
            prev: (seq > 1).then(|| Digest::of(b"before")),
            issued: NOW,
            action: Action::Release(release),
        };
        Signed::sign(&entry, &key(signer)).unwrap()
    }

    fn answer(entry: &Signed<PackageEntry>, head: &Signed<PackageEntry>) -> wire::ResolveResponse {
        wire::ResolveResponse { entry: Some(entry.to_wire()), head: Some(head.to_wire()), yanked: false }
    }

    fn reason<T: std::fmt::Debug>(result: Result<T, Failure>) -> Reason {
        result.unwrap_err().reason
    }

    #[test]
    fn a_release_is_believed_only_if_it_answers_the_question() {
        let (one, two) =
            (sign_entry(1, 1, 1, Version::new(1, 0, 0)), sign_entry(1, 1, 2, Version::new(1, 1, 0)));
        let asked: Reference = "demo@^1".parse().unwrap();
        assert!(resolved(answer(&one, &two), &asked).is_ok());
        assert!(resolved(answer(&two, &two), &asked).is_ok());
        let foreign = Reason::RecordMalformed;
        assert_eq!(reason(resolved(answer(&one, &two), &"other".parse().unwrap())), foreign);
        assert_eq!(reason(resolved(answer(&one, &two), &"demo@^2".parse().unwrap())), foreign);
        assert_eq!(reason(resolved(answer(&two, &one), &asked)), foreign, "the head lies before the release");
        let other = sign_entry(2, 2, 3, Version::new(1, 0, 0));
        assert_eq!(reason(resolved(answer(&one, &other), &asked)), foreign, "the head is of another chain");
        let twin = sign_entry(1, 1, 1, Version::new(1, 0, 1));
        assert_eq!(reason(resolved(answer(&one, &twin), &asked)), foreign, "two entries with one seq");
        let whose: Reference = format!("{}/demo", PublisherId::new(key(2).public())).parse().unwrap();
        assert_eq!(reason(resolved(answer(&one, &two), &whose)), foreign, "another publisher was asked for");
    }

    #[test]
    fn an_entry_signed_by_another_key_or_changed_is_refused() {
        let forged = sign_entry(1, 2, 1, Version::new(1, 0, 0));
        assert_eq!(reason(entry(Some(forged.to_wire()))), Reason::NotOwner);
        let mut changed = sign_entry(1, 1, 1, Version::new(1, 0, 0)).to_wire();
        let mut payload = changed.payload.to_vec();
        *payload.last_mut().unwrap() ^= 1;
        changed.payload = payload.into();
        assert_eq!(reason(entry(Some(changed))), Reason::SignatureInvalid);
        assert_eq!(reason(entry(None)), Reason::RecordMalformed);
    }

    #[test]
    fn a_host_counts_only_by_its_own_running_lease() {
        let network = Genesis::open("test").unwrap().network_id();
        let manifest = Digest::of(b"m");
        let claim = |by: u8, manifest, withdrawn| {
            let claim = HostClaim { network, manifest, seq: 1, issued: NOW, withdrawn };
            Signed::sign(&claim, &key(by)).unwrap().to_wire()
        };
        let lease = |by: u8, network| {
            let expires = NOW.plus(std::time::Duration::from_secs(60));
            Signed::sign(&HostLease { network, seq: 1, issued: NOW, expires }, &key(by)).unwrap().to_wire()
        };
        let record =
            |claim, lease| wire::HostRecord { claim: Some(claim), lease: Some(lease), last_seen_time: None };
        let ask = |record, now| host(record, &manifest, &network, now);
        let good = record(claim(1, manifest, false), lease(1, network));
        assert_eq!(ask(good.clone(), NOW).unwrap(), PeerId::new(key(1).public()));
        let later = NOW.plus(std::time::Duration::from_secs(61));
        assert_eq!(reason(ask(good, later)), Reason::RecordExpired);
        let elsewhere = Genesis::open("elsewhere").unwrap().network_id();
        for bad in [
            record(claim(1, manifest, false), lease(2, network)),
            record(claim(1, Digest::of(b"other"), false), lease(1, network)),
            record(claim(1, manifest, true), lease(1, network)),
            record(claim(1, manifest, false), lease(1, elsewhere)),
        ] {
            assert!(ask(bad, NOW).is_err());
        }
    }
}
