"""The few pages that people outside see: confirm, preferences, sorry. Small HTML without scripts; what stands in it is
escaped, and a content security policy lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape

from starlette.responses import HTMLResponse

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2933;--soft:#616e7c;--paper:#fff;--back:#f2f4f3;--green:#0b6e4f;--line:#d5dad8}
@media(prefers-color-scheme:dark){:root{--ink:#e8ecea;--soft:#9aa5a0;--paper:#1d2422;--back:#121816;--green:#3fa37f;--line:#333d39}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);
font:17px/1.55 system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
main{max-width:30rem;margin:12vh auto;padding:2.25rem;background:var(--paper);border-radius:14px;box-shadow:0 1px 3px #0002}
header{color:var(--green);font-weight:700;margin-bottom:1.25rem}
h1{font-size:1.45rem;line-height:1.3;margin:0 0 .75rem}
p{margin:0 0 1rem}
small{color:var(--soft)}
button{font:inherit;font-weight:600;padding:.7rem 1.5rem;border-radius:8px;border:1px solid var(--green);background:var(--green);
color:#fff;cursor:pointer;width:100%;margin-top:.5rem}
button.quiet{background:none;color:var(--green)}
label{display:flex;gap:.7rem;align-items:center;padding:.6rem 0;border-bottom:1px solid var(--line)}
input{width:1.15rem;height:1.15rem;accent-color:var(--green)}
form{margin:0 0 1rem}
@media(max-width:34rem){main{margin:0;min-height:100vh;border-radius:0}}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex, nofollow",
}


def confirm(shop: str, address: str) -> HTMLResponse:
    """The button that confirms."""
    return _page(
        shop,
        "One more click",
        f"<p>{escape(shop)} wants to write to <b>{escape(masked(address))}</b>. Is that all right with you?</p>"
        '<form method="post"><button>Yes, write to me</button></form>'
        "<p><small>If you did not ask for this, close this page: nothing will be sent.</small></p>",
    )


def confirmed(shop: str, again: bool) -> HTMLResponse:
    """After the button, and after pressing it again."""
    text = "This address was confirmed already." if again else "Thank you. The address is confirmed."
    return _page(shop, "Confirmed", f"<p>{text}</p><p><small>Every letter has a link that ends this again.</small></p>")


def preferences(shop: str, address: str, topics: Sequence[str]) -> HTMLResponse:
    """What the address gets, and how to end it: everything with one button, or topic by topic."""
    choices = "".join(
        f'<label><input type="checkbox" name="keep" value="{escape(topic)}" checked>{escape(topic.capitalize())}</label>'
        for topic in topics
    )
    several = (
        f'<form method="post"><p>You get letters about:</p>{choices}'
        '<button class="quiet" name="action" value="save">Keep only these</button></form>'
        if len(topics) > 1
        else ""
    )
    return _page(
        shop,
        "No more letters?",
        f"<p>{escape(shop)} writes to <b>{escape(masked(address))}</b>.</p>"
        '<form method="post"><button name="action" value="all">Unsubscribe from everything</button></form>' + several,
    )


def withdrawn(shop: str, kept: Sequence[str]) -> HTMLResponse:
    """After unsubscribing."""
    if kept:
        listed = ", ".join(escape(topic) for topic in kept)
        return _page(shop, "Saved", f"<p>You will still get: {listed}.</p>")
    return _page(
        shop,
        "You will get no more",
        f"<p>{escape(shop)} will send no more letters to this address. It holds from this moment on.</p>"
        "<p><small>What belongs to an order, such as a receipt, may still come.</small></p>",
    )


def out_already(shop: str) -> HTMLResponse:
    """For an address that gets nothing any more."""
    return _page(
        shop,
        "You get no letters",
        f"<p>{escape(shop)} does not write to this address.</p>"
        '<form method="post"><button class="quiet" name="action" value="all">Make sure</button></form>',
    )


def complained(shop: str) -> HTMLResponse:
    """A complaint is lifted by nobody but people who talk to each other."""
    return _page(
        shop,
        "Not possible here",
        "<p>There was a complaint about letters to this address. Please write to us.</p>",
        409,
    )


def gone(shop: str, expired: bool = False) -> HTMLResponse:
    """For links that are unknown, forged or too old."""
    text = "This link is too old. Please subscribe once more." if expired else "This link is not valid (any more)."
    return _page(shop, "Sorry", f"<p>{text}</p>", 410 if expired else 404)


def masked(address: str) -> str:
    """Enough of an address to recognise one's own: `a…@example.com`, `…4567`."""
    local, at, domain = address.rpartition("@")
    return f"{local[:1]}…@{domain}" if at else f"…{address[-4:]}"


def _page(shop: str, title: str, body: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · {escape(shop)}</title><style>{_STYLE}</style></head>"
        f"<body><main><header>{escape(shop)}</header><h1>{escape(title)}</h1>{body}</main></body></html>",
        status,
        HEADERS,
    )
