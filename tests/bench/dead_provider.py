"""One provider dead: what the letters of another pay for it. An SMS gateway takes requests and never answers, and a push service
answers 500; before and after it the letters alone, and the same load with all of them alive, each round on a server of its own.

Transactional messages on all three channels: they wait for nothing but their turn, and what is unknown is tried again.
Printed are p50 and p99 of the letters, from the request to the end of DATA at the sink, and what they are of those alone and of
those beside the living: a provider that lives makes more work than one that is left alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from tests.bench.latency import post_waiting, spread, until_handled
from tests.bench.machine import stolen
from tests.bench.servers import Running, dripline
from tests.support.sms_gateway_peer import LOGINS, PASSWORD, SmsGatewayPeer
from tests.support.smtp_peer import SmtpPeer
from tests.support.web_push_peer import WebPushPeer

ROUNDS, WARMING_SECONDS, SECONDS, CONNECTIONS, PEOPLE = 3, 10, 20, 16, 400
# Events a second: what fires a message on each channel, and what fires none. Together below what one core does, so that
# the letters wait for nothing but what is measured.
RATES = {"email": 20, "sms": 10, "push": 10, "": 60}
STATES = ("alone", "alive", "dead")
NEVER = 3600.0


@dataclass
class Providers:
    """Processes of their own; the gateway and the push service are replaced by dead ones in half of the rounds."""

    smtp: SmtpPeer
    gateway: SmsGatewayPeer
    push: WebPushPeer

    def die(self) -> None:
        self.gateway.behave(delay_seconds=NEVER)
        self.push.answer(status=500, always=True)

    @property
    def told(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Channel → its adapter and what it is told."""
        gateway = {"preset": "smsc", "server": self.gateway.url, "login": LOGINS["smsc"], "password": PASSWORD}
        keys = {"public_key": self.push.public_key, "private_key": self.push.private_key}
        return {
            "sms": ("sms-gateway", {**gateway, "sender": "Shop"}),
            "push": ("web-push", {**keys, "subject": "mailto:push@shop.example", "authority": self.push.authority}),
        }


def _event(channel: str) -> str:
    return f"Bench {channel.capitalize()}" if channel else "Product Viewed"


async def _prepare(client: httpx.AsyncClient, providers: Providers, key: str) -> None:
    """Channels, caps that stand in nobody's way, a rule for each channel, and people who can be reached on all three."""
    for channel, (adapter, told) in providers.told.items():
        (await client.put(f"/v1/channels/{channel}/adapters/{adapter}", json=told)).raise_for_status()
    policy = (await client.get("/v1/caps")).json()
    (await client.put("/v1/caps", json=policy | {"caps": []})).raise_for_status()
    for channel in filter(None, RATES):
        (await client.patch(f"/v1/channels/{channel}", json={"caps": [], "quiet": ""})).raise_for_status()
        name, text = f"bench-{channel}", "{{ event.number }}"
        parts = {"email": {"subject": text, "text": text}, "sms": {"sms": text}, "push": {"push": text}}[channel]
        template = {"name": name, "purpose": "transactional", **parts}
        (await client.post("/v1/templates", json=template)).raise_for_status()
        rule = {"name": name, "kind": "transactional", "enter": {"on": _event(channel)}, "again": "always"}
        rule["steps"] = [{"send": {"template": name, "channels": [channel]}}]
        made = await client.post("/v1/rules", json=rule)
        made.raise_for_status()
        (await client.post(f"/v1/rules/{made.json()['id']}/activate")).raise_for_status()
    people = [event for number in range(PEOPLE) for event in _person(number, providers.push.subscribe())]
    for start in range(0, len(people), 200):
        batch = {"batch": people[start : start + 200]}
        (await client.post("/v1/batch", json=batch, auth=(key, ""))).raise_for_status()


def _person(number: int, browser: str) -> list[dict[str, Any]]:
    user, email, phone = f"b-{number}", f"bench{number}@example.com", f"+7916{number:07d}"
    proof = {"topics": ["marketing"], "at": "2026-01-01T00:00:00Z", "ip": "192.0.2.1"}
    proof |= {"form": "bench", "text_version": "1", "page": "bench"}
    push = {"channel": "push", "address": browser, **proof}
    return [
        {"type": "identify", "userId": user, "traits": {"email": email, "phone": phone}},
        {"type": "track", "userId": user, "event": "Consent Granted", "properties": push},
    ]


