//! What each index has been told, and what it must be told next.
//!
//! Invariant: a claim counts as told only once the index acknowledged it, by its `seq`; an index that forgot claims is told all of
//! them anew, once for each lease.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use p2psb_proto::model::{Digest, PeerId, limits};

/// How long a lease lasts.
pub const LEASE: Duration = Duration::from_secs(60 * 60);
/// When it is renewed at the latest.
pub const RENEW: Duration = Duration::from_secs(30 * 60);
/// The pause before an index that failed is told again: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(3);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// An index hears nothing more often than this.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(10);

/// A claim as it stands now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The content.
    pub manifest: Digest,
    /// Of the signed claim.
    pub seq: u64,
    /// It is no longer held.
    pub withdrawn: bool,
}

#[derive(Clone, Debug, Default)]
struct Told {
    claims: HashMap<Digest, Claim>,
    renew_at: Option<Instant>,
    not_before: Option<Instant>,
    failures: u32,
    /// All claims were told anew under the present lease already.
    repaired: bool,
}

/// What the indexes have been told.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    indexes: HashMap<PeerId, Told>,
}

/// What an index must be told now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// These claims, at most `limits::ANNOUNCED_CLAIMS`, with a lease.
    pub manifests: Vec<Digest>,
}

impl Ledger {
    /// Only these indexes are in use from now on.
    pub fn keep(&mut self, indexes: &[PeerId]) {
        self.indexes.retain(|index, _| indexes.contains(index));
        for index in indexes {
            self.indexes.entry(*index).or_default();
        }
    }

    /// An index may have forgotten what it was told: the next lease, due now, will show it.
    pub fn doubt(&mut self, index: &PeerId) {
        if let Some(told) = self.indexes.get_mut(index) {
            told.renew_at = None;
        }
    }

    /// What an index must be told at `now`; `None` if nothing.
    #[must_use]
    pub fn plan(&self, index: &PeerId, claims: &[Claim], now: Instant) -> Option<Plan> {
        let told = self.indexes.get(index)?;
        if told.not_before.is_some_and(|at| at > now) {
            return None;
        }
        let is_new = |claim: &&Claim| match told.claims.get(&claim.manifest) {
            Some(known) => known.seq != claim.seq,
            // What an index never heard of need not be withdrawn there, but it may have heard before this agent started.
            None => true,
        };
        let manifests: Vec<Digest> =
            claims.iter().filter(is_new).take(limits::ANNOUNCED_CLAIMS).map(|claim| claim.manifest).collect();
        let holds_any = claims.iter().any(|claim| !claim.withdrawn);
        let lease_due = holds_any && told.renew_at.is_none_or(|at| at <= now);
        (lease_due || !manifests.is_empty()).then_some(Plan { manifests })
    }

    /// An index acknowledged these claims. `known` is how many it holds, `refresh_after` when it wants the next lease.
    pub fn acknowledged(
        &mut self,
        index: &PeerId,
        claims: &[Claim],
        known: u64,
        refresh_after: Duration,
        now: Instant,
    ) {
        let Some(told) = self.indexes.get_mut(index) else { return };
        told.failures = 0;
        told.not_before = None;
        let first_of_lease = told.renew_at.is_none_or(|at| at <= now);
        let wish = if refresh_after.is_zero() { RENEW } else { refresh_after };
        told.renew_at = Some(now + wish.clamp(SHORTEST_RENEWAL, RENEW));
        if first_of_lease {
            told.repaired = false;
        }
        told.claims.extend(claims.iter().map(|claim| (claim.manifest, *claim)));
        let held = told.claims.values().filter(|claim| !claim.withdrawn).count() as u64;
        if known < held && !told.repaired {
            told.repaired = true;
            told.claims.clear();
        }
    }

