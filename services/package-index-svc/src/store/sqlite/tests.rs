//! The store suite: what every store promises, on a real database file.

use std::path::PathBuf;
use std::time::Duration;

use p2psb_proto::model::host::{HostClaim, HostLease};
use p2psb_proto::model::record::{Payload, Signed};
use p2psb_proto::model::release::{Action, PackageEntry, Release};
use p2psb_proto::model::time::UnixMillis;
use p2psb_proto::model::{Digest, Genesis, PublisherId, SecretKey};
use p2psb_proto::wire::common::v1::SignedRecord;
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::SqliteStore;
use crate::core::PackageId;
use crate::core::chain::ChainError;
use crate::core::hosts::ClaimError;
use crate::core::limits::{DATABASE_BYTES, Quotas};
use crate::core::page::{BeforeSeq, PageSize};
use crate::core::resolve::{Requirement, best};
use crate::core::search::Query;
use crate::core::version::VersionKey;
use crate::store::{
    AnnounceError, Announced, Announcement, Appended, PublishError, Read, Resolution, Store, StoreError,
    Write,
};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn release(version: &str) -> Release {
    Release {
        version: version.parse().unwrap(),
        manifest: Digest::of(version.as_bytes()),
        total_size: 10,
        file_count: 1,
        title: String::new(),
        description: String::new(),
        tags: Vec::new(),
        license: "MIT".into(),
    }
}

fn yank(version: &str) -> Action {
    Action::Yank { version: version.parse().unwrap(), reason: "broken".into() }
}

fn unyank(version: &str) -> Action {
    Action::Unyank { version: version.parse().unwrap() }
}

/// A publisher's side of one chain.
struct Chain {
    seed: u8,
    name: String,
    seq: u64,
    prev: Option<Digest>,
}

impl Chain {
    fn new(seed: u8, name: &str) -> Self {
        Self { seed, name: name.to_owned(), seq: 0, prev: None }
    }

    fn package(&self) -> PackageId {
        let publisher = PublisherId::new(key(self.seed).public());
        PackageId { publisher, name: self.name.parse().unwrap() }
    }

    /// Signs an entry behind the last one, without going on.
    fn draft(&self, action: Action) -> Signed<PackageEntry> {
        let PackageId { publisher, name } = self.package();
        let (seq, prev) = (self.seq + 1, self.prev);
        Signed::sign(&PackageEntry { publisher, name, seq, prev, issued: NOW, action }, &key(self.seed))
            .unwrap()
    }

    fn next(&mut self, action: Action) -> Signed<PackageEntry> {
        let entry = self.draft(action);
        self.seq += 1;
        self.prev = Some(entry.digest());
        entry
    }

    fn release(&mut self, version: &str) -> Signed<PackageEntry> {
        self.next(Action::Release(release(version)))
    }
}

struct Bench {
    dir: TempDir,
    store: SqliteStore,
    writer: Box<dyn Write>,
    reader: Box<dyn Read>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Quotas::default(), DATABASE_BYTES)
    }

    fn with(quotas: Quotas, bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("index.sqlite"), bytes, quotas).unwrap();
        let (writer, reader) = (store.writer().unwrap(), store.reader().unwrap());
        Self { dir, store, writer, reader }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("index.sqlite")
    }

    fn publish(&mut self, entry: &Signed<PackageEntry>) -> Result<Appended, PublishError> {
        self.writer.begin();
        let published = self.writer.publish(entry, NOW);
        self.writer.commit().unwrap();
        published
    }

    fn announce(
        &mut self,
        lease: &Signed<HostLease>,
        claims: &[Signed<HostClaim>],
        now: UnixMillis,
    ) -> Result<Announced, AnnounceError> {
        let claims = claims.iter().cloned().enumerate().collect();
        self.writer.begin();
        let announced = self.writer.announce(&Announcement { lease: lease.clone(), claims }, now);
        self.writer.commit().unwrap();
        announced
    }

    fn sweep(&mut self, now: UnixMillis, rows: usize) -> (usize, bool) {
        self.writer.begin();
        let swept = self.writer.sweep(now, rows).unwrap();
        self.writer.commit().unwrap();
        (swept.rows, swept.more)
    }

    fn resolve(&mut self, package: &PackageId, requirement: &str) -> Option<(String, bool)> {
        match self.reader.resolve(package, &Requirement::parse(requirement).unwrap()).unwrap() {
            Resolution::Found(found) => Some((version_of(found.entry), found.yanked)),
            Resolution::NoneFits { .. } | Resolution::PackageUnknown => None,
        }
    }

    fn search(&mut self, query: &str) -> Vec<String> {
        let query = Query::parse(query).unwrap();
        let page = self.reader.search(&query, None, PageSize::new(0, (20, 100)), NOW).unwrap();
        page.items.into_iter().map(|(_, summary)| summary.package.name.to_string()).collect()
    }

    fn hosts(&mut self, manifest: &Digest, now: UnixMillis) -> Vec<SignedRecord> {
        let page = self.reader.hosts(manifest, None, PageSize::new(0, (50, 1000)), now).unwrap();
        page.items.into_iter().map(|hosted| hosted.lease).collect()
    }

    fn rows(&self, table: &str) -> i64 {
        let connection = Connection::open(self.path()).unwrap();
        connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }
}

fn version_of(record: SignedRecord) -> String {
    Signed::<PackageEntry>::verify(record).unwrap().value().action.version().to_string()
}

fn lease(seed: u8, issued: UnixMillis) -> Signed<HostLease> {
    let network = Genesis::open("test").unwrap().network_id();
    let lease = HostLease { network, seq: issued.0, issued, expires: issued.plus(HOUR) };
    Signed::sign(&lease, &key(seed)).unwrap()
}

fn claim(seed: u8, content: &str, seq: u64, withdrawn: bool) -> Signed<HostClaim> {
    let network = Genesis::open("test").unwrap().network_id();
    let manifest = Digest::of(content.as_bytes());
    Signed::sign(&HostClaim { network, manifest, seq, issued: NOW, withdrawn }, &key(seed)).unwrap()
}

fn wire<T: Payload>(record: &Signed<T>) -> SignedRecord {
    record.to_wire()
}

#[test]
fn a_chain_grows_and_its_head_is_found() {
    let mut bench = Bench::new();
    let mut chain = Chain::new(1, "demo");
    assert_eq!(bench.reader.head(&chain.package()), Ok(None));
    let first = chain.release("1.0.0");
    let appended = Appended { seq: 1, digest: first.digest(), fresh: true };
    assert_eq!(bench.publish(&first), Ok(appended));
    let second = chain.release("1.1.0");
    bench.publish(&second).unwrap();
    assert_eq!(bench.reader.head(&chain.package()), Ok(Some(wire(&second))));
    let again = bench.publish(&first).unwrap();
    assert_eq!(again, Appended { fresh: false, ..appended }, "what is in the chain succeeds again");
    assert_eq!(bench.rows("entry"), 2);
}

#[test]
fn whoever_lost_the_race_gets_the_head() {
    let mut bench = Bench::new();
    let mut chain = Chain::new(1, "demo");
    let first = chain.release("1.0.0");
    bench.publish(&first).unwrap();
    let rival = chain.draft(Action::Release(release("2.0.0")));
    let winner = chain.release("1.1.0");
    bench.publish(&winner).unwrap();
    let Err(PublishError::Refused { error: ChainError::HeadMoved { head, .. }, head: Some(record) }) =
        bench.publish(&rival)
    else {
        panic!("not refused")
    };
    assert_eq!((head.seq, head.digest, *record), (2, winner.digest(), wire(&winner)));
}

