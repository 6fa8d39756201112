//! Which entries the chain of a package takes.
//!
//! Invariant of a chain: its entries have the seqs 1, 2, 3, …; each but the first names the digest of the one before; all are
//! signed by the owner; a version is released at most once, and yanked only after that. An entry that would break it is refused
//! with what the publisher needs to go on.

use p2psb_proto::model::limits::CLOCK_SKEW;
use p2psb_proto::model::record::{RecordError, Signed};
use p2psb_proto::model::release::{Action, PackageEntry};
use p2psb_proto::model::time::UnixMillis;
use p2psb_proto::model::{Digest, PublisherId};
use semver::Version;

use super::PackageId;

/// The newest entry of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its seq.
    pub seq: u64,
    /// Its digest.
    pub digest: Digest,
}

/// What a chain says of a version so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Unreleased,
    /// It is there.
    Released,
    /// It is there, and yanked.
    Yanked,
}

/// How an entry stands to its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It is in the chain already.
    Known,
    /// It follows the head.
    Next,
}

/// Why a chain does not take an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Another key than the owner's signed.
    #[error(
        "the entry is signed by {signer}, the package belongs to {owner}; only the owner's signature is accepted"
    )]
    NotOwner {
        /// Who signed.
        signer: PublisherId,
        /// Who owns the package.
        owner: PublisherId,
    },
    /// The record itself does not count now.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The chain does not begin here.
    #[error(
        "{package} is unknown here, so its chain must begin with seq 1, not {seq}; publish the entries from 1 on"
    )]
    Unknown {
        /// Which package.
        package: PackageId,
        /// Seq of the entry.
        seq: u64,
    },
    /// The entry does not follow the head.
    #[error("the chain of {package} has its head at seq {}, which this entry with seq {seq} does not follow; sign anew behind the head", head.seq)]
    HeadMoved {
        /// Which package.
        package: PackageId,
        /// Seq of the entry.
        seq: u64,
        /// What to follow.
        head: Head,
    },
    /// The version was released before.
    #[error(
        "{package} has a version {version} already, and a release never changes; release the next version"
    )]
    VersionExists {
        /// Which package.
        package: PackageId,
        /// Which version.
        version: Version,
    },
    /// A yank of nothing.
    #[error("{package} has no version {version}, so it can't be yanked or unyanked")]
    VersionUnknown {
        /// Which package.
        package: PackageId,
        /// Which version.
        version: Version,
    },
    /// An unyank of what is not yanked.
    #[error("version {version} of {package} is not yanked, so no yank can be taken back")]
    NotYanked {
        /// Which package.
        package: PackageId,
        /// Which version.
        version: Version,
    },
}

/// The package an entry belongs to.
#[must_use]
pub fn package_of(entry: &PackageEntry) -> PackageId {
    PackageId { publisher: entry.publisher, name: entry.name.clone() }
}

/// Whether the entry counts at all: signed by the owner, and not in the future.
pub fn admit(entry: &Signed<PackageEntry>, now: UnixMillis) -> Result<(), ChainError> {
    let value = entry.value();
    if !entry.signed_by_owner() {
        let signer = PublisherId::new(*entry.signer());
        return Err(ChainError::NotOwner { signer, owner: value.publisher });
    }
    if value.issued > now.plus(CLOCK_SKEW) {
        return Err(RecordError::ClockSkew { issued: value.issued, now }.into());
    }
    Ok(())
}

/// How the entry stands to the chain with this head; `same_seq` is the digest of the chain's entry with the same seq.
pub fn link(
    entry: &Signed<PackageEntry>,
    head: Option<Head>,
    same_seq: Option<Digest>,
) -> Result<Link, ChainError> {
    let value = entry.value();
    let Some(head) = head else {
        if value.seq == 1 {
            return Ok(Link::Next);
        }
        return Err(ChainError::Unknown { package: package_of(value), seq: value.seq });
    };
    if same_seq == Some(entry.digest()) {
        return Ok(Link::Known);
    }
    if head.seq.checked_add(1) == Some(value.seq) && value.prev == Some(head.digest) {
        return Ok(Link::Next);
    }
    Err(ChainError::HeadMoved { package: package_of(value), seq: value.seq, head })
}

