"""Tables of the schema `triggers`.

Tables that grow with people lead with the node: a run, its items and its decisions lie under the run's origin node, an
event's item under the event's. What is updated often has room for HOT updates.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from shared.spine_tables import spine_tables

metadata = MetaData(schema="triggers")
spine = spine_tables(metadata)


def _time(name: str, *, nullable: bool = False, comment: str | None = None) -> Column:
    return Column(name, DateTime(timezone=True), nullable=nullable, comment=comment)


# ── rules ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
rule = Table(
    "rule",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False, comment="marketing | transactional; never changes"),
    _time("made_at"),
    UniqueConstraint("name", name="rule_name_once"),
)

rule_version = Table(
    "rule_version",
    metadata,
    Column("rule", Uuid, ForeignKey("triggers.rule.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("document", JSONB, nullable=False, comment="with the id of every step; never changes"),
    Column("author", Text, nullable=False),
    _time("made_at"),
    PrimaryKeyConstraint("rule", "version"),
)

rule_change = Table(
    "rule_change",
    metadata,
    Column("rule", Uuid, ForeignKey("triggers.rule.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", Text, nullable=False, comment="draft | active | paused | archived, from valid_from on"),
    Column("version", Integer, nullable=False),
    _time("valid_from", comment="business time; at T the change with the greatest number valid by then is in force"),
    Column("author", Text, nullable=False),
    Column("swept", Boolean, nullable=False, server_default=text("false"), comment="the runs it ends have been told"),
    PrimaryKeyConstraint("rule", "number"),
)

# ── people on their way ───────────────────────────────────────────────────────────────────────────────────────────────
run = Table(
    "run",
    metadata,
    Column("node", Uuid, nullable=False, comment="origin node"),
    Column("id", Uuid, nullable=False, comment="UUIDv5(rule, origin node, entry key)"),
    Column("rule", Uuid, nullable=False),
    Column("version", Integer, nullable=False),
    Column("number", Integer, nullable=False, comment="one higher with each decision"),
    Column("ghost", Boolean, nullable=False),
    Column("subject", Text, nullable=False, server_default=""),
    _time("entered_at"),
    _time("ended_at", nullable=True),
    Column(
        "ended_as",
        Text,
        comment="how a run ends, see services.triggers.run.ENDS",
    ),
    _time("goal_at", nullable=True),
    Column("revenue", Text, comment="decimal; known once the goal window has closed"),
    _time("erased_at", nullable=True),
    Column("open", Boolean, nullable=False, comment="something may still happen to it"),
    Column("state", JSONB, nullable=False, comment="the whole run (services.triggers.run.Run)"),
    PrimaryKeyConstraint("node", "id"),
    CheckConstraint("open OR ended_at IS NOT NULL", name="run_closed_has_ended"),
    Index("run_by_id", "id"),
    Index("run_by_rule", "rule", "entered_at"),
    Index("run_open", "rule", "version", postgresql_where=text("open")),
    postgresql_with={"fillfactor": "80"},
)

item = Table(
    "item",
    metadata,
    Column("node", Uuid, nullable=False, comment="of the event, the match, the run"),
    Column("id", Uuid, nullable=False, comment="natural key: the event; UUIDv5(kind, rule, node) or (kind, run)"),
    Column(
        "kind", SmallInteger, nullable=False, comment="0 event, 1 merged, 2 removed, 3 idle, 4 step, 5 goal, 6 schedule"
    ),
    _time("due", comment="an event's learned-at; when a timer fires"),
    Column("rule", Uuid, comment="of timers"),
    Column("run", Uuid, comment="of a run's own timers"),
    Column("held", Boolean, nullable=False, server_default=text("false"), comment="its rule is paused"),
    Column("payload", JSONB, nullable=False, server_default="{}"),
    PrimaryKeyConstraint("node", "id"),
    Index("item_due", "due", "node", postgresql_where=text("NOT held")),
    Index("item_aside", "due", "node", "id", postgresql_where=text("held AND rule IS NULL")),
    Index("item_held", "rule", postgresql_where=text("held AND rule IS NOT NULL")),
    postgresql_with={"fillfactor": "80"},
)

schedule = Table(
    "schedule",
    metadata,
    Column("rule", Uuid, primary_key=True),
    _time("due", comment="the moment to come, or being expanded: no claim passes it"),
    Column("cursor", Uuid, comment="last profile that was looked at for this moment"),
    Column(
        "held", Boolean, nullable=False, server_default=text("false"), comment="who came to it cannot read its rule"
    ),
    Index("schedule_due", "due", postgresql_where=text("NOT held")),
)

decision_seq = Sequence("decision_seq", metadata=metadata, data_type=BigInteger)

decision = Table(
    "decision",
    metadata,
    Column("node", Uuid, nullable=False, comment="origin node of the run; of the event where nobody entered"),
    Column("seq", BigInteger, nullable=False, comment="taken under the person's locks: the order of decisions"),
    Column("at", DateTime(timezone=True), nullable=False, comment="T"),
    _time("made_at"),
    Column("rule", Uuid, nullable=False),
    Column("version", Integer, nullable=False),
    Column("run", Uuid, comment="absent where a rule failed before anybody entered"),
    Column("run_before", Integer, nullable=False, comment="run version before; 0: entry"),
    Column("run_after", Integer, nullable=False),
    Column("what", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("cause", JSONB, nullable=False, comment="what made it due: kind, event, moment"),
    Column("profile", Uuid, nullable=False),
    Column("nodes", ARRAY(Uuid), nullable=False, comment="of the person at T"),
    Column("seen", JSONB, nullable=False, comment="the values that conditions looked at"),
    Column("effects", JSONB, nullable=False),
    Column("after", JSONB, comment="the run as it was then"),
    Column(
        "erased",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="what it told of somebody erased, or of a purged address, is gone",
    ),
    PrimaryKeyConstraint("node", "seq"),
    Index("decision_by_run", "run", "seq"),
    Index("decision_by_time", "at"),
    Index("decision_by_rule", "rule", "seq"),
    Index("decision_by_seq", "seq"),
)

# A row is a whole batch that lives for milliseconds: compressing it takes longer than everything else.
EXTRAS: list[str] = ["ALTER TABLE triggers.outbox ALTER COLUMN records SET STORAGE EXTERNAL"]
