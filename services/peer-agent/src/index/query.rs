//! Questions to all indexes at once, and one answer made of theirs.

use std::collections::HashSet;

use futures::future::join_all;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::{
    Digest, PackageEntry, PackageName, PeerId, PublisherId, Release, Signed, UnixMillis,
};
use p2psb_proto::wire::package_index::v1 as wire;
use semver::Version;

use super::{Index, Indexes, most_telling, verify};
use crate::core::reference::Reference;
use crate::store::HeadSeen;

/// Hosts that are asked for at one index.
const HOSTS: u32 = 200;

/// A release that was resolved.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The entry, signed.
    pub entry: Signed<PackageEntry>,
    /// What it releases.
    pub release: Release,
    /// The publisher takes it back; it is fetched only when named exactly.
    pub yanked: bool,
}

impl Resolved {
    /// `publisher/name@version`.
    #[must_use]
    pub fn reference(&self) -> String {
        reference_of(&self.entry, &self.release.version)
    }

    /// The folder it is fetched into by default.
    #[must_use]
    pub fn folder(&self) -> String {
        format!("{}-{}", self.entry.value().name, self.release.version)
    }
}

/// `publisher/name@version`.
#[must_use]
pub(super) fn reference_of(entry: &Signed<PackageEntry>, version: &Version) -> String {
    format!("{}/{}@{version}", entry.value().publisher, entry.value().name)
}

impl Indexes {
    /// The best release for a reference, of those that the indexes name.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, Failure> {
        let indexes = self.connect().await?;
        let answers = join_all(indexes.iter().map(|index| self.resolve_at(index, reference))).await;
        let (mut resolved, mut failures) = (Vec::<Resolved>::new(), Vec::new());
        for (index, answer) in indexes.iter().zip(answers) {
            match answer {
                Ok(found) => resolved.push(found),
                Err(failure) => {
                    tracing::debug!(index = %index.id, reason = %failure.reason, error = %failure.message, "not resolved");
                    failures.push(failure);
                }
            }
        }
        let publishers: HashSet<PublisherId> =
            resolved.iter().map(|found| found.entry.value().publisher).collect();
        if publishers.len() > 1 {
            return Err(ambiguous(&reference.name, publishers));
        }
        // An index that knows of several publishers knows more than one that knows of one.
        if let Some(at) = failures.iter().position(|failure| failure.reason == Reason::NameAmbiguous) {
            return Err(failures.swap_remove(at));
        }
        let best = resolved.into_iter().max_by(|a, b| a.release.version.cmp(&b.release.version));
        best.ok_or_else(|| most_telling(failures))
    }

    async fn resolve_at(&self, index: &Index, reference: &Reference) -> Result<Resolved, Failure> {
        let request = wire::ResolveRequest {
            publisher_id: reference.publisher.map(|publisher| publisher.to_wire()).unwrap_or_default(),
            name: reference.name.to_string(),
            requirement: reference.requirement().to_owned(),
        };
        let answer =
            index.call(request, |mut client, request| async move { client.resolve(request).await }).await?;
        let yanked = answer.yanked;
        let (entry, head) = verify::resolved(answer, reference)?;
        self.believe(index, head).await?;
        match verify::release(&entry).cloned() {
            Some(release) => Ok(Resolved { entry, release, yanked }),
            None => Err(Failure::new(Reason::RecordMalformed, "the entry is no release")),
        }
    }

    /// Compares a head with what was seen before, and remembers it.
    pub(super) async fn believe(&self, index: &Index, head: Signed<PackageEntry>) -> Result<(), Failure> {
        let (publisher, name, seq) = (head.value().publisher, head.value().name.clone(), head.value().seq);
        match self.store(move |store| store.observe_head(&head)).await? {
            HeadSeen::Newer | HeadSeen::Same => Ok(()),
            HeadSeen::Older { known } => {
                tracing::warn!(index = %index.id, %publisher, %name, seq, seen = known.value().seq, "an index went back on a chain");
                Err(Failure::new(
                    Reason::ChainForked,
                    format!(
                        "the index {} shows {name} up to entry {seq}, but entry {} was seen before: it is behind, or withholds entries",
                        index.id.short(),
                        known.value().seq
                    ),
                ))
            }
            HeadSeen::Forked { known } => {
                tracing::warn!(index = %index.id, %publisher, %name, seq = known.value().seq, "a chain forked");
                Err(Failure::new(
                    Reason::ChainForked,
                    format!(
                        "the chain of {name} forked at entry {}: its publisher signed two different ones; ask which of them holds",
                        known.value().seq
                    ),
                ))
            }
        }
    }

    /// Packages that match, best first, each once.
    pub async fn search(&self, query: &str, page_size: u32) -> Result<Vec<wire::PackageSummary>, Failure> {
        let indexes = self.connect().await?;
        let request =
            wire::SearchPackagesRequest { query: query.to_owned(), page_size, page_token: String::new() };
        let ask = |index: &Index| {
            let (index, request) = (index.clone(), request.clone());
            async move {
                index
                    .call(request, |mut client, request| async move { client.search_packages(request).await })
                    .await
            }
        };
        let (mut lists, mut failures) = (Vec::new(), Vec::new());
        for answer in join_all(indexes.iter().map(ask)).await {
            match answer {
                Ok(answer) => lists.push(answer.packages),
                Err(failure) => failures.push(failure),
            }
        }
        if lists.is_empty() {
            return Err(most_telling(failures));
        }
        let limit = if page_size == 0 { 20 } else { page_size.min(100) } as usize;
        Ok(merge(lists, limit))
    }

    /// Who hosts this content now, best first, each once.
    pub async fn hosts(&self, manifest: Digest) -> Result<Vec<PeerId>, Failure> {
        let indexes = self.connect().await?;
        let request = wire::FindHostsRequest {
            manifest_digest: manifest.to_wire(),
            page_size: HOSTS,
            page_token: String::new(),
        };
        let ask = |index: &Index| {
            let (index, request) = (index.clone(), request.clone());
            async move {
                index
                    .call(request, |mut client, request| async move { client.find_hosts(request).await })
                    .await
            }
        };
        let (mut lists, mut failures) = (Vec::new(), Vec::new());
        let now = UnixMillis(self.shared.clock.unix_millis());
        for (index, answer) in indexes.iter().zip(join_all(indexes.iter().map(ask)).await) {
            match answer {
                Ok(answer) => {
                    let verified = answer.hosts.into_iter().take(HOSTS as usize).filter_map(|record| {
                        verify::host(record, &manifest, &self.shared.network, now)
                            .inspect_err(|failure| {
                                tracing::debug!(index = %index.id, error = %failure.message, "a host record is not believed");
                            })
                            .ok()
                    });
                    lists.push(verified.collect::<Vec<PeerId>>());
                }
                Err(failure) => failures.push(failure),
            }
        }
        if lists.is_empty() {
            return Err(most_telling(failures));
        }
        let mut seen = HashSet::new();
        Ok(interleave(lists).filter(|host| seen.insert(*host)).collect())
    }
}

