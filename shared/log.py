"""Logs: readable in a terminal, JSON lines elsewhere, and without personal data in either.

`configure` is called once, by the command line. Everybody else does

    log = get_logger(__name__)
    log.info("partition taken", bus_topic="events", partition=3)

What the libraries write through the standard library's logging goes the same way. Masking is the last step before
the line is rendered, so that an exception's text, too, has passed it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["auto", "console", "json"]

MASK = "[masked]"
# Keys whose values say something about a person, or open a door.
MASKED_KEYS = frozenset(
    """
    email e_mail mail phone address addresses value values traits properties body payload text subject context
    birthday first_name last_name full_name ip user_agent user_id anonymous_id external_id card token device_token
    password secret secret_key authorization cookie write_key api_key recipient to html
    """.split()
)
_EMAIL = re.compile(r"[\w.+%!#$&'*/=?^`{|}~-]+(?:@|%40)[\w-]+(?:\.[\w-]+)+", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w.-])(?:(?:\+|%2B)\d|[78])(?:[ ().-]{0,2}\d){9,13}(?![\w-])"  # +7 (916) 123-45-67, 89161234567
    r"|(?<![\w.-])\(?\d{3}\)?[ .-]\d{3}[ .-]\d{2}[ .-]?\d{2}(?![\w-])",  # (916) 123-45-67
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_SIGNED_LINK = re.compile(r"(/(?:c|o|u|confirm)/)[\w.~-]+")
_LONGEST_TEXT = 4_000
_DEEPEST = 6


def get_logger(name: str | None = None) -> structlog.stdlib.BoundLogger:
    """A logger that takes an event in a few words and fields as keywords."""
    return structlog.stdlib.get_logger(name)


def configure(format: Format = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream` (default: standard error).

    :param format: `console`, `json`, or `auto`: console if the stream is a terminal
    :param level: the least level that is written; libraries write from `warning` up, the HTTP server from `info`
    """
    stream = stream or sys.stderr
    console = format == "console" or (format == "auto" and stream.isatty())
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*before, name_the_request],
            pass_foreign_args=True,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                mask_personal_data,
                *_renderers(console, stream),
            ],
        )
    )
    _route_standard_logging(handler, logging.getLevelNamesMapping()[level.upper()])


def _renderers(console: bool, stream: TextIO) -> list[Processor]:
    if console:
        return [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    return [structlog.processors.JSONRenderer(ensure_ascii=False, default=str)]


def _route_standard_logging(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    for ours in ("services", "shared", "demo", "__main__"):
        logging.getLogger(ours).setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        library = logging.getLogger(name)
        library.handlers[:] = []
        library.propagate = True
        library.setLevel(max(level, logging.INFO))


def name_the_request(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Turn uvicorn's access line into fields, without the caller's address and the query string."""
    arguments = event.pop("positional_args", ())
    if event.get("logger") == "uvicorn.access" and len(arguments) == 5:
        _client, method, path, _version, status = arguments
        event.update(event="request", method=method, path=str(path).partition("?")[0], status=status)
    return event


def mask_personal_data(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace what the keys or the look of a value give away as personal or secret."""
    return {key: MASK if key in MASKED_KEYS else masked(value) for key, value in event.items()}


def masked(value: Any, depth: int = 0) -> Any:
    """The value without anything that looks like an e-mail address, a phone number, a password or a signed link."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"[{len(value)} bytes]"
    if depth >= _DEEPEST:
        return MASK
    if isinstance(value, Mapping):
        return {
            str(key): MASK if str(key).lower() in MASKED_KEYS else masked(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [masked(item, depth + 1) for item in value]
    return _masked_text(str(value))


def _masked_text(text: str) -> str:
    if len(text) > _LONGEST_TEXT:
        text = f"{text[: _LONGEST_TEXT // 2]} … {text[-_LONGEST_TEXT // 2 :]}"
    text = _CREDENTIALS.sub(f"{MASK}@", text)
    text = _EMAIL.sub(MASK, text)
    text = _SIGNED_LINK.sub(rf"\1{MASK}", text)
    return _PHONE.sub(MASK, text)
