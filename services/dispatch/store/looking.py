"""What a decision looks at: consent, suppression, caps, switches, channels, templates, offers. One statement each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.dispatch.inputs import Cap, ConsentRow, OfferGuard, Purpose, Suppression, Switch
from services.dispatch.templates import Template
from services.dispatch.view import Offer
from shared.db import Tx
from shared.durations import parse_duration


class ChannelRow(msgspec.Struct, frozen=True):
    """A channel as configured; see `tables.channel`. `quiet` None: the deployment's. `ceiling`: whether its spending has
    one; `told`: its adapters that were told their settings."""

    name: str
    adapter: str | None
    enabled: bool
    unit_cost: Decimal
    reach: Decimal
    act: Decimal
    lost: Decimal
    quiet: str | None
    caps: list[Cap]
    settings: dict[str, Any]
    countries: list[str]
    ceiling: bool
    told: list[str]


class Policy(msgspec.Struct, frozen=True):
    """What holds for all channels. `mean_order`: assumed until there are orders; `explore`: share left to chance."""

    caps: list[Cap]
    mean_order: Decimal
    explore: Decimal


class MeanOrder(msgspec.Struct, frozen=True):
    """The shop-wide mean order, as a version that decisions name."""

    value: Decimal
    version: int
    basis: int


class AddressNode(msgspec.Struct, frozen=True):
    """A node that a request named as its address."""

    kind: str
    value: str
    status: str


class Request(msgspec.Struct, frozen=True):
    """Where a request for a subscription came from. `ip` is what the client or the ingest service said."""

    source: UUID | None
    ip: str | None


class Asked(msgspec.Struct, frozen=True):
    """Whose contacts are wanted: of the person's nodes, and to these addresses, after `since`."""

    nodes: list[UUID]
    addresses: list[UUID]


class ContactRow(msgspec.Struct, frozen=True):
    """A message that counts against caps."""

    origin: UUID
    message: UUID
    at: datetime
    channel: str
    purpose: Purpose
    address: UUID


async def read_channels(tx: Tx) -> list[ChannelRow]:
    rows = await tx.fetch(
        """
        SELECT name, adapter, enabled, unit_cost, reach, act, lost, quiet, caps, settings, countries,
               budget ?| ARRAY['day', 'month'] AS ceiling,
               ARRAY(SELECT a.name FROM dispatch.adapter a WHERE a.channel = c.name ORDER BY a.name) AS told
        FROM dispatch.channel c ORDER BY name
        """
    )
    return [ChannelRow(**{**dict(row), "caps": msgspec.convert(row["caps"], list[Cap])}) for row in rows]


class Rules(msgspec.Struct, frozen=True):
    """What holds for everybody now."""

    policy: Policy
    mean: MeanOrder | None
    switches: list[Switch]


async def read_rules(tx: Tx, now: datetime) -> Rules:
    """Policy, the shop-wide mean order that is valid at `now`, and the kill switches that are on."""
    row = await tx.fetchrow(
        f"""
        SELECT p.caps, p.mean_order, p.explore, f.value, f.version, f.basis, {_SWITCHES}
        FROM dispatch.policy p
        LEFT JOIN LATERAL (
            SELECT value, version, basis FROM dispatch.figure
            WHERE name = 'mean_order' AND valid_from <= $1 ORDER BY version DESC LIMIT 1
        ) f ON true
        """,
        now,
    )
    mean = MeanOrder(row["value"], row["version"], row["basis"]) if row["version"] is not None else None
    policy = Policy(msgspec.convert(row["caps"], list[Cap]), row["mean_order"], row["explore"])
    return Rules(policy, mean, _switches(row["switches"]))


_SWITCHES = """ARRAY(
            SELECT ARRAY[scope, name, reason] FROM dispatch.switch ORDER BY scope, name
        ) AS switches"""


def _switches(rows: Sequence[Sequence[Any]]) -> list[Switch]:
    return [Switch(scope, name, reason) for scope, name, reason in rows]


class Stops(msgspec.Struct, frozen=True):
    """What may stop everything. `held`: after a restore nothing is sent until somebody looked."""

    held: bool
    switches: list[Switch]
    watermark: datetime | None


