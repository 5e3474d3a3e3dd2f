"""Why the embedded PostgreSQL does not run, in one sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

from shared.errors import ConfigurationError


class EmbeddedPostgresError(ConfigurationError):
    """The embedded PostgreSQL cannot run. One sentence: what happened, and what to do."""


# What PostgreSQL or the system writes, and what it means here.
_EXPLANATIONS = (
    ("No space left on device", "there is no room left on the disk of {folder}: free some, or choose another folder"),
    ("error while loading shared libraries: ", "a library is missing on this machine ({detail}): install it"),
    ("Library not loaded: ", "a library is missing on this machine ({detail}): install it"),
    ("version `GLIBC", "this machine's C library is too old: PostgreSQL's programs need glibc 2.28"),
    ("Address already in use", "port {port} is in use: choose another"),
    ("data directory", "the data folder is not usable ({detail}): it may belong to another user"),
    ("could not create shared memory segment", "the system grants too little shared memory ({detail})"),
    (
        "could not look up effective user ID",
        "this system has no name for the user it runs as: start Dripline as a user of /etc/passwd, or name a server of "
        "your own in DATABASE_URL",
    ),
    ("Operation not permitted", "it may not change to the user nobody here: start Dripline as an ordinary user"),
    ("Permission denied", "access was denied ({detail}): start Dripline as the owner, or choose another folder"),
)
_LEVELS = ("FATAL:", "PANIC:", "ERROR:", "error:")


def explain(output: str, folder: Path, log_file: Path, port: int | None) -> str:
    """One sentence out of what a program of PostgreSQL wrote before it ended."""
    lines = [line for line in output.splitlines() if line.strip()]
    for text, explanation in _EXPLANATIONS:
        line = next((line for line in lines if text in line), None)
        if line is not None:
            detail = line.partition(text)[2].partition(":")[0] if text.endswith(": ") else _message(line)
            return f"PostgreSQL cannot start: {explanation.format(folder=folder, port=port, detail=detail.strip())}."
    telling = next((line for line in lines if any(level in line for level in _LEVELS)), lines[-1] if lines else "")
    return f"PostgreSQL cannot start: {_message(telling) or 'it ended without a word'} (see {log_file})."


def _message(line: str) -> str:
    """The line without time stamp and level."""
    level = next((level for level in _LEVELS if level in line), None)
    return (line.partition(level)[2] if level else line).strip().rstrip(".")
