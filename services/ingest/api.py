"""`/v1/sources…`: who may send events. Scope admin; every change is written to the change log."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from services.ingest import store
from services.ingest.sources import KEYS_CHANGED, KeyCache, key_hash, key_hint, new_key, new_signing_secret
from shared.auth import Principal, log_change, scope
from shared.db import Tx
from shared.durations import parse_duration
from shared.errors import Problem, field_error
from shared.ids import uuid7
from shared.service import Context

OVERLAP = timedelta(days=1)  # how long a former key or secret counts, unless the caller says otherwise

Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Admin = Annotated[Principal, Depends(scope("admin"))]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewSource(_Body):
    """`public`: its key stands in web pages. `signed`: a public one whose server vouches for user ids by HMAC.
    `secret`: its key belongs to servers and tills."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[a-z0-9][a-z0-9._-]*$")
    kind: Literal["public", "signed", "secret"]


class Rotation(_Body):
    """How long the former key or secret still counts (`1h`, `PT1H`; `0s`: it ends at once)."""

    overlap: Duration = OVERLAP


class WriteKey(BaseModel):
    """`key` is shown again for public sources only."""

    id: UUID
    hint: str
    key: str | None
    made_at: datetime
    valid_until: datetime | None
    revoked_at: datetime | None


class SourceOut(BaseModel):
    id: UUID
    name: str
    kind: Literal["public", "signed", "secret"]
    made_at: datetime
    revoked_at: datetime | None
    keys: list[WriteKey]


class MadeSource(SourceOut):
    """`write_key` and `signing_secret` are shown this once."""

    write_key: str
    signing_secret: str | None


class MadeKey(BaseModel):
    id: UUID
    write_key: str


class MadeSecret(BaseModel):
    signing_secret: str


class SourcePage(BaseModel):
    items: list[SourceOut]
    next: str | None


def router(context: Context, keys: KeyCache) -> APIRouter:
    """The routes; `keys` is told of each change before the answer."""
    routes = APIRouter(prefix="/v1/sources", tags=["sources"])
    changes = _Changes(context, keys)

    @routes.post("", status_code=201, summary="Make a source with its first write key")
    async def create(body: NewSource, principal: Admin) -> MadeSource:
        return await changes.create(body, principal)

    @routes.get("", summary="List sources")
    async def listed(
        _: Admin, limit: Annotated[int, Query(ge=1, le=200)] = 50, cursor: str | None = None
    ) -> SourcePage:
        async with context.database.transaction() as tx:
            rows = await store.list_sources(tx, cursor, limit + 1)
        items = [_out(row) for row in rows[:limit]]
        return SourcePage(items=items, next=items[-1].name if len(rows) > limit else None)

    @routes.get("/{source}", summary="Read a source, by id or name")
    async def read(source: str, _: Admin) -> SourceOut:
        async with context.database.transaction() as tx:
            return _out(await _found(tx, source))

    @routes.post("/{source}/revoke", summary="Revoke a source: none of its keys counts any more")
    async def revoke(source: str, principal: Admin) -> SourceOut:
        return await changes.revoke(source, principal)

    @routes.post(
        "/{source}/keys", status_code=201, summary="Make a new write key; the former ones end after the overlap"
    )
    async def rotate(source: str, principal: Admin, body: Rotation | None = None) -> MadeKey:
        return await changes.rotate(source, body or Rotation(), principal)

    @routes.post("/{source}/keys/{key}/revoke", summary="Revoke one write key at once")
    async def revoke_key(source: str, key: UUID, principal: Admin) -> SourceOut:
        return await changes.revoke_key(source, key, principal)

    @routes.post("/{source}/signing-secret", status_code=201, summary="Make a new signing secret for a public source")
    async def sign(source: str, principal: Admin, body: Rotation | None = None) -> MadeSecret:
        return await changes.sign(source, body or Rotation(), principal)

    return routes


