//! Telling the indexes what this agent hosts: one lease, and a claim for everything that is complete; and what it published, where
//! that is not known.
//!
//! Promises: new content is claimed at once, what is gone is withdrawn; nothing is claimed that is not held; an index that is down, or
//! comes back without what it knew, is told when it is back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{join_all, select_all};
use p2psb_client::{Connection, Identity};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::record::next_seq;
use p2psb_proto::model::time::duration_from_wire;
use p2psb_proto::model::{
    Digest, HostClaim, HostLease, NetworkId, PackageName, PeerId, PublisherId, Signed, UnixMillis,
};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::package_index::v1 as wire;
use p2psb_runtime::Clock;
use p2psb_runtime::status::Component;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::core::announce::{Claim, LEASE, Ledger};
use crate::failure::{internal, store_failed};
use crate::index::{Index, Indexes};
use crate::store::{Holding, Store};

/// How often the set of indexes is looked at, and what is held is compared with what is claimed.
const LOOK: Duration = Duration::from_secs(60);
/// While no index can be reached, or one has not been told everything yet.
const RETRY: Duration = Duration::from_secs(5);
/// While one of several indexes can not be reached.
const AWAY: Duration = Duration::from_secs(10);
/// An index whose connection ended is dialed again after this: it may be starting anew, or close whatever is opened.
const SETTLE: Duration = Duration::from_secs(1);

/// Wakes the announcer: what is held has changed. Clones wake the same.
#[derive(Clone, Debug, Default)]
pub struct Changed(Arc<Notify>);

impl Changed {
    /// Says so.
    pub fn tell(&self) {
        self.0.notify_one();
    }
}

/// The announcing side of an agent.
pub struct Announcer {
    /// Whom to tell.
    pub indexes: Indexes,
    /// What is held.
    pub store: Arc<Store>,
    /// Who tells.
    pub identity: Identity,
    /// Whose packages are told: the own ones.
    pub publisher: PublisherId,
    /// The community.
    pub network: NetworkId,
    /// The time.
    pub clock: Clock,
    /// Wakes it.
    pub changed: Changed,
    /// Its line in the status.
    pub component: Component,
}

type Claims = BTreeMap<Digest, Signed<HostClaim>>;

/// What is known between rounds.
#[derive(Default)]
struct Memory {
    ledger: Ledger,
    last_lease: u64,
    /// Indexes that know all own packages, each by the connection over which it was seen to. Over another one it may be a life of that
    /// index that knows nothing.
    complete: HashMap<PeerId, Connection>,
}

impl Memory {
    fn is_complete(&self, index: &Index) -> bool {
        self.complete.get(&index.id).is_some_and(|met| met.is(&index.connection))
    }

    /// Resolves some time after a connection ended.
    async fn lost(&self) {
        if self.complete.is_empty() {
            return std::future::pending().await;
        }
        select_all(self.complete.values().map(|connection| Box::pin(connection.closed()))).await;
        tokio::time::sleep(SETTLE).await;
    }
}

