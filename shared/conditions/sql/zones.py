"""People by their time zone: what holds in which zone is worked out in Python, SQL looks up whose zone is which."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from shared.conditions.sql.builder import Bounds, Statement

TRAIT = "timezone"


@cache
def _zones() -> tuple[ZoneInfo, ...]:
    return tuple(ZoneInfo(name) for name in sorted(available_timezones()))


def zone_bounds(statement: Statement, holds_in: Callable[[ZoneInfo], bool]) -> Bounds:
    """A condition that depends on nothing but the person's zone, else the shop's."""
    in_shop = holds_in(statement.moment.zone)
    unlike_shop = [zone.key for zone in _zones() if holds_in(zone) is not in_shop]
    latest = winning_trait(statement, TRAIT)
    zones = statement.parameter(unlike_shop, "text[]")
    found = (
        f"SELECT profile FROM {latest} w "
        f"WHERE jsonb_typeof(w.value) = 'string' AND (w.value #>> '{{}}') COLLATE \"C\" = ANY({zones})"
    )
    return statement.among(found, found, others=in_shop)


def winning_trait(statement: Statement, name: str) -> str:
    """The name of rows of profile, value, folded, number: the trait as of T, last writer by (trust, time, id)."""
    return statement.once(
        "SELECT DISTINCT ON (m.profile) m.profile, t.value, t.folded, t.number "
        f"FROM cdp.trait t {statement.owner('t.node')} "
        f"WHERE t.name = {statement.parameter(name, 'text')} AND t.learned_at <= {statement.at} "
        "ORDER BY m.profile, t.trust DESC, t.at DESC, t.id DESC"
    )
