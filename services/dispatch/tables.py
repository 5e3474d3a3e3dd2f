"""Tables of the schema `dispatch`.

*Business* moments come from the Clock, *infrastructure* moments (leases, start by) from the database's own; a column says
which. Money is numeric roubles. What is once only is a key here: message, attempt, charge, consent row, click, code.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from shared.spine_tables import spine_tables

metadata = MetaData(schema="dispatch")
spine = spine_tables(metadata)

STATES = ("queued", "claimed", "calling", "sent", "withheld", "failed", "unknown")


def _time(name: str, *, key: bool = False, nullable: bool = False, comment: str | None = None) -> Column:
    return Column(name, DateTime(timezone=True), primary_key=key, nullable=nullable, comment=comment)


def _text(name: str, default: str = "") -> Column:
    return Column(name, Text, nullable=False, server_default=default)


message = Table(
    "message",
    metadata,
    Column("id", Uuid, primary_key=True, comment="UUIDv5(run, step id)"),
    Column("run", Uuid, nullable=False),
    Column("run_version", BigInteger, nullable=False, comment="of the record that was applied; the higher one wins"),
    Column("intended", Boolean, nullable=False, comment="false: only a cancel has come so far"),
    Column("rule", Uuid, nullable=False),
    _text("rule_name"),
    Column("kind", Text, nullable=False, comment="marketing | transactional"),
    _text("topic"),
    _text("step"),
    _text("template"),
    Column("origin", Uuid, comment="the run's origin node; NULL while only a cancel has come"),
    Column("profile", Uuid, comment="as the intent named it; resolve by cdp.profile_alias"),
    _time("decided_at", comment="business: T of the decision"),
    _time("valid_until", nullable=True, comment="business"),
    Column("ghost", Boolean, nullable=False, server_default="false"),
    Column("hops", SmallInteger, nullable=False, server_default="0"),
    Column("intent", JSONB, comment="the whole record as it came: shared.events.Intended"),
    Column("state", Text, nullable=False),
    Column("reason_code", Text, comment="services.dispatch.reasons.CODES"),
    Column("reason", Text),
    _time("due_at", comment="business: when it is looked at next"),
    _time("lease_until", nullable=True, comment="infrastructure: a claim older than this is taken again"),
    Column("claim", Uuid, comment="of the claim that holds it"),
    _time("chosen_at", nullable=True, comment="business: channel and text are chosen, the call may start"),
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
    _time("start_by", nullable=True, comment="infrastructure: the call starts before this or not at all"),
    _time("call_until", nullable=True, comment="infrastructure: no answer by then is unknown"),
    _time("created_at", comment="business"),
    _time("updated_at", comment="business"),
    _time("sent_at", nullable=True, comment="business"),
    Column("jams", SmallInteger, nullable=False, server_default="0", comment="how often in a row its adapter was full"),
    Column("delivery", Text, comment="what the provider told later: failed | delivered | bounced"),
    _time("delivered_at", nullable=True, comment="by the provider"),
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
    _time("at", comment="business"),
    Column("inputs", JSONB, nullable=False, comment="services.dispatch.inputs.Inputs: all that was looked at"),
    Column("act", Text, nullable=False, comment="send | postpone | withhold"),
    Column("channel", Text),
    Column("address_node", Uuid),
    Column("reason_code", Text),
    Column("reason", Text),
    _time("until", nullable=True),
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
    _time("at", comment="business: when it was chosen"),
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
    _time("at", comment="business"),
    Column("cost", Numeric, nullable=False, comment="the price that was expected"),
    Column("outcome", Text, comment="sent | retry | bounced | failed | unknown | late; NULL while calling"),
    Column("detail", Text),
    Column("provider_id", Text),
    Column("charged", Numeric, comment="what the provider says it costs; NULL: it says nothing, the price counts"),
    _time("ended_at", nullable=True, comment="business"),
    _time("ask_at", nullable=True, comment="infrastructure: of an unknown one, when its provider is asked once more"),
    Index("attempt_by_provider", "adapter", "provider_id", postgresql_where=text("provider_id <> ''")),
    Index("attempt_to_ask", "ask_at", postgresql_where=text("ask_at IS NOT NULL")),
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
    _time("at", comment="business"),
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

report = Table(
    "report",
    metadata,
    Column("adapter", Text, primary_key=True),
    Column("id", Text, primary_key=True, comment="the provider's for this report: it is applied once"),
    Column("what", Text, nullable=False, comment="services.dispatch.channels.base.Told"),
    Column("message", Uuid),
    Column("provider_id", Text, nullable=False),
    Column("address_node", Uuid, comment="of a report that names an address"),
    _time("at", nullable=True, comment="by the provider"),
    _time("received_at", comment="business"),
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
    _time("at", comment="business"),
    Column("cost", Numeric, nullable=False, comment="the price that was expected"),
    Column("units", Integer, nullable=False),
    _time("call_until", comment="infrastructure: no answer by then is unknown"),
    Column("outcome", Text, comment="as an attempt's; NULL while calling"),
    Column("detail", Text),
    Column("provider_id", Text),
    Column("charged", Numeric),
    Column("delivery", Text, comment="what the provider told later"),
    _time("ended_at", nullable=True, comment="business"),
    Index("test_by_provider", "adapter", "provider_id", postgresql_where=text("provider_id <> ''")),
    Index("test_by_channel", "channel", "at"),
    comment="test messages by hand: they belong to no rule and nobody's history, but they cost",
)

adapter = Table(
    "adapter",
    metadata,
    Column("name", Text, primary_key=True),
    Column("channel", Text, nullable=False),
    Column("settings", JSONB, nullable=False, comment="what may be read back"),
    Column("secrets", LargeBinary, comment="what may not: encrypted under a key derived from the deployment's secret"),
    Column("secret_names", JSONB, nullable=False, comment="which secrets are set"),
    Column("version", Integer, nullable=False),
    _time("updated_at", comment="business"),
    comment="what adapters were told by API",
)

pause = Table(
    "pause",
    metadata,
    Column("adapter", Text, primary_key=True),
    Column("failures", Integer, nullable=False, comment="exchanges in a row in which the provider was not there"),
    _time("until", nullable=True, comment="business: no call before"),
    Column("why", Text, nullable=False),
    comment="adapters whose provider is away or asked to be left alone; no row: all is well",
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
    _time("at", comment="business"),
    Column("bot", Boolean, nullable=False),
)

consent = Table(
    "consent",
    metadata,
    Column("node", Uuid, primary_key=True, comment="the address"),
    Column("channel", Text, primary_key=True),
    Column("topic", Text, primary_key=True, comment="*: all"),
    Column("id", Uuid, primary_key=True, comment="of the event that is published; profile copies the row under it"),
    Column("origin", Uuid, nullable=False),
    Column("state", Text, nullable=False, comment="confirmed | withdrawn | complained"),
    _time("at", comment="business"),
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
    _time("at", comment="business"),
    Index("suppression_by_time", "at", "id"),
)

lifted = Table(
    "lifted",
    metadata,
    Column("id", Uuid, primary_key=True, comment="of the suppression"),
    Column("node", Uuid, nullable=False, comment="the address"),
    Column("channel", Text, nullable=False, comment="*: all"),
    _time("at", comment="business"),
    _time("lifted_at", comment="business"),
    Index("lifted_by_node", "node"),
    comment="suppressions that were lifted: what decisions of their time could know",
)

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
    _time("updated_at", comment="business"),
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
    _text("reason"),
    Column("by", Text, nullable=False),
    _time("at", comment="business"),
    comment="a row is a kill switch that is on",
)

figure = Table(
    "figure",
    metadata,
    Column("name", Text, primary_key=True, comment="mean_order"),
    Column("version", Integer, primary_key=True),
    _time("valid_from", comment="business"),
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
    _text("title"),
    Column("archived", Boolean, nullable=False, server_default="false"),
    _time("updated_at", comment="business"),
)

template_version = Table(
    "template_version",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("parts", JSONB, nullable=False),
    Column("by", Text, nullable=False),
    _time("at", comment="business"),
)

offer = Table(
    "offer",
    metadata,
    Column("name", Text, primary_key=True),
    Column("id", Uuid, nullable=False, unique=True),
    _text("title"),
    Column("code", Text, nullable=False),
    Column("valid_seconds", Float, comment="how long a code is good after it was given"),
    Column("forms", JSONB, nullable=False, comment="form → {code, title}"),
    Column("unless_bought", JSONB(none_as_null=True), comment="{products, categories, within}; null: no guard"),
    Column("version", Integer, nullable=False),
    _time("updated_at", comment="business"),
)

allotment = Table(
    "allotment",
    metadata,
    Column("node", Uuid, primary_key=True, comment="origin node of the run"),
    Column("offer", Text, primary_key=True),
    Column("code", Text, nullable=False),
    _text("title"),
    Column("message", Uuid, nullable=False, comment="the first that named it"),
    _time("at", comment="business"),
    _time("expires_at", nullable=True, comment="business"),
    comment="one code an offer and person; a second claim finds the same",
)

outcome = Table(
    "outcome",
    metadata,
    Column("run", Uuid, primary_key=True),
    Column("run_version", BigInteger, nullable=False),
    Column("rule", Uuid, nullable=False),
    Column("ghost", Boolean, nullable=False),
    _time("entered_at"),
    _time("closed_at"),
    _time("goal_at", nullable=True),
    Column("revenue", Numeric, nullable=False),
    Index("outcome_by_rule", "rule", "closed_at"),
    comment="what came of each run when its goal window closed: what the choice will learn from",
)

# A row is a whole batch that lives for milliseconds: compressing it takes longer than everything else.
EXTRAS: list[str] = [
    "ALTER TABLE dispatch.outbox ALTER COLUMN records SET STORAGE EXTERNAL",
    # What rules may name, for whoever activates one (docs/adr/0006): names alone, never what the texts say.
    """
    CREATE VIEW platform.catalogue AS
    SELECT 'template' AS kind, t.name, v.purpose
    FROM dispatch.template t JOIN dispatch.template_version v ON v.name = t.name AND v.version = t.version
    WHERE NOT t.archived
    UNION ALL
    SELECT 'offer', name, NULL FROM dispatch.offer""",
    "GRANT SELECT ON platform.catalogue TO PUBLIC",
    # What the condition `reachable` may know (docs/adr/0004): nodes alone, never addresses. A row counts from ten seconds
    # after its moment, when the transaction that writes it is over: whoever asks about a moment always hears the same.
    """
    CREATE VIEW platform.suppression AS
    SELECT node, channel, at + interval '10 seconds' AS from_at, NULL::timestamptz AS to_at FROM dispatch.suppression
    UNION ALL
    SELECT node, channel, at + interval '10 seconds', lifted_at + interval '10 seconds' FROM dispatch.lifted""",
    "GRANT SELECT ON platform.suppression TO PUBLIC",
]
