//! Fetching as a whole, from an agent that shares, without network between them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use p2psb_proto::error::Reason;
use p2psb_proto::model::manifest::PageRef;
use p2psb_proto::wire::peer::v1 as wire;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::content::publish::Published;
use crate::content::testing::{
    Agent, Host, Node, Serving, as_nobody, drive, fill, noise, remount, snapshot, with_small_disk, write,
};
use crate::store::{Holding, StoreError, TreeState};

mod repair;

/// Two agents, the first of which shares a folder.
struct Pair {
    host: Agent,
    guest: Agent,
    shared: Published,
}

impl Pair {
    fn new(fill: impl FnOnce(&Path)) -> Self {
        let (host, guest) = (Agent::new(), Agent::new());
        fs::create_dir(host.path("one")).unwrap();
        fill(&host.path("one"));
        let shared = host.publish(&host.path("one")).unwrap();
        Self { host, guest, shared }
    }

    fn serving(&self) -> Serving<'_> {
        Serving(&self.host.store, self.shared.manifest)
    }

    fn open(&self, target: &str) -> Result<Fetch, FetchError> {
        self.guest.open(&self.shared.manifest, &self.guest.path(target))
    }

    fn fetch(&self, target: &str) -> Result<Fetched, FetchError> {
        self.guest.fetch(&self.serving(), &self.shared.manifest, &self.guest.path(target))
    }

    fn assert_equal(&self, target: &str) {
        let (there, here) = (snapshot(&self.host.path("one")), snapshot(&self.guest.path(target)));
        assert!(there.keys().eq(here.keys()), "{:?} and {:?} differ", there.keys(), here.keys());
        for (name, node) in &there {
            assert!(here[name] == *node, "{} differs", name.escape_ascii());
        }
    }
}

/// Only these names, and the agent's own folder, are there.
fn only(agent: &Agent, names: &[&str]) {
    let mut found: Vec<_> = fs::read_dir(agent.dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "data")
        .collect();
    found.sort();
    assert_eq!(found, names);
}

#[test]
fn what_was_published_is_fetched() {
    let pair = Pair::new(fill);
    let fetched = pair.fetch("out").unwrap();
    pair.assert_equal("out");
    only(&pair.guest, &["out"]);
    assert_eq!(fetched.path, pair.guest.path("out").canonicalize().unwrap());
    let tree = pair.guest.store.tree(fetched.tree).unwrap().unwrap();
    assert_eq!((tree.state, tree.path), (TreeState::Complete, fetched.path));
    assert_eq!(tree.file_count, pair.shared.file_count);
    assert_eq!(pair.guest.store.holding(&pair.shared.manifest).unwrap(), Holding::Complete);
}

#[test]
fn what_was_fetched_is_served_to_others() {
    let pair = Pair::new(fill);
    pair.fetch("out").unwrap();
    let guest = pair.guest.restart();
    let third = Agent::new();
    let manifest = pair.shared.manifest;
    third.fetch(&Serving(&guest.store, manifest), &manifest, &third.path("out")).unwrap();
    assert_eq!(snapshot(&third.path("out")), snapshot(&pair.host.path("one")));
    // Publishing the fetched folder is the same content.
    assert_eq!(third.publish(&third.path("out")).unwrap().manifest, manifest);
}

#[test]
fn single_files_empty_folders_and_long_files_are_fetched() {
    for fill in [
        |folder: &Path| write(&folder.join("only"), b"x"),
        |folder: &Path| fs::create_dir_all(folder.join("a/b/c")).unwrap(),
        |_: &Path| {},
        |folder: &Path| write(&folder.join("long"), &noise(9, 30_000_000)),
        |folder: &Path| {
            (0..3000).for_each(|i| write(&folder.join(format!("{}/{i}", i % 70)), &noise(i, 900)))
        },
    ] {
        let pair = Pair::new(fill);
        pair.fetch("deeper/than/out").unwrap();
        pair.assert_equal("deeper/than/out");
    }
}

