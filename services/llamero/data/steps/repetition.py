"""Gopher's repetition rules on many texts at once (arXiv:2112.11446, table A1): which texts say the same over and over.

An n-gram can only repeat where its first n - 1 words do, so each length looks at what was left of the one before: most texts are done
after pairs of words. Positions are compared by 64-bit hashes that hold their text's number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llamero.data.errors import DataError
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.data.steps.verdicts import Choice, Rule, count_least_characters, judge_records
from llamero.data.words import (
    Flags,
    Hashes,
    Integers,
    Pieces,
    Texts,
    Words,
    mix,
    split_at_line_feeds,
    split_words,
)
from llamero.spec.steps import RepetitionStep

_STEP: Final = np.uint64(0xD6E8FEB86659FD93)
_LARGEST_NGRAM: Final = 64


def judge_repetition(options: RepetitionStep, texts: Texts, words: Words) -> list[Rule]:
    """What each rule says of each text, in the order in which the first that fails is told.

    `words` may come from any tokeniser. No rule is for texts with fewer than `short_text_words` words that are not punctuation alone.
    """
    is_judged = words.sum_up(~words.is_mark) >= options.short_text_words
    characters = np.maximum(1, texts.lengths)
    rules = []
    for name, pieces, most, most_characters in (
        ("Paragraphs", split_at_line_feeds(texts, 2), options.max_duplicate_paragraphs, options.max_duplicate_paragraph_characters),
        ("Lines", split_at_line_feeds(texts, 1), options.max_duplicate_lines, options.max_duplicate_line_characters),
    ):  # fmt: skip
        repeated, lengths = count_repeated_pieces(texts, pieces)
        share = repeated / np.maximum(1, pieces.count(len(texts)))
        rules.append(
            _above(f"maxDuplicate{name}", share, most, is_judged,
                   f"{{value:.1%}} of its {name.lower()} repeat another, {{threshold:.1%}} are the most.")
        )  # fmt: skip
        rules.append(
            _above(f"maxDuplicate{name[:-1]}Characters", lengths / characters, most_characters, is_judged,
                   f"{{value:.1%}} of its characters are in {name.lower()} that repeat another, {{threshold:.1%}} are the most.")
        )  # fmt: skip
    return rules + judge_ngrams(options, texts, words, is_judged)


def _above(name: str, values: NDArray[np.float64], threshold: float, applies: Flags, detail: str) -> Rule:
    return Rule(name, values, threshold, applies & (values > threshold), detail)


def count_repeated_pieces(texts: Texts, pieces: Pieces) -> tuple[Integers, Integers]:
    """How many pieces of each text are equal to an earlier one of it, and their characters."""
    counts = np.zeros(len(texts), dtype=np.int64)
    lengths = np.zeros(len(texts), dtype=np.int64)
    # A text of one piece repeats none.
    several = np.flatnonzero(pieces.count(len(texts))[pieces.text_of] > 1)
    if not len(several):
        return counts, lengths
    hashes = texts.hash_pieces(pieces.starts[several], pieces.ends[several])
    _, repeats = find_repeats(hashes + _salt(pieces.text_of[several]))
    again = several[repeats]
    np.add.at(counts, pieces.text_of[again], 1)
    np.add.at(lengths, pieces.text_of[again], pieces.lengths[again])
    return counts, lengths


def _salt(numbers: NDArray[np.integer]) -> Hashes:
    """A hash of each number: added to a text's hashes it keeps them apart from every other text's."""
    return mix((numbers.astype(np.uint64) + np.uint64(1)) * _STEP)


@dataclass(frozen=True)
class Groups:
    """Equal values: `first` where each group's first member stands, `sizes` how many it has."""

    first: Integers
    sizes: Integers


