"""The building blocks of conditions' parameters: strict documents, durations, operands and comparisons.

An absent value makes every comparison false (only `exists: false` is true of it), so that `not` of it is true.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from shared.conditions.errors import unknown
from shared.conditions.values import folded_of, instant_of, jsonable, moment_of, number_of
from shared.durations import DurationError, parse_duration

Ordered = Decimal | datetime | date


def refusal(message: str, **context: Any) -> PydanticCustomError:
    """A validation error whose message is the sentence itself (`{}` in it is taken literally)."""
    return PydanticCustomError("condition", "{message}", {"message": message, **context})


class Strict(BaseModel):
    """A mapping whose unknown keys are errors that suggest the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @classmethod
    def names(cls) -> list[str]:
        """The keys that a document may have."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            raise refusal(f"must be a mapping with {_some_of(cls.names())}, not {document!r}")
        for key, value in document.items():
            if key not in cls.names():
                raise refusal(unknown("field", str(key), cls.names()), field=str(key))
            if value is None:
                raise refusal("is empty: give it a value, or leave the field out", field=str(key))
        return document

    @cached_property
    def given(self) -> dict[str, Any]:
        """The fields that the document named, by their key in it."""
        return {
            field.alias or name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if name in self.model_fields_set
        }


def _some_of(keys: list[str]) -> str:
    return ", ".join(keys) if len(keys) < 2 else ", ".join(keys[:-1]) + " or " + keys[-1]


def _duration(value: Any) -> timedelta:
    try:
        duration = parse_duration(value)
    except DurationError as error:
        raise refusal(str(error)) from error
    if not duration:
        raise refusal("a duration of zero has no moment in it")
    return duration


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    WithJsonSchema({"type": "string", "title": "Duration", "examples": ["1h", "3d", "PT1H", "P3D"]}),
]


def _scalar(value: Any) -> Decimal | str | bool:
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, (datetime, date)):
        return str(jsonable(value))
    number = number_of(value)
    if number is None:
        raise refusal(f"compares with a text, a number or true/false, not {value!r}")
    return number


Scalar = Annotated[
    Any,
    BeforeValidator(_scalar),
    WithJsonSchema({"type": ["string", "number", "boolean"], "title": "Scalar"}),
]


def _ordered(value: Any) -> Ordered:
    known: Ordered | None = number_of(value)
    if known is None:
        known = moment_of(value)
    if known is None:
        raise refusal(f"compares with a number or an ISO date, not {value!r}")
    return known


OrderedOperand = Annotated[
    Any,
    BeforeValidator(_ordered),
    WithJsonSchema({"type": ["number", "string"], "title": "Number or ISO date"}),
]


def _number(value: Any) -> Decimal:
    known = number_of(value)
    if known is None:
        raise refusal(f"compares with a number, not {value!r}")
    return known


NumberOperand = Annotated[Decimal, BeforeValidator(_number), WithJsonSchema({"type": "number", "title": "Number"})]
Count = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]
PositiveCount = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


class Operators(Strict):
    """A mapping of operators; all that are named must hold."""

    @model_validator(mode="after")
    def _at_least_one(self) -> Operators:
        if not self.model_fields_set:
            raise refusal(f"names no operator: give {_some_of(self.names())}")
        return self

    def accepts(self, value: Any) -> bool:
        """Whether all operators hold for `value`; None is absent."""
        return all(holds(operator, operand, value) for operator, operand in self.given.items())


def holds(operator: str, operand: Any, value: Any) -> bool:
    """One operator on one value. Numbers are compared as decimals, texts case-folded, dates as dates."""
    if operator == "exists":
        return (value is not None) is operand
    if value is None:
        return False
    match operator:
        case "eq":
            return _equal(value, operand)
        case "ne":
            return not _equal(value, operand)
        case "in":
            return any(_equal(value, one) for one in operand)
        case "contains":
            return _contains(value, operand)
        case "prefix":
            folded = folded_of(value)
            return folded is not None and folded.startswith(folded_of(operand) or "")
        case "between":
            return _in_order(value, operand[0], "gte") and _in_order(value, operand[1], "lte")
    return _in_order(value, operand, operator)


def _equal(value: Any, operand: Any) -> bool:
    if isinstance(operand, Decimal):
        return number_of(value) == operand
    return folded_of(value) == folded_of(operand)


def _contains(value: Any, operand: Any) -> bool:
    if isinstance(value, list):
        return any(_equal(element, operand) for element in value)
    folded = folded_of(value)
    return folded is not None and (folded_of(operand) or "") in folded


def _in_order(value: Any, operand: Ordered | timedelta, operator: str) -> bool:
    left, right = _on_one_scale(value, operand)
    if left is None:
        return False
    match operator:
        case "gt":
            return left > right
        case "gte":
            return left >= right
        case "lt":
            return left < right
    return left <= right


def _on_one_scale(value: Any, operand: Ordered | timedelta) -> tuple[Any, Any]:
    """Value and operand as two things that can be compared; (None, …) when they cannot."""
    if isinstance(operand, timedelta):
        return (value if isinstance(value, timedelta) else None), operand
    if isinstance(operand, Decimal):
        return number_of(value), operand
    moment = moment_of(value)
    if moment is None:
        return None, operand
    if isinstance(operand, datetime):
        return instant_of(moment), operand
    return (moment.date() if isinstance(moment, datetime) else moment), operand


def _range(pair: list[Any]) -> list[Any]:
    low, high = pair
    if (type(low) is not type(high)) or low > high:
        raise refusal("between takes two bounds of one kind, the lower first")
    return pair


class Comparison(Operators):
    """What a value of an event or a trait must be."""

    eq: Scalar = None
    ne: Scalar = None
    in_: list[Scalar] = Field(default=[], alias="in", min_length=1, max_length=1000)
    contains: Scalar = None
    prefix: Scalar = None
    gt: OrderedOperand = None
    gte: OrderedOperand = None
    lt: OrderedOperand = None
    lte: OrderedOperand = None
    between: list[OrderedOperand] = Field(default=[], min_length=2, max_length=2)
    exists: StrictBool = True

    _in_range = field_validator("between")(_range)

    @model_validator(mode="before")
    @classmethod
    def _no_bare_value(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            wanted = f"{{in: {document!r}}}" if isinstance(document, list) else f"{{eq: {document}}}"
            raise refusal(f"must name an operator: write {wanted}")
        return document


class NumberComparison(Operators):
    """What a number must be."""

    eq: NumberOperand = Decimal(0)
    ne: NumberOperand = Decimal(0)
    gt: NumberOperand = Decimal(0)
    gte: NumberOperand = Decimal(0)
    lt: NumberOperand = Decimal(0)
    lte: NumberOperand = Decimal(0)
    between: list[NumberOperand] = Field(default=[], min_length=2, max_length=2)

    _in_range = field_validator("between")(_range)


class DurationComparison(Operators):
    """How long something must be."""

    WHOLE: ClassVar[timedelta] = timedelta(microseconds=1)
    gt: Duration = WHOLE
    gte: Duration = WHOLE
    lt: Duration = WHOLE
    lte: Duration = WHOLE
    between: list[Duration] = Field(default=[], min_length=2, max_length=2)

    _in_range = field_validator("between")(_range)
