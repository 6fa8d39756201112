//! Publishers that lie: their releases are signed as they should be, and point at manifests that no honest agent would
//! have made. They host that content themselves.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use p2psb_client::{Endpoint, Identity};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::{Action, Digest, PackageEntry, PeerId, PublisherId, Release, Signed};
use p2psb_proto::wire::package_index::v1::PublishRequest;
use p2psb_proto::wire::package_index::v1::package_index_service_client::PackageIndexServiceClient;
use p2psb_proto::wire::peer::v1 as wire;
use p2psb_proto::wire::peer::v1::EntryKind;
use p2psb_proto::wire::peer::v1::exchange_frame::Message;
use p2psb_proto::wire::peer::v1::peer_service_server::PeerService;
use p2psb_runtime::Running;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::liar::{claim, open};
use crate::peer::{Peer, network, now};
use crate::trouble::{Context as _, Result};

/// What every forged file holds.
pub const CONTENT: &[u8] = b"forged";

/// Frames on their way.
const FRAMES: usize = 16;

/// Content with a manifest that was encoded without a look at its rules.
#[derive(Clone, Debug)]
pub struct Forgery {
    manifest: Digest,
    total_size: u64,
    file_count: u64,
    have: HashMap<Digest, Bytes>,
}

/// A file at this path, whatever it is.
#[must_use]
pub fn file(path: &str) -> wire::Entry {
    wire::Entry {
        path: path.into(),
        kind: EntryKind::File.into(),
        size: CONTENT.len() as u64,
        file_digest: Digest::of(CONTENT).to_wire(),
        ..wire::Entry::default()
    }
}

/// A directory.
#[must_use]
pub fn directory(path: &str) -> wire::Entry {
    wire::Entry { path: path.into(), kind: EntryKind::Directory.into(), ..wire::Entry::default() }
}

/// A symlink.
#[must_use]
pub fn symlink(path: &str, target: &str) -> wire::Entry {
    wire::Entry {
        path: path.into(),
        kind: EntryKind::Symlink.into(),
        link_target: target.into(),
        ..wire::Entry::default()
    }
}

impl Forgery {
    /// Content of these entries, in this order.
    #[must_use]
    pub fn new(entries: &[wire::Entry]) -> Self {
        let page = wire::EntryPage { entries: entries.to_vec() }.encode_to_vec();
        let files = entries.iter().filter(|entry| entry.kind() == EntryKind::File);
        let (total_size, file_count) =
            files.fold((0, 0), |(size, count), file| (size + file.size, count + 1));
        let root = wire::ManifestRoot {
            format: 1,
            digest_algorithm: wire::DigestAlgorithm::Blake3.into(),
            total_size,
            file_count,
            entry_count: entries.len() as u64,
            chunk_count: file_count,
            index_levels: 0,
            pages: vec![wire::PageRef {
                digest: Digest::of(&page).to_wire(),
                size: u32::try_from(page.len()).unwrap_or(u32::MAX),
            }],
        }
        .encode_to_vec();
        let manifest = Digest::of(&root);
        let have = [root, page, CONTENT.to_vec()].map(|bytes| (Digest::of(&bytes), Bytes::from(bytes)));
        Self { manifest, total_size, file_count, have: HashMap::from(have) }
    }

    fn chunk(&self, digest: &Bytes) -> Option<&Bytes> {
        self.have.get(&Digest::from_slice(digest).ok()?)
    }
}

/// A publisher that lies, and hosts what it forged. It ends with the value.
pub struct Forger {
    peer: Peer,
    publisher: Identity,
    forgery: Forgery,
    asked: Arc<AtomicU64>,
    _running: Running,
}

impl Forger {
    /// A forger with sessions at `rendezvous`.
    pub async fn start(forgery: Forgery, rendezvous: &[Endpoint]) -> Result<Self> {
        let identity = Identity::ephemeral().context("making a key")?;
        let asked = Arc::new(AtomicU64::new(0));
        let service =
            Hosting { me: identity.peer_id(), forgery: Arc::new(forgery.clone()), asked: Arc::clone(&asked) };
        let (peer, running) = open(identity, rendezvous, service)?;
        let publisher = Identity::ephemeral().context("making a key")?;
        Ok(Self { peer, publisher, forgery, asked, _running: running })
    }

