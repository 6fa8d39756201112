//! How each error travels: the one place that knows.

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::limits::ANNOUNCED_CLAIMS;
use p2psb_proto::model::record::RecordError;
use p2psb_proto::model::{PackageName, PublisherId};
use p2psb_proto::wire::common::v1::SignedRecord;
use prost::Message as _;
use semver::Version;
use tonic::Status;

use crate::catalogue::CatalogueError;
use crate::core::PackageId;
use crate::core::chain::ChainError;
use crate::core::hosts::ClaimError;
use crate::core::limits::{AMBIGUOUS_SHOWN, QUEUE_RETRY, QuotaError};
use crate::core::page::PageTokenError;
use crate::core::resolve::RequirementError;
use crate::core::search::QueryError;
use crate::store::{AnnounceError, PublishError, StoreError};

/// The largest record that is attached to an error. Errors travel in headers, of which clients take 16 KiB; who needs a larger
/// head asks for it by `GetHead`.
pub(super) const ATTACHED_BYTES: usize = 8 * 1024;

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{field}: {problem}")]
    Argument { field: &'static str, problem: String },
    #[error(
        "{0} claims in one announcement, at most {ANNOUNCED_CLAIMS} are allowed; announce the rest with the same lease"
    )]
    TooManyClaims(usize),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Requirement(#[from] RequirementError),
    #[error(transparent)]
    Token(#[from] PageTokenError),
    #[error("{0} is unknown here")]
    PackageUnknown(PackageId),
    #[error("no publisher has a package {0} here")]
    NameUnknown(PackageName),
    #[error("several publishers have a package {name}: {}; name one of them as publisher/{name}", shown(.owners))]
    Ambiguous { name: PackageName, owners: Vec<PublisherId> },
    #[error("no release of {package} fits {requirement:?}; {}", hint(.newest))]
    NoneFits { package: PackageId, requirement: String, newest: Option<Version> },
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Announce(#[from] AnnounceError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

impl Refusal {
    /// A field that is not what it should be.
    pub(super) fn argument(field: &'static str, problem: impl ToString) -> Self {
        Self::Argument { field, problem: problem.to_string() }
    }
}

fn shown(owners: &[PublisherId]) -> String {
    let mut text =
        owners.iter().take(AMBIGUOUS_SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if owners.len() > AMBIGUOUS_SHOWN {
        text.push_str(", and others");
    }
    text
}

fn hint(newest: &Option<Version>) -> String {
    match newest {
        None => "all of its versions are yanked; who needs one names it as =x.y.z".into(),
        Some(version) if version.pre.is_empty() => format!("the newest is {version}"),
        Some(version) => format!("there are only pre-releases; the newest is named as ={version}"),
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let failure = failure(refusal);
        metrics::counter!("index_refusals_total", "reason" => failure.reason.as_str()).increment(1);
        failure.into_status()
    }
}

fn failure(refusal: Refusal) -> Failure {
    let message = refusal.to_string();
    let plain = |reason| Failure::new(reason, message.clone());
    match refusal {
        Refusal::Argument { field, .. } => plain(Reason::InvalidArgument).with("field", field),
        Refusal::TooManyClaims(_) => plain(Reason::InvalidArgument).with("field", "claims"),
        Refusal::Query(QueryError::Empty | QueryError::TooLong(_)) => {
            plain(Reason::InvalidArgument).with("field", "query")
        }
        Refusal::Record(error) => error.into(),
        Refusal::Requirement(_) => plain(Reason::RequirementInvalid),
        Refusal::Token(PageTokenError) => plain(Reason::PageTokenInvalid),
        Refusal::PackageUnknown(_) | Refusal::NameUnknown(_) => plain(Reason::PackageUnknown),
        Refusal::Ambiguous { owners, .. } => plain(Reason::NameAmbiguous).with("publishers", listed(&owners)),
        Refusal::NoneFits { .. } => plain(Reason::ReleaseUnknown),
        Refusal::Publish(error) => publish(error, message),
        Refusal::Announce(error) => announce(error, message),
        Refusal::Catalogue(error) => catalogue(error),
    }
}

/// For programs: separated by commas.
fn listed(owners: &[PublisherId]) -> String {
    owners.iter().take(AMBIGUOUS_SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn publish(error: PublishError, message: String) -> Failure {
    match error {
        PublishError::Refused { error, head } => attached(chain(error, message), head),
        PublishError::Quota(error) => quota(&error),
        PublishError::Store(error) => store(&error),
    }
}

fn chain(error: ChainError, message: String) -> Failure {
    let plain = |reason| Failure::new(reason, message);
    match error {
        ChainError::NotOwner { .. } => plain(Reason::NotOwner),
        ChainError::Record(error) => error.into(),
        ChainError::Unknown { .. } => plain(Reason::PackageUnknown),
        ChainError::HeadMoved { head, .. } => {
            plain(Reason::HeadMoved).with("head_seq", head.seq).with("head_digest", head.digest)
        }
        ChainError::VersionExists { .. } => plain(Reason::VersionExists),
        ChainError::VersionUnknown { .. } => plain(Reason::ReleaseUnknown),
        ChainError::NotYanked { .. } => plain(Reason::InvalidArgument).with("field", "unyank"),
    }
}

fn announce(error: AnnounceError, message: String) -> Failure {
    match error {
        AnnounceError::Lease(error) => error.into(),
        AnnounceError::Stale { stored, lease, .. } => {
            attached(Failure::new(Reason::RecordStale, message).with("stored_seq", stored), Some(lease))
        }
        AnnounceError::Equivocation { seq, lease } => {
            attached(Failure::new(Reason::RecordEquivocation, message).with("stored_seq", seq), Some(lease))
        }
        AnnounceError::Store(error) => store(&error),
    }
}

/// Why a single claim was refused.
pub(super) fn claim_reason(error: &ClaimError) -> Reason {
    match error {
        ClaimError::Record(error) => error.reason(),
        ClaimError::Foreign { .. } => Reason::InvalidArgument,
        ClaimError::Stale { .. } => Reason::RecordStale,
        ClaimError::Equivocation(_) => Reason::RecordEquivocation,
        ClaimError::Quota(_) => Reason::LimitExceeded,
    }
}

fn quota(error: &QuotaError) -> Failure {
    Failure::new(Reason::LimitExceeded, error.to_string()).with("limit", error.limit)
}

fn catalogue(error: CatalogueError) -> Failure {
    let message = error.to_string();
    match error {
        CatalogueError::Overloaded => Failure::new(Reason::LimitExceeded, message)
            .with("limit", "waiting_writes")
            .retry_after(QUEUE_RETRY),
        CatalogueError::Stopping => Failure::new(Reason::Draining, message).retry_after(QUEUE_RETRY),
        CatalogueError::Lost => Failure::new(Reason::Internal, message),
        CatalogueError::Store(error) => store(&error),
    }
}

/// What the store says is for the operator's log; callers learn what kind of trouble it is.
fn store(error: &StoreError) -> Failure {
    tracing::error!(%error, "the store failed");
    match error {
        StoreError::Full(_) => Failure::new(
            Reason::DiskFull,
            "the index has no room left; its operator must make some, until then use another index",
        ),
        StoreError::Damaged(_)
        | StoreError::TooNew { .. }
        | StoreError::Foreign(_)
        | StoreError::Failed(_) => Failure::new(
            Reason::StorageFailed,
            "the index can't use its database; its operator finds the cause in the log, until then use another index",
        ),
    }
}

fn attached(failure: Failure, record: Option<Box<SignedRecord>>) -> Failure {
    match record {
        Some(record) if record.encoded_len() <= ATTACHED_BYTES => failure.attach(*record),
        Some(_) | None => failure,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use p2psb_proto::error::{fact_of, reason_of, record_of};
    use p2psb_proto::model::{Digest, SecretKey};
    use tonic::Code;

    use super::*;
    use crate::core::chain::Head;

    fn package() -> PackageId {
        let publisher = PublisherId::new(SecretKey::from_seed(&[1; 32]).public());
        PackageId { publisher, name: "demo".parse().unwrap() }
    }

    fn head_moved(payload: usize) -> Status {
        let head = Head { seq: 7, digest: Digest::of(b"head") };
        let error = ChainError::HeadMoved { package: package(), seq: 3, head };
        let payload = Bytes::from(vec![0; payload]);
        let record = SignedRecord { format: 1, payload, ..SignedRecord::default() };
        let error = PublishError::Refused { error, head: Some(Box::new(record)) };
        Refusal::Publish(error).into()
    }

    #[test]
    fn a_moved_head_travels_with_its_record_unless_no_header_could_hold_it() {
        let status = head_moved(100);
        assert_eq!((status.code(), reason_of(&status)), (Code::Aborted, Some(Reason::HeadMoved)));
        assert!(record_of(&status).is_some());
        let status = head_moved(20_000);
        assert_eq!(record_of(&status), None);
        assert_eq!(fact_of(&status, "head_seq").as_deref(), Some("7"));
        assert!(status.details().len() < 1024);
    }

    #[test]
    fn ambiguous_names_list_some_publishers() {
        let owners: Vec<_> =
            (0..40).map(|seed| PublisherId::new(SecretKey::from_seed(&[seed; 32]).public())).collect();
        let status: Status = Refusal::Ambiguous { name: "demo".parse().unwrap(), owners }.into();
        assert_eq!(reason_of(&status), Some(Reason::NameAmbiguous));
        assert_eq!(fact_of(&status, "publishers").unwrap().split(',').count(), AMBIGUOUS_SHOWN);
        assert!(status.details().len() < 4096, "{}", status.details().len());
    }

    #[test]
    fn what_the_database_says_stays_in_the_log() {
        let status: Status = Refusal::Catalogue(StoreError::Failed("secret path /x".into()).into()).into();
        assert_eq!(reason_of(&status), Some(Reason::StorageFailed));
        assert!(!status.message().contains("/x"));
        let status: Status = Refusal::Publish(StoreError::Full("disk".into()).into()).into();
        assert_eq!((status.code(), reason_of(&status)), (Code::ResourceExhausted, Some(Reason::DiskFull)));
    }
}
