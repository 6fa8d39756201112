//! What holds for the catalogue as a whole.

use p2psb_proto::error::Reason;
use p2psb_proto::model::record::Signed;
use p2psb_proto::model::{
    Action, Digest, HostClaim, NetworkId, PackageEntry, PackageName, PublisherId, Release, SecretKey,
    UnixMillis,
};
use rusqlite::params;
use tempfile::TempDir;

use super::*;

impl Store {
    /// Rows of a table.
    pub(crate) fn count(&self, table: &str) -> u64 {
        let sql = format!("SELECT count(*) FROM {table}");
        self.read().unwrap().query_row(&sql, [], |row| trees::unsigned_at(row, 0)).unwrap()
    }

    /// Records a release of this content.
    pub(crate) fn release(&self, manifest: &Digest) {
        self.put_release(&entry_of(1, *manifest)).unwrap();
    }

    /// Takes back that a fetched tree is complete, and where it lies.
    pub(crate) fn unrecord(&self, tree: TreeId, folder: &Path) {
        self.write(|to| {
            to.execute("UPDATE tree SET state = ?1 WHERE id = ?2", params![trees::PARTIAL, tree.0])?;
            to.execute("UPDATE base SET path = ?1 WHERE tree = ?2", params![path_bytes(folder), tree.0])?;
            Ok(())
        })
        .unwrap();
    }
}

fn key() -> SecretKey {
    SecretKey::from_seed(&[7; 32])
}

fn publisher() -> PublisherId {
    PublisherId::new(key().public())
}

fn name() -> PackageName {
    "demo".parse().unwrap()
}

fn entry(seq: u64, content: &[u8]) -> Signed<PackageEntry> {
    entry_of(seq, Digest::of(content))
}

fn entry_of(seq: u64, manifest: Digest) -> Signed<PackageEntry> {
    let release = Release {
        version: semver::Version::new(seq, 0, 0),
        manifest,
        total_size: 1,
        file_count: 1,
        title: String::new(),
        description: String::new(),
        tags: Vec::new(),
        license: String::new(),
    };
    let entry = PackageEntry {
        publisher: publisher(),
        name: name(),
        seq,
        prev: (seq > 1).then(|| Digest::of(b"before")),
        issued: UnixMillis(1_000_000),
        action: Action::Release(release),
    };
    Signed::sign(&entry, &key()).unwrap()
}

fn reopen(dir: &TempDir, store: Store) -> Store {
    drop(store);
    Store::open(dir.path()).unwrap()
}

#[test]
fn a_chain_never_goes_back() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.head(&publisher(), &name()).unwrap(), None);
    assert_eq!(store.observe_head(&entry(6, b"six")).unwrap(), HeadSeen::Newer);
    assert_eq!(store.observe_head(&entry(7, b"seven")).unwrap(), HeadSeen::Newer);
    let store = reopen(&dir, store);
    let known = Box::new(entry(7, b"seven"));
    assert_eq!(store.observe_head(&known).unwrap(), HeadSeen::Same);
    assert_eq!(store.observe_head(&entry(6, b"six")).unwrap(), HeadSeen::Older { known: known.clone() });
    assert_eq!(store.observe_head(&entry(7, b"fork")).unwrap(), HeadSeen::Forked { known: known.clone() });
    assert_eq!(store.head(&publisher(), &name()).unwrap(), Some(*known));
}

#[test]
fn releases_are_kept_and_verified() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for seq in [1, 3, 2] {
        store.put_release(&entry(seq, &[seq as u8])).unwrap();
    }
    let store = reopen(&dir, store);
    let seqs: Vec<_> = store.releases(&publisher(), &name()).unwrap().iter().map(|r| r.value().seq).collect();
    assert_eq!(seqs, [3, 2, 1]);
    assert_eq!(store.release_of(&Digest::of(&[2])).unwrap(), Some(entry(2, &[2])));
    assert_eq!(store.release_of(&Digest::of(b"other")).unwrap(), None);
    store.write(|to| Ok(to.execute("UPDATE release SET record = zeroblob(40)", [])?)).unwrap();
    assert_eq!(store.releases(&publisher(), &name()).unwrap_err().reason(), Reason::StorageFailed);
}

#[test]
fn claims_are_replaced() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let claim = |seq, withdrawn| {
        let network = NetworkId::from_slice(&[1; 32]).unwrap();
        let claim = HostClaim { network, manifest: Digest::of(b"m"), seq, issued: UnixMillis(5), withdrawn };
        Signed::sign(&claim, &key()).unwrap()
    };
    store.put_claim(&claim(1, false)).unwrap();
    store.put_claim(&claim(2, true)).unwrap();
    let store = reopen(&dir, store);
    assert_eq!(store.claim(&Digest::of(b"m")).unwrap(), Some(claim(2, true)));
    assert_eq!(store.claims().unwrap().len(), 1);
    store.remove_claim(&Digest::of(b"m")).unwrap();
    assert_eq!(store.claim(&Digest::of(b"m")).unwrap(), None);
}

#[test]
fn jobs_survive_a_restart() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let first = store.add_job("demo", Path::new(""), UnixMillis(1)).unwrap();
    let second = store.add_job("other@1", Path::new("/x"), UnixMillis(2)).unwrap();
    store.resolve_job(first, "pub1/demo@1.0.0", &Digest::of(b"m"), Path::new("/demo-1.0.0")).unwrap();
    store.fail_job(second, Reason::DiskFull, "no room").unwrap();
    let store = reopen(&dir, store);
    let jobs = store.jobs().unwrap();
    assert_eq!(jobs.len(), 2);
    assert_eq!((jobs[0].id, jobs[0].created), (first, UnixMillis(1)));
    assert_eq!(jobs[0].resolved.as_deref(), Some("pub1/demo@1.0.0"));
    assert_eq!(jobs[0].manifest, Some(Digest::of(b"m")));
    assert_eq!(jobs[0].target, Path::new("/demo-1.0.0"));
    assert_eq!(jobs[0].state, JobState::Active);
    let failed = JobState::Failed { reason: Reason::DiskFull, message: "no room".into() };
    assert_eq!((jobs[1].id, &jobs[1].state), (second, &failed));
    store.retry_job(second).unwrap();
    assert_eq!(store.jobs().unwrap()[1].state, JobState::Active);
    store.remove_job(second).unwrap();
    // A number is never used again.
    assert_ne!(store.add_job("again", Path::new(""), UnixMillis(3)).unwrap(), second);
}

#[test]
fn one_catalogue_is_for_one_agent() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse { .. })));
    reopen(&dir, store);
}

#[test]
fn a_catalogue_of_a_newer_version_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.writer.lock().pragma_update(None, "user_version", 99).unwrap();
    drop(store);
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Newer { found: 99, .. })));
}

#[test]
fn what_nobody_holds_has_no_reader() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(store.reader(&Digest::of(b"m")).unwrap().is_none());
    assert_eq!(store.holding(&Digest::of(b"m")).unwrap(), Holding::None);
    assert!(store.manifests().unwrap().is_empty());
}
