"""Judges a step of a canary by what chat services counted: failed requests, time to the first token, votes. It never guesses."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from llamero.spec.rollout import AnalysisSpec
from llamero.spec.serving import FIRST_TOKEN_BOUNDS, ChatReport

GOOD_FIRST_TOKEN_SECONDS = 0.25
"""A 95th percentile below this is good, whatever the other's is."""

MIN_OTHER_REQUESTS = 5
"""So many requests of the other adapter are needed to compare times with."""

MIN_ERRORS = 2
"""One failed request alone condemns nobody: a pod may have been killed under it."""

CHANCE_DEVIATIONS = 2.0
"""So many standard deviations above what is allowed may be chance: no verdict rests on them."""

Outcome = Literal["good", "bad", "wait"]


@dataclass(frozen=True)
class Tally:
    """Requests and votes of one adapter during a step, over all chat services."""

    requests: int = 0
    errors: int = 0
    first_token: tuple[int, ...] = (0,) * (len(FIRST_TOKEN_BOUNDS) + 1)
    votes_up: int = 0
    votes_down: int = 0

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    @property
    def votes(self) -> int:
        return self.votes_up + self.votes_down

    @property
    def approval(self) -> float:
        return self.votes_up / self.votes if self.votes else 0.0

    @property
    def timed(self) -> int:
        """Requests whose time to the first token is known."""
        return sum(self.first_token)


@dataclass(frozen=True)
class Judgement:
    """What a step comes to, and a sentence with the figures that it rests on."""

    outcome: Outcome
    sentence: str


def add_up(chats: Iterable[ChatReport], model: str, step: str, adapter: str | None) -> Tally:
    """The counts of a target over all chat services. Counts of other steps are left out."""
    found = [t for chat in chats for t in chat.targets if t.model == model and t.step == step and t.adapter == adapter]
    buckets = [0] * (len(FIRST_TOKEN_BOUNDS) + 1)
    for counts in found:
        for index, count in enumerate(counts.first_token[: len(buckets)]):
            buckets[index] += count
    return Tally(
        requests=sum(t.requests for t in found),
        errors=sum(t.errors for t in found),
        first_token=tuple(buckets),
        votes_up=sum(t.votes_up for t in found),
        votes_down=sum(t.votes_down for t in found),
    )


def find_percentile(first_token: tuple[int, ...], share: float) -> float | None:
    """The time in seconds below which so large a share lies, even within its bucket; None without any.

    Times above the last bound are told as the last bound.
    """
    total = sum(first_token)
    if total == 0:
        return None
    rank, passed = share * total, 0
    for index, count in enumerate(first_token):
        if count and passed + count >= rank:
            if index >= len(FIRST_TOKEN_BOUNDS):
                break
            low = FIRST_TOKEN_BOUNDS[index - 1] if index else 0.0
            return low + (FIRST_TOKEN_BOUNDS[index] - low) * (rank - passed) / count
        passed += count
    return FIRST_TOKEN_BOUNDS[-1]


def judge(canary: Tally, other: Tally, spec: AnalysisSpec, ripe: bool) -> Judgement:
    """Whether the canary does as well as the other. `ripe`: the step has lasted as long as it must.

    Errors condemn at once, times and votes only when the step is ripe: a new adapter's first requests may be slow.
    """
    if failure := _judge_errors(canary, other, spec):
        return Judgement("bad", failure)
    if not ripe:
        return Judgement("wait", "")
    enough = canary.requests >= spec.min_requests
    if enough and (failure := _judge_times(canary, other, spec)):
        return Judgement("bad", failure)
    if failure := _judge_votes(canary, other, spec):
        return Judgement("bad", failure)
    if not enough:
        return Judgement("wait", f"It waits for {spec.min_requests} requests to judge by.")
    if canary.error_rate > other.error_rate + spec.max_error_rate_increase:
        return Judgement("wait", "Too many requests failed, but too few to tell it from chance: it waits for more.")
    return Judgement("good", _praise(canary, other))


def _judge_errors(canary: Tally, other: Tally, spec: AnalysisSpec) -> str | None:
    """With fewer requests than are needed, those that are still missing are taken to be good: what is bad all the same, is bad."""
    if canary.errors < MIN_ERRORS:
        return None
    allowed = other.error_rate + spec.max_error_rate_increase
    requests = max(canary.requests, spec.min_requests)
    by_chance = CHANCE_DEVIATIONS * sqrt(requests * allowed * max(1 - allowed, 0.0))
    if canary.errors <= requests * allowed + by_chance:
        return None
    return (
        f"{canary.errors} of {canary.requests} requests failed ({canary.error_rate:.1%}), of the other adapter's {other.errors} of "
        f"{other.requests} ({other.error_rate:.1%}); {spec.max_error_rate_increase:.1%} more are allowed."
    )


def _judge_times(canary: Tally, other: Tally, spec: AnalysisSpec) -> str | None:
    mine, others = find_percentile(canary.first_token, 0.95), find_percentile(other.first_token, 0.95)
    if mine is None or others is None or other.timed < MIN_OTHER_REQUESTS:
        return None
    if mine <= GOOD_FIRST_TOKEN_SECONDS or mine <= others * spec.max_first_token_ratio:
        return None
    return (
        f"The first token took {mine:.2f} s (95th percentile of {canary.timed}), {mine / others:.1f} times the other adapter's "
        f"{others:.2f} s (of {other.timed}); {spec.max_first_token_ratio:g} times is allowed."
    )


def _judge_votes(canary: Tally, other: Tally, spec: AnalysisSpec) -> str | None:
    if min(canary.votes, other.votes) < spec.min_votes:
        return None
    if canary.approval >= other.approval - spec.max_approval_loss:
        return None
    return (
        f"{canary.approval:.0%} of {canary.votes} votes were up, {other.approval:.0%} of {other.votes} for the other adapter; "
        f"{spec.max_approval_loss:.0%} less is allowed."
    )


def _praise(canary: Tally, other: Tally) -> str:
    text = f"{canary.requests} requests, {canary.errors} failed ({canary.error_rate:.1%}; the other adapter {other.error_rate:.1%})"
    mine, others = find_percentile(canary.first_token, 0.95), find_percentile(other.first_token, 0.95)
    if mine is not None:
        text += f", first token in {mine:.2f} s" + (f" (the other {others:.2f} s)" if others is not None else "")
    if canary.votes:
        text += f", {canary.approval:.0%} of {canary.votes} votes up"
    return f"{text}."
