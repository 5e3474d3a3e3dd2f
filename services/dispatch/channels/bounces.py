"""Mails that tell what became of mails: delivery status notifications (RFC 3464; of letters to addresses in other scripts
RFC 6533) and complaints (ARF, RFC 5965).

Pure: a raw mail in, reports out. A mail is believed when it carries a token of ours (`return_path.py`), which only
somebody has who was on the letter's way. Anybody may write to a return path: holiday notes and the like tell nothing.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.errors import MessageError
from email.message import Message
from email.parser import BytesHeaderParser, BytesParser
from email.utils import parsedate_to_datetime
from uuid import UUID

from services.dispatch.channels.base import Forged, Report, Told, Unreadable
from services.dispatch.channels.return_path import ReturnPath

# RFC 3463: 5.1.7 and 5.1.8 speak of the sender's address, the rest of 5.1 and 5.2.1 (disabled) of the recipient's.
_NO_SUCH_ADDRESS = re.compile(r"5\.1\.(?:[0-6]|9|10)|5\.2\.1")
_NO_SUCH_ADDRESS_PLAIN = (550, 551, 553)
# What is said of who sends and not of whom it goes to: no or wrong credentials (RFC 4954 §6, and 538 of older servers; RFC
# 5248: 5.7.8 – 5.7.14), the sender's address (RFC 3463: 5.1.7, 5.1.8; RFC 7505: 5.7.27), what proves its domain (RFC 7372:
# 5.7.20 – 5.7.26).
_CREDENTIALS = (530, 534, 535, 538)
_OF_THE_SENDER = re.compile(r"5\.1\.[78]|5\.7\.(?:[89]|1[0-4]|2[0-7])")
# Codes that leave open whom they speak of. Then the words do: Postfix ("Sender address rejected", "Relay access denied"),
# Exim ("relay not permitted", "Sender verify failed") and others say such things at RCPT; Amazon SES at the end of DATA
# ("Email address is not verified", "Sending paused for this account").
_OPEN = ("", "5.0.0", "5.1.0", "5.5.0", "5.7.0", "5.7.1")
_WORDS = re.compile(r"\brelay|authenticat|\bsender\b|\bis not verified|\bsending paused", re.IGNORECASE)
_ADDRESS = re.compile(r"\S*@\S*")
_ENHANCED = re.compile(r"(?<![\d.])[245]\.\d{1,3}\.\d{1,3}(?![\d.])")
_REPLY_CODE = re.compile(r"(?:^|[\s;])([45]\d\d)(?=[\s-]|$)")
# Where a token may stand: whom the report was written to, what is known of the envelope, and our own header.
_OUTER = ("Delivered-To", "X-Original-To", "Envelope-To", "To")
_RETURNED = ("CFBL-Feedback-ID", "Return-Path")
_COMPLAINTS: dict[str, Told] = {"abuse": "complained", "fraud": "complained", "opt-out": "unsubscribed"}
_MOST_PARTS, _MOST_RECIPIENTS = 50, 20
# What is told stands before the letter that came back; taking mails apart costs time, and strangers may write them.
_MOST_READ, _MOST_SEPARATORS = 128 << 10, 500
_MARKS = (b"delivery-status", b"feedback-report")
# RFC 6533's types are in UTF-8 and may be encoded (base64) on the way. The parser takes everything that is message/… apart as
# it stands, undecoded; under this name it leaves them whole.
_GLOBAL_TYPE = re.compile(rb"(?im)^(content-type:\s*)message/(?=global)")
_STATUS_TYPES = ("message/delivery-status", "application/global-delivery-status")
_MOST_BLOCKS = 1 + _MOST_RECIPIENTS
# utf-8-addr-xtext: how such an address is written where only ASCII may stand.
_HEX = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")


def no_such_address(code: int, text: str) -> bool:
    """Whether an SMTP refusal says that the recipient's address does not exist: by its enhanced code where it has one."""
    enhanced = enhanced_code(text)
    return bool(_NO_SUCH_ADDRESS.fullmatch(enhanced)) if enhanced else code in _NO_SUCH_ADDRESS_PLAIN


