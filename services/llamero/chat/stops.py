"""Cuts an answer at its first stop string, however it comes in pieces: what may be a stop's beginning is held back until that is known."""

import re
from collections.abc import Sequence


class StopCutter:
    """Takes an answer piece by piece. Engines differ: TGI leaves the stop string in, vLLM takes it out."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._pattern = re.compile("|".join(re.escape(s) for s in self._stops) or r"(?!)")
        self._held = ""
        self.is_cut = False

    def take(self, piece: str) -> str:
        """What of the answer so far can be shown; nothing any more once it is cut."""
        if self.is_cut:
            return ""
        text = self._held + piece
        found = self._pattern.search(text)
        if found is not None:
            self.is_cut, self._held = True, ""
            return text[: found.start()]
        keep = self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back, once the answer is over."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max((len(s) for s in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stops):
                return length
        return 0
