"""The service as the process runs it: consumer, keeper, claims and relay as loops, in real time, over the log-table bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from services.profile.service import build as build_profile
from services.triggers.editing import Editor
from services.triggers.service import build, world_of
from shared.bus.base import Outgoing
from shared.clock import SystemClock
from shared.events import EVENTS, MESSAGES, Event, Intended, decode_message_record, encode
from shared.keeper import Keeper
from shared.service import Context, Service
from tests.support.contexts import context_for, running
from tests.support.triggers import MARKETER, Shop, add_templates
from tests.support.wait import until

CLOCK = SystemClock()


@asynccontextmanager
async def process(database_url: str) -> AsyncIterator[tuple[Context, Service, Shop]]:
    """Profile and triggers with all their loops, and the keeper. The shop only makes events."""
    await add_templates(database_url, "letter", "cart")
    await add_templates(database_url, "receipt", purpose="transactional")
    async with (
        context_for(database_url, role="dripline_profile") as profile,
        context_for(database_url, role="dripline_triggers") as triggers,
        context_for(database_url) as platform,
    ):
        profile.wake = triggers.wake = platform.wake
        services = [await build_profile(profile), await build(triggers)]
        keeper = Keeper(platform)
        loops: dict[str, Any] = {f"keeper:{name}": loop for name, loop in keeper.loops().items()}
        for service in services:
            loops |= {f"{service.name}:{name}": loop for name, loop in service.loops.items()}
        async with running(loops):
            yield triggers, services[1], Shop(profile, triggers, CLOCK)  # type: ignore[arg-type]
        await keeper.close()


async def post(context: Context, *events: Event) -> None:
    await context.bus.append([Outgoing(EVENTS, str(event.origin).encode(), encode(event)) for event in events])


async def intents(context: Context) -> list[Intended]:
    found = await context.bus.fetch(MESSAGES, dict.fromkeys(range(4), 0), limit=1000, wait=0)
    records = [decode_message_record(record.value) for batch in found.values() for record in batch]
    return [record for record in records if isinstance(record, Intended)]


async def test_events_become_intents_on_the_bus_at_once_and_by_the_watermark(database_url: str) -> None:
    async with process(database_url) as (context, service, shop):
        editor = Editor(context, world_of(context))
        rules = [
            {
                "name": "at-once",
                "kind": "transactional",
                "enter": {"on": "Order Completed"},
                "steps": [{"send": "receipt"}],
            },
            {"name": "seen", "enter": {"on": "Product Viewed"}, "steps": [{"send": "letter"}, {"wait": "1h"}]},
            {
                "name": "cart",
                "enter": {"on": "Product Added", "idle": "1s", "if": {"cart": {"not_empty": True}}},
                "steps": [{"send": "cart"}],
            },
        ]
        await editor.apply(rules, MARKETER, activate=True)
        now = CLOCK.now()
        await post(
            context,
            shop.event("Order Completed", now, "boris", properties={"order_id": "o-1", "total": "5"}),
            shop.event("Product Viewed", now, "anna"),
            shop.event("Product Added", now, "vera", properties={"product_id": "p", "quantity": 1, "price": 5}),
        )

        async def all_there() -> bool:
            return len(await intents(context)) == 3

        await until(all_there, what="three intents")
        by_template = {intent.template: intent for intent in await intents(context)}
        assert by_template.keys() == {"receipt", "letter", "cart"}
        assert by_template["cart"].decided_at >= now + timedelta(seconds=1)
        assert service.quiet is not None and service.next_due is not None
        await until(service.quiet, what="triggers to be quiet")
        due = await service.next_due()
        assert due is not None and due - by_template["letter"].decided_at == timedelta(hours=1)
        for check in service.checks.values():
            await check()
