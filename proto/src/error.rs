//! Stable reasons of errors, and how they travel: a gRPC status with `google.rpc.ErrorInfo` (reason, domain `p2psb`), and
//! `RetryInfo` where waiting helps. Programs decide by the reason, people read the message.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use prost_types::Any;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::model::time::duration_to_wire;
use crate::wire::common::v1::{ErrorFact, ItemError, SignedRecord};

/// The domain of every `ErrorInfo` of p2pSB.
pub const DOMAIN: &str = "p2psb";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal => $code:ident),* $(,)?) => {
        /// Why a call failed. The text form never changes its meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name),* }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// As it stands in `ErrorInfo`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// The gRPC code it travels under.
            #[must_use]
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code),* }
            }

            /// The reason with this text form.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// A field is missing, too long, or not what it should be.
    InvalidArgument = "INVALID_ARGUMENT" => InvalidArgument,
    /// A record can't be decoded, or breaks a rule of its type.
    RecordMalformed = "RECORD_MALFORMED" => InvalidArgument,
    /// A record is larger than its type allows.
    RecordTooLarge = "RECORD_TOO_LARGE" => InvalidArgument,
    /// A record is of an unknown type, or not of the type that is needed here.
    RecordTypeUnexpected = "RECORD_TYPE_UNEXPECTED" => InvalidArgument,
    /// A signature does not fit key and payload.
    SignatureInvalid = "SIGNATURE_INVALID" => Unauthenticated,
    /// A newer record is known; it is attached.
    RecordStale = "RECORD_STALE" => FailedPrecondition,
    /// Another record with the same `seq` is known: the key signed two truths.
    RecordEquivocation = "RECORD_EQUIVOCATION" => FailedPrecondition,
    /// The record's time is over.
    RecordExpired = "RECORD_EXPIRED" => FailedPrecondition,
    /// The record's `seq` is more than 5 min ahead.
    SeqTooFarAhead = "SEQ_TOO_FAR_AHEAD" => FailedPrecondition,
    /// The clocks differ by more than 5 min.
    ClockSkew = "CLOCK_SKEW" => FailedPrecondition,
    /// The record or hello is of another community.
    NetworkMismatch = "NETWORK_MISMATCH" => FailedPrecondition,
    /// A live proof is wrong: replayed, or for another connection, server or role.
    ProofInvalid = "PROOF_INVALID" => Unauthenticated,
    /// A challenge was answered too late, or was never given.
    ChallengeExpired = "CHALLENGE_EXPIRED" => Unauthenticated,
    /// The server is not the one that was pinned or dialed.
    IdentityMismatch = "IDENTITY_MISMATCH" => Unauthenticated,
    /// The server at this address had another identity before.
    IdentityChanged = "IDENTITY_CHANGED" => Unauthenticated,
    /// A token is missing or wrong.
    AuthenticationRequired = "AUTHENTICATION_REQUIRED" => Unauthenticated,
    /// No protocol version in common.
    ProtocolUnsupported = "PROTOCOL_UNSUPPORTED" => FailedPrecondition,
    /// A feature that the other end requires is missing.
    FeatureRequired = "FEATURE_REQUIRED" => FailedPrecondition,
    /// The other end did not prove itself in time.
    HandshakeTimeout = "HANDSHAKE_TIMEOUT" => DeadlineExceeded,
    /// A message came out of order.
    UnexpectedMessage = "UNEXPECTED_MESSAGE" => InvalidArgument,
    /// The peer opened a newer session here.
    SessionReplaced = "SESSION_REPLACED" => Aborted,
    /// The peer was silent for too long.
    SessionLost = "SESSION_LOST" => DeadlineExceeded,
    /// This peer was never seen.
    PeerUnknown = "PEER_UNKNOWN" => NotFound,
    /// This peer was seen, but no record of it is valid any more.
    PeerOffline = "PEER_OFFLINE" => NotFound,
    /// Not enough of the rendezvous that ought to know this peer could be asked.
    LookupIncomplete = "LOOKUP_INCOMPLETE" => Unavailable,
    /// No rendezvous answered.
    NoRendezvous = "NO_RENDEZVOUS" => Unavailable,
    /// No endorsed provider of a service can be reached.
    NoProvider = "NO_PROVIDER" => Unavailable,
    /// A page token is not one of this query.
    PageTokenInvalid = "PAGE_TOKEN_INVALID" => InvalidArgument,
    /// This server bridges with nobody.
    BridgeDisabled = "BRIDGE_DISABLED" => FailedPrecondition,
    /// The other server has no right to bridge.
    BridgeUntrusted = "BRIDGE_UNTRUSTED" => PermissionDenied,
    /// An address is not dialed: it is unknown, or private.
    NotDialed = "NOT_DIALED" => FailedPrecondition,
    /// No other member of the backbone can look.
    NoOtherMember = "NO_OTHER_MEMBER" => Unavailable,
    /// A live link to this member exists.
    LinkDuplicate = "LINK_DUPLICATE" => AlreadyExists,
    /// A limit is reached; its name is in the metadata under `limit`.
    LimitExceeded = "LIMIT_EXCEEDED" => ResourceExhausted,
    /// The server is about to stop.
    Draining = "DRAINING" => Unavailable,
    /// No such package.
    PackageUnknown = "PACKAGE_UNKNOWN" => NotFound,
    /// No release fits.
    ReleaseUnknown = "RELEASE_UNKNOWN" => NotFound,
    /// A version requirement can't be parsed.
    RequirementInvalid = "REQUIREMENT_INVALID" => InvalidArgument,
    /// A package reference can't be parsed.
    ReferenceInvalid = "REFERENCE_INVALID" => InvalidArgument,
    /// A version can't be parsed.
    VersionInvalid = "VERSION_INVALID" => InvalidArgument,
    /// Several publishers have a package of this name.
    NameAmbiguous = "NAME_AMBIGUOUS" => FailedPrecondition,
    /// The chain has grown; its head is attached.
    HeadMoved = "HEAD_MOVED" => Aborted,
    /// This version was released before, with other content.
    VersionExists = "VERSION_EXISTS" => AlreadyExists,
    /// The chain forked, or went back.
    ChainForked = "CHAIN_FORKED" => DataLoss,
    /// The signer is not the owner of the package.
    NotOwner = "NOT_OWNER" => PermissionDenied,
    /// Nobody who hosts the content can be reached.
    NoHosts = "NO_HOSTS" => Unavailable,
    /// The host does not hold this manifest.
    ManifestUnknown = "MANIFEST_UNKNOWN" => NotFound,
    /// A manifest breaks its rules.
    ManifestInvalid = "MANIFEST_INVALID" => DataLoss,
    /// Bytes do not fit their digest.
    ChunkCorrupt = "CHUNK_CORRUPT" => DataLoss,
    /// A path is not allowed in a package: absolute, escaping, too long, too deep, not UTF-8.
    PathInvalid = "PATH_INVALID" => InvalidArgument,
    /// This disk can't hold a path.
    PathUnrepresentable = "PATH_UNREPRESENTABLE" => FailedPrecondition,
    /// A file can't be read.
    FileUnreadable = "FILE_UNREADABLE" => FailedPrecondition,
    /// A file changed while it was read.
    FileChanged = "FILE_CHANGED" => Aborted,
    /// Nothing is at this path.
    PathMissing = "PATH_MISSING" => NotFound,
    /// A symlink leads out of the package.
    SymlinkEscapes = "SYMLINK_ESCAPES" => InvalidArgument,
    /// A device, socket or pipe.
    FileKindUnsupported = "FILE_KIND_UNSUPPORTED" => InvalidArgument,
    /// The target folder exists and is not from this fetch.
    TargetExists = "TARGET_EXISTS" => AlreadyExists,
    /// The target can't be written.
    TargetUnwritable = "TARGET_UNWRITABLE" => FailedPrecondition,
    /// The disk is full.
    DiskFull = "DISK_FULL" => ResourceExhausted,
    /// Nothing is being fetched to this folder.
    FetchUnknown = "FETCH_UNKNOWN" => NotFound,
    /// The user gave it up.
    Cancelled = "CANCELLED" => Cancelled,
    /// A state file or database can't be used.
    StorageFailed = "STORAGE_FAILED" => Internal,
    /// A port can't be listened on: it is taken, or not this machine's.
    ListenFailed = "LISTEN_FAILED" => Unavailable,
    /// Another agent is running with the data folder.
    AgentRunning = "AGENT_RUNNING" => AlreadyExists,
    /// The other end could not be reached.
    Unreachable = "UNREACHABLE" => Unavailable,
    /// A defect of the program.
    Internal = "INTERNAL" => Internal,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure on its way to a caller.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Stable.
    pub reason: Reason,
    /// For people: what was wrong and what to do.
    pub message: String,
    /// When a repetition may succeed.
    pub retry_after: Option<Duration>,
    /// Facts for programs.
    pub metadata: Vec<(String, String)>,
    /// A record that the caller needs: the stored one, the head.
    pub record: Option<Box<SignedRecord>>,
}

