//! The pipeline: one thread walks, some read and cut files, some hash the chunks of large ones, and the caller takes the results in the
//! order of the walk.
//!
//! Invariant: memory is bounded, as every channel is, and each large file has at most [`BLOCKS`] blocks on their way. Nobody waits for
//! ever: the file whose results the caller waits for was taken first by a reader, and hashers wait for nobody.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use p2psb_proto::model::Digest;
use p2psb_proto::model::chunking::{ChunkClass, Chunker};
use p2psb_proto::model::manifest::ChunkRef;
use parking_lot::Mutex;

use super::error::{PublishError, shown_path};
use super::walk::{Found, Kind, Walk};

/// Most readers, and most hashers, whatever the number of cores.
const THREADS: usize = 8;
/// How far the walk may be ahead of the results.
const AHEAD: usize = 256;
/// Files up to this size are read whole, cut and hashed at once.
const SMALL: u64 = 1 << 20;
/// Bytes read at once of larger files, at least.
const BLOCK: usize = 2 << 20;
/// Blocks of one file that wait to be hashed.
const BLOCKS: usize = 4;
/// Chunks of one file that are passed on together.
const PART_CHUNKS: usize = 512;
/// How many such parts may wait for their turn.
const PARTS: usize = 32;

/// One entry, in order.
pub(super) struct Item {
    /// What was found.
    pub(super) found: Found,
    /// Of a file: its chunks, as they are hashed.
    pub(super) parts: Option<Receiver<Result<Part, PublishError>>>,
}

/// Some chunks of a file.
pub(super) struct Part {
    /// The file.
    pub(super) file: FileFacts,
    /// The next chunks.
    pub(super) chunks: Vec<ChunkRef>,
    /// No more come, and the file did not change while it was read.
    pub(super) last: bool,
}

/// A file as it was when it was opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct FileFacts {
    pub(super) size: u64,
    pub(super) mtime_ns: i64,
    pub(super) inode: u64,
    pub(super) executable: bool,
}

impl FileFacts {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.len(),
            mtime_ns: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
            inode: metadata.ino(),
            executable: metadata.mode() & 0o100 != 0,
        }
    }
}

/// A file to read.
struct Job {
    disk: PathBuf,
    parts: SyncSender<Result<Part, PublishError>>,
}

/// Bytes to hash: `cuts` are the ends of the chunks in `buffer`.
struct Block {
    buffer: Vec<u8>,
    cuts: Vec<usize>,
    done: SyncSender<Hashed>,
}

/// A block that was hashed; the buffer is used again.
struct Hashed {
    buffer: Vec<u8>,
    chunks: Vec<ChunkRef>,
}

/// Runs the pipeline; `consume` takes the entries in order, and ends everything by returning.
pub(super) fn run<T>(walk: Walk, consume: impl FnOnce(Receiver<Result<Item, PublishError>>) -> T) -> T {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let (job_sender, jobs) = sync_channel(AHEAD);
    let (block_sender, blocks) = sync_channel(threads);
    let (item_sender, items) = sync_channel(AHEAD);
    let (jobs, blocks) = (Mutex::new(jobs), Mutex::new(blocks));
    thread::scope(|scope| {
        scope.spawn(move || find(walk, &job_sender, &item_sender));
        for _ in 0..threads {
            let block_sender = block_sender.clone();
            scope.spawn(|| read_files(&jobs, block_sender));
            scope.spawn(|| hash_blocks(&blocks));
        }
        drop(block_sender);
        consume(items)
    })
}

fn find(walk: Walk, jobs: &SyncSender<Job>, items: &SyncSender<Result<Item, PublishError>>) {
    for found in walk {
        let item = found.map(|found| {
            let parts = matches!(found.kind, Kind::File).then(|| {
                let (sender, parts) = sync_channel(PARTS);
                // Without readers there is no consumer either, which the next send notices.
                let _ = jobs.send(Job { disk: found.disk.clone(), parts: sender });
                parts
            });
            Item { found, parts }
        });
        if items.send(item).is_err() {
            return;
        }
    }
}

fn read_files(jobs: &Mutex<Receiver<Job>>, blocks: SyncSender<Block>) {
    let mut reader = Reader { buffer: Vec::new(), blocks };
    loop {
        let job = jobs.lock().recv();
        let Ok(job) = job else { return };
        if let Err(error) = reader.read(&job) {
            // Nobody waits for it if the publish ended already.
            let _ = job.parts.send(Err(error));
        }
    }
}

fn hash_blocks(blocks: &Mutex<Receiver<Block>>) {
    loop {
        let block = blocks.lock().recv();
        let Ok(Block { buffer, cuts, done }) = block else { return };
        let chunks = chunks(&buffer, &cuts);
        let _ = done.send(Hashed { buffer, chunks });
    }
}

fn chunks(buffer: &[u8], cuts: &[usize]) -> Vec<ChunkRef> {
    let mut start = 0;
    let mut chunks = Vec::with_capacity(cuts.len());
    for end in cuts {
        if let Some(bytes) = buffer.get(start..*end) {
            chunks.push(chunk(bytes));
        }
        start = *end;
    }
    chunks
}

/// A chunk has at most 4 MiB.
fn chunk(bytes: &[u8]) -> ChunkRef {
    ChunkRef { size: bytes.len() as u32, digest: Digest::of(bytes) }
}

