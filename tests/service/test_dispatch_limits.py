"""What the public may ask of dispatch: floods of forged calls, wrong links and pixels are refused; providers, people who opt
out, and everybody from elsewhere go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from services.dispatch import public
from services.dispatch import webhooks as hooks
from services.dispatch.limits import PRESSES_AT_ONCE, PublicLimits
from services.dispatch.measures import LIMITED
from shared import auth
from shared.limits import RateLimit
from tests.service.test_dispatch_adapters import PLUGINS, app_of
from tests.service.test_dispatch_links import PERSON, link
from tests.service.test_dispatch_reports import KEY, call
from tests.support.dispatch import NOON, Stage
from tests.support.dispatch import stage as on_stage
from tests.support.wait import until

AT_ONCE = 20  # of each rate below, which is one a second
SHARE = 2  # of the ten connections
HERE, ELSEWHERE = "203.0.113.9", "198.51.100.9"


@pytest.fixture
def time() -> list[float]:
    return [0.0]


@pytest.fixture
async def stage(database_url: str, tmp_path: Path, time: list[float]) -> AsyncIterator[Stage]:
    tight = {"network_unproven_per_second": 1, "network_links_per_second": 1, "network_bytes_in_flight": 1 << 20}
    async with on_stage(database_url, tmp_path, channels_path=(PLUGINS,), **tight) as made:
        sealed = made.dispatch.sealer.seal("carrier", {"token": "t" * 20, "signing_key": KEY})
        await made.owner.execute(
            "INSERT INTO dispatch.adapter VALUES ('carrier', 'sms', $1, $2, $3, 1, $4)",
            {"url": "https://carrier.example", "account": "shop"},
            sealed,
            ["token", "signing_key"],
            NOON,
        )
        made.dispatch.limits = PublicLimits(made.context.settings, lambda: time[0])
        yield made


@pytest.fixture
def app(stage: Stage) -> FastAPI:
    made, dispatch = app_of(stage), stage.dispatch
    made.include_router(public.router(stage.context, dispatch.signer, dispatch.subscriptions, dispatch.limits))
    return made


@pytest.fixture
def at(app: FastAPI) -> Callable[[str], httpx.AsyncClient]:
    """Address → a client there."""

    def made(address: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", headers=PERSON)

    return made


@pytest.fixture
async def letter(stage: Stage) -> Any:
    return await sent_to(stage, "anna")


async def sent_to(stage: Stage, name: str) -> Any:
    user = await stage.customer(name, "email")
    await stage.learn(stage.product(user=user))
    [message] = await stage.deliver(stage.intent(user))
    return message


def passed(limit: str) -> float:
    return LIMITED.labels(limit)._value.get()


def refused(answer: httpx.Response, status: int = 429) -> bool:
    """In the form that tells whoever called to come again."""
    return (
        answer.status_code == status
        and int(answer.headers["retry-after"]) >= 1
        and answer.headers["content-type"] == "application/problem+json"
    )


@asynccontextmanager
async def locked(stage: Stage, table: str) -> AsyncIterator[Callable[[], Any]]:
    """Nobody can read or write the table. Yields what counts the connections that wait for it."""

    async def waiting() -> int:
        return await stage.owner.fetchval(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::text::regclass", table
        )

    async with stage.owner.transaction():
        await stage.owner.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield waiting


class TestCallsOfProviders:
    async def test_may_come_as_often_as_they_like_if_they_are_proven(self, at) -> None:
        answers = [await call(at(HERE)) for _ in range(2 * AT_ONCE)]
        assert {answer.status_code for answer in answers} == {200}

    async def test_without_a_proof_are_soon_refused_to_their_network_and_to_nobody_else(
        self, stage: Stage, at, time: list[float]
    ) -> None:
        before = passed("unproven")
        forged = [await call(at(f"203.0.113.{n}"), key="guessed") for n in range(AT_ONCE)]
        assert {answer.status_code for answer in forged} == {403}
        assert refused(await at(HERE).post("/webhooks/nobody"))
        assert refused(await call(at(HERE))), "a provider in that network is told to come again"
        assert passed("unproven") == before + 2
        assert (await call(at(ELSEWHERE))).status_code == 200
        assert (await call(at("127.0.0.1"))).status_code == 200
        time[0] = 1.0
        assert (await call(at(HERE))).status_code == 200

    async def test_do_not_count_if_we_are_at_fault(self, stage: Stage, at, app: FastAPI) -> None:
        await stage.owner.execute("UPDATE dispatch.adapter SET secrets = repeat('x', 40)::bytea")
        assert {(await call(at(HERE))).status_code for _ in range(AT_ONCE + 5)} == {503}

    async def test_hold_only_so_much_memory_of_a_network(self, at) -> None:
        full, go_on = asyncio.Event(), asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield b"x" * 600_000
            full.set()
            await go_on.wait()

        first = asyncio.create_task(at(HERE).post("/webhooks/carrier", content=slowly()))
        await asyncio.wait_for(full.wait(), 5)
        large = b"x" * 600_000
        assert refused(await at(HERE).post("/webhooks/carrier", content=large))
        assert (await at(ELSEWHERE).post("/webhooks/carrier", content=large)).status_code == 403
        go_on.set()
        assert (await first).status_code == 403
        assert (await at(HERE).post("/webhooks/carrier", content=large)).status_code == 403

    async def test_that_dawdle_or_break_off_are_ended(
        self, app: FastAPI, at, letter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hooks, "SLOWEST_CALL", 0.05)

        async def never() -> AsyncIterator[bytes]:
            yield b"x"
            await asyncio.Event().wait()

        assert (await at(HERE).post("/webhooks/carrier", content=never())).status_code == 408
        assert [await broken_off(app, path) for path in ("/webhooks/carrier", link(letter, "u"))] == [400, 400]

    async def test_in_a_flood_wait_in_a_line_of_their_own_while_people_opt_out(self, stage: Stage, at, letter) -> None:
        async with locked(stage, "dispatch.adapter") as waiting:
            flood = [asyncio.create_task(call(at(f"192.0.{n}.1"), key="guessed")) for n in range(30)]
            await until(waiting, what="the flood has reached the database")
            answer = await asyncio.wait_for(at(HERE).post(link(letter, "u"), data={"action": "all"}), 3)
            assert answer.status_code == 200 and "You will get no more" in answer.text
            assert await waiting() == SHARE
        assert {answer.status_code for answer in await asyncio.gather(*flood)} == {403}

    async def test_that_wait_too_long_are_told_to_come_again(
        self, stage: Stage, at, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stage.dispatch.limits.lookups, "_patience", 0.05)
        async with locked(stage, "dispatch.adapter") as waiting:
            first = [asyncio.create_task(call(at(ELSEWHERE))) for _ in range(SHARE)]

            async def all_taken() -> bool:
                return await waiting() == SHARE

            await until(all_taken, what="all turns are taken")
            assert refused(await call(at(HERE)), 503)
        assert {answer.status_code for answer in await asyncio.gather(*first)} == {200}


async def broken_off(app: FastAPI, path: str) -> int:
    """What is answered to a body whose connection ended in the middle."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"x", "more_body": True},
        {"type": "http.disconnect"},
    ]
    answers: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [], "client": (HERE, 1), "server": ("127.0.0.1", 80), "scheme": "http", "root_path": ""}
    await app(scope, receive, send)
    return answers[0]["status"]


