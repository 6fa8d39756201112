//! Types that are valid by construction: made by parsing wire types, or by signing.

pub mod address;
pub mod chunking;
pub mod digest;
pub mod hello;
pub mod host;
pub mod id;
pub mod key;
pub mod limits;
pub mod manifest;
pub mod name;
pub mod network;
pub mod path;
pub mod peer;
pub mod presence;
pub mod proof;
pub mod publisher;
pub mod record;
pub mod release;
pub mod time;

pub use address::{Address, AddressKind, Host, Transport};
pub use digest::Digest;
pub use host::{HostClaim, HostLease};
pub use id::{PeerId, PublisherId};
pub use key::{PublicKey, SecretKey};
pub use name::{PackageName, ServiceName};
pub use network::{Genesis, NetworkId};
pub use path::PackagePath;
pub use peer::{PeerRecord, PeerStatement, PeerWithdrawal};
pub use record::{RecordError, Signed};
pub use release::{Action, PackageEntry, Release};
pub use time::UnixMillis;
