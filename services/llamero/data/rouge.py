"""ROUGE-L F between texts, and against a pool of them: Self-Instruct's check for new instructions (Lin 2004; arXiv:2212.10560).

Words are as in the `rouge_score` package without its stemmer: runs of a–z and 0–9 of the text in lower case. The longest common
subsequence is found bit-parallel by rapidfuzz; what can't reach the limit by its length or its words' counts is not compared.
"""

import re
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[a-z0-9]+")
_COUNTERS = 64
_MOST_COUNTED = 255
_ROUNDING = 1e-9
_BOUNDED_AT_ONCE = 1 << 16
_UNKNOWN = chr(sys.maxunicode)
_MOST_WORDS = sys.maxunicode - 0x800


def split_words(text: str) -> list[str]:
    """The words that ROUGE compares."""
    return _WORD.findall(text.lower())


def least_jaccard(f_measure: float) -> float:
    """The Jaccard similarity that two texts of distinct words have at least where their ROUGE-L F is `f_measure`."""
    return f_measure / (2.0 - f_measure)


def measure_rouge(texts: Sequence[str], pairs: NDArray[np.int64], least: float = 0.0) -> NDArray[np.float64]:
    """ROUGE-L F [pairs] of the texts at each pair of positions; 0.0 where the words' counts tell that it is less than `least`."""
    found = np.zeros(len(pairs))
    if not len(pairs):
        return found
    chosen, places = np.unique(pairs, return_inverse=True)
    numbers = _Numbers()
    coded = [numbers.encode(split_words(texts[i])) for i in chosen.tolist()]
    lengths = np.array([len(c) for c in coded], np.int64)
    counters = np.array([_count_words(c) for c in coded], np.uint8)
    places = places.reshape(pairs.shape)
    for first in range(0, len(pairs), _BOUNDED_AT_ONCE):
        part = places[first : first + _BOUNDED_AT_ONCE]
        sizes = lengths[part]
        common = np.minimum(counters[part[:, 0]], counters[part[:, 1]]).sum(axis=1, dtype=np.int64)
        common = np.where((sizes > _MOST_COUNTED).all(axis=1), sizes.min(axis=1), common)
        bounds = 2.0 * np.minimum(common, sizes.min(axis=1)) / np.maximum(sizes.sum(axis=1), 1) + _ROUNDING
        for place in np.flatnonzero(bounds >= least).tolist():
            found[first + place] = _measure(coded[part[place, 0]], coded[part[place, 1]])
    return found


class RougePool:
    """A pool of texts. `best(text)` is the greatest ROUGE-L F against any of them, exact wherever it is greater than `limit`.

    Below the limit it is what was met, at most the limit: 0.0 where nothing needed comparing.
    """

    def __init__(self, limit: float = 0.0, texts: Sequence[str] = ()) -> None:
        if not 0.0 <= limit < 1.0:
            raise ValueError(f"limit is {limit}, where a share below 1 is needed")
        self._limit = limit
        self._numbers = _Numbers()
        self._coded: list[str] = []
        self._lengths = np.zeros(64, np.int64)
        self._counters = np.zeros((64, _COUNTERS), np.uint8)
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._coded)

    def add(self, text: str) -> None:
        """Put a text into the pool."""
        coded = self._numbers.encode(split_words(text))
        count = len(self._coded)
        if count == len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
            self._counters = np.concatenate([self._counters, np.zeros_like(self._counters)])
        self._coded.append(coded)
        self._lengths[count] = len(coded)
        self._counters[count] = _count_words(coded)

    def best(self, text: str) -> float:
        """The greatest ROUGE-L F of the text against the pool."""
        return self.find_best(text)[0]

    def find_best(self, text: str) -> tuple[float, int]:
        """The greatest ROUGE-L F, and the position of the first text that has it; (0.0, -1) where none comes near."""
        from rapidfuzz.distance import LCSseq

        coded = self._numbers.look_up(split_words(text))
        size, count = len(coded), len(self._coded)
        if not size or not count:
            return 0.0, -1
        lengths = self._lengths[:count]
        # The longest common subsequence is no longer than what the two have in common, counted in 64 classes of words.
        common = np.minimum(self._counters[:count], _count_words(coded)).sum(axis=1, dtype=np.int64)
        if size > _MOST_COUNTED:
            common[lengths > _MOST_COUNTED] = size
        bounds = 2.0 * np.minimum(np.minimum(common, lengths), size) / (lengths + size) + _ROUNDING
        near = np.flatnonzero(bounds > self._limit)
        near = near[np.argsort(-bounds[near], kind="stable")]
        best, place = 0.0, -1
        for position in near.tolist():
            if bounds[position] < best:
                break
            total = len(self._coded[position]) + size
            needed = int((max(best, self._limit) - _ROUNDING) * total / 2)
            common_length = LCSseq.similarity(coded, self._coded[position], score_cutoff=max(needed, 0) or None)
            value = _to_f(common_length, size, total - size)
            if value > best or (value == best and value > 0 and position < place):
                best, place = value, position
        return best, place


class _Numbers:
    """Words as single characters, numbered as they appear, so that a text is a string of as many."""

    def __init__(self) -> None:
        self._codes: dict[str, str] = {}

    def encode(self, words: Sequence[str]) -> str:
        codes = self._codes
        return "".join([codes.get(word) or self._add(word) for word in words])

    def look_up(self, words: Sequence[str]) -> str:
        """The words where unknown ones, which equal nothing, share a character."""
        return "".join([self._codes.get(word, _UNKNOWN) for word in words])

    def _add(self, word: str) -> str:
        number = len(self._codes) + 1
        if number >= _MOST_WORDS:
            raise ValueError(f"The pool has more than {_MOST_WORDS:,} different words: make it smaller.")
        code = chr(number if number < 0xD800 else number + 0x800)  # no halves of surrogate pairs
        self._codes[word] = code
        return code


def _count_words(coded: str) -> NDArray[np.uint8]:
    codes = np.frombuffer(coded.encode("utf-32-le"), np.uint32)
    return np.minimum(np.bincount(codes % _COUNTERS, minlength=_COUNTERS), _MOST_COUNTED).astype(np.uint8)


def _measure(left: str, right: str) -> float:
    from rapidfuzz.distance import LCSseq

    return _to_f(LCSseq.similarity(left, right), len(left), len(right)) if left and right else 0.0


def _to_f(common: int, left: int, right: int) -> float:
    """F of precision and recall, as `rouge_score` computes it, to the last bit."""
    if not common:
        return 0.0
    precision, recall = common / right, common / left
    return 2 * precision * recall / (precision + recall)
