"""What anybody may send without a key (links, pages, providers' calls): hostile tokens, bodies and headers, without a proof and
with one. Never a 500, and no answer that is not meant.

`DRIPLINE_FUZZ_SEED` chooses the requests; of each kind there are 25 times `DRIPLINE_OPENAPI_EXAMPLES`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

import httpx
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from services.dispatch.channels.sms_callbacks import token
from tests.contracts.test_hostile_input import VALUES, with_value
from tests.contracts.test_openapi import AGAIN, EXAMPLES, RULE, SEED, shop  # noqa: F401 - a fixture: a deployment of its own
from tests.support.shop import Person, Shop, added, consent_granted, identify, links, product, text_of
from tests.support.sms_gateway_peer import LOGINS, PASSWORD
from tests.support.telegram_peer import TOKEN
from tests.support.webhook_peer import SECRET

HOOK_SECRET = "a-webhook-secret-of-the-tests"
PAGES = {
    "c": {302, 404, 405, 429},
    "o": {200, 404, 405},
    "u": {200, 400, 404, 405, 429},
    "confirm": {200, 404, 405, 410, 429},
}
WEBHOOKS = {200, 204, 400, 403, 404, 405, 413, 429}
ADAPTERS = {
    "telegram": ("messenger", {"token": TOKEN, "webhook_secret": HOOK_SECRET}),
    "webhook": ("messenger", {"url": "https://shop.example/hook", "secret": SECRET}),
    "call-task": ("call", {"url": "https://shop.example/hook", "secret": SECRET}),
    "smtp": (
        "email",
        {"host": "mail.example", "return_path": "bounces@mail.example", "bounce_key": HOOK_SECRET},
    ),
}
PRESETS = ("twilio", "sms_aero", "sms_traffic", "smsc")
MESSAGE = UUID(int=7)
UPDATE = {
    "update_id": 1,
    "message": {"message_id": 5, "date": 1, "chat": {"id": 1001, "type": "private"}, "text": "/stop"},
    "my_chat_member": {"chat": {"id": 1, "type": "private"}, "date": 1, "new_chat_member": {"status": "kicked"}},
}
DATA = {"message": str(MESSAGE), "task": str(MESSAGE), "outcome": "ordered", "code": "x", "cost": 1.5, "comment": "x"}
HOOK = {"type": "messenger.delivered", "timestamp": "2026-01-01T00:00:00Z", "data": DATA}
FORM = {
    "MessageSid": "SM1", "MessageStatus": "delivered", "ErrorCode": "30003", "From": "+79161234567", "Body": "STOP", "id": "1",
    "status": "1", "err": "1", "mes": "STOP", "phone": "79161234567", "time": "1", "cost": "1", "price": "1", "extendStatus": "1",
    "smsId": "1", "type": "sms_status", "sms_id": "1", "delivery_date": "2026-01-01 10:00:00",
}  # fmt: skip
MAIL = b"""\
From: mailer@mail.example
To: bounces+AAAA@mail.example
Content-Type: multipart/report; report-type=%s; boundary=b

--b
Content-Type: message/%s

Reporting-MTA: dns; mail.example
Arrival-Date: %s
Final-Recipient: rfc822; %s
Action: failed
Status: %s

