"""How fast an endpoint may be asked: a worker's part of the manifest's limits, and when the next request may go.

Each worker takes its part of each limit without talking to the others: the limit divided by the workers, at least one of each. What a
process has sent is remembered between Askers, so that a new shard does not begin with a fresh minute.
"""

import threading
from dataclasses import dataclass

from llamero.spec.steps import LanguageModel

MINUTE_SECONDS = 60.0
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Limits:
    """One worker's part. None: without a limit."""

    concurrency: int
    requests_per_minute: float | None
    tokens_per_minute: float | None


def share_limits(model: LanguageModel, workers: int) -> Limits:
    """A worker's part of a model's limits; requests and tokens are divided as fractions (at least one a minute)."""
    return Limits(
        max(1, model.concurrency // workers),
        _share(model.requests_per_minute, workers),
        _share(model.tokens_per_minute, workers),
    )


def _share(limit: int | None, workers: int) -> float | None:
    return None if limit is None else max(1.0, limit / workers)


def estimate_tokens(characters: int) -> int:
    """About how many tokens a text has, for pacing and where an endpoint does not say."""
    return -(-characters // CHARACTERS_PER_TOKEN)


class Pace:
    """Spaces requests evenly, by number and by tokens, and keeps all of them back while the endpoint asks for a pause.

    Times are those of a monotonic clock, in seconds, passed in. Evenly, rather than a minute's worth at once: no minute, wherever it
    begins, holds more than the limit and one.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._next_request = 0.0
        self._next_token = 0.0
        self._paused_until = 0.0
        self._answers = 0
        self._output_tokens = 0

    def reserve(self, now: float, tokens: int) -> float:
        """The time at which a request of so many tokens may go; it is taken for gone then."""
        with self._lock:
            at = max(now, self._next_request, self._next_token, self._paused_until)
            if self.limits.requests_per_minute is not None:
                self._next_request = at + MINUTE_SECONDS / self.limits.requests_per_minute
            if self.limits.tokens_per_minute is not None:
                self._next_token = at + tokens * MINUTE_SECONDS / self.limits.tokens_per_minute
            return at

    def correct(self, reserved: int, used: int) -> None:
        """Tell how many tokens a request really took: what was reserved too much is given back, what was too little is waited for."""
        if self.limits.tokens_per_minute is None:
            return
        with self._lock:
            self._next_token += (used - reserved) * MINUTE_SECONDS / self.limits.tokens_per_minute

    def pause(self, until: float) -> None:
        """Send nothing before that time."""
        with self._lock:
            self._paused_until = max(self._paused_until, until)

    def is_paused(self, now: float) -> bool:
        """Whether the endpoint asked for a pause that is not over."""
        return now < self._paused_until

    def expect_output(self, max_tokens: int) -> int:
        """How many tokens the next answer may have: the mean so far; before the first one, all that it may."""
        with self._lock:
            return max_tokens if not self._answers else -(-self._output_tokens // self._answers)

    def learn_output(self, tokens: int) -> None:
        """Take an answer's length into the mean."""
        with self._lock:
            self._answers += 1
            self._output_tokens += tokens


_PACES: dict[tuple[str, Limits], Pace] = {}
_PACES_LOCK = threading.Lock()


def find_pace(endpoint: str, limits: Limits) -> Pace:
    """This process's pace for an endpoint's model."""
    with _PACES_LOCK:
        return _PACES.setdefault((endpoint, limits), Pace(limits))
