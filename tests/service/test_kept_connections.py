"""Connections that a proxy keeps open for its next request: who ends them, and when."""

from __future__ import annotations

import httpx
import pytest
import uvicorn

from tests.support.ingesting import serving

pytestmark = pytest.mark.timeout(60)


async def test_while_a_process_drains_each_answer_is_the_last_of_its_connection(database_url: str) -> None:
    async with serving(database_url) as running:
        kept = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1))
        async with httpx.AsyncClient(transport=kept, base_url=running.server.origin) as proxy:
            before = await proxy.get("/livez")
            running.server.drain.began = True
            for path in ("/livez", "/v1/projects/x/settings"):  # by the framework, and by the fast way of ingest
                answer = await proxy.get(path)
                assert answer.headers["connection"] == "close", path
        assert "connection" not in before.headers
        running.server.drain.began = False


async def test_the_proxy_is_the_one_that_ends_an_idle_connection(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caddy, the most patient of those that OPERATIONS names, keeps it for two minutes."""
    told: list[uvicorn.Config] = []
    made = uvicorn.Config.__init__

    def listening(self: uvicorn.Config, *arguments: object, **options: object) -> None:
        made(self, *arguments, **options)  # type: ignore[arg-type]
        told.append(self)

    monkeypatch.setattr(uvicorn.Config, "__init__", listening)
    async with serving(database_url):
        [config] = told
    assert config.timeout_keep_alive > 120
