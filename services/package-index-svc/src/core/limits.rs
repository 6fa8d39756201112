//! Bounds of this service, beside those of the contract.

use std::time::Duration;

/// Packages of one publisher, as a default.
pub const PACKAGES_PER_PUBLISHER: u64 = 10_000;
/// Entries in the chain of one package, as a default.
pub const ENTRIES_PER_PACKAGE: u64 = 100_000;
/// Claims of one host, withdrawn ones that are still remembered included, as a default.
pub const CLAIMS_PER_HOST: u64 = 1_000_000;
/// Bytes in the database, as a default.
pub const DATABASE_BYTES: u64 = 64 << 30;

/// Bytes in a search query.
pub const QUERY_BYTES: usize = 255;
/// Bytes of a description that a summary shows.
pub const SUMMARY_DESCRIPTION_BYTES: usize = 500;
/// Where counting the hosts of a release ends: the number is for people, and must not cost more the more there are.
pub const HOSTS_COUNTED: u32 = 10_000;
/// Publishers that are named when a package name is ambiguous.
pub const AMBIGUOUS_SHOWN: usize = 16;
/// Bytes in a page token.
pub const PAGE_TOKEN_BYTES: usize = 1024;

/// Writes that share one transaction.
pub const BATCH_WRITES: usize = 256;
/// How long a transaction takes further writes in, so that none waits long for its acknowledgement.
pub const BATCH_TIME: Duration = Duration::from_millis(25);
/// Writes that may wait.
pub const QUEUE_WRITES: usize = 4096;
/// Bytes of writes that may wait.
pub const QUEUE_BYTES: usize = 64 << 20;
/// How long a caller is asked to wait when too many writes do.
pub const QUEUE_RETRY: Duration = Duration::from_secs(1);
/// Rows of expired hosts that one transaction sweeps.
pub const SWEEP_ROWS: usize = 2_000;
/// How often expired hosts are looked for.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The part of a lease's remaining life after which it is to be renewed, at least and at most.
pub const REFRESH_PART: (f64, f64) = (0.4, 0.6);

/// Results of one page: (if the caller does not say, at most).
pub type PageSizes = (u32, u32);
/// Of releases and packages.
pub const LIST_PAGE: PageSizes = (100, 1000);
/// Of search results.
pub const SEARCH_PAGE: PageSizes = (20, 100);
/// Of hosts.
pub const HOSTS_PAGE: PageSizes = (50, 1000);

/// What an operator can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Packages of one publisher.
    pub packages_per_publisher: u64,
    /// Entries in the chain of one package.
    pub entries_per_package: u64,
    /// Claims of one host.
    pub claims_per_host: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            packages_per_publisher: PACKAGES_PER_PUBLISHER,
            entries_per_package: ENTRIES_PER_PACKAGE,
            claims_per_host: CLAIMS_PER_HOST,
        }
    }
}

/// A quota that is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} is reached: at most {most}; {advice}")]
pub struct QuotaError {
    /// Its name in the configuration.
    pub limit: &'static str,
    /// How many there may be.
    pub most: u64,
    /// What to do.
    pub advice: &'static str,
}
