"""Debian's OpenSMTPD as the receiving side: a mail server that nobody here wrote, on loopback ports, with Maildirs.

It runs in a mount namespace of its own, where its spool, its sockets and its users are: several may run at a time, and
the machine stays as it was. Needs root, or user namespaces with subordinate ids (package uidmap).

    with OpenSmtpd.started() as server:
        server.port             # of 127.0.0.1
        server.letters("anna")  # what lies in anna@example.com's Maildir

Over an open line only: the build of Debian 12 (6.8.0p2 with OpenSSL 3) ends every TLS handshake with an error of its own,
"rsa routines: missing private key". `exim.py` is spoken to over TLS.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.debian import Program, Unavailable, program
from tests.support.wait import until_blocking

REQUIRED = "DRIPLINE_REQUIRE_OPENSMTPD"
_NOBODY = 65534
_DOMAINS = ("example.com", "mail.shop.example")
_ELSEWHERE = "elsewhere.example"  # a domain that is relayed

_CONFIGURATION = """\
table people file:{folder}/people
table domains {{ {domains} }}
listen on 127.0.0.1 port {port} hostname mail.example
action "keep" maildir "{folder}/mail/%{{user.username}}" userbase <people>
action "relay" relay host "smtp://127.0.0.1:{relay}"
match from any for domain <domains> action "keep"
match from any for domain "elsewhere.example" action "relay"
"""

# What the server finds at its fixed places, seen by it alone.
_NAMESPACE = """\
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /var/spool
mount -t tmpfs tmpfs /var/lib
mkdir -p /var/spool/smtpd /var/lib/opensmtpd/empty
chmod 0711 /var/spool/smtpd
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/group /etc/group
mount -t tmpfs tmpfs /run
[ "$(readlink -f /var/run)" = /run ] || mount -t tmpfs tmpfs /var/run
{libexec}
{smtpd} -d -f {folder}/smtpd.conf &
wait $!
"""


class OpenSmtpd:
    """One running server."""

    def __init__(self, binary: Program, relay: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dripline-test-opensmtpd-"))
        self.folder.chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._write(relay)

    @classmethod
    @contextmanager
    def started(cls, relay: int = 9) -> Iterator[OpenSmtpd]:
        """:param relay: port of this machine to which letters for elsewhere.example go

        :raises Unavailable: it cannot be had or started here
        """
        server = cls(program("opensmtpd", "usr/sbin/smtpd"), relay)
        try:
            server._start()
            yield server
        finally:
            server._stop()

    def letters(self, user: str) -> list[bytes]:
        """What was delivered to this user, oldest first, as it lies in the Maildir."""
        new = self.folder / "mail" / user / "new"
        files = sorted(new.iterdir(), key=lambda file: file.stat().st_mtime_ns) if new.exists() else []
        return [file.read_bytes() for file in files]

    @property
    def log(self) -> str:
        """What it said of itself."""
        return (self.folder / "log").read_text(errors="replace")

    def _write(self, relay: int) -> None:
        domains = ", ".join(f'"{domain}"' for domain in _DOMAINS)
        fields = {"folder": self.folder, "relay": relay, "port": self.port, "domains": domains}
        (self.folder / "smtpd.conf").write_text(_CONFIGURATION.format(**fields))
        (self.folder / "smtpd.conf").chmod(0o600)
        people = [f"{name} {_NOBODY}:{_NOBODY}:{self.folder}" for name in ("anna", "bounces", "shop")]
        (self.folder / "people").write_text("\n".join(people) + "\n")
        (self.folder / "mail").mkdir()
        os.chown(self.folder / "mail", _NOBODY, _NOBODY) if os.geteuid() == 0 else None
        (self.folder / "mail").chmod(0o777)
        known = {line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines()}
        users = [
            f"{name}:x:{number}:{number}::/var/lib/opensmtpd/empty:/usr/sbin/nologin"
            for name, number in (("opensmtpd", 64990), ("opensmtpq", 64991))
            if name not in known
        ]
        groups = [f"{name}:x:{number}:" for name, number in (("opensmtpd", 64990), ("opensmtpq", 64991))]
        groups = [line for line in groups if line.split(":")[0] not in known]
        for name, more in (("passwd", users), ("group", groups)):
            (self.folder / name).write_text(Path("/etc", name).read_text() + "".join(f"{line}\n" for line in more))

    def _start(self) -> None:
        libexec = ""
        if self._binary.root != Path("/"):
            (self.folder / "libexec").mkdir()
            shutil.copytree(self._binary.root / "usr/libexec/opensmtpd", self.folder / "libexec" / "opensmtpd")
            libexec = f"mount --bind {shlex.quote(str(self.folder / 'libexec'))} /usr/libexec"
        # It ends with us, however we end: setpriv sees to unshare, unshare to the shell, the first process of its
        # namespace, and with that one go all the others.
        script = _NAMESPACE.format(
            folder=shlex.quote(str(self.folder)), libexec=libexec, smtpd=shlex.quote(str(self._binary.path))
        )
        as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            *as_root,
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            script,
        ]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self._binary.environment)
        until_blocking(self._answers, what="OpenSMTPD answers")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise Unavailable(f"OpenSMTPD ended at once: {self.log.strip() or 'it said nothing'}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(3) == b"220"
        except OSError:
            return False

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()  # with it goes the first process of its namespace, and so all of them
            self._process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)
