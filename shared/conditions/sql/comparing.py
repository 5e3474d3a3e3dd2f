"""Comparisons as SQL, over a jsonb value and over the columns that Python prepared beside it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

from shared.conditions.fields import Comparison, DurationComparison, NumberComparison
from shared.conditions.sql.builder import CANNOT_TELL, FALSE, TRUE, Statement, Test, both
from shared.conditions.values import folded_of
from shared.conditions.where import Where

SIGNS = {"eq": "=", "ne": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
# What a text that `moment_of` takes for a date looks like.
DATE_LIKE = "____-__-__%"


def number_test(statement: Statement, expression: str, comparison: NumberComparison, times: str = "1") -> Test:
    """A numeric expression, never null, against the operators; each operand is multiplied by `times` first."""
    return both(
        [
            Test(f"({part})")
            for operator, operand in comparison.given.items()
            for part in _number_parts(statement, expression, operator, operand, times)
        ]
    )


def _number_parts(statement: Statement, expression: str, operator: str, operand: Any, times: str) -> list[str]:
    if operator == "between":
        low, high = (statement.parameter(one, "numeric") for one in operand)
        return [f"{expression} >= {low} * {times}", f"{expression} <= {high} * {times}"]
    return [f"{expression} {SIGNS[operator]} {statement.parameter(operand, 'numeric')} * {times}"]


def age_test(statement: Statement, since: str, comparison: DurationComparison) -> Test:
    """How long before T the moment `since` (an expression, never null) was; what is after T has no age."""

    def before(sign: str, duration: timedelta) -> Test:
        return Test(f"({since} {sign} {statement.parameter(statement.moment.at - duration, 'timestamptz')})")

    signs = {"gt": "<", "gte": "<=", "lt": ">", "lte": ">="}
    tests = [Test(f"({since} <= {statement.at})")]
    for operator, operand in comparison.given.items():
        if operator == "between":
            tests += [before("<=", operand[0]), before(">=", operand[1])]
        else:
            tests.append(before(signs[operator], operand))
    return both(tests)


def where_test(statement: Statement, document: str, where: Where | None) -> Test:
    """`where` over a jsonb object; a dotted name is left to Python."""
    if where is None:
        return Test(TRUE)
    return both([_property_test(statement, document, path, comparison) for path, comparison in where.root.items()])


def _property_test(statement: Statement, document: str, path: str, comparison: Comparison) -> Test:
    if "." in path:
        return Test(CANNOT_TELL, decided=False)
    return json_test(statement, f"({document} -> {statement.parameter(path, 'text')})", comparison)


def json_test(statement: Statement, value: str, comparison: Comparison) -> Test:
    """A jsonb expression, NULL or null where absent, against the operators."""
    return both(
        [_JsonValue(statement, value).test(operator, operand) for operator, operand in comparison.given.items()]
    )


class _Value:
    """A value in SQL. Sub-classes say how its number, its folded text and its elements are read."""

    def __init__(self, statement: Statement) -> None:
        self.statement = statement

    def test(self, operator: str, operand: Any) -> Test:
        """One operator on this value."""
        match operator:
            case "exists":
                return Test(f"({self.there()} IS {'TRUE' if operand else 'NOT TRUE'})")
            case "eq":
                return self._equal(operand)
            case "in":
                tests = [self._equal(one) for one in operand]
                return Test("(" + " OR ".join(t.expression for t in tests) + ")", all(t.decided for t in tests))
            case "ne":
                equal = self._equal(operand)
                return Test(f"({self.there()} IS TRUE AND NOT {equal.expression})", equal.decided)
            case "contains":
                return self.contains(operand)
            case "prefix":
                needle = self.statement.parameter(folded_of(operand), "text")
                return self.text(lambda folded: f"starts_with({folded}, {needle})")
            case "between":
                return both([self._ordered("gte", operand[0]), self._ordered("lte", operand[1])])
        return self._ordered(operator, operand)

    def _equal(self, operand: Any) -> Test:
        if isinstance(operand, Decimal):
            return self._ordered("eq", operand)
        needle = self.statement.parameter(folded_of(operand), "text")
        return self.text(lambda folded: f'{folded} = {needle} COLLATE "C"')

    def _ordered(self, operator: str, operand: Any) -> Test:
        if not isinstance(operand, Decimal):
            return self.date_like()
        sign, right = SIGNS[operator], self.statement.parameter(operand, "numeric")
        return self.number(lambda number: f"{number} {sign} {right}")

    def there(self) -> str:
        raise NotImplementedError

    def number(self, say: Callable[[str], str]) -> Test:
        raise NotImplementedError

    def text(self, say: Callable[[str], str]) -> Test:
        raise NotImplementedError

    def contains(self, operand: Any) -> Test:
        raise NotImplementedError

    def date_like(self) -> Test:
        """Whether it may be a date, which Python reads and compares."""
        raise NotImplementedError


class _JsonValue(_Value):
    """A bare jsonb value: decided for numbers, booleans and ASCII texts, which `lower` in collation "C" folds rightly."""

    def __init__(self, statement: Statement, value: str) -> None:
        super().__init__(statement)
        self.value = value
        self.raw = f"({value} #>> '{{}}')"

    def there(self) -> str:
        return f"(jsonb_typeof({self.value}) <> 'null')"

    def number(self, say: Callable[[str], str]) -> Test:
        return self._by_type(f"WHEN 'number' THEN {say(f'{self.raw}::numeric')} WHEN 'string' THEN NULL")

    def text(self, say: Callable[[str], str]) -> Test:
        return self._by_type(self._scalars(say))

    def contains(self, operand: Any) -> Test:
        needle = self.statement.parameter(folded_of(operand), "text")
        found = self._scalars(lambda folded: f"strpos({folded}, {needle}) > 0")
        return self._by_type(f"{found} WHEN 'array' THEN NULL")

    def date_like(self) -> Test:
        return self._by_type(f"WHEN 'string' THEN CASE WHEN {self.raw} LIKE '{DATE_LIKE}' THEN NULL ELSE {FALSE} END")

    def _scalars(self, say: Callable[[str], str]) -> str:
        ascii_only = f"octet_length({self.raw}) = char_length({self.raw})"
        folded = f'lower({self.raw} COLLATE "C")'
        return (
            f"WHEN 'string' THEN CASE WHEN {ascii_only} THEN {say(folded)} END "
            f"WHEN 'boolean' THEN {say(self.raw)} WHEN 'number' THEN NULL"
        )

    def _by_type(self, branches: str) -> Test:
        return Test(f"(CASE jsonb_typeof({self.value}) {branches} ELSE {FALSE} END)", decided=False)


class ColumnValue(_Value):
    """A jsonb value beside the columns `folded` and `number`, which Python made of it by `shared.conditions.values`."""

    def __init__(self, statement: Statement, value: str, folded: str, number: str) -> None:
        super().__init__(statement)
        self.value, self.folded, self.column = value, folded, number

    def there(self) -> str:
        return f"(jsonb_typeof({self.value}) <> 'null')"

    def number(self, say: Callable[[str], str]) -> Test:
        return Test(f"coalesce({say(self.column)}, {FALSE})")

    def text(self, say: Callable[[str], str]) -> Test:
        return Test(f"coalesce({say(self.folded)}, {FALSE})")

    def contains(self, operand: Any) -> Test:
        needle = self.statement.parameter(folded_of(operand), "text")
        in_text = f"coalesce(strpos({self.folded}, {needle}) > 0, {FALSE})"
        return Test(f"(CASE jsonb_typeof({self.value}) WHEN 'array' THEN NULL ELSE {in_text} END)", decided=False)

    def date_like(self) -> Test:
        like = f"coalesce({self.folded} LIKE '{DATE_LIKE}', {FALSE})"
        return Test(f"(CASE WHEN {like} THEN NULL ELSE {FALSE} END)", decided=False)


class _FoldedValue(ColumnValue):
    """A jsonb value beside which only the folded text is stored."""

    def __init__(self, statement: Statement, value: str, folded: str) -> None:
        super().__init__(statement, value, folded, number="")
        self.bare = _JsonValue(statement, value)

    def number(self, say: Callable[[str], str]) -> Test:
        return self.bare.number(say)


def column_test(statement: Statement, value: str, folded: str, number: str, comparison: Comparison) -> Test:
    """As `json_test`, where the folded text and the number are stored."""
    columns = ColumnValue(statement, value, folded, number)
    return both([columns.test(operator, operand) for operator, operand in comparison.given.items()])


def line_test(statement: Statement, path: str, comparison: Comparison) -> Test:
    """A property of the order line `l`: its own columns, or what the shop sent of the product."""
    if path == "product_id":
        return json_test(statement, "to_jsonb(l.product_id)", comparison)
    if path == "price":
        return json_test(statement, "to_jsonb(l.price)", comparison)
    if path == "quantity":
        # What came back lowers it.
        return Test(CANNOT_TELL, decided=False)
    if path == "category":
        category = _FoldedValue(statement, "(l.product -> 'category')", "l.folded_category")
        return both([category.test(operator, operand) for operator, operand in comparison.given.items()])
    return _property_test(statement, "l.product", path, comparison)
