"""The tests' own peers are real: what they write down is what happened to them, and they survive being killed."""

from __future__ import annotations

import smtplib

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from scripts.kafka import Kafka
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

LETTER = "Subject: =?utf-8?b?0JrQvtGA0LfQuNC90LA=?=\r\n\r\nHello\r\n"


def send(peer: SmtpPeer, recipient: str) -> None:
    with smtplib.SMTP("127.0.0.1", peer.port, timeout=5) as client:
        client.sendmail("shop@example.com", [recipient], LETTER)


def test_a_letter_is_in_the_ledger_and_stays_there_when_the_peer_is_killed(smtp_peer: SmtpPeer) -> None:
    send(smtp_peer, "jane@example.com")
    smtp_peer.kill()
    with pytest.raises(OSError, match="refused"):
        send(smtp_peer, "jane@example.com")
    smtp_peer.start()
    send(smtp_peer, "joe@example.com")
    assert [letter.recipients for letter in smtp_peer.letters()] == [["jane@example.com"], ["joe@example.com"]]
    assert smtp_peer.letters("jane@example.com")[0].message["subject"] == "Корзина"


def test_one_recipient_is_refused_and_the_others_are_not(smtp_peer: SmtpPeer) -> None:
    smtp_peer.reply("gone@example.com", "550 5.1.1 no such person")
    with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
        send(smtp_peer, "gone@example.com")
    assert caught.value.recipients["gone@example.com"][0] == 550
    send(smtp_peer, "jane@example.com")
    assert [entry["kind"] for entry in smtp_peer.entries()] == ["rcpt", "rcpt", "taken"]


def test_a_refusal_after_data_takes_nothing(smtp_peer: SmtpPeer) -> None:
    smtp_peer.behave(data_reply="451 4.3.0 try later")
    with pytest.raises(smtplib.SMTPDataError):
        send(smtp_peer, "jane@example.com")
    assert smtp_peer.letters() == []


def test_a_line_that_goes_dead_after_data_has_taken_the_letter(smtp_peer: SmtpPeer) -> None:
    smtp_peer.behave(hang_up_after_data=True)
    with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionResetError)):
        send(smtp_peer, "jane@example.com")
    assert len(smtp_peer.letters("jane@example.com")) == 1


async def test_each_test_has_a_database_of_its_own(database_url: str, empty_database_url: str) -> None:
    assert database_url != empty_database_url
    migrated = await asyncpg.connect(database_url)
    schemas = {row["nspname"] for row in await migrated.fetch("SELECT nspname FROM pg_namespace")}
    await migrated.close()
    assert "platform" in schemas
    empty = await asyncpg.connect(empty_database_url)
    assert await empty.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = 'platform'") == 0
    await empty.close()


async def test_until_says_what_did_not_come_to_pass() -> None:
    with pytest.raises(AssertionError, match=r"within 0.1 s it did not come to pass that pigs fly \(last: 0\)"):
        await until(lambda: 0, limit=0.1, what="pigs fly")


async def test_kafka_keeps_its_records_when_it_is_killed(own_kafka: Kafka) -> None:
    own_kafka.tool("TopicCommand", "--create", "--topic", "letters", "--partitions", "1")
    producer = AIOKafkaProducer(bootstrap_servers=own_kafka.bootstrap, acks="all", enable_idempotence=True)
    await producer.start()
    await producer.send_and_wait("letters", b"kept", partition=0)
    await producer.stop()
    own_kafka.kill()
    own_kafka.start()
    consumer = AIOKafkaConsumer(bootstrap_servers=own_kafka.bootstrap, auto_offset_reset="earliest")
    consumer.assign([TopicPartition("letters", 0)])
    await consumer.start()
    try:
        record = await consumer.getone()
        assert record.value == b"kept"
    finally:
        await consumer.stop()
