"""The SMTP adapter and two of Debian's mail servers, which nobody here wrote: OpenSMTPD and Exim. Where they cannot be had
the tests are skipped, loudly; DRIPLINE_REQUIRE_OPENSMTPD=1 insists."""

from __future__ import annotations

import base64
import email
import email.policy
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from services.dispatch.channels.base import Adapter, Call, Exchange, Report, World
from services.dispatch.channels.smtp import Smtp
from services.dispatch.channels.smtp_settings import SmtpSettings
from services.dispatch.documents import read_templates
from services.dispatch.links import Signer
from services.dispatch.rendered import Rendered
from services.dispatch.templates import Template, render
from services.dispatch.view import Shop, example
from shared.settings import load
from tests.contracts.test_channel_smtp import BOUNCE_KEY, PATHS
from tests.contracts.test_channels import exchange
from tests.support import opendkim
from tests.support.authority import Authority
from tests.support.debian import Unavailable
from tests.support.exim import PASSWORD, USER, Exim
from tests.support.opensmtpd import REQUIRED, OpenSmtpd
from tests.support.smtp_peer import SmtpPeer
from tests.support.wait import until

RULES = Path(__file__).parents[2] / "rules"


@pytest.fixture
async def smtp(tmp_path: Path) -> AsyncIterator[Adapter]:
    adapter = Smtp(World(load(data_dir=tmp_path, outside_allow=("127.0.0.0/8",)), tmp_path))
    yield adapter
    await adapter.close()


KEY = rsa.generate_private_key(65537, 2048)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
RECORD = b"v=DKIM1; k=rsa; p=" + base64.b64encode(
    KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)
LIMIT = 20.0
Server = TypeVar("Server", OpenSmtpd, Exim)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[SmtpPeer]:
    """The server that OpenSMTPD relays to."""
    with SmtpPeer() as peer:
        yield peer


def running(server: AbstractContextManager[Server]) -> Iterator[Server]:
    """The server, or a loud skip where it cannot be had."""
    with ExitStack() as stack:
        try:
            started = stack.enter_context(server)
        except Unavailable as problem:
            if os.environ.get(REQUIRED) == "1":
                raise
            pytest.skip(f"OPENSMTPD: {problem}")
        yield started


@pytest.fixture(scope="module")
def opensmtpd(elsewhere: SmtpPeer) -> Iterator[OpenSmtpd]:
    yield from running(OpenSmtpd.started(elsewhere.port))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def exim(authority: Authority) -> Iterator[Exim]:
    yield from running(Exim.started(authority))


def judged(raw: bytes, records: dict[str, bytes]) -> str:
    """OpenDKIM's verdict, or a loud skip where it cannot be had."""
    try:
        return opendkim.verdict(raw, records)
    except Unavailable as problem:
        if os.environ.get(REQUIRED) == "1":
            raise
        pytest.skip(f"OPENSMTPD: {problem}")


def through(server: OpenSmtpd, **more: Any) -> SmtpSettings:
    given: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": server.port,
        "security": "none",
        "sender": "news@shop.example",
        "return_path": "bounces@mail.shop.example",
        "bounce_key": BOUNCE_KEY,
        "dkim_selector": "drip",
        "dkim_key": PEM,
    }
    return SmtpSettings(**{**given, **more})


def welcome(smtp: Adapter, settings: SmtpSettings, **more: Any) -> Exchange:
    """The shipped welcome letter."""
    one = exchange(smtp, settings=settings, **more)
    signer = Signer(b"secret", "https://mail.shop.example")
    links = {name: signer.url("unsubscribe", one.message) for name in ("unsubscribe", "preferences")}
    shop = Shop("Corner Shop", "https://shop.example", "RUB", "shop@shop.example", frozenset({"shop.example"}))
    document = next(d for d in read_templates(RULES / "templates") if d.name == "welcome")
    template = Template("welcome", 1, "marketing", document.parts())
    return replace(one, rendered=render(template, "email", example(shop, links), signer, one.message, shop.hosts))


