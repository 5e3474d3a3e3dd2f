"""A backup is restored after more has happened: who was erased stays erased, who opted out stays out, nobody is written to
twice, and the books balance. With Kafka the events after the backup come back; with the log table they went with it."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from shared.embedded_postgres import EmbeddedPostgres
from tests.faults.client import Visitor
from tests.faults.conftest import BOTH
from tests.faults.deployment import ONE_PROCESS, Deployment
from tests.support.databases import on_database
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

pytestmark = pytest.mark.timeout(240)
BEFORE, SENT_IN_THE_GAP, ERASED, OPTED_OUT, ONLY_IN_THE_GAP = (Visitor(number) for number in (1, 2, 3, 4, 6))


class Operator:
    """Somebody with the admin key and the shop's own write key."""

    def __init__(self, http: httpx.AsyncClient, deployment: Deployment) -> None:
        self._http, self._deployment = http, deployment
        self._bearer = {"Authorization": f"Bearer {deployment.api_key}"}

    async def tell(self, *events: dict[str, Any]) -> None:
        answer = await self._http.post("/v1/batch", json={"batch": list(events)}, auth=(self._deployment.write_key, ""))
        assert answer.status_code == 200, answer.text

    async def visit(self, visitor: Visitor, *names: str) -> None:
        batches = dict(visitor.batches())
        for name in names:
            await self.tell(*batches[name])

    async def get(self, path: str, **parameters: str) -> Any:
        answer = await self._http.get(path, params=parameters, headers=self._bearer)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str) -> httpx.Response:
        return await self._http.post(path, headers=self._bearer)

    async def profile(self, visitor: Visitor) -> dict[str, Any] | None:
        items = (await self.get("/v1/profiles", user_id=visitor.user_id))["items"]
        return items[0] if items else None

    async def messages(self, **parameters: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await self.get("/v1/messages", limit="200", **parameters))["items"]
        return items


@asynccontextmanager
async def operating(deployment: Deployment) -> AsyncIterator[Operator]:
    async with httpx.AsyncClient(base_url=deployment.processes[0].url, timeout=30) as http:
        yield Operator(http, deployment)


def letters(smtp_peer: SmtpPeer) -> Counter[str]:
    return Counter(recipient for letter in smtp_peer.letters() for recipient in letter.recipients)


@BOTH
async def test_after_a_restore_nobody_comes_back_and_nothing_is_sent_twice(
    deploy: Callable[..., Deployment],
    kind: str,
    bus_url: str | None,
    own_postgres: EmbeddedPostgres,
    smtp_peer: SmtpPeer,
    folder: Path,
) -> None:
    deployment = deploy(ONE_PROCESS, bus_url)
    await deployment.set_up()
    async with operating(deployment) as operator:
        await life_before_the_backup(operator, smtp_peer)
        await asyncio.to_thread(deployment.command, "backup", str(folder / "backup"))
        await life_after_the_backup(operator, smtp_peer)
    deployment.stop()
    sent = letters(smtp_peer)
    assert sent == {BEFORE.email: 1, SENT_IN_THE_GAP.email: 1, ONLY_IN_THE_GAP.email: 1}

    await restore(deployment, own_postgres, folder, bus_url)
    await deployment.start_held()
    async with operating(deployment) as operator:
        assert await operator.profile(ERASED) is None, "the journal was applied before the system opened"
        await released(operator)
        await everything_is_settled(operator, bus_url)
        assert await operator.profile(ERASED) is None
        await nobody_who_left_is_written_to(operator)
        if kind == "kafka":
            assert await operator.profile(ONLY_IN_THE_GAP) is not None, "what the bus outlived is applied again"
        await operator.visit(Visitor(7), "hello", "cart")
        await until(lambda: letters(smtp_peer)[Visitor(7).email] == 1, limit=60, what="life goes on")
    assert letters(smtp_peer) == sent + Counter({Visitor(7).email: 1}), "nothing was sent a second time"
    deployment.command("audit")
    deployment.stop()


async def life_before_the_backup(operator: Operator, smtp_peer: SmtpPeer) -> None:
    """One has their letter, one is about to get it, one will be erased, one has had enough."""
    await operator.visit(BEFORE, "hello", "cart")
    await until(lambda: letters(smtp_peer)[BEFORE.email] == 1, limit=60, what="the first letter is there")
    await operator.visit(ERASED, "hello")
    await operator.visit(OPTED_OUT, "hello")
    out = {"channel": "email", "address": OPTED_OUT.email, "topics": ["marketing"]}
    await operator.tell({"type": "track", "event": "Unsubscribed", "userId": OPTED_OUT.user_id, "properties": out})
    await until(lambda: operator.profile(OPTED_OUT), what="everybody is known")
    assert (await operator.post("/v1/switches/hold")).status_code == 200
    await operator.visit(SENT_IN_THE_GAP, "hello", "cart")
    await until(lambda: operator.messages(state="queued"), limit=60, what="a letter waits while the backup is made")


