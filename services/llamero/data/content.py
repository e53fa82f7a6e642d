"""A record by its content: when two are the same, and two prompts (hashes of text that case, blanks and markup don't change).

Numbers, operators and words all count: `8 × 8` is not `9 × 7`, and `x + 1` is not `x - 1`.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b

from llamero.spec.records import Message

_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*\n]*[^\s*])\1(?![\w*])")
_LINE_MARKS = re.compile(r"^[ \t]*(?:#{1,6}|>|[-*+](?=\s))[ \t]+", re.MULTILINE)
_FENCES = re.compile(r"^[ \t]*`{3,}[\w+#.-]*[ \t]*$", re.MULTILINE)
_TURN_END, _ROLE_END = "\x1e", "\x1f"


def fold_text(text: str) -> str:
    """The text without what makes no difference: case, runs of blanks, and Markdown's headings, bullets, quotes, emphasis and backticks."""
    if "`" in text:
        text = _FENCES.sub("", text).replace("`", "")
    if "*" in text:
        text = _EMPHASIS.sub(r"\2", text)
    if "\n" in text or text[:1] in "#>-*+":
        text = _LINE_MARKS.sub("", text)
    return " ".join(text.casefold().split())


def hash_content(messages: Sequence[Message], input: str) -> bytes:
    """16 bytes that two records share when they are the same, whatever system prompt the manifest adds."""
    parts = [f"{m.role}{_ROLE_END}{fold_text(m.content)}" for m in messages]
    parts.append(f"input{_ROLE_END}{fold_text(input)}")
    return blake2b(_TURN_END.join(parts).encode(), digest_size=16).digest()


def hash_prompt(messages: Sequence[Message], input: str) -> bytes:
    """8 bytes of the first user turn and its input: what decides the side of the split. Of a text without an instruction, of the text."""
    first = next(m.content for m in messages if m.role == "user")
    if not first and not input:
        first = next((m.content for m in messages if m.role == "assistant"), "")
    joined = fold_text(f"{first}\n{input}" if input else first)
    return blake2b(joined.encode(), digest_size=8).digest()


def show_turns(messages: Sequence[Message], input: str = "") -> str:
    """A record as text, for a person to recognise it."""
    text = "\n".join(f"{m.role}: {m.content}" for m in messages)
    return f"{text}\ninput: {input}" if input else text
