//! The snapshot's file: `snapshot` in the data folder, readable by its user only.
//!
//! It begins with a mark and a version, then comes its [`Head`], then one thing after the other, each preceded by its length
//! (4 bytes little endian), then a length of zero, how many things there were (8 bytes), and the seal: BLAKE3 over all before
//! it, keyed with a secret that follows from the server's identity. So one sum says both: nothing was damaged, and this server
//! wrote it.
//!
//! Statements were verified when they came, and nobody else can write a file with this seal; so their signatures are not
//! verified again: of a million that takes half a minute, in which nobody would be found.
//!
//! Promises: a new snapshot takes the place of the old one in one step, when all of it is on the disk. What is read is a whole
//! snapshot, or an error: [`Reading::read`] says that it was the end only when the seal is right, so until then nothing of it
//! may be believed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use p2psb_proto::model::SecretKey;
use p2psb_proto::model::limits::PEER_RECORD_BYTES;

use super::encoding::{self, HEAD_BYTES};
use crate::core::snapshot::{Head, Kept, Useless};

/// Its name in the data folder.
pub const FILE: &str = "snapshot";
/// How the name of one begins that is being written.
const TEMPORARY: &str = ".snapshot.";
const MARK: &[u8; 16] = b"p2psb snapshot\r\n";
const VERSION: u32 = 2;
const SEAL_BYTES: usize = 32;
/// One thing: a statement, or a proof, with what is said of it.
const THING_BYTES: usize = PEER_RECORD_BYTES + 256;
/// The largest snapshot: a million ordinary peers take a third of it. What has no room at its end is left out.
pub const SNAPSHOT_BYTES: u64 = 1 << 30;
/// What the end takes.
const END_BYTES: u64 = 4 + 8 + SEAL_BYTES as u64;
const SEAL_CONTEXT: &str = "p2psb rendezvous snapshot, version 1";

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It can't be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is no snapshot, or not the one that this server wrote.
    #[error("it is damaged, or was not written by this server: {0}")]
    Damaged(&'static str),
    /// Another program wrote it.
    #[error("it has version {0}, this program knows version {VERSION}")]
    Version(u32),
    /// It is larger than any.
    #[error("it has {0} bytes, at most {SNAPSHOT_BYTES} are read")]
    TooLarge(u64),
    /// It is whole, but not for this server now.
    #[error(transparent)]
    Useless(#[from] Useless),
}

/// Where the snapshots of one server lie.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    folder: PathBuf,
    seal_key: SealKey,
}

#[derive(Clone)]
struct SealKey([u8; 32]);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey")
    }
}

impl SnapshotFile {
    /// In this folder, sealed by this identity.
    #[must_use]
    pub fn new(folder: &Path, identity: &SecretKey) -> Self {
        let seal_key = SealKey(blake3::derive_key(SEAL_CONTEXT, identity.to_seed().as_slice()));
        Self { folder: folder.to_owned(), seal_key }
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// Removes what lives that ended in the middle of writing have left.
    pub fn clear(&self) -> io::Result<()> {
        for file in std::fs::read_dir(&self.folder)? {
            let file = file?;
            if file.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
                std::fs::remove_file(file.path())?;
            }
        }
        Ok(())
    }

    /// Begins a new snapshot; the old one stays until [`Writing::finish`].
    pub fn begin(&self, head: &Head) -> io::Result<Writing> {
        // A name of its own: nobody else's file is ever put in the place of the snapshot.
        let temporary = self.folder.join(format!("{TEMPORARY}{:016x}", fastrand::u64(..)));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let mut writing = Writing {
            file: Some(BufWriter::with_capacity(256 * 1024, file)),
            temporary,
            path: self.path(),
            seal: blake3::Hasher::new_keyed(&self.seal_key.0),
            bytes: 0,
            things: 0,
            left_out: 0,
        };
        let mut start = Vec::with_capacity(MARK.len() + 4 + HEAD_BYTES);
        start.extend(MARK);
        start.extend(VERSION.to_le_bytes());
        encoding::put_head(&mut start, head);
        writing.write(&start)?;
        Ok(writing)
    }

