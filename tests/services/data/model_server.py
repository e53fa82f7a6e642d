"""A real HTTP server that speaks OpenAI's chat/completions and embeddings, and misbehaves on demand.

What it answers is a function of the request (`answer`, `embed`); what goes wrong is a queue of names (`misbehave`), one for each coming
request, or a function of the request (`trouble`). It counts what it was asked, and how many requests were under way at once.

    with ModelServer(lambda body: '{"score": 4}') as server:
        server.misbehave("429:1", "cut", "html")
        model = LanguageModel(url=server.url, model="judge")
"""

import asyncio
import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from aiohttp import web

Body = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """A request as it came in: its path, JSON body, Authorization header, and when (time.monotonic)."""

    path: str
    body: Body
    authorization: str | None
    at: float

    @property
    def prompt(self) -> str:
        """The last message's text (chat), or the texts (embeddings)."""
        return str(self.body["messages"][-1]["content"]) if "messages" in self.body else str(self.body.get("input"))


def count_tokens(text: str) -> int:
    """What the server takes for tokens: words."""
    return len(text.split())


def hash_vector(text: str, dimensions: int = 8) -> list[float]:
    """A vector that depends on the text alone."""
    digest = hashlib.sha256(text.encode()).digest()
    return [(byte - 127.5) / 127.5 for byte in digest[:dimensions]]