#[test]
fn runs_of_zeros_become_holes() {
    let pair = Pair::new(|folder| {
        let file = fs::File::create(folder.join("sparse")).unwrap();
        file.set_len(32 << 20).unwrap();
        write(&folder.join("zero"), &[0; 100_000]);
        write(&folder.join("small"), &[0; 100]);
    });
    pair.fetch("out").unwrap();
    pair.assert_equal("out");
    let blocks = fs::metadata(pair.guest.path("out/sparse")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks}");
}

#[test]
fn the_umask_counts_and_only_the_owners_bit_travels() {
    let pair = Pair::new(fill);
    pair.fetch("out").unwrap();
    let mode = |name: &str| fs::metadata(pair.guest.path("out").join(name)).unwrap().mode() & 0o777;
    // What any new file gets here.
    write(&pair.guest.path("new"), b"");
    let plain = fs::metadata(pair.guest.path("new")).unwrap().mode() & 0o777;
    assert_eq!(mode("big"), plain);
    assert_eq!(mode("bin/run"), plain | ((plain & 0o444) >> 2));
}

/// Kills the fetch after every number of deliveries, until it gets through.
#[test]
fn a_fetch_killed_at_any_step_is_resumed() {
    let mut pair = Pair::new(|folder| {
        write(&folder.join("a"), &noise(1, 900_000));
        write(&folder.join("b/c"), &noise(2, 200_000));
        write(&folder.join("b/d"), b"d");
        write(&folder.join("e"), b"");
        symlink("b/d", folder.join("f")).unwrap();
    });
    for checkpointed in [true, false] {
        for deliveries in 0.. {
            let target = format!("out-{checkpointed}-{deliveries}");
            let mut fetch = pair.open(&target).unwrap();
            let (before, ready) = drive(&mut fetch, &pair.serving(), deliveries).unwrap();
            if checkpointed {
                fetch.checkpoint().unwrap();
            }
            fetch.kill();
            pair.guest = pair.guest.restart();
            let mut fetch = pair.open(&target).unwrap();
            let (after, _) = drive(&mut fetch, &pair.serving(), usize::MAX).unwrap();
            let fetched = fetch.finish().unwrap();
            pair.assert_equal(&target);
            if checkpointed {
                let pages: u64 = 4096;
                assert!(
                    before + after <= pair.shared.total_size + pages,
                    "{before} and {after} at {deliveries}"
                );
            }
            // So that the next one does not find the chunks here.
            pair.guest.store.forget(fetched.tree).unwrap();
            fs::remove_dir_all(pair.guest.path(&target)).unwrap();
            if ready {
                break;
            }
        }
    }
}

#[test]
fn bytes_that_changed_while_the_agent_was_away_are_fetched_again() {
    let mut pair = Pair::new(|folder| write(&folder.join("a"), &noise(1, 900_000)));
    let mut fetch = pair.open("out").unwrap();
    drive(&mut fetch, &pair.serving(), 6).unwrap();
    drop(fetch);
    let partial = pair.guest.path("out.partial/a");
    let mut bytes = fs::read(&partial).unwrap();
    bytes[10] ^= 1;
    fs::write(&partial, bytes).unwrap();
    pair.guest = pair.guest.restart();
    pair.fetch("out").unwrap();
    pair.assert_equal("out");
}

#[test]
fn a_crash_between_moving_and_recording_is_noticed() {
    let mut pair = Pair::new(fill);
    let fetched = pair.fetch("out").unwrap();
    // As if the last step had not been recorded.
    pair.guest.store.unrecord(fetched.tree, &pair.guest.path("out.partial"));
    pair.guest = pair.guest.restart();
    assert_eq!(pair.guest.store.holding(&pair.shared.manifest).unwrap(), Holding::Partial);
    let mut fetch = pair.open("out").unwrap();
    assert_eq!(drive(&mut fetch, &HashMap::new(), 0).unwrap(), (0, true));
    assert_eq!(fetch.finish().unwrap(), fetched);
    assert_eq!(pair.guest.store.holding(&pair.shared.manifest).unwrap(), Holding::Complete);
    let third = Agent::new();
    let manifest = pair.shared.manifest;
    third.fetch(&Serving(&pair.guest.store, manifest), &manifest, &third.path("out")).unwrap();
}