/// Whether what the entry does is possible, given what the chain says of its version.
pub fn act(entry: &PackageEntry, standing: Standing) -> Result<(), ChainError> {
    let (package, version) = (package_of(entry), entry.action.version().clone());
    match (&entry.action, standing) {
        (Action::Release(_), Standing::Unreleased)
        // A second yank only gives another reason.
        | (Action::Yank { .. }, Standing::Released | Standing::Yanked)
        | (Action::Unyank { .. }, Standing::Yanked) => Ok(()),
        (Action::Release(_), _) => Err(ChainError::VersionExists { package, version }),
        (Action::Yank { .. } | Action::Unyank { .. }, Standing::Unreleased) => {
            Err(ChainError::VersionUnknown { package, version })
        }
        (Action::Unyank { .. }, Standing::Released) => Err(ChainError::NotYanked { package, version }),
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::SecretKey;
    use p2psb_proto::model::release::Release;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn release(version: &str) -> Action {
        Action::Release(Release {
            version: version.parse().unwrap(),
            manifest: Digest::of(version.as_bytes()),
            total_size: 1,
            file_count: 1,
            title: String::new(),
            description: String::new(),
            tags: Vec::new(),
            license: String::new(),
        })
    }

    fn entry(seq: u64, prev: Option<Digest>, action: Action) -> Signed<PackageEntry> {
        let publisher = PublisherId::new(key(1).public());
        let name = "demo".parse().unwrap();
        Signed::sign(&PackageEntry { publisher, name, seq, prev, issued: NOW, action }, &key(1)).unwrap()
    }

    fn head_of(entry: &Signed<PackageEntry>) -> Head {
        Head { seq: entry.value().seq, digest: entry.digest() }
    }

    #[test]
    fn a_chain_begins_with_one_and_goes_on_behind_its_head() {
        let first = entry(1, None, release("1.0.0"));
        assert_eq!(link(&first, None, None), Ok(Link::Next));
        let second = entry(2, Some(first.digest()), release("1.1.0"));
        assert_eq!(link(&second, Some(head_of(&first)), None), Ok(Link::Next));
        assert!(matches!(link(&second, None, None), Err(ChainError::Unknown { seq: 2, .. })));
    }

    #[test]
    fn what_does_not_follow_the_head_is_told_the_head() {
        let first = entry(1, None, release("1.0.0"));
        let rival = entry(1, None, release("2.0.0"));
        let head = head_of(&first);
        let moved = |result| matches!(result, Err(ChainError::HeadMoved { head: h, .. }) if h == head);
        assert!(moved(link(&rival, Some(head), Some(first.digest()))), "another first entry");
        let fork = entry(2, Some(rival.digest()), release("1.1.0"));
        assert!(moved(link(&fork, Some(head), None)), "behind something else");
        let gap = entry(3, Some(first.digest()), release("1.1.0"));
        assert!(moved(link(&gap, Some(head), None)), "one was left out");
    }

    #[test]
    fn an_entry_of_the_chain_is_known() {
        let first = entry(1, None, release("1.0.0"));
        let second = entry(2, Some(first.digest()), release("1.1.0"));
        assert_eq!(link(&first, Some(head_of(&second)), Some(first.digest())), Ok(Link::Known));
    }

    #[test]
    fn only_the_owner_signs_and_not_ahead_of_time() {
        let owned = entry(1, None, release("1.0.0"));
        assert_eq!(admit(&owned, NOW), Ok(()));
        assert_eq!(admit(&owned, NOW.minus(CLOCK_SKEW)), Ok(()));
        let early = admit(&owned, UnixMillis(NOW.minus(CLOCK_SKEW).0 - 1));
        assert!(matches!(early, Err(ChainError::Record(RecordError::ClockSkew { .. }))));
        let foreign = Signed::sign(owned.value(), &key(2)).unwrap();
        assert!(matches!(admit(&foreign, NOW), Err(ChainError::NotOwner { .. })));
    }

    #[test]
    fn versions_are_released_once_and_yanked_after() {
        let version: Version = "1.0.0".parse().unwrap();
        let yank = || Action::Yank { version: version.clone(), reason: String::new() };
        let unyank = || Action::Unyank { version: version.clone() };
        let of = |action| entry(1, None, action).value().clone();
        for (action, standing, good) in [
            (release("1.0.0"), Standing::Unreleased, true),
            (release("1.0.0"), Standing::Released, false),
            (release("1.0.0"), Standing::Yanked, false),
            (yank(), Standing::Unreleased, false),
            (yank(), Standing::Released, true),
            (yank(), Standing::Yanked, true),
            (unyank(), Standing::Unreleased, false),
            (unyank(), Standing::Released, false),
            (unyank(), Standing::Yanked, true),
        ] {
            assert_eq!(act(&of(action.clone()), standing).is_ok(), good, "{action:?} {standing:?}");
        }
    }
}
