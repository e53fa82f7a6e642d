"""What a rewritten text must still hold: its code, its numbers and its names. Finds what was lost; what follows from it is left to the step.

- code: each fenced block, line by line (blanks at line ends aside), and each piece of inline code, must stand in the rewrite as it was.
- numbers: each distinct number must stand in the rewrite, in digits (`1,000` is `1000`) or, up to twenty, as an English word. The numbers of
  a list's items don't count.
- names: each word that is written with a capital where no sentence begins, and each that is written like an identifier (`camelCase`, `a_b`,
  `NASA`), must stand in the rewrite in any case. A word that the text also writes small is no name, nor are the words of a headline.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llamero.spec.steps import Kept

_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_NUMBER = re.compile(r"(?<!\w)(?<!\d[.,])\d+(?:[.,]\d+)*")
_ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d{1,3}[.)])[ \t]+", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]\w*(?:['’-]\w+)*")
_IDENTIFIER = re.compile(r"\w*[a-z]\w*[A-Z]\w*|[A-Z]{2,}\w*|\w+_\w+")
_SENTENCE_END = frozenset(".!?:;…")
_OPENING = frozenset("\"'“”‘’([{*_#>|")
_PRONOUN = re.compile(r"I(?:['’](?:m|ll|ve|d))?")
_POSSESSIVE = re.compile(r"['’]s?$")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
_SPELLED = tuple(_SMALL.split(" "))
_HEADLINE_WORDS = 3


@dataclass(frozen=True)
class Loss:
    """What a rewrite lost of one kind, in the order of the original."""

    kind: Kept
    items: tuple[str, ...]


def find_losses(original: str, rewrite: str, kinds: Sequence[Kept]) -> list[Loss]:
    """What the original holds and the rewrite does not, by kind; empty where nothing is lost."""
    losses = [
        Loss(kind, tuple(_FINDERS[kind](original, rewrite))) for kind in ("code", "numbers", "names") if kind in kinds
    ]
    return [loss for loss in losses if loss.items]


def _find_lost_code(original: str, rewrite: str) -> Iterator[str]:
    there = _strip_line_ends(rewrite)
    blocks = [_strip_line_ends(m[2]).strip("\n") for m in _FENCED.finditer(original)]
    pieces = [m[1] for m in _INLINE.finditer(_FENCED.sub("", original))]
    yield from (code for code in dict.fromkeys([*blocks, *pieces]) if code.strip() and code not in there)


def _strip_line_ends(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n"))


def _find_lost_numbers(original: str, rewrite: str) -> Iterator[str]:
    there = set(_list_numbers(rewrite))
    # A rewrite may turn prose into a numbered list or a list into prose: there its items' numbers count.
    there.update(m[0].strip().rstrip(".)") for m in _ITEM.finditer(rewrite))
    words = set(re.findall(r"[a-z]+", rewrite.casefold()))
    for number in dict.fromkeys(_list_numbers(original)):
        is_spelled = number.isdecimal() and int(number) < len(_SPELLED) and _SPELLED[int(number)] in words
        if number not in there and not is_spelled:
            yield number


def _list_numbers(text: str) -> list[str]:
    return [_fold_number(m[0]) for m in _NUMBER.finditer(_ITEM.sub("", text))]


def _fold_number(number: str) -> str:
    return number.replace(",", "") if _GROUPED.fullmatch(number) else number


def _find_lost_names(original: str, rewrite: str) -> Iterator[str]:
    there = {_fold_name(m[0]) for m in _WORD.finditer(rewrite)}
    whole = rewrite.casefold()
    for name in dict.fromkeys(_list_names(_FENCED.sub("", original))):
        if name.casefold() not in there and name.casefold() not in whole:
            yield name


def _list_names(text: str) -> list[str]:
    small = {m[0] for m in _WORD.finditer(text) if m[0][0].islower()}
    names = []
    lines = text.rstrip().split("\n")
    for number, line in enumerate(lines):
        body = _ITEM.sub("", line)
        words = list(_WORD.finditer(body))
        # What stands over something is a headline; a last line that looks like one says something itself.
        may_head = number < len(lines) - 1 and body.rstrip()[-1:] not in _SENTENCE_END
        if line.lstrip().startswith("#") or (may_head and _is_headline([m[0] for m in words])):
            continue
        for match in words:
            word = match[0]
            if _PRONOUN.fullmatch(word):
                continue
            is_capital = word[0].isupper() and not _begins_sentence(body[: match.start()]) and word.lower() not in small
            if is_capital or _IDENTIFIER.fullmatch(word):
                names.append(_POSSESSIVE.sub("", word))
    return names


def _is_headline(words: Sequence[str]) -> bool:
    return len(words) >= _HEADLINE_WORDS and all(w[0].isupper() for w in words if len(w) > 3)


def _begins_sentence(before: str) -> bool:
    stripped = before.rstrip()
    while stripped and stripped[-1] in _OPENING:
        stripped = stripped[:-1].rstrip()
    return not stripped or stripped[-1] in _SENTENCE_END


def _fold_name(word: str) -> str:
    return _POSSESSIVE.sub("", word).casefold()


_FINDERS = {"code": _find_lost_code, "numbers": _find_lost_numbers, "names": _find_lost_names}
