"""Links in public events lead to the shop or are taken out, however they are written."""

from __future__ import annotations

import pytest

from services.ingest.public_limits import limited, link_flaw

HOSTS = frozenset({"shop.example", "::1"})


@pytest.mark.parametrize(
    "text",
    [
        "https://evil.example",
        "HTTPS://EVIL.example/x",
        " https://evil.example",
        "look: http://evil.example now",
        "https://shop.example@evil.example/",
        "https://shop.example:443@evil.example/",
        "https://shop.example.evil.example/",
        "https://evil.example\\@shop.example/",
        "https:\\\\evil.example",
        "https:evil.example",
        "https:/evil.example",
        "//evil.example/x",
        "\\\\evil.example",
        "javascript:alert(1)",
        " JavaScript : alert(1)",
        "data:text/html,x",
        "ftp://shop.example/x",
        "www.evil.example",
        "Anna, WWW.EVIL.example!",
        "https://shop.example/a and https://evil.example/b",
        "https://",
    ],
)
def test_a_foreign_link_is_seen(text: str) -> None:
    assert link_flaw(text, HOSTS) is not None


@pytest.mark.parametrize(
    "text",
    [
        "https://shop.example",
        "http://SHOP.example:8080/p?x=1#y",
        "https://shop.example./p",
        "//shop.example/p",
        "http://[::1]:8080/p",
        "/p/17?next=/x",
        "10:30 // both sides",
        "Record: the best of",
        "ratio 3:4",
        "C:\\music",
        "a//b",
        "Москва: http",
    ],
)
def test_what_leads_to_the_shop_or_nowhere_stays(text: str) -> None:
    assert link_flaw(text, HOSTS) is None


def test_unchanged_fields_are_the_same_object() -> None:
    fields = {"a": [1, {"b": "c"}, None], "d": {"e": "https://shop.example/"}}
    removed: list[str] = []
    assert limited(fields, HOSTS, "properties", removed) is fields
    assert removed == []


def test_lists_lose_only_the_foreign_element() -> None:
    removed: list[str] = []
    given = {"tags": ["a", "https://evil.example", None, ["https://evil.example", "b"]]}
    assert limited(given, HOSTS, "traits", removed) == {"tags": ["a", None, ["b"]]}
    assert given["tags"][1] == "https://evil.example"
    assert [sentence.partition(":")[0] for sentence in removed] == ["/traits/tags/1", "/traits/tags/3/0"]


def test_where_a_visitor_came_from_may_be_foreign() -> None:
    fields = {"referrer": "https://search.example/?q=vinyl"}
    assert limited(fields, HOSTS, "properties", []) is fields
