"""Text from a stream of token ids: never half a character, and cut at stop strings wherever token borders lie."""

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
MAX_HELD_REPLACEMENTS = 64  # a model that writes broken bytes for ever must not hold its text back for ever


class Detokenizer:
    """Turns token ids into text as they come.

    A token's text depends on its neighbours (spaces, byte pieces), so a short window of tokens is decoded again each time and
    only what has become certain is given out.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._prefix = 0  # the window starts here …
        self._read = 0  # … and its text up to here has been given out
        self._sent = 0  # characters given out beyond `_read`

    def push(self, token_id: int) -> str:
        """The text that token `token_id` makes certain; may be empty."""
        self._ids.append(token_id)
        text = self._new_text()
        if not text.endswith(REPLACEMENT):
            piece = text[self._sent :]
            self._prefix, self._read, self._sent = self._read, len(self._ids), 0
            return piece
        stable = len(text.rstrip(REPLACEMENT))
        if len(text) - stable > MAX_HELD_REPLACEMENTS:
            stable = len(text)
        piece = text[self._sent : stable]
        self._sent = max(self._sent, stable)
        return piece

    def flush(self) -> str:
        """What is left at the end; half a character comes out as U+FFFD."""
        piece = self._new_text()[self._sent :]
        self._prefix, self._read, self._sent = self._read, len(self._ids), 0
        return piece

    def _new_text(self) -> str:
        if self._read == len(self._ids):
            return ""
        before = self._decode(self._ids[self._prefix : self._read])
        return self._decode(self._ids[self._prefix :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class StopScanner:
    """Holds back text that may be the beginning of a stop string, and cuts at the first one."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stops = tuple(s for s in stop_strings if s)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The part of the text that is certain to lie before any stop string. After a match (`matched`), always empty."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if found:
            at, self.matched = min(found)
            out, self._held = self._held[:at], ""
            return out
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        out = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return out

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0


class TextStream:
    """A generation's text: detokenised, and cut at its stop strings."""

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._scanner = StopScanner(stop_strings)
        self._pieces: list[str] = []

    @property
    def stopped_by(self) -> str | None:
        """The stop string that was met, if any."""
        return self._scanner.matched

    @property
    def text(self) -> str:
        """All text given out so far."""
        return "".join(self._pieces)

    def push(self, token_id: int) -> str:
        """The text that can be shown now that the token has come."""
        return self._keep(self._scanner.push(self._detokenizer.push(token_id)))

    def flush(self) -> str:
        """The text that was held back, when no more tokens come."""
        last = self._scanner.push(self._detokenizer.flush())
        return self._keep(last if self.stopped_by is not None else last + self._scanner.flush())

    def _keep(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece
