-- The first version of the schemas platform and bus. Frozen: a change of it is a new migration.

CREATE TABLE platform.deployment (
    one BOOLEAN DEFAULT true NOT NULL,
    node_namespace UUID NOT NULL,
    secret BYTEA NOT NULL,
    generation INTEGER DEFAULT '1' NOT NULL,
    state TEXT DEFAULT 'open' NOT NULL,
    made_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    home TEXT,
    bus JSONB,
    backup_at TIMESTAMP WITH TIME ZONE,
    restored_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (one)
);
COMMENT ON COLUMN platform.deployment.node_namespace IS 'secret; node ids are derived in it; back it up with the data';
COMMENT ON COLUMN platform.deployment.secret IS 'signs link tokens, keys the erasure journal';
COMMENT ON COLUMN platform.deployment.generation IS 'raised by a restore: shards get new names';
COMMENT ON COLUMN platform.deployment.state IS 'open | held (after a restore)';
COMMENT ON COLUMN platform.deployment.home IS 'server and database in which it ran last: another one is a copy, and must say so';
COMMENT ON COLUMN platform.deployment.bus IS 'bus topic -> epoch in use; NULL: whatever the next start finds';
COMMENT ON COLUMN platform.deployment.backup_at IS 'of the backup that was restored last';
COMMENT ON COLUMN platform.deployment.restored_at IS 'end of the gap: what was decided up to here may have been sent';

CREATE TABLE platform.api_key (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    hash BYTEA NOT NULL,
    scope TEXT NOT NULL,
    made_at TIMESTAMP WITH TIME ZONE NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    UNIQUE (hash)
);
COMMENT ON COLUMN platform.api_key.hash IS 'SHA-256 of the key; a random key needs no slow hash';
COMMENT ON COLUMN platform.api_key.scope IS 'read | marketing | admin';

CREATE TABLE platform.change_log (
    id UUID NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    principal TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    before JSONB,
    after JSONB,
    PRIMARY KEY (id)
);
CREATE INDEX change_log_by_time ON platform.change_log (at);

CREATE TABLE platform.lease (
    name TEXT NOT NULL,
    pool TEXT NOT NULL,
    holder TEXT,
    expires_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (name)
) WITH (fillfactor = 50);
CREATE INDEX lease_by_pool ON platform.lease (pool);
COMMENT ON COLUMN platform.lease.name IS 'what is held, e.g. profile:events:3';
COMMENT ON COLUMN platform.lease.pool IS 'leases that one kind of worker shares, e.g. profile:events';
COMMENT ON COLUMN platform.lease.holder IS 'member id, which is its connections'' application_name';
COMMENT ON COLUMN platform.lease.expires_at IS 'by the database''s clock';

CREATE TABLE platform.member (
    pool TEXT NOT NULL,
    member TEXT NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (pool, member)
) WITH (fillfactor = 50);

CREATE TABLE platform.mark (
    f TIMESTAMP WITH TIME ZONE NOT NULL,
    epoch TEXT NOT NULL,
    ends BIGINT[] NOT NULL,
    PRIMARY KEY (f)
);
COMMENT ON COLUMN platform.mark.f IS 'business moment of the mark';
COMMENT ON COLUMN platform.mark.epoch IS 'of the bus topic events';
COMMENT ON COLUMN platform.mark.ends IS 'ends E of all partitions read at F; index = partition + 1';

CREATE TABLE platform.watermark (
    one BOOLEAN DEFAULT true NOT NULL,
    value TIMESTAMP WITH TIME ZONE NOT NULL,
    moved_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (one)
) WITH (fillfactor = 50);
COMMENT ON COLUMN platform.watermark.value IS 'everything received up to here has been handled';
COMMENT ON COLUMN platform.watermark.moved_at IS 'by the database''s clock';

CREATE TABLE platform.holidays (
    version SERIAL NOT NULL,
    valid_from TIMESTAMP WITH TIME ZONE NOT NULL,
    days DATE[] NOT NULL,
    author TEXT NOT NULL,
    made_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (version)
);
COMMENT ON COLUMN platform.holidays.valid_from IS 'business time; decisions at T take the last version valid by then';
COMMENT ON COLUMN platform.holidays.days IS 'local dates; a version never changes';

