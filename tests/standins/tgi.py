"""text-generation-inference's launcher and router as they stand in version 3.3, with the traps that a caller must know of.

Adapters are read at start alone; an id that is not among them is answered by the base, with HTTP 200 and the name asked for; neither
/info nor /v1/models tells of adapters; a stream's error comes inside its 200; one chat template, the base's, serves all.
"""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from standins.events import DONE, event, open_stream
from standins.generating import Batch, Breakdown, Sampling, Token, generate, score_prompt
from standins.llama import Llama
from standins.text import TemplateFault, Words
from standins.tgi_adapters import AdapterFault, load_adapter, parse_lora_adapters
from standins.tgi_options import parse_options
from standins.weights import WeightsError

log = logging.getLogger("tgi")

VERSION = "3.3.7"
SHARD_FAILED = 1
STATUS = {
    "generation": 424,
    "overloaded": 429,
    "validation": 422,
    "incomplete_generation": 500,
    "template_error": 422,
    "tool_error": 422,
}
WORDS = {
    "generation": "Request failed during generation: ",
    "validation": "Input validation error: ",
    "template_error": "Template error: ",
}
COMPLETION_TOKENS = 100
LEAST_MEMORY_FRACTION = 0.05  # with less of the GPU the warm-up finds no room, and the launcher ends
FINISH = {"length": "length", "stop_token": "eos_token", "stop_text": "stop_sequence"}
FINISH_OPENAI = {"length": "length", "stop_token": "stop", "stop_text": "stop"}


class Fault(Exception):
    """An error of the router: its type, and its sentence."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        self.message = WORDS.get(kind, "") + message
        super().__init__(self.message)

    def to_dict(self) -> dict[str, str]:
        return {"error": self.message, "error_type": self.kind}

    def to_openai(self) -> dict[str, Any]:
        """In a chat's stream the status is always 422."""
        return {"error": {"message": self.message, "http_status_code": 422}}


@dataclass(frozen=True)
class Asked:
    """A request after validation."""

    model: Llama
    inputs: str
    ids: list[int]
    limit: int
    sampling: Sampling
    stops: tuple[str, ...]
    top: int
    prompt_scores: bool


class OutOfMemory(Exception):
    """The warm-up found no room."""


