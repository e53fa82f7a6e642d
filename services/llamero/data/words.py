"""Many texts at once as arrays: their characters, words, lines and paragraphs, and 64-bit hashes of any piece of them.

A hash of a piece is a difference of prefix sums (a polynomial over the characters), so that every piece costs the same whatever its length.
Knows nothing of rules: those stand in the steps. All positions are in characters of the joined texts.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Flags = NDArray[np.bool_]

BATCH_CHARACTERS: Final = 1 << 19
"""Characters judged at once: the arrays of so many stay in a core's cache, and a call of numpy is for many documents."""

LONGEST_TEXT: Final = 4 << 20
"""Longer texts are judged by their first so many characters: far above any rule's words, and a bound on memory (some 60 bytes each)."""

# What a character is, as bits.
INK, WORD, LETTER, DIGIT, MARK, LINE_END, OPERATOR = 1, 2, 4, 8, 16, 32, 64
_OPERATORS = "+-*/=<>^%|:~×÷±≤≥≈≠−·"
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_SEPARATOR = "\n"
_QUOTES = (0x27, 0x2019)
_LATIN, _ALL = 0x100, 0x110000
_LAST_WITH_KIND = 0x20000  # beyond are ideographs, letters that need no look, and planes without characters

_BASE: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT: Final = np.uint64(31)


@lru_cache(2)
def _find_kinds(count: int) -> NDArray[np.uint8]:
    """The bits of the first so many characters."""
    letters = np.arange(count, dtype=np.uint32).view("<U1")
    kinds = np.full(count, INK, dtype=np.uint8)
    alphabetic, alphanumeric, digits = (
        np.strings.isalpha(letters),
        np.strings.isalnum(letters),
        np.strings.isdecimal(letters),
    )
    kinds[alphabetic] |= LETTER | WORD
    kinds[alphanumeric] |= WORD
    kinds[digits] |= DIGIT
    kinds[np.strings.isspace(letters)] &= ~np.uint8(INK)
    kinds[ord("_")] |= WORD
    for code in np.flatnonzero((kinds[:_LAST_WITH_KIND] & (INK | LETTER | DIGIT)) == INK).tolist():
        category = unicodedata.category(chr(code))
        if category[0] == "M":  # accents and vowel signs belong to the word
            kinds[code] |= WORD
        elif category[0] == "P" or category == "Cc" or code < 0x80:
            kinds[code] |= MARK
    for characters, bit in ((_LINE_ENDS, LINE_END), (_OPERATORS, OPERATOR)):
        for character in characters:
            if ord(character) < count:
                kinds[ord(character)] |= bit
    kinds[0] = INK | MARK
    return kinds


@lru_cache(4)
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """The base's powers 0 … count - 1, and their inverses, modulo 2^64."""
    inverse = np.uint64(pow(int(_BASE), -1, 1 << 64))
    pair = []
    for base in (_BASE, inverse):
        powers = np.full(count, base, dtype=np.uint64)
        powers[0] = 1
        pair.append(np.multiply.accumulate(powers))
    return pair[0], pair[1]


def mix(values: Hashes) -> Hashes:
    """The hashes with their bits spread, so that sums of them don't meet by chance."""
    spread = values ^ (values >> _SHIFT)
    spread *= _MIX
    spread ^= spread >> _SHIFT
    return spread


@dataclass(frozen=True)
class Texts:
    """Texts laid end to end. `characters`: their code points (uint8 where all are below 256), a line feed between two texts;
    text i is `characters[starts[i]:ends[i]]`."""

    characters: NDArray[Any]
    starts: Integers
    ends: Integers

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Integers:
        """Characters of each text."""
        return self.ends - self.starts

    @cached_property
    def kinds(self) -> NDArray[np.uint8]:
        """The bits of each character."""
        # The table of all characters takes a while to make, and most texts never ask for it.
        count = _LATIN if self.characters.dtype == np.uint8 else _ALL
        return _find_kinds(count).take(self.characters)

    @cached_property
    def _prefixes(self) -> Hashes:
        powers, _ = _powers(_round_up(len(self.characters) + 1))
        sums = np.zeros(len(self.characters) + 1, dtype=np.uint64)
        terms = self.characters.astype(np.uint64)
        terms += np.uint64(1)
        terms *= powers[: len(terms)]
        np.cumsum(terms, out=sums[1:])
        return sums

    def hash_pieces(self, starts: Integers, ends: Integers) -> Hashes:
        """A hash of each piece `characters[start:end]`; equal pieces have equal ones."""
        _, inverses = _powers(_round_up(len(self.characters) + 1))
        sums = self._prefixes
        return mix((sums[ends] - sums[starts]) * inverses[starts])

    def count_flags(self, flags: Flags) -> Integers:
        """How many characters of each text are marked in `flags`."""
        return count_within(np.flatnonzero(flags), self.starts, self.ends)

    @cached_property
    def ink(self) -> Integers:
        """Where the characters stand that are not blank."""
        return np.flatnonzero(self.kinds & INK)


