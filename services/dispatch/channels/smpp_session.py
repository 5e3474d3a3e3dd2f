"""One bound SMPP 3.4 session (transceiver) on one TCP connection: window, timers, answers matched by number.

The PDUs that carry messages are packed and read by the library smpp34; the session is our own, because the library's
acknowledges a receipt before anybody has stored it, does not tell a request that never left from one without an answer,
hides why a bind was refused, fixes its timers, and opens connections by itself, past the guard of `shared.outside`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import structlog

from shared.clock import pause
from shared.outside import Network, is_allowed

log = structlog.get_logger(__name__)

GENERIC_NACK = 0x80000000
BIND_TRANSCEIVER = 0x00000009
SUBMIT_SM = 0x00000004
DELIVER_SM = 0x00000005
UNBIND = 0x00000006
ENQUIRE_LINK = 0x00000015
RESPONSE = 0x80000000
OK, INVALID_COMMAND, TEMPORARY = 0x00, 0x03, 0x64
VERSION = 0x34
MOST_BYTES = 64 * 1024
# After this time without a sound a line may have died unnoticed.
QUIET_SECONDS = 5.0
_HEADER = struct.Struct("!IIII")


class NotSent(Exception):
    """The request has not left: the connection does not stand. The text says why."""


class NotBound(NotSent):
    """The server refused the bind. `status`: its command_status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the bind was refused with 0x{status:08X}")
        self.status = status


class NoAnswer(Exception):
    """The request left, and no answer came: it may have been carried out."""


@dataclass(frozen=True)
class Account:
    """Where and as whom to bind. `authority`: certificates (PEM) to trust besides the system's. Times in seconds."""

    host: str
    port: int
    system_id: str
    password: str
    system_type: str = ""
    tls: bool = True
    authority: str = ""
    window: int = 10
    enquire_seconds: float = 30.0
    answer_seconds: float = 15.0
    connect_seconds: float = 5.0
    allow: Sequence[Network] = field(default=(), compare=False)


# Takes a whole deliver_sm; when it has returned, what the PDU said is stored. An exception asks for it again.
OnDelivery = Callable[[bytes], Awaitable[None]]


