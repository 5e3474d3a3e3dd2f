"""The shop's holidays: immutable versions, each valid from a moment, so that what was decided by one can be derived again.

They are the platform's: a condition of a rule, a guard and a segment must read the same calendar.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # conditions know the type: no driver comes with it
    from shared.db import Tx


@dataclass(frozen=True)
class Holidays:
    """All versions, the oldest first: from when on, and the local dates that are holidays."""

    versions: tuple[tuple[datetime, frozenset[date]], ...] = ()

    def at(self, moment: datetime) -> frozenset[date]:
        """The dates that count for whoever decides at `moment`; none before the first version."""
        found: frozenset[date] = frozenset()
        for valid_from, days in self.versions:
            if valid_from <= moment:
                found = days
        return found


NO_HOLIDAYS = Holidays()


async def read_holidays(tx: Tx) -> Holidays:
    """Every version, as this transaction sees them."""
    rows = await tx.fetch("SELECT valid_from, days FROM platform.holidays ORDER BY version")
    return Holidays(tuple((row["valid_from"], frozenset(row["days"])) for row in rows))


async def newest_holidays(tx: Tx) -> Any | None:
    """`version, valid_from, days, author, made_at` of the version that was made last; None if there is none."""
    return await tx.fetchrow(
        "SELECT version, valid_from, days, author, made_at FROM platform.holidays ORDER BY version DESC LIMIT 1"
    )


async def add_holidays(tx: Tx, days: Iterable[date], valid_from: datetime, author: str, now: datetime) -> Any:
    """A new version, valid from then or just after the one before; returns its row. One at a time."""
    await tx.execute("LOCK TABLE platform.holidays IN SHARE ROW EXCLUSIVE MODE")
    return await tx.fetchrow(
        """
        INSERT INTO platform.holidays (version, valid_from, days, author, made_at)
        SELECT coalesce(max(version), 0) + 1, greatest($1, max(valid_from) + interval '1 microsecond'), $2::date[], $3, $4
        FROM platform.holidays
        RETURNING version, valid_from, days, author, made_at
        """,
        valid_from,
        sorted(set(days)),
        author,
        now,
    )
