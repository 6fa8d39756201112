//! The catalogue in an embedded SQLite database.
//!
//! Write-ahead log, and a sync of it with every commit: a commit that was acknowledged survives a crash of the machine. One
//! writer, any number of readers, each a connection of its own. The schema's version is the database's `user_version`.

mod convert;
mod hosts;
mod packages;
mod publish;
mod read;
mod tenure;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use p2psb_proto::model::record::Signed;
use p2psb_proto::model::release::PackageEntry;
use p2psb_proto::model::time::UnixMillis;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use self::read::Reader;
use super::error::MayFail;
use super::{
    AnnounceError, Announced, Announcement, Appended, PublishError, Read, Store, StoreError, Swept, Write,
};
use crate::core::limits::Quotas;

/// Each script brings the schema from the version that is its position to the next.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];

/// Marks a database as one of a package index ("p2pI").
const APPLICATION_ID: i64 = 0x7032_7049;

/// How long a connection waits for another process, such as a backup, to let go of the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Statements that a connection keeps prepared.
const STATEMENTS: usize = 64;

/// Pages a database can have.
const MOST_PAGES: u32 = 0xffff_fffe;

/// Where the log is cut back to after a checkpoint.
const LOG_BYTES: i64 = 64 << 20;

/// A catalogue in a file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    most_bytes: u64,
    quotas: Quotas,
}

impl SqliteStore {
    /// Opens the database, makes it if there is none, and brings its schema up to date. It never grows beyond `most_bytes`.
    pub fn open(path: &Path, most_bytes: u64, quotas: Quotas) -> Result<Self, StoreError> {
        let store = Self { path: path.to_owned(), most_bytes, quotas };
        let mut connection = store.connect()?;
        store.check(&connection)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        migrate(&mut connection)?;
        Ok(store)
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let failed = |error: rusqlite::Error| {
            StoreError::Failed(format!("cannot open {}: {error}", self.path.display()))
        };
        let connection = Connection::open_with_flags(&self.path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
        Ok(connection)
    }

    /// Refuses a database that is something else, before anything of it is changed.
    fn check(&self, connection: &Connection) -> Result<(), StoreError> {
        let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables > 0 && number("application_id")? != APPLICATION_ID {
            return Err(StoreError::Foreign(self.path.display().to_string()));
        }
        let (found, known) = (number("user_version")?, MIGRATIONS.len() as i64);
        if found > known { Err(StoreError::TooNew { found, known }) } else { Ok(()) }
    }

    /// The bound belongs to a connection, and only the writer's grows the file.
    fn bound(&self, connection: &Connection) -> Result<(), StoreError> {
        let page: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let pages = self.most_bytes / u64::from(page.max(1));
        let pages = u32::try_from(pages).unwrap_or(MOST_PAGES).clamp(1, MOST_PAGES);
        connection.pragma_update(None, "max_page_count", pages)?;
        Ok(())
    }
}

impl Store for SqliteStore {
    fn reader(&self) -> Result<Box<dyn Read>, StoreError> {
        let connection = self.connect()?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(Box::new(Reader::new(connection)))
    }

    fn writer(&self) -> Result<Box<dyn Write>, StoreError> {
        let connection = self.connect()?;
        self.bound(&connection)?;
        Ok(Box::new(Writer { connection, quotas: self.quotas, broken: None }))
    }
}

/// The connection that writes.
struct Writer {
    connection: Connection,
    quotas: Quotas,
    /// Why the transaction is lost: everything until the next one fails with this.
    broken: Option<StoreError>,
}

impl Writer {
    fn run(&self, sql: &str) -> Result<(), StoreError> {
        self.connection.prepare_cached(sql)?.execute([])?;
        Ok(())
    }

    /// Does something wholly or not at all, inside the transaction.
    fn attempt<T, E: MayFail>(
        &mut self,
        change: impl FnOnce(&Connection, &Quotas) -> Result<T, E>,
    ) -> Result<T, E> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone().into());
        }
        self.run("SAVEPOINT change")?;
        let changed = change(&self.connection, &self.quotas);
        let Err(error) = &changed else {
            self.run("RELEASE change")?;
            return changed;
        };
        // Some failures, such as a full disk, end the whole transaction, and with it what others had in it.
        if self.connection.is_autocommit() {
            let lost = || StoreError::Failed("the transaction was rolled back".into());
            self.broken = Some(error.failure().cloned().unwrap_or_else(lost));
        } else {
            self.run("ROLLBACK TO change")?;
            self.run("RELEASE change")?;
        }
        changed
    }
}

impl Write for Writer {
    fn begin(&mut self) {
        self.broken = self.run("BEGIN IMMEDIATE").err();
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        let done = match self.broken.take() {
            Some(broken) => Err(broken),
            None => self.run("COMMIT"),
        };
        if done.is_err() && !self.connection.is_autocommit() {
            self.run("ROLLBACK")?;
        }
        done
    }

    fn publish(&mut self, entry: &Signed<PackageEntry>, now: UnixMillis) -> Result<Appended, PublishError> {
        self.attempt(|connection, quotas| publish::publish(connection, quotas, entry, now))
    }

    fn announce(&mut self, announcement: &Announcement, now: UnixMillis) -> Result<Announced, AnnounceError> {
        self.attempt(|connection, quotas| tenure::announce(connection, quotas, announcement, now))
    }

    fn sweep(&mut self, now: UnixMillis, rows: usize) -> Result<Swept, StoreError> {
        self.attempt(|connection, _| tenure::sweep(connection, now, rows))
    }
}

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    // Two processes may start at once: who comes second finds the work done.
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (number, script) in (1_i64..).zip(MIGRATIONS) {
        if number > version {
            tx.execute_batch(script)?;
            tx.pragma_update(None, "user_version", number)?;
        }
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.commit()?;
    Ok(())
}
