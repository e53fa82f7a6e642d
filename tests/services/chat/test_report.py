"""What the chat service tells the operator: counts by step, requests under way, the routes in force; and votes on its answers."""

import asyncio
import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llamero.chat import ledger
from llamero.chat.ledger import Key, Ledger
from llamero.spec.routes import Route, Routes, Target
from llamero.spec.serving import FIRST_TOKEN_BOUNDS, ChatReport

OLD, NEW = "ns-tutor-r1-00000000", "ns-tutor-r2-11111111"
BODY: dict[str, Any] = {"model": "tutor", "messages": [{"role": "user", "content": "Hi"}]}
ERROR = b'data: {"error":"CUDA error","error_type":"generation"}\n\n'


def servers(*engines: Any) -> dict[str, list[dict[str, Any]]]:
    return {"s": [{"url": e.url, "engine": "tgi", "adapters": [OLD, NEW]} for e in engines]}


def route(step: str = "s1", adapter: str = OLD) -> dict[str, Any]:
    return {"model": "tutor", "server": "s", "step": step, "targets": [{"adapter": adapter}]}


async def ask(chat: Any, **change: Any) -> tuple[int, str, Mapping[str, str]]:
    async with (
        aiohttp.ClientSession(chat.url) as client,
        client.post("/v1/chat/completions", json={**BODY, **change}) as response,
    ):
        return response.status, (await response.read()).decode(), response.headers


async def vote(chat: Any, answer_id: Any, kind: Any) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession(chat.url) as client,
        client.post("/v1/votes", json={"id": answer_id, "vote": kind}) as response,
    ):
        return response.status, await response.json()


async def test_requests_and_the_engines_errors_are_counted_and_callers_mistakes_are_not(
    stand_in: Any, start_chat: Any
) -> None:
    chat = start_chat(servers(stand_in), [route()])
    stand_in.say("fine")
    assert (await ask(chat, stream=True))[0] == 200
    stand_in.say_whole("fine")
    assert (await ask(chat))[0] == 200
    assert await chat.counts() == {("tutor", "s1", OLD): (2, 0)}
    for status in (400, 413, 422):
        stand_in.status, stand_in.script = status, [b'{"error":"no","error_type":"validation"}']
        assert (await ask(chat))[0] == 422
    assert (await ask(chat, temperature=9))[0] == 400
    assert await chat.counts() == {("tutor", "s1", OLD): (2, 0)}
    for status in (424, 500, 503):
        stand_in.status = status
        stand_in.script = [b'{"error":"boom","error_type":"x"}']
        assert (await ask(chat))[0] == 503
    assert await chat.counts() == {("tutor", "s1", OLD): (5, 3)}
    stand_in.status, stand_in.script = 200, [ERROR]
    assert (await ask(chat, stream=True))[0] == 503
    stand_in.say("half")
    stand_in.script, stand_in.cut = stand_in.script[:1], True
    assert "broke off" in (await ask(chat, stream=True))[1]
    stand_in.say("half")
    stand_in.script[1:] = [ERROR]
    assert "CUDA" in (await ask(chat, stream=True))[1]
    assert await chat.counts() == {("tutor", "s1", OLD): (8, 6)}


async def test_a_caller_who_leaves_is_no_error(stand_in: Any, start_chat: Any) -> None:
    chat = start_chat(servers(stand_in), [route()])
    stand_in.say(*["word "] * 200)
    stand_in.pause = 0.02
    async with (
        aiohttp.ClientSession(chat.url) as client,
        client.post("/v1/chat/completions", json={**BODY, "stream": True}) as response,
    ):
        await response.content.readuntil(b"\n\n")
        assert (await chat.report())["inFlight"] == [{"backend": stand_in.url, "adapter": OLD, "requests": 1}]
        response.close()
    await chat.until(lambda report: report["inFlight"] == [])
    assert await chat.counts() == {("tutor", "s1", OLD): (1, 0)}
    stand_in.hold()
    asking = asyncio.create_task(ask(chat, stream=True))
    await chat.until(lambda report: report["inFlight"] != [])
    asking.cancel()
    await chat.until(lambda report: report["inFlight"] == [])
    assert await chat.counts() == {("tutor", "s1", OLD): (1, 0)}, "nothing was seen of an answer"


