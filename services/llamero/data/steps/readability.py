"""How a text reads: its lexical richness (MTLD), its ease (Flesch), and how much of it is misspelled. Knows nothing of records."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

MTLD_THRESHOLD = 0.72

_VOWELS = re.compile(r"[aeiouyáàâäéèêëíïóôöúüœæ]+")
# An e that is not spoken: `make`, `makes`, `asked`; but `table`, `free`, `boxes`, `wanted`.
_MUTE_END = re.compile(r"(?:[^aeiouyl]|[aeiouy]l)e$|[^aeiouysxzcgh]es$|[^aeiouytd]ed$")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)|\n\s*\n|\n(?=\s*(?:[-*+•]|\d+[.)])\s)")
_ABBREVIATIONS = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|Mr|Mrs|Ms|Dr|Prof|St|No|Fig|[A-Z])\.(?=\s)")
# A word of small letters alone; what is part of a name, a number or an identifier is none.
_SMALL_WORD = re.compile(r"(?<![\w'’.@/-])[a-z]+(?:['’][a-z]+)?(?![\w'’@/]|[.-]\w)")
# The list is American.
_BRITISH = tuple(
    (re.compile(british), american)
    for british, american in (
        (r"our(?=$|s$|ed$|ing|able|abl|ful|ite|hood|y$|less|ist|ed)", "or"),
        (r"is(?=e$|es$|ed$|ing$|er$|ers$|ation|able$)", "iz"),
        (r"ys(?=e$|es$|ed$|ing$)", "yz"),
        (r"(?<=[tb])re(?=$|s$|d$)", "er"),
        (r"ll(?=ed$|ing$|er$|ers$|ery$)", "l"),
        (r"ogue(?=$|s$)", "og"),
        (r"ence(?=$|s$)", "ense"),
        (r"ae|oe", "e"),
    )
)
_SUFFIXES = ("'s", "s'", "'ll", "'ve", "'d", "'re")


def find_mtld(words: Sequence[str]) -> float:
    """The measure of textual lexical diversity (McCarthy and Jarvis 2010): the mean number of words that keep a type-token ratio above 0.72.

    Read forwards and backwards; words in lower case. A text that never falls to the threshold has as many as it is long, over the part
    of the way that it has come.
    """
    if not words:
        return 0.0
    return (_run_mtld(words) + _run_mtld(words[::-1])) / 2


def _run_mtld(words: Sequence[str]) -> float:
    factors = 0.0
    types: set[str] = set()
    tokens = 0
    for word in words:
        tokens += 1
        types.add(word)
        if len(types) < MTLD_THRESHOLD * tokens:
            factors += 1
            types.clear()
            tokens = 0
    if tokens:
        factors += (1 - len(types) / tokens) / (1 - MTLD_THRESHOLD)
    return len(words) / factors if factors else 1000.0


def find_reading_ease(text: str, words: Sequence[str]) -> float:
    """Flesch's reading ease (1948) of English: 206.835 - 1.015 words/sentence - 84.6 syllables/word. Greater is easier; -200 at least."""
    if not words:
        return 0.0
    sentences = max(1, count_sentences(text))
    syllables = sum(map(count_syllables, words))
    return max(-200.0, 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words))


def count_sentences(text: str) -> int:
    """Sentences by their ends; an item of a list and a paragraph end one too."""
    pieces = _SENTENCE_END.split(_ABBREVIATIONS.sub("", text))
    return sum(1 for piece in pieces if any(map(str.isalpha, piece)))


@lru_cache(maxsize=65_536)
def count_syllables(word: str) -> int:
    """Syllables of an English word, guessed from its runs of vowels."""
    word = word.lower().removesuffix("'s").removesuffix("’s")
    count = len(_VOWELS.findall(word))
    return max(count - 1 if _MUTE_END.search(word) else count, 1)


@lru_cache(maxsize=1)
def load_known_words() -> frozenset[str]:
    """English words in lower case: the list that ships with pyspellchecker (MIT), and what it lacks of today's; read once (0.3 s, 20 MB)."""
    from spellchecker import SpellChecker

    more = (Path(__file__).parent / "known_words.txt").read_text(encoding="utf-8").split()
    return frozenset(SpellChecker(language="en").word_frequency.dictionary) | frozenset(more)


def list_small_words(text: str) -> list[str]:
    """The words that are written in small letters alone: names, acronyms and identifiers are not among them."""
    return _SMALL_WORD.findall(text)


def find_misspelled(words: Iterable[str]) -> list[str]:
    """The words that the word list does not know."""
    known = load_known_words()
    return [word for word in words if word not in known and not _is_known(word, known)]


def _is_known(word: str, known: frozenset[str]) -> bool:
    word = word.replace("’", "'")
    if len(word) < 3 or word in known or any(word.endswith(x) and word[: -len(x)] in known for x in _SUFFIXES):
        return True
    return any(pattern.sub(american, word) in known for pattern, american in _BRITISH if pattern.search(word))
