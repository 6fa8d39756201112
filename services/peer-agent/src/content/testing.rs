//! What the tests of content share: agents with a catalogue each, trees on the disk, and a driver without network.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use p2psb_proto::model::Digest;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Gid, Uid};
use rustix::thread::{UnshareFlags, set_thread_res_gid, set_thread_res_uid};
use tempfile::TempDir;

use super::fetch::{Fetch, FetchError, Fetched, Next, Start};
use super::publish::{PublishError, Published, publish};
use crate::store::Store;

/// An agent without network.
pub(super) struct Agent {
    pub(super) dir: TempDir,
    pub(super) store: Arc<Store>,
}

impl Agent {
    pub(super) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("data")).unwrap());
        Self { dir, store }
    }

    /// Closes the catalogue and opens it again.
    pub(super) fn restart(self) -> Self {
        let Self { dir, store } = self;
        drop(Arc::into_inner(store).expect("nothing uses the store any more"));
        let store = Arc::new(Store::open(&dir.path().join("data")).unwrap());
        Self { dir, store }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn publish(&self, input: &Path) -> Result<Published, PublishError> {
        publish_all(&self.store, &[input.to_owned()])
    }

    pub(super) fn open(&self, manifest: &Digest, target: &Path) -> Result<Fetch, FetchError> {
        Fetch::open(Arc::clone(&self.store), *manifest, target, Start::Asked)
    }

    /// Fetches from `host` to `target`.
    pub(super) fn fetch(
        &self,
        host: &dyn Host,
        manifest: &Digest,
        target: &Path,
    ) -> Result<Fetched, FetchError> {
        let mut fetch = self.open(manifest, target)?;
        drive(&mut fetch, host, usize::MAX)?;
        fetch.finish()
    }
}

pub(super) fn publish_all(store: &Store, inputs: &[PathBuf]) -> Result<Published, PublishError> {
    publish(store, inputs, &mut |_| {}, &AtomicBool::new(false))
}

/// Whoever has bytes.
pub(super) trait Host {
    fn read(&self, digest: &Digest) -> Option<Vec<u8>>;
}

impl Host for HashMap<Digest, Vec<u8>> {
    fn read(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.get(digest).cloned()
    }
}

/// Serves one manifest as an agent does.
pub(super) struct Serving<'a>(pub(super) &'a Store, pub(super) Digest);

impl Host for Serving<'_> {
    fn read(&self, digest: &Digest) -> Option<Vec<u8>> {
        let mut buffer = Vec::new();
        let mut reader = self.0.reader(&self.1).unwrap()?;
        reader.read(digest, &mut buffer).unwrap().then_some(buffer)
    }
}

/// Drives a fetch until it is ready, or for so many deliveries. Returns the bytes delivered, and whether it is ready.
pub(super) fn drive(
    fetch: &mut Fetch,
    host: &dyn Host,
    deliveries: usize,
) -> Result<(u64, bool), FetchError> {
    let mut left = deliveries;
    let mut bytes = 0;
    loop {
        match fetch.next(1 << 20)? {
            Next::Want(list) => {
                for (at, want) in list.iter().enumerate() {
                    if left == 0 {
                        fetch.lost(&list[at..].iter().map(|want| want.digest).collect::<Vec<_>>());
                        return Ok((bytes, false));
                    }
                    left -= 1;
                    let data = host.read(&want.digest).expect("the host has everything");
                    assert!(want.size.is_none_or(|size| size as usize == data.len()));
                    bytes += data.len() as u64;
                    fetch.deliver(&want.digest, &data)?;
                }
            }
            Next::Busy => {}
            Next::Wait => panic!("everything that was wanted was delivered"),
            Next::Ready => return Ok((bytes, true)),
        }
    }
}

/// What stands at a path.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) enum Node {
    File { bytes: Vec<u8>, executable: bool },
    Folder,
    Link(PathBuf),
}

/// Everything below a folder.
pub(super) fn snapshot(folder: &Path) -> BTreeMap<Vec<u8>, Node> {
    let mut nodes = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let node = if metadata.is_dir() {
                folders.push(path.clone());
                Node::Folder
            } else if metadata.is_symlink() {
                Node::Link(fs::read_link(&path).unwrap())
            } else {
                let executable = metadata.permissions().mode() & 0o100 != 0;
                Node::File { bytes: fs::read(&path).unwrap(), executable }
            };
            nodes.insert(path.strip_prefix(folder).unwrap().as_os_str().as_bytes().to_vec(), node);
        }
    }
    nodes
}

/// Writes a file and the folders above it.
pub(super) fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Bytes that look like noise.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// A folder with some of everything.
pub(super) fn fill(folder: &Path) {
    write(&folder.join("bin/run"), b"#!/bin/sh\n");
    fs::set_permissions(folder.join("bin/run"), fs::Permissions::from_mode(0o755)).unwrap();
    write(&folder.join("big"), &noise(1, 700_000));
    write(&folder.join("again/big"), &noise(1, 700_000));
    write(&folder.join("empty"), b"");
    fs::create_dir_all(folder.join("hollow/inside")).unwrap();
    // "a", "a-b" and "a.b" sort before "a/b".
    for name in ["a/b", "a-b/c", "a.b", "a/b-c"] {
        write(&folder.join(name), name.as_bytes());
    }
    for name in [" ", "new\nline", "-rf", "\u{e9}", "e\u{301}", "日本語/ファイル", "C:\\x", &"n".repeat(255)]
    {
        write(&folder.join("awkward").join(name), name.as_bytes());
    }
    std::os::unix::fs::symlink("../big", folder.join("bin/link")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.join("dangling")).unwrap();
    std::os::unix::fs::symlink("a", folder.join("to-folder")).unwrap();
}

/// Runs as an ordinary user: root may read and write everything. Identities of Linux belong to threads, so this one gets another.
pub(super) fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    const NOBODY: u32 = 65534;
    let run = || {
        if rustix::process::getuid().is_root() {
            let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
            set_thread_res_gid(gid, gid, gid).unwrap();
            set_thread_res_uid(uid, uid, uid).unwrap();
        }
        work()
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap()
}

/// Makes a small disk read-only, or writable again.
pub(super) fn remount(at: &Path, read_only: bool) {
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    rustix::mount::mount_remount(at, flags, "").unwrap();
}

/// Runs with a small disk at `at`, which nobody else sees; `false` if this user may not mount one.
#[expect(clippy::print_stdout, reason = "whoever runs the tests sees what was skipped")]
#[expect(
    unsafe_code,
    reason = "a namespace of its own is needed, for a thread that ends with it and shares no descriptors"
)]
pub(super) fn with_small_disk(at: &Path, options: &str, work: impl FnOnce() + Send) -> bool {
    let run = || {
        // SAFETY: only the view of mounts is unshared, not the table of descriptors.
        let mounted = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
            .and_then(|()| {
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                rustix::mount::mount_change("/", private)
            })
            .and_then(|()| {
                let options = std::ffi::CString::new(options).unwrap();
                rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), options.as_c_str())
            });
        if let Err(error) = mounted {
            println!("SKIPPED: no small disk can be mounted here: {error}");
            return false;
        }
        work();
        true
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap()
}
