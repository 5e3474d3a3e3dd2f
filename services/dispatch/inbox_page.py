"""The HTML of `/inbox`: a list, a message with the reasons for it, and the letter in a frame that can do nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from html import escape
from typing import Any
from urllib.parse import urlencode

import asyncpg

from services.dispatch.reasons import money

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2933;--soft:#616e7c;--paper:#fff;--back:#f2f4f3;--green:#0b6e4f;--line:#dfe4e2;
--amber:#9a5b00;--red:#a1283b}
@media(prefers-color-scheme:dark){:root{--ink:#e8ecea;--soft:#9aa5a0;--paper:#1d2422;--back:#121816;--green:#4fbd97;--line:#333d39;
--amber:#e0a64a;--red:#e5808f}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
header{padding:1rem 1.5rem;display:flex;gap:1.5rem;align-items:baseline;flex-wrap:wrap;
border-bottom:1px solid var(--line);background:var(--paper)}
header b{color:var(--green);font-size:1.1rem}
nav{display:flex;gap:.4rem;flex-wrap:wrap}
nav a{padding:.15rem .7rem;border-radius:99px;border:1px solid var(--line);color:var(--ink);text-decoration:none}
nav a.on{background:var(--green);border-color:var(--green);color:var(--paper)}
main{max-width:64rem;margin:1.25rem auto;padding:0 1rem}
a{color:var(--green)}
.list{background:var(--paper);border:1px solid var(--line);border-radius:10px;overflow:hidden}
.row{display:grid;grid-template-columns:11rem minmax(0,1fr) auto;gap:.25rem 1rem;padding:.65rem 1rem;
border-bottom:1px solid var(--line);color:inherit;text-decoration:none}
.row:last-child{border:0}
.row:hover{background:var(--back)}
.row small,.soft{color:var(--soft)}
.what{font-weight:600;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.tag{font-size:.8rem;padding:.05rem .5rem;border-radius:99px;border:1px solid var(--line);white-space:nowrap;align-self:start}
.sent{color:var(--green)}.withheld{color:var(--amber)}.failed,.unknown{color:var(--red)}
.two{display:grid;grid-template-columns:minmax(0,1fr);gap:1rem}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:1rem 1.25rem}
h1{font-size:1.3rem;line-height:1.3;margin:.25rem 0 .5rem}
h2{font-size:1rem;margin:0 0 .6rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.3rem .5rem;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--soft)}
th:first-child,td:first-child,th:last-child,td:last-child{text-align:left}
tr.chosen td{font-weight:700;color:var(--green)}
iframe{width:100%;height:38rem;resize:vertical;border:1px solid var(--line);border-radius:8px;background:#fff}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font:14px/1.55 ui-monospace,Menlo,Consolas,monospace}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.25rem 1rem;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
.empty{padding:3rem 1.5rem;text-align:center;color:var(--soft)}
"""


def _csp(more: str) -> str:
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; {more}"


HEADERS = {
    "Content-Security-Policy": _csp("frame-src 'self'"),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Mails carry their styles inline, and pictures from the shop.
LETTER_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src http: https: data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox"
    ),
}
_STATES = ("sent", "withheld", "queued", "failed", "unknown")


def list_page(
    shop: str,
    rows: Sequence[asyncpg.Record],
    channels: Sequence[str],
    channel: str | None,
    state: str | None,
    more: str | None,
) -> str:
    """All messages, newest first. `channels`: all there are; `more`: the cursor of the next page."""
    listed = "".join(_row(row) for row in rows) or (
        '<p class="empty">Nothing here yet. What Dripline sends, and what it decides not to send, appears on this page.</p>'
    )
    query = {name: value for name, value in (("channel", channel), ("state", state), ("cursor", more)) if value}
    further = f'<p><a href="/inbox?{escape(urlencode(query))}">Older messages</a></p>' if more else ""
    return _page(shop, "Inbox", _filters(channels, channel, state), f'<div class="list">{listed}</div>{further}')


def message_page(
    shop: str,
    row: asyncpg.Record,
    alternatives: Sequence[asyncpg.Record],
    urls: Sequence[tuple[str, str, str | None]],
    hits: Sequence[asyncpg.Record],
) -> str:
    """One message: as it looks, why it was sent or not, where its links lead, what came back."""
    parts = [_head(row)]
    if row["html"]:
        sandbox = "allow-popups allow-popups-to-escape-sandbox"
        frame = f'<iframe sandbox="{sandbox}" src="/inbox/{row["id"]}/letter" title="The letter"></iframe>'
        parts.append(f"<section><h2>As it looks</h2>{frame}</section>")
    if row["body"]:
        title = "Text part" if row["html"] else "Text"
        parts.append(f"<section><h2>{title}</h2><pre>{escape(row['body'])}</pre></section>")
    parts.append(_reasons(alternatives, row))
    if urls:
        parts.append(f"<section><h2>Links</h2><dl>{''.join(_link(*url) for url in urls)}</dl></section>")
    if hits:
        parts.append(f"<section><h2>What came back</h2><dl>{''.join(_hit(hit) for hit in hits)}</dl></section>")
    return _page(shop, row["subject"] or row["template"], "", f'<div class="two">{"".join(parts)}</div>')


def letter_page(html: str, pixel: str) -> str:
    """The mail's own HTML. Looking at it here is no opening: the pixel is left out; links open in a new tab."""
    without = html.replace(f'src="{escape(pixel)}"', 'src="data:,"')
    return without.replace("<head>", '<head><base target="_blank">', 1)


