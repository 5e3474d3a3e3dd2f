"""One import from beginning to end: read, map, send several batches at once, remember what is durable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.importing.files import SourceFile, identity, open_source
from services.importing.formats import format_named
from services.importing.mapping import Mapping
from services.importing.problems import ImportProblem
from services.importing.records import LeftOut, Record, records
from services.importing.report import LeftOutFile, Report
from services.importing.sending import Batch, Refusal, Sender, batches
from services.importing.state import Identity, Progress, ProgressFile, target

# So many events refused by the server are no accident of single events: the import stops and says so.
MAX_REFUSED = 1_000


@dataclass(frozen=True)
class Import:
    """What to import where.

    `live`: events of today that may start rules, sent one batch after the other in the file's order; otherwise history,
    `concurrency` batches at a time. `patience`: seconds that an unreachable server is waited for.
    """

    source: Path
    mapping: Mapping
    url: str
    key: str
    state: Path
    left_out: Path
    live: bool = False
    concurrency: int = 4
    patience: float = 120.0


@dataclass(frozen=True)
class Position:
    """How far an import is, for a progress bar: bytes of the file read, its size, events acknowledged."""

    read: int
    size: int
    sent: int


def read_records(source: Path, mapping: Mapping, *, live: bool = False) -> Iterator[Record]:
    """All records of a file with their events, in order; nothing is sent. Raises ImportProblem."""
    file_id = identity(source)
    _check_columns(source, mapping)
    with open_source(source) as file:
        yield from _records(file, mapping, file_id, live)


def _records(file: SourceFile, mapping: Mapping, file_id: str, live: bool) -> Iterator[Record]:
    rows = format_named(mapping.format).read(file.data, mapping.options)
    return records(mapping, rows, file_id=file_id, live=live)


def _check_columns(source: Path, mapping: Mapping) -> None:
    with open_source(source) as file:
        mapping.check_fields(format_named(mapping.format).fields(file.data, mapping.options))


async def run_import(
    job: Import,
    *,
    client: httpx.AsyncClient | None = None,
    on_progress: Callable[[Position], None] = lambda position: None,
    on_retry: Callable[[str], None] = lambda reason: None,
) -> Report:
    """Imports a file and returns the report. Raises ImportProblem if it cannot go on.

    What was acknowledged is in the progress file whichever way this ends (cancellation too); called again with the same
    file, mapping, server and key it goes on from there. Sending something twice changes nothing: every event has a
    messageId made from what it is a record of.
    """
    file_id = identity(job.source)
    _check_columns(job.source, job.mapping)
    progress_file = ProgressFile(job.state)
    progress = progress_file.load(Identity(file_id, job.mapping.digest, target(job.url, job.key), job.live))
    limits = httpx.Limits(max_connections=job.concurrency)
    async with client or httpx.AsyncClient(base_url=job.url, timeout=30.0, limits=limits) as http:
        sender = Sender(http, job.key, patience=job.patience, on_retry=on_retry)
        return await _Run(job, file_id, sender, progress_file, progress, on_progress).run()


class _Run:
    """The moving parts of one import: one reader, several senders, and the first gap in what is acknowledged."""

    def __init__(
        self,
        job: Import,
        file_id: str,
        sender: Sender,
        progress_file: ProgressFile,
        progress: Progress,
        on_progress: Callable[[Position], None],
    ) -> None:
        self.job, self.file_id, self.sender = job, file_id, sender
        self.progress_file, self.progress, self.on_progress = progress_file, progress, on_progress
        self.report = Report(resumed=progress.events)
        self.left_out = LeftOutFile(job.left_out)
        self.done: dict[int, tuple[Batch, list[Refusal]]] = {}
        self.next_done = 0
        self.position = (0, 0)

    async def run(self) -> Report:
        for refusal in self.progress.refused:
            self._refuse(refusal)
        try:
            await self._send_all()
            self.report.complete = True
        finally:
            self.report.sent = self.progress.events
            self.left_out.close()
            if self.report.complete:
                self.progress_file.remove()
            elif self.progress.records:
                self.progress_file.save(self.progress)
        return self.report

    async def _send_all(self) -> None:
        workers = 1 if self.job.live else self.job.concurrency
        queue: asyncio.Queue[Batch | None] = asyncio.Queue(maxsize=workers)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(queue))
                await self._read(queue)
                for _ in range(workers):
                    await queue.put(None)
        except BaseExceptionGroup as problems:
            raise _first(problems) from None

    async def _read(self, queue: asyncio.Queue[Batch | None]) -> None:
        with open_source(self.job.source) as file:
            for batch in batches(self._unsent(file)):
                await queue.put(batch)
                self.position = (file.position, file.size)
            self.position = (file.size, file.size)

    def _unsent(self, file: SourceFile) -> Iterator[Record]:
        """The records that are not acknowledged yet; all of them are counted and what they leave out is listed."""
        for number, record in enumerate(_records(file, self.job.mapping, self.file_id, self.job.live)):
            self.report.add(record)
            for item in record.left_out:
                self.left_out.add(item)
            if number >= self.progress.records:
                yield record

    async def _work(self, queue: asyncio.Queue[Batch | None]) -> None:
        while (batch := await queue.get()) is not None:
            self._acknowledged(batch, await self.sender.send(batch))

    def _acknowledged(self, batch: Batch, refused: list[Refusal]) -> None:
        """Moves the progress over all batches that are complete without a gap."""
        self.done[batch.number] = (batch, refused)
        while self.next_done in self.done:
            complete, refusals = self.done.pop(self.next_done)
            self.next_done += 1
            self.progress.records += complete.records
            self.progress.events += len(complete.events) + len(complete.refused) - len(refusals)
            for refusal in refusals:
                self.progress.refused.append(refusal)
                self._refuse(refusal)
            self.progress_file.save(self.progress)
        self.on_progress(Position(*self.position, self.progress.events))
        if len(self.progress.refused) > MAX_REFUSED:
            raise ImportProblem(
                f"the server refused {len(self.progress.refused)} events, the last because: "
                f"{self.progress.refused[-1].reason}; mend the mapping or the file "
                f"(they are listed in {self.job.left_out})"
            )

    def _refuse(self, refusal: Refusal) -> None:
        self.report.refused[refusal.reason] += 1
        self.left_out.add(LeftOut(refusal.line, refusal.key, f"refused: {refusal.reason}", {}))


def _first(group: BaseExceptionGroup) -> BaseException:
    """The first failure of a task group: there is one reader of the sentence."""
    problem: BaseException = group
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem
