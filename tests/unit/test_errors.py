"""Which errors are worth another try, and how errors look to a client."""

from __future__ import annotations

import errno
import json
import socket
from typing import Any

import aiokafka.errors
import asyncpg
import httpx
import pydantic
import pytest
import sqlalchemy.exc
from fastapi import FastAPI, HTTPException

from shared.errors import (
    Permanent,
    Problem,
    field_error,
    install,
    is_timeout,
    is_transient,
    json_pointer,
)

TRANSIENT = [
    asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
    asyncpg.SerializationError("could not serialize access"),
    asyncpg.DeadlockDetectedError("deadlock detected"),
    asyncpg.LockNotAvailableError("canceling statement due to lock timeout"),
    asyncpg.QueryCanceledError("canceling statement due to statement timeout"),
    asyncpg.DiskFullError("could not extend file"),
    asyncpg.AdminShutdownError("terminating connection due to administrator command"),
    asyncpg.CannotConnectNowError("the database system is starting up"),
    asyncpg.TooManyConnectionsError("sorry, too many clients already"),
    asyncpg.IdleInTransactionSessionTimeoutError("terminating connection due to idle-in-transaction timeout"),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.InternalClientError("got result for unknown protocol state 3"),
    aiokafka.errors.KafkaConnectionError("no broker"),
    aiokafka.errors.RequestTimedOutError(),
    aiokafka.errors.NotLeaderForPartitionError(),
    aiokafka.errors.NotEnoughReplicasError(),
    ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    TimeoutError(),
    socket.gaierror(socket.EAI_AGAIN, "try again"),
    OSError(errno.ENOSPC, "no space left on device"),
]
OF_THE_RECORD = [
    asyncpg.UntranslatableCharacterError("unsupported Unicode escape sequence"),
    asyncpg.NumericValueOutOfRangeError("value out of range"),
    asyncpg.StatementTooComplexError("stack depth limit exceeded"),
    asyncpg.UniqueViolationError("duplicate key"),
    asyncpg.DataError("invalid input for query argument $1"),
    asyncpg.InterfaceError("the server expects 1 argument for this query, 2 were passed"),
    aiokafka.errors.MessageSizeTooLargeError("too large"),
    aiokafka.errors.CorruptRecordException("corrupt"),
    ValueError("no"),
    KeyError("missing"),
    FileNotFoundError(errno.ENOENT, "no such file"),
    Permanent("the order has no id", "/properties/order_id"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
def test_errors_of_the_surroundings_are_transient(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", OF_THE_RECORD, ids=lambda error: f"{type(error).__name__}")
def test_all_others_belong_to_the_record(error: Exception) -> None:
    assert not is_transient(error)


def test_the_wrapper_of_sqlalchemy_is_looked_through() -> None:
    wrapped = sqlalchemy.exc.OperationalError("SELECT 1", {}, asyncpg.DeadlockDetectedError("deadlock detected"))
    assert is_transient(wrapped)
    assert not is_transient(sqlalchemy.exc.DataError("SELECT 1", {}, asyncpg.DataError("bad")))


def test_a_group_is_transient_only_if_all_its_errors_are() -> None:
    assert is_transient(ExceptionGroup("all", [TimeoutError(), ConnectionResetError()]))
    assert not is_transient(ExceptionGroup("one", [TimeoutError(), ValueError()]))


def test_what_was_judged_permanent_stays_so_whatever_caused_it() -> None:
    judged = Permanent("the provider refuses this address")
    judged.__cause__ = TimeoutError()
    assert not is_transient(judged)


def test_any_error_that_left_the_connection_closed_is_transient() -> None:
    class Connection:
        def __init__(self, closed: bool) -> None:
            self.closed = closed

        def is_closed(self) -> bool:
            return self.closed

    assert is_transient(ValueError("a half result"), Connection(closed=True))
    assert not is_transient(ValueError("a half result"), Connection(closed=False))


def test_timeouts_are_told_from_other_transient_errors() -> None:
    assert is_timeout(asyncpg.LockNotAvailableError("lock timeout"))
    assert is_timeout(asyncpg.QueryCanceledError("statement timeout"))
    assert not is_timeout(asyncpg.DeadlockDetectedError("deadlock"))


def test_a_pointer_escapes_what_json_pointers_escape() -> None:
    assert json_pointer(["steps", 0, "a/b", "c~d"]) == "#/steps/0/a~1b/c~0d"


class Wait(pydantic.BaseModel):
    seconds: int


class Rule(pydantic.BaseModel):
    name: str
    steps: list[Wait]


@pytest.fixture
async def client() -> Any:
    app = FastAPI()
    install(app)

    @app.post("/rules")
    def create(rule: Rule, limit: int = 1) -> None:
        return None

    @app.get("/fail/{how}")
    def fail(how: str) -> None:
        raise {
            "problem": Problem(409, "Active", "Pause it first.", [field_error(["name"], "is in use")], {"X-A": "b"}),
            "http": HTTPException(403, "Not yours", headers={"X-C": "d"}),
            "transient": asyncpg.CannotConnectNowError("starting up"),
            "bug": RuntimeError("secret detail"),
        }[how]

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def check(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = json.loads(answer.content)
    assert document["status"] == status
    return document


async def test_a_field_at_fault_is_named_by_its_pointer(client: httpx.AsyncClient) -> None:
    document = check(await client.post("/rules", json={"name": "x", "steps": [{"seconds": "soon"}]}), 422)
    [error] = document["errors"]
    assert error["pointer"] == "#/steps/0/seconds"
    assert "integer" in error["detail"]


async def test_a_missing_field_a_wrong_parameter_and_broken_json_are_problems(client: httpx.AsyncClient) -> None:
    assert check(await client.post("/rules", json={"steps": []}), 422)["errors"][0]["pointer"] == "#/name"
    wrong = check(await client.post("/rules?limit=many", json={"name": "x", "steps": []}), 422)
    assert wrong["errors"][0]["parameter"] == "limit"
    broken = check(await client.post("/rules", content="{", headers={"content-type": "application/json"}), 422)
    assert "not JSON" in broken["errors"][0]["detail"]


async def test_a_problem_keeps_its_fields_and_headers(client: httpx.AsyncClient) -> None:
    answer = await client.get("/fail/problem")
    document = check(answer, 409)
    assert (document["title"], document["detail"]) == ("Active", "Pause it first.")
    assert document["errors"] == [{"pointer": "#/name", "detail": "is in use"}]
    assert answer.headers["X-A"] == "b"


async def test_the_frameworks_own_errors_are_problems_too(client: httpx.AsyncClient) -> None:
    check(await client.get("/nowhere"), 404)
    check(await client.get("/rules"), 405)
    answer = await client.get("/fail/http")
    assert check(answer, 403)["title"] == "Not yours"
    assert answer.headers["X-C"] == "d"


async def test_an_unreachable_database_is_503_with_retry_after(client: httpx.AsyncClient) -> None:
    answer = await client.get("/fail/transient")
    check(answer, 503)
    assert answer.headers["Retry-After"] == "1"


async def test_an_unexpected_error_tells_the_client_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.get("/fail/bug")
    check(answer, 500)
    assert "secret detail" not in answer.text


def test_a_pydantic_error_becomes_a_problem_below_the_place_of_the_document() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        Rule.model_validate({"name": "x", "steps": [{}]})
    problem = Problem.of_validation(caught.value, under=["document"])
    assert problem.errors[0]["pointer"] == "#/document/steps/0/seconds"


def test_what_our_own_validators_say_comes_without_pydantics_prefix() -> None:
    class Even(pydantic.BaseModel):
        number: int

        @pydantic.field_validator("number")
        @classmethod
        def _even(cls, value: int) -> int:
            if value % 2:
                raise ValueError("must be even")
            return value

    with pytest.raises(pydantic.ValidationError) as caught:
        Even(number=3)
    assert Problem.of_validation(caught.value).errors == [{"pointer": "#/number", "detail": "must be even"}]
