"""The mapping document: how rows of a file become events of the tracking API. One YAML file in `rules/imports`.

    name: online-retail              # [a-z0-9-]; part of every messageId, so never change it once used
    title: One Order Completed an invoice
    format: csv                      # a source format (`*_format.py`)
    options: {delimiter: ","}        # the format's own
    time_zone: Europe/London         # of times without a zone
    leave_out:                       # rows that are listed and not sent; the first that fits says why
      - {where: {UnitPrice: {lte: 0}}, reason: without a price}
    group_by: [InvoiceNo]            # consecutive rows with equal fields are one record; without it every row is
    events:                          # what a record becomes: one event for each entry whose `where` fits its first row
      - event: Order Completed       # or `type: identify` …; type is `track` by default
        where: {InvoiceNo: {not: {prefix: C}}}
        key: "{InvoiceNo}"           # natural key within the mapping; default: group_by's fields, else file and line
        per: record                  # or `row`: one event for every row of the record
        user_id: {field: CustomerID, as: id}
        guest_id: {text: "guest:{InvoiceNo}"}     # anonymousId of a record without user_id
        timestamp: {field: InvoiceDate, as: time}
        properties: {order_id: InvoiceNo}         # values: see values.py; also `traits`, `context`, `anonymous_id`

Conditions: `{Field: {eq, ne, in, prefix, gt, gte, lt, lte, exists, not}}`; several mean *all*. Numbers are compared as
decimals, text as it stands. Unknown fields are errors that suggest the nearest known one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from services.importing.formats import format_named, formats
from services.importing.problems import BadMapping, suggestion
from services.importing.values import FORMS, Fields, Text, Value, decimal_of, is_absent

FOLDER = Path(__file__).resolve().parents[2] / "rules" / "imports"
MAX_MESSAGE_ID = 100


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Match(_Document):
    """What a field must be like; all that are given must hold. An absent field makes every comparison false."""

    eq: Any = None
    ne: Any = None
    in_: list[Any] | None = Field(None, alias="in")
    prefix: str | None = None
    gt: Any = None
    gte: Any = None
    lt: Any = None
    lte: Any = None
    exists: bool | None = None
    not_: Match | None = Field(None, alias="not")

    @model_validator(mode="after")
    def _says_something(self) -> Match:
        if not self.model_fields_set:
            raise ValueError("says nothing; write for example {eq: value}")
        for name in self.model_fields_set & {"gt", "gte", "lt", "lte"}:
            decimal_of(getattr(self, name), name)
        return self

    def holds(self, field: str, value: Any) -> bool:
        return all(self._one(name, field, value) for name in self.model_fields_set)

    def _one(self, name: str, field: str, value: Any) -> bool:
        if name == "exists":
            return is_absent(value) is not self.exists
        if name == "not_":
            return self.not_ is not None and not self.not_.holds(field, value)
        if is_absent(value):
            return False
        if name == "in_":
            return any(_equal(value, wanted) for wanted in self.in_ or [])
        if name == "prefix":
            return str(value).startswith(self.prefix or "")
        wanted = getattr(self, name)
        if name in ("eq", "ne"):
            return _equal(value, wanted) is (name == "eq")
        left, right = decimal_of(value, field), decimal_of(wanted, f"{field} in the mapping")
        return {"gt": left > right, "gte": left >= right, "lt": left < right, "lte": left <= right}[name]


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
        try:
            return decimal_of(value, "") == decimal_of(wanted, "")
        except ValueError:
            return False
    return value == wanted or str(value) == str(wanted)


Where = dict[str, Match]


def fits(where: Where, fields: Fields) -> bool:
    """Whether a row meets all tests. Raises BadField if a field must be a number to be compared and is not."""
    return all(test.holds(name, fields.get(name)) for name, test in where.items())


class LeaveOut(_Document):
    where: Where = Field(min_length=1)
    reason: str


class EventTemplate(_Document):
    """One kind of event that a record can become."""

    type: Literal["track", "identify", "page", "screen", "group", "alias"] = "track"
    event: str | None = None
    where: Where = {}
    key: str | None = None
    per: Literal["record", "row"] = "record"
    user_id: Value | None = None
    anonymous_id: Value | None = None
    guest_id: Value | None = None
    timestamp: Value
    properties: dict[str, Value] = {}
    traits: dict[str, Value] = {}
    context: dict[str, Value] = {}

    @model_validator(mode="after")
    def _is_complete(self) -> EventTemplate:
        if self.type == "track" and not self.event:
            raise ValueError("needs `event`, the name of the event")
        if self.type != "track" and self.event:
            raise ValueError(f"has an `event`, but its type is {self.type}; only `track` has a name")
        if not (self.user_id or self.anonymous_id or self.guest_id):
            raise ValueError("needs one of user_id, anonymous_id and guest_id: whose event is it?")
        return self

    def fields(self) -> set[str]:
        """All fields of rows that this template looks at."""
        values = [v for v in (self.user_id, self.anonymous_id, self.guest_id, self.timestamp) if v is not None]
        values += [*self.properties.values(), *self.traits.values(), *self.context.values()]
        found = set().union(*(value.fields() for value in values)) | set(self.where)
        return found | (Text(text=self.key).fields() if self.key else set())


class Mapping(_Document):
    """A whole mapping. `digest` identifies its text: progress made with another text is not gone on with."""

    name: str = Field(pattern=r"^[a-z0-9-]{1,40}$")
    title: str = ""
    format: str
    options: Any = {}
    time_zone: str = "UTC"
    leave_out: list[LeaveOut] = []
    group_by: list[str] = []
    events: list[EventTemplate] = Field(min_length=1)
    digest: str = Field("", exclude=True)

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"no time zone {name!r}{suggestion(name, available_timezones())}"[:200]) from None
        return name

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)

    def fields(self) -> set[str]:
        """All fields of rows that the mapping looks at."""
        found = set(self.group_by).union(*(event.fields() for event in self.events))
        return found.union(*(rule.where for rule in self.leave_out))

    def check_fields(self, declared: list[str] | None) -> None:
        """Raises BadMapping if the file declares its fields and one that the mapping names is not among them."""
        if declared is None:
            return
        for name in sorted(self.fields() - set(declared)):
            raise BadMapping(f"the file has no column {name!r}{suggestion(name, declared)}")


def shipped_mappings() -> dict[str, Path]:
    """The mappings in `rules/imports`, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yml"))}


