//! Who hosts some content now.

use p2psb_proto::model::Digest;
use p2psb_proto::model::time::UnixMillis;
use rusqlite::{Connection, params};

use super::convert::{damaged, time_from_db, to_db};
use crate::core::limits::HOSTS_COUNTED;
use crate::core::page::{AfterHost, Filling, Page, PageSize};
use crate::store::seal::unseal;
use crate::store::{Hosted, StoreError};

/// Bytes that a host takes in an answer beside its two records.
const HOST_OVERHEAD: usize = 48;

/// Hosts whose lease runs, heard of last first. While hosts renew, they move to the front.
pub(super) fn hosts(
    db: &Connection,
    manifest: &Digest,
    after: Option<AfterHost>,
    size: PageSize,
    now: UnixMillis,
) -> Result<Page<Hosted>, StoreError> {
    let after = after.unwrap_or(AfterHost { seen: i64::MAX, row: i64::MAX });
    // Sorted by number first, so that the sort does not carry the records of all hosts. One more than fits says whether more
    // follows.
    let mut query = db.prepare_cached(
        "SELECT host.seen, host.id FROM claim JOIN host ON host.id = claim.host
         WHERE claim.manifest = ?1 AND claim.withdrawn = 0 AND host.current = 1 AND host.expires > ?2
           AND (host.seen, host.id) < (?3, ?4)
         ORDER BY host.seen DESC, host.id DESC LIMIT ?5",
    )?;
    let most = to_db(size.get() as u64 + 1);
    let cursors = query
        .query_map(params![manifest.as_bytes(), to_db(now.0), after.seen, after.row, most], |row| {
            Ok(AfterHost { seen: row.get(0)?, row: row.get(1)? })
        })?;
    let mut page = Filling::new(size);
    for cursor in cursors {
        let (hosted, bytes) = hosted(db, manifest, cursor?)?;
        if !page.push(hosted, bytes) {
            break;
        }
    }
    Ok(page.finish())
}

fn hosted(db: &Connection, manifest: &Digest, cursor: AfterHost) -> Result<(Hosted, usize), StoreError> {
    let mut query = db.prepare_cached(
        "SELECT claim.record, host.lease FROM claim JOIN host ON host.id = claim.host
         WHERE claim.manifest = ?1 AND claim.host = ?2",
    )?;
    let mut rows = query.query(params![manifest.as_bytes(), cursor.row])?;
    let row = rows.next()?.ok_or_else(|| damaged("a claim vanished while it was read"))?;
    let (claim, lease) = (row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?);
    let bytes = claim.len() + lease.len() + HOST_OVERHEAD;
    let seen = time_from_db(cursor.seen)?;
    Ok((Hosted { cursor, claim: unseal(claim)?, lease: unseal(lease)?, seen }, bytes))
}

/// How many hosts there are now; counting ends at a bound.
pub(super) fn count_hosts(db: &Connection, manifest: &Digest, now: UnixMillis) -> Result<u32, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT count(*) FROM (
             SELECT 1 FROM claim JOIN host ON host.id = claim.host
             WHERE claim.manifest = ?1 AND claim.withdrawn = 0 AND host.current = 1 AND host.expires > ?2 LIMIT ?3
         )",
    )?;
    Ok(query.query_row(params![manifest.as_bytes(), to_db(now.0), HOSTS_COUNTED], |row| row.get(0))?)
}
