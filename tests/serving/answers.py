"""What answers under load come to: which of them failed, and which were given by an adapter that the name did not have. Pure.

Times are in seconds on one clock (`time.monotonic`).
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

STREAM_BROKEN = "stream broken"


@dataclass(frozen=True)
class Answer:
    """One streamed chat as its client saw it. `fault` is why it failed: empty where it did not."""

    model: str
    started: float
    ended: float
    text: str
    fault: str = ""
    first_token: float | None = None
    status: int | None = None
    error_message: str = ""  # what an error event or an error body said

    @property
    def words(self) -> frozenset[str]:
        """The different words of the text."""
        return frozenset(self.text.split())


@dataclass
class Timeline:
    """Which words a public name may be answered with, and when."""

    _spans: dict[str, list[tuple[str, float, float]]] = field(default_factory=lambda: defaultdict(list))

    def allow(self, model: str, word: str, since: float) -> None:
        self._spans[model].append((word, since, math.inf))

    def forbid(self, model: str, word: str, since: float) -> None:
        """Answers that begin later may not have the word."""
        self._spans[model] = [(w, begin, min(end, since) if w == word else end) for w, begin, end in self._spans[model]]

    def allowed(self, answer: Answer) -> frozenset[str]:
        """The words of all adapters that the name had at any moment of the answer."""
        return frozenset(
            w for w, since, until in self._spans[answer.model] if since <= answer.ended and answer.started <= until
        )


def is_wrong(answer: Answer, timeline: Timeline) -> bool:
    """Whether any part of its text is not one allowed adapter's: of two mixed adapters, too. Failed ones count by what came before."""
    words = answer.words
    return len(words) > 1 or not words <= timeline.allowed(answer)


@dataclass(frozen=True)
class Tally:
    """The figures of one story."""

    requests: int
    failed: int
    wrong: int
    answered_by: dict[str, int]
    first_token_p95: float | None

    @classmethod
    def of(cls, answers: Iterable[Answer], timeline: Timeline) -> "Tally":
        found = list(answers)
        words: dict[str, int] = defaultdict(int)
        for answer in found:
            for word in answer.words:
                words[word] += 1
        times = sorted(a.first_token for a in found if a.first_token is not None)
        return cls(
            requests=len(found),
            failed=sum(bool(a.fault) for a in found),
            wrong=sum(is_wrong(a, timeline) for a in found),
            answered_by=dict(sorted(words.items())),
            first_token_p95=times[min(len(times) - 1, int(0.95 * len(times)))] if times else None,
        )


def describe_faults(answers: Iterable[Answer], timeline: Timeline, most: int = 5) -> str:
    """The first failed or wrong answers, a line each, for a failed test."""
    lines = [
        f"{a.model} at {a.started:.2f} to {a.ended:.2f}: {a.fault or 'wrong'}: status {a.status}, {a.error_message!r}, text {a.text[:60]!r}, "
        f"allowed {sorted(timeline.allowed(a))}"
        for a in answers
        if a.fault or is_wrong(a, timeline)
    ]
    return "\n".join(lines[:most])
