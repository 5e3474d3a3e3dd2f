"""`dripline doctor` names what is wrong and the mend, against real servers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from services.doctor import Advice, Found, findings
from services.run import Server, run
from shared.bus.kafka_cluster import TopicIdentity
from shared.bus.kafka_doctor import judge
from shared.settings import Settings, load


async def found(settings: Settings) -> dict[str, Found]:
    return {one.name: one for one in await findings(settings)}


def told(tmp_path: Path, **settings: object) -> Settings:
    return load(data_dir=tmp_path, port=0, **settings)


async def test_a_healthy_deployment_has_nothing_but_advice(database_url: str, tmp_path: Path) -> None:
    checks = await found(told(tmp_path, database_url=database_url))
    # the tests' server runs without fsync; that is what doctor must say of it, and nothing else
    assert [name for name, one in checks.items() if one.failed] == ["the database keeps what it commits"]
    assert "fsync is off" in str(checks["the database keeps what it commits"].problem)


async def test_the_port_of_a_process_with_these_settings_is_no_mistake(database_url: str, tmp_path: Path) -> None:
    # as in a container: doctor is started beside the service, whose port it finds in use
    running = told(tmp_path, database_url=database_url, services="triggers")
    ports: dict[str, Found] = {}

    async def look(server: Server) -> None:
        port = urlsplit(server.origin).port
        for services in ("triggers", "ingest"):
            settings = running.model_copy(update={"port": port, "services": frozenset({services})})
            ports[services] = (await asyncio.to_thread(asyncio.run, found(settings)))["the port"]

    await run(running, database_url, ready=look)
    assert not ports["triggers"].failed, ports["triggers"].problem
    assert "stop what uses it" in str(ports["ingest"].problem), "another process of Dripline has it"


async def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    checks = await found(told(tmp_path, database_url="postgresql://127.0.0.1:1/nowhere"))
    assert checks["the database"].failed
    assert "DATABASE_URL" in str(checks["the database"].problem)
    assert "the database's version" not in checks, "nothing is guessed about it"


async def test_a_database_without_tables_is_told_to_migrate(empty_database_url: str, tmp_path: Path) -> None:
    checks = await found(told(tmp_path, database_url=empty_database_url))
    assert "run `dripline migrate`" in str(checks["the database's migrations"].problem)
    assert "platform" in str(checks["the database's migrations"].problem)


async def test_a_schema_behind_the_program_is_named(database_url: str, tmp_path: Path) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("DELETE FROM triggers.alembic_version")
    finally:
        await connection.close()
    checks = await found(told(tmp_path, database_url=database_url))
    assert str(checks["the database's migrations"].problem).startswith("triggers is not")


async def test_a_schema_ahead_of_the_program_is_advice(database_url: str, tmp_path: Path) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("UPDATE triggers.alembic_version SET version_num = 'of a later version'")
    finally:
        await connection.close()
    problem = (await found(told(tmp_path, database_url=database_url)))["the database's migrations"].problem
    assert isinstance(problem, Advice)
    assert problem.startswith("triggers is of a later version")


async def test_a_hold_after_a_restore_is_said(database_url: str, tmp_path: Path) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("UPDATE platform.deployment SET state = 'held'")
    finally:
        await connection.close()
    checks = await found(told(tmp_path, database_url=database_url))
    assert "release" in str(checks["dispatch is not held"].problem)


async def test_a_kafka_that_does_not_answer(tmp_path: Path) -> None:
    checks = await found(told(tmp_path, bus_url="kafka://127.0.0.1:1"))
    assert checks["the bus"].failed
    assert "BUS_URL" in str(checks["the bus"].problem)


async def test_one_broker_is_advice(tmp_path: Path, kafka_url: str) -> None:
    checks = await found(told(tmp_path, bus_url=kafka_url))
    assert isinstance(checks["the bus"].problem, Advice)
    assert "1 broker" in str(checks["the bus"].problem)


@pytest.mark.parametrize(
    ("replicas", "least", "word"),
    [(1, 1, "one replica"), (3, 1, "set it to 2"), (3, 3, "one lower"), (3, 2, None), (3, None, None)],
)
def test_replication_is_judged_by_what_acks_all_means(replicas: int, least: int | None, word: str | None) -> None:
    sentences = judge("events", TopicIdentity("kafka:c:t", 8, replicas), least)
    assert (word is None) == (not sentences)
    assert word is None or word in sentences[0]


async def test_settings_that_people_forget_are_advice(tmp_path: Path) -> None:
    checks = await found(told(tmp_path, public_url="http://shop.example", secret_key="short"))
    assert "https" in str(checks["the public address"].problem)
    assert "SHOP_HOSTS" in str(checks["the shop's hosts"].problem)
    assert checks["the secret key"].failed
    assert "SMTP_URL" in str(checks["sending mail"].problem)
    mail = await found(told(tmp_path, smtp_url="smtp://mail:25", smtp_from="shop@mail.shop.example"))
    assert "SPF" in str(mail["sending mail"].problem)
    assert "_dmarc.mail.shop.example" in str(mail["sending mail"].problem)
