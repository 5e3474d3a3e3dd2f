"""What a shop, its customers and its marketers do with a running Dripline: over HTTP and with letters, nothing else.

In production one origin stands before the services; here the client chooses the process by that origin's own rules,
which are read from deploy/Caddyfile.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from tests.support.smtp_peer import Letter, SmtpPeer
from tests.support.wait import until

CADDYFILE = Path(__file__).resolve().parents[2] / "deploy" / "Caddyfile"
SERVICES = ("ingest", "profile", "triggers", "dispatch")
PATIENCE = 30.0  # seconds; a machine that does ten other things is slow, not wrong
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
TOPICS = ["marketing"]


@dataclass(frozen=True)
class Person:
    """Somebody in a story. Each story has people of its own."""

    name: str

    @property
    def user_id(self) -> str:
        return f"u-{self.name.lower()}"

    @property
    def email(self) -> str:
        return f"{self.name.lower()}@example.com"


class Shop:
    """One deployment as it is seen from outside. `urls`: service → where it answers."""

    def __init__(self, urls: Mapping[str, str], credentials: Mapping[str, str], smtp: SmtpPeer | None) -> None:
        """:param smtp: where its letters arrive; None if they go to another mail server"""
        self.urls, self._smtp = dict(urls), smtp
        self._keys = dict(credentials)
        self._routes = front_routes(CADDYFILE.read_text())
        self._http = httpx.AsyncClient(timeout=30)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    @property
    def smtp(self) -> SmtpPeer:
        assert self._smtp is not None, "the letters of this shop go to another mail server"
        return self._smtp

    # ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def tell(self, *events: dict[str, Any], key: str | None = None) -> None:
        """Posts events by the secret source; with `key` by another. Answered with 200: they are durable."""
        answer = await self.post_batch(events, key)
        assert answer.status_code == 200, answer.text

    async def tell_from_site(self, *events: dict[str, Any]) -> None:
        """Posts events by the public source, as the browser does."""
        await self.tell(*events, key=self.site_key)

    @property
    def site_key(self) -> str:
        """Write key of the public source."""
        return self._keys["site_write_key"]

    @property
    def server_key(self) -> str:
        """Write key of the secret source."""
        return self._keys["server_write_key"]

    async def post_batch(self, events: Sequence[dict[str, Any]], key: str | None = None) -> httpx.Response:
        chosen = key or self.server_key
        return await self.call("POST", "/v1/batch", json={"batch": list(events)}, auth=(chosen, ""))

    # ── management ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def get(self, path: str, **parameters: Any) -> Any:
        """The JSON of a management route."""
        return await self._manage("GET", path, params=parameters)

    async def post(self, path: str, body: Any = None, **parameters: Any) -> Any:
        """`body`: JSON, or the text of a YAML document."""
        said = {"content": body} if isinstance(body, str) else {"json": body}
        kind = {"content-type": "application/yaml"} if isinstance(body, str) else {}
        return await self._manage("POST", path, params=parameters, headers=kind, **said)

    async def put(self, path: str, body: Any) -> Any:
        return await self._manage("PUT", path, json=body)

    async def patch(self, path: str, body: Any) -> Any:
        return await self._manage("PATCH", path, json=body)

    async def all(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        """All pages of a list."""
        items: list[dict[str, Any]] = []
        page: dict[str, Any] = {"next": None}
        while True:
            cursor = {"cursor": page["next"]} if page["next"] else {}
            page = await self.get(path, limit=200, **parameters, **cursor)
            items += page["items"]
            if page["next"] is None:
                return items

    async def activate(self, *rules: str) -> None:
        """Makes rules of these YAML texts and activates them; answers when they count."""
        await self.post("/v1/rules/apply", "\n---\n".join(rules), activate=True)

    @property
    def bearer(self) -> dict[str, str]:
        """The header of the admin key."""
        return {"Authorization": f"Bearer {self._keys['api_key']}"}

    async def _manage(self, method: str, path: str, *, headers: Mapping[str, str] = {}, **said: Any) -> Any:
        answer = await self.call(method, path, headers={**self.bearer, **headers}, **said)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    # ── what came of it ───────────────────────────────────────────────────────────────────────────────────────────────
    async def person(self, **identifier: str) -> dict[str, Any] | None:
        """The profile with this identifier (`email=…`, `user_id=…`), or None."""
        found = (await self.get("/v1/profiles", **identifier))["items"]
        return found[0] if found else None

    async def known(self, **identifier: str) -> dict[str, Any]:
        """Waits until somebody is known by this identifier."""
        found = await until(lambda: self.person(**identifier), PATIENCE, f"{identifier} is known")
        assert found is not None
        return found

    async def timeline(self, profile: str) -> list[dict[str, Any]]:
        """The events of a person, newest first."""
        return await self.all(f"/v1/profiles/{profile}/events")

    async def timeline_names(self, profile: str) -> set[str]:
        return {event["name"] for event in await self.timeline(profile)}

    async def heard(self, profile: str, name: str, times: int = 1) -> list[dict[str, Any]]:
        """Waits until the person's timeline has this event so often."""

        async def there() -> list[dict[str, Any]]:
            events = [event for event in await self.timeline(profile) if event["name"] == name]
            return events if len(events) >= times else []

        return await until(there, PATIENCE, f"{name} stands {times} times on the timeline", every=0.1)

    async def messages(self, rule: str, profile: str, **wanted: Any) -> list[dict[str, Any]]:
        return await self.all("/v1/messages", rule=rule, profile=profile, **wanted)

    async def settled(self, rule: str, profile: str, count: int = 1) -> list[dict[str, Any]]:
        """Waits until the rule has so many messages for the person that are through; in the order they were made."""

        async def there() -> list[dict[str, Any]]:
            found = [
                m for m in await self.messages(rule, profile) if m["state"] not in ("queued", "claimed", "calling")
            ]
            return sorted(found, key=lambda message: message["created_at"]) if len(found) >= count else []

        return await until(there, PATIENCE, f"{rule} has {count} settled messages", every=0.1)

    async def letters(self, person: Person, count: int = 1) -> list[Letter]:
        """Waits until the SMTP server has taken so many letters to the person."""
        return await until(
            lambda: found if len(found := self.smtp.letters(person.email)) >= count else [],
            PATIENCE,
            f"{person.email} has {count} letters",
            every=0.05,
        )

    # ── links ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def follow(self, url: str, method: str = "GET", **said: Any) -> httpx.Response:
        """What a browser does with a link of a letter; a redirection is shown and not followed."""
        parts = urlsplit(url)
        said.setdefault("headers", {"User-Agent": BROWSER})
        return await self.call(method, parts.path + (f"?{parts.query}" if parts.query else ""), **said)

    async def call(self, method: str, path: str, **said: Any) -> httpx.Response:
        return await self._http.request(method, f"{self.urls[self._service(path)]}{path}", **said)

    def _service(self, path: str) -> str:
        return next((service for pattern, service in self._routes if pattern.match(path)), "dispatch")


