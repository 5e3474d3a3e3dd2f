"""A shop's past goes into a running server: people, orders and money right to the penny, and nobody is written to.

What must come out is worked out here from the file with csv and Decimal alone.
"""

from __future__ import annotations

import csv
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from services.audit import audit
from services.rules_files import SHIPPED
from shared.embedded_postgres import EmbeddedPostgres
from shared.settings import load
from tests.faults.books import Observer
from tests.faults.deployment import ONE_PROCESS, ROOT, Deployment
from tests.support import databases
from tests.support.shop import SERVICES, Shop
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until, until_blocking

INVOICES = Path(__file__).resolve().parents[3] / "shared" / "data" / "online_retail_sample.csv.xz"
EVENTS = 1850 + 318  # orders and refunds, as tests/unit/test_import_real_files.py counts them

pytestmark = [
    pytest.mark.skipif(not INVOICES.exists(), reason=f"LOUD: {INVOICES} is not there; the import is not checked"),
    pytest.mark.timeout(300),
]


@dataclass
class Expected:
    """What somebody bought and gave back."""

    orders: int = 0
    spent: Decimal = Decimal(0)
    refunded: Decimal = Decimal(0)


def expected_people() -> dict[str, Expected]:
    """Customer number, or guest and invoice → what the file says of them."""
    people: dict[str, Expected] = defaultdict(Expected)
    invoices: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    with lzma.open(INVOICES, "rt", encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            quantity, price, number = int(line["Quantity"]), Decimal(line["UnitPrice"]), line["InvoiceNo"]
            cancels = number.startswith("C")
            if price > 0 and (quantity < 0 if cancels else quantity > 0):
                person = line["CustomerID"].removesuffix(".0") or f"guest:{number}"
                invoices[person, number] += quantity * price
    for (person, number), amount in invoices.items():
        if number.startswith("C"):
            people[person].refunded -= amount
        else:
            people[person].orders += 1
            people[person].spent += amount
    return dict(people)


@pytest.fixture(scope="module")
async def shop(postgres_server: EmbeddedPostgres) -> AsyncIterator[tuple[Shop, Deployment]]:
    """An English shop with all shipped rules active, before anything is known of anybody."""
    folder = Path(tempfile.mkdtemp(prefix="dripline-test-import-"))
    with SmtpPeer() as letters:
        async with databases.cloned(postgres_server.url, "template0") as url:
            made = Deployment(folder, database_url=url, bus_url=None, smtp_url=letters.url, layout=ONE_PROCESS)
            made.environment |= {"SHOP_CURRENCY": "GBP", "SHOP_COUNTRY": "GB", "SHOP_TIMEZONE": "Europe/London"}
            try:
                await made.start()
                await until((folder / "data" / "credentials.json").exists, what="the first start wrote its credentials")
                where = made.of("ingest")[0].url
                made.command("rules", "apply", str(SHIPPED), "--activate", "--url", where, "--key", made.api_key)
                async with Shop(dict.fromkeys(SERVICES, where), made.credentials, letters) as outside:
                    yield outside, made
                made.stop()
            finally:
                for process in made.processes:
                    if process.is_running:
                        process.kill()
                shutil.rmtree(folder, ignore_errors=True)


def import_command(deployment: Deployment, *more: str) -> list[str]:
    folder = deployment.folder
    where = ("--url", deployment.of("ingest")[0].url, "--key", deployment.write_key)
    files = ("--state", str(folder / "progress.json"), "--left-out", str(folder / "left-out.csv"))
    return ["import", str(INVOICES), "--mapping", "online-retail", *where, *files, *more]


def break_off(deployment: Deployment) -> None:
    """Begins the import and presses Ctrl-C as soon as something of it is durable."""
    process = subprocess.Popen(
        [sys.executable, "-m", "services", *import_command(deployment, "--concurrency", "1")],
        cwd=ROOT,
        env={**os.environ, **deployment.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until_blocking(
            (deployment.folder / "progress.json").exists, limit=60, what="the import has come some way", every=0.005
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()


async def all_handled(deployment: Deployment) -> None:
    async with Observer.of(deployment) as observer:
        await until(lambda: _none_left(observer), limit=120, what="the history is applied", every=0.3)


async def _none_left(observer: Observer) -> bool:
    return await observer.lag("profile") == 0


async def people_in(shop: Shop) -> dict[str, dict[str, Any]]:
    """Customer number, or guest and invoice → profile."""
    found = {}
    for profile in await shop.all("/v1/profiles"):
        [name] = [one["value"] for one in profile["identifiers"]]
        found[name] = profile
    return found


async def test_a_broken_off_import_goes_on_and_everybody_has_their_orders_to_the_penny(
    shop: tuple[Shop, Deployment],
) -> None:
    outside, deployment = shop
    break_off(deployment)
    said = deployment.command(*import_command(deployment))
    before = re.search(r"of them before\s+(\d+)", said)
    assert before is not None
    assert 0 < int(before[1]) < EVENTS
    await all_handled(deployment)

    expected, found = expected_people(), await people_in(outside)
    assert set(found) == set(expected)
    assert len(found) == 445 + 158
    for name, person in expected.items():
        figures = found[name]["figures"]
        assert figures["orders"] == person.orders, name
        assert money(figures["refunded"]) == person.refunded, name
        assert money(figures["total"]) == person.spent - person.refunded, name
        assert sum(money(order["total"]) for order in found[name]["orders"]) == person.spent, name
    assert sum(len(person["orders"]) for person in found.values()) == 1850
    assert sum(len(person["refunds"]) for person in found.values()) == 318


def money(amount: float) -> Decimal:
    """The digits that stand in the JSON."""
    return Decimal(repr(amount))


async def test_nobody_was_written_to_and_no_rule_began(shop: tuple[Shop, Deployment]) -> None:
    outside, _ = shop
    rules = {rule["name"] for rule in await outside.all("/v1/rules", state="active")}
    assert rules == {"abandoned-cart", "churn", "double-opt-in", "welcome"}
    assert await outside.all("/v1/messages", state="sent") == []
    assert outside.smtp.entries() == []
    for rule in rules - {"churn"}:  # churn looks at the base once a day, and may do so while this test runs
        assert await outside.all("/v1/runs", rule=rule) == []


async def test_a_second_import_changes_nothing(shop: tuple[Shop, Deployment]) -> None:
    outside, deployment = shop
    before = await people_in(outside)
    deployment.command(*import_command(deployment))
    await all_handled(deployment)
    assert await people_in(outside) == before
    settings = load(database_url=deployment.database_url, partitions=8)
    books = {book.name: book for book in await audit(settings, deployment.database_url)}
    assert [name for name, book in books.items() if not book.balanced] == []
    assert books["events"].right["stored"] == EVENTS
    # what was on its way when the import was broken off may have come twice already
    assert books["read from history"].right["applied"] == EVENTS
    assert books["read from history"].right["repeated"] >= EVENTS
    assert books["read from history"].right["conflicting"] == 0
