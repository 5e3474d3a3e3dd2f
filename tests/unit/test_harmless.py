"""Whatever somebody calls themselves, no mail program makes a link of it."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.dispatch.harmless import harmless

HOSTS = frozenset({"shop.example", "www2.shop.com"})
# As a mail program that links as much as any: after the mapping with which host names are read.
_UNSEEN_IN_HOSTS = dict.fromkeys([0xAD, 0x34F, 0x200B, 0x200C, 0x200D, 0x2060, 0x2064, 0xFE0F, 0xFEFF])
_LINK = re.compile(
    r"(?:https?:|//|\\\\|www\.)\S|mailto:\S|[\w-]+\.(?:com|net|org|ru|io|co|example|рф|xn--p1ai)\b", re.I
)


def linked(text: str) -> list[str]:
    """What a mail program would link, but for the shop's hosts standing alone."""
    read = unicodedata.normalize("NFKC", text.replace("…", " ").translate(_UNSEEN_IN_HOSTS)).replace("\u3002", ".")
    own = re.sub(r"(?<![\w.-])(?:shop\.example|www2\.shop\.com)(?![\w-]|\.[\w-])", "OWN", read, flags=re.I)
    return _LINK.findall(own)


@pytest.mark.parametrize(
    "text",
    [
        "wwwwww..evil.com",
        "https:/www./evil.com/login",
        "https:/" + "/www." * 5 + "/evil.com",
        "evil.com/login",
        "EVIL.Com",
        "anna@evil.ru",
        "shop.example@evil.com",
        "shop.example.evil.com",
        "evil-shop.example",
        "evil\u00ad.com",
        "evil.\u2060com",
        "evil\u3002com",
        "evil\uff0ecom",
        "\uff45\uff56\uff49\uff4c.com",
        "пример.рф",
        "mailto:anna@evil.com",
        "https:\\\\evil.com",
        "x.js.com",
        "x" * 195 + " a.b.evil.com",
        "x" * 183 + " www2.shop.com.evil.ru",
    ],
)
def test_a_link_is_taken_apart(text: str) -> None:
    assert linked(text)
    shown = harmless(text, HOSTS, 200)
    assert not linked(shown)
    assert len(shown) <= 200


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Node.js", "Node.js"),
        ("ASP.NET 4.8", "ASP. NET 4.8"),
        ("Dr. Martens 3.5 mm, 12.50", "Dr. Martens 3.5 mm, 12.50"),
        ("T.Rex: Electric Warrior", "T. Rex: Electric Warrior"),
        ("U.S.A.", "U.S.A."),
        ("AC/DC 10:30 3:4 …and", "AC/DC 10:30 3:4 …and"),
        ("ask at shop.example/help, or SHOP.example.", "ask at shop.example/help, or SHOP.example."),
        ("https://evil.com/a", "evil. com/a"),
        ("1.2.3.4/login", "1. 2. 3. 4/login"),
    ],
)
def test_what_remains_can_be_read(text: str, shown: str) -> None:
    assert harmless(text, HOSTS, 200) == shown


def test_a_cut_makes_no_other_ones_host_of_the_shops() -> None:
    assert linked("x www2.shop.co…")
    for most in range(20, 40):
        shown = harmless("x" * 20 + " www2.shop.com, " + "y" * 40, HOSTS, most)
        assert not linked(shown) and len(shown) <= most


_PIECES = "www w . .. / // \\ : http https: mailto: evil shop.example www2.shop.com com ru рф co js @ - 1".split()
_PIECES += [" ", "\u00ad", "\u2060", "\u200b", "\u3002", "\uff0e", "x" * 40]


@settings(max_examples=1_000, deadline=None)
@given(st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=30).map("".join), st.integers(20, 60))
@example("www.w.www..evil.com//", 20)
def test_no_text_at_all_becomes_a_link(text: str, most: int) -> None:
    shown = harmless(text, HOSTS, most)
    assert not linked(shown)
    assert len(shown) <= most


@given(st.lists(st.sampled_from(_PIECES), max_size=20).map("".join))
def test_what_is_harmless_stays_as_it_is(text: str) -> None:
    once = harmless(text, HOSTS, 200)
    assert harmless(once, HOSTS, 200) == once
