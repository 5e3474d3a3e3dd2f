"""Sending batches to `POST /v1/batch`: tries again when asked to, splits what is too large, says what was refused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import msgspec

from services.importing.problems import ImportProblem
from services.importing.records import Record

# Limits of the tracking API (all after inflating), with room for the envelope.
MAX_EVENT_BYTES = 256 * 1024
MAX_BATCH_BYTES = 400 * 1024
MAX_BATCH_EVENTS = 500

# What the tracking API's clients retry; other 4xx mean that the batch is refused.
_RETRIED = frozenset({408, 410, 429, 460})
_NOT_RETRIED_5XX = frozenset({501, 505})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_OF_EVENT = re.compile(r"#?/batch/(\d{1,6})(/.*)?")

_encoder = msgspec.json.Encoder(decimal_format="number")


def encode_event(event: dict[str, Any]) -> bytes:
    """JSON with decimals as exact number literals."""
    return _encoder.encode(event)


@dataclass(frozen=True)
class Refusal:
    """An event that did not get in: line and key of its record, and why (the server's words)."""

    line: int
    key: str
    reason: str


@dataclass
class Batch:
    """Encoded events in the file's order. `records`: how many records are complete once this batch is acknowledged."""

    number: int
    records: int = 0
    events: list[bytes] = field(default_factory=list)
    origins: list[tuple[int, str]] = field(default_factory=list)  # line and key of each event's record
    refused: list[Refusal] = field(default_factory=list)  # what need not be tried
    size: int = 0


def batches(records: Iterable[Record]) -> Iterator[Batch]:
    """Packs events into batches. An event larger than the API takes is among its batch's `refused`.

    A record whose events do not fit into one batch counts as complete with its last one.
    """
    batch = Batch(0)
    for record in records:
        for data in map(encode_event, record.events):
            if len(data) > MAX_EVENT_BYTES:
                reason = f"larger than the {MAX_EVENT_BYTES // 1024} KiB that the API takes an event"
                batch.refused.append(Refusal(record.line, record.key, reason))
                continue
            if batch.events and (batch.size + len(data) > MAX_BATCH_BYTES or len(batch.events) == MAX_BATCH_EVENTS):
                yield batch
                batch = Batch(batch.number + 1)
            batch.events.append(data)
            batch.origins.append((record.line, record.key))
            batch.size += len(data) + 1
        batch.records += 1
    if batch.records:
        yield batch


class Sender:
    """Posts batches with a secret write key.

    `patience`: for how many seconds a batch is tried again while the server cannot be reached or asks to wait.
    `sleep` and `monotonic` are infrastructure time.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        key: str,
        *,
        patience: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] | None = None,
        on_retry: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._client, self._key, self._patience = client, key, patience
        self._sleep, self._on_retry = sleep, on_retry
        self._monotonic = monotonic or asyncio.get_running_loop().time

    async def send(self, batch: Batch) -> list[Refusal]:
        """Returns once every event is durable or refused. Raises ImportProblem if the import cannot go on."""
        return [*batch.refused, *await self._send(batch.events, batch.origins)]

    async def _send(self, events: list[bytes], origins: list[tuple[int, str]]) -> list[Refusal]:
        if not events:
            return []
        answer = await self._post(b'{"batch":[' + b",".join(events) + b"]}")
        if answer.status_code == 200:
            return await self._refused(answer, events, origins)
        if answer.status_code in (401, 403):
            raise ImportProblem(
                f"the server does not accept this write key: {_detail(answer)}; take a secret source's (--key)"
            )
        if answer.status_code in (404, 405) or not answer.is_client_error:
            raise ImportProblem(
                f"{self._client.base_url} does not offer the tracking API ({answer.status_code}); check --url"
            )
        if answer.status_code == 413 and len(events) > 1:
            return await self._halves(events, origins)
        return await self._refused(answer, events, origins)

    async def _halves(self, events: list[bytes], origins: list[tuple[int, str]]) -> list[Refusal]:
        half = len(events) // 2
        return [
            *await self._send(events[:half], origins[:half]),
            *await self._send(events[half:], origins[half:]),
        ]

    async def _refused(
        self, answer: httpx.Response, events: list[bytes], origins: list[tuple[int, str]]
    ) -> list[Refusal]:
        """All events that this answer refuses, each with its own reason.

        The answer lists only the first of them, in the order of the batch: what comes after the last one listed is sent
        again until all are known. What was taken already stays one event, by its messageId.
        """
        count, reasons = _told_of(answer, len(events))
        known = [Refusal(*origins[place], reason) for place, reason in reasons.items()]
        if len(known) >= count:
            return known
        if not known and count >= len(events):
            return [Refusal(line, key, _detail(answer)) for line, key in origins]
        if not known:
            return await self._halves(events, origins)
        after = max(reasons) + 1
        return [*known, *await self._send(events[after:], origins[after:])]

    async def _post(self, body: bytes) -> httpx.Response:
        """One answer that is neither 'later' nor silence."""
        started, pause = self._monotonic(), _FIRST_PAUSE
        while True:
            wanted = None
            try:
                answer = await self._client.post(
                    "/v1/batch", content=body, auth=(self._key, ""), headers={"Content-Type": "application/json"}
                )
                if not _is_retried(answer.status_code):
                    return answer
                wanted = retry_after(answer.headers.get("Retry-After"), datetime.now(UTC))
                reason = f"the server answers {answer.status_code}: {_detail(answer)}"
            except (httpx.TransportError, httpx.DecodingError) as problem:
                reason = f"{self._client.base_url} cannot be reached ({str(problem) or type(problem).__name__})"
            wait = min(_LONGEST_PAUSE, pause) if wanted is None else wanted
            if self._monotonic() + wait - started > self._patience:
                raise ImportProblem(f"{reason}; once that is mended, the same command goes on where this one stopped")
            self._on_retry(reason)
            await self._sleep(wait)
            pause *= 2


def _is_retried(status: int) -> bool:
    return status in _RETRIED or (status >= 500 and status not in _NOT_RETRIED_5XX)


def retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds that `Retry-After` (seconds or an HTTP date) asks for, or None if it says nothing readable."""
    if header is None:
        return None
    try:
        return max(0.0, float(Decimal(header.strip())))
    except ArithmeticError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - now).total_seconds())
    except (ValueError, TypeError):
        return None


