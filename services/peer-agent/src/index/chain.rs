//! Appending to the chain of an own package, at all indexes.
//!
//! Promises: an entry is signed only behind the highest head known to any index or to this agent; an index that lacks entries is
//! given them first, or when it is met anew; an entry that one index acknowledged is published. What was signed and lost on the way is found again as the
//! head, so nothing is signed twice.

use std::collections::BTreeMap;

use futures::future::join_all;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::{
    Action, Digest, PackageEntry, PackageName, PublisherId, Release, SecretKey, Signed, UnixMillis, limits,
};
use p2psb_proto::wire::package_index::v1 as wire;
use semver::Version;

use super::query::reference_of;
use super::{Index, Indexes, most_telling, verify};
use crate::core::reference::Reference;
use crate::core::versions::next_version;
use crate::failure::{internal, may_pass};
use crate::store::HeadSeen;

/// How often a moved head is followed.
const ATTEMPTS: u32 = 5;
/// The newest entries of a chain that are looked at for the highest version, and that an index is given when it lacks them.
const MAX_ENTRIES: usize = 10_000;

/// A release on its way to be signed.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Name of the package.
    pub name: PackageName,
    /// Its version; `None`: the next minor one.
    pub version: Option<Version>,
    /// Everything else; its version is not looked at.
    pub release: Release,
}

/// A release that was published.
#[derive(Clone, Debug)]
pub struct Published {
    /// `publisher/name@version`.
    pub reference: String,
    /// Its content.
    pub manifest: Digest,
    /// Who acknowledged it.
    pub indexes: Vec<p2psb_proto::model::PeerId>,
}

type Entry = Signed<PackageEntry>;

/// What an index made of an entry.
enum Outcome {
    Appended,
    /// The chain is longer there.
    Moved,
    Failed(Failure),
}

impl Indexes {
    /// Signs a release and publishes it.
    pub async fn publish(&self, key: &SecretKey, draft: Draft) -> Result<Published, Failure> {
        let publisher = PublisherId::new(key.public());
        let mut failures = Vec::new();
        let mut signed = Vec::new();
        for _ in 0..ATTEMPTS {
            let indexes = self.connect().await?;
            let (base, reachable) = self.base(&indexes, publisher, &draft.name).await?;
            if let Some(head) = base.as_ref().filter(|head| signed.contains(&head.digest())) {
                // An index took it and its answer was lost.
                let version = head.value().action.version().clone();
                let holders = reachable.iter().map(|index| index.id).collect();
                return self.published(head.clone(), &version, holders).await;
            }
            let version = match &draft.version {
                Some(version) => version.clone(),
                None => next_version(self.highest(&reachable, base.as_ref()).await?.as_ref()),
            };
            let entry = self.sign(key, &draft, version.clone(), base.as_ref())?;
            signed.push(entry.digest());
            let told =
                join_all(reachable.iter().map(|index| self.append(index, &entry, base.as_ref()))).await;
            let mut acknowledged = Vec::new();
            let mut moved = false;
            for (index, outcome) in reachable.iter().zip(told) {
                match outcome {
                    Outcome::Appended => acknowledged.push(index.id),
                    Outcome::Moved => moved = true,
                    Outcome::Failed(failure) => {
                        tracing::warn!(index = %index.id, reason = %failure.reason, error = %failure.message, "an index did not take the release");
                        failures.push(failure);
                    }
                }
            }
            if !acknowledged.is_empty() {
                return self.published(entry, &version, acknowledged).await;
            }
            if failures.iter().any(|failure| failure.reason == Reason::VersionExists) {
                return self.existing(publisher, &draft, &version).await;
            }
            if !moved && !failures.iter().all(|failure| may_pass(failure.reason)) {
                break;
            }
        }
        Err(most_telling(failures))
    }

    /// Gives an index what it lacks of these packages of a publisher: it was not there when they were published, or lost them. Only
    /// what may pass is an error; an index that contradicts a chain is left as it is.
    pub async fn complete(
        &self,
        index: &Index,
        publisher: PublisherId,
        names: &[PackageName],
    ) -> Result<(), Failure> {
        for name in names {
            match self.complete_one(index, publisher, name).await {
                Ok(()) => {}
                Err(failure) if may_pass(failure.reason) => return Err(failure),
                Err(failure) => {
                    tracing::warn!(index = %index.id, %name, reason = %failure.reason, error = %failure.message, "an index can't be given what it lacks");
                }
            }
        }
        Ok(())
    }

