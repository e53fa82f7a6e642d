"""Gopher's quality rules on many texts at once (arXiv:2112.11446, appendix A1.1): which texts are prose worth reading.

Knows the rules and what they count; what words, lines and hashes are stands in `data/words.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llamero.data.steps.record import Drop, Record, StepContext
from llamero.data.steps.verdicts import Choice, Rule, count_least_characters, judge_records
from llamero.data.words import (
    Flags,
    Pieces,
    Texts,
    Words,
    hash_words,
    split_lines,
    split_words,
)
from llamero.spec.steps import QualityStep

Values = NDArray[np.float64]

_BULLETS: Final = (0x2022, ord("-"))
_ELLIPSIS, _POINT, _HASH = 0x2026, ord("."), ord("#")


@dataclass(frozen=True)
class Counts:
    """What the rules look at, an entry a text. `prose`: the words whose shares and means are judged, `real_prose` those of them that are
    not punctuation alone."""

    words: NDArray[np.int64]
    real_words: NDArray[np.int64]
    prose: NDArray[np.int64]
    real_prose: NDArray[np.int64]
    real_prose_characters: NDArray[np.int64]
    words_with_letter: NDArray[np.int64]
    stop_words: NDArray[np.int64]
    hashes: NDArray[np.int64]
    ellipses: NDArray[np.int64]
    lines: NDArray[np.int64]
    bullet_lines: NDArray[np.int64]
    ellipsis_lines: NDArray[np.int64]


def count_all(texts: Texts, words: Words, stop_words: Sequence[str], exempt_maths: bool) -> Counts:
    """Count what the rules need. A real word is one that is not punctuation alone; numbers and sums are no prose where they are exempt."""
    real = ~words.is_mark
    prose = ~words.is_maths if exempt_maths else np.ones(len(real), dtype=np.bool_)
    lines = split_lines(texts)
    number = len(texts)
    starts_with_bullet, ends_with_ellipsis = _look_at_lines(texts, lines)
    return Counts(
        words=words.counts,
        real_words=words.sum_up(real),
        prose=words.sum_up(prose),
        real_prose=words.sum_up(real & prose),
        real_prose_characters=words.sum_up(np.where(real & prose, words.lengths, 0)),
        words_with_letter=words.sum_up(words.has_letter),
        stop_words=_count_stop_words(words, stop_words),
        hashes=texts.count_flags(texts.characters == _HASH),
        ellipses=_count_ellipses(texts),
        lines=lines.count(number),
        bullet_lines=np.bincount(lines.text_of[starts_with_bullet], minlength=number),
        ellipsis_lines=np.bincount(lines.text_of[ends_with_ellipsis], minlength=number),
    )


def _count_stop_words(words: Words, stop_words: Sequence[str]) -> NDArray[np.int64]:
    """How many different stop words each text has, as they are written."""
    found = np.zeros(len(words.first) - 1, dtype=np.int64)
    for stop_word in hash_words(sorted(set(stop_words))):
        found[np.unique(words.text_of[words.hashes == stop_word])] += 1
    return found


def _count_ellipses(texts: Texts) -> NDArray[np.int64]:
    """Each three points in a row, and each `…`."""
    counts = texts.count_flags(texts.characters == _ELLIPSIS)
    points = np.flatnonzero(texts.characters == _POINT)
    if len(points) < 3:
        return counts
    is_first = np.append(True, np.diff(points) != 1)
    run = np.cumsum(is_first) - 1
    lengths = np.bincount(run)
    starts = points[is_first][lengths >= 3]
    owners = np.searchsorted(texts.starts, starts, side="right") - 1
    np.add.at(counts, owners, lengths[lengths >= 3] // 3)
    return counts


def _look_at_lines(texts: Texts, lines: Pieces) -> tuple[Flags, Flags]:
    """Which lines begin with a bullet and which end with an ellipsis, blanks aside."""
    characters, ink = texts.characters, texts.ink
    if not len(ink) or not len(lines.starts):
        nothing = np.zeros(len(lines.starts), dtype=np.bool_)
        return nothing, nothing
    first = np.searchsorted(ink, lines.starts)
    last = np.searchsorted(ink, lines.ends) - 1
    is_blank = first > last
    opening = characters[ink[np.minimum(first, len(ink) - 1)]]
    bullets = ~is_blank & ((opening == _BULLETS[0]) | (opening == _BULLETS[1]))
    end = ink[np.maximum(last, 0)]
    is_point = [characters[np.maximum(end - back, 0)] == _POINT for back in range(3)]
    three_points = is_point[0] & is_point[1] & is_point[2] & (end - 2 >= lines.starts)
    return bullets, ~is_blank & ((characters[end] == _ELLIPSIS) | three_points)


def judge_texts(options: QualityStep, texts: Texts, words: Words, is_prompt: Flags | None = None) -> list[Rule]:
    """What each rule says of each text, in the order in which the first that fails is told.

    `words` may come from any tokeniser. Rules of length are not for texts marked in `is_prompt`; rules of shares, means and stop words not
    for texts with fewer than `short_text_words` words, nor for those without a word.
    """
    counts = count_all(texts, words, options.stop_words, options.exempt_code)
    has_length = ~is_prompt if is_prompt is not None else np.ones(len(texts), dtype=np.bool_)
    is_judged = counts.prose >= max(1, options.short_text_words)
    all_words, per_line = np.maximum(1, counts.words), np.maximum(1, counts.lines)
    mean = counts.real_prose_characters / np.maximum(1, counts.real_prose)
    least = options.min_words or 0
    words_found = counts.real_words.astype(np.float64)

    def below(name: str, values: Values, threshold: float, applies: Flags, detail: str) -> Rule:
        return Rule(name, values, threshold, applies & (values < threshold), detail)

    def above(name: str, values: Values, threshold: float, applies: Flags, detail: str) -> Rule:
        return Rule(name, values, threshold, applies & (values > threshold), detail)

    return [
        below("minWords", words_found, least, has_length, "{value:.0f} words, {threshold:.0f} are the least."),
        above("maxWords", words_found, options.max_words, has_length, "{value:.0f} words, {threshold:.0f} are the most."),
        below(
            "minMeanWordLength", mean, options.min_mean_word_length, is_judged,
            "Its words have {value:.2f} characters on average, {threshold:g} are the least.",
        ),
        above(
            "maxMeanWordLength", mean, options.max_mean_word_length, is_judged,
            "Its words have {value:.2f} characters on average, {threshold:g} are the most.",
        ),
        above(
            "maxHashRatio", counts.hashes / all_words, options.max_hash_ratio, is_judged,
            "{value:.3f} # a word, {threshold:g} are the most.",
        ),
        above(
            "maxEllipsisRatio", counts.ellipses / all_words, options.max_ellipsis_ratio, is_judged,
            "{value:.3f} ellipses a word, {threshold:g} are the most.",
        ),
        above(
            "maxBulletLines", counts.bullet_lines / per_line, options.max_bullet_lines, is_judged,
            "{value:.1%} of its lines begin with a bullet, {threshold:.1%} are the most.",
        ),
        above(
            "maxEllipsisLines", counts.ellipsis_lines / per_line, options.max_ellipsis_lines, is_judged,
            "{value:.1%} of its lines end with an ellipsis, {threshold:.1%} are the most.",
        ),
        below(
            "minAlphabeticWords", counts.words_with_letter / np.maximum(1, counts.prose), options.min_alphabetic_words, is_judged,
            "{value:.1%} of its words have a letter, {threshold:.1%} are the least.",
        ),
        below(
            "minStopWords", counts.stop_words.astype(np.float64), options.min_stop_words, is_judged,
            "{value:.0f} of the stop words are in it, {threshold:.0f} are the least.",
        ),
    ]  # fmt: skip


# -- the step ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """The step."""

    options: QualityStep

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        """Each record itself, or the first rule that the first of its failing parts fails."""
        options = self.options
        least = count_least_characters(options.short_text_words, options.words)
        has_rule_of_length = bool(options.min_words) or options.max_words < options.short_text_words
        choice = Choice(
            whole=options.scope == "document",
            prompts=True,
            least_answer=0 if has_rule_of_length else least,
            least_prompt=least,
            exempt_code=options.exempt_code,
            exempt_maths=options.exempt_code,
        )
        return judge_records(records, choice, self._judge)

    def _judge(self, texts: Texts, are_prompts: Flags) -> list[Rule]:
        return judge_texts(self.options, texts, split_words(texts, self.options.words), are_prompts)


def build(options: QualityStep, context: StepContext) -> Quality:
    """The step. `context` is not used: the rules need nothing but the texts."""
    return Quality(options)
