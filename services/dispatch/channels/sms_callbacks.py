"""A gateway's calls to `/webhooks/sms-gateway`: are they its own, and what do they say? Pure: no I/O."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import UUID

import msgspec

from services.dispatch.channels.base import Call, Forged, Received, Report, Unreadable
from services.dispatch.channels.sms_answers import cleaned, moment, report_id, state_of
from services.dispatch.channels.sms_incoming import written_back
from services.dispatch.channels.sms_preset import Callbacks, Incoming, Preset, Proof, money_at
from shared.outside import is_public

MOST_FIELDS = 200
# Names that no public name server knows (RFC 6761, 6762, 8375, and .internal, which ICANN keeps for this).
_INNER_NAMES = ("localhost", "local", "internal", "home.arpa", "test", "invalid")
_FIELD = re.compile(r"\{(\w+)\}")


def callback_url(address: str, callbacks: Callbacks, message: UUID, secret: str) -> str:
    """The address that goes along with a message: it names the message, and proves itself where calls are not signed.
    "" if no proof can be made, because no secret was told: then the provider is not asked to call."""
    if callbacks.proof.kind != "token":
        return f"{address}?{urlencode({'m': str(message)})}"
    return f"{address}?{urlencode({'m': str(message), 't': token(secret, message)})}" if secret else ""


def stands_inside(address: str) -> bool:
    """Whether a URL can only be reached from the network that it lies in, as far as its host says: an address that is not
    public, a name of one label or under an inner domain, or one that is none (`_` in it)."""
    host = (urlsplit(address).hostname or "").rstrip(".")
    try:
        return not is_public(str(ip_address(host)))
    except ValueError:
        labels = host.split(".")
        named = len(labels) > 1 and all(labels) and "_" not in host and not labels[-1].isdigit()
        return not named or any(f".{host}".endswith(f".{name}") for name in _INNER_NAMES)


def token(secret: str, message: UUID) -> str:
    """Proves that this address was given along with this message."""
    return hmac.new(secret.encode(), b"sms-gateway/" + message.bytes, hashlib.sha256).hexdigest()[:40]


def received(preset: Preset, call: Call, address: str, password: str, secret: str, currency: str) -> Received:
    """What the call says. `address`: of the webhook, as the provider was given it.

    :raises Forged: it does not prove that it is the provider's
    :raises Unreadable: a field is missing or wrong
    """
    try:
        form = _form(call)
    except Unreadable:
        # What cannot be read can be proven by its address alone.
        if preset.callbacks is not None:
            _prove(preset.callbacks.proof, preset.callbacks.message, call, {}, address, password, secret)
        raise
    fields = {**call.query, **form}
    incoming, callbacks = preset.incoming, preset.callbacks
    if incoming is not None and incoming.text in fields and (callbacks is None or callbacks.state not in fields):
        _prove(incoming.proof, "", call, form, address, password, secret)
        written = _written(incoming, call, fields)
        return Received([written] if written else [], 200, incoming.reply.encode(), incoming.reply_type)
    if callbacks is None:
        raise Unreadable(f"the preset {preset.title} expects no such calls")
    _prove(callbacks.proof, callbacks.message, call, form, address, password, secret)
    report = _report(preset, callbacks, call, fields, currency)
    return Received([report] if report else [], body=callbacks.reply.encode())


def _written(incoming: Incoming, call: Call, fields: Mapping[str, str]) -> Report | None:
    if incoming.phone not in fields:
        raise Unreadable(f"the field {incoming.phone}, which says who wrote, is missing")
    return written_back(
        fields[incoming.phone],
        fields[incoming.text],
        call.at,
        id=fields.get(incoming.id, "") if incoming.id else "",
        stopped=bool(incoming.stop) and fields.get(incoming.stop, "") in incoming.stop_values,
        stop_words=incoming.stop_words,
    )


def _form(call: Call) -> dict[str, str]:
    """The fields of the body, by its content type; that of calls without a body is empty."""
    if not call.body:
        return {}
    try:
        if "json" in call.headers.get("content-type", ""):
            document = msgspec.json.decode(call.body)
            if not isinstance(document, dict):
                raise Unreadable("the body is no JSON object")
            return {k: _text(v) for k, v in document.items() if isinstance(v, str | int | float)}
        pairs = parse_qsl(call.body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as problem:
        raise Unreadable("the body can be read neither as a form nor as JSON") from problem
    return dict(pairs)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _prove(
    proof: Proof, message: str, call: Call, form: Mapping[str, str], address: str, password: str, secret: str
) -> None:
    """`message`: as `Callbacks` has it, "" for calls about none of ours. Raises Forged."""
    if proof.kind == "twilio":
        proven = bool(password) and _same(
            call.headers.get("x-twilio-signature", ""), _signature(call, address, password)
        )
    elif proof.kind == "digests":
        proven = bool(secret) and _digests(proof, {**call.query, **form}, secret)
    else:
        proven = bool(secret) and _token(message, call.query, secret)
    if not proven:
        raise Forged(f"the call does not carry the proof ({proof.kind}) that it comes from the provider")


def _signature(call: Call, address: str, password: str) -> str:
    """X-Twilio-Signature: the address as it was given, then each field's name and value, sorted; HMAC-SHA1, base64."""
    url = address + (f"?{urlencode(call.query)}" if call.query else "")
    pairs = parse_qsl(call.body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    signed = url + "".join(name + value for name, value in sorted(set(pairs)))
    return base64.b64encode(hmac.new(password.encode(), signed.encode(), hashlib.sha1).digest()).decode()


def _digests(proof: Proof, fields: Mapping[str, str], secret: str) -> bool:
    """All digests that are there are right, and there is one."""
    given = {name: kind for name, kind in proof.digests.items() if fields.get(name)}
    signed = _FIELD.sub(
        lambda found: secret if found.group(1) == "secret" else fields.get(found.group(1), ""), proof.signs
    )
    return bool(given) and all(
        _same(fields[name].lower(), hashlib.new(kind, signed.encode()).hexdigest()) for name, kind in given.items()
    )


def _token(message: str, query: Mapping[str, str], secret: str) -> bool:
    if message != "m":
        return _same(query.get("t", ""), secret)
    try:
        return _same(query.get("t", ""), token(secret, UUID(query.get("m", ""))))
    except ValueError:
        return False


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(), right.encode())


