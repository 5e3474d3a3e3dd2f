"""SMS over SMPP, against a centre that is a process of its own; and once against the server side of a library."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pydantic
import pytest
import smpp34

from services.dispatch.channels.base import Exchange, Report, StartBy, TooLate, World
from services.dispatch.channels.smpp import Smpp
from services.dispatch.channels.smpp_messages import SmppSettings
from services.dispatch.rendered import Rendered
from services.dispatch.segments import segments
from shared.clock import VirtualClock
from shared.settings import load
from tests.support.authority import Authority
from tests.support.channel_harnesses.smpp import told
from tests.support.smpp_peer import SmppPeer
from tests.support.wait import until

NOON = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)


class Desk:
    """Who takes the reports; it may refuse to."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.broken = False
        self.clock = VirtualClock(NOON)

    async def tell(self, adapter: str, reports: Sequence[Report]) -> None:
        if self.broken:
            raise ConnectionError("the database is away")
        assert adapter == "smpp"
        self.reports += reports


@pytest.fixture(scope="module")
def started() -> Iterator[SmppPeer]:
    with SmppPeer() as peer:
        yield peer


@pytest.fixture
def peer(started: SmppPeer) -> SmppPeer:
    started.reset()
    return started


@pytest.fixture
def desk() -> Desk:
    return Desk()


Make = Callable[..., Smpp]


@pytest.fixture
async def make(tmp_path: Path, desk: Desk) -> AsyncIterator[Make]:
    made: list[Smpp] = []

    def one(**changes: Any) -> Smpp:
        settings = load(data_dir=tmp_path, **{"outside_allow": ("127.0.0.0/8",), **changes})
        made.append(Smpp(World(settings, tmp_path, clock=desk.clock, tell=desk.tell)))
        return made[-1]

    yield one
    for adapter in made:
        await adapter.close()


def to(settings: SmppSettings, text: str = "Your cart waits", **changes: Any) -> Exchange:
    message = uuid4()
    given: dict[str, Any] = {
        "message": message,
        "attempt": 1,
        "key": str(message),
        "address": "+79161234567",
        "rendered": Rendered(text=text),
        "purpose": "marketing",
        "sender": ("Corner Shop", "shop@shop.example"),
        "at": NOON,
        "start_by": StartBy(time.monotonic() + 5.0),
        "settings": settings,
    }
    return Exchange(**{**given, **changes})


class TestTexts:
    @pytest.mark.parametrize(
        ("text", "encoding"),
        [
            ("Hello @£€ {x} [y] ~|\\^ ÄÖÜ ñ Δ", "gsm0338"),
            ("Привет, ваша корзина ждёт", "ucs2"),
            ("Hi 😀", "ucs2"),
        ],
    )
    async def test_arrive_as_they_were_written(self, make: Make, peer: SmppPeer, text: str, encoding: str) -> None:
        assert (await make().send(to(told(peer), text))).outcome == "sent"
        (message,) = peer.messages()
        assert (message["text"], message["parts"][0]["encoding"]) == (text, encoding)
        assert (message["phone"], message["parts"][0]["sender"]) == ("79161234567", "Shop")

    @pytest.mark.parametrize("way", ["udh", "sar"])
    @pytest.mark.parametrize(
        "text", ["a" * 307, "a" * 152 + "€" + "a" * 152, "п" * 135, "😀" * 67, "п" * 66 + "😀" + "п" * 66]
    )
    async def test_long_ones_go_in_as_many_parts_as_were_priced(
        self, make: Make, peer: SmppPeer, text: str, way: str
    ) -> None:
        adapter = make()
        assert (await adapter.send(to(told(peer, concatenation=way), text))).outcome == "sent"
        (message,) = peer.messages()
        assert peer.entries("wrong") == []
        assert message["text"] == text
        assert len(message["parts"]) == segments(text).count
        assert adapter.price(Rendered(text=text), Decimal("1.00")).cost == len(message["parts"])
        assert {bool(part["esm_class"] & 0x40) for part in message["parts"]} == {way == "udh"}

    async def test_only_the_last_part_is_receipted_and_stands_for_the_message(self, make: Make, peer: SmppPeer) -> None:
        result = await make().send(to(told(peer), "п" * 135))
        parts = peer.messages()[0]["parts"]
        assert [part["receipt"] for part in parts] == [0, 0, 1]
        assert result.provider_id == parts[-1]["id"]

    async def test_two_long_texts_to_one_person_are_not_mixed(self, make: Make, peer: SmppPeer) -> None:
        adapter = make()
        texts = ["a" * 200, "b" * 200]
        await asyncio.gather(*(adapter.send(to(told(peer), text)) for text in texts))
        assert sorted(message["text"] for message in peer.messages()) == texts

    async def test_a_number_as_sender_has_another_type_than_a_name(self, make: Make, peer: SmppPeer) -> None:
        await make().send(to(told(peer, sender="74957873595")))
        assert peer.messages()[0]["parts"][0]["sender_ton"] == 1

    async def test_half_a_character_is_refused_before_anything_is_sent(self, make: Make, peer: SmppPeer) -> None:
        assert (await make().send(to(told(peer), "\ud83d"))).outcome == "failed"
        assert peer.entries() == []


