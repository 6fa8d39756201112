//! A folder that a fetch fills or looks at: `TARGET.partial`, and one that was filled before.
//!
//! Invariant: nothing outside the folder is ever opened, made or changed. Every path is walked part by part from the folder itself,
//! following no symlink, so that it does not matter what anybody puts there meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use p2psb_proto::model::PackagePath;
use p2psb_proto::model::manifest::{Content, Entry};
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::error::{FetchError, may_pass};
use crate::store::Stamp;

/// Longest path that the system opens, the terminating zero excepted.
const PATH_MAX: usize = 4095;
/// Shorter runs of zeros are written rather than left out.
const HOLE: usize = 16 * 1024;

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or nothing that is worth keeping: a symlink, a pipe.
    Nothing,
    /// A folder.
    Folder,
    /// A file, and whether its owner may execute it.
    File(Stamp, bool),
}

/// An open folder.
pub(super) struct Folder {
    path: PathBuf,
    root: OwnedFd,
    name_max: usize,
    /// The disk does not take every name, or takes two names for one: names are reserved before anything is written.
    careful: bool,
    /// The parent that was used last: files come in order.
    parent: Option<(String, OwnedFd)>,
}

impl Folder {
    /// Makes the folder, which must not exist.
    pub(super) fn create(path: &Path) -> Result<Self, FetchError> {
        let failed = |error: Errno| FetchError::at(path, error.into());
        rustix::fs::mkdir(path, Mode::from_raw_mode(0o777)).map_err(failed)?;
        let mut folder = Self::open(path)?;
        match folder.is_peculiar() {
            Ok(careful) => folder.careful = careful,
            Err(error) => {
                let _ = rustix::fs::rmdir(path);
                return Err(failed(error));
            }
        }
        Ok(folder)
    }

