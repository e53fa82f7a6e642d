"""Words, lines, paragraphs and hashes of many texts at once, against what Python says of each text alone."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamero.data import words as words_module
from llamero.data.words import (
    BATCH_CHARACTERS,
    Texts,
    hash_words,
    iterate_batches,
    join_texts,
    split_at_line_feeds,
    split_lines,
    split_words,
    strip_code,
    take_words,
)

ALPHABET = "aB1.,'’ \n\r\t-#…é中\u0301😀\x0b\u2028\x85_"
TEXTS = st.lists(st.text(alphabet=ALPHABET, max_size=40), min_size=1, max_size=6)


def show_words(texts: list[str], cut: str) -> list[list[str]]:
    """The words as text: their hashes are looked up among all pieces of the texts."""
    joined = join_texts(texts)
    found = split_words(joined, cut)
    known: dict[int, str] = {}
    for text in texts:
        pieces = [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
        known.update(zip(hash_words(pieces).tolist(), pieces, strict=True))
    flat = [known[value] for value in found.hashes.tolist()]
    assert [len(word) for word in flat] == found.lengths.tolist()
    assert [any(c.isalpha() for c in word) for word in flat] == found.has_letter.tolist()
    return [flat[start:end] for start, end in zip(found.first[:-1], found.first[1:], strict=True)]


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_words_between_blanks_are_those_of_str_split(texts: list[str]) -> None:
    assert show_words(texts, "blanks") == [text.split() for text in texts]


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_words_cut_at_signs_lose_no_character(texts: list[str]) -> None:
    assert ["".join(found) for found in show_words(texts, "signs")] == ["".join(text.split()) for text in texts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's well-known, isn't it?", ["It", "'s", "well", "-", "known", ",", "isn", "'t", "it", "?"]),
        ("1. Pay 1,250.50 now...", ["1", ".", "Pay", "1,250.50", "now", "..."]),
        ("my_name == 'Ann'", ["my_name", "==", "'", "Ann", "'"]),
        ("cafe\u0301 don’t — 中文", ["cafe\u0301", "don", "’t", "—", "中文"]),
        ("?!", ["?", "!"]),
        ("", []),
    ],
)
def test_signs_are_words_of_their_own(text: str, expected: list[str]) -> None:
    assert show_words([text], "signs") == [expected]


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_lines_are_those_of_splitlines(texts: list[str]) -> None:
    joined = join_texts(texts)
    lines = split_lines(joined)
    assert read_pieces(joined, lines, len(texts)) == [text.splitlines() for text in texts]


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.sampled_from([1, 2]))
def test_paragraphs_are_those_between_empty_lines(texts: list[str], least: int) -> None:
    joined = join_texts(texts)
    found = read_pieces(joined, split_at_line_feeds(joined, least), len(texts))
    expected = [re.split(r"\n{%d,}" % least, text.strip()) if text.strip() else [] for text in texts]  # noqa: UP031
    assert found == expected


def read_pieces(joined: Texts, pieces: words_module.Pieces, number: int) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in range(number)]
    for text, start, end in zip(pieces.text_of.tolist(), pieces.starts.tolist(), pieces.ends.tolist(), strict=True):
        found[text].append("".join(map(chr, joined.characters[start:end].tolist())))
    return found


def test_equal_words_have_equal_hashes_wherever_they_stand_and_others_do_not() -> None:
    vocabulary = [f"word{i}" for i in range(20_000)] + ["a", "aa", "ab", "ba", "a\0", "\0"]
    text = " ".join(vocabulary)
    found = split_words(join_texts(["x y", text, "中 " + text]))
    first = found.hashes[found.first[1] : found.first[2]]
    second = found.hashes[found.first[2] + 1 : found.first[3]]
    assert (first == second).all() and (first == hash_words(vocabulary)).all()
    assert len(np.unique(first)) == len(vocabulary)


def test_given_words_are_taken_as_they_are() -> None:
    taken = take_words([["a b", "…"], [], ["12"]])
    assert taken.counts.tolist() == [2, 0, 1]
    assert taken.lengths.tolist() == [3, 1, 2]
    assert taken.has_letter.tolist() == [True, False, False]
    assert taken.is_mark.tolist() == [False, True, False]
    assert taken.is_maths.tolist() == [False, False, True]


def test_numbers_sums_and_operators_are_maths() -> None:
    yes = ["12", "3.5%", "<<12*2=24>>24", "$18", "=", "|---|", "1.", "×"]
    no = ["a1", "8-hour", "…", "@", "(", "##", "x"]
    assert take_words([yes + no]).is_maths.tolist() == [True] * len(yes) + [False] * len(no)


def test_texts_without_anything_have_no_words_lines_or_paragraphs() -> None:
    for texts in ([""], ["", " \n\n "], []):
        joined = join_texts(texts)
        assert split_words(joined).counts.tolist() == [0] * len(texts)
        assert len(split_at_line_feeds(joined, 2).starts) == 0
        assert split_lines(joined).count(len(texts)).sum() == sum(len(text.splitlines()) for text in texts)


def test_batches_hold_every_text_once_and_one_at_least() -> None:
    texts = ["x" * 10] * 7 + ["y" * 100] + ["z"] * 3
    batches = list(iterate_batches(texts, characters=25))
    assert [n for start, end in batches for n in range(start, end)] == list(range(len(texts)))
    assert all(end > start for start, end in batches)
    assert list(iterate_batches([])) == []


def test_a_text_that_is_too_long_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "LONGEST_TEXT", 100)
    joined = join_texts(["ab " * 1000, "c"])
    assert joined.lengths.tolist() == [100, 1]


def test_a_text_longer_than_a_batch_is_hashed_as_any_other() -> None:
    text = "again and " * (BATCH_CHARACTERS // 4)
    found = split_words(join_texts([text]))
    assert np.unique(found.hashes).tolist() == np.unique(hash_words(["again", "and"])).tolist()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Do this:\n```python\nx = [1] * 9\n```\nDone.", "Do this:\n\nDone."),
        ("Open ```` ``\n~~~\ncode\n~~~\nend", "Open ```` ``\n\nend"),
        ("Never closed:\n```\nx = 1\ny = 2", "Never closed:\n"),
        ("Call `f(x)` or ``g`h``.", "Call  or ."),
        ("It costs $5 and $6.", "It costs $5 and $6."),
        ("So $x^2$ and $$y\n= 1$$ and \\(z\\) stay out.", "So  and  and  stay out."),
    ],
)
def test_code_and_maths_are_left_out(text: str, left: str) -> None:
    assert strip_code(text, maths=True) == left


def test_maths_stay_where_only_code_is_left_out() -> None:
    assert strip_code("So $x^2$ and `y`.") == "So $x^2$ and ."


def test_a_character_is_of_the_same_kind_in_both_tables() -> None:
    latin = "".join(map(chr, range(256)))
    alone, with_others = join_texts([latin]).kinds, join_texts([latin, "中"]).kinds
    assert (alone == with_others[:256]).all()