class ModelServer:
    """Listens on a loopback port, in a thread of its own, from `with` to its end.

    `answer(body)` gives the text of a chat completion, `embed(text)` a vector; `trouble(body)` a name of TROUBLES or None; `key` is the API
    key that is asked for; each request takes `latency` seconds.
    """

    def __init__(
        self,
        answer: Callable[[Body], str] = lambda body: "yes",
        embed: Callable[[str], list[float]] = hash_vector,
        trouble: Callable[[Body], str | None] = lambda body: None,
        key: str | None = None,
        latency: float = 0.0,
    ) -> None:
        self._life = 0
        self.behave(answer, embed, trouble, key, latency)
        self.port = 0
        self._at_once = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def behave(
        self,
        answer: Callable[[Body], str] = lambda body: "yes",
        embed: Callable[[str], list[float]] = hash_vector,
        trouble: Callable[[Body], str | None] = lambda body: None,
        key: str | None = None,
        latency: float = 0.0,
    ) -> None:
        """Behave as told from now on, at a new `url`, and forget what was asked: a server for the next test."""
        self._life += 1
        self.answer, self.embed, self.trouble, self.key, self.latency = answer, embed, trouble, key, latency
        self.requests: list[Seen] = []
        self.most_at_once = 0
        self._queue: deque[str] = deque()

    @property
    def url(self) -> str:
        """The base URL, as a manifest's `model.url` has it."""
        return f"http://127.0.0.1:{self.port}/{self._life}/v1"

    @property
    def prompts(self) -> list[str]:
        """The prompts of all requests, in their order."""
        return [seen.prompt for seen in self.requests]

    def misbehave(self, *troubles: str) -> None:
        """Let the coming requests meet these, one each; `ok` lets one pass."""
        self._queue.extend(troubles)

    def __enter__(self) -> "ModelServer":
        self._thread.start()
        if not self._ready.wait(20):
            raise TimeoutError("the model server did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        application = web.Application(client_max_size=64 << 20)
        application.router.add_post("/{life}/v1/chat/completions", self._handle)
        application.router.add_post("/{life}/v1/embeddings", self._handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if request.match_info["life"] != str(self._life):  # a client of a test that is over
            return web.Response(status=410)
        authorization = request.headers.get("Authorization")
        path = request.path.removeprefix(f"/{self._life}")
        self.requests.append(Seen(path, body, authorization, time.monotonic()))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            name = self._queue.popleft() if self._queue else self.trouble(body)
            if self.latency:
                await asyncio.sleep(self.latency)
            if self.key is not None and authorization != f"Bearer {self.key}":
                return _refuse(self, body, "401")
            if name is None or name == "ok":
                return web.json_response(self._reply(request.path, body))
            kind, _, detail = name.partition(":")
            if kind.isdecimal():
                return _refuse(self, body, kind, detail)
            return await TROUBLES[kind](self, request, body, detail)
        finally:
            self._at_once -= 1

    def _reply(self, path: str, body: Body) -> Body:
        if path.endswith("/embeddings"):
            texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
            tokens = sum(map(count_tokens, texts))
            data = [{"object": "embedding", "index": i, "embedding": self.embed(t)} for i, t in enumerate(texts)]
            # Out of order: what counts is the index.
            return {"data": data[::-1], "model": body["model"], "usage": {"prompt_tokens": tokens}}
        return self._complete(body, self.answer(body))

    @staticmethod
    def _complete(body: Body, text: str | None, finish: str = "stop") -> Body:
        asked = sum(count_tokens(m["content"]) for m in body["messages"])
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
            "usage": {"prompt_tokens": asked, "completion_tokens": count_tokens(text or "")},
        }


# -- troubles --------------------------------------------------------------------------------------------------------------------

Trouble = Callable[[ModelServer, web.Request, Body, str], Awaitable[web.StreamResponse]]


def _refuse(server: ModelServer, body: Body, status: str, detail: str = "") -> web.Response:
    """An error as careless servers write it: with the prompt in it. `429:2` has Retry-After 2, `429:date:2` the date in two seconds."""
    headers = {}
    if detail.startswith("date:"):
        headers["Retry-After"] = formatdate(time.time() + float(detail.removeprefix("date:")), usegmt=True)
    elif status.startswith("3"):
        headers["Location"] = f"{server.url}/elsewhere"
    elif detail:
        headers["Retry-After"] = detail
    error = {"message": f"not now: {json.dumps(body)}", "type": "some_error", "code": None}
    return web.json_response({"error": error}, status=int(status), headers=headers)


async def _spend_quota(server: ModelServer, request: web.Request, body: Body, detail: str) -> web.StreamResponse:
    error = {"message": "You exceeded your quota.", "type": "insufficient_quota", "code": "insufficient_quota"}
    return web.json_response({"error": error}, status=429)


async def _want_otherwise(server: ModelServer, request: web.Request, body: Body, detail: str) -> web.StreamResponse:
    """As OpenAI refuses a parameter: `unsupported:max_tokens`."""
    error = {"message": f"Unsupported parameter: {detail}", "code": "unsupported_parameter", "param": detail}
    return web.json_response({"error": error}, status=400)


async def _cut(server: ModelServer, request: web.Request, body: Body, detail: str) -> web.StreamResponse:
    """Half of the answer, then the connection is closed."""
    whole = json.dumps(server._reply(request.path, body)).encode()
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(whole))})
    await response.prepare(request)
    await response.write(whole[: len(whole) // 2])
    assert request.transport is not None
    request.transport.abort() if detail == "reset" else request.transport.close()
    return response


async def _drop(server: ModelServer, request: web.Request, body: Body, detail: str) -> web.StreamResponse:
    """The connection is closed before a byte is answered."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _hang(server: ModelServer, request: web.Request, body: Body, detail: str) -> web.StreamResponse:
    await asyncio.wait_for(server._stop.wait(), float(detail) if detail else None)
    return web.Response(status=503)


async def _slow(server: ModelServer, request: web.Request, body: Body, detail: str) -> web.StreamResponse:
    await asyncio.sleep(float(detail or 1))
    return web.json_response(server._reply(request.path, body))


async def _pour(server: ModelServer, request: web.Request, body: Body, detail: str) -> web.StreamResponse:
    """An answer without an end."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" " * (1 << 20))


def _send(content: bytes | str, content_type: str = "application/json") -> Trouble:
    async def send(server: ModelServer, request: web.Request, body: Body, detail: str) -> web.StreamResponse:
        data = content.encode() if isinstance(content, str) else content
        return web.Response(body=data, content_type=content_type)

    return send


def _complete_with(change: Callable[[Body, str], None]) -> Trouble:
    async def complete(server: ModelServer, request: web.Request, body: Body, detail: str) -> web.StreamResponse:
        reply = server._reply(request.path, body)
        change(reply, detail)
        return web.json_response(reply)

    return complete


async def _truncate(server: ModelServer, request: web.Request, body: Body, detail: str) -> web.StreamResponse:
    """A whole HTTP answer with half a JSON document in it."""
    whole = json.dumps(server._reply(request.path, body)).encode()
    return web.Response(body=whole[: len(whole) // 2], content_type="application/json")


def _finish(reason: str) -> Callable[[Body, str], None]:
    def change(reply: Body, detail: str) -> None:
        reply["choices"][0]["finish_reason"] = reason

    return change


def _say(reply: Body, detail: str) -> None:
    reply["choices"][0]["message"]["content"] = detail or "I am sorry, I can't say that in JSON."


TROUBLES: dict[str, Trouble] = {
    "quota": _spend_quota,
    "unsupported": _want_otherwise,
    "cut": _cut,
    "drop": _drop,
    "hang": _hang,
    "slow": _slow,
    "endless": _pour,
    "truncated": _truncate,
    "nonsense": _send(b"\x00\xff\xfe no JSON at all \x80"),
    "html": _send("<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html"),
    "list": _send("[1, 2, 3]"),
    "empty": _send(b""),
    "empty-choices": _complete_with(lambda reply, _: reply.update(choices=[])),
    "no-data": _complete_with(lambda reply, _: reply.update(data=[])),
    "null-content": _complete_with(lambda reply, _: reply["choices"][0]["message"].update(content=None)),
    "wrong-usage": _complete_with(
        lambda reply, _: reply.update(usage={"prompt_tokens": -7, "completion_tokens": "many"})
    ),
    "no-usage": _complete_with(lambda reply, _: reply.pop("usage")),
    "length": _complete_with(_finish("length")),
    "content-filter": _complete_with(_finish("content_filter")),
    "say": _complete_with(_say),
}
"""By name; a name of digits (`500`, `429:2`, `429:date:2`) is an HTTP error of that status. `say:TEXT` answers with that text."""
