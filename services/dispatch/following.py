"""Reports that never came: a provider that calls nobody, or whose calls were lost, is asked what became of its messages.

Each message is asked about when it is a quarter of an hour, an hour, six hours and a day old, until something was told. What
is asked twice, by two processes or before the provider's own report comes, is one report: it has the same id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog

from services.dispatch.adapter_settings import SettingsReader, Unusable
from services.dispatch.channels.base import Adapter, Exchange, StartBy
from services.dispatch.rendered import Rendered
from services.dispatch.reports import Reports
from services.dispatch.store import adapters as adapter_rows
from services.dispatch.store import following as store
from services.dispatch.store.calls import Chosen
from shared.clock import pause
from shared.service import Context

log = structlog.get_logger(__name__)

AGES = (timedelta(minutes=15), timedelta(hours=1), timedelta(hours=6), timedelta(days=1))
ROUND = timedelta(minutes=1)
# Of one age in one round; who sends more and gets no reports is asked about a part.
MOST = 200
AT_A_TIME = 4


class Following:
    """Asks adapters that can be asked (`Adapter.follow`)."""

    def __init__(
        self, context: Context, adapters: Mapping[str, Adapter], settings: SettingsReader, reports: Reports
    ) -> None:
        self._context, self._settings, self._reports = context, settings, reports
        self._adapters = {name: one for name, one in adapters.items() if type(one).follow is not Adapter.follow}
        self._until: datetime | None = None

    async def loop(self) -> None:
        """Until it is cancelled."""
        while True:
            await pause(ROUND.total_seconds())
            await self.follow()

    async def follow(self) -> int:
        """One round: those that came to one of the ages since the last one. Returns how many reports there were."""
        now = self._context.clock.now()
        since = self._until or now - ROUND
        self._until = now
        async with self._context.database.connection() as connection:
            told = await adapter_rows.read_told(connection, sorted(self._adapters))
            silent = await store.silent(connection, sorted(told), [(since - age, now - age) for age in AGES], MOST)
        counted = await asyncio.gather(*(self._ask(name, told[name], silent.get(name, [])) for name in told))
        return sum(counted)

    async def _ask(self, name: str, row: adapter_rows.Told, silent: Sequence[Chosen]) -> int:
        if not silent:
            return 0
        try:
            settings = self._settings.read(row)
        except Unusable as problem:
            log.error("adapter.unusable", adapter=name, problem=str(problem))
            return 0
        room = asyncio.Semaphore(AT_A_TIME)
        found = await asyncio.gather(*(self._one(self._adapters[name], one, settings, room) for one in silent))
        reports = [report for several in found for report in several]
        await self._reports.receive(name, reports)
        return len(reports)

    async def _one(self, adapter: Adapter, one: Chosen, settings: Any, room: asyncio.Semaphore) -> list[Any]:
        exchange = Exchange(
            message=one.id,
            attempt=one.attempts,
            key=str(one.id),
            address=one.address,
            rendered=Rendered(text=one.body, subject=one.subject, html=one.html, urls=one.urls),
            purpose=one.purpose,
            sender=(self._context.settings.shop_name, self._context.settings.sender),
            at=one.called_at or self._context.clock.now(),
            start_by=StartBy(0.0),
            settings=settings,
            provider_id=one.provider_id,
        )
        try:
            async with room, asyncio.timeout(adapter.timeout.total_seconds()):
                return await adapter.follow(exchange)
        except Exception as problem:
            log.warning("follow.failed", adapter=adapter.name, message=str(one.id), problem=type(problem).__name__)
            return []
