"""From the request to the end of DATA at an SMTP sink: 300 events a second, a tenth of which fire, on both buses.

Beside it the watermark's own age, which a marketing message waits for at least. Before it the same load for some seconds that
do not count: a process that has just started plans its statements, and Kafka's Java compiles itself.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.bench.machine import stolen
from tests.bench.servers import Running, dripline
from tests.support.kafka import temporary_kafka
from tests.support.smtp_peer import SmtpPeer

RATE, SECONDS, WARMING_SECONDS, FIRING, CONNECTIONS, ROUNDS = 300, 30, 10, 0.1, 32, 3
RULES = {
    "marketing": {"event": "Bench Marketing", "kind": "marketing"},
    "transactional": {"event": "Bench Transactional", "kind": "transactional"},
}


def _rule(name: str, event: str, kind: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": f"bench-{name}",
        "kind": kind,
        "enter": {"on": event},
        "again": "always",
        "steps": [{"send": {"template": f"bench-{name}", "channels": ["email"]}}],
    }
    return document | ({"value": 900, "holdout": "0%"} if kind == "marketing" else {})


async def _prepare(client: httpx.AsyncClient, people: int, key: str) -> None:
    for name, rule in RULES.items():
        unsubscribe = ' <a href="{{ links.unsubscribe }}">unsubscribe</a>' if name == "marketing" else ""
        text = " {{ links.unsubscribe }}" if name == "marketing" else ""
        template = {
            "name": f"bench-{name}",
            "purpose": name,
            "subject": "Bench {{ event.number }}",
            "mjml": "<mjml><mj-body><mj-section><mj-column><mj-text>{{ event.number }}"
            + f"{unsubscribe}</mj-text></mj-column></mj-section></mj-body></mjml>",
            "text": "{{ event.number }}" + text,
        }
        answer = await client.post("/v1/templates", json=template)
        answer.raise_for_status()
        made = await client.post("/v1/rules", json=_rule(name, **rule))
        made.raise_for_status()
        (await client.post(f"/v1/rules/{made.json()['id']}/activate")).raise_for_status()
    # No cap may stand in the way of the measurement.
    (await client.patch("/v1/channels/email", json={"caps": []})).raise_for_status()
    policy = (await client.get("/v1/caps")).json()
    (await client.put("/v1/caps", json=policy | {"caps": []})).raise_for_status()
    for start in range(0, people, 200):
        batch = []
        for number in range(start, min(people, start + 200)):
            address = f"bench{number}@example.com"
            batch.append({"type": "identify", "userId": f"b-{number}", "traits": {"email": address}})
            batch.append(
                {
                    "type": "track",
                    "userId": f"b-{number}",
                    "event": "Consent Granted",
                    "properties": {
                        "channel": "email",
                        "address": address,
                        "topics": ["marketing"],
                        "form": "bench",
                        "text_version": "1",
                        "page": "bench",
                        "at": "2026-01-01T00:00:00Z",
                        "ip": "192.0.2.1",
                    },
                }
            )
        (await client.post("/v1/batch", json={"batch": batch}, auth=(key, ""))).raise_for_status()


async def _post(url: str, key: str, people: int, numbers: range) -> dict[str, float]:
    """Posts these at the rate over kept connections, a few bytes of work each: the load must not take the server's share of the
    machine. Returns when each firing request was due, by its number; every answer must be 200."""
    posted: dict[str, float] = {}
    waiting: asyncio.Queue[bytes | None] = asyncio.Queue()
    senders = [asyncio.create_task(post_waiting(url, key, waiting)) for _ in range(CONNECTIONS)]
    began = time.time()
    for number in numbers:
        at = began + (number - numbers.start) / RATE
        if (early := at - time.time()) > 0:
            await asyncio.sleep(early)
        event, properties = "Product Viewed", {"product_id": "p"}
        if number % round(1 / FIRING) == 0:
            kind = "marketing" if number % round(2 / FIRING) == 0 else "transactional"
            event, properties = RULES[kind]["event"], {"number": f"{kind}-{number}"}
            posted[properties["number"]] = at
        waiting.put_nowait(
            json.dumps({"userId": f"b-{number % people}", "event": event, "properties": properties}).encode()
        )
    for _ in senders:
        waiting.put_nowait(None)
    await asyncio.gather(*senders)
    return posted


async def post_waiting(url: str, key: str, waiting: asyncio.Queue[bytes | None]) -> None:
    """One connection: a request, its answer, the next request."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    basic = base64.b64encode(f"{key}:".encode()).decode()
    head = f"POST /v1/track HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Basic {basic}\r\nContent-Length: "
    while (body := await waiting.get()) is not None:
        writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length"))
        answer = await reader.readexactly(length)
        if lines[0].split()[1] != b"200":
            raise RuntimeError(f"ingest answered {lines[0].decode()}: {answer.decode()}")
    writer.close()


