"""Secrets and personal data never reach the log: every endpoint of a real process is driven with canaries, well-formed and not,
and with what ends among the dead letters, and so is a provider of every channel; then the log is searched for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.canary_providers import drive, providers
from tests.faults.deployment import ONE_PROCESS, Deployment
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

pytestmark = pytest.mark.timeout(180)
WORD = "Zkanarejka"
EMAIL, PHONE, ADDRESS = "zkanarejka@canary.example", "+79991234567", "203.0.113.77"
FORGED = "zkanarejka-forged-token-0123456789abcdef"
PERSONAL = (WORD, EMAIL, PHONE, "9991234567", ADDRESS, FORGED)
PERSON = {
    "email": EMAIL,
    "phone": PHONE,
    "first_name": WORD,
    "address": EMAIL,
    "name": WORD,
    "value": EMAIL,
    "text": WORD,
    "token": FORGED,
}


@pytest.mark.parametrize("kind", ["postgres"])
async def test_canaries_are_not_in_the_log(
    deploy: Callable[..., Deployment], bus_url: str | None, smtp_peer: SmtpPeer, folder: Path
) -> None:
    deployment = deploy(ONE_PROCESS, bus_url)
    deployment.environment |= {"LOG_LEVEL": "debug", "OUTSIDE_ALLOW": "127.0.0.0/8"}
    await deployment.set_up()
    [process] = deployment.processes
    secrets = [deployment.api_key, deployment.write_key, deployment.credentials["site_write_key"]]
    async with httpx.AsyncClient(base_url=process.url, timeout=30, headers={"X-Forwarded-For": ADDRESS}) as http:
        asked = await ask_everything(http, deployment)
        assert asked > 100
        await tell_everything(http, deployment, smtp_peer)
        await forbidden(http)
        with providers() as told:
            await drive(http, {"Authorization": f"Bearer {deployment.api_key}"}, told, WORD)
            secrets += {canary for provider in told for canary in provider.canaries}
            deployment.stop()
    said = process.log.read_text(errors="replace")
    # the first start shows the keys to the person at the terminal, once, and says so; nothing else may
    said = "\n".join(line for line in said.splitlines() if line.startswith("{"))
    assert len(said.splitlines()) > 5, "the process wrote a log"
    leaks = [line[:300] for line in said.splitlines() if any(c.lower() in line.lower() for c in (*PERSONAL, *secrets))]
    assert leaks == []


def requests_of(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Method, path and query of every operation; canaries for the parameters."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method not in ("get", "post", "put", "patch", "delete") or path == "/v1/switches/hold":
                continue
            names = {p["name"]: p["in"] for p in operation.get("parameters", [])}
            filled = path
            for name in (name for name, place in names.items() if place == "path"):
                filled = filled.replace("{" + name + "}", EMAIL)
            yield method.upper(), filled, {name: EMAIL for name, place in names.items() if place == "query"}


async def ask_everything(http: httpx.AsyncClient, deployment: Deployment) -> int:
    """Every operation with its parameters, with a body of canaries, and with a body that is no JSON."""
    bearer = {"Authorization": f"Bearer {deployment.api_key}"}
    document = (await http.get("/openapi.json")).json()
    count = 0
    for method, path, query in requests_of(document):
        bodies: list[dict[str, Any]] = [{}]
        if method not in ("GET", "DELETE"):
            bodies = [{"json": PERSON}, {"content": f"{{{EMAIL}"}, {"json": [PERSON]}]
        for body in bodies:
            answer = await http.request(method, path, params=query, headers=bearer, **body)
            assert answer.status_code != 500, f"{method} {path}: {answer.text}"
            count += 1
    return count


async def tell_everything(http: httpx.AsyncClient, deployment: Deployment, smtp_peer: SmtpPeer) -> None:
    """A person who is written to, one whose mail is refused, and events that nobody can read."""
    smtp_peer.reply(EMAIL, f"550 5.1.1 {EMAIL} {WORD} is unknown here")
    consent = {"channel": "email", "address": EMAIL, "topics": ["marketing"], "form": WORD, "text_version": "1"}
    consent |= {"page": f"http://shop.example/{WORD}", "at": "2026-01-01T10:00:00Z", "ip": ADDRESS}
    product = {"product_id": "p-1", "name": WORD, "price": 1500, "quantity": 1}
    events: list[dict[str, Any]] = [
        {"type": "identify", "traits": PERSON},
        {"type": "track", "event": "Consent Granted", "properties": consent},
        {"type": "track", "event": "Product Added", "properties": product},
        {"type": "track", "event": "Order Completed", "properties": {"order_id": WORD, "total": 1, "currency": "USD"}},
        {"type": "track", "event": WORD, "timestamp": EMAIL},
        {"type": WORD},
    ]
    body = {"batch": [{"userId": WORD, "messageId": f"{WORD}-{n}", **one} for n, one in enumerate(events)]}
    answer = await http.post("/v1/batch", json=body, auth=(deployment.write_key, ""))
    assert answer.status_code == 200, answer.text
    for content in (json.dumps(body)[:-5], f"\x1f\x8b{WORD}", "[" * 5000 + WORD):
        refused = await http.post("/v1/batch", content=content, auth=(deployment.write_key, ""))
        assert refused.status_code in (400, 413), refused.status_code
    await until(lambda: [e for e in smtp_peer.entries() if e["kind"] == "rcpt"], limit=40, what="the letter is refused")
    bearer = {"Authorization": f"Bearer {deployment.api_key}"}
    person = (await http.get("/v1/profiles", params={"email": EMAIL}, headers=bearer)).json()["items"][0]
    for path in ("", "/events", "/consents", "/export"):
        assert (await http.get(f"/v1/profiles/{person['id']}{path}", headers=bearer)).status_code == 200
    erased = await http.post(f"/v1/profiles/{person['id']}/erase", headers=bearer)
    assert erased.status_code == 200, erased.text


async def forbidden(http: httpx.AsyncClient) -> None:
    """Keys and tokens that are wrong, in every place where one may stand."""
    for path in ("/c/", "/o/", "/u/", "/confirm/"):
        await http.get(path + FORGED)
        await http.post(path + FORGED, content=f"action={WORD}&keep={EMAIL}")
    for headers in (
        {"Authorization": f"Bearer {FORGED}"},
        {"X-Write-Key": FORGED},
        {"Cookie": FORGED, "User-Agent": WORD},
    ):
        await http.get("/v1/profiles", params={"email": EMAIL}, headers=headers)
        await http.post("/v1/track", json={"writeKey": FORGED, "userId": EMAIL}, headers=headers)
