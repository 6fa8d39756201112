//! The tables of the catalogue, and how a connection is set up.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::StoreError;

/// The format of the catalogue, kept in `user_version`.
const FORMAT: i64 = 1;
/// Marks the file as a catalogue: "p2pc".
const APPLICATION: i64 = 0x7032_7063;
/// How long a call waits for another connection's write.
const BUSY: Duration = Duration::from_secs(30);
/// Statements kept prepared by each connection.
const STATEMENTS: usize = 64;

/// `tree.state` 0 is a tree under construction, or one that is being removed: nobody sees it, and the next start removes it.
/// A file lies at `base.path`/`file.path`. Rows of `chunk` are in the order of the file; any chunk is found by its digest.
const TABLES: &str = "
CREATE TABLE tree(
    id INTEGER PRIMARY KEY AUTOINCREMENT, state INTEGER NOT NULL, manifest BLOB, path BLOB NOT NULL,
    total_size INTEGER NOT NULL DEFAULT 0, file_count INTEGER NOT NULL DEFAULT 0, inode INTEGER NOT NULL DEFAULT 0);
CREATE INDEX tree_manifest ON tree(manifest);
CREATE INDEX tree_path ON tree(path);
CREATE TABLE base(tree INTEGER NOT NULL, number INTEGER NOT NULL, path BLOB NOT NULL,
    PRIMARY KEY(tree, number)) WITHOUT ROWID;
CREATE TABLE page(id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, bytes BLOB NOT NULL);
CREATE TABLE tree_page(tree INTEGER NOT NULL, page INTEGER NOT NULL, PRIMARY KEY(tree, page)) WITHOUT ROWID;
CREATE INDEX tree_page_page ON tree_page(page);
CREATE TABLE file(
    tree INTEGER NOT NULL, entry INTEGER NOT NULL, base INTEGER NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, executable INTEGER NOT NULL,
    PRIMARY KEY(tree, entry)) WITHOUT ROWID;
CREATE TABLE chunk(
    tree INTEGER NOT NULL, entry INTEGER NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY(tree, entry, offset)) WITHOUT ROWID;
CREATE INDEX chunk_digest ON chunk(digest);
CREATE TABLE problem(tree INTEGER NOT NULL, entry INTEGER NOT NULL, lasting INTEGER NOT NULL, detail TEXT NOT NULL,
    PRIMARY KEY(tree, entry)) WITHOUT ROWID;
CREATE TABLE release(
    publisher BLOB NOT NULL, name TEXT NOT NULL, seq INTEGER NOT NULL, manifest BLOB NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY(publisher, name, seq)) WITHOUT ROWID;
CREATE INDEX release_manifest ON release(manifest);
CREATE TABLE head(publisher BLOB NOT NULL, name TEXT NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY(publisher, name)) WITHOUT ROWID;
CREATE TABLE claim(manifest BLOB PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE job(
    id INTEGER PRIMARY KEY AUTOINCREMENT, reference TEXT NOT NULL, target BLOB NOT NULL, created INTEGER NOT NULL,
    resolved TEXT, manifest BLOB, reason TEXT, message TEXT);
";

/// The connection that writes. Creates the tables in a new file.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let mut connection = Connection::open(path)?;
    prepare(&connection)?;
    // A larger log than usual: each checkpoint syncs the disk.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -16384;
         PRAGMA wal_autocheckpoint = 8192; PRAGMA journal_size_limit = 67108864;",
    )?;
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > FORMAT {
        return Err(StoreError::Newer { found, known: FORMAT });
    }
    if found == 0 {
        let transaction = connection.transaction()?;
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
        transaction.commit()?;
    }
    Ok(connection)
}

/// What all connections have in common.
fn prepare(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Plans do not depend on the values that are bound. Otherwise every statement is prepared anew for every value, which takes longer
    // than most of them.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// A connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    prepare(&connection)?;
    connection.pragma_update(None, "cache_size", -4096)?;
    Ok(connection)
}
