"""What may be sent to an address: consent that comes through dispatch itself, and suppressions."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Index,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.dispatch.tables.columns import metadata, time_column

consent = Table(
    "consent",
    metadata,
    Column("node", Uuid, primary_key=True, comment="the address"),
    Column("channel", Text, primary_key=True),
    Column("topic", Text, primary_key=True, comment="*: all"),
    Column("id", Uuid, primary_key=True, comment="of the event that is published; profile copies the row under it"),
    Column("origin", Uuid, nullable=False),
    Column("state", Text, nullable=False, comment="confirmed | withdrawn | complained"),
    time_column("at", comment="business"),
    Column("request", Uuid, comment="the request that a pressed button confirms"),
    Column("message", Uuid),
    Column("proof", JSONB, nullable=False),
    Index(
        "consent_once_a_request",
        "node",
        "channel",
        "topic",
        "request",
        unique=True,
        postgresql_where=text("request IS NOT NULL"),
    ),
    comment="what comes through dispatch itself, written under the address's lock before it is published",
)

suppression = Table(
    "suppression",
    metadata,
    Column("node", Uuid, primary_key=True, comment="the address"),
    Column("channel", Text, primary_key=True, comment="*: all"),
    Column("id", Uuid, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("value", Text, nullable=False, comment="the address as it is written"),
    Column("why", Text, nullable=False),
    Column("by", Text, nullable=False),
    time_column("at", comment="business"),
    Index("suppression_by_time", "at", "id"),
)

lifted = Table(
    "lifted",
    metadata,
    Column("id", Uuid, primary_key=True, comment="of the suppression"),
    Column("node", Uuid, nullable=False, comment="the address"),
    Column("channel", Text, nullable=False, comment="*: all"),
    time_column("at", comment="business"),
    time_column("lifted_at", comment="business"),
    Index("lifted_by_node", "node"),
    comment="suppressions that were lifted: what decisions of their time could know",
)
