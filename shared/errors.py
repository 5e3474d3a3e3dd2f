"""The errors of Dripline, and which of them are worth another try.

    DriplineError
    ├── ConfigurationError      a setting or the machine is wrong; its text is one sentence that says what to do
    │   └── EmbeddedPostgresError   (shared/postgres_errors.py)
    ├── Problem                 an HTTP answer in application/problem+json (RFC 9457)
    └── Permanent               the record is at fault: it is dead-lettered with this reason, its neighbours go on

Errors of the surroundings (connection lost, deadlock, disk full …) are not ours: `is_transient` knows them.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import pydantic

if TYPE_CHECKING:  # the domain imports this module: no web framework and no driver come with it
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_SECONDS = 1


class DriplineError(Exception):
    """Base of all errors that Dripline raises on purpose."""


class ConfigurationError(DriplineError):
    """A setting or the machine is wrong. The text is one sentence for a person at a terminal."""


class Permanent(DriplineError):
    """The record itself is at fault: no retry can help, it belongs among the dead letters.

    :param reason: one sentence that a person reads beside the original bytes
    :param pointer: JSON pointer of the field at fault (`/properties/total`), "" for the whole record
    """

    def __init__(self, reason: str, pointer: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.pointer = pointer


class Problem(DriplineError):
    """An HTTP answer that is not a success, as RFC 9457 writes it.

    :param status: HTTP status, 400–599
    :param title: the kind of problem in a few words, the same for every occurrence
    :param detail: what happened this time and what to do
    :param errors: the fields at fault, each `{"pointer": "#/steps/0/wait", "detail": "…"}` (see `field_error`)
    :param headers: further response headers, such as `Retry-After`
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {title}" + (f": {detail}" if detail else ""))
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = [dict(error) for error in errors]
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """The problem's JSON object."""
        document: dict[str, Any] = {"type": "about:blank", "title": self.title, "status": self.status}
        if self.detail:
            document["detail"] = self.detail
        if self.errors:
            document["errors"] = self.errors
        return document

    def to_response(self) -> Response:
        """The problem as a Starlette response."""
        from starlette.responses import Response

        body = msgspec.json.encode(self.to_dict())
        return Response(body, status_code=self.status, media_type=PROBLEM_JSON, headers=self.headers)

    @classmethod
    def of_validation(
        cls, error: pydantic.ValidationError, under: Sequence[str | int] = (), title: str = "The document is not valid"
    ) -> Problem:
        """A 422 with one pointer for each field that pydantic refused; `under`: where in the body the document is."""
        return cls(422, title, errors=[field_error([*under, *item["loc"]], _in_words(item)) for item in error.errors()])


def _in_words(complaint: Mapping[str, Any]) -> str:
    """One of pydantic's complaints, without the prefix that it gives to those of our own validators."""
    return str(complaint["msg"]).removeprefix("Value error, ")


def json_pointer(parts: Iterable[str | int]) -> str:
    """A JSON pointer in the fragment form of RFC 6901 without percent-encoding: `["a/b", 0]` → `#/a~1b/0`."""
    return "#" + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def field_error(parts: Iterable[str | int], detail: str) -> dict[str, str]:
    """One entry of a problem's `errors`: where in the body, and what is wrong there."""
    return {"pointer": json_pointer(parts), "detail": detail}


def install(app: FastAPI) -> None:
    """Make `app` answer every error with application/problem+json."""
    from asyncpg.exceptions import DataError
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(DataError, _answer_unstorable)
    app.add_exception_handler(UnicodeEncodeError, _answer_unstorable)
    app.add_exception_handler(Exception, _answer_unexpected)


async def _answer_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.to_response()


async def _answer_invalid_request(_request: Request, error: Exception) -> Response:
    """Pydantic's list of complaints: those about the body by pointer, the others by the parameter's name."""
    from fastapi.exceptions import RequestValidationError

    assert isinstance(error, RequestValidationError)
    errors: list[dict[str, str]] = []
    for item in error.errors():
        place, *path = item["loc"] or ("body",)
        if item["type"] == "json_invalid":
            errors.append(field_error((), f"The body is not JSON: {item.get('ctx', {}).get('error', item['msg'])}"))
        elif place == "body":
            errors.append(field_error(path, _in_words(item)))
        else:
            errors.append({"parameter": str(path[0]) if path else "", "in": str(place), "detail": _in_words(item)})
    return Problem(422, "The request is not valid", errors=errors).to_response()


async def _answer_http_exception(_request: Request, error: Exception) -> Response:
    from starlette.exceptions import HTTPException

    assert isinstance(error, HTTPException)
    return Problem(error.status_code, str(error.detail), headers=error.headers).to_response()


async def _answer_unstorable(_request: Request, error: Exception) -> Response:
    """A caller's text with NUL or half a character, which JSON and URLs can say and PostgreSQL cannot keep."""
    if not any(isinstance(link, UnicodeEncodeError) or sqlstate(link) in _UNSTORABLE for link in _chain(error)):
        raise error
    detail = "A text in it has a character that cannot be stored: NUL, or half a character (a lone surrogate)."
    return Problem(422, "The request is not valid", detail).to_response()


async def _answer_unexpected(_request: Request, error: Exception) -> Response:
    """503 with Retry-After when trying again may help, else 500. The log has the traceback, the client sees none."""
    if is_transient(error):
        return Problem(
            503,
            "Not available at the moment",
            "The database or the bus cannot be reached; try again.",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        ).to_response()
    return Problem(500, "Unexpected error", "The server's log has the cause.").to_response()