fn ambiguous(name: &PackageName, publishers: HashSet<PublisherId>) -> Failure {
    let mut choices: Vec<String> = publishers.iter().map(|publisher| format!("{publisher}/{name}")).collect();
    choices.sort();
    let message = format!("several publishers have a package {name}; name one of: {}", choices.join(", "));
    Failure::new(Reason::NameAmbiguous, message)
}

/// The first of each list, then the second of each, and so on.
fn interleave<T>(lists: Vec<Vec<T>>) -> impl Iterator<Item = T> {
    let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).collect();
    let mut round = Vec::new().into_iter();
    std::iter::from_fn(move || {
        if round.len() == 0 {
            round = lists.iter_mut().filter_map(Iterator::next).collect::<Vec<T>>().into_iter();
        }
        round.next()
    })
}

/// Each package once, at its best place, by the index that knows the newest version.
fn merge(lists: Vec<Vec<wire::PackageSummary>>, limit: usize) -> Vec<wire::PackageSummary> {
    let mut merged: Vec<wire::PackageSummary> = Vec::new();
    for package in interleave(lists) {
        let same = |other: &&mut wire::PackageSummary| {
            other.publisher_id == package.publisher_id && other.name == package.name
        };
        match merged.iter_mut().find(same) {
            None => merged.push(package),
            Some(known) => {
                let hosts = known.host_count.max(package.host_count);
                let version = |package: &wire::PackageSummary| Version::parse(&package.version).ok();
                if version(&package) > version(known) {
                    *known = package;
                }
                known.host_count = hosts;
            }
        }
    }
    merged.truncate(limit);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, host_count: u32) -> wire::PackageSummary {
        wire::PackageSummary {
            name: name.into(),
            version: version.into(),
            host_count,
            ..wire::PackageSummary::default()
        }
    }

    #[test]
    fn answers_of_several_indexes_become_one_list() {
        let lists = vec![
            vec![package("a", "1.9.0", 3), package("b", "1.0.0", 1)],
            vec![package("c", "1.0.0", 0), package("a", "1.10.0", 1)],
            Vec::new(),
        ];
        let merged = merge(lists, 20);
        let shown: Vec<_> =
            merged.iter().map(|p| (p.name.as_str(), p.version.as_str(), p.host_count)).collect();
        assert_eq!(shown, [("a", "1.10.0", 3), ("c", "1.0.0", 0), ("b", "1.0.0", 1)]);
    }

    #[test]
    fn lists_are_interleaved() {
        let all: Vec<u32> = interleave(vec![vec![1, 4, 6], vec![2], vec![3, 5]]).collect();
        assert_eq!(all, [1, 2, 3, 4, 5, 6]);
    }
}