class TestTheSession:
    async def test_is_kept_for_the_next_message(self, make: Make, peer: SmppPeer) -> None:
        adapter = make()
        for _ in range(3):
            assert (await adapter.send(to(told(peer)))).outcome == "sent"
        assert len(peer.entries("bind")) == 1

    async def test_holds_no_more_messages_than_its_window(self, make: Make, peer: SmppPeer) -> None:
        peer.behave(delay_seconds=0.3)
        adapter, settings = make(), told(peer, window=2)
        sending = [asyncio.create_task(adapter.send(to(settings))) for _ in range(6)]
        await until(lambda: len(peer.entries("part")) == 2, what="the window is full")
        first = {part["id"] for part in peer.entries("part")}
        assert len(first) == 2  # the third waits until one is answered
        assert {result.outcome for result in await asyncio.gather(*sending)} == {"sent"}
        times = sorted(part["at"] for part in peer.entries("part"))
        assert all(later - earlier >= 0.25 for earlier, later in zip(times, times[2:], strict=False))

    async def test_asks_whether_somebody_is_there(self, make: Make, peer: SmppPeer) -> None:
        await make().send(to(told(peer, enquire_seconds=0.1)))
        await until(lambda: len(peer.entries("enquire")) >= 2, what="two enquire_link came")

    async def test_is_opened_anew_after_the_server_unbound(self, make: Make, peer: SmppPeer) -> None:
        adapter = make()
        await adapter.send(to(told(peer)))
        assert await asyncio.to_thread(peer.unbind) == 0  # answered with unbind_resp
        assert (await adapter.send(to(told(peer)))).outcome == "sent"
        assert len(peer.entries("bind")) == 2

    async def test_is_unbound_in_the_end(self, make: Make, peer: SmppPeer) -> None:
        adapter = make()
        await adapter.send(to(told(peer)))
        await adapter.close()
        await until(lambda: peer.entries("unbind"), what="unbind came")

    async def test_is_opened_anew_when_the_settings_change(self, make: Make, peer: SmppPeer) -> None:
        adapter = make()
        await adapter.send(to(told(peer)))
        await adapter.send(to(told(peer, window=3)))
        assert len(peer.entries("bind")) == 2

    async def test_a_wrong_password_holds_messages_back_and_is_not_tried_by_each(
        self, make: Make, peer: SmppPeer
    ) -> None:
        adapter, settings = make(), told(peer, password="wrong")
        results = [await adapter.send(to(settings)) for _ in range(3)]
        assert {result.outcome for result in results} == {"retry"}
        assert "0x0000000E" in results[0].detail
        assert len(peer.entries("bind")) == 1

    async def test_that_another_process_holds_delays_this_message_and_not_the_adapter(
        self, make: Make, peer: SmppPeer
    ) -> None:
        peer.behave(bind_status=0x05)
        result = await make().send(to(told(peer)))
        assert (result.outcome, result.for_one) == ("retry", True)

    async def test_a_host_inside_is_refused_unless_the_deployment_allows_it(self, make: Make, peer: SmppPeer) -> None:
        assert (await make(outside_allow=()).send(to(told(peer)))).outcome == "retry"
        assert peer.entries() == []

    async def test_without_tls_a_server_that_wants_it_is_not_talked_to(self, make: Make, peer: SmppPeer) -> None:
        assert (await make().send(to(told(peer, tls=True)))).outcome == "retry"  # this one speaks no TLS
        assert peer.entries("bind") == []