def _round_up(count: int) -> int:
    return max(BATCH_CHARACTERS * 2, 1 << (count - 1).bit_length())


def count_within(positions: Integers, starts: Integers, ends: Integers) -> Integers:
    """How many of the sorted positions lie in each `[start, end)`."""
    return np.searchsorted(positions, ends) - np.searchsorted(positions, starts)


def join_texts(texts: Sequence[str]) -> Texts:
    """The texts as one array; of a text longer than LONGEST_TEXT its first characters."""
    cut = [text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] for text in texts]
    characters = _encode(_SEPARATOR.join(cut))
    lengths = np.fromiter(map(len, cut), dtype=np.int64, count=len(cut))
    ends = np.cumsum(lengths + 1) - 1
    return Texts(characters, ends - lengths, ends)


def _encode(text: str) -> NDArray[Any]:
    try:
        return np.frombuffer(text.encode("latin-1"), dtype=np.uint8)
    except UnicodeEncodeError:
        return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def iterate_batches(texts: Sequence[str], characters: int = BATCH_CHARACTERS) -> Iterator[tuple[int, int]]:
    """Runs `[start, end)` of the texts of about so many characters each, at least one text."""
    start = total = 0
    for number, text in enumerate(texts):
        total += min(len(text), LONGEST_TEXT)
        if total >= characters:
            yield start, number + 1
            start, total = number + 1, 0
    if start < len(texts):
        yield start, len(texts)


# -- words -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """The words of texts, one after the other; text i's are `first[i]` to `first[i + 1]`.

    `lengths` in characters; `hashes` equal where words are; `has_letter`: a letter is in it; `is_mark`: nothing but punctuation is;
    `is_maths`: a number, sum or operator: no letter but a digit, or nothing but operators (which are the bars of tables, too).
    """

    first: Integers
    lengths: Integers
    hashes: Hashes
    has_letter: Flags
    is_mark: Flags
    is_maths: Flags

    @property
    def counts(self) -> Integers:
        """Words of each text."""
        return np.diff(self.first)

    @cached_property
    def text_of(self) -> NDArray[np.int32]:
        """The number of each word's text."""
        return np.repeat(np.arange(len(self.first) - 1, dtype=np.int32), self.counts)

    def sum_up(self, values: NDArray[Any]) -> Integers:
        """The values of each text's words, added up."""
        sums = np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum(values, out=sums[1:])
        return sums[self.first[1:]] - sums[self.first[:-1]]


