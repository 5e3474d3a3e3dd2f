"""`/openapi.json`: what FastAPI knows of its routes, completed by what it does not know.

That is: errors are `application/problem+json` and which of them an operation may answer with, which scope of an API key it
needs, and the paths that raw ASGI apps serve beside FastAPI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from shared.errors import PROBLEM_JSON

METHODS = ("get", "put", "post", "patch", "delete", "head")
PROBLEM = {
    "type": "object",
    "description": "RFC 9457. `errors` names the fields at fault: those of the body by JSON pointer, others by name.",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "pointer": {"type": "string"},
                    "parameter": {"type": "string"},
                    "in": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}
MEANINGS = {
    "400": "The request cannot be read, or the cursor is none",
    "401": "No valid API key",
    "403": "The key's scope is too small",
    "404": "There is no such thing",
    "409": "It is not in a state for that",
    "413": "The body is too large",
    "422": "The request is not valid: `errors` says where",
    "429": "Too much at once: try again after Retry-After",
    "503": "Not available at the moment: try again after Retry-After",
}
SECURITY_SCHEMES = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key; `dripline keys` makes one."},
    "writeKey": {"type": "http", "scheme": "basic", "description": "The write key as user name, without a password."},
    "writeKeyHeader": {"type": "apiKey", "in": "header", "name": "X-Write-Key"},
}


def problem(status: str, meaning: str | None = None) -> dict[str, Any]:
    """A response object for this status."""
    content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    answer: dict[str, Any] = {"description": meaning or MEANINGS[status], "content": content}
    if status in ("429", "503"):
        answer["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "string"}}}
    return answer


def install(app: FastAPI, routers: Iterable[APIRouter], raw_paths: Iterable[Mapping[str, Any]]) -> None:
    """Makes `app` serve the completed document. `routers`: those it includes; `raw_paths`: OpenAPI path items of raw ASGI
    apps, by path."""
    of_fastapi: Callable[[], dict[str, Any]] = app.openapi
    scopes = _scopes(route for router in routers for route in router.routes)
    paths = [dict(described) for described in raw_paths]
    made: list[dict[str, Any]] = []

    def document() -> dict[str, Any]:
        if not made:
            made.append(_completed(of_fastapi(), scopes, paths))
        return made[0]

    app.openapi = document  # type: ignore[method-assign]


def _completed(
    document: dict[str, Any], scopes: Mapping[tuple[str, str], str], raw_paths: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                _complete(path, method, item[method], scopes.get((path, method)))
    for described in raw_paths:
        document["paths"] = {**described, **document["paths"]}
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for former in ("HTTPValidationError", "ValidationError"):
        schemas.pop(former, None)
    schemas["Problem"] = PROBLEM
    components["securitySchemes"] = SECURITY_SCHEMES
    return document


def _complete(path: str, method: str, operation: dict[str, Any], scope: str | None) -> None:
    """Adds the errors that any such operation may answer with to those it declares itself."""
    responses: dict[str, Any] = operation["responses"]
    asked = bool(operation.get("parameters")) or "requestBody" in operation
    responses.pop("422", None)
    for status, may in {
        "400": asked,
        "401": scope is not None,
        "403": scope is not None,
        "404": "{" in path or (scope is not None and asked),
        "409": method != "get" and scope is not None,
        "422": asked,
        "503": scope is not None,
    }.items():
        if may:
            responses.setdefault(status, problem(status))
    if scope is not None:
        operation["security"] = [{"apiKey": []}]
        operation["x-scope"] = scope


def _scopes(routes: Iterable[Any]) -> dict[tuple[str, str], str]:
    """(path, method) → the scope that a key needs there."""
    return {
        (route.path_format, method.lower()): scope
        for route in _flat(routes)
        for scope in _scopes_of(route.dependant)
        for method in route.methods or ()
    }


def _flat(routes: Iterable[Any]) -> Iterator[APIRoute]:
    """The routes, also those of included routers."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif (inner := getattr(route, "original_router", None)) is not None:
            yield from _flat(inner.routes)


def _scopes_of(dependant: Dependant) -> Iterator[str]:
    if scope := getattr(dependant.call, "scope", None):
        yield scope
    for inner in dependant.dependencies:
        yield from _scopes_of(inner)
