"""Keeps up what adapters need although nothing is sent: a session over which receipts come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from services.dispatch.adapter_settings import SettingsReader, Unusable
from services.dispatch.channels.base import Adapter
from services.dispatch.store import adapters as store
from shared.clock import pause
from shared.service import Context

log = structlog.get_logger(__name__)

ATTEND_SECONDS = 5.0
LONGEST_SECONDS = 30.0


class Attendance:
    """Calls `attend` of every adapter that declares it and is told its settings; each by itself, so that one that does
    not come back keeps no other waiting."""

    def __init__(self, context: Context, adapters: Mapping[str, Adapter], settings: SettingsReader) -> None:
        self._context, self._settings = context, settings
        self._adapters = {name: one for name, one in adapters.items() if type(one).attend is not Adapter.attend}
        self._attended: set[str] = set()

    async def loop(self) -> None:
        """Until it is cancelled."""
        while self._adapters:
            await self.attend()
            await pause(ATTEND_SECONDS)
        await asyncio.Event().wait()  # nobody needs it: a loop that ended would count as failed

    async def attend(self) -> None:
        """One round."""
        async with self._context.database.connection() as connection:
            told = await store.read_told(connection, sorted(self._adapters))
        known: dict[str, Any] = {}
        for name, row in told.items():
            try:
                known[name] = self._settings.read(row)
            except Unusable as problem:
                log.error("adapter.unusable", adapter=name, problem=str(problem))
        for name in self._attended - set(known):
            await self._adapters[name].close()  # it is told nothing any more
        self._attended = set(known)
        await asyncio.gather(*(self._attend(name, settings) for name, settings in known.items()))

    async def _attend(self, name: str, settings: Any) -> None:
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._adapters[name].attend(settings)
        except Exception as problem:
            log.warning("adapter.not_attended", adapter=name, problem=str(problem) or type(problem).__name__)
