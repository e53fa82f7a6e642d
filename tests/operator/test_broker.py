"""The broker against a real Redis: what is sent, what is read, what is forgotten, and Redis being away."""

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from cluster.faults import TcpProxy
from cluster.redis_server import RedisServer

from llamero.spec import names
from llamero.spec.status import WorkKind
from llamero.spec.tasks import AttemptId, ProgressReport, WorkMessage
from llamero.worker import make_app
from llamero_operator.broker import Broker

UID = "0f0e0d0c-1111-2222-3333-444455556666"


def attempt(number: int = 1, uid: str = UID, kind: WorkKind = WorkKind.TRAIN) -> AttemptId:
    return AttemptId(namespace="team-a", job="tutor", uid=uid, run=1, kind=kind, attempt=number)


def message(make_job, number: int = 1, uid: str = UID) -> WorkMessage:  # type: ignore[no-untyped-def]
    return WorkMessage(id=attempt(number, uid), storage="/storage", manifest=make_job())


def queue_of(number: int = 1, uid: str = UID) -> str:
    return names.queue_name(uid, 1, "train", number)


@pytest.fixture
async def broker(redis_server: RedisServer) -> AsyncIterator[Broker]:
    made = Broker(redis_server.url)
    yield made
    await made.close()


async def test_a_worker_that_shares_no_code_with_the_sender_finds_the_message_in_its_queue(  # type: ignore[no-untyped-def]
    broker: Broker, redis_server: RedisServer, make_job
) -> None:
    assert await broker.send(message(make_job))
    assert await broker.queue_lengths([queue_of()]) == {queue_of(): 1}
    app = make_app(redis_server.url, queue_of())
    with app.connection_for_read() as connection:
        taken = connection.SimpleQueue(queue_of()).get(timeout=5)
    assert taken.headers["task"] == "llamero.work.v1"
    assert taken.headers["id"] == names.task_id(UID, 1, "train", 1)
    assert WorkMessage.model_validate(taken.payload[0][0]) == message(make_job)
    taken.ack()


async def test_progress_is_read_and_what_is_none_is_none(broker: Broker, redis_server: RedisServer) -> None:
    report = ProgressReport(id=attempt(1), pod="p", at=datetime(2026, 1, 1, tzinfo=UTC), step=4, done=4)
    with redis_server.client as client:
        client.set(names.progress_key(UID, 1, "train", 1), report.model_dump_json(by_alias=True))
        client.set(names.progress_key(UID, 1, "train", 2), "{not json")
        client.set(names.progress_key(UID, 1, "train", 3), report.model_dump_json(by_alias=True))
    assert await broker.read_progress([attempt(n) for n in (1, 2, 3, 4)]) == [report, None, None, None]
    assert broker.problem is None


async def test_a_job_s_keys_are_forgotten_but_for_the_attempt_at_hand_and_other_jobs(  # type: ignore[no-untyped-def]
    broker: Broker, redis_server: RedisServer, make_job
) -> None:
    other = UID.replace("0f", "1f")
    for number in (1, 2, 12):
        await broker.send(message(make_job, number))
    await broker.send(message(make_job, 1, other))
    with redis_server.client as client:
        for number in (1, 2, 12):
            client.set(names.progress_key(UID, 1, "train", number), "{}")
            client.hset(f"{queue_of(number)}.unacked", "tag", "[]")
        owners = {"mine": queue_of(1), "kept": queue_of(2), "other": queue_of(1, other)}
        client.hset("unacked", mapping={tag: json.dumps([{}, "x", queue]) for tag, queue in owners.items()})
        client.zadd("unacked_index", {"mine": 1, "kept": 1, "other": 1})
        assert await broker.forget(UID, keep=attempt(2))
        kept = {str(k) for pattern in names.redis_patterns(UID) for k in client.keys(pattern)}
        assert kept == {
            queue_of(2),
            f"{queue_of(2)}.unacked",
            f"_kombu.binding.{queue_of(2)}",
            names.progress_key(UID, 1, "train", 2),
        }
        assert set(client.hkeys("unacked")) == set(client.zrange("unacked_index", 0, -1)) == {"kept", "other"}
        assert client.llen(queue_of(1, other)) == 1
        assert await broker.forget(UID)
        assert [k for pattern in names.redis_patterns(UID) for k in client.keys(pattern)] == []
        deadlines = client.zrange("_kombu.binding_deadlines", 0, -1)
        assert not [d for d in deadlines if UID in str(d)]


async def test_redis_being_away_is_told_at_once_and_it_is_asked_again_after_a_rest(  # type: ignore[no-untyped-def]
    redis_server: RedisServer, make_job
) -> None:
    clock = [100.0]
    broker = Broker(redis_server.url, clock=lambda: clock[0])
    redis_server.kill()
    assert await broker.read_progress([attempt()]) == [None]
    assert broker.problem is not None and broker.problem.startswith("Redis gives no answer")
    began = time.monotonic()
    assert not await broker.send(message(make_job))
    assert not await broker.forget(UID)
    assert time.monotonic() - began < 1
    redis_server.start()
    assert broker.problem is not None
    clock[0] += 60
    assert await broker.check()
    assert broker.problem is None
    assert await broker.send(message(make_job))
    await broker.close()


async def test_a_redis_that_hangs_is_given_up_within_seconds(redis_server: RedisServer) -> None:
    with TcpProxy(redis_server.host, redis_server.port) as proxy:
        broker = Broker(f"redis://{redis_server.host}:{proxy.port}/0")
        assert await broker.check()
        proxy.silence()
        began = time.monotonic()
        assert await broker.read_progress([attempt()]) == [None]
        assert time.monotonic() - began < 8
        assert broker.problem is not None
        proxy.resume()
        await broker.close()


async def test_a_wrong_password_is_told_without_being_shown(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with RedisServer(tmp_path / "redis", password="right") as server:
        broker = Broker(f"redis://:canary@{server.host}:{server.port}/0")
        assert not await broker.check()
        assert broker.problem is not None and "refuses" in broker.problem and "canary" not in broker.problem
        await broker.close()