    /// Opens the folder of an earlier run, in which names were reserved already if need be.
    pub(super) fn open(path: &Path) -> Result<Self, FetchError> {
        let failed = |error: Errno| FetchError::at(path, error.into());
        let root = rustix::fs::open(path, folder_flags(), Mode::empty()).map_err(failed)?;
        let limits = rustix::fs::fstatvfs(&root).map_err(failed)?;
        let name_max = usize::try_from(limits.f_namemax).unwrap_or(usize::MAX);
        Ok(Self { path: path.to_owned(), root, name_max, careful: false, parent: None })
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its inode.
    pub(super) fn inode(&self) -> Result<u64, FetchError> {
        let stat = rustix::fs::fstat(&self.root).map_err(|e| FetchError::at(&self.path, e.into()))?;
        Ok(stat.st_ino)
    }

    /// Whether the disk can hold an entry. On a peculiar disk the name is reserved, as only the disk itself knows its rules.
    pub(super) fn check(&mut self, entry: &Entry, target: &Path) -> Result<(), FetchError> {
        let path = entry.path();
        if let Some(part) = path.parts().find(|part| part.len() > self.name_max) {
            let why = format!(
                "a name may have {} bytes there, and one of its parts has {}",
                self.name_max,
                part.len()
            );
            return Err(FetchError::unrepresentable(path, target, why));
        }
        if self.path.as_os_str().len() + 1 + path.as_str().len() > PATH_MAX {
            return Err(FetchError::unrepresentable(
                path,
                target,
                "its whole path would be too long to be opened",
            ));
        }
        if !self.careful {
            return Ok(());
        }
        self.reserve(entry).map_err(|error| match error {
            // Not allowed is what some disks say of names, too.
            error if may_pass(error) && error != Errno::PERM => {
                FetchError::at(&self.path.join(path.as_str()), error.into())
            }
            Errno::EXIST => FetchError::unrepresentable(path, target, "another path has the same name there"),
            error => FetchError::unrepresentable(path, target, error),
        })
    }

    fn reserve(&mut self, entry: &Entry) -> Result<(), Errno> {
        let path = entry.path();
        let (parent, name) = (self.parent(path)?, path.file_name());
        match entry.content() {
            Content::Directory => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o777)),
            Content::File(file) => reserve_file(parent, name, file.executable()),
            Content::Symlink(target) => {
                rustix::fs::symlinkat(target.as_str(), parent, name)?;
                rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                reserve_file(parent, name, false)
            }
        }
    }

    /// Makes a directory, unless it is there.
    pub(super) fn make_dir(&mut self, path: &PackagePath) -> Result<(), FetchError> {
        let made = self.parent(path).and_then(|parent| {
            match rustix::fs::mkdirat(parent, path.file_name(), Mode::from_raw_mode(0o777)) {
                Err(Errno::EXIST) if is_dir(parent, path.file_name())? => Ok(()),
                other => other,
            }
        });
        made.map_err(|error| self.failed(path, error.into()))
    }

    /// Makes the folders above a path, as far as they are not there.
    pub(super) fn make_parents(&mut self, path: &PackagePath) -> Result<(), FetchError> {
        let Some(wanted) = path.parent() else { return Ok(()) };
        if self.parent.as_ref().is_none_or(|(known, _)| known != wanted) {
            let made = make_chain(self.root.as_fd(), wanted);
            self.parent =
                made.map_err(|error| self.failed(path, error.into()))?.map(|fd| (wanted.to_owned(), fd));
        }
        Ok(())
    }

    /// Makes a directory again. What stands in its place and is none, is replaced.
    pub(super) fn restore_dir(&mut self, path: &PackagePath) -> Result<(), FetchError> {
        let name = path.file_name();
        let mode = Mode::from_raw_mode(0o777);
        let made = self.parent(path).and_then(|parent| match rustix::fs::mkdirat(parent, name, mode) {
            Err(Errno::EXIST) if is_dir(parent, name)? => Ok(()),
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                rustix::fs::mkdirat(parent, name, mode)
            }
            other => other,
        });
        made.map_err(|error| self.failed(path, error.into()))
    }

    /// Moves a file or symlink from the same path of `staged` to its place, whatever stands there; a folder only if it is empty.
    pub(super) fn take_in(&mut self, staged: &mut Self, path: &PackagePath) -> Result<(), FetchError> {
        let name = path.file_name();
        let moved = staged.parent(path).and_then(|from| {
            let to = self.parent(path)?;
            match rustix::fs::renameat(from, name, to, name) {
                Err(Errno::ISDIR) => {
                    rustix::fs::unlinkat(to, name, AtFlags::REMOVEDIR)?;
                    rustix::fs::renameat(from, name, to, name)
                }
                other => other,
            }
        });
        moved.map_err(|error| match error {
            Errno::NOTEMPTY | Errno::EXIST => FetchError::exists(&self.path.join(path.as_str())),
            error => self.failed(path, error.into()),
        })
    }

    /// What stands at a path.
    pub(super) fn look(&mut self, path: &PackagePath) -> Result<Found, FetchError> {
        let found = self.parent(path).and_then(|parent| {
            let stat = rustix::fs::statat(parent, path.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Found::Folder,
                FileType::RegularFile => Found::File(stamp(&stat), stat.st_mode & 0o100 != 0),
                _ => Found::Nothing,
            })
        });
        match found {
            // The last two: something else stands in the place of a folder above it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Found::Nothing),
            found => found.map_err(|error| self.failed(path, error.into())),
        }
    }

    /// Whether nothing is in a directory.
    pub(super) fn is_empty_dir(&mut self, path: &PackagePath) -> Result<bool, FetchError> {
        let read = self.parent(path).and_then(|parent| {
            let dir = rustix::fs::openat(parent, path.file_name(), folder_flags(), Mode::empty())?;
            for entry in rustix::fs::Dir::read_from(dir)? {
                if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        read.map_err(|error| self.failed(path, error.into()))
    }

    /// Whether a symlink to `target` stands at a path.
    pub(super) fn has_link(&mut self, path: &PackagePath, target: &str) -> bool {
        let read =
            self.parent(path).and_then(|parent| rustix::fs::readlinkat(parent, path.file_name(), Vec::new()));
        read.is_ok_and(|found| found.as_bytes() == target.as_bytes())
    }

    /// Makes a file executable, for whoever may read it, or for nobody. Whether the disk did it: some know no such thing.
    pub(super) fn set_executable(
        &mut self,
        path: &PackagePath,
        executable: bool,
    ) -> Result<bool, FetchError> {
        let flags = OFlags::RDONLY | file_flags();
        let done = self.parent(path).and_then(|parent| {
            let file = rustix::fs::openat(parent, path.file_name(), flags, Mode::empty())?;
            let mode = rustix::fs::fstat(&file)?.st_mode;
            let wanted = if executable { mode | ((mode & 0o444) >> 2) } else { mode & !0o111 };
            rustix::fs::fchmod(&file, Mode::from_raw_mode(wanted))?;
            Ok((rustix::fs::fstat(&file)?.st_mode & 0o100 != 0) == executable)
        });
        done.map_err(|error| self.failed(path, error.into()))
    }

    /// Whether anything may be made here, before much is done for it.
    pub(super) fn check_writable(&self) -> Result<(), FetchError> {
        let may = rustix::fs::accessat(&self.root, ".", rustix::fs::Access::WRITE_OK, AtFlags::empty());
        may.map_err(|error| FetchError::at(&self.path, error.into()))
    }

    /// Opens a file for reading and writing, making it if it is not there. Its mode follows the umask, as for any new file.
    pub(super) fn open_file(&mut self, path: &PackagePath, executable: bool) -> Result<File, FetchError> {
        let flags = OFlags::RDWR | OFlags::CREATE | file_flags();
        let opened = self
            .parent(path)
            .and_then(|parent| rustix::fs::openat(parent, path.file_name(), flags, file_mode(executable)));
        opened.map(File::from).map_err(|error| self.failed(path, error.into()))
    }

    /// Opens a file for reading, if there is one.
    pub(super) fn read_file(&mut self, path: &PackagePath) -> Option<File> {
        let flags = OFlags::RDONLY | file_flags();
        let parent = self.parent(path).ok()?;
        rustix::fs::openat(parent, path.file_name(), flags, Mode::empty()).ok().map(File::from)
    }

    /// Makes a symlink. It replaces an empty file that reserved its name, or a symlink of an earlier run.
    pub(super) fn link(&mut self, path: &PackagePath, target: &str) -> Result<(), FetchError> {
        let name = path.file_name();
        let made = self.parent(path).and_then(|parent| match rustix::fs::symlinkat(target, parent, name) {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                rustix::fs::symlinkat(target, parent, name)
            }
            other => other,
        });
        made.map_err(|error| self.failed(path, error.into()))
    }

    /// Brings one entry to the disk; `None`: the folder itself.
    pub(super) fn sync(&mut self, entry: Option<&PackagePath>) -> Result<(), FetchError> {
        let Some(path) = entry else {
            return rustix::fs::fsync(&self.root).map_err(|e| FetchError::at(&self.path, e.into()));
        };
        let flags = OFlags::RDONLY | file_flags();
        let synced = self.parent(path).and_then(|parent| {
            rustix::fs::fsync(rustix::fs::openat(parent, path.file_name(), flags, Mode::empty())?)
        });
        synced.map_err(|error| self.failed(path, error.into()))
    }

    /// Brings everything to the disk at once.
    pub(super) fn sync_all(&self) -> Result<(), FetchError> {
        rustix::fs::syncfs(&self.root).map_err(|e| FetchError::at(&self.path, e.into()))
    }

    /// What went wrong with an entry.
    pub(super) fn failed(&self, path: &PackagePath, error: io::Error) -> FetchError {
        FetchError::at(&self.path.join(path.as_str()), error)
    }

    /// The open parent of an entry.
    fn parent(&mut self, path: &PackagePath) -> Result<BorrowedFd<'_>, Errno> {
        let Some(wanted) = path.parent() else { return Ok(self.root.as_fd()) };
        if self.parent.as_ref().is_none_or(|(known, _)| known != wanted) {
            let mut at: Option<OwnedFd> = None;
            for part in wanted.split('/') {
                let from = at.as_ref().map_or(self.root.as_fd(), |fd| fd.as_fd());
                at = Some(rustix::fs::openat(from, part, folder_flags(), Mode::empty())?);
            }
            self.parent = at.map(|fd| (wanted.to_owned(), fd));
        }
        Ok(self.parent.as_ref().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }

    /// Whether the disk folds case, normalises names, or refuses some: it is asked with names of that kind.
    fn is_peculiar(&self) -> Result<bool, Errno> {
        const PAIRS: [(&str, &str); 2] = [("p2psb-a", "P2PSB-A"), ("p2psb-\u{e9}", "p2psb-e\u{301}")];
        const ODD: [&str; 3] = ["p2psb-:*?\"<>|\\", "p2psb-end. ", "p2psb-\n"];
        let mut peculiar = false;
        for (name, same) in PAIRS.into_iter().chain(ODD.map(|name| (name, name))) {
            match reserve_file(self.root.as_fd(), name, false) {
                Ok(()) => {
                    peculiar |= same != name
                        && rustix::fs::statat(&self.root, same, AtFlags::SYMLINK_NOFOLLOW).is_ok();
                    rustix::fs::unlinkat(&self.root, name, AtFlags::empty())?;
                }
                Err(error) if may_pass(error) && error != Errno::PERM => return Err(error),
                Err(_) => peculiar = true,
            }
        }
        Ok(peculiar)
    }

    /// As on a peculiar disk.
    #[cfg(test)]
    pub(super) fn be_careful(&mut self) {
        self.careful = true;
    }
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Never a symlink; without waiting for the other end of a pipe.
fn file_flags() -> OFlags {
    OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK
}

fn reserve_file(parent: BorrowedFd<'_>, name: &str, executable: bool) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, file_mode(executable)).map(drop)
}

/// As of any new file: the umask takes from it.
fn file_mode(executable: bool) -> Mode {
    Mode::from_raw_mode(if executable { 0o777 } else { 0o666 })
}

/// Makes a row of folders, one in the other. Returns the last, open.
fn make_chain(root: BorrowedFd<'_>, folders: &str) -> Result<Option<OwnedFd>, Errno> {
    let mut at: Option<OwnedFd> = None;
    for part in folders.split('/') {
        let from = at.as_ref().map_or(root, |fd| fd.as_fd());
        match rustix::fs::mkdirat(from, part, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        at = Some(rustix::fs::openat(from, part, folder_flags(), Mode::empty())?);
    }
    Ok(at)
}

/// By what a file is recognised without being read.
pub(super) fn stamp(stat: &rustix::fs::Stat) -> Stamp {
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or_default();
    Stamp {
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        mtime_ns: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanos),
        inode: stat.st_ino,
    }
}

fn is_dir(parent: BorrowedFd<'_>, name: &str) -> Result<bool, Errno> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Writes a chunk to its place. Long runs of zeros become holes, where the disk has them.
pub(super) fn write_chunk(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() >= HOLE && bytes.iter().all(|byte| *byte == 0) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(file, flags, offset, bytes.len() as u64).is_ok() {
            return Ok(());
        }
    }
    file.write_all_at(bytes, offset)
}
