"""Tables of the schema `dispatch`.

*Business* moments come from the Clock, *infrastructure* moments (leases, start by) from the database's own; a column says
which. Money is numeric roubles. What is once only is a key here: message, attempt, charge, consent row, click, code.
"""

from __future__ import annotations

from services.dispatch.tables import addresses, catalogue, messages, providers
from services.dispatch.tables.columns import metadata
from shared.spine_tables import spine_tables

__all__ = ["EXTRAS", "addresses", "catalogue", "messages", "metadata", "providers", "spine"]

spine = spine_tables(metadata)

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