impl Failure {
    /// A failure with nothing but reason and message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after: None, metadata: Vec::new(), record: None }
    }

    /// Waiting this long may help.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.push((key.to_owned(), value.to_string()));
        self
    }

    /// Attaches a record.
    #[must_use]
    pub fn attach(mut self, record: SignedRecord) -> Self {
        self.record = Some(Box::new(record));
        self
    }

    /// As a status.
    #[must_use]
    pub fn into_status(self) -> Status {
        let mut details = ErrorDetails::with_error_info(
            self.reason.as_str(),
            DOMAIN,
            self.metadata.into_iter().collect::<std::collections::HashMap<_, _>>(),
        );
        if let Some(after) = self.retry_after {
            details.set_retry_info(Some(after));
        }
        let status = Status::with_error_details(self.reason.code(), self.message, details);
        match self.record {
            None => status,
            Some(record) => attach(&status, &record),
        }
    }
}

impl From<Failure> for ItemError {
    /// As one item of a stream that goes on. An attached record does not fit in there.
    fn from(failure: Failure) -> Self {
        Self {
            reason: failure.reason.as_str().to_owned(),
            detail: failure.message,
            retry_after: failure.retry_after.map(duration_to_wire),
            facts: failure.metadata.into_iter().map(|(key, value)| ErrorFact { key, value }).collect(),
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        failure.into_status()
    }
}

const RECORD_URL: &str = "type.googleapis.com/p2psb.common.v1.SignedRecord";

fn attach(status: &Status, record: &SignedRecord) -> Status {
    let Ok(mut rpc) = tonic_types::pb::Status::decode(status.details()) else {
        return status.clone();
    };
    rpc.details.push(Any { type_url: RECORD_URL.into(), value: record.encode_to_vec() });
    Status::with_details(status.code(), status.message(), Bytes::from(rpc.encode_to_vec()))
}

/// The reason in a status, if it is one of ours.
#[must_use]
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    (info.domain == DOMAIN).then(|| Reason::parse(&info.reason)).flatten()
}

