"""Tables of the schemas `platform` (what all services share without domain words) and `bus` (the log table)."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(schema="platform")
bus_metadata = MetaData(schema="bus")


def _time(name: str, *, nullable: bool = False, default: bool = False, comment: str | None = None) -> Column:
    return Column(
        name,
        DateTime(timezone=True),
        nullable=nullable,
        server_default=func.clock_timestamp() if default else None,
        comment=comment,
    )


deployment = Table(
    "deployment",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column(
        "node_namespace", Uuid, nullable=False, comment="secret; node ids are derived in it; back it up with the data"
    ),
    Column("secret", LargeBinary, nullable=False, comment="signs link tokens, keys the erasure journal"),
    Column(
        "generation", Integer, nullable=False, server_default="1", comment="raised by a restore: shards get new names"
    ),
    Column("state", Text, nullable=False, server_default="open", comment="open | held (after a restore)"),
    _time("made_at", default=True),
    Column("home", Text, comment="server and database in which it ran last: another one is a copy, and must say so"),
    Column("bus", JSONB, comment="bus topic -> epoch in use; NULL: whatever the next start finds"),
    _time("backup_at", nullable=True, comment="of the backup that was restored last"),
    _time("restored_at", nullable=True, comment="end of the gap: what was decided up to here may have been sent"),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column(
        "hash", LargeBinary, nullable=False, unique=True, comment="SHA-256 of the key; a random key needs no slow hash"
    ),
    Column("scope", Text, nullable=False, comment="read | marketing | admin"),
    _time("made_at"),
    _time("revoked_at", nullable=True),
)

change_log = Table(
    "change_log",
    metadata,
    Column("id", Uuid, primary_key=True),
    _time("at"),
    Column("principal", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("before", JSONB),
    Column("after", JSONB),
    Index("change_log_by_time", "at"),
)

lease = Table(
    "lease",
    metadata,
    Column("name", Text, primary_key=True, comment="what is held, e.g. profile:events:3"),
    Column("pool", Text, nullable=False, comment="leases that one kind of worker shares, e.g. profile:events"),
    Column("holder", Text, comment="member id, which is its connections' application_name"),
    _time("expires_at", nullable=True, comment="by the database's clock"),
    Index("lease_by_pool", "pool"),
    postgresql_with={"fillfactor": "50"},
)

member = Table(
    "member",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("member", Text, primary_key=True),
    _time("expires_at"),
    postgresql_with={"fillfactor": "50"},
)

mark = Table(
    "mark",
    metadata,
    Column("f", DateTime(timezone=True), primary_key=True, comment="business moment of the mark"),
    Column("epoch", Text, nullable=False, comment="of the bus topic events"),
    Column(
        "ends", ARRAY(BigInteger), nullable=False, comment="ends E of all partitions read at F; index = partition + 1"
    ),
)

watermark = Table(
    "watermark",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    _time("value", comment="everything received up to here has been handled"),
    _time("moved_at", default=True, comment="by the database's clock"),
    postgresql_with={"fillfactor": "50"},
)

holidays = Table(
    "holidays",
    metadata,
    Column("version", Integer, primary_key=True),
    _time("valid_from", comment="business time; decisions at T take the last version valid by then"),
    Column("days", ARRAY(Date), nullable=False, comment="local dates; a version never changes"),
    Column("author", Text, nullable=False),
    _time("made_at"),
)

dead_letter = Table(
    "dead_letter",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("service", Text, nullable=False),
    Column("topic", Text),
    Column("partition", Integer),
    Column("number", BigInteger),
    Column("epoch", Text),
    Column("source", Uuid),
    Column("reason", Text, nullable=False),
    Column("pointer", Text, nullable=False, server_default=""),
    Column("key", LargeBinary),
    Column("bytes", LargeBinary, nullable=False, comment="the original bytes"),
    Column("headers", JSONB, nullable=False, server_default="{}"),
    _time("at"),
    Column("state", Text, nullable=False, server_default="open", comment="open | replayed | discarded"),
    _time("replayed_at", nullable=True),
    Index("dead_letter_by_state", "service", "state", "at"),
)

dead_letter_dropped = Table(
    "dead_letter_dropped",
    metadata,
    Column("service", Text, primary_key=True),
    Column(
        "count", BigInteger, nullable=False, comment="records that this service put aside and that were deleted by age"
    ),
    comment="what the books add to the dead letters that are kept",
)

erasure = Table(
    "erasure",
    metadata,
    Column("hmac", LargeBinary, primary_key=True, comment="keyed HMAC of the erased node's id"),
    _time("at", comment="events that occurred before are dropped as erased"),
)

bus_topic = Table(
    "topic",
    bus_metadata,
    Column("name", Text, primary_key=True),
    Column("epoch", Uuid, nullable=False),
    Column("partitions", Integer, nullable=False),
)

bus_partition = Table(
    "partition",
    bus_metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", SmallInteger, primary_key=True),
    Column("first", BigInteger, nullable=False, server_default="0", comment="first number that is kept"),
    Column("next", BigInteger, nullable=False, server_default="0", comment="locked by an appender until it commits"),
    postgresql_with={"fillfactor": "20"},
)

bus_record = Table(
    "record",
    bus_metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", SmallInteger, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column(
        "day", Integer, primary_key=True, comment="days since 1970, by the database's clock: old days are dropped whole"
    ),
    Column("key", LargeBinary, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("headers", LargeBinary, nullable=False, comment="msgpack: name -> bytes"),
    postgresql_partition_by="RANGE (day)",
)

# Numbers are taken from a row per partition, locked until commit: so commit order and number order are the same, and no
# reader passes a record that commits later. One autocommit statement appends a whole batch; rows are locked sorted.
APPEND = """
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
END $$
"""

# Makes the day partitions up to `ahead` days from now; a DEFAULT partition catches what comes when nobody made one.
MAKE_DAYS = """
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
END $$
"""

BUS_EXTRAS = [
    "CREATE TABLE bus.record_default PARTITION OF bus.record DEFAULT",
    "ALTER TABLE bus.record ALTER COLUMN value SET STORAGE EXTERNAL",
    APPEND,
    MAKE_DAYS,
    "SELECT bus.make_days(2)",
]
