//! Publishing as a whole.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use p2psb_proto::error::Reason;

use super::*;
use crate::content::testing::{Agent, as_nobody, fill, noise, publish_all, write};
use crate::store::Holding;

/// Nothing of a publish is left.
fn nothing_left(store: &Store) {
    for table in ["tree", "base", "page", "tree_page", "file", "chunk"] {
        assert_eq!(store.count(table), 0, "{table}");
    }
}

fn refused(agent: &Agent, input: &Path) -> PublishError {
    let error = agent.publish(input).unwrap_err();
    nothing_left(&agent.store);
    error
}

#[test]
fn equal_folders_give_equal_manifests() {
    let agent = Agent::new();
    let (one, two) = (agent.path("one"), agent.path("elsewhere/two"));
    fill(&one);
    fs::create_dir_all(&two).unwrap();
    fill(&two);
    let first = agent.publish(&one).unwrap();
    let second = agent.publish(&two).unwrap();
    assert_eq!(first.manifest, second.manifest);
    assert_ne!(first.tree, second.tree);
    assert_eq!(agent.store.holding(&first.manifest).unwrap(), Holding::Complete);
    let tree = agent.store.tree(first.tree).unwrap().unwrap();
    assert_eq!(tree.path, one.canonicalize().unwrap());
    assert_eq!((tree.total_size, tree.file_count), (first.total_size, first.file_count));
}

#[test]
fn publishing_again_replaces_the_same_content() {
    let agent = Agent::new();
    fill(&agent.path("one"));
    let first = agent.publish(&agent.path("one")).unwrap();
    let chunks = agent.store.count("chunk");
    let second = agent.publish(&agent.path("one")).unwrap();
    assert_eq!(first.manifest, second.manifest);
    assert_eq!(agent.store.trees(9).unwrap().len(), 1);
    assert_eq!(agent.store.count("chunk"), chunks);
    write(&agent.path("one/more"), b"more");
    let third = agent.publish(&agent.path("one")).unwrap();
    assert_ne!(first.manifest, third.manifest);
    assert_eq!(agent.store.trees(9).unwrap().len(), 2);
}

#[test]
fn an_empty_folder_is_a_package_too() {
    let agent = Agent::new();
    fs::create_dir(agent.path("none")).unwrap();
    let published = agent.publish(&agent.path("none")).unwrap();
    assert_eq!((published.entry_count, published.total_size), (0, 0));
}

#[test]
fn several_paths_become_the_top() {
    let agent = Agent::new();
    fill(&agent.path("x/one"));
    write(&agent.path("y/file"), b"file");
    let inputs = [agent.path("x/one"), agent.path("y/file")];
    let both = publish_all(&agent.store, &inputs).unwrap();
    // The same, laid out in one folder.
    fill(&agent.path("z/one"));
    write(&agent.path("z/file"), b"file");
    let folder = agent.publish(&agent.path("z")).unwrap();
    assert_eq!(both.manifest, folder.manifest);
    let single = agent.publish(&agent.path("y/file")).unwrap();
    assert_eq!((single.entry_count, single.file_count, single.total_size), (1, 1, 4));
}

#[test]
fn inputs_that_make_no_package_are_refused() {
    let agent = Agent::new();
    write(&agent.path("x/same"), b"1");
    write(&agent.path("y/same"), b"2");
    let reason = |inputs: &[PathBuf]| publish_all(&agent.store, inputs).unwrap_err().reason();
    assert_eq!(reason(&[]), Reason::InvalidArgument);
    assert_eq!(reason(&["relative".into()]), Reason::InvalidArgument);
    assert_eq!(reason(&[agent.path("x/same"), agent.path("y/same")]), Reason::InvalidArgument);
    assert_eq!(reason(&[agent.path("x"), "/".into()]), Reason::InvalidArgument);
    assert_eq!(reason(&[agent.path("none")]), Reason::PathMissing);
    nothing_left(&agent.store);
}

