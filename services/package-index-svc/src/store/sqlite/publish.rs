//! Appending to chains.
//!
//! Invariant: after every change the rows of `release`, the `newest_…` columns of `package` and its words in `search` say what
//! the chain in `entry` says.

use p2psb_proto::model::Digest;
use p2psb_proto::model::record::Signed;
use p2psb_proto::model::release::{Action, PackageEntry, Release};
use p2psb_proto::model::time::UnixMillis;
use p2psb_proto::wire::common::v1::SignedRecord;
use rusqlite::{Connection, OptionalExtension, params};
use semver::Version;

use super::convert::{damaged, from_db, to_db};
use crate::core::chain::{self, ChainError, Head, Link, Standing};
use crate::core::limits::{QuotaError, Quotas, SUMMARY_DESCRIPTION_BYTES};
use crate::core::version::VersionKey;
use crate::core::{PackageId, beginning};
use crate::store::seal::{seal, unseal};
use crate::store::{Appended, PublishError, StoreError};

/// A package's row.
struct Package {
    id: i64,
    head: Head,
    newest: Option<i64>,
}

/// Appends an entry to its chain.
pub(super) fn publish(
    db: &Connection,
    quotas: &Quotas,
    entry: &Signed<PackageEntry>,
    now: UnixMillis,
) -> Result<Appended, PublishError> {
    let value = entry.value();
    let found = find(db, &chain::package_of(value))?;
    let same_seq = match &found {
        Some(package) if value.seq <= package.head.seq => digest_at(db, package.id, value.seq)?,
        _ => None,
    };
    let appended = |fresh| Appended { seq: value.seq, digest: entry.digest(), fresh };
    match chain::link(entry, found.as_ref().map(|package| package.head), same_seq) {
        Ok(Link::Known) => return Ok(appended(false)),
        Ok(Link::Next) => {}
        Err(error) => return Err(with_head(db, found.as_ref(), error)),
    }
    let standing = match &found {
        Some(package) => standing(db, package.id, value.action.version())?,
        None => Standing::Unreleased,
    };
    chain::act(value, standing)?;
    let package = match found {
        Some(package) => package,
        None => create(db, quotas, value, now)?,
    };
    if value.seq > quotas.entries_per_package {
        let (limit, most) = ("limits.entries_per_package", quotas.entries_per_package);
        return Err(QuotaError { limit, most, advice: "release under another name" }.into());
    }
    append(db, &package, entry, now)?;
    Ok(appended(true))
}

