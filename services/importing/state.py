"""The progress file: how far an import is known to be durable, so that the same command goes on from there."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

import msgspec

from services.importing.problems import ImportProblem
from services.importing.sending import Refusal


class Identity(msgspec.Struct, frozen=True):
    """What is imported where: progress made with anything else is not gone on with. `target`: hash of URL and key."""

    file: str
    mapping: str
    target: str
    live: bool


class Progress(msgspec.Struct):
    """The first `records` records of the file are acknowledged: `events` events sent, `refused` not taken."""

    identity: Identity
    records: int = 0
    events: int = 0
    refused: list[Refusal] = []


def target(url: str, key: str) -> str:
    return hashlib.sha256(f"{url}\x1f{key}".encode()).hexdigest()


class ProgressFile:
    """Written whole and renamed, so that a crash leaves the former or the new one; gone once the import is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, identity: Identity) -> Progress:
        """What is known of this very import; a fresh start if nothing is, or if the file is of another one."""
        try:
            known = msgspec.json.decode(self.path.read_bytes(), type=Progress)
        except FileNotFoundError:
            return Progress(identity)
        except (OSError, msgspec.DecodeError) as problem:
            raise ImportProblem(
                f"cannot read the progress file {self.path} ({problem}); delete it to begin anew"
            ) from problem
        return known if known.identity == identity else Progress(identity)

    def save(self, progress: Progress) -> None:
        try:
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.encode(progress))
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except OSError as problem:
            raise ImportProblem(
                f"cannot write the progress file {self.path} ({problem.strerror}); name another: --state"
            ) from problem

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def beside(source: Path, ending: str, state_home: Path) -> Path:
    """`<source><ending>` beside the file, or in `state_home` where that folder is not ours to write in."""
    folder = source.parent
    # A folder without any write bit is meant to stay as it is, even by those whom the system would let.
    if os.access(folder, os.W_OK) and folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        return source.with_name(source.name + ending)
    state_home.mkdir(parents=True, exist_ok=True)
    place = hashlib.sha256(str(source.resolve().parent).encode()).hexdigest()[:8]
    return state_home / f"{source.name}-{place}{ending}"


def default_state_home() -> Path:
    """Where programs keep their state (XDG)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "dripline"
