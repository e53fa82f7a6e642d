"""The client's pace, with a clock of its own."""

import asyncio

import pytest

from llamero.kube.errors import Away, Conflict, NotFound, Refused, build_error, parse_retry_after
from llamero.kube.throttle import Throttle, TokenBucket, backoff_seconds


class Clock:
    """A clock that only its sleeps move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def test_a_burst_is_free_and_then_the_rate_holds() -> None:
    clock = Clock()
    bucket = TokenBucket(qps=10, burst=3, clock=clock)
    assert [round(bucket.reserve(), 6) for _ in range(6)] == [0, 0, 0, 0.1, 0.2, 0.3]


def test_quiet_time_fills_the_bucket_up_to_the_burst_and_no_further() -> None:
    clock = Clock()
    bucket = TokenBucket(qps=10, burst=2, clock=clock)
    for _ in range(2):
        bucket.reserve()
    clock.now += 3600
    assert [round(bucket.reserve(), 6) for _ in range(3)] == [0, 0, 0.1]


async def test_no_more_requests_are_under_way_than_allowed() -> None:
    throttle, under_way, most = Throttle(1000, 1000, 3), 0, 0

    async def ask() -> None:
        nonlocal under_way, most
        async with throttle.turn():
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.001)
            under_way -= 1

    await asyncio.gather(*(ask() for _ in range(30)))
    assert most == 3


async def test_during_a_pause_that_the_server_asked_for_nothing_starts() -> None:
    clock = Clock()
    throttle = Throttle(1000, 1000, 3, clock=clock, sleep=clock.sleep)
    throttle.pause(5)
    async with throttle.turn():
        assert clock.now >= 105
    assert sum(clock.slept) <= 5 * 1.2


@pytest.mark.parametrize("failures", range(12))
def test_backoff_doubles_up_to_the_limit_with_jitter_of_a_half(failures: int) -> None:
    full = min(8.0, 0.25 * 2**failures)
    assert full / 2 <= backoff_seconds(failures) <= full


ERRORS = {
    "409": (409, {}, b'{"message": "changed"}', Conflict, "create Job a: changed"),
    "404": (404, {}, b'{"message": "no such thing"}', NotFound, "create Job a: no such thing"),
    "403": (403, {}, b'{"message": "exceeded quota", "reason": "Forbidden"}', Refused, "create Job a: exceeded quota"),
    "422": (422, {}, b'{"message": "invalid", "reason": "Invalid"}', Refused, "create Job a: invalid"),
    "429": (429, {"Retry-After": "3"}, b"", Away, "create Job a: HTTP 429"),
    "503 in words": (503, {}, b"upstream is not there", Away, "create Job a: upstream is not there"),
    "not JSON": (400, {}, b"\xff<html>", Refused, "create Job a: \ufffd<html>"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_refusal_becomes_one_of_four_errors_with_a_sentence(name: str) -> None:
    status, headers, body, kind, sentence = ERRORS[name]
    error = build_error(status, headers, body, "create Job a")
    assert (type(error), str(error)) == (kind, sentence)


def test_a_namespace_that_is_going_away_is_told_apart_from_other_refusals() -> None:
    body = b'{"message": "m", "reason": "Forbidden", "details": {"causes": [{"reason": "NamespaceTerminating"}]}}'
    error = build_error(403, {}, body, "create Job a")
    assert isinstance(error, Refused) and error.is_namespace_ending
    assert not Refused("quota", 403, "Forbidden").is_namespace_ending


@pytest.mark.parametrize(
    ("header", "details", "seconds"),
    [
        ("3", {}, 3),
        (None, {"retryAfterSeconds": 2}, 2),
        ("soon", {"retryAfterSeconds": 2}, 2),
        ("99999", {}, 300),
        (None, {}, None),
    ],
)
def test_the_time_that_the_server_asks_for_is_read_from_either_place(
    header: str | None, details: dict[str, int], seconds: float | None
) -> None:
    assert parse_retry_after(header, details) == seconds
