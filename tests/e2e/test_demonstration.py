"""`dripline demo`: some days of a simulated shop in virtual time, with a fresh data folder and nothing else."""

from __future__ import annotations

import json
import mailbox
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from services.audit import audit_and_print
from shared.embedded_postgres import EmbeddedPostgres
from shared.settings import load
from tests.support.computed_again import KINDS, computed_again

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ("DATABASE_URL", "BUS_URL", "SMTP_URL", "DATA_DIR")  # what would lead the demonstration elsewhere

pytestmark = pytest.mark.timeout(300)


@dataclass
class Lived:
    """What the command said and left behind."""

    status: int
    report: str
    log: str
    data: Path


@pytest.fixture(scope="module")
def lived() -> Iterator[Lived]:
    folder = Path(tempfile.mkdtemp(prefix="dripline-test-demo-"))
    folder.chmod(0o755)  # the embedded database is another user when the tests run as root
    try:
        yield live(folder / "data")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def live(data: Path) -> Lived:
    """Lets the command run to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "services", "demo", "--days", "3", "--exit", "--port", "0", "--data", str(data)],
        cwd=ROOT,
        env={**{name: value for name, value in os.environ.items() if name not in OUTSIDE}, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return Lived(done.returncode, done.stdout, done.stderr, data)


def test_three_days_of_the_shop_end_well_with_balanced_books(lived: Lived) -> None:
    assert lived.status == 0, f"{lived.report}\n{lived.log}"[-4000:]
    books = lived.report[lived.report.index("The books") :]
    assert books.count("✓") >= 8
    assert "✗" not in books
    assert number(lived.report, "events applied") > 500
    assert number(lived.report, "people known") > 100
    assert number(lived.report, "runs of rules") > 20


def test_the_letters_lie_in_the_inbox(lived: Lived) -> None:
    letters = mailbox.Maildir(lived.data / "inbox" / "email", create=False)
    sent = sum(int(count) for count in re.findall(r"│ email\s+│\s+(\d+) │", lived.report))
    assert len(letters) == sent > 0
    assert all(letter["To"] and letter["Subject"] for letter in letters)


def test_people_read_their_letters_and_follow_the_links(lived: Lived) -> None:
    total = re.search(r"^all\s+│\s+│\s+(\d+) │\s+(\d+) │\s+(\d+) │", lived.report, re.MULTILINE)
    assert total is not None, lived.report
    sent, opened, clicked = map(int, total.groups())
    assert sent > opened > clicked > 0


def test_the_log_names_nobody_and_only_the_owner_reads_the_keys(lived: Lived) -> None:
    credentials = lived.data / "credentials.json"
    assert credentials.stat().st_mode & 0o777 == 0o600
    keys = json.loads(credentials.read_text())
    assert set(keys) == {"url", "site_write_key", "server_write_key", "api_key"}
    addresses = {letter["To"] for letter in mailbox.Maildir(lived.data / "inbox" / "email", create=False)}
    assert [address for address in addresses if address in lived.log] == []


async def test_every_decision_of_the_shops_life_is_computed_again_without_a_difference(lived: Lived) -> None:
    settings = load(data_dir=lived.data)
    said = StringIO()
    with EmbeddedPostgres(lived.data) as server:
        well = await audit_and_print(settings, server.url, Console(file=said, width=200), derive=True)
    assert well, said.getvalue()[-4000:]
    again = computed_again(said.getvalue())
    assert all(again[kind] > 0 for kind in KINDS), again
    assert computed_again(lived.report) == again, "the report ends with the same"


def test_what_was_not_sent_adds_up(lived: Lived) -> None:
    table = lived.report[lived.report.index("Not sent, and why") :].split("\n\n")[0]
    counts = [int(found[1]) for found in re.finditer(r"^[^│]*│[^│]*│\s+(\d+) │", table, re.MULTILINE)]
    assert sum(counts[:-1]) == counts[-1] > 0


def number(said: str, name: str) -> int:
    found = re.search(rf"{name}\s+│\s*([\d ]+)", said)
    assert found is not None, f"the report does not say {name!r}"
    return int(found[1].replace(" ", ""))


def test_a_second_demo_in_the_same_folder_says_what_to_do(lived: Lived) -> None:
    """A life that was broken off is no success; one that was lived is, and neither is lived twice."""
    again = live(lived.data)
    assert (again.status, again.report) == (0, "")
    assert "holds a shop that has lived already: it is shown as it is. For a new one name another folder" in again.log
    notes = lived.data / "demo.json"
    notes.write_text(notes.read_text().replace("lived", "begun"))
    again = live(lived.data)
    assert (again.status, again.report) == (1, "")
    assert "holds a shop whose life was broken off before its end" in again.log
