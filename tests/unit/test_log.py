"""Logs are readable by people and machines, and hold no personal data."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import structlog

from shared import log

PEOPLE = [
    "jane.doe+shop@mail.example.com",
    "JANE@EXAMPLE.COM",
    "ольга@почта.рф",
    "jane%40example.com",
    "+79161234567",
    "+7 (916) 123-45-67",
    "8 916 123-45-67",
    "89161234567",
    "%2B79161234567",
    "+44 20 7946 0958",
    "(916) 123-45-67",
]
HARMLESS = [
    "7d3c1a52-0f7e-4a38-9b1f-1f0a5c7e8d21",
    "2026-11-23T02:52:00.123456+03:00",
    "1763866320123",
    "position 123456789012 of 8 partitions",
    "postgresql 18.6.3",
    "127.0.0.1:8080",
    "9.1 MB in 0.25 s",
]


@pytest.fixture
def lines() -> Iterator[Any]:
    """Configures JSON logs; calling it gives the lines so far."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    log.configure("json", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("text", PEOPLE)
def test_what_looks_like_a_person_is_masked_wherever_it_stands(text: str, lines: Any) -> None:
    log.get_logger("shared.test").info(
        f"wrote to {text} just now", note=f"({text})", deep={"list": [text, {"x": text}]}
    )
    assert text not in json.dumps(lines(), ensure_ascii=False)
    assert lines()[0]["event"] == f"wrote to {log.MASK} just now"


@pytest.mark.parametrize("text", HARMLESS)
def test_ids_times_and_numbers_stay_readable(text: str) -> None:
    assert log.masked(text) == text


def test_values_under_personal_keys_are_masked_whatever_they_are(lines: Any) -> None:
    log.get_logger("shared.test").info("refused", email="not an address", traits={"age": 33}, batch=[{"Phone": 1}])
    [line] = lines()
    assert (line["email"], line["traits"], line["batch"]) == (log.MASK, log.MASK, [{"Phone": log.MASK}])


def test_an_exceptions_text_is_masked_too(lines: Any) -> None:
    try:
        raise ValueError("Key (address)=(jane@example.com) already exists")
    except ValueError:
        log.get_logger("shared.test").exception("batch failed", partition=3)
    [line] = lines()
    assert "ValueError" in line["exception"]
    assert "jane" not in json.dumps(line)
    assert (line["partition"], line["level"]) == (3, "error")


def test_an_access_line_has_neither_the_query_nor_the_callers_address(lines: Any) -> None:
    logging.getLogger("uvicorn.access").info(
        '%s - "%s %s HTTP/%s" %d', "203.0.113.9:5555", "GET", "/v1/profiles?last_name=Doe", "1.1", 200
    )
    [line] = lines()
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/profiles", 200)
    assert "203.0.113.9" not in json.dumps(line)
    assert "Doe" not in json.dumps(line)


def test_passwords_in_addresses_and_signed_links_are_masked() -> None:
    assert log.masked("postgresql://u:p@db/x") == f"postgresql://{log.MASK}@db/x"
    assert log.masked("https://s.example/u/eyJh.bGci-9") == f"https://s.example/u/{log.MASK}"


def test_bytes_are_told_by_their_length_and_other_things_by_their_text() -> None:
    assert log.masked(b"\x00secret") == "[7 bytes]"
    assert log.masked(UUID(int=1)) == "00000000-0000-0000-0000-000000000001"


def test_in_a_terminal_a_line_is_a_line(lines: Any) -> None:
    stream = io.StringIO()
    log.configure("console", stream=stream)
    log.get_logger("shared.test").info("partition taken", partition=3)
    assert "partition taken" in stream.getvalue()
    assert "partition=3" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_only_the_wanted_levels_are_written(lines: Any) -> None:
    log.get_logger("shared.test").debug("chatter")
    logging.getLogger("aiokafka").info("chatter")
    logging.getLogger("aiokafka").warning("broker gone")
    assert [line["event"] for line in lines()] == ["broker gone"]