#[test]
fn a_version_is_released_once_and_the_refusal_changes_nothing() {
    let mut bench = Bench::new();
    let mut chain = Chain::new(1, "demo");
    bench.publish(&chain.release("1.0.0")).unwrap();
    let mut other = release("1.0.0");
    other.manifest = Digest::of(b"other bytes");
    let refused = bench.publish(&chain.draft(Action::Release(other)));
    assert!(matches!(refused, Err(PublishError::Refused { error: ChainError::VersionExists { .. }, .. })));
    let refused = bench.publish(&chain.draft(yank("9.9.9")));
    assert!(matches!(refused, Err(PublishError::Refused { error: ChainError::VersionUnknown { .. }, .. })));
    bench.publish(&chain.release("1.1.0")).unwrap();
    assert_eq!(bench.rows("entry"), 2);
}

#[test]
fn a_failure_inside_a_batch_leaves_the_rest_of_it_whole() {
    let mut bench = Bench::with(Quotas { packages_per_publisher: 1, ..Quotas::default() }, DATABASE_BYTES);
    let (mut one, mut two, mut three) = (Chain::new(1, "one"), Chain::new(1, "two"), Chain::new(2, "three"));
    bench.writer.begin();
    assert!(bench.writer.publish(&one.release("1.0.0"), NOW).is_ok());
    let second = bench.writer.publish(&two.release("1.0.0"), NOW);
    assert!(
        matches!(second, Err(PublishError::Quota(quota)) if quota.limit == "limits.packages_per_publisher")
    );
    assert!(bench.writer.publish(&three.release("1.0.0"), NOW).is_ok());
    bench.writer.commit().unwrap();
    assert_eq!((bench.rows("package"), bench.rows("entry")), (2, 2));
    assert!(bench.publish(&one.release("1.1.0")).is_ok(), "a package that is there needs no quota");
}

#[test]
fn a_chain_has_an_end() {
    let mut bench = Bench::with(Quotas { entries_per_package: 2, ..Quotas::default() }, DATABASE_BYTES);
    let mut chain = Chain::new(1, "demo");
    bench.publish(&chain.release("1.0.0")).unwrap();
    bench.publish(&chain.release("1.0.1")).unwrap();
    let refused = bench.publish(&chain.release("1.0.2"));
    assert!(
        matches!(refused, Err(PublishError::Quota(quota)) if quota.limit == "limits.entries_per_package")
    );
}

#[test]
fn resolving_follows_releases_and_yanks() {
    let mut bench = Bench::new();
    let mut chain = Chain::new(1, "demo");
    let package = chain.package();
    assert_eq!(
        bench.reader.resolve(&package, &Requirement::parse("").unwrap()),
        Ok(Resolution::PackageUnknown)
    );
    for version in ["0.9.0", "1.10.0", "1.9.0", "2.0.0-rc.1"] {
        bench.publish(&chain.release(version)).unwrap();
    }
    let found = |version: &str, yanked| Some((version.to_owned(), yanked));
    assert_eq!(bench.resolve(&package, ""), found("1.10.0", false));
    assert_eq!(bench.resolve(&package, "<1.10"), found("1.9.0", false));
    assert_eq!(bench.resolve(&package, ">=2.0.0-rc.0"), found("2.0.0-rc.1", false));
    assert_eq!(bench.resolve(&package, "^3"), None);
    bench.publish(&chain.next(yank("1.10.0"))).unwrap();
    assert_eq!(bench.resolve(&package, ""), found("1.9.0", false));
    assert_eq!(bench.resolve(&package, "=1.10.0"), found("1.10.0", true));
    bench.publish(&chain.next(unyank("1.10.0"))).unwrap();
    assert_eq!(bench.resolve(&package, "=1.10.0"), found("1.10.0", false));
    assert_eq!(bench.resolve(&package, "*"), found("1.10.0", false));
    let none = bench.reader.resolve(&package, &Requirement::parse("^7").unwrap()).unwrap();
    assert_eq!(none, Resolution::NoneFits { newest: Some("1.10.0".parse().unwrap()) });
}

