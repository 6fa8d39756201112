//! Fetching from hosts over real links into a real catalogue: honest ones, lying ones, ones that lack something.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::host::{Host, link_to};
use bytes::Bytes;
use p2psb_peer_agent::content::fetch::Start;
use p2psb_peer_agent::content::publish::publish;
use p2psb_peer_agent::exchange::ChunkSource;
use p2psb_peer_agent::fetch::transfer::{self, Outcome};
use p2psb_peer_agent::fetch::worker::{Answer, Order, Worker};
use p2psb_peer_agent::store::{Holding, Store};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::Digest;

/// What a host does with each chunk that is asked for, the number of chunks before it known.
type Bend = Box<dyn Fn(usize, Bytes) -> Option<Bytes> + Send + Sync>;

/// A catalogue whose answers can be bent.
struct Bent {
    store: Arc<Store>,
    bend: Bend,
    read: AtomicUsize,
}

impl ChunkSource for Bent {
    fn read(
        &self,
        manifest: &Digest,
        digests: &[Digest],
        take: &mut dyn FnMut(Option<Bytes>) -> ControlFlow<()>,
    ) -> Result<bool, Failure> {
        ChunkSource::read(self.store.as_ref(), manifest, digests, &mut |chunk| {
            let number = self.read.fetch_add(1, Ordering::Relaxed);
            take(chunk.and_then(|chunk| (self.bend)(number, chunk)))
        })
    }
}