class TestLinks:
    async def test_that_were_opened_too_often_by_a_network_are_refused_pixels_only_not_counted(
        self, stage: Stage, at, letter
    ) -> None:
        clicks = [await at(f"203.0.113.{n}").head(link(letter, "c")) for n in range(AT_ONCE)]
        assert {answer.status_code for answer in clicks} == {302}
        assert refused(await at(HERE).get(link(letter, "c")))
        pixel = await at(HERE).get(link(letter, "o"))
        assert (pixel.status_code, pixel.headers["content-type"]) == (200, "image/gif")
        assert await stage.events("Email Clicked") == await stage.events("Email Opened") == []
        assert (await at(ELSEWHERE).get(link(letter, "c"))).status_code == 302
        assert "Unsubscribe from everything" in (await at(HERE).get(link(letter, "u"))).text

    async def test_that_nobody_made_are_refused_after_a_while_and_real_ones_still_work(self, at, letter) -> None:
        wrong = [await at(HERE).get(f"/{kind}/{'x' * 42}") for kind in ("c", "u", "confirm") for _ in range(8)]
        assert [answer.status_code for answer in wrong] == [404] * AT_ONCE + [429] * 4
        assert (
            refused(wrong[-1]) and refused(await at(HERE).post("/u/x")) and refused(await at(HERE).post("/confirm/x"))
        )
        assert (await at(HERE).get("/o/x")).headers["content-type"] == "image/gif"
        assert (await at(HERE).get(link(letter, "c"))).status_code == 302
        assert (await call(at(HERE))).status_code == 200

    async def test_in_a_flood_keep_nobody_from_the_page_and_from_opting_out(self, stage: Stage, at, letter) -> None:
        async with locked(stage, "dispatch.hit") as waiting:
            flood = [asyncio.create_task(at(f"192.0.{n}.1").get(link(letter, "c"))) for n in range(30)]
            await until(waiting, what="the flood has reached the database")
            page = await asyncio.wait_for(at(HERE).get(link(letter, "u")), 3)
            assert "Unsubscribe from everything" in page.text
            answer = await asyncio.wait_for(at(HERE).post(link(letter, "u"), data={"action": "all"}), 3)
            assert "You will get no more" in answer.text
            assert await waiting() == SHARE
        assert {answer.status_code for answer in await asyncio.gather(*flood)} == {302}


class TestOptingOut:
    async def test_is_open_to_a_network_that_used_up_everything_else(self, stage: Stage, at, letter) -> None:
        for _ in range(AT_ONCE + 1):
            await at(HERE).get(link(letter, "c"))
            await at(HERE).get(link(letter, "u"))
            await at(HERE).post("/u/wrong")
            await call(at(HERE), key="guessed")
        assert refused(await at(HERE).get(link(letter, "u"))) and refused(await call(at(HERE)))
        answer = await at(HERE).post(link(letter, "u"), data={"List-Unsubscribe": "One-Click"})
        assert (answer.status_code, answer.text) == (200, "unsubscribed")
        assert len(await stage.events("Unsubscribed")) == 1

    async def test_is_heard_once_however_often_one_button_is_pressed(self, stage: Stage, at, letter) -> None:
        other = await sent_to(stage, "boris")
        said = {"List-Unsubscribe": "One-Click"}
        answers = [await at(HERE).post(link(letter, "u"), data=said) for _ in range(PRESSES_AT_ONCE + 3)]
        assert [answer.status_code for answer in answers] == [200] * PRESSES_AT_ONCE + [429] * 3
        assert refused(answers[-1])
        assert (await at(HERE).post(link(other, "u"), data=said)).status_code == 200
        assert len(await stage.events("Unsubscribed")) == 2


async def test_the_inbox_is_not_there_to_guess_keys(at, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_GUESSES", RateLimit(1, 3, lambda: 0.0))
    answers = [await at(HERE).get("/inbox", auth=("anybody", "guessed")) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [401] * 3 + [429]
    assert refused(answers[-1])
