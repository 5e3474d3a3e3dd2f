"""Templates: Liquid and MJML in, texts for each channel out. Pure but for what python-liquid, mjml and css-inline compute.

Liquid is filled in first, escaped, then MJML becomes HTML and styles go inline. The text part has every link of the HTML
part. Bombs stop at Liquid's limits. A variable that is missing is a fault: found before activation where the name itself
is unknown, and when the message is rendered else.
"""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import css_inline
import liquid
import msgspec
from liquid.exceptions import LiquidError, ResourceLimitError, UndefinedError
from mjml import mjml2html

from services.dispatch.inputs import Purpose
from services.dispatch.links import Signer
from services.dispatch.reasons import Reason
from services.dispatch.rendered import Link, Rendered
from services.dispatch.view import KNOWN

# The parts of a template by the channel's part name; the first is the one that must be there.
PARTS: dict[str, tuple[str, ...]] = {
    "email": ("text", "subject", "mjml"),
    "sms": ("sms",),
    "push": ("push", "push_title", "push_link"),
    "messenger": ("messenger",),
    "call": ("call",),
}
ALL_PARTS = tuple(name for names in PARTS.values() for name in names)
# Parts in which a marketing template must offer a way out.
_WITH_WAY_OUT = ("text", "mjml", "sms", "messenger")
MAX_SOURCE, MAX_SUBJECT, MAX_TEXT = 200_000, 200, 100_000
_MAX_SHORT = 1_600
_URL = re.compile(r"https?://[^\s<>\"']+")
_TRAILING = ".,;:!?)]}"
_ANCHOR = re.compile(r"(<a\b[^>]*?\bhref=\")([^\"]*)(\")", re.IGNORECASE)
_CONFIRMATION_ROOTS = ("shop", "links")


class TemplateFault(Exception):
    """A text that cannot be sent; `reason` says why to a marketer."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.text)
        self.reason = reason


class Template(msgspec.Struct, frozen=True):
    """One version of a template. `parts`: Liquid sources by name (ALL_PARTS)."""

    name: str
    version: int
    purpose: Purpose
    parts: dict[str, str]

    def serves(self, part: str) -> bool:
        """Whether it has a text for channels that send this part."""
        return bool(self.parts.get(PARTS.get(part, (part,))[0], "").strip())


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with a template's source: in which part, and how to mend it."""

    part: str
    detail: str


class _Limited(liquid.Environment):
    """Liquid with limits: what a text of this size can need, and not what a bomb needs."""

    context_depth_limit = 30
    loop_iteration_limit = 20_000
    local_namespace_limit = 1_000_000
    output_stream_limit = 1_000_000


def _environment(*, escaped: bool) -> liquid.Environment:
    environment = _Limited(undefined=liquid.FalsyStrictUndefined, autoescape=escaped)
    environment.add_filter("money", money)
    return environment


def money(amount: Any, currency: str = "") -> str:
    """`1500` → `1,500`, `12.5` → `12.50`; with a currency `1,500 RUB`. Only letters every SMS has."""
    try:
        number = Decimal(str(amount))
    except InvalidOperation:
        raise LiquidError(f"money takes a number, not {type(amount).__name__}", token=None) from None
    text = f"{number:,.0f}" if number == number.to_integral_value() else f"{number:,.2f}"
    return f"{text} {currency}".strip()


_ESCAPED, _PLAIN = _environment(escaped=True), _environment(escaped=False)
_INLINER = css_inline.CSSInliner(load_remote_stylesheets=False, keep_style_tags=True)


@lru_cache(maxsize=1_000)
def _parsed(source: str, escaped: bool) -> liquid.BoundTemplate:
    return (_ESCAPED if escaped else _PLAIN).from_string(source)


def check(purpose: Purpose, parts: Mapping[str, str]) -> list[Fault]:
    """Everything that is wrong with a template before any person is looked at; empty if it may be activated."""
    faults = [Fault(name, _no_such_part(name)) for name in parts if name not in ALL_PARTS]
    sources = {name: source for name, source in parts.items() if name in ALL_PARTS and source.strip()}
    if not sources:
        faults.append(
            Fault("", "a template needs at least one text: text (with subject), sms, push, messenger or call")
        )
    for name, source in sources.items():
        faults += [Fault(name, detail) for detail in _faults_of(name, source, purpose)]
    if ("mjml" in sources or "text" in sources) and "subject" not in sources:
        faults.append(Fault("subject", "an e-mail needs a subject"))
    if "mjml" in sources and "text" not in sources:
        faults.append(Fault("text", "an e-mail needs a text part besides MJML: many people and all filters read it"))
    return faults