async def test_the_time_to_the_first_token_is_that_of_the_first_content(stand_in: Any, start_chat: Any) -> None:
    chat = start_chat(servers(stand_in), [route()])
    stand_in.say("late")
    role = {"id": "", "model": "x", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    stand_in.script.insert(0, b"data: " + json.dumps(role).encode() + b"\n\n")
    stand_in.pause = 0.3  # between the role and the first word
    assert (await ask(chat, stream=True))[0] == 200
    (counts,) = ChatReport.model_validate(await chat.report()).targets
    (bucket,) = [i for i, n in enumerate(counts.first_token) if n]
    assert 0.3 <= FIRST_TOKEN_BOUNDS[bucket] < 1.5


async def test_counts_are_kept_for_the_steps_in_the_routes_and_the_revision_is_that_in_force(
    stand_in: Any, start_chat: Any
) -> None:
    chat = start_chat(servers(stand_in), [route()])
    stand_in.say_whole("fine")
    await ask(chat)
    report = ChatReport.model_validate(await chat.report())
    assert report.revision == "first" and report.targets[0].step == "s1"
    await chat.write(servers(stand_in), [route("s2", NEW)], "second")
    assert await chat.counts() == {}
    await ask(chat)
    assert await chat.counts() == {("tutor", "s2", NEW): (1, 0)}
    assert (await chat.report())["instance"] == report.instance


async def test_the_inner_port_is_not_the_public_one(stand_in: Any, start_chat: Any) -> None:
    chat = start_chat(servers(stand_in), [route()])
    async with aiohttp.ClientSession() as client:
        for url, path, status in [
            (chat.url, "/v1/report", 404),
            (chat.inner, "/v1/models", 404),
            (chat.inner, "/healthz", 200),
            (chat.inner, "/readyz", 200),
        ]:
            async with client.get(url + path) as response:
                assert response.status == status, (url, path)


async def test_without_routes_the_service_is_healthy_but_not_ready(launch_server: Any, tmp_path: Path) -> None:
    path, port = tmp_path / "routes.json", tmp_path / "port"
    server = launch_server(
        "llamero.chat", "--routes", str(path), "--port", "0", "--inner-port", "0", "--inner-port-file", str(port)
    )

    async def status(of: str) -> int:
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"http://127.0.0.1:{port.read_text().strip()}{of}") as r,
        ):
            return r.status

    assert (await status("/healthz"), await status("/readyz")) == (200, 503)
    path.write_text("{broken")
    await asyncio.sleep(0.5)
    assert await status("/readyz") == 503
    path.write_text("{}")
    async with asyncio.timeout(10):
        while await status("/readyz") != 200:
            await asyncio.sleep(0.02)
    assert server.stop(3) == 0


async def test_answers_have_an_id_of_the_services_own_however_the_engine_writes_its_own(
    stand_in: Any, start_chat: Any
) -> None:
    chat = start_chat(servers(stand_in), [route()])
    chunk = {"index": 0, "delta": {"content": 'its "id":"x"', "tool_calls": [{"id": "call_1", "index": 0}]}}
    heads: list[dict[str, Any]] = [
        {"id": "", "model": "m"},
        {"model": "m", "id": None},
        {"id": 'a\\"b', "model": "m", "created": 2},
        {"model": "m"},
    ]
    chunks = [{**head, "choices": [chunk]} for head in heads]
    chunks.append({"choices": [{**chunk, "finish_reason": "stop"}], "model": "m", "id": "behind"})
    stand_in.script = [b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks] + [b"data: [DONE]\n\n"]
    status, text, headers = await ask(chat, stream=True)
    assert status == 200, text
    told = [json.loads(e.removeprefix("data: ")) for e in text.split("\n\n") if e and "[DONE]" not in e]
    assert {(c["id"], c["model"]) for c in told} == {(headers["X-Request-Id"], "tutor")}
    assert [c["choices"][0]["delta"] for c in told] == [chunk["delta"]] * 5
    stand_in.say_whole("fine")
    _, text, first = await ask(chat)
    assert json.loads(text)["id"] == first["X-Request-Id"] != headers["X-Request-Id"]


async def test_votes_are_counted_under_the_adapter_that_answered_and_the_last_one_holds(
    stand_in: Any, start_chat: Any
) -> None:
    chat = start_chat(servers(stand_in), [route()])
    stand_in.say_whole("fine")
    ids = [json.loads((await ask(chat))[1])["id"] for _ in range(3)]
    assert await vote(chat, ids[0], "down") == (
        200,
        {"object": "vote", "id": ids[0], "model": "tutor", "vote": "down"},
    )
    for answer_id, kind in [(ids[0], "up"), (ids[0], "up"), (ids[1], "up"), (ids[2], "down")]:
        assert (await vote(chat, answer_id, kind))[0] == 200
    (counts,) = (await chat.report())["targets"]
    assert (counts["adapter"], counts["votesUp"], counts["votesDown"]) == (OLD, 2, 1)
    await chat.write(servers(stand_in), [route("s2", NEW)], "second")
    assert (await vote(chat, ids[0], "down"))[0] == 200, "heard, though its step is over"
    assert (await chat.report())["targets"] == []


@pytest.mark.parametrize(
    ("answer_id", "kind", "status", "param"),
    [("nobody", "up", 404, "id"), ("", "up", 400, "id"), (3, "up", 400, "id"), ("x", "sideways", 400, "vote")],
)
async def test_votes_that_can_not_be_counted_are_refused_in_openais_shape(
    stand_in: Any, start_chat: Any, answer_id: Any, kind: str, status: int, param: str
) -> None:
    chat = start_chat(servers(stand_in), [route()])
    got, told = await vote(chat, answer_id, kind)
    assert (got, told["error"]["param"]) == (status, param)