class Server:
    """One launcher with its router and its shard. Raises what its model's or an adapter's files are wrong with, and OutOfMemory."""

    def __init__(self, options: dict[str, str | None]) -> None:
        self.options = options
        if float(options["cuda-memory-fraction"] or 1) < LEAST_MEMORY_FRACTION:
            raise OutOfMemory(
                "Not enough memory to handle 4096 prefill tokens. You need to decrease `--max-batch-prefill-tokens`"
            )
        self.model_id = str(options["model-id"])
        folder = Path(self.model_id)
        self.base = Llama.load(folder)
        self.words = Words(folder)
        adapters = parse_lora_adapters(options["lora-adapters"] or "")
        self.adapters = {name: load_adapter(self.base, name, path) for name, path in adapters.items()}
        self.window = int(options["max-total-tokens"] or min(self.base.shape.window, 4096))
        self.max_input = int(options["max-input-tokens"] or options["max-input-length"] or self.window - 1)
        self.most = int(options["max-concurrent-requests"] or 128)
        self.batch = Batch(int(options["max-batch-size"] or 16))
        self.requests = 0
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.seconds = 0.0

    # Requests

    def validate(self, inputs: Any, parameters: dict[str, Any]) -> Asked:
        """As the router does before anything is queued. Raises Fault."""
        if not inputs:
            raise Fault("validation", "`inputs` cannot be empty")
        stops = tuple(parameters.get("stop") or ())
        most_stops = int(self.options["max-stop-sequences"] or 4)
        if len(stops) > most_stops:
            raise Fault("validation", f"`stop` supports up to {most_stops} stop sequences. Given: {len(stops)}")
        temperature = parameters.get("temperature")
        if temperature is not None and temperature <= 0:
            raise Fault("validation", "`temperature` must be strictly positive")
        if (parameters.get("best_of") or 1) > 1:
            raise Fault("validation", "`best_of` is not for a tiny Llama")
        top = parameters.get("top_n_tokens") or 0
        most_top = int(self.options["max-top-n-tokens"] or 5)
        if top > most_top:
            raise Fault("validation", f"`top_n_tokens` must be >= 0 and <= {most_top}. Given: {top}")
        ids = self.words.encode(inputs)
        if parameters.get("truncate"):
            ids = ids[-parameters["truncate"] :]
        asked = parameters.get("max_new_tokens")
        if asked == 0:
            raise Fault("validation", "`max_new_tokens` must be strictly positive")
        limit = asked or max(0, self.window - len(ids))
        if len(ids) + limit > self.window:
            raise Fault(
                "validation",
                f"`inputs` tokens + `max_new_tokens` must be <= {self.window}. Given: {len(ids)} `inputs` tokens and {limit} `max_new_tokens`",
            )
        if len(ids) > self.max_input or limit == 0:
            raise Fault("validation", f"`inputs` must have less than {self.max_input} tokens. Given: {len(ids)}")
        samples = bool(parameters.get("do_sample")) or temperature is not None
        return Asked(
            self.adapters.get(parameters.get("adapter_id") or "", self.base),  # the trap: any other id is the base
            inputs,
            ids,
            limit,
            Sampling(temperature or 1.0, parameters.get("seed")) if samples else Sampling(),
            stops,
            top,
            bool(parameters.get("decoder_input_details")),
        )

    async def run(self, inputs: Any, parameters: dict[str, Any]) -> AsyncIterator[tuple[Asked, Token]]:
        """The tokens of a request. Raises Fault, at once or in the middle."""
        began = time.monotonic()
        self.counts["count"] += 1
        try:
            if self.requests >= self.most:
                raise Fault("overloaded", "Model is overloaded")
            self.requests += 1
            try:
                asked = self.validate(inputs, parameters)
                tokens = generate(
                    asked.model,
                    self.words,
                    inputs,
                    asked.ids,
                    asked.limit,
                    self.batch,
                    asked.sampling,
                    asked.stops,
                    asked.top,
                )
                async for token in tokens:
                    self.counts["tokens"] += 1
                    yield asked, token
            except Breakdown as error:
                raise Fault("generation", str(error)) from error
            finally:
                self.requests -= 1
        except Fault as fault:
            self.failures[fault.kind] += 1
            raise
        self.counts["success"] += 1
        self.seconds += time.monotonic() - began

    async def whole(self, inputs: Any, parameters: dict[str, Any]) -> tuple[Asked, list[Token], str]:
        """A request's tokens and its text."""
        seen = [pair async for pair in self.run(inputs, parameters)]
        if not seen:
            raise Fault("incomplete_generation", "Incomplete generation")
        tokens = [token for _, token in seen]
        return seen[0][0], tokens, "".join(t.text for t in tokens)

    def describe(self, token: Token) -> dict[str, Any]:
        special = token.id in self.words.special
        text = self.words.decode([token.id], special=True) if special else token.text
        return {"id": token.id, "text": text, "logprob": token.log_prob, "special": special}

    def prefill(self, asked: Asked) -> list[dict[str, Any]]:
        """Empty unless the launcher allows it: prompts' log-probabilities are off by default."""
        if not asked.prompt_scores or not self.options.get("enable-prefill-logprobs"):
            return []
        scores = score_prompt(asked.model, asked.ids)
        return [
            {"id": i, "text": self.words.decode([i], special=True), "logprob": score}
            for i, score in zip(asked.ids, scores, strict=True)
        ]

    # /generate

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "inputs")
        parameters = body.get("parameters") or {}
        asked, tokens, text = await self.whole(body["inputs"], parameters)
        answer: dict[str, Any] = {
            "generated_text": (body["inputs"] if parameters.get("return_full_text") else "") + text
        }
        if parameters.get("details") or parameters.get("decoder_input_details"):
            answer["details"] = {
                "finish_reason": FINISH[str(tokens[-1].reason)],
                "generated_tokens": len(tokens),
                "seed": asked.sampling.seed,
                "prefill": self.prefill(asked),
                "tokens": [self.describe(t) for t in tokens],
            }
            if asked.top:
                answer["details"]["top_tokens"] = [
                    [
                        {
                            "id": i,
                            "text": self.words.decode([i], special=True),
                            "logprob": score,
                            "special": i in self.words.special,
                        }
                        for i, score in t.top
                    ]
                    for t in tokens
                ]
        return web.json_response([answer] if request.path == "/" else answer)

    async def compatible(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "inputs")
        return await (self.generate_stream(request) if body.get("stream") else self.generate(request))

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "inputs")
        parameters = body.get("parameters") or {}
        response = await open_stream(request)  # the trap: nothing is known yet, and 200 is out
        index = 0
        text = body["inputs"] if parameters.get("return_full_text") else ""
        try:
            if parameters.get("decoder_input_details"):
                raise Fault("validation", "`decoder_input_details` == true is not supported when streaming tokens")
            async for asked, token in self.run(body["inputs"], parameters):
                index += 1
                text += token.text
                details = None
                if token.reason is not None and parameters.get("details"):
                    details = {
                        "finish_reason": FINISH[token.reason],
                        "generated_tokens": index,
                        "seed": asked.sampling.seed,
                        "input_length": len(asked.ids),
                    }
                payload = {
                    "index": index,
                    "token": self.describe(token),
                    "generated_text": text if token.reason is not None else None,
                    "details": details,
                }
                await response.write(event(payload))
        except Fault as fault:
            await response.write(event(fault.to_dict()))
        await response.write_eof()
        return response

    # OpenAI's

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "messages")
        try:
            inputs = self.words.render([plain(m) for m in body["messages"]])
        except TemplateFault as error:
            self.failures["template"] += 1
            raise Fault("template_error", str(error)) from error
        parameters = {
            **openai_parameters(body),
            "max_new_tokens": body.get("max_tokens"),
            "decoder_input_details": not body.get("stream"),
        }
        head = self.head(body)
        if not body.get("stream"):
            asked, tokens, text = await self.whole(inputs, parameters)
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "logprobs": self.chat_scores(tokens) if body.get("logprobs") else None,
                "finish_reason": FINISH_OPENAI[str(tokens[-1].reason)],
            }
            return web.json_response(
                {"object": "chat.completion", **head, "choices": [choice], "usage": usage(len(asked.ids), len(tokens))}
            )
        response = await open_stream(request)
        await response.write(b":\n\n")  # a keep-alive may come at any time
        chunk = {"object": "chat.completion.chunk", **head}
        count = 0
        try:
            async for asked, token in self.run(inputs, parameters):
                count += 1
                choice = {
                    "index": 0,
                    "delta": {"role": "assistant", "content": token.text},
                    "logprobs": self.chat_scores([token]) if body.get("logprobs") else None,
                    "finish_reason": FINISH_OPENAI[token.reason] if token.reason else None,
                }
                await response.write(event({**chunk, "choices": [choice], "usage": None}))
                if token.reason and (body.get("stream_options") or {}).get("include_usage"):
                    told = usage(len(asked.ids), count)
                    await response.write(event({**chunk, "choices": [], "usage": told}))
        except Fault as fault:
            await response.write(event(fault.to_openai()))
        await response.write(DONE)
        await response.write_eof()
        return response

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, "prompt")
        if body.get("suffix") is not None:
            sentence = "Suffix is not supported and can be achieved by preprocessing the prompt."
            return web.json_response({"error": sentence, "error_type": "suffix not supported"}, status=422)
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        most = int(self.options["max-client-batch-size"] or 4)
        if len(prompts) > most:
            sentence = f"Number of prompts exceeds the maximum allowed batch size of {most}"
            return web.json_response({"error": sentence, "error_type": "batch size exceeded"}, status=422)
        parameters = {
            **openai_parameters(body),
            "max_new_tokens": body.get("max_tokens") or COMPLETION_TOKENS,
            "decoder_input_details": not body.get("stream"),
        }
        head = {"object": "text_completion", **self.head(body)}
        if not body.get("stream"):
            answers = [await self.whole(prompt, parameters) for prompt in prompts]
            choices = [
                {
                    "index": index,
                    "text": text,
                    "logprobs": None,
                    "finish_reason": FINISH_OPENAI[str(tokens[-1].reason)],
                }
                for index, (_, tokens, text) in enumerate(answers)
            ]
            told = usage(sum(len(a.ids) for a, _, _ in answers), sum(len(t) for _, t, _ in answers))
            return web.json_response({**head, "choices": choices, "usage": told})
        response = await open_stream(request)
        count = 0
        try:
            for index, prompt in enumerate(prompts):
                async for asked, token in self.run(prompt, parameters):
                    count += 1
                    # The traps: the stop token's own text is in the stream, and a chunk's finish_reason is "" where there is none.
                    text = self.describe(token)["text"]
                    reason = FINISH[token.reason] if token.reason else ""
                    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
                    payload = {**head, "choices": [choice]}
                    await response.write(
                        event(payload | ({"usage": usage(len(asked.ids), count)} if token.reason else {}))
                    )
        except Fault as fault:
            await response.write(event(fault.to_dict()))
        await response.write(DONE)
        await response.write_eof()
        return response

    def head(self, body: dict[str, Any]) -> dict[str, Any]:
        """The name that was asked for comes back, whoever answers."""
        name = body.get("model")
        shown = name if name and name != "tgi" else self.model_id
        return {"id": "", "created": int(time.time()), "model": shown, "system_fingerprint": f"{VERSION}-native"}

    def chat_scores(self, tokens: list[Token]) -> dict[str, Any]:
        return {"content": [{"token": t.text, "logprob": t.log_prob, "top_logprobs": []} for t in tokens]}

    # What it tells of itself

    async def models(self, request: web.Request) -> web.Response:
        entry = {"id": self.model_id, "object": "model", "created": 0, "owned_by": self.model_id}
        return web.json_response({"object": "list", "data": [entry]})

    async def info(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "model_id": self.model_id,
                "model_sha": self.options["revision"],
                "model_pipeline_tag": None,
                "max_concurrent_requests": self.most,
                "max_best_of": int(self.options["max-best-of"] or 2),
                "max_stop_sequences": int(self.options["max-stop-sequences"] or 4),
                "max_input_tokens": self.max_input,
                "max_total_tokens": self.window,
                "validation_workers": int(self.options["validation-workers"] or 2),
                "max_client_batch_size": int(self.options["max-client-batch-size"] or 4),
                "router": "text-generation-router",
                "version": VERSION,
                "sha": None,
                "docker_label": None,
            }
        )

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await read_body(request, "inputs")
        ids = self.words.encode(body["inputs"])
        return web.json_response(
            [{"id": i, "text": self.words.decode([i], special=True), "start": 0, "stop": 0} for i in ids]
        )

    async def metrics(self, request: web.Request) -> web.Response:
        done = self.counts["success"]
        lines = [
            "# TYPE tgi_request_count counter",
            f"tgi_request_count {self.counts['count']}",
            "# TYPE tgi_request_success counter",
            f"tgi_request_success {done}",
            "# TYPE tgi_request_failure counter",
            *(f'tgi_request_failure{{err="{kind}"}} {n}' for kind, n in self.failures.items()),
            "# TYPE tgi_queue_size gauge",
            f"tgi_queue_size {self.batch.waiting}",
            "# TYPE tgi_batch_current_size gauge",
            f"tgi_batch_current_size {self.batch.running}",
            "# TYPE tgi_request_duration histogram",
            f'tgi_request_duration_bucket{{le="+Inf"}} {done}',
            f"tgi_request_duration_sum {self.seconds}",
            f"tgi_request_duration_count {done}",
            "# TYPE tgi_request_generated_tokens histogram",
            f'tgi_request_generated_tokens_bucket{{le="+Inf"}} {done}',
            f"tgi_request_generated_tokens_sum {self.counts['tokens']}",
            f"tgi_request_generated_tokens_count {done}",
        ]
        return web.Response(text="\n".join(lines) + "\n")

    def build_app(self) -> web.Application:
        app = web.Application(middlewares=[answer_faults], client_max_size=int(self.options["payload-limit"] or 0))
        app.router.add_post("/", self.compatible)
        app.router.add_post("/generate", self.generate)
        app.router.add_post("/generate_stream", self.generate_stream)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/info", self.info)
        for path in ("/health", "/ping"):
            app.router.add_get(path, self.health)
        app.router.add_get("/metrics", self.metrics)
        return app


