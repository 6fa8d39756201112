//! Finding what is to be published, in the order of manifests: bytewise by the whole path.
//!
//! The paths below a folder `a` do not follow it at once: `a-b` and `a.b` sort before `a/b`. So a folder stands in its parent's list
//! twice: under its name, and under its name with a slash, where it is descended into. One list for each level is kept in memory.

use std::fs::{self, FileType};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use p2psb_proto::model::PackagePath;
use p2psb_proto::model::path::{LinkTarget, PathError};

use super::error::{PublishError, shown_path};

/// What was found.
pub(super) struct Found {
    /// Its path in the package.
    pub(super) path: PackagePath,
    /// Where it lies.
    pub(super) disk: PathBuf,
    /// Number of the base that `path` is joined to.
    pub(super) base: u32,
    /// What it is.
    pub(super) kind: Kind,
}

/// What it is.
pub(super) enum Kind {
    File,
    Directory,
    /// A symlink with this target, which stays inside.
    Symlink(String),
}

impl Found {
    /// Of a file, as it is at the moment.
    pub(super) fn size(&self) -> Result<u64, PublishError> {
        let metadata = fs::symlink_metadata(&self.disk).map_err(|e| PublishError::gone(&self.disk, e))?;
        Ok(metadata.len())
    }
}

/// What was named to be published, resolved: every symlink on the way to it followed.
pub(super) struct Inputs {
    path: PathBuf,
    bases: Vec<PathBuf>,
    /// Of each path at the top: its name, and the number of its base. Of a single folder: none, its content is the top.
    tops: Vec<(Vec<u8>, u32)>,
}

impl Inputs {
    /// Looks at each input.
    pub(super) fn resolve(inputs: &[PathBuf]) -> Result<Self, PublishError> {
        let first = inputs.first().ok_or(PublishError::NoInput)?;
        if let Some(relative) = inputs.iter().find(|path| !path.is_absolute()) {
            return Err(PublishError::Relative(shown_path(relative)));
        }
        let resolve = |path: &PathBuf| path.canonicalize().map_err(|e| PublishError::at(path, e));
        let path = resolve(first)?;
        if inputs.len() == 1 && path.is_dir() {
            return Ok(Self { bases: vec![path.clone()], path, tops: Vec::new() });
        }
        let mut bases: Vec<PathBuf> = Vec::new();
        let mut tops: Vec<(Vec<u8>, u32, String)> = Vec::new();
        for input in inputs {
            let path = resolve(input)?;
            let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
                return Err(PublishError::Nameless(shown_path(&path)));
            };
            let base = bases.iter().position(|base| base == parent).unwrap_or_else(|| {
                bases.push(parent.to_owned());
                bases.len() - 1
            });
            let base = u32::try_from(base).map_err(|_| PublishError::NoInput)?;
            let name = name.as_bytes().to_vec();
            if let Some((_, _, first)) = tops.iter().find(|(known, _, _)| *known == name) {
                return Err(PublishError::SameName { first: first.clone(), second: shown_path(&path) });
            }
            tops.push((name, base, shown_path(&path)));
        }
        let tops = tops.into_iter().map(|(name, base, _)| (name, base)).collect();
        Ok(Self { path, bases, tops })
    }

    /// Where the (first) input lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folders that paths of the package are joined to.
    pub(super) fn bases(&self) -> &[PathBuf] {
        &self.bases
    }

    /// Everything, in order. Ends after the first error.
    pub(super) fn walk(&self) -> Walk {
        let mut top = Vec::new();
        let mut failed = None;
        if self.tops.is_empty() {
            match list(&self.path, &[], 0) {
                Ok(items) => top = items,
                Err(error) => failed = Some(error),
            }
        }
        for (name, base) in &self.tops {
            let Some(folder) = self.bases.get(*base as usize) else { continue };
            let disk = folder.join(std::ffi::OsStr::from_bytes(name));
            match fs::symlink_metadata(&disk) {
                Ok(metadata) => push(&mut top, name.clone(), disk, *base, metadata.file_type()),
                Err(error) => failed = Some(PublishError::at(&disk, error)),
            }
        }
        sort(&mut top);
        Walk { levels: vec![top], failed }
    }
}

/// One thing to look at. Levels are sorted from the last to the first, and taken from the end.
struct Item {
    /// Its path in the package; with a slash at its end: the content of that folder.
    key: Vec<u8>,
    disk: PathBuf,
    base: u32,
    /// `None`: to be descended into.
    kind: Option<FileType>,
}

/// Walks the inputs.
pub(super) struct Walk {
    levels: Vec<Vec<Item>>,
    failed: Option<PublishError>,
}

impl Iterator for Walk {
    type Item = Result<Found, PublishError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            self.levels.clear();
            return Some(Err(error));
        }
        loop {
            let Some(item) = self.levels.last_mut()?.pop() else {
                self.levels.pop();
                continue;
            };
            let result = match item.kind {
                Some(kind) => look(item, kind),
                None => match list(&item.disk, &item.key, item.base) {
                    Ok(items) => {
                        self.levels.push(items);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            if result.is_err() {
                self.levels.clear();
            }
            return Some(result);
        }
    }
}

/// The content of a folder; `prefix` is its path in the package with a slash, or nothing.
fn list(folder: &Path, prefix: &[u8], base: u32) -> Result<Vec<Item>, PublishError> {
    let failed = |error: io::Error| PublishError::gone(folder, error);
    let mut items = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(|e| PublishError::gone(&entry.path(), e))?;
        let key = [prefix, entry.file_name().as_bytes()].concat();
        push(&mut items, key, entry.path(), base, kind);
    }
    sort(&mut items);
    Ok(items)
}

fn push(items: &mut Vec<Item>, key: Vec<u8>, disk: PathBuf, base: u32, kind: FileType) {
    if kind.is_dir() {
        items.push(Item { key: [&key[..], b"/"].concat(), disk: disk.clone(), base, kind: None });
    }
    items.push(Item { key, disk, base, kind: Some(kind) });
}

fn sort(items: &mut [Item]) {
    items.sort_unstable_by(|a, b| b.key.cmp(&a.key));
}

fn look(item: Item, kind: FileType) -> Result<Found, PublishError> {
    let path = PackagePath::from_bytes(&item.key)?;
    let kind = if kind.is_file() {
        Kind::File
    } else if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Symlink(link_target(&item.disk, &path)?)
    } else {
        return Err(PublishError::Kind { path: shown_path(&item.disk), kind: name_of(kind) });
    };
    Ok(Found { path, disk: item.disk, base: item.base, kind })
}

fn link_target(disk: &Path, path: &PackagePath) -> Result<String, PublishError> {
    let target = fs::read_link(disk).map_err(|e| PublishError::gone(disk, e))?;
    match LinkTarget::from_bytes(target.as_os_str().as_bytes(), path) {
        Ok(target) => Ok(target.as_str().to_owned()),
        Err(PathError::Escapes { target, .. }) => {
            Err(PathError::Escapes { link: shown_path(disk), target }.into())
        }
        Err(PathError::Winds { target, .. }) => {
            Err(PathError::Winds { link: shown_path(disk), target }.into())
        }
        Err(error) => Err(error.into()),
    }
}

fn name_of(kind: FileType) -> &'static str {
    if kind.is_socket() {
        "socket"
    } else if kind.is_fifo() {
        "pipe"
    } else {
        "device"
    }
}
