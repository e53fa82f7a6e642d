"""The work queue: one pass a key at a time, delayed adds, backoff."""

import asyncio

from llamero_operator.workqueue import WorkQueue


async def take(queue: WorkQueue[str]) -> str | None:
    async with asyncio.timeout(2):
        return await queue.get()


async def test_a_key_that_is_added_twice_is_looked_at_once() -> None:
    queue = WorkQueue[str]()
    queue.add("a")
    queue.add("a")
    queue.add("b")
    assert [await take(queue), await take(queue), len(queue)] == ["a", "b", 0]


async def test_a_key_that_is_added_while_its_pass_runs_is_looked_at_again_afterwards_and_not_beside_it() -> None:
    queue = WorkQueue[str]()
    queue.add("a")
    assert await take(queue) == "a"
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert await take(queue) == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_two_workers_never_pass_over_one_key_at_once() -> None:
    queue, running, passes, overlaps = WorkQueue[str](), set[str](), 0, 0

    async def work() -> None:
        nonlocal passes, overlaps
        while (key := await queue.get()) is not None:
            overlaps += key in running
            running.add(key)
            await asyncio.sleep(0)
            passes += 1
            if passes < 300:
                queue.add(key)
                queue.add("b" if key == "a" else "a")
            await asyncio.sleep(0)
            running.discard(key)
            queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(4)]
    queue.add("a")
    while passes < 300:
        await asyncio.sleep(0)
    queue.close()
    await asyncio.gather(*workers)
    assert overlaps == 0


async def test_of_several_delays_the_earliest_counts() -> None:
    queue = WorkQueue[str]()
    queue.add_after("a", 60)
    queue.add_after("a", 0.01)
    queue.add_after("a", 30)
    assert queue.delayed == 1
    assert await take(queue) == "a"
    assert queue.delayed == 0


async def test_a_pass_takes_the_place_of_the_wake_up_that_was_due_later() -> None:
    queue = WorkQueue[str]()
    queue.add_after("a", 60)
    queue.add("a")
    assert await take(queue) == "a"
    assert queue.delayed == 0


async def test_delays_double_with_each_failure_up_to_the_limit_and_start_anew_after_a_success() -> None:
    queue = WorkQueue[str](base_seconds=1, limit_seconds=10, jitter=lambda: 1.0)
    assert [queue.add_failed("a") for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    queue.succeeded("a")
    assert queue.add_failed("a") == 1
    queue.close()


async def test_jitter_takes_at_most_half_of_a_delay() -> None:
    queue = WorkQueue[str](base_seconds=1, jitter=lambda: 0.0)
    assert queue.add_failed("a") == 0.5
    queue.close()


async def test_a_closed_queue_lets_its_workers_go() -> None:
    queue = WorkQueue[str]()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add_after("a", 0.001)
    queue.close()
    queue.add("b")
    assert await waiting is None
    assert (len(queue), queue.delayed) == (0, 0)


async def test_a_key_that_waits_is_seen_to_wait() -> None:
    queue = WorkQueue[str]()
    assert queue.oldest_seconds == 0
    queue.add("a")
    await asyncio.sleep(0.02)
    assert queue.oldest_seconds >= 0.02


async def test_a_dropped_key_keeps_no_wake_up() -> None:
    queue = WorkQueue[str]()
    queue.add_after("a", 60)
    queue.add_failed("a")
    queue.drop("a")
    assert queue.delayed == 0
