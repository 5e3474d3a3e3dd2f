"""YAML or JSON → plain values, without YAML's surprises.

JSON is a subset of the YAML read here. `on`, `off`, `yes` and `no` are texts (so that `enter: {on: …}` is what it looks
like), `09:00` and dates are texts, a key given twice is an error, and anchors are refused.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

LONGEST = 256 * 1024  # characters of one document


class DocumentError(ValueError):
    """The text cannot be read; the message says where and why."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise DocumentError(f"line {mark.line + 1}: anchors and aliases are not read here; write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in found:
                raise DocumentError(f"line {key_node.start_mark.line + 1}: {key!r} is given twice")
            found[key] = self.construct_object(value_node, deep=True)
        return found


def _mapping(loader: _Loader, node: Any) -> dict[Any, Any]:
    return loader.construct_mapping(node)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", "n~\0"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.yaml_implicit_resolvers.setdefault("", []).append(("tag:yaml.org,2002:null", re.compile(r"^$")))


def parse_documents(text: str | bytes) -> list[Any]:
    """All documents of a YAML stream, or the one of a JSON text.

    :raises DocumentError: in one sentence with the line
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise DocumentError(f"the text is not UTF-8: {error.reason} at byte {error.start}") from error
    if len(text) > LONGEST:
        raise DocumentError(f"the text has {len(text)} characters; at most {LONGEST} are read")
    try:
        return [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise DocumentError(f"{line}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise DocumentError(str(error).replace("\n", " ")) from error
    except (RecursionError, ValueError) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(
            "the text is nested too deeply" if isinstance(error, RecursionError) else str(error)
        ) from error


def parse_document(text: str | bytes) -> Any:
    """The one document of the text. :raises DocumentError: none, several, or unreadable"""
    found = parse_documents(text)
    if len(found) != 1:
        raise DocumentError(f"there must be one document, there are {len(found)}")
    return found[0]