async def read_body(request: web.Request, needed: str) -> dict[str, Any]:
    """The JSON body; what is no JSON, or lacks a field, is refused in plain text before the router sees it."""
    try:
        body = await request.json()
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"Failed to parse the request body as JSON: {error}") from error
    if not isinstance(body, dict) or needed not in body:
        raise web.HTTPUnprocessableEntity(
            text=f"Failed to deserialize the JSON body into the target type: missing field `{needed}`"
        )
    return body


def openai_parameters(body: dict[str, Any]) -> dict[str, Any]:
    """Greedy only where the temperature is 0; the adapter is the model's name, `tgi` being the base."""
    temperature, stop = body.get("temperature"), body.get("stop")
    greedy = temperature == 0
    return {
        "do_sample": not greedy,
        "temperature": None if greedy else temperature,
        "seed": body.get("seed"),
        "stop": [stop] if isinstance(stop, str) else stop,
        "adapter_id": body.get("model") if body.get("model") != "tgi" else None,
    }


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose parts are put together."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    return {**message, "content": content or ""}


def usage(prompt: int, answer: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


@web.middleware
async def answer_faults(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except Fault as fault:
        return web.json_response(fault.to_dict(), status=STATUS.get(fault.kind, 500))


async def serve(options: dict[str, str | None]) -> None:
    """Until SIGTERM: then no new connection is taken, and those at hand have the graceful termination's time."""
    server = Server(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(server.build_app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    host = str(options["hostname"])
    try:
        ipaddress.ip_address(host)
    except ValueError:
        log.warning("Invalid hostname, defaulting to 0.0.0.0")
        host = "0.0.0.0"
    site = web.TCPSite(runner, host, int(options["port"] or 0))
    await site.start()
    log.info("Connected")
    await stop.wait()
    log.info("signal received, starting graceful shutdown")
    await site.stop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(float(options["graceful-termination-timeout"] or 90)):
            while server.requests:
                await asyncio.sleep(0.02)
    await asyncio.sleep(0.05)
    await runner.cleanup()


def main() -> int:
    """Exit code 1 where the model server can't start, as with an adapter that can't be loaded."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    options = parse_options(sys.argv[1:])
    try:
        asyncio.run(serve(options))
    except (AdapterFault, WeightsError, OutOfMemory, OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"Error when initializing model: {type(error).__name__}: {error}\nError: ShardCannotStart\n")
        return SHARD_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
