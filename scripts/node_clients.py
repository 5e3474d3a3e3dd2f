"""The clients for Node and the browser that the acceptance tests start. Standard library only.

    python scripts/node_clients.py     installs what tests/clients/package-lock.json names into ~/.cache/dripline

npm checks each package by the hash in the lock file; the lock file names no registry, so npm's own configuration says
where from. Nothing is installed into the repository, and no package's install script runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "clients"
INPUTS = ("package.json", "package-lock.json")
LEAST_NODE = 20
INSTALL_LIMIT = 300.0  # seconds


class ClientsUnavailable(Exception):
    """The clients cannot be installed or run here. One sentence: what is missing, and what to do."""


def cache_dir() -> Path:
    """Where fetched things are kept between runs."""
    if named := os.environ.get("DRIPLINE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dripline"


def fetch() -> Path:
    """The `node_modules` with the pinned clients; asks npm for them the first time (70 MB).

    :raises ClientsUnavailable: no Node, an old one, no npm, or npm found no way to its registry
    """
    _check_node()
    digest = hashlib.sha256(b"\0".join((FOLDER / name).read_bytes() for name in INPUTS)).hexdigest()[:16]
    target = cache_dir() / f"clients-{digest}"
    if target.is_dir():
        return target / "node_modules"
    if shutil.which("npm") is None:
        raise ClientsUnavailable("npm is missing: it fetches the clients for Node and the browser.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".clients-", dir=target.parent) as made:
        folder = Path(made) / "clients"
        folder.mkdir()
        for name in INPUTS:
            shutil.copy(FOLDER / name, folder)
        _install(folder)
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():  # else another run was faster
                raise
    return target / "node_modules"


def _check_node() -> None:
    if shutil.which("node") is None:
        raise ClientsUnavailable(f"Node is missing: the clients need version {LEAST_NODE} or later.")
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    major = said.removeprefix("v").partition(".")[0]
    if not major.isdigit() or int(major) < LEAST_NODE:
        raise ClientsUnavailable(
            f"Node is {said or 'silent about its version'}: the clients need {LEAST_NODE} or later."
        )


def _install(folder: Path) -> None:
    try:
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_LIMIT,
        )
    except subprocess.TimeoutExpired:
        raise ClientsUnavailable(f"npm could not install the clients within {INSTALL_LIMIT:g} s.") from None
    if done.returncode != 0:
        complaints = (line.removeprefix("npm error").strip() for line in done.stderr.splitlines())
        said = next((line for line in complaints if line and not line.startswith("code ")), "it gave no reason")
        raise ClientsUnavailable(f"npm could not install the clients: {said}")


if __name__ == "__main__":
    try:
        print(fetch())
    except ClientsUnavailable as reason:
        print(reason, file=sys.stderr)
        sys.exit(1)
