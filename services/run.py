"""Builds the services that SERVICES names and runs them in one process. The only place that reads that setting."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from services import documentation
from services.draining import Drain
from services.front import Front
from services.gauges import Gauges
from services.headers import SecurityHeaders
from services.migrate import migrate
from services.notifying import Notifier
from services.watchdog import Watchdog
from shared import channels, errors, openapi
from shared.bus import open_bus_or_explain
from shared.bus.leases import Leases
from shared.clock import Clock, SystemClock, pause
from shared.consumer import read_positions
from shared.db import Database
from shared.dead_letters import drop_dead_letters
from shared.deployment import read_deployment, settle
from shared.errors import ConfigurationError, is_transient
from shared.events import READER_OF
from shared.hooks import Hooks
from shared.keeper import Keeper
from shared.metrics import LOOP_FAILURES
from shared.service import Context, Loop, Service
from shared.settings import SERVICE_NAMES, Settings
from shared.wake import Wake

log = structlog.get_logger(__name__)
MOST_BACK_OFF = 5.0  # seconds between two tries of a loop that keeps failing
MAINTENANCE = 3600.0  # seconds
BACKLOG = 2048  # connections that wait to be accepted
# Longer than the proxies in front keep an idle connection (nginx 60, Traefik 90, Caddy 120): who closes first takes the next
# request with it that the other side is just sending, and a POST is not sent twice.
KEEP_ALIVE_SECONDS = 150
GRACE_SECONDS = 5  # that requests under way may take when the process ends; then they are cut off


@dataclass
class Server:
    """What runs: for the virtual time's driver and for tests. `origin`: the address that answers on this machine."""

    context: Context
    services: dict[str, Service]
    keeper: Keeper | None
    app: ASGIApp
    drain: Drain
    origin: str = ""


def dripline_version() -> str:
    try:
        return version("dripline")
    except PackageNotFoundError:
        return "unknown"


async def run(
    settings: Settings,
    database_url: str,
    *,
    clock: Clock | None = None,
    ready: Callable[[Server], Awaitable[None]] | None = None,
) -> None:
    """Runs until a signal, or until `ready` has returned: it is awaited beside the server once the port answers.

    Raises ConfigurationError for what a person must mend.
    """
    async with AsyncExitStack() as stack:
        listening = _listen(settings)
        stack.callback(listening.close)
        if settings.port == 0:
            settings = settings.model_copy(update={"port": listening.getsockname()[1]})
        server = await _assemble(settings, database_url, clock or SystemClock(), stack)
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
        server.origin = f"http://{host}:{settings.port}"
        with _port_explained(settings):
            listening.listen(BACKLOG)  # another process may have bound it too (SO_REUSEADDR); only one may listen
        await _serve(server, listening, ready)
    server.drain.ended()


def _listen(settings: Settings) -> socket.socket:
    """A socket that has the port and does not listen yet: nobody is to connect to a process that cannot answer."""
    listening = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with _port_explained(settings):
        try:
            listening.bind((settings.host, settings.port))
        except OSError:
            listening.close()
            raise
    return listening


