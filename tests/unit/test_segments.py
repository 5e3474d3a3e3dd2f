"""SMS segments: 160 GSM-7 or 70 UCS-2 characters in one, 153 or 67 each when there are several (domain.md §2)."""

from __future__ import annotations

import pytest

from services.dispatch.segments import Segments, alphabet_of, decoded, encoded, segments, split


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Segments("GSM-7", 0, 1)),
        ("a" * 160, Segments("GSM-7", 160, 1)),
        ("a" * 161, Segments("GSM-7", 161, 2)),
        ("a" * 306, Segments("GSM-7", 306, 2)),
        ("a" * 307, Segments("GSM-7", 307, 3)),
        ("п" * 70, Segments("UCS-2", 70, 1)),
        ("п" * 71, Segments("UCS-2", 71, 2)),
        ("п" * 134, Segments("UCS-2", 134, 2)),
        ("п" * 135, Segments("UCS-2", 135, 3)),
    ],
)
def test_segments_at_their_limits(text: str, expected: Segments) -> None:
    assert segments(text) == expected


def test_a_euro_sign_takes_two_septets() -> None:
    assert segments("€" * 80) == Segments("GSM-7", 160, 1)
    assert segments("€" * 80 + "a") == Segments("GSM-7", 161, 2)


def test_an_extension_character_is_not_cut_in_two_at_the_end_of_a_segment() -> None:
    # 152 + 2 septets do not fit into 153: the euro moves, and the tail needs a third segment.
    assert segments("a" * 152 + "€" + "a" * 152).count == 3
    assert segments("a" * 153 + "€" + "a" * 151).count == 2


def test_one_foreign_letter_makes_the_whole_text_ucs2() -> None:
    assert segments("a" * 99 + "ы").alphabet == "UCS-2"
    assert segments("a" * 99 + "ы").count == 2


def test_greek_capitals_and_umlauts_of_the_default_alphabet_stay_gsm7() -> None:
    assert segments("ΔΦΓΛΩΠΨΣΘΞ äöñüà ÄÖÑÜ § ¿¡ £¥ èéùìò ÇØøÅåÆæßÉ").alphabet == "GSM-7"
    assert segments("ç").alphabet == "UCS-2"  # only the capital is in the alphabet
    assert segments("`").alphabet == "UCS-2"


def test_an_emoji_takes_two_code_units_and_is_not_cut() -> None:
    assert segments("😀" * 35) == Segments("UCS-2", 70, 1)
    assert segments("😀" * 36).count == 2
    # 67 is odd: only 33 emoji fit into a segment of several.
    assert segments("😀" * 66).count == 2
    assert segments("😀" * 67).count == 3


@pytest.mark.parametrize(
    "text",
    ["", "a" * 160, "a" * 161, "a" * 152 + "€" + "a" * 152, "п" * 71, "😀" * 36, "п" * 66 + "😀" * 40, "€" * 400],
)
def test_the_segments_of_a_text_are_the_text_and_each_fits(text: str) -> None:
    parts = list(split(text))
    assert "".join(parts) == text
    assert len(parts) == segments(text).count
    alphabet = alphabet_of(text)
    room = {"GSM-7": (160, 153), "UCS-2": (140, 134)}[alphabet][len(parts) > 1]
    assert all(len(encoded(part, alphabet)) <= room for part in parts)


def test_no_segment_begins_or_ends_within_a_character() -> None:
    for part in split("п" * 66 + "😀" * 80):
        part.encode("utf-16-be").decode("utf-16-be")  # half a pair would not decode
    for part in split("a" * 152 + "{" * 200):
        assert not encoded(part, "GSM-7").endswith(b"\x1b")


@pytest.mark.parametrize(
    ("text", "octets"),
    # 3GPP TS 23.038, tables 6.2.1 and 6.2.1.1
    [("@£$¥", "00010203"), ("Δ_ΦΓ", "10111213"), ("ÄÖÑÜ§¿", "5b5c5d5e5f60"), ("äöñüà", "7b7c7d7e7f")]
    + [("^{}\\[~]|€\f", "1b141b281b291b2f1b3c1b3d1b3e1b401b651b0a"), ("ÆæßÉ ", "1c1d1e1f20"), ("Az09", "417a3039")],
)
def test_the_gsm_alphabet_has_its_codes(text: str, octets: str) -> None:
    assert encoded(text, "GSM-7").hex() == octets


def test_what_is_not_in_the_gsm_alphabet_cannot_be_encoded_in_it() -> None:
    with pytest.raises(KeyError):
        encoded("ы", "GSM-7")
    assert alphabet_of("\x1b") == "UCS-2"  # the escape itself is no character


@pytest.mark.parametrize("text", ["", "Hello @£€ {x} [y] ~|\\^ ÄÖÜ ñ Δ_", "€" * 3 + "\f\n"])
def test_what_was_encoded_is_read_again(text: str) -> None:
    assert decoded(encoded(text, "GSM-7")) == text


def test_an_escape_before_what_the_extension_table_lacks_means_the_plain_character() -> None:
    assert decoded(b"\x1bA\x1b") == "A"  # and one at the end means nothing
    assert decoded(b"\x1b\x1bA") == "\x1bA"