def front_routes(caddyfile: str) -> list[tuple[re.Pattern[str], str]]:
    """Path → service, as the reverse proxy in front of the four processes routes; what fits none goes to dispatch."""
    matchers = re.findall(r"(?m)^\s*@(\w+) path_regexp (\S+)$", caddyfile)
    found = [(name, pattern) for name, pattern in matchers if name in SERVICES]  # others keep out, or go elsewhere
    assert {name for name, _ in found} == set(SERVICES) - {"dispatch"}
    return [(re.compile(pattern), name) for name, pattern in found]


# ── what is told ──────────────────────────────────────────────────────────────────────────────────────────────────────
def identify(person: Person, **traits: Any) -> dict[str, Any]:
    """The first of the README's three posts."""
    return {"type": "identify", "userId": person.user_id, "traits": {"email": person.email, **traits}}


def consent_granted(person: Person, channel: str = "email", address: str | None = None) -> dict[str, Any]:
    """The second: what the shop's server holds as proof. `address`: by default the e-mail address."""
    proof = {"form": "checkout", "text_version": "2026-01", "page": "https://shop.example/checkout", "ip": "192.0.2.7"}
    properties = {"channel": channel, "address": address or person.email, "topics": TOPICS, "at": _now(), **proof}
    return track(person, "Consent Granted", **properties)


def added(person: Person, product: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """The third: a product in the cart."""
    return track(person, "Product Added", **product, **fields)


def ordered(person: Person, order_id: str, product: Mapping[str, Any]) -> dict[str, Any]:
    return track(person, "Order Completed", order_id=order_id, total=product["price"], products=[dict(product)])


def track(person: Person, event: str, **properties: Any) -> dict[str, Any]:
    return {"type": "track", "event": event, "userId": person.user_id, "properties": properties}


def product(category: str, price: float = 1500, **fields: Any) -> dict[str, Any]:
    """Something to put into a cart, at a price at which a letter is worth it."""
    what = {
        "product_id": f"p-{category}",
        "name": f"Fine {category}",
        "category": category,
        "price": price,
        "quantity": 1,
    }
    return {**what, "url": f"http://shop.example/{category}", **fields}


def _now() -> str:
    return datetime.now(UTC).isoformat()


# ── letters ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def text_of(letter: Letter) -> str:
    part = letter.message.get_body(("plain",))
    assert part is not None
    return str(part.get_content())


def page_of(letter: Letter) -> str:
    part = letter.message.get_body(("html",))
    assert part is not None
    return str(part.get_content())


def links(text: str, kind: str) -> list[str]:
    """The links of a kind (c, o, u, confirm) in a text or page, each once."""
    return list(dict.fromkeys(re.findall(rf"https?://[^\s\"'<>]+/{kind}/[^\s\"'<>]+", text)))


async def at_once(*calls: Any) -> list[Any]:
    """All in parallel."""
    return list(await asyncio.gather(*calls))