def _report(
    preset: Preset, callbacks: Callbacks, call: Call, fields: Mapping[str, str], currency: str
) -> Report | None:
    """None for states in between. A call is proven for the message in its address: that one counts before all else."""
    message = _message(callbacks, call, fields)
    provider_id = fields.get(callbacks.id, "") if callbacks.id else ""
    if message is None and not provider_id:
        raise Unreadable(f"the field {callbacks.id or callbacks.message}, which names the message, is missing")
    state = fields.get(callbacks.state)
    if state is None:
        raise Unreadable(f"the field {callbacks.state} is missing")
    code = fields.get(callbacks.code, "") if callbacks.code else ""
    what = state_of(preset, state, code, callbacks.bounced)
    if what is None:
        return None
    return Report(
        what,
        report_id(provider_id or str(message), what),
        message=message,
        provider_id=provider_id,
        at=moment(callbacks.at, fields.get(callbacks.at.field, "")) if callbacks.at else None,
        detail=f"{preset.title}: {cleaned(state)}" + (f", {cleaned(code)}" if code else ""),
        charged=money_at(dict(fields), callbacks.charged) if preset.currency == currency else None,
    )


def _message(callbacks: Callbacks, call: Call, fields: Mapping[str, str]) -> UUID | None:
    name = callbacks.message
    value = call.query.get("m", "") if name == "m" else fields.get(name, "") if name else ""
    try:
        return UUID(value)
    except ValueError:
        return None