#[test]
fn the_summary_is_of_the_newest_release_that_is_not_yanked() {
    let mut bench = Bench::new();
    let mut chain = Chain::new(1, "demo");
    let all = |bench: &mut Bench| {
        let page = bench.reader.packages(None, None, PageSize::new(0, (100, 1000)), NOW).unwrap();
        page.items.into_iter().map(|summary| summary.version.to_string()).collect::<Vec<_>>()
    };
    bench.publish(&chain.release("2.0.0-rc.1")).unwrap();
    assert_eq!(all(&mut bench), ["2.0.0-rc.1"]);
    let mut described = release("1.0.0");
    described.description = "ä".repeat(400);
    described.tags = vec!["x y".into(), "\"z\"".into()];
    bench.publish(&chain.next(Action::Release(described.clone()))).unwrap();
    let page = bench.reader.packages(None, None, PageSize::new(0, (100, 1000)), NOW).unwrap();
    let [summary] = page.items.as_slice() else { panic!("not one package") };
    assert_eq!((summary.version.to_string().as_str(), summary.description.len()), ("1.0.0", 500));
    assert_eq!((&summary.tags, summary.manifest), (&described.tags, described.manifest));
    bench.publish(&chain.next(yank("1.0.0"))).unwrap();
    assert_eq!(all(&mut bench), ["2.0.0-rc.1"]);
    bench.publish(&chain.next(yank("2.0.0-rc.1"))).unwrap();
    assert!(all(&mut bench).is_empty(), "nothing is left to choose");
    assert!(bench.search("demo").is_empty());
    bench.publish(&chain.next(unyank("1.0.0"))).unwrap();
    assert_eq!((all(&mut bench), bench.search("demo")), (vec!["1.0.0".to_owned()], vec!["demo".to_owned()]));
}

#[test]
fn a_chain_is_listed_page_by_page_from_its_head_back() {
    let mut bench = Bench::new();
    let mut chain = Chain::new(1, "demo");
    let entries: Vec<_> = (0..7).map(|patch| chain.release(&format!("1.0.{patch}"))).collect();
    for entry in &entries {
        bench.publish(entry).unwrap();
    }
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let size = PageSize::new(3, (100, 1000));
        let page = bench.reader.entries(&chain.package(), after, size).unwrap().unwrap();
        after = page.items.last().map(|(cursor, _): &(BeforeSeq, _)| *cursor);
        listed.extend(page.items.into_iter().map(|(_, record)| record));
        if !page.more {
            break;
        }
    }
    let expected: Vec<_> = entries.iter().rev().map(wire).collect();
    assert_eq!(listed, expected);
    let unknown = bench.reader.entries(&Chain::new(9, "demo").package(), None, PageSize::new(0, (1, 1)));
    assert_eq!(unknown, Ok(None));
}

#[test]
fn a_page_of_large_entries_is_cut_by_bytes() {
    let mut bench = Bench::new();
    let mut chain = Chain::new(1, "demo");
    for patch in 0..60 {
        let mut large = release(&format!("1.0.{patch}"));
        large.description = "x".repeat(16 * 1024);
        bench.publish(&chain.next(Action::Release(large))).unwrap();
    }
    let page = bench.reader.entries(&chain.package(), None, PageSize::new(0, (100, 1000))).unwrap().unwrap();
    let bytes: usize = page.items.iter().map(|(_, record)| prost::Message::encoded_len(record)).sum();
    assert!(page.more && bytes <= 768 * 1024 && bytes > 700 * 1024, "{bytes}");
}

#[test]
fn packages_are_listed_by_name_and_by_publisher() {
    let mut bench = Bench::new();
    for (seed, name) in [(1, "b"), (2, "b"), (1, "a"), (1, "c"), (2, "a.b")] {
        bench.publish(&Chain::new(seed, name).release("1.0.0")).unwrap();
    }
    let list = |bench: &mut Bench, publisher: Option<PublisherId>| {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let size = PageSize::new(2, (100, 1000));
            let page = bench.reader.packages(publisher.as_ref(), after.as_ref(), size, NOW).unwrap();
            listed.extend(page.items.into_iter().map(|summary| summary.package));
            let last = listed.last().cloned().unwrap();
            after = Some(crate::core::page::AfterPackage { name: last.name, publisher: last.publisher });
            if !page.more {
                return listed;
            }
        }
    };
    let all = list(&mut bench, None);
    let names: Vec<_> = all.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(names, ["a", "a.b", "b", "b", "c"]);
    assert!(all.is_sorted_by_key(|package| (package.name.clone(), package.publisher.to_bytes())));
    let own = list(&mut bench, Some(Chain::new(1, "b").package().publisher));
    let names: Vec<_> = own.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let mut owners = bench.reader.owners(&"b".parse().unwrap(), 9).unwrap();
    owners.sort();
    let mut expected = [1, 2].map(|seed| Chain::new(seed, "b").package().publisher);
    expected.sort();
    assert_eq!(owners, expected);
}

