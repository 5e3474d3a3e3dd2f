"""The files of migrations: their numbers are their versions, and those that are SQL are read statement by statement."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from services.migrate import HISTORIES
from shared.migrations import History, revisions
from shared.migrations.sql import statements


def test_a_semicolon_ends_a_statement() -> None:
    assert statements("CREATE TABLE a (b int);\nCREATE TABLE c (d int);\n") == [
        "CREATE TABLE a (b int)",
        "CREATE TABLE c (d int)",
    ]


def test_the_last_statement_needs_no_semicolon() -> None:
    assert statements("SELECT 1; SELECT 2") == ["SELECT 1", "SELECT 2"]


def test_a_semicolon_in_quotes_ends_nothing() -> None:
    comment = "COMMENT ON TABLE a IS 'the shop''s; 100 % of it: all'"
    assert statements(f'{comment}; SELECT ";" FROM a') == [comment, 'SELECT ";" FROM a']


def test_the_body_of_a_function_is_one_piece() -> None:
    plain = "CREATE FUNCTION a() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM 1; -- it's\nEND; $$"
    tagged = "CREATE FUNCTION b() RETURNS text LANGUAGE sql AS $it$ SELECT '$$;' $it$"
    assert statements(f"{plain};\n{tagged};") == [plain, tagged]


def test_a_parameter_is_no_quote() -> None:
    assert statements("PREPARE a AS SELECT $1, $2; SELECT 1") == ["PREPARE a AS SELECT $1, $2", "SELECT 1"]


def test_comments_before_a_statement_are_left_out_and_those_in_it_stay() -> None:
    text = "-- it's the first; version\n/* of; all */ SELECT 1 -- one; only\n + 1;\n-- the end;\n"
    assert statements(text) == ["SELECT 1 -- one; only\n + 1"]


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.schema)
def test_a_history_is_a_chain_in_the_order_of_its_files_numbers(history: History) -> None:
    """The start of the program compares the numbers, and does not import Alembic for it."""
    files = sorted(history.versions.glob("*.py"))
    modules = [loaded(str(file)) for file in files]
    assert [module.revision for module in modules] == revisions(history)
    assert [module.down_revision for module in modules] == [None, *revisions(history)[:-1]]


def loaded(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("migration", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