#[test]
fn a_large_file_is_cut_as_it_would_be_in_one_piece() {
    let agent = Agent::new();
    // More chunks than one entry holds, and more than one part of the pipeline.
    let bytes = noise(3, 45_000_000);
    write(&agent.path("one/large"), &bytes);
    let published = agent.publish(&agent.path("one")).unwrap();
    let whole = p2psb_proto::model::chunking::Chunker::new(ChunkClass::Small);
    let mut list = ChunkListBuilder::new(ChunkClass::Small);
    let mut manifest = ManifestBuilder::default();
    let mut emit = |_: PageRef, _: &[u8]| Ok::<_, PublishError>(());
    let path: PackagePath = "large".parse().unwrap();
    for chunk in whole.chunks(&bytes) {
        list.push(ChunkRef { size: chunk.len() as u32, digest: Digest::of(chunk) }, &mut emit).unwrap();
    }
    let content = list.finish(&path, false, &mut emit).unwrap();
    assert!(content.chunk_count() > 512);
    manifest.push(&Entry::file(path, content), &mut emit).unwrap();
    assert_eq!(manifest.finish(&mut emit).unwrap().0, published.manifest);
    assert_eq!(agent.store.count("chunk"), published.chunk_count);
}

#[test]
fn sparse_files_are_read_like_others() {
    let agent = Agent::new();
    fs::create_dir(agent.path("one")).unwrap();
    let file = fs::File::create(agent.path("one/sparse")).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"end", (64 << 20) - 3).unwrap();
    let published = agent.publish(&agent.path("one")).unwrap();
    assert_eq!(published.total_size, 64 << 20);
}

#[test]
fn links_that_lead_out_are_refused_by_name() {
    for target in ["/etc/passwd", "../outside", "bin/../../x"] {
        let agent = Agent::new();
        fill(&agent.path("one"));
        symlink(target, agent.path("one/bad-link")).unwrap();
        let error = refused(&agent, &agent.path("one"));
        assert_eq!(error.reason(), Reason::SymlinkEscapes);
        let text = error.to_string();
        assert!(
            text.contains("one/bad-link") && text.contains(target) && text.contains("remove it"),
            "{text}"
        );
    }
}

#[test]
fn names_that_are_not_utf8_are_refused_by_name() {
    let agent = Agent::new();
    fill(&agent.path("one"));
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    fs::write(agent.path("one").join(name), b"x").unwrap();
    let error = refused(&agent, &agent.path("one"));
    assert_eq!(error.reason(), Reason::PathInvalid);
    assert!(error.to_string().contains("caf\\xe9"), "{error}");
}

#[test]
fn pipes_and_sockets_are_refused_by_name() {
    let agent = Agent::new();
    fill(&agent.path("one"));
    let socket = std::os::unix::net::UnixListener::bind(agent.path("one/sock")).unwrap();
    let error = refused(&agent, &agent.path("one"));
    assert_eq!(error.reason(), Reason::FileKindUnsupported);
    assert!(error.to_string().contains("one/sock is a socket"), "{error}");
    drop(socket);
    fs::remove_file(agent.path("one/sock")).unwrap();
    make_pipe(&agent.path("one/pipe"));
    assert!(refused(&agent, &agent.path("one")).to_string().contains("one/pipe is a pipe"));
}

fn make_pipe(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

#[test]
fn what_may_not_be_read_is_refused_by_name() {
    as_nobody(|| {
        let agent = Agent::new();
        fill(&agent.path("one"));
        let secret = agent.path("one/bin/run");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
        let error = refused(&agent, &agent.path("one"));
        assert_eq!(error.reason(), Reason::FileUnreadable);
        assert!(error.to_string().contains("bin/run"), "{error}");
        assert!(error.to_string().contains("give yourself the right to read it"), "{error}");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o400)).unwrap();
        let folder = agent.path("one/hollow");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o000)).unwrap();
        let error = refused(&agent, &agent.path("one"));
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(error.reason(), Reason::FileUnreadable);
        assert!(error.to_string().contains("hollow"), "{error}");
    });
}

