"""Templates and offers as files, sent to a server through its public API: the part of `dripline rules apply` that is
dispatch's."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.dispatch.documents import OfferDocument, TemplateDocument, read_offers, read_templates
from shared.errors import ConfigurationError

_SECONDS = 30


def apply_templates(directory: Path, url: str, key: str) -> Iterator[str]:
    """Sends `directory/templates` and `directory/offers.yml`; a line for each, as soon as it is done. Repeating it changes
    nothing.

    :raises ConfigurationError: a file is wrong, or the server refuses or cannot be reached
    """
    server = _Server(url.rstrip("/"), key)
    # Everything is read before anything is sent: half of it would be worse than none.
    templates = list(read_templates(directory / "templates"))
    offers = read_offers(directory / "offers.yml") if (directory / "offers.yml").exists() else []
    for template in templates:
        yield f"template {template.name}: {_put_template(server, template)}"
    for offer in offers:
        yield f"offer {offer.name}: {_put_offer(server, offer)}"


def _put_template(server: _Server, template: TemplateDocument) -> str:
    status, before = server.call("GET", f"/v1/templates/{template.name}", accept=(200, 404))
    if status == 404:
        server.call("POST", "/v1/templates", template.model_dump())
        return "new"
    _, after = server.call("PUT", f"/v1/templates/{template.name}", template.model_dump())
    return "unchanged" if after["version"] == before["version"] else f"version {after['version']}"


def _put_offer(server: _Server, offer: OfferDocument) -> str:
    status, before = server.call("GET", f"/v1/offers/{offer.name}", accept=(200, 404))
    _, after = server.call("POST", "/v1/offers", offer.model_dump())
    if status == 404:
        return "new"
    return "unchanged" if after["version"] == before["version"] else f"version {after['version']}"


class _Server:
    def __init__(self, url: str, key: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"{url} is no address of a server: it must begin with http:// or https://.")
        self._url, self._key = url, key

    def call(self, method: str, path: str, body: Any = None, accept: tuple[int, ...] = (200, 201)) -> tuple[int, Any]:
        """Status and JSON; raises ConfigurationError with what the server said against it."""
        request = urllib.request.Request(  # noqa: S310 - http or https, see __init__
            f"{self._url}{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as problem:
            if problem.code in accept:
                return problem.code, None
            raise ConfigurationError(f"{method} {path}: {_said(problem)}") from problem
        except (urllib.error.URLError, OSError) as problem:
            raise ConfigurationError(f"{self._url} cannot be reached: {problem}") from problem


def _said(problem: urllib.error.HTTPError) -> str:
    try:
        document = json.load(problem)
    except ValueError:
        return f"{problem.code} {problem.reason}"
    details = [f"{error.get('pointer', '')} {error.get('detail', '')}" for error in document.get("errors", [])]
    return "; ".join([f"{problem.code} {document.get('title', '')}", document.get("detail") or "", *details]).replace(
        "; ;", ";"
    )
