"""A worker's part of the limits, when a request may go, and how long is waited between tries."""

from datetime import UTC, datetime

import pytest
from services.data.model_server import ModelServer

from llamero.data.asking.client import Backoff, read_retry_after
from llamero.data.asking.limits import Limits, Pace, find_pace, share_limits
from llamero.spec.steps import LanguageModel

from .asking import say
from .conftest import MakeAsker


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        (1, Limits(8, 100, 1000)),
        (2, Limits(4, 50, 500)),
        (3, Limits(2, 100 / 3, 1000 / 3)),
        (16, Limits(1, 6.25, 62.5)),
        (1000, Limits(1, 1, 1)),
    ],
)
def test_each_worker_takes_its_part_of_each_limit_and_at_least_one(workers: int, expected: Limits) -> None:
    model = LanguageModel(url="https://x/v1", model="m", concurrency=8, requests_per_minute=100, tokens_per_minute=1000)
    assert share_limits(model, workers) == expected


def test_without_limits_a_request_goes_at_once() -> None:
    pace = Pace(Limits(8, None, None))
    assert [pace.reserve(5.0, 10**9) for _ in range(3)] == [5.0, 5.0, 5.0]


def test_requests_are_spaced_evenly() -> None:
    pace = Pace(Limits(8, 60, None))
    assert [pace.reserve(100.0, 1) for _ in range(4)] == [100.0, 101.0, 102.0, 103.0]
    assert pace.reserve(200.0, 1) == 200.0  # what was not used is not saved up
    assert pace.reserve(200.0, 1) == 201.0


def test_tokens_are_spaced_by_what_was_really_used() -> None:
    pace = Pace(Limits(8, None, 600))  # ten a second
    assert pace.reserve(0.0, 50) == 0.0
    pace.correct(50, 20)
    assert pace.reserve(0.0, 10) == 2.0
    pace.correct(10, 40)
    assert pace.reserve(0.0, 10) == 6.0


def test_an_answer_is_expected_to_be_as_long_as_those_before() -> None:
    pace = Pace(Limits(8, None, None))
    assert pace.expect_output(1024) == 1024
    for tokens in (10, 21):
        pace.learn_output(tokens)
    assert pace.expect_output(1024) == 16


def test_a_pause_keeps_all_requests_back() -> None:
    pace = Pace(Limits(8, None, None))
    pace.pause(7.0)
    pace.pause(6.0)
    assert pace.reserve(5.0, 1) == 7.0
    assert pace.is_paused(6.9) and not pace.is_paused(7.0)


def test_a_process_remembers_its_pace_from_one_asker_to_the_next() -> None:
    limits = Limits(1, 60, None)
    assert find_pace("here", limits) is find_pace("here", limits)
    assert find_pace("here", limits) is not find_pace("there", limits)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "Sat, 21 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"Retry-After": "Sat, 21 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "Sat, 99 Foo 2026 12:00:30 GMT"}, None),
        ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
        ({"retry-after-ms": "nan"}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], expected: float | None) -> None:
    assert read_retry_after(headers, datetime(2026, 11, 21, 12, tzinfo=UTC)) == expected


@pytest.mark.parametrize(
    ("attempt", "asked", "drawn", "expected"),
    [
        (0, None, 1.0, 1.0),
        (3, None, 1.0, 8.0),
        (3, None, 0.25, 2.0),
        (3, None, 0.0, 0.0),
        (20, None, 1.0, 60.0),
        (0, 7.0, 0.0, 7.0),
        (0, 7.0, 1.0, 8.0),
        (0, 0.0, 1.0, 0.0),
        (0, 86_400.0, 0.0, 300.0),
    ],
)
def test_pauses_grow_with_full_jitter_and_keep_to_what_was_asked(
    attempt: int, asked: float | None, drawn: float, expected: float
) -> None:
    assert Backoff().choose(attempt, asked, lambda: drawn) == expected


@pytest.mark.parametrize(("workers", "most"), [(1, 6), (2, 3), (9, 1)])
def test_no_more_requests_are_under_way_than_a_workers_part(
    server: ModelServer, make_asker: MakeAsker, workers: int, most: int
) -> None:
    server.latency = 0.02
    with make_asker(workers=workers, concurrency=6) as asker:
        asker.ask(say(*range(24)))
    assert server.most_at_once == most


def test_requests_a_minute_are_kept_to_over_several_askers(server: ModelServer, make_asker: MakeAsker) -> None:
    for part in (range(6), range(6, 12)):
        with make_asker(requests_per_minute=1200, workers=2) as asker:  # a tenth of a second between two
            asker.ask(say(*part))
    times = [seen.at for seen in server.requests]
    assert len(times) == 12
    # Loopback delays shift single arrivals; no ten gaps take less than they must.
    assert times[-1] - times[0] >= 11 * 0.1 - 0.05


def test_tokens_a_minute_are_kept_to(server: ModelServer, make_asker: MakeAsker) -> None:
    # The server counts 2 + 3 words for each; ten answers are 50 tokens, at 50 a second.
    with make_asker(tokens_per_minute=3000, max_tokens=5) as asker:
        asker.ask(say(*(f"number {n}" for n in range(10))))
        assert asker.account.input_tokens + asker.account.output_tokens == 50
    assert server.requests[-1].at - server.requests[0].at >= 0.7