async def _post(url: str, key: str, rates: dict[str, int], seconds: float, mark: str) -> dict[str, float]:
    """Posts at the rates over kept connections; returns when each request that fires a letter was due, by its number."""
    plan = sorted(
        (number / rate, channel, number) for channel, rate in rates.items() for number in range(int(rate * seconds))
    )
    waiting: asyncio.Queue[bytes | None] = asyncio.Queue()
    senders = [asyncio.create_task(post_waiting(url, key, waiting)) for _ in range(CONNECTIONS)]
    due: dict[str, float] = {}
    began = time.time()
    for offset, channel, number in plan:
        if (early := began + offset - time.time()) > 0:
            await asyncio.sleep(early)
        named = f"{mark}-{channel}-{number}"
        if channel == "email":
            due[named] = began + offset
        event = {"userId": f"b-{number % PEOPLE}", "event": _event(channel), "properties": {"number": named}}
        waiting.put_nowait(json.dumps(event).encode())
    for _ in senders:
        waiting.put_nowait(None)
    await asyncio.gather(*senders)
    return due


async def _round(server: Running, providers: Providers, rates: dict[str, int]) -> list[float]:
    """Seconds that each letter took. Raises if one is lost: then there is nothing to compare."""
    key, headers = server.credentials["server_write_key"], {"Authorization": f"Bearer {server.credentials['api_key']}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as client:
        await _prepare(client, providers, key)
        await until_handled(client)
    await _post(server.url, key, rates, WARMING_SECONDS, "warm")
    due = await _post(server.url, key, rates, SECONDS, "letter")
    deadline, arrived = time.time() + 60, dict[str, float]()
    while not due.keys() <= arrived.keys() and time.time() < deadline:
        await asyncio.sleep(0.5)
        arrived = {str(letter.message["Subject"]): letter.at for letter in providers.smtp.letters()}
    if missing := due.keys() - arrived.keys():
        raise RuntimeError(f"{len(missing)} of {len(due)} letters did not arrive")
    return [arrived[name] - at for name, at in due.items()]


def _one(state: str) -> dict[str, Any]:
    """A round; with what came to the other two providers, as they wrote it down themselves."""
    rates = {channel: rate for channel, rate in RATES.items() if state != "alone" or channel in ("email", "")}
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="dripline-bench-"))
        os.chmod(folder, 0o755)
        smtp, gateway, push = SmtpPeer(), SmsGatewayPeer(), WebPushPeer()
        for peer in (smtp, gateway, push):
            stack.enter_context(peer)
        providers = Providers(smtp, gateway, push)
        if state == "dead":
            providers.die()
        settings = {"SMTP_URL": smtp.url, "OUTSIDE_ALLOW": "127.0.0.0/8"}
        server = stack.enter_context(dripline(Path(folder), settings))
        others = stolen()
        seconds = asyncio.run(_round(server, providers, rates))
        calls = {"sms": len(gateway.messages()), "pushes": len(push.pushes()) + len(push.entries("turned away"))}
    return {"letters": len(seconds), **spread(seconds), "calls": calls, **others()}


def measure() -> Iterator[dict[str, Any]]:
    rounds: dict[str, list[dict[str, Any]]] = {state: [] for state in STATES}
    for number in range(ROUNDS):
        # Who goes first changes: whatever else the machine does weighs on all.
        for state in STATES if number % 2 == 0 else reversed(STATES):
            rounds[state].append(_one(state))
            yield {f"round {number + 1}, {state}": rounds[state][-1]}
    yield _compared(rounds)


def _compared(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds, and what those beside the dead are of the others."""
    of = {
        state: {name: median(one[name] for one in made) for name in ("p50_ms", "p99_ms")}
        for state, made in rounds.items()
    }
    ratios = {
        f"dead to {state}": {name: round(of["dead"][name] / of[state][name], 2) for name in of[state]}
        for state in ("alone", "alive")
    }
    return {"medians": of, "ratios": ratios}
