"""After a restore shards have new names, and readers pass by what the restore undid; the journal's file says what it must."""

from __future__ import annotations

import fcntl
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from services.bus_move import highest
from shared.batch import _unseen
from shared.bus.base import Record
from shared.erasure import append_to_file, digest, lines_of, read_file
from shared.outbox import HEADER, UNDONE, free_shards, partition_shard, read_header, renamed

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
SECRET = b"s" * 32


def record(shard: str, number: int, index: int = 0) -> Record:
    return Record("messages", 0, number, b"k", b"{}", {HEADER: f"{shard},{number},{index}".encode()})


def test_every_shard_of_a_generation_has_the_name_that_the_next_one_gives_it() -> None:
    assert [renamed(shard, 9) for shard in free_shards(9)] == free_shards(10)
    shard = partition_shard("events", 3, "kafka:cluster:topic", 1)
    assert renamed(shard, 1) == partition_shard("events", 3, "kafka:cluster:topic", 2)
    with pytest.raises(ValueError, match="no shard of generation 1"):
        renamed("free/3@11", 1)


def test_two_topics_of_one_kafka_cluster_have_shards_of_their_own() -> None:
    one, other = (partition_shard("events", 3, f"kafka:5L6g3nShT-eMCtK--X86sw:{topic}", 1) for topic in ("a", "b"))
    assert one != other


def test_what_a_restore_undid_is_passed_by_and_its_new_name_counts() -> None:
    old, new = free_shards(1)[3], free_shards(2)[3]
    seen = {old: [5, 0], UNDONE + old: [7, 0], new: [5, 0]}
    records = [record(old, 5), record(old, 6), record(old, 7, 2), record(old, 8), record(old, 99), record(new, 6)]
    fresh, after = _unseen(seen, [*records, record(new, 8)])
    places = [read_header(one.headers[HEADER]) for one in fresh]
    assert places == [(old, 6, 0), (old, 7, 2), (new, 6, 0), (new, 8, 0)]
    assert (after[old], after[new], after[UNDONE + old]) == ([7, 2], [8, 0], [7, 0])


def test_on_a_new_bus_every_reader_knows_the_highest_place_that_any_has_seen() -> None:
    assert highest([{"a": [1, 5], "b": [2, 0]}, {"a": [2, 0]}, {}]) == {"a": [2, 0], "b": [2, 0]}


def test_the_file_of_the_journal_tells_nothing_but_hashes_and_the_latest_moment(tmp_path: Path) -> None:
    file, node, other = tmp_path / "deep" / "erasures.txt", uuid4(), UUID(int=1)
    append_to_file(file, SECRET, [node, other], NOON)
    append_to_file(file, SECRET, [node], NOON + timedelta(days=1))
    append_to_file(file, SECRET, [node], NOON - timedelta(days=1))
    assert read_file(file) == {digest(SECRET, node): NOON + timedelta(days=1), digest(SECRET, other): NOON}
    assert str(node) not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    again = tmp_path / "again.txt"
    again.write_text(lines_of(read_file(file)))
    assert read_file(again) == read_file(file)


@pytest.mark.parametrize("line", ["nonsense", "ab 2026-03-10T12:00:00+00:00", f"{'0' * 64} 2026-03-10T12:00:00"])
def test_a_journal_that_is_none_is_refused_with_the_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "erasures.txt"
    file.write_text(f"{'0' * 64} 2026-03-10T12:00:00+00:00\n{line}\n")
    with pytest.raises(ValueError, match="line 2 of"):
        read_file(file)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The system writes what still fits, and refuses the rest: as a disk does that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_journal_that_cannot_be_written_whole_is_as_it_was_and_the_failure_is_told(tmp_path: Path) -> None:
    file = tmp_path / "erasures.txt"
    first, second, third = uuid4(), uuid4(), uuid4()
    append_to_file(file, SECRET, [first], NOON)
    before = file.read_bytes()
    with no_file_larger_than(len(before) + 30), pytest.raises(OSError, match="too large"):
        append_to_file(file, SECRET, [second], NOON)
    assert file.read_bytes() == before
    append_to_file(file, SECRET, [third], NOON)
    assert set(read_file(file)) == {digest(SECRET, first), digest(SECRET, third)}


def test_a_line_that_a_crash_left_unfinished_does_not_stick_to_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "erasures.txt"
    first, second = uuid4(), uuid4()
    append_to_file(file, SECRET, [first], NOON)
    with file.open("a") as torn:
        torn.write(digest(SECRET, uuid4()).hex()[:40])
    with pytest.raises(ValueError, match=r"line 2 of .* was cut off: .*copy"):
        read_file(file)
    append_to_file(file, SECRET, [second], NOON)
    assert read_file(file) == {digest(SECRET, first): NOON, digest(SECRET, second): NOON}


def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("what I must not forget")
    with pytest.raises(OSError, match="does not end like an erasure journal"):
        append_to_file(file, SECRET, [uuid4()], NOON)
    assert file.read_text() == "what I must not forget"


def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "erasures.txt"
    first, second = uuid4(), uuid4()
    file.write_text(lines_of({digest(SECRET, first): NOON}).rstrip("\n"))
    append_to_file(file, SECRET, [second], NOON)
    assert set(read_file(file)) == {digest(SECRET, first), digest(SECRET, second)}


def test_who_appends_and_who_reads_wait_for_each_other(tmp_path: Path) -> None:
    file = tmp_path / "erasures.txt"
    append_to_file(file, SECRET, [uuid4()], NOON)
    with ThreadPoolExecutor(2) as threads:
        with file.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            waiting = [threads.submit(append_to_file, file, SECRET, [uuid4()], NOON), threads.submit(read_file, file)]
            with pytest.raises(TimeoutError):
                waiting[0].result(0.1)
            assert not waiting[1].done()
            assert len(file.read_bytes().splitlines()) == 1
        for one in waiting:
            one.result(5)
    assert len(read_file(file)) == 2
