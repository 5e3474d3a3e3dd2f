"""What requests hear that are under way when the process ends."""

from __future__ import annotations

import asyncio
import base64
import json
from urllib.parse import urlsplit

import pytest

from services import run as run_module
from tests.support.ingesting import serving

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("path", ["/v1/track", "/v1/sources"])
async def test_a_request_that_the_end_cuts_off_is_told_to_come_again(
    database_url: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by the fast way and one by the framework, both with a body that does not come."""
    monkeypatch.setattr(run_module, "GRACE_SECONDS", 1)
    async with serving(database_url) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(running.server.origin).port)
        write_key = base64.b64encode(f"{running.keys.server_write_key}:".encode()).decode()
        shown = f"Basic {write_key}" if path == "/v1/track" else running.owner["Authorization"]
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: shop\r\nAuthorization: {shown}\r\nContent-Type: application/json\r\n"
            "Content-Length: 100\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")  # it is being handled, and waits for its body
    answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503")
    assert "retry-after: 1" in head.lower() and "content-type: application/problem+json" in head.lower()
    problem = json.loads(body)
    assert (problem["status"], problem["title"]) == (503, "Shutting down")
    assert "again" in problem["detail"]