class _Changes:
    """Each change is one transaction with its row in the change log; then the caches are told."""

    def __init__(self, context: Context, keys: KeyCache) -> None:
        self._context, self._keys = context, keys

    async def _tell(self) -> None:
        self._context.wake.signal(KEYS_CHANGED)
        await self._keys.refresh()

    def _new_key(self, kind: str, now: datetime) -> tuple[str, store.NewKey]:
        key = new_key(self._context.bits)
        kept = store.NewKey(
            uuid7(now, self._context.bits), key_hash(key), key_hint(key), None if kind == "secret" else key
        )
        return key, kept

    async def create(self, body: NewSource, principal: Principal) -> MadeSource:
        now, bits = self._context.clock.now(), self._context.bits
        source = uuid7(now, bits)
        secret = new_signing_secret(bits) if body.kind == "signed" else None
        key, kept = self._new_key(body.kind, now)
        kind = "secret" if body.kind == "secret" else "public"
        try:
            async with self._context.database.transaction() as tx:
                await store.insert_source(tx, source, body.name, kind, secret, kept, now)
                await log_change(tx, principal, "source.create", f"source {body.name}", None, body.model_dump(), now)
                made = _out(await _found(tx, str(source)))
        except store.NameTaken:
            detail = f"There is a source named {body.name!r} already; names are never reused."
            raise Problem(409, "The name is taken", detail, [field_error(["name"], "is taken")]) from None
        await self._tell()
        return MadeSource(**made.model_dump(), write_key=key, signing_secret=secret)

    async def revoke(self, name: str, principal: Principal) -> SourceOut:
        now = self._context.clock.now()
        async with self._context.database.transaction() as tx:
            row = await _found(tx, name)
            await store.revoke_source(tx, row["id"], now)
            await log_change(tx, principal, "source.revoke", f"source {row['name']}", None, {"revoked_at": now}, now)
            after = _out(await _found(tx, name))
        await self._tell()
        return after

    async def rotate(self, name: str, body: Rotation, principal: Principal) -> MadeKey:
        now = self._context.clock.now()
        async with self._context.database.transaction() as tx:
            row = await _live(tx, name)
            key, kept = self._new_key(row["kind"], now)
            await store.end_keys(tx, row["id"], now + body.overlap)
            await store.insert_key(tx, row["id"], kept, now)
            after = {"key": str(kept.id), "former_until": now + body.overlap}
            await log_change(tx, principal, "source.rotate", f"source {row['name']}", None, after, now)
        await self._tell()
        return MadeKey(id=kept.id, write_key=key)

    async def revoke_key(self, name: str, key: UUID, principal: Principal) -> SourceOut:
        now = self._context.clock.now()
        async with self._context.database.transaction() as tx:
            row = await _found(tx, name)
            if not await store.revoke_key(tx, row["id"], key, now):
                raise Problem(404, "No such key", f"The source {row['name']} has no key {key} that is not revoked.")
            await log_change(tx, principal, "source.revoke_key", f"source {row['name']}", None, {"key": str(key)}, now)
            after = _out(await _found(tx, name))
        await self._tell()
        return after

    async def sign(self, name: str, body: Rotation, principal: Principal) -> MadeSecret:
        now, secret = self._context.clock.now(), new_signing_secret(self._context.bits)
        async with self._context.database.transaction() as tx:
            row = await _live(tx, name)
            if row["kind"] != "public":
                raise Problem(
                    409, "Not a public source", "A secret source vouches for every id already; it signs nothing."
                )
            await store.set_signing_secret(tx, row["id"], secret, now + body.overlap)
            after = {"former_until": now + body.overlap}
            await log_change(tx, principal, "source.sign", f"source {row['name']}", None, after, now)
        await self._tell()
        return MadeSecret(signing_secret=secret)


async def _found(tx: Tx, name: str) -> asyncpg.Record:
    row = await store.find_source(tx, name)
    if row is None:
        raise Problem(404, "No such source", f"There is no source with the id or name {name!r}.")
    return row


async def _live(tx: Tx, name: str) -> asyncpg.Record:
    row = await _found(tx, name)
    if row["revoked_at"] is not None:
        raise Problem(409, "The source is revoked", f"The source {row['name']} is revoked for good; make another one.")
    return row


def _out(row: asyncpg.Record) -> SourceOut:
    values: dict[str, Any] = dict(row)
    kind = "signed" if values.pop("signing") else values["kind"]
    return SourceOut(**{**values, "kind": kind})