#[test]
fn search_finds_all_words_and_the_exact_name_first() {
    let mut bench = Bench::new();
    let texts: [(&str, &str, &str, &[&str]); 4] = [
        ("notes", "Notes about proto", "proto proto proto", &[]),
        ("proto", "Contracts", "What crosses the wire", &["grpc"]),
        ("proto-tools", "Tools for proto", "", &["grpc", "Äpfel"]),
        ("music", "Songs", "OR 1=1", &[]),
    ];
    for (seed, (name, title, description, tags)) in (1..).zip(texts) {
        let mut described = release("1.0.0");
        described.title = title.into();
        described.description = description.into();
        described.tags = tags.iter().map(ToString::to_string).collect();
        bench.publish(&Chain::new(seed, name).next(Action::Release(described))).unwrap();
    }
    assert_eq!(bench.search("proto").first().map(String::as_str), Some("proto"));
    assert_eq!(bench.search("PROTO").len(), 3);
    assert_eq!(bench.search("proto-tools"), ["proto-tools"]);
    assert_eq!(bench.search("grpc wire"), ["proto"], "words from different fields");
    assert_eq!(bench.search("apfel"), ["proto-tools"], "accents and case do not matter");
    assert!(bench.search("grpc songs").is_empty(), "all words are needed");
    // Syntax of SQL and FTS5 is nothing but words.
    assert_eq!(bench.search("\" OR 1=1 --"), ["music"]);
    for query in ["'; DROP TABLE entry; --", "name:proto", "NEAR(proto, 2)", "proto NOT grpc", "{name}:x"] {
        assert!(bench.search(query).is_empty(), "{query}");
    }
    for query in ["\"", "***", "()", "^", "\u{0}", "proto\u{0}", "foo*", "-"] {
        bench.search(query);
    }
    assert!(bench.search("prot").is_empty() && bench.search("prot*").is_empty(), "whole words");
}

#[test]
fn search_pages_hold_every_hit_once() {
    let mut bench = Bench::new();
    for seed in 1..=23 {
        let name = if seed % 3 == 0 { "common".to_owned() } else { format!("p{seed}-common") };
        let mut described = release("1.0.0");
        described.description = "common ".repeat(usize::from(seed % 5));
        bench.publish(&Chain::new(seed, &name).next(Action::Release(described))).unwrap();
    }
    let query = Query::parse("common").unwrap();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = bench.reader.search(&query, after.as_ref(), PageSize::new(4, (20, 100)), NOW).unwrap();
        assert!(page.items.len() <= 4);
        after = page.items.last().map(|(cursor, _)| cursor.clone());
        found.extend(page.items.into_iter().map(|(_, summary)| summary.package));
        if !page.more {
            break;
        }
    }
    assert!(found.iter().take(7).all(|package| package.name.as_str() == "common"), "exact names first");
    let mut distinct = found.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!((found.len(), distinct.len()), (23, 23));
}