impl Announcer {
    /// Announces until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut memory = Memory::default();
        loop {
            let pause = match self.round(&mut memory).await {
                Ok(pause) => {
                    self.component.ready();
                    pause
                }
                Err(failure) => {
                    tracing::debug!(reason = %failure.reason, error = %failure.message, "not announced");
                    self.component.degraded(failure.message);
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.changed.0.notified() => {}
                () = memory.lost() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Tells every index what it must be told; returns when to look again.
    async fn round(&self, memory: &mut Memory) -> Result<Duration, Failure> {
        memory.complete.retain(|_, connection| !connection.is_closed());
        let claims = self.claims(Vec::new()).await?;
        let packages = self.packages().await?;
        if claims.is_empty() && packages.is_empty() {
            return Ok(LOOK);
        }
        let indexes = self.indexes.connect().await?;
        let ids: Vec<PeerId> = indexes.iter().map(|index| index.id).collect();
        memory.complete.retain(|index, _| ids.contains(index));
        memory.ledger.keep(&ids);
        let fresh: Vec<&Index> = indexes.iter().filter(|index| !memory.is_complete(index)).collect();
        fresh.iter().for_each(|index| memory.ledger.doubt(&index.id));
        self.announce(memory, &indexes, claims).await?;
        self.complete(memory, &fresh, &packages).await;
        let due = memory.ledger.next_at().map_or(LOOK, |at| at.saturating_duration_since(self.clock.now()));
        let look = if indexes.len() < self.indexes.wanted() { AWAY } else { LOOK };
        Ok(due.clamp(Duration::from_millis(100), look))
    }

    /// Gives indexes that are met anew what they lack of the own packages.
    async fn complete(&self, memory: &mut Memory, fresh: &[&Index], packages: &[PackageName]) {
        let given = fresh.iter().map(|index| self.indexes.complete(index, self.publisher, packages));
        for (index, outcome) in fresh.iter().zip(join_all(given).await) {
            match outcome {
                Ok(()) => drop(memory.complete.insert(index.id, index.connection.clone())),
                Err(failure) => {
                    tracing::warn!(index = %index.id, reason = %failure.reason, error = %failure.message, "an index could not be given what it lacks");
                }
            }
        }
    }

    /// Tells who hosts what.
    async fn announce(
        &self,
        memory: &mut Memory,
        indexes: &[Index],
        mut claims: Claims,
    ) -> Result<(), Failure> {
        let Memory { ledger, last_lease, .. } = memory;
        // Each pass tells at most limits::ANNOUNCED_CLAIMS; an index that keeps asking is left for the next round.
        for _ in 0..=claims.len() / 100 + 2 {
            let now = self.clock.now();
            let standing: Vec<Claim> = claims.values().map(standing).collect();
            let plans: Vec<_> = indexes
                .iter()
                .filter_map(|index| {
                    ledger.plan(&index.id, &standing, now).map(|plan| (index, plan.manifests))
                })
                .collect();
            if plans.is_empty() {
                break;
            }
            let lease = self.lease(last_lease)?;
            let told =
                join_all(plans.iter().map(|(index, list)| self.tell(index, &lease, list, &claims))).await;
            let mut stale = Vec::new();
            for ((index, list), outcome) in plans.iter().zip(told) {
                stale.extend(self.take_note(ledger, last_lease, index.id, list, &claims, outcome));
            }
            if !stale.is_empty() {
                claims = self.claims(stale).await?;
            }
        }
        self.forget_withdrawn(ledger, &claims).await
    }

    /// The own packages.
    async fn packages(&self) -> Result<Vec<PackageName>, Failure> {
        let (store, publisher) = (Arc::clone(&self.store), self.publisher);
        let work = move || store.packages(&publisher).map_err(store_failed);
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(internal(error)))
    }

    /// What an index said; returns claims that must be signed anew.
    fn take_note(
        &self,
        ledger: &mut Ledger,
        last_lease: &mut u64,
        index: PeerId,
        list: &[Digest],
        claims: &Claims,
        outcome: Result<wire::AnnounceHostResponse, Failure>,
    ) -> Vec<Digest> {
        let now: Instant = self.clock.now();
        match outcome {
            Ok(answer) => {
                let mut stale = Vec::new();
                for error in &answer.errors {
                    let manifest = usize::try_from(error.index).ok().and_then(|at| list.get(at));
                    tracing::warn!(%index, reason = error.reason, detail = error.detail, ?manifest, "an index refused a claim");
                    if error.reason == Reason::RecordStale.as_str() {
                        stale.extend(manifest.copied());
                    }
                }
                let told: Vec<Claim> =
                    list.iter().filter_map(|manifest| claims.get(manifest)).map(standing).collect();
                let refresh = duration_from_wire(answer.refresh_after.as_ref());
                ledger.acknowledged(&index, &told, answer.known_claims, refresh, now);
                tracing::info!(%index, claims = told.len(), known = answer.known_claims, "announced");
                stale
            }
            Err(failure) => {
                if let Some(stored) =
                    failure.record.and_then(|record| Signed::<HostLease>::verify(*record).ok())
                {
                    // A lease of an earlier life of this agent, from before its clock was set back.
                    *last_lease = (*last_lease).max(stored.value().seq);
                }
                tracing::warn!(%index, reason = %failure.reason, error = %failure.message, "an index could not be told");
                ledger.failed(&index, now, fastrand::f64());
                Vec::new()
            }
        }
    }

    async fn tell(
        &self,
        index: &Index,
        lease: &SignedRecord,
        list: &[Digest],
        claims: &Claims,
    ) -> Result<wire::AnnounceHostResponse, Failure> {
        let claims = list.iter().filter_map(|manifest| claims.get(manifest)).map(Signed::to_wire).collect();
        index.announce(wire::AnnounceHostRequest { lease: Some(lease.clone()), claims }).await
    }

    fn lease(&self, last: &mut u64) -> Result<SignedRecord, Failure> {
        let issued = UnixMillis(self.clock.unix_millis());
        let seq = next_seq(*last, issued);
        let lease = HostLease { network: self.network, seq, issued, expires: issued.plus(LEASE) };
        *last = seq;
        Ok(Signed::sign(&lease, self.identity.key())?.to_wire())
    }

    /// The claims as they should be: those for what is held complete, and withdrawals of the others. Signs what is missing, and
    /// `anew` in any case.
    async fn claims(&self, anew: Vec<Digest>) -> Result<Claims, Failure> {
        let (store, identity, network) = (Arc::clone(&self.store), self.identity.clone(), self.network);
        let now = UnixMillis(self.clock.unix_millis());
        let work = move || {
            let held: BTreeSet<Digest> = store
                .manifests()
                .map_err(store_failed)?
                .into_iter()
                .filter(|(_, holding)| *holding == Holding::Complete)
                .map(|(manifest, _)| manifest)
                .collect();
            let mut claims: Claims = store
                .claims()
                .map_err(store_failed)?
                .into_iter()
                .filter(|claim| claim.value().network == network && claim.host() == identity.peer_id())
                .map(|claim| (claim.value().manifest, claim))
                .collect();
            let every: BTreeSet<Digest> = held.iter().chain(claims.keys()).copied().collect();
            for manifest in every {
                let known = claims.get(&manifest).map(Signed::value);
                let withdrawn = !held.contains(&manifest);
                if known.is_some_and(|claim| claim.withdrawn == withdrawn) && !anew.contains(&manifest) {
                    continue;
                }
                let seq = next_seq(known.map_or(0, |claim| claim.seq), now);
                let claim = HostClaim { network, manifest, seq, issued: now, withdrawn };
                let signed = Signed::sign(&claim, identity.key())?;
                store.put_claim(&signed).map_err(store_failed)?;
                claims.insert(manifest, signed);
            }
            Ok(claims)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(internal(error)))
    }

    /// Withdrawals that every index has heard of are done.
    async fn forget_withdrawn(&self, ledger: &Ledger, claims: &Claims) -> Result<(), Failure> {
        let done: Vec<Digest> = claims
            .values()
            .map(standing)
            .filter(|claim| claim.withdrawn && ledger.is_told(claim))
            .map(|claim| claim.manifest)
            .collect();
        if done.is_empty() {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        let work =
            move || done.iter().try_for_each(|manifest| store.remove_claim(manifest).map_err(store_failed));
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(internal(error)))
    }
}

fn standing(claim: &Signed<HostClaim>) -> Claim {
    let HostClaim { manifest, seq, withdrawn, .. } = claim.value();
    Claim { manifest: *manifest, seq: *seq, withdrawn: *withdrawn }
}
