"""The two readings of conditions agree: SQL over the base finds whom Python finds, whatever people did."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.conditions.registry import kinds
from shared.db import connect
from shared.events import Event
from tests.support import databases
from tests.support.condition_documents import CONDITIONS, LEAVES, leaf
from tests.support.condition_people import EVERYTHING, HAPPENS, base_of, check, events


@pytest.fixture(scope="module")
async def connection(postgres_server: Any, migrated_template: str) -> Any:
    async with databases.cloned(postgres_server.url, migrated_template) as url:
        tx = await connect(url, "test")
        yield tx
        await tx.close()


QUIETLY = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.parametrize("kind", sorted(LEAVES))
@QUIETLY
@given(data=st.data())
async def test_sql_finds_whom_python_finds(kind: str, connection: Any, data: st.DataObject) -> None:
    heard = data.draw(events(HAPPENS[kind]))
    documents = data.draw(st.lists(leaf([kind]), min_size=8, max_size=14))
    async with base_of(connection, heard):
        for document in documents:
            await check(connection, document)
            await check(connection, {"not": document})


@settings(QUIETLY, max_examples=80)
@given(heard=events(EVERYTHING), documents=st.lists(CONDITIONS, min_size=3, max_size=6))
async def test_joined_conditions_find_whom_python_finds(
    connection: Any, heard: list[Event], documents: list[Any]
) -> None:
    async with base_of(connection, heard):
        for document in documents:
            await check(connection, document)


def test_every_kind_is_among_those_compared() -> None:
    assert sorted(LEAVES) == sorted(kinds())