async def life_after_the_backup(operator: Operator, smtp_peer: SmtpPeer) -> None:
    assert (await operator.post("/v1/switches/release")).status_code == 200
    await operator.visit(ONLY_IN_THE_GAP, "hello", "cart")
    erased = await operator.profile(ERASED)
    assert erased is not None
    answer = await operator.post(f"/v1/profiles/{erased['id']}/erase")
    assert answer.status_code == 200, answer.text
    for visitor in (SENT_IN_THE_GAP, ONLY_IN_THE_GAP):
        await until(lambda v=visitor: letters(smtp_peer)[v.email] == 1, limit=60, what=f"{visitor.email} is written to")


async def restore(deployment: Deployment, server: EmbeddedPostgres, folder: Path, bus_url: str | None) -> None:
    """Into a new database; the old one is gone for good."""
    connection = await asyncpg.connect(server.url)
    await connection.execute("CREATE DATABASE afterwards TEMPLATE template0")
    await connection.close()
    deployment.database_url = on_database(server.url, "afterwards")
    deployment.bus_url = bus_url or deployment.database_url
    deployment.environment |= {"DATABASE_URL": deployment.database_url, "BUS_URL": deployment.bus_url}
    for process in deployment.processes:
        process.environment = deployment.environment
    journal = deployment.settings().erasure_journal_file
    said = deployment.command("restore", str(folder / "backup"), "--journal", str(journal))
    erased = re.search(r"erased (\d+) identifiers again", said)
    assert erased is not None and int(erased[1]) >= 2, "user id and address"
    again = deployment.tried("restore", str(folder / "backup"))
    assert again.sentence.startswith("The database is not empty")


async def released(operator: Operator) -> None:
    """An admin looks at what waits, and lets it go once what the bus holds is applied."""
    assert (await operator.get("/v1/switches"))["held"] is True

    async def answered() -> bool:
        answer = await operator.post("/v1/switches/release")
        assert answer.status_code in (200, 409), answer.text
        return answer.status_code == 200

    await until(answered, limit=60, what="it can be released", every=0.3)


async def everything_is_settled(operator: Operator, bus_url: str | None) -> None:
    async def settled() -> bool:
        messages = await operator.messages()
        return not [one for one in messages if one["state"] in ("queued", "claimed", "calling")] and bool(
            [one for one in messages if (one["reason"] or {}).get("code") == "restored"]
        )

    await until(settled, limit=60, what="the letter of the gap is settled", every=0.2)


async def nobody_who_left_is_written_to(operator: Operator) -> None:
    """Carts of the one who opted out and of the one who was erased: no consent, whoever reports them."""
    await operator.visit(OPTED_OUT, "cart")
    await operator.tell({**dict(ERASED.batches())["cart"][1], "messageId": "after-erasure"})

    async def decided() -> bool:
        profile = await operator.profile(OPTED_OUT)
        assert profile is not None
        return any(one["state"] == "withheld" for one in await operator.messages(profile=profile["id"]))

    await until(decided, limit=60, what="the cart of the one who opted out is decided about", every=0.2)


async def test_a_copy_of_the_database_is_refused_until_somebody_says_what_it_is(
    deploy: Callable[..., Deployment], own_postgres: EmbeddedPostgres, smtp_peer: SmtpPeer, folder: Path
) -> None:
    deployment = deploy(ONE_PROCESS, None)
    await deployment.set_up()
    deployment.stop()
    connection = await asyncpg.connect(on_database(own_postgres.url, "postgres"))
    name = own_postgres.url.rsplit("/", 1)[1]
    await connection.execute(f"CREATE DATABASE copied TEMPLATE {name}")
    await connection.close()
    copied = on_database(own_postgres.url, "copied")
    deployment.environment |= {"DATABASE_URL": copied, "BUS_URL": copied}
    [process] = deployment.processes
    process.environment = deployment.environment
    process.start()
    await until(lambda: not process.is_running, limit=60, what="it refuses to start")
    assert "dripline restored" in process.last_lines()
    deployment.command("restored", "--nothing-lost")
    process.start()
    await process.ready()
    deployment.stop()