#[test]
fn a_finished_fetch_needs_nobody_as_long_as_it_is_there() {
    let pair = Pair::new(fill);
    let first = pair.fetch("out").unwrap();
    let mut again = pair.open("out").unwrap();
    assert_eq!(drive(&mut again, &HashMap::new(), 0).unwrap(), (0, true));
    assert_eq!(again.finish().unwrap(), first);
    // Another folder of the same name is somebody's.
    fs::rename(pair.guest.path("out"), pair.guest.path("moved")).unwrap();
    write(&pair.guest.path("out/precious"), b"x");
    assert_eq!(pair.open("out").err().unwrap().reason(), Reason::TargetExists);
    fs::remove_dir_all(pair.guest.path("out")).unwrap();
    pair.fetch("out").unwrap();
    pair.assert_equal("out");
}

#[test]
fn a_new_version_moves_only_what_changed() {
    let mut pair = Pair::new(|folder| {
        fill(folder);
        write(&folder.join("large"), &noise(5, 8_000_000));
    });
    pair.fetch("v1").unwrap();
    let mut large = noise(5, 8_000_000);
    large.splice(3_000_000..3_000_000, *b"inserted");
    write(&pair.host.path("one/large"), &large);
    fs::rename(pair.host.path("one/big"), pair.host.path("one/renamed")).unwrap();
    pair.shared = pair.host.publish(&pair.host.path("one")).unwrap();
    let mut fetch = pair.open("v2").unwrap();
    let (moved, _) = drive(&mut fetch, &pair.serving(), usize::MAX).unwrap();
    let progress = fetch.progress();
    assert_eq!((progress.phase, progress.bytes_done), (Phase::Ready, pair.shared.total_size));
    assert!(moved < 600_000, "{moved}");
    assert!(progress.bytes_local > 8_000_000, "{progress:?}");
    fetch.finish().unwrap();
    pair.assert_equal("v2");
}

#[test]
fn wrong_bytes_are_never_written() {
    let pair = Pair::new(fill);
    let mut fetch = pair.open("out").unwrap();
    let mut lied = 0;
    loop {
        match fetch.next(1 << 20).unwrap() {
            Next::Want(list) => {
                for want in list {
                    for wrong in [&b""[..], b"lies", &[0; 70_000]] {
                        let error = fetch.deliver(&want.digest, wrong).unwrap_err();
                        assert_eq!(error.reason(), Reason::ChunkCorrupt);
                        assert!(!error.is_final());
                        lied += 1;
                    }
                    fetch.lost(&[want.digest]);
                    let Next::Want(again) = fetch.next(1).unwrap() else { panic!("it is wanted again") };
                    assert!(again.iter().any(|w| w.digest == want.digest), "and first");
                    for want in again {
                        let right = pair.serving().read(&want.digest).unwrap();
                        assert_eq!(fetch.deliver(&want.digest, &right).unwrap(), Delivered::Taken);
                        assert_eq!(fetch.deliver(&want.digest, &right).unwrap(), Delivered::Unasked);
                    }
                }
            }
            Next::Busy | Next::Wait => {}
            Next::Ready => break,
        }
    }
    assert!(lied > 20);
    assert_eq!(fetch.deliver(&Digest::of(b"x"), b"x").unwrap(), Delivered::Unasked);
    fetch.finish().unwrap();
    pair.assert_equal("out");
}

#[test]
fn what_was_lost_is_wanted_again() {
    let pair = Pair::new(fill);
    let mut fetch = pair.open("out").unwrap();
    let Next::Want(root) = fetch.next(1).unwrap() else { panic!("the root is wanted") };
    assert_eq!(root, [Want { digest: pair.shared.manifest, size: None }]);
    assert_eq!(fetch.next(1).unwrap(), Next::Wait);
    fetch.lost(&[pair.shared.manifest, Digest::of(b"never asked")]);
    assert_eq!(fetch.next(1).unwrap(), Next::Want(root));
    fetch.deliver(&pair.shared.manifest, &pair.serving().read(&pair.shared.manifest).unwrap()).unwrap();
    assert_eq!(fetch.next(0).unwrap(), Next::Wait);
    assert_eq!(fetch.finish().unwrap_err().reason(), Reason::Internal);
}

