"""What a gateway's answers mean, by its preset. Pure: no I/O."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import msgspec

from services.dispatch.channels.base import Report, Result, Told
from services.dispatch.channels.sms_preset import Answer, Moment, Preset, Query, filled, found_at, money_at, text_at

# What may stand in a detail: a code, never a sentence (gateways quote numbers and texts).
_CODE = re.compile(r"[^A-Za-z0-9 _.,-]")
# Statuses of HTTP that say, whatever stands in the answer, that it was not taken: the account or the address is wrong.
_OURS = (401, 402, 403, 404, 405)


class NotReadable(Exception):
    """The answer is not what the preset says."""


def decoded(body: bytes, format: str) -> Any:
    """A JSON or XML document as dicts and lists. Raises NotReadable."""
    try:
        if format == "json":
            return msgspec.json.decode(body)
        if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
            raise NotReadable("the answer declares entities")
        root = ElementTree.fromstring(body)  # noqa: S314
        return {root.tag: _plain(root)}
    except (msgspec.DecodeError, ElementTree.ParseError, UnicodeDecodeError) as problem:
        raise NotReadable(f"the answer is no {format}") from problem


def _plain(element: ElementTree.Element) -> Any:
    if not len(element):
        return (element.text or "").strip()
    children: dict[str, list[Any]] = defaultdict(list)
    for child in element:
        children[child.tag].append(_plain(child))
    return dict(children)


def judged(preset: Preset, status: int, body: bytes, retry_after: timedelta | None, currency: str) -> Result:
    """What came of sending. 429: certainly not taken. 5xx: perhaps taken. Otherwise the preset's table decides."""
    if status == 429:
        return Result("retry", f"{preset.title}: HTTP 429", retry_after=retry_after)
    if status >= 500 or status == 408:
        return Result("unknown", f"{preset.title}: HTTP {status}")
    answer = preset.answer
    try:
        document = decoded(body, answer.format)
    except NotReadable as problem:
        return _unreadable(preset, status, str(problem))
    if 200 <= status < 300 and _accepted(answer, document):
        charged = money_at(document, answer.charged) if preset.currency == currency else None
        return Result(
            "sent", f"{preset.title}: HTTP {status}", provider_id=text_at(document, answer.id), charged=charged
        )
    return _refused(preset, status, document, retry_after)


def _accepted(answer: Answer, document: Any) -> bool:
    if not answer.field:
        return True
    value = text_at(document, answer.field)
    return bool(value) if "*" in answer.values else value in answer.values


def _unreadable(preset: Preset, status: int, problem: str) -> Result:
    detail = f"{preset.title}: HTTP {status}, {problem}"
    if 200 <= status < 300:
        return Result("unknown", detail)  # it may have been taken
    return Result("retry" if status in _OURS or status < 400 else "failed", detail)


def _refused(preset: Preset, status: int, document: Any, retry_after: timedelta | None) -> Result:
    answer = preset.answer
    code = next((text for path in answer.code if (text := text_at(document, path))), "")
    detail = f"{preset.title}: HTTP {status}" + (f", {cleaned(code)}" if code else "")
    if code in answer.unsure or (not code and 200 <= status < 300):
        return Result("unknown", detail)  # neither a yes nor a reason for a no: it may have been taken
    names = {code, *code.split(",")} - {""}
    if names & set(answer.retry):
        return Result("retry", detail, retry_after=retry_after)
    if code in answer.bounced:
        return Result("bounced", detail)
    if status in _OURS or 300 <= status < 400:
        return Result("retry", detail, retry_after=retry_after)
    return Result("failed", detail)


def cleaned(code: str) -> str:
    """A provider's code, fit for a detail: no numbers of people, no sentences."""
    short = _CODE.sub("", code)[:40]
    return re.sub(r"\d{7,}", "…", short)


def state_of(preset: Preset, state: str, code: str = "", bounced: tuple[str, ...] = ()) -> Told | None:
    """What a provider's word for a state means; None: not decided yet."""
    if state in preset.states.delivered:
        return "delivered"
    if state in preset.states.bounced:
        return "bounced"
    if state in preset.states.failed:
        return "bounced" if code and code in bounced else "failed"
    return None


def looked_up(preset: Preset, query: Query, document: Any, values: Mapping[str, str]) -> Any:
    """The message that the answer to a question speaks of; None if it speaks of none, or of several."""
    if not query.rows:
        return document
    wanted = {path: filled(text, dict(values)) for path, text in query.match.items()}
    rows = [row for row in found_at(document, query.rows) if all(text_at(row, p) == v for p, v in wanted.items())]
    return rows[0] if len(rows) == 1 else None


def asked(preset: Preset, query: Query, document: Any, currency: str) -> Result | None:
    """What a message's state says about the attempt to send it; None: nothing."""
    code = next((text for path in query.code if (text := text_at(document, path))), "")
    if code in query.never_taken:
        return Result("retry", f"{preset.title}: the provider knows no such message")
    state = text_at(document, query.state)
    if not state and not text_at(document, query.id):
        return None
    provider_id = text_at(document, query.id)
    charged = money_at(document, query.charged) if preset.currency == currency else None
    detail = f"{preset.title}: state {cleaned(state)}" if state else f"{preset.title}: no state yet"
    # It was taken; that it did not arrive is told by a report.
    return Result("sent", detail, provider_id=provider_id, charged=charged)


def reported(preset: Preset, query: Query, document: Any, currency: str) -> Report | None:
    """The report in the answer to a question; None if nothing is decided yet."""
    what = state_of(preset, text_at(document, query.state))
    provider_id = text_at(document, query.id)
    if what is None or not provider_id:
        return None
    return Report(
        what,
        report_id(provider_id, what),
        provider_id=provider_id,
        at=moment(query.at, text_at(document, query.at.field)) if query.at else None,
        detail=f"{preset.title}: {cleaned(text_at(document, query.state))}",
        charged=money_at(document, query.charged) if preset.currency == currency else None,
    )


def report_id(provider_id: str, what: str) -> str:
    """The same for every report of one outcome of one message, by whatever way it comes."""
    return f"{provider_id}/{what}"


def moment(when: Moment, text: str) -> datetime | None:
    """A provider's time in UTC; None if it is not what the preset says."""
    try:
        if when.format == "unix":
            return datetime.fromtimestamp(int(Decimal(text)), UTC) if text else None
        return datetime.strptime(text, when.format).replace(tzinfo=ZoneInfo(when.zone)).astimezone(UTC)
    except (ValueError, ArithmeticError, OSError):
        return None
