"""What a provider's HTTP gateway wants to be sent, and what its answers and its calls mean: the language of presets.

A preset is a YAML file in `sms_presets/`, transcribed from the provider's documentation, which it names with title and
date; or it is told by API (`custom`). Texts in a request may hold placeholders:

    {login} {password} {sender}   what the adapter is told
    {phone} {digits}              the recipient in E.164, with and without the plus
    {text}                        the message
    {key}                         the message's id with us
    {id}                          the message's id with the provider
    {date}                        the day (UTC) of the attempt, in ISO 8601
    {callback}                    where the provider shall call, with a proof of its own for each message; empty if it
                                  could not reach us

A *path* leads to a value of a JSON or XML answer: names with dots between them. Where it leads to several values (the
parts of a long message), the last one counts.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pydantic
import yaml
from pydantic import Field, field_validator, model_validator

from shared.errors import ConfigurationError

FOLDER = Path(__file__).parent / "sms_presets"
PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
_KNOWN = {"login", "password", "sender", "phone", "digits", "text", "key", "id", "date", "callback"}
_PATH = Field(default="", pattern=r"^[\w.-]*$", max_length=200)

Texts = tuple[str, ...]


class Part(pydantic.BaseModel):
    """A part of a preset."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Document(Part):
    """What was transcribed: `dated` as the publisher dates it, or when it was looked at."""

    title: str
    publisher: str
    dated: str
    gives: str = ""


class Request(Part):
    """`server` and `path` make the address; the server may be replaced by the settings (a reserve server). `integers`:
    fields that JSON carries as numbers."""

    method: Literal["GET", "POST"] = "POST"
    server: str = Field(pattern=r"^https://[A-Za-z0-9.-]+(:\d{1,5})?$")
    path: str = Field(pattern=r"^/\S*$")
    auth: Literal["none", "basic"] = "none"
    body: Literal["query", "form", "json"] = "form"
    fields: dict[str, str] = {}
    integers: Texts = ()

    @model_validator(mode="after")
    def _known_placeholders(self) -> Self:
        for text in (self.path, *self.fields.values()):
            if unknown := set(PLACEHOLDER.findall(text)) - _KNOWN:
                raise ValueError(f"there is no placeholder {{{min(unknown)}}}; there are {', '.join(sorted(_KNOWN))}")
        if "{password}" in self.path:
            raise ValueError("the password must not stand in the path: paths are logged on the way")
        return self


class Answer(Part):
    """What an answer to sending says. `accepted`: it was taken if its HTTP status is 2xx and, where `field` is given,
    the value there is one of `values` ("*": any). Otherwise `code` (the first path that leads to something) says what
    was wrong: in `bounced` the number is at fault, in `retry` it will pass, or the account or its sender is at fault
    (never taken); any other refusal is of the message. `unsure`: codes that leave open whether the message was taken.
    Where a refusal names several fields at once (joined by commas), one in `retry` decides."""

    format: Literal["json", "xml"]
    field: str = _PATH
    values: Texts = ()
    id: str = _PATH
    charged: str = _PATH
    code: Texts = ()
    bounced: Texts = ()
    retry: Texts = ()
    unsure: Texts = ()


class States(Part):
    """What the provider's words for a message's state mean. Words that are not here are states in between."""

    delivered: Texts = ()
    failed: Texts = ()
    bounced: Texts = ()


class Moment(Part):
    """When something happened: `unix` seconds, or a format of strptime in `zone`."""

    field: str = _PATH
    format: str = "unix"
    zone: str = "UTC"

    @field_validator("zone")
    @classmethod
    def _is_a_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{value} is no zone of the IANA database") from None
        return value


class Query(Part):
    """Asking what became of a message. `state` is a path. `rows`: the answer is a list of messages, of which the one
    whose fields have the values of `match` is meant (for providers that know no id of ours); such a question is only
    asked of texts with a link of our own in them, which no other message has. `never_taken`: values of `code` that say
    that there is no such message."""

    request: Request
    format: Literal["json", "xml"]
    rows: str = _PATH
    match: dict[str, str] = {}
    id: str = _PATH
    state: str = _PATH
    charged: str = _PATH
    code: Texts = ()
    never_taken: Texts = ()
    at: Moment | None = None

    @property
    def needs_id(self) -> bool:
        """Whether the provider's own id must be known."""
        return any("{id}" in text for text in (self.request.path, *self.request.fields.values()))