#[test]
fn what_a_fetch_has_is_served_before_it_is_complete() {
    let pair = Pair::new(|folder| write(&folder.join("a"), &noise(1, 900_000)));
    let mut fetch = pair.open("out").unwrap();
    drive(&mut fetch, &pair.serving(), 6).unwrap();
    fetch.checkpoint().unwrap();
    let manifest = pair.shared.manifest;
    assert_eq!(pair.guest.store.holding(&manifest).unwrap(), Holding::Partial);
    assert!(Serving(&pair.guest.store, manifest).read(&manifest).is_some());
    let first = p2psb_proto::model::chunking::Chunker::new(p2psb_proto::model::chunking::ChunkClass::Small)
        .cut(&noise(1, 900_000));
    let digest = Digest::of(&noise(1, 900_000)[..first]);
    assert_eq!(Serving(&pair.guest.store, manifest).read(&digest).unwrap().len(), first);
}

#[test]
fn a_foreign_target_stays_untouched() {
    let pair = Pair::new(fill);
    let reason = |target: &str| pair.open(target).err().unwrap().reason();
    write(&pair.guest.path("full/precious"), b"x");
    write(&pair.guest.path("file"), b"x");
    write(&pair.guest.path("begun.partial/precious"), b"x");
    symlink("full", pair.guest.path("link")).unwrap();
    for target in ["full", "file", "begun", "link"] {
        assert_eq!(reason(target), Reason::TargetExists, "{target}");
    }
    assert_eq!(fs::read(pair.guest.path("full/precious")).unwrap(), b"x");
    assert_eq!(pair.guest.store.count("tree"), 0);
    only(&pair.guest, &["begun.partial", "file", "full", "link"]);
    // An empty folder is as good as none.
    fs::create_dir(pair.guest.path("empty")).unwrap();
    pair.fetch("empty").unwrap();
    pair.assert_equal("empty");
}

#[test]
fn a_target_that_appears_meanwhile_is_not_replaced() {
    let pair = Pair::new(fill);
    let mut fetch = pair.open("out").unwrap();
    drive(&mut fetch, &pair.serving(), usize::MAX).unwrap();
    write(&pair.guest.path("out/precious"), b"x");
    assert_eq!(fetch.finish().unwrap_err().reason(), Reason::TargetExists);
    assert_eq!(fs::read(pair.guest.path("out/precious")).unwrap(), b"x");
    // Once it is gone, nothing needs to be fetched again.
    fs::remove_dir_all(pair.guest.path("out")).unwrap();
    let mut fetch = pair.open("out").unwrap();
    assert_eq!(drive(&mut fetch, &HashMap::new(), 0).unwrap(), (0, true));
    fetch.finish().unwrap();
    pair.assert_equal("out");
}

#[test]
fn two_fetches_never_share_a_target() {
    let pair = Pair::new(fill);
    let first = pair.open("out").unwrap();
    assert!(matches!(pair.open("out"), Err(FetchError::TargetBusy { .. })));
    drop(first);
    drop(pair.open("out").unwrap());
    let other = Agent::new();
    write(&other.path("two/x"), b"x");
    let other = other.publish(&other.path("two")).unwrap();
    // Of another manifest, while this one is unfinished.
    let error = pair.guest.open(&other.manifest, &pair.guest.path("out")).err().unwrap();
    assert_eq!(error.reason(), Reason::TargetExists);
    assert!(error.to_string().contains("out.partial"), "{error}");
    assert!(give_up(Arc::clone(&pair.guest.store), &pair.guest.path("out")).unwrap());
    assert!(!give_up(Arc::clone(&pair.guest.store), &pair.guest.path("out")).unwrap(), "nothing is left");
    only(&pair.guest, &[]);
    drop(pair.guest.open(&other.manifest, &pair.guest.path("out")).unwrap());
}

#[test]
fn a_target_that_may_not_be_written_is_refused() {
    let pair = Pair::new(fill);
    let manifest = pair.shared.manifest;
    as_nobody(|| {
        let guest = Agent::new();
        fs::create_dir(guest.path("locked")).unwrap();
        fs::set_permissions(guest.path("locked"), fs::Permissions::from_mode(0o500)).unwrap();
        for target in ["locked/out", "locked/deeper/out"] {
            let error = guest.open(&manifest, &guest.path(target)).err().unwrap();
            assert_eq!(error.reason(), Reason::TargetUnwritable);
            assert!(error.to_string().contains("locked"), "{error}");
        }
        assert_eq!(guest.store.count("tree"), 0);
    });
}

