//! Folders as they are compared: every file by its digest, executable bits, symlinks, empty folders.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::trouble::{Context as _, Result, Trouble};

/// One entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A regular file.
    File {
        /// Of its content, in hexadecimal digits.
        digest: String,
        /// Bytes.
        size: u64,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A folder.
    Directory,
    /// A symlink and where it points.
    Symlink(PathBuf),
}

/// What a folder holds, by path below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<PathBuf, Node>);

/// How two folders differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

impl Tree {
    /// Reads a folder, every byte of it. A single file counts as a folder with that file in it, as it is published.
    pub fn read(top: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let info = fs::symlink_metadata(top).context(top.display())?;
        if info.is_dir() {
            tree.enter(top, Path::new(""))?;
        } else {
            let name = top.file_name().context("a path that names a file")?;
            tree.0.insert(PathBuf::from(name), node(top, &info)?);
        }
        Ok(tree)
    }

    fn enter(&mut self, dir: &Path, below: &Path) -> Result<()> {
        for entry in fs::read_dir(dir).context(dir.display())? {
            let entry = entry.context(dir.display())?;
            let (path, below) = (entry.path(), below.join(entry.file_name()));
            let info = fs::symlink_metadata(&path).context(path.display())?;
            self.0.insert(below.clone(), node(&path, &info)?);
            if info.is_dir() {
                self.enter(&path, &below)?;
            }
        }
        Ok(())
    }

    /// Number of files.
    #[must_use]
    pub fn files(&self) -> usize {
        self.0.values().filter(|n| matches!(n, Node::File { .. })).count()
    }

    /// Bytes in all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let size = |n: &Node| if let Node::File { size, .. } = n { *size } else { 0 };
        self.0.values().map(size).sum()
    }

    /// What of `self` is different, missing or new in `other`.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let mut out = Vec::new();
        for (path, node) in &self.0 {
            match other.0.get(path) {
                Some(found) if found == node => {}
                Some(found) => out.push((path, format!("{node:?} became {found:?}"))),
                None => out.push((path, "is missing".into())),
            }
        }
        let new = other.0.keys().filter(|path| !self.0.contains_key(*path));
        out.extend(new.map(|path| (path, "was not there before".into())));
        out.into_iter().map(|(path, what)| Difference { path: path.clone(), what }).collect()
    }
}

fn node(path: &Path, info: &fs::Metadata) -> Result<Node> {
    if info.is_symlink() {
        return Ok(Node::Symlink(fs::read_link(path).context(path.display())?));
    }
    if info.is_dir() {
        return Ok(Node::Directory);
    }
    if !info.is_file() {
        return Err(Trouble::new(format!("{} is neither file, folder nor symlink", path.display())));
    }
    let mut hasher = blake3::Hasher::new();
    let file = fs::File::open(path).context(path.display())?;
    hasher.update_reader(file).context(path.display())?;
    let executable = info.permissions().mode() & 0o100 != 0;
    Ok(Node::File { digest: hasher.finalize().to_hex().to_string(), size: info.len(), executable })
}

/// Every file below a folder.
pub fn walk_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let tree = Tree::read(dir)?;
    let files = tree.0.into_iter().filter(|(_, node)| matches!(node, Node::File { .. }));
    Ok(files.map(|(path, _)| dir.join(path)).collect())
}

/// Writes `bytes` at `path` below `dir`, making the folders on the way.
pub fn put(dir: &Path, path: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = dir.join(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context(parent.display())?;
    }
    fs::write(&path, bytes).context(path.display())?;
    Ok(path)
}

/// Bytes that do not compress and do not repeat, the same for the same seed.
#[must_use]
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut rng = fastrand::Rng::with_seed(seed);
    rng.fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_like_itself_and_unlike_a_changed_one() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [a.path(), b.path()] {
            put(dir, "x/y", b"same").unwrap();
            fs::create_dir(dir.join("empty")).unwrap();
            std::os::unix::fs::symlink("y", dir.join("x/link")).unwrap();
        }
        let tree = Tree::read(a.path()).unwrap();
        assert_eq!((tree.files(), tree.bytes(), tree.0.len()), (1, 4, 4));
        assert_eq!(tree.differences(&Tree::read(b.path()).unwrap()), []);

        put(b.path(), "x/y", b"diff").unwrap();
        put(b.path(), "new", b"").unwrap();
        fs::remove_dir(b.path().join("empty")).unwrap();
        let paths: Vec<_> =
            tree.differences(&Tree::read(b.path()).unwrap()).into_iter().map(|d| d.path).collect();
        assert_eq!(paths, [Path::new("empty"), Path::new("x/y"), Path::new("new")]);
    }
}