    /// The peer that hosts it.
    #[must_use]
    pub const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// For how much of it the forger was asked.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Releases the forgery under a name, with a signature that is right, and claims to host it. Gives its reference.
    pub async fn release(&self, index: &Endpoint, name: &str) -> Result<String> {
        let publisher = PublisherId::new(self.publisher.key().public());
        let Forgery { manifest, total_size, file_count, .. } = self.forgery;
        let release = Release {
            version: semver::Version::new(1, 0, 0),
            manifest,
            total_size,
            file_count,
            title: String::new(),
            description: String::new(),
            tags: Vec::new(),
            license: String::new(),
        };
        let entry = PackageEntry {
            publisher,
            name: name.parse().context(name)?,
            seq: 1,
            prev: None,
            issued: now(),
            action: Action::Release(release),
        };
        let entry = Signed::sign(&entry, self.publisher.key()).context("signing")?;
        let connection = self.peer.dial(index).await?;
        let origin = connection.origin();
        let mut client = PackageIndexServiceClient::with_origin(connection, origin);
        let request = PublishRequest { entry: Some(entry.to_wire()) };
        client.publish(request).await.context("publishing")?;
        claim(&self.peer, index, manifest).await?;
        Ok(format!("{publisher}/{name}@1.0.0"))
    }
}

/// Serves a forgery.
#[derive(Clone)]
struct Hosting {
    me: PeerId,
    forgery: Arc<Forgery>,
    asked: Arc<AtomicU64>,
}

type Answer = std::result::Result<wire::ExchangeResponse, Status>;
type Answers = Pin<Box<dyn Stream<Item = Answer> + Send>>;

#[tonic::async_trait]
impl PeerService for Hosting {
    type ExchangeStream = Answers;

    async fn exchange(
        &self,
        request: Request<Streaming<wire::ExchangeRequest>>,
    ) -> std::result::Result<Response<Answers>, Status> {
        let (down, answers) = mpsc::channel(FRAMES);
        tokio::spawn(self.clone().answer(request.into_inner(), down));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

impl Hosting {
    async fn answer(self, mut inbound: Streaming<wire::ExchangeRequest>, down: mpsc::Sender<Answer>) {
        while let Some(Ok(request)) = inbound.next().await {
            let messages = match request.frame.and_then(|frame| frame.message) {
                Some(Message::Hello(_)) => match network() {
                    Ok(network) => vec![Message::Hello(Hello::own(network, self.me, "forger/1", now()))],
                    Err(_) => return,
                },
                Some(Message::Request(asked)) => self.chunks(&asked),
                _ => Vec::new(),
            };
            for message in messages {
                let frame = Some(wire::ExchangeFrame { message: Some(message) });
                if down.send(Ok(wire::ExchangeResponse { frame })).await.is_err() {
                    return;
                }
            }
        }
    }

    fn chunks(&self, asked: &wire::ChunkRequest) -> Vec<Message> {
        self.asked.fetch_add(asked.digests.len() as u64, Ordering::Relaxed);
        let (mut parts, mut missing) = (Vec::new(), Vec::new());
        for (index, digest) in (0..).zip(&asked.digests) {
            match self.forgery.chunk(digest) {
                Some(data) => parts.push(wire::ChunkPart {
                    index,
                    offset: 0,
                    total_size: u32::try_from(data.len()).unwrap_or(u32::MAX),
                    data: data.clone(),
                }),
                None => missing.push(index),
            }
        }
        let request_id = asked.request_id;
        let done = wire::RequestDone { request_id, missing, ..wire::RequestDone::default() };
        vec![Message::Chunks(wire::ChunkBatch { request_id, parts }), Message::Done(done)]
    }
}
