"""Four SMS gateways for tests in one process of its own: Twilio, SMSC, SMS Aero, SMS Traffic, by their paths.

    peer.behave(status=503, take=True)          # takes the message, then answers 503
    peer.messages()                              # what it took
    peer.callback(message["id"], "delivered")    # the call that the provider would make, with its own proof

It checks credentials and fields, counts segments and signs calls with code that is not the product's: Twilio's own
library signs for Twilio, the GSM codec is aiosmpplib's. The ledger is on disk before the answer leaves.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, parse_qsl, quote, urlencode, urlsplit

from tests.support.peer_process import SteeredPeer

LOGINS = {"twilio": "AC00000000000000000000000000000001", "smsc": "shop", "sms_aero": "a@b.ru", "sms_traffic": "shop"}
PASSWORD = "peer-password"
SECRET = "peer-webhook-secret"
PRICE = "2.50"
DELIVERED = {"twilio": "delivered", "smsc": "1", "sms_aero": "1", "sms_traffic": "Delivered"}


@dataclass
class Behaviour:
    """How the peer answers; written by the test, read before each answer."""

    status: int = 0
    """Answer to sending with this HTTP status, without a document; 0: as the gateway would."""

    take: bool = False
    """With `status`: the message is taken all the same."""

    code: str = ""
    """Refuse with this error code, in the gateway's own form."""

    retry_after: str = ""
    delay_seconds: float = 0.0
    """Pause before the answer; a message that is taken is in the ledger already."""

    hang_up: bool = False
    """Take the message and cut the connection without an answer."""

    garbage: str = ""
    """Take the message and answer 200 with this."""

    at_once: int = 0
    """SMSC refuses a request while so many others are open; 0: it takes them all."""

    states: dict[str, str] = field(default_factory=dict)
    """The gateway's id of a message → the state that it is in."""

    sent_on: dict[str, str] = field(default_factory=dict)
    """Twilio's id of a message → the day (UTC) on which it was sent; the others still wait, and have no such day."""


@dataclass(frozen=True)
class Callback:
    """A call as the provider makes it."""

    url: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.url).query))


class SmsGatewayPeer(SteeredPeer):
    """All four gateways at one port. The ledger's kinds: `taken`, `refused`, `asked`."""

    module = "tests.support.sms_gateway_peer"
    behaviours = Behaviour

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def messages(self) -> list[dict[str, Any]]:
        """What it took: `gateway, id, key, phone, text, segments, callback`."""
        return self.entries("taken")

    def callback(self, id: str, state: str, fixed: str = "", **fields: str) -> Callback:
        """The call by which the provider would tell of this state, made by the peer. `fixed`: to which address, for
        gateways that are told one for all messages; `fields`: what else the call says."""
        return self._made("_callback", fields, id=id, state=state, fixed=fixed)

    def incoming(self, gateway: str, phone: str, text: str, fixed: str, id: str = "", **fields: str) -> Callback:
        """The call by which the provider would hand on what a person wrote, made by the peer. `id`: its own for it."""
        return self._made("_incoming", fields, gateway=gateway, phone=phone, text=text, fixed=fixed, id=id)

    def _made(self, what: str, fields: dict[str, str], **said: str) -> Callback:
        query = urlencode({**said, **{f"x_{name}": value for name, value in fields.items()}})
        with urllib.request.urlopen(f"{self.url}/{what}?{query}", timeout=5) as answer:
            made = json.load(answer)
        return Callback(made["url"], made["headers"], base64.b64decode(made["body"]))


# ── the peer's own process ────────────────────────────────────────────────────────────────────────────────────────────


class _Refused(Exception):
    def __init__(self, code: str, status: int = 200) -> None:
        self.code, self.status = code, status