class Session:
    """A bound connection. Made by `open`; once `closed` it stays closed, and another one is opened."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, account: Account, on_delivery: OnDelivery
    ) -> None:
        self._reader, self._writer, self._account, self._on_delivery = reader, writer, account, on_delivery
        self._number = 0
        self._waiting: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._window = asyncio.Semaphore(account.window)
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard = time.monotonic()
        self._probing = asyncio.Lock()
        self.closed = False

    @classmethod
    async def open(cls, account: Account, on_delivery: OnDelivery) -> Session:
        """Connects and binds.

        :raises NotSent: no connection, or (NotBound) the bind was refused
        """
        try:
            async with asyncio.timeout(account.connect_seconds):
                reader, writer = await _connect(account)
        except (OSError, TimeoutError, UnicodeError) as problem:
            raise NotSent(f"no connection: {type(problem).__name__}") from problem
        session = cls(reader, writer, account, on_delivery)
        session._start(session._read())
        try:
            status, _ = await session._request(BIND_TRANSCEIVER, _bind_body(account), seconds=account.connect_seconds)
        except (NotSent, NoAnswer) as problem:
            await session.close()
            raise NotSent(f"no answer to the bind: {problem}") from problem
        except BaseException:
            await session.close()
            raise
        if status != OK:
            await session.close()
            raise NotBound(status)
        session._start(session._keep())
        return session

    async def submit(self, pdu: Callable[[int], bytes], check_start: Callable[[], None]) -> tuple[int, str]:
        """Sends a submit_sm within the window; returns its command_status and the server's message id.

        :param pdu: packs it with this sequence number
        :param check_start: called when there is room in the window, immediately before the bytes leave
        :raises NotSent, NoAnswer: and what `check_start` raises
        """
        async with self._window:
            await self._probe()
            check_start()
            status, body = await self._request(SUBMIT_SM, b"", pdu)
        return status, body.partition(b"\0")[0].decode("ascii", "replace")

    async def close(self, *, unbind: bool = False) -> None:
        """Ends the session; with `unbind` the server is told, and has a second to answer."""
        if unbind and not self.closed:
            with contextlib.suppress(NotSent, NoAnswer, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._request(UNBIND, b"")
        self._end("closed")
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self) -> None:
        """Before a message is trusted to the line: has the other side hung up meanwhile? And if it has been quiet for
        long, is anybody there? Raises NotSent."""
        for _ in range(2):  # the end of a connection is seen by the loop, a turn after it has come
            await asyncio.sleep(0)
        if self._reader.at_eof():
            self._end("the server ended the connection")
        async with self._probing:
            if not self.closed and time.monotonic() - self._heard > QUIET_SECONDS:
                try:
                    await self._request(ENQUIRE_LINK, b"", seconds=self._account.connect_seconds)
                except NoAnswer:
                    self._end("nobody answers on the line")
        if self.closed:
            raise NotSent("the session has ended")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _request(
        self, command: int, body: bytes, pdu: Callable[[int], bytes] | None = None, seconds: float | None = None
    ) -> tuple[int, bytes]:
        """The answer's status and body. Raises NotSent, NoAnswer."""
        if self.closed:
            raise NotSent("the session has ended")
        self._number = self._number % 0x7FFFFFFF + 1
        number = self._number
        packed = pdu(number) if pdu is not None else _packed(command, OK, number, body)
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._writer.write(packed)
            async with asyncio.timeout(seconds or self._account.answer_seconds):
                await self._writer.drain()
                return await answer
        except (OSError, TimeoutError) as problem:
            raise NoAnswer(f"no answer: {type(problem).__name__}") from problem
        finally:
            self._waiting.pop(number, None)

    async def _read(self) -> None:
        """Everything that comes, until the connection ends."""
        try:
            while True:
                header = await self._reader.readexactly(_HEADER.size)
                length, command, status, number = _HEADER.unpack(header)
                if not _HEADER.size <= length <= MOST_BYTES:
                    break  # the frame is lost, and with it all that follows
                body = await self._reader.readexactly(length - _HEADER.size)
                self._heard = time.monotonic()
                await self._take(header + body, command, status, number)
        except (asyncio.IncompleteReadError, OSError):
            pass
        self._end("the server ended the connection")

    async def _take(self, pdu: bytes, command: int, status: int, number: int) -> None:
        if command & RESPONSE:
            waiting = self._waiting.get(number)
            if waiting is not None and not waiting.done():
                waiting.set_result((status or (0xFF if command == GENERIC_NACK else OK), pdu[_HEADER.size :]))
        elif command == DELIVER_SM:
            # Reading goes on meanwhile: what stores the receipt must not hold up the answers to others.
            self._start(self._deliver(pdu, number))
        elif command == ENQUIRE_LINK:
            self._writer.write(_packed(ENQUIRE_LINK | RESPONSE, OK, number))
        elif command == UNBIND:
            self._writer.write(_packed(UNBIND | RESPONSE, OK, number))
            self._end("the server unbound")
        else:
            self._writer.write(_packed(GENERIC_NACK, INVALID_COMMAND, number))

    async def _deliver(self, pdu: bytes, number: int) -> None:
        """Acknowledged when it is stored; until then the server keeps it and sends it again."""
        status = OK
        try:
            await self._on_delivery(pdu)
        except Exception as problem:
            log.warning("smpp.delivery_not_stored", problem=type(problem).__name__)
            status = TEMPORARY
        if not self.closed:
            self._writer.write(_packed(DELIVER_SM | RESPONSE, status, number, b"\0"))

    async def _keep(self) -> None:
        """Asks in intervals whether somebody is there: a line that went dead says nothing by itself."""
        while not self.closed:
            await pause(self._account.enquire_seconds)
            try:
                await self._request(ENQUIRE_LINK, b"")
            except (NotSent, NoAnswer):
                self._end("nobody answers on the line")

    def _end(self, why: str) -> None:
        if self.closed:
            return
        self.closed = True
        log.info("smpp.session_ended", why=why)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError(why))
        self._writer.close()


def _packed(command: int, status: int, number: int, body: bytes = b"") -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), command, status, number) + body


def _bind_body(account: Account) -> bytes:
    texts = (account.system_id, account.password, account.system_type)
    return b"".join(text.encode("ascii") + b"\0" for text in texts) + bytes((VERSION, 0, 0)) + b"\0"


async def _connect(account: Account) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Resolves the name once and connects to an address that may be reached; TLS is spoken with the name."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(account.host, account.port, type=socket.SOCK_STREAM)
    addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
    allowed = [address for address in addresses if is_allowed(address, account.allow)]
    if not allowed:
        raise ConnectionRefusedError("the host leads to no public address; OUTSIDE_ALLOW may name its network")
    context = await asyncio.to_thread(_authorities, account.authority) if account.tls else None
    name = account.host if context else None
    for address in allowed[:-1]:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(address, account.port, ssl=context, server_hostname=name)
    return await asyncio.open_connection(allowed[-1], account.port, ssl=context, server_hostname=name)


@lru_cache(maxsize=8)
def _authorities(authority: str) -> ssl.SSLContext:
    """Certificates and host names are verified, by the system's authorities and by those in `authority`."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authority:
        context.load_verify_locations(cadata=authority)
    return context
