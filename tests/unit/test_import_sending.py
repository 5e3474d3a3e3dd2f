"""Importing over real HTTP into a peer process that keeps a ledger: once only, whatever breaks on the way."""

import asyncio
import csv
import json
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from services.importing.mapping import parse_mapping
from services.importing.problems import ImportProblem
from services.importing.runner import Import, run_import
from services.importing.sending import Batch, Sender, retry_after
from services.importing.state import beside

PEER = Path(__file__).resolve().parents[1] / "support" / "tracking_peer.py"
KEY = "cabcdefghijklmnopqrstuvwx"
MAPPING = {
    "name": "orders",
    "format": "jsonl",
    "events": [
        {
            "event": "Order Completed",
            "key": "{no}",
            "user_id": "who",
            "timestamp": {"field": "at", "as": "time"},
            "properties": {"order_id": "no", "text": "text", "refuse": {"field": "refuse", "as": "as_is"}},
        }
    ],
}


COMMAND = "import typer; from services.importing.command import import_command; typer.run(import_command)"


class Peer:
    def __init__(self, url: str, ledger: Path) -> None:
        self.url, self._ledger = url, ledger

    @property
    def ledger(self) -> list[dict]:
        return [json.loads(line) for line in self._ledger.read_text().splitlines()] if self._ledger.exists() else []

    @property
    def ids(self) -> Counter:
        return Counter(entry["event"]["messageId"] for entry in self.ledger)