#[test]
fn hosts_are_found_while_their_lease_runs_newest_heard_first() {
    let mut bench = Bench::new();
    let content = Digest::of(b"a");
    for (seed, minutes) in [(1, 0), (2, 20), (3, 10)] {
        let now = NOW.plus(Duration::from_secs(60 * minutes));
        bench.announce(&lease(seed, now), &[claim(seed, "a", 1, false)], now).unwrap();
    }
    let at = |minutes: u64| NOW.plus(Duration::from_secs(60 * minutes));
    let signed = |seed, minutes| wire(&lease(seed, at(minutes)));
    assert_eq!(bench.hosts(&content, at(30)), [signed(2, 20), signed(3, 10), signed(1, 0)]);
    assert_eq!(bench.hosts(&content, at(60)), [signed(2, 20), signed(3, 10)], "the first lease is over");
    bench.announce(&lease(3, at(65)), &[], at(65)).unwrap();
    assert_eq!(bench.hosts(&content, at(66)), [signed(3, 65), signed(2, 20)], "renewed without its claims");
    assert!(bench.hosts(&Digest::of(b"b"), at(30)).is_empty());
    let size = PageSize::new(1, (50, 1000));
    let first = bench.reader.hosts(&content, None, size, at(66)).unwrap();
    assert!(first.more);
    let second = bench.reader.hosts(&content, Some(first.items[0].cursor), size, at(66)).unwrap();
    assert_eq!((second.items[0].lease.clone(), second.more), (signed(2, 20), false));
}

#[test]
fn claims_are_newer_same_stale_or_withdrawn() {
    let mut bench = Bench::new();
    let run = lease(1, NOW);
    let known = |bench: &mut Bench, claims: &[_]| bench.announce(&run, claims, NOW).unwrap();
    assert_eq!(
        known(&mut bench, &[claim(1, "a", 5, false), claim(1, "b", 5, false)]),
        Announced { refused: vec![], known_claims: 2 }
    );
    assert_eq!(known(&mut bench, &[claim(1, "a", 5, false)]).known_claims, 2, "the same again");
    let stale = known(&mut bench, &[claim(1, "a", 4, true), claim(1, "c", 1, false)]);
    assert_eq!(stale.refused, [(0, ClaimError::Stale { offered: 4, stored: 5 })]);
    assert_eq!(stale.known_claims, 3, "the others hold");
    assert_eq!(known(&mut bench, &[claim(1, "a", 5, true)]).refused, [(0, ClaimError::Equivocation(5))]);
    assert_eq!(known(&mut bench, &[claim(1, "a", 6, true)]).known_claims, 2);
    assert!(bench.hosts(&Digest::of(b"a"), NOW).is_empty());
    let replayed = known(&mut bench, &[claim(1, "a", 5, false)]);
    assert_eq!(replayed.refused, [(0, ClaimError::Stale { offered: 5, stored: 6 })], "a withdrawal stays");
    assert_eq!(known(&mut bench, &[claim(1, "a", 7, false)]).known_claims, 3);
}

#[test]
fn an_older_lease_never_replaces_a_newer_one() {
    let mut bench = Bench::new();
    let (old, new) = (lease(1, NOW), lease(1, NOW.plus(Duration::from_secs(60))));
    bench.announce(&new, &[], NOW).unwrap();
    let Err(AnnounceError::Stale { offered, stored, lease: attached }) = bench.announce(&old, &[], NOW)
    else {
        panic!("not refused")
    };
    assert_eq!((offered, stored, *attached), (old.value().seq, new.value().seq, wire(&new)));
    let twin = HostLease { expires: NOW.plus(HOUR / 2), issued: NOW, ..new.value().clone() };
    let twin = Signed::sign(&twin, &key(1)).unwrap();
    assert!(matches!(bench.announce(&twin, &[], NOW), Err(AnnounceError::Equivocation { .. })));
}

#[test]
fn after_a_gap_claims_are_to_be_announced_anew() {
    let mut bench = Bench::new();
    bench.announce(&lease(1, NOW), &[claim(1, "a", 1, false)], NOW).unwrap();
    let back = NOW.plus(HOUR * 2);
    let announced = bench.announce(&lease(1, back), &[], back).unwrap();
    assert_eq!(announced.known_claims, 0);
    assert!(bench.hosts(&Digest::of(b"a"), back).is_empty());
    let announced = bench.announce(&lease(1, back), &[claim(1, "a", 1, false)], back).unwrap();
    assert_eq!((announced.known_claims, bench.hosts(&Digest::of(b"a"), back).len()), (1, 1));
}

#[test]
fn expired_hosts_are_swept_in_pieces_and_remembered_while_an_older_lease_could_run() {
    let mut bench = Bench::new();
    let many: Vec<_> = (0..25).map(|n| claim(1, &format!("c{n}"), 1, false)).collect();
    bench.announce(&lease(1, NOW), &many, NOW).unwrap();
    bench.announce(&lease(2, NOW.plus(HOUR)), &[claim(2, "c0", 1, false)], NOW.plus(HOUR)).unwrap();
    assert_eq!(bench.sweep(NOW, 10), (0, false));
    let later = NOW.plus(HOUR);
    assert_eq!(bench.sweep(later, 10), (10, true));
    assert_eq!(bench.sweep(later, 10), (10, true));
    assert_eq!(bench.sweep(later, 10), (5, false));
    assert_eq!((bench.rows("claim"), bench.rows("host")), (1, 2));
    let older = lease(1, NOW.minus(Duration::from_secs(1)));
    assert!(matches!(bench.announce(&older, &[], later), Err(AnnounceError::Stale { .. })));
    assert_eq!(bench.sweep(later.plus(HOUR * 2), 10), (2, false), "claim of one, row of the other");
    assert_eq!((bench.rows("claim"), bench.rows("host")), (0, 1));
}

#[test]
fn a_host_claims_no_more_than_its_quota() {
    let mut bench = Bench::with(Quotas { claims_per_host: 2, ..Quotas::default() }, DATABASE_BYTES);
    let claims = ["a", "b", "c"].map(|content| claim(1, content, 1, false));
    let announced = bench.announce(&lease(1, NOW), &claims, NOW).unwrap();
    assert_eq!(announced.known_claims, 2);
    assert!(matches!(announced.refused.as_slice(), [(2, ClaimError::Quota(_))]));
    let replaced = [claim(1, "a", 2, false), claim(1, "z", 1, true)];
    let announced = bench.announce(&lease(1, NOW), &replaced, NOW).unwrap();
    assert_eq!(announced, Announced { refused: vec![], known_claims: 2 });
}

#[test]
fn hosts_of_the_newest_release_are_counted() {
    let mut bench = Bench::new();
    bench.publish(&Chain::new(1, "demo").release("1.0.0")).unwrap();
    for seed in 2..5 {
        bench.announce(&lease(seed, NOW), &[claim(seed, "1.0.0", 1, seed == 4)], NOW).unwrap();
    }
    let mut count =
        |now| bench.reader.packages(None, None, PageSize::new(0, (100, 1000)), now).unwrap().items[0].hosts;
    assert_eq!((count(NOW), count(NOW.plus(HOUR))), (2, 0));
}

