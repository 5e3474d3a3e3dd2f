"""The requests to /v1/sources in the documentation are ones that ingest takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from services.ingest.api import NewSource, Rotation

DOCS = Path(__file__).resolve().parents[2] / "docs"
REQUEST = re.compile(r"curl [^`]*?/v1/sources(?P<path>[^\"\s]*)\"[^`]*?-d '(?P<body>[^']*)'")
PAGES = ["OPERATIONS.md", "clients/README.md", "clients/segment-analytics-next.md"]


def requests() -> list[tuple[str, str, str]]:
    return [
        (page, found["path"], found["body"]) for page in PAGES for found in REQUEST.finditer((DOCS / page).read_text())
    ]


def test_each_page_that_needs_a_source_shows_how_to_make_one() -> None:
    assert {page for page, path, _ in requests() if not path} == set(PAGES)
    assert {json.loads(body)["kind"] for _, path, body in requests() if not path} == {"public", "signed", "secret"}


@pytest.mark.parametrize(("page", "path", "body"), requests())
def test_what_a_page_sends_is_taken(page: str, path: str, body: str) -> None:
    if path:
        assert re.fullmatch(r"/[a-z0-9-]+/(keys|signing-secret)", path)
    (Rotation if path else NewSource).model_validate_json(body)
