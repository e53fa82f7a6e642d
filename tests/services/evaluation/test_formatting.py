"""Numbers and foreign text as the report writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamero.evaluation import formatting

NBSP = "\u00a0"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.41274, "1.413"),
        (124.18, "124.2"),
        (123456.7, "123,457"),
        (0.000031, "3.1 × 10⁻⁵"),
        (-2.5, "−2.500"),
        (0, "0"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (4.2e12, "4.2 × 10¹²"),
    ],
)
def test_a_figure_has_four_significant_digits(value: float | None, expected: str) -> None:
    assert formatting.format_figure(value) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0, "0%"), (1, "100%"), (0.123, "12.3%"), (0.0004, "<0.1%"), (0.9999, ">99.9%"), (None, "–")],
)
def test_a_share_is_never_rounded_to_nothing_or_all(share: float | None, expected: str) -> None:
    assert formatting.format_share(share) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (124.18, 1.4127, "−98.9%"),
        (2.0, 2.5, "+25.0%"),
        (2.0, 2.0, "±0.0%"),
        (1.0, 400.0, "× 400"),
        (None, 1.0, "–"),
        (1.0, float("inf"), "–"),
    ],
)
def test_a_change_carries_its_sign(before: float | None, after: float | None, expected: str) -> None:
    assert formatting.format_change(before, after) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.84, "0.8_s"),
        (42.4, "42_s"),
        (59.7, "1_min 00_s"),
        (192.7, "3_min 13_s"),
        (7500, "2_h 05_min"),
        (100_000, "1_d 3_h"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds: float, expected: str) -> None:
    assert formatting.format_duration(seconds) == expected.replace("_", NBSP)


@pytest.mark.parametrize(
    ("value", "expected"), [(999, "999"), (9999, "9,999"), (12_345, "12.3_k"), (12_345_678, "12.3_M"), (2e9, "2.00_G")]
)
def test_compact_numbers_carry_a_unit(value: float, expected: str) -> None:
    assert formatting.format_compact(value) == expected.replace("_", NBSP)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("nul\x00 bell\x07 del\x7f", "nul␀ bell␇ del␡"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("right\u202eto left", "right⟨U+202E⟩to left"),
        ("\ufffe\ufdd0\x85", "\ufffd\ufffd\ufffd"),
        ("naïve 🙂 漢字", "naïve 🙂 漢字"),
    ],
)
def test_what_would_break_or_forge_a_page_is_made_visible(text: str, expected: str) -> None:
    assert formatting.clean_text(text) == expected


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text_can_be_encoded_and_stands_in_xml_once_cleaned(text: str) -> None:
    cleaned = formatting.clean_text(text)
    cleaned.encode()
    assert all(c in "\n\t" or ord(c) >= 0x20 for c in cleaned)


def test_long_text_is_cut_and_says_by_how_much() -> None:
    assert formatting.shorten_text("x" * 5000, 10) == "xxxxxxxxxx … (4,990 more characters)"
    assert formatting.shorten_text("short", 10) == "short"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://user:secret@host.example/a.json?sig=abc#x", "https://host.example/a.json?…#x"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("/data/posts.xml", "/data/posts.xml"),
    ],
)
def test_uris_are_shown_without_credentials(uri: str, expected: str) -> None:
    assert formatting.strip_credentials(uri) == expected


def test_fenced_code_is_told_from_prose() -> None:
    text = "Use lm:\n\n```r\nfit <- lm(y ~ .)\n```\nThat is all.\n```\nopen to the end"
    assert formatting.split_fences(text) == [
        (False, "Use lm:"),
        (True, "fit <- lm(y ~ .)"),
        (False, "That is all."),
        (True, "open to the end"),
    ]
