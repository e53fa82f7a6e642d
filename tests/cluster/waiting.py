"""Waiting for a condition rather than for a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Value = TypeVar("Value")


def until(condition: Callable[[], Value], what: str, seconds: float = 30, interval: float = 0.05) -> Value:
    """The first truthy value of `condition()`. Raises AssertionError that names `what` and the last value or exception."""
    deadline = time.monotonic() + seconds
    while True:
        error: Exception | None = None
        value: Value | None = None
        try:
            value = condition()
        except Exception as caught:
            error = caught
        if value:
            return value
        if time.monotonic() > deadline:
            seen = f"it raised {error!r}" if error else f"it was {value!r}"
            raise AssertionError(f"waited {seconds:g} s for {what}; at last {seen}") from error
        time.sleep(interval)


async def until_async(
    condition: Callable[[], Awaitable[Value]], what: str, seconds: float = 30, interval: float = 0.05
) -> Value:
    """As `until`, for a condition that is awaited."""
    deadline = time.monotonic() + seconds
    while True:
        error: Exception | None = None
        value: Value | None = None
        try:
            value = await condition()
        except Exception as caught:
            error = caught
        if value:
            return value
        if time.monotonic() > deadline:
            seen = f"it raised {error!r}" if error else f"it was {value!r}"
            raise AssertionError(f"waited {seconds:g} s for {what}; at last {seen}") from error
        await asyncio.sleep(interval)
