//! Where the catalogue is kept, behind two narrow traits: [`Read`] and [`Write`].
//!
//! Promises of every store: what is committed survives a crash; a read sees one moment; what is written was verified, and what
//! is damaged on disk is reported, never passed on. Work here is synchronous: [`crate::catalogue`] keeps it off the async threads.

pub mod error;
pub mod seal;
pub mod sqlite;
pub mod writer;

use p2psb_proto::model::host::{HostClaim, HostLease};
use p2psb_proto::model::record::Signed;
use p2psb_proto::model::release::PackageEntry;
use p2psb_proto::model::time::UnixMillis;
use p2psb_proto::model::{Digest, PackageName, PublisherId};
use p2psb_proto::wire::common::v1::SignedRecord;
use semver::Version;

use crate::core::hosts::ClaimError;
use crate::core::page::{AfterHit, AfterHost, AfterPackage, BeforeSeq, Page, PageSize};
use crate::core::resolve::Requirement;
use crate::core::search::Query;
use crate::core::{PackageId, Summary};

pub use error::{AnnounceError, PublishError, StoreError};
pub use sqlite::SqliteStore;

/// A place to keep the catalogue. Readers and writer are connections of their own, each for one thread at a time.
pub trait Store: Send + Sync + 'static {
    /// Opens a connection for reading.
    fn reader(&self) -> Result<Box<dyn Read>, StoreError>;
    /// Opens a connection for writing.
    fn writer(&self) -> Result<Box<dyn Write>, StoreError>;
}

/// Queries. Each sees one moment of the catalogue.
pub trait Read: Send {
    /// The newest entry of a chain.
    fn head(&mut self, package: &PackageId) -> Result<Option<SignedRecord>, StoreError>;

    /// Who has a package of this name: at most `limit` of them.
    fn owners(&mut self, name: &PackageName, limit: usize) -> Result<Vec<PublisherId>, StoreError>;

    /// The best release of a package.
    fn resolve(&mut self, package: &PackageId, wanted: &Requirement) -> Result<Resolution, StoreError>;

    /// A chain, newest entry first. `None` if there is no such package.
    fn entries(
        &mut self,
        package: &PackageId,
        after: Option<BeforeSeq>,
        size: PageSize,
    ) -> Result<Option<Page<(BeforeSeq, SignedRecord)>>, StoreError>;

    /// Packages that have a release that is not yanked, by name, then publisher.
    fn packages(
        &mut self,
        publisher: Option<&PublisherId>,
        after: Option<&AfterPackage>,
        size: PageSize,
        now: UnixMillis,
    ) -> Result<Page<Summary>, StoreError>;

    /// Packages that hold all words: an exact name first, then by relevance.
    fn search(
        &mut self,
        query: &Query,
        after: Option<&AfterHit>,
        size: PageSize,
        now: UnixMillis,
    ) -> Result<Page<(AfterHit, Summary)>, StoreError>;

    /// Hosts of some content whose lease runs, heard of last first.
    fn hosts(
        &mut self,
        manifest: &Digest,
        after: Option<AfterHost>,
        size: PageSize,
        now: UnixMillis,
    ) -> Result<Page<Hosted>, StoreError>;
}

/// Changes, in transactions: between [`Write::begin`] and [`Write::commit`] any number of them, each of which happens wholly or,
/// if it returns an error, not at all. None may be acknowledged before the commit succeeded.
pub trait Write: Send {
    /// Begins a transaction. If it can't, everything until the next one fails with the reason.
    fn begin(&mut self);

    /// Makes everything since `begin` durable; after an error nothing of it happened.
    fn commit(&mut self) -> Result<(), StoreError>;

    /// Appends an admitted entry to its chain.
    fn publish(&mut self, entry: &Signed<PackageEntry>, now: UnixMillis) -> Result<Appended, PublishError>;

    /// Takes a host's lease and claims.
    fn announce(&mut self, announcement: &Announcement, now: UnixMillis) -> Result<Announced, AnnounceError>;

    /// Removes some of what expired hosts left behind, at most `rows` rows.
    fn sweep(&mut self, now: UnixMillis, rows: usize) -> Result<Swept, StoreError>;
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its seq.
    pub seq: u64,
    /// Its digest.
    pub digest: Digest,
    /// It is new; else it was in the chain before.
    pub fresh: bool,
}

/// The answer to a requirement.
#[derive(Clone, Debug, PartialEq)]
pub enum Resolution {
    /// There is no such package.
    PackageUnknown,
    /// No release fits. The newest one that requirements can choose is named, if there is one.
    NoneFits {
        /// The highest version that is not yanked, releases before pre-releases.
        newest: Option<Version>,
    },
    /// A release fits.
    Found(Box<Resolved>),
}

/// A release that fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// The entry that holds it.
    pub entry: SignedRecord,
    /// The head of its chain.
    pub head: SignedRecord,
    /// It is yanked.
    pub yanked: bool,
}

/// A host of some content.
#[derive(Clone, Debug, PartialEq)]
pub struct Hosted {
    /// Where the next page begins if this is the last one shown.
    pub cursor: AfterHost,
    /// The claim.
    pub claim: SignedRecord,
    /// The running lease.
    pub lease: SignedRecord,
    /// When the host was last heard of.
    pub seen: UnixMillis,
}

/// What a host says: its lease, and claims that may come with it, each with its position in the call.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// The lease.
    pub lease: Signed<HostLease>,
    /// Admitted claims.
    pub claims: Vec<(usize, Signed<HostClaim>)>,
}

/// What became of an announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Claims that were refused, by position.
    pub refused: Vec<(usize, ClaimError)>,
    /// Claims of the host that hold now.
    pub known_claims: u64,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Rows removed.
    pub rows: usize,
    /// There is more to remove.
    pub more: bool,
}
