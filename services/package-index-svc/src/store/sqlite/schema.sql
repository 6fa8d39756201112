-- Version 1. Ids of peers and publishers are 33 bytes, digests 32, times Unix milliseconds, records sealed (store/seal.rs).
--
-- Everything of a package hangs on `package`, everything of a host on `host`, everything of content on its manifest digest, so
-- that the data could be spread by package and by manifest digest.

CREATE TABLE publisher (
    id       BLOB PRIMARY KEY,
    packages INTEGER NOT NULL
) WITHOUT ROWID;

-- `newest_seq` and what follows it are derived from the newest release that is not yanked; NULL if there is none.
CREATE TABLE package (
    id          INTEGER PRIMARY KEY,
    publisher   BLOB    NOT NULL,
    name        TEXT    NOT NULL,
    head_seq    INTEGER NOT NULL,
    head_digest BLOB    NOT NULL,
    updated     INTEGER NOT NULL,
    newest_seq  INTEGER,
    version     TEXT,
    title       TEXT,
    description TEXT,
    tags        TEXT,
    license     TEXT,
    total_size  INTEGER,
    file_count  INTEGER,
    manifest    BLOB
);
CREATE UNIQUE INDEX package_by_name ON package (name, publisher);
CREATE UNIQUE INDEX package_by_publisher ON package (publisher, name);

-- The chains. `revision` rises with every entry of any package, in the order of their commits.
CREATE TABLE entry (
    revision INTEGER PRIMARY KEY AUTOINCREMENT,
    package  INTEGER NOT NULL REFERENCES package (id),
    seq      INTEGER NOT NULL,
    digest   BLOB    NOT NULL,
    record   BLOB    NOT NULL
);
CREATE UNIQUE INDEX entry_by_package ON entry (package, seq);

-- Each version once, with the seq of the entry that released it. `version_key` sorts as SemVer does.
CREATE TABLE release (
    package     INTEGER NOT NULL REFERENCES package (id),
    version_key BLOB    NOT NULL,
    version     TEXT    NOT NULL,
    seq         INTEGER NOT NULL,
    prerelease  INTEGER NOT NULL,
    yanked      INTEGER NOT NULL,
    PRIMARY KEY (package, version_key)
) WITHOUT ROWID;
CREATE INDEX release_newest ON release (package, yanked, prerelease, version_key DESC);

-- The words of each package's newest release; the row number is the package's id. It holds no text of its own.
CREATE VIRTUAL TABLE search USING fts5 (
    name, title, tags, description,
    content = '', contentless_delete = 1, tokenize = 'unicode61 remove_diacritics 2'
);
INSERT INTO search (search, rank) VALUES ('rank', 'bm25(10.0, 5.0, 5.0, 1.0)');

-- A row is a tenure: an unbroken run of leases of one host. `claims` hold, `claim_rows` counts withdrawn ones as well.
CREATE TABLE host (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    peer       BLOB    NOT NULL,
    current    INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    expires    INTEGER NOT NULL,
    seen       INTEGER NOT NULL,
    claims     INTEGER NOT NULL,
    claim_rows INTEGER NOT NULL,
    lease      BLOB    NOT NULL
);
CREATE UNIQUE INDEX host_by_peer ON host (peer) WHERE current = 1;
CREATE INDEX host_to_clear ON host (expires) WHERE claim_rows > 0;
CREATE INDEX host_to_forget ON host (expires) WHERE claim_rows = 0;

CREATE TABLE claim (
    manifest  BLOB    NOT NULL,
    host      INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    withdrawn INTEGER NOT NULL,
    record    BLOB    NOT NULL,
    PRIMARY KEY (manifest, host)
) WITHOUT ROWID;
CREATE INDEX claim_by_host ON claim (host);

-- One row: when the store was last swept.
CREATE TABLE sweep (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    time INTEGER NOT NULL
);