class TestTls:
    async def test_is_spoken_with_a_server_whose_certificate_is_vouched_for(self, make: Make, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        with SmppPeer(authority.server("127.0.0.1")) as other:
            good = told(other, tls=True, authority=authority.certificate)
            assert (await make().send(to(good))).outcome == "sent"
            assert (await make().send(to(told(other, tls=True)))).outcome == "retry"  # nobody vouches for it
            assert len(other.entries("bind")) == 1

    async def test_a_certificate_for_another_name_is_not_accepted(self, make: Make, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        with SmppPeer(authority.server("smsc.example")) as other:
            settings = told(other, tls=True, authority=authority.certificate)
            assert (await make().send(to(settings))).outcome == "retry"
            assert other.entries("bind") == []


class TestWhenItGoesWrong:
    @pytest.mark.parametrize(
        ("status", "outcome", "after"),
        [
            (0x58, "retry", timedelta(seconds=1)),
            (0x14, "retry", timedelta(seconds=10)),
            (0x08, "retry", None),
            (0x0B, "bounced", None),
            (0x0A, "retry", None),  # our sender
            (0x48, "retry", None),
            (0x0E, "retry", None),
            (0x45, "retry", None),
            (0x01, "failed", None),
        ],
    )
    async def test_what_a_refusal_means(
        self, make: Make, peer: SmppPeer, status: int, outcome: str, after: timedelta | None
    ) -> None:
        peer.behave(submit_statuses=[status])
        result = await make().send(to(told(peer)))
        assert (result.outcome, result.retry_after) == (outcome, after)
        assert peer.messages() == []

    async def test_a_refusal_does_not_spoil_the_session(self, make: Make, peer: SmppPeer) -> None:
        peer.behave(submit_statuses=[0x58])
        adapter = make()
        assert [(await adapter.send(to(told(peer)))).outcome for _ in range(2)] == ["retry", "sent"]
        assert len(peer.entries("bind")) == 1

    async def test_a_throttled_part_is_tried_again_because_the_first_is_out(self, make: Make, peer: SmppPeer) -> None:
        peer.behave(submit_statuses=[0x58], after=1)
        assert (await make().send(to(told(peer), "a" * 200))).outcome == "sent"
        assert [message["text"] for message in peer.messages()] == ["a" * 200]

    async def test_a_text_of_which_only_a_part_was_taken_is_unknown(self, make: Make, peer: SmppPeer) -> None:
        peer.behave(submit_statuses=[0x0B], after=1)
        result = await make().send(to(told(peer), "a" * 200))
        assert (result.outcome, result.detail) == ("unknown", "1 of 2 parts were taken")

    @pytest.mark.parametrize("how", [{"hang_up": True}, {"silent": True}])
    async def test_a_message_that_was_taken_without_an_answer_is_unknown(
        self, make: Make, peer: SmppPeer, how: dict[str, bool]
    ) -> None:
        peer.behave(**how)
        assert (await make().send(to(told(peer, answer_seconds=0.3)))).outcome == "unknown"
        assert len(peer.messages()) == 1  # anything else would be a lie

    async def test_a_slow_answer_is_waited_for(self, make: Make, peer: SmppPeer) -> None:
        peer.behave(delay_seconds=0.5)
        assert (await make().send(to(told(peer)))).outcome == "sent"

    async def test_a_server_that_is_away_is_tried_later(self, make: Make) -> None:
        with SmppPeer() as other:
            adapter = make()
            assert (await adapter.send(to(told(other)))).outcome == "sent"
            other.kill()
            assert (await adapter.send(to(told(other)))).outcome == "retry"

    async def test_a_line_that_went_dead_in_silence_takes_no_message(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("services.dispatch.channels.smpp_session.QUIET_SECONDS", 0.0)
        monkeypatch.setattr("services.dispatch.channels.smpp.CONNECT_SECONDS", 0.5)
        with SmppPeer() as other:
            adapter = make()
            assert (await adapter.send(to(told(other)))).outcome == "sent"
            other.freeze()
            result = await adapter.send(to(told(other), "never"))
            assert result.outcome == "retry"  # certainly not taken: nothing of it was written
            other.thaw()
            await until(lambda: len(other.entries("end")) >= 1, what="the centre has read all that was written")
            assert [message["text"] for message in other.messages()] == ["Your cart waits"]

    async def test_the_clock_is_looked_at_again_before_the_bytes_leave(self, make: Make, peer: SmppPeer) -> None:
        looks = iter([0.0, 10.0])  # in time to open, too late once the session stands
        with pytest.raises(TooLate):
            await make().send(to(told(peer), start_by=StartBy(5.0, lambda: next(looks))))
        assert [entry["kind"] for entry in peer.entries()] == ["bind"]


class TestReceipts:
    @pytest.mark.parametrize("tlvs", [True, False])
    @pytest.mark.parametrize(
        ("stat", "what"),
        [("DELIVRD", "delivered"), ("UNDELIV", "failed"), ("EXPIRED", "failed"), ("REJECTD", "failed")],
    )
    async def test_become_reports(
        self, make: Make, peer: SmppPeer, desk: Desk, stat: str, what: str, tlvs: bool
    ) -> None:
        sent = await make().send(to(told(peer, receipt_zone="Europe/Moscow")))
        assert await asyncio.to_thread(peer.receipt, sent.provider_id, stat, tlvs=tlvs) == 0
        (report,) = desk.reports
        assert (report.what, report.provider_id) == (what, sent.provider_id)
        assert report.at == datetime(2026, 3, 10, 9, 5, tzinfo=UTC)

    async def test_of_states_in_between_are_acknowledged_and_told_to_nobody(
        self, make: Make, peer: SmppPeer, desk: Desk
    ) -> None:
        sent = await make().send(to(told(peer)))
        for stat in ("ENROUTE", "ACCEPTD", "UNKNOWN"):
            for tlvs in (True, False):
                assert await asyncio.to_thread(peer.receipt, sent.provider_id, stat, tlvs=tlvs) == 0
        assert desk.reports == []

    @pytest.mark.parametrize("tlvs", [True, False])
    async def test_are_read_where_their_text_lies_in_the_payload(
        self, make: Make, peer: SmppPeer, desk: Desk, tlvs: bool
    ) -> None:
        sent = await make().send(to(told(peer, bounced_errors=("3",))))
        told_of = (sent.provider_id, "UNDELIV")
        assert await asyncio.to_thread(peer.receipt, *told_of, err="003", tlvs=tlvs, payload=True) == 0
        assert [(report.what, report.provider_id) for report in desk.reports] == [("bounced", sent.provider_id)]
        assert desk.reports[0].at == datetime(2026, 3, 10, 12, 5, tzinfo=UTC)

    @pytest.mark.parametrize("esm_class", [0x20, 0x08, 0x18])
    @pytest.mark.parametrize("stat", ["ENROUTE", "DELIVRD"])
    async def test_an_intermediate_notification_and_what_a_phone_says_by_itself_are_nobodys_reply(
        self, make: Make, peer: SmppPeer, desk: Desk, esm_class: int, stat: str
    ) -> None:
        sent = await make().send(to(told(peer)))
        assert await asyncio.to_thread(peer.receipt, sent.provider_id, stat, esm_class=esm_class) == 0
        assert desk.reports == []

    async def test_say_when_the_number_does_not_exist(self, make: Make, peer: SmppPeer, desk: Desk) -> None:
        sent = await make().send(to(told(peer, bounced_errors=("3",))))
        await asyncio.to_thread(peer.receipt, sent.provider_id, "UNDELIV", err="003")
        assert [report.what for report in desk.reports] == ["bounced"]

    async def test_that_come_twice_have_the_same_id(self, make: Make, peer: SmppPeer, desk: Desk) -> None:
        sent = await make().send(to(told(peer)))
        for tlvs in (True, False):
            await asyncio.to_thread(peer.receipt, sent.provider_id, "DELIVRD", tlvs=tlvs)
        assert len({report.id for report in desk.reports}) == 1 and len(desk.reports) == 2

    async def test_are_not_acknowledged_before_they_are_stored(self, make: Make, peer: SmppPeer, desk: Desk) -> None:
        sent = await make().send(to(told(peer)))
        desk.broken = True
        assert await asyncio.to_thread(peer.receipt, sent.provider_id, "DELIVRD") == 0x64  # the centre keeps it
        desk.broken = False
        assert await asyncio.to_thread(peer.receipt, sent.provider_id, "DELIVRD") == 0
        assert [report.what for report in desk.reports] == ["delivered"]

    async def test_that_cannot_be_read_are_not_asked_for_for_ever(self, make: Make, peer: SmppPeer, desk: Desk) -> None:
        adapter = make()
        await adapter.send(to(told(peer)))
        assert await asyncio.to_thread(peer.nonsense) == 0
        assert (await adapter.send(to(told(peer)))).outcome == "sent"
        assert desk.reports == [] and len(peer.entries("bind")) == 1

    async def test_are_found_where_ids_are_told_in_hexadecimal_first(
        self, make: Make, peer: SmppPeer, desk: Desk
    ) -> None:
        peer.behave(hexadecimal=True)
        sent = await make().send(to(told(peer, receipt_ids="hex")))
        await asyncio.to_thread(peer.receipt, peer.messages()[0]["id"], "DELIVRD")
        assert [report.provider_id for report in desk.reports] == [sent.provider_id]

    async def test_come_although_nothing_is_sent(self, make: Make, peer: SmppPeer, desk: Desk) -> None:
        sent = await make().send(to(told(peer)))
        later = make()  # another process, after a restart
        await later.attend(told(peer))
        assert await asyncio.to_thread(peer.receipt, sent.provider_id, "DELIVRD") == 0
        assert [report.provider_id for report in desk.reports] == [sent.provider_id]

    @pytest.mark.parametrize(("text", "what"), [("СТОП", "unsubscribed"), ("Stop.", "unsubscribed"), ("ok", "replied")])
    async def test_what_a_person_answers_is_told_without_the_words(
        self, make: Make, peer: SmppPeer, desk: Desk, text: str, what: str
    ) -> None:
        await make().attend(told(peer))
        assert await asyncio.to_thread(peer.reply, "79161234567", text) == 0
        (report,) = desk.reports
        assert (report.what, report.address) == (what, "+79161234567")
        assert text not in repr(report)

    @pytest.mark.parametrize(
        "how",
        [
            {"payload": True},
            {"header": "0500032a0101"},
            {"header": "060804002a0101", "payload": True},
            {"header": "0500032a0101", "coding": 0x19},
            {"coding": 0x06},
            {"esm_class": 0x10},  # the person's own acknowledgement, typed into an answer
        ],
    )
    async def test_stop_is_heard_however_the_centre_wraps_it(
        self, make: Make, peer: SmppPeer, desk: Desk, how: dict[str, Any]
    ) -> None:
        await make().attend(told(peer))
        assert await asyncio.to_thread(peer.reply, "79161234567", "СТОП", **how) == 0
        assert [(report.what, report.address) for report in desk.reports] == [("unsubscribed", "+79161234567")]

    async def test_a_byte_order_mark_is_no_part_of_the_word(self, make: Make, peer: SmppPeer, desk: Desk) -> None:
        await make().attend(told(peer))
        await asyncio.to_thread(peer.reply, "79161234567", "\ufeffСТОП")
        assert [report.what for report in desk.reports] == ["unsubscribed"]

    async def test_a_header_that_says_it_is_longer_than_the_message_takes_nothing_away(
        self, make: Make, peer: SmppPeer, desk: Desk
    ) -> None:
        await make().attend(told(peer))
        await asyncio.to_thread(peer.reply, "79161234567", "STOP", esm_class=0x40)
        assert [report.what for report in desk.reports] == ["unsubscribed"]

    async def test_the_same_words_are_the_same_answer_in_whichever_alphabet_they_come(
        self, make: Make, peer: SmppPeer, desk: Desk
    ) -> None:
        await make().attend(told(peer, gsm_data_coding=0xF1))
        for coding in (0x00, 0xF1, 0x03, 0x08):
            assert await asyncio.to_thread(peer.reply, "79161234567", "à demain @ £5 é", coding=coding) == 0
        assert len(desk.reports) == 4 and len({report.id for report in desk.reports}) == 1

    async def test_stop_is_told_each_time_it_is_said(self, make: Make, peer: SmppPeer, desk: Desk) -> None:
        """Somebody may subscribe anew in between, within minutes; whether a repeat changes anything, the ledger knows."""
        await make().attend(told(peer))
        for minutes in (0, 10):
            desk.clock.set(NOON + timedelta(minutes=minutes))
            assert await asyncio.to_thread(peer.reply, "79161234567", "СТОП") == 0
        first, second = desk.reports
        assert (first.what, second.what) == ("unsubscribed", "unsubscribed") and first.id != second.id

    async def test_an_answer_that_the_centre_repeats_is_one_and_the_same_words_of_another_day_are_another(
        self, make: Make, peer: SmppPeer, desk: Desk
    ) -> None:
        await make().attend(told(peer))
        for hours in (0, 1, 24):
            desk.clock.set(NOON + timedelta(hours=hours))
            assert await asyncio.to_thread(peer.reply, "79161234567", "ok") == 0
        first, repeated, another = [report.id for report in desk.reports]
        assert first == repeated != another


class TestALibrarysServer:
    async def test_takes_messages_and_its_receipts_are_read(self, make: Make, desk: Desk) -> None:
        with SmppPeer() as free:  # only to find a port that is free
            port = free.port
            free.kill()
            server = smpp34.Server(host="127.0.0.1", port=port, system_id="LIBRARY")
            await server.start()
        settings = SmppSettings(
            host="127.0.0.1", port=port, tls=False, system_id="shop", password="secret", sender="Shop"
        )
        one = to(settings, "Привет")
        adapter = make()
        sending = asyncio.create_task(adapter.send(one))
        esme = await server.next()
        order = await server.next()
        assert order.short_message.decode("utf-16-be") == "Привет"
        order.accept(message_id="00042")
        sent = await sending
        assert sent.outcome == "sent"
        text = b"id:42 sub:001 dlvrd:001 submit date:2603101200 done date:2603101205 stat:DELIVRD err:000 text:"
        answer = await esme.deliver_sm(
            destination_addr="Shop", source_addr="79161234567", esm_class=4, short_message=text
        )
        assert answer.is_success
        assert [(report.what, report.provider_id) for report in desk.reports] == [("delivered", sent.provider_id)]
        await adapter.close()
        await server.stop()


class TestSettings:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("password", "123456789"),
            ("sender", "A name too long"),
            ("sender", "1234567890123456"),
            ("system_id", "sixteen-letters-"),
            ("receipt_zone", "Mars/Olympus"),
            ("host", "http://smsc.example"),
            ("authority", "no certificate"),
        ],
    )
    def test_that_the_protocol_cannot_carry_are_refused(self, field: str, value: str) -> None:
        good = {"host": "smsc.example", "port": 2775, "system_id": "shop", "password": "x", "sender": "Shop"}
        SmppSettings(**good)  # type: ignore[arg-type]
        with pytest.raises(pydantic.ValidationError):
            SmppSettings(**{**good, field: value})  # type: ignore[arg-type]

    def test_the_password_is_not_shown(self) -> None:
        settings = SmppSettings(host="smsc.example", port=2775, system_id="shop", password="hush", sender="Shop")
        assert "hush" not in repr(settings) and "hush" not in settings.model_dump_json()