def of_the_sender(code: int, enhanced: str, text: str) -> bool:
    """Whether an SMTP refusal for good speaks of us: of the password, the sender's address, its domain, or whether we may
    send through this server at all. `enhanced`: the enhanced code, "" if there is none; `text`: the answer."""
    if code in _CREDENTIALS or _OF_THE_SENDER.fullmatch(enhanced):
        return True
    return enhanced in _OPEN and bool(_WORDS.search(_ADDRESS.sub("", text)))


def enhanced_code(text: str) -> str:
    """The enhanced status code (RFC 3463) alone: servers quote addresses in the rest."""
    found = _ENHANCED.search(text)
    return found.group(0) if found else ""


def read(raw: bytes, recipient: str, paths: ReturnPath, now: datetime) -> list[Report]:
    """What a mail that came back tells; nothing for mails that are no reports.

    :param recipient: the envelope's, where the mail server says it; else it is looked for in the mail
    :param now: nothing has happened after it, whatever the mail says
    :raises Forged: a report without a token of ours
    :raises Unreadable: no mail, one of too many parts, or a report without its machine-readable part
    """
    raw = raw[:_MOST_READ]
    marked = any(mark in raw.lower() for mark in _MARKS)
    if marked and not paths.stands_in(f"{recipient}\n{raw.decode('latin-1')}"):
        raise Forged("the report carries no token of a letter from here")
    if raw.count(b"\n--") > _MOST_SEPARATORS:
        raise Unreadable(f"the mail has more than {_MOST_SEPARATORS} parts")
    mail = _parsed(raw, headers_only=not marked)
    payload = mail.get_payload()
    pieces = payload[:_MOST_PARTS] if isinstance(payload, list) else []
    parts = [part for part in pieces if isinstance(part, Message)]
    kinds = {part.get_content_type() for part in parts} | {f"message/{mail.get_param('report-type', '')}".lower()}
    # By its part, since not every server calls the whole multipart/report.
    if kinds & set(_STATUS_TYPES):
        return _delivery(mail, parts, recipient, paths, now)
    if "message/feedback-report" in kinds:
        return _complaint(mail, parts, recipient, paths, now)
    return []  # holiday notes, read receipts, reports about DMARC and TLS


def _parsed(raw: bytes, *, headers_only: bool) -> Message:
    parser = BytesHeaderParser if headers_only else BytesParser
    try:
        mail = parser(policy=email.policy.compat32).parsebytes(_GLOBAL_TYPE.sub(rb"\1application/", raw))
    except (RecursionError, MessageError, ValueError, LookupError) as problem:
        raise Unreadable(f"the body is not a mail that can be read ({type(problem).__name__})") from problem
    if not mail.keys():
        raise Unreadable("the body is not a mail: it has no headers")
    return mail


def _delivery(
    mail: Message, parts: Sequence[Message], recipient: str, paths: ReturnPath, now: datetime
) -> list[Report]:
    blocks = _blocks(parts, *_STATUS_TYPES)
    whole, recipients = blocks[0], blocks[1 : 1 + _MOST_RECIPIENTS]
    message = _message(mail, parts, [recipient, _field(whole, "Original-Envelope-Id")], paths)
    found: list[Report] = []
    for one in recipients:
        what, detail = _became(one, parts)
        if what is None or any(report.what == what for report in found):
            continue  # a letter has one recipient; where it was forwarded to several, they are one report
        at = _time(_field(one, "Last-Attempt-Date") or _field(mail, "Date"), now)
        found.append(Report(what, _id(what, message, blocks), message=message, at=at, detail=detail))
    return found


def _became(recipient: Message, parts: Sequence[Message]) -> tuple[Told | None, str]:
    """(what happened to it, in a line). Of delays and of handing on to servers that do not report nothing is told."""
    action = _field(recipient, "Action").split("(")[0].strip().lower()
    status = enhanced_code(_field(recipient, "Status"))
    diagnostic = _field(recipient, "Diagnostic-Code") or _in_words(recipient, parts)
    if action == "delivered":
        return "delivered", status
    if action != "failed":
        return None, ""
    reply = _REPLY_CODE.search(diagnostic)
    # "5.0.0" says nothing; then what the server said counts.
    said = enhanced_code(diagnostic) if not status or status.endswith(".0.0") else status
    code = int(reply.group(1)) if reply else 0
    detail = " ".join(str(part) for part in (code or "", said or status) if part)
    gone = no_such_address(code, said) and not of_the_sender(code, said, diagnostic)
    return ("bounced" if gone else "failed"), detail


