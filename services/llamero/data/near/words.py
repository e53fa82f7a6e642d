"""Texts as hashes of their words: what two texts share is then a matter of equal numbers. Whole batches at once, numpy alone.

Folded away: case, punctuation, white space, compatibility forms (NFKC). Kept: numbers (`3.5` is one word) and operators, each a word
of its own; a hyphen, a slash between words, a bullet or a Markdown mark is none. Scripts without blanks count each character as a word.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]

BLOCK_BYTES = 1 << 18
"""Texts are hashed in blocks of about so many bytes, so that what is at hand stays in the cache."""

LONGEST_BYTES = 4 << 20
"""Longer texts are compared by their first so many bytes: a bound on memory (some 50 bytes each)."""

_BASE = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(_BASE, -1, 2**64)
_MARK = "\x01"
"""Stands before a sign that is no ASCII: together they are a word that counts as a number does."""

_MATHS = {"×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/", "⁄": "/", "−": "-", "–": "-", "‐": "-"}
_NO_BLANKS = (
    ("\u0e00", "\u0eff"),  # Thai, Lao
    ("\u1000", "\u109f"),  # Myanmar
    ("\u1780", "\u17ff"),  # Khmer
    ("\u3040", "\u30ff"),  # Hiragana, Katakana
    ("\u3400", "\u9fff"),  # Han
    ("\uf900", "\ufaff"),
    ("\U00020000", "\U0003ffff"),
)

_DIGITS = b"0123456789"
_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OPERATORS = b"+=<>^%"
_AMBIGUOUS = b"-*/"
"""Operators beside a digit, between blanks within a line, or (but for the hyphen) within a word."""

_OTHER = re.compile(r"[^\x00-\x7f]{1,64}")
"""Characters that are no ASCII: most texts hold few of them, and the same ones."""

_SEPARATOR, _WORD, _OPERATOR = 0, 1, 2


def _build_kinds() -> NDArray[np.uint8]:
    kinds = np.zeros(256, np.uint8)
    kinds[list(_DIGITS + _LETTERS + b"_\x01")] = _WORD
    kinds[128:] = _WORD
    kinds[list(_OPERATORS)] = _OPERATOR
    return kinds


_KINDS = _build_kinds().tobytes()
_LOWER = bytes(range(256)).lower()
_IS_AMBIGUOUS = np.isin(np.arange(256), list(_AMBIGUOUS))


class _Folding(dict[int, str]):
    """What becomes of a character that is no ASCII, found when it is first met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if char in _MATHS:
            folded = _MATHS[char]
        elif category == "Nd":
            folded = str(unicodedata.digit(char))
        elif category in ("Sm", "Sc"):
            folded = f" {_MARK}{char} "
        elif category[0] in "PZCS" and category != "Cf":
            folded = " "
        elif category == "Cf":
            folded = ""
        elif any(low <= char <= high for low, high in _NO_BLANKS):
            folded = f" {char} "
        else:
            folded = char
        self[code] = folded
        return folded


_FOLDING = _Folding({code: chr(code) for code in range(128)})


@dataclass(frozen=True)
class Words:
    """Texts as words. `hashes` [words] of all texts in a row, `offsets` [texts + 1] where each begins.

    `numbers` [texts]: one value that two texts share when they hold the same numbers and operators in the same order.
    """

    hashes: Hashes
    offsets: Offsets
    numbers: Hashes

    @property
    def lengths(self) -> Offsets:
        """Words of each text."""
        return np.diff(self.offsets)


