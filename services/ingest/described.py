"""The collecting endpoints as OpenAPI tells them: for people at /docs, and for whoever tests by the document.

They are no routes of FastAPI (see collect.py), so that what they take and answer is written down here.
"""

from __future__ import annotations

from typing import Any

from shared.openapi import problem

_TAG = ["events"]
_SECURITY: list[dict[str, list[str]]] = [{"writeKey": []}, {"writeKeyHeader": []}, {}]  # {}: it may stand in the body
_TIME = "2026-11-23T10:00:00Z"
_OBJECT: dict[str, Any] = {"type": ["object", "null"], "additionalProperties": True}
_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_COMMON: dict[str, Any] = {
    "userId": {"type": ["string", "integer", "null"], "description": "the shop's own id of the person"},
    "anonymousId": {"type": ["string", "integer", "null"], "description": "the browser's or device's id"},
    "messageId": {
        "type": ["string", "integer", "null"],
        "maxLength": 100,
        "description": "what makes a repeat a repeat; of a till: made from the receipt",
    },
    "timestamp": {
        **_TEXT,
        "examples": [_TIME],
        "description": "ISO 8601 with zone; when it occurred, else when it was received",
    },
    "sentAt": {**_TEXT, "description": "by the sender's clock; corrects the time of public sources"},
    "context": {**_OBJECT, "description": "`dripline.signature`, `dripline.history`, `device.token`, `externalIds` …"},
    "integrations": {"description": "kept as it is"},
    "writeKey": {**_TEXT, "description": "where the key is not in a header"},
}
_PROPERTIES = {"properties": _OBJECT}
_TRAITS = {"traits": _OBJECT}
_GROUP = {"groupId": {"type": ["string", "integer", "null"]}}
_PREVIOUS = {"previousId": {"type": ["string", "integer", "null"]}}
_NAMED = {"name": _TEXT, "category": _TEXT}
_EVENT: dict[str, Any] = {"event": {"type": "string", "minLength": 1, "maxLength": 200}}

_ADDED = {
    "event": "Product Added",
    "userId": "u-17",
    "messageId": "4f1c6a52",
    "properties": {"product_id": "p-1", "name": "Tea pot", "price": 1499.9, "quantity": 1},
}
_BATCH = {"batch": [{"type": "track", **_ADDED}, {"type": "identify", "userId": "u-17", "traits": {"city": "Perm"}}]}
# call → (what it says, its own members, those it needs, an example)
_CALLS: dict[str, tuple[str, dict[str, Any], list[str], dict[str, Any]]] = {
    "identify": ("Who somebody is", _TRAITS, [], {"userId": "u-17", "traits": {"email": "anna@example.com"}}),
    "track": ("What somebody did", _EVENT | _PROPERTIES, ["event"], _ADDED),
    "page": ("Which page was seen", _NAMED | _PROPERTIES, [], {"anonymousId": "a-9", "name": "Catalogue"}),
    "screen": ("Which screen of an app was seen", _NAMED | _PROPERTIES, [], {"userId": "u-17", "name": "Basket"}),
    "group": ("Which group somebody belongs to", _GROUP | _TRAITS, [], {"userId": "u-17", "groupId": "g-3"}),
    "alias": ("That two ids are one person", _PREVIOUS, [], {"userId": "u-17", "previousId": "a-9"}),
}
_OPT_OUTS = (
    "*Unsubscribed* takes consent back asynchronously: it holds once profile has applied it, not when it is answered. The "
    "unsubscribe page, one-click and `POST /v1/suppressions` hold as soon as they are answered."
)
_TAKEN = {
    "type": "object",
    "required": ["success"],
    "properties": {
        "success": {"const": True},
        "refused": {"type": "integer", "description": "events of the batch that were not taken, and are kept"},
        "errors": {"type": "array", "items": {"type": "object", "required": ["pointer", "detail"]}},
    },
}


def paths() -> dict[str, Any]:
    """Path items by path. The other spellings (`/v1/t`, `/api/s/track` …) are named, not repeated."""
    calls = {f"/v1/{call}": {"post": _call(call)} for call in _CALLS}
    return {"/v1/batch": {"post": _batch()}, **calls, "/v1/projects/{writeKey}/settings": {"get": _settings()}}


def _call(call: str) -> dict[str, Any]:
    summary, own, needed, example = _CALLS[call]
    schema = {"type": "object", "required": needed, "properties": {**own, **_COMMON}, "additionalProperties": True}
    about = f"One event of the Segment tracking API. Also at `/v1/{call[0]}` and `/api/s/{call}`."
    return _operation(call, summary, f"{about} {_OPT_OUTS}" if call == "track" else about, schema, example)


def _batch() -> dict[str, Any]:
    item = {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"enum": list(_CALLS)}, **_COMMON},
        "additionalProperties": True,
    }
    schema = {
        "type": "object",
        "required": ["batch"],
        "properties": {
            "batch": {"type": "array", "minItems": 1, "maxItems": 2500, "items": item},
            **{name: _COMMON[name] for name in ("context", "integrations", "sentAt", "writeKey")},
        },
        "additionalProperties": True,
    }
    about = (
        "Up to 2 500 events and 500 KiB, after inflating. One bad event does not harm its neighbours: the good ones are "
        "applied, the bad ones kept at `/v1/dead-letters` with their reason. Also at `/v1/b`."
    )
    return _operation("batch", "Several events", about, schema, _BATCH)


def _operation(call: str, summary: str, about: str, schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    return {
        "tags": _TAG,
        "operationId": f"collect_{call}",
        "summary": summary,
        "description": f"{about} Answered with 200 after the durable write. JSON whatever the content type says; gzip by "
        "`Content-Encoding`.",
        "security": _SECURITY,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "examples": {"ordinary": {"value": example}}}},
        },
        "responses": {
            "200": {
                "description": "All is durable, but for what `errors` lists",
                "content": {"application/json": {"schema": _TAKEN, "example": {"success": True}}},
            },
            "400": problem("400", "No event could be taken; what was refused is kept with its reason"),
            "401": problem("401", "No valid write key"),
            "413": problem("413"),
            "429": problem("429"),
            "503": problem("503"),
        },
    }


def _settings() -> dict[str, Any]:
    return {
        "tags": _TAG,
        "operationId": "collect_settings",
        "summary": "What Segment's library for browsers asks for first",
        "parameters": [
            {
                "name": "writeKey",
                "in": "path",
                "required": True,
                "description": "of a public source",
                "schema": {"type": "string", "pattern": "^c[a-z0-9]{24}$"},
            }
        ],
        "responses": {
            "200": {
                "description": "Where the library sends events",
                "content": {"application/json": {"schema": {"type": "object", "required": ["integrations"]}}},
            },
            "401": problem("401", "No write key of a public source"),
            "404": problem("404"),
            "503": problem("503"),
        },
    }
