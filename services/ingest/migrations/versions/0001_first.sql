-- The first version of the schema ingest. Frozen: a change of it is a new migration.

CREATE TABLE ingest.source (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    signing_secret TEXT,
    former_signing_secret TEXT,
    former_signing_until TIMESTAMP WITH TIME ZONE,
    made_at TIMESTAMP WITH TIME ZONE NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT source_kind_known CHECK (kind IN ('public', 'secret'))
);
CREATE UNIQUE INDEX source_name_once ON ingest.source (name);
COMMENT ON COLUMN ingest.source.kind IS 'public: a website; secret: a server or till';
COMMENT ON COLUMN ingest.source.signing_secret IS 'by which the shop''s server vouches for user ids of this public source';
COMMENT ON COLUMN ingest.source.former_signing_secret IS 'the one before, which still counts for a while';

CREATE TABLE ingest.key_version (
    one BOOLEAN DEFAULT true NOT NULL,
    version BIGINT NOT NULL,
    PRIMARY KEY (one)
);
COMMENT ON COLUMN ingest.key_version.version IS 'raised by each change of sources and keys; caches compare it';

CREATE TABLE ingest.write_key (
    id UUID NOT NULL,
    source UUID NOT NULL,
    hash BYTEA NOT NULL,
    hint TEXT NOT NULL,
    key TEXT,
    made_at TIMESTAMP WITH TIME ZONE NOT NULL,
    valid_until TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT write_key_of_source FOREIGN KEY(source) REFERENCES ingest.source (id)
);
CREATE UNIQUE INDEX write_key_hash_once ON ingest.write_key (hash);
CREATE INDEX write_key_by_source ON ingest.write_key (source, made_at);
COMMENT ON COLUMN ingest.write_key.hash IS 'SHA-256 of the key; a random key needs no slow hash';
COMMENT ON COLUMN ingest.write_key.hint IS 'the key''s first and last letters, to tell keys apart';
COMMENT ON COLUMN ingest.write_key.key IS 'the key itself, of public sources only: it stands in every page anyway';
COMMENT ON COLUMN ingest.write_key.valid_until IS 'after a rotation the former key counts until then';

INSERT INTO ingest.key_version (version) VALUES (1);
