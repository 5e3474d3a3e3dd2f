"""Presets: the shipped rules, each with what it is for and the few values that a shop may want to set.

A preset is one file in `rules/presets`: `title`, `description`, the file of its `rule`, and `parameters`, each of which
stands at one place (`at`, a JSON pointer) of the rule's document; what stands there is its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from services.triggers.documents import parse_document
from services.triggers.rule import read
from shared.conditions import ConditionError
from shared.conditions.errors import joined, unknown
from shared.conditions.validation import validated

SHIPPED = Path(__file__).parents[2] / "rules"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameter(_Strict):
    """One value of the rule that may be set. `at`: JSON pointer into the rule's document."""

    title: str = Field(min_length=1, max_length=200)
    at: str = Field(pattern=r"^(/[^/]+)+$")


class _File(_Strict):
    title: str = Field(min_length=1, max_length=200)
    description: str = Field(min_length=1)
    rule: str = Field(pattern=r"^[a-z0-9-]+\.yml$")
    parameters: dict[str, Parameter] = {}


@dataclass(frozen=True)
class Preset:
    """A shipped rule; `document` is the rule as it is without any parameter set."""

    name: str
    title: str
    description: str
    parameters: Mapping[str, Parameter]
    document: dict[str, Any]

    def default(self, parameter: str) -> Any:
        """What the rule says if nobody sets the parameter."""
        return _look_up(self.document, self.parameters[parameter].at)

    def filled(self, values: Mapping[str, Any], **header: str | None) -> dict[str, Any]:
        """The rule's document with these parameters, and `name` and `title` where they are given.

        :raises ConditionError: with a pointer into `{"name", "title", "parameters"}`
        """
        document = deepcopy(self.document) | {key: value for key, value in header.items() if value is not None}
        for name, value in values.items():
            if name not in self.parameters:
                raise ConditionError(joined("/parameters", name), unknown("parameter", name, self.parameters))
            _set(document, self.parameters[name].at, value)
        try:
            read(document)
        except ConditionError as error:
            raise ConditionError(self._place_of(error.pointer, values), error.message) from error
        return document

    def _place_of(self, pointer: str, values: Mapping[str, Any]) -> str:
        """Where the caller wrote what stands at a pointer of the document."""
        for name in values:
            at = self.parameters[name].at
            if pointer == at or pointer.startswith(f"{at}/") or at.startswith(f"{pointer}/"):
                return f"/parameters/{name}"
        return pointer


@cache
def presets(folder: Path = SHIPPED) -> dict[str, Preset]:
    """All presets by name, which is the name of their file.

    :raises ValueError: a shipped file is wrong; a test reads them all
    """
    return {path.stem: _read(path, folder) for path in sorted((folder / "presets").glob("*.yml"))}


def _read(path: Path, folder: Path) -> Preset:
    file: _File = validated(_File, parse_document(path.read_bytes()), "")
    document: dict[str, Any] = parse_document((folder / file.rule).read_bytes())
    read(document)
    for parameter in file.parameters.values():
        _look_up(document, parameter.at)
    return Preset(path.stem, file.title, file.description, file.parameters, document)


def _look_up(document: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def _set(document: Any, pointer: str, value: Any) -> None:
    holder, _, last = pointer.rpartition("/")
    place = _look_up(document, holder) if holder else document
    place[int(last) if isinstance(place, list) else last] = value
