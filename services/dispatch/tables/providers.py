"""Adapters and their providers: what they were told and tell, test messages, and what everything costs."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    Date,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.dispatch.tables.columns import metadata, time_column

adapter = Table(
    "adapter",
    metadata,
    Column("name", Text, primary_key=True),
    Column("channel", Text, nullable=False),
    Column("settings", JSONB, nullable=False, comment="what may be read back"),
    Column("secrets", LargeBinary, comment="what may not: encrypted under a key derived from the deployment's secret"),
    Column("secret_names", JSONB, nullable=False, comment="which secrets are set"),
    Column("version", Integer, nullable=False),
    time_column("updated_at", comment="business"),
    comment="what adapters were told by API",
)

pause = Table(
    "pause",
    metadata,
    Column("adapter", Text, primary_key=True),
    Column("failures", Integer, nullable=False, comment="exchanges in a row in which the provider was not there"),
    time_column("until", nullable=True, comment="business: no call before"),
    Column("why", Text, nullable=False),
    comment="adapters whose provider is away or asked to be left alone; no row: all is well",
)

report = Table(
    "report",
    metadata,
    Column("adapter", Text, primary_key=True),
    Column("id", Text, primary_key=True, comment="the provider's for this report: it is applied once"),
    Column("what", Text, nullable=False, comment="services.dispatch.channels.base.Told"),
    Column("message", Uuid),
    Column("provider_id", Text, nullable=False),
    Column("address_node", Uuid, comment="of a report that names an address"),
    time_column("at", nullable=True, comment="by the provider"),
    time_column("received_at", comment="business"),
    Column("detail", Text, nullable=False),
    Column("charged", Numeric),
    Column("properties", JSONB, nullable=False),
    Column("state", Text, nullable=False, comment="waiting: for our own answer to be stored | applied | stray"),
    CheckConstraint("state IN ('waiting', 'applied', 'stray')", name="report_state"),
    Index("report_waiting_provider", "adapter", "provider_id", postgresql_where=text("state = 'waiting'")),
    Index("report_by_message", "message", postgresql_where=text("message IS NOT NULL")),
    Index("report_by_address", "address_node", postgresql_where=text("address_node IS NOT NULL")),
    Index("report_by_time", "received_at"),
    comment="what providers told of messages after they took them",
)

test = Table(
    "test",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("channel", Text, nullable=False),
    Column("adapter", Text, nullable=False),
    Column("address_node", Uuid, nullable=False),
    Column("by", Text, nullable=False),
    time_column("at", comment="business"),
    Column("cost", Numeric, nullable=False, comment="the price that was expected"),
    Column("units", Integer, nullable=False),
    time_column("call_until", comment="infrastructure: no answer by then is unknown"),
    Column("outcome", Text, comment="as an attempt's; NULL while calling"),
    Column("detail", Text),
    Column("provider_id", Text),
    Column("charged", Numeric),
    Column("delivery", Text, comment="what the provider told later"),
    time_column("ended_at", nullable=True, comment="business"),
    Index("test_by_provider", "adapter", "provider_id", postgresql_where=text("provider_id <> ''")),
    Index("test_by_channel", "channel", "at"),
    comment="test messages by hand: they belong to no rule and nobody's history, but they cost",
)

charge = Table(
    "charge",
    metadata,
    Column("message", Uuid, primary_key=True),
    Column("number", Integer, primary_key=True, comment="of the attempt; 0: the row is a test message's"),
    Column("channel", Text, nullable=False),
    Column("adapter", Text, nullable=False),
    Column("rule", Uuid, comment="NULL: a test message"),
    Column("amount", Numeric, nullable=False, comment="0: it turned out that nothing was taken"),
    time_column("at", comment="business"),
    Column("day", Date, nullable=False, comment="of the shop's zone: where spent counts it"),
    Index("charge_by_time", "at"),
    comment="the cost ledger: what every attempt that was taken, or may have been, costs; one row an attempt",
)

spent = Table(
    "spent",
    metadata,
    Column("channel", Text, primary_key=True),
    Column("day", Date, primary_key=True, comment="of the shop's zone"),
    Column("amount", Numeric, nullable=False),
    comment="sums of the cost ledger, kept with it: what a channel's ceiling is compared with",
)