def find_repeats(values: Hashes) -> tuple[Groups, Integers]:
    """The groups of equal values (of two or more members), and the places of all members but their first, in order."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_new = np.append(True, ordered[1:] != ordered[:-1]) if len(values) else np.zeros(0, dtype=np.bool_)
    begins = np.flatnonzero(is_new)
    sizes = np.diff(np.append(begins, len(values)))
    several = sizes > 1
    return Groups(order[begins[several]], sizes[several]), np.sort(order[~is_new])


def keep_likely_repeats(values: Hashes) -> Integers:
    """The places of all values that occur twice, and of a few others: those that share a bucket with another."""
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    bits = max(10, len(values).bit_length() + 2)
    buckets = (values >> np.uint64(64 - bits)).astype(np.int64)
    seen = np.bincount(buckets, minlength=1 << bits)
    return np.flatnonzero(seen[buckets] > 1)


# -- n-grams -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repeated:
    """The n-grams of one length that occur more than once in their text. `places`: words at which one begins, in order;
    `groups`: of equal ones, as numbers of `places`; `again`: numbers of the places that are not their group's first."""

    n: int
    places: Integers
    hashes: Hashes
    groups: Groups
    again: Integers


def find_repeated_ngrams(words: Words, numbers: Sequence[int]) -> Iterator[Repeated]:
    """The repeated n-grams for each of these lengths, from the smallest to the largest."""
    total = len(words.hashes)
    left = words.first[1:][words.text_of] - np.arange(total)  # words from each one to its text's end
    alone = mix(words.hashes + _salt(np.arange(len(words.first) - 1))[words.text_of])
    smallest = 1 if 1 in numbers else 2
    places = np.flatnonzero(left >= smallest)
    hashes = alone if smallest == 1 else alone[:-1] * _STEP + alone[1:] if total else alone
    hashes = hashes[places]
    is_repeated = np.zeros(total + 1, dtype=np.bool_)
    for n in range(smallest, max(numbers) + 1):
        likely = keep_likely_repeats(hashes)
        places, hashes = places[likely], hashes[likely]
        groups, again = find_repeats(hashes)
        in_group = np.zeros(len(places), dtype=np.bool_)
        in_group[again] = True
        in_group[groups.first] = True
        numbering = np.cumsum(in_group) - 1
        members = np.flatnonzero(in_group)
        places, hashes = places[members], hashes[members]
        if n in numbers:
            yield Repeated(n, places, hashes, Groups(numbering[groups.first], groups.sizes), numbering[again])
        # An n-gram of one word more repeats where this one does, and the one a word later.
        is_repeated[:] = False
        is_repeated[places] = True
        goes_on = is_repeated[places + 1] & (left[places] > n)
        places = places[goes_on]
        hashes = hashes[goes_on] * _STEP + alone[places + n]


def judge_ngrams(options: RepetitionStep, texts: Texts, words: Words, is_judged: Flags) -> list[Rule]:
    """The rules of the most frequent n-grams, then those of the duplicate ones, each in the order of n."""
    top, duplicate = (
        _read_numbers(options.max_top_ngram_characters),
        _read_numbers(options.max_duplicate_ngram_characters),
    )
    if not top and not duplicate:
        return []
    sums = np.zeros(len(words.lengths) + 1, dtype=np.int64)
    np.cumsum(words.lengths, out=sums[1:])
    characters = np.maximum(1, texts.lengths)
    tops, duplicates = [], []
    for repeated in find_repeated_ngrams(words, sorted({*top, *duplicate})):
        n = repeated.n
        if n in top:
            values = measure_top(words, sums, repeated) / characters
            tops.append(
                _above(f"maxTopNgramCharacters.{n}", values, top[n], is_judged,
                       f"Its most frequent {n}-gram makes {{value:.1%}} of its characters, {{threshold:.1%}} are the most.")
            )  # fmt: skip
        if n in duplicate:
            values = measure_duplicates(words, sums, repeated, characters, duplicate[n]) / characters
            duplicates.append(
                _above(f"maxDuplicateNgramCharacters.{n}", values, duplicate[n], is_judged,
                       f"{{value:.1%}} of its characters are in {n}-grams that repeat another, {{threshold:.1%}} are the most.")
            )  # fmt: skip
    return tops + duplicates