def load_mapping(name_or_path: str) -> Mapping:
    """Reads a mapping by its path, or a shipped one by its name. Raises BadMapping with one sentence."""
    path = shipped_mappings().get(name_or_path) or Path(name_or_path)
    if not path.is_file():
        raise BadMapping(f"there is no mapping {name_or_path!r}{suggestion(name_or_path, shipped_mappings())}")
    text = path.read_bytes()
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise BadMapping(f"{path} is not YAML: {problem}".replace("\n", " ")) from problem
    try:
        mapping = parse_mapping(document)
    except BadMapping as problem:
        raise BadMapping(f"{path}: {problem}") from problem
    return mapping.model_copy(update={"digest": hashlib.sha256(text).hexdigest()})


def parse_mapping(document: Any) -> Mapping:
    """Checks a mapping document. Raises BadMapping that names the field at fault and suggests the nearest known one."""
    try:
        mapping = Mapping.model_validate(document)
        options = format_named(mapping.format).options
        return mapping.model_copy(update={"options": options.model_validate(mapping.options or {})})
    except ValidationError as problem:
        raise BadMapping(_sentence(problem)) from problem


def _sentence(problem: ValidationError) -> str:
    """The first thing wrong, as `events.0.properties: …`, with a suggestion for a misspelt word."""
    # A misspelt field explains a missing one better than the other way round.
    error = min(problem.errors(), key=lambda error: error["type"] != "extra_forbidden")
    options = () if problem.title == "Mapping" else ("options",)
    where = ".".join(str(part) for part in (*options, *error["loc"]) if part not in FORMS) or "the document"
    if error["type"] == "extra_forbidden":
        known = _known_fields(problem.title, error["loc"])
        return f"{where}: unknown field{suggestion(str(error['loc'][-1]), known)}"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"


def _known_fields(title: str, location: tuple[int | str, ...]) -> set[str]:
    """The fields known where `location` stands, from the models themselves."""
    model: type[BaseModel]
    form = next((part for part in reversed(location[:-1]) if part in FORMS), None)
    if form is not None:
        model = FORMS[str(form)]
    elif title != "Mapping":
        model = next(known.options for known in formats().values() if known.options.__name__ == title)
    elif "where" in location[2:-1]:
        model = Match
    elif len(location) > 1:
        model = EventTemplate if location[0] == "events" else LeaveOut
    else:
        model = Mapping
    return {field.alias or name for name, field in model.model_fields.items() if name != "digest"}
