"""One suite for every adapter that is found, whoever wrote it. A new adapter needs a harness: somebody on the other side
who tells what really arrived."""

from __future__ import annotations

import email
import email.policy
import importlib
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID, uuid4

import pytest

from services.dispatch.channels.base import Adapter, Call, Exchange, Forged, StartBy, TooLate, Unreadable, World
from services.dispatch.channels.registry import find, serving
from services.dispatch.rendered import Rendered
from services.dispatch.templates import PARTS
from shared.channels import KNOWN
from shared.errors import ConfigurationError
from shared.identifiers import KINDS
from shared.settings import load
from tests.support.smtp_peer import SmtpPeer

HARNESSES = Path(__file__).parent.parent / "support" / "channel_harnesses"
PLUGINS = Path(__file__).parent.parent / "support" / "channels"
FOUND = find([PLUGINS])
TEXT = Rendered(
    text="Hello, this is for you.\n",
    subject="Grüße, an offer",
    html="<p>Hello</p>",
    urls={"unsubscribe": "https://shop.example/u/token"},
)
ADDRESSES = {"email": "anna@example.com", "phone": "+79161234567", "device_token": "token-1", "external_id": "tg-1"}
NOON = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)


class Harness(Protocol):
    """The other side of an adapter: `arrived` are the messages that it took, by id, oldest first. `settings`: what the
    adapter is told to reach it, an instance of its `settings_type`."""

    adapter: Adapter
    settings: Any

    def arrived(self) -> list[str]: ...


class FolderHarness:
    """For adapters that write files named by the message."""

    settings = None

    def __init__(self, kind: type[Adapter], folder: Path) -> None:
        self.adapter = kind(World(load(data_dir=folder), folder / "inbox"))
        self._folder = folder / "inbox"

    def arrived(self) -> list[str]:
        files = [file for file in self._folder.rglob("*") if file.is_file()] if self._folder.exists() else []
        return [file.stem for file in files if not file.name.startswith(".")]


@asynccontextmanager
async def harness_of(name: str, folder: Path) -> AsyncIterator[Harness]:
    """What `tests/support/channel_harnesses/<adapter>.py` declares as `harness(kind, folder)`; hyphens are underscores."""
    if not FOUND[name].leaves_machine:
        yield FolderHarness(FOUND[name], folder)
        return
    file = HARNESSES / f"{name.replace('-', '_')}.py"
    if not file.exists():
        pytest.fail(f"the adapter {name} needs a harness: {file.relative_to(HARNESSES.parents[2])}")
    async with importlib.import_module(f"tests.support.channel_harnesses.{file.stem}").harness(
        FOUND[name], folder
    ) as made:
        yield made


@pytest.fixture(params=sorted(FOUND))
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    async with harness_of(request.param, tmp_path) as made:
        yield made
        await made.adapter.close()


def exchange(
    adapter: Adapter, message: UUID | None = None, seconds: float = 5.0, settings: Any = None, **changes: Any
) -> Exchange:
    given: dict[str, Any] = {
        "message": message or uuid4(),
        "attempt": 1,
        "key": "k",
        "address": ADDRESSES[adapter.address_kind],
        "rendered": TEXT,
        "purpose": "marketing",
        "sender": ("Corner Shop", "shop@shop.example"),
        "at": NOON,
        "start_by": StartBy(time.monotonic() + seconds),
        "settings": settings,
    }
    return Exchange(**{**given, **changes})


def to(harness: Harness, message: UUID | None = None, **changes: Any) -> Exchange:
    """An exchange with the harness's peer."""
    address = getattr(harness, "address", ADDRESSES[harness.adapter.address_kind])
    return exchange(harness.adapter, message, **{"settings": harness.settings, "address": address, **changes})


