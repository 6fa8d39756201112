//! Every bound of the contract, named once. A message outside them is refused, never cut.

use std::time::Duration;

/// Largest encoded peer record or withdrawal, in bytes.
pub const PEER_RECORD_BYTES: usize = 4 * 1024;
/// Largest encoded record of any other type, in bytes.
pub const RECORD_BYTES: usize = 64 * 1024;
/// Largest encoded confirmation of an address, in bytes: a peer record holds two.
pub const CONFIRMATION_BYTES: usize = 512;
/// Confirmed addresses in a peer record: one for IPv4, one for IPv6.
pub const CONFIRMATIONS: usize = 2;
/// Longest life of a peer record, host lease or address confirmation.
pub const RECORD_LIFETIME: Duration = Duration::from_secs(2 * 60 * 60);
/// How far clocks may differ, and how far a `seq` may be ahead.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);
/// How long a withdrawal outlives the longest expiry seen.
pub const WITHDRAWAL_GRACE: Duration = Duration::from_secs(10 * 60);
/// Addresses in a peer record.
pub const ADDRESSES: usize = 16;
/// Addresses of a relay.
pub const RELAY_ADDRESSES: usize = 4;
/// Services in a peer record.
pub const SERVICES: usize = 32;
/// Providers of one service that a rendezvous keeps; then its answers are sampled.
pub const SERVICE_PROVIDERS: usize = 10_000;
/// Attributes of a service.
pub const ATTRIBUTES: usize = 16;
/// Bytes in an attribute's key.
pub const ATTRIBUTE_KEY_BYTES: usize = 63;
/// Bytes in an attribute's value.
pub const ATTRIBUTE_VALUE_BYTES: usize = 255;
/// Filters of one query for a service.
pub const FILTERS: usize = 8;
/// Values of one filter.
pub const FILTER_VALUES: usize = 16;
/// Providers of a service that are looked at for one page.
pub const LOOKED_AT: usize = 2000;
/// Homes in a peer record.
pub const HOMES: usize = 16;
/// Endorsements in the record of a rendezvous.
pub const ENDORSEMENTS: usize = 64;
/// Bytes in a service name.
pub const SERVICE_NAME_BYTES: usize = 255;
/// Bytes in a DNS name.
pub const DNS_NAME_BYTES: usize = 253;
/// Bytes in a package name.
pub const PACKAGE_NAME_BYTES: usize = 64;
/// Bytes in a version.
pub const VERSION_BYTES: usize = 128;
/// Bytes in a version requirement.
pub const REQUIREMENT_BYTES: usize = 255;
/// Bytes in a release's title.
pub const TITLE_BYTES: usize = 200;
/// Bytes in a release's description.
pub const DESCRIPTION_BYTES: usize = 16 * 1024;
/// Tags of a release.
pub const TAGS: usize = 32;
/// Bytes in a tag.
pub const TAG_BYTES: usize = 64;
/// Bytes in a license expression.
pub const LICENSE_BYTES: usize = 255;
/// Bytes in the reason of a yank.
pub const YANK_REASON_BYTES: usize = 1024;
/// Package names in a delegation.
pub const DELEGATION_NAMES: usize = 64;
/// Features in a hello.
pub const FEATURES: usize = 64;
/// Bytes in a hello's software text.
pub const SOFTWARE_BYTES: usize = 64;
/// Bytes in a nonce.
pub const NONCE_BYTES: usize = 32;
/// Most results of one page of any query.
pub const PAGE_ITEMS: usize = 1000;
/// Where a page of results is cut, in encoded bytes, so that no answer passes 1 MiB.
pub const PAGE_BYTES: usize = 768 * 1024;
/// Largest control message, in bytes.
pub const CONTROL_MESSAGE_BYTES: usize = 64 * 1024;
/// Largest message of any kind, in bytes.
pub const MESSAGE_BYTES: usize = 1024 * 1024;
/// Within this time of opening a stream an end must have proven itself.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// Members of a backbone.
pub const MEMBERS: usize = 512;
/// Records, or presence statements, in one batch of a bridge.
pub const BATCH_ITEMS: usize = 256;

/// Largest root of a manifest, in bytes.
pub const MANIFEST_ROOT_BYTES: usize = 64 * 1024;
/// Largest page of a manifest, in bytes.
pub const MANIFEST_PAGE_BYTES: usize = 1024 * 1024;
/// Entries of a manifest.
pub const MANIFEST_ENTRIES: u64 = 10_000_000;
/// Bytes of all files of a manifest.
pub const MANIFEST_TOTAL_BYTES: u64 = 16 << 40;
/// Bytes in a path.
pub const PATH_BYTES: usize = 1024;
/// Parts in a path.
pub const PATH_DEPTH: usize = 64;
/// Bytes of chunk data in one frame.
pub const CHUNK_FRAME_BYTES: usize = 256 * 1024;
/// Bytes in one encoded frame of an exchange.
pub const EXCHANGE_FRAME_BYTES: usize = 320 * 1024;
/// Chunks in one request.
pub const REQUEST_DIGESTS: usize = 1024;
/// Requests open at once in each direction of an exchange.
pub const OPEN_REQUESTS: usize = 64;
/// Claims in one announcement.
pub const ANNOUNCED_CLAIMS: usize = 1000;