def test_old_answers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_ANSWERS_KEPT", 3)
    books, key = Ledger(), Key("tutor", "", OLD)
    books.follow(Routes(routes=[Route(model="tutor", server="s", targets=[Target(adapter=OLD)])]))
    for n in range(5):
        books.keep_answer(f"a{n}", key, now=float(n))
    assert [books.vote(f"a{n}", "up", now=5.0) is not None for n in range(5)] == [False, False, True, True, True]
    assert books.vote("a4", "down", now=4.0 + ledger.ANSWER_SECONDS + 1) is None
    books.keep_answer("new", key, now=100_000.0)
    assert len(books._answers) == 1
    (counts,) = books.report("").targets
    assert (counts.votes_up, counts.votes_down) == (3, 0)


async def test_callers_are_told_apart_by_user_then_key_then_address(stand_in: Any, start_chat: Any) -> None:
    targets = [{"adapter": OLD, "weight": 50}, {"adapter": NEW, "weight": 50}]
    chat = start_chat(servers(stand_in), [{**route(), "targets": targets}], "--trust-forwarded-for")
    stand_in.say_whole("fine")

    async def chosen(user: str | None = None, **headers: str) -> str:
        async with (
            aiohttp.ClientSession(chat.url) as client,
            client.post("/v1/chat/completions", json=BODY | ({"user": user} if user else {}), headers=headers) as r,
        ):
            assert r.status == 200
        return str(stand_in.bodies[-1]["model"])

    def forwarded(n: int) -> dict[str, str]:
        return {"X-Forwarded-For": f"{n}.9.9.9, 10.0.0.{n}"}

    for kind in (
        [await chosen(user=f"u{n}") for n in range(16)],
        [await chosen(Authorization=f"Bearer k{n}") for n in range(16)],
        [await chosen(**forwarded(n)) for n in range(16)],
    ):
        assert set(kind) == {OLD, NEW}, "each kind tells callers apart"
    same_user = {await chosen("u1", Authorization=f"Bearer {n}") for n in range(8)}
    same_key = {await chosen(None, Authorization="Bearer k", **forwarded(n)) for n in range(8)}
    same_address = {await chosen(**{"X-Forwarded-For": f"{n}.1.1.1, 10.0.0.1"}) for n in range(8)}
    assert [len(s) for s in (same_user, same_key, same_address)] == [1, 1, 1]


async def test_a_forwarded_address_is_believed_only_where_a_proxy_is_named(stand_in: Any, start_chat: Any) -> None:
    targets = [{"adapter": OLD, "weight": 50}, {"adapter": NEW, "weight": 50}]
    chat = start_chat(servers(stand_in), [{**route(), "targets": targets}])
    stand_in.say_whole("fine")
    async with aiohttp.ClientSession(chat.url) as client:
        for n in range(16):
            headers = {"X-Forwarded-For": f"10.0.0.{n}"}
            async with client.post("/v1/chat/completions", json=BODY, headers=headers) as response:
                assert response.status == 200
    assert len({body["model"] for body in stand_in.bodies}) == 1


async def test_sigterm_lets_running_answers_end_and_takes_nothing_new(
    stand_in: Any, start_chat: Callable[..., Any]
) -> None:
    chat = start_chat(servers(stand_in), [route()], "--drain-seconds", "30")
    stand_in.say("one ", "two ")
    async with aiohttp.ClientSession(chat.url) as client, aiohttp.ClientSession(chat.url) as idle:
        async with idle.get("/v1/models") as response:
            assert response.status == 200
        stand_in.hold()
        asking = asyncio.create_task(client.post("/v1/chat/completions", json={**BODY, "stream": True}))
        await chat.until(lambda report: report["inFlight"] != [])
        chat.server.process.send_signal(signal.SIGTERM)

        async def status() -> int:
            async with aiohttp.ClientSession() as prober, prober.get(f"{chat.inner}/readyz") as response:
                return response.status

        async with asyncio.timeout(5):
            while await status() != 503:
                await asyncio.sleep(0.01)
        assert (await chat.report())["inFlight"] != [], "the operator still sees what is under way"
        async with idle.get("/v1/models") as response:
            assert (response.status, response.headers["Connection"]) == (200, "close")
        with pytest.raises(aiohttp.ClientConnectorError):
            await idle.get("/v1/models")
        assert chat.server.process.poll() is None
        stand_in.release()
        async with await asking as response:
            assert "[DONE]" in await response.text()
            assert response.headers["Connection"] == "close"
    assert await asyncio.to_thread(chat.server.process.wait, 3) == 0


async def test_an_answer_that_outlasts_the_drain_is_cut(stand_in: Any, start_chat: Callable[..., Any]) -> None:
    chat = start_chat(servers(stand_in), [route()], "--drain-seconds", "0.3")
    stand_in.say(*["word "] * 1000)
    stand_in.pause = 0.05
    async with (
        aiohttp.ClientSession(chat.url) as client,
        client.post("/v1/chat/completions", json={**BODY, "stream": True}) as response,
    ):
        await response.content.readuntil(b"\n\n")
        chat.server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(chat.server.process.wait, 5) == 0
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
