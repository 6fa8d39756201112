//! Signed records that this agent keeps: releases, the highest head of each chain, own claims. Verified when written, and when read.

use p2psb_proto::model::record::{Payload, Signed};
use p2psb_proto::model::{Action, Digest, HostClaim, PackageEntry, PackageName, PublisherId};
use p2psb_proto::wire::common::v1::SignedRecord;
use prost::Message as _;
use rusqlite::{Connection, Params, params};

use super::{Store, StoreError};

/// What a head that was seen means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadSeen {
    /// Newer than any seen before; remembered.
    Newer,
    /// Known.
    Same,
    /// The chain went back: a higher one was seen before.
    Older {
        /// That one.
        known: Box<Signed<PackageEntry>>,
    },
    /// The chain forked: another entry with this `seq` was seen before.
    Forked {
        /// That one.
        known: Box<Signed<PackageEntry>>,
    },
}

const HEAD: &str = "SELECT record FROM head WHERE publisher = ?1 AND name = ?2";

fn bytes<T: Payload>(record: &Signed<T>) -> Vec<u8> {
    record.to_wire().encode_to_vec()
}

fn verified<T: Payload>(bytes: &[u8]) -> Result<Signed<T>, StoreError> {
    let wire = SignedRecord::decode(bytes).map_err(StoreError::damaged)?;
    Ok(Signed::verify(wire)?)
}

/// The records that a statement selects.
fn select<T: Payload>(
    from: &Connection,
    sql: &str,
    params: impl Params,
) -> Result<Vec<Signed<T>>, StoreError> {
    let mut statement = from.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(verified(row.get_ref(0)?.as_blob().map_err(StoreError::damaged)?)?);
    }
    Ok(records)
}

impl Store {
    /// Remembers a release that was published or fetched here. Durable. An entry that is no release is ignored.
    pub fn put_release(&self, entry: &Signed<PackageEntry>) -> Result<(), StoreError> {
        let value = entry.value();
        let Action::Release(release) = &value.action else { return Ok(()) };
        self.write_durably(|to| {
            to.execute(
                "INSERT OR REPLACE INTO release VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    value.publisher.to_wire().as_ref(),
                    value.name.as_str(),
                    value.seq.cast_signed(),
                    release.manifest.as_bytes(),
                    bytes(entry),
                ],
            )?;
            Ok(())
        })
    }

    /// Remembered releases of a package, highest `seq` first.
    pub fn releases(
        &self,
        publisher: &PublisherId,
        name: &PackageName,
    ) -> Result<Vec<Signed<PackageEntry>>, StoreError> {
        const SQL: &str = "SELECT record FROM release WHERE publisher = ?1 AND name = ?2 ORDER BY seq DESC";
        select(&*self.read()?, SQL, params![publisher.to_wire().as_ref(), name.as_str()])
    }

    /// The packages of a publisher of which a head was seen.
    pub fn packages(&self, publisher: &PublisherId) -> Result<Vec<PackageName>, StoreError> {
        let connection = self.read()?;
        let mut statement =
            connection.prepare_cached("SELECT name FROM head WHERE publisher = ?1 ORDER BY name")?;
        let names = statement.query_map([publisher.to_wire().as_ref()], |row| row.get::<_, String>(0))?;
        names.map(|name| name?.parse().map_err(StoreError::damaged)).collect()
    }

    /// The newest remembered release of this content.
    pub fn release_of(&self, manifest: &Digest) -> Result<Option<Signed<PackageEntry>>, StoreError> {
        const SQL: &str = "SELECT record FROM release WHERE manifest = ?1 ORDER BY seq DESC LIMIT 1";
        Ok(select(&*self.read()?, SQL, [manifest.as_bytes()])?.pop())
    }

    /// Compares a head with the highest seen, and remembers it if it is higher. Durable.
    pub fn observe_head(&self, head: &Signed<PackageEntry>) -> Result<HeadSeen, StoreError> {
        let value = head.value();
        let (publisher, name) = (value.publisher.to_wire(), value.name.as_str());
        // Most heads are known: that needs no write.
        if self.head(&value.publisher, &value.name)?.is_some_and(|known| known.digest() == head.digest()) {
            return Ok(HeadSeen::Same);
        }
        self.write_durably(|to| {
            if let Some(known) = select::<PackageEntry>(to, HEAD, params![publisher.as_ref(), name])?.pop() {
                let known = Box::new(known);
                if known.digest() == head.digest() {
                    return Ok(HeadSeen::Same);
                }
                if known.value().seq > value.seq {
                    return Ok(HeadSeen::Older { known });
                }
                if known.value().seq == value.seq {
                    return Ok(HeadSeen::Forked { known });
                }
            }
            let insert = "INSERT OR REPLACE INTO head VALUES (?1, ?2, ?3)";
            to.execute(insert, params![publisher.as_ref(), name, bytes(head)])?;
            Ok(HeadSeen::Newer)
        })
    }

    /// The highest head seen.
    pub fn head(
        &self,
        publisher: &PublisherId,
        name: &PackageName,
    ) -> Result<Option<Signed<PackageEntry>>, StoreError> {
        let publisher = publisher.to_wire();
        Ok(select(&*self.read()?, HEAD, params![publisher.as_ref(), name.as_str()])?.pop())
    }

    /// Remembers an own claim, replacing the one before for the same manifest.
    pub fn put_claim(&self, claim: &Signed<HostClaim>) -> Result<(), StoreError> {
        self.write(|to| {
            let insert = "INSERT OR REPLACE INTO claim VALUES (?1, ?2)";
            Ok(to.execute(insert, params![claim.value().manifest.as_bytes(), bytes(claim)])?)
        })?;
        Ok(())
    }

    /// The own claim for a manifest.
    pub fn claim(&self, manifest: &Digest) -> Result<Option<Signed<HostClaim>>, StoreError> {
        let sql = "SELECT record FROM claim WHERE manifest = ?1";
        Ok(select(&*self.read()?, sql, [manifest.as_bytes()])?.pop())
    }

    /// All own claims, withdrawn ones too.
    pub fn claims(&self) -> Result<Vec<Signed<HostClaim>>, StoreError> {
        select(&*self.read()?, "SELECT record FROM claim ORDER BY manifest", [])
    }

    /// Forgets an own claim (once the index knows of its withdrawal).
    pub fn remove_claim(&self, manifest: &Digest) -> Result<(), StoreError> {
        self.write(|to| Ok(to.execute("DELETE FROM claim WHERE manifest = ?1", [manifest.as_bytes()])?))?;
        Ok(())
    }
}
