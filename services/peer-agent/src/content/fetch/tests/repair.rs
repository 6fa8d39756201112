//! Fetching into a folder that was fetched before and damaged since.

use super::*;

/// Everything that can happen to a folder: returns what the user added.
fn damage(folder: &Path) -> BTreeMap<Vec<u8>, Node> {
    fs::remove_file(folder.join("big")).unwrap();
    let mut bytes = fs::read(folder.join("again/big")).unwrap();
    bytes[400_000] ^= 1;
    fs::write(folder.join("again/big"), bytes).unwrap();
    fs::write(folder.join("a.b"), b"").unwrap();
    fs::write(folder.join("empty"), b"not any more").unwrap();
    fs::remove_dir_all(folder.join("awkward")).unwrap();
    fs::remove_dir(folder.join("hollow/inside")).unwrap();
    fs::set_permissions(folder.join("bin/run"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(folder.join("a/b-c"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(folder.join("dangling")).unwrap();
    fs::remove_file(folder.join("to-folder")).unwrap();
    symlink("elsewhere", folder.join("to-folder")).unwrap();
    // What the user put beside.
    write(&folder.join("mine"), b"precious");
    write(&folder.join("a/mine/deep"), b"precious, too");
    symlink("mine", folder.join("a/link")).unwrap();
    let added = ["mine", "a/mine", "a/mine/deep", "a/link"].map(|name| name.as_bytes().to_vec());
    let now = snapshot(folder);
    added.into_iter().map(|name| (name.clone(), now[&name].clone())).collect()
}

/// The folder holds what was published, and what the user added.
fn assert_whole(pair: &Pair, target: &str, added: &BTreeMap<Vec<u8>, Node>) {
    let mut here = snapshot(&pair.guest.path(target));
    for (name, node) in added {
        assert_eq!(here.remove(name).as_ref(), Some(node), "{}", name.escape_ascii());
    }
    let there = snapshot(&pair.host.path("one"));
    assert!(there.keys().eq(here.keys()), "{:?} and {:?} differ", there.keys(), here.keys());
    for (name, node) in &there {
        assert!(here[name] == *node, "{} differs", name.escape_ascii());
    }
}

#[test]
fn what_was_damaged_since_is_made_whole_and_what_was_added_stays() {
    let pair = Pair::new(fill);
    pair.fetch("out").unwrap();
    let added = damage(&pair.guest.path("out"));
    pair.fetch("out").unwrap();
    assert_whole(&pair, "out", &added);
    only(&pair.guest, &["out"]);
}

#[test]
fn what_was_repaired_is_counted_once() {
    let pair = Pair::new(fill);
    assert_eq!(pair.fetch("out").unwrap().repaired, 0);
    damage(&pair.guest.path("out"));
    // big, again/big, a.b, empty, eight below awkward, two modes, two links; folders are made again without being counted.
    assert_eq!(pair.fetch("out").unwrap().repaired, 4 + 8 + 2 + 2);
    assert_eq!(pair.fetch("out").unwrap().repaired, 0);
}

#[test]
fn a_folder_that_is_as_it_was_is_only_looked_at() {
    let pair = Pair::new(fill);
    let first = pair.fetch("out").unwrap();
    let look_again = || {
        let mut again = pair.open("out").unwrap();
        assert_eq!(drive(&mut again, &HashMap::new(), 0).unwrap(), (0, true));
        let progress = again.progress();
        assert_eq!((progress.bytes_done, progress.bytes_local), (progress.bytes_total, progress.bytes_total));
        assert_eq!(again.finish().unwrap(), first);
    };
    let inode = |name: &str| fs::metadata(pair.guest.path("out").join(name)).unwrap().ino();
    let before = inode("big");
    look_again();
    // Another time, and another inode: the content is compared, and is the same.
    let out = pair.guest.path("out");
    fs::File::open(out.join("again/big")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    fs::copy(out.join("a.b"), out.join("copy")).unwrap();
    fs::rename(out.join("copy"), out.join("a.b")).unwrap();
    look_again();
    assert_eq!(inode("big"), before);
    only(&pair.guest, &["out"]);
    // Nothing may be written there, and nothing needs to be.
    let mode = |mode| fs::set_permissions(&out, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    look_again();
    mode(0o755);
}

#[test]
fn a_repair_moves_only_what_is_damaged() {
    let pair = Pair::new(|folder| {
        write(&folder.join("large"), &noise(5, 8_000_000));
        write(&folder.join("z"), &noise(6, 1_000_000));
    });
    pair.fetch("out").unwrap();
    let large = pair.guest.path("out/large");
    let mut bytes = fs::read(&large).unwrap();
    bytes[4_000_000] ^= 1;
    fs::write(&large, bytes).unwrap();
    let mut fetch = pair.open("out").unwrap();
    let (moved, _) = drive(&mut fetch, &pair.serving(), usize::MAX).unwrap();
    assert!(moved > 0 && moved <= 256 << 10, "{moved}");
    let progress = fetch.progress();
    assert_eq!((progress.phase, progress.bytes_done), (Phase::Ready, pair.shared.total_size));
    assert_eq!(progress.bytes_total - progress.bytes_local, moved);
    assert_eq!(fetch.finish().unwrap().repaired, 1);
    pair.assert_equal("out");
}

/// Kills the repair after every number of deliveries: nothing of it is seen before it is whole.
#[test]
fn a_repair_killed_at_any_step_changes_nothing_before_it_is_complete() {
    let mut pair = Pair::new(|folder| {
        write(&folder.join("a"), &noise(1, 900_000));
        write(&folder.join("b/c"), &noise(2, 200_000));
        write(&folder.join("b/d"), b"d");
        symlink("b/d", folder.join("f")).unwrap();
    });
    for checkpointed in [true, false] {
        for deliveries in 0.. {
            let target = format!("out-{checkpointed}-{deliveries}");
            let out = pair.guest.path(&target);
            let fetched = pair.fetch(&target).unwrap();
            fs::write(out.join("a"), noise(3, 900_000)).unwrap();
            fs::remove_dir_all(out.join("b")).unwrap();
            fs::remove_file(out.join("f")).unwrap();
            write(&out.join("mine"), b"precious");
            let damaged = snapshot(&out);

            let mut fetch = pair.open(&target).unwrap();
            let (before, ready) = drive(&mut fetch, &pair.serving(), deliveries).unwrap();
            if checkpointed {
                fetch.checkpoint().unwrap();
            }
            fetch.kill();
            pair.guest = pair.guest.restart();
            assert_eq!(snapshot(&out), damaged, "at {deliveries}");
            let mut fetch = pair.open(&target).unwrap();
            let (after, _) = drive(&mut fetch, &pair.serving(), usize::MAX).unwrap();
            if checkpointed {
                assert!(before + after <= pair.shared.total_size, "{before} and {after} at {deliveries}");
            }
            assert_eq!(fetch.finish().unwrap().repaired, 4);
            let mine = (b"mine".to_vec(), Node::File { bytes: b"precious".to_vec(), executable: false });
            assert_whole(&pair, &target, &BTreeMap::from([mine]));
            assert_eq!(pair.guest.store.count("tree"), 1);
            // So that the next one does not find the chunks here.
            pair.guest.store.forget(fetched.tree).unwrap();
            fs::remove_dir_all(&out).unwrap();
            if ready {
                break;
            }
        }
    }
}

#[test]
fn a_repair_that_was_killed_between_two_files_goes_on() {
    let mut pair = Pair::new(fill);
    pair.fetch("out").unwrap();
    let added = damage(&pair.guest.path("out"));
    let mut fetch = pair.open("out").unwrap();
    drive(&mut fetch, &pair.serving(), usize::MAX).unwrap();
    fetch.checkpoint().unwrap();
    fetch.kill();
    // As if one had been moved and not yet recorded, and one had been brought back by the user.
    let moved =
        |name: &str| fs::rename(pair.guest.path("out.partial").join(name), pair.guest.path("out").join(name));
    moved("big").unwrap();
    fs::write(pair.guest.path("out/a.b"), b"a.b").unwrap();
    pair.guest = pair.guest.restart();
    assert_eq!(pair.fetch("out").unwrap().repaired, 4 + 8 + 2 + 2 - 2);
    assert_whole(&pair, "out", &added);
    only(&pair.guest, &["out"]);
}

#[test]
fn a_folder_of_the_user_in_the_place_of_a_file_is_not_removed() {
    let pair = Pair::new(fill);
    pair.fetch("out").unwrap();
    for name in ["big", "dangling"] {
        let path = pair.guest.path("out").join(name);
        fs::remove_file(&path).unwrap();
        write(&path.join("mine"), b"precious");
        let error = pair.fetch("out").unwrap_err();
        assert_eq!(error.reason(), Reason::TargetExists);
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(fs::read(path.join("mine")).unwrap(), b"precious");
        only(&pair.guest, &["out"]);
        fs::remove_file(path.join("mine")).unwrap();
        // An empty one holds nothing.
        assert_eq!(pair.fetch("out").unwrap().repaired, 1);
    }
    pair.assert_equal("out");
}

#[test]
fn what_stands_in_the_place_of_a_folder_makes_room_and_no_symlink_is_followed() {
    let pair = Pair::new(fill);
    pair.fetch("out").unwrap();
    let out = pair.guest.path("out");
    write(&pair.guest.path("outside/big"), b"precious");
    for (name, linked) in [("again", true), ("awkward", false), ("hollow", true)] {
        fs::remove_dir_all(out.join(name)).unwrap();
        if linked {
            symlink(pair.guest.path("outside"), out.join(name)).unwrap();
        } else {
            fs::write(out.join(name), b"in the way").unwrap();
        }
    }
    pair.fetch("out").unwrap();
    pair.assert_equal("out");
    assert_eq!(fs::read(pair.guest.path("outside/big")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(pair.guest.path("outside")).unwrap().count(), 1);
}

#[test]
fn what_was_repaired_is_served_again() {
    let mut pair = Pair::new(|folder| write(&folder.join("a"), &noise(1, 900_000)));
    let fetched = pair.fetch("out").unwrap();
    let manifest = pair.shared.manifest;
    let serve = |guest: &Agent| {
        let third = Agent::new();
        let mut fetch = third.open(&manifest, &third.path("out")).unwrap();
        let host = Serving(&guest.store, manifest);
        loop {
            match fetch.next(1 << 20).unwrap() {
                Next::Want(list) => list.iter().for_each(|want| {
                    if let Some(bytes) = host.read(&want.digest) {
                        fetch.deliver(&want.digest, &bytes).unwrap();
                    }
                }),
                Next::Busy => {}
                Next::Wait => return false,
                Next::Ready => return true,
            }
        }
    };
    // The time and the inode stay: only who reads it notices.
    let path = pair.guest.path("out/a");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[450_000] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::File::open(&path).unwrap().set_modified(before).unwrap();
    assert!(!serve(&pair.guest));
    assert_eq!(pair.guest.store.tree(fetched.tree).unwrap().unwrap().problems, 1);
    pair.guest = pair.guest.restart();
    assert_eq!(pair.fetch("out").unwrap().repaired, 1);
    assert_eq!(pair.guest.store.tree(fetched.tree).unwrap().unwrap().problems, 0);
    assert!(serve(&pair.guest));
    pair.assert_equal("out");
}

#[test]
fn a_repair_that_is_given_up_leaves_the_folder_as_it_was() {
    let pair = Pair::new(fill);
    pair.fetch("out").unwrap();
    damage(&pair.guest.path("out"));
    let damaged = snapshot(&pair.guest.path("out"));
    let mut fetch = pair.open("out").unwrap();
    drive(&mut fetch, &pair.serving(), 3).unwrap();
    assert!(pair.guest.path("out.partial").exists());
    drop(fetch);
    assert!(give_up(Arc::clone(&pair.guest.store), &pair.guest.path("out")).unwrap());
    assert_eq!(snapshot(&pair.guest.path("out")), damaged);
    only(&pair.guest, &["out"]);
    // And what somebody else put beside it is no reason to touch that.
    write(&pair.guest.path("out.partial/precious"), b"x");
    let error = pair.fetch("out").unwrap_err();
    assert!(error.reason() == Reason::TargetExists && error.to_string().contains("out.partial"), "{error}");
    assert_eq!(snapshot(&pair.guest.path("out")), damaged);
}

#[test]
fn a_full_disk_stops_a_repair_and_the_folder_stays_as_it_was() {
    let pair = Pair::new(|folder| {
        (0..10).for_each(|i| write(&folder.join(i.to_string()), &noise(i, 200_000)));
    });
    let disk = pair.guest.path("disk");
    fs::create_dir(&disk).unwrap();
    with_small_disk(&disk, "size=5m", || {
        let (target, manifest) = (disk.join("out"), pair.shared.manifest);
        pair.guest.fetch(&pair.serving(), &manifest, &target).unwrap();
        (0..10).for_each(|i| fs::write(target.join(i.to_string()), noise(50 + i, 200_000)).unwrap());
        write(&disk.join("ballast"), &noise(99, 2_000_000));
        let damaged = snapshot(&target);
        let error = pair.guest.fetch(&pair.serving(), &manifest, &target).unwrap_err();
        assert_eq!((error.reason(), error.remedy()), (Reason::DiskFull, Some(Remedy::TargetRoom)));
        assert_eq!(snapshot(&target), damaged);
        fs::remove_file(disk.join("ballast")).unwrap();
        assert_eq!(pair.guest.fetch(&pair.serving(), &manifest, &target).unwrap().repaired, 10);
        assert_eq!(snapshot(&target), snapshot(&pair.host.path("one")));
    });
}

/// Does something bad to what stands at `path`, below no symlink.
fn spoil(path: &Path, how: u8, outside: &Path) {
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    let remove = || {
        if metadata.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    };
    match how {
        0 => remove(),
        1 => {
            remove();
            symlink(outside, path).unwrap();
        }
        2 => {
            remove();
            fs::create_dir(path).unwrap();
        }
        3 => {
            remove();
            fs::write(path, b"spoilt").unwrap();
        }
        4 if metadata.is_file() => {
            let mut bytes = fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1);
            fs::write(path, bytes).unwrap();
        }
        5 if metadata.is_file() => {
            let mode = metadata.permissions().mode() ^ 0o111;
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        6 if metadata.is_file() => fs::File::options().append(true).open(path).unwrap().set_len(1).unwrap(),
        _ if metadata.is_file() => {
            fs::File::open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_damage_to_any_tree_is_repaired(
        tree in trees(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..6),
        kill in 0usize..12,
    ) {
        let mut pair = Pair::new(|folder| grow(folder, &tree));
        pair.fetch("out").unwrap();
        write(&pair.guest.path("outside/precious"), b"x");
        let out = pair.guest.path("out");
        for (which, how) in damage {
            let nodes: Vec<_> = snapshot(&out).into_keys().collect();
            if !nodes.is_empty() {
                let name = std::ffi::OsStr::from_bytes(which.get::<Vec<u8>>(&nodes));
                spoil(&out.join(name), how, &pair.guest.path("outside"));
            }
        }
        let mut fetch = pair.open("out").unwrap();
        drive(&mut fetch, &pair.serving(), kill).unwrap();
        fetch.kill();
        pair.guest = pair.guest.restart();
        pair.fetch("out").unwrap();
        pair.assert_equal("out");
        prop_assert_eq!(fs::read(pair.guest.path("outside/precious")).unwrap(), b"x");
        only(&pair.guest, &["out", "outside"]);
        prop_assert_eq!(pair.fetch("out").unwrap().repaired, 0);
    }
}