async def read_stops(tx: Tx) -> Stops:
    """Read afresh in every transaction that decides or calls."""
    row = await tx.fetchrow(
        f"""
        SELECT (SELECT state = 'held' FROM platform.deployment) AS held,
               (SELECT value FROM platform.watermark) AS watermark, {_SWITCHES}
        """
    )
    return Stops(row["held"], _switches(row["switches"]), row["watermark"])


async def is_held(tx: Tx) -> bool:
    """After a restore nothing is sent until somebody looked."""
    return await tx.fetchval("SELECT state = 'held' FROM platform.deployment")


async def read_templates(tx: Tx, names: Sequence[str]) -> dict[str, Template]:
    rows = await tx.fetch(
        """
        SELECT t.name, v.version, v.purpose, v.parts FROM dispatch.template t
        JOIN dispatch.template_version v ON v.name = t.name AND v.version = t.version
        WHERE t.name = ANY($1::text[]) AND NOT t.archived
        """,
        sorted(set(names)),
    )
    return {row["name"]: Template(row["name"], row["version"], row["purpose"], row["parts"]) for row in rows}


async def read_consents(tx: Tx, nodes: Sequence[UUID]) -> dict[UUID, list[ConsentRow]]:
    """Both ledgers' rows of these addresses: profile's, and dispatch's own, which may be ahead of it."""
    if not nodes:
        return {}
    rows = await tx.fetch(
        """
        SELECT id, node, channel, topic, state, at, trust FROM cdp.consent WHERE node = ANY($1::uuid[])
        UNION ALL
        SELECT id, node, channel, topic, state, at, 3 FROM dispatch.consent WHERE node = ANY($1::uuid[])
        """,
        sorted(set(nodes)),
    )
    found: dict[UUID, dict[tuple[str, str, UUID], ConsentRow]] = defaultdict(dict)
    for row in rows:
        consent = ConsentRow(**dict(row))
        found[consent.node][consent.channel, consent.topic, consent.id] = consent
    return {node: sorted(by_key.values(), key=lambda c: (c.at, c.id, c.topic)) for node, by_key in found.items()}


async def read_suppressions(tx: Tx, nodes: Sequence[UUID]) -> dict[tuple[UUID, str], Suppression]:
    """By (address, channel); the channel is "*" where all are meant."""
    if not nodes:
        return {}
    rows = await tx.fetch(
        "SELECT node, channel, why, at FROM dispatch.suppression WHERE node = ANY($1::uuid[])", sorted(set(nodes))
    )
    return {(row["node"], row["channel"]): Suppression(row["why"], row["at"]) for row in rows}


async def read_contacts(tx: Tx, asked: Sequence[Asked], since: datetime) -> list[list[ContactRow]]:
    """For each question the contacts of the person's nodes and to the person's addresses, oldest first."""
    nodes = sorted({node for one in asked for node in one.nodes})
    addresses = sorted({address for one in asked for address in one.addresses})
    rows = await tx.fetch(
        """
        SELECT origin, message, at, channel, purpose, address_node AS address FROM dispatch.contact
        WHERE origin = ANY($1::uuid[]) AND at > $3
        UNION
        SELECT origin, message, at, channel, purpose, address_node FROM dispatch.contact
        WHERE address_node = ANY($2::uuid[]) AND at > $3
        ORDER BY at, message
        """,
        nodes,
        addresses,
        since,
    )
    contacts = [ContactRow(**dict(row)) for row in rows]
    answers = []
    for one in asked:
        own, theirs = set(one.nodes), set(one.addresses)
        answers.append([c for c in contacts if c.origin in own or c.address in theirs])
    return answers


async def count_confirmations(
    tx: Tx, networks: Sequence[str], sources: Sequence[UUID], since_network: datetime, since_source: datetime
) -> tuple[dict[str, int], dict[UUID, int]]:
    """How many confirmation mails were made for each network and each source since then."""
    rows = await tx.fetch(
        """
        SELECT network, NULL::uuid AS source, count(*) FROM dispatch.contact
        WHERE network = ANY($1::text[]) AND at > $3 AND purpose = 'confirmation' GROUP BY network
        UNION ALL
        SELECT NULL, source, count(*) FROM dispatch.contact
        WHERE source = ANY($2::uuid[]) AND at > $4 AND purpose = 'confirmation' GROUP BY source
        """,
        sorted(set(networks)),
        sorted(set(sources)),
        since_network,
        since_source,
    )
    by_network = {row["network"]: row["count"] for row in rows if row["network"] is not None}
    by_source = {row["source"]: row["count"] for row in rows if row["source"] is not None}
    return by_network, by_source


