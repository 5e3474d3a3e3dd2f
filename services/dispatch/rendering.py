"""Where a text is made: what is light at once, what is heavy in a thread, so that no text holds the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import UUID

from services.dispatch.links import Signer
from services.dispatch.rendered import Rendered
from services.dispatch.templates import Template, render

# A thread costs a fifth of a millisecond and shares the interpreter: what takes less than this is made at once.
HEAVY_SECONDS = 0.01


class Renderer:
    """Makes texts by `services.dispatch.templates.render`. A version of a template whose text has never been made here, or
    once took long, may take long now."""

    def __init__(self, signer: Signer, hosts: frozenset[str]) -> None:
        self._signer, self._hosts = signer, hosts
        self._light: set[tuple[str, int, str]] = set()
        self._heavy: set[tuple[str, int, str]] = set()

    async def render(self, template: Template, part: str, variables: Mapping[str, Any], message: UUID) -> Rendered:
        """:raises TemplateFault: as `services.dispatch.templates.render`"""
        key = template.name, template.version, part
        make = partial(render, template, part, variables, self._signer, message, self._hosts)
        if key not in self._light or key in self._heavy:
            return await asyncio.to_thread(self._timed, key, make)
        return self._timed(key, make)

    def _timed(self, key: tuple[str, int, str], make: partial[Rendered]) -> Rendered:
        began = time.thread_time()  # its own work, however busy the machine is
        try:
            return make()
        finally:
            known = self._heavy if time.thread_time() - began > HEAVY_SECONDS else self._light
            known.add(key)
