"""OpenAI's endpoints as TGI has them: /v1/chat/completions, /v1/completions, /v1/models; and vLLM's for adapters at run time.

Errors have TGI's body {"error", "error_type"}. Stop tokens and stop strings are never part of an answer.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from secrets import token_hex
from typing import Any

from aiohttp import web

from llamero.engine.catalog import ServedModel
from llamero.engine.requests import Finished, FinishReason, TokenEvent, TokenScore
from llamero.engine.service import token_text
from llamero.engine.streams import stream_generation
from llamero.engine.tgi_routes import SERVICE, read_json
from llamero.engine.wire import ChatBody, CompletionBody, LoadBody, OpenAIParameters, UnloadBody, parse_body
from llamero.spec.names import ENGINE_BASE_NAME

FINISH_WORDS = {FinishReason.LENGTH: "length", FinishReason.STOP_TOKEN: "stop", FinishReason.STOP_SEQUENCE: "stop"}
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


def add_openai_routes(app: web.Application) -> None:
    """Add OpenAI's endpoints and the adapters' to an application."""
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_post("/v1/completions", completions)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/load_lora_adapter", load_adapter)
    app.router.add_post("/v1/unload_lora_adapter", unload_adapter)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    service = request.app[SERVICE]
    body = parse_body(ChatBody, await read_json(request))
    model = service.catalog.find(body.model, also_base=(ENGINE_BASE_NAME,))
    messages = [m.to_message() for m in body.messages]
    ids = await service.encode(model, lambda: model.chat_prompt(messages))
    asked = body.max_completion_tokens or body.max_tokens
    top = (body.top_logprobs or 0) if body.logprobs else 0
    shape = _ChatShape(model, body, with_log_probs=bool(body.logprobs))
    generation = service.submit(
        model, ids, service.room_for(len(ids), asked, clamp=True), body.sampling(), body.stop_strings(), top_tokens=top
    )
    if body.stream:
        closing = "[DONE]"
        return await stream_generation(request, service.thread, generation, shape.chunks, shape.opening(), closing)
    return web.json_response(shape.whole(*await service.collect(generation)))


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions"""
    service = request.app[SERVICE]
    body = parse_body(CompletionBody, await read_json(request))
    model = service.catalog.find(body.model, also_base=(ENGINE_BASE_NAME,))
    ids = await service.encode(model, lambda: model.text_prompt(body.text()))
    asked = body.max_tokens or DEFAULT_COMPLETION_TOKENS
    shape = _CompletionShape(model, body, with_log_probs=body.logprobs is not None)
    generation = service.submit(
        model,
        ids,
        service.room_for(len(ids), asked, clamp=True),
        body.sampling(),
        body.stop_strings(),
        top_tokens=body.logprobs or 0,
    )
    if body.stream:
        return await stream_generation(request, service.thread, generation, shape.chunks, shape.opening(), "[DONE]")
    return web.json_response(shape.whole(*await service.collect(generation)))


