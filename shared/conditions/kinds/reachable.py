"""`reachable`: over which channels marketing may be sent to the person now."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from shared.channels import ADDRESS_KIND
from shared.conditions.consents import consent_channel, standing
from shared.conditions.fields import Strict, refusal
from shared.conditions.model import Leaf, Look, Moment, Needs
from shared.conditions.sql.builder import Bounds, Statement, all_of, any_of
from shared.conditions.sql.consents import standing as standing_sql
from shared.facts.model import Facts

Channel = Annotated[str, AfterValidator(lambda channel: consent_channel(channel))]


class Parameters(Strict):
    """`any` of these channels, `all` of those."""

    any_: list[Channel] = Field(default=[], alias="any", min_length=1)
    all_: list[Channel] = Field(default=[], alias="all", min_length=1)

    @model_validator(mode="after")
    def _asks_something(self) -> Parameters:
        if not self.model_fields_set:
            raise refusal("names no channel: write for example {any: [email, push]}")
        return self


class Reachable(Leaf):
    """There is an address (not a merely claimed one) with consent for the rule's topic and without suppression."""

    name = "reachable"
    parameters_type = Parameters
    examples = ({"any": ["email", "push"]}, {"all": ["sms"]})
    parameters: Parameters

    @cached_property
    def needs(self) -> Needs:
        return Needs(suppressions=True)

    def look(self, facts: Facts, moment: Moment) -> Look:
        asked = self.parameters
        by_channel = {channel: is_reachable(facts, moment, channel) for channel in [*asked.any_, *asked.all_]}
        holds = all(by_channel[channel] for channel in asked.all_)
        if asked.any_:
            holds = holds and any(by_channel[channel] for channel in asked.any_)
        return Look(holds, by_channel)

    def sql(self, statement: Statement) -> Bounds:
        asked = self.parameters
        parts = [_bounds(statement, channel) for channel in asked.all_]
        if asked.any_:
            parts.append(any_of([_bounds(statement, channel) for channel in asked.any_]))
        return all_of(parts)


def is_reachable(facts: Facts, moment: Moment, channel: str) -> bool:
    """Whether marketing for the rule's topic may go to one of the person's addresses on the channel."""
    suppressed = {node for node, of in facts.suppressed if of in (channel, "*")}
    allowed = {consent.node for consent in standing(facts, channel, moment.topic) if consent.may_write}
    return any(
        address.kind == ADDRESS_KIND[channel]
        and address.status != "claimed"
        and address.node in allowed
        and address.node not in suppressed
        for address in facts.addresses
    )


def _bounds(statement: Statement, channel: str) -> Bounds:
    rows = standing_sql(statement, channel, statement.moment.topic)
    kind, of_channel = statement.parameter(ADDRESS_KIND[channel], "text"), statement.parameter(channel, "text")
    suppressed = (
        f"SELECT 1 FROM platform.suppression x WHERE x.node = n.id AND x.channel IN ({of_channel}, '*') "
        f"AND x.from_at <= {statement.at} AND (x.to_at IS NULL OR x.to_at > {statement.at})"
    )
    found = (
        f"SELECT s.profile FROM {rows} s JOIN cdp.node n ON n.id = s.node "
        f"WHERE s.state IN ('granted', 'confirmed') AND n.kind = {kind} AND NOT EXISTS ({suppressed}) "
        f"AND (n.confirmed_at <= {statement.at} OR n.asserted_at <= {statement.at})"
    )
    return statement.among(found, found, others=False)
