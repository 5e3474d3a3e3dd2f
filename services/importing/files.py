"""Opening a source file: decompression by the name's ending, how far it is read, and which file it is."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from services.importing.problems import ImportProblem

_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


class SourceFile:
    """An open source file: `data` gives the unpacked bytes, `position` how many bytes of the file itself are read."""

    def __init__(self, data: BinaryIO, raw: BinaryIO, size: int) -> None:
        self.data = data
        self.size = size
        self._raw = raw

    @property
    def position(self) -> int:
        # A reader that is through may have closed it (the text wrapper of CSV does) before its last rows are sent.
        return self.size if self._raw.closed else self._raw.tell()


@contextmanager
def open_source(path: Path) -> Iterator[SourceFile]:
    """Opens `path`, unpacking `.xz`, `.gz` and `.bz2`. Raises ImportProblem if it is not there or broken."""
    try:
        raw = path.open("rb")
    except OSError as problem:
        raise ImportProblem(f"cannot read {path}: {problem.strerror or problem}") from problem
    with raw:
        opener = _OPENERS.get(path.suffix.lower())
        data = cast(BinaryIO, io.BufferedReader(opener(raw))) if opener else raw
        try:
            yield SourceFile(data, raw, path.stat().st_size)
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as problem:
            raise ImportProblem(f"{path} is damaged or cut short ({problem}); fetch it again") from problem


def identity(path: Path) -> str:
    """SHA-256 (hex) of the file as it lies there: the same name with other contents is another file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise ImportProblem(f"cannot read {path}: {problem.strerror or problem}") from problem
