"""`python -m demo` as a process: the pipe is the only way time passes, and HTTP the only way anything is said."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from demo.customers import Run
from demo.shop import Post, Shop

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / "tests" / "support" / "tracking_peer.py"
START = datetime.fromisoformat("2026-11-02T00:00:00+03:00")
KEY = "cabcdefghijklmnopqrstuvwx"
DAYS, SEED, CUSTOMERS = 2, 3, 40


@contextmanager
def peer(tmp_path: Path, messages: list[dict]):
    (tmp_path / "messages.json").write_text(json.dumps(messages))
    command = [
        sys.executable,
        str(PEER),
        "--ledger",
        str(tmp_path / "ledger"),
        "--key",
        KEY,
        "--messages",
        str(tmp_path / "messages.json"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def shop_process(url: str, **environment: str):
    keys = {f"DEMO_{name}": KEY for name in ("SITE_WRITE_KEY", "SERVER_WRITE_KEY", "API_KEY")}
    words = {"start": START.isoformat(), "days": DAYS, "seed": SEED, "customers": CUSTOMERS, "url": url}
    command = [sys.executable, "-m", "demo", *(f"--{name}={value}" for name, value in words.items())]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | keys | environment, text=True, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def converse(process) -> list[dict]:
    """Plays the parent: sets a clock, answers, and keeps what was said."""
    said, now = [], START
    for line in process.stdout:
        words = json.loads(line)
        said.append(words)
        if "at" in words:
            now = max(now, datetime.fromisoformat(words["at"]))
            answer = {"ok": True, "now": now.isoformat()}
        elif "close" in words:
            now = max(now, datetime.fromisoformat(words["close"]) - timedelta(microseconds=1))
            answer = {"closed": True}
        elif words.get("done") or "failed" in words:
            continue
        else:
            answer = {"ok": True}
        process.stdin.write(json.dumps(answer) + "\n")
        process.stdin.flush()
    return said


def ledger(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]


def expected_events() -> list[dict]:
    run = Run(START, START + timedelta(days=DAYS), timedelta(minutes=15), SEED, CUSTOMERS, "http://shop.example")
    return [event for post in Shop(run).take(run.end) if isinstance(post, Post) for event in post.events]


def test_a_run_posts_everything_in_the_time_it_is_given_and_tells_what_happened(tmp_path):
    with peer(tmp_path, []) as url, shop_process(url, DEMO_SHOP_URL="http://shop.example") as process:
        said = converse(process)
        assert process.wait(10) == 0, process.stderr.read()
    assert said[0] == {"ready": True, "slices": DAYS * 96}
    assert said[-1]["done"] is True
    posted = [entry["event"] for entry in ledger(tmp_path)]
    assert posted == expected_events()
    assert said[-1]["stats"]["events_total"] == len(posted)
    _check_order(said)


def _check_order(said: list[dict]) -> None:
    """Time only goes forward and stays in the slice that was opened; a slice is opened once the former is closed."""
    opened = closed = START
    for words in said:
        if "slice" in words:
            start, end = (datetime.fromisoformat(words["slice"][name]) for name in ("start", "end"))
            assert start >= closed
            assert closed == start, "everything before a slice is closed when it begins"
            opened = end
        elif "at" in words:
            assert closed <= datetime.fromisoformat(words["at"]) < opened
        elif "close" in words:
            assert datetime.fromisoformat(words["close"]) > closed
            closed = datetime.fromisoformat(words["close"])
    assert closed == START + timedelta(days=DAYS)


def test_people_read_their_messages_and_use_the_links(tmp_path):
    run = Run(START, START + timedelta(days=DAYS), timedelta(minutes=15), SEED, CUSTOMERS, "http://shop.example")
    messages = [
        {
            "id": f"m-{number}",
            "rule": "double-opt-in",
            "channel": "email",
            "state": "sent",
            "address": customer.person.email,
            "sent_at": (START + timedelta(hours=9)).isoformat(),
            "text": f"http://elsewhere.example/confirm/{number}?t=1\nOr leave: http://elsewhere.example/u/{number}",
            "links": [f"http://elsewhere.example/o/{number}"],
        }
        for number, customer in enumerate(Shop(run).customers)
    ]
    with peer(tmp_path, messages) as url, shop_process(url) as process:
        said = converse(process)
        assert process.wait(10) == 0, process.stderr.read()
    links = [(entry["method"], entry["path"]) for entry in ledger(tmp_path) if "path" in entry]
    pressed = [path for method, path in links if method == "POST"]
    assert len(pressed) > CUSTOMERS // 3
    assert all(("GET", path) in links for path in pressed), "the page is looked at before its button is pressed"
    assert len(set(pressed)) == len(pressed)
    assert all(path.startswith("/confirm/") for path in pressed)
    assert any(path.startswith("/o/") for _, path in links)
    assert sum(said[-1]["stats"]["reactions"].values()) == len(messages), "every message is read off the list once"


def test_a_server_that_refuses_ends_the_run_with_one_sentence(tmp_path):
    with peer(tmp_path, []) as url, shop_process(url, DEMO_SERVER_WRITE_KEY="wrong") as process:
        said = converse(process)
        assert process.wait(10) == 1
        complaint = process.stderr.read()
    assert "401" in said[-1]["failed"]
    assert "Traceback" not in complaint


def test_a_parent_that_goes_away_ends_the_run(tmp_path):
    with peer(tmp_path, []) as url, shop_process(url) as process:
        assert json.loads(process.stdout.readline())["ready"]
        process.stdin.close()
        assert process.wait(10) == 1
        assert process.stderr.read() == "demo: the pipe is closed\n"


@pytest.mark.parametrize(
    ("name", "value", "sentence"), [("DEMO_API_KEY", "", "must be set"), ("DEMO_SLICE_MINUTES", "7", "divide a day")]
)
def test_a_wrong_option_is_one_sentence(name, value, sentence):
    with shop_process("http://127.0.0.1:9", **{name: value}) as process:
        assert process.wait(10) == 2
        assert sentence in process.stderr.read()
