"""`bought`: goods among the person's orders."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from pydantic import ConfigDict, model_validator

from shared.conditions.counting import Span, orders_counted
from shared.conditions.errors import nearest
from shared.conditions.fields import Comparison, PositiveCount, refusal
from shared.conditions.model import Leaf, Look, Moment, Needs
from shared.conditions.sql.builder import UNDECIDED, Bounds, Statement, both
from shared.conditions.sql.comparing import line_test
from shared.conditions.sql.orders import counted_orders
from shared.conditions.where import Where
from shared.facts.model import Facts, OrderLine


def _schema(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = Comparison.model_json_schema(by_alias=True)


class Parameters(Span):
    """Every key but within, since, at_least and where is a property of the order line: product_id, category, price."""

    model_config = ConfigDict(json_schema_extra=_schema)

    at_least: PositiveCount = 1
    where: Where | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, document: Any) -> Any:
        if not isinstance(document, dict) or not document:
            raise refusal(f"names no goods: write for example {{category: {{eq: vinyl}}}}, not {document!r}")
        known = cls.names()
        properties = {str(key): value for key, value in document.items() if key not in known}
        for key, value in properties.items():
            if not isinstance(value, dict):
                meant = nearest(key, known)
                hint = f"did you mean {meant!r}?" if meant else f"write {{eq: {value}}}"
                raise refusal(f"a property of the goods takes a mapping of operators: {hint}", field=key)
        rest = {key: value for key, value in document.items() if key in known}
        if properties:
            if not isinstance(rest.get("where", {}), dict):
                raise refusal("must be a mapping of properties", field="where")
            rest["where"] = {**rest.get("where", {}), **properties}
        return rest


class Bought(Leaf):
    """At least one unit (or `at_least`) of such goods was ordered and not returned."""

    name = "bought"
    parameters_type = Parameters
    examples = (
        {"category": {"eq": "vinyl"}, "within": "60d"},
        {"product_id": {"in": ["p-1", "p-2"]}, "at_least": 3},
    )
    parameters: Parameters

    def look(self, facts: Facts, moment: Moment) -> Look:
        where = self.parameters.where
        found = [
            (order, line)
            for order in orders_counted(facts, moment, self.parameters)
            for line in order.lines
            if kept(line) > 0 and (where is None or where.accepts(line_properties(line)))
        ]
        units = sum(kept(line) for _, line in found)
        looked_at = {
            "units": units,
            "products": sorted({line.product_id for _, line in found})[:20],
            "last": found[-1][0].at if found else None,
        }
        # Goods sold by weight come in fractions: some of them is enough where one is asked for.
        holds = bool(found) if self.parameters.at_least == 1 else units >= self.parameters.at_least
        return Look(holds, looked_at)

    @cached_property
    def needs(self) -> Needs:
        return Needs(lines=True, entry=self.parameters.since is not None)

    def sql(self, statement: Statement) -> Bounds:
        """Which report's lines count and what came back is sure where one report has lines and nothing was refunded."""
        asked = self.parameters
        if asked.since is not None:
            return statement.constant(False) if statement.nobody_entered else UNDECIDED
        window = ""
        if asked.within is not None:
            window = f" AND o.at > {statement.parameter(statement.moment.at - asked.within, 'timestamptz')}"
        where = both(
            [line_test(statement, path, one) for path, one in (asked.where.root if asked.where else {}).items()]
        )
        refunds = statement.once(f"SELECT m.profile FROM cdp.refund r {statement.owner('r.node')}")
        plain = (
            "NOT EXISTS (SELECT FROM cdp.refund r WHERE r.order_key = l.order_key) "
            f"AND m.profile NOT IN (SELECT profile FROM {refunds}) "  # of an unknown order: taken off any of theirs
            "AND NOT EXISTS (SELECT FROM cdp.order_line x WHERE x.order_key = l.order_key AND x.event <> l.event)"
        )
        units = "count(*)" if asked.at_least == 1 else "sum(l.quantity)"
        lines = counted_orders(statement, "JOIN cdp.order_line l ON l.order_key = o.key")
        rows = f"SELECT m.profile {lines}{window} AND l.quantity > 0 AND "
        enough = f" GROUP BY m.profile HAVING {units} >= {asked.at_least}"
        return statement.of_settled(
            statement.among(f"{rows}{where.may}{enough}", f"{rows}{where.surely} AND {plain}{enough}", others=False)
        )


def kept(line: OrderLine) -> Any:
    """How much of the line did not come back."""
    return line.quantity - line.returned


def line_properties(line: OrderLine) -> dict[str, Any]:
    """The line as `bought` sees it."""
    return {**line.product, "product_id": line.product_id, "quantity": kept(line), "price": line.price}
