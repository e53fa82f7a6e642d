"""`vllm serve` as its documentation and source have it, with the traps that a caller must know of.

Adapters are loaded by calls where VLLM_ALLOW_RUNTIME_LORA_UPDATING is set, and are gone with the process; a name that is used again is
answered from the prefix cache of the adapter before; a rank above --max-lora-rank is refused; /health is 200 whatever the model does.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex
from typing import Any

from aiohttp import web

from standins.events import DONE, event, open_stream
from standins.generating import Batch, Breakdown, Sampling, Token, generate
from standins.llama import Cache, Llama
from standins.text import TemplateFault, Words
from standins.vllm_adapters import Adapters, LoadFault, LoraLimits
from standins.vllm_options import parse_options
from standins.weights import WeightsError

log = logging.getLogger("vllm")

GATE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
COMPLETION_TOKENS = 16
MAX_LOG_PROBS = 20
LEAST_MEMORY_SHARE = 0.05


class Fault(Exception):
    """An error in OpenAI's form."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param

    def to_dict(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}


class Server:
    """One process."""

    def __init__(self, options: argparse.Namespace) -> None:
        if float(options.gpu_memory_utilization or 0.9) < LEAST_MEMORY_SHARE:
            raise ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`")
        folder = Path(options.folder)
        self.base = Llama.load(folder)
        self.words = Words(folder)
        self.names: list[str] = options.served_model_name or [options.folder]
        self.root = str(options.folder)
        self.window = options.max_model_len or self.base.shape.window
        self.with_lora = bool(options.enable_lora)
        limits = LoraLimits(options.max_lora_rank, options.max_loras, options.max_cpu_loras or options.max_loras)
        self.adapters = Adapters(self.base, limits)
        for entry in options.lora_modules:
            name, _, path = entry.partition("=")
            self.adapters.load(name, path)
        self.batch = Batch(int(options.max_num_seqs or 16))
        self.started = int(time.time())
        self.requests = 0
        self.counts: Counter[str] = Counter()

    # Adapters

    async def load(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            raise Fault(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        if not self.with_lora:
            raise Fault(400, "BadRequestError", "LoRA is not enabled. Use --enable-lora to enable LoRA.")
        self.adapters.load(name, path, bool(body.get("load_inplace")))
        log.info("Loaded new LoRA adapter: name '%s', path '%s'", name, path)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        name = body.get("lora_name")
        if not name:
            raise Fault(400, "InvalidUserInput", "'lora_name' needs to be provided to unload a LoRA adapter.")
        self.adapters.unload(name)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def models(self, request: web.Request) -> web.Response:
        cards = [self._card(name, self.root, None) | {"max_model_len": self.window} for name in self.names]
        cards += [self._card(a.name, a.path, self.names[0]) for a in self.adapters.names.values()]
        return web.json_response({"object": "list", "data": cards})

    def _card(self, name: str, root: str, parent: str | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": None,
            "permission": [],
        }

    # Requests

    def choose(self, name: str | None, ids: list[int]) -> Llama:
        """Raises Fault where the name is neither the base's nor a loaded adapter's."""
        if not name or name in self.names:
            return self.base
        if name not in self.adapters.names:
            raise Fault(404, "NotFoundError", f"The model `{name}` does not exist.", "model")
        return self.adapters.choose(name, ids)

    def limit(self, ids: list[int], asked: int | None) -> int:
        if len(ids) + (asked or 1) > self.window:
            raise Fault(
                400,
                "BadRequestError",
                f"This model's maximum context length is {self.window} tokens. However, you requested {len(ids) + (asked or 1)} tokens "
                f"({len(ids)} in the messages, {asked or 1} in the completion). Please reduce the length of the messages or completion.",
            )
        return asked if asked is not None else self.window - len(ids)

    async def run(
        self, model: Llama, prompt: str, ids: list[int], limit: int, body: dict[str, Any], top: int
    ) -> AsyncIterator[Token]:
        """The answer's tokens; a stop text is cut off. Raises Fault."""
        self.requests += 1
        stop = body.get("stop") or []
        stops = [stop] if isinstance(stop, str) else stop
        temperature = body.get("temperature", 1.0)
        sampling = Sampling(temperature or None, body.get("seed")) if temperature else Sampling()
        try:
            async for token in generate(model, self.words, prompt, ids, limit, self.batch, sampling, stops, top):
                if token.reason == "stop_text":
                    ended = next((s for s in stops if token.text.endswith(s)), "")
                    token = Token(token.id, token.text.removesuffix(ended), token.log_prob, token.top, token.reason)
                yield token
            self.counts["success"] += 1
        except Breakdown as error:
            self.counts["error"] += 1
            raise Fault(500, "InternalServerError", f"EngineCore encountered an issue: {error}") from error
        finally:
            self.requests -= 1

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        if not isinstance(body.get("messages"), list) or not body["messages"]:
            raise Fault(
                400, "BadRequestError", "[{'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}]"
            )
        self.choose(body.get("model"), [])  # unknown names are told before anything else
        try:
            prompt = self.words.render([plain(m) for m in body["messages"]])
        except TemplateFault as error:
            raise Fault(400, "BadRequestError", str(error)) from error
        ids = self.words.encode(prompt)
        asked = body.get("max_completion_tokens") or body.get("max_tokens")
        model, limit = self.choose(body.get("model"), ids), self.limit(ids, asked)
        tokens = self.run(model, prompt, ids, limit, body, 0)
        head = self.head(body, "chatcmpl")
        if not body.get("stream"):
            seen = [t async for t in tokens]
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(t.text for t in seen), "tool_calls": []},
                "logprobs": self.chat_scores(seen) if body.get("logprobs") else None,
                "finish_reason": finish(seen[-1]),
                "stop_reason": None,
            }
            told = usage(len(ids), len(seen))
            return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": told})
        chunk = {**head, "object": "chat.completion.chunk"}
        first = await anext(tokens)  # an error before the first token has a status of its own
        response = await open_stream(request)
        opening = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        await response.write(event({**chunk, "choices": [opening]}))
        count = 0
        try:
            async for token in chain(first, tokens):
                count += 1
                choice = {
                    "index": 0,
                    "delta": {"content": token.text},
                    "logprobs": self.chat_scores([token]) if body.get("logprobs") else None,
                    "finish_reason": finish(token),
                }
                await response.write(event({**chunk, "choices": [choice]}))
            if (body.get("stream_options") or {}).get("include_usage"):
                await response.write(event({**chunk, "choices": [], "usage": usage(len(ids), count)}))
        except Fault as fault:
            await response.write(event(fault.to_dict()))
        await response.write(DONE)
        await response.write_eof()
        return response

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        prompts = body.get("prompt")
        if not prompts:
            raise Fault(400, "BadRequestError", "Either prompt or prompt_embeds must be provided and non-empty.")
        prompts = prompts if isinstance(prompts, list) else [prompts]
        if body.get("suffix") is not None:
            raise Fault(400, "BadRequestError", "suffix is not currently supported")
        top = body.get("logprobs")
        if top is not None and top > MAX_LOG_PROBS:
            raise Fault(
                400,
                "BadRequestError",
                f"Requested sample logprobs of {top}, which is greater than max allowed: {MAX_LOG_PROBS}",
            )
        head = {**self.head(body, "cmpl"), "object": "text_completion"}
        if body.get("stream"):
            return await self.stream_completion(request, body, prompts[0], head, top)
        choices, prompt_tokens, answer_tokens = [], 0, 0
        for index, prompt in enumerate(prompts):
            ids, model, limit = self.prepare(body, prompt)
            seen = [t async for t in self.run(model, prompt, ids, limit, body, top or 0)] if limit else []
            prompt_tokens, answer_tokens = prompt_tokens + len(ids), answer_tokens + len(seen)
            echo = bool(body.get("echo"))
            choices.append(
                {
                    "index": index,
                    "text": (prompt if echo else "") + "".join(t.text for t in seen),
                    "logprobs": self.scores(model, ids if echo else [], seen, top) if top is not None else None,
                    "finish_reason": finish(seen[-1]) if seen else "length",
                    "stop_reason": None,
                    "prompt_logprobs": self.prompt_scores(model, ids, body["prompt_logprobs"])
                    if body.get("prompt_logprobs") is not None
                    else None,
                }
            )
        return web.json_response({**head, "choices": choices, "usage": usage(prompt_tokens, answer_tokens)})

    def prepare(self, body: dict[str, Any], prompt: str) -> tuple[list[int], Llama, int]:
        """Ids, weights and the answer's length; 0 tokens are allowed with `echo` alone."""
        ids = self.words.encode(prompt)
        asked = body.get("max_tokens", COMPLETION_TOKENS)
        if asked is not None and asked < (0 if body.get("echo") else 1):
            raise Fault(400, "BadRequestError", f"max_tokens must be at least 1, got {asked}.")
        return ids, self.choose(body.get("model"), ids), self.limit(ids, asked)

    async def stream_completion(
        self, request: web.Request, body: dict[str, Any], prompt: str, head: dict[str, Any], top: int | None
    ) -> web.StreamResponse:
        ids, model, limit = self.prepare(body, prompt)
        tokens = self.run(model, prompt, ids, limit, body, top or 0)
        first = await anext(tokens)
        response = await open_stream(request)
        try:
            async for token in chain(first, tokens):
                scores = self.scores(model, [], [token], top) if top is not None else None
                choice = {"index": 0, "text": token.text, "logprobs": scores, "finish_reason": finish(token)}
                await response.write(event({**head, "choices": [choice]}))
        except Fault as fault:
            await response.write(event(fault.to_dict()))
        await response.write(DONE)
        await response.write_eof()
        return response

    def scores(self, model: Llama, prompt_ids: list[int], seen: list[Token], top: int | None) -> dict[str, Any]:
        """OpenAI's lists over the prompt's tokens (with `echo`) and the answer's; the first of a prompt has none."""
        texts = [self.words.decode([i], special=True) for i in prompt_ids] + [t.text for t in seen]
        log_probs: list[float | None] = []
        best: list[dict[str, float] | None] = []
        if prompt_ids:
            table = model.forward(prompt_ids, Cache())
            log_probs = [None, *(float(table[place, token]) for place, token in enumerate(prompt_ids[1:]))]
            best = [None, *({text: float(score or 0)} for text, score in zip(texts[1:], log_probs[1:], strict=False))]
        log_probs += [t.log_prob for t in seen]
        best += [
            {t.text: t.log_prob, **{self.words.decode([i], special=True): score for i, score in t.top}} for t in seen
        ]
        offsets = [sum(len(t) for t in texts[:place]) for place in range(len(texts))]
        return {"tokens": texts, "token_logprobs": log_probs, "top_logprobs": best, "text_offset": offsets}

    def prompt_scores(self, model: Llama, ids: list[int], count: int) -> list[dict[str, Any] | None]:
        """By token id, with its rank; the most likely `count` of each place as well."""
        table = model.forward(ids, Cache())
        found: list[dict[str, Any] | None] = [None]
        for place, token in enumerate(ids[1:]):
            order = table[place].argsort()[::-1]
            ranks = {int(i): rank + 1 for rank, i in enumerate(order)}
            chosen = [token, *(int(i) for i in order[:count])]
            found.append(
                {
                    str(i): {
                        "logprob": float(table[place, i]),
                        "rank": ranks[i],
                        "decoded_token": self.words.decode([i], special=True),
                    }
                    for i in chosen
                }
            )
        return found

    def chat_scores(self, seen: list[Token]) -> dict[str, Any]:
        return {
            "content": [
                {"token": t.text, "logprob": t.log_prob, "bytes": list(t.text.encode()), "top_logprobs": []}
                for t in seen
            ]
        }

    def head(self, body: dict[str, Any], prefix: str) -> dict[str, Any]:
        name = body.get("model") or self.names[0]
        return {"id": f"{prefix}-{token_hex(16)}", "created": int(time.time()), "model": name}

    # What it tells of itself

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.11.0"})

    async def metrics(self, request: web.Request) -> web.Response:
        label = f'{{model_name="{self.names[0]}"}}'
        lines = [
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{label} {float(self.batch.waiting)}",
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{label} {float(self.batch.running)}",
            "# TYPE vllm:request_success_total counter",
            f"vllm:request_success_total{label} {float(self.counts['success'])}",
        ]
        return web.Response(text="\n".join(lines) + "\n")

    def build_app(self) -> web.Application:
        app = web.Application(middlewares=[answer_faults], client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_get("/ping", self.health)
        app.router.add_get("/version", self.version)
        app.router.add_get("/metrics", self.metrics)
        if os.environ.get(GATE, "0").strip().lower() in ("1", "true"):
            app.router.add_post("/v1/load_lora_adapter", self.load)
            app.router.add_post("/v1/unload_lora_adapter", self.unload)
        return app


async def chain(first: Token, rest: AsyncIterator[Token]) -> AsyncIterator[Token]:
    yield first
    async for token in rest:
        yield token


def finish(token: Token) -> str | None:
    return None if token.reason is None else "length" if token.reason == "length" else "stop"


def usage(prompt: int, answer: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose parts are put together."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    return {**message, "content": content or ""}


async def read_body(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json":
        raise Fault(415, "BadRequestError", "Unsupported Media Type: Only 'application/json' is allowed")
    try:
        body = await request.json()
    except ValueError as error:
        raise Fault(400, "BadRequestError", f"JSON decode error: {error}") from error
    if not isinstance(body, dict):
        raise Fault(400, "BadRequestError", "Input should be a valid dictionary")
    return body


@web.middleware
async def answer_faults(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except Fault as fault:
        return web.json_response(fault.to_dict(), status=fault.status)
    except LoadFault as error:
        fault = Fault(error.status, error.kind, error.message)
        return web.json_response(fault.to_dict(), status=fault.status)
    except web.HTTPNotFound:
        return web.json_response({"detail": "Not Found"}, status=404)


async def serve(options: argparse.Namespace) -> None:
    """Until SIGTERM: then no new connection is taken, and answers at hand are broken off after --shutdown-timeout: at once by default."""
    server = Server(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(server.build_app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port)
    await site.start()
    log.info("Application startup complete.")
    await stop.wait()
    await site.stop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(options.shutdown_timeout):
            while server.requests:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.05)
    os._exit(0)


def main() -> int:
    """Exit code 1 where the model can't be loaded."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(asctime)s %(name)s %(message)s")
    options = parse_options(sys.argv[1:])
    try:
        asyncio.run(serve(options))
    except (LoadFault, WeightsError, OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"RuntimeError: Engine core initialization failed: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
