//! What hosts say, and the removal of what they leave behind.
//!
//! Invariant: `host.claims` and `host.claim_rows` count the rows of `claim` that belong to the host; at most one row of `host`
//! per peer is current. Claims belong to a tenure, so a host that comes back after a gap starts with none, however many rows of
//! its former tenure are still to be swept.

use p2psb_proto::model::PeerId;
use p2psb_proto::model::host::{HostClaim, HostLease};
use p2psb_proto::model::record::Signed;
use p2psb_proto::model::time::UnixMillis;
use p2psb_proto::wire::common::v1::SignedRecord;
use rusqlite::{Connection, params};

use super::convert::{from_db, time_from_db, to_db};
use crate::core::hosts::{ClaimError, Order, forgotten_at, order};
use crate::core::limits::{QuotaError, Quotas};
use crate::store::seal::{seal, unseal};
use crate::store::{AnnounceError, Announced, Announcement, StoreError, Swept};

/// The current row of a host.
struct Tenure {
    id: i64,
    seq: u64,
    expires: UnixMillis,
    claims: u64,
    rows: u64,
    lease: SignedRecord,
}

/// Takes a lease and claims.
pub(super) fn announce(
    db: &Connection,
    quotas: &Quotas,
    announcement: &Announcement,
    now: UnixMillis,
) -> Result<Announced, AnnounceError> {
    let mut tenure = renew(db, &announcement.lease, now)?;
    let before = (tenure.claims, tenure.rows);
    let mut refused = Vec::new();
    for (position, claim) in &announcement.claims {
        if let Err(error) = take(db, quotas, &mut tenure, claim)? {
            refused.push((*position, error));
        }
    }
    if before != (tenure.claims, tenure.rows) {
        db.prepare_cached("UPDATE host SET claims = ?2, claim_rows = ?3 WHERE id = ?1")
            .and_then(|mut update| {
                update.execute(params![tenure.id, to_db(tenure.claims), to_db(tenure.rows)])
            })
            .map_err(StoreError::from)?;
    }
    Ok(Announced { refused, known_claims: tenure.claims })
}

/// The tenure that the lease continues, or begins.
fn renew(db: &Connection, lease: &Signed<HostLease>, now: UnixMillis) -> Result<Tenure, AnnounceError> {
    let (host, offered) = (lease.host(), lease.value().seq);
    let wire = lease.to_wire();
    let current = current(db, &host)?;
    let stored = current.as_ref().map(|tenure| (tenure.seq, &tenure.lease.payload));
    match (order(stored, (offered, &wire.payload)), current) {
        (Order::Stale(stored), Some(tenure)) => {
            Err(AnnounceError::Stale { offered, stored, lease: Box::new(tenure.lease) })
        }
        (Order::Equivocation(seq), Some(tenure)) => {
            Err(AnnounceError::Equivocation { seq, lease: Box::new(tenure.lease) })
        }
        // The same lease carries further claims; the host is not heard of anew by it, since anybody could repeat it.
        (Order::Same, Some(tenure)) => Ok(tenure),
        (_, Some(tenure)) if tenure.expires > now => Ok(extend(db, tenure, lease, wire, now)?),
        (_, former) => Ok(begin(db, former.as_ref(), lease, wire, now)?),
    }
}

fn current(db: &Connection, host: &PeerId) -> Result<Option<Tenure>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT id, seq, expires, claims, claim_rows, lease FROM host WHERE peer = ?1 AND current = 1",
    )?;
    let mut rows = query.query([host.to_bytes()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Tenure {
        id: row.get(0)?,
        seq: from_db(row.get(1)?)?,
        expires: time_from_db(row.get(2)?)?,
        claims: from_db(row.get(3)?)?,
        rows: from_db(row.get(4)?)?,
        lease: unseal(row.get_ref(5)?.as_blob()?)?,
    }))
}

/// The next lease without a gap.
fn extend(
    db: &Connection,
    tenure: Tenure,
    lease: &Signed<HostLease>,
    wire: SignedRecord,
    now: UnixMillis,
) -> Result<Tenure, StoreError> {
    let (seq, expires) = (lease.value().seq, lease.value().expires);
    db.prepare_cached("UPDATE host SET seq = ?2, expires = ?3, seen = ?4, lease = ?5 WHERE id = ?1")?
        .execute(params![tenure.id, to_db(seq), to_db(expires.0), to_db(now.0), seal(&wire)])?;
    Ok(Tenure { seq, expires, lease: wire, ..tenure })
}

/// The first lease, or the first after a gap.
fn begin(
    db: &Connection,
    former: Option<&Tenure>,
    lease: &Signed<HostLease>,
    wire: SignedRecord,
    now: UnixMillis,
) -> Result<Tenure, StoreError> {
    if let Some(former) = former {
        db.prepare_cached("UPDATE host SET current = 0 WHERE id = ?1")?.execute([former.id])?;
    }
    let (seq, expires) = (lease.value().seq, lease.value().expires);
    let id = db
        .prepare_cached(
            "INSERT INTO host (peer, current, seq, expires, seen, claims, claim_rows, lease)
             VALUES (?1, 1, ?2, ?3, ?4, 0, 0, ?5)",
        )?
        .insert(params![lease.host().to_bytes(), to_db(seq), to_db(expires.0), to_db(now.0), seal(&wire)])?;
    Ok(Tenure { id, seq, expires, claims: 0, rows: 0, lease: wire })
}

