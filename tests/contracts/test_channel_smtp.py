"""The SMTP adapter over lines that are encrypted, authenticated, slow and dead; and what comes back.
`test_mail_servers.py` has it speak to servers that nobody here wrote."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pydantic
import pytest

from services.dispatch.channels import smtp as smtp_module
from services.dispatch.channels import smtp_lines
from services.dispatch.channels.base import (
    Adapter,
    Call,
    Forged,
    Report,
    StartBy,
    TooLate,
    Unreadable,
    World,
)
from services.dispatch.channels.return_path import ReturnPath
from services.dispatch.channels.smtp import Smtp
from services.dispatch.channels.smtp_settings import SmtpSettings, server_at
from services.dispatch.rendered import Rendered
from shared.settings import load
from tests.contracts.test_channels import exchange
from tests.support.smtp_peer import SmtpPeer

BOUNCE_KEY = "a key of at least sixteen"
PATHS = ReturnPath("bounces@mail.shop.example", BOUNCE_KEY)
NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)


@pytest.fixture
async def smtp(tmp_path: Path) -> AsyncIterator[Adapter]:
    adapter = Smtp(World(load(data_dir=tmp_path, outside_allow=("127.0.0.0/8",)), tmp_path))
    yield adapter
    await adapter.close()


def told(peer: SmtpPeer, **more: Any) -> SmtpSettings:
    """How to reach this peer."""
    given = {"host": "127.0.0.1", "port": peer.port, "authority": peer.authority.certificate, **more}
    return SmtpSettings(**given)


SHOP = {"username": "shop", "password": "of the test"}
USERS = {"shop": "of the test"}


class TestAnEncryptedLine:
    @pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
    @pytest.mark.parametrize("security", ["starttls", "tls"])
    async def test_carries_the_password_and_the_letters(self, smtp: Adapter, security: Any, mechanism: str) -> None:
        with SmtpPeer(security=security, users=USERS, mechanisms=(mechanism,)) as peer:
            settings = told(peer, security=security, **SHOP)
            for _ in range(2):
                assert (await smtp.send(exchange(smtp, settings=settings))).outcome == "sent"
            entries = peer.entries()
        assert [e["mechanism"] for e in entries if e["kind"] == "auth"] == [mechanism]  # the second letter: kept line
        assert [e["tls"] for e in entries if e["kind"] == "taken"] == [True, True]

    async def test_is_insisted_on_when_the_server_offers_none(self, smtp: Adapter) -> None:
        """A downgrade: somebody on the way takes STARTTLS out of the greeting."""
        with SmtpPeer(users=USERS) as peer:
            result = await smtp.send(exchange(smtp, settings=told(peer, security="starttls", **SHOP)))
            assert peer.entries() == []
        assert result.outcome == "retry" and "STARTTLS" in result.detail

    @pytest.mark.parametrize("security", ["starttls", "tls"])
    async def test_is_refused_to_a_server_that_nobody_vouches_for(self, smtp: Adapter, security: Any) -> None:
        with SmtpPeer(security=security, users=USERS) as peer:
            result = await smtp.send(exchange(smtp, settings=told(peer, security=security, authority="", **SHOP)))
            assert peer.entries() == []
        assert result.outcome == "retry" and "certificate" in result.detail

    @pytest.mark.parametrize("security", ["starttls", "tls"])
    async def test_is_refused_to_a_server_with_another_ones_certificate(self, smtp: Adapter, security: Any) -> None:
        with SmtpPeer(security=security, users=USERS, name="mail.elsewhere.example") as peer:
            result = await smtp.send(exchange(smtp, settings=told(peer, security=security, **SHOP)))
            assert peer.entries() == []
        assert result.outcome == "retry" and "certificate" in result.detail

    async def test_with_a_wrong_password_waits_until_it_is_put_right(self, smtp: Adapter) -> None:
        with SmtpPeer(security="starttls", users=USERS) as peer:
            wrong = told(peer, username="shop", password="not this one")
            result = await smtp.send(exchange(smtp, settings=wrong))
            assert result.outcome == "retry" and "535" in result.detail and "not this" not in result.detail
            assert (await smtp.send(exchange(smtp, settings=told(peer, **SHOP)))).outcome == "sent"

    async def test_is_a_new_one_when_the_settings_change(self, smtp: Adapter) -> None:
        with SmtpPeer(security="starttls", users={**USERS, "other": "of the other"}) as peer:
            for user, password in (("shop", "of the test"), ("other", "of the other"), ("other", "of the other")):
                one = exchange(smtp, settings=told(peer, username=user, password=password))
                assert (await smtp.send(one)).outcome == "sent"
            assert [e["user"] for e in peer.entries() if e["kind"] == "auth"] == ["shop", "other"]


class TestAServerTold:
    async def test_by_api_must_not_stand_in_our_own_network(self, tmp_path: Path, smtp_peer: SmtpPeer) -> None:
        adapter = Smtp(World(load(data_dir=tmp_path), tmp_path))
        result = await adapter.send(exchange(adapter, settings=told(smtp_peer, security="none")))
        assert result.outcome == "retry" and "OUTSIDE_ALLOW" in result.detail
        assert smtp_peer.entries() == []

    @pytest.mark.parametrize(
        ("url", "security"),
        [
            ("smtp://mail.example", "opportunistic"),
            ("smtp://shop:secret@mail.example:587", "starttls"),  # a password goes over no open line …
            ("smtp://shop:secret@127.0.0.1:25", "opportunistic"),  # … but to this machine itself
            ("smtp+starttls://mail.example", "starttls"),
            ("smtps://shop:secret@mail.example", "tls"),
        ],
    )
    def test_by_its_url_is_spoken_to_as_the_url_says(self, url: str, security: str) -> None:
        server = server_at(url)
        assert server.security == security and "secret" not in repr(server)

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"username": "shop"}, "belong together"),
            ({"username": "shop", "password": "x", "security": "none"}, "encrypted line"),
            ({"return_path": "bounces@mail.shop.example"}, "belong together"),
            ({"return_path": "a+b@c.example", "bounce_key": BOUNCE_KEY}, "no \\+"),
            ({"return_path": f"{'a' * 22}@c.example", "bounce_key": BOUNCE_KEY}, "21 characters"),
            ({"return_path": "b@c.example", "bounce_key": "short"}, "16 characters"),
            ({"bounce_folder": "/var/mail/bounces"}, "needs"),
            ({"bounce_folder": "../mail"}, "whole path"),
            ({"dkim_selector": "drip"}, "belong together"),
            ({"dkim_selector": "drip", "dkim_key": "nonsense"}, "private key"),
            ({"sender": "shop@shop.example\r\nBcc: x@y.example"}, "not an e-mail address"),
            ({"authority": "nonsense"}, "PEM"),
        ],
    )
    def test_wrongly_is_refused_in_a_sentence(self, wrong: dict[str, str], says: str) -> None:
        with pytest.raises(pydantic.ValidationError, match=says):
            SmtpSettings(host="mail.example", **wrong)  # type: ignore[arg-type]


class TestALineThatFails:
    async def test_that_was_taken_and_never_greeted_has_carried_nothing(
        self, smtp: Adapter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half-open: the connection stands, and nobody is at the other end."""
        monkeypatch.setattr(smtp_lines, "CONNECT_SECONDS", 0.3)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            settings = SmtpSettings(host="127.0.0.1", port=listening.getsockname()[1], security="none")
            assert (await smtp.send(exchange(smtp, settings=settings))).outcome == "retry"

    async def test_with_an_answer_that_takes_too_long_is_unknown(
        self, smtp: Adapter, smtp_peer: SmtpPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(smtp_module, "DATA_SECONDS", 0.3)
        smtp_peer.behave(delay_seconds=1.5)
        settings = told(smtp_peer, security="none")
        assert (await smtp.send(exchange(smtp, settings=settings))).outcome == "unknown"
        assert len(smtp_peer.letters()) == 1
        smtp_peer.behave(delay_seconds=0.0)
        # The late answer is not taken for the next letter's.
        assert (await smtp.send(exchange(smtp, settings=settings))).outcome == "sent"

    @pytest.mark.parametrize("said", ["hello", "2xx thank you", "354 go on", "199 perhaps"])
    async def test_with_an_answer_to_the_letter_that_says_neither_yes_nor_no_is_unknown(
        self, smtp: Adapter, smtp_peer: SmtpPeer, said: str
    ) -> None:
        smtp_peer.behave(unreadable_reply=said)
        settings = told(smtp_peer, security="none")
        assert (await smtp.send(exchange(smtp, settings=settings))).outcome == "unknown"
        assert len(smtp_peer.letters()) == 1
        smtp_peer.behave(unreadable_reply="")
        assert (await smtp.send(exchange(smtp, settings=settings))).outcome == "sent"

    @pytest.mark.parametrize("said", ["hello", "250 go on then", "451 later"])
    async def test_with_an_answer_to_the_command_data_that_asks_for_no_letter_has_carried_nothing(
        self, smtp: Adapter, smtp_peer: SmtpPeer, said: str
    ) -> None:
        smtp_peer.behave(data_command_reply=said)
        settings = told(smtp_peer, security="none")
        assert (await smtp.send(exchange(smtp, settings=settings))).outcome == "retry"
        assert smtp_peer.letters() == []
        smtp_peer.behave(data_command_reply="")
        assert (await smtp.send(exchange(smtp, settings=settings))).outcome == "sent"

    async def test_silently_is_trusted_no_more_and_neither_are_those_beside_it(
        self, smtp: Adapter, smtp_peer: SmtpPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As behind a router that forgot ten idle connections: each would cost its own time limit."""
        monkeypatch.setattr(smtp_module, "COMMAND_SECONDS", 0.3)
        monkeypatch.setattr(smtp_lines, "CONNECT_SECONDS", 0.3)
        settings = told(smtp_peer, security="none")
        await asyncio.gather(*(smtp.send(exchange(smtp, settings=settings)) for _ in range(10)))
        smtp_peer.freeze()
        looked: list[float] = []
        counting = StartBy(10.0, lambda: looked.append(0.0) or 0.0)  # type: ignore[func-returns-value]
        result = await smtp.send(exchange(smtp, settings=settings, start_by=counting))
        smtp_peer.thaw()
        assert result.outcome == "retry"
        assert len(looked) == 2  # before the kept line, and before the new one
        assert (await smtp.send(exchange(smtp, settings=settings))).outcome == "sent"

    async def test_silently_until_it_is_too_late_to_start_gives_the_letter_back(
        self, smtp: Adapter, smtp_peer: SmtpPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(smtp_module, "COMMAND_SECONDS", 0.3)
        settings = told(smtp_peer, security="none")
        assert (await smtp.send(exchange(smtp, settings=settings))).outcome == "sent"
        smtp_peer.freeze()
        with pytest.raises(TooLate):
            await smtp.send(exchange(smtp, settings=settings, seconds=0.2))
        smtp_peer.thaw()

    async def test_silently_for_as_long_as_an_envelope_may_take_has_carried_nothing(
        self, smtp: Adapter, smtp_peer: SmtpPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = told(smtp_peer, security="none")
        assert (await smtp.send(exchange(smtp, settings=settings))).outcome == "sent"
        monkeypatch.setattr(smtp_module, "ENVELOPE_SECONDS", 0.3)
        smtp_peer.freeze()
        assert (await smtp.send(exchange(smtp, settings=settings))).outcome == "retry"
        smtp_peer.thaw()

    async def test_is_not_taken_again_after_a_rest_in_which_a_router_may_have_forgotten_it(
        self, smtp_peer: SmtpPeer
    ) -> None:
        now = [0.0]
        lines, server = smtp_lines.Lines((), 16, monotonic=lambda: now[0]), server_at(smtp_peer.url)
        for client in [(await lines.take(server))[0] for _ in range(3)]:
            await lines.keep(server, client)
        now[0] = smtp_lines.IDLE_SECONDS
        client, kept = await lines.take(server)
        assert kept
        now[0] += 1
        fresh, kept = await lines.take(server)
        assert not kept and fresh is not client
        client.close()
        fresh.close()

    async def test_does_not_spoil_the_sixteen_beside_it(self, smtp: Adapter, smtp_peer: SmtpPeer) -> None:
        smtp_peer.reply("bob@example.com", "421 4.7.0 go away")
        settings = told(smtp_peer, security="none")
        addresses = [f"p{number}@example.com" for number in range(15)] + ["bob@example.com"]
        results = await asyncio.gather(*(smtp.send(exchange(smtp, settings=settings, address=a)) for a in addresses))
        assert [result.outcome for result in results] == ["sent"] * 15 + ["retry"]

    def test_may_be_repeated_by_nobody(self) -> None:
        """The docstring's promise: a letter of which nobody knows whether it was taken is not sent again by itself."""
        assert not Smtp.repeatable and Smtp.ask is Adapter.ask


class TestARefusalOfTheSender:
    """A mistake of the shop's, which can be mended: the letter waits, and nothing is held against the address."""

    @pytest.mark.parametrize("answer", ["550 5.7.1 not yours", "553 5.7.1 sender", "501 not local", "530 5.7.0 log in"])
    async def test_to_mail_keeps_the_letter(self, smtp: Adapter, smtp_peer: SmtpPeer, answer: str) -> None:
        smtp_peer.behave(mail_reply=answer)
        one = exchange(smtp, settings=told(smtp_peer, security="none"))
        result = await smtp.send(one)
        assert result.outcome == "retry" and answer[:3] in result.detail and "sender" in result.detail
        smtp_peer.behave(mail_reply="")
        assert (await smtp.send(one)).outcome == "sent"

    @pytest.mark.parametrize(
        "answer",
        [
            "553 5.7.1 <shop@shop.example>: Sender address rejected: not owned by user shop",  # Postfix, at RCPT
            "554 5.7.1 <anna@example.com>: Relay access denied",
            "550 relay not permitted",  # Exim, without an enhanced code
            "550 Sender verify failed",
            "550 5.1.8 <shop@shop.example>: domain not found",
            "530 5.7.0 Authentication required",
        ],
    )
    async def test_that_comes_with_the_recipient_keeps_the_letter_and_suppresses_nobody(
        self, smtp: Adapter, smtp_peer: SmtpPeer, answer: str
    ) -> None:
        smtp_peer.reply("anna@example.com", answer)
        result = await smtp.send(exchange(smtp, settings=told(smtp_peer, security="none")))
        assert result.outcome == "retry" and "sender" in result.detail and "anna" not in result.detail

    @pytest.mark.parametrize(
        "answer",
        ["554 Message rejected: Email address is not verified.", "550 5.7.26 unauthenticated mail is not accepted"],
    )
    async def test_that_comes_with_the_letter_keeps_it(self, smtp: Adapter, smtp_peer: SmtpPeer, answer: str) -> None:
        smtp_peer.behave(data_reply=answer)
        result = await smtp.send(exchange(smtp, settings=told(smtp_peer, security="none")))
        assert result.outcome == "retry"

    async def test_is_not_seen_in_the_name_of_a_recipient(self, smtp: Adapter, smtp_peer: SmtpPeer) -> None:
        smtp_peer.reply("sender@relay.example", "550 <sender@relay.example> unknown")
        one = exchange(smtp, address="sender@relay.example", settings=told(smtp_peer, security="none"))
        assert (await smtp.send(one)).outcome == "bounced"

    async def test_is_not_what_a_server_says_that_knows_no_addresses_in_other_scripts(
        self, smtp: Adapter, smtp_peer: SmtpPeer
    ) -> None:
        smtp_peer.behave(mail_reply="555 5.5.4 SMTPUTF8 is not known here")
        one = exchange(smtp, address="пётр@example.com", settings=told(smtp_peer, security="none"))
        assert (await smtp.send(one)).outcome == "failed"


class TestALetterWithAReturnPath:
    async def test_says_in_its_envelope_which_message_it_is(self, smtp: Adapter, smtp_peer: SmtpPeer) -> None:
        settings = told(
            smtp_peer, security="none", sender="news@shop.example", return_path="bounces@mail.shop.example",
            bounce_key=BOUNCE_KEY,
        )  # fmt: skip
        one = exchange(smtp, settings=settings)
        assert (await smtp.send(one)).outcome == "sent"
        (letter,) = smtp_peer.letters()
        assert letter.sender == PATHS.address(one.message)
        assert letter.message["From"] == "Corner Shop <news@shop.example>"
        assert letter.message["CFBL-Address"] == "bounces@mail.shop.example; report=arf"
        assert PATHS.find([letter.message["CFBL-Feedback-ID"]]) == one.message

    @pytest.mark.parametrize("text", ["one\n.two\n..three\n.\nfour\n", ".", "a lone \rreturn\n"])
    async def test_comes_whole_whatever_its_lines_begin_with(
        self, smtp: Adapter, smtp_peer: SmtpPeer, text: str
    ) -> None:
        one = exchange(smtp, settings=told(smtp_peer, security="none"), rendered=Rendered(text=text, subject="Dots"))
        assert (await smtp.send(one)).outcome == "sent"
        (letter,) = smtp_peer.letters()
        assert letter.message.get_content().splitlines() == text.splitlines()

    async def test_is_typed_into_seven_bits(self, smtp: Adapter, smtp_peer: SmtpPeer) -> None:
        """What a relay has to rewrite loses its signature."""
        rendered = Rendered(text="Привет\n", subject="Тема", html="<p>Grüße</p>")
        one = exchange(smtp, settings=told(smtp_peer, security="none"), rendered=rendered)
        assert (await smtp.send(one)).outcome == "sent"
        (entry,) = [entry for entry in smtp_peer.entries() if entry["kind"] == "taken"]
        assert entry["content"].isascii()


def report_of(message: UUID, paths: ReturnPath = PATHS, action: str = "failed", code: str = "5.1.1") -> bytes:
    """A bounce as any mail server writes it."""
    return (
        f"To: {paths.address(message)}\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n"
        "--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example\r\n\r\n"
        f"Final-Recipient: rfc822; anna@example.com\r\nAction: {action}\r\nStatus: {code}\r\n\r\n--b--\r\n"
    ).encode()


class TestWhatAMailServerPipesBack:
    settings = SmtpSettings(host="mail.example", return_path="bounces@mail.shop.example", bounce_key=BOUNCE_KEY)
    message = UUID("01900000-0000-7000-8000-00000000abcd")

    async def back(
        self, smtp: Adapter, body: bytes, shown: str | None = f"Bearer {BOUNCE_KEY}", **more: Any
    ) -> list[Report]:
        headers = {"authorization": shown} if shown is not None else {}
        call = Call("POST", headers, {}, body, NOW, more.get("settings", self.settings))
        return (await smtp.receive(call)).reports

    async def test_is_a_bounce(self, smtp: Adapter) -> None:
        (report,) = await self.back(smtp, report_of(self.message))
        assert (report.what, report.message) == ("bounced", self.message)

    @pytest.mark.parametrize(
        "shown", [None, "", "Bearer ", "Bearer another key, as long as it", BOUNCE_KEY, "Bearer ключ"]
    )
    async def test_is_not_believed_without_the_key(self, smtp: Adapter, shown: str | None) -> None:
        with pytest.raises(Forged, match="bounce_key"):
            await self.back(smtp, report_of(self.message), shown)

    async def test_is_not_believed_as_long_as_there_is_no_key(self, smtp: Adapter) -> None:
        for settings in (None, SmtpSettings(host="mail.example")):
            with pytest.raises(Forged):
                await self.back(smtp, report_of(self.message), settings=settings)

    async def test_that_was_made_up_is_not_believed(self, smtp: Adapter) -> None:
        foreign = ReturnPath("bounces@mail.shop.example", "somebody else's key")
        with pytest.raises(Forged, match="token"):
            await self.back(smtp, report_of(self.message, foreign))

    async def test_twice_is_the_same_report(self, smtp: Adapter) -> None:
        (first,), (again,) = [await self.back(smtp, report_of(self.message)) for _ in range(2)]
        assert first.id == again.id

    async def test_in_the_wrong_order_is_two_reports_of_one_message(self, smtp: Adapter) -> None:
        (late,) = await self.back(smtp, report_of(self.message, action="failed", code="5.2.2"))
        (early,) = await self.back(smtp, report_of(self.message, action="delivered", code="2.0.0"))
        assert (late.what, early.what) == ("failed", "delivered") and late.id != early.id

    async def test_is_taken_apart_while_others_go_on(self, smtp: Adapter) -> None:
        """A contrived report of a letter that its writer got: a thousand empty blocks to each kilobyte."""
        told = report_of(self.message).replace(
            b"Action: failed", b"\r\n" + b"A: b\r\n\r\n" * 15_000 + b"Action: failed"
        )
        reading = asyncio.create_task(self.back(smtp, told))
        turns = 0
        while not reading.done():
            await asyncio.sleep(0)
            turns += 1
        assert await reading == []
        assert turns > 10

    async def test_that_is_no_mail_is_unreadable(self, smtp: Adapter) -> None:
        with pytest.raises(Unreadable):
            await self.back(smtp, b"\x00\x01")


class TestAFolderOfBounces:
    """`bounce_folder`: filled by a mail server, read every few seconds."""

    message = UUID("01900000-0000-7000-8000-00000000abcd")

    @pytest.fixture
    def told(self) -> list[Report]:
        return []

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("new", "cur", "tmp"):
            (tmp_path / "bounces" / name).mkdir(parents=True)
        return tmp_path / "bounces"

    @pytest.fixture
    def adapter(self, told: list[Report], tmp_path: Path) -> Smtp:
        async def tell(name: str, reports: Sequence[Report]) -> None:
            assert name == "smtp"
            told.extend(reports)

        return Smtp(World(load(data_dir=tmp_path), tmp_path, tell=tell))

    def settings(self, folder: Path) -> SmtpSettings:
        return SmtpSettings(
            host="mail.example", return_path="bounces@mail.shop.example", bounce_key=BOUNCE_KEY, bounce_folder=str(folder)
        )  # fmt: skip

    async def test_is_read_once(self, adapter: Smtp, folder: Path, told: list[Report]) -> None:
        (folder / "new" / "1").write_bytes(report_of(self.message))
        (folder / "new" / "2").write_bytes(b"From: anna@example.com\r\n\r\nBack in May.\r\n")
        (folder / "new" / "3").write_bytes(report_of(self.message, ReturnPath("x@y.example", "somebody else's key")))
        (folder / "new" / "4").write_bytes(b"")
        for _ in range(2):
            await adapter.attend(self.settings(folder))
        assert [(report.what, report.message) for report in told] == [("bounced", self.message)]
        assert not list((folder / "new").iterdir())
        assert {file.name for file in (folder / "cur").iterdir()} == {f"{number}:2,S" for number in "1234"}

    async def test_keeps_what_could_not_be_stored(self, folder: Path, tmp_path: Path) -> None:
        async def tell(name: str, reports: Sequence[Report]) -> None:
            raise ConnectionError("the database is away")

        adapter = Smtp(World(load(data_dir=tmp_path), tmp_path, tell=tell))
        (folder / "new" / "1").write_bytes(report_of(self.message))
        with pytest.raises(ConnectionError):
            await adapter.attend(self.settings(folder))
        assert [file.name for file in (folder / "new").iterdir()] == ["1"]

    async def test_that_is_not_there_is_said(self, adapter: Smtp, folder: Path) -> None:
        with pytest.raises(FileNotFoundError):
            await adapter.attend(self.settings(folder / "nowhere"))

    async def test_is_not_needed(self, adapter: Smtp, told: list[Report]) -> None:
        await adapter.attend(SmtpSettings(host="mail.example"))
        assert told == []