async def until_handled(client: httpx.AsyncClient) -> None:
    """Until the watermark is where it is when nothing waits: what was prepared is handled."""
    ages: list[float] = []
    watching = asyncio.create_task(_watch_watermark(client, ages))
    while len(ages) < 4 or max(ages[-4:]) > 1:
        await asyncio.sleep(0.1)
    watching.cancel()


async def _watch_watermark(client: httpx.AsyncClient, ages: list[float]) -> None:
    """Collects how far the watermark is behind, in seconds, as the server itself measures it."""
    while True:
        page = (await client.get("/metrics")).text
        ages += [
            float(line.split()[1]) for line in page.splitlines() if line.startswith("dripline_watermark_age_seconds ")
        ]
        await asyncio.sleep(0.25)


def spread(seconds: list[float]) -> dict[str, int]:
    ordered = sorted(seconds)
    return {f"p{share}_ms": round(ordered[len(ordered) * share // 100] * 1000) for share in (50, 99)} if ordered else {}


async def _run(server: Running, peer: SmtpPeer) -> dict[str, Any]:
    people, key = 2000, server.credentials["server_write_key"]
    headers = {"Authorization": f"Bearer {server.credentials['api_key']}"}
    limits = httpx.Limits(max_connections=50)
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30, limits=limits) as client:
        await _prepare(client, people, key)
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        await until_handled(client)
        await _post(server.url, key, people, range(RATE * WARMING_SECONDS))
        ages: list[float] = []
        watching = asyncio.create_task(_watch_watermark(client, ages))
        began, others = time.time(), stolen()
        posted = await _post(server.url, key, people, range(RATE * WARMING_SECONDS, RATE * (WARMING_SECONDS + SECONDS)))
        took_to_post = time.time() - began
        watching.cancel()
    deadline = time.time() + 30
    arrived: dict[str, float] = {}
    while len(arrived) < len(posted) and time.time() < deadline:
        letters = ((str(mail.message["Subject"]).removeprefix("Bench "), mail.at) for mail in peer.letters())
        arrived = {name: at for name, at in letters if name in posted}
        await asyncio.sleep(0.2)
    result: dict[str, Any] = {
        "events_per_second": round(RATE * SECONDS / took_to_post),
        "watermark": spread(ages),
        **others(),
    }
    for kind in RULES:
        names = [name for name in posted if name.startswith(kind)]
        took = [arrived[name] - posted[name] for name in names if name in arrived]
        result[kind] = {"posted": len(names), "arrived": len(took), **spread(took)}
    return result


def _medians(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Figure by figure the median of the rounds."""
    return {
        name: {figure: median(result[name][figure] for result in results) for figure in results[0][name]}
        for name in ("watermark", *RULES)
    }


def measure() -> Iterator[dict[str, Any]]:
    """Interleaved rounds, each on a server of its own, then the medians."""
    found: dict[str, list[dict[str, Any]]] = {"log table": [], "kafka": []}
    for _ in range(ROUNDS):
        for bus, results in found.items():
            results.append(_round(bus))
            yield {bus: results[-1]}
    yield {f"medians of {ROUNDS} rounds": {bus: _medians(results) for bus, results in found.items()}}


def _round(bus: str) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="dripline-bench-"))
        os.chmod(folder, 0o755)
        peer = stack.enter_context(SmtpPeer())
        settings = {"SMTP_URL": peer.url}
        if bus == "kafka":
            settings |= {"BUS_URL": stack.enter_context(temporary_kafka()).url, "PARTITIONS": "8"}
        server = stack.enter_context(dripline(Path(folder), settings))
        return asyncio.run(_run(server, peer))
