"""Every route of every service either needs a key of a declared scope, or is on the list of those that are open on purpose."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import httpx
import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Mount, Route

from services.front import Front
from services.ingest.collect import PREFIXES
from shared.auth import SCOPES
from tests.support.virtual_server import VirtualServer, virtual_server

SERVICES = ("", "/ingest", "/profile", "/triggers", "/dispatch")
# Open on purpose, and why.
PROBES = {f"{service}/{name}" for service in SERVICES for name in ("livez", "readyz", "metrics", "version", "docs")}
# The API's own description, whole and of each service.
PAGES = {"/docs/oauth2-redirect", "/redoc", *(f"{service}/openapi.json" for service in SERVICES)}
TOKENS = {"/c/{token}", "/o/{token}", "/u/{token}", "/confirm/{token}"}  # the signed token is the key
INBOX = {"/inbox", "/inbox/{message}", "/inbox/{message}/letter"}  # has a door of its own (test_dispatch_api)
PROVIDERS = "/webhooks/"  # each adapter checks its provider's signature (tests/contracts/test_channels.py)
OPEN = PROBES | PAGES | TOKENS | INBOX


@pytest.fixture(scope="module")
async def server(postgres_server: object, migrated_template: str, tmp_path_factory: pytest.TempPathFactory):
    from tests.support import databases

    async with (
        databases.cloned(postgres_server.url, migrated_template) as url,  # type: ignore[attr-defined]
        virtual_server(url, tmp_path_factory.mktemp("routes"), datetime(2026, 3, 10, 9, tzinfo=UTC)) as running,
    ):
        yield running


def scopes_of(dependant: Dependant) -> Iterator[str]:
    for inner in dependant.dependencies:
        if (scope := getattr(inner.call, "scope", None)) is not None:
            yield scope
        yield from scopes_of(inner)


def flat(routes: Iterable[BaseRoute]) -> Iterator[Route]:
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from flat(router.routes)
        else:
            assert isinstance(route, (Route, Mount)), f"{route} is of a kind that nobody looked at"
            if isinstance(route, Route):
                yield route


def routes_of(server: VirtualServer) -> list[Route]:
    front = server.server.app
    assert isinstance(front, Front)
    found = list(flat(front.api.routes))
    described = {path for path in front.api.openapi()["paths"] if not path.startswith(front.prefixes)}
    assert described <= {route.path for route in found}, "the walk passed some by"
    return found


async def test_every_route_declares_a_scope_or_is_open_on_purpose(server: VirtualServer) -> None:
    undeclared, without_purpose = [], OPEN.copy()
    for route in routes_of(server):
        without_purpose.discard(route.path)
        scopes = set(scopes_of(route.dependant)) if isinstance(route, APIRoute) else set()
        assert scopes <= set(SCOPES)
        if route.path in OPEN or route.path.startswith(PROVIDERS):
            assert not scopes, f"{route.path} is on the list of open routes and needs a key"
        elif len(scopes) != 1:
            undeclared.append(f"{sorted(route.methods or [])} {route.path}")
    assert not undeclared, "no scope is declared for these"
    assert not without_purpose, "these are on the list and do not exist"


async def test_what_changes_something_needs_more_than_reading(server: VirtualServer) -> None:
    """Whoever may only read changes nothing: what is computed for them by POST is named here."""
    only_computing = (
        "preview",
        "backtest",
        "estimate",
        "evaluate",
        "check",
        "render",
        "validate",
        "test",
        "try",
        "diff",
    )
    too_little = [
        f"{method} {route.path}"
        for route in routes_of(server)
        if isinstance(route, APIRoute) and "read" in set(scopes_of(route.dependant))
        for method in sorted(route.methods - {"GET", "HEAD"})
        if not any(word in route.path.rsplit("/", 1)[-1] for word in only_computing)
    ]
    assert not too_little


async def test_without_a_key_every_other_route_answers_401(server: VirtualServer) -> None:
    async with httpx.AsyncClient(base_url=server.server.origin) as http:
        for route in routes_of(server):
            if route.path in OPEN or route.path.startswith(PROVIDERS):
                continue
            path = route.path.format(**dict.fromkeys(route.param_convertors, str(datetime.now(UTC).year)))
            for method in sorted((route.methods or set()) - {"HEAD"}):
                answer = await http.request(method, path, headers={"Authorization": "Bearer dk_wrong"})
                assert answer.status_code == 401, f"{method} {path}: {answer.status_code}"


async def test_collecting_needs_a_write_key(server: VirtualServer) -> None:
    front = server.server.app
    assert isinstance(front, Front)
    assert set(front.prefixes) == set(PREFIXES), "whatever stands before FastAPI is looked at here"
    async with httpx.AsyncClient(base_url=server.server.origin) as http:
        event = {"type": "track", "event": "x", "userId": "u", "messageId": secrets.token_hex(4)}
        for path in ("/v1/track", "/v1/batch", "/v1/t", "/api/s/track"):
            body = {"batch": [event]} if "batch" in path else event
            assert (await http.post(path, json=body)).status_code == 401, path
        assert (await http.get("/v1/projects/c000000000000000000000000/settings")).status_code == 401


async def test_every_answer_tells_the_browser_to_load_and_guess_nothing(server: VirtualServer) -> None:
    async with httpx.AsyncClient(base_url=server.server.origin) as http:
        pages = ("/docs", "/ingest/docs")
        for path in (*pages, "/u/nonsense", "/confirm/nonsense", "/c/nonsense", "/inbox", "/v1/profiles", "/nowhere"):
            answer = await http.get(path)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy, path
            assert "frame-ancestors" in policy, path
            assert answer.headers["x-content-type-options"] == "nosniff", path
            assert answer.headers["referrer-policy"] == "no-referrer", path
            assert ("script-src" in policy) is (path in pages), path


async def test_each_service_describes_its_own_routes_and_all_of_them_together_the_whole(server: VirtualServer) -> None:
    async with httpx.AsyncClient(base_url=server.server.origin) as http:
        whole = (await http.get("/openapi.json")).json()
        parts = {service: (await http.get(f"{service}/openapi.json")).json() for service in SERVICES if service}
    a_path_of_each = {
        "/ingest": "/v1/batch",
        "/profile": "/v1/profiles",
        "/triggers": "/v1/rules",
        "/dispatch": "/v1/templates",
    }
    for service, path in a_path_of_each.items():
        assert [name for name, part in parts.items() if path in part["paths"]] == [service]
        assert parts[service]["info"]["title"] == f"Dripline {service[1:]}"
        assert parts[service]["components"]["securitySchemes"] == whole["components"]["securitySchemes"]
    together = {path: item for part in parts.values() for path, item in part["paths"].items()}
    assert sum(len(part["paths"]) for part in parts.values()) == len(together), "no route belongs to two services"
    probes = {"/livez", "/readyz", "/metrics", "/version"}
    assert together == {path: item for path, item in whole["paths"].items() if path not in probes}


async def test_each_services_page_shows_its_own_document_and_brings_what_it_needs(server: VirtualServer) -> None:
    async with httpx.AsyncClient(base_url=server.server.origin) as http:
        for service in SERVICES[1:]:
            page = (await http.get(f"{service}/docs")).text
            assert f"url: '{service}/openapi.json'" in page
            files = re.findall(r'(?:src|href)="([^"]+)"', page)
            assert len(files) == 3
            for file in files:
                # A proxy that routes by the service's name leads here as well, and nothing is loaded from elsewhere.
                assert file.startswith(f"{service}/docs/"), file
                assert (await http.get(file)).status_code == 200, file


async def test_a_key_is_used_only_so_often(server: VirtualServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared import auth
    from shared.limits import RateLimit

    monkeypatch.setattr(auth, "_CALLS", RateLimit(1, 3, lambda: 0.0))
    answers = [await server.http.get("/v1/sources", headers=server.bearer) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].headers["retry-after"] == "1"
