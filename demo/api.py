"""The shop's side of the HTTP API: posts events, reads messages, follows links. httpx lives in this module only."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from demo.catalogue import coupon_in
from demo.shop import Message, Post, Touch
from demo.tracking import Source

_KINDS = {"/c/": "click", "/o/": "open", "/u/": "unsubscribe", "/confirm/": "confirm"}
_LINK = re.compile(r"https?://[^\s\"'<>)\]]+")
_MOST_TRIES, _LONGEST_WAIT = 8, 5.0
# What the customers read with. A program that says it is one is taken for a scanner, whose hits count as nobody's.
_BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


class ApiProblem(Exception):
    """The server did not do what its contract says; the text is what a person reads."""


@dataclass(frozen=True)
class Access:
    """Where the server is and what opens it."""

    url: str
    site_key: str
    server_key: str
    api_key: str


class Api:
    """A connection to the server. Waits and tries again where the server asks for it; what else goes wrong raises."""

    def __init__(self, access: Access) -> None:
        self._http = httpx.Client(base_url=access.url, timeout=30.0)
        self._keys: dict[Source, str] = {"site": access.site_key, "server": access.server_key}
        self._bearer = {"Authorization": f"Bearer {access.api_key}"}
        self._latest: str | None = None
        self._seen: set[str] = set()

    def close(self) -> None:
        self._http.close()

    def post(self, post: Post) -> None:
        """Returns once the server has answered 200 and taken every event: they are durable."""
        body: dict[str, Any] = {"batch": post.events, "sentAt": post.at.isoformat()}
        answer = self._call("POST", "/v1/batch", json=body, auth=(self._keys[post.source], ""))
        if answer.status_code != 200:
            raise ApiProblem(f"POST /v1/batch with {len(post.events)} events: {answer.status_code} {answer.text[:300]}")
        said = answer.json()
        if said.get("refused"):
            first = said["errors"][0]
            raise ApiProblem(
                f"POST /v1/batch: {said['refused']} of {len(post.events)} events were refused, the first at {first['pointer']}: "
                f"{first['detail']}"
            )

    def touch(self, touch: Touch) -> int:
        """Does with a link what a person (or their mail program) does; the status of the answer.

        Only the path of the link is used, so that nothing is ever asked of another host.
        """
        parts = urlsplit(touch.url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        if touch.what == "unsubscribe":
            # One click in the mail program (RFC 8058).
            return self._call("POST", path, data={"List-Unsubscribe": "One-Click"}).status_code
        browser = {"User-Agent": _BROWSER}
        status = self._call("GET", path, headers=browser).status_code
        if touch.what == "confirm" and status == 200:
            return self._call("POST", path, headers=browser).status_code
        return status

    def new_messages(self, since: datetime) -> Iterator[Message]:
        """Messages sent since the last call (since `since`, at the first), each once.

        The server lists by the last change and says that what changed at the latest moment may come again.
        """
        cursor = None
        latest = self._latest or since.isoformat()
        while True:
            params = {"since": self._latest or since.isoformat(), "state": "sent", "limit": "200"}
            if cursor is not None:
                params["cursor"] = cursor
            answer = self._call("GET", "/v1/messages", params=params, headers=self._bearer)
            if answer.status_code != 200:
                raise ApiProblem(f"GET /v1/messages: {answer.status_code} {answer.text[:300]}")
            page = answer.json()
            for item in page["items"]:
                latest = max(latest, item.get("updated_at") or latest, key=datetime.fromisoformat)
                if item["id"] not in self._seen:
                    self._seen.add(item["id"])
                    yield message_of(item)
            cursor = page.get("next")
            if cursor is None:
                self._latest = latest
                return

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(1, _MOST_TRIES + 1):
            try:
                answer = self._http.request(method, path, **options)
            except httpx.TransportError as problem:
                if attempt == _MOST_TRIES:
                    raise ApiProblem(f"{self._http.base_url} cannot be reached: {problem}") from problem
                time.sleep(min(_LONGEST_WAIT, 0.1 * 2**attempt))
                continue
            if answer.status_code not in (429, 503) or attempt == _MOST_TRIES:
                return answer
            time.sleep(min(_LONGEST_WAIT, _seconds(answer.headers.get("Retry-After"), 0.1 * 2**attempt)))
        raise AssertionError("the last attempt returns or raises")


def _seconds(header: str | None, otherwise: float) -> float:
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        return otherwise


def message_of(item: dict[str, Any]) -> Message:
    """A message as the API tells of it."""
    listed = item.get("links") or []
    urls = [
        link if isinstance(link, str) else str(link["url"])
        for link in (listed.values() if isinstance(listed, dict) else listed)
    ]
    urls += _LINK.findall(item.get("text") or "")
    links: dict[str, list[str]] = {}
    for url in dict.fromkeys(urls):
        path = urlsplit(url).path
        for prefix, kind in _KINDS.items():
            if path.startswith(prefix):
                links.setdefault(kind, []).append(url)
    return Message(
        id=item["id"],
        rule=item["rule"],
        channel=item["channel"],
        address=item["address"],
        sent_at=datetime.fromisoformat(item["sent_at"]),
        links=links,
        coupon=coupon_in(item.get("text") or ""),
    )
