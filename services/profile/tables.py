"""Tables of the schema `profile`, and the views of the schema `cdp` by which triggers and dispatch read them.

Every fact row carries its immutable origin node and `learned_at`; what a person is, is decided by `node.profile` (now) and
`membership` (at any moment). `profile.state` is a cache: the fold of the rows of its nodes, equal to folding them anew.
Tables that grow with events lead with the node; what is updated often has room for HOT updates (fillfactor 70).
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB

from shared.spine_tables import spine_tables

metadata = MetaData(schema="profile")
spine = spine_tables(metadata)

SEEN_PARTITIONS = 8
BINARY = Text(collation="C")


def _time(name: str, *, key: bool = False, nullable: bool = False, comment: str | None = None) -> Column:
    return Column(name, DateTime(timezone=True), primary_key=key, nullable=nullable, comment=comment)


event_seen = Table(
    "event_seen",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("hash", LargeBinary, nullable=False, comment="SHA-256 of the canonical body; another one is a conflict"),
    _time("received_at"),
    postgresql_partition_by="HASH (id)",
)

node = Table(
    "node",
    metadata,
    Column("id", Uuid, primary_key=True, comment="UUIDv5(deployment's namespace, kind ‖ 0x1F ‖ value)"),
    Column("kind", Text, nullable=False),
    Column("value", Text, nullable=False, comment="in normal form"),
    Column("folded", BINARY, nullable=False, comment="case-folded by Python"),
    Column("profile", Uuid, nullable=False),
    _time("first_seen", comment="earliest occurred-at of an event that named it"),
    _time("learned_at"),
    _time("asserted_at", nullable=True, comment="learned-at of the first time a source vouched for it"),
    _time("confirmed_at", nullable=True, comment="learned-at of the first button pressed"),
    Column("over_limit", Boolean, nullable=False, comment="has more links than its kind may have: joins nothing"),
    postgresql_with={"fillfactor": "90"},
)

# When a late event makes a node older: until that was learned, the node counted as first seen at `first_seen`.
node_seen_before = Table(
    "node_seen_before",
    metadata,
    Column("node", Uuid, primary_key=True),
    _time("until", key=True),
    _time("first_seen"),
)

profile = Table(
    "profile",
    metadata,
    Column("id", Uuid, primary_key=True, comment="never reused"),
    Column(
        "component", Uuid, nullable=False, comment="profiles whose nodes are connected by any link share it: one lock"
    ),
    Column("nodes", ARRAY(Uuid), nullable=False, comment="present nodes, sorted"),
    _time("last_learned_at"),
    _time("first_seen"),
    Column("timezone", Text, comment="the trait, if it is an IANA zone"),
    Column(
        "state", LargeBinary, nullable=False, comment="JSON of shared.facts.state.State: the fold of the nodes' rows"
    ),
    Index("profile_by_component", "component"),
    postgresql_with={"fillfactor": "70"},
)

membership = Table(
    "membership",
    metadata,
    Column("node", Uuid, primary_key=True),
    _time("from_at", key=True),
    _time("to_at", nullable=True, comment="NULL: present"),
    Column("profile", Uuid, nullable=False),
    Index("membership_by_profile", "profile"),
)

profile_alias = Table(
    "profile_alias",
    metadata,
    Column("old", Uuid, primary_key=True),
    Column("new", Uuid, nullable=False),
    _time("at"),
)

link = Table(
    "link",
    metadata,
    Column("a", Uuid, primary_key=True),
    Column("b", Uuid, primary_key=True),
    Column("strength", SmallInteger, primary_key=True, comment="services.profile.identity: the higher is taken first"),
    _time("first_observed"),
    Column("id", Uuid, nullable=False, comment="the event, or the act of a person, that observed it first"),
    Column("source", Uuid),
    Column("trust", SmallInteger, nullable=False),
    _time("learned_at"),
    _time("cut_at", nullable=True, comment="a merge by hand that was undone"),
    CheckConstraint("a < b", name="link_sorted"),
    Index("link_by_b", "b"),
)

cannot_link = Table(
    "cannot_link",
    metadata,
    Column("a", Uuid, primary_key=True),
    Column("b", Uuid, primary_key=True),
    _time("learned_at"),
    Column("principal", Text, nullable=False),
    CheckConstraint("a < b", name="cannot_link_sorted"),
    Index("cannot_link_by_b", "b"),
)

event = Table(
    "event",
    metadata,
    Column("node", Uuid, primary_key=True, comment="origin node"),
    _time("learned_at", key=True),
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("type", Text, nullable=False),
    _time("occurred_at"),
    _time("received_at"),
    Column("trust", SmallInteger, nullable=False, comment="0 public, 1 signed, 2 secret, 3 internal"),
    Column("history", Boolean, nullable=False),
    Column("first", Boolean, nullable=False, comment="first report of its order by a source that may state money"),
    Column("source", Uuid, nullable=False),
    Column("order_key", Text),
    Column("message_id", Text),
    Column("properties", JSONB, nullable=False),
    Column("rest", JSONB, nullable=False, comment="ids, traits, context, hops, hash: what else the event carried"),
)

trait = Table(
    "trait",
    metadata,
    Column("node", Uuid, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("id", Uuid, primary_key=True, comment="the event"),
    Column("trust", SmallInteger, nullable=False),
    _time("at"),
    _time("learned_at"),
    Column("value", JSONB, nullable=False, comment="JSON null: the trait was taken away"),
    Column("folded", BINARY, comment="text, case-folded by Python"),
    Column("number", Numeric),
)

cart_op = Table(
    "cart_op",
    metadata,
    Column("node", Uuid, primary_key=True),
    _time("at", key=True, comment="occurred at"),
    Column("id", Uuid, primary_key=True, comment="the event"),
    Column("kind", Text, nullable=False, comment="add | remove | view | order"),
    Column("order_key", Text),
    Column(
        "items", JSONB, nullable=False, comment="[{product_id, quantity, price, product}, …]; quantity null: all of it"
    ),
    _time("learned_at"),
)

orders = Table(
    "orders",
    metadata,
    Column("key", BINARY, primary_key=True, comment="normalised order id, or store/terminal/receipt"),
    Column("node", Uuid, comment="of the winning report; NULL: only refunds are known"),
    Column("event", Uuid, comment="the winning report"),
    _time("at", nullable=True, comment="when it occurred"),
    _time("first_learned_at", nullable=True, comment="learned-at of the first report from any source"),
    Column("first_event", Uuid, comment="the first report from a source that may state money"),
    Column("total", Numeric, comment="NULL: no source that may state money reported it"),
    Column("refunded", Numeric, nullable=False),
    Column("cancelled", Boolean, nullable=False),
    Column("history", Boolean, nullable=False),
    Column("channel", Text),
    postgresql_with={"fillfactor": "80"},
)

order_report = Table(
    "order_report",
    metadata,
    Column("order_key", BINARY, primary_key=True),
    Column("event", Uuid, primary_key=True),
    Column("node", Uuid, nullable=False),
    Column("kind", Text, nullable=False, comment="completed | updated | cancelled"),
    Column("trust", SmallInteger, nullable=False),
    Column("states_money", Boolean, nullable=False),
    _time("at"),
    _time("learned_at"),
    Column("history", Boolean, nullable=False),
    Column("total", Numeric),
    Column("channel", Text),
    Index("order_report_by_node", "node"),
)

order_line = Table(
    "order_line",
    metadata,
    Column("event", Uuid, primary_key=True, comment="the report"),
    Column("line", Integer, primary_key=True),
    Column("order_key", BINARY, nullable=False),
    Column("product_id", Text, nullable=False),
    Column("folded_category", BINARY, comment="case-folded by Python"),
    Column("quantity", Numeric, nullable=False),
    Column("price", Numeric),
    Column("product", JSONB, nullable=False),
)

refund = Table(
    "refund",
    metadata,
    Column("order_key", BINARY, primary_key=True),
    Column("event", Uuid, primary_key=True),
    Column("node", Uuid, nullable=False),
    Column(
        "refund_key",
        BINARY,
        nullable=False,
        comment="the shop's own refund id, or the event: two reports are one refund",
    ),
    Column("trust", SmallInteger, nullable=False),
    _time("at"),
    _time("learned_at"),
    Column("history", Boolean, nullable=False),
    Column("amount", Numeric, comment="NULL: what the order says of the lines, without lines all of it"),
    Column("lines", JSONB, nullable=False, comment="[{product_id, quantity, price}, …]"),
    Index("refund_by_node", "node"),
)

consent = Table(
    "consent",
    metadata,
    Column("node", Uuid, primary_key=True, comment="the address"),
    Column("channel", Text, primary_key=True),
    Column("topic", Text, primary_key=True, comment="*: all"),
    Column("id", Uuid, primary_key=True, comment="the event"),
    Column("origin", Uuid, nullable=False),
    Column("state", Text, nullable=False, comment="requested | granted | confirmed | withdrawn | complained"),
    Column("trust", SmallInteger, nullable=False),
    _time("at"),
    _time("learned_at"),
    Column("proof", JSONB, nullable=False, comment="form, text_version, page, ip, method … as the event said"),
)

purged = Table(
    "purged",
    metadata,
    Column("hmac", LargeBinary, primary_key=True, comment="shared.erasure.digest of the purged address's node"),
    _time("at"),
)

# What the views hide: cdp is read by the other services, profile's tables only by profile.
VIEWS = {
    "node": """
        SELECT id, kind, value, folded, profile, first_seen, learned_at, asserted_at, confirmed_at,
               CASE WHEN confirmed_at IS NOT NULL THEN 'confirmed' WHEN asserted_at IS NOT NULL THEN 'asserted'
                    ELSE 'claimed' END AS status
        FROM profile.node""",
    "node_seen_before": "SELECT node, until, first_seen FROM profile.node_seen_before",
    "membership": "SELECT node, profile, from_at, to_at FROM profile.membership",
    "profile": "SELECT id, nodes, last_learned_at, first_seen, timezone, state FROM profile.profile",
    "profile_alias": "SELECT old, new, at FROM profile.profile_alias",
    "trait": "SELECT node, name, value, folded, number, trust, at, id, learned_at FROM profile.trait",
    "event": """
        SELECT id, node, name, type, occurred_at, received_at, learned_at, trust, history, source, properties, order_key,
               first, message_id, rest
        FROM profile.event""",
    "order_entity": """
        SELECT key, node, event, at, first_learned_at, first_event, total, refunded, cancelled, history, channel
        FROM profile.orders""",
    "order_report": """
        SELECT order_key, event, node, kind, trust, states_money, at, learned_at, history, total, channel
        FROM profile.order_report""",
    "order_line": """
        SELECT event, order_key, line, product_id, folded_category, quantity, price, product FROM profile.order_line""",
    "refund": """
        SELECT order_key, event, node, refund_key, trust, at, learned_at, history, amount, lines FROM profile.refund""",
    "cart_operation": "SELECT node, at, id, kind, order_key, items, learned_at FROM profile.cart_op",
    "cart_op": """
        SELECT o.node, o.at, o.id, o.kind, o.order_key, i.product_id, i.quantity, i.price, i.product, o.learned_at
        FROM profile.cart_op o CROSS JOIN LATERAL
             jsonb_to_recordset(o.items) AS i(product_id text, quantity numeric, price numeric, product jsonb)""",
    "consent": "SELECT id, node, origin, channel, topic, state, at, learned_at, trust, proof FROM profile.consent",
    "purged": "SELECT hmac, at FROM profile.purged",
}

EXTRAS: list[str] = [
    *(
        f"CREATE TABLE profile.event_seen_{i} PARTITION OF profile.event_seen "
        f"FOR VALUES WITH (MODULUS {SEEN_PARTITIONS}, REMAINDER {i})"
        for i in range(SEEN_PARTITIONS)
    ),
    # A row is a whole batch, megabytes that live for milliseconds: compressing it takes longer than everything else.
    "ALTER TABLE profile.outbox ALTER COLUMN records SET STORAGE EXTERNAL",
    *(f"CREATE VIEW cdp.{name} AS {query.strip()}" for name, query in VIEWS.items()),
]