def _faults_of(name: str, source: str, purpose: Purpose) -> list[str]:
    if len(source) > MAX_SOURCE:
        return [f"is longer than {MAX_SOURCE} characters"]
    try:
        template = _parsed(source, name == "mjml")
        analysis = template.analyze(include_partials=False)
    except LiquidError as error:
        return [f"Liquid: {_first_line(error)}"]
    used = {str(v): [str(s) for s in v.segments] for found in analysis.globals.values() for v in found}
    faults = [fault for segments in used.values() if (fault := _unknown(segments))]
    faults += [
        f"there is no filter {f}{_nearest(f, _PLAIN.filters)}" for f in analysis.filters if f not in _PLAIN.filters
    ]
    faults += [
        f"a template stands alone: {tag} is not available" for tag in ("include", "render") if tag in analysis.tags
    ]
    if purpose == "confirmation":
        if strangers := sorted({s[0] for s in used.values() if s[0] not in _CONFIRMATION_ROOTS}):
            faults.append(
                f"a confirmation goes to whoever was typed in: it may use shop and links only, not {', '.join(strangers)}"
            )
        if name in ("text", "mjml", "sms") and ["links", "confirm"] not in [s[:2] for s in used.values()]:
            faults.append("a confirmation needs {{ links.confirm }}")
    ways_out = (["links", "unsubscribe"], ["links", "preferences"])
    if purpose == "marketing" and name in _WITH_WAY_OUT and not any(s[:2] in ways_out for s in used.values()):
        faults.append("a marketing text needs {{ links.unsubscribe }}")
    return faults


def _unknown(segments: list[str]) -> str | None:
    root = segments[0]
    if root not in KNOWN:
        return f"there is no variable {root}{_nearest(root, KNOWN)}"
    names = KNOWN[root]
    if names is not None and len(segments) > 1 and segments[1] not in names:
        return f"{root} has no {segments[1]}{_nearest(segments[1], names)}"
    return None


def _no_such_part(name: str) -> str:
    return f"there is no part {name}{_nearest(name, ALL_PARTS)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=1):
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(names)}" if len(names) <= 15 else ""


def render(
    template: Template, part: str, variables: Mapping[str, Any], signer: Signer, message: UUID, hosts: frozenset[str]
) -> Rendered:
    """The message as the channel with this part sends it. `hosts`: where links may lead besides the template's own.

    :raises TemplateFault: no text for the part, a variable is missing, or the result cannot be sent
    """
    if not template.serves(part):
        raise TemplateFault(Reason("no-template", f"the template {template.name} has no text for {part}"))
    names = PARTS.get(part, (part,))
    allowed = hosts | _literal_hosts(tuple(template.parts.get(name, "") for name in names))
    wrap = _Wrapping(signer, message, allowed)
    text = wrap.text(_fill(template, names[0], variables))
    subject = _one_line(_fill(template, names[1], variables)) if len(names) > 1 and template.parts.get(names[1]) else ""
    page = ""
    if part == "email":
        if not subject:
            raise TemplateFault(Reason("bad-text", "the subject is empty"))
        if template.parts.get("mjml", "").strip():
            page = wrap.page(_html(_fill(template, "mjml", variables)))
            text = wrap.complete(text)
    text = text.strip()
    if not text:
        raise TemplateFault(Reason("bad-text", f"the text for {part} is empty"))
    if len(text) > (MAX_TEXT if part == "email" else _MAX_SHORT):
        raise TemplateFault(Reason("bad-text", f"the text for {part} has {len(text)} characters"))
    urls = {name: str(url) for name, url in variables["links"].items() if name != "shop"}
    if part == "push":
        link = _fill(template, "push_link", variables).strip() if template.parts.get("push_link") else ""
        urls["click"] = wrap.target(link, text, urls, str(variables["links"].get("shop", "")))
    if page:
        urls["open"] = signer.url("open", message)
    return Rendered(
        text=text + ("\n" if part == "email" else ""), subject=subject, html=page, links=wrap.links, urls=urls
    )


