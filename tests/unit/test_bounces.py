"""What is read out of mails that tell of mails: delivery status notifications and complaints."""

from __future__ import annotations

import base64
import quopri
from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.dispatch.channels import bounces
from services.dispatch.channels.base import Forged, Report, Unreadable
from services.dispatch.channels.bounces import no_such_address, read
from services.dispatch.channels.return_path import ReturnPath

PATHS = ReturnPath("bounces@mail.shop.example", "a key that is long enough")
MESSAGE = UUID("01900000-0000-7000-8000-00000000abcd")
OTHER = UUID("01900000-0000-7000-8000-00000000ffff")
TO = PATHS.address(MESSAGE)
NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)


def status(
    *fields: str, to: str = TO, head: tuple[str, ...] = (), whole: tuple[str, ...] = ("Reporting-MTA: dns; mx.example",)
) -> bytes:
    """A delivery status notification. `fields`: of the one recipient; `whole`: of the whole letter."""
    lines = [
        "From: MAILER-DAEMON@mx.example",
        f"To: {to}",
        *head,
        "Date: Tue, 10 Mar 2026 11:00:00 +0000",
        "MIME-Version: 1.0",
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b0"',
        "",
        "--b0",
        "Content-Type: text/plain",
        "",
        "I am sorry, your mail to <anna@example.com> came back.",
        "--b0",
        "Content-Type: message/delivery-status",
        "",
        *whole,
        "",
        "Final-Recipient: rfc822; anna@example.com",
        *fields,
        "",
        "--b0",
        "Content-Type: text/rfc822-headers",
        "",
        "From: shop@shop.example",
        "Subject: An offer",
        "",
        "--b0--",
        "",
    ]
    return "\r\n".join(lines).encode()


def international(
    *fields: str,
    to: str = TO,
    encoded: str = "8bit",
    recipient: str = "utf-8; пётр@пример.example",
    words: str = "Письмо вернулось.",
    kind: str = "message/global-headers",
    letter: str = "From: Лавка <shop@shop.example>\r\nSubject: Скидка\r\n\r\n",
) -> bytes:
    """A notification of RFC 6533: types of their own, in UTF-8."""

    def part(kind: str, text: str, encoding: str = encoded) -> list[bytes]:
        content = text.encode()
        coded = {"base64": base64.encodebytes, "quoted-printable": quopri.encodestring}.get(encoding, bytes)(content)
        head = f"--b2\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
        return [head.encode(), coded, b"\r\n"]

    told = "\r\n".join(("Reporting-MTA: dns; mx.example", "", f"Final-Recipient: {recipient}", *fields, ""))
    head = (
        f"From: MAILER-DAEMON@mx.example\r\nTo: {to}\r\nDate: Tue, 10 Mar 2026 11:00:00 +0000\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b2"\r\n\r\n'
    )
    parts = [*part("text/plain", words, "8bit"), *part("Message/Global-Delivery-Status", told), *part(kind, letter)]
    return b"".join([head.encode(), *parts, b"--b2--\r\n"])


def complaint(
    *fields: str, to: str = "fbl@shop.example", returned: tuple[str, ...] = (), kind: str = "message/rfc822"
) -> bytes:
    lines = [
        "From: feedback@provider.example",
        f"To: {to}",
        "Date: Tue, 10 Mar 2026 11:00:00 +0000",
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=feedback-report;",
        ' boundary="b1"',
        "",
        "--b1",
        "Content-Type: text/plain",
        "",
        "This is an abuse report.",
        "--b1",
        "Content-Type: message/feedback-report",
        "",
        *fields,
        "",
        "--b1",
        f"Content-Type: {kind}",
        "",
        "From: shop@shop.example",
        *returned,
        "Subject: An offer",
        "",
        "Hello",
        "--b1--",
        "",
    ]
    return "\r\n".join(lines).encode()


def told(raw: bytes, recipient: str = "", now: datetime = NOON) -> list[Report]:
    return read(raw, recipient, PATHS, now)


