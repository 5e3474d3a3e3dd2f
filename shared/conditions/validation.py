"""Pydantic's complaints as ConditionErrors with a pointer into the document."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shared.conditions.errors import ConditionError, joined

M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], document: Any, pointer: str) -> M:
    """`document` as `model`.

    :raises ConditionError: of the first complaint, in document order
    """
    _check_texts(document, pointer)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise condition_error(error, pointer) from error


def _check_texts(document: Any, pointer: str) -> None:
    """NUL and halves of surrogate pairs pass through JSON, but are no text to PostgreSQL."""
    if isinstance(document, dict):
        for key, value in document.items():
            _check_texts(key, pointer)
            _check_texts(value, joined(pointer, str(key)))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            _check_texts(value, joined(pointer, index))
    elif isinstance(document, str) and any(c == "\x00" or "\ud800" <= c <= "\udfff" for c in document):
        raise ConditionError(pointer, f"contains a character that is no text: {document!r}")


def condition_error(error: ValidationError, pointer: str) -> ConditionError:
    """The first complaint of pydantic; the field that it names in its context belongs to the pointer."""
    first = error.errors()[0]
    place = list(first["loc"])
    context = first.get("ctx") or {}
    if "field" in context:
        field = context["field"]
        place += field if isinstance(field, list) else [field]
    message = first["msg"]
    if first["type"] not in ("condition", "missing"):
        message = f"{message[:1].lower()}{message[1:]}; it is {first['input']!r}"
    if first["type"] == "missing":
        message = "is missing: this field is required"
    return ConditionError(joined(pointer, *place), message)
