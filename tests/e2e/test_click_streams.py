"""Click streams of a real shop as live events in virtual time: who gets a cart letter, and when, to the millisecond.

What must come out is computed by tests/reference/cart_reference.py, which shares no line with the product.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from services.audit import audit_and_print
from services.dispatch.cli import apply_templates
from services.importing.mapping import load_mapping
from services.importing.runner import read_records
from services.rules_files import SHIPPED
from shared.embedded_postgres import EmbeddedPostgres
from tests.reference.cart_reference import first_intents_of_file
from tests.support import databases
from tests.support.computed_again import computed_again
from tests.support.rules import edited
from tests.support.virtual_server import VirtualServer, virtual_server

STREAMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "otto_sample.jsonl"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TOPICS = ["marketing"]

pytestmark = pytest.mark.skipif(
    not STREAMS.exists(), reason=f"LOUD: {STREAMS} is not there; click streams are not checked"
)


def live_events() -> list[dict[str, Any]]:
    """The file's events as the shipped mapping makes them, in the order of their times (of equal ones: the file's)."""
    records = read_records(STREAMS, load_mapping("otto"), live=True)
    return sorted((event for record in records for event in record.events), key=moment_of)


def moment_of(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["timestamp"])


def introduction(person: str, at: datetime) -> list[dict[str, Any]]:
    """A synthetic address and the consent to write to it."""
    email = f"{person}@example.com"
    proof = {"form": "checkout", "text_version": "1", "page": "https://shop.example/checkout", "ip": "192.0.2.1"}
    consent = {"channel": "email", "address": email, "topics": TOPICS, "at": at.isoformat(), **proof}
    common = {"userId": person, "timestamp": at.isoformat()}
    return [
        {"type": "identify", "messageId": f"hello-{person}", "traits": {"email": email}, **common},
        {"type": "track", "event": "Consent Granted", "messageId": f"yes-{person}", "properties": consent, **common},
    ]


async def live_through(server: VirtualServer, events: list[dict[str, Any]]) -> None:
    """Posts each event at its own time; its slice ends where the next event's begins."""
    for event, following in zip(events, [*events[1:], None], strict=True):
        server.time.go_to(moment_of(event))
        await server.post(event)
        if following is None or moment_of(following) > moment_of(event):
            end = moment_of(following) if following else moment_of(event) + timedelta(days=10)
            await server.time.close(end)


@pytest.fixture(scope="module")
async def lived(
    postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[VirtualServer]:
    """A server that has seen the whole file."""
    events = live_events()
    start = moment_of(events[0]) - timedelta(hours=1)
    folder = tmp_path_factory.mktemp("streams")
    async with (
        databases.cloned(postgres_server.url, "template0") as url,
        virtual_server(url, folder, start) as server,
    ):
        await asyncio.to_thread(lambda: list(apply_templates(SHIPPED, server.server.origin, server.keys["api_key"])))
        # without a control group, and worth a letter although the streams name no prices
        await server.activate(edited("abandoned-cart", holdout="0%", value="900"))
        await server.time.close(start + timedelta(minutes=1))
        people = sorted({event["userId"] for event in events})
        await server.post(*(event for person in people for event in introduction(person, start)))
        await server.time.close(moment_of(events[0]))
        await live_through(server, events)
        yield server


async def first_letters_wanted(server: VirtualServer) -> dict[int, list[int]]:
    """Session → the moments, in milliseconds since 1970, at which the first letter of a run was wanted."""
    first_step = (await server.http.get("/v1/rules/abandoned-cart", headers=server.bearer)).json()["document"]["steps"][
        0
    ]["id"]
    session_of = {}
    for profile in await server.list("/v1/profiles"):
        user = next(one["value"] for one in profile["identifiers"] if one["kind"] == "user_id")
        session_of[profile["id"]] = int(user.removeprefix("otto-"))
    wanted: dict[int, list[int]] = {session: [] for session in session_of.values()}
    for decision in await server.list("/v1/decisions", rule="abandoned-cart"):
        for effect in decision["effects"]:
            if effect.get("intended", {}).get("step") == first_step:
                at = datetime.fromisoformat(decision["at"])
                wanted[session_of[decision["profile"]]].append((at - EPOCH) // timedelta(milliseconds=1))
    return {session: sorted(moments) for session, moments in wanted.items()}


@pytest.mark.timeout(300)
async def test_a_letter_is_wanted_if_and_only_if_a_cart_was_left_alone_for_an_hour(lived: VirtualServer) -> None:
    expected = first_intents_of_file(STREAMS)
    assert await first_letters_wanted(lived) == expected
    assert sum(map(len, expected.values())) > 5


async def test_every_letter_that_was_wanted_is_a_message(lived: VirtualServer) -> None:
    messages = await lived.list("/v1/messages", rule="abandoned-cart")
    runs: dict[str, int] = defaultdict(int)
    for message in messages:
        runs[message["run"]] += 1
    assert len(runs) == sum(map(len, first_intents_of_file(STREAMS).values()))
    assert set(runs.values()) <= {1, 2}


async def test_the_books_of_four_weeks_balance_and_every_decision_is_computed_again_without_a_difference(
    lived: VirtualServer,
) -> None:
    context, said = lived.server.context, StringIO()
    well = await audit_and_print(context.settings, context.database.url, Console(file=said, width=200), derive=True)
    assert well, said.getvalue()
    again = computed_again(said.getvalue())
    assert again["entries"] > 0 and again["intents"] > 0 and again["choices"] > 0, again
