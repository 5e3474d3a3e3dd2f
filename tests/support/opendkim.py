"""OpenDKIM, as a judge of signatures that shares no line with what made them."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.support.debian import program


def verdict(letter: bytes, records: dict[str, bytes]) -> str:
    """What it says of a letter.

    :param records: by name (`drip._domainkey.shop.example`), what the DNS would answer
    :raises tests.support.debian.Unavailable: it cannot be had here
    """
    judge = program("opendkim", "usr/sbin/opendkim")
    with tempfile.TemporaryDirectory(prefix="dripline-test-opendkim-") as name:
        folder = Path(name)
        keys = b"".join(host.encode() + b" " + record + b"\n" for host, record in records.items())
        (folder / "keys").write_bytes(keys)
        (folder / "opendkim.conf").write_text(f"Mode v\nTestPublicKeys {folder}/keys\n")
        (folder / "letter").write_bytes(letter.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
        command = [str(judge.path), "-x", str(folder / "opendkim.conf"), "-t", str(folder / "letter")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=judge.environment)
    return done.stdout + done.stderr
