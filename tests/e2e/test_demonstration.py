"""`dripline demo`: some days of a simulated shop in virtual time, by a fresh data folder and nothing else."""

from __future__ import annotations

import json
import mailbox
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_three_days_of_the_shop_end_well_with_balanced_books_and_letters_in_the_inbox(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "BUS_URL", "SMTP_URL")}
    tmp_path.chmod(0o755)  # the embedded database is another user when the tests run as root
    done = subprocess.run(
        [sys.executable, "-m", "services", "demo", "--days", "3", "--exit", "--port", "0", "--data", str(tmp_path / "data")],
        cwd=ROOT,
        env={**environment, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said[-4000:]

    books = done.stdout[done.stdout.index("The books") :]
    assert books.count("✓") >= 8
    assert "✗" not in books
    assert number(said, "events applied") > 100
    assert number(said, "people known") > 50
    assert number(said, "runs of rules") > 5

    letters = mailbox.Maildir(tmp_path / "data" / "inbox", create=False)
    assert len(letters) > 0
    assert all(letter["To"] and letter["Subject"] for letter in letters)
    keys = json.loads((tmp_path / "data" / "credentials.json").read_text())
    assert set(keys) == {"url", "site_write_key", "server_write_key", "api_key"}
    assert not re.search(r"@example\.(com|org)", done.stderr), "no personal data in the log"


def number(said: str, name: str) -> int:
    found = re.search(rf"{name}\s+(?:[│|]\s*)?([\d ]+)", said)
    assert found is not None, f"the report does not say {name!r}"
    return int(found[1].replace(" ", ""))
