"""Builds the profile service: the consumer of `events` and `history`, and the routes of `/v1/profiles`."""

from __future__ import annotations

from functools import partial

from services.profile.api import router
from services.profile.handlers import Handler
from services.profile.seen import forget_daily
from shared.consumer import Consumer
from shared.events import EVENTS, HISTORY
from shared.service import Context, Service

GROUP = SCHEMA = "profile"


async def build(context: Context) -> Service:
    """The service over the context's database and bus."""
    settings = context.settings
    handler = Handler(secret=context.secret, currency=settings.shop_currency, country=settings.shop_country)
    consumer = Consumer(context, group=GROUP, topics=[EVENTS, HISTORY], handler=handler, schema=SCHEMA)
    return Service(
        name="profile",
        routers=[router(context)],
        loops={**consumer.loops(), "forget-seen": partial(forget_daily, context)},
        checks={"consumer": consumer.check},
        quiet=consumer.quiet,
        polls=lambda: consumer.last_poll,
    )