class _Desk:
    """What all gateways share: the ledger, and what they took."""

    def __init__(self, folder: Path) -> None:
        self._behaviour = folder / "behaviour.json"
        self._ledger = open(folder / "ledger.jsonl", "a")  # noqa: SIM115 - open as long as the process lives
        self._lock = threading.Lock()
        self._open = 0
        self.taken: dict[str, dict[str, Any]] = {}

    def now(self) -> Behaviour:
        return Behaviour(**json.loads(self._behaviour.read_text()))

    def write(self, **entry: Any) -> None:
        with self._lock:
            self._ledger.write(json.dumps({"at": time.time(), **entry}) + "\n")
            self._ledger.flush()

    def take(self, **message: Any) -> dict[str, Any]:
        with self._lock:
            number = len(self.taken) + 1
        message["id"] = {"twilio": f"SM{number:032x}", "smsc": message["key"]}.get(
            message["gateway"], str(8287366070 + number)
        )
        message["segments"] = _segments(message["text"])
        self.write(kind="taken", **message)
        self.taken[message["id"]] = message
        return message

    @contextmanager
    def counted(self) -> Iterator[int]:
        """How many requests are being answered, with this one."""
        with self._lock:
            self._open += 1
            count = self._open
        try:
            yield count
        finally:
            with self._lock:
                self._open -= 1

    def state(self, message: dict[str, Any], initial: str) -> str:
        return self.now().states.get(message["id"], initial)