def _filters(names: Sequence[str], channel: str | None, state: str | None) -> str:
    def link(text: str, **chosen: str | None) -> str:
        now = {"channel": channel, "state": state, **chosen}
        query = urlencode({name: value for name, value in now.items() if value})
        on = (
            ' class="on"'
            if all({"channel": channel, "state": state}[name] == value for name, value in chosen.items())
            else ""
        )
        return f'<a{on} href="/inbox{"?" + escape(query) if query else ""}">{escape(text)}</a>'

    channels = [link("all channels", channel=None), *(link(name, channel=name) for name in names)]
    states = [link("all", state=None), *(link(name, state=name) for name in _STATES)]
    return f"<nav>{''.join(channels)}</nav><nav>{''.join(states)}</nav>"


def _row(row: asyncpg.Record) -> str:
    reason = f"<small>{escape(row['reason'])}</small>" if row["reason"] else ""
    preview = row["subject"] or (row["body"] or "")[:120] or row["template"]
    to = f" to {escape(row['address'])}" if row["address"] else ""
    return (
        f'<a class="row" href="/inbox/{row["id"]}"><small>{_time(row["sent_at"] or row["updated_at"])}</small>'
        f'<span class="what">{escape(preview)}</span><span class="tag {escape(row["state"])}">{escape(row["state"])}</span>'
        f"<small>{escape(row['channel'] or '–')}</small><small>{escape(row['rule_name'])} · {escape(row['template'])}{to}</small>"
        f"<span></span>{'<span></span>' + reason if reason else ''}</a>"
    )


def _head(row: asyncpg.Record) -> str:
    facts: list[tuple[str, Any]] = [
        ("To", row["address"]),
        ("Channel", row["channel"]),
        ("Rule", f"{row['rule_name']}, step {row['step']}"),
        (
            "Template",
            f"{row['template']}, version {row['template_version']}" if row["template_version"] else row["template"],
        ),
        ("Cost", f"{row['cost']:.2f}" if row["cost"] is not None else None),
        ("Decided", _time(row["decided_at"])),
        ("Sent", _time(row["sent_at"]) if row["sent_at"] else None),
        ("Waits until", _time(row["due_at"]) if row["state"] == "queued" else None),
        ("Why not", row["reason"]),
        ("Run", row["run"]),
        ("Person", row["profile"]),
    ]
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts if value)
    ghost = ' <span class="tag">control group</span>' if row["ghost"] else ""
    return (
        f'<section><span class="tag {escape(row["state"])}">{escape(row["state"])}</span>{ghost}'
        f"<h1>{escape(row['subject'] or row['template'])}</h1><dl>{listed}</dl></section>"
    )


def _reasons(alternatives: Sequence[asyncpg.Record], row: asyncpg.Record) -> str:
    if not alternatives:
        return ""
    heads = "".join(
        f"<th>{name}</th>" for name in ("channel", "reach × act − base", "value", "cost", "erosion", "net", "")
    )
    body = "".join(_alternative(one, chosen=one["channel"] == row["channel"]) for one in alternatives)
    nothing = (
        ""
        if row["kind"] == "transactional"
        else "<tr><td>nothing</td><td></td><td></td><td></td><td></td><td>0.00</td><td></td></tr>"
    )
    title = "Why this channel" if row["channel"] else "What each channel would have brought"
    unmade = any(one["cost"] is not None and one["units"] is None for one in alternatives)
    price = " No text was made: the cost is the channel's price of one unit." if unmade else ""
    return (
        f'<section><h2>{title}</h2><div class="scroll"><table><tr>{heads}</tr>{body}{nothing}</table></div>'
        f'<p class="soft">net = (reach × act − base) × value − cost − erosion. The greatest net above zero is used.{price}</p>'
        "</section>"
    )


def _alternative(one: asyncpg.Record, *, chosen: bool) -> str:
    effect = f"{one['effect']:.4f}" if one["effect"] is not None else "–"
    amounts = "".join(f"<td>{_amount(one[name])}</td>" for name in ("value", "cost", "erosion", "net"))
    why = "chosen" if chosen and not one["reason"] else one["reason"] or ""
    mark = ' class="chosen"' if chosen else ""
    return f"<tr{mark}><td>{escape(one['channel'])}</td><td>{effect}</td>{amounts}<td>{escape(why)}</td></tr>"


def _link(name: str, url: str, to: str | None) -> str:
    leads = f' <span class="soft">→ {escape(to)}</span>' if to else ""
    return f'<dt>{escape(name)}</dt><dd><a href="{escape(url)}" target="_blank" rel="noreferrer">{escape(url)}</a>{leads}</dd>'


def _hit(hit: asyncpg.Record) -> str:
    number = f" of link {hit['number']}" if hit["kind"] == "click" else ""
    return f"<dt>{_time(hit['at'])}</dt><dd>{escape(hit['kind'])}{number}{' (no person)' if hit['bot'] else ''}</dd>"


def _amount(amount: Decimal | None) -> str:
    return "–" if amount is None else money(amount)


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _page(shop: str, title: str, nav: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · {escape(shop)}</title><style>{_STYLE}</style></head><body>"
        f'<header><b><a href="/inbox">Inbox</a></b><span class="soft">{escape(shop)}</span>{nav}</header>'
        f"<main>{body}</main></body></html>"
    )
