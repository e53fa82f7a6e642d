"""A step is judged by figures alone, and told with them."""

import pytest

from llamero.lifecycle.serving.analysis import Tally, add_up, find_percentile, judge
from llamero.spec.rollout import AnalysisSpec
from llamero.spec.serving import FIRST_TOKEN_BOUNDS, ChatReport, TargetCounts, first_token_bucket


def times(*seconds: float) -> tuple[int, ...]:
    buckets = [0] * (len(FIRST_TOKEN_BOUNDS) + 1)
    for each in seconds:
        buckets[first_token_bucket(each)] += 1
    return tuple(buckets)


def tally(requests: int = 100, errors: int = 0, first_token: float = 0.3, up: int = 0, down: int = 0) -> Tally:
    return Tally(requests, errors, times(*[first_token] * (requests - errors)), up, down)


CASES: dict[str, tuple[Tally, Tally, AnalysisSpec, bool, str, str]] = {
    "as good as the other": (tally(), tally(), AnalysisSpec(), True, "good", "100 requests, 0 failed (0.0%"),
    "too short a time": (tally(), tally(), AnalysisSpec(), False, "wait", ""),
    "too few requests": (tally(19), tally(), AnalysisSpec(), True, "wait", "waits for 20 requests"),
    "no requests at all": (Tally(), Tally(), AnalysisSpec(), True, "wait", "waits for 20 requests"),
    "no requests, and none asked for": (Tally(), Tally(), AnalysisSpec(min_requests=0), True, "good", "0 requests"),
    "errors at once": (tally(20, 10), tally(), AnalysisSpec(), False, "bad", "10 of 20 requests failed (50.0%)"),
    "errors before there are enough requests": (tally(3, 3), tally(), AnalysisSpec(), False, "bad", "3 of 3 requests"),
    "errors that later requests can make up for": (
        tally(30, 2), tally(), AnalysisSpec(min_requests=200), False, "wait", ""),
    "as many errors as the other": (tally(100, 30), tally(100, 30), AnalysisSpec(), True, "good", "30 failed"),
    "one error alone condemns nobody": (tally(20, 1), tally(), AnalysisSpec(), True, "wait", "to tell it from chance"),
    "a few errors more than allowed may be chance": (tally(100, 4), tally(), AnalysisSpec(), True, "wait", "from chance"),
    "so many more are none": (tally(100, 6), tally(), AnalysisSpec(), True, "bad", "6 of 100 requests failed (6.0%)"),
    "and with many requests a few more are none": (tally(5000, 160), tally(), AnalysisSpec(), True, "bad", "(3.2%)"),
    "one error among enough": (tally(60, 1), tally(), AnalysisSpec(), True, "good", "1 failed"),
    "slow": (tally(first_token=1.0), tally(first_token=0.3), AnalysisSpec(), True, "bad", "times the other adapter's"),
    "slow at first": (tally(first_token=1.0), tally(first_token=0.3), AnalysisSpec(), False, "wait", ""),
    "slower, but below a quarter of a second": (
        tally(first_token=0.2), tally(first_token=0.01), AnalysisSpec(), True, "good", ""),
    "slow, and nothing to compare with": (tally(first_token=9.0), tally(4), AnalysisSpec(), True, "good", ""),
    "disliked": (tally(up=2, down=8), tally(up=9, down=1), AnalysisSpec(), True, "bad", "20% of 10 votes were up, 90%"),
    "disliked by few": (tally(up=0, down=9), tally(up=9, down=1), AnalysisSpec(), True, "good", "0% of 9 votes up"),
    "disliked, while few voted on the other": (
        tally(up=0, down=10), tally(up=9, down=0), AnalysisSpec(), True, "good", ""),
    "a little less liked": (tally(up=8, down=2), tally(up=9, down=1), AnalysisSpec(), True, "good", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_step_is_judged(case: tuple[Tally, Tally, AnalysisSpec, bool, str, str]) -> None:
    canary, other, spec, ripe, outcome, words = case
    found = judge(canary, other, spec, ripe)
    assert found.outcome == outcome, found
    assert words in found.sentence


def test_counts_are_added_over_chat_services_for_the_step_and_the_adapter_alone() -> None:
    def counts(step: str, adapter: str | None, model: str = "tutor") -> TargetCounts:
        bucket = list(times(0.1))
        return TargetCounts(
            model=model, step=step, adapter=adapter, requests=10, errors=1, first_token=bucket, votes_up=2, votes_down=1
        )

    chats = [
        ChatReport(instance="a", targets=[counts("s1", "x"), counts("s0", "x"), counts("s1", None)]),
        ChatReport(instance="b", targets=[counts("s1", "x"), counts("s1", "x", "other")]),
        ChatReport(instance="c"),
    ]
    found = add_up(chats, "tutor", "s1", "x")
    assert (found.requests, found.errors, found.votes_up, found.votes_down, found.timed) == (20, 2, 4, 2, 2)
    assert add_up(chats, "tutor", "s1", None).requests == 10


def test_counts_with_fewer_buckets_than_ours_are_added_up() -> None:
    chats = [ChatReport(instance="a", targets=[TargetCounts(model="m", step="s", requests=2, first_token=[1, 1])])]
    assert add_up(chats, "m", "s", None).timed == 2


@pytest.mark.parametrize("seconds", [0.003, 0.1, 0.7, 30.0])
def test_a_percentile_lies_in_the_bucket_of_its_times(seconds: float) -> None:
    found = find_percentile(times(*[seconds] * 7), 0.95)
    assert found is not None and seconds / 1.25 <= found <= seconds * 1.25


def test_a_percentile_of_nothing_is_none_and_one_beyond_all_bounds_is_the_last_bound() -> None:
    assert find_percentile(times(), 0.95) is None
    assert find_percentile(times(500.0, 600.0), 0.95) == FIRST_TOKEN_BOUNDS[-1]
