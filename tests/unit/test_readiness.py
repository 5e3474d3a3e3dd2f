"""`/readyz` says what is failing, and what is worth a warning without failing for it."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from services.draining import Drain
from services.run import _add_probes
from services.watchdog import Watchdog
from shared.service import Service


@pytest.mark.parametrize("warnings", [[], ["bus topic events has one replica"]])
@pytest.mark.parametrize("broken", [False, True])
async def test_a_warning_is_told_and_only_a_failure_makes_it_unready(warnings: list[str], broken: bool) -> None:
    async def check() -> None:
        if broken:
            raise ConnectionError("no keys")

    app = FastAPI()
    service = Service("ingest", checks={"keys": check})
    _add_probes(app, {"ingest": service}, Watchdog(lambda: [service]), Drain(0.0), lambda: warnings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.get("/ingest/readyz")
    assert answer.status_code == (503 if broken else 200)
    assert answer.json().get("warnings", []) == warnings
    assert answer.json()["failing"] == ({"ingest.keys": "ConnectionError: no keys"} if broken else {})