fn find(db: &Connection, package: &PackageId) -> Result<Option<Package>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT id, head_seq, head_digest, newest_seq FROM package WHERE publisher = ?1 AND name = ?2",
    )?;
    let mut rows = query.query(params![package.publisher.to_bytes(), package.name.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let head = Head { seq: from_db(row.get(1)?)?, digest: Digest::from_bytes(row.get(2)?) };
    Ok(Some(Package { id: row.get(0)?, head, newest: row.get(3)? }))
}

fn digest_at(db: &Connection, package: i64, seq: u64) -> Result<Option<Digest>, StoreError> {
    let mut query = db.prepare_cached("SELECT digest FROM entry WHERE package = ?1 AND seq = ?2")?;
    let digest = query.query_row(params![package, to_db(seq)], |row| row.get(0)).optional()?;
    Ok(digest.map(Digest::from_bytes))
}

/// The record of an entry that must be there.
pub(super) fn record_at(db: &Connection, package: i64, seq: i64) -> Result<SignedRecord, StoreError> {
    let mut query = db.prepare_cached("SELECT record FROM entry WHERE package = ?1 AND seq = ?2")?;
    let mut rows = query.query(params![package, seq])?;
    let row = rows.next()?.ok_or_else(|| damaged("an entry of a chain is missing"))?;
    unseal(row.get_ref(0)?.as_blob()?)
}

/// A publisher that lost the race needs the head to sign anew behind it.
fn with_head(db: &Connection, package: Option<&Package>, error: ChainError) -> PublishError {
    let Some(package) = package else { return error.into() };
    match record_at(db, package.id, to_db(package.head.seq)) {
        Ok(head) => PublishError::Refused { error, head: Some(Box::new(head)) },
        Err(failure) => failure.into(),
    }
}

fn standing(db: &Connection, package: i64, version: &Version) -> Result<Standing, StoreError> {
    let mut query =
        db.prepare_cached("SELECT yanked FROM release WHERE package = ?1 AND version_key = ?2")?;
    let key = VersionKey::new(version);
    let yanked = query.query_row(params![package, key.as_bytes()], |row| row.get(0)).optional()?;
    Ok(match yanked {
        None => Standing::Unreleased,
        Some(false) => Standing::Released,
        Some(true) => Standing::Yanked,
    })
}

/// A new package, still without entries.
fn create(
    db: &Connection,
    quotas: &Quotas,
    entry: &PackageEntry,
    now: UnixMillis,
) -> Result<Package, PublishError> {
    let publisher = entry.publisher.to_bytes();
    let counted: i64 = db
        .prepare_cached(
            "INSERT INTO publisher (id, packages) VALUES (?1, 1)
             ON CONFLICT (id) DO UPDATE SET packages = packages + 1 RETURNING packages",
        )
        .and_then(|mut statement| statement.query_row([publisher], |row| row.get(0)))
        .map_err(StoreError::from)?;
    if counted > to_db(quotas.packages_per_publisher) {
        let (limit, most) = ("limits.packages_per_publisher", quotas.packages_per_publisher);
        return Err(QuotaError { limit, most, advice: "release versions of the packages there are" }.into());
    }
    let head = Head { seq: 0, digest: Digest::from_bytes([0; 32]) };
    let mut insert = db
        .prepare_cached(
            "INSERT INTO package (publisher, name, head_seq, head_digest, updated) VALUES (?1, ?2, 0, ?3, ?4)",
        )
        .map_err(StoreError::from)?;
    let id = insert
        .insert(params![publisher, entry.name.as_str(), head.digest.as_bytes(), to_db(now.0)])
        .map_err(StoreError::from)?;
    Ok(Package { id, head, newest: None })
}

fn append(
    db: &Connection,
    package: &Package,
    entry: &Signed<PackageEntry>,
    now: UnixMillis,
) -> Result<(), StoreError> {
    let (value, seq) = (entry.value(), to_db(entry.value().seq));
    let digest = entry.digest();
    db.prepare_cached("INSERT INTO entry (package, seq, digest, record) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![package.id, seq, digest.as_bytes(), seal(&entry.to_wire())])?;
    db.prepare_cached("UPDATE package SET head_seq = ?2, head_digest = ?3, updated = ?4 WHERE id = ?1")?
        .execute(params![package.id, seq, digest.as_bytes(), to_db(now.0)])?;
    match &value.action {
        Action::Release(release) => insert_release(db, package.id, seq, &release.version)?,
        Action::Yank { version, .. } => set_yanked(db, package.id, version, true)?,
        Action::Unyank { version } => set_yanked(db, package.id, version, false)?,
    }
    let newest = newest(db, package.id)?;
    if newest == package.newest {
        return Ok(());
    }
    match (newest, &value.action) {
        (None, _) => clear_summary(db, package.id),
        (Some(at), Action::Release(release)) if at == seq => summarise(db, package.id, at, value, release),
        (Some(at), _) => {
            let stored = Signed::<PackageEntry>::verify(record_at(db, package.id, at)?).map_err(damaged)?;
            let Action::Release(release) = &stored.value().action else {
                return Err(damaged("the entry of a release is none"));
            };
            summarise(db, package.id, at, stored.value(), release)
        }
    }
}

fn insert_release(db: &Connection, package: i64, seq: i64, version: &Version) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO release (package, version_key, version, seq, prerelease, yanked) VALUES (?1, ?2, ?3, ?4, ?5, 0)",
    )?
    .execute(params![
        package,
        VersionKey::new(version).as_bytes(),
        version.to_string(),
        seq,
        !version.pre.is_empty()
    ])?;
    Ok(())
}

fn set_yanked(db: &Connection, package: i64, version: &Version, yanked: bool) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE release SET yanked = ?3 WHERE package = ?1 AND version_key = ?2")?
        .execute(params![package, VersionKey::new(version).as_bytes(), yanked])?;
    Ok(())
}

/// The seq of the newest release: not yanked, releases before pre-releases.
fn newest(db: &Connection, package: i64) -> Result<Option<i64>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT seq FROM release WHERE package = ?1 AND yanked = 0 ORDER BY prerelease, version_key DESC LIMIT 1",
    )?;
    Ok(query.query_row([package], |row| row.get(0)).optional()?)
}

fn summarise(
    db: &Connection,
    package: i64,
    seq: i64,
    entry: &PackageEntry,
    release: &Release,
) -> Result<(), StoreError> {
    let tags = serde_json::to_string(&release.tags).map_err(|error| StoreError::Failed(error.to_string()))?;
    db.prepare_cached(
        "UPDATE package SET newest_seq = ?2, version = ?3, title = ?4, description = ?5, tags = ?6, license = ?7,
         total_size = ?8, file_count = ?9, manifest = ?10 WHERE id = ?1",
    )?
    .execute(params![
        package,
        seq,
        release.version.to_string(),
        release.title,
        beginning(&release.description, SUMMARY_DESCRIPTION_BYTES),
        tags,
        release.license,
        to_db(release.total_size),
        to_db(release.file_count),
        release.manifest.as_bytes(),
    ])?;
    db.prepare_cached(
        "INSERT OR REPLACE INTO search (rowid, name, title, tags, description) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        package,
        entry.name.as_str(),
        release.title,
        release.tags.join(" "),
        release.description
    ])?;
    Ok(())
}

fn clear_summary(db: &Connection, package: i64) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE package SET newest_seq = NULL WHERE id = ?1")?.execute([package])?;
    db.prepare_cached("DELETE FROM search WHERE rowid = ?1")?.execute([package])?;
    Ok(())
}