#[test]
fn a_target_below_a_file_is_refused() {
    let pair = Pair::new(fill);
    write(&pair.guest.path("file"), b"x");
    assert_eq!(pair.open("file/out").err().unwrap().reason(), Reason::TargetUnwritable);
    let relative = pair.guest.open(&pair.shared.manifest, Path::new("out")).err().unwrap();
    assert_eq!(relative.reason(), Reason::TargetUnwritable);
}

#[test]
fn a_full_disk_stops_the_fetch_until_there_is_room() {
    let pair = Pair::new(|folder| {
        (0..20).for_each(|i| write(&folder.join(i.to_string()), &noise(i, 200_000)));
    });
    let disk = pair.guest.path("disk");
    fs::create_dir(&disk).unwrap();
    with_small_disk(&disk, "size=5m", || {
        write(&disk.join("ballast"), &noise(99, 3_000_000));
        let target = disk.join("out");
        let manifest = pair.shared.manifest;
        let error = pair.guest.fetch(&pair.serving(), &manifest, &target).unwrap_err();
        assert_eq!(error.reason(), Reason::DiskFull);
        assert!(error.to_string().contains("out.partial"), "{error}");
        assert!(!target.exists());
        fs::remove_file(disk.join("ballast")).unwrap();
        let mut fetch = pair.guest.open(&manifest, &target).unwrap();
        let (moved, _) = drive(&mut fetch, &pair.serving(), usize::MAX).unwrap();
        assert!(moved < 3_000_000, "{moved}");
        fetch.finish().unwrap();
        assert_eq!(snapshot(&target), snapshot(&pair.host.path("one")));
    });
}

#[test]
fn a_symlink_planted_meanwhile_is_not_followed() {
    let pair = Pair::new(fill);
    fs::create_dir(pair.guest.path("outside")).unwrap();
    let mut fetch = pair.open("out").unwrap();
    // Until folders are there.
    while !pair.guest.path("out.partial/awkward").exists() {
        drive(&mut fetch, &pair.serving(), 1).unwrap();
    }
    for name in ["again", "awkward", "a", "bin"] {
        let folder = pair.guest.path("out.partial").join(name);
        fs::remove_dir_all(&folder).unwrap();
        symlink(pair.guest.path("outside"), &folder).unwrap();
    }
    let error = drive(&mut fetch, &pair.serving(), usize::MAX).unwrap_err();
    assert_eq!(error.reason(), Reason::TargetUnwritable);
    assert!(snapshot(&pair.guest.path("outside")).is_empty());
}

#[test]
fn a_file_that_changed_after_publishing_is_refused_and_reported() {
    let pair = Pair::new(|folder| {
        write(&folder.join("a"), &noise(1, 900_000));
        write(&folder.join("b"), b"unchanged");
    });
    let mut changed = noise(1, 900_000);
    changed[899_999] ^= 1;
    write(&pair.host.path("one/a"), &changed);
    let host = pair.serving();
    let mut fetch = pair.open("out").unwrap();
    let mut missing = Vec::new();
    loop {
        match fetch.next(1 << 20).unwrap() {
            Next::Want(list) => {
                for want in list {
                    match host.read(&want.digest) {
                        Some(bytes) => drop(fetch.deliver(&want.digest, &bytes).unwrap()),
                        None => missing.push(want.digest),
                    }
                }
            }
            Next::Busy => {}
            Next::Wait => break,
            Next::Ready => panic!("a chunk is missing"),
        }
    }
    assert_eq!(missing.len(), 1);
    let problems = pair.host.store.take_new_problems();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].path.ends_with("one/a"), "{problems:?}");
    assert_eq!(pair.host.store.problems(pair.shared.tree, 9).unwrap(), problems);
    assert_eq!(pair.host.store.tree(pair.shared.tree).unwrap().unwrap().problems, 1);
    assert!(pair.host.store.take_new_problems().is_empty());
    // A file that is only away, comes back.
    fs::rename(pair.host.path("one/b"), pair.host.path("b")).unwrap();
    assert!(host.read(&Digest::of(b"unchanged")).is_none());
    assert_eq!(pair.host.store.problems(pair.shared.tree, 9).unwrap().len(), 2);
    fs::rename(pair.host.path("b"), pair.host.path("one/b")).unwrap();
    assert!(host.read(&Digest::of(b"unchanged")).is_some());
    pair.host.store.release(&pair.shared.manifest);
    let agent = pair.host.restart();
    assert_eq!(agent.store.problems(pair.shared.tree, 9).unwrap().len(), 1);
}