def _fill(template: Template, name: str, variables: Mapping[str, Any]) -> str:
    try:
        return _parsed(template.parts[name], name == "mjml").render(**variables)
    except UndefinedError as error:
        raise TemplateFault(Reason("missing-variable", f"{template.name}, {name}: {_first_line(error)}")) from error
    except ResourceLimitError as error:
        raise TemplateFault(Reason("bad-text", f"{template.name}, {name}: {_first_line(error)}")) from error
    except LiquidError as error:
        raise TemplateFault(Reason("bad-text", f"{template.name}, {name}: {_first_line(error)}")) from error


def _html(mjml: str) -> str:
    try:
        return _INLINER.inline(mjml2html(mjml))
    except (ValueError, css_inline.InlineError) as error:
        raise TemplateFault(Reason("bad-text", f"MJML: {_first_line(error)}")) from error


class _Wrapping:
    """Sends every link by way of `/c/…`, the same one under the same number; refuses those that lead astray."""

    def __init__(self, signer: Signer, message: UUID, hosts: frozenset[str]) -> None:
        self._signer, self._message, self._hosts = signer, message, hosts
        self._numbers: dict[str, int] = {}
        self._on_page: list[str] = []

    @property
    def links(self) -> list[Link]:
        return [Link(number, url) for url, number in self._numbers.items()]

    def text(self, text: str) -> str:
        return _URL.sub(self._in_text, text)

    def page(self, page: str) -> str:
        wrapped = _ANCHOR.sub(lambda m: m[1] + html.escape(self._wrapped(html.unescape(m[2])), quote=True) + m[3], page)
        pixel = f'<img src="{html.escape(self._signer.url("open", self._message))}" width="1" height="1" alt="">'
        head, body_end, tail = wrapped.rpartition("</body>")
        self._on_page = [html.unescape(m[2]) for m in _ANCHOR.finditer(wrapped)]
        return head + pixel + body_end + tail if body_end else wrapped + pixel

    def complete(self, text: str) -> str:
        """The text with those links of the page below it that it does not have."""
        missing = [url for url in dict.fromkeys(self._on_page) if url.startswith("http") and url not in text]
        return text.rstrip() + "\n\n" + "\n".join(missing) if missing else text

    def target(self, link: str, text: str, ways_out: Mapping[str, str], shop: str) -> str:
        """Where a press on the whole message leads: to `link` if there is one, else to the text's first link that is no
        way out, else to the shop."""
        if link:
            return self._wrapped(link)
        out = {ways_out.get(name) for name in ("unsubscribe", "preferences")}
        found = (match[0].rstrip(_TRAILING) for match in _URL.finditer(text))
        return next((url for url in found if url not in out), "") or (self._wrapped(shop) if shop else "")

    def _in_text(self, match: re.Match[str]) -> str:
        url = match[0].rstrip(_TRAILING)
        return self._wrapped(url) + match[0][len(url) :]

    def _wrapped(self, url: str) -> str:
        if self._signer.is_ours(url) or url.startswith(("mailto:", "tel:", "#")):
            return url
        parts = _split(url)
        if parts is None or parts[0] not in ("http", "https") or parts[1] not in self._hosts:
            where = parts[1] if parts else "no address"
            raise TemplateFault(Reason("bad-text", f"a link leads to {where or 'no host'}, which is not the shop's"))
        number = self._numbers.setdefault(url, len(self._numbers) + 1)
        return self._signer.url("click", self._message, number)


def _split(url: str) -> tuple[str, str] | None:
    try:
        parts = urlsplit(url)
        return parts.scheme.lower(), (parts.hostname or "").lower()
    except ValueError:
        return None


@lru_cache(maxsize=1_000)
def _literal_hosts(sources: tuple[str, ...]) -> frozenset[str]:
    """Hosts that the marketer wrote into the template; a host that is itself a variable is not among them."""
    found = (_split(match[0]) for source in sources for match in _URL.finditer(source))
    return frozenset(host for parts in found if parts for host in [parts[1]] if host and "{" not in host)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SUBJECT else line[: MAX_SUBJECT - 1].rstrip() + "…"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].strip()[:300]


def as_variable(value: Any) -> Any:
    """A value of JSON for a preview: ISO moments become moments, so that `date` works on them."""
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)", value):
        return datetime.fromisoformat(value)
    if isinstance(value, Mapping):
        return {key: as_variable(item) for key, item in value.items()}
    return [as_variable(item) for item in value] if isinstance(value, list) else value
