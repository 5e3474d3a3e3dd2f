"""From rows to records to events: pure, and the same however often the file is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from services.importing.formats import Row
from services.importing.mapping import MAX_MESSAGE_ID, EventTemplate, Mapping, fits
from services.importing.problems import BadField
from services.importing.values import Fields, Text, is_absent, object_of

# How many records back a key that comes again is noticed (a file that is not sorted by its group).
_MEMORY = 1_000_000


@dataclass(frozen=True)
class LeftOut:
    """A row (or an event) that is not sent, and why. `line`: 1-based line of the file."""

    line: int
    key: str
    reason: str
    fields: Fields


@dataclass
class Record:
    """What one record of the file becomes. `rows`: how many rows of the file it takes up."""

    line: int
    key: str
    rows: int
    events: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def records(mapping: Mapping, rows: Iterable[Row], *, file_id: str, live: bool) -> Iterator[Record]:
    """All records in the file's order.

    `file_id`: identity of the file, part of the messageId where the mapping has no natural key. `live`: the events are
    of today and may start rules; otherwise they are marked history.
    """
    maker = _Maker(mapping, file_id, live)
    seen = _Seen()
    for key, group in _groups(mapping, rows):
        if mapping.group_by and not seen.first(key):
            reason = f"{key} comes again after other records; sort the file by {', '.join(mapping.group_by)}"
            left_out = [LeftOut(row.line, key, reason, row.fields) for row in group]
            yield Record(group[0].line, key, len(group), left_out=left_out)
        else:
            yield maker.record(key, group)


def _groups(mapping: Mapping, rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    if not mapping.group_by:
        for row in rows:
            yield "", [row]
        return
    current: str | None = None
    group: list[Row] = []
    for row in rows:
        key = ":".join(str(row.fields.get(name, "")) for name in mapping.group_by)
        if group and key != current:
            yield current or "", group
            group = []
        current = key
        group.append(row)
    if group:
        yield current or "", group


class _Seen:
    """Whether a key comes for the first time, as far back as memory is allowed to go."""

    def __init__(self) -> None:
        self._young: set[int] = set()
        self._old: set[int] = set()

    def first(self, key: str) -> bool:
        mark = hash(key)
        if mark in self._young or mark in self._old:
            return False
        if len(self._young) >= _MEMORY:
            self._old, self._young = self._young, set()
        self._young.add(mark)
        return True


class _Maker:
    def __init__(self, mapping: Mapping, file_id: str, live: bool) -> None:
        self.mapping, self.file_id, self.live = mapping, file_id, live
        self.zone: ZoneInfo = mapping.zone

    def record(self, key: str, group: list[Row]) -> Record:
        made = Record(group[0].line, key, len(group))
        try:
            kept = self._kept(key, group, made)
            for template in self.mapping.events:
                for rows in [kept] if template.per == "record" else [[row] for row in kept]:
                    if rows and fits(template.where, rows[0].fields):
                        made.events.append(self._event(template, rows))
            if kept and not made.events:
                raise BadField("no event of the mapping fits it")
        except BadField as problem:
            # A record with one unreadable row would be an order with the wrong total: all of it stays out.
            made.events = []
            made.left_out = [LeftOut(row.line, key, str(problem), row.fields) for row in group]
        return made

    def _kept(self, key: str, group: list[Row], made: Record) -> list[Row]:
        kept = []
        for row in group:
            if row.problem:
                raise BadField(row.problem if len(group) == 1 else f"line {row.line} {row.problem}")
            rule = next((rule for rule in self.mapping.leave_out if fits(rule.where, row.fields)), None)
            if rule is None:
                kept.append(row)
            else:
                made.left_out.append(LeftOut(row.line, key, rule.reason, row.fields))
        return kept

    def _event(self, template: EventTemplate, rows: list[Row]) -> dict[str, Any]:
        fields = [row.fields for row in rows]
        person = self._person(template, fields)
        timestamp = template.timestamp.of(fields, self.zone)
        if is_absent(timestamp):
            raise BadField("has no time")
        context = object_of(template.context, fields, self.zone)
        if not self.live:
            context["dripline"] = {**context.get("dripline", {}), "history": True}
        event: dict[str, Any] = {"type": template.type, "messageId": self._message_id(template, rows)}
        if template.event:
            event["event"] = template.event
        event |= person | {"timestamp": timestamp}
        for name, values in (("properties", template.properties), ("traits", template.traits)):
            if made := object_of(values, fields, self.zone):
                event[name] = made
        return event | ({"context": context} if context else {})

    def _person(self, template: EventTemplate, fields: list[Fields]) -> dict[str, str]:
        def of(value: Any) -> str | None:
            found = None if value is None else value.of(fields, self.zone)
            return None if is_absent(found) else str(found)

        user, anonymous = of(template.user_id), of(template.anonymous_id)
        anonymous = anonymous or (None if user else of(template.guest_id))
        if user is None and anonymous is None:
            raise BadField("says nobody whose event it is")
        return _without_absent({"userId": user, "anonymousId": anonymous})

    def _message_id(self, template: EventTemplate, rows: list[Row]) -> str:
        """Stable for what the event is a record of: the mapping's natural key, else the place in this very file."""
        if template.key is not None:
            key = Text(text=template.key).of([rows[0].fields], self.zone)
            if key is None:
                raise BadField(f"has no key {template.key}")
        elif self.mapping.group_by and template.per == "record":
            key = ":".join(str(rows[0].fields.get(name, "")) for name in self.mapping.group_by)
        else:
            key = f"{self.file_id[:16]}:{rows[0].line}"
        text = f"{self.mapping.name}:{(template.event or template.type).replace(' ', '')}:{key}"
        if len(text) <= MAX_MESSAGE_ID and text.isascii():
            return text
        return f"{self.mapping.name}:{hashlib.sha256(text.encode()).hexdigest()}"[:MAX_MESSAGE_ID]


def _without_absent(values: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}