/// A host with a manifest of these entries, which it encoded without checking them. All files hold `abc`.
fn forged(entries: &[wire::Entry]) -> (Digest, HashMap<Digest, Vec<u8>>) {
    let files = entries.iter().filter(|e| e.kind() == wire::EntryKind::File);
    let page = wire::EntryPage { entries: entries.to_vec() }.encode_to_vec();
    let page_ref = PageRef::to(&page).unwrap();
    let root = wire::ManifestRoot {
        format: 1,
        digest_algorithm: 1,
        total_size: files.clone().map(|f| f.size).sum(),
        file_count: files.clone().count() as u64,
        entry_count: entries.len() as u64,
        chunk_count: files.count() as u64,
        index_levels: 0,
        pages: vec![wire::PageRef { digest: page_ref.digest().to_wire(), size: page_ref.size() }],
    }
    .encode_to_vec();
    let digest = Digest::of(&root);
    let have = [root, page, b"abc".to_vec()].map(|bytes| (Digest::of(&bytes), bytes));
    (digest, HashMap::from(have))
}

fn entry(path: &str, kind: wire::EntryKind, link: &str) -> wire::Entry {
    let (size, digest) = match kind {
        wire::EntryKind::File => (3, Digest::of(b"abc").to_wire()),
        _ => (0, bytes::Bytes::new()),
    };
    wire::Entry {
        path: path.into(),
        kind: kind.into(),
        size,
        file_digest: digest,
        link_target: link.into(),
        ..wire::Entry::default()
    }
}

#[test]
fn hostile_manifests_leave_nothing() {
    use wire::EntryKind::{Directory, File, Symlink};
    for (entries, reason) in [
        (vec![entry("../x", File, "")], Reason::PathInvalid),
        (vec![entry("/tmp/x", File, "")], Reason::PathInvalid),
        (vec![entry("a", Directory, ""), entry("a/../../x", File, "")], Reason::PathInvalid),
        (vec![entry("l", Symlink, "../x")], Reason::SymlinkEscapes),
        (vec![entry("l", Symlink, "/etc")], Reason::SymlinkEscapes),
        (vec![entry("l", Symlink, "."), entry("l/x", File, "")], Reason::ManifestInvalid),
        (vec![entry("b", File, ""), entry("a", File, "")], Reason::ManifestInvalid),
        (vec![entry("a", File, ""), entry("a", Directory, "")], Reason::ManifestInvalid),
        (vec![entry(&"x".repeat(300), File, "")], Reason::PathUnrepresentable),
        (
            vec![entry("a", Directory, ""), entry(&format!("a/{}", "x".repeat(256)), File, "")],
            Reason::PathUnrepresentable,
        ),
    ] {
        let agent = Agent::new();
        let (manifest, host) = forged(&entries);
        let error = agent.fetch(&host, &manifest, &agent.path("new/out")).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.is_final());
        only(&agent, &[]);
        for table in ["tree", "page", "chunk", "file"] {
            assert_eq!(agent.store.count(table), 0, "{table}");
        }
    }
}

#[test]
fn a_root_that_is_none_is_refused() {
    let agent = Agent::new();
    let root = b"not a root".to_vec();
    let manifest = Digest::of(&root);
    let error = agent.fetch(&HashMap::from([(manifest, root)]), &manifest, &agent.path("out")).unwrap_err();
    assert_eq!(error.reason(), Reason::ManifestInvalid);
    only(&agent, &[]);
}