@pytest.fixture
def peer_of(tmp_path):
    @contextmanager
    def start(*options: str):
        ledger = tmp_path / "ledger.jsonl"
        command = [sys.executable, str(PEER), "--ledger", str(ledger), "--key", KEY, *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            yield Peer(f"http://127.0.0.1:{int(process.stdout.readline())}", ledger)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    return start


def order(number: int, **more) -> dict:
    return {"no": f"{number}", "who": f"u-{number % 7}", "at": "2024-03-01T10:00:00Z"} | more


@pytest.fixture
def job_of(tmp_path):
    def make(orders: list[dict], url: str, **changes) -> Import:
        source = tmp_path / "orders.jsonl"
        source.write_text("".join(json.dumps(each) + "\n" for each in orders))
        places = {"state": tmp_path / "progress.json", "left_out": tmp_path / "left-out.csv"}
        return Import(
            **({"source": source, "mapping": parse_mapping(MAPPING), "url": url, "key": KEY} | places | changes)
        )

    return make


def wanted(orders: list[dict]) -> set[str]:
    return {f"orders:OrderCompleted:{each['no']}" for each in orders}


async def test_every_order_arrives_once_and_the_progress_file_is_gone(peer_of, job_of):
    orders = [order(n) for n in range(1700)]
    with peer_of() as peer:
        job = job_of(orders, peer.url)
        report = await run_import(job)
        assert set(peer.ids) == wanted(orders)
        assert set(peer.ids.values()) == {1}
    assert (report.rows, report.records, report.sent, report.complete) == (1700, 1700, 1700, True)
    assert not job.state.exists()
    assert not job.left_out.exists()


async def test_a_second_import_sends_the_same_message_ids(peer_of, job_of):
    orders = [order(n) for n in range(30)]
    with peer_of() as peer:
        await run_import(job_of(orders, peer.url))
        await run_import(job_of(orders, peer.url))
        assert set(peer.ids) == wanted(orders)
        assert set(peer.ids.values()) == {2}


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_broken_off_it_goes_on_where_it_stopped(peer_of, job_of, concurrency):
    orders = [order(n) for n in range(5000)] + [{"no": "x"}]
    with peer_of("--delay", "0.02") as peer:
        job = job_of(orders, peer.url, concurrency=concurrency)
        enough = asyncio.Event()
        task = asyncio.create_task(run_import(job, on_progress=lambda position: position.sent >= 1500 and enough.set()))
        await asyncio.wait_for(enough.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        acknowledged = json.loads(job.state.read_text())["records"]
        assert 1500 <= acknowledged < 5000
        report = await run_import(job)
        assert set(peer.ids) == wanted(orders[:-1])
        # only what was under way or not yet known to be acknowledged may have gone twice
        twice = sum(count - 1 for count in peer.ids.values())
        assert twice <= 500 * concurrency
        assert max(peer.ids.values()) <= 2
    assert (report.sent, report.rows, report.complete) == (5000, 5001, True)
    assert report.resumed == acknowledged
    listed = list(csv.DictReader(job.left_out.open()))
    assert [row["line"] for row in listed] == ["5001"], "what is left out is listed though it was read after the break"


def known_to(job) -> int:
    """How many records the progress file says are done."""
    return json.loads(job.state.read_text())["records"] if job.state.exists() else 0


async def test_a_batch_that_waits_keeps_the_later_ones_from_counting_as_progress(peer_of, job_of):
    orders = [order(n) for n in range(2000)]
    with peer_of("--answers", "503:8") as peer:
        job = job_of(orders, peer.url, concurrency=4)
        task = asyncio.create_task(run_import(job))
        async with asyncio.timeout(20):
            while len(peer.ledger) < 1500:
                await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        arrived = set(peer.ids)
        gap = min(n for n in range(2000) if f"orders:OrderCompleted:{n}" not in arrived)
        assert known_to(job) <= gap, "nothing behind the batch that waits counts as done"
        assert (await run_import(job)).sent == 2000
        assert set(peer.ids) == wanted(orders)


async def test_killed_without_warning_it_goes_on_from_what_it_knew(peer_of, job_of):
    orders = [order(n) for n in range(8000)]
    with peer_of("--delay", "0.02") as peer:
        job = job_of(orders, peer.url)
        (mapping := job.source.with_name("orders.yml")).write_text(json.dumps(MAPPING))
        words = [job.source, "--mapping", mapping, "--url", peer.url, "--key", KEY, "--state", job.state]
        command = [sys.executable, "-c", COMMAND, *map(str, words), "--left-out", str(job.left_out)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        async with asyncio.timeout(30):
            while known_to(job) < 2000:
                assert process.poll() is None
                await asyncio.sleep(0.02)
        process.kill()
        process.wait()
        acknowledged, sent_before = known_to(job), len(peer.ledger)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert set(peer.ids) == wanted(orders)
        assert set(peer.ids.values()) <= {1, 2}
        # what was under way when it was killed may have arrived after the count
        sent_again = len(peer.ledger) - sent_before
        assert sent_again <= 8000 - acknowledged + 5 * 500, "what was acknowledged long before was not sent again"
    assert not job.state.exists()


async def test_progress_of_another_file_or_server_is_not_gone_on_with(peer_of, job_of):
    with peer_of() as peer:
        job = job_of([order(n) for n in range(10)], peer.url)
        job.state.write_text(
            json.dumps(
                {"identity": {"file": "0", "mapping": "", "target": "", "live": False}, "records": 5, "events": 5}
            )
        )
        report = await run_import(job)
        assert len(peer.ids) == 10
        assert (report.sent, report.resumed) == (10, 0)


async def test_when_the_server_asks_to_wait_the_same_batch_comes_again_after_that_time(peer_of):
    waited = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    with peer_of("--answers", "503:7,429:2,500") as peer:
        async with httpx.AsyncClient(base_url=peer.url) as client:
            sender = Sender(client, KEY, patience=60, sleep=sleep, monotonic=lambda: 0.0)
            event = b'{"type":"track","event":"A","userId":"u","messageId":"m-1"}'
            assert await sender.send(Batch(0, 1, [event], [(1, "k")])) == []
        assert peer.ids == {"m-1": 1}
    assert waited[:2] == [7.0, 2.0]
    assert waited[2] > 0, "without Retry-After it waits by its own measure"


async def test_a_server_that_stays_away_ends_the_import_and_keeps_what_was_sent(peer_of, job_of):
    orders = [order(n) for n in range(1200)]
    with peer_of("--answers", "200,503:0.1,503:0.1,503:99") as peer:
        job = job_of(orders, peer.url, concurrency=1, patience=1.0)
        with pytest.raises(ImportProblem, match=r"503.*the same command goes on"):
            await run_import(job)
        assert json.loads(job.state.read_text())["records"] == 500
    with pytest.raises(ImportProblem, match="cannot be reached"):
        await run_import(job_of(orders, "http://127.0.0.1:9", patience=0.0))


async def test_a_wrong_key_is_said_at_once(peer_of, job_of):
    with peer_of() as peer:
        job = job_of([order(1)], peer.url, key="wrong")
        with pytest.raises(ImportProblem, match="no such write key"):
            await run_import(job)
        assert not job.state.exists()


async def test_what_the_server_refuses_is_listed_and_the_others_go_on(peer_of, job_of):
    orders = [order(n, refuse=True) for n in range(500)] + [order(n) for n in range(500, 600)]
    with peer_of() as peer:
        job = job_of(orders, peer.url)
        report = await run_import(job)
        assert set(peer.ids) == wanted(orders[500:])
    assert report.refused == {"/properties/refuse: this event is refused": 500}
    assert report.sent == 100
    assert len(list(csv.DictReader(job.left_out.open()))) == 500


@pytest.mark.parametrize("bad", [{7}, set(range(3, 500, 4)), {*range(40), 499}])
async def test_bad_events_among_good_ones_are_listed_and_do_not_count_as_sent(peer_of, job_of, bad):
    orders = [order(n, refuse=n in bad) for n in range(500)]
    with peer_of() as peer:
        job = job_of(orders, peer.url)
        report = await run_import(job)
        assert set(peer.ids) == wanted([each for n, each in enumerate(orders) if n not in bad])
    assert report.refused == {"/properties/refuse: this event is refused": len(bad)}
    assert report.sent == 500 - len(bad)
    assert {int(row["line"]) - 1 for row in csv.DictReader(job.left_out.open())} == bad


async def test_the_command_ends_with_2_when_a_single_event_was_refused(peer_of, job_of):
    with peer_of() as peer:
        job = job_of([order(1), order(2, refuse=True), order(3)], peer.url)
        (mapping := job.source.with_name("orders.yml")).write_text(json.dumps(MAPPING))
        words = [job.source, "--mapping", mapping, "--url", peer.url, "--key", KEY, "--left-out", job.left_out]
        done = subprocess.run([sys.executable, "-c", COMMAND, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert [row["line"] for row in csv.DictReader(job.left_out.open())] == ["2"]


async def test_an_import_that_is_refused_here_and_there_too_often_stops(peer_of, job_of, monkeypatch):
    monkeypatch.setattr("services.importing.runner.MAX_REFUSED", 100)
    with peer_of() as peer:
        with pytest.raises(ImportProblem, match="the server refused"):
            await run_import(job_of([order(n, refuse=n % 2 == 0) for n in range(1500)], peer.url))


async def test_a_batch_that_is_too_large_for_the_server_comes_in_halves(peer_of, job_of):
    orders = [order(n, text="x" * 100) for n in range(100)]
    with peer_of("--max-batch", "8000") as peer:
        report = await run_import(job_of(orders, peer.url))
        assert set(peer.ids) == wanted(orders)
        assert set(peer.ids.values()) == {1}
    assert (report.sent, report.refused.total()) == (100, 0)


async def test_an_event_that_is_too_large_is_listed_and_never_sent(peer_of, job_of):
    orders = [order(1), order(2, text="x" * 300_000), order(3)]
    with peer_of() as peer:
        job = job_of(orders, peer.url)
        report = await run_import(job)
        assert set(peer.ids) == wanted([orders[0], orders[2]])
    assert report.refused == {"larger than the 256 KiB that the API takes an event": 1}
    assert report.sent == 2
    assert next(csv.DictReader(job.left_out.open()))["line"] == "2"


async def test_live_events_go_one_batch_after_the_other_in_the_files_order(peer_of, job_of):
    orders = [order(n) for n in range(2000)]
    with peer_of("--delay", "0.01") as peer:
        await run_import(job_of(orders, peer.url, live=True, concurrency=4))
        assert [entry["event"]["properties"]["order_id"] for entry in peer.ledger] == [str(n) for n in range(2000)]
        assert all("context" not in entry["event"] for entry in peer.ledger)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Wed, 01 May 2024 10:00:30 GMT", 30.0),
        ("Wed, 01 May 2024 09:00:00 GMT", 0.0),
        ("soon", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after(header, datetime(2024, 5, 1, 10, tzinfo=UTC)) == seconds


def test_progress_lies_beside_the_file_unless_its_folder_is_read_only(tmp_path):
    source, home = tmp_path / "data" / "orders.csv", tmp_path / "home"
    source.parent.mkdir()
    assert beside(source, ".progress.json", home) == source.with_name("orders.csv.progress.json")
    source.parent.chmod(0o555)
    elsewhere = beside(source, ".progress.json", home)
    assert elsewhere.parent == home
    assert elsewhere == beside(source, ".progress.json", home)
    assert elsewhere != beside(tmp_path / "data2" / "orders.csv", ".progress.json", home)
    source.parent.chmod(0o755)
