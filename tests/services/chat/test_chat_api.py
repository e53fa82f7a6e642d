"""The chat service before a real engine: OpenAI's surface under public names."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

HELLO = [{"role": "user", "content": "Hello there"}]


async def read_events(response: aiohttp.ClientResponse) -> list[Any]:
    raw = (await response.read()).decode()
    payloads = [e.removeprefix("data:").strip() for e in raw.split("\n\n") if e]
    return [p if p == "[DONE]" else json.loads(p) for p in payloads]


async def complete(client: aiohttp.ClientSession, model: str, **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 24, **more}
    async with client.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()  # type: ignore[no-any-return]


async def test_models_are_the_public_names(client: aiohttp.ClientSession) -> None:
    async with client.get("/v1/models") as response:
        models = (await response.json())["data"]
    assert [(m["id"], m["kind"]) for m in models] == [("tutor", "adapter"), ("helper", "adapter"), ("base", "base")]
    async with client.get("/v1/models/helper") as response:
        assert (await response.json())["id"] == "helper"
    async with client.get("/v1/models/plain-a") as response:
        assert response.status == 404


async def test_each_public_name_gets_its_own_adapters_answer(client: aiohttp.ClientSession, real_engine: Any) -> None:
    answers = {}
    async with aiohttp.ClientSession(real_engine.url) as direct:
        for public, own in [("tutor", "plain-a"), ("helper", "plain-b"), ("base", "tgi")]:
            by_chat = await complete(client, public)
            by_engine = await complete(direct, own)
            assert by_chat["choices"] == by_engine["choices"]
            assert by_chat["usage"] == by_engine["usage"]
            assert by_chat["model"] == public
            answers[public] = by_chat["choices"][0]["message"]["content"]
    assert len(set(answers.values())) == 3


async def test_a_stream_is_the_answer_in_pieces_under_the_public_name(client: aiohttp.ClientSession) -> None:
    whole = await complete(client, "tutor")
    body = {
        "model": "tutor", "messages": HELLO, "temperature": 0, "max_tokens": 24, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    async with client.post("/v1/chat/completions", json=body) as response:
        assert response.content_type == "text/event-stream"
        *chunks, done = await read_events(response)
    assert done == "[DONE]"
    assert {c["model"] for c in chunks} == {"tutor"}
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]


async def test_text_completions_pass_through(client: aiohttp.ClientSession) -> None:
    body = {"model": "helper", "prompt": "Apache", "max_tokens": 8, "temperature": 0}
    async with client.post("/v1/completions", json=body) as response:
        whole = await response.json()
    assert whole["model"] == "helper" and whole["usage"]["completion_tokens"] == 8
    async with client.post("/v1/completions", json={**body, "stream": True}) as response:
        *chunks, done = await read_events(response)
    assert done == "[DONE]"
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "nobody"}, 404, "model"),
        ({"model": "plain-a"}, 404, "model"),
        ({"model": None}, 400, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hi"}, 400, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a"}] * 600}, 400, "messages"),
        ({"temperature": 9}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": True}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 1.5}, 400, "max_tokens"),
        ({"n": 2}, 400, "n"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"stream": "yes"}, 400, "stream"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"user": 7}, 400, "user"),
        ({"tools": [{"type": "function"}]}, 422, None),
        ({"messages": [{"role": "user", "content": "word " * 900}]}, 422, None),
    ],
)
async def test_what_is_wrong_is_told_in_openais_shape(
    client: aiohttp.ClientSession, change: dict[str, Any], status: int, param: str | None
) -> None:
    body = {"model": "tutor", "messages": HELLO, "stream": bool(change.get("tools")), **change}
    async with client.post("/v1/chat/completions", json=body) as response:
        told = (await response.json())["error"]
    assert (response.status, told["param"]) == (status, param), told
    assert told["type"] == "invalid_request_error"
    assert len(told["message"]) > 10


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"{", 400), (b"[]", 400), (b"\xff\xfe", 400), (b"[" * 50_000, 400), (b'"' + b"x" * (2 << 20) + b'"', 413)],
)
async def test_bodies_that_are_no_json_or_too_large_are_refused(
    client: aiohttp.ClientSession, data: bytes, status: int
) -> None:
    async with client.post("/v1/chat/completions", data=data) as response:
        assert response.status == status
        assert (await response.json())["error"]["message"]


async def test_unknown_paths_and_methods_have_openais_shape_too(client: aiohttp.ClientSession) -> None:
    async with client.get("/v1/nothing") as response:
        assert response.status == 404 and "error" in await response.json()
    async with client.get("/v1/chat/completions") as response:
        assert response.status == 405 and "error" in await response.json()


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
async def test_pages_from_elsewhere_can_not_use_the_service(
    client: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    async with client.post("/v1/chat/completions", json={}, headers=headers) as response:
        assert response.status == 403


async def test_the_page_is_whole_and_locked_down(client: aiohttp.ClientSession) -> None:
    async with client.get("/") as response:
        page = await response.text()
        policy = response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in policy and "unsafe" not in policy
    links = [part.split('"')[0] for part in page.replace('href="', 'src="').split('src="')[1:]]
    assert links and all(link.startswith("/") for link in links), "nothing comes from elsewhere"
    for link in links:
        async with client.get(link) as response:
            assert response.status == 200, link
    for path in ("/static/vendor/README.md", "/static/../server.py", "/static/"):
        async with client.get(path) as response:
            assert response.status == 404


async def test_a_caller_who_leaves_ends_the_engines_work(client: aiohttp.ClientSession, real_engine: Any) -> None:
    async def read_metrics(direct: aiohttp.ClientSession) -> dict[str, float]:
        async with direct.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

    async def start_and_leave(direct: aiohttp.ClientSession, stream: bool, round_: int) -> None:
        body = {"model": "tutor", "messages": HELLO, "temperature": 0.6, "stream": stream}
        bodies = [body | {"seed": 8 * round_ + n} for n in range(8)]
        jobs = [asyncio.create_task(client.post("/v1/chat/completions", json=b)) for b in bodies]
        while (await read_metrics(direct))["tgi_batch_current_size"] < 2 and not all(job.done() for job in jobs):
            await asyncio.sleep(0.002)
        for job in jobs:
            if job.done():
                job.result().close()
            job.cancel()
        while (await read_metrics(direct))["tgi_batch_current_size"] > 0:
            await asyncio.sleep(0.005)

    async with aiohttp.ClientSession(real_engine.url) as direct:
        for stream in (True, False):
            before = (await read_metrics(direct))["llamero_request_cancelled"]
            # A tiny model's answers may all be over before a busy machine lets the callers leave: then they try again.
            for round_ in range(20):
                await start_and_leave(direct, stream, round_)
                if (await read_metrics(direct))["llamero_request_cancelled"] > before:
                    break
            assert (await read_metrics(direct))["llamero_request_cancelled"] > before


async def test_no_prompt_and_no_answer_is_in_any_log(
    client: aiohttp.ClientSession, real_chat: Any, real_engine: Any
) -> None:
    canary = "kanarienvogel-7391"
    for body in [
        {"model": "tutor", "messages": [{"role": "user", "content": canary}], "max_tokens": 4},
        {"model": "tutor", "messages": [{"role": "user", "content": canary * 400}]},
        {"model": canary, "messages": HELLO},
        {"model": "tutor", "messages": [{"role": canary, "content": canary}], "user": canary},
    ]:
        async with client.post("/v1/chat/completions", json=body) as response:
            await response.read()
    assert "POST /v1/chat/completions 200" in real_chat.log_text()
    assert canary not in real_chat.log_text()
    assert canary not in real_engine.log_text()


async def test_the_routes_file_is_read_again_and_a_broken_one_changes_nothing(
    launch_server: Any, make_routes: Any, real_engine: Any, tmp_path: Path
) -> None:
    path = tmp_path / "routes.json"
    servers = {"local": [{"url": real_engine.url, "adapters": ["plain-a", "plain-b"]}]}
    make_routes(path, servers, [{"model": "one", "server": "local", "targets": [{"adapter": "plain-a"}]}])
    server = launch_server("llamero.chat", "--routes", str(path), "--port", "0")

    async def names() -> list[str]:
        async with client.get("/v1/models") as response:
            return [m["id"] for m in (await response.json())["data"]]

    async def until(expected: list[str]) -> None:
        deadline = time.monotonic() + 20
        while await names() != expected:
            assert time.monotonic() < deadline, await names()
            await asyncio.sleep(0.05)

    async with aiohttp.ClientSession(server.url) as client:
        assert await names() == ["one"]
        first = await complete(client, "one")
        make_routes(path, servers, [{"model": "two", "server": "local", "targets": [{"adapter": "plain-b"}]}])
        await until(["two"])
        assert (await complete(client, "two"))["choices"] != first["choices"]
        path.write_text('{"routes": [{"model": 3')
        await asyncio.sleep(1.2)
        assert await names() == ["two"]
        assert "broken" in server.log_text()
        path.unlink()
        await asyncio.sleep(0.8)
        assert await names() == ["two"]
        make_routes(path, servers, [])
        await until([])
    assert server.stop(2) == 0


async def test_an_engine_that_is_away_is_503_with_a_sentence(
    launch_server: Any, make_routes: Any, tmp_path: Path
) -> None:
    routes = make_routes(
        tmp_path / "routes.json",
        {"gone": [{"url": "http://127.0.0.1:9", "adapters": ["x"]}]},
        [{"model": "tutor", "server": "gone", "targets": [{"adapter": "x"}]}],
    )
    server = launch_server("llamero.chat", "--routes", str(routes), "--port", "0")
    async with aiohttp.ClientSession(server.url) as client:
        for stream in (True, False):
            body = {"model": "tutor", "messages": HELLO, "stream": stream}
            async with client.post("/v1/chat/completions", json=body) as response:
                told = (await response.json())["error"]
                assert response.headers["Retry-After"]
            assert (response.status, told["code"]) == (503, "engine_unavailable")
            assert "tutor" in told["message"]
    assert server.stop(2) == 0
