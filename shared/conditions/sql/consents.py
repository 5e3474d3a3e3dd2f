"""The consent ledger folded in SQL, as `shared.facts.consent` folds it in Python."""

from __future__ import annotations

from shared.conditions.consents import ALL_TOPICS
from shared.conditions.sql.builder import Statement
from shared.facts.consent import RESTRICTION


def standing(statement: Statement, channel: str, topic: str) -> str:
    """The name of rows of profile, node, state: what holds as of T for each address that said anything about the topic.

    A complaint stays; else the last opt-out or pressed button counts (the more restrictive at one moment); else a grant.
    """
    of_channel, topics = statement.parameter(channel, "text"), statement.parameter([topic, ALL_TOPICS], "text[]")
    rank = f"CASE c.state WHEN 'withdrawn' THEN {RESTRICTION['withdrawn']} ELSE {RESTRICTION['confirmed']} END"
    return statement.once(
        "SELECT m.profile, c.node, CASE WHEN bool_or(c.state = 'complained') THEN 'complained' ELSE coalesce("
        f"(array_agg(c.state ORDER BY c.at DESC, {rank} DESC, c.id DESC) "
        "FILTER (WHERE c.state IN ('withdrawn', 'confirmed')))[1], "
        "CASE WHEN bool_or(c.state = 'granted') THEN 'granted' ELSE 'requested' END) END AS state "
        f"FROM cdp.consent c {statement.owner('c.node')} "
        f"WHERE c.channel = {of_channel} AND c.topic = ANY({topics}) AND c.learned_at <= {statement.at} "
        "GROUP BY m.profile, c.node"
    )
