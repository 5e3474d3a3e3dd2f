"""What marketers write and set: channels, policy, switches, templates and offers, and the shop's own figures."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Integer,
    Numeric,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.dispatch.tables.columns import metadata, text_column, time_column

channel = Table(
    "channel",
    metadata,
    Column("name", Text, primary_key=True),
    Column("adapter", Text, comment="NULL: the usable adapter that is preferred most"),
    Column("enabled", Boolean, nullable=False),
    Column("unit_cost", Numeric, nullable=False),
    Column("reach", Numeric, nullable=False),
    Column("act", Numeric, nullable=False),
    Column("lost", Numeric, nullable=False),
    Column("quiet", Text, comment="21:00-09:00; empty: none; NULL: those of the deployment"),
    Column("caps", JSONB, nullable=False),
    Column("budget", JSONB, nullable=False, comment="{day, month}: the most that may be spent"),
    Column(
        "countries",
        JSONB,
        nullable=False,
        server_default="[]",
        comment="ISO 3166: the only ones it may write to; []: all",
    ),
    Column("settings", JSONB, nullable=False),
    Column("version", Integer, nullable=False),
    time_column("updated_at", comment="business"),
)

policy = Table(
    "policy",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column("caps", JSONB, nullable=False),
    Column("mean_order", Numeric, nullable=False, comment="what an order is taken to be worth before the first one"),
    Column("explore", Numeric, nullable=False, comment="share of choices left to chance"),
    Column("version", Integer, nullable=False),
)

switch = Table(
    "switch",
    metadata,
    Column("scope", Text, primary_key=True, comment="all | channel | rule"),
    Column("name", Text, primary_key=True, comment="of the channel or the rule; empty for all"),
    text_column("reason"),
    Column("by", Text, nullable=False),
    time_column("at", comment="business"),
    comment="a row is a kill switch that is on",
)

figure = Table(
    "figure",
    metadata,
    Column("name", Text, primary_key=True, comment="mean_order"),
    Column("version", Integer, primary_key=True),
    time_column("valid_from", comment="business"),
    Column("value", Numeric, nullable=False),
    Column("basis", BigInteger, nullable=False, comment="how many orders it was made from"),
    comment="what depends on the whole base, as immutable versions that a decision names",
)

template = Table(
    "template",
    metadata,
    Column("name", Text, primary_key=True),
    Column("id", Uuid, nullable=False, unique=True),
    Column("version", Integer, nullable=False, comment="the newest, which is used"),
    text_column("title"),
    Column("archived", Boolean, nullable=False, server_default="false"),
    time_column("updated_at", comment="business"),
)

template_version = Table(
    "template_version",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("parts", JSONB, nullable=False),
    Column("by", Text, nullable=False),
    time_column("at", comment="business"),
)

offer = Table(
    "offer",
    metadata,
    Column("name", Text, primary_key=True),
    Column("id", Uuid, nullable=False, unique=True),
    text_column("title"),
    Column("code", Text, nullable=False),
    Column("valid_seconds", Float, comment="how long a code is good after it was given"),
    Column("forms", JSONB, nullable=False, comment="form → {code, title}"),
    Column("unless_bought", JSONB(none_as_null=True), comment="{products, categories, within}; null: no guard"),
    Column("version", Integer, nullable=False),
    time_column("updated_at", comment="business"),
)

allotment = Table(
    "allotment",
    metadata,
    Column("node", Uuid, primary_key=True, comment="origin node of the run"),
    Column("offer", Text, primary_key=True),
    Column("code", Text, nullable=False),
    text_column("title"),
    Column("message", Uuid, nullable=False, comment="the first that named it"),
    time_column("at", comment="business"),
    time_column("expires_at", nullable=True, comment="business"),
    comment="one code an offer and person; a second claim finds the same",
)
