"""A list of words and phrases, and where they stand in a text: whole, and whatever their case."""

import re
from collections.abc import Iterable

_WORDS = re.compile(r"\w+")
_PLAIN = re.compile(r"\w+(?:\s+\w+)*")


class WordList:
    """Words and phrases, found whole and whatever their case.

    Words made of letters and digits are looked up among a text's words; any other (`c++`) by an expression of its own.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words: set[str] = set()
        self._phrases: dict[str, list[tuple[str, ...]]] = {}
        self._odd: list[tuple[str, re.Pattern[str]]] = []
        for word in dict.fromkeys(" ".join(w.casefold().split()) for w in words):
            if not word:
                continue
            if not _PLAIN.fullmatch(word):
                pattern = r"\s+".join(re.escape(part) for part in word.split())
                self._odd.append((word, re.compile(rf"(?<!\w){pattern}(?!\w)")))
            elif " " in word:
                parts = tuple(word.split())
                self._phrases.setdefault(parts[0], []).append(parts)
            else:
                self._words.add(word)
        self._first = self._words | self._phrases.keys()

    def __bool__(self) -> bool:
        return bool(self._first or self._odd)

    def find(self, text: str) -> str | None:
        """The first in the text's order of listed words (of odd ones, in the list's); None where there is none."""
        return next(iter(self.find_all(text)), None)

    def find_all(self, text: str) -> list[str]:
        """All that are found, each as often as it stands there."""
        folded = text.casefold()
        found: list[str] = []
        if self._first:
            words = _WORDS.findall(folded)
            if not self._first.isdisjoint(words):
                found = self._match(words)
        for word, pattern in self._odd:
            found += [word] * len(pattern.findall(folded))
        return found

    def _match(self, words: list[str]) -> list[str]:
        found: list[str] = []
        for place, word in enumerate(words):
            if word not in self._first:
                continue
            if word in self._words:
                found.append(word)
            found += [" ".join(p) for p in self._phrases.get(word, ()) if tuple(words[place : place + len(p)]) == p]
        return found