class _Shape:
    """What chat and text completions have in common."""

    object_name = ""
    chunk_name = ""
    prefix = ""

    def __init__(self, model: ServedModel, body: OpenAIParameters, with_log_probs: bool) -> None:
        self._model = model
        self._with_log_probs = with_log_probs
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._head = {"id": f"{self.prefix}-{token_hex(12)}", "created": int(time.time()), "model": model.name}

    def opening(self) -> list[dict[str, Any]]:
        return []

    def chunks(self, event: TokenEvent | Finished) -> Iterable[dict[str, Any]]:
        """The chunks of one event; with include_usage the last one has usage and no choices."""
        if isinstance(event, TokenEvent):
            if event.text or (self._with_log_probs and not event.is_stop):
                yield self._chunk(self.delta(event), None)
            return
        yield self._chunk(self.empty_delta(), FINISH_WORDS[event.reason])
        if self._with_usage:
            yield {**self._head, "object": self.chunk_name, "choices": [], "usage": _usage(event)}

    def _chunk(self, choice: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choices = [{"index": 0, **choice, "finish_reason": finish}]
        chunk: dict[str, Any] = {**self._head, "object": self.chunk_name, "choices": choices}
        return chunk | {"usage": None} if self._with_usage else chunk

    def whole(self, tokens: list[TokenEvent], end: Finished) -> dict[str, Any]:
        """The answer in one piece."""
        shown = [t for t in tokens if not t.is_stop]
        choice = {"index": 0, **self.answer(shown, end), "finish_reason": FINISH_WORDS[end.reason]}
        return {**self._head, "object": self.object_name, "choices": [choice], "usage": _usage(end)}

    def delta(self, event: TokenEvent) -> dict[str, Any]:
        raise NotImplementedError

    def empty_delta(self) -> dict[str, Any]:
        raise NotImplementedError

    def answer(self, tokens: list[TokenEvent], end: Finished) -> dict[str, Any]:
        raise NotImplementedError


class _ChatShape(_Shape):
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    prefix = "chatcmpl"

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk({"delta": {"role": "assistant", "content": ""}}, None)]

    def delta(self, event: TokenEvent) -> dict[str, Any]:
        return {"delta": {"content": event.text}} | self._log_probs([] if event.is_stop else [event])

    def empty_delta(self) -> dict[str, Any]:
        return {"delta": {}}

    def answer(self, tokens: list[TokenEvent], end: Finished) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": end.text}} | self._log_probs(tokens)

    def _log_probs(self, tokens: list[TokenEvent]) -> dict[str, Any]:
        if not self._with_log_probs:
            return {}
        content = [{**self._scored(t.score), "top_logprobs": [self._scored(s) for s in t.top]} for t in tokens]
        return {"logprobs": {"content": content}}

    def _scored(self, score: TokenScore) -> dict[str, Any]:
        text = token_text(self._model, score.id)
        return {"token": text, "logprob": score.log_prob, "bytes": list(text.encode())}


class _CompletionShape(_Shape):
    object_name = "text_completion"
    chunk_name = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: ServedModel, body: CompletionBody, with_log_probs: bool) -> None:
        super().__init__(model, body, with_log_probs)
        self._echo = body.text() if body.echo else ""

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk({"text": self._echo}, None)] if self._echo else []

    def delta(self, event: TokenEvent) -> dict[str, Any]:
        return {"text": event.text} | self._log_probs([] if event.is_stop else [event])

    def empty_delta(self) -> dict[str, Any]:
        return {"text": ""}

    def answer(self, tokens: list[TokenEvent], end: Finished) -> dict[str, Any]:
        return {"text": self._echo + end.text} | self._log_probs(tokens)

    def _log_probs(self, tokens: list[TokenEvent]) -> dict[str, Any]:
        if not self._with_log_probs:
            return {"logprobs": None}
        return {
            "logprobs": {
                "tokens": [token_text(self._model, t.score.id) for t in tokens],
                "token_logprobs": [t.score.log_prob for t in tokens],
                "top_logprobs": [{token_text(self._model, s.id): s.log_prob for s in t.top} for t in tokens],
            }
        }


def _usage(end: Finished) -> dict[str, int]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.tokens,
        "total_tokens": end.prompt_tokens + end.tokens,
    }


async def models(request: web.Request) -> web.Response:
    """GET /v1/models: the base, then the adapters, with the base as their parent (vLLM's form)."""
    catalog = request.app[SERVICE].catalog
    return web.json_response({"object": "list", "data": [_describe(m, catalog.base.name) for m in catalog.models()]})


def _describe(model: ServedModel, base: str) -> dict[str, Any]:
    parent = None if model.adapter is None else base
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "llamero", "parent": parent}


async def load_adapter(request: web.Request) -> web.Response:
    """POST /v1/load_lora_adapter {lora_name, lora_path}"""
    body = parse_body(LoadBody, await read_json(request))
    await request.app[SERVICE].catalog.load(body.lora_name, Path(body.lora_path))
    return web.Response(text=f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload_adapter(request: web.Request) -> web.Response:
    """POST /v1/unload_lora_adapter {lora_name}: answers when the requests that run on it have ended."""
    body = parse_body(UnloadBody, await read_json(request))
    await request.app[SERVICE].catalog.unload(body.lora_name)
    return web.Response(text=f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
