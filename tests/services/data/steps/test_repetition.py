"""Gopher's repetition rules: both sides of each threshold on hand-made texts, and any text against the rules written plainly."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamero.data.errors import DataError
from llamero.data.steps import repetition
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.data.steps.repetition import judge_repetition
from llamero.data.steps.verdicts import find_first_failures
from llamero.data.words import join_texts, split_words, take_words
from llamero.spec.profiles import PROFILES
from llamero.spec.records import Message
from llamero.spec.steps import RepetitionStep

CONTEXT = StepContext(seed=0, base=None, answers="", workers=1, fetch=lambda uri: pytest.fail(f"fetched {uri}"))
STRICT = RepetitionStep.model_validate(PROFILES["gopher-strict"][1]["repetition"])
OFF: dict[str, Any] = {
    "shortTextWords": 0, "maxDuplicateLines": 1, "maxDuplicateParagraphs": 1, "maxDuplicateLineCharacters": 1,
    "maxDuplicateParagraphCharacters": 1, "maxTopNgramCharacters": {}, "maxDuplicateNgramCharacters": {},
}  # fmt: skip


def apply(options: RepetitionStep, *records: Record) -> list[Record | Drop]:
    return repetition.build(options, CONTEXT).apply(records)


def build_record(answer: str, prompt: str = "Say something.") -> Record:
    return Record(0, "source", "file", 1, (Message("user", prompt), Message("assistant", answer)))


def find_drop(options: dict[str, Any], text: str) -> Drop | None:
    result = apply(RepetitionStep.model_validate(options), build_record(text))[0]
    return result if isinstance(result, Drop) else None


def lines(different: int, *repeated: str, break_: str = "\n") -> str:
    return break_.join([*(f"{n:02d}" for n in range(different)), *repeated])


def fill(text: str, characters: int) -> str:
    """The text and after it words that repeat nothing, so many characters in all."""
    more = " ".join(f"{n:03d}" for n in range(characters))
    return f"{text} {more}"[:characters]


# Text at the threshold, text past it: two-letter lines, of which 3 of 10 repeat, and so on.
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("maxDuplicateLines", {"maxDuplicateLines": 0.3}, lines(7, "00", "00", "01"), lines(6, "00", "00", "01")),
    ("maxDuplicateParagraphs", {"maxDuplicateParagraphs": 0.3}, lines(7, "00", "00", "01", break_="\n\n"), lines(6, "00", "00", "01", break_="\n\n")),
    ("maxDuplicateLineCharacters", {"maxDuplicateLineCharacters": 0.2}, "abcd\nabcd\n" + "x" * 10, "abcd\nabcd\n" + "x" * 9),
    ("maxDuplicateParagraphCharacters", {"maxDuplicateParagraphCharacters": 0.2}, "abcd\n\nabcd\n\n" + "x" * 8, "abcd\n\nabcd\n\n" + "x" * 7),
    ("maxTopNgramCharacters.2", {"maxTopNgramCharacters": {"2": 0.2}}, fill("a b a b", 30), fill("a b a b", 29)),
    ("maxTopNgramCharacters.3", {"maxTopNgramCharacters": {"3": 0.18}}, fill("a b c a b c", 56), fill("a b c a b c", 55)),
    ("maxTopNgramCharacters.4", {"maxTopNgramCharacters": {"4": 0.16}}, fill("a b c d a b c d", 88), fill("a b c d a b c d", 87)),
    *(
        (f"maxDuplicateNgramCharacters.{n}", {"maxDuplicateNgramCharacters": {str(n): share}},
         fill(f"{gram} - {gram}", round(3 * n / share + 0.499)), fill(f"{gram} - {gram}", round(3 * n / share - 0.501)))
        for n, share in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))
        for gram in [" ".join(f"{letter}yz" for letter in "abcdefghij"[:n])]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "options", "passes", "fails"), CASES, ids=[case[0] for case in CASES])
def test_a_text_at_the_threshold_passes_and_one_past_it_fails(
    rule: str, options: dict[str, Any], passes: str, fails: str
) -> None:
    assert find_drop(OFF | options, passes) is None
    drop = find_drop(OFF | options, fails)
    assert drop is not None and drop.rule == rule
    assert drop.value is not None and drop.threshold is not None and drop.value > drop.threshold
    # The same rule and threshold stand in the defaults; a looser one lets the text pass.
    name, _, n = rule.partition(".")
    default = getattr(RepetitionStep(), to_snake(name))
    assert drop.threshold == (default[n] if n else default)
    assert find_drop(OFF | {name: {n: 1.0} if n else 1.0}, fails) is None


def to_snake(name: str) -> str:
    return re.sub(r"([A-Z])", lambda m: "_" + m.group(1).lower(), name)


def test_a_repetition_is_read_over_as_a_whole() -> None:
    """Ten times one word: after the first n-gram of five, the next ones repeat it; each is counted once, not at every word."""
    text = fill("oh " * 20, 200)
    drop = find_drop(OFF | {"maxDuplicateNgramCharacters": {"5": 0.01}}, text)
    assert drop is not None and drop.value == pytest.approx(3 * 5 * 2 / 200)


def test_short_texts_are_not_judged_but_by_the_strict_profile() -> None:
    text = "No. " * 49
    assert isinstance(apply(RepetitionStep(), build_record(text))[0], Record)
    assert isinstance(apply(RepetitionStep(), build_record(text + "No."))[0], Drop)
    assert isinstance(apply(RepetitionStep(short_text_words=10), build_record(text))[0], Drop)
    strict = apply(STRICT, build_record("No. " * 5))[0]
    assert isinstance(strict, Drop) and strict.rule == "maxTopNgramCharacters.2"


def test_prompts_may_repeat_and_each_answer_is_judged_by_itself() -> None:
    again = "The same line again.\n" * 30
    assert isinstance(apply(RepetitionStep(), build_record("Fine.", prompt=again))[0], Record)
    assert isinstance(apply(RepetitionStep(scope="document"), build_record("Fine.", prompt=again))[0], Drop)
    different = " ".join(f"word{n}" for n in range(60))
    turns = tuple(Message(role, different) for role in ("user", "assistant") * 3)
    assert isinstance(apply(RepetitionStep(), Record(0, "s", "f", 1, turns))[0], Record)
    assert isinstance(apply(RepetitionStep(scope="document"), Record(0, "s", "f", 1, turns))[0], Drop)


def test_fenced_code_may_repeat_unless_told_otherwise() -> None:
    text = " ".join(f"word{n}" for n in range(60)) + "\n```\n" + "x = x + 1\n" * 50 + "```\n"
    assert isinstance(apply(RepetitionStep(), build_record(text))[0], Record)
    assert isinstance(apply(RepetitionStep(exempt_code=False), build_record(text))[0], Drop)


def test_empty_lines_are_no_lines() -> None:
    assert find_drop(OFF | {"maxDuplicateLines": 0.0}, "\n\nfoo\n\n\n\nbar\n\n") is None


@pytest.mark.parametrize("key", ["five", "0", "-2", "2.5", "65"])
def test_a_length_that_no_ngram_has_is_refused(key: str) -> None:
    for name in ("max_top_ngram_characters", "max_duplicate_ngram_characters"):
        with pytest.raises(DataError, match="whole number from 1 to 64"):
            repetition.build(RepetitionStep.model_validate({name: {key: 0.1}}), CONTEXT)


def test_records_come_back_in_order_whatever_the_batch() -> None:
    good = " ".join(f"word{n}" for n in range(60))
    records = [build_record(good if n % 3 else "Again. " * 60) for n in range(50)] + [build_record("long " * 200_000)]
    together = apply(RepetitionStep(), *records)
    assert together == [apply(RepetitionStep(), record)[0] for record in records]
    assert [isinstance(result, Drop) for result in together] == [n % 3 == 0 for n in range(50)] + [True]
    assert apply(RepetitionStep()) == []


# -- any text --------------------------------------------------------------------------------------------------------------------


def judge_plainly(options: RepetitionStep, text: str, tokens: Sequence[str]) -> str | None:
    """The rules one after the other, as the paper has them."""
    size = max(1, len(text))
    for name, least in (("Paragraph", 2), ("Line", 1)):
        pieces = [piece for piece in re.split(r"\n{%d,}" % least, text.strip()) if piece]  # noqa: UP031
        again = [piece for number, piece in enumerate(pieces) if piece in pieces[:number]]
        most = getattr(options, f"max_duplicate_{name.lower()}s")
        most_characters = getattr(options, f"max_duplicate_{name.lower()}_characters")
        if len(again) / max(1, len(pieces)) > most:
            return f"maxDuplicate{name}s"
        if sum(map(len, again)) / size > most_characters:
            return f"maxDuplicate{name}Characters"
    for key, most in sorted(options.max_top_ngram_characters.items(), key=lambda item: int(item[0])):
        grams = [tuple(tokens[i : i + int(key)]) for i in range(len(tokens) - int(key) + 1)]
        if grams:
            gram, times = Counter(grams).most_common(1)[0]
            if len(" ".join(gram)) * times / size > most:
                return f"maxTopNgramCharacters.{key}"
    for key, most in sorted(options.max_duplicate_ngram_characters.items(), key=lambda item: int(item[0])):
        n, place, found = int(key), 0, 0
        seen: set[tuple[str, ...]] = set()
        while place + n <= len(tokens):
            gram = tuple(tokens[place : place + n])
            if gram in seen:
                found += sum(map(len, gram))
                place += n
            else:
                seen.add(gram)
                place += 1
        if found / size > most:
            return f"maxDuplicateNgramCharacters.{key}"
    return None


PIECES = st.sampled_from(["a", "b", "the house", "cc", "\n", "\n\n", "\n", "•", "中", "a b c"])
LIMITS = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.4, 1.0])


@settings(max_examples=250, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=40), min_size=1, max_size=6), st.data())
def test_any_text_is_judged_as_the_plain_rules_judge_it(drawn: list[list[str]], data: st.DataObject) -> None:
    texts = [" ".join(pieces) for pieces in drawn]
    options = RepetitionStep(
        short_text_words=0,
        max_duplicate_lines=data.draw(LIMITS),
        max_duplicate_paragraphs=data.draw(LIMITS),
        max_duplicate_line_characters=data.draw(LIMITS),
        max_duplicate_paragraph_characters=data.draw(LIMITS),
        max_top_ngram_characters={
            n: data.draw(LIMITS) for n in data.draw(st.sampled_from([["2", "3", "4"], ["1"], ["3"], []]))
        },
        max_duplicate_ngram_characters={
            n: data.draw(LIMITS) for n in data.draw(st.sampled_from([["2", "3", "5"], ["1", "4"], ["10"], []]))
        },
    )
    tokens = [text.split() for text in texts]
    joined = join_texts(texts)
    expected = [judge_plainly(options, text, found) for text, found in zip(texts, tokens, strict=True)]
    for found in (split_words(joined), take_words(tokens)):
        rules = judge_repetition(options, joined, found)
        failures = find_first_failures(rules)
        assert [rules[n].name if n >= 0 else None for n in failures.tolist()] == expected