@contextmanager
def _port_explained(settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise ConfigurationError(
            f"Port {settings.port} on {settings.host} cannot be used ({problem.strerror}); "
            f"stop what uses it, or choose another with --port."
        ) from problem


async def _assemble(settings: Settings, database_url: str, clock: Clock, stack: AsyncExitStack) -> Server:
    channels.declare(settings.channels_path)
    await migrate(database_url)
    member = f"{socket.gethostname()[:20]}.{os.getpid()}.{os.urandom(3).hex()}"
    platform = await Database.open(database_url, member=member, size=6)
    stack.push_async_callback(platform.close)
    async with platform.connection() as connection:
        deployment = await read_deployment(connection)
    wake = Wake()
    bus_url = settings.bus_url.get_secret_value() if settings.bus_url else database_url
    bus = await open_bus_or_explain(bus_url, member=member, partitions=settings.partitions, wake=wake)
    stack.push_async_callback(bus.close)
    async with platform.connection() as connection:
        await settle(connection, bus)
    leases = Leases(database_url, member, settings.lease_seconds)

    def context(database: Database) -> Context:
        return Context(
            settings=settings,
            clock=clock,
            database=database,
            bus=bus,
            leases=leases,
            wake=wake,
            hooks=Hooks.from_environment(),
            member=member,
            node_namespace=deployment.node_namespace,
            secret=settings.secret_key.get_secret_value().encode() if settings.secret_key else deployment.secret,
            generation=deployment.generation,
        )

    whole = context(platform)
    services: dict[str, Service] = {}
    for name in (name for name in SERVICE_NAMES if name in settings.services):
        database = await Database.open(
            database_url, member=member, role=f"dripline_{name}", size=settings.database_pool_size
        )
        stack.push_async_callback(database.close)
        services[name] = await importlib.import_module(f"services.{name}.service").build(context(database))
    keeper = Keeper(whole) if "profile" in services else None
    loops = _all_loops(services, keeper, database_url, whole)
    watchdog = Watchdog(lambda: list(services.values()))
    stack.callback(watchdog.stop)
    drain = Drain(settings.drain_seconds)
    app = _application(whole, services, watchdog, drain)
    await _start_loops(loops, leases, services, keeper, stack)
    stack.callback(drain.look_after, platform)
    watchdog.start(asyncio.get_running_loop())
    _spare_the_collector()
    return Server(whole, services, keeper, app, drain)


def _all_loops(
    services: dict[str, Service], keeper: Keeper | None, database_url: str, context: Context
) -> dict[tuple[str, str], Loop]:
    notifier = Notifier(database_url, context.member, context.wake)
    loops: dict[tuple[str, str], Loop] = {("platform", name): loop for name, loop in notifier.loops().items()}
    loops |= {("platform", name): loop for name, loop in Gauges(context, dripline_version()).loops().items()}
    if keeper is not None:
        loops |= {("keeper", name): loop for name, loop in keeper.loops().items()}
        loops["platform", "maintenance"] = lambda: _maintain(context)
    for service in services.values():
        loops |= {(service.name, name): loop for name, loop in service.loops.items()}
    return loops


async def _maintain(context: Context) -> None:
    while True:
        async with context.database.connection() as connection:
            handled = {
                topic: await read_positions(connection, reader, reader, context.bus.epoch(topic), topic)
                for topic, reader in READER_OF.items()
            }
        await context.bus.maintain(handled)
        while await drop_dead_letters(context.database, context.clock.now(), context.settings.dead_letter_days):
            pass
        await pause(MAINTENANCE)


async def _start_loops(
    loops: dict[tuple[str, str], Loop],
    leases: Leases,
    services: dict[str, Service],
    keeper: Keeper | None,
    stack: AsyncExitStack,
) -> None:
    """Starts all loops. On leaving they are cancelled; leases are given back as soon as those end that need them, while
    senders still end their exchanges; then services are closed."""
    for service in services.values():
        if service.close is not None:
            stack.push_async_callback(service.close)
    if keeper is not None:
        stack.push_async_callback(keeper.close)
    renewing = asyncio.create_task(_kept_running("platform", "leases", leases.run))
    tasks = {
        (owner, name): asyncio.create_task(_kept_running(owner, name, loop)) for (owner, name), loop in loops.items()
    }
    stack.push_async_callback(_stop_loops, tasks, renewing)


def _spare_the_collector() -> None:
    """What was built so far stays; batches make many small objects that die young, and few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


async def _stop_loops(tasks: dict[tuple[str, str], asyncio.Task[None]], renewing: asyncio.Task[None]) -> None:
    for task in tasks.values():
        task.cancel()
    leased = [
        task for (owner, name), task in tasks.items() if owner == "keeper" or name.startswith(("consume:", "relay"))
    ]
    await asyncio.gather(*leased, return_exceptions=True)
    await _cancel([renewing])
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def _cancel(tasks: list[asyncio.Future[None]] | list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _kept_running(owner: str, name: str, loop: Loop) -> None:
    """A loop that raises is started again with back-off; its error is in the log and counted."""
    failures = 0
    while True:
        try:
            await loop()
            failures = 0
        except Exception as problem:
            failures += 1
            LOOP_FAILURES.labels(owner, name).inc()
            if is_transient(problem):
                log.warning("loop.retry", owner=owner, loop=name, error=type(problem).__name__)
            else:
                log.error("loop.failed", owner=owner, loop=name, exc_info=problem)
        await pause(min(MOST_BACK_OFF, 0.1 * 2 ** min(failures, 6)))


def _application(context: Context, services: dict[str, Service], watchdog: Watchdog, drain: Drain) -> ASGIApp:
    app = FastAPIOffline(
        title="Dripline",
        version=dripline_version(),
        summary="Event-driven trigger marketing on your own machines",
        description=documentation.ABOUT,
    )
    app.state.database = context.database
    app.state.context = context
    errors.install(app)
    _add_probes(app, services, watchdog, drain, lambda: getattr(context.bus, "warnings", []))
    raw: dict[str, ASGIApp] = {}
    for service in services.values():
        for router in service.routers:
            app.include_router(router)
        raw |= service.asgi
    openapi.install(
        app,
        [router for service in services.values() for router in service.routers],
        [service.described for service in services.values()],
    )
    documentation.install(app, services.values())
    return Front(SecurityHeaders(app), raw, app, drain)


def _add_probes(
    app: FastAPI,
    services: dict[str, Service],
    watchdog: Watchdog,
    drain: Drain,
    warnings: Callable[[], list[str]],
) -> None:
    def live() -> Response:
        if reason := watchdog.reason:
            return JSONResponse({"live": False, "reason": reason}, 503)
        return JSONResponse({"live": True})

    def readiness(names: list[str]) -> Callable[[], Awaitable[Response]]:
        async def ready() -> Response:
            failing: dict[str, str] = {"drain": "this process was told to stop"} if drain.began else {}
            for name in names:
                for check, act in services[name].checks.items():
                    try:
                        await act()
                    except Exception as problem:
                        failing[f"{name}.{check}"] = f"{type(problem).__name__}: {problem}"[:300]
            # What nobody must act on at once, such as a bus whose disks are single: it is said and stops nothing.
            told = {"warnings": warned} if (warned := warnings()) else {}
            return JSONResponse({"ready": not failing, "failing": failing, **told}, 503 if failing else 200)

        return ready

    def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    def version_of() -> dict[str, Any]:
        return {"version": dripline_version(), "services": sorted(services)}

    for prefix, names in [("", list(services)), *((f"/{name}", [name]) for name in services)]:
        shown: dict[str, Any] = {"include_in_schema": not prefix, "tags": ["operations"]}
        failing: dict[int | str, dict[str, Any]] = {503: {"description": "It is not; the answer says why"}}
        text: dict[int | str, dict[str, Any]] = {200: {"description": "Prometheus", "content": {"text/plain": {}}}}
        app.add_api_route(f"{prefix}/livez", live, responses=failing, **shown)
        app.add_api_route(f"{prefix}/readyz", readiness(names), responses=failing, **shown)
        app.add_api_route(f"{prefix}/metrics", metrics, response_class=Response, responses=text, **shown)
        app.add_api_route(f"{prefix}/version", version_of, **shown)


class _Http(uvicorn.Server):
    """uvicorn, with the signals handled by our own loop: the services must close before the process ends."""

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._stop, 0.0)
        loop.add_signal_handler(signal.SIGTERM, self._stop, self._drain.seconds)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self, after: float) -> None:
        """The first signal drains, the next ones do not wait."""
        if self._drain.began or not after:
            self._drain.begin()
            self.force_exit = self.should_exit
            self.should_exit = True
            return
        self._drain.begin()
        asyncio.get_running_loop().call_later(after, self._stop, 0.0)


async def _serve(server: Server, listening: socket.socket, ready: Callable[[Server], Awaitable[None]] | None) -> None:
    """Serves until told to stop by a signal, or until `ready` has returned."""
    http = _Http(
        uvicorn.Config(
            server.app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            backlog=BACKLOG,
            server_header=False,
            proxy_headers=True,
        ),
        server.drain,
    )
    serving = asyncio.create_task(http.serve(sockets=[listening]))
    while not http.started and not serving.done():
        await pause(0.01)
    if ready is None or serving.done():
        await serving
        return
    beside = asyncio.ensure_future(ready(server))
    await asyncio.wait({serving, beside}, return_when=asyncio.FIRST_COMPLETED)
    if beside.done():
        http.should_exit = True
        await serving
        beside.result()
    else:
        await _cancel([beside])
        await serving
