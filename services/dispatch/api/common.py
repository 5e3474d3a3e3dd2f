"""What the routes of dispatch have in common."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Query

from shared.auth import Principal, scope
from shared.errors import Problem, field_error

Read = Annotated[Principal, Depends(scope("read"))]
Marketing = Annotated[Principal, Depends(scope("marketing"))]
Admin = Annotated[Principal, Depends(scope("admin"))]
Limit = Annotated[int, Query(ge=1, le=200)]


def cursor_of(at: datetime, identity: UUID) -> str:
    """Where a page ended."""
    return base64.urlsafe_b64encode(f"{at.isoformat()} {identity}".encode()).rstrip(b"=").decode()


def read_cursor(cursor: str | None) -> tuple[datetime, UUID] | None:
    """Raises a 400 for what is no cursor of ours."""
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        at, _, identity = text.partition(" ")
        return datetime.fromisoformat(at), UUID(identity)
    except (binascii.Error, ValueError, UnicodeDecodeError):
        raise Problem(400, "Not a cursor", "Pass on what `next` of the page before said, unchanged.") from None


def amount(value: Decimal | None) -> float | None:
    """Money as a number with two decimals at most."""
    return None if value is None else float(round(value, 2))


def share(value: Decimal | None) -> float | None:
    """A probability or an effect as a number."""
    return None if value is None else float(value)


def not_found(what: str, name: str) -> Problem:
    return Problem(404, f"No such {what}", f"There is no {what} {name!r}.")


def refused(title: str, faults: list[tuple[str, str]]) -> Problem:
    """A 422 with a pointer to each field."""
    return Problem(422, title, errors=[field_error([field] if field else [], detail) for field, detail in faults])


def plain(row: Any) -> dict[str, Any]:
    """A row for the change log: decimals as texts."""
    return {
        key: str(value) if isinstance(value, (Decimal, datetime, UUID)) else value for key, value in dict(row).items()
    }
