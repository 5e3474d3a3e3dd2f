"""Tries what deploy/Dockerfile does, without Docker: its build steps, then the image's commands as a user that owns nothing.

    python scripts/check_image.py [PYTHON]      default: the machine's own, 3.11 or later; the image has 3.13

The lock files are installed into a fresh environment (kept in the cache for as long as they stay the same), the wheel is
built and installed, and then `dripline migrate`, `up`, the health check, and SIGTERM are run by another user on a tree that
this user cannot write, with only the data folder and the folder for temporary files writable. Needs root, to become that
user, and the embedded PostgreSQL that the lock file brings. What stays untried is Docker itself: the base image, COPY
between stages, the health check's schedule.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.deploy_tools import cache_dir  # noqa: E402

NOBODY = 65534
LIMIT = 60.0  # seconds


def main(arguments: list[str]) -> int:
    """0 when all of it works; 1 and what does not."""
    if os.geteuid() != 0:
        print("check_image: skipped, it needs root to become another user", file=sys.stderr)
        return 1 if os.environ.get("DRIPLINE_REQUIRE_DEPLOY_TOOLS") else 0
    python = arguments[0] if arguments else _python_for_everybody()
    with tempfile.TemporaryDirectory(prefix="dripline-image-") as folder:
        work = Path(folder)
        work.chmod(0o755)
        context = _context(work / "context")
        image = _environment(python, context, work)
        _try_commands(image, work)
    print("the image's steps and commands work")
    return 0


def _python_for_everybody() -> str:
    """A Python that other users can read: one below root's home cannot."""
    for found in ("/usr/local/bin/python3", "/usr/bin/python3"):
        asked = [found, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        if Path(found).exists() and subprocess.run(asked, check=False).returncode == 0:
            return found
    return sys.executable


def _context(target: Path) -> Path:
    """What .dockerignore lets through, and nothing else."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source, place = ROOT / line[1:], target / line[1:]
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            else:
                shutil.copy(source, place)
    return target


def _environment(python: str, context: Path, work: Path) -> Path:
    """The build stage: both lock files with their hashes, the wheel."""
    uv = Path(sys.executable).with_name("uv")
    locked = hashlib.sha256()
    for lock in ("deploy/requirements.lock", "deploy/build.lock"):
        locked.update((context / lock).read_bytes())
    locked.update(subprocess.run([python, "-VV"], capture_output=True, check=True).stdout)
    kept = cache_dir() / f"image-{locked.hexdigest()[:16]}"
    if not kept.is_dir():
        for old in cache_dir().glob("image-*"):
            shutil.rmtree(old)
        making = Path(tempfile.mkdtemp(prefix=".image-", dir=cache_dir()))
        for name, lock in (("dripline", "requirements.lock"), ("tools", "build.lock")):
            _run([python, "-m", "venv", "--copies", "--without-pip", making / name], work)
            _install(uv, making / name, ["--require-hashes", "-r", str(context / "deploy" / lock)], work)
        making.chmod(0o755)
        making.rename(kept)
    image = work / "image"
    shutil.copytree(kept / "dripline", image, symlinks=True)
    _run([kept / "tools/bin/python", "-m", "hatchling", "build", "-t", "wheel", "-d", work / "dist"], context)
    [wheel] = (work / "dist").glob("*.whl")
    _install(uv, image, ["--no-deps", str(wheel)], work)
    return image


def _install(uv: Path, environment: Path, what: list[str], work: Path) -> None:
    _run([uv, "pip", "install", "--quiet", "--link-mode=copy", "--python", environment / "bin/python", *what], work)


def _run(command: list[str | Path], folder: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"check_image: `{shlex.join(map(str, command))}` failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _try_commands(image: Path, work: Path) -> None:
    """The last stage: ENV, USER, ENTRYPOINT, CMD and HEALTHCHECK as the Dockerfile has them."""
    text = (ROOT / "deploy/Dockerfile").read_text()
    health = json.loads(re.search(r"HEALTHCHECK[^\[]*CMD (\[.*\])", text).group(1))  # type: ignore[union-attr]
    container = _Container(image, work)
    container.look_for_python()
    probe_health = container.command(*health[1:])
    assert container.status(probe_health) != 0, "the health check must fail while nothing runs"
    write = container.command("-c", f"open({str(image / 'x')!r}, 'w')")
    assert container.status(write) != 0, "the tree must not be writable"
    _try_up(container, probe_health, work / "log")


class _Container:
    """What a container would be: a user that owns nothing, two writable folders, and the image's environment."""

    def __init__(self, image: Path, work: Path) -> None:
        self.data, temporary = work / "data", work / "tmp"
        for writable in (self.data, temporary):
            writable.mkdir()
            os.chown(writable, NOBODY, NOBODY)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._image = image
        self.environment = {
            "PATH": f"{image}/bin:/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "DATA_DIR": str(self.data),
            "TMPDIR": str(temporary),
            "HOME": str(self.data),
            "LOG_FORMAT": "json",
            "LANG": "C.UTF-8",
        }

    def command(self, *words: str) -> list[str]:
        # by the interpreter's path: the entry point's first line names the build's place
        return [str(self._image / "bin/python"), *words]

    def status(self, words: list[str]) -> int:
        return subprocess.run(
            words, cwd="/", env=self.environment, user=NOBODY, group=NOBODY, capture_output=True, check=False
        ).returncode

    def look_for_python(self) -> None:
        where = self.command("-c", "import sys; print(sys.base_prefix)")
        told = [subprocess.run(where, user=user, capture_output=True, check=False).stdout for user in (0, NOBODY)]
        if told[0] != told[1] or not told[0]:
            raise SystemExit(
                "check_image: other users cannot read this Python; name one that they can: check_image.py PYTHON"
            )


def _try_up(container: _Container, probe_health: list[str], log: Path) -> None:
    """`up` becomes healthy, keeps its keys to itself, and ends when it is told to."""
    with open(log, "wb") as out:
        process = subprocess.Popen(
            container.command("-m", "services", "up"),
            cwd="/",
            env=container.environment,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            stdout=out,
            stderr=out,
        )
    credentials = container.data / "credentials.json"
    try:
        deadline = time.monotonic() + LIMIT
        # It is alive before its first start has written down the keys.
        while container.status(probe_health) != 0 or not credentials.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"check_image: `up` did not become healthy:\n{log.read_text()[-3000:]}")
            time.sleep(0.3)
        made = json.loads(credentials.read_text())
        for name in ("server_write_key", "api_key"):
            assert made[name] not in log.read_text(), f"{name} stands in the log"
    finally:
        process.send_signal(signal.SIGTERM)
        ended = process.wait(LIMIT)
    if ended != 0:
        raise SystemExit(f"check_image: `up` ended with {ended} after SIGTERM:\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