def _in_words(recipient: Message, parts: Sequence[Message]) -> str:
    """What the text for people says of this recipient, in the form `address: answer` that servers use which leave out
    Diagnostic-Code."""
    address = _HEX.sub(_character, _field(recipient, "Final-Recipient").rpartition(";")[2].strip()).lower()
    for part in parts:
        text = part.get_payload() if part.get_content_type() == "text/plain" else None
        for line in text.splitlines() if isinstance(text, str) and address else ():
            if line.lower().startswith(f"{address}:"):
                return " ".join(line[len(address) + 1 :].split())[:1_000]
    return ""


def _character(found: re.Match[str]) -> str:
    code = int(found.group(1), 16)
    return chr(code) if code <= 0x10FFFF else found.group(0)


def _complaint(
    mail: Message, parts: Sequence[Message], recipient: str, paths: ReturnPath, now: datetime
) -> list[Report]:
    fields = _blocks(parts, "message/feedback-report")[0]
    message = _message(mail, parts, [recipient, _field(fields, "Original-Mail-From")], paths)
    kind = _field(fields, "Feedback-Type").lower()
    what = _COMPLAINTS.get(kind)
    if what is None:
        return []
    at = _time(_field(fields, "Arrival-Date") or _field(fields, "Received-Date") or _field(mail, "Date"), now)
    return [Report(what, _id(what, message, [fields]), message=message, at=at, detail=f"feedback: {kind}")]


def _blocks(parts: Sequence[Message], *types: str) -> list[Message]:
    """The groups of fields in the machine-readable part, which is of one of these types."""
    for part in parts:
        if part.get_content_type() in types:
            payload = part.get_payload()
            if isinstance(payload, str):
                texts = re.split(r"\n[ \t]*\n", _utf8(part).strip(), maxsplit=_MOST_BLOCKS)[:_MOST_BLOCKS]
                payload = [email.message_from_string(text, policy=email.policy.compat32) for text in texts]
            if isinstance(payload, list) and payload and all(isinstance(one, Message) for one in payload):
                return [one for one in payload if isinstance(one, Message)]
    raise Unreadable(f"the report has no readable part {types[0]}")


def _utf8(part: Message) -> str:
    """A part that the parser left whole: decoded, with plain ends of lines."""
    content = part.get_payload(decode=True)
    return content.decode("utf-8", "replace").replace("\r\n", "\n") if isinstance(content, bytes) else ""


def _message(mail: Message, parts: Sequence[Message], said: Sequence[str], paths: ReturnPath) -> UUID:
    def places() -> Iterator[str]:
        yield from said
        for name in _OUTER:
            yield from (str(value) for value in mail.get_all(name, []))
        for part in parts:
            for name in _RETURNED:
                yield from (str(value) for value in _returned(part).get_all(name, []))

    message = paths.find(places())
    if message is None:
        raise Forged("the report carries no token of a letter from here")
    return message


def _returned(part: Message) -> Message:
    """The headers of the letter that came back, if this part holds one; else the part's own."""
    payload = part.get_payload()
    if part.get_content_type() == "message/rfc822" and isinstance(payload, list) and payload:
        inner = payload[0]
        return inner if isinstance(inner, Message) else part
    if part.get_content_type() == "text/rfc822-headers":
        return email.message_from_string(str(payload), policy=email.policy.compat32)
    if part.get_content_type() in ("application/global", "application/global-headers"):
        return email.message_from_string(_utf8(part), policy=email.policy.compat32)
    return part


def _field(block: Message, name: str) -> str:
    return " ".join(str(block.get(name, "")).split())[:1_000]


def _time(text: str, now: datetime) -> datetime | None:
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    return min(at if at.tzinfo else at.replace(tzinfo=UTC), now)


def _id(what: Told, message: UUID, blocks: Sequence[Message]) -> str:
    """From the content: a server that hands over a report twice hands over the same fields."""
    told = "\n".join(f"{name.lower()}:{' '.join(str(value).split())}" for one in blocks for name, value in one.items())
    return hashlib.sha256(f"{what}\n{message}\n{told}".encode("utf-8", "replace")).hexdigest()[:32]