class Proof(Part):
    """How a call proves that it is the provider's.

    `twilio`: X-Twilio-Signature over the address and the form, keyed with the password. `digests`: fields that hold a
    hash (name of the field → sha1, md5, sha256) of `signs`, a text with `{name}` for fields of the call and `{secret}`.
    `token`: the provider signs nothing; the address that it was given proves it (`t`): made for each message where the
    address is given with the message, else the secret itself.
    """

    kind: Literal["twilio", "digests", "token"]
    digests: dict[str, Literal["md5", "sha1", "sha256"]] = {}
    signs: str = ""


class Callbacks(Part):
    """The provider's calls to `/webhooks/sms-gateway`. Names are those of fields: in the query, the form or the JSON.
    `message`: which field holds our id; `m` is the one in the address that goes along with the message."""

    body: Literal["query", "form", "json"] = "form"
    proof: Proof
    message: str = ""
    id: str = ""
    state: str
    code: str = ""
    bounced: Texts = ()
    charged: str = ""
    at: Moment | None = None
    reply: str = ""


class Incoming(Part):
    """What people write back: the provider's calls to the same address that have the field `text` and not that of a
    report's state. `phone`: who wrote; `id`: the provider's for this message, by which a repeat is told ("": it tells
    none). `stop`: the field in which the provider says by one of `stop_values` that it takes the message for a stop;
    `stop_words`: words that mean stop with this provider, besides those that mean it everywhere. The proof `token` is the
    secret itself. `reply`, of the type `reply_type`: what the provider wants to hear."""

    proof: Proof
    phone: str
    text: str
    id: str = ""
    stop: str = ""
    stop_values: Texts = ()
    stop_words: Texts = ()
    reply: str = ""
    reply_type: str = "text/plain; charset=utf-8"


class Preset(Part):
    """A provider's gateway. `currency`: of the amounts that it names; other shops count their own price. `at_once`: the most
    requests that a process has open at a time, where the provider takes only so many from one login; 0: no such limit.
    `unconfirmed`: what could not be found in the provider's own documents."""

    title: str
    documents: tuple[Document, ...] = ()
    unconfirmed: Texts = ()
    currency: str = ""
    at_once: int = Field(default=0, ge=0, le=100)
    send: Request
    answer: Answer
    states: States = States()
    query: Query | None = None
    search: Query | None = None
    callbacks: Callbacks | None = None
    incoming: Incoming | None = None


@lru_cache(maxsize=1)
def presets() -> dict[str, Preset]:
    """The presets that are shipped, by the names of their files.

    :raises ConfigurationError: a file is not a preset; says which field is wrong
    """
    found: dict[str, Preset] = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        try:
            found[file.stem] = Preset.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        except (pydantic.ValidationError, yaml.YAMLError) as problem:
            raise ConfigurationError(f"{file} is not a preset: {problem}") from None
    return found


def filled(text: str, values: dict[str, str]) -> str:
    """The text with its placeholders replaced, once: what a value says is not read again."""
    return PLACEHOLDER.sub(lambda found: values.get(found.group(1), ""), text)


def found_at(document: Any, path: str) -> list[Any]:
    """All values at a path of a decoded answer. Lists are walked through."""
    nodes = [document]
    for name in path.split(".") if path else []:
        nodes = [
            one[name]
            for node in nodes
            for one in (node if isinstance(node, list) else [node])
            if isinstance(one, dict) and name in one
        ]
    return [one for node in nodes for one in (node if isinstance(node, list) else [node]) if one is not None]


def text_at(document: Any, path: str) -> str:
    """The last value at a path, as text: of an object its names, sorted; "" if there is none."""
    found = found_at(document, path) if path else []
    if not found:
        return ""
    value = found[-1]
    if isinstance(value, dict):
        return ",".join(sorted(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).strip()


def money_at(document: Any, path: str) -> Decimal | None:
    """An amount; None if there is none that can be read. Providers may write charges as negative amounts."""
    text = text_at(document, path).replace(",", ".")
    return abs(Decimal(text)) if re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?", text) else None
