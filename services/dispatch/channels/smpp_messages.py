"""What SMPP carries: an account's settings, a text as submit_sm, and what a deliver_sm says. Pure: no I/O."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from pydantic import Field, SecretStr, field_validator, model_validator

from services.dispatch.channels.base import AdapterSettings, Report, Result, Told
from services.dispatch.channels.sms_incoming import written_back
from services.dispatch.segments import alphabet_of, decoded, encoded, split

if TYPE_CHECKING:
    import smpp34  # an extra: imported where it is needed

THROTTLED, QUEUE_FULL, ALREADY_BOUND = 0x58, 0x14, 0x05
# What the server says of the number, of the moment, or of us (SMPP 3.4 §5.1.3: password, system id, service type, sender
# and its ton and npi, system type); everything else is said of the message.
_BOUNCED = {0x0B}
_RETRY = {0x04, 0x08, 0x45, 0x64, 0xFF, THROTTLED, QUEUE_FULL}
_OURS = {0x0A, 0x0E, 0x0F, 0x15, 0x48, 0x49, 0x53}
AFTER = {THROTTLED: timedelta(seconds=1), QUEUE_FULL: timedelta(seconds=10)}
MOST_PARTS = 255
_DELIVERED = 2
# Scheduled, on its way, taken by somebody else, unknown: nothing is decided. Centres say "unknown" of what waits for a phone
# that is off, too, and what may have arrived has not failed.
_UNDECIDED = (0, 1, 6, 7)
_WORDS = {
    "DELIVRD": 2,
    "EXPIRED": 3,
    "DELETED": 4,
    "UNDELIV": 5,
    "ACCEPTD": 6,
    "UNKNOWN": 7,
    "REJECTD": 8,
    "ENROUTE": 1,
}
_RECEIPT = re.compile(r"\b(id|stat|err|done date):([^ ]*)", re.IGNORECASE)
# Optional parameters.
_MESSAGE_STATE, _RECEIPTED_ID, _PAYLOAD = 0x0427, 0x001E, 0x0424
_SAR_REFERENCE, _SAR_TOTAL, _SAR_NUMBER = 0x020C, 0x020E, 0x020F
# esm_class: bits 5 to 2 say what a deliver_sm is. Of these none is what a person wrote: the phone's own acknowledgement,
# an ended conversation, a state in between.
_CLASS, _RECEIPT_CLASS, _UDH = 0x3C, 0x04, 0x40
_NOBODY_WROTE = (0x08, 0x18, 0x20)
_UCS2 = 0x08
# data_coding of alphabets that have a name of their own; the rest is read as Latin 1.
_CODECS = {0x06: "iso8859-5", 0x07: "iso8859-8"}


class Part(msgspec.Struct, frozen=True):
    """A part of a text, encoded. `number` of `total`, which share `reference`."""

    body: bytes
    coding: int
    reference: int
    number: int
    total: int


class SmppSettings(AdapterSettings):
    """An account at a short message service centre."""

    host: str = Field(pattern=r"^[A-Za-z0-9.:-]{1,253}$")
    port: int = Field(ge=1, le=65535)
    tls: bool = Field(default=True, description="Without TLS the password and all texts are readable on the way.")
    authority: str = Field(
        default="", max_length=20_000, description="Certificates (PEM) to trust besides the public authorities."
    )
    system_id: str = Field(min_length=1, max_length=15, pattern=r"^[\x21-\x7e]+$")
    password: SecretStr = Field(description="At most 8 characters, by the protocol.")
    system_type: str = Field(default="", max_length=12, pattern=r"^[\x20-\x7e]*$")
    sender: str = Field(description="A name of up to 11 characters, or a number of up to 15 digits.")
    window: int = Field(default=10, ge=1, le=100, description="How many messages may wait for their answer.")
    enquire_seconds: float = Field(default=30.0, ge=0.1, le=300.0)
    answer_seconds: float = Field(default=15.0, ge=0.1, le=20.0)
    concatenation: Literal["udh", "sar"] = Field(default="udh", description="How parts of a long text are marked.")
    gsm_data_coding: int = Field(default=0, ge=0, le=255, description="data_coding of the GSM alphabet, unpacked.")
    receipt_ids: Literal["same", "hex"] = Field(
        default="same", description="hex: submit_sm_resp tells ids in hexadecimal, receipts in decimal."
    )
    receipt_zone: str = Field(default="UTC", description="IANA zone of `done date`.")
    bounced_errors: tuple[str, ...] = Field(
        default=(), description="`err` of receipts that mean that the number does not exist; they differ by provider."
    )

    @field_validator("receipt_zone")
    @classmethod
    def _is_a_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{value} is no zone of the IANA database") from None
        return value

    @model_validator(mode="after")
    def _what_the_protocol_carries(self) -> Self:
        if self.authority:
            try:
                ssl.create_default_context(cadata=self.authority)
            except (ssl.SSLError, ValueError):
                raise ValueError("authority holds no certificate in PEM") from None
        password = self.password.get_secret_value()
        if len(password) > 8 or not password.isascii():
            raise ValueError("a password of SMPP has at most 8 characters of ASCII")
        if not re.fullmatch(r"\d{1,15}|[\x20-\x7e]{1,11}", self.sender):
            raise ValueError("the sender is a name of at most 11 characters or a number of at most 15 digits")
        return self


def parts_of(text: str, settings: SmppSettings, reference: int) -> list[Part]:
    """The parts of a text, encoded.

    :raises UnicodeEncodeError: the text holds half a surrogate pair
    """
    alphabet = alphabet_of(text)
    coding = _UCS2 if alphabet == "UCS-2" else settings.gsm_data_coding
    bodies = [encoded(part, alphabet) for part in split(text)]
    return [Part(body, coding, reference, number, len(bodies)) for number, body in enumerate(bodies, 1)]


def submit_sm(part: Part, address: str, settings: SmppSettings, number: int, *, receipt: bool) -> bytes:
    """A packed submit_sm with the sequence number `number`; `receipt`: whether its delivery is to be told."""
    import smpp34

    body, esm_class, tlvs = part.body, 0, []
    if part.total > 1 and settings.concatenation == "udh":
        body = bytes((5, 0, 3, part.reference, part.total, part.number)) + body
        esm_class = _UDH
    elif part.total > 1:
        tlvs = [
            smpp34.Tlv(_SAR_REFERENCE, part.reference.to_bytes(2, "big")),
            smpp34.Tlv(_SAR_TOTAL, bytes((part.total,))),
            smpp34.Tlv(_SAR_NUMBER, bytes((part.number,))),
        ]
    named = not settings.sender.isdigit()
    return smpp34.SubmitSm(
        source_addr=settings.sender,
        source_addr_ton=5 if named else 1,
        source_addr_npi=0 if named else 1,
        destination_addr=re.sub(r"\D", "", address),
        dest_addr_ton=1,
        dest_addr_npi=1,
        esm_class=esm_class,
        registered_delivery=1 if receipt else 0,
        data_coding=part.coding,
        short_message=body,
        tlvs=tlvs,
        sequence_number=number,
    ).encode()


def refused(status: int) -> Result:
    """What a command_status of submit_sm_resp means: the message was not taken."""
    detail = f"submit_sm_resp 0x{status:08X}"
    if status in _BOUNCED:
        return Result("bounced", detail)
    if status in _OURS:
        return Result("retry", f"{detail}: the centre does not take the account or the sender")
    if status in _RETRY:
        return Result("retry", detail, retry_after=AFTER.get(status))
    return Result("failed", detail)


def normal_id(text: str, *, hexadecimal: bool = False) -> str:
    """A message id as receipts tell it: servers pad numbers with zeros in one place and not in the other."""
    text = text.strip()
    if hexadecimal:
        try:
            return str(int(text, 16))
        except ValueError:
            return text
    return text.lstrip("0") or "0" if text.isdecimal() else text


def read_delivery(pdu: bytes, settings: SmppSettings, at: datetime) -> Report | None:
    """The report in a deliver_sm: a receipt, or what a person wrote back; None for states in between.

    :param at: when it came, business time
    :raises ValueError: it cannot be read
    """
    import smpp34

    try:
        delivery = smpp34.decode(pdu)
    except smpp34.SmppError as problem:
        raise ValueError(f"the deliver_sm cannot be decoded: {problem}") from problem
    assert isinstance(delivery, smpp34.DeliverSm)
    kind = delivery.esm_class & _CLASS
    if kind == _RECEIPT_CLASS:
        return _receipt(delivery, settings)
    return None if kind in _NOBODY_WROTE else _reply(delivery, settings, at)


def _body(delivery: smpp34.DeliverSm) -> bytes:
    """What it carries: the message, or where that is empty the optional parameter for long ones; without the header by
    which a phone puts parts together (UDH)."""
    payload = next((tlv.value for tlv in delivery.tlvs if tlv.tag == _PAYLOAD), b"")
    body = delivery.short_message or payload
    if delivery.esm_class & _UDH and body and body[0] < len(body):
        body = body[1 + body[0] :]
    return body


def _text(body: bytes, coding: int, settings: SmppSettings) -> str:
    """Read by its data_coding (SMPP 3.4 §5.2.19; from 0x10 on as 3GPP TS 23.038 §4 has it)."""
    if coding == _UCS2 or (0x10 <= coding < 0x40 and coding & 0x0C == _UCS2):
        return body.decode("utf-16-be", "replace").removeprefix("\ufeff")
    if coding in (0x00, settings.gsm_data_coding) and body.isascii():
        return decoded(body)
    return body.decode(_CODECS.get(coding, "latin-1"), "replace")


def _receipt(delivery: smpp34.DeliverSm, settings: SmppSettings) -> Report | None:
    """By the optional parameters where they are there, else by the text of appendix B."""
    tlvs = {tlv.tag: tlv.value for tlv in delivery.tlvs}
    # Written in ASCII, whatever the centre's default alphabet is: ids may hold an underscore.
    text = _body(delivery).decode("utf-16-be" if delivery.data_coding == _UCS2 else "latin-1", "replace")
    said = {name.lower(): value for name, value in _RECEIPT.findall(text)}
    provider_id = normal_id(tlvs.get(_RECEIPTED_ID, b"").rstrip(b"\0").decode("ascii", "replace") or said.get("id", ""))
    state = int.from_bytes(tlvs.get(_MESSAGE_STATE, b""), "big") or _WORDS.get(said.get("stat", "").upper(), 0)
    if not provider_id or state in _UNDECIDED:
        return None
    error = said.get("err", "").lstrip("0")
    what: Told = "delivered" if state == _DELIVERED else "bounced" if error in settings.bounced_errors else "failed"
    word = next(name for name, number in _WORDS.items() if number == state) if state in _WORDS.values() else str(state)
    return Report(
        what,
        f"{provider_id}/{what}",
        provider_id=provider_id,
        at=_done(said.get("done date", ""), settings.receipt_zone),
        detail=word + (f", err {error[:3]}" if error else ""),
    )


def _done(text: str, zone: str) -> datetime | None:
    for form in ("%y%m%d%H%M%S", "%y%m%d%H%M"):
        try:
            if len(text) == (12 if form.endswith("S") else 10):
                return datetime.strptime(text, form).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
        except ValueError:
            return None
    return None


def _reply(delivery: smpp34.DeliverSm, settings: SmppSettings, at: datetime) -> Report | None:
    """What a person sent. A deliver_sm has no id of its own."""
    return written_back(delivery.source_addr, _text(_body(delivery), delivery.data_coding, settings), at)