class TestADeliveryStatusNotification:
    @pytest.mark.parametrize(
        ("fields", "what", "detail"),
        [
            (("Action: failed", "Status: 5.1.1", "Diagnostic-Code: smtp; 550 5.1.1 no Anna"), "bounced", "550 5.1.1"),
            (("Action: failed", "Status: 5.2.1 (account disabled)"), "bounced", "5.2.1"),
            # A status that says nothing: what the server said counts.
            (("Action: failed", "Status: 5.0.0", "Diagnostic-Code: smtp; 550-5.1.1 No such user"), "bounced", "5.1.1"),
            (("Action: failed", "Status: 5.0.0", "Diagnostic-Code: smtp; 550 user unknown"), "bounced", "550 5.0.0"),
            (("Action: failed (user unknown)", "Status: 5.1.10"), "bounced", "5.1.10"),
            # For good, and no fault of the address.
            (("Action: failed", "Status: 5.2.2", "Diagnostic-Code: smtp; 552 5.2.2 quota"), "failed", "552 5.2.2"),
            (("Action: failed", "Status: 5.7.1", "Diagnostic-Code: smtp; 550 5.7.1 spam"), "failed", "550 5.7.1"),
            (("Action: failed", "Status: 5.1.8", "Diagnostic-Code: smtp; 553 5.1.8 sender"), "failed", "553 5.1.8"),
            (
                ("Action: failed", "Status: 5.0.0", "Diagnostic-Code: smtp; 550 relay not permitted"),
                "failed",
                "550 5.0.0",
            ),
            # Soft: given up after days of trying, and the address may be as good as ever.
            (("Action: failed", "Status: 4.4.7", "Diagnostic-Code: smtp; 451 4.4.1 timeout"), "failed", "451 4.4.7"),
            (("Action: delivered", "Status: 2.0.0"), "delivered", "2.0.0"),
        ],
    )
    def test_tells_what_became_of_the_letter(self, fields: tuple[str, ...], what: str, detail: str) -> None:
        (report,) = told(status(*fields))
        assert (report.what, report.message) == (what, MESSAGE)
        assert detail in report.detail

    @pytest.mark.parametrize("action", ["delayed", "relayed", "expanded", ""])
    def test_of_delays_and_of_handing_on_tells_nothing(self, action: str) -> None:
        assert told(status(f"Action: {action}", "Status: 4.4.1")) == []

    @pytest.mark.parametrize(("said", "what"), [("550 5.1.1 no such person", "bounced"), ("550 5.7.1 spam", "failed")])
    def test_may_say_why_in_words_alone_and_not_call_itself_a_report(self, said: str, what: str) -> None:
        """As OpenSMTPD writes it."""
        raw = status("Action: failed", "Status: 5.0.0").replace(
            b"multipart/report; report-type=delivery-status", b"multipart/mixed"
        )
        raw = raw.replace(
            b"I am sorry, your mail to <anna@example.com> came back.", f"anna@example.com: {said}".encode()
        )
        assert [report.what for report in told(raw)] == [what]

    @pytest.mark.parametrize("encoded", ["8bit", "base64", "quoted-printable"])
    def test_of_a_letter_to_an_address_in_another_script_is_read(self, encoded: str) -> None:
        """RFC 6533: the fields are in UTF-8, and may be encoded where a server on the way takes ASCII only."""
        refused = ("Action: failed", "Status: 5.1.1", "Diagnostic-Code: smtp; 550 5.1.1 нет такого ящика: пётр")
        (report,) = told(international(*refused, encoded=encoded))
        assert (report.what, report.message, report.detail) == ("bounced", MESSAGE, "550 5.1.1")
        full = ("Action: failed", "Status: 5.2.2", "Diagnostic-Code: smtp; 552 5.2.2 ящик полон")
        assert [one.what for one in told(international(*full, encoded=encoded))] == ["failed"]
        assert told(international("Action: delayed", "Status: 4.4.1", encoded=encoded)) == []

    @pytest.mark.parametrize("kind", ["message/global", "message/global-headers"])
    def test_names_the_letter_by_its_headers_in_utf_8(self, kind: str) -> None:
        failed = ("Action: failed", "Status: 5.1.1")
        letter = f"From: Лавка <shop@shop.example>\r\nCFBL-Feedback-ID: {PATHS.token(MESSAGE)}\r\n\r\nПривет"
        raw = international(*failed, to="bounces@mail.shop.example", kind=kind, letter=letter)
        assert [report.message for report in told(raw)] == [MESSAGE]

    @pytest.mark.parametrize(
        "recipient", ["utf-8; пётр@пример.example", r"utf-8; \x{43F}\x{451}\x{442}\x{440}@пример.example"]
    )
    def test_finds_what_the_text_for_people_says_of_such_an_address(self, recipient: str) -> None:
        raw = international(
            "Action: failed", "Status: 5.0.0", recipient=recipient, words="пётр@пример.example: 550 5.1.1 нет"
        )
        assert [report.what for report in told(raw)] == ["bounced"]

    def test_quotes_nobody(self) -> None:
        (report,) = told(status("Action: failed", "Status: 5.1.1", "Diagnostic-Code: smtp; 550 anna@example.com?"))
        assert "anna" not in report.detail and report.address == ""

    def test_happened_when_it_says_and_never_later_than_now(self) -> None:
        failed = ("Action: failed", "Status: 5.1.1")
        (report,) = told(status(*failed, "Last-Attempt-Date: Tue, 10 Mar 2026 10:30:00 +0100"))
        assert report.at == datetime(2026, 3, 10, 9, 30, tzinfo=UTC)
        (report,) = told(status(*failed, "Last-Attempt-Date: Tue, 10 Mar 2099 10:30:00 +0100"))
        assert report.at == NOON
        (report,) = told(status(*failed, "Last-Attempt-Date: yesterday"))
        assert report.at is None

    def test_that_comes_twice_is_one_report(self) -> None:
        """A mail server that was not answered pipes it again; what stands around the report may differ."""
        failed = ("Action: failed", "Status: 5.1.1")
        (first,), (again,) = told(status(*failed)), told(status(*failed, head=("Received: by mx2.example",)))
        (other,) = told(status(*failed, to=PATHS.address(OTHER)))
        assert first.id == again.id != other.id

    @pytest.mark.parametrize("header", ["Delivered-To", "X-Original-To", "Envelope-To"])
    def test_is_known_by_whom_it_was_written_to(self, header: str) -> None:
        raw = status("Action: failed", "Status: 5.1.1", to="undisclosed:;", head=(f"{header}: {TO}",))
        assert told(raw)[0].message == MESSAGE

    def test_is_known_by_the_envelope_that_the_mail_server_says(self) -> None:
        raw = status("Action: failed", "Status: 5.1.1", to="undisclosed:;")
        assert told(raw, recipient=TO.upper())[0].message == MESSAGE

    def test_is_known_by_the_envelope_id_that_it_was_sent_with(self) -> None:
        whole = ("Reporting-MTA: dns; mx.example", f"Original-Envelope-Id: {PATHS.token(MESSAGE)}")
        assert told(status("Action: delivered", to="x@y.example", whole=whole))[0].message == MESSAGE

    @pytest.mark.parametrize(
        "to",
        [
            "bounces@mail.shop.example",
            ReturnPath("bounces@mail.shop.example", "another key, as long").address(MESSAGE),
            # One letter of the message's id changed.
            TO.replace(TO[8:10], "zz" if TO[8:10] != "zz" else "yy", 1),
            f"bounces+{MESSAGE}@mail.shop.example",
        ],
    )  # fmt: skip
    def test_without_a_token_of_ours_is_forged(self, to: str) -> None:
        with pytest.raises(Forged):
            told(status("Action: failed", "Status: 5.1.1", to=to))

    def test_without_its_machine_readable_part_is_unreadable(self) -> None:
        raw = status("Action: failed").replace(b"message/delivery-status", b"text/plain")
        with pytest.raises(Unreadable, match="delivery-status"):
            told(raw)

    def test_of_a_letter_that_was_forwarded_to_several_is_one_report(self) -> None:
        fields = ("Action: failed", "Status: 5.1.1", "", "Final-Recipient: rfc822; b@example.com", "Action: failed")
        assert [report.what for report in told(status(*fields, "Status: 5.1.1"))] == ["bounced"]

    def test_without_a_token_is_refused_before_it_is_taken_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def not_parsed(*_: object, **__: object) -> None:
            raise AssertionError("the mail was taken apart")

        monkeypatch.setattr(bounces, "BytesParser", not_parsed)
        with pytest.raises(Forged):
            told(status("Action: failed", *["A: b", ""] * 100_000, to="bounces@mail.shop.example"))

    def test_of_countless_parts_is_refused(self) -> None:
        with pytest.raises(Unreadable, match="more than 500 parts"):
            told(status("Action: failed", "Status: 5.1.1").replace(b"--b0--", b"--b0\r\n\r\n" * 600 + b"--b0--"))

    def test_is_read_however_long_the_letter_is_that_came_back(self) -> None:
        raw = status("Action: failed", "Status: 5.1.1").replace(b"Subject: An offer", b"A: b\r\n" * 200_000)
        assert [report.what for report in told(raw)] == ["bounced"]

    def test_is_not_looked_for_behind_megabytes_of_text(self) -> None:
        raw = status("Action: failed", "Status: 5.1.1").replace(b"I am sorry", b"I am sorry\r\n" * 20_000)
        with pytest.raises(Unreadable, match="delivery-status"):
            told(raw)


