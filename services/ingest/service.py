"""Builds ingest: the collecting endpoints, the management of sources and dead letters, the cache of keys."""

from __future__ import annotations

from functools import partial

from services.ingest import api, dead_letters_api, described, metrics, store
from services.ingest.collect import PREFIXES, Collector, Limits
from services.ingest.gate import PublicRates
from services.ingest.intake import Intake
from services.ingest.parse import Shop
from services.ingest.replaying import Replaying
from services.ingest.sources import KeyCache
from shared.limits import Gate
from shared.service import Context, Service


async def build(context: Context) -> Service:
    """The service. Reads the write keys once; raises what the database raises."""
    settings, database = context.settings, context.database
    keys = KeyCache(
        partial(store.read_keys, database), partial(store.read_version, database), context.clock.now, context.wake
    )
    await keys.refresh()
    hosts = frozenset(host.lower() for host in settings.link_hosts)
    shop = Shop(context.node_namespace, settings.shop_country, hosts)
    intake = Intake(context.bus, shop, context.hooks, context.bits, partial(store.keep_letters, database))
    gate = Gate(settings.max_bytes_in_flight, settings.network_bytes_in_flight)
    rates = PublicRates(settings.public_events_per_second, settings.network_events_per_second)
    metrics.BYTES_IN_FLIGHT.set_function(lambda: gate.in_flight)
    collector = Collector(intake, keys, Limits(gate, rates), context.clock.now, settings.public_url)
    return Service(
        name="ingest",
        routers=[api.router(context, keys), dead_letters_api.router(context, Replaying(context, intake))],
        asgi=dict.fromkeys(PREFIXES, collector),
        described=described.paths(),
        loops={"keys": keys.loop},
        checks={"keys": keys.check},
    )