def _read_numbers(thresholds: Mapping[str, float]) -> dict[int, float]:
    """The thresholds by n. Raises DataError for a key that is no length of an n-gram."""
    for key in thresholds:
        if not key.isdecimal() or not 1 <= int(key) <= _LARGEST_NGRAM:
            raise DataError(
                f"The step `repetition` has a threshold for n-grams of {key!r} words: give a whole number from 1 to {_LARGEST_NGRAM}."
            )
    return {int(key): float(value) for key, value in thresholds.items()}


def measure_top(words: Words, sums: Integers, repeated: Repeated) -> Integers:
    """The characters of each text's most frequent n-gram, blanks between its words counted, times its occurrences.

    Of equally frequent ones the first; a text without a repeated n-gram has its first one, once; a shorter text none.
    """
    n, first = repeated.n, words.first
    has_one = words.counts >= n
    start = np.where(has_one, first[:-1], 0)
    times = np.ones(len(start), dtype=np.int64)
    places = repeated.places[repeated.groups.first]
    if len(places):
        # The largest of size first, then of earliness, as one number.
        last = np.int64(len(words.hashes))
        rank = repeated.groups.sizes * (last + 1) + (last - places)
        best = np.zeros(len(start), dtype=np.int64)
        np.maximum.at(best, words.text_of[places], rank)
        found = best > 0
        times[found] = best[found] // (last + 1)
        start[found] = last - best[found] % (last + 1)
    ends = np.minimum(start + n, len(sums) - 1)
    return np.where(has_one, (sums[ends] - sums[start] + n - 1) * times, 0)


def measure_duplicates(
    words: Words, sums: Integers, repeated: Repeated, characters: Integers, threshold: float
) -> Integers:
    """The characters of each text in n-grams that repeat an earlier one, read from left to right: a repetition is passed over as a whole.

    That reading is done for texts that might be above the threshold alone; the others get an upper bound that is not above it.
    """
    n = repeated.n
    counted = np.zeros(len(words.first) - 1, dtype=np.int64)
    if not len(repeated.again):
        return counted
    # No reading finds more than all words that lie in any repetition.
    begins = repeated.places[repeated.again]
    ends = begins + n
    ends[:-1] = np.minimum(ends[:-1], begins[1:])
    np.add.at(counted, words.text_of[begins], sums[ends] - sums[begins])
    text_of = words.text_of[repeated.places]
    for text in np.flatnonzero(counted / characters > threshold).tolist():
        start, end = np.searchsorted(text_of, [text, text + 1])
        counted[text] = _read_through(repeated.places[start:end], repeated.hashes[start:end], sums, n)
    return counted


def _read_through(places: Integers, hashes: Hashes, sums: Integers, n: int) -> int:
    seen: set[int] = set()
    found, next_place = 0, -1
    for place, value in zip(places.tolist(), hashes.tolist(), strict=True):
        if place < next_place:
            continue
        if value in seen:
            found += int(sums[place + n] - sums[place])
            next_place = place + n
        else:
            seen.add(value)
    return found


# -- the step ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repetition:
    """The step."""

    options: RepetitionStep

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        """Each record itself, or the first rule that the first of its failing texts fails."""
        options = self.options
        choice = Choice(
            whole=options.scope == "document",
            prompts=False,
            least_answer=count_least_characters(options.short_text_words, options.words),
            least_prompt=0,
            exempt_code=options.exempt_code,
            exempt_maths=False,
        )
        return judge_records(records, choice, self._judge)

    def _judge(self, texts: Texts, are_prompts: Flags) -> list[Rule]:
        return judge_repetition(self.options, texts, split_words(texts, self.options.words))


def build(options: RepetitionStep, context: StepContext) -> Repetition:
    """The step. `context` is not used: the rules need nothing but the texts. Raises DataError for a length that no n-gram has."""
    _read_numbers(options.max_top_ngram_characters)
    _read_numbers(options.max_duplicate_ngram_characters)
    return Repetition(options)