class TestAComplaint:
    def test_names_the_letter_by_its_envelope(self) -> None:
        (report,) = told(complaint("Feedback-Type: abuse", "Version: 1", f"Original-Mail-From: <{TO}>"))
        assert (report.what, report.message) == ("complained", MESSAGE)

    @pytest.mark.parametrize("kind", ["message/rfc822", "text/rfc822-headers"])
    def test_names_the_letter_by_the_header_that_it_was_sent_with(self, kind: str) -> None:
        raw = complaint("Feedback-Type: abuse", returned=(f"CFBL-Feedback-ID: {PATHS.token(MESSAGE)}",), kind=kind)
        assert told(raw)[0].message == MESSAGE

    @pytest.mark.parametrize(
        ("kind", "what"),
        [
            ("abuse", ["complained"]),
            ("Fraud", ["complained"]),
            ("opt-out", ["unsubscribed"]),
            ("not-spam", []),
            ("virus", []),
        ],
    )
    def test_is_what_its_type_says(self, kind: str, what: list[str]) -> None:
        raw = complaint(f"Feedback-Type: {kind}", f"Original-Mail-From: {TO}", "Arrival-Date: 10 Mar 2026 08:00 +0000")
        assert [report.what for report in told(raw)] == what

    def test_about_a_letter_that_we_did_not_send_is_forged(self) -> None:
        with pytest.raises(Forged):
            told(complaint("Feedback-Type: abuse", "Original-Mail-From: bounces@mail.shop.example"))