def _segments(text: str) -> int:
    """Counted by the octets of another library's codec."""
    from aiosmpplib import GSM7BitCodec, UCS2Codec

    try:
        units = [len(GSM7BitCodec().encode(character)[0]) for character in text]
        single, part = 160, 153
    except (UnicodeError, KeyError):
        units = [len(UCS2Codec().encode(character)[0]) // 2 for character in text]
        single, part = 70, 67
    if sum(units) <= single:
        return 1
    count, used = 1, 0
    for width in units:
        if used + width > part:
            count, used = count + 1, 0
        used += width
    return count


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    desk: _Desk

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        url = urlsplit(self.path)
        if (made := _CALLS.get(url.path)) is not None:
            return self._say(200, json.dumps(made(self.desk, dict(parse_qsl(url.query)))).encode())
        gateway = next((g for path, g in _GATEWAYS.items() if url.path.startswith(path)), None)
        if gateway is None:
            return self._say(404, b"no such gateway")
        with self.desk.counted() as open_requests:
            most = self.desk.now().at_once
            if most and gateway == "smsc" and open_requests > most:
                self.desk.write(kind="refused", gateway=gateway, code="9")
                return self._say(200, _refusal(gateway, "9"))
            return self._handle(gateway, url, body)

    def _handle(self, gateway: str, url: SplitResult, body: bytes) -> None:
        fields = self._fields(body)
        if not self.sending(gateway, url.path, fields):
            return self._say(*self._asked(gateway, url.path, fields))
        return self._send(gateway, fields)

    def _fields(self, body: bytes) -> dict[str, Any]:
        found = {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query, True).items()}
        if "json" in self.headers.get("Content-Type", ""):
            return found | json.loads(body)
        return found | dict(parse_qsl(body.decode(), keep_blank_values=True))

    def sending(self, gateway: str, path: str, fields: dict[str, Any]) -> bool:
        if gateway == "twilio":
            return self.command == "POST"
        return fields.get("operation") != "status" and not path.endswith(("status.php", "/status"))

    def _send(self, gateway: str, fields: dict[str, Any]) -> None:
        behaviour = self.desk.now()
        try:
            order = _ORDERS[gateway](self, fields)
            if behaviour.code:
                raise _Refused(behaviour.code, 400 if gateway == "twilio" else 200)
        except _Refused as refusal:
            self.desk.write(kind="refused", gateway=gateway, code=refusal.code)
            return self._say(refusal.status, _refusal(gateway, refusal.code), behaviour)
        if behaviour.status and not behaviour.take:
            self.desk.write(kind="refused", gateway=gateway, code=f"http-{behaviour.status}")
            return self._say(behaviour.status, b"", behaviour)
        message = self.desk.take(gateway=gateway, **order)
        time.sleep(behaviour.delay_seconds)
        if behaviour.hang_up:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        if behaviour.garbage:
            return self._say(200, behaviour.garbage.encode())
        if behaviour.status:
            return self._say(behaviour.status, b"", behaviour)
        return self._say(201 if gateway == "twilio" else 200, _taken(gateway, message))

    def _asked(self, gateway: str, path: str, fields: dict[str, Any]) -> tuple[int, bytes]:
        self.desk.write(kind="asked", gateway=gateway, date=fields.get("DateSent", ""))
        try:
            return 200, _STATES[gateway](self, path, fields)
        except _Refused as refusal:
            return refusal.status, _refusal(gateway, refusal.code)

    def basic(self, login: str) -> None:
        right = "Basic " + base64.b64encode(f"{login}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != right:
            raise _Refused("20003", 401)

    def _say(self, status: int, body: bytes, behaviour: Behaviour | None = None) -> None:
        self.send_response(status)
        if behaviour is not None and behaviour.retry_after:
            self.send_header("Retry-After", behaviour.retry_after)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _need(fields: dict[str, Any], code: str, **wanted: str) -> None:
    for name, value in wanted.items():
        if str(fields.get(name)) != value:
            raise _Refused(code)


def _order_twilio(handler: _Handler, fields: dict[str, Any]) -> dict[str, Any]:
    if LOGINS["twilio"] not in handler.path:
        raise _Refused("20404", 404)
    handler.basic(LOGINS["twilio"])
    if not str(fields["To"]).startswith("+") or not fields["From"] or not fields["Body"]:
        raise _Refused("21211", 400)
    if "StatusCallback" in fields and not _on_the_internet(urlsplit(fields["StatusCallback"]).hostname or ""):
        raise _Refused("21609", 400)
    key = parse_qs(urlsplit(fields.get("StatusCallback", "")).query).get("m", [""])[0]
    return {"key": key, "phone": fields["To"], "text": fields["Body"], "callback": fields.get("StatusCallback", "")}


def _on_the_internet(host: str) -> bool:
    try:
        return ip_address(host).is_global
    except ValueError:
        return "." in host and "_" not in host and not host.endswith((".localhost", ".local", ".internal"))


def _order_smsc(handler: _Handler, fields: dict[str, Any]) -> dict[str, Any]:
    _need(fields, "2", login=LOGINS["smsc"], psw=PASSWORD)
    _need(fields, "1", fmt="3", cost="3", charset="utf-8")
    if not 1 <= len(fields["id"]) <= 40 or not fields["phones"] or not fields["mes"]:
        raise _Refused("1")
    return {"key": fields["id"], "phone": fields["phones"], "text": fields["mes"], "callback": ""}


def _order_sms_aero(handler: _Handler, fields: dict[str, Any]) -> dict[str, Any]:
    handler.basic(LOGINS["sms_aero"])
    if not isinstance(fields["number"], int) or not fields["sign"] or not fields["text"]:
        raise _Refused("number")
    key = parse_qs(urlsplit(fields.get("callbackUrl", "")).query).get("m", [""])[0]
    phone = f"+{fields['number']}"
    return {"key": key, "phone": phone, "text": fields["text"], "callback": fields.get("callbackUrl", "")}


def _order_sms_traffic(handler: _Handler, fields: dict[str, Any]) -> dict[str, Any]:
    _need(fields, "411", login=LOGINS["sms_traffic"], password=PASSWORD)
    _need(fields, "404", rus="5", want_sms_ids="1")
    if not fields["phones"].isdigit():
        raise _Refused("428")
    # It is told no id of the sender's: the ledger knows the message by its text alone.
    return {"key": "", "phone": f"+{fields['phones']}", "text": fields["message"], "callback": ""}


def _refusal(gateway: str, code: str) -> bytes:
    if gateway == "twilio":
        return json.dumps({"code": int(code), "message": "To +79161234567 is wrong", "status": 400}).encode()
    if gateway == "smsc":
        return json.dumps({"error": "wrong phone 79161234567", "error_code": int(code)}).encode()
    if gateway == "sms_aero":
        fields = code.split(",")
        data = {name: ["wrong"] for name in fields} if all(name.isidentifier() for name in fields) else None
        return json.dumps({"success": False, "data": data, "message": "Validation error." if data else code}).encode()
    return f"<?xml version='1.0'?><reply><result>ERROR</result><code>{code}</code><description/></reply>".encode()


def _taken(gateway: str, message: dict[str, Any]) -> bytes:
    cost = f"{float(PRICE) * message['segments']:.2f}"
    if gateway == "twilio":
        document = {"sid": message["id"], "status": "queued", "num_segments": str(message["segments"]), "price": None}
    elif gateway == "smsc":
        document = {"id": message["id"], "cnt": message["segments"], "cost": cost, "balance": "100.00"}
    elif gateway == "sms_aero":
        data = {"id": int(message["id"]), "number": message["phone"][1:], "status": 0, "cost": float(cost)}
        document = {"success": True, "data": data, "message": None}
    else:
        parts = [int(message["id"]) - 1000 * n for n in range(message["segments"] - 1, -1, -1)]
        infos = "".join(
            f"<message_info><phone>{message['phone'][1:]}</phone><sms_id>{one}</sms_id></message_info>" for one in parts
        )
        return (
            "<?xml version='1.0' ?><reply><result>OK</result><code></code>"
            f"<description>queued</description><message_infos>{infos}</message_infos></reply>"
        ).encode()
    return json.dumps(document).encode()


def _state_twilio(handler: _Handler, path: str, fields: dict[str, Any]) -> bytes:
    handler.basic(LOGINS["twilio"])

    def shown(message: dict[str, Any]) -> dict[str, Any]:
        state = handler.desk.state(message, "queued")
        return {"sid": message["id"], "to": message["phone"], "body": message["text"], "status": state}

    if path.endswith("/Messages.json"):
        days, wanted = handler.desk.now().sent_on, fields.get("DateSent")
        found = [one for one in handler.desk.taken.values() if one["phone"] == fields["To"]]
        rows = [shown(one) for one in found if wanted is None or days.get(one["id"]) == wanted]
        return json.dumps({"messages": rows}).encode()
    sid = path.rpartition("/")[2].removesuffix(".json")
    if sid not in handler.desk.taken:
        raise _Refused("20404", 404)
    return json.dumps(shown(handler.desk.taken[sid])).encode()


def _state_smsc(handler: _Handler, path: str, fields: dict[str, Any]) -> bytes:
    _need(fields, "2", login=LOGINS["smsc"], psw=PASSWORD)
    message = handler.desk.taken.get(fields["id"])
    if message is None or message["phone"] != fields["phone"]:
        return json.dumps({"status": -3}).encode()
    state = handler.desk.state(message, "0")
    return json.dumps({"status": int(state), "id": message["id"], "last_timestamp": 1773133200}).encode()


def _state_sms_aero(handler: _Handler, path: str, fields: dict[str, Any]) -> bytes:
    handler.basic(LOGINS["sms_aero"])
    message = handler.desk.taken.get(str(fields["id"]))
    if message is None:
        raise _Refused("id")
    data = {"id": fields["id"], "status": int(handler.desk.state(message, "0")), "dateAnswer": 1773133200}
    return json.dumps({"success": True, "data": data}).encode()


def _state_sms_traffic(handler: _Handler, path: str, fields: dict[str, Any]) -> bytes:
    _need(fields, "411", login=LOGINS["sms_traffic"], password=PASSWORD)
    message = handler.desk.taken.get(fields["sms_id"])
    if message is None:
        return b"<reply><error>no such message</error></reply>"
    state = handler.desk.state(message, "")
    return (
        f"<reply><last_status_change_date>2026-03-10 12:00:00</last_status_change_date><status>{state}</status>"
        f"<error></error><sms_id>{message['id']}</sms_id></reply>"
    ).encode()


def _callback(desk: _Desk, asked: dict[str, str]) -> dict[str, Any]:
    """The call that the gateway would make, with its own proof."""
    message, state, extra = desk.taken[asked["id"]], asked["state"], _extra(asked)
    url = message["callback"] or asked["fixed"]
    if message["gateway"] == "twilio":
        form = {
            "MessageSid": message["id"],
            "MessageStatus": state,
            "To": message["phone"],
            "AccountSid": "AC1",
        } | extra
        return _call(url, form, _by_twilio(url, form))
    if message["gateway"] == "smsc":
        phone = message["phone"].lstrip("+")
        form = {"id": message["id"], "phone": phone, "status": state, "ts": "1773133200", **extra}
        return _call(url, form | _by_smsc(message["id"], phone, state))
    if message["gateway"] == "sms_aero":
        return _call(url, {"id": message["id"], "status": state, **extra})
    return _call(url, {"sms_id": message["id"], "status": state, "delivery_date": "2026-03-10 12:00:00", **extra})


def _incoming(desk: _Desk, asked: dict[str, str]) -> dict[str, Any]:
    """What a person wrote, as the gateway would hand it on, with its own proof."""
    url, phone, text, extra = asked["fixed"], asked["phone"], asked["text"], _extra(asked)
    if asked["gateway"] == "twilio":
        form = {"MessageSid": asked["id"], "SmsStatus": "received", "From": phone, "To": "+15005550006", "Body": text}
        form |= {"NumMedia": "0", "AccountSid": LOGINS["twilio"], **extra}
        return _call(url, form, _by_twilio(url, form))
    form = {"phone": phone.lstrip("+"), "mes": text, "to": "79160000000", **extra}
    return _call(url, form | _by_smsc(form["phone"], text, form["to"]))


def _extra(asked: dict[str, str]) -> dict[str, str]:
    return {name[2:]: value for name, value in asked.items() if name.startswith("x_")}


def _call(url: str, form: dict[str, str], headers: dict[str, str] | None = None) -> dict[str, Any]:
    body = base64.b64encode(urlencode(form, quote_via=quote).encode()).decode()
    said = {"content-type": "application/x-www-form-urlencoded", **(headers or {})}
    return {"url": url, "headers": said, "body": body}


def _by_twilio(url: str, form: dict[str, str]) -> dict[str, str]:
    from twilio.request_validator import RequestValidator

    return {"x-twilio-signature": RequestValidator(PASSWORD).compute_signature(url, form)}


def _by_smsc(*parts: str) -> dict[str, str]:
    signed = ":".join((*parts, SECRET)).encode()
    return {"md5": hashlib.md5(signed).hexdigest(), "sha1": hashlib.sha1(signed).hexdigest()}


_CALLS = {"/_callback": _callback, "/_incoming": _incoming}
_GATEWAYS = {"/2010-04-01/": "twilio", "/sys/": "smsc", "/v2/": "sms_aero", "/multi.php": "sms_traffic"}
_ORDERS = {
    "twilio": _order_twilio,
    "smsc": _order_smsc,
    "sms_aero": _order_sms_aero,
    "sms_traffic": _order_sms_traffic,
}
_STATES = {
    "twilio": _state_twilio,
    "smsc": _state_smsc,
    "sms_aero": _state_sms_aero,
    "sms_traffic": _state_sms_traffic,
}


def _serve(port: int, folder: Path, parent: int) -> None:
    _Handler.desk = _Desk(folder)
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()
    while os.getppid() == parent:  # whoever started us may have been killed
        time.sleep(0.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    _serve(options.port, options.folder, options.parent)
