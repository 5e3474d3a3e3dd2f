"""After a restore shards have new names, and readers pass by what the restore undid; the journal's file says what it must."""

from __future__ import annotations

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
