//! Which leases and claims hold.
//!
//! A tenure is an unbroken run of leases of one host. Claims belong to the tenure they were announced in: they hold while leases
//! follow each other without a gap, and a host that comes back after a gap announces them anew.

use std::time::Duration;

use p2psb_proto::model::host::{HostClaim, HostLease};
use p2psb_proto::model::limits::RECORD_LIFETIME;
use p2psb_proto::model::record::{RecordError, Signed};
use p2psb_proto::model::time::UnixMillis;
use p2psb_proto::model::{NetworkId, PeerId};

use super::limits::{QuotaError, REFRESH_PART};

/// How a record stands to the one that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It is newer, or the first.
    Newer,
    /// It is the same.
    Same,
    /// It is older than the one with this seq.
    Stale(u64),
    /// Same seq, other statement.
    Equivocation(u64),
}

/// Compares a record with the stored one, each by seq and by what it says.
#[must_use]
pub fn order<T: PartialEq>(stored: Option<(u64, T)>, offered: (u64, T)) -> Order {
    match stored {
        None => Order::Newer,
        Some((seq, _)) if seq < offered.0 => Order::Newer,
        Some((seq, _)) if seq > offered.0 => Order::Stale(seq),
        Some((_, statement)) if statement == offered.1 => Order::Same,
        Some((seq, _)) => Order::Equivocation(seq),
    }
}

/// Why a claim is refused. All other claims of the announcement hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// The record itself does not count now.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Somebody else signed it.
    #[error("the claim is signed by {signer}, the lease by {host}; a host claims only for itself")]
    Foreign {
        /// Who signed the claim.
        signer: PeerId,
        /// Whose lease it is.
        host: PeerId,
    },
    /// A newer claim for the same manifest is known.
    #[error("the claim has seq {offered}, one with seq {stored} is known; sign it with a higher seq")]
    Stale {
        /// Its seq.
        offered: u64,
        /// The known one.
        stored: u64,
    },
    /// Another claim with the same seq is known.
    #[error("another claim for the same manifest with seq {0} is known; sign it with a higher seq")]
    Equivocation(u64),
    /// The host claims too much.
    #[error(transparent)]
    Quota(#[from] QuotaError),
}

/// Whether a claim may come with this host's lease.
pub fn admit_claim(
    claim: &Signed<HostClaim>,
    host: PeerId,
    network: &NetworkId,
    now: UnixMillis,
) -> Result<(), ClaimError> {
    if claim.host() != host {
        return Err(ClaimError::Foreign { signer: claim.host(), host });
    }
    Ok(claim.value().check(network, now)?)
}

/// Claims with their positions in the call.
pub type Positioned<T> = Vec<(usize, T)>;

/// Parts the claims of a call into those that may come with this host's lease, and the others.
pub fn admit_claims(
    claims: Vec<Result<Signed<HostClaim>, ClaimError>>,
    host: PeerId,
    network: &NetworkId,
    now: UnixMillis,
) -> (Positioned<Signed<HostClaim>>, Positioned<ClaimError>) {
    let (mut admitted, mut refused) = (Vec::new(), Vec::new());
    for (position, claim) in claims.into_iter().enumerate() {
        let checked = claim.and_then(|claim| admit_claim(&claim, host, network, now).map(|()| claim));
        match checked {
            Ok(claim) => admitted.push((position, claim)),
            Err(error) => refused.push((position, error)),
        }
    }
    (admitted, refused)
}

/// When a host should renew its lease: around the middle of what remains, spread by `chance` (0 to 1).
#[must_use]
pub fn refresh_after(lease: &HostLease, now: UnixMillis, chance: f64) -> Duration {
    let (least, most) = REFRESH_PART;
    lease.expires.since(now).mul_f64(least + (most - least) * chance.clamp(0.0, 1.0))
}

/// Up to when an expired lease is remembered: an older one of the same host can't run longer.
#[must_use]
pub fn forgotten_at(expires: UnixMillis) -> UnixMillis {
    expires.plus(RECORD_LIFETIME)
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::{Digest, Genesis, SecretKey};

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn network() -> NetworkId {
        Genesis::open("test").unwrap().network_id()
    }

    #[test]
    fn newer_same_stale_and_two_truths_differ() {
        let (a, b) = ("a", "b");
        assert_eq!(order(None, (1, a)), Order::Newer);
        assert_eq!(order(Some((1, a)), (2, b)), Order::Newer);
        assert_eq!(order(Some((2, a)), (2, a)), Order::Same);
        assert_eq!(order(Some((2, a)), (1, a)), Order::Stale(2));
        assert_eq!(order(Some((2, a)), (2, b)), Order::Equivocation(2));
    }

    #[test]
    fn a_lease_is_renewed_around_the_middle_of_its_life() {
        let expires = NOW.plus(Duration::from_secs(1000));
        let lease = HostLease { network: network(), seq: 1, issued: NOW, expires };
        assert_eq!(refresh_after(&lease, NOW, 0.0), Duration::from_secs(400));
        assert_eq!(refresh_after(&lease, NOW, 0.5), Duration::from_secs(500));
        assert_eq!(refresh_after(&lease, NOW, 7.0), Duration::from_secs(600));
        assert_eq!(refresh_after(&lease, NOW.plus(RECORD_LIFETIME), 0.5), Duration::ZERO);
    }

    #[test]
    fn a_host_claims_only_for_itself_and_its_network() {
        let key = SecretKey::from_seed(&[3; 32]);
        let manifest = Digest::of(b"content");
        let claim = HostClaim { network: network(), manifest, seq: NOW.0, issued: NOW, withdrawn: false };
        let claim = Signed::sign(&claim, &key).unwrap();
        let other = PeerId::new(SecretKey::from_seed(&[4; 32]).public());
        assert_eq!(admit_claim(&claim, claim.host(), &network(), NOW), Ok(()));
        let foreign = admit_claim(&claim, other, &network(), NOW);
        assert!(matches!(foreign, Err(ClaimError::Foreign { .. })));
        let elsewhere = Genesis::open("elsewhere").unwrap().network_id();
        let abroad = admit_claim(&claim, claim.host(), &elsewhere, NOW);
        assert!(matches!(abroad, Err(ClaimError::Record(RecordError::Network { .. }))));
    }
}