def split_words(texts: Texts, cut: str = "blanks") -> Words:
    """The texts' words. `cut` "blanks": what stands between blanks, as people count. "signs": as tokenisers for English do, runs of letters,
    digits, accents and underscores, and each run of one and the same other sign as a word of its own; an apostrophe between letters begins
    a word (`it` `'s`), a point or comma between digits belongs to the number."""
    kinds, characters = texts.kinds, texts.characters
    if not len(kinds):
        return _measure(texts, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    is_ink = (kinds & INK).view(np.bool_)
    begins = np.empty(len(kinds), dtype=np.bool_)
    begins[0] = is_ink[0]
    if cut == "blanks":
        np.greater(is_ink[1:], is_ink[:-1], out=begins[1:])
    else:
        _begin_at_signs(characters, kinds, is_ink, begins)
    # A word ends where the next begins, or at the blank before that.
    ends = np.empty(len(kinds) + 1, dtype=np.bool_)
    ends[0] = False
    np.logical_and(is_ink[:-1], begins[1:] | ~is_ink[1:], out=ends[1:-1])
    ends[-1] = is_ink[-1]
    return _measure(texts, np.flatnonzero(begins), np.flatnonzero(ends))


def _begin_at_signs(characters: NDArray[Any], kinds: NDArray[np.uint8], is_ink: Flags, begins: Flags) -> None:
    is_word = (kinds & WORD) != 0
    quotes = _join_signs(characters, kinds, is_word)
    np.not_equal(is_word[1:], is_word[:-1], out=begins[1:])
    # A change of character matters between two signs only.
    signs = np.flatnonzero(is_ink & ~is_word)
    signs = signs[signs > 0]
    begins[signs] |= characters[signs] != characters[signs - 1]
    begins[np.flatnonzero(~is_ink[:-1]) + 1] = True
    begins[quotes] = True
    begins &= is_ink


def _join_signs(characters: NDArray[Any], kinds: NDArray[np.uint8], is_word: Flags) -> Integers:
    """Mark points and commas inside numbers, and apostrophes inside words, as parts of words; returns the apostrophes' places."""
    inner = slice(1, -1)
    middle = characters[inner]
    points = np.flatnonzero((middle == 0x2E) | (middle == 0x2C)) + 1
    points = points[(kinds[points - 1] & kinds[points + 1] & DIGIT) != 0]
    is_quote = middle == _QUOTES[0]
    if characters.dtype != np.uint8:
        is_quote |= middle == _QUOTES[1]
    quotes = np.flatnonzero(is_quote) + 1
    quotes = quotes[(kinds[quotes - 1] & kinds[quotes + 1] & LETTER) != 0]
    is_word[points] = True
    is_word[quotes] = True
    return quotes


def take_words(tokens: Sequence[Sequence[str]]) -> Words:
    """Given words, one list a text, as they stand: for those who bring a tokeniser of their own."""
    flat = [token for text in tokens for token in text]
    lengths = np.fromiter(map(len, flat), dtype=np.int64, count=len(flat))
    ends = np.cumsum(lengths)
    joined = Texts(_encode("".join(flat)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    first = np.zeros(len(tokens) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in tokens], out=first[1:])
    return _measure_pieces(joined, ends - lengths, ends, first)


def _measure(texts: Texts, starts: Integers, ends: Integers) -> Words:
    first = np.empty(len(texts) + 1, dtype=np.int64)
    first[:-1] = np.searchsorted(starts, texts.starts)
    first[-1] = len(starts)
    return _measure_pieces(texts, starts, ends, first)


def _measure_pieces(texts: Texts, starts: Integers, ends: Integers, first: Integers) -> Words:
    kinds = texts.kinds
    if not len(starts):
        none = np.zeros(0, dtype=np.bool_)
        return Words(first, ends - starts, np.zeros(0, dtype=np.uint64), none, none, none)

    def count(flags: Flags) -> NDArray[np.int32]:
        sums = np.zeros(len(kinds) + 1, dtype=np.int32)
        np.cumsum(flags, out=sums[1:])
        return sums[ends] - sums[starts]

    has_letter = count((kinds & LETTER) != 0) > 0
    is_maths = ~has_letter & ((count((kinds & DIGIT) != 0) > 0) | (count((kinds & OPERATOR) == 0) == 0))
    return Words(
        first=first,
        lengths=ends - starts,
        hashes=texts.hash_pieces(starts, ends),
        has_letter=has_letter,
        is_mark=count((kinds & MARK) == 0) == 0,
        is_maths=is_maths,
    )


def hash_words(words: Sequence[str]) -> Hashes:
    """The hashes that these words have in any `Words`."""
    return take_words([words]).hashes


# -- lines and paragraphs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pieces:
    """Pieces of texts (lines, paragraphs) in their order: `text_of` the number of each one's text, `[starts, ends)` where it stands."""

    text_of: Integers
    starts: Integers
    ends: Integers

    @property
    def lengths(self) -> Integers:
        return self.ends - self.starts

    def count(self, texts: int) -> Integers:
        """How many pieces each of so many texts has."""
        return np.bincount(self.text_of, minlength=texts)


def split_lines(texts: Texts) -> Pieces:
    """Lines as `str.splitlines` tells them: every kind of line end, the empty ones too."""
    breaks = np.flatnonzero(texts.kinds & LINE_END)
    characters = texts.characters
    follows = np.zeros(len(breaks), dtype=np.bool_)  # the second half of \r\n
    if len(breaks) > 1:
        follows[1:] = (characters[breaks[1:]] == 10) & (characters[breaks[:-1]] == 13) & (np.diff(breaks) == 1)
    # The line feed between two texts ends a line as well; a \r at a text's end has nothing to do with it.
    follows &= ~np.isin(breaks, texts.ends)
    edges = breaks[~follows]
    after = edges + 1
    paired = np.flatnonzero(follows) - 1
    if len(paired):
        after[np.searchsorted(edges, breaks[paired])] += 1
    starts = np.concatenate([texts.starts, after])
    starts.sort()
    starts = starts[np.concatenate([[True], starts[1:] != starts[:-1]])] if len(starts) else starts
    text_of = np.searchsorted(texts.starts, starts, side="right") - 1
    # A line that would begin at its text's end is none.
    inside = starts < texts.ends[text_of] if len(starts) else np.zeros(0, dtype=np.bool_)
    starts, text_of = starts[inside], text_of[inside]
    stops = np.append(edges, len(characters))
    ends = stops[np.searchsorted(edges, starts)]
    return Pieces(text_of, starts, np.minimum(ends, texts.ends[text_of]))


def split_at_line_feeds(texts: Texts, least: int) -> Pieces:
    """Pieces between runs of `least` or more line feeds; blanks around a text and empty pieces are left out.

    `least` 1 gives lines that are not empty, 2 paragraphs.
    """
    ink = texts.ink
    has_ink = count_within(ink, texts.starts, texts.ends) > 0
    numbers = np.flatnonzero(has_ink)
    if not len(numbers):
        return Pieces(numbers, numbers, numbers)
    firsts = ink[np.searchsorted(ink, texts.starts[numbers])]
    lasts = ink[np.searchsorted(ink, texts.ends[numbers]) - 1] + 1
    feeds = np.flatnonzero(texts.characters == 10)
    run_starts, run_ends = _find_runs(feeds)
    is_break = run_ends - run_starts >= least
    run_starts, run_ends = run_starts[is_break], run_ends[is_break]
    # A break counts where it lies inside a text's own ink.
    owner = np.searchsorted(firsts, run_starts, side="right") - 1
    inside = (owner >= 0) & (run_starts < lasts[owner])
    run_starts, run_ends = run_starts[inside], run_ends[inside]
    starts = np.sort(np.concatenate([firsts, run_ends]))
    ends = np.sort(np.concatenate([lasts, run_starts]))
    return Pieces(numbers[np.searchsorted(firsts, starts, side="right") - 1], starts, ends)


def _find_runs(positions: Integers) -> tuple[Integers, Integers]:
    """Where runs of neighbouring positions begin and end."""
    if not len(positions):
        return positions, positions
    is_first = np.empty(len(positions), dtype=np.bool_)
    is_first[0] = True
    np.not_equal(np.diff(positions), 1, out=is_first[1:])
    starts = positions[is_first]
    ends = positions[np.append(np.flatnonzero(is_first)[1:] - 1, len(positions) - 1)] + 1
    return starts, ends


# -- what is not to be judged ------------------------------------------------------------------------------------------------------

_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n.*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)(?:`[^`\n]+`|``(?!`)(?:[^`\n]|`(?!`))+``)(?!`)")
_MATHS = re.compile(
    r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|(?<![\w$\\])\$(?=[^\s$\d])[^$\n]*[^\s$\\]\$(?![\w$])", re.DOTALL
)


def strip_code(text: str, maths: bool = False) -> str:
    """The text without fenced and inline code, and without maths where asked; what is left keeps its lines."""
    if "`" in text or "~~~" in text:
        text = _FENCED.sub("", text)
        text = _INLINE.sub("", text)
    if maths and ("$" in text or "\\" in text):
        text = _MATHS.sub("", text)
    return text
