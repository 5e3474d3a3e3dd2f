"""Messages and what becomes of them: decisions, attempts, links and hits, and the outcomes of their runs."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    Numeric,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.dispatch.tables.columns import metadata, text_column, time_column

STATES = ("queued", "claimed", "calling", "sent", "withheld", "failed", "unknown")

message = Table(
    "message",
    metadata,
    Column("id", Uuid, primary_key=True, comment="UUIDv5(run, step id)"),
    Column("run", Uuid, nullable=False),
    Column("run_version", BigInteger, nullable=False, comment="of the record that was applied; the higher one wins"),
    Column("intended", Boolean, nullable=False, comment="false: only a cancel has come so far"),
    Column("rule", Uuid, nullable=False),
    text_column("rule_name"),
    Column("kind", Text, nullable=False, comment="marketing | transactional"),
    text_column("topic"),
    text_column("step"),
    text_column("template"),
    Column("origin", Uuid, comment="the run's origin node; NULL while only a cancel has come"),
    Column("profile", Uuid, comment="as the intent named it; resolve by cdp.profile_alias"),
    time_column("decided_at", comment="business: T of the decision"),
    time_column("valid_until", nullable=True, comment="business"),
    Column("ghost", Boolean, nullable=False, server_default="false"),
    Column("hops", SmallInteger, nullable=False, server_default="0"),
    Column("intent", JSONB, comment="the whole record as it came: shared.events.Intended"),
    Column("state", Text, nullable=False),
    Column("reason_code", Text, comment="services.dispatch.reasons.CODES"),
    Column("reason", Text),
    time_column("due_at", comment="business: when it is looked at next"),
    time_column("lease_until", nullable=True, comment="infrastructure: a claim older than this is taken again"),
    Column("claim", Uuid, comment="of the claim that holds it"),
    time_column("chosen_at", nullable=True, comment="business: channel and text are chosen, the call may start"),
    Column("decisions", Integer, nullable=False, server_default="0", comment="rows in dispatch.decision"),
    Column("attempts", Integer, nullable=False, server_default="0", comment="rows in dispatch.attempt"),
    Column(
        "repeats", Integer, nullable=False, server_default="0", comment="attempts made although the former is unknown"
    ),
    Column("pinned", Text, comment="the channel of an attempt whose outcome is unknown: no other may follow it"),
    Column("purpose", Text, comment="of its template: marketing | transactional | confirmation"),
    Column("template_version", Integer),
    Column("channel", Text),
    Column("adapter", Text),
    Column("address", Text),
    Column("address_node", Uuid),
    Column("subject", Text),
    Column("body", Text, comment="the text part, or the whole text"),
    Column("html", Text),
    Column("urls", JSONB, comment="the links that a person finds in it, by name"),
    Column("cost", Numeric),
    Column("units", Integer),
    time_column("start_by", nullable=True, comment="infrastructure: the call starts before this or not at all"),
    time_column("call_until", nullable=True, comment="infrastructure: no answer by then is unknown"),
    time_column("created_at", comment="business"),
    time_column("updated_at", comment="business"),
    time_column("sent_at", nullable=True, comment="business"),
    Column("jams", SmallInteger, nullable=False, server_default="0", comment="how often in a row its adapter was full"),
    Column("delivery", Text, comment="what the provider told later: failed | delivered | bounced"),
    time_column("delivered_at", nullable=True, comment="by the provider"),
    CheckConstraint(f"state IN {STATES}", name="message_state"),
    Index("message_due", "kind", "due_at", postgresql_where=text("state = 'queued'")),
    Index("message_leased", "kind", "lease_until", postgresql_where=text("state = 'claimed'")),
    Index(
        "message_chosen", "adapter", "chosen_at", postgresql_where=text("state = 'claimed' AND chosen_at IS NOT NULL")
    ),
    Index("message_calling", "address_node", postgresql_where=text("state = 'calling'")),
    Index("message_by_origin", "origin", "created_at"),
    Index("message_by_run", "run"),
    Index("message_by_update", "updated_at", "id"),
    postgresql_with={"fillfactor": "70"},
)

decision = Table(
    "decision",
    metadata,
    Column("message", Uuid, primary_key=True),
    Column("number", Integer, primary_key=True),
    time_column("at", comment="business"),
    Column("inputs", JSONB, nullable=False, comment="services.dispatch.inputs.Inputs: all that was looked at"),
    Column("act", Text, nullable=False, comment="send | postpone | withhold"),
    Column("channel", Text),
    Column("address_node", Uuid),
    Column("reason_code", Text),
    Column("reason", Text),
    time_column("until", nullable=True),
    Column("cost", Numeric, nullable=False),
    Column("probability", Numeric, nullable=False, comment="of this choice, for weighing its outcome"),
    Column("explored", Boolean, nullable=False),
    Index("decision_by_time", "at"),
)

alternative = Table(
    "alternative",
    metadata,
    Column("message", Uuid, primary_key=True),
    Column("number", Integer, primary_key=True, comment="of the decision"),
    Column("channel", Text, primary_key=True),
    Column("reach", Numeric),
    Column("act", Numeric),
    Column("base", Numeric),
    Column("effect", Numeric, comment="reach · act − base"),
    Column("value", Numeric),
    Column("cost", Numeric),
    Column("units", Integer),
    Column("erosion", Numeric),
    Column("net", Numeric),
    Column("reason_code", Text),
    Column("reason", Text),
)

contact = Table(
    "contact",
    metadata,
    Column("origin", Uuid, primary_key=True),
    Column("message", Uuid, primary_key=True),
    time_column("at", comment="business: when it was chosen"),
    Column("channel", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("address_node", Uuid, nullable=False),
    Column("network", Text, comment="of the request, for confirmation mails"),
    Column("source", Uuid, comment="of the request, for confirmation mails"),
    Index("contact_by_address", "address_node", "at"),
    Index("contact_by_network", "network", "at", postgresql_where=text("network IS NOT NULL")),
    Index("contact_by_source", "source", "at", postgresql_where=text("source IS NOT NULL")),
    comment="what counts against caps: messages chosen, in calling, sent or unknown",
)

attempt = Table(
    "attempt",
    metadata,
    Column("message", Uuid, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("channel", Text, nullable=False),
    Column("adapter", Text, nullable=False),
    Column("address_node", Uuid, nullable=False),
    time_column("at", comment="business"),
    Column("cost", Numeric, nullable=False, comment="the price that was expected"),
    Column("outcome", Text, comment="sent | retry | bounced | failed | unknown | late; NULL while calling"),
    Column("detail", Text),
    Column("provider_id", Text),
    Column("charged", Numeric, comment="what the provider says it costs; NULL: it says nothing, the price counts"),
    time_column("ended_at", nullable=True, comment="business"),
    time_column(
        "ask_at", nullable=True, comment="infrastructure: of an unknown one, when its provider is asked once more"
    ),
    Index("attempt_by_provider", "adapter", "provider_id", postgresql_where=text("provider_id <> ''")),
    Index("attempt_to_ask", "ask_at", postgresql_where=text("ask_at IS NOT NULL")),
)

link = Table(
    "link",
    metadata,
    Column("message", Uuid, primary_key=True),
    Column("number", SmallInteger, primary_key=True),
    Column("url", Text, nullable=False),
)

hit = Table(
    "hit",
    metadata,
    Column("message", Uuid, primary_key=True),
    Column("kind", Text, primary_key=True, comment="open | click"),
    Column("number", SmallInteger, primary_key=True, comment="of the link; 0 for open"),
    time_column("at", comment="business"),
    Column("bot", Boolean, nullable=False),
)

outcome = Table(
    "outcome",
    metadata,
    Column("run", Uuid, primary_key=True),
    Column("run_version", BigInteger, nullable=False),
    Column("rule", Uuid, nullable=False),
    Column("ghost", Boolean, nullable=False),
    time_column("entered_at"),
    time_column("closed_at"),
    time_column("goal_at", nullable=True),
    Column("revenue", Numeric, nullable=False),
    Index("outcome_by_rule", "rule", "closed_at"),
    comment="what came of each run when its goal window closed: what the choice will learn from",
)
