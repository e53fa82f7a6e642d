"""What of a Markdown text is prose: where its code, maths and links stand. Knows nothing of records."""

import re
from collections.abc import Callable, Iterator

_FENCED = r"^(?P<fence>[ \t]*(?P<mark>`{3,}|~{3,})[^\n]*\n)(?:.*\n)*?(?:[ \t]*(?P=mark)[`~]*[ \t]*$|\Z)"
_INLINE = r"(?<!`)(?P<ticks>`{1,2})(?!`)[^`\n]+(?P=ticks)(?!`)"
_MATHS = (
    r"\$\$[^$]{1,4000}\$\$|(?<![\\$\w])\$(?=\S)[^$\n]{1,400}(?<=\S)\$(?![\d$])|\\\([^\n]{1,400}?\\\)|\\\[[\s\S]{1,4000}?\\\]"
    r"|\\begin\{(?P<name>[a-z*]{1,16})\}[\s\S]{1,4000}?\\end\{(?P=name)\}"
)
_CODE = re.compile(f"{_FENCED}|{_INLINE}", re.MULTILINE)
_CODE_OR_MATHS = re.compile(f"{_FENCED}|{_INLINE}|{_MATHS}", re.MULTILINE)

_BARE_LINK = re.compile(
    r"(?:https?://|ftp://|www\.)[^\s<>()\[\]\"'`]+(?:\([^\s<>()]*\)[^\s<>()\[\]\"'`]*)*", re.IGNORECASE
)
_IMAGE = re.compile(
    r"!\[([^\[\]\n]{0,500})\](?:\((?:<[^<>\n]*>|[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)(?:\s+\"[^\"\n]*\")?\)|\[[^\[\]\n]{0,80}\])"
)
_LINK = re.compile(
    r"\[((?:[^\[\]\n]|\[[^\[\]\n]{0,200}\]){0,500})\](?:\((?:<[^<>\n]*>|[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)(?:\s+\"[^\"\n]*\")?\)|\[[^\[\]\n]{1,80}\])"
)
_LINK_TARGET = re.compile(r"^[ \t]{0,3}\[[^\[\]\n]{1,80}\]:[ \t]*\S+[^\n]*(?:\n|\Z)", re.MULTILINE)
_AUTO_LINK = re.compile(r"<(?:https?://|ftp://|mailto:)[^<>\s]+>", re.IGNORECASE)

# Code that nobody fenced: a line that ends as no sentence does, or begins with a word of a language and goes on with its marks.
_CODE_LINE = re.compile(
    r"^(?:[^\n]*[;{}]|[^\n]*\)[ ]?(?::|=>|->)|[ \t]*(?:[\w.]+\([^\n]*\)|@\w+|<[!/]?\w[^\n]*>|(?://|#|/\*|--)[^\n]*)"
    r"|[ \t]*[\w.\[\]]+[ ]?[-+*/]?=[ ]?[^\n]*"
    r"|[ \t]*(?:def|class|import|from|return|for|while|if|elif|else|try|except|finally|with|public|private|static|void|int|var|let|const"
    r"|function|print|echo|SELECT|INSERT|UPDATE|DELETE|CREATE|FROM|WHERE|JOIN|ORDER BY|GROUP BY)\b[^\n]*[:=(){}\[\]\"'*][^\n]*)[ \t]*$\n?",
    re.MULTILINE,
)
_CALL = re.compile(r"(?<=\w)\(|\):")

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
"""A word: letters, with apostrophes between them."""


def has_code(text: str) -> bool:
    """Whether the text may hold code: a cheap look."""
    return "`" in text or "~~~" in text


def has_maths(text: str) -> bool:
    """Whether the text may hold maths: a cheap look."""
    return "$" in text or "\\(" in text or "\\[" in text or "\\begin" in text


def strip_code(text: str, maths: bool = False) -> str:
    """The text with a blank in the place of each fenced block and each inline code, and where `maths`, each formula."""
    if maths and has_maths(text):
        return _CODE_OR_MATHS.sub(" ", text)
    return _CODE.sub(" ", text) if has_code(text) else text


def strip_code_lines(text: str) -> str:
    """The text without lines that are code though nobody fenced them (guessed by their marks)."""
    may_hold = any(mark in text for mark in ";{}=<") or ("(" in text and _CALL.search(text) is not None)
    return _CODE_LINE.sub("", text) if may_hold else text


def change_prose(text: str, change: Callable[[str], str]) -> str:
    """The text with what is neither code nor maths changed, piece by piece."""
    if not (has_code(text) or has_maths(text)):
        return change(text)
    return "".join(piece if is_code else change(piece) for is_code, piece in _split(text))


def _split(text: str) -> Iterator[tuple[bool, str]]:
    end = 0
    for match in _CODE_OR_MATHS.finditer(text):
        if match.start() > end:
            yield False, text[end : match.start()]
        yield True, match.group()
        end = match.end()
    if end < len(text):
        yield False, text[end:]


def may_have_links(text: str) -> bool:
    """Whether the text may hold links or images: a cheap look."""
    return "](" in text or "][" in text or "://" in text or "]:" in text or "www." in text or "mailto:" in text


def strip_links(text: str) -> str:
    """The text without images, bare links and link targets; of `[text](target)` the text stays."""
    if not may_have_links(text):
        return text
    text = _IMAGE.sub("", text)
    text = _LINK_TARGET.sub("", text)
    text = _LINK.sub(r"\1", text)
    text = _AUTO_LINK.sub("", text)
    return _BARE_LINK.sub(_keep_full_stop, text)


def _keep_full_stop(match: re.Match[str]) -> str:
    """A sentence's end that stands right after a link belongs to the sentence."""
    last = match.group()[-1]
    return last if last in ".,;:!?" else ""
