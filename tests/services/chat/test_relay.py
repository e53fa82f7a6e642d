"""The relay before an engine that misbehaves in the ways that text-generation-inference can."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

BODY = {"model": "tutor", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


async def post(server: Any, **change: Any) -> tuple[int, str, dict[str, str]]:
    async with (
        aiohttp.ClientSession(server.url) as client,
        client.post("/v1/chat/completions", json={**BODY, **change}) as response,
    ):
        return response.status, (await response.read()).decode(), dict(response.headers)


def events_of(text: str) -> list[Any]:
    payloads = [e.removeprefix("data:").strip() for e in text.split("\n\n") if e]
    return [p if p == "[DONE]" else json.loads(p) for p in payloads]


async def test_the_engine_is_asked_for_its_own_id_and_the_client_sees_the_public_name(
    stand_in: Any, chat_before: Any
) -> None:
    tricky = 'says "model":"x" and {"error": 1} and data: [DONE]\n\ndata: {"error":"no"}'
    stand_in.say("Hello ", tricky, model="ns-tutor-r1-0123abcd")
    status, text, _ = await post(chat_before, temperature=0.3, custom="kept")
    *chunks, done = events_of(text)
    assert (status, done) == (200, "[DONE]")
    assert {c["model"] for c in chunks} == {"tutor"}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "Hello " + tricky
    assert stand_in.bodies[-1] == {**BODY, "model": "ns-tutor-r1-0123abcd", "temperature": 0.3, "custom": "kept"}
    await post(chat_before, model="base")
    assert stand_in.bodies[-1]["model"] == "tgi"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        ({"error": "Model is overloaded", "error_type": "overloaded"}, 429, "rate_limit_error"),
        ({"error": "`inputs` too long", "error_type": "validation"}, 422, "invalid_request_error"),
        ({"error": "CUDA error", "error_type": "generation"}, 503, "server_error"),
        ({"error": {"message": "boom", "type": "generation"}}, 503, "server_error"),
    ],
)
async def test_an_error_inside_a_200_stream_gets_its_own_status(
    stand_in: Any, chat_before: Any, error: dict[str, Any], status: int, kind: str
) -> None:
    stand_in.script = [b": keep-alive\n\n", b"data: " + json.dumps(error).encode() + b"\n\n"]
    got, text, headers = await post(chat_before)
    assert got == status
    assert json.loads(text)["error"]["type"] == kind
    assert headers["Content-Type"].startswith("application/json")
    assert ("Retry-After" in headers) == (status in (429, 503))


@pytest.mark.parametrize(
    ("engine_status", "status"), [(422, 422), (424, 503), (429, 429), (500, 503), (404, 503), (503, 503)]
)
async def test_an_engines_status_becomes_the_front_doors(
    stand_in: Any, chat_before: Any, engine_status: int, status: int
) -> None:
    stand_in.status, stand_in.script = engine_status, [b'{"error":"because","error_type":"x"}']
    for stream in (True, False):
        got, text, _ = await post(chat_before, stream=stream)
        assert got == status
        assert json.loads(text)["error"]["message"]


async def test_an_answer_that_breaks_off_ends_with_an_error_and_without_done(stand_in: Any, chat_before: Any) -> None:
    for cut in (True, False):
        stand_in.say("Hello ", "world")
        stand_in.script, stand_in.cut = stand_in.script[:2], cut
        status, text, _ = await post(chat_before)
        events = events_of(text)
        assert status == 200
        assert events[0]["choices"][0]["delta"]["content"] == "Hello "
        assert "broke off" in events[-1]["error"]["message"]
    stand_in.say("Hello ")
    stand_in.script[1:] = [b'data: {"error":"late","error_type":"generation"}\n\n']
    _, text, _ = await post(chat_before)
    assert events_of(text)[-1]["error"]["message"] == "late"


async def test_nothing_at_all_is_an_error_too(stand_in: Any, chat_before: Any) -> None:
    stand_in.script, stand_in.status = [], 200
    status, text, _ = await post(chat_before)
    assert status == 503 and "broke off" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize("size", [1, 3, 17, 1000])
async def test_events_are_passed_on_whole_however_the_network_cuts_them(
    stand_in: Any, chat_before: Any, size: int
) -> None:
    stand_in.say("é中🦙", "zwei", "drei")
    raw = b"".join(stand_in.script).replace(b"\n", b"\r\n" if size == 3 else b"\n")
    stand_in.script, stand_in.pause = [raw[i : i + size] for i in range(0, len(raw), size)], 0.0002
    _, text, _ = await post(chat_before)
    *chunks, done = events_of(text)
    assert done == "[DONE]"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "é中🦙zweidrei"


async def test_tokens_are_not_held_back(stand_in: Any, chat_before: Any) -> None:
    stand_in.say("one ", "two ", "three ")
    stand_in.pause = 0.3
    async with (
        aiohttp.ClientSession(chat_before.url) as client,
        client.post("/v1/chat/completions", json=BODY) as response,
    ):
        started = asyncio.get_running_loop().time()
        first = await response.content.readuntil(b"\n\n")
        assert b"one" in first
        assert asyncio.get_running_loop().time() - started < 0.2


async def test_a_client_who_leaves_ends_the_engines_stream_within_100_ms(stand_in: Any, chat_before: Any) -> None:
    for stream in (True, False):
        stand_in.say(*["word "] * 100)
        stand_in.pause = 0.2
        async with aiohttp.ClientSession(chat_before.url) as client:
            asking = asyncio.create_task(client.post("/v1/chat/completions", json={**BODY, "stream": stream}))
            while stand_in.running == 0:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.1)
            if asking.done():
                asking.result().close()
            asking.cancel()
            started = asyncio.get_running_loop().time()
            while stand_in.running:
                await asyncio.sleep(0.005)
                assert asyncio.get_running_loop().time() - started < 2
            assert asyncio.get_running_loop().time() - started < 0.35, "0.1 s and the stand-in's own pause"


async def test_another_backend_is_tried_before_the_first_byte(
    stand_in: Any, launch_server: Any, make_routes: Any, tmp_path: Path
) -> None:
    dead = {"url": "http://127.0.0.1:9", "adapters": ["x"]}
    routes = make_routes(
        tmp_path / "two.json",
        {"s": [dead, {"url": stand_in.url, "adapters": ["x"]}]},
        [{"model": "tutor", "server": "s", "targets": [{"adapter": "x"}]}],
    )
    server = launch_server("llamero.chat", "--routes", str(routes), "--port", "0")
    stand_in.say("alive")
    status, text, _ = await post(server)
    assert status == 200 and "alive" in text
    assert server.stop(2) == 0


async def test_sigterm_lets_a_running_answer_end(
    stand_in: Any, launch_server: Any, make_routes: Any, tmp_path: Path
) -> None:
    routes = make_routes(
        tmp_path / "routes.json",
        {"s": [{"url": stand_in.url}]},
        [{"model": "tutor", "server": "s", "targets": [{}]}],
    )
    server = launch_server("llamero.chat", "--routes", str(routes), "--port", "0")
    stand_in.say("one ", "two ", "three ")
    stand_in.pause = 0.15
    async with (
        aiohttp.ClientSession(server.url) as client,
        client.post("/v1/chat/completions", json=BODY) as response,
    ):
        await response.content.readuntil(b"\n\n")
        server.process.terminate()
        rest = await response.read()
    assert b"[DONE]" in rest
    assert await asyncio.to_thread(server.stop, 3) == 0