    async fn complete_one(
        &self,
        index: &Index,
        publisher: PublisherId,
        name: &PackageName,
    ) -> Result<(), Failure> {
        let known = name.clone();
        let mut base = self.store(move |store| store.head(&publisher, &known)).await?;
        let head = self.head_at(index, publisher, name).await?;
        let reached = head.as_ref().map_or(0, |head| head.value().seq);
        if let Some(head) = head {
            self.compare(head, &mut base).await?;
        }
        match base {
            Some(base) if reached < base.value().seq => self.fill_up(index, &base, reached).await,
            Some(_) | None => Ok(()),
        }
    }

    fn sign(
        &self,
        key: &SecretKey,
        draft: &Draft,
        version: Version,
        base: Option<&Entry>,
    ) -> Result<Entry, Failure> {
        let entry = PackageEntry {
            publisher: PublisherId::new(key.public()),
            name: draft.name.clone(),
            seq: base.map_or(1, |head| head.value().seq.saturating_add(1)),
            prev: base.map(Signed::digest),
            issued: UnixMillis(self.shared.clock.unix_millis()),
            action: Action::Release(Release { version, ..draft.release.clone() }),
        };
        Ok(Signed::sign(&entry, key)?)
    }

    async fn published(
        &self,
        entry: Entry,
        version: &Version,
        indexes: Vec<p2psb_proto::model::PeerId>,
    ) -> Result<Published, Failure> {
        let reference = reference_of(&entry, version);
        let Some(manifest) = verify::release(&entry).map(|release| release.manifest) else {
            return Err(internal("a release was signed that is none"));
        };
        self.store(move |store| {
            store.put_release(&entry)?;
            store.observe_head(&entry)
        })
        .await?;
        Ok(Published { reference, manifest, indexes })
    }

    /// The version is there already: that is what was wanted if its content is the same.
    async fn existing(
        &self,
        publisher: PublisherId,
        draft: &Draft,
        version: &Version,
    ) -> Result<Published, Failure> {
        let exists = || {
            let problem = format!(
                "{}@{version} was released before with other content; releases are immutable, choose another --version",
                draft.name
            );
            Failure::new(Reason::VersionExists, problem)
        };
        let entry = self.released(publisher, &draft.name, version).await?.ok_or_else(exists)?;
        if verify::release(&entry).is_none_or(|release| release.manifest != draft.release.manifest) {
            return Err(exists());
        }
        let indexes = self.in_use();
        self.published(entry, version, indexes).await
    }

