//! Packages at a glance: lists and search.

use std::collections::HashMap;

use p2psb_proto::model::time::UnixMillis;
use p2psb_proto::model::{Digest, PublisherId};
use rusqlite::{Connection, Params, Row, params};

use super::convert::{damaged, from_db, time_from_db, to_db};
use super::hosts::count_hosts;
use crate::core::page::{AfterHit, AfterPackage, Filling, Page, PageSize};
use crate::core::search::Query;
use crate::core::{PackageId, Summary};
use crate::store::StoreError;

/// What [`Scan::summary`] reads, from the table `package`.
macro_rules! columns {
    () => {
        "package.id, package.publisher, package.name, version, title, description, tags, license, total_size,
         file_count, manifest, updated"
    };
}

/// Packages by name, then publisher.
pub(super) fn list(
    db: &Connection,
    publisher: Option<&PublisherId>,
    after: Option<&AfterPackage>,
    size: PageSize,
    now: UnixMillis,
) -> Result<Page<Summary>, StoreError> {
    let mut scan = Scan::new(db, now);
    let mut page = Filling::new(size);
    let name = after.map_or("", |cursor| cursor.name.as_str());
    let mut put = |summary: Summary, _| {
        let bytes = summary.size();
        Ok(page.push(summary, bytes))
    };
    match publisher {
        Some(publisher) => scan.each(
            concat!(
                "SELECT ",
                columns!(),
                ", 0.0 FROM package WHERE publisher = ?1 AND name > ?2 AND newest_seq IS NOT NULL ORDER BY name"
            ),
            params![publisher.to_bytes(), name],
            &mut put,
        )?,
        None => {
            let publisher = after.map(|cursor| cursor.publisher.to_bytes().to_vec()).unwrap_or_default();
            scan.each(
                concat!(
                    "SELECT ",
                    columns!(),
                    ", 0.0 FROM package WHERE (name, publisher) > (?1, ?2) AND newest_seq IS NOT NULL
                     ORDER BY name, publisher"
                ),
                params![name, publisher],
                &mut put,
            )?
        }
    };
    Ok(page.finish())
}

/// Packages that hold all words. Pages follow one another by rank; while the catalogue changes, ranks do too, and a package
/// may then show up twice or not at all.
pub(super) fn search(
    db: &Connection,
    query: &Query,
    after: Option<&AfterHit>,
    size: PageSize,
    now: UnixMillis,
) -> Result<Page<(AfterHit, Summary)>, StoreError> {
    let mut scan = Scan::new(db, now);
    let mut page = Filling::new(size);
    let (exact_after, ranked_after) = match after {
        None => (Some(Vec::new()), None),
        Some(AfterHit::Exact(publisher)) => (Some(publisher.to_bytes().to_vec()), None),
        Some(AfterHit::Ranked { rank, row }) => (None, Some((*rank, *row))),
    };
    if let Some(publisher) = exact_after {
        let mut put = |summary: Summary, _| {
            let (cursor, bytes) = (AfterHit::Exact(summary.package.publisher), summary.size());
            Ok(page.push((cursor, summary), bytes))
        };
        let sql = concat!(
            "SELECT ",
            columns!(),
            ", 0.0 FROM package WHERE name = ?1 AND publisher > ?2 AND newest_seq IS NOT NULL ORDER BY publisher"
        );
        if !scan.each(sql, params![query.whole(), publisher], &mut put)? {
            return Ok(page.finish());
        }
    }
    if query.words().is_empty() {
        return Ok(page.finish());
    }
    let (rank, row) = ranked_after.unwrap_or((f64::MIN, i64::MIN));
    let mut put = |summary: Summary, (rank, row)| {
        let bytes = summary.size();
        Ok(page.push((AfterHit::Ranked { rank, row }, summary), bytes))
    };
    // One more than fits says whether more follows; the ranked rows are cut before anything else is read of them.
    let sql = concat!(
        "WITH hit AS MATERIALIZED (
             SELECT rowid AS id, rank AS score FROM search
             WHERE search MATCH ?1 AND rowid NOT IN (SELECT id FROM package WHERE name = ?2)
               AND (rank, rowid) > (?3, ?4)
             ORDER BY rank, rowid LIMIT ?5
         )
         SELECT ",
        columns!(),
        ", score FROM hit JOIN package ON package.id = hit.id ORDER BY score, hit.id"
    );
    let most = to_db(size.get() as u64 + 1);
    scan.each(sql, params![expression(query), query.whole(), rank, row, most], &mut put)?;
    Ok(page.finish())
}

/// The words as an FTS5 expression: each a string, which is never syntax, all of them needed.
fn expression(query: &Query) -> String {
    let quoted: Vec<String> =
        query.words().iter().map(|word| format!("\"{}\"", word.replace('"', "\"\""))).collect();
    quoted.join(" ")
}

/// Reads summaries, and counts the hosts of each content once.
struct Scan<'a> {
    db: &'a Connection,
    now: UnixMillis,
    hosts: HashMap<Digest, u32>,
}

/// Takes a summary with its rank and row number, and says whether it wants another one.
type Put<'a> = dyn FnMut(Summary, (f64, i64)) -> Result<bool, StoreError> + 'a;

impl<'a> Scan<'a> {
    fn new(db: &'a Connection, now: UnixMillis) -> Self {
        Self { db, now, hosts: HashMap::new() }
    }

    /// Puts every row of a query somewhere; false if it was told to stop before the last one.
    fn each(&mut self, sql: &str, params: impl Params, put: &mut Put<'_>) -> Result<bool, StoreError> {
        let mut query = self.db.prepare_cached(sql)?;
        let mut rows = query.query(params)?;
        while let Some(row) = rows.next()? {
            let at = (row.get(12)?, row.get(0)?);
            let summary = self.summary(row)?;
            if !put(summary, at)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn summary(&mut self, row: &Row<'_>) -> Result<Summary, StoreError> {
        let manifest = Digest::from_bytes(row.get(10)?);
        let hosts = match self.hosts.get(&manifest) {
            Some(hosts) => *hosts,
            None => {
                let hosts = count_hosts(self.db, &manifest, self.now)?;
                self.hosts.insert(manifest, hosts);
                hosts
            }
        };
        Ok(Summary {
            package: PackageId {
                publisher: PublisherId::from_slice(row.get_ref(1)?.as_blob()?).map_err(damaged)?,
                name: row.get_ref(2)?.as_str()?.parse().map_err(damaged)?,
            },
            version: row.get_ref(3)?.as_str()?.parse().map_err(damaged)?,
            title: row.get(4)?,
            description: row.get(5)?,
            tags: serde_json::from_str(row.get_ref(6)?.as_str()?).map_err(damaged)?,
            license: row.get(7)?,
            total_size: from_db(row.get(8)?)?,
            file_count: from_db(row.get(9)?)?,
            manifest,
            updated: time_from_db(row.get(11)?)?,
            hosts,
        })
    }
}
