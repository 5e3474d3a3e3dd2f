"""Kept connections to mail servers: opened by the rules of `Server`, one letter at a time, closed when they fail."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import certifi
from aiosmtplib import SMTP, SMTPException, SMTPResponseException

from services.dispatch.channels.smtp_settings import Server
from shared.outside import Network, is_allowed

# Until the server has taken the password; a letter that is not at DATA by then is too late anyway.
CONNECT_SECONDS = 5.0
COMMAND_SECONDS = 5.0
# A router on the way may forget an idle connection without telling either end; what rested longer is not trusted.
IDLE_SECONDS = 30.0


class CannotConnect(Exception):
    """No connection came about, and nothing of the letter was said. The text says why, without secrets."""


class Lines:
    """The connections of one adapter, by the server they were made with."""

    def __init__(
        self,
        allow: Sequence[Network],
        most: int,
        name: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        :param allow: networks in which a guarded server may stand
        :param most: idle connections kept
        :param name: the host name to introduce oneself by; by default the machine's own
        """
        self._allow, self._most, self._name, self._monotonic = allow, most, name, monotonic
        # With the moment since which each rests, the latest last.
        self._idle: dict[Server, list[tuple[SMTP, float]]] = {}

    async def take(self, server: Server) -> tuple[SMTP, bool]:
        """A connection to it, and whether it was kept: such a one may have died meanwhile.

        :raises CannotConnect: see there
        """
        self._forget_others(server)
        idle = self._idle.get(server, [])
        while idle:
            client, since = idle.pop()
            if self._monotonic() - since > IDLE_SECONDS:
                client.close()
                self.distrust(server)  # the others have rested longer still
            elif client.is_connected:
                return client, True
            else:
                client.close()
        return await self._open(server), False

    def distrust(self, server: Server) -> None:
        """Closes the idle connections to it: one of them was silent, and what made it so made the others so."""
        idle = self._idle.pop(server, [])
        while idle:
            idle.pop()[0].close()

    async def keep(self, server: Server, client: SMTP, *, reset: bool = False) -> None:
        """Keeps the connection for the next letter, if it still answers."""
        try:
            if reset:
                await client.rset(timeout=COMMAND_SECONDS)
            idle = self._idle.setdefault(server, [])
            if client.is_connected and len(idle) < self._most:
                idle.append((client, self._monotonic()))
                return
        except (SMTPException, OSError, TimeoutError):
            pass  # it is closed below, and the next letter takes another one
        client.close()

    async def close(self) -> None:
        """Says goodbye on all of them."""
        for server in list(self._idle):
            for client, _ in self._idle.pop(server):
                try:
                    await client.quit(timeout=1)
                except (SMTPException, OSError, TimeoutError):
                    client.close()

    def _forget_others(self, server: Server) -> None:
        """One server is spoken to at a time: once the settings name another, the former's connections go."""
        for other in [one for one in self._idle if one != server]:
            self.distrust(other)

    async def _open(self, server: Server) -> SMTP:
        trusted = await asyncio.to_thread(_authorities, server.authority) if server.security != "none" else None
        client = SMTP(
            hostname=server.host,
            port=None if server.guarded else server.port,
            username=server.username or None,
            password=server.password or None,
            local_hostname=self._name,
            use_tls=server.security == "tls",
            start_tls={"starttls": True, "opportunistic": None}.get(server.security, False),
            tls_context=trusted,
            timeout=CONNECT_SECONDS,
        )
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                more: dict[str, Any] = {"sock": await self._socket(server)} if server.guarded else {}
                await client.connect(**more)
        except CannotConnect:
            raise
        except SMTPResponseException as problem:
            client.close()
            raise CannotConnect(f"the server refuses to begin: {problem.code}") from problem
        except (SMTPException, OSError, TimeoutError, ValueError) as problem:
            client.close()
            raise CannotConnect(_why(problem)) from problem
        except BaseException:
            client.close()
            raise
        return client

    async def _socket(self, server: Server) -> socket.socket:
        """A connection to the address that was judged, so that no second look-up can lead elsewhere."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as problem:
            raise CannotConnect("the server's name is not found") from problem
        allowed = [entry for entry in found if is_allowed(str(entry[4][0]), self._allow)]
        if not allowed:
            raise CannotConnect("the server has no public address; OUTSIDE_ALLOW may name its network")
        failed: OSError | None = None
        for family, kind, protocol, _, address in allowed:
            line = socket.socket(family, kind, protocol)
            line.setblocking(False)
            try:
                await loop.sock_connect(line, address)
                return line
            except OSError as problem:
                line.close()
                failed = problem
            except BaseException:
                line.close()
                raise
        raise CannotConnect(_why(failed)) from failed


def _why(problem: BaseException | None) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"the server's certificate is not valid: {problem.verify_message}"
    cause = problem.__cause__ if problem is not None else None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the server's certificate is not valid: {cause.verify_message}"
    if isinstance(problem, SMTPException) and "STARTTLS" in str(problem):
        return "the server offers no STARTTLS; over an open line nothing is sent"
    return f"the server cannot be reached: {type(problem).__name__}"


@lru_cache(maxsize=8)
def _authorities(authority: str) -> ssl.SSLContext:
    """Certificates and host names are verified: by the system's authorities, Mozilla's, and those in `authority`."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authority:
        context.load_verify_locations(cadata=authority)
    return context