/// A fact in a status.
#[must_use]
pub fn fact_of(status: &Status, key: &str) -> Option<String> {
    status.get_details_error_info()?.metadata.get(key).cloned()
}

/// How long a status asks to wait.
#[must_use]
pub fn retry_after_of(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// The record attached to a status: still to be verified.
#[must_use]
pub fn record_of(status: &Status) -> Option<SignedRecord> {
    let rpc = tonic_types::pb::Status::decode(status.details()).ok()?;
    let any = rpc.details.into_iter().find(|any| any.type_url == RECORD_URL)?;
    SignedRecord::decode(any.value.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_in_a_failure_survives_the_status() {
        let record = SignedRecord { format: 1, ..SignedRecord::default() };
        let status = Failure::new(Reason::RecordStale, "older than what is stored")
            .retry_after(Duration::from_secs(3))
            .with("stored_seq", 7)
            .attach(record.clone())
            .into_status();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(reason_of(&status), Some(Reason::RecordStale));
        assert_eq!(fact_of(&status, "stored_seq").as_deref(), Some("7"));
        assert_eq!(retry_after_of(&status), Some(Duration::from_secs(3)));
        assert_eq!(record_of(&status), Some(record));
    }

    #[test]
    fn a_foreign_status_has_no_reason() {
        assert_eq!(reason_of(&Status::not_found("x")), None);
    }

    #[test]
    fn reasons_are_upper_snake_and_distinct() {
        let mut texts: Vec<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        for text in &texts {
            assert!(text.chars().all(|c| c.is_ascii_uppercase() || c == '_'), "{text}");
            assert_eq!(Reason::parse(text).map(Reason::as_str), Some(*text));
        }
        let all = texts.len();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), all);
    }
}
