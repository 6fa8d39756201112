//! The catalogue as the API sees it: the store's work, off the async threads.
//!
//! Promises: a write is acknowledged after it is durable; writes and reads that wait are bounded; a search, which can cost most,
//! never takes all readers.

use std::sync::Arc;

use p2psb_proto::model::host::{HostClaim, HostLease};
use p2psb_proto::model::record::{RecordError, Signed};
use p2psb_proto::model::release::PackageEntry;
use p2psb_proto::model::time::UnixMillis;
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_runtime::Clock;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::core::hosts::ClaimError;
use crate::core::limits::QUEUE_BYTES;
use crate::store::writer::{Job, Refused, Settle, Watcher, Writer};
use crate::store::{
    AnnounceError, Announced, Announcement, Appended, PublishError, Read, Store, StoreError, Write,
};

/// The store could not even be asked, or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// Too many writes wait.
    #[error("too many writes wait for the disk; try again in a moment")]
    Overloaded,
    /// The service stops.
    #[error("the index is stopping; use another one, or try again in a moment")]
    Stopping,
    /// A defect: the work ended without a result.
    #[error("the work for this call ended by a fault of the program; see its log")]
    Lost,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The threads that work on the store.
pub struct Catalogue {
    store: Box<dyn Store>,
    writer: Mutex<Option<Writer>>,
    /// Bytes of writes that may wait.
    room: Arc<Semaphore>,
    idle: Mutex<Vec<Box<dyn Read>>>,
    readers: Arc<Semaphore>,
    searches: Arc<Semaphore>,
    /// Signatures are checked by as many threads as the store is read by.
    verifiers: Arc<Semaphore>,
}

impl Catalogue {
    /// Starts on a store, with so many readers. `watcher` is told how every transaction ends.
    pub fn start(
        store: Box<dyn Store>,
        readers: usize,
        clock: Clock,
        watcher: Watcher,
    ) -> Result<Self, StoreError> {
        let now = move || UnixMillis(clock.unix_millis());
        let writer = Writer::start(store.writer()?, now, watcher)
            .map_err(|error| StoreError::Failed(format!("cannot start the writer's thread: {error}")))?;
        let permits = |number: usize| Arc::new(Semaphore::new(number.max(1)));
        Ok(Self {
            // One is opened now: what is wrong with the store shows at the start.
            idle: Mutex::new(vec![store.reader()?]),
            store,
            writer: Mutex::new(Some(writer)),
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            readers: permits(readers),
            searches: permits(readers / 2),
            verifiers: permits(readers),
        })
    }

    /// Appends an admitted entry to its chain.
    pub async fn publish(
        &self,
        entry: Signed<PackageEntry>,
        now: UnixMillis,
    ) -> Result<Result<Appended, PublishError>, CatalogueError> {
        let bytes = prost::Message::encoded_len(&entry.to_wire());
        self.write(bytes, move |store| store.publish(&entry, now)).await
    }

    /// Takes a lease and admitted claims.
    pub async fn announce(
        &self,
        announcement: Announcement,
        bytes: usize,
        now: UnixMillis,
    ) -> Result<Result<Announced, AnnounceError>, CatalogueError> {
        self.write(bytes, move |store| store.announce(&announcement, now)).await
    }

    /// Checks the signatures of an announcement. Each claim has its own outcome.
    pub async fn verify(
        &self,
        lease: Option<SignedRecord>,
        claims: Vec<SignedRecord>,
    ) -> Result<Result<Verified, RecordError>, CatalogueError> {
        let permit = acquire(&self.verifiers).await?;
        let work = move || {
            let _permit = permit;
            let lease = Signed::<HostLease>::verify_field(lease)?;
            let claims = claims.into_iter().map(|claim| Ok(Signed::<HostClaim>::verify(claim)?)).collect();
            Ok(Verified { lease, claims })
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| CatalogueError::Lost)
    }

    /// Asks the store.
    pub async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        question: impl FnOnce(&mut dyn Read) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, CatalogueError> {
        let permit = acquire(&self.readers).await?;
        let this = Arc::clone(self);
        let work = move || {
            let _permit = permit;
            let idle = this.idle.lock().pop();
            let mut reader = idle.map_or_else(|| this.store.reader(), Ok)?;
            let answer = question(reader.as_mut());
            // A connection that failed is not used again: it may be the fault.
            if answer.is_ok() {
                this.idle.lock().push(reader);
            }
            answer
        };
        Ok(tokio::task::spawn_blocking(work).await.map_err(|_| CatalogueError::Lost)??)
    }

    /// Asks the store what may take long.
    pub async fn search<T: Send + 'static>(
        self: &Arc<Self>,
        question: impl FnOnce(&mut dyn Read) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, CatalogueError> {
        let permit = acquire(&self.searches).await?;
        self.read(move |store| {
            // Held until the work ends, even if nobody waits for it any more.
            let _permit = permit;
            question(store)
        })
        .await
    }

    /// Does something inside a transaction, and returns when that is durable.
    async fn write<T: Send + 'static, E: From<StoreError> + Send + 'static>(
        &self,
        bytes: usize,
        change: impl FnOnce(&mut dyn Write) -> Result<T, E> + Send + 'static,
    ) -> Result<Result<T, E>, CatalogueError> {
        let bytes = u32::try_from(bytes.max(1)).unwrap_or(u32::MAX);
        let room =
            Arc::clone(&self.room).try_acquire_many_owned(bytes).map_err(|_| CatalogueError::Overloaded)?;
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |store| {
            let changed = change(store);
            let settle: Settle = Box::new(move |committed| {
                let _room = room;
                // Nobody waits any more if the call was cancelled; the change is durable all the same.
                let _ = sender.send(changed.and_then(|value| committed.map(|()| value).map_err(E::from)));
            });
            settle
        });
        let submitted = self.writer.lock().as_ref().map_or(Err(Refused::Ended), |writer| writer.submit(job));
        submitted.map_err(|refused| match refused {
            Refused::Full => CatalogueError::Overloaded,
            Refused::Ended => CatalogueError::Stopping,
        })?;
        receiver.await.map_err(|_| CatalogueError::Lost)
    }

    /// Settles what is queued, takes nothing more, and closes the database.
    pub async fn close(&self) {
        let writer = self.writer.lock().take();
        let finished = tokio::task::spawn_blocking(move || {
            if let Some(writer) = writer {
                writer.finish();
            }
        });
        if finished.await.is_err() {
            tracing::error!("the writer's thread did not end well");
        }
        self.readers.close();
        self.searches.close();
        self.idle.lock().clear();
    }
}

async fn acquire(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, CatalogueError> {
    Arc::clone(semaphore).acquire_owned().await.map_err(|_| CatalogueError::Stopping)
}

/// An announcement whose signatures were checked.
#[derive(Debug)]
pub struct Verified {
    /// The lease.
    pub lease: Signed<HostLease>,
    /// The claims, in their order.
    pub claims: Vec<Result<Signed<HostClaim>, ClaimError>>,
}