    /// An index could not be told; `chance` from 0 to 1 spreads the pause.
    pub fn failed(&mut self, index: &PeerId, now: Instant, chance: f64) {
        let Some(told) = self.indexes.get_mut(index) else { return };
        let pause = FIRST_PAUSE.saturating_mul(1 << told.failures.min(10)).min(LONGEST_PAUSE);
        told.failures = told.failures.saturating_add(1);
        told.not_before = Some(now + pause.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0)));
    }

    /// Whether every index in use knows this claim.
    #[must_use]
    pub fn is_told(&self, claim: &Claim) -> bool {
        !self.indexes.is_empty()
            && self
                .indexes
                .values()
                .all(|told| told.claims.get(&claim.manifest).is_some_and(|k| k.seq == claim.seq))
    }

    /// When an index must be told something even if nothing changes.
    #[must_use]
    pub fn next_at(&self) -> Option<Instant> {
        self.indexes.values().filter_map(|told| told.not_before.or(told.renew_at)).min()
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::SecretKey;

    use super::*;

    fn index(seed: u8) -> PeerId {
        PeerId::new(SecretKey::from_seed(&[seed; 32]).public())
    }

    fn claim(n: u8, seq: u64) -> Claim {
        Claim { manifest: Digest::of(&[n]), seq, withdrawn: false }
    }

    fn planned(ledger: &Ledger, claims: &[Claim], now: Instant) -> Option<usize> {
        ledger.plan(&index(1), claims, now).map(|plan| plan.manifests.len())
    }

    #[test]
    fn new_claims_go_out_at_once_and_later_only_the_lease() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.keep(&[index(1)]);
        let claims = [claim(1, 5), claim(2, 5)];
        assert_eq!(planned(&ledger, &[], now), None);
        assert_eq!(planned(&ledger, &claims, now), Some(2));
        ledger.acknowledged(&index(1), &claims, 2, Duration::ZERO, now);
        assert_eq!(planned(&ledger, &claims, now), None);
        assert_eq!(ledger.next_at(), Some(now + RENEW));
        assert_eq!(planned(&ledger, &claims, now + RENEW), Some(0));
        assert_eq!(planned(&ledger, &[claim(1, 6), claim(2, 5)], now), Some(1));
        assert!(ledger.is_told(&claims[0]) && !ledger.is_told(&claim(1, 6)));
    }

    #[test]
    fn an_index_that_forgot_is_told_everything_once_a_lease() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.keep(&[index(1)]);
        let claims = [claim(1, 5), claim(2, 5)];
        ledger.acknowledged(&index(1), &claims, 1, Duration::ZERO, now);
        assert_eq!(planned(&ledger, &claims, now), Some(2));
        ledger.acknowledged(&index(1), &claims, 1, Duration::ZERO, now);
        assert_eq!(planned(&ledger, &claims, now), None, "it was told twice; more would not help");
        ledger.acknowledged(&index(1), &[], 0, Duration::ZERO, now + RENEW);
        assert_eq!(planned(&ledger, &claims, now + RENEW), Some(2));
    }

    #[test]
    fn an_index_that_is_doubted_is_told_the_lease_and_no_more_than_it_forgot() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.keep(&[index(1)]);
        let claims = [claim(1, 5), claim(2, 5)];
        ledger.acknowledged(&index(1), &claims, 2, Duration::ZERO, now);
        ledger.doubt(&index(1));
        assert_eq!(planned(&ledger, &claims, now), Some(0));
        ledger.acknowledged(&index(1), &[], 2, Duration::ZERO, now);
        assert_eq!(planned(&ledger, &claims, now), None, "it forgot nothing");
        ledger.doubt(&index(1));
        ledger.acknowledged(&index(1), &[], 0, Duration::ZERO, now);
        assert_eq!(planned(&ledger, &claims, now), Some(2));
    }

    #[test]
    fn an_index_that_fails_is_left_alone_for_a_while() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.keep(&[index(1), index(2)]);
        ledger.failed(&index(1), now, 1.0);
        assert_eq!(planned(&ledger, &[claim(1, 5)], now), None);
        assert!(ledger.plan(&index(2), &[claim(1, 5)], now).is_some());
        assert_eq!(planned(&ledger, &[claim(1, 5)], now + FIRST_PAUSE), Some(1));
        ledger.keep(&[index(2)]);
        assert_eq!(ledger.plan(&index(1), &[claim(1, 5)], now + FIRST_PAUSE), None);
    }

    #[test]
    fn no_announcement_exceeds_its_bound() {
        let mut ledger = Ledger::default();
        ledger.keep(&[index(1)]);
        let claims: Vec<Claim> = (0..2500u32)
            .map(|n| Claim { manifest: Digest::of(&n.to_le_bytes()), seq: 1, withdrawn: false })
            .collect();
        let now = Instant::now();
        let mut rounds = 0;
        while let Some(plan) = ledger.plan(&index(1), &claims, now) {
            assert!(plan.manifests.len() <= limits::ANNOUNCED_CLAIMS);
            let told: Vec<Claim> =
                claims.iter().filter(|claim| plan.manifests.contains(&claim.manifest)).copied().collect();
            ledger.acknowledged(&index(1), &told, 2500, Duration::ZERO, now);
            rounds += 1;
        }
        assert_eq!(rounds, 3);
    }
}
