"""Every service's OpenAPI against the running services: no 500, and no answer that the document does not declare.

Requests are made by schemathesis from the document, as it allows them and as it forbids them, in part about things that
are there. `DRIPLINE_OPENAPI_EXAMPLES` says how many of each kind an operation gets, `DRIPLINE_FUZZ_SEED` which: `.ci/run` takes
both from the commit, so that each tries others, and a failure says how to see it again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hypothesis.strategies as st
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.dispatch.cli import apply_templates
from services.ingest.collect import PATHS
from services.rules_files import SHIPPED
from shared.auth import SCOPES
from shared.embedded_postgres import EmbeddedPostgres
from tests.faults.deployment import ONE_PROCESS, Deployment
from tests.support import databases
from tests.support.shop import CADDYFILE, SERVICES, Person, Shop, added, front_routes, identify, product, track
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

EXAMPLES = int(os.environ.get("DRIPLINE_OPENAPI_EXAMPLES", "2"))
SEED = os.environ.get("DRIPLINE_FUZZ_SEED", "1")
AGAIN = f"The same requests again: DRIPLINE_FUZZ_SEED={SEED} DRIPLINE_OPENAPI_EXAMPLES={EXAMPLES}"
CHECKS = (
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
COLLECTING = "collect_"
CALLS = ("identify", "track", "page", "screen", "group", "alias", "batch")
# These stop or hold the whole deployment for the operations after them: they come last.
STOPPING = {("post", "/v1/switches/hold"), ("put", "/v1/switches")}
RULE = """\
name: openapi-rule
kind: marketing
enter: {on: [Product Added], idle: 1s}
steps:
  - send: {template: cart-reminder, channels: [email]}
"""


@pytest.fixture(scope="module")
async def shop(postgres_server: EmbeddedPostgres) -> AsyncIterator[Shop]:
    """A deployment of its own: what is tried here spoils it."""
    folder = Path(tempfile.mkdtemp(prefix="dripline-test-openapi-"))
    with SmtpPeer() as peer:
        async with databases.cloned(postgres_server.url, "template0") as database_url:
            made = Deployment(folder, database_url=database_url, bus_url=None, smtp_url=peer.url, layout=ONE_PROCESS)
            try:
                await made.start()
                await until((folder / "data" / "credentials.json").exists, what="the first start is over")
                urls = {service: made.of(service)[0].url for service in SERVICES}
                async with Shop(urls, made.credentials, peer) as told:
                    list(apply_templates(SHIPPED, urls["dispatch"], made.api_key))
                    yield told
                made.stop()
            finally:
                for process in made.processes:
                    if process.is_running:
                        process.kill()
                shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
async def document(shop: Shop) -> dict[str, Any]:
    answer = await shop.call("GET", "/openapi.json")
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(scope="module")
async def there(shop: Shop) -> dict[str, list[str]]:
    """Parameter of a path → ids and names of things that are there."""
    anna = Person("Anna")
    await shop.activate(RULE)
    await shop.tell(identify(anna), added(anna, product("tea")), track(anna, "Seen"))
    broken = {**track(anna, "Order Completed", order_id="o-1", total="much"), "messageId": "openapi-broken"}
    await shop.tell(broken)
    profile = (await shop.known(user_id=anna.user_id))["id"]
    [letter] = await until(lambda: shop.all("/v1/dead-letters"), 30, "profile put the broken order aside")
    [message] = await shop.settled("openapi-rule", profile)
    [run] = await shop.all("/v1/runs", rule="openapi-rule")
    source = await shop.post("/v1/sources", {"name": "openapi", "kind": "signed"})
    return {
        "source": ["openapi", source["id"]],
        "key": [source["keys"][0]["id"]],
        "letter": [letter["id"]],
        "profile": [profile],
        "rule": ["openapi-rule"],
        "run": [run["id"]],
        "message": [message["id"]],
        "template": ["cart-reminder"],
        "channel": ["email"],
        "writeKey": [shop.site_key],
    }


def operations(document: dict[str, Any], service: str, *, stopping: bool = False) -> Iterator[Any]:
    """The document's operations that this service answers, without those that stop everything, or these alone; those of all
    services go with dispatch, as the reverse proxy sends."""
    routes = front_routes(CADDYFILE.read_text())
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        assert isinstance(found, Ok), f"the document cannot be read: {found.err()}"
        operation = found.ok()
        owner = next((owner for pattern, owner in routes if pattern.match(operation.path)), "dispatch")
        if owner == service and ((operation.method, operation.path) in STOPPING) == stopping:
            yield operation


def test_every_operation_says_who_may_use_it(document: dict[str, Any]) -> None:
    """A scope of an API key, or a write key; the probes and the library's settings need none."""
    free = {"/livez", "/readyz", "/metrics", "/version", "/v1/projects/{writeKey}/settings"}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            scoped = operation.get("x-scope") in SCOPES and operation["security"] == [{"apiKey": []}]
            collects = {"writeKey": []} in operation.get("security", [])
            assert scoped or collects or path in free, f"{method.upper()} {path} says nothing of keys"


async def test_every_collecting_endpoint_is_described_and_its_example_is_taken(
    shop: Shop, document: dict[str, Any]
) -> None:
    described = {
        path for path, item in document["paths"].items() if "post" in item and path.removeprefix("/v1/") in CALLS
    }
    assert described == {f"/v1/{call}" for call in CALLS}
    for path in described:
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        answer = await shop.call(
            "POST", path, json=content["examples"]["ordinary"]["value"], auth=(shop.server_key, "")
        )
        assert (answer.status_code, answer.json()) == (200, {"success": True}), path