async def read_address_nodes(tx: Tx, nodes: Sequence[UUID]) -> dict[UUID, AddressNode]:
    if not nodes:
        return {}
    rows = await tx.fetch("SELECT id, kind, value, status FROM cdp.node WHERE id = ANY($1::uuid[])", sorted(set(nodes)))
    return {row["id"]: AddressNode(row["kind"], row["value"], row["status"]) for row in rows}


async def read_requests(tx: Tx, origins: Sequence[UUID], events: Sequence[UUID]) -> dict[UUID, Request]:
    """Where the entry events of addressed runs came from, by event id."""
    if not events:
        return {}
    rows = await tx.fetch(
        """
        SELECT id, source, rest #>> '{context,ip}' AS ip FROM cdp.event
        WHERE node = ANY($1::uuid[]) AND id = ANY($2::uuid[])
        """,
        sorted(set(origins)),
        sorted(set(events)),
    )
    return {row["id"]: Request(row["source"], row["ip"]) for row in rows}


class OfferRow(msgspec.Struct, frozen=True):
    """An offer as configured; `forms`: form → {code, title}."""

    name: str
    title: str
    code: str
    valid: timedelta | None
    forms: dict[str, dict[str, str]]
    guard: OfferGuard | None = None

    def for_form(self, form: str | None, now: datetime) -> Offer:
        """The code that somebody who came by `form` gets now."""
        special = self.forms.get(form or "", {})
        return Offer(
            self.name,
            special.get("code") or self.code,
            special.get("title") or self.title,
            now + self.valid if self.valid else None,
        )


async def read_offers(tx: Tx, names: Sequence[str]) -> dict[str, OfferRow]:
    if not names:
        return {}
    rows = await tx.fetch(
        "SELECT name, title, code, valid_seconds, forms, unless_bought FROM dispatch.offer WHERE name = ANY($1::text[])",
        sorted(set(names)),
    )
    return {
        row["name"]: OfferRow(
            row["name"],
            row["title"],
            row["code"],
            timedelta(seconds=row["valid_seconds"]) if row["valid_seconds"] is not None else None,
            row["forms"],
            _offer_guard(row),
        )
        for row in rows
    }


def _offer_guard(row: asyncpg.Record) -> OfferGuard | None:
    asked = row["unless_bought"]
    if asked is None:
        return None
    within = parse_duration(asked["within"]) if asked["within"] is not None else None
    return OfferGuard(row["name"], asked["products"], asked["categories"], within)


async def read_allotments(tx: Tx, nodes: Sequence[UUID], now: datetime) -> dict[tuple[UUID, str], Offer]:
    """Codes that are still good, by (node, offer)."""
    rows = await tx.fetch(
        "SELECT node, offer, code, title, expires_at FROM dispatch.allotment "
        "WHERE node = ANY($1::uuid[]) AND (expires_at IS NULL OR expires_at > $2)",
        sorted(set(nodes)),
        now,
    )
    return {(r["node"], r["offer"]): Offer(r["offer"], r["code"], r["title"], r["expires_at"]) for r in rows}


async def write_allotments(tx: Tx, given: Sequence[tuple[UUID, UUID, Offer]], now: datetime) -> None:
    """(node, message, offer) for each code given out now; one that had expired is replaced."""
    ordered = sorted({(node, offer.name): (node, message, offer) for node, message, offer in given}.items())
    await tx.execute(
        """
        INSERT INTO dispatch.allotment (node, offer, code, title, message, at, expires_at)
        SELECT node, offer, code, title, message, $7, expires_at
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::timestamptz[])
             AS a(node, offer, code, title, message, expires_at)
        ON CONFLICT (node, offer) DO UPDATE SET code = excluded.code, title = excluded.title,
            message = excluded.message, at = excluded.at, expires_at = excluded.expires_at
        """,
        [node for _, (node, _, _) in ordered],
        [offer.name for _, (_, _, offer) in ordered],
        [offer.code for _, (_, _, offer) in ordered],
        [offer.title for _, (_, _, offer) in ordered],
        [message for _, (_, message, _) in ordered],
        [offer.expires_at for _, (_, _, offer) in ordered],
        now,
    )