    /// The entry that released exactly this version.
    async fn released(
        &self,
        publisher: PublisherId,
        name: &PackageName,
        version: &Version,
    ) -> Result<Option<Entry>, Failure> {
        let reference: Reference = format!("{publisher}/{name}@={version}").parse()?;
        match self.resolve(&reference).await {
            Ok(resolved) => Ok(Some(resolved.entry)),
            Err(failure) if matches!(failure.reason, Reason::PackageUnknown | Reason::ReleaseUnknown) => {
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// The highest head that any index or this agent knows, and the indexes that answered.
    async fn base(
        &self,
        indexes: &[Index],
        publisher: PublisherId,
        name: &PackageName,
    ) -> Result<(Option<Entry>, Vec<Index>), Failure> {
        let known = name.clone();
        let mut base = self.store(move |store| store.head(&publisher, &known)).await?;
        let (mut reachable, mut failures) = (Vec::new(), Vec::new());
        let heads = join_all(indexes.iter().map(|index| self.head_at(index, publisher, name))).await;
        for (index, head) in indexes.iter().zip(heads) {
            let believed = match head {
                Ok(Some(head)) => self.compare(head, &mut base).await,
                Ok(None) => Ok(()),
                Err(failure) => Err(failure),
            };
            match believed {
                Ok(()) => reachable.push(index.clone()),
                Err(failure) => failures.push(failure),
            }
        }
        if reachable.is_empty() { Err(most_telling(failures)) } else { Ok((base, reachable)) }
    }

    /// Takes a head for the base if it is the highest. An index that is behind is fine here: it will be given what it lacks.
    async fn compare(&self, head: Entry, base: &mut Option<Entry>) -> Result<(), Failure> {
        let seen = head.clone();
        match self.store(move |store| store.observe_head(&seen)).await? {
            HeadSeen::Newer => *base = Some(head),
            HeadSeen::Same | HeadSeen::Older { .. } => {}
            HeadSeen::Forked { known } => {
                let problem = format!(
                    "the chain of {} forked at entry {}: your publisher key signed two different ones, perhaps on two machines",
                    head.value().name,
                    known.value().seq
                );
                return Err(Failure::new(Reason::ChainForked, problem));
            }
        }
        Ok(())
    }

    async fn head_at(
        &self,
        index: &Index,
        publisher: PublisherId,
        name: &PackageName,
    ) -> Result<Option<Entry>, Failure> {
        let request = wire::GetHeadRequest { publisher_id: publisher.to_wire(), name: name.to_string() };
        match index.call(request, |mut client, request| async move { client.get_head(request).await }).await {
            Ok(answer) => verify::entry_of(answer.entry, &publisher, name).map(Some),
            Err(failure) if failure.reason == Reason::PackageUnknown => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Publishes an entry at one index; one that lacks earlier entries is given those first.
    async fn append(&self, index: &Index, entry: &Entry, base: Option<&Entry>) -> Outcome {
        let first = match self.put(index, entry).await {
            Ok(()) => return Outcome::Appended,
            Err(failure) => failure,
        };
        // An index that knows nothing of the chain has no head to attach.
        let behind = first.reason == Reason::PackageUnknown && base.is_some();
        if first.reason != Reason::HeadMoved && !behind {
            return Outcome::Failed(first);
        }
        let (publisher, name) = (entry.value().publisher, &entry.value().name);
        let head =
            match first.record.map(|record| verify::entry_of(Some(*record), &publisher, name)).transpose() {
                Ok(head) => head,
                Err(failure) => return Outcome::Failed(failure),
            };
        let reached = head.as_ref().map_or(0, |head| head.value().seq);
        match (head, base) {
            (Some(_), _) if reached >= entry.value().seq => Outcome::Moved,
            (_, Some(base)) if reached < base.value().seq => match self.fill_up(index, base, reached).await {
                Ok(()) => match self.put(index, entry).await {
                    Ok(()) => Outcome::Appended,
                    Err(failure) => Outcome::Failed(failure),
                },
                Err(failure) => Outcome::Failed(failure),
            },
            _ => {
                let problem = format!("the chain of {name} forked: this index has another entry {reached}");
                Outcome::Failed(Failure::new(Reason::ChainForked, problem))
            }
        }
    }

    async fn put(&self, index: &Index, entry: &Entry) -> Result<(), Failure> {
        let request = wire::PublishRequest { entry: Some(entry.to_wire()) };
        index
            .call(request, |mut client, request| async move { client.publish(request).await })
            .await
            .map(drop)
    }

    /// Gives an index the entries after `reached`, up to `base`.
    async fn fill_up(&self, index: &Index, base: &Entry, reached: u64) -> Result<(), Failure> {
        let missing = self.entries(base, reached).await?;
        tracing::info!(index = %index.id, name = %base.value().name, entries = missing.len(), "an index lacks entries; it is given them");
        for entry in missing.values() {
            self.put(index, entry).await?;
        }
        Ok(())
    }

    /// The entries of a chain after `reached`, up to `base`: own ones from the catalogue, others from an index that has them.
    async fn entries(&self, base: &Entry, reached: u64) -> Result<BTreeMap<u64, Entry>, Failure> {
        let (publisher, name) = (base.value().publisher, base.value().name.clone());
        let own = self.store(move |store| store.releases(&publisher, &name)).await?;
        let mut found: BTreeMap<u64, Entry> =
            own.into_iter().map(|entry| (entry.value().seq, entry)).collect();
        found.insert(base.value().seq, base.clone());
        if let Some(chain) = linked(&found, base, reached) {
            return Ok(chain);
        }
        for index in self.connect().await? {
            if let Ok(walked) = self.walk(&index, base, reached).await {
                return Ok(walked);
            }
        }
        let problem = format!(
            "an index lacks entries of {} after {reached}, and no index in reach has all of them",
            base.value().name
        );
        Err(Failure::new(Reason::HeadMoved, problem))
    }

    /// Reads a chain at an index from `base` back to the entry after `reached`; every link is checked.
    async fn walk(&self, index: &Index, base: &Entry, reached: u64) -> Result<BTreeMap<u64, Entry>, Failure> {
        let (publisher, name) = (base.value().publisher, base.value().name.clone());
        let mut found = BTreeMap::from([(base.value().seq, base.clone())]);
        let mut page_token = String::new();
        loop {
            let request = wire::ListReleasesRequest {
                publisher_id: publisher.to_wire(),
                name: name.to_string(),
                // The contract's largest page.
                page_size: limits::PAGE_ITEMS as u32,
                page_token,
            };
            let page = index
                .call(request, |mut client, request| async move { client.list_releases(request).await })
                .await?;
            for record in page.entries {
                let entry = verify::entry_of(Some(record), &publisher, &name)?;
                found.entry(entry.value().seq).or_insert(entry);
            }
            if let Some(chain) = linked(&found, base, reached) {
                return Ok(chain);
            }
            if page.next_page_token.is_empty() || found.len() > MAX_ENTRIES {
                return Err(Failure::new(
                    Reason::ChainForked,
                    format!("the chain of {name} has gaps at this index"),
                ));
            }
            page_token = page.next_page_token;
        }
    }

    /// The highest version of a chain, yanked ones too: a version is used once.
    async fn highest(&self, indexes: &[Index], base: Option<&Entry>) -> Result<Option<Version>, Failure> {
        let Some(base) = base else { return Ok(None) };
        let reached = base.value().seq.saturating_sub(MAX_ENTRIES as u64);
        let (publisher, name) = (base.value().publisher, base.value().name.clone());
        let own = self.store(move |store| store.releases(&publisher, &name)).await?;
        let own: BTreeMap<u64, Entry> = own
            .into_iter()
            .map(|entry| (entry.value().seq, entry))
            .chain([(base.value().seq, base.clone())])
            .collect();
        let mut chain = linked(&own, base, reached);
        let mut failures = Vec::new();
        for index in indexes {
            if chain.is_none() {
                chain = self.walk(index, base, reached).await.map_err(|failure| failures.push(failure)).ok();
            }
        }
        let chain = chain.ok_or_else(|| most_telling(failures))?;
        Ok(chain.values().map(|entry| entry.value().action.version()).max().cloned())
    }
}

/// The entries after `reached` up to `base`, if none is missing and each follows the one before.
fn linked(found: &BTreeMap<u64, Entry>, base: &Entry, reached: u64) -> Option<BTreeMap<u64, Entry>> {
    let mut chain = BTreeMap::new();
    let mut wanted = Some(base.digest());
    for seq in (reached.saturating_add(1)..=base.value().seq).rev() {
        let entry = found.get(&seq).filter(|entry| Some(entry.digest()) == wanted)?;
        wanted = entry.value().prev;
        chain.insert(seq, entry.clone());
    }
    Some(chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(length: u64) -> BTreeMap<u64, Entry> {
        let key = SecretKey::from_seed(&[1; 32]);
        let mut prev = None;
        (1..=length)
            .map(|seq| {
                let release = Release {
                    version: Version::new(0, seq, 0),
                    manifest: Digest::of(b"m"),
                    total_size: 1,
                    file_count: 1,
                    title: String::new(),
                    description: String::new(),
                    tags: Vec::new(),
                    license: String::new(),
                };
                let entry = PackageEntry {
                    publisher: PublisherId::new(key.public()),
                    name: "demo".parse().unwrap(),
                    seq,
                    prev,
                    issued: UnixMillis(1),
                    action: Action::Release(release),
                };
                let signed = Signed::sign(&entry, &key).unwrap();
                prev = Some(signed.digest());
                (seq, signed)
            })
            .collect()
    }

    #[test]
    fn a_chain_is_believed_only_link_by_link() {
        let mut all = chain(5);
        let base = all[&5].clone();
        assert_eq!(linked(&all, &base, 2).unwrap().keys().copied().collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(linked(&all, &base, 5).unwrap().len(), 0);
        let strange = chain(1)[&1].clone();
        all.insert(3, strange);
        assert!(linked(&all, &base, 2).is_none(), "an entry that does not belong");
        all.remove(&3);
        assert!(linked(&all, &base, 2).is_none(), "a gap");
        assert!(linked(&all, &base, 3).is_some());
    }
}
