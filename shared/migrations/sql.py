"""Migrations that are files of SQL: `0001_first.sql` beside `0001_first.py`."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import Connection

# Where a semicolon may stand without ending a statement: in quotes, in a function's body, in a comment.
_PIECE = re.compile(
    r"""
    (?P<end> ; )
  | (?P<comment> --[^\n]* | /\*.*?\*/ )
  | '(?:[^']|'')*'
  | "(?:[^"]|"")*"
  | \$(?P<tag>[A-Za-z_]\w*|)\$ .*? \$(?P=tag)\$
  | [^;'"$/-]+
  | .
    """,
    re.DOTALL | re.VERBOSE,
)


def statements(text: str) -> list[str]:
    """The statements of a file in their order, without their semicolons and the comments before them.

    Strings with escapes (E'…') and comments in comments are not told apart: a migration does without them.
    """
    found, statement = [], ""
    for piece in _PIECE.finditer(text):
        if piece["end"]:
            found.append(statement)
            statement = ""
        elif statement.strip() or not piece["comment"]:
            statement += piece[0]
    found.append(statement)
    return [one.strip() for one in found if one.strip()]


def execute_file(connection: Connection, path: Path) -> None:
    """Executes every statement as it stands: `:` and `%` are letters like others, there are no parameters."""
    for statement in statements(path.read_text(encoding="utf-8")):
        connection.exec_driver_sql(statement)
