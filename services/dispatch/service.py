"""Builds dispatch: the consumer of `messages`, the claims, the senders, the public links, the API, the inbox."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial

from services.dispatch import public, webhooks
from services.dispatch.adapter_settings import SettingsReader
from services.dispatch.answers import Answers
from services.dispatch.api import routers
from services.dispatch.api.adapters import Desk
from services.dispatch.api.channels import declared_caps
from services.dispatch.attending import Attendance
from services.dispatch.channels import registry
from services.dispatch.channels.base import Adapter, Report, World
from services.dispatch.claiming import Claimer
from services.dispatch.following import Following
from services.dispatch.handlers import handle
from services.dispatch.limits import PublicLimits
from services.dispatch.links import Signer
from services.dispatch.material import Surroundings
from services.dispatch.policy import DEFAULT_CAPS
from services.dispatch.reports import Reports
from services.dispatch.secrets import Sealer
from services.dispatch.sending import Sender
from services.dispatch.store import catalogue, claims
from services.dispatch.store.forgetting import forget, journals
from services.dispatch.store.looking import is_held
from services.dispatch.subscriptions import Subscriptions
from services.dispatch.trying import Trials
from services.dispatch.view import Shop
from services.dispatch.worth import ASSUMED_ORDER
from shared.channels import KNOWN
from shared.clock import pause
from shared.consumer import Consumer
from shared.events import MESSAGES
from shared.service import Context, Loop, Service
from shared.settings import Settings
from shared.wake import DISPATCH_DUE, WATERMARK, Listener

GROUP = SCHEMA = "dispatch"
KINDS = ("transactional", "marketing")
# Without any wake-up a claim loop looks again after this many seconds.
FALLBACK = 2.0
FORGET_SECONDS = 30.0


class Dispatch:
    """The parts of one process's dispatch, for its loops and for tests that drive them one by one."""

    def __init__(self, context: Context) -> None:
        self.context = context
        kinds = registry.find(context.settings.channels_path)
        self.adapter_types = kinds
        world = World(context.settings, context.settings.inbox_dir, context.clock, context.bits, self.tell)
        # An adapter with settings may be told them at any moment, through any process.
        self.adapters: dict[str, Adapter] = {
            name: kind(world) for name, kind in kinds.items() if kind.usable(context.settings)
        }
        self.prefixes = {name: one.event for name, one in KNOWN.items()}
        self.kinds = {adapter.channel: adapter.address_kind for adapter in kinds.values()}
        consents = registry.consents()
        self.signer = Signer(context.secret, context.settings.origin)
        self.shop = shop_of(context.settings)
        self.limits = PublicLimits(context.settings)
        surroundings = Surroundings(
            context.settings, dict(kinds), consents, context.node_namespace, context.secret, context.bits
        )
        self.claimer = Claimer(context, surroundings, self.signer, self.shop)
        self.sealer = Sealer(context.secret, context.bits)
        self.settings = SettingsReader(kinds, self.sealer)
        self.reports = Reports(context, kinds, self.prefixes, consents)
        self.answers = Answers(context, kinds, self.prefixes, self.reports)
        self.sender = Sender(context, self.adapters, consents, self.settings, self.answers)
        self.attendance = Attendance(context, self.adapters, self.settings)
        self.following = Following(context, self.adapters, self.settings, self.reports)
        self.trials = Trials(context, self.adapters, self.settings, self.reports)
        self.desk = Desk(context, kinds, self.sealer, self.settings, self.trials)
        self.subscriptions = Subscriptions(context, self.kinds, self.prefixes, consents)
        self.consumer = Consumer(context, group=GROUP, topics=[MESSAGES], handler=handle, schema=SCHEMA)

    async def tell(self, adapter: str, reports: Sequence[Report]) -> None:
        """For adapters whose provider tells over a connection of its own."""
        await self.reports.receive(adapter, reports)

    async def prepare(self) -> None:
        """Rows for channels and policy that are not there yet."""
        now = self.context.clock.now()
        async with self.context.database.transaction() as tx:
            await catalogue.ensure_channels(tx, KNOWN, declared_caps(KNOWN), now)
            await catalogue.ensure_policy(tx, DEFAULT_CAPS, ASSUMED_ORDER)

    def loops(self) -> dict[str, Loop]:
        claiming = {f"claims-{kind}": partial(self.claim_loop, kind) for kind in KINDS}
        return {
            **self.consumer.loops(),
            **claiming,
            "sender": self.sender.loop,
            "reaper": self.sender.reap_loop,
            "attendance": self.attendance.loop,
            "following": self.following.loop,
            "figures": self.figures_loop,
            "forgetting": self.forget_loop,
        }

    async def claim_loop(self, kind: str) -> None:
        """Decides about what is due. Woken when something may be due, or when the watermark moved and something waits."""
        wake = self.context.wake
        listener = wake.listen([DISPATCH_DUE, WATERMARK])
        something_new = wake.listen([DISPATCH_DUE])
        try:
            while True:
                something_new.event.clear()
                done = await self.claimer.claim(kind)
                due = await self._next_due(kind)
                if done and due is not None and due <= self.context.clock.now():
                    continue
                await self._wait(listener, something_new, due)
        finally:
            listener.close()
            something_new.close()

    async def _wait(self, listener: Listener, something_new: Listener, due: datetime | None) -> None:
        """Until there is something new, or the queue's first is due, or FALLBACK seconds."""
        end = time.monotonic() + FALLBACK
        while (left := end - time.monotonic()) > 0:
            await listener.wait(left)
            if something_new.event.is_set() or (due is not None and due <= self.context.clock.now()):
                return

    async def _next_due(self, kind: str) -> datetime | None:
        async with self.context.database.connection() as connection:
            return await claims.next_due(connection, kind)

    async def figures_loop(self) -> None:
        """Keeps the shop-wide mean order up to date, in business time."""
        while True:
            async with self.context.database.transaction() as tx:
                await catalogue.refresh_mean_order(tx, self.context.clock.now())
            await pause(1.0 if self.context.clock.virtual else 60.0)

    async def forget_loop(self) -> None:
        """Follows profile's purges and erasures: what was forgotten there is forgotten here; and drops what is too old to
        matter."""
        seen, passes = (-1, -1), 0
        while True:
            async with self.context.database.connection() as connection:
                now = await journals(connection)
            # Twice after each change: what was under way the first time is settled the second.
            passes = 2 if now != seen else max(0, passes - 1)
            seen = now
            while passes and await self.forget():
                pass
            await self.trials.reap()
            while await self.reports.forget():
                pass
            await pause(FORGET_SECONDS)

    async def forget(self) -> int:
        """One batch; returns how many messages lost their address."""
        async with self.context.database.transaction() as tx:
            return await forget(tx, 200)

    async def quiet(self) -> bool:
        """Nothing can be done at this business moment."""
        if not await self.consumer.quiet():
            return False
        async with self.context.database.connection() as connection:
            return await is_held(connection) or not await claims.busy(connection, self.context.clock.now())

    async def next_due(self) -> datetime | None:
        moments = [await self._next_due(kind) for kind in KINDS]
        return min((moment for moment in moments if moment is not None), default=None)

    async def check_open(self) -> None:
        """Raises while dispatch is held after a restore."""
        async with self.context.database.connection() as connection:
            if await is_held(connection):
                raise RuntimeError("dispatch is held after a restore: look at the intents of the gap, then release it")

    async def close(self) -> None:
        for adapter in self.adapters.values():
            await adapter.close()


def shop_of(settings: Settings) -> Shop:
    """The shop as templates know it."""
    url = f"https://{sorted(settings.shop_hosts)[0]}/" if settings.shop_hosts else f"{settings.origin}/"
    return Shop(settings.shop_name, url, settings.shop_currency, settings.sender, settings.link_hosts)


async def build(context: Context) -> Service:
    """The service over the context; channel adapters are looked for in `channels/` and in CHANNELS_PATH."""
    dispatch = Dispatch(context)
    await dispatch.prepare()
    return Service(
        name="dispatch",
        routers=[
            public.router(context, dispatch.signer, dispatch.subscriptions, dispatch.limits),
            webhooks.router(context, dispatch.adapters, dispatch.settings, dispatch.reports, dispatch.limits),
            *routers(
                context, dispatch.adapter_types, dispatch.signer, dispatch.shop, dispatch.subscriptions, dispatch.desk
            ),
        ],
        loops=dispatch.loops(),
        checks={"consumer": dispatch.consumer.check, "open": dispatch.check_open},
        quiet=dispatch.quiet,
        next_due=dispatch.next_due,
        close=dispatch.close,
        polls=lambda: dispatch.consumer.last_poll,
    )
