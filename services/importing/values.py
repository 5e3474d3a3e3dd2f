"""How one value of an event is made from the rows of a record: the right-hand sides of a mapping.

A bare word is the field of that name, taken from the record's first row. The longer forms:

    {field: UnitPrice, as: decimal}     as: text (default) | id | integer | decimal | time | unix_ms | unix_s | as_is
    {field: status, map: {"1": new}}         a fixed translation; a value that is not in it makes the record unreadable
    {field: Quantity, as: integer, absolute: true}   a number without its sign
    {field: country, default: unknown}       what an empty or missing field counts as
    {constant: GBP}
    {text: "guest:{InvoiceNo}"}              fields put into a text; absent if one of them is
    {first_of: [mobile, phone]}              the first that is there
    {sum_of_products: [Quantity, UnitPrice]} over the record's rows, exact; `absolute: true` drops the sign
    {object: {name: value, …}}               an object of values of the first row
    {each: {name: value, …}}                 a list with one object for each row

An absent value (field missing, empty or null) is left out of the event. `id` is text whose trailing `.0` is dropped
(`17850.0`, an integer that went through a spreadsheet). Numbers are exact decimals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import reduce
from operator import mul
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from services.importing.problems import BadField

Fields = dict[str, Any]
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_WHOLE = re.compile(r"[+-]?\d+\.0+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def decimal_of(value: Any, field: str) -> Decimal:
    """The exact number. Raises BadField for anything that is not a finite one."""
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        raise BadField(f"{field} is not a number: {str(value)[:40]!r}") from None
    if not number.is_finite():
        raise BadField(f"{field} is not a finite number: {str(value)[:40]!r}")
    return number


def _text(value: Any, field: str, zone: ZoneInfo) -> str:
    if isinstance(value, (dict, list)):
        raise BadField(f"{field} is not text but {'an object' if isinstance(value, dict) else 'an array'}")
    return str(value).strip()


def _id(value: Any, field: str, zone: ZoneInfo) -> str:
    text = _text(value, field, zone)
    return text.partition(".")[0] if _WHOLE.fullmatch(text) else text


def _integer(value: Any, field: str, zone: ZoneInfo) -> int:
    number = decimal_of(value, field)
    if number != number.to_integral_value():
        raise BadField(f"{field} is not a whole number: {str(value)[:40]!r}")
    return int(number)


def _decimal(value: Any, field: str, zone: ZoneInfo) -> Decimal:
    return decimal_of(value, field)


def _time(value: Any, field: str, zone: ZoneInfo) -> str:
    """ISO 8601 with its offset. A local time is in the mapping's zone: of the two readings when clocks go back the
    first counts, and an hour that clocks skip is read with the offset before the change."""
    try:
        moment = datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise BadField(f"{field} is not an ISO 8601 time: {str(value)[:40]!r}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    return moment.isoformat()


def _unix(unit: timedelta, value: Any, field: str) -> str:
    try:
        return (_EPOCH + int(decimal_of(value, field)) * unit).isoformat()
    except OverflowError:
        raise BadField(f"{field} is no time that a calendar knows: {str(value)[:40]!r}") from None


_READERS: dict[str, Any] = {
    "text": _text,
    "id": _id,
    "integer": _integer,
    "decimal": _decimal,
    "time": _time,
    "unix_ms": lambda value, field, zone: _unix(timedelta(milliseconds=1), value, field),
    "unix_s": lambda value, field, zone: _unix(timedelta(seconds=1), value, field),
    "as_is": lambda value, field, zone: value,
}


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class FieldValue(_Form):
    """The field of the first row."""

    field: str
    as_: Literal["text", "id", "integer", "decimal", "time", "unix_ms", "unix_s", "as_is"] = Field("text", alias="as")
    map: dict[str, Any] | None = None
    default: Any = None
    absolute: bool = False

    @model_validator(mode="after")
    def _only_numbers_have_a_sign(self) -> FieldValue:
        if self.absolute and self.as_ not in ("integer", "decimal"):
            raise ValueError("`absolute` needs `as: integer` or `as: decimal`")
        return self

    def of(self, rows: Sequence[Fields], zone: ZoneInfo) -> Any:
        value = rows[0].get(self.field)
        if is_absent(value):
            return self.default
        if self.map is not None:
            word = _text(value, self.field, zone)
            if word not in self.map:
                raise BadField(f"{self.field} is {word[:40]!r}, which the mapping's `map` does not know")
            return self.map[word]
        read = _READERS[self.as_](value, self.field, zone)
        return abs(read) if self.absolute else read

    def fields(self) -> set[str]:
        return {self.field}


class Constant(_Form):
    constant: Any

    def of(self, rows: Sequence[Fields], zone: ZoneInfo) -> Any:
        return self.constant

    def fields(self) -> set[str]:
        return set()


class Text(_Form):
    """Fields put into a text; absent if one of them is."""

    text: str

    @field_validator("text")
    @classmethod
    def _placeholders_are_plain(cls, text: str) -> str:
        if "{" in _PLACEHOLDER.sub("", text) or "}" in _PLACEHOLDER.sub("", text) or "" in _PLACEHOLDER.findall(text):
            raise ValueError("write a field as {FieldName}")
        return text

    def of(self, rows: Sequence[Fields], zone: ZoneInfo) -> str | None:
        values = {name: rows[0].get(name) for name in self.fields()}
        if any(is_absent(value) for value in values.values()):
            return None
        return _PLACEHOLDER.sub(lambda match: _id(values[match[1]], match[1], zone), self.text)

    def fields(self) -> set[str]:
        return set(_PLACEHOLDER.findall(self.text))


class FirstOf(_Form):
    first_of: list[Value]

    def of(self, rows: Sequence[Fields], zone: ZoneInfo) -> Any:
        return next((found for value in self.first_of if not is_absent(found := value.of(rows, zone))), None)

    def fields(self) -> set[str]:
        return set().union(*(value.fields() for value in self.first_of))


class SumOfProducts(_Form):
    """Σ over the rows of the product of the fields, as Decimal."""

    sum_of_products: list[str] = Field(min_length=1)
    absolute: bool = False

    def of(self, rows: Sequence[Fields], zone: ZoneInfo) -> Decimal:
        total = sum(
            (reduce(mul, (decimal_of(row.get(name, ""), name) for name in self.sum_of_products)) for row in rows),
            start=Decimal(0),
        )
        return abs(total) if self.absolute else total

    def fields(self) -> set[str]:
        return set(self.sum_of_products)


class Object(_Form):
    object: dict[str, Value]

    def of(self, rows: Sequence[Fields], zone: ZoneInfo) -> Fields | None:
        return object_of(self.object, rows, zone) or None

    def fields(self) -> set[str]:
        return set().union(*(value.fields() for value in self.object.values()))


class Each(_Form):
    each: dict[str, Value]

    def of(self, rows: Sequence[Fields], zone: ZoneInfo) -> list[Fields]:
        return [object_of(self.each, [row], zone) for row in rows]

    def fields(self) -> set[str]:
        return set().union(*(value.fields() for value in self.each.values()))


FORMS: dict[str, type[BaseModel]] = {
    "field": FieldValue,
    "constant": Constant,
    "text": Text,
    "first_of": FirstOf,
    "sum_of_products": SumOfProducts,
    "object": Object,
    "each": Each,
}


def _expand(value: Any) -> Any:
    return {"field": value} if isinstance(value, str) else value


def _form(value: Any) -> str | None:
    if isinstance(value, dict):
        return next((name for name in FORMS if name in value), None)
    return next((name for name, form in FORMS.items() if isinstance(value, form)), None)


Value = Annotated[
    Annotated[FieldValue, Tag("field")]
    | Annotated[Constant, Tag("constant")]
    | Annotated[Text, Tag("text")]
    | Annotated[FirstOf, Tag("first_of")]
    | Annotated[SumOfProducts, Tag("sum_of_products")]
    | Annotated[Object, Tag("object")]
    | Annotated[Each, Tag("each")],
    Discriminator(
        _form,
        custom_error_type="unknown_value_form",
        custom_error_message=f"is no value: write a field's name or one of {', '.join(FORMS)}",
    ),
    BeforeValidator(_expand),
]
for _model in (FirstOf, Object, Each):
    _model.model_rebuild()


def object_of(values: dict[str, Any], rows: Sequence[Fields], zone: ZoneInfo) -> Fields:
    """The object of all values that are there."""
    made = ((name, value.of(rows, zone)) for name, value in values.items())
    return {name: value for name, value in made if not is_absent(value)}