/// A published folder, and where it may be fetched to.
struct Scene {
    dir: tempfile::TempDir,
    published: Arc<Store>,
    manifest: Digest,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("content");
        std::fs::create_dir_all(folder.join("deep/er")).unwrap();
        std::fs::create_dir(folder.join("empty")).unwrap();
        std::fs::write(folder.join("nothing"), "").unwrap();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut noise = |size: usize| std::iter::repeat_with(|| rng.u8(..)).take(size).collect::<Vec<u8>>();
        std::fs::write(folder.join("large"), noise(9_000_000)).unwrap();
        for n in 0..500 {
            std::fs::write(folder.join(format!("deep/er/{n}")), noise(n * 7)).unwrap();
        }
        let published = Self::open(&dir.path().join("a"));
        let cancel = AtomicBool::new(false);
        let manifest = publish(&published, &[folder], &mut |_| {}, &cancel).unwrap().manifest;
        Self { dir, published, manifest }
    }

    fn open(folder: &Path) -> Arc<Store> {
        std::fs::create_dir_all(folder).unwrap();
        Arc::new(Store::open(folder).unwrap())
    }

    fn host(&self, bend: impl Fn(usize, Bytes) -> Option<Bytes> + Send + Sync + 'static) -> Host {
        let store = Arc::clone(&self.published);
        Host::start(Bent { store, bend: Box::new(bend), read: AtomicUsize::new(0) })
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("fetched")
    }

    async fn worker(&self, store: &Arc<Store>) -> Worker {
        Worker::open(Arc::clone(store), self.manifest, self.target(), Start::Asked).await.unwrap()
    }

    async fn fetch_from(&self, worker: &mut Worker, host: &Host) -> (Outcome, u64) {
        let (mut link, mut delivered) = (link_to(host).await, 0);
        let outcome = transfer::run(worker, &mut link, self.manifest, &mut delivered).await.unwrap();
        (outcome, delivered)
    }

    async fn finish(&self, mut worker: Worker) {
        let answer = worker.ask(Order::Finish).await.unwrap();
        assert!(matches!(answer, Answer::Finished(_)), "{answer:?}");
        worker.close().await;
        let diff = std::process::Command::new("diff")
            .arg("-r")
            .args([self.dir.path().join("content"), self.target()])
            .output()
            .unwrap();
        assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_comes_over_whole_and_is_held_from_then_on() {
    let scene = Scene::new();
    let (host, store) = (scene.host(|_, chunk| Some(chunk)), Scene::open(&scene.dir.path().join("b")));
    let mut worker = scene.worker(&store).await;
    let (outcome, delivered) = scene.fetch_from(&mut worker, &host).await;
    assert!(matches!(outcome, Outcome::Complete), "{outcome:?}");
    assert!(delivered > 500);
    let progress = worker.progress();
    assert_eq!((progress.bytes_done, progress.files_total), (progress.bytes_total, 502));
    scene.finish(worker).await;
    assert_eq!(store.holding(&scene.manifest).unwrap(), Holding::Complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_byte_is_noticed_and_another_host_completes_the_rest() {
    let scene = Scene::new();
    let lie = |number: usize, chunk: Bytes| {
        let mut bytes = chunk.to_vec();
        if number >= 60 {
            bytes[0] ^= 1;
        }
        Some(Bytes::from(bytes))
    };
    let (liar, honest) = (scene.host(lie), scene.host(|_, chunk| Some(chunk)));
    let store = Scene::open(&scene.dir.path().join("b"));
    let mut worker = scene.worker(&store).await;
    let (outcome, delivered) = scene.fetch_from(&mut worker, &liar).await;
    assert!(matches!(outcome, Outcome::Lied(_)), "{outcome:?}");
    assert!(delivered < 500 && !scene.target().exists());
    let (outcome, _) = scene.fetch_from(&mut worker, &honest).await;
    assert!(matches!(outcome, Outcome::Complete), "{outcome:?}");
    scene.finish(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_lacks_a_chunk_gives_the_others_first() {
    let scene = Scene::new();
    let (partial, whole) =
        (scene.host(|number, chunk| (number != 30).then_some(chunk)), scene.host(|_, chunk| Some(chunk)));
    let store = Scene::open(&scene.dir.path().join("b"));
    let mut worker = scene.worker(&store).await;
    let (outcome, delivered) = scene.fetch_from(&mut worker, &partial).await;
    let Outcome::Left(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.reason, Reason::NoHosts, "{}", failure.message);
    assert!(delivered > 30);
    let (outcome, _) = scene.fetch_from(&mut worker, &whole).await;
    assert!(matches!(outcome, Outcome::Complete), "{outcome:?}");
    scene.finish(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_of_another_size_is_a_broken_protocol() {
    let scene = Scene::new();
    let longer = |number: usize, chunk: Bytes| {
        Some(if number < 20 { chunk } else { Bytes::from([&chunk[..], &[0; 100_000]].concat()) })
    };
    let (host, store) = (scene.host(longer), Scene::open(&scene.dir.path().join("b")));
    let mut worker = scene.worker(&store).await;
    let (outcome, _) = scene.fetch_from(&mut worker, &host).await;
    let Outcome::Left(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.reason, Reason::UnexpectedMessage, "{}", failure.message);
    worker.close().await;
    assert!(!scene.target().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_fetch_goes_on_where_it_was() {
    let scene = Scene::new();
    let stops = scene.host(|number, chunk| (number < 100).then_some(chunk));
    let store = Scene::open(&scene.dir.path().join("b"));
    let mut worker = scene.worker(&store).await;
    let (outcome, first) = scene.fetch_from(&mut worker, &stops).await;
    assert!(matches!(outcome, Outcome::Left(_)), "{outcome:?}");
    worker.close().await;
    drop(store);
    let store = Scene::open(&scene.dir.path().join("b"));
    let whole = scene.host(|_, chunk| Some(chunk));
    let mut worker = scene.worker(&store).await;
    let (outcome, second) = scene.fetch_from(&mut worker, &whole).await;
    assert!(matches!(outcome, Outcome::Complete), "{outcome:?}");
    assert!(first > 50 && second > 0);
    let all = 9_000_000 / (64 * 1024) + 500;
    assert!(second < all, "{second} of about {all} chunks came in the second run");
    scene.finish(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_liars_in_a_row_do_not_make_it_lose_track() {
    let scene = Scene::new();
    let store = Scene::open(&scene.dir.path().join("b"));
    let mut worker = scene.worker(&store).await;
    // Each lies later than the one before, so that hosts are left with more and less on its way.
    for honest in (4..100).step_by(8) {
        let lie = move |number: usize, chunk: Bytes| {
            let mut bytes = chunk.to_vec();
            bytes[0] ^= u8::from(number >= honest);
            Some(Bytes::from(bytes))
        };
        let (outcome, _) = scene.fetch_from(&mut worker, &scene.host(lie)).await;
        assert!(matches!(outcome, Outcome::Lied(_)), "{outcome:?}");
    }
    let (outcome, _) = scene.fetch_from(&mut worker, &scene.host(|_, chunk| Some(chunk))).await;
    assert!(matches!(outcome, Outcome::Complete), "{outcome:?}");
    scene.finish(worker).await;
}