CREATE TABLE platform.dead_letter (
    id UUID NOT NULL,
    service TEXT NOT NULL,
    topic TEXT,
    partition INTEGER,
    number BIGINT,
    epoch TEXT,
    source UUID,
    reason TEXT NOT NULL,
    pointer TEXT DEFAULT '' NOT NULL,
    key BYTEA,
    bytes BYTEA NOT NULL,
    headers JSONB DEFAULT '{}' NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    state TEXT DEFAULT 'open' NOT NULL,
    replayed_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id)
);
CREATE INDEX dead_letter_by_state ON platform.dead_letter (service, state, at);
COMMENT ON COLUMN platform.dead_letter.bytes IS 'the original bytes';
COMMENT ON COLUMN platform.dead_letter.state IS 'open | replayed | discarded';

CREATE TABLE platform.dead_letter_dropped (
    service TEXT NOT NULL,
    count BIGINT NOT NULL,
    PRIMARY KEY (service)
);
COMMENT ON TABLE platform.dead_letter_dropped IS 'what the books add to the dead letters that are kept';
COMMENT ON COLUMN platform.dead_letter_dropped.count IS 'records that this service put aside and that were deleted by age';

CREATE TABLE platform.erasure (
    hmac BYTEA NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (hmac)
);
COMMENT ON COLUMN platform.erasure.hmac IS 'keyed HMAC of the erased node''s id';
COMMENT ON COLUMN platform.erasure.at IS 'events that occurred before are dropped as erased';

CREATE TABLE bus.topic (
    name TEXT NOT NULL,
    epoch UUID NOT NULL,
    partitions INTEGER NOT NULL,
    PRIMARY KEY (name)
);

CREATE TABLE bus.partition (
    topic TEXT NOT NULL,
    partition SMALLINT NOT NULL,
    first BIGINT DEFAULT '0' NOT NULL,
    next BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 20);
COMMENT ON COLUMN bus.partition.first IS 'first number that is kept';
COMMENT ON COLUMN bus.partition.next IS 'locked by an appender until it commits';

CREATE TABLE bus.record (
    topic TEXT NOT NULL,
    partition SMALLINT NOT NULL,
    number BIGINT NOT NULL,
    day INTEGER NOT NULL,
    key BYTEA NOT NULL,
    value BYTEA NOT NULL,
    headers BYTEA NOT NULL,
    PRIMARY KEY (topic, partition, number, day)
) PARTITION BY RANGE (day);
COMMENT ON COLUMN bus.record.day IS 'days since 1970, by the database''s clock: old days are dropped whole';
COMMENT ON COLUMN bus.record.headers IS 'msgpack: name -> bytes';

CREATE TABLE bus.record_default PARTITION OF bus.record DEFAULT;
ALTER TABLE bus.record ALTER COLUMN value SET STORAGE EXTERNAL;

CREATE FUNCTION bus.append(
    topics text[], partitions smallint[], keys bytea[], bodies bytea[], heads bytea[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    today integer := extract(epoch FROM clock_timestamp())::bigint / 86400;
BEGIN
    PERFORM 1 FROM bus.partition p
    WHERE (p.topic, p.partition) IN (SELECT DISTINCT * FROM unnest(topics, partitions))
    ORDER BY p.topic, p.partition FOR UPDATE;
    WITH input AS (
        SELECT i.*, row_number() OVER (PARTITION BY i.topic, i.partition ORDER BY i.ordinal) - 1 AS place
        FROM unnest(topics, partitions, keys, bodies, heads) WITH ORDINALITY
            AS i(topic, partition, key, value, headers, ordinal)
    ), taken AS (
        UPDATE bus.partition p SET next = p.next + c.count
        FROM (SELECT topic, partition, count(*) FROM input GROUP BY 1, 2) c
        WHERE p.topic = c.topic AND p.partition = c.partition
        RETURNING p.topic, p.partition, p.next - c.count AS base
    )
    INSERT INTO bus.record (topic, partition, number, day, key, value, headers)
    SELECT i.topic, i.partition, t.base + i.place, today, i.key, i.value, i.headers
    FROM input i JOIN taken t USING (topic, partition);
END $$;

CREATE FUNCTION bus.make_days(ahead integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    today integer := extract(epoch FROM clock_timestamp())::bigint / 86400;
BEGIN
    FOR d IN today .. today + ahead LOOP
        IF to_regclass('bus.record_' || d) IS NULL
           AND NOT EXISTS (SELECT 1 FROM bus.record_default WHERE day = d) THEN
            EXECUTE format('CREATE TABLE bus.%I PARTITION OF bus.record FOR VALUES FROM (%s) TO (%s)', 'record_' || d, d, d + 1);
        END IF;
    END LOOP;
END $$;

SELECT bus.make_days(2);
