"""Gopher's quality rules: both sides of each threshold on hand-made texts, and any text against the rules written plainly."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamero.data.steps import quality
from llamero.data.steps.quality import judge_texts
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.data.steps.verdicts import find_first_failures
from llamero.data.words import join_texts, split_words, take_words
from llamero.spec.profiles import PROFILES
from llamero.spec.records import Message
from llamero.spec.steps import QualityStep

CONTEXT = StepContext(seed=0, base=None, answers="", workers=1, fetch=lambda uri: pytest.fail(f"fetched {uri}"))
STRICT = QualityStep.model_validate(PROFILES["gopher-strict"][0]["quality"])
GOOD = "the house and that tree have to be seen with care of all who come here again "  # 17 words, all stop words


def apply(options: QualityStep, *records: Record) -> list[Record | Drop]:
    return quality.build(options, CONTEXT).apply(records)


def build_record(prompt: str, answer: str, **more: Any) -> Record:
    return Record(0, "source", "file", 1, (Message("user", prompt), Message("assistant", answer)), **more)


def find_rule(options: QualityStep, text: str) -> str | None:
    """The rule that the text fails as an answer; None where it passes."""
    result = apply(options, build_record("Tell me the use of that.", text))[0]
    return result.rule if isinstance(result, Drop) else None


def words(number: int, *others: str) -> str:
    """A good text of so many words, the others at its end."""
    return " ".join([*(GOOD.split() * (number // 17 + 1))[: number - len(others)], *others])


ANY_LENGTH: dict[str, Any] = {"shortTextWords": 0}
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("minWords", {"minWords": 50}, words(50), words(49)),
    ("minWords", {"minWords": 50, "words": "signs"}, words(50) + " . !", words(49) + " . !"),
    ("maxWords", {"maxWords": 60}, words(60), words(61)),
    ("maxWords", {"maxWords": 3}, "a b c", "a b c d"),
    ("minMeanWordLength", {**ANY_LENGTH, "minStopWords": 0}, "abc " * 60, "abc " * 59 + "ab"),
    ("maxMeanWordLength", {**ANY_LENGTH, "minStopWords": 0}, "abcdefghij " * 60, "abcdefghij " * 59 + "abcdefghijk"),
    ("maxHashRatio", ANY_LENGTH, words(60, *["#a"] * 6), words(60, *["#a"] * 7)),
    ("maxEllipsisRatio", ANY_LENGTH, words(60, *["a..."] * 3, *["b…"] * 3) + "z", words(60, *["a..."] * 3, *["b…"] * 4) + "z"),
    ("maxBulletLines", ANY_LENGTH, "\n".join(["- " + GOOD] * 8 + [" • " + GOOD, GOOD]), "\n".join(["- " + GOOD] * 9 + [" • " + GOOD])),
    ("maxEllipsisLines", ANY_LENGTH, "\n".join([GOOD] * 7 + [GOOD + "..."] * 2 + [GOOD + "… "]), "\n".join([GOOD] * 6 + [GOOD + "..."] * 4)),
    ("minAlphabeticWords", ANY_LENGTH, words(60, *["¤¤¤¤"] * 12), words(60, *["¤¤¤¤"] * 13)),
    ("minStopWords", ANY_LENGTH, "cats " * 58 + "the with", "cats " * 58 + "the the"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "options", "passes", "fails"), CASES)
def test_a_text_at_the_threshold_passes_and_one_past_it_fails(
    rule: str, options: dict[str, Any], passes: str, fails: str
) -> None:
    step = QualityStep.model_validate(options)
    assert find_rule(step, passes) is None
    assert find_rule(step, fails) == rule


@pytest.mark.parametrize(
    ("rule", "changed", "text"),
    [
        ("maxWords", {"maxWords": 200_000}, GOOD * 5_900),
        ("minMeanWordLength", {"minMeanWordLength": 2, "minStopWords": 0}, "ab " * 60),
        ("maxMeanWordLength", {"maxMeanWordLength": 11, "minStopWords": 0}, "abcdefghijk " * 60),
        ("maxHashRatio", {"maxHashRatio": 0.2}, words(60, *["#a"] * 7)),
        ("maxEllipsisRatio", {"maxEllipsisRatio": 0.2}, words(60, *["a..."] * 7) + "z"),
        ("maxBulletLines", {"maxBulletLines": 1}, "\n".join(["- " + GOOD] * 9)),
        ("maxEllipsisLines", {"maxEllipsisLines": 0.5}, "\n".join([GOOD] * 6 + [GOOD + "..."] * 4)),
        ("minAlphabeticWords", {"minAlphabeticWords": 0.5}, words(60, *["¤¤¤¤"] * 13)),
        ("minStopWords", {"minStopWords": 1}, "cats " * 58 + "the the"),
        ("minStopWords", {"stopWords": ["cats", "the", "use", "of"]}, "cats " * 58 + "the the"),
    ],
)
def test_every_threshold_can_be_changed(rule: str, changed: dict[str, Any], text: str) -> None:
    assert find_rule(QualityStep.model_validate({**ANY_LENGTH, **changed}), text) is None
    del changed[next(iter(changed))]
    assert find_rule(QualityStep.model_validate({**ANY_LENGTH, **changed}), text) == rule


def test_an_answer_tells_rule_value_and_threshold() -> None:
    drop = apply(QualityStep(min_words=5), build_record("Hello there?", "Hello."))[0]
    assert drop == Drop("minWords", "The answer: 1 words, 5 are the least.", 1.0, 5.0)


def test_short_texts_are_judged_by_length_alone() -> None:
    step = QualityStep()
    assert find_rule(step, "42") is None and find_rule(step, "- 8\n- 9\n- ##") is None
    assert find_rule(step, "ab " * 49) is None
    assert find_rule(step, "ab " * 50) == "minMeanWordLength"
    assert find_rule(QualityStep(short_text_words=10), "ab " * 10) == "minMeanWordLength"


def test_prompts_are_judged_by_no_rule_of_length() -> None:
    step = QualityStep(min_words=20, max_words=60)
    assert isinstance(apply(step, build_record("Why?", words(30)))[0], Record)
    assert isinstance(apply(step, build_record(words(100), words(30)))[0], Record)
    bad = apply(step, build_record("¤¤¤¤ " * 100, words(30)))[0]
    assert isinstance(bad, Drop) and bad.rule == "minAlphabeticWords" and bad.detail.startswith("The prompt: ")
    with_input = apply(step, build_record("Add up.", words(30), input="¤¤¤¤ " * 100))[0]
    assert isinstance(with_input, Drop) and with_input.detail.startswith("The prompt: ")


def test_system_prompts_are_not_judged_and_each_turn_is_by_itself() -> None:
    turns = (
        Message("system", "#### " * 100), Message("user", "Hi"), Message("assistant", words(60)),
        Message("user", "Go on"), Message("assistant", "¤¤¤¤ " * 60),
    )  # fmt: skip
    result = apply(QualityStep(), Record(0, "s", "f", 1, turns))[0]
    assert isinstance(result, Drop) and result.rule == "minAlphabeticWords"
    assert isinstance(apply(QualityStep(), Record(0, "s", "f", 1, turns[:3]))[0], Record)


def test_code_and_maths_are_exempt_unless_told_otherwise() -> None:
    code = words(60) + "\n```c\n" + "#define X 1 {;}\n" * 40 + "```\n"
    maths = words(60) + " $$" + "1 + # " * 60 + "$$"
    for text in (code, maths):
        assert find_rule(QualityStep(), text) is None
        assert find_rule(QualityStep(exempt_code=False), text) is not None


def test_numbers_and_sums_are_no_prose_unless_told_otherwise() -> None:
    """Otherwise a third of the answers to school maths would go for having too few letters."""
    sums = words(50) + " 12 * 7 = 84 and $84 - 1.50 = <<84-1.5=82.5>>82.5 is | 3 | 4 |" + " 7 + 1 = 8" * 10
    assert find_rule(QualityStep(), sums) is None
    assert find_rule(QualityStep(exempt_code=False, min_mean_word_length=0), sums) == "minAlphabeticWords"
    assert find_rule(QualityStep(min_words=50), words(49) + " 12") is None, "they are words by number"
    assert find_rule(QualityStep(), "ab " * 49 + "12 " * 60) is None, "the prose is short"
    assert find_rule(QualityStep(), "ab " * 50 + "12 " * 60) == "minMeanWordLength"


def test_the_strict_profile_judges_the_record_as_one_text() -> None:
    prompt, answer = words(20), words(30)
    assert isinstance(apply(STRICT, build_record(prompt, answer))[0], Record)
    short = apply(STRICT, build_record(prompt, words(29)))[0]
    assert short == Drop("minWords", "49 words, 50 are the least.", 49.0, 50.0)


def test_records_come_back_in_order_whatever_the_batch() -> None:
    records = [build_record("Hi", words(60) if n % 3 else "ab " * 60) for n in range(50)]
    records += [build_record("Hi", "long " * 200_000)]
    together = apply(QualityStep(), *records)
    assert together == [apply(QualityStep(), record)[0] for record in records]
    assert [isinstance(result, Drop) for result in together] == [n % 3 == 0 for n in range(50)] + [True]


# -- any text --------------------------------------------------------------------------------------------------------------------

SIGNS = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~…—“”•")


def is_maths(token: str) -> bool:
    if any(map(str.isalpha, token)):
        return False
    return any(map(str.isdecimal, token)) or all(character in "+-*/=<>^%|:~×÷±≤≥≈≠−·" for character in token)


def judge_plainly(options: QualityStep, text: str, tokens: Sequence[str]) -> str | None:
    """The rules one after the other, as the paper has them."""
    real = [token for token in tokens if not all(character in SIGNS for character in token)]
    if len(real) < (options.min_words or 0):
        return "minWords"
    if len(real) > options.max_words:
        return "maxWords"
    every = max(1, len(tokens))
    lines = text.splitlines()
    if options.exempt_code:
        tokens = [token for token in tokens if not is_maths(token)]
        real = [token for token in real if not is_maths(token)]
    if len(tokens) < max(1, options.short_text_words):
        return None
    mean = sum(map(len, real)) / max(1, len(real))
    bullets = sum(line.lstrip().startswith(("-", "•")) for line in lines)
    ends = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    checks = [
        ("minMeanWordLength", mean < options.min_mean_word_length),
        ("maxMeanWordLength", mean > options.max_mean_word_length),
        ("maxHashRatio", text.count("#") / every > options.max_hash_ratio),
        ("maxEllipsisRatio", (text.count("...") + text.count("…")) / every > options.max_ellipsis_ratio),
        ("maxBulletLines", bullets / max(1, len(lines)) > options.max_bullet_lines),
        ("maxEllipsisLines", ends / max(1, len(lines)) > options.max_ellipsis_lines),
        (
            "minAlphabeticWords",
            sum(any(map(str.isalpha, token)) for token in tokens) / len(tokens) < options.min_alphabetic_words,
        ),
        ("minStopWords", len({*options.stop_words} & {*tokens}) < options.min_stop_words),
    ]
    return next((name for name, fails in checks if fails), None)


WORDS = [
    "the",
    "of",
    "and",
    "house",
    "a",
    "abcdefghijklm",
    "12",
    "=",
    "+7",
    "@@",
    "¤",
    "#",
    "...",
    "…",
    "....",
    "-",
    "•",
    "é",
    "中文",
    ".",
    "!",
]
PIECES = st.sampled_from([*WORDS, "\n", "\n", "\r\n", " "])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=30), min_size=1, max_size=8), st.data())
def test_any_text_is_judged_as_the_plain_rules_judge_it(drawn: list[list[str]], data: st.DataObject) -> None:
    texts = [" ".join(pieces) for pieces in drawn]
    options = QualityStep(
        min_words=data.draw(st.sampled_from([None, 3])),
        max_words=20,
        short_text_words=data.draw(st.sampled_from([0, 5])),
        min_mean_word_length=data.draw(st.sampled_from([0.0, 2.0])),
        min_stop_words=data.draw(st.sampled_from([0, 1])),
        min_alphabetic_words=data.draw(st.sampled_from([0.0, 0.4])),
        exempt_code=data.draw(st.booleans()),
    )
    tokens = [text.split() for text in texts]
    joined = join_texts(texts)
    expected = [judge_plainly(options, text, found) for text, found in zip(texts, tokens, strict=True)]
    for found in (split_words(joined), take_words(tokens)):
        rules = judge_texts(options, joined, found)
        failures = find_first_failures(rules)
        assert [rules[n].name if n >= 0 else None for n in failures.tolist()] == expected


def test_a_batch_without_texts_is_judged() -> None:
    rules = judge_texts(STRICT, join_texts([]), split_words(join_texts([])))
    assert np.array_equal(find_first_failures(rules), np.zeros(0))
    assert apply(STRICT) == []
