"""The programs that check deploy/: helm, promtool, caddy and compose-go. Standard library only.

    python scripts/deploy_tools.py fetch       into ~/.cache/dripline (or $DRIPLINE_CACHE), never into the repository
    python scripts/deploy_tools.py             says what is there

A program that is installed on the machine is taken as it is. Helm and compose-go are built by Go (helm takes some minutes,
once); promtool and caddy come out of Debian's packages, which are unpacked and not installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def cache_dir() -> Path:
    """Where fetched things are kept between runs."""
    if named := os.environ.get("DRIPLINE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dripline"


class ToolUnavailable(Exception):
    """The program cannot be fetched here. One sentence: what is missing, and what to do."""


@dataclass(frozen=True)
class Tool:
    """`folder`: below the cache; `path`: of the program in it; `installed`: its name when the machine has it."""

    name: str
    folder: str
    path: str
    fetch: Callable[[Path], None]
    installed: str | None = None

    def find(self) -> Path | None:
        """The program, or None."""
        if self.installed and (there := shutil.which(self.installed)):
            return Path(there)
        kept = cache_dir() / self.folder / self.path
        return kept if kept.exists() else None


def _by_go(module: str) -> Callable[[Path], None]:
    def fetch(folder: Path) -> None:
        if shutil.which("go") is None:
            raise ToolUnavailable(f"Go is missing: it builds {module}.")
        # One job at the lowest priority: whoever waits for the machine meanwhile comes first.
        environment = {**os.environ, "GOBIN": str(folder), "GOMAXPROCS": "1", "GOFLAGS": "-p=1"}
        _run(["nice", "-n", "19", "go", "install", module], environment, folder)

    return fetch


def _by_debian(package: str) -> Callable[[Path], None]:
    def fetch(folder: Path) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            raise ToolUnavailable(f"This is no Debian: install {package} by hand.")
        with tempfile.TemporaryDirectory() as download:
            _run(["apt-get", "download", package], dict(os.environ), Path(download))
            [archive] = Path(download).glob("*.deb")
            _run(["dpkg", "-x", str(archive), str(folder)], dict(os.environ), folder)

    return fetch


def _run(command: list[str], environment: dict[str, str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolUnavailable(
            f"`{' '.join(command)}` failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}"
        )


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("helm", "helm-3.18.6", "helm", _by_go("helm.sh/helm/v3/cmd/helm@v3.18.6"), "helm"),
        Tool("promtool", "prometheus-debian", "usr/bin/promtool", _by_debian("prometheus"), "promtool"),
        Tool("caddy", "caddy-debian", "usr/bin/caddy", _by_debian("caddy"), "caddy"),
        Tool("compose-go", "compose-go-2.16.2", "cmd", _by_go("github.com/compose-spec/compose-go/v2/cmd@v2.16.2")),
    )
}


def fetch(tool: Tool) -> Path:
    """The program, fetched if it is not there. Raises ToolUnavailable."""
    if there := tool.find():
        return there
    target = cache_dir() / tool.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{tool.name}-", dir=target.parent) as folder:
        made = Path(folder) / "made"
        made.mkdir()
        tool.fetch(made)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else another run was faster
                raise
    found = tool.find()
    if found is None:
        raise ToolUnavailable(f"{tool.name} was fetched and is not at {target / tool.path}.")
    return found


def main(arguments: list[str]) -> int:
    """1 when a program is missing or cannot be fetched."""
    missing = 0
    for tool in TOOLS.values():
        try:
            there = fetch(tool) if arguments == ["fetch"] else tool.find()
        except ToolUnavailable as problem:
            print(f"{tool.name}: {problem}", file=sys.stderr)
            there = None
        missing += there is None
        print(f"{tool.name}: {there or 'missing; python scripts/deploy_tools.py fetch'}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
