"""Rendered chats as tokens: where spans of characters stand among a text's tokens, and text that must stay text.

Text that reads like a control token is marked by private-use characters before a template is rendered, and encoded as plain
text here; the marks never reach the tokenizer. What the spans mean is left to the templates.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from llamero.model.errors import TemplateError

Spans = list[tuple[int, int]]
"""First character and the one after the last."""

Rendered = tuple[str, Spans]

_OPEN, _CLOSE = "\uf8f0", "\uf8f1"


def mark(text: str, control: re.Pattern[str]) -> str:
    """Put marks around what reads like a control token; marks that the text brings itself are dropped."""
    if _is_marked(text):
        text = text.replace(_OPEN, "").replace(_CLOSE, "")
    return control.sub(f"{_OPEN}\\g<0>{_CLOSE}", text)


@functools.cache
def _marks(control: str) -> re.Pattern[str]:
    """A marked control token, or a mark alone."""
    return re.compile(f"{_OPEN}({control}){_CLOSE}|[{_OPEN}{_CLOSE}]")


@dataclass(frozen=True)
class Tokens:
    """A text's token ids, and where its characters stand among them."""

    ids: list[int]
    find: Callable[[int, int], tuple[int, int] | None]  # first and last token of a span of characters
    is_start: Callable[[int], bool]  # whether a token begins at a character


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Any]:
    """The tokenizer's encodings (ids, offsets) of each text, with nothing added."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TemplateError(
            f"{tokenizer.name_or_path} has no fast tokenizer (tokenizer.json), which llamero needs to find the answers in the tokens."
        )
    return backend.encode_batch(texts, add_special_tokens=False)


def _tokens_of(encoding: Any) -> Tokens:
    def find(start: int, end: int) -> tuple[int, int] | None:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        while first is None and start < end:  # a tokenizer may drop blanks
            start += 1
            first = encoding.char_to_token(start)
        while last is None and start < end:
            end -= 1
            last = encoding.char_to_token(end - 1)
        return None if first is None or last is None else (first, last)

    def is_start(char: int) -> bool:
        token = encoding.char_to_token(char)
        return token is None or encoding.token_to_chars(token)[0] == char

    return Tokens(encoding.ids, find, is_start)


def _encode_pieces(tokenizer: PreTrainedTokenizerBase, control: re.Pattern[str], text: str) -> Tokens:
    """Tokens of a text with marks in it: marked control tokens become plain text, and no token reaches across a mark."""
    pieces: list[tuple[int, str]] = []
    end = 0
    for found in _marks(control.pattern).finditer(text):
        pieces.append((end, text[end : found.start()]))
        if found.group(1):
            # In two pieces it can't be recognised as the token that it reads like.
            pieces.append((found.start(1), found.group(1)[:1]))
            pieces.append((found.start(1) + 1, found.group(1)[1:]))
        end = found.end()
    pieces = [p for p in [*pieces, (end, text[end:])] if p[1]]
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for (shift, _), encoding in zip(pieces, encode_texts(tokenizer, [p for _, p in pieces]), strict=True):
        ids += encoding.ids
        offsets += [(a + shift, b + shift) for a, b in encoding.offsets]

    def find(start: int, end: int) -> tuple[int, int] | None:
        inside = [i for i, (a, b) in enumerate(offsets) if b > start and a < end]
        return (inside[0], inside[-1]) if inside else None

    return Tokens(ids, find, lambda char: all(not a < char < b for a, b in offsets))


def tokenise(
    tokenizer: PreTrainedTokenizerBase, control: re.Pattern[str], rendered: list[Rendered]
) -> list[tuple[Tokens, Spans]]:
    """Tokens of each text and its spans in them.

    A prompt ends where an answer begins, so no token may reach across: where one does, the text is encoded in pieces.
    """
    plain = iter(encode_texts(tokenizer, [text for text, _ in rendered if not _is_marked(text)]))
    results = []
    for text, spans in rendered:
        tokens = _encode_pieces(tokenizer, control, text) if _is_marked(text) else _tokens_of(next(plain))
        if not all(tokens.is_start(start) for start, _ in spans):
            text, spans = _cut(text, spans)
            tokens = _encode_pieces(tokenizer, control, text)
        results.append((tokens, spans))
    return results


def _is_marked(text: str) -> bool:
    return _OPEN in text or _CLOSE in text


def _cut(text: str, spans: Spans) -> Rendered:
    """The text with a mark before each span, and the spans moved along."""
    parts: list[str] = []
    moved: Spans = []
    done = 0
    for i, (start, end) in enumerate(spans, 1):
        parts += [text[done:start], _CLOSE]
        moved.append((start + i, end + i))
        done = start
    return "".join([*parts, text[done:]]), moved