class TestEveryAdapter:
    def test_declares_what_the_others_rely_on(self, harness: Harness) -> None:
        adapter = harness.adapter
        assert FOUND[adapter.name] is type(adapter)
        assert re.fullmatch(r"[a-z][a-z0-9-]{1,40}", adapter.name)
        assert adapter.address_kind in KINDS
        assert adapter.part in PARTS
        assert timedelta(0) < adapter.timeout <= timedelta(minutes=1)
        assert 1 <= adapter.sessions <= 100
        if adapter.settings_type is None:
            assert harness.settings is None
        else:
            assert isinstance(harness.settings, adapter.settings_type)
            assert adapter.settings_type.model_json_schema()["type"] == "object"

    def test_is_told_secrets_only_in_fields_that_are_not_read_back(self, harness: Harness) -> None:
        kind = harness.adapter.settings_type
        words = ("password", "secret", "token", "private", "api_key", "apikey", "credentials")
        for name, field in kind.model_fields.items() if kind is not None else []:
            if any(word in name for word in words):
                assert "SecretStr" in str(field.annotation), f"{name} is not a SecretStr"

    async def test_sends_once(self, harness: Harness) -> None:
        one = to(harness)
        assert (await harness.adapter.send(one)).outcome == "sent"
        assert harness.arrived() == [str(one.message)]

    async def test_sends_nothing_after_the_moment_to_start_has_passed(self, harness: Harness) -> None:
        with pytest.raises(TooLate):
            await harness.adapter.send(to(harness, seconds=-0.001))
        assert harness.arrived() == []

    async def test_looks_at_the_clock_immediately_before_it_opens_the_exchange(self, harness: Harness) -> None:
        looked: list[int] = []

        def clock() -> float:
            looked.append(len(harness.arrived()))
            return 0.0

        await harness.adapter.send(to(harness, start_by=StartBy(1.0, clock)))
        assert looked and set(looked) == {0}

    @pytest.mark.parametrize("name", sorted(name for name, kind in FOUND.items() if kind.repeatable))
    async def test_that_says_it_may_be_repeated_reaches_the_person_once(self, name: str, tmp_path: Path) -> None:
        async with harness_of(name, tmp_path) as harness:
            message = uuid4()
            for attempt in (1, 2):
                assert (await harness.adapter.send(to(harness, message, attempt=attempt))).outcome == "sent"
            assert harness.arrived() == [str(message)]
            await harness.adapter.close()

    async def test_cannot_be_made_to_send_more_than_it_was_given(self, harness: Harness) -> None:
        nasty = Rendered(text="x\n.\nMAIL FROM:<a@b>\n", subject="a b", urls={})
        one = to(harness, rendered=nasty)
        assert (await harness.adapter.send(one)).outcome == "sent"
        assert harness.arrived() == [str(one.message)]

    async def test_a_call_that_proves_nothing_is_not_believed(self, harness: Harness) -> None:
        """`receive` of an adapter that takes calls says Forged or Unreadable, and makes no reports of it."""
        call = Call("POST", {"content-type": "application/json"}, {}, b'{"id": 1}', NOON, harness.settings)
        try:
            received = await harness.adapter.receive(call)
        except (Forged, Unreadable):
            return
        assert received.reports == []

    def test_has_a_price_for_every_text(self, harness: Harness) -> None:
        price = harness.adapter.price(TEXT, Decimal("1.00"))
        assert price.cost >= 0 and price.units >= 1

    async def test_can_be_closed_and_used_again(self, harness: Harness) -> None:
        await harness.adapter.send(to(harness))
        await harness.adapter.close()
        assert (await harness.adapter.send(to(harness))).outcome == "sent"