/// Publishes, and does something to the folder after the survey and before the reading.
fn disturbed(agent: &Agent, disturb: &mut dyn FnMut()) -> PublishError {
    let mut once = Some(disturb);
    let mut tell = |_| {
        if let Some(disturb) = once.take() {
            disturb();
        }
    };
    let inputs = [agent.path("one")];
    let error = publish(&agent.store, &inputs, &mut tell, &AtomicBool::new(false)).unwrap_err();
    nothing_left(&agent.store);
    error
}

#[test]
fn what_changes_meanwhile_is_refused_by_name() {
    let agent = Agent::new();
    fill(&agent.path("one"));
    let big = agent.path("one/big");
    // A pipe in the place of a file must not be waited for.
    let error = disturbed(&agent, &mut || {
        fs::remove_file(&big).unwrap();
        make_pipe(&big);
    });
    assert!(matches!(error.reason(), Reason::FileChanged | Reason::FileKindUnsupported), "{error}");
    fs::remove_file(&big).unwrap();
    write(&big, b"back");
    let error = disturbed(&agent, &mut || fs::remove_dir_all(agent.path("one")).unwrap());
    assert!(matches!(error.reason(), Reason::FileChanged | Reason::PathMissing), "{error}");
}

#[test]
fn a_cancelled_publish_leaves_nothing() {
    let agent = Agent::new();
    for i in 0..2000 {
        write(&agent.path(&format!("one/{i}")), &noise(i, 3000));
    }
    let cancel = AtomicBool::new(false);
    let mut tell = |progress: PublishProgress| {
        if progress.files_done >= 256 {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let error = publish(&agent.store, &[agent.path("one")], &mut tell, &cancel).unwrap_err();
    assert!(matches!(error, PublishError::Cancelled));
    nothing_left(&agent.store);
}

#[test]
fn progress_ends_with_everything() {
    let agent = Agent::new();
    fill(&agent.path("one"));
    let mut last = PublishProgress::default();
    let inputs = [agent.path("one")];
    publish(&agent.store, &inputs, &mut |progress| last = progress, &AtomicBool::new(false)).unwrap();
    assert_eq!((last.files, last.bytes), (last.files_done, last.bytes_done));
    assert!(last.bytes > 1_400_000);
}

#[test]
fn what_a_killed_publish_left_is_removed_at_the_next_start() {
    let agent = Agent::new();
    fill(&agent.path("one"));
    let tree = agent.store.begin(&agent.path("one"), &[agent.path("one")]).unwrap();
    let mut batch = Batch::default();
    batch.page(Digest::of(b"page"), b"page");
    batch.chunk(ChunkRow { entry: 0, offset: 0, size: 4, digest: Digest::of(b"page") });
    agent.store.append(tree, &mut batch).unwrap();
    assert!(agent.store.trees(9).unwrap().is_empty());
    let agent = agent.restart();
    nothing_left(&agent.store);
}

#[test]
fn the_data_folder_is_never_published() {
    let agent = Agent::new();
    let secrets = agent.path("data");
    for input in [secrets.clone(), secrets.join("catalogue.db"), agent.dir.path().to_owned()] {
        let error = agent.publish(&input).unwrap_err();
        assert!(matches!(error, PublishError::Private { .. }), "{error}");
    }
    assert!(agent.store.manifests().unwrap().is_empty());
}

#[test]
fn content_is_claimed_only_once_it_is_released_and_gone_after_a_restart_if_it_never_was() {
    let agent = Agent::new();
    fs::create_dir(agent.path("one")).unwrap();
    fs::write(agent.path("one/a"), b"a").unwrap();
    let published = agent.publish(&agent.path("one")).unwrap();
    assert!(agent.store.manifests().unwrap().is_empty());
    agent.store.release(&published.manifest);
    assert_eq!(agent.store.manifests().unwrap().len(), 1);
    fs::write(agent.path("one/a"), b"b").unwrap();
    let second = agent.publish(&agent.path("one")).unwrap();
    let agent = agent.restart();
    assert!(agent.store.tree(published.tree).unwrap().is_some());
    assert!(agent.store.tree(second.tree).unwrap().is_none());
}