    /// Opens the snapshot; `None` if there is none.
    pub fn open(&self) -> Result<Option<Reading>, SnapshotError> {
        let file = match File::open(self.path()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let size = file.metadata()?.len();
        if size > SNAPSHOT_BYTES {
            return Err(SnapshotError::TooLarge(size));
        }
        Reading::start(BufReader::with_capacity(256 * 1024, file), &self.seal_key).map(Some)
    }
}

/// A snapshot that is being written. Dropped before its end, it is given up.
#[derive(Debug)]
pub struct Writing {
    /// `None` once it was finished.
    file: Option<BufWriter<File>>,
    temporary: PathBuf,
    path: PathBuf,
    seal: blake3::Hasher,
    bytes: u64,
    things: u64,
    left_out: u64,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file's size.
    pub bytes: u64,
    /// How many things are in it.
    pub things: u64,
    /// How many had no room.
    pub left_out: u64,
}

impl Writing {
    /// Appends things. Those for which there is no room are left out.
    pub fn put(&mut self, things: &[Kept]) -> io::Result<()> {
        // All together: BLAKE3 takes an eighth of the time for what is long.
        let mut bytes = Vec::new();
        for thing in things {
            let begin = bytes.len();
            bytes.extend([0; 4]);
            encoding::put(&mut bytes, thing);
            let size = bytes.len().saturating_sub(begin + 4);
            let has_room = self.bytes + bytes.len() as u64 + END_BYTES <= SNAPSHOT_BYTES;
            let length = u32::try_from(size).ok().filter(|_| size <= THING_BYTES && has_room);
            let place = bytes.get_mut(begin..).and_then(<[u8]>::first_chunk_mut);
            let (Some(length), Some(place)) = (length, place) else {
                bytes.truncate(begin);
                self.left_out += 1;
                continue;
            };
            *place = length.to_le_bytes();
            self.things += 1;
        }
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.seal.update(bytes);
        self.bytes += bytes.len() as u64;
        self.raw(bytes)
    }

    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Ends the snapshot and puts it in the place of the old one, so that it is there after a power failure, too.
    pub fn finish(mut self) -> io::Result<Written> {
        self.write(&0_u32.to_le_bytes())?;
        let things = self.things.to_le_bytes();
        self.write(&things)?;
        let seal = self.seal.finalize();
        self.raw(seal.as_bytes())?;
        let file = match self.file.take() {
            Some(file) => file.into_inner().map_err(io::IntoInnerError::into_error)?,
            None => return Err(ErrorKind::NotConnected.into()),
        };
        file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
        let bytes = self.bytes + SEAL_BYTES as u64;
        Ok(Written { bytes, things: self.things, left_out: self.left_out })
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // After the end nothing has this name.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// A snapshot that is being read.
#[derive(Debug)]
pub struct Reading {
    file: BufReader<File>,
    seal: blake3::Hasher,
    head: Head,
    things: u64,
    /// The thing that is being read.
    thing: Vec<u8>,
}

impl Reading {
    fn start(file: BufReader<File>, key: &SealKey) -> Result<Self, SnapshotError> {
        let (mut file, mut seal) = (file, blake3::Hasher::new_keyed(&key.0));
        let mark: [u8; MARK.len()] = read(&mut file, &mut seal)?;
        if mark != *MARK {
            return Err(SnapshotError::Damaged("no snapshot begins so"));
        }
        let version = u32::from_le_bytes(read(&mut file, &mut seal)?);
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        let head: [u8; HEAD_BYTES] = read(&mut file, &mut seal)?;
        let head = encoding::head(&head).map_err(|_| SnapshotError::Damaged("its head is none"))?;
        Ok(Self { file, seal, head, things: 0, thing: Vec::new() })
    }

    /// What it says of itself. Like all of it, not to be believed before the end.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The next thing; `None`: that was all, and the seal is right.
    pub fn read(&mut self) -> Result<Option<Kept>, SnapshotError> {
        let size = u32::from_le_bytes(read(&mut self.file, &mut self.seal)?) as usize;
        if size == 0 {
            return self.end().map(|()| None);
        }
        if size > THING_BYTES {
            return Err(SnapshotError::Damaged("a thing in it is too large"));
        }
        self.thing.resize(size, 0);
        fill(&mut self.file, &mut self.seal, &mut self.thing)?;
        self.things += 1;
        encoding::kept(&self.thing).map(Some).map_err(|_| SnapshotError::Damaged("a thing in it is none"))
    }

    fn end(&mut self) -> Result<(), SnapshotError> {
        let things = u64::from_le_bytes(read(&mut self.file, &mut self.seal)?);
        let expected = self.seal.finalize();
        let mut seal = [0; SEAL_BYTES];
        fill(&mut self.file, &mut self.seal, &mut seal)?;
        // Compared in constant time.
        if expected != blake3::Hash::from_bytes(seal) || things != self.things {
            return Err(SnapshotError::Damaged("its seal is wrong"));
        }
        match self.file.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(SnapshotError::Damaged("something follows its end")),
        }
    }
}

fn read<const N: usize>(file: &mut impl Read, seal: &mut blake3::Hasher) -> Result<[u8; N], SnapshotError> {
    let mut bytes = [0; N];
    fill(file, seal, &mut bytes)?;
    Ok(bytes)
}

fn fill(file: &mut impl Read, seal: &mut blake3::Hasher, bytes: &mut [u8]) -> Result<(), SnapshotError> {
    file.read_exact(bytes).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => SnapshotError::Damaged("it ends in the middle"),
        _ => SnapshotError::Io(error),
    })?;
    seal.update(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use bytes::Bytes;

    use p2psb_proto::model::UnixMillis;

    use super::*;
    use crate::core::ledger::Bringer;
    use crate::core::testing::{T0, key, network, peer};

    fn head() -> Head {
        Head { network: network(), own: peer(1), begun: T0, knowledge_since: UnixMillis(3), is_last: false }
    }

    fn things(count: u8) -> Vec<Kept> {
        let statement = |n: u8| Kept::Statement {
            bytes: Bytes::from(vec![n; 1 + usize::from(n) * 10]),
            keep: T0,
            brought_by: Bringer::Backbone,
        };
        (0..count).map(statement).chain([Kept::Member(peer(7))]).collect()
    }

    fn write(file: &SnapshotFile, things: &[Kept]) -> Written {
        let mut writing = file.begin(&head()).unwrap();
        writing.put(things).unwrap();
        writing.finish().unwrap()
    }

    fn read_all(file: &SnapshotFile) -> Result<Option<Vec<Kept>>, SnapshotError> {
        let Some(mut reading) = file.open()? else { return Ok(None) };
        let mut all = Vec::new();
        while let Some(thing) = reading.read()? {
            all.push(thing);
        }
        Ok(Some(all))
    }

    fn folder() -> (tempfile::TempDir, SnapshotFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = SnapshotFile::new(dir.path(), &key(1));
        (dir, file)
    }

    #[test]
    fn what_was_written_is_read_and_only_its_user_may() {
        let (dir, file) = folder();
        assert!(read_all(&file).unwrap().is_none(), "there is none");
        let written = write(&file, &things(9));
        assert_eq!((written.things, written.left_out), (10, 0));
        let found = std::fs::metadata(file.path()).unwrap();
        assert_eq!((found.len(), found.permissions().mode() & 0o777), (written.bytes, 0o600));
        assert_eq!(file.open().unwrap().unwrap().head(), &head());
        assert_eq!(read_all(&file).unwrap(), Some(things(9)));
        write(&file, &[]);
        assert_eq!(read_all(&file).unwrap(), Some(vec![]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing temporary is left");
    }

    #[test]
    fn a_life_that_ends_in_the_middle_of_writing_leaves_the_snapshot_before() {
        let (dir, file) = folder();
        write(&file, &things(3));
        for put in [0, 1, 50] {
            let mut writing = file.begin(&head()).unwrap();
            writing.put(&things(put)).unwrap();
            if put == 1 {
                drop(writing);
            } else {
                // As by a signal: nothing is tidied up.
                std::mem::forget(writing);
            }
            assert_eq!(read_all(&file).unwrap(), Some(things(3)));
        }
        std::fs::write(dir.path().join("identity.key"), "not ours").unwrap();
        let count = || std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(count(), 4, "what was left is still there");
        file.clear().unwrap();
        assert_eq!(count(), 2);
        assert_eq!(read_all(&file).unwrap(), Some(things(3)));
        write(&file, &things(4));
        assert_eq!(read_all(&file).unwrap(), Some(things(4)));
    }

    #[test]
    fn a_snapshot_that_is_cut_changed_or_longer_anywhere_is_refused() {
        let (_dir, file) = folder();
        write(&file, &things(3));
        let whole = std::fs::read(file.path()).unwrap();
        let refused = |bytes: &[u8], what: &str| {
            std::fs::write(file.path(), bytes).unwrap();
            assert!(read_all(&file).is_err(), "{what}");
        };
        for at in 0..whole.len() {
            refused(&whole[..at], &format!("cut at {at}"));
            let mut changed = whole.clone();
            changed[at] ^= 1;
            refused(&changed, &format!("changed at {at}"));
        }
        refused(&[whole.as_slice(), b"x"].concat(), "longer");
    }

    #[test]
    fn a_snapshot_of_another_server_or_of_another_version_is_refused() {
        let (dir, file) = folder();
        write(&file, &things(3));
        let other = SnapshotFile::new(dir.path(), &key(2));
        assert!(matches!(read_all(&other), Err(SnapshotError::Damaged(_))));
        let mut bytes = std::fs::read(file.path()).unwrap();
        bytes[MARK.len()] = 3;
        std::fs::write(file.path(), bytes).unwrap();
        assert!(matches!(read_all(&file), Err(SnapshotError::Version(3))));
        File::create(file.path()).unwrap().set_len(SNAPSHOT_BYTES + 1).unwrap();
        assert!(matches!(read_all(&file), Err(SnapshotError::TooLarge(_))), "nothing of it is read");
    }

    #[test]
    fn what_can_not_be_written_is_an_error_and_leaves_the_snapshot_before() {
        let (dir, file) = folder();
        write(&file, &things(3));
        let mut writing = file.begin(&head()).unwrap();
        writing.put(&things(9)).unwrap();
        file.clear().unwrap();
        assert!(writing.finish().is_err(), "its file is gone");
        assert_eq!(read_all(&file).unwrap(), Some(things(3)));
        let nowhere = SnapshotFile::new(&dir.path().join("none"), &key(1));
        assert!(nowhere.begin(&head()).is_err() && nowhere.open().unwrap().is_none());
    }

    #[test]
    fn what_is_too_large_is_left_out() {
        let (_dir, file) = folder();
        let large =
            Kept::Statement { bytes: Bytes::from(vec![1; THING_BYTES]), keep: T0, brought_by: Bringer::Own };
        let written = write(&file, &[large, Kept::Member(peer(1))]);
        assert_eq!((written.things, written.left_out), (1, 1));
        assert_eq!(read_all(&file).unwrap(), Some(vec![Kept::Member(peer(1))]));
    }
}