--b--
"""

hostile = st.sampled_from(sorted(VALUES.values()))
words = st.text(max_size=40) | st.sampled_from(
    ["\x00", "a\x00b", "٣", "İ", "😀" * 600, "' OR 1=1 --", "%s%n", "../..", "1e999"]
)


def fields_of(document: dict[str, Any], place: str = "") -> Iterator[str]:
    for name, value in document.items():
        yield place + name
        if isinstance(value, dict):
            yield from fields_of(value, f"{place}{name}.")


def broken(*bases: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """One of the documents with one field that is hostile; or any JSON at all; or no JSON."""
    places = [(base, field) for base in bases for field in fields_of(base)]
    members = st.sampled_from([field.rpartition(".")[2] for _, field in places])
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | words
    any_json = st.recursive(leaves, lambda s: st.lists(s, max_size=3) | st.dictionaries(members | words, s, max_size=4))
    return (
        st.tuples(st.sampled_from(places), hostile).map(lambda told: with_value(told[0][0], told[0][1], told[1]))
        | any_json.map(lambda value: json.dumps(value).encode("utf-8", "replace"))
        | st.binary(max_size=200)
    )


headers = st.dictionaries(
    st.sampled_from(
        ["user-agent", "content-type", "x-forwarded-for", "content-encoding", "authorization", "x-twilio-signature",
         "x-telegram-bot-api-secret-token", "webhook-id", "webhook-timestamp", "webhook-signature", "range", "cookie"]
    ),
    st.binary(max_size=30).map(lambda raw: bytes(b for b in raw if 0x20 < b != 0x7F)) | st.just(b"9" * 6000),
    max_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
async def real_tokens(shop: Shop) -> list[str]:  # noqa: F811
    """Of a letter that was sent."""
    boris = Person("Boris")
    await shop.activate(RULE)
    await shop.tell(identify(boris), consent_granted(boris), added(boris, product("coffee", price=9000)))
    [letter] = await shop.letters(boris)
    found = [url.rpartition("/")[2] for kind in ("c", "u") for url in links(text_of(letter), kind)]
    assert found
    for name, (channel, told) in ADAPTERS.items():
        await shop.put(f"/v1/channels/{channel}/adapters/{name}", told)
    return found


def mutated(real: list[str]) -> st.SearchStrategy[bytes]:
    """Tokens: real ones, and such as look like one."""
    chosen = st.sampled_from(real)
    return (
        chosen.map(str.encode)
        | st.tuples(
            chosen, st.sampled_from(["", "=", "AA", "%00", "%2e%2e%2f", "%2f", "?url=//evil.example", "/", "\u212a"])
        ).map(lambda told: (told[0] + told[1]).encode())
        | st.tuples(chosen, st.integers(0, 40)).map(lambda told: told[0][: told[1]].encode())
        | chosen.map(lambda text: text.swapcase().encode())
        | st.binary(max_size=40)
        | st.just(b"a" * 6000)
    )


def fuzzed(what: str, *strategies: st.SearchStrategy[Any], ask: Any) -> None:
    """Calls `ask` with so many examples; `what` makes the seed its own."""

    @seed(f"{SEED} {what}")
    @settings(
        max_examples=25 * EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.tuples(*strategies))
    def run(drawn: tuple[Any, ...]) -> None:
        ask(*drawn)

    run()


class Caller:
    """Sends what it is told as it is: no path is put right. Remembers what was answered."""

    def __init__(self, url: str) -> None:
        self._http, self._url = httpx.Client(timeout=30, trust_env=False), httpx.URL(url)
        self.statuses: set[int] = set()

    def ask(self, method: str, path: bytes, said: dict[str, bytes], body: bytes, meant: set[int]) -> None:
        url = self._url.copy_with(raw_path=path)
        answer = self._http.request(method, url, headers=list(said.items()), content=body, follow_redirects=False)
        self.statuses.add(answer.status_code)
        told = f"{method} {path[:300]!r} {said} {body[:500]!r} was answered {answer.status_code}: {answer.text[:300]}"
        if answer.status_code == 307:  # without the slash at its end
            assert answer.headers["location"].startswith(f"{self._url}/"), f"{told}\n{AGAIN}"
        else:
            assert answer.status_code in meant, f"{told}\n{AGAIN}"


@pytest.fixture
def caller(shop: Shop) -> Caller:  # noqa: F811
    return Caller(shop.urls["dispatch"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", PAGES)
def test_no_link_breaks_a_page(kind: str, caller: Caller, real_tokens: list[str]) -> None:
    forms = st.dictionaries(st.sampled_from(["action", "keep", "List-Unsubscribe"]), words | st.just("save"))
    bodies = (
        forms.map(lambda form: urlencode(form, errors="replace").encode())
        | st.binary(max_size=200)
        | st.just(b"&" * 20_000)
    )

    def ask(method: str, name: bytes, quoted: bool, said: dict[str, bytes], body: bytes) -> None:
        path = quote(name, safe="") if quoted else quote(name, safe="%?/=&")
        caller.ask(method, f"/{kind}/{path}".encode(), said, body, PAGES[kind])

    methods = st.sampled_from(["GET", "HEAD", "POST", "PUT"])
    fuzzed(kind, methods, mutated(real_tokens), st.booleans(), headers, bodies, ask=ask)
    assert len(caller.statuses) > 1, "some were understood, some were not"


@pytest.mark.timeout(300)
def test_no_call_without_a_proof_breaks_a_webhook(caller: Caller, real_tokens: list[str]) -> None:
    names = st.sampled_from([*ADAPTERS, "sms-gateway", "fcm", "inbox-sms"]).map(str.encode) | mutated(real_tokens)

    def ask(method: str, name: bytes, query: dict[str, str], said: dict[str, bytes], body: bytes) -> None:
        path = f"/webhooks/{quote(name, safe='')}?{urlencode(query, errors='replace')}".encode()
        caller.ask(method, path, said, body, WEBHOOKS - {200, 204})

    queries = st.dictionaries(st.sampled_from(["m", "t", "recipient", "id"]), words, max_size=3)
    methods = st.sampled_from(["GET", "POST", "POST", "DELETE"])
    fuzzed("unproven", methods, names, queries, headers, broken(UPDATE, HOOK, FORM), ask=ask)
    assert caller.statuses & {403} and caller.statuses & {404}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("adapter", ["telegram", "webhook", "call-task"])
def test_no_proven_call_breaks_a_webhook(adapter: str, caller: Caller, real_tokens: list[str]) -> None:
    def ask(body: bytes) -> None:
        said = {"x-telegram-bot-api-secret-token": HOOK_SECRET.encode()}
        if adapter != "telegram":
            now, id = datetime.now(UTC), hashlib.sha256(body).hexdigest()
            key = base64.b64decode(SECRET.removeprefix("whsec_"))
            signed = f"{id}.{int(now.timestamp())}.".encode() + body
            signature = base64.b64encode(hmac.new(key, signed, "sha256").digest())
            said = {"webhook-id": id.encode(), "webhook-timestamp": str(int(now.timestamp())).encode()}
            said |= {"webhook-signature": b"v1," + signature}
        caller.ask("POST", f"/webhooks/{adapter}".encode(), said, body, {200, 204, 400})

    calls = [{**HOOK, "type": "call.done"}, {**HOOK, "type": "messenger.replied"}, HOOK]
    fuzzed(adapter, broken(UPDATE) if adapter == "telegram" else broken(*calls), ask=ask)
    assert caller.statuses & {200, 204} or 400 in caller.statuses


@pytest.mark.timeout(300)
def test_no_mail_breaks_the_reader_of_bounces(caller: Caller, real_tokens: list[str]) -> None:
    pieces = st.binary(max_size=40) | st.sampled_from([b"delivery-status", b"feedback-report", b"5.1.1", b"x" * 3000])
    mails = st.tuples(*[pieces] * 5).map(lambda told: MAIL % told) | st.binary(max_size=300)

    def ask(mail: bytes, recipient: str) -> None:
        said = {"authorization": f"Bearer {HOOK_SECRET}".encode()}
        path = f"/webhooks/smtp?{urlencode({'recipient': recipient}, errors='replace')}".encode()
        caller.ask("POST", path, said, mail, {200, 400, 403})  # which letter it is about must be proven, too

    fuzzed("smtp", mails, words, ask=ask)
    assert 200 in caller.statuses


@pytest.mark.timeout(300)
@pytest.mark.parametrize("preset", PRESETS)
async def test_no_report_breaks_a_gateway_s_webhook(preset: str, shop: Shop, caller: Caller) -> None:  # noqa: F811
    account = {"preset": preset, "login": LOGINS[preset], "password": PASSWORD, "webhook_secret": HOOK_SECRET}
    await shop.put("/v1/channels/sms/adapters/sms-gateway", {**account, "sender": "+15005550006"})
    address = "http://shop.example/webhooks/sms-gateway"
    names = st.sampled_from(sorted(FORM)) | words
    forms = st.dictionaries(names, words | st.sampled_from(list(FORM.values())), max_size=6).map(
        lambda more: FORM | more
    )

    def ask(form: dict[str, str], less: list[str], as_json: bool) -> None:
        form = {name: value for name, value in form.items() if name not in less}
        body = urlencode(form, errors="replace").encode()
        said = {"content-type": b"application/x-www-form-urlencoded"}
        if as_json:
            body, said = json.dumps(form).encode(), {"content-type": b"application/json"}
        proof = HOOK_SECRET if preset == "sms_traffic" else token(HOOK_SECRET, MESSAGE)  # its calls name the message
        query = urlencode({"m": str(MESSAGE), "t": proof})
        if preset == "twilio":
            query = f"m={MESSAGE}"
            pairs = sorted({n + v for n, v in ((_replaced(n), _replaced(v)) for n, v in form.items())})
            signed = f"{address}?{query}{''.join(pairs)}".encode()
            said["x-twilio-signature"] = base64.b64encode(hmac.new(PASSWORD.encode(), signed, "sha1").digest())
        caller.ask("POST", f"/webhooks/sms-gateway?{query}".encode(), said, body, {200, 204, 400, 403})

    fuzzed(preset, forms, st.lists(st.sampled_from(sorted(FORM)), max_size=8), st.booleans(), ask=ask)
    assert caller.statuses >= ({403} if preset == "smsc" else {200})


def _replaced(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
