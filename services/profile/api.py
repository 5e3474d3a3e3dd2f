"""`/v1/profiles…`: find, read, timeline, consents, merge, unmerge, export, erase."""

from __future__ import annotations

import base64
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from services.profile.by_hand import ByHand
from services.profile.store import looking
from shared import cdp
from shared.auth import Principal, scope
from shared.db import Tx
from shared.errors import Problem
from shared.facts.model import Facts
from shared.facts.rhythm import counted, median_gap
from shared.service import Context

KINDS = ("user_id", "card", "external_id", "email", "phone", "device_token", "anonymous_id")
STRENGTHS = {1: "weak", 2: "signed", 3: "secret", 4: "alias", 5: "by hand"}
CENT = Decimal("0.01")
_encode = msgspec.json.Encoder(decimal_format="number").encode

Reader = Annotated[Principal, Depends(scope("read"))]
Marketer = Annotated[Principal, Depends(scope("marketing"))]
Admin = Annotated[Principal, Depends(scope("admin"))]
Limit = Annotated[int, Query(ge=1, le=500)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Merge(_Body):
    """Two profiles that are one person."""

    profiles: Annotated[list[UUID], Field(min_length=2, max_length=2)]


class Unmerge(_Body):
    """The nodes (see `identifiers` of the profile) that are somebody else."""

    nodes: Annotated[list[UUID], Field(min_length=1, max_length=1000)]


def router(context: Context) -> APIRouter:
    """The routes over this context."""
    routes = APIRouter(tags=["profiles"])
    _people(routes, context)
    _rows(routes, context)
    _by_hand(routes, context, ByHand(context))
    return routes


def _people(routes: APIRouter, context: Context) -> None:
    @routes.get("/v1/profiles")
    async def find(
        _: Reader,
        user_id: str | None = None,
        card: str | None = None,
        external_id: str | None = None,
        email: str | None = None,
        phone: str | None = None,
        device_token: str | None = None,
        anonymous_id: str | None = None,
        limit: Limit = 50,
        cursor: str | None = None,
    ) -> Response:
        """The people who have all these identifiers (none or one); without any, all profiles by id."""
        given = (user_id, card, external_id, email, phone, device_token, anonymous_id)
        asked = [(kind, value) for kind, value in zip(KINDS, given, strict=True) if value is not None]
        async with context.database.transaction(isolation="repeatable_read") as tx:
            if asked:
                return _answer({"items": await _found(context, tx, asked), "next": None})
            ids = await looking.list_profiles(tx, _uuid_after(cursor), limit + 1)
            items = [await _profile(tx, profile) for profile in ids[:limit]]
            return _answer({"items": items, "next": str(ids[limit - 1]) if len(ids) > limit else None})

    @routes.get("/v1/profiles/{profile}")
    async def read(profile: UUID, _: Reader) -> Response:
        """A profile; the id of one that was merged leads to what it became."""
        async with context.database.transaction(isolation="repeatable_read") as tx:
            return _answer(await _profile(tx, profile))


def _rows(routes: APIRouter, context: Context) -> None:
    """What is stored about a person, row by row."""

    @routes.get("/v1/profiles/{profile}/events")
    async def events(profile: UUID, _: Reader, limit: Limit = 50, cursor: str | None = None) -> Response:
        """The timeline, newest first."""
        async with context.database.transaction(isolation="repeatable_read") as tx:
            facts = await _facts(tx, profile)
            rows = await looking.timeline(tx, facts.nodes, _after(cursor), limit + 1)
            items = [_event(row) for row in rows[:limit]]
            return _answer({"items": items, "next": _cursor(rows[limit - 1]) if len(rows) > limit else None})

    @routes.get("/v1/profiles/{profile}/consents")
    async def consents(profile: UUID, _: Reader) -> Response:
        """What may be sent where, and the ledger that says so."""
        async with context.database.transaction(isolation="repeatable_read") as tx:
            facts = await _facts(tx, profile)
            ledger = [_trusted(row) for row in await looking.ledger(tx, facts.nodes)]
            return _answer({"items": msgspec.to_builtins(facts.consents), "ledger": ledger, "next": None})

    @routes.get("/v1/profiles/{profile}/export")
    async def export(profile: UUID, _: Admin) -> Response:
        """Everything that is stored about a person."""
        async with context.database.transaction(isolation="repeatable_read") as tx:
            facts = await _facts(tx, profile)
            document = await _profile(tx, profile)
            document["events"] = [_event(row) for row in await looking.timeline(tx, facts.nodes, None, None)]
            document["ledger"] = [_trusted(row) for row in await looking.ledger(tx, facts.nodes)]
            document["links"] = [
                _trusted({**row, "strength": STRENGTHS[row["strength"]]})
                for row in await looking.links(tx, facts.nodes)
            ]
            return _answer(document)


def _by_hand(routes: APIRouter, context: Context, hand: ByHand) -> None:
    @routes.post("/v1/profiles/merge")
    async def merge(body: Merge, principal: Marketer) -> Response:
        """Makes two profiles one, also where two user ids would keep them apart."""
        stays = await hand.merge(body.profiles[0], body.profiles[1], principal)
        async with context.database.transaction(isolation="repeatable_read") as tx:
            return _answer(await _profile(tx, stays))

    @routes.post("/v1/profiles/{profile}/unmerge")
    async def unmerge(profile: UUID, body: Unmerge, principal: Marketer) -> Response:
        """Parts these nodes from the profile for good; answers with both people."""
        people = await hand.unmerge(profile, body.nodes, principal)
        async with context.database.transaction(isolation="repeatable_read") as tx:
            return _answer({"items": [await _profile(tx, person) for person, _ in people], "next": None})

    @routes.post("/v1/profiles/{profile}/erase")
    async def erase(profile: UUID, principal: Admin) -> Response:
        """Erases a person. What occurred before is dropped when it arrives; what comes later starts a new person."""
        return _answer({"erased_events": await hand.erase(profile, principal)})


async def _found(context: Context, tx: Tx, asked: list[tuple[str, str]]) -> list[dict[str, Any]]:
    nodes = await cdp.nodes_by_identifier(tx, context.node_namespace, context.settings.shop_country, asked)
    if None in nodes:
        return []
    people = await cdp.people_of(tx, [(node, None) for node in nodes if node is not None])
    profiles = {person.profile for person in people if person is not None}
    return [await _profile(tx, profiles.pop())] if len(profiles) == 1 else []


async def _facts(tx: Tx, profile: UUID) -> Facts:
    """Raises Problem 404."""
    current = (await cdp.current_profiles(tx, [profile]))[profile]
    node = (await looking.first_nodes(tx, [current])).get(current)
    facts = (await cdp.facts(tx, [cdp.FactsQuestion(node=node)]))[0] if node is not None else None
    if facts is None:
        raise Problem(404, "No such profile", f"There is no profile {profile}.")
    return facts


async def _profile(tx: Tx, profile: UUID) -> dict[str, Any]:
    facts = await _facts(tx, profile)
    return {
        "id": facts.profile,
        "first_seen": facts.first_seen,
        "last_learned_at": facts.last_learned_at,
        "timezone": facts.zone,
        "identifiers": await looking.identifiers(tx, facts.nodes),
        "former_ids": await looking.former_ids(tx, facts.profile),
        "traits": facts.traits,
        "addresses": _addresses(facts),
        "cart": facts.cart,
        "orders": facts.orders,
        "refunds": facts.refunds,
        "figures": _figures(facts),
    }


def _addresses(facts: Facts) -> list[dict[str, Any]]:
    return [
        {
            "kind": address.kind,
            "value": address.value,
            "status": address.status,
            "node": address.node,
            "consents": [
                {
                    "channel": one.channel,
                    "topic": one.topic,
                    "state": one.state,
                    "at": one.at,
                    "may_write": one.may_write,
                }
                for one in facts.consents
                if one.node == address.node
            ],
        }
        for address in facts.addresses
    ]


def _figures(facts: Facts) -> dict[str, Any]:
    """Counts and sums over the orders that count; refunds are taken off the total."""
    orders = counted(facts.orders)
    gap = median_gap(orders)
    total = sum((order.total or Decimal(0) for order in orders), Decimal(0))
    refunded = sum((order.refunded for order in orders), Decimal(0))
    refunded += sum((refund.amount or Decimal(0) for refund in facts.refunds), Decimal(0))
    return {
        "orders": len(orders),
        "total": total - refunded,
        "refunded": refunded,
        "average": (total - refunded) / len(orders) if orders else None,
        "first_order_at": orders[0].at if orders else None,
        "last_order_at": orders[-1].at if orders else None,
        "median_gap_days": round(gap.total_seconds() / 86400, 3) if gap is not None else None,
    }


def _event(row: dict[str, Any]) -> dict[str, Any]:
    traits = row.pop("traits")
    return _trusted({**row, **({"traits": traits} if traits else {})})


def _trusted(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "trust": cdp.TRUSTS[row["trust"]]}


def _answer(document: Any) -> Response:
    return Response(_encode(_plain(document)), media_type="application/json")


def _plain(value: Any) -> Any:
    """Amounts have two decimals at most."""
    if isinstance(value, Decimal):
        rounded = value.quantize(CENT)
        return int(rounded) if rounded == rounded.to_integral_value() else rounded
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.structs.asdict(value))
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def _cursor(row: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(f"{row['learned_at'].isoformat()} {row['id']}".encode()).decode().rstrip("=")


def _after(cursor: str | None) -> tuple[datetime, UUID] | None:
    if cursor is None:
        return None
    try:
        at, _, event = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(" ")
        return datetime.fromisoformat(at), UUID(event)
    except (ValueError, UnicodeDecodeError):
        raise Problem(400, "Not a cursor", "Take the cursor from `next` of the page before.") from None


def _uuid_after(cursor: str | None) -> UUID | None:
    try:
        return UUID(cursor) if cursor is not None else None
    except ValueError:
        raise Problem(400, "Not a cursor", "Take the cursor from `next` of the page before.") from None