/// Takes one claim. The outer result is the store's, the inner one the claim's.
fn take(
    db: &Connection,
    quotas: &Quotas,
    tenure: &mut Tenure,
    claim: &Signed<HostClaim>,
) -> Result<Result<(), ClaimError>, StoreError> {
    let value = claim.value();
    let wire = claim.to_wire();
    let known = known(db, tenure.id, value)?;
    let stored = known.as_ref().map(|known| (known.seq, &known.record.payload));
    match order(stored, (value.seq, &wire.payload)) {
        Order::Same => return Ok(Ok(())),
        Order::Stale(stored) => return Ok(Err(ClaimError::Stale { offered: value.seq, stored })),
        Order::Equivocation(seq) => return Ok(Err(ClaimError::Equivocation(seq))),
        Order::Newer => {}
    }
    if known.is_none() && tenure.rows >= quotas.claims_per_host {
        if value.withdrawn {
            // There is nothing to hide and no room to remember it in.
            return Ok(Ok(()));
        }
        let (limit, most) = ("limits.claims_per_host", quotas.claims_per_host);
        return Ok(Err(QuotaError { limit, most, advice: "withdraw what is no longer held" }.into()));
    }
    db.prepare_cached(
        "INSERT OR REPLACE INTO claim (manifest, host, seq, withdrawn, record) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        value.manifest.as_bytes(),
        tenure.id,
        to_db(value.seq),
        value.withdrawn,
        seal(&wire)
    ])?;
    tenure.rows += u64::from(known.is_none());
    let held = known.is_some_and(|known| !known.withdrawn);
    tenure.claims = (tenure.claims + u64::from(!value.withdrawn)).saturating_sub(u64::from(held));
    Ok(Ok(()))
}

/// A stored claim.
struct Known {
    seq: u64,
    withdrawn: bool,
    record: SignedRecord,
}

fn known(db: &Connection, host: i64, claim: &HostClaim) -> Result<Option<Known>, StoreError> {
    let mut query =
        db.prepare_cached("SELECT seq, withdrawn, record FROM claim WHERE manifest = ?1 AND host = ?2")?;
    let mut rows = query.query(params![claim.manifest.as_bytes(), host])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let record = unseal(row.get_ref(2)?.as_blob()?)?;
    Ok(Some(Known { seq: from_db(row.get(0)?)?, withdrawn: row.get(1)?, record }))
}

/// Removes claims of hosts whose lease is over, then hosts that may be forgotten.
pub(super) fn sweep(db: &Connection, now: UnixMillis, most: usize) -> Result<Swept, StoreError> {
    // Besides what it says, this row shows now and then that the store can write.
    db.prepare_cached("INSERT OR REPLACE INTO sweep (id, time) VALUES (1, ?1)")?.execute([to_db(now.0)])?;
    let mut left = most;
    let mut query =
        db.prepare_cached("SELECT id FROM host WHERE claim_rows > 0 AND expires <= ?1 LIMIT ?2")?;
    let expired: Vec<i64> = query
        .query_map(params![to_db(now.0), to_db(left as u64)], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for host in expired {
        left -= clear(db, host, left)?;
        if left == 0 {
            break;
        }
    }
    left -= forget(db, now, left)?;
    Ok(Swept { rows: most - left, more: left == 0 })
}

/// Removes at most `most` claims of one host.
fn clear(db: &Connection, host: i64, most: usize) -> Result<usize, StoreError> {
    let removed = db
        .prepare_cached(
            "DELETE FROM claim WHERE (manifest, host) IN (SELECT manifest, host FROM claim WHERE host = ?1 LIMIT ?2)",
        )?
        .execute(params![host, to_db(most as u64)])?;
    let all_gone = removed < most;
    db.prepare_cached(
        "UPDATE host SET claims = 0, claim_rows = CASE WHEN ?3 THEN 0 ELSE max(claim_rows - ?2, 1) END WHERE id = ?1",
    )?
    .execute(params![host, to_db(removed as u64), all_gone])?;
    Ok(removed)
}

/// Removes hosts of which not even a stale lease can still run.
fn forget(db: &Connection, now: UnixMillis, most: usize) -> Result<usize, StoreError> {
    let mut delete = db.prepare_cached(
        "DELETE FROM host WHERE id IN (SELECT id FROM host WHERE claim_rows = 0 AND expires <= ?1 LIMIT ?2)",
    )?;
    let remembered = forgotten_at(UnixMillis(0));
    Ok(delete.execute(params![to_db(now.0.saturating_sub(remembered.0)), to_db(most as u64)])?)
}
