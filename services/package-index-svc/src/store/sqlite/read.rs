//! The connection that reads, and the queries of chains.

use p2psb_proto::model::time::UnixMillis;
use p2psb_proto::model::{Digest, PackageName, PublisherId};
use p2psb_proto::wire::common::v1::SignedRecord;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use semver::Version;

use super::convert::{damaged, from_db, to_db};
use super::publish::record_at;
use super::{hosts, packages};
use crate::core::page::{AfterHit, AfterHost, AfterPackage, BeforeSeq, Filling, Page, PageSize};
use crate::core::resolve::{Requirement, best};
use crate::core::search::Query;
use crate::core::version::VersionKey;
use crate::core::{PackageId, Summary};
use crate::store::seal::unseal;
use crate::store::{Hosted, Read, Resolution, Resolved, StoreError};

/// Bytes that a record takes in an answer beside its own.
const RECORD_OVERHEAD: usize = 16;

/// A connection that reads.
pub(super) struct Reader {
    connection: Connection,
}

impl Reader {
    pub(super) const fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// One moment of the catalogue.
    fn moment(&mut self) -> Result<Transaction<'_>, StoreError> {
        Ok(self.connection.transaction()?)
    }
}

impl Read for Reader {
    fn head(&mut self, package: &PackageId) -> Result<Option<SignedRecord>, StoreError> {
        let db = self.moment()?;
        let Some(row) = find(&db, package)? else { return Ok(None) };
        record_at(&db, row.id, row.head_seq).map(Some)
    }

    fn owners(&mut self, name: &PackageName, limit: usize) -> Result<Vec<PublisherId>, StoreError> {
        let db = self.moment()?;
        let mut query =
            db.prepare_cached("SELECT publisher FROM package WHERE name = ?1 ORDER BY publisher LIMIT ?2")?;
        let mut rows = query.query(params![name.as_str(), to_db(limit as u64)])?;
        let mut owners = Vec::new();
        while let Some(row) = rows.next()? {
            owners.push(PublisherId::from_slice(row.get_ref(0)?.as_blob()?).map_err(damaged)?);
        }
        Ok(owners)
    }

    fn resolve(&mut self, package: &PackageId, wanted: &Requirement) -> Result<Resolution, StoreError> {
        let db = self.moment()?;
        let Some(row) = find(&db, package)? else { return Ok(Resolution::PackageUnknown) };
        let found = match wanted.exact() {
            Some(version) => exact(&db, row.id, version)?,
            None => highest(&db, row.id, wanted)?,
        };
        let Some((seq, yanked)) = found else {
            let newest = row.newest.map(|text| text.parse().map_err(damaged)).transpose()?;
            return Ok(Resolution::NoneFits { newest });
        };
        let entry = record_at(&db, row.id, seq)?;
        let head = if seq == row.head_seq { entry.clone() } else { record_at(&db, row.id, row.head_seq)? };
        Ok(Resolution::Found(Box::new(Resolved { entry, head, yanked })))
    }

    fn entries(
        &mut self,
        package: &PackageId,
        after: Option<BeforeSeq>,
        size: PageSize,
    ) -> Result<Option<Page<(BeforeSeq, SignedRecord)>>, StoreError> {
        let db = self.moment()?;
        let Some(row) = find(&db, package)? else { return Ok(None) };
        let before = after.map_or(i64::MAX, |cursor| to_db(cursor.0));
        let mut query = db.prepare_cached(
            "SELECT seq, record FROM entry WHERE package = ?1 AND seq < ?2 ORDER BY seq DESC",
        )?;
        let mut rows = query.query(params![row.id, before])?;
        let mut page = Filling::new(size);
        while let Some(row) = rows.next()? {
            let sealed = row.get_ref(1)?.as_blob()?;
            let bytes = sealed.len() + RECORD_OVERHEAD;
            if !page.has_room(bytes) {
                break;
            }
            page.push((BeforeSeq(from_db(row.get(0)?)?), unseal(sealed)?), bytes);
        }
        Ok(Some(page.finish()))
    }

    fn packages(
        &mut self,
        publisher: Option<&PublisherId>,
        after: Option<&AfterPackage>,
        size: PageSize,
        now: UnixMillis,
    ) -> Result<Page<Summary>, StoreError> {
        packages::list(&*self.moment()?, publisher, after, size, now)
    }

    fn search(
        &mut self,
        query: &Query,
        after: Option<&AfterHit>,
        size: PageSize,
        now: UnixMillis,
    ) -> Result<Page<(AfterHit, Summary)>, StoreError> {
        packages::search(&*self.moment()?, query, after, size, now)
    }

    fn hosts(
        &mut self,
        manifest: &Digest,
        after: Option<AfterHost>,
        size: PageSize,
        now: UnixMillis,
    ) -> Result<Page<Hosted>, StoreError> {
        hosts::hosts(&*self.moment()?, manifest, after, size, now)
    }
}

/// A package's row.
struct Found {
    id: i64,
    head_seq: i64,
    newest: Option<String>,
}

fn find(db: &Connection, package: &PackageId) -> Result<Option<Found>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT id, head_seq, CASE WHEN newest_seq IS NULL THEN NULL ELSE version END
         FROM package WHERE publisher = ?1 AND name = ?2",
    )?;
    let found = query
        .query_row(params![package.publisher.to_bytes(), package.name.as_str()], |row| {
            Ok(Found { id: row.get(0)?, head_seq: row.get(1)?, newest: row.get(2)? })
        })
        .optional()?;
    Ok(found)
}

/// Seq and yank of one version.
fn exact(db: &Connection, package: i64, version: &Version) -> Result<Option<(i64, bool)>, StoreError> {
    let mut query =
        db.prepare_cached("SELECT seq, yanked FROM release WHERE package = ?1 AND version_key = ?2")?;
    let key = VersionKey::new(version);
    let found =
        query.query_row(params![package, key.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    Ok(found)
}

/// Seq and yank of the best version: the walk from the highest down ends with the first that fits.
fn highest(db: &Connection, package: i64, wanted: &Requirement) -> Result<Option<(i64, bool)>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT version, yanked, seq FROM release WHERE package = ?1 ORDER BY version_key DESC",
    )?;
    let rows = query.query_map([package], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?, row.get::<_, i64>(2)?))
    })?;
    let versions = rows.map(|row| {
        let (text, yanked, seq) = row?;
        Ok::<_, StoreError>((text.parse::<Version>().map_err(damaged)?, yanked, seq))
    });
    Ok(best(wanted, versions)?.map(|(_, yanked, seq)| (seq, yanked)))
}
