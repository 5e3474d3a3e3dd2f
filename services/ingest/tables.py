"""The schema `ingest`: sources and their write keys. Dead letters lie in `platform.dead_letter`."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    text,
)

metadata = MetaData(schema="ingest")


def _time(name: str, comment: str | None = None, *, nullable: bool = True) -> Column:
    return Column(name, DateTime(timezone=True), nullable=nullable, comment=comment)


source = Table(
    "source",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False, comment="public: a website; secret: a server or till"),
    Column("signing_secret", Text, comment="by which the shop's server vouches for user ids of this public source"),
    Column("former_signing_secret", Text, comment="the one before, which still counts for a while"),
    _time("former_signing_until"),
    _time("made_at", nullable=False),
    _time("revoked_at"),
    CheckConstraint("kind IN ('public', 'secret')", name="source_kind_known"),
    Index("source_name_once", "name", unique=True),
)

write_key = Table(
    "write_key",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("source", Uuid, ForeignKey(source.c.id, name="write_key_of_source"), nullable=False),
    Column("hash", LargeBinary, nullable=False, comment="SHA-256 of the key; a random key needs no slow hash"),
    Column("hint", Text, nullable=False, comment="the key's first and last letters, to tell keys apart"),
    Column("key", Text, comment="the key itself, of public sources only: it stands in every page anyway"),
    _time("made_at", nullable=False),
    _time("valid_until", "after a rotation the former key counts until then"),
    _time("revoked_at"),
    Index("write_key_hash_once", "hash", unique=True),
    Index("write_key_by_source", "source", "made_at"),
)

key_version = Table(
    "key_version",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column(
        "version", BigInteger, nullable=False, comment="raised by each change of sources and keys; caches compare it"
    ),
)

EXTRAS = ["INSERT INTO ingest.key_version (version) VALUES (1)"]