#[test]
fn what_was_not_committed_never_happened() {
    let mut bench = Bench::new();
    let (mut one, mut two) = (Chain::new(1, "one"), Chain::new(1, "two"));
    let kept = one.release("1.0.0");
    bench.publish(&kept).unwrap();
    bench.writer.begin();
    bench.writer.publish(&two.release("1.0.0"), NOW).unwrap();
    // As a killed process leaves it: neither committed nor closed. What lies on disk now is copied.
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(bench.dir.path()).unwrap() {
        let file = file.unwrap();
        if !file.file_name().to_string_lossy().ends_with("-shm") {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    let path = copy.path().join("index.sqlite");
    let store = SqliteStore::open(&path, DATABASE_BYTES, Quotas::default()).unwrap();
    let mut reader = store.reader().unwrap();
    assert_eq!(reader.head(&one.package()), Ok(Some(wire(&kept))));
    assert_eq!(reader.head(&two.package()), Ok(None));
    assert!(store.writer().is_ok());
}

#[test]
fn a_full_database_refuses_and_works_again_when_there_is_room() {
    let mut bench = Bench::with(Quotas::default(), 256 * 1024);
    let mut chain = Chain::new(1, "demo");
    let mut patch = 0;
    let full = loop {
        let mut large = release(&format!("1.0.{patch}"));
        large.description = "x".repeat(16 * 1024);
        let entry = chain.draft(Action::Release(large));
        bench.writer.begin();
        let published = bench.writer.publish(&entry, NOW);
        match (published, bench.writer.commit()) {
            (Ok(_), Ok(())) => (chain.seq, chain.prev) = (chain.seq + 1, Some(entry.digest())),
            (Err(PublishError::Store(error)), _) | (Ok(_), Err(error)) => break error,
            other => panic!("{other:?}"),
        }
        patch += 1;
    };
    assert!(matches!(full, StoreError::Full(_)), "{full:?}");
    let head = bench.reader.head(&chain.package()).unwrap().unwrap();
    assert_eq!(Signed::<PackageEntry>::verify(head).unwrap().value().seq, chain.seq);
    drop(bench.writer);
    let store = SqliteStore::open(&bench.store.path, DATABASE_BYTES, Quotas::default()).unwrap();
    bench.writer = store.writer().unwrap();
    bench.publish(&chain.release("2.0.0")).unwrap();
}

#[test]
fn a_flipped_bit_on_disk_is_reported_and_not_passed_on() {
    let mut bench = Bench::new();
    let mut chain = Chain::new(1, "demo");
    bench.publish(&chain.release("1.0.0")).unwrap();
    let connection = Connection::open(bench.path()).unwrap();
    let mut record: Vec<u8> = connection.query_row("SELECT record FROM entry", [], |row| row.get(0)).unwrap();
    record[20] ^= 1;
    connection.execute("UPDATE entry SET record = ?1", [record]).unwrap();
    assert!(matches!(bench.reader.head(&chain.package()), Err(StoreError::Damaged(_))));
}

#[test]
fn foreign_and_newer_databases_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sqlite");
    let open = || SqliteStore::open(&path, DATABASE_BYTES, Quotas::default()).err();
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(matches!(open(), Some(StoreError::Foreign(_))));
    connection.execute_batch("DROP TABLE t").unwrap();
    assert_eq!(open(), None);
    assert_eq!(open(), None, "a second time");
    connection.pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(open(), Some(StoreError::TooNew { found: 99, .. })));
    let garbage = dir.path().join("garbage.sqlite");
    std::fs::write(&garbage, vec![7; 8192]).unwrap();
    let opened = SqliteStore::open(&garbage, DATABASE_BYTES, Quotas::default());
    assert!(matches!(opened, Err(StoreError::Damaged(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_store_resolves_as_the_rules_do(
        steps in proptest::collection::vec((0..3_u8, 0..4_u64, 0..3_u64, any::<bool>()), 1..14),
        requirement in "|\\*|[=^~<>]?[0-3](\\.[0-2](\\.0(-rc\\.[12])?)?)?",
    ) {
        let mut bench = Bench::new();
        let mut chain = Chain::new(1, "demo");
        let mut model = std::collections::BTreeMap::new();
        for (what, major, minor, pre) in steps {
            let text = format!("{major}.{minor}.0{}", if pre { "-rc.1" } else { "" });
            let action = match what {
                0 => Action::Release(release(&text)),
                1 => yank(&text),
                _ => unyank(&text),
            };
            let version: semver::Version = text.parse().unwrap();
            let entry = chain.draft(action);
            if bench.publish(&entry).is_ok() {
                (chain.seq, chain.prev) = (chain.seq + 1, Some(entry.digest()));
                model.insert(VersionKey::new(&version), (version, what == 1));
            }
        }
        let wanted = Requirement::parse(&requirement).unwrap();
        let highest_first = model.into_values().rev().map(|(version, yanked)| Ok::<_, StoreError>((version, yanked, ())));
        let expected = best(&wanted, highest_first).unwrap().map(|(version, yanked, ())| (version.to_string(), yanked));
        prop_assert_eq!(bench.resolve(&chain.package(), &requirement), expected);
    }
}
