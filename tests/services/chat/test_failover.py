"""Requests find an engine that can answer before the caller sees a byte, and never one that lacks their adapter."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from llamero.chat.settings import REST_SECONDS
from llamero.spec.serving import FIRST_TOKEN_BOUNDS

OLD, NEW = "ns-tutor-r1-00000000", "ns-tutor-r2-11111111"
MESSAGES = [{"role": "user", "content": "Hi"}]


def backend(url: str, *adapters: str, engine: str = "tgi") -> dict[str, Any]:
    return {"url": url, "engine": engine, "adapters": list(adapters)}


def route(old: int, new: int, step: str = "s1") -> dict[str, Any]:
    targets = [{"adapter": OLD, "weight": old}, {"adapter": NEW, "weight": new}]
    return {"model": "tutor", "server": "s", "step": step, "targets": [t for t in targets if t["weight"]]}


async def ask(chat: Any, user: str = "", stream: bool = True, **more: Any) -> tuple[int, str]:
    body = {"model": "tutor", "messages": MESSAGES, "stream": stream, "user": user, **more}
    async with (
        aiohttp.ClientSession(chat.url) as client,
        client.post("/v1/chat/completions", json=body) as response,
    ):
        return response.status, (await response.read()).decode()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


async def find_caller(chat: Any, stand_in: Any, adapter: str) -> str:
    """A caller whose target it is."""
    for n in range(200):
        await ask(chat, user=f"caller-{n}")
        if stand_in.bodies[-1]["model"] == adapter:
            return f"caller-{n}"
    raise AssertionError(f"nobody is answered by {adapter}")


@pytest.mark.parametrize("status", [404, 503, 502, 429])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_backend_that_says_it_can_not_is_passed_over(
    start_stand_in: Callable[[], Any], start_chat: Any, status: int, stream: bool
) -> None:
    bad, good = start_stand_in(), start_stand_in()
    bad.status, bad.script = status, [b'{"error":"no","error_type":"x"}']
    good.say("fine") if stream else good.say_whole("fine")
    chat = start_chat({"s": [backend(bad.url, OLD), backend(good.url, OLD)]}, [route(100, 0)])
    began = time.monotonic()
    for _ in range(4):
        answered, text = await ask(chat, stream=stream)
        assert answered == 200 and "fine" in text
    rests = 1 + int((time.monotonic() - began) / REST_SECONDS)  # a busy machine may take longer than one rest
    assert len(good.bodies) == 4
    assert await chat.counts() == {("tutor", "s1", OLD): (4, 0)}
    if status != 429:
        assert 1 <= len(bad.bodies) <= rests, "it is left alone for a while"


async def test_an_adapter_that_one_backend_lost_is_left_alone_there_and_its_others_are_not(
    start_stand_in: Callable[[], Any], start_chat: Any
) -> None:
    first, second = start_stand_in(), start_stand_in()
    for engine in (first, second):
        engine.say("fine")
    first.refused = {NEW: 404}
    other = {"model": "helper", "server": "s", "targets": [{"adapter": OLD}]}
    chat = start_chat({"s": [backend(first.url, OLD, NEW), backend(second.url, OLD, NEW)]}, [route(0, 100), other])
    began = time.monotonic()
    for _ in range(6):
        assert (await ask(chat))[0] == 200
    rests = 1 + int((time.monotonic() - began) / REST_SECONDS)
    assert 1 <= sum(b["model"] == NEW for b in first.bodies) <= rests
    for _ in range(8):
        assert (await ask(chat, model="helper"))[0] == 200
    assert sum(b["model"] == OLD for b in first.bodies) >= 4


async def test_an_engine_that_dies_before_its_first_word_is_passed_over_also_after_the_role(
    start_stand_in: Callable[[], Any], start_chat: Any
) -> None:
    dying, good = start_stand_in(), start_stand_in()
    role = {"id": "", "model": "x", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    dying.script, dying.cut = [b"data: " + json.dumps(role).encode() + b"\n\n"], True
    good.say("fine")
    chat = start_chat({"s": [backend(dying.url, OLD), backend(good.url, OLD)]}, [route(100, 0)])
    status, text = await ask(chat)
    assert status == 200 and "fine" in text and "error" not in text
    assert text.count('"role"') == 0, "nothing of the broken answer is seen"
    assert await chat.counts() == {("tutor", "s1", OLD): (1, 0)}


async def test_the_least_busy_backend_is_asked(start_stand_in: Callable[[], Any], start_chat: Any) -> None:
    engines = [start_stand_in() for _ in range(3)]
    for engine in engines:
        engine.say("fine")
        engine.hold()
    chat = start_chat({"s": [backend(e.url, OLD) for e in engines]}, [route(100, 0)])
    asking = [asyncio.create_task(ask(chat)) for _ in range(9)]
    await chat.until(lambda report: sum(f["requests"] for f in report["inFlight"]) == 9)
    await until(lambda: [e.running for e in engines] == [3, 3, 3])
    told = {f["backend"]: (f["adapter"], f["requests"]) for f in (await chat.report())["inFlight"]}
    assert told == {e.url: (OLD, 3) for e in engines}
    for engine in engines:
        engine.release()
    assert {status for status, _ in await asyncio.gather(*asking)} == {200}
    assert (await chat.report())["inFlight"] == []


async def test_a_canarys_callers_are_answered_by_the_stable_target_where_no_backend_has_the_canary(
    stand_in: Any, start_chat: Any
) -> None:
    stand_in.say("fine")
    servers = {"s": [backend(stand_in.url, OLD, NEW)]}
    chat = start_chat(servers, [route(50, 50)])
    caller = await find_caller(chat, stand_in, NEW)
    await chat.write({"s": [backend(stand_in.url, OLD)]}, [route(50, 50, step="s2")], "second")
    for stream in (True, False):
        stand_in.say("fine") if stream else stand_in.say_whole("fine")
        assert (await ask(chat, user=caller, stream=stream))[0] == 200
        assert stand_in.bodies[-1]["model"] == OLD
    assert await chat.counts() == {("tutor", "s2", OLD): (2, 0)}


async def test_where_the_canarys_engine_fails_the_stable_target_answers_and_the_canary_is_charged(
    stand_in: Any, start_chat: Any
) -> None:
    stand_in.say("fine")
    chat = start_chat({"s": [backend(stand_in.url, OLD, NEW)]}, [route(50, 50)])
    caller = await find_caller(chat, stand_in, NEW)
    before = await chat.counts()
    stand_in.refused = {NEW: 500}
    status, text = await ask(chat, user=caller)
    assert status == 200 and "fine" in text
    after = await chat.counts()
    new, old = ("tutor", "s1", NEW), ("tutor", "s1", OLD)
    assert (after[new][0] - before[new][0], after[new][1]) == (1, 1)
    assert (after[old][0] - before.get(old, (0, 0))[0], after[old][1]) == (1, 0)


async def test_what_a_failing_target_takes_is_not_counted_as_the_others_time_to_its_first_token(
    start_stand_in: Callable[[], Any], start_chat: Any
) -> None:
    bad, good = start_stand_in(), start_stand_in()
    good.say("fine")
    bad.say("fine")
    chat = start_chat({"s": [backend(bad.url, NEW), backend(good.url, OLD)]}, [route(50, 50)])
    for n in range(200):
        if len(bad.bodies):
            break
        caller = f"caller-{n}"
        await ask(chat, user=caller)
    await chat.write({"s": [backend(bad.url, NEW), backend(good.url, OLD)]}, [route(50, 50, step="s2")], "second")
    bad.status, bad.script = 500, [b'{"error":"boom","error_type":"generation"}']
    bad.hold()
    asking = asyncio.create_task(ask(chat, user=caller))
    await chat.until(lambda report: report["inFlight"] != [])
    await asyncio.sleep(1)
    bad.release()
    assert (await asking)[0] == 200
    told = {t["adapter"]: t for t in (await chat.report())["targets"]}
    assert (told[NEW]["requests"], told[NEW]["errors"], sum(told[NEW]["firstToken"])) == (1, 1, 0)
    (bucket,) = [i for i, n in enumerate(told[OLD]["firstToken"]) if n]
    assert FIRST_TOKEN_BOUNDS[bucket] < 0.9


async def test_a_request_that_waited_goes_by_the_new_routes_and_no_backend_gets_an_id_that_it_lacks(
    start_stand_in: Callable[[], Any], start_chat: Any
) -> None:
    slow, other = start_stand_in(), start_stand_in()
    slow.status, slow.script = 503, [b'{"error":"ending","error_type":"shutting_down"}']
    slow.hold()
    other.say("fine")
    chat = start_chat({"s": [backend(slow.url, OLD), backend(other.url, OLD)]}, [route(100, 0)])
    waiting = [asyncio.create_task(ask(chat)) for _ in range(6)]
    await chat.until(lambda report: sum(f["requests"] for f in report["inFlight"] if f["backend"] == slow.url) == 3)
    await until(lambda: len(other.bodies) == 3)
    # The other backend has lost the adapter meanwhile; the new one is all that it has.
    await chat.write({"s": [backend(slow.url, OLD), backend(other.url, NEW)]}, [route(0, 100, step="s2")], "second")
    report = await chat.report()
    assert report["inFlight"] == [{"backend": slow.url, "adapter": OLD, "requests": 3}], "they began under old routes"
    slow.release()
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 6
    assert [b["model"] for b in other.bodies[3:]] == [NEW] * 3
    assert await chat.counts() == {("tutor", "s2", NEW): (3, 0)}


async def test_routes_that_change_under_load_never_send_an_id_to_a_backend_that_lacks_it(
    start_stand_in: Callable[[], Any], start_chat: Any
) -> None:
    engines = [start_stand_in() for _ in range(2)]
    for engine in engines:
        engine.say("fi", "ne")
        engine.pause = 0.001
    one, two = engines
    tables = [
        ({"s": [backend(one.url, OLD), backend(two.url, OLD)]}, [route(100, 0)]),
        ({"s": [backend(one.url, OLD, NEW), backend(two.url, OLD)]}, [route(95, 5)]),
        ({"s": [backend(one.url, OLD, NEW), backend(two.url, NEW)]}, [route(50, 50)]),
        ({"s": [backend(one.url, NEW), backend(two.url, NEW)]}, [route(0, 100)]),
    ]
    chat = start_chat(*tables[0])
    statuses: list[int] = []
    is_over = False

    async def keep_asking(number: int) -> None:
        while not is_over:
            statuses.append((await ask(chat, user=f"caller-{number}-{len(statuses)}"))[0])

    asking = [asyncio.create_task(keep_asking(n)) for n in range(8)]
    wrong: list[str] = []
    for number, (servers, routes) in enumerate([*tables[1:], *tables[:-1][::-1], *tables[1:]]):
        await chat.write(servers, routes, f"r{number}")
        # From the word that these routes are in force, nothing new starts by older ones.
        marks = [len(e.bodies) for e in engines]
        await asyncio.sleep(0.15)
        for engine, listed, mark in zip(engines, servers["s"], marks, strict=True):
            wrong += [b["model"] for b in engine.bodies[mark + 8 :] if b["model"] not in listed["adapters"]]
    is_over = True
    await asyncio.gather(*asking)
    assert set(statuses) == {200} and len(statuses) > 50
    assert wrong == []


async def test_an_idle_connection_that_the_engine_closes_costs_no_request(start_chat: Any) -> None:
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request a connection, says that it stays open, and closes it when the next one comes."""
        nonlocal answered
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(next(h for h in head.lower().split(b"\r\n") if h.startswith(b"content-length")).split(b":")[1])
        await reader.readexactly(length)
        answered += 1
        body = b'{"id":"","model":"x","choices":[{"index":0,"message":{"role":"assistant","content":"fine"}}]}'
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    chat = start_chat({"s": [backend(f"http://127.0.0.1:{port}", OLD)]}, [route(100, 0)])
    for _ in range(5):
        status, text = await ask(chat, stream=False)
        assert status == 200 and "fine" in text
    assert answered == 5
    server.close()


async def test_all_backends_too_busy_is_429_and_none_able_is_503_each_with_retry_after(
    start_stand_in: Callable[[], Any], start_chat: Any
) -> None:
    engines = [start_stand_in() for _ in range(2)]
    for engine in engines:
        engine.status, engine.script = 429, [b'{"error":"Model is overloaded","error_type":"overloaded"}']
    chat = start_chat({"s": [backend(e.url, OLD) for e in engines]}, [route(100, 0)])
    body = {"model": "tutor", "messages": MESSAGES}
    async with aiohttp.ClientSession(chat.url) as client:
        async with client.post("/v1/chat/completions", json=body) as response:
            assert response.status == 429 and response.headers["Retry-After"]
        assert await chat.counts() == {}, "a full queue is nobody's fault"
        await chat.write({"s": [backend(engines[0].url, NEW)]}, [route(100, 0)], "second")
        asked = len(engines[0].bodies)
        async with client.post("/v1/chat/completions", json=body) as response:
            assert response.status == 503 and response.headers["Retry-After"]
    assert len(engines[0].bodies) == asked, "the base never stands in for an adapter"
    assert await chat.counts() == {("tutor", "s1", OLD): (1, 1)}
