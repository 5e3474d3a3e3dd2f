"""SMS over HTTP gateways: each shipped preset against a gateway that checks what the provider would check."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID, uuid4

import pydantic
import pytest

from services.dispatch.channels.base import Call, Exchange, Forged, StartBy, TooLate, Unreadable, World
from services.dispatch.channels.sms_gateway import SmsGateway, SmsGatewaySettings
from services.dispatch.channels.sms_preset import Preset, presets
from services.dispatch.rendered import Rendered
from services.dispatch.segments import segments
from shared.settings import load
from tests.support.sms_gateway_peer import DELIVERED, LOGINS, PASSWORD, SECRET, Callback, SmsGatewayPeer

ORIGIN = "https://shop.example"
ADDRESS = f"{ORIGIN}/webhooks/sms-gateway"
FIXED = f"{ADDRESS}?t={SECRET}"  # what SMS Traffic's support is given
NOON = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
ALL = sorted(presets())
WRITTEN_BACK = ["smsc", "twilio"]  # presets that say how incoming messages come


@pytest.fixture(scope="module")
def started() -> Iterator[SmsGatewayPeer]:
    with SmsGatewayPeer() as peer:
        yield peer


@pytest.fixture
def peer(started: SmsGatewayPeer) -> SmsGatewayPeer:
    started.reset()
    return started


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[SmsGateway]:
    adapter = SmsGateway(World(load(data_dir=tmp_path, outside_allow=("127.0.0.0/8",), public_url=ORIGIN), tmp_path))
    yield adapter
    await adapter.close()


def told(peer: SmsGatewayPeer, preset: str, **changes: Any) -> SmsGatewaySettings:
    given: dict[str, Any] = {
        "preset": preset,
        "server": peer.url,
        "login": LOGINS[preset],
        "password": PASSWORD,
        "sender": "Shop",
        "webhook_secret": SECRET,
    }
    return SmsGatewaySettings(**{**given, **changes})


def to(settings: SmsGatewaySettings, text: str | None = None, **changes: Any) -> Exchange:
    message = uuid4()
    given: dict[str, Any] = {
        "message": message,
        "attempt": 1,
        "key": str(message),
        "address": "+79161234567",
        "rendered": Rendered(text=text if text is not None else f"Your cart waits: {ORIGIN}/c/{message}"),
        "purpose": "marketing",
        "sender": ("Corner Shop", "shop@shop.example"),
        "at": NOON,
        "start_by": StartBy(time.monotonic() + 5.0),
        "settings": settings,
    }
    return Exchange(**{**given, **changes})


def heard(callback: Callback, settings: SmsGatewaySettings, **changes: Any) -> Call:
    given: dict[str, Any] = {
        "method": "POST",
        "headers": callback.headers,
        "query": callback.query,
        "body": callback.body,
        "at": NOON,
        "settings": settings,
    }
    return Call(**{**given, **changes})


class TestEveryPreset:
    @pytest.mark.parametrize("preset", ALL)
    async def test_sends_with_credentials_and_fields_that_the_gateway_accepts(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str
    ) -> None:
        one = to(told(peer, preset), "Привет, €5 для вас")
        result = await gateway.send(one)
        (message,) = peer.messages()
        assert (result.outcome, result.provider_id) == ("sent", message["id"])
        assert (message["gateway"], message["phone"]) == (preset, "+79161234567")
        assert message["text"] == "Привет, €5 для вас"

    @pytest.mark.parametrize("preset", ALL)
    def test_names_the_documents_it_was_transcribed_from(self, preset: str) -> None:
        described = presets()[preset]
        assert described.documents and all(one.title and one.dated for one in described.documents)
        assert described.unconfirmed  # nobody has tried it with an account: what is open is said

    @pytest.mark.parametrize("preset", ALL)
    async def test_a_wrong_password_holds_messages_back_and_blames_nobody(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str
    ) -> None:
        result = await gateway.send(to(told(peer, preset, password="wrong")))
        assert result.outcome == "retry"
        assert peer.messages() == []

    @pytest.mark.parametrize(
        ("preset", "code", "outcome"),
        [
            ("twilio", "21211", "bounced"),
            ("twilio", "21610", "bounced"),
            ("twilio", "21606", "retry"),  # our number is none that may send, and can be mended
            ("twilio", "21608", "retry"),  # a trial account: the number is not at fault
            ("twilio", "21212", "retry"),
            ("twilio", "21660", "retry"),
            ("twilio", "21612", "failed"),  # no way from this sender to this number: which of them, it does not say
            ("twilio", "21609", "retry"),  # our own address is wrong, and can be mended
            ("twilio", "21611", "retry"),  # more than the sender can send in ten hours
            ("smsc", "7", "bounced"),
            ("smsc", "3", "retry"),
            ("smsc", "8", "failed"),  # perhaps no route: the number is not at fault
            ("smsc", "6", "retry"),  # the text or our name is forbidden; which, it does not say
            ("smsc", "9", "unknown"),
            ("sms_aero", "number", "bounced"),
            ("sms_aero", "no credits", "retry"),
            ("sms_aero", "sign", "retry"),
            ("sms_aero", "text", "failed"),
            ("sms_traffic", "428", "bounced"),
            ("sms_traffic", "1000", "retry"),
            ("sms_traffic", "415", "retry"),
            ("sms_traffic", "436", "retry"),
            ("sms_traffic", "421", "retry"),
            ("sms_traffic", "419", "retry"),
            ("sms_traffic", "420", "failed"),
        ],
    )
    async def test_what_an_error_means(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str, code: str, outcome: str
    ) -> None:
        peer.behave(code=code)
        result = await gateway.send(to(told(peer, preset)))
        assert result.outcome == outcome
        assert code in result.detail
        assert "916" not in result.detail  # gateways quote the number; the detail does not

    async def test_a_refusal_that_names_the_sender_beside_the_number_is_our_mistake_first(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        peer.behave(code="number,sign")
        assert (await gateway.send(to(told(peer, "sms_aero")))).outcome == "retry"
        peer.behave(code="number,text")
        assert (await gateway.send(to(told(peer, "sms_aero")))).outcome == "failed"

    @pytest.mark.parametrize("text", ["a" * 160, "a" * 161, "€" * 81, "п" * 70, "п" * 71, "a" * 152 + "€" + "a" * 152])
    async def test_what_the_gateway_charges_is_what_was_reckoned_by_segments(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, text: str
    ) -> None:
        result = await gateway.send(to(told(peer, "smsc"), text))
        assert peer.messages()[-1]["segments"] == segments(text).count
        assert result.charged == gateway.price(Rendered(text=text), Decimal("2.50")).cost

    async def test_amounts_in_another_currency_are_not_taken_for_the_shops_own(
        self, peer: SmsGatewayPeer, tmp_path: Path
    ) -> None:
        settings = load(data_dir=tmp_path, outside_allow=("127.0.0.0/8",), shop_currency="EUR")
        abroad = SmsGateway(World(settings, tmp_path))
        assert (await abroad.send(to(told(peer, "smsc")))).charged is None
        await abroad.close()


class TestWhenItGoesWrong:
    @pytest.mark.parametrize("preset", ALL)
    async def test_429_is_tried_later_when_the_gateway_says(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str
    ) -> None:
        peer.behave(status=429, retry_after="17")
        result = await gateway.send(to(told(peer, preset)))
        assert (result.outcome, result.retry_after) == ("retry", timedelta(seconds=17))
        assert peer.messages() == []

    @pytest.mark.parametrize(
        "how",
        [
            {"status": 503, "take": True},
            {"hang_up": True},
            {"garbage": "<html>maintenance"},
            {"garbage": "{}"},
            {"garbage": "<!DOCTYPE a [<!ENTITY b 'c'>]><reply>&b;</reply>"},
        ],
    )
    @pytest.mark.parametrize("preset", ALL)
    async def test_a_message_that_was_taken_without_an_answer_is_unknown(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str, how: dict[str, Any]
    ) -> None:
        peer.behave(**how)
        assert (await gateway.send(to(told(peer, preset)))).outcome == "unknown"
        assert len(peer.messages()) == 1  # anything else would be a lie

    async def test_a_gateway_that_is_away_is_tried_later(self, gateway: SmsGateway, tmp_path: Path) -> None:
        with SmsGatewayPeer() as other:
            settings = told(other, "smsc")
            assert (await gateway.send(to(settings))).outcome == "sent"
            other.kill()
            assert (await gateway.send(to(settings))).outcome == "retry"
            other.start()
            assert (await gateway.send(to(settings))).outcome == "sent"

    async def test_a_line_on_which_nobody_speaks_is_given_up_and_unknown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = load(data_dir=tmp_path, outside_allow=("127.0.0.0/8",), public_url=ORIGIN)
        patient = SmsGateway(World(settings, tmp_path))
        with SmsGatewayPeer() as other:
            assert (await patient.send(to(told(other, "smsc")))).outcome == "sent"
            assert patient._kept is not None
            patient._kept.timeout = 0.5
            other.freeze()
            assert (await patient.send(to(told(other, "smsc")))).outcome == "unknown"
            other.thaw()
        await patient.close()

    async def test_slow_answers_of_one_message_do_not_hold_up_others(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        peer.behave(delay_seconds=0.4)
        begun = time.monotonic()
        results = await asyncio.gather(*(gateway.send(to(told(peer, "smsc"))) for _ in range(8)))
        assert {one.outcome for one in results} == {"sent"}
        assert time.monotonic() - begun < 8 * 0.4

    async def test_no_more_requests_are_open_at_a_time_than_the_provider_takes_from_one_login(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        """As many messages as an adapter is given at once, in two processes; SMSC refuses the fifteenth open request."""
        peer.behave(delay_seconds=0.2, at_once=14)
        others = SmsGateway(gateway.world)
        each = [
            adapter.send(to(told(peer, "smsc"))) for adapter in (gateway, others) for _ in range(SmsGateway.sessions)
        ]
        assert {one.outcome for one in await asyncio.gather(*each)} == {"sent"}
        assert peer.entries("refused") == []
        await others.close()

    async def test_a_message_that_waited_for_room_too_long_is_not_sent(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        peer.behave(delay_seconds=0.5)
        most = presets()["smsc"].at_once
        first = [asyncio.create_task(gateway.send(to(told(peer, "smsc")))) for _ in range(most)]
        late = asyncio.create_task(gateway.send(to(told(peer, "smsc"), start_by=StartBy(time.monotonic() + 0.1))))
        assert {one.outcome for one in await asyncio.gather(*first)} == {"sent"}
        with pytest.raises(TooLate):
            await late
        assert len(peer.messages()) == most

    async def test_a_host_inside_is_refused_unless_the_deployment_allows_it(
        self, peer: SmsGatewayPeer, tmp_path: Path
    ) -> None:
        careful = SmsGateway(World(load(data_dir=tmp_path), tmp_path))
        result = await careful.send(to(told(peer, "smsc")))
        assert (result.outcome, peer.messages()) == ("retry", [])
        assert "Refused" in result.detail
        await careful.close()


class TestAsking:
    @pytest.mark.parametrize("preset", ["smsc", "twilio"])
    async def test_after_a_missing_answer_the_gateway_is_asked_and_nothing_is_sent_twice(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str
    ) -> None:
        peer.behave(hang_up=True)
        one = to(told(peer, preset))
        assert (await gateway.send(one)).outcome == "unknown"
        peer.behave(hang_up=False)
        answer = await gateway.ask(one)
        (message,) = peer.messages()
        assert answer is not None and (answer.outcome, answer.provider_id) == ("sent", message["id"])

    @pytest.mark.parametrize("sent_on", [None, "2026-03-09", "2026-03-10"])
    async def test_twilio_finds_a_message_on_either_side_of_midnight_and_while_it_still_waits(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, sent_on: str | None
    ) -> None:
        peer.behave(hang_up=True)
        one = to(told(peer, "twilio"), at=datetime(2026, 3, 9, 23, 59, 50, tzinfo=UTC))
        assert (await gateway.send(one)).outcome == "unknown"
        (message,) = peer.messages()
        peer.behave(hang_up=False, sent_on={message["id"]: sent_on} if sent_on else {})
        later = replace(one, at=one.at + timedelta(seconds=20))
        for asked in (one, later):
            answer = await gateway.ask(asked)
            assert answer is not None and (answer.outcome, answer.provider_id) == ("sent", message["id"])

    async def test_a_gateway_that_knows_ids_of_ours_says_that_it_never_took_it(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        long_ago = StartBy(time.monotonic() - 61)
        answer = await gateway.ask(to(told(peer, "smsc"), start_by=long_ago))
        assert answer is not None and answer.outcome == "retry"

    async def test_but_it_is_not_believed_while_it_may_still_be_taking_it(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        assert await gateway.ask(to(told(peer, "smsc"))) is None

    async def test_twilio_is_not_asked_for_a_text_that_others_may_have_too(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        peer.behave(hang_up=True)
        one = to(told(peer, "twilio"), "Your order is ready")
        await gateway.send(one)
        assert await gateway.ask(one) is None
        assert peer.entries("asked") == []

    @pytest.mark.parametrize("preset", ["sms_aero", "sms_traffic"])
    async def test_without_the_gateways_id_the_others_cannot_be_asked(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str
    ) -> None:
        peer.behave(hang_up=True)
        one = to(told(peer, preset))
        await gateway.send(one)
        assert await gateway.ask(one) is None

    @pytest.mark.parametrize("preset", ALL)
    async def test_when_calls_are_lost_the_state_can_be_asked(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str
    ) -> None:
        settings = told(peer, preset)
        one = to(settings)
        sent = await gateway.send(one)
        later = to(settings, one.rendered.text, message=one.message, provider_id=sent.provider_id)
        assert await gateway.follow(later) == []
        peer.behave(states={sent.provider_id: DELIVERED[preset]})
        (report,) = await gateway.follow(later)
        assert (report.what, report.provider_id) == ("delivered", sent.provider_id)


class TestDeliveryReports:
    @pytest.mark.parametrize("preset", ALL)
    async def test_a_call_tells_of_the_delivery(self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str) -> None:
        settings = told(peer, preset)
        one = to(settings)
        sent = await gateway.send(one)
        callback = peer.callback(sent.provider_id, DELIVERED[preset], fixed=FIXED)
        (report,) = (await gateway.receive(heard(callback, settings))).reports
        assert (report.what, report.provider_id) == ("delivered", sent.provider_id)
        assert report.message == (None if preset == "sms_traffic" else one.message)

    @pytest.mark.parametrize(
        ("preset", "state", "fields", "what"),
        [
            ("twilio", "undelivered", {"ErrorCode": "30005"}, "bounced"),
            ("twilio", "undelivered", {"ErrorCode": "30008"}, "failed"),
            ("twilio", "undelivered", {"ErrorCode": "30003"}, "failed"),  # switched off: the number is not at fault
            ("twilio", "undelivered", {"ErrorCode": "30006"}, "bounced"),  # a landline
            ("twilio", "sent", {}, None),
            ("smsc", "22", {}, "bounced"),
            ("smsc", "20", {}, "failed"),
            ("smsc", "25", {}, "failed"),  # perhaps no route
            ("smsc", "0", {}, None),
            ("sms_aero", "2", {}, "failed"),
            ("sms_aero", "3", {}, None),
            ("sms_traffic", "Non Delivered", {}, "failed"),
            ("sms_traffic", "Buffered SMSC", {}, None),
            ("sms_traffic", "Unknown status", {}, None),
        ],
    )
    async def test_what_a_state_means(
        self,
        gateway: SmsGateway,
        peer: SmsGatewayPeer,
        preset: str,
        state: str,
        fields: dict[str, str],
        what: str | None,
    ) -> None:
        settings = told(peer, preset)
        sent = await gateway.send(to(settings))
        callback = peer.callback(sent.provider_id, state, fixed=FIXED, **fields)
        reports = (await gateway.receive(heard(callback, settings))).reports
        assert [report.what for report in reports] == ([what] if what else [])

    async def test_the_time_is_read_in_the_gateways_zone(self, gateway: SmsGateway, peer: SmsGatewayPeer) -> None:
        settings = told(peer, "sms_traffic")
        sent = await gateway.send(to(settings))
        callback = peer.callback(sent.provider_id, "Delivered", fixed=FIXED)
        (report,) = (await gateway.receive(heard(callback, settings))).reports
        assert report.at == datetime(2026, 3, 10, 9, 0, tzinfo=UTC)  # 12:00 in Moscow

    async def test_of_a_long_message_in_parts_the_last_one_counts(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        sent = await gateway.send(to(told(peer, "sms_traffic"), "п" * 200))
        assert peer.messages()[-1]["segments"] == 3
        assert sent.provider_id == peer.messages()[-1]["id"]

    @pytest.mark.parametrize("preset", ALL)
    async def test_a_doubled_or_replayed_call_has_the_same_id(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str
    ) -> None:
        settings = told(peer, preset)
        sent = await gateway.send(to(settings))
        callback = peer.callback(sent.provider_id, DELIVERED[preset], fixed=FIXED)
        twice = [(await gateway.receive(heard(callback, settings))).reports[0] for _ in range(2)]
        assert twice[0] == twice[1]

    async def test_calls_in_the_wrong_order_leave_the_last_word_to_the_final_state(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        settings = told(peer, "twilio")
        sent = await gateway.send(to(settings))
        words = []
        for state in ("delivered", "sent", "queued"):
            callback = peer.callback(sent.provider_id, state)
            words += [report.what for report in (await gateway.receive(heard(callback, settings))).reports]
        assert words == ["delivered"]

    @pytest.mark.parametrize("preset", ALL)
    async def test_a_forged_call_is_refused(self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str) -> None:
        settings = told(peer, preset)
        sent = await gateway.send(to(settings))
        callback = peer.callback(sent.provider_id, DELIVERED[preset], fixed=FIXED)
        state = {"twilio": "MessageStatus", "smsc": "status"}.get(preset)
        forgeries = [
            heard(callback, settings, headers={"content-type": callback.headers["content-type"]}, query={}),
            heard(callback, settings, query={**callback.query, "t": "x", "m": str(uuid4())}),
        ]
        if state is not None:  # the signature covers the fields
            changed = dict(parse_qsl(callback.body.decode())) | {state: "failed"}
            forgeries.append(heard(callback, settings, body=urlencode(changed).encode()))
        if preset == "smsc":  # it signs the fields, not the address
            del forgeries[0], forgeries[0]
            bare = {k: v for k, v in parse_qsl(callback.body.decode()) if k not in ("md5", "sha1")}
            forgeries.append(heard(callback, settings, body=urlencode(bare).encode()))
        for forgery in forgeries:
            with pytest.raises(Forged):
                await gateway.receive(forgery)

    async def test_the_proof_of_one_message_is_none_for_another(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        settings = told(peer, "sms_aero")
        first, second = [(await gateway.send(to(settings))).provider_id for _ in range(2)]
        mine, other = peer.callback(first, "1"), peer.callback(second, "1")
        with pytest.raises(Forged):
            await gateway.receive(heard(mine, settings, query={**mine.query, "m": other.query["m"]}))

    async def test_without_a_secret_no_call_is_believed_and_none_is_asked_for(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        settings = told(peer, "sms_aero", webhook_secret=None)
        await gateway.send(to(settings))
        assert peer.messages()[-1]["callback"] == ""
        call = Call("POST", {}, {"m": str(uuid4()), "t": ""}, b"id=1&status=1", NOON, settings)
        with pytest.raises(Forged):
            await gateway.receive(call)

    @pytest.mark.parametrize(
        "origin",
        [
            "https://localhost:8443",
            "http://127.0.0.1:8080",
            "http://127.1:8080",
            "http://[::1]:8080",
            "https://192.168.1.20",
            "https://100.64.0.7",
            "https://dripline",
            "https://mail.dripline.localhost",
            "https://mail.shop.internal.",
            "https://our_mail.shop.example",
        ],
    )
    @pytest.mark.parametrize("preset", ["twilio", "sms_aero"])
    async def test_a_deployment_that_no_provider_can_reach_asks_for_no_calls(
        self, peer: SmsGatewayPeer, tmp_path: Path, preset: str, origin: str
    ) -> None:
        inside = load(data_dir=tmp_path, outside_allow=("127.0.0.0/8",), public_url=origin)
        adapter = SmsGateway(World(inside, tmp_path))
        settings = told(peer, preset)
        sent = await adapter.send(to(settings))
        assert (sent.outcome, peer.messages()[-1]["callback"]) == ("sent", "")
        # What became of it is asked for instead.
        peer.behave(states={sent.provider_id: DELIVERED[preset]})
        (report,) = await adapter.follow(to(settings, provider_id=sent.provider_id))
        assert report.what == "delivered"
        await adapter.close()

    async def test_a_gateway_in_the_same_network_is_asked_to_call_an_address_in_it(
        self, peer: SmsGatewayPeer, tmp_path: Path
    ) -> None:
        inside = load(data_dir=tmp_path, outside_allow=("127.0.0.0/8",), public_url="http://10.20.0.7:8080")
        adapter = SmsGateway(World(inside, tmp_path))
        own = presets()["sms_aero"].model_dump()
        await adapter.send(to(told(peer, "sms_aero").model_copy(update={"preset": "custom", "custom": Preset(**own)})))
        assert peer.messages()[-1]["callback"].startswith("http://10.20.0.7:8080/webhooks/sms-gateway?")
        await adapter.close()

    async def test_a_proven_call_that_says_nothing_is_unreadable(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        settings = told(peer, "sms_aero")
        sent = await gateway.send(to(settings))
        callback = peer.callback(sent.provider_id, "1")
        for body in (b"", b"id=1", b"\xff\xfe=\xff"):
            with pytest.raises(Unreadable):
                await gateway.receive(heard(callback, settings, body=body))


class TestWhatPeopleWriteBack:
    """Calls of the peer, signed by Twilio's own library and by the peer's own hashes."""

    @pytest.mark.parametrize("preset", WRITTEN_BACK)
    @pytest.mark.parametrize(
        ("text", "what"), [("СТОП", "unsubscribed"), (" Stop. ", "unsubscribed"), ("Когда привезёте?", "replied")]
    )
    async def test_it_is_told_without_the_words(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str, text: str, what: str
    ) -> None:
        callback = peer.incoming(preset, "+79161234567", text, ADDRESS, id="SM1")
        received = await gateway.receive(heard(callback, told(peer, preset)))
        (report,) = received.reports
        assert (report.what, report.address) == (what, "+79161234567")
        assert (report.message, report.provider_id) == (None, "")  # it is no report about a message of ours
        assert text.strip() not in repr(report)
        # Twilio sends what is answered as text to the person; an empty document of its own is an answer to nobody.
        answer = (received.status, received.body, received.content_type.partition(";")[0])
        assert answer == ((200, b"<Response/>", "text/xml") if preset == "twilio" else (200, b"OK", "text/plain"))

    async def test_what_the_provider_takes_for_a_stop_is_one(self, gateway: SmsGateway, peer: SmsGatewayPeer) -> None:
        """Twilio sends nothing more after its own words, and after those that the shop told it."""
        settings = told(peer, "twilio")
        for text, more in (
            ("Cancel", {}),
            ("QUIT", {}),
            ("basta", {"OptOutType": "STOP"}),
            ("info", {"OptOutType": "HELP"}),
        ):
            callback = peer.incoming("twilio", "+79161234567", text, ADDRESS, id=f"SM-{text}", **more)
            (report,) = (await gateway.receive(heard(callback, settings))).reports
            assert report.what == ("replied" if text == "info" else "unsubscribed")

    async def test_with_an_id_of_the_provider_a_repeat_is_one_whenever_it_comes(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        settings, reports = told(peer, "twilio"), []
        for id, day in (("SM1", 0), ("SM1", 3), ("SM2", 3)):
            callback = peer.incoming("twilio", "+79161234567", "STOP", ADDRESS, id=id)
            reports += (await gateway.receive(heard(callback, settings, at=NOON + timedelta(days=day)))).reports
        assert reports[0].id == reports[1].id != reports[2].id

    async def test_without_one_answers_count_once_a_day_and_stop_each_time(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        settings, ids = told(peer, "smsc"), {}
        for text in ("ok", "стоп"):
            callback = peer.incoming("smsc", "+79161234567", text, ADDRESS)
            calls = [heard(callback, settings, at=NOON + timedelta(hours=hours)) for hours in (0, 1, 24)]
            ids[text] = [(await gateway.receive(call)).reports[0].id for call in calls]
        assert ids["ok"][0] == ids["ok"][1] != ids["ok"][2]
        assert len(set(ids["стоп"])) == 3

    @pytest.mark.parametrize("preset", WRITTEN_BACK)
    async def test_a_forged_one_is_refused(self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str) -> None:
        settings = told(peer, preset)
        callback = peer.incoming(preset, "+79161234567", "hello", ADDRESS, id="SM1")
        said = dict(parse_qsl(callback.body.decode()))
        phone, text = ("From", "Body") if preset == "twilio" else ("phone", "mes")
        bare = {name: value for name, value in said.items() if name not in ("md5", "sha1")}
        for forged in ({**said, text: "STOP"}, {**said, phone: "79160000001"}, bare):
            headers = {k: v for k, v in callback.headers.items() if forged is not bare or k == "content-type"}
            with pytest.raises(Forged):
                await gateway.receive(heard(callback, settings, headers=headers, body=urlencode(forged).encode()))
        with pytest.raises(Forged):
            await gateway.receive(heard(callback, told(peer, preset, password="other", webhook_secret="other")))

    async def test_a_name_that_writes_is_nobody_s_number(self, gateway: SmsGateway, peer: SmsGatewayPeer) -> None:
        callback = peer.incoming("twilio", "Bank24", "STOP", ADDRESS, id="SM1")
        assert (await gateway.receive(heard(callback, told(peer, "twilio")))).reports == []

    @pytest.mark.parametrize("preset", sorted(set(ALL) - set(WRITTEN_BACK)))
    async def test_where_it_is_not_documented_it_is_not_guessed(
        self, gateway: SmsGateway, peer: SmsGatewayPeer, preset: str
    ) -> None:
        assert presets()[preset].incoming is None
        assert any("write back" in what for what in presets()[preset].unconfirmed)

    async def test_a_gateway_of_ones_own_says_how_it_hands_them_on(
        self, gateway: SmsGateway, peer: SmsGatewayPeer
    ) -> None:
        incoming = {"proof": {"kind": "token"}, "phone": "msisdn", "text": "body", "id": "mo"}
        settings = SmsGatewaySettings(
            preset="custom", custom={**CUSTOM, "incoming": incoming}, password=PASSWORD, webhook_secret=SECRET
        )
        body = urlencode({"msisdn": "79161234567", "body": "stop", "mo": "17"}).encode()
        (report,) = (await gateway.receive(Call("POST", {}, {"t": SECRET}, body, NOON, settings))).reports
        assert (report.what, report.address, report.id) == ("unsubscribed", "+79161234567", "incoming/17/unsubscribed")
        for query in ({}, {"t": "wrong"}):
            with pytest.raises(Forged):
                await gateway.receive(Call("POST", {}, query, body, NOON, settings))


class TestSettings:
    def test_an_unknown_preset_is_refused_with_the_names_of_those_there_are(self) -> None:
        with pytest.raises(pydantic.ValidationError, match="sms_aero, sms_traffic, smsc, twilio and custom"):
            SmsGatewaySettings(preset="nobody", password="x")

    def test_a_password_does_not_travel_in_the_clear_over_the_internet(self) -> None:
        for server in ("http://gate.example", "http://8.8.8.8"):
            with pytest.raises(pydantic.ValidationError, match="https only"):
                SmsGatewaySettings(preset="smsc", password="x", server=server)

    def test_secrets_are_not_shown(self) -> None:
        settings = SmsGatewaySettings(preset="smsc", password="hush-1", webhook_secret="hush-2")
        assert "hush" not in repr(settings) and "hush" not in settings.model_dump_json()

    def test_a_preset_may_not_put_the_password_into_the_path(self) -> None:
        with pytest.raises(pydantic.ValidationError, match="must not stand in the path"):
            Preset.model_validate({**CUSTOM, "send": {"server": "https://sms.example", "path": "/{password}"}})

    def test_a_placeholder_that_is_none_is_said(self) -> None:
        with pytest.raises(pydantic.ValidationError, match=r"no placeholder \{phon\}"):
            Preset.model_validate({**CUSTOM, "send": {**CUSTOM["send"], "fields": {"to": "{phon}"}}})

    def test_the_example_in_the_docs_is_a_preset(self) -> None:
        page = (Path(__file__).parents[2] / "docs" / "CHANNELS.md").read_text(encoding="utf-8")
        (example,) = [one for one in re.findall(r"```json\n(.*?)```", page, re.DOTALL) if '"send"' in one]
        assert Preset.model_validate_json(example).callbacks is not None

    async def test_a_gateway_of_ones_own_is_described_by_api(self, gateway: SmsGateway, peer: SmsGatewayPeer) -> None:
        settings = SmsGatewaySettings(
            preset="custom", custom=CUSTOM, server=peer.url, login="shop", password=PASSWORD, sender="Shop"
        )
        result = await gateway.send(to(settings, "Hello {password}"))
        assert result.outcome == "sent"
        assert UUID(peer.messages()[-1]["key"])
        assert peer.messages()[-1]["text"] == "Hello {password}"  # what a text says is not filled in again


CUSTOM: dict[str, Any] = {
    "title": "Our own",
    "send": {
        "server": "https://sms.example",
        "path": "/sys/send.php?fmt=3",
        "body": "form",
        "fields": {
            "login": "{login}",
            "psw": "{password}",
            "phones": "{phone}",
            "mes": "{text}",
            "id": "{key}",
            "cost": "3",
            "charset": "utf-8",
        },
    },
    "answer": {"format": "json", "field": "cnt", "values": ["*"], "id": "id", "code": ["error_code"]},
}