def _told_of(answer: httpx.Response, size: int) -> tuple[int, dict[int, str]]:
    """How many of `size` events were refused, and by their places in the batch the reasons of those that are listed."""
    document = _json(answer)
    document = document if isinstance(document, dict) else {}
    listed = document.get("errors")
    reasons: dict[int, str] = {}
    for error in listed if isinstance(listed, list) else []:
        found = _OF_EVENT.fullmatch(str(error.get("pointer"))) if isinstance(error, dict) else None
        if found and int(found[1]) < size:
            field = f"{found[2]}: " if found[2] else ""
            reasons.setdefault(int(found[1]), f"{field}{error.get('detail') or 'refused'}"[:300])
    reasons = dict(sorted(reasons.items()))
    if answer.status_code == 200:
        count = document.get("refused")
        return (count if isinstance(count, int) else len(reasons)), reasons
    # Nothing was taken. Unless the list begins with the first event and has no gap, it does not speak of each by itself.
    return size, (reasons if list(reasons) == list(range(len(reasons))) else {})


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _detail(answer: httpx.Response) -> str:
    """What a problem document says, else the beginning of the answer."""
    problem = _json(answer)
    if problem is None:
        return answer.text[:200] or answer.reason_phrase
    if isinstance(problem, dict):
        words = [str(problem[name]) for name in ("detail", "pointer") if problem.get(name)] or [
            problem.get("title", "")
        ]
        return ": ".join(map(str, words))[:300] or answer.reason_phrase
    return answer.reason_phrase