class TestTheRegistry:
    def test_every_channel_has_one_row_and_an_inbox(self) -> None:
        for channel in KNOWN:
            found = serving(find(), channel, None, load())
            assert found is not None and not found.leaves_machine

    def test_smtp_serves_email_once_it_is_configured(self) -> None:
        with_smtp = serving(find(), "email", None, load(smtp_url="smtp://127.0.0.1:25"))
        assert with_smtp is not None and with_smtp.name == "smtp"

    def test_the_row_may_name_another_adapter(self) -> None:
        found = serving(find(), "email", "inbox-email", load(smtp_url="smtp://127.0.0.1:25"))
        assert found is not None and found.name == "inbox-email"

    def test_an_adapter_whose_settings_are_gone_serves_nothing(self) -> None:
        assert serving(find(), "email", "smtp", load()) is None
        assert serving(find(), "email", "inbox-sms", load()) is None

    def test_an_adapter_in_another_folder_is_found_by_its_folder(self) -> None:
        assert "pager" in find([PLUGINS]) and "pager" not in find()

    def test_a_name_that_is_declared_twice_is_refused(self, tmp_path: Path) -> None:
        source = (Path(__file__).parents[2] / "services/dispatch/channels/inbox_sms.py").read_text()
        (tmp_path / "mine.py").write_text(source)
        with pytest.raises(ConfigurationError, match="Two files declare the channel adapter inbox-sms"):
            find([tmp_path])

    @pytest.mark.parametrize(
        ("file", "old", "new", "expected"),
        [
            ("pager.yaml", None, None, "serves the channel pager, which no file declares: put pager.yaml beside it"),
            ("pager.py", None, None, "No adapter serves the channel pager"),
            ("pager.py", 'address_kind = "phone"', 'address_kind = "email"', "both must be of one kind"),
            ("pager.yaml", "event: Pager", "event: Pager\nconsents: pigeon", "nobody can consent to 'pigeon'"),
            ("pager.yaml", "event: Pager", "event: Pager\nconsents: email", "are given for a email"),
            ("pager.yaml", "event: Pager", "event: sms", "event"),
            ("pager.yaml", "event: Pager", "event: Sms", "events of sms begin with 'SMS' already"),
            ("pager.yaml", "address: phone", "address: pigeon-hole", "address is one of user_id"),
            ("pager.yaml", 'reach: "0.99"', "reach: 99", "reach is a share between 0 and 1"),
            ("pager.yaml", "quiet: false", "loud: true", "unknown field `loud`"),
            ("pager.yaml", "quiet: false", "quiet: [", "cannot be read"),
        ],
    )
    def test_a_channel_that_nobody_could_use_is_refused(
        self, tmp_path: Path, file: str, old: str | None, new: str | None, expected: str
    ) -> None:
        for name in ("pager.py", "pager.yaml"):
            text = (PLUGINS / name).read_text()
            if name == file and old is None:
                continue
            if name == file:
                assert old is not None and new is not None and old in text
                text = text.replace(old, new)
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigurationError, match=re.escape(expected)):
            find([tmp_path])

    def test_a_channel_that_is_declared_twice_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "sms.yaml").write_text((PLUGINS / "pager.yaml").read_text())
        with pytest.raises(ConfigurationError, match="declares the channel sms, which there is already"):
            find([tmp_path])

    def test_a_folder_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="not a folder"):
            find([tmp_path / "nowhere"])


class TestInbox:
    async def test_an_sms_is_a_file_that_a_person_can_read(self, tmp_path: Path) -> None:
        adapter = FOUND["inbox-sms"](World(load(data_dir=tmp_path), tmp_path))
        one = exchange(adapter)
        await adapter.send(one)
        note = json.loads((tmp_path / "sms" / f"{one.message}.json").read_text())
        assert note["to"] == "+79161234567" and note["text"].startswith("Hello")

    async def test_a_mail_lies_in_a_maildir(self, tmp_path: Path) -> None:
        adapter = FOUND["inbox-email"](World(load(data_dir=tmp_path), tmp_path))
        one = exchange(adapter)
        await adapter.send(one)
        assert {folder.name for folder in (tmp_path / "email").iterdir()} == {"cur", "new", "tmp"}
        mail = email.message_from_bytes(
            (tmp_path / "email" / "new" / str(one.message)).read_bytes(), policy=email.policy.default
        )
        assert mail["Subject"] == "Grüße, an offer"
        assert mail["List-Unsubscribe"] == "<https://shop.example/u/token>"
        assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"

    def test_an_sms_costs_per_segment(self) -> None:
        price = FOUND["inbox-sms"].price
        assert price(Rendered(text="a" * 161), Decimal("1.00")).cost == Decimal("2.00")
        assert price(Rendered(text="п" * 70), Decimal("1.00")).units == 1


@pytest.fixture
async def smtp(smtp_peer: SmtpPeer, tmp_path: Path) -> AsyncIterator[Adapter]:
    adapter = FOUND["smtp"](World(load(smtp_url=smtp_peer.url, data_dir=tmp_path), tmp_path))
    yield adapter
    await adapter.close()