async def arrived(server: OpenSmtpd, user: str, one: Exchange) -> bytes:
    """The letter of this exchange, or the report of it, in the user's Maildir."""
    token = PATHS.token(one.message)
    return await until(
        lambda: next((raw for raw in server.letters(user) if token.encode() in raw), None),
        limit=LIMIT,
        what=f"a letter lies in {user}'s Maildir; OpenSMTPD says {server.log[-500:]}",
        every=0.1,
    )


class TestOpenSmtpd:
    async def test_delivers_a_letter_whose_signature_holds(self, smtp: Adapter, opensmtpd: OpenSmtpd) -> None:
        one = welcome(smtp, through(opensmtpd))
        assert (await smtp.send(one)).outcome == "sent"
        raw = await arrived(opensmtpd, "anna", one)
        assert dkim.verify(raw, dnsfunc=lambda name, timeout=0: RECORD)

    async def test_delivers_a_letter_that_opendkim_believes(self, smtp: Adapter, opensmtpd: OpenSmtpd) -> None:
        """A judge that shares nothing with what signs: dkimpy brings into canonical form, and verifies above."""
        one = welcome(smtp, through(opensmtpd))
        assert (await smtp.send(one)).outcome == "sent"
        raw = await arrived(opensmtpd, "anna", one)
        records = {"drip._domainkey.shop.example": RECORD}
        assert "verification (s=drip, d=shop.example, 2048-bit key) succeeded" in judged(raw, records)
        assert "failed" in judged(raw.replace(b"One-Click", b"Two-Click"), records)

    async def test_delivers_it_as_it_was_written(self, smtp: Adapter, opensmtpd: OpenSmtpd) -> None:
        one = welcome(smtp, through(opensmtpd))
        await smtp.send(one)
        mail = email.message_from_bytes(await arrived(opensmtpd, "anna", one), policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        assert mail["Return-Path"] == f"<{PATHS.address(one.message)}>"
        assert mail["From"] == "Corner Shop <news@shop.example>" and mail["To"] == "anna@example.com"
        assert mail["Subject"] == one.rendered.subject
        assert mail["List-Unsubscribe"] == f"<{one.rendered.urls['unsubscribe']}>"
        assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        assert str(mail["Message-ID"]).startswith(f"<{one.message}@")
        assert len(mail.get_all("From", [])) == len(mail.get_all("DKIM-Signature", [])) == 1
        plain, page = mail.get_body(("plain",)), mail.get_body(("html",))
        assert plain is not None and page is not None
        on_page = set(re.findall(r'<a[^>]+href="(https?://[^"]+)"', page.get_content()))
        assert len(on_page) >= 2
        assert {url.replace("&amp;", "&") for url in on_page} <= set(re.findall(r"https?://\S+", plain.get_content()))

    async def test_refuses_a_person_that_it_does_not_know(self, smtp: Adapter, opensmtpd: OpenSmtpd) -> None:
        one = exchange(smtp, settings=through(opensmtpd), address="nobody@example.com")
        assert (await smtp.send(one)).outcome == "bounced"

    async def test_reports_what_bounced_elsewhere(
        self, smtp: Adapter, opensmtpd: OpenSmtpd, elsewhere: SmtpPeer
    ) -> None:
        elsewhere.reply("gone@elsewhere.example", "550 5.1.1 no such person here")
        settings = through(opensmtpd)
        one = exchange(smtp, settings=settings, address="gone@elsewhere.example")
        assert (await smtp.send(one)).outcome == "sent"
        (report,) = await self.read_back(smtp, settings, await arrived(opensmtpd, "bounces", one))
        assert (report.what, report.message) == ("bounced", one.message)
        assert "5.1.1" in report.detail and "gone" not in report.detail
        assert await self.in_its_folder(opensmtpd, settings) >= {(report.what, report.message, report.id)}

    async def test_reports_what_was_delivered_when_it_is_asked_to(self, smtp: Adapter, opensmtpd: OpenSmtpd) -> None:
        settings = through(opensmtpd, delivery_reports=True)
        one = exchange(smtp, settings=settings)
        assert (await smtp.send(one)).outcome == "sent"
        (report,) = await self.read_back(smtp, settings, await arrived(opensmtpd, "bounces", one))
        assert (report.what, report.message) == ("delivered", one.message)

    async def test_keeps_a_long_letter_whole(self, smtp: Adapter, opensmtpd: OpenSmtpd) -> None:
        """Long enough to be written beside the loop; with lines that begin with a dot, and longer than SMTP allows."""
        text = "Привет\n.\n..two dots\n" + "x" * 5_000 + "\nFrom here on\n" * 3_000
        rendered = Rendered(
            text=text, subject="Очень длинная тема " * 10, urls={"unsubscribe": "https://shop.example/u"}
        )
        one = exchange(smtp, settings=through(opensmtpd), rendered=rendered)
        assert (await smtp.send(one)).outcome == "sent"
        raw = await arrived(opensmtpd, "anna", one)
        assert dkim.verify(raw, dnsfunc=lambda name, timeout=0: RECORD)
        mail = email.message_from_bytes(raw, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        assert mail.get_content().replace("\r\n", "\n").strip() == text.strip()

    async def in_its_folder(self, server: OpenSmtpd, settings: SmtpSettings) -> set[tuple[str, UUID | None, str]]:
        """What the adapter reads out of the Maildir itself. Other tests look there, too: it reads a copy."""
        found: set[tuple[str, UUID | None, str]] = set()

        async def tell(_: str, reports: Sequence[Report]) -> None:
            found.update((report.what, report.message, report.id) for report in reports)

        copy = server.folder / "copy"
        shutil.copytree(server.folder / "mail" / "bounces", copy)
        adapter = Smtp(World(load(data_dir=copy), copy, tell=tell))
        await adapter.attend(settings.model_copy(update={"bounce_folder": str(copy)}))
        shutil.rmtree(copy)
        return found

    async def read_back(self, smtp: Adapter, settings: SmtpSettings, raw: bytes) -> list[Report]:
        """As the mail server's pipe hands it over."""
        shown = {"authorization": f"Bearer {BOUNCE_KEY}"}
        return (await smtp.receive(Call("POST", shown, {}, raw, datetime.now(UTC), settings))).reports


class TestExim:
    """Over TLS, with a password; OpenSMTPD's build cannot (`tests/support/opensmtpd.py`)."""

    def told(self, server: Exim, authority: Authority, security: Any = "starttls", **more: Any) -> SmtpSettings:
        port = server.tls_port if security == "tls" else server.starttls_port
        given: dict[str, Any] = {"username": USER, "password": PASSWORD, "authority": authority.certificate, **more}
        return SmtpSettings(
            host="127.0.0.1", port=port, security=security, dkim_selector="drip", dkim_key=PEM, **given
        )  # fmt: skip

    @pytest.mark.parametrize("security", ["starttls", "tls"])
    async def test_takes_a_letter_whose_signature_holds(
        self, smtp: Adapter, exim: Exim, authority: Authority, security: str
    ) -> None:
        one = exchange(smtp, settings=self.told(exim, authority, security))
        assert (await smtp.send(one)).outcome == "sent"
        id = str(one.message).encode()
        raw = await until(
            lambda: next((raw for raw in exim.letters() if id in raw), None),
            limit=LIMIT,
            what=f"the letter lies in Exim's Maildir; it says {exim.log[-500:]}",
            every=0.1,
        )
        received = email.message_from_bytes(raw)["Received"]
        assert "esmtpsa" in received and "TLS1.3" in received  # encrypted, authenticated
        assert dkim.verify(raw, dnsfunc=lambda name, timeout=0: RECORD)

    async def test_refuses_a_wrong_password_and_the_letter_waits(
        self, smtp: Adapter, exim: Exim, authority: Authority
    ) -> None:
        result = await smtp.send(exchange(smtp, settings=self.told(exim, authority, password="another")))
        assert result.outcome == "retry" and "535" in result.detail

    async def test_is_told_nothing_when_nobody_vouches_for_it(
        self, smtp: Adapter, exim: Exim, authority: Authority
    ) -> None:
        told = self.told(exim, authority)
        result = await smtp.send(exchange(smtp, settings=told.model_copy(update={"authority": ""})))
        assert result.outcome == "retry" and "certificate" in result.detail