def mix(values: Hashes) -> Hashes:
    """A one-to-one scrambling of 64-bit values (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = values + np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def hash_words(texts: Sequence[str], with_operators: bool = True) -> Words:
    """The words of each text; without operators they separate words as punctuation does, and `numbers` are of numbers alone."""
    blocks = [_hash_block(block, with_operators) for block in _cut_blocks(texts)]
    if not blocks:
        return Words(np.zeros(0, np.uint64), np.zeros(1, np.int64), np.zeros(0, np.uint64))
    lengths = np.concatenate([b.lengths for b in blocks])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Words(np.concatenate([b.hashes for b in blocks]), offsets, np.concatenate([b.numbers for b in blocks]))


def fold_characters(text: str) -> str:
    """A text that is not ASCII with its marks folded; ASCII is folded when it is hashed."""
    return _OTHER.sub(_fold_run, unicodedata.normalize("NFKC", text))


def _fold_run(match: re.Match[str]) -> str:
    return _fold(match.group())


@lru_cache(maxsize=4096)
def _fold(run: str) -> str:
    return run.casefold().translate(_FOLDING)


def _cut_blocks(texts: Sequence[str]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    size = 0
    for text in texts:
        data = text.encode() if text.isascii() else fold_characters(text).encode("utf-8", "replace")
        block.append(data[:LONGEST_BYTES])
        size += len(block[-1]) + 1
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _hash_block(texts: list[bytes], with_operators: bool) -> Words:
    data = b"\n".join([*texts, b"\n"])
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
    kinds = _find_kinds(data)
    is_word = kinds == _WORD
    starts_mask = is_word.copy()
    starts_mask[1:] &= ~is_word[:-1]
    ends_mask = is_word
    ends_mask[:-1] &= ~is_word[1:]  # is_word is no longer needed
    operators = (kinds == _OPERATOR) & with_operators
    starts = np.flatnonzero(starts_mask | operators)
    stops = np.flatnonzero(ends_mask | operators) + 1

    powers, inverses = _find_powers(len(data))
    sums = np.frombuffer(data.translate(_LOWER), np.uint8).astype(np.uint64)
    sums += np.uint64(1)
    sums *= powers[: len(data)]
    np.cumsum(sums, out=sums)
    hashes = sums[stops - 1]
    inner = starts > 0
    hashes[inner] -= sums[starts[inner] - 1]
    hashes *= inverses[starts]
    hashes = mix(hashes)

    offsets = np.concatenate([np.zeros(1, np.int64), np.searchsorted(starts, ends).astype(np.int64)])
    return Words(hashes, offsets, _hash_numbers(data, starts, operators, hashes, offsets))


def _find_kinds(data: bytes) -> NDArray[np.uint8]:
    """What each byte is: separator, part of a word, or an operator."""
    kinds = np.frombuffer(data.translate(_KINDS), np.uint8).copy()
    codes = np.frombuffer(data, np.uint8)
    is_digit = (codes - np.uint8(48)) < 10
    dots = np.flatnonzero(codes == 46)
    dots = dots[dots > 0]
    kinds[dots[is_digit[dots - 1] & is_digit[dots + 1]]] = _WORD
    quotes = np.flatnonzero(codes == 62)  # > at a line's beginning quotes
    kinds[quotes[(quotes == 0) | (codes[quotes - 1] == 10)]] = _SEPARATOR

    signs = np.flatnonzero(_IS_AMBIGUOUS[codes])
    if len(signs):
        before, after = np.maximum(signs - 1, 0), signs + 1
        beside_digit = is_digit[before] | is_digit[after]
        within_word = (kinds[before] == _WORD) & (kinds[after] == _WORD) & (codes[signs] != 45)
        between_blanks = (codes[before] == 32) & (codes[after] == 32) & ~_begin_lines(codes, signs)
        kinds[signs[beside_digit | within_word | between_blanks]] = _OPERATOR
    return kinds


def _begin_lines(codes: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether nothing but blanks stands before each place in its line: then it is a bullet."""
    solid = np.flatnonzero((codes != 32) & (codes != 9))
    at = np.searchsorted(solid, places)
    begins: NDArray[np.bool_] = (at == 0) | (codes[solid[np.maximum(at - 1, 0)]] == 10)
    return begins


def _hash_numbers(
    data: bytes, starts: NDArray[np.int64], operators: NDArray[np.bool_], hashes: Hashes, offsets: Offsets
) -> Hashes:
    codes = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(((codes - np.uint8(48)) < 10) | operators | (codes == 1))
    words = np.searchsorted(starts, marks, side="right") - 1
    if len(words):
        words = words[np.concatenate([[True], words[1:] != words[:-1]])]
    bounds = np.searchsorted(words, offsets)
    ranks = np.arange(len(words)) - np.repeat(bounds[:-1], np.diff(bounds))
    values = mix(hashes[words] + mix(ranks.astype(np.uint64)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    found: Hashes = sums[bounds[1:]] - sums[bounds[:-1]]
    return found


_powers: tuple[Hashes, Hashes] = (np.ones(1, np.uint64), np.ones(1, np.uint64))


def _find_powers(count: int) -> tuple[Hashes, Hashes]:
    """Powers of the hash's base and of its inverse (mod 2^64), kept for the next block."""
    global _powers
    if len(_powers[0]) < count:
        size = max(count, 2 * BLOCK_BYTES)
        _powers = _build_powers(_BASE, size), _build_powers(_INVERSE, size)
    return _powers


def _build_powers(base: int, count: int) -> Hashes:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)
