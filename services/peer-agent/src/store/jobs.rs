//! Fetch jobs: what the user asked for and is not there yet.

use std::path::{Path, PathBuf};

use p2psb_proto::error::Reason;
use p2psb_proto::model::{Digest, UnixMillis};
use rusqlite::params;

use super::{Store, StoreError, path_bytes, path_from};

/// A fetch job of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(i64);

/// How a fetch job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// To be worked on.
    Active,
    /// It could not go on; it is kept, and tried again.
    Failed {
        /// Why.
        reason: Reason,
        /// For people.
        message: String,
    },
}

/// A fetch that the user asked for. It survives restarts until it is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// As asked for.
    pub reference: String,
    /// `publisher/name@version`, once resolved.
    pub resolved: Option<String>,
    /// Its content, once resolved.
    pub manifest: Option<Digest>,
    /// The folder it goes to; empty until resolved, if the user named none.
    pub target: PathBuf,
    /// How it stands.
    pub state: JobState,
    /// When it was asked for.
    pub created: UnixMillis,
}

impl Store {
    /// Adds a fetch job. Durable.
    pub fn add_job(&self, reference: &str, target: &Path, now: UnixMillis) -> Result<JobId, StoreError> {
        self.write_durably(|to| {
            to.execute(
                "INSERT INTO job(reference, target, created) VALUES (?1, ?2, ?3)",
                params![reference, path_bytes(target), now.0.cast_signed()],
            )?;
            Ok(JobId(to.last_insert_rowid()))
        })
    }

    /// Records what a job was resolved to. Durable.
    pub fn resolve_job(
        &self,
        id: JobId,
        resolved: &str,
        manifest: &Digest,
        target: &Path,
    ) -> Result<(), StoreError> {
        self.write_durably(|to| {
            to.execute(
                "UPDATE job SET resolved = ?1, manifest = ?2, target = ?3 WHERE id = ?4",
                params![resolved, manifest.as_bytes(), path_bytes(target), id.0],
            )?;
            Ok(())
        })
    }

    /// Records why a job could not go on.
    pub fn fail_job(&self, id: JobId, reason: Reason, message: &str) -> Result<(), StoreError> {
        self.write(|to| {
            let update = "UPDATE job SET reason = ?1, message = ?2 WHERE id = ?3";
            Ok(to.execute(update, params![reason.as_str(), message, id.0])?)
        })?;
        Ok(())
    }

    /// Records that a job is tried again.
    pub fn retry_job(&self, id: JobId) -> Result<(), StoreError> {
        self.write(|to| {
            Ok(to.execute("UPDATE job SET reason = NULL, message = NULL WHERE id = ?1", [id.0])?)
        })?;
        Ok(())
    }

    /// Removes a job: it is done, can't be done, or was given up.
    pub fn remove_job(&self, id: JobId) -> Result<(), StoreError> {
        self.write(|to| Ok(to.execute("DELETE FROM job WHERE id = ?1", [id.0])?))?;
        Ok(())
    }

    /// All jobs, oldest first.
    pub fn jobs(&self) -> Result<Vec<Job>, StoreError> {
        let connection = self.read()?;
        let mut select = connection.prepare_cached(
            "SELECT id, reference, target, created, resolved, manifest, reason, message FROM job ORDER BY id",
        )?;
        let rows = select.query_map([], |row| {
            let reason: Option<String> = row.get(6)?;
            let state = match reason {
                None => JobState::Active,
                Some(reason) => JobState::Failed {
                    reason: Reason::parse(&reason).unwrap_or(Reason::Internal),
                    message: row.get::<_, Option<String>>(7)?.unwrap_or_default(),
                },
            };
            Ok(Job {
                id: JobId(row.get(0)?),
                reference: row.get(1)?,
                target: path_from(row.get(2)?),
                created: UnixMillis(row.get::<_, i64>(3)?.cast_unsigned()),
                resolved: row.get(4)?,
                manifest: row.get::<_, Option<[u8; 32]>>(5)?.map(Digest::from_bytes),
                state,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
