"""`holiday`: whether it is one, on the person's calendar."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from pydantic import RootModel, StrictBool

from shared.conditions.model import Leaf, Look, Moment
from shared.conditions.sql.builder import Bounds, Statement
from shared.conditions.sql.zones import zone_bounds
from shared.facts.model import Facts


class Parameters(RootModel[StrictBool]):
    """true on holidays, false on all other days."""


class Holiday(Leaf):
    """The date in the person's zone, else the shop's, is one of the shop's holidays."""

    name = "holiday"
    parameters_type = Parameters
    examples = (False,)
    parameters: Parameters

    def look(self, facts: Facts, moment: Moment) -> Look:
        zone = moment.zone_of(facts)
        return Look(self.holds_in(zone, moment), {"date": moment.at.astimezone(zone).date()})

    def holds_in(self, zone: ZoneInfo, moment: Moment) -> bool:
        """Whether the condition holds for people in that zone."""
        return _is_holiday(zone, moment.at, moment) is self.parameters.root

    def sql(self, statement: Statement) -> Bounds:
        return zone_bounds(statement, lambda zone: self.holds_in(zone, statement.moment))


def _is_holiday(zone: ZoneInfo, at: datetime, moment: Moment) -> bool:
    return at.astimezone(zone).date() in moment.holidays
