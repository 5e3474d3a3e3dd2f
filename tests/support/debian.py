"""Programs of Debian for tests, installed or not: what is missing is fetched by apt-get, without root, and unpacked into
the cache folder (`~/.cache/dripline`, or $DRIPLINE_CACHE). Nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts.kafka import cache_dir

_SECONDS = 180


class Unavailable(Exception):
    """The program is neither installed nor to be had here. One sentence: why."""


@dataclass(frozen=True)
class Program:
    """`path`: the program. `root`: under which its package lies, `/` if it is installed."""

    path: Path
    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """With the libraries that came with it."""
        if self.root == Path("/"):
            return dict(os.environ)
        folders = [
            str(f) for pattern in ("usr/lib", "usr/lib/*-linux-gnu", "lib/*-linux-gnu") for f in self.root.glob(pattern)
        ]
        return {**os.environ, "LD_LIBRARY_PATH": ":".join(folders)}


def program(package: str, path: str) -> Program:
    """:param path: of the program in its package, such as `usr/sbin/smtpd`

    :raises Unavailable: see there
    """
    installed = Path("/") / path
    if installed.exists():
        return Program(installed, Path("/"))
    root = cache_dir() / "debian" / package
    if not (root / path).exists():
        _fetch(package, root)
    if not (root / path).exists():
        raise Unavailable(f"The package {package} does not hold {path}.")
    return Program(root / path, root)


def _fetch(package: str, root: Path) -> None:
    """Unpacks the package, and those of its libraries that are not installed, all or nothing."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{package} is not installed, and {tool}, which could fetch it, is not here.")
    planned = _run(["apt-get", "-s", "--no-install-recommends", "install", package])
    names = [line.split()[1] for line in planned.splitlines() if line.startswith("Inst ")]
    wanted = [name for name in names if name == package or name.startswith("lib")]
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        _run(["apt-get", "download", *wanted], folder)
        unpacked = Path(folder) / "root"
        for archive in sorted(Path(folder).glob("*.deb")):
            _run(["dpkg-deb", "-x", str(archive), str(unpacked)])
        if not root.exists():  # another session may have been faster
            unpacked.rename(root)


def _run(command: list[str], folder: str | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"`{' '.join(command)}` did not end in {_SECONDS} s.") from None
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise Unavailable(f"`{' '.join(command)}` failed: {said}")
    return done.stdout
