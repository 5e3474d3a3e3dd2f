"""Builds the triggers service: its consumer, its claims, its calendar, its API."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from services.triggers import api
from services.triggers.handlers import Handler
from services.triggers.steps.base import World
from services.triggers.store import queue
from services.triggers.store.rules import RuleBook
from services.triggers.working import Worker
from shared.consumer import Consumer
from shared.errors import DriplineError
from shared.events import PROFILE_EVENTS
from shared.service import Context, Service

CLAIMERS = 2


class UnreadableRule(DriplineError):
    """A rule that is in force was written by another version of the program, and this one cannot read it."""


def world_of(context: Context) -> World:
    """What the deployment says of time and place."""
    return World(zone=ZoneInfo(context.settings.shop_timezone), country=context.settings.shop_country)


async def build(context: Context) -> Service:
    """The service of one process."""
    book, world = RuleBook(), world_of(context)
    handler = Handler(book, world, context.secret)
    consumer = Consumer(context, group="triggers", topics=[PROFILE_EVENTS], handler=handler, schema="triggers")
    worker = Worker(context, book, world, CLAIMERS)

    async def quiet() -> bool:
        if worker.busy:
            return False
        async with context.database.connection() as connection:
            if not await queue.idle_now(connection):
                return False
        return await consumer.quiet()

    async def next_due() -> datetime | None:
        async with context.database.connection() as connection:
            return await queue.next_due(connection)

    async def rules_are_readable() -> None:
        if book.unreadable:
            first = next(iter(book.unreadable.values()))
            raise UnreadableRule(f"{len(book.unreadable)} rule versions cannot be read; the first: {first}")

    return Service(
        name="triggers",
        routers=[api.router(context, book, world)],
        loops={**consumer.loops(), **worker.loops()},
        checks={"consumer": consumer.check, "rules": rules_are_readable},
        quiet=quiet,
        next_due=next_due,
        polls=lambda: consumer.last_poll,
    )
