"""What requests came to: counts by target and rollout step, requests under way, and votes; told to the operator as a ChatReport.

Counts are kept for the steps that stand in the routes; those of older steps are dropped. Nothing of a prompt or an answer is kept.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Literal

from llamero.chat.routing import Ask, Busyness
from llamero.chat.settings import ANSWER_SECONDS, MAX_ANSWERS_KEPT
from llamero.spec.routes import Route, Routes, Target
from llamero.spec.serving import FIRST_TOKEN_BOUNDS, ChatReport, InFlight, TargetCounts, first_token_bucket

Vote = Literal["up", "down"]


@dataclass(frozen=True)
class Key:
    """What is counted together. `adapter` None is the base."""

    model: str
    step: str
    adapter: str | None


def key_of(route: Route, target: Target) -> Key:
    """The key of a request that goes to a target by a route."""
    return Key(route.model, route.step, target.adapter)


@dataclass
class _Counts:
    requests: int = 0
    errors: int = 0
    first_token: list[int] = field(default_factory=lambda: [0] * (len(FIRST_TOKEN_BOUNDS) + 1))
    votes: Counter[Vote] = field(default_factory=Counter)


@dataclass
class _Answer:
    key: Key
    given_at: float
    vote: Vote | None = None


class Ledger:
    """The books of one chat service, from its start."""

    def __init__(self) -> None:
        self.instance = token_hex(8)
        self._counts: dict[Key, _Counts] = {}
        self._steps: set[tuple[str, str]] = set()
        self._in_flight: Counter[Ask] = Counter()
        self._busy: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    def follow(self, routes: Routes) -> None:
        """Keep the counts of these routes' steps alone."""
        self._steps = {(r.model, r.step) for r in routes.routes}
        self._counts = {k: c for k, c in self._counts.items() if (k.model, k.step) in self._steps}
        urls = {b.url for backends in routes.servers.values() for b in backends}
        self._sent = Counter({u: n for u, n in self._sent.items() if u in urls})

    @contextmanager
    def under_way(self, ask: Ask) -> Iterator[None]:
        """The block is a request to a backend."""
        url = ask[0]
        self._in_flight[ask] += 1
        self._busy[url] += 1
        self._sent[url] += 1
        try:
            yield
        finally:
            _lower(self._in_flight, ask)
            _lower(self._busy, url)

    def busyness(self, url: str) -> Busyness:
        """How much a backend has to do."""
        return self._busy[url], self._sent[url]

    def count(self, key: Key, *, failed: bool, first_token_seconds: float | None) -> None:
        """A request was answered, or failed by the engine's or the service's fault. The time is known of streams alone."""
        counts = self._of(key)
        if counts is None:
            return
        counts.requests += 1
        counts.errors += failed
        if first_token_seconds is not None:
            counts.first_token[first_token_bucket(first_token_seconds)] += 1

    def keep_answer(self, answer_id: str, key: Key, now: float) -> None:
        """The answer can be voted on from now on. The oldest are forgotten."""
        self._answers[answer_id] = _Answer(key, now)
        while (
            len(self._answers) > MAX_ANSWERS_KEPT or next(iter(self._answers.values())).given_at < now - ANSWER_SECONDS
        ):
            self._answers.popitem(last=False)

    def vote(self, answer_id: str, vote: Vote, now: float) -> Key | None:
        """Count a vote in place of an earlier one on the same answer; None where the answer is not known (any more)."""
        answer = self._answers.get(answer_id)
        if answer is None or answer.given_at < now - ANSWER_SECONDS:
            return None
        counts = self._of(answer.key)
        if counts is not None:
            if answer.vote is not None and counts.votes[answer.vote]:
                counts.votes[answer.vote] -= 1
            counts.votes[vote] += 1
        answer.vote = vote
        return answer.key

    def report(self, revision: str) -> ChatReport:
        """All of it; `revision` is that of the routes in force."""
        return ChatReport(
            instance=self.instance,
            revision=revision,
            targets=[_tell(key, counts) for key, counts in self._counts.items()],
            in_flight=[InFlight(backend=url, adapter=a, requests=n) for (url, a), n in self._in_flight.items()],
        )

    def _of(self, key: Key) -> _Counts | None:
        if (key.model, key.step) not in self._steps:
            return None
        return self._counts.setdefault(key, _Counts())


def _lower(counter: "Counter[Any]", key: Any) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _tell(key: Key, counts: _Counts) -> TargetCounts:
    return TargetCounts(
        model=key.model,
        step=key.step,
        adapter=key.adapter,
        requests=counts.requests,
        errors=counts.errors,
        first_token=list(counts.first_token),
        votes_up=counts.votes["up"],
        votes_down=counts.votes["down"],
    )