class TestOtherMails:
    @pytest.mark.parametrize(
        "raw",
        [
            b"From: anna@example.com\r\nAuto-Submitted: auto-replied\r\nSubject: on holiday\r\n\r\nBack in May.\r\n",
            b"Content-Type: multipart/report; report-type=disposition-notification; boundary=x\r\n\r\n--x--\r\n",
            b"Content-Type: text/html; charset=\xff\r\nSubject: \xd0\xff\r\n\r\n<html>",
        ],
    )
    def test_tell_nothing(self, raw: bytes) -> None:
        assert told(raw, recipient=TO) == []

    @pytest.mark.parametrize("raw", [b"", b"\x00\xff\x00", b"\r\n\r\nno headers"])
    def test_that_are_none_are_unreadable(self, raw: bytes) -> None:
        with pytest.raises(Unreadable):
            told(raw, recipient=TO)

    def test_that_are_nested_without_end_are_refused_at_once(self) -> None:
        def part(number: int) -> bytes:
            head = f"Content-Type: multipart/report; report-type=delivery-status; boundary=b{number}"
            return f"{head}\r\n\r\n--b{number}\r\n".encode()

        with pytest.raises((Unreadable, Forged)):
            told(b"".join(part(number) for number in range(3_000)), recipient=TO)


class TestAReturnPath:
    def test_survives_servers_that_change_its_case(self) -> None:
        assert PATHS.find([TO.upper()]) == MESSAGE == PATHS.find([f"<{TO}>, someone@else.example"])

    def test_fits_before_the_at_sign(self) -> None:
        local = ReturnPath("a-mailbox-of-21-chars@shop.example", "key").address(MESSAGE).partition("@")[0]
        assert len(local) == 64

    def test_is_not_looked_for_for_ever(self) -> None:
        assert PATHS.find(["a" * 42 + " "] * 1_000 + [TO]) is None


@pytest.mark.parametrize(
    ("code", "text", "gone"),
    [
        (550, "5.1.1 no such user", True),
        (550, "no such user", True),
        (553, "", True),
        (550, "5.7.1 blocked: see RFC 5.1.1", False),
        (552, "mailbox full", False),
        (553, "5.1.8 sender refused", False),
    ],
)
def test_an_enhanced_code_outranks_the_plain_one(code: int, text: str, gone: bool) -> None:
    assert no_such_address(code, text) is gone