@pytest.mark.timeout(300)
@pytest.mark.parametrize("service", SERVICES)
def test_every_answer_is_one_that_the_document_declares(
    service: str, shop: Shop, document: dict[str, Any], there: dict[str, list[str]]
) -> None:
    found = list(operations(document, service))
    assert found, f"{service} is in the document"
    hold_to_the_document(found, shop, there)


@pytest.mark.timeout(300)
def test_short_and_foreign_paths_answer_as_the_document_says_of_the_long_ones(
    shop: Shop, document: dict[str, Any], there: dict[str, list[str]]
) -> None:
    """`/v1/t` for `/v1/track`, and Jitsu's `/api/s/track`: the document describes the long ones alone."""
    paths = {path: document["paths"][f"/v1/{call}"] for path, call in PATHS.items() if path != f"/v1/{call}"}
    assert {"/v1/b", "/api/s/track", "/api/s/s2s/identify"} < paths.keys() and len(paths) == 3 * len(CALLS)
    found = list(operations({**document, "paths": paths}, "ingest"))
    assert len(found) == len(paths)
    hold_to_the_document(found, shop, there)


def hold_to_the_document(found: list[Any], shop: Shop, there: dict[str, list[str]]) -> None:
    failures: dict[str, str] = {}
    with requests.Session() as session:
        for operation in found:
            for failure in tried(operation, shop, there, session):
                failures.setdefault(f"{operation.label}: {failure.splitlines()[0]}", failure)
    assert not failures, f"{len(failures)} kinds of answers. {AGAIN}\n\n" + "\n\n".join(failures.values())


@pytest.fixture(scope="module")
def bodies(document: dict[str, Any]) -> dict[str, Any]:
    """Operation → a body that the document allows."""
    found = [operation for service in SERVICES for operation in operations(document, service)]
    return {operation.label: ordinary(operation).body for operation in found if operation.body}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("text", ["\x00", "\ud800", "\U0001f600" * 3000], ids=["NUL", "half a character", "very long"])
def test_no_text_breaks_a_service(
    text: str, shop: Shop, document: dict[str, Any], there: dict[str, list[str]], bodies: dict[str, Any]
) -> None:
    """What PostgreSQL, UTF-8 or an index refuses is refused before, wherever it stands in a body or a query."""
    broken: list[str] = []
    sent = encodable(text)
    with requests.Session() as session:
        for operation in [operation for service in SERVICES for operation in operations(document, service)]:
            known = {name: there.get(name, ["x"])[0] for name in free_texts(operation, "path", any_text=False)}
            for path, said in {
                fill(operation.path, known): dict.fromkeys(free_texts(operation, "query"), sent),
                fill(operation.path, known | dict.fromkeys(free_texts(operation, "path"), quote(sent, safe=""))): {},
            }.items():
                body = {"json": with_text(bodies[operation.label], text)} if operation.body else {}
                url = shop.urls["ingest"] + path
                answer = session.request(operation.method, url, params=said, headers=shop.bearer, timeout=30, **body)
                if answer.status_code >= 500:
                    broken.append(f"{operation.label} ({path}): {answer.status_code} {answer.text[:200]}")
    assert not broken, "\n".join(broken)


@pytest.mark.timeout(300)
def test_what_stops_or_holds_everything_answers_as_the_document_says(
    shop: Shop, document: dict[str, Any], there: dict[str, list[str]]
) -> None:
    """The last test of this deployment, which sends nothing any more."""
    found = list(operations(document, "dispatch", stopping=True))
    assert len(found) == len(STOPPING)
    hold_to_the_document(found, shop, there)


def free_texts(operation: Any, place: str, any_text: bool = True) -> list[str]:
    """Names of the parameters there that may be any text; or of all of them."""
    found = [one for one in operation.definition.raw.get("parameters", []) if one["in"] == place]
    return [
        one["name"] for one in found if not any_text or any(map(is_free, one["schema"].get("anyOf", [one["schema"]])))
    ]


def is_free(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "string" and not schema.keys() & {"format", "enum", "pattern", "const"}


def fill(path: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    return path


def ordinary(operation: Any) -> Any:
    """One request that the document allows."""
    made: list[Any] = []

    @settings(max_examples=1, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
    def take(case: Any) -> None:
        made.append(case)

    take()
    return made[-1]


def with_text(value: Any, text: str) -> Any:
    """The JSON value with this text for every text in it."""
    if isinstance(value, dict):
        return {name: with_text(member, text) for name, member in value.items()}
    if isinstance(value, list):
        return [with_text(member, text) for member in value]
    return text if isinstance(value, str) else value


def encodable(text: str) -> str:
    """As a URL can carry it."""
    return text.encode("utf-8", "replace").decode()[:2000]


def tried(operation: Any, shop: Shop, there: dict[str, list[str]], session: requests.Session) -> list[str]:
    """What was wrong with the answers to this operation's requests."""
    failures: list[str] = []
    headers = {} if str(operation.definition.raw.get("operationId", "")).startswith(COLLECTING) else shop.bearer
    key = (shop.site_key, "")

    @seed(f"{SEED} {operation.label}")
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def ask(mode: GenerationMode, data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        for name in list(case.path_parameters or {}):
            if name in there and data.draw(st.booleans()):
                case.path_parameters[name] = data.draw(st.sampled_from(there[name]))
        said = {"auth": key} if not headers else {"headers": headers}
        response = case.call(base_url=shop.urls["ingest"], session=session, timeout=30, **said)
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as failure:
            failures.extend(f"{one.title}: {one.message}\n{failure}" for one in failure.exceptions)

    ask(GenerationMode.POSITIVE)
    try:
        ask(GenerationMode.NEGATIVE)
    except (Unsatisfiable, pytest.skip.Exception):
        pass  # nothing that this operation could be asked is forbidden: it takes neither parameters nor a body
    return failures