#[test]
fn a_chunk_of_another_length_than_the_manifest_says_is_its_fault() {
    let mut file = entry("a", wire::EntryKind::File, "");
    file.size = 4;
    let agent = Agent::new();
    let (manifest, host) = forged(&[file]);
    let mut fetch = agent.open(&manifest, &agent.path("out")).unwrap();
    let mut error = None;
    while error.is_none() {
        match fetch.next(1 << 20).unwrap() {
            Next::Want(list) => {
                error = list.iter().find_map(|want| fetch.deliver(&want.digest, &host[&want.digest]).err());
            }
            Next::Busy => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(error.unwrap().reason(), Reason::ManifestInvalid);
    only(&agent, &[]);
}

#[test]
fn a_disk_that_takes_two_names_for_one_is_asked_before_anything_is_written() {
    let pair = Pair::new(fill);
    let reserve = |clash: Option<&str>| {
        let mut fetch = pair.open("out").unwrap();
        fetch.site.folder.be_careful();
        if let Some(clash) = clash {
            // As if another path had folded to it.
            write(&pair.guest.path("out.partial").join(clash), b"");
        }
        drive(&mut fetch, &pair.serving(), usize::MAX).map(|_| fetch)
    };
    for clash in ["empty", "dangling", "a-b"] {
        let error = reserve(Some(clash)).err().unwrap();
        assert_eq!(error.reason(), Reason::PathUnrepresentable);
        assert!(error.to_string().contains(clash), "{error}");
        only(&pair.guest, &[]);
    }
    reserve(None).unwrap().finish().unwrap();
    pair.assert_equal("out");
}

#[test]
fn names_reserved_by_a_killed_run_are_no_clash() {
    let mut pair = Pair::new(fill);
    let mut fetch = pair.open("out").unwrap();
    fetch.site.folder.be_careful();
    drive(&mut fetch, &pair.serving(), 2).unwrap();
    while fetch.progress().phase == Phase::Manifest {
        fetch.next(0).unwrap();
    }
    assert!(pair.guest.path("out.partial/empty").exists());
    fetch.kill();
    pair.guest = pair.guest.restart();
    pair.fetch("out").unwrap();
    pair.assert_equal("out");
}

/// A tree: paths with contents.
fn trees() -> impl Strategy<Value = Vec<(String, Option<Vec<u8>>, bool)>> {
    let part = "[a-cA\u{e9}\u{301}. \\-\n]{1,4}".prop_filter("no dots alone", |p| p != "." && p != "..");
    let path = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    let size = prop_oneof![Just(0usize), 1usize..2000, 60_000usize..400_000];
    let content = (size, 0u64..4, any::<bool>())
        .prop_map(|(size, seed, zero)| if zero { vec![0; size] } else { noise(seed, size) });
    prop::collection::vec((path, prop::option::of(content), any::<bool>()), 0..12)
}

/// Makes such a tree.
fn grow(folder: &Path, tree: &[(String, Option<Vec<u8>>, bool)]) {
    for (path, content, executable) in tree {
        let path = folder.join(path);
        // A file may be in the way of a folder: then it stays.
        let Some(content) = content else {
            drop(fs::create_dir_all(&path));
            continue;
        };
        if fs::create_dir_all(path.parent().unwrap()).is_err() || path.is_dir() {
            continue;
        }
        fs::write(&path, content).unwrap();
        let mode = if *executable { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_tree_is_fetched_as_it_was_published(tree in trees(), kill in 0usize..40) {
        let mut pair = Pair::new(|folder| grow(folder, &tree));
        let mut fetch = pair.open("out").unwrap();
        drive(&mut fetch, &pair.serving(), kill).unwrap();
        fetch.kill();
        pair.guest = pair.guest.restart();
        pair.fetch("out").unwrap();
        pair.assert_equal("out");
    }
}

#[test]
fn what_vanished_with_its_disk_is_not_begun_anew_by_itself() {
    let pair = Pair::new(fill);
    let go_on = |target: &str| {
        let (store, target) = (Arc::clone(&pair.guest.store), pair.guest.path(target));
        Fetch::open(store, pair.shared.manifest, &target, Start::GoingOn)
    };
    // What was never begun may begin.
    let mut fetch = go_on("usb/out").unwrap();
    drive(&mut fetch, &pair.serving(), 5).unwrap();
    drop(fetch);
    fs::rename(pair.guest.path("usb"), pair.guest.path("unplugged")).unwrap();
    for mount_point in [false, true] {
        if mount_point {
            fs::create_dir(pair.guest.path("usb")).unwrap();
        }
        let error = go_on("usb/out").err().unwrap();
        assert_eq!((error.reason(), error.remedy()), (Reason::TargetUnwritable, Some(Remedy::Change)));
        assert!(error.to_string().contains("usb/out is gone"), "{error}");
    }
    fs::remove_dir(pair.guest.path("usb")).unwrap();
    fs::rename(pair.guest.path("unplugged"), pair.guest.path("usb")).unwrap();
    let mut fetch = go_on("usb/out").unwrap();
    drive(&mut fetch, &pair.serving(), usize::MAX).unwrap();
    fetch.finish().unwrap();
    fs::rename(pair.guest.path("usb"), pair.guest.path("unplugged")).unwrap();
    assert!(matches!(go_on("usb/out"), Err(FetchError::Gone { .. })));
    // Who asks for it gets it.
    pair.fetch("usb/out").unwrap();
    pair.assert_equal("usb/out");
}

#[test]
fn what_was_asked_for_anew_goes_on_by_itself_although_it_could_not_begin() {
    let pair = Pair::new(fill);
    as_nobody(|| {
        let guest = Agent::new();
        let (target, manifest) = (guest.path("folder/out"), pair.shared.manifest);
        guest.fetch(&pair.serving(), &manifest, &target).unwrap();
        fs::remove_dir_all(&target).unwrap();
        let mode =
            |mode| fs::set_permissions(guest.path("folder"), fs::Permissions::from_mode(mode)).unwrap();
        mode(0o500);
        assert_eq!(guest.open(&manifest, &target).err().unwrap().remedy(), Some(Remedy::Change));
        mode(0o700);
        let mut fetch = Fetch::open(Arc::clone(&guest.store), manifest, &target, Start::GoingOn).unwrap();
        drive(&mut fetch, &pair.serving(), usize::MAX).unwrap();
        fetch.finish().unwrap();
    });
}

#[test]
fn errors_say_whether_a_disk_can_be_helped() {
    let unwritable =
        |error: i32| FetchError::at(Path::new("/x"), std::io::Error::from_raw_os_error(error)).remedy();
    for error in [libc::ENOSPC, libc::EDQUOT] {
        assert_eq!(unwritable(error), Some(Remedy::TargetRoom));
    }
    for error in [libc::EROFS, libc::EACCES, libc::EPERM, libc::EIO, libc::ESTALE, libc::ENODEV] {
        assert_eq!(unwritable(error), Some(Remedy::Change));
    }
    for error in [libc::ENAMETOOLONG, libc::ENOTDIR, libc::ELOOP, libc::EINVAL, libc::EFBIG] {
        assert_eq!(unwritable(error), None);
    }
    assert_eq!(FetchError::from(StoreError::DiskFull).remedy(), Some(Remedy::CatalogueRoom));
    assert_eq!(FetchError::exists(Path::new("/x")).remedy(), None);
}

#[test]
fn a_disk_that_became_read_only_is_noticed_before_anything_is_read_again() {
    let pair = Pair::new(|folder| write(&folder.join("a"), &noise(1, 900_000)));
    let disk = pair.guest.path("disk");
    fs::create_dir(&disk).unwrap();
    with_small_disk(&disk, "size=5m", || {
        let (target, manifest) = (disk.join("out"), pair.shared.manifest);
        let mut fetch = pair.guest.open(&manifest, &target).unwrap();
        drive(&mut fetch, &pair.serving(), 6).unwrap();
        drop(fetch);
        remount(&disk, true);
        let error = pair.guest.open(&manifest, &target).err().unwrap();
        assert_eq!((error.reason(), error.remedy()), (Reason::TargetUnwritable, Some(Remedy::Change)));
        remount(&disk, false);
        pair.guest.fetch(&pair.serving(), &manifest, &target).unwrap();
        assert_eq!(snapshot(&target), snapshot(&pair.host.path("one")));
    });
}
