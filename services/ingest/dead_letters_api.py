"""`/v1/dead-letters…`: what could not be taken or handled, by any service, with its reason and its original bytes."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from services.ingest import store
from services.ingest.mending import encoded, mended
from services.ingest.replaying import Replaying
from shared.auth import Principal, log_change, scope
from shared.db import Tx
from shared.errors import Problem, field_error
from shared.service import Context

SHOWN = 2_048  # bytes of each letter that a list shows

Reader = Annotated[Principal, Depends(scope("read"))]
Admin = Annotated[Principal, Depends(scope("admin"))]
State = Literal["open", "replayed", "discarded"]


class LetterOut(BaseModel):
    """`body`: the original bytes as text, or `body_base64` where they are no UTF-8; a list shows their beginning
    (`cut`). `pointer`: the field at fault within them."""

    id: UUID
    service: str
    state: State
    reason: str
    pointer: str
    source: UUID | None
    topic: str | None
    partition: int | None
    number: int | None
    at: datetime
    replayed_at: datetime | None
    size: int
    cut: bool
    headers: dict[str, Any]
    body: str | None
    body_base64: str | None


class LetterPage(BaseModel):
    items: list[LetterOut]
    next: str | None


class Mended(BaseModel):
    """What is taken in place of the original bytes. `body`: the whole JSON; `patch`: what changes in it, as a list of
    operations (RFC 6902: `[{"op": "replace", "path": "/properties/total", "value": 90}]`) or as an object that is merged
    in (RFC 7396: `{"properties": {"total": 90}}`). One of the two, or none."""

    model_config = ConfigDict(extra="forbid")
    body: Any = None
    patch: Annotated[list[dict[str, Any]], Field(max_length=100)] | dict[str, Any] | None = None


class Replayed(BaseModel):
    """`accepted`: records written to the bus; `refused`: items of a batch that were refused again, kept as letters."""

    id: UUID
    state: State
    accepted: int
    refused: int


def router(context: Context, replaying: Replaying) -> APIRouter:
    routes = APIRouter(prefix="/v1/dead-letters", tags=["dead letters"])

    @routes.get("", summary="List dead letters, the newest first")
    async def listed(
        _: Reader,
        service: str | None = None,
        state: State | None = None,
        source: UUID | None = None,
        topic: str | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: str | None = None,
    ) -> LetterPage:
        wanted = store.LetterFilter(service, state, source, topic)
        async with context.database.connection() as tx:
            rows = await store.list_letters(tx, wanted, _after(cursor), limit + 1, SHOWN)
        items = [_out(row) for row in rows[:limit]]
        return LetterPage(items=items, next=_cursor(items[-1]) if len(rows) > limit else None)

    @routes.get("/{letter}", summary="Read a dead letter whole")
    async def read(letter: UUID, _: Reader) -> LetterOut:
        async with context.database.connection() as tx:
            return _out(await _found(tx, letter))

    @routes.post("/{letter}/replay", summary="Take a dead letter again, as it is or mended")
    async def replay(letter: UUID, principal: Admin, body: Mended | None = None) -> Replayed:
        async with context.database.connection() as tx:
            row = _open(await _found(tx, letter))
        accepted, refused = await replaying.replay(row, _instead(row["bytes"], body or Mended()))
        await _close(context, letter, "replayed", principal)
        return Replayed(id=letter, state="replayed", accepted=accepted, refused=refused)

    @routes.post("/{letter}/discard", summary="Put a dead letter aside for good")
    async def discard(letter: UUID, principal: Admin) -> LetterOut:
        async with context.database.connection() as tx:
            _open(await _found(tx, letter))
        await _close(context, letter, "discarded", principal)
        async with context.database.connection() as tx:
            return _out(await _found(tx, letter))

    return routes


def _instead(raw: bytes, how: Mended) -> bytes | None:
    """The bytes to take in place of `raw`; None: as it is. Raises Problem 422."""
    if how.patch is None:
        return encoded(how.body, "body") if how.body is not None else None
    if how.body is not None:
        either = "is for a letter that is patched, body for one that is written anew: give one of them"
        raise Problem(422, "The request is not valid", errors=[field_error(["patch"], either)])
    return mended(raw, how.patch)


async def _close(context: Context, letter: UUID, state: State, principal: Principal) -> None:
    now = context.clock.now()
    async with context.database.transaction() as tx:
        if not await store.close_letter(tx, letter, state, now):
            raise _not_open("by somebody else at the same time")
        await log_change(tx, principal, f"dead_letter.{state}", f"dead letter {letter}", None, None, now)


async def _found(tx: Tx, letter: UUID) -> asyncpg.Record:
    row = await store.find_letter(tx, letter)
    if row is None:
        raise Problem(404, "No such dead letter", f"There is no dead letter {letter}.")
    return row


def _open(row: asyncpg.Record) -> asyncpg.Record:
    if row["state"] != "open":
        raise _not_open(row["state"])
    return row


def _not_open(how: str) -> Problem:
    return Problem(409, "The dead letter is not open", f"It was dealt with already: {how}.")


def _out(row: asyncpg.Record) -> LetterOut:
    raw: bytes = row["bytes"]
    cut = len(raw) < row["size"]
    text, encoded = None, None
    try:
        text = raw.decode()
    except UnicodeDecodeError as problem:
        # A list may have cut a character in two: that is no reason to show the rest as base64.
        if cut and problem.start > len(raw) - 4:
            text = raw[: problem.start].decode()
        else:
            encoded = base64.b64encode(raw).decode()
    return LetterOut(**{**dict(row), "cut": cut, "body": text, "body_base64": encoded})


def _cursor(letter: LetterOut) -> str:
    return base64.urlsafe_b64encode(f"{letter.at.isoformat()} {letter.id}".encode()).decode().rstrip("=")


def _after(cursor: str | None) -> tuple[datetime, UUID] | None:
    if cursor is None:
        return None
    try:
        at, _, letter = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(" ")
        return datetime.fromisoformat(at), UUID(letter)
    except (ValueError, binascii.Error):
        raise Problem(400, "Not a cursor", "Take the cursor from `next` of the page before.") from None