class TestSmtp:
    @pytest.mark.parametrize(
        ("answer", "outcome"),
        [
            ("451 4.3.0 try later", "retry"),
            ("421 4.7.0 busy", "retry"),
            ("550 5.1.1 no such person", "bounced"),
            ("550 no such person", "bounced"),
            ("553 5.1.3 bad address syntax", "bounced"),
            ("554 5.7.1 we do not like you", "failed"),
            ("552 5.2.2 mailbox full", "failed"),
        ],
    )
    async def test_what_an_answer_to_the_recipient_means(
        self, smtp: Adapter, smtp_peer: SmtpPeer, answer: str, outcome: str
    ) -> None:
        smtp_peer.reply("anna@example.com", answer)
        result = await smtp.send(exchange(smtp))
        assert result.outcome == outcome
        assert "person" not in result.detail and "anna" not in result.detail
        assert smtp_peer.letters() == []

    @pytest.mark.parametrize(
        ("answer", "outcome"), [("452 4.3.1 disk full", "retry"), ("554 5.6.0 content refused", "failed")]
    )
    async def test_what_an_answer_to_the_letter_means(
        self, smtp: Adapter, smtp_peer: SmtpPeer, answer: str, outcome: str
    ) -> None:
        smtp_peer.behave(data_reply=answer)
        assert (await smtp.send(exchange(smtp))).outcome == outcome

    async def test_a_line_that_goes_dead_after_the_letter_is_unknown(self, smtp: Adapter, smtp_peer: SmtpPeer) -> None:
        smtp_peer.behave(hang_up_after_data=True)
        assert (await smtp.send(exchange(smtp))).outcome == "unknown"
        assert len(smtp_peer.letters()) == 1  # it was taken: to say anything else would be a lie

    async def test_a_server_that_is_away_is_tried_later(self, smtp: Adapter, smtp_peer: SmtpPeer) -> None:
        await smtp.send(exchange(smtp))
        smtp_peer.kill()
        assert (await smtp.send(exchange(smtp))).outcome == "retry"
        smtp_peer.start()
        assert (await smtp.send(exchange(smtp))).outcome == "sent"

    async def test_a_refusal_does_not_spoil_the_connection_for_the_next_letter(
        self, smtp: Adapter, smtp_peer: SmtpPeer
    ) -> None:
        smtp_peer.reply("bob@example.com", "550 5.1.1 no")
        outcomes = [
            (await smtp.send(exchange(smtp, address=address))).outcome
            for address in ("anna@example.com", "bob@example.com", "carl@example.com")
        ]
        assert outcomes == ["sent", "bounced", "sent"]

    async def test_the_clock_is_looked_at_again_before_data(self, smtp: Adapter, smtp_peer: SmtpPeer) -> None:
        looks = iter([0.0, 10.0])  # in time to open, too late for DATA
        with pytest.raises(TooLate):
            await smtp.send(exchange(smtp, start_by=StartBy(5.0, lambda: next(looks))))
        assert [e["kind"] for e in smtp_peer.entries()] == ["rcpt"]
        assert (await smtp.send(exchange(smtp))).outcome == "sent"

    async def test_a_repeat_carries_the_same_message_id(self, smtp: Adapter, smtp_peer: SmtpPeer) -> None:
        message = uuid4()
        for attempt in (1, 2):
            await smtp.send(exchange(smtp, message, attempt=attempt))
        assert len({letter.message["Message-ID"] for letter in smtp_peer.letters()}) == 1

    async def test_only_marketing_has_the_one_click_headers(self, smtp: Adapter, smtp_peer: SmtpPeer) -> None:
        await smtp.send(exchange(smtp))
        await smtp.send(exchange(smtp, purpose="transactional"))
        marketing, receipt = (letter.message for letter in smtp_peer.letters())
        assert marketing["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        assert receipt["List-Unsubscribe"] is None

    @pytest.mark.parametrize(
        "address", ["a@b.example, c@d.example", "a@b.example>\r\nRCPT TO:<c@d.example", "no address"]
    )
    async def test_an_address_that_is_none_or_two_is_refused(
        self, smtp: Adapter, smtp_peer: SmtpPeer, address: str
    ) -> None:
        assert (await smtp.send(exchange(smtp, address=address))).outcome == "failed"
        assert smtp_peer.entries() == []

    async def test_an_address_in_another_script_goes_by_smtputf8(self, smtp: Adapter, smtp_peer: SmtpPeer) -> None:
        assert (await smtp.send(exchange(smtp, address="анна@example.com"))).outcome == "sent"
        assert smtp_peer.letters("анна@example.com")