class _Closable(Protocol):
    def is_closed(self) -> bool: ...


# The closed list: SQLSTATEs about the surroundings. Every other one is about the statement or the record.
TRANSIENT_SQLSTATES = frozenset(
    {
        "25006",  # read-only transaction: connected to a server that has just become a standby
        "25P03",  # idle_in_transaction_session_timeout
        "25P04",  # transaction_timeout
        "40001",  # serialization failure
        "40003",  # statement completion unknown
        "40P01",  # deadlock
        "53000",  # insufficient resources
        "53100",  # disk full
        "53200",  # out of memory
        "53300",  # too many connections
        "55P03",  # lock timeout
        "57014",  # statement timeout, or cancelled by an administrator
        "57P01",  # the back end was terminated: shutdown, or somebody took over our lease
        "57P02",  # another back end crashed
        "57P03",  # starting up or shutting down
        "57P05",  # idle_session_timeout
        "58030",  # input/output error
    }
)
_UNSTORABLE = frozenset({"22021", "22P05"})  # a byte sequence, or an escape in JSON, that is no text
TIMEOUT_SQLSTATES = frozenset({"55P03", "57014"})
_TRANSIENT_CLASSES = ("08",)  # connection exceptions
_TRANSIENT_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.EMFILE}
)
# Kafka's own errors that say "the cluster cannot answer now" or "this producer must be replaced by a new one".
# aiokafka's `retriable` would miss the latter.
_TRANSIENT_KAFKA = (
    "BrokerNotAvailableError",
    "CoordinatorLoadInProgressError",
    "CoordinatorNotAvailableError",
    "CorrelationIdError",
    "GroupCoordinatorNotAvailableError",
    "GroupLoadInProgressError",
    "KafkaConnectionError",
    "KafkaStorageError",
    "KafkaTimeoutError",
    "KafkaUnavailableError",
    "LeaderNotAvailableError",
    "MetadataEmptyBrokerList",
    "NoBrokersAvailable",
    "NodeNotReadyError",
    "NotControllerError",
    "NotCoordinatorError",
    "NotCoordinatorForGroupError",
    "NotEnoughReplicasAfterAppendError",
    "NotEnoughReplicasError",
    "NotLeaderForPartitionError",
    "OutOfOrderSequenceNumber",
    "ProducerClosed",
    "ProducerFenced",
    "RequestTimedOutError",
    "StaleMetadata",
    "UnknownError",
    "UnknownProducerId",
    "UnknownTopicOrPartitionError",
)


def is_transient(error: BaseException, connection: _Closable | None = None) -> bool:
    """Whether the surroundings failed, so that the same work may succeed later; else the record is at fault.

    :param error: what was raised; SQLAlchemy's wrappers, causes and exception groups are looked through
    :param connection: the database connection the work ran on: any error that left it closed is transient
    """
    if connection is not None and connection.is_closed():
        return True
    if isinstance(error, BaseExceptionGroup):
        return all(is_transient(inner) for inner in error.exceptions)
    return any(_is_transient_itself(link) for link in _chain(error))


def is_timeout(error: BaseException) -> bool:
    """Whether a lock or statement timeout ended the work: transient for a batch, suspicious for one record alone."""
    return any(sqlstate(link) in TIMEOUT_SQLSTATES or isinstance(link, TimeoutError) for link in _chain(error))


def sqlstate(error: BaseException) -> str | None:
    """The five characters by which PostgreSQL names an error; None when the error is not PostgreSQL's."""
    code = getattr(error, "sqlstate", None)
    return code if isinstance(code, str) else None


def _chain(error: BaseException) -> list[BaseException]:
    """The error, what SQLAlchemy wrapped in it (`orig`), and their explicit causes."""
    links: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        link = waiting.pop(0)
        if not isinstance(link, BaseException) or link in links:
            continue
        if isinstance(link, (Permanent, Problem)):
            break  # somebody looked at the cause already and decided
        links.append(link)
        waiting += [getattr(link, "orig", None), link.__cause__]
    return links


def _is_transient_itself(error: BaseException) -> bool:
    code = sqlstate(error)
    if code is not None:
        return code in TRANSIENT_SQLSTATES or code[:2] in _TRANSIENT_CLASSES
    if _is_lost_session(error):
        return True
    if isinstance(error, (ConnectionError, TimeoutError, EOFError)):
        return True
    if isinstance(error, OSError):  # a host name that is not found (socket.gaierror) has numbers of its own
        return error.errno in _TRANSIENT_ERRNOS or type(error).__name__ == "gaierror"
    return _is_transient_kafka(error)


def _is_lost_session(error: BaseException) -> bool:
    """asyncpg's own words for a session that is gone."""
    asyncpg = sys.modules.get("asyncpg")  # never imported: the error cannot come from there
    if asyncpg is None:
        return False
    if isinstance(error, asyncpg.InternalClientError):
        return True  # "got result for unknown protocol state": how a terminated session may surface
    # InterfaceError's subclasses (DataError: a value does not fit) and a wrong number of arguments are the caller's.
    return type(error) is asyncpg.InterfaceError and "the server expects" not in str(error)


def _is_transient_kafka(error: BaseException) -> bool:
    errors = sys.modules.get("aiokafka.errors")
    if errors is None:
        return False
    classes = tuple(getattr(errors, name) for name in _TRANSIENT_KAFKA if hasattr(errors, name))
    return isinstance(error, classes)
