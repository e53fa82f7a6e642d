"""The operator's only Celery and Redis I/O: sending tasks, reading progress, looking at queues, forgetting a job's keys.

Nothing here is the truth: a message is a hint, progress may be lost. Redis being away never blocks a pass for longer than a moment
and never fails one; `problem` says so in a sentence.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import KombuError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from llamero.spec import names
from llamero.spec.tasks import AttemptId, ProgressReport, TaskName, WorkMessage
from llamero_operator import faultpoints
from llamero_operator.messages import queue_of, task_id_of

logger = logging.getLogger(__name__)

SOCKET_SECONDS = 10.0
READ_SECONDS = 3.0
"""A pass waits so long for Redis' answer at most."""
REST_SECONDS = 5.0
"""After a failure Redis is not asked again for so long."""
SCAN_COUNT = 2000
BINDING_DEADLINES = "_kombu.binding_deadlines"
UNACKED = ("unacked", "unacked_index")

RedisErrors = (RedisError, OSError, TimeoutError)


def build_app(redis_url: str) -> Celery:
    """The application that sends: JSON alone, no results, sockets that give up."""
    app = Celery("llamero-operator", broker=redis_url, set_as_current=False)
    app.conf.update(
        broker_transport_options={
            "socket_timeout": SOCKET_SECONDS,
            "socket_connect_timeout": SOCKET_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        broker_connection_timeout=SOCKET_SECONDS,
        broker_pool_limit=4,
        result_backend=None,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        enable_utc=True,
    )
    return app


class Broker:
    """Redis, as the operator uses it. Belongs to one event loop; `close` it."""

    def __init__(self, redis_url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = build_app(redis_url)
        self._redis: Redis = Redis.from_url(
            redis_url,
            socket_timeout=READ_SECONDS,
            socket_connect_timeout=READ_SECONDS,
            health_check_interval=10,
            socket_keepalive=True,
            max_connections=32,
            decode_responses=False,
        )
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="celery-send")
        self._clock = clock
        self._problem: str | None = None
        self._rest_until = 0.0

    @property
    def problem(self) -> str | None:
        """Why Redis can't be asked, as a sentence; None where it answered the last time."""
        return self._problem

    async def close(self) -> None:
        """Ends the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with suppress(*RedisErrors):
            await self._redis.aclose()
        with suppress(Exception):
            self._app.close()

    async def send(self, message: WorkMessage) -> bool:
        """Sends an attempt's task to the attempt's queue; False where Redis is away. A doubled one carries the same id."""
        if self._is_resting():
            return False
        faultpoints.point("before", "send", message.id.kind)
        try:
            async with asyncio.timeout(2 * SOCKET_SECONDS):
                await asyncio.get_running_loop().run_in_executor(self._threads, self._send, message)
        except (*RedisErrors, KombuError) as error:
            self._fail(error)
            return False
        faultpoints.point("after", "send", message.id.kind)
        return True

    def _send(self, message: WorkMessage) -> None:
        self._app.send_task(
            TaskName.WORK,
            args=[json.loads(message.model_dump_json(by_alias=True, exclude_none=True))],
            queue=queue_of(message.id),
            task_id=task_id_of(message.id),
            ignore_result=True,
            retry=False,
        )

    async def read_progress(self, attempts: Sequence[AttemptId]) -> list[ProgressReport | None]:
        """What the attempts' pods told last, in order; None for nothing. Where Redis is away, all None and `problem` is set."""
        if not attempts:
            return []
        keys = [names.progress_key(a.uid, a.run, a.kind, a.attempt) for a in attempts]
        found = await self._ask(lambda: self._redis.mget(keys))
        if found is None:
            return [None] * len(attempts)
        return [_parse_progress(value, attempt) for value, attempt in zip(found, attempts, strict=True)]

    async def check(self) -> bool:
        """Whether Redis answers now."""
        return await self._ask(lambda: self._redis.ping()) is not None

    async def queue_lengths(self, queues: Sequence[str]) -> dict[str, int]:
        """Messages that wait, by queue; nothing where Redis is away."""

        async def count() -> list[int]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for queue in queues:
                    pipe.llen(queue)
                return list(await pipe.execute())

        found = await self._ask(count) if queues else []
        return dict(zip(queues, found or [], strict=False))

    async def forget(self, uid: str, keep: AttemptId | None = None) -> bool:
        """Removes the job's keys (queues, bindings, progress, unacknowledged messages), but for those of the attempt to keep.

        False where Redis is away: what is left then runs out by itself or goes with the next clean-up.
        """
        kept_queue = queue_of(keep) if keep is not None else None
        kept_progress = names.progress_key(keep.uid, keep.run, keep.kind, keep.attempt) if keep is not None else None

        def is_kept(key: str) -> bool:
            queue = key.removeprefix("_kombu.binding.")
            return key == kept_progress or (kept_queue is not None and _is_of_queue(queue, kept_queue))

        async def remove() -> bool:
            async with asyncio.timeout(SOCKET_SECONDS * 3):
                # One walk over all keys of Redis, whatever they are: its cost is what grows with the number of jobs.
                async for keys in self._scan(f"*{uid}*"):
                    doomed = [k for k in keys if not is_kept(k)]
                    if doomed:
                        await self._redis.unlink(*doomed)
                        bindings = [k for k in doomed if k.startswith("_kombu.binding.")]
                        if bindings:
                            await self._redis.zrem(BINDING_DEADLINES, *bindings)
                await self._forget_unacked(uid, kept_queue)
                return True

        return bool(await self._ask(remove, seconds=SOCKET_SECONDS * 3 + 1))

    async def _scan(self, pattern: str) -> AsyncIterator[list[str]]:
        cursor = 0
        while True:
            cursor, keys = await self._redis.scan(cursor, match=pattern, count=SCAN_COUNT)
            if keys:
                yield [_text(k) for k in keys]
            if cursor == 0:
                return

    async def _forget_unacked(self, uid: str, kept_queue: str | None) -> None:
        """Messages that a worker without a queue's own unacked keys took and never acknowledged, in kombu's shared hash."""
        hash_key, index_key = UNACKED
        cursor = 0
        while True:
            cursor, found = await self._redis.hscan(hash_key, cursor, count=SCAN_COUNT)
            entries = found if isinstance(found, dict) else {}
            for tag, value in entries.items():
                queue = _queue_of_unacked(_text(value))
                if queue.startswith(f"llamero.{uid}.") and not (kept_queue and _is_of_queue(queue, kept_queue)):
                    await self._redis.hdel(hash_key, tag)
                    await self._redis.zrem(index_key, tag)
            if cursor == 0:
                return

    async def _ask(self, question: Callable[[], Any], seconds: float = READ_SECONDS + 1) -> Any:
        """The answer, or None where Redis is away."""
        if self._is_resting():
            return None
        try:
            async with asyncio.timeout(seconds):
                answer = await question()
        except RedisErrors as error:
            self._fail(error)
            return None
        if self._problem is not None:
            logger.info("Redis answers again")
        self._problem = None
        return answer

    def _is_resting(self) -> bool:
        return self._clock() < self._rest_until

    def _fail(self, error: Exception) -> None:
        kind = "refuses the operator" if isinstance(error, redis.AuthenticationError) else "gives no answer"
        self._rest_until = self._clock() + REST_SECONDS
        if self._problem is None:
            logger.warning("Redis %s: %s", kind, error or type(error).__name__)
        self._problem = (
            f"Redis {kind} ({type(error).__name__}): training goes on, and progress shows again once it is back"
        )


def _is_of_queue(key: str, queue: str) -> bool:
    """Whether a key is the queue, or one that kombu keeps for it (`<queue>.unacked`, priorities behind a separator)."""
    rest = key.removeprefix(queue)
    return rest != key and (rest == "" or not rest[0].isalnum()) and not rest[1:2].isdigit()


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _queue_of_unacked(value: str) -> str:
    """The routing key of an entry: JSON of [message, exchange, routing key]."""
    try:
        entry = json.loads(value)
        return str(entry[2])
    except (ValueError, IndexError, TypeError, KeyError):
        return ""


def _parse_progress(value: bytes | None, attempt: AttemptId) -> ProgressReport | None:
    if value is None:
        return None
    try:
        report = ProgressReport.model_validate_json(value)
    except ValueError:
        return None
    return report if report.id == attempt else None
