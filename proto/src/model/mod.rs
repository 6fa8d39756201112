//! Types that are valid by construction: made by parsing wire types, or by signing.

pub mod address;
pub mod chunking;
pub mod confirmation;
pub mod digest;
pub mod hello;
pub mod host;
pub mod id;
pub mod key;
pub mod limits;
pub mod manifest;
pub mod name;
pub mod network;
pub mod page;
pub mod path;
pub mod peer;
pub mod presence;
pub mod proof;
pub mod publisher;
pub mod query;
pub mod record;
pub mod release;
pub mod requirement;
pub mod time;

pub use address::{Address, AddressKind, Host, Transport};
pub use confirmation::AddressConfirmation;
pub use digest::Digest;
pub use host::{HostClaim, HostLease};
pub use id::{PeerId, PublisherId};
pub use key::{PublicKey, SecretKey};
pub use name::{PackageName, ServiceName};
pub use network::{Genesis, NetworkId};
pub use path::PackagePath;
pub use peer::{PeerRecord, PeerStatement, PeerWithdrawal};
pub use query::ServiceQuery;
pub use record::{Packed, RecordError, Signed};
pub use release::{Action, PackageEntry, Release};
pub use requirement::Requirement;
pub use time::UnixMillis;

/// What an error shows of a text from outside: its beginning, since the whole may be of any length.
fn excerpt(text: &str) -> String {
    const SHOWN: usize = 80;
    text.chars().take(SHOWN).collect()
}