/// Reads files one after the other.
struct Reader {
    buffer: Vec<u8>,
    blocks: SyncSender<Block>,
}

impl Reader {
    fn read(&mut self, job: &Job) -> Result<(), PublishError> {
        let failed = |error| PublishError::gone(&job.disk, error);
        // Without waiting, should a pipe have taken its place.
        let options =
            || File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&job.disk);
        let mut file = options().map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(changed(&job.disk));
        }
        let facts = FileFacts::of(&metadata);
        let chunks = if facts.size <= SMALL {
            self.small(&mut file, facts.size, &job.disk)?
        } else {
            self.large(&mut file, facts, job)?
        };
        let after = file.metadata().map_err(failed)?;
        if FileFacts::of(&after) != facts {
            return Err(changed(&job.disk));
        }
        let _ = job.parts.send(Ok(Part { file: facts, chunks, last: true }));
        Ok(())
    }

    /// Reads, cuts and hashes a whole file.
    fn small(&mut self, file: &mut File, size: u64, path: &Path) -> Result<Vec<ChunkRef>, PublishError> {
        // One byte more, to notice that the file grew.
        let want = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(1);
        self.buffer.resize(self.buffer.len().max(want), 0);
        let room = self.buffer.get_mut(..want).unwrap_or_default();
        let got = fill(file, room).map_err(|e| PublishError::gone(path, e))?;
        if got as u64 != size {
            return Err(changed(path));
        }
        let bytes = self.buffer.get(..got).unwrap_or_default();
        Ok(Chunker::new(ChunkClass::of_size(size)).chunks(bytes).map(chunk).collect())
    }

    /// Reads and cuts a file block by block; hashers hash. Returns the chunks that were not passed on.
    fn large(&mut self, file: &mut File, facts: FileFacts, job: &Job) -> Result<Vec<ChunkRef>, PublishError> {
        let class = ChunkClass::of_size(facts.size);
        let chunker = Chunker::new(class);
        let block = BLOCK.max(2 * class.longest());
        let most = ((16 << 20) / block).clamp(2, BLOCKS);
        let mut out =
            Outgoing { job, facts, chunks: Vec::new(), waiting: VecDeque::new(), spare: Vec::new() };
        let mut rest: Vec<u8> = Vec::new();
        let mut total = 0;
        loop {
            let mut buffer = out.buffer(block, most)?;
            let carried = rest.len();
            buffer.get_mut(..carried).unwrap_or_default().copy_from_slice(&rest);
            let room = buffer.get_mut(carried..).unwrap_or_default();
            let wanted = room.len();
            let got = fill(file, room).map_err(|e| PublishError::gone(&job.disk, e))?;
            total += got as u64;
            let ended = got < wanted;
            if total > facts.size || (ended && total < facts.size) {
                return Err(changed(&job.disk));
            }
            let filled = buffer.get(..carried + got).unwrap_or_default();
            let (cuts, end) = cut(&chunker, class, filled, ended);
            rest.clear();
            rest.extend_from_slice(filled.get(end..).unwrap_or_default());
            let (done, hashed) = sync_channel(1);
            self.blocks.send(Block { buffer, cuts, done }).map_err(|_| PublishError::Interrupted)?;
            out.waiting.push_back(hashed);
            if ended {
                return out.finish();
            }
        }
    }
}

/// The cuts of a window, and where the last chunk ends that is sure. All of it is if the file ends here.
fn cut(chunker: &Chunker, class: ChunkClass, window: &[u8], ended: bool) -> (Vec<usize>, usize) {
    let mut cuts = Vec::with_capacity(window.len() / class.average() + 1);
    let mut start = 0;
    while let Some(rest) =
        window.get(start..).filter(|rest| !rest.is_empty() && (ended || rest.len() >= class.longest()))
    {
        start += chunker.cut(rest);
        cuts.push(start);
    }
    (cuts, start)
}

/// The blocks of one file that are being hashed, and their results in order.
struct Outgoing<'a> {
    job: &'a Job,
    facts: FileFacts,
    chunks: Vec<ChunkRef>,
    waiting: VecDeque<Receiver<Hashed>>,
    spare: Vec<Vec<u8>>,
}

impl Outgoing<'_> {
    /// A buffer of `block` bytes; waits if `most` are in use.
    fn buffer(&mut self, block: usize, most: usize) -> Result<Vec<u8>, PublishError> {
        while self.waiting.len() >= most {
            self.take()?;
        }
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(block, 0);
        Ok(buffer)
    }

    fn take(&mut self) -> Result<(), PublishError> {
        let Some(hashed) = self.waiting.pop_front() else { return Ok(()) };
        let Hashed { buffer, chunks } = hashed.recv().map_err(|_| PublishError::Interrupted)?;
        self.spare.push(buffer);
        self.chunks.extend(chunks);
        if self.chunks.len() >= PART_CHUNKS {
            let part = Part { file: self.facts, chunks: std::mem::take(&mut self.chunks), last: false };
            self.job.parts.send(Ok(part)).map_err(|_| PublishError::Interrupted)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<ChunkRef>, PublishError> {
        while !self.waiting.is_empty() {
            self.take()?;
        }
        Ok(self.chunks)
    }
}

fn changed(path: &Path) -> PublishError {
    PublishError::Changed(shown_path(path))
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read(room) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
