"""text-generation-inference's own endpoints: /generate, /generate_stream, /, /tokenize, /info, /health, /metrics.

Two differences, both on purpose: an adapter that is not loaded is 404 (TGI lets the base answer), and a stop string is cut
off the answer (TGI leaves it in).
"""

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from llamero.engine.catalog import ServedModel
from llamero.engine.generation import Generation
from llamero.engine.requests import EngineError, ErrorKind, Finished, TokenEvent
from llamero.engine.service import EngineService, token_object, token_text
from llamero.engine.streams import stream_generation
from llamero.engine.wire import GenerateBody, TokenizeBody, parse_body

SERVICE: web.AppKey[EngineService] = web.AppKey("service", EngineService)


def add_tgi_routes(app: web.Application) -> None:
    """Add TGI's endpoints to an application."""
    app.router.add_post("/generate", generate)
    app.router.add_post("/generate_stream", generate_stream)
    app.router.add_post("/", generate_compatibly)
    app.router.add_post("/tokenize", tokenize)
    app.router.add_get("/info", info)
    app.router.add_get("/health", health)
    app.router.add_get("/ping", health)
    app.router.add_get("/metrics", metrics)


async def read_json(request: web.Request) -> Any:
    """The body as JSON; raises EngineError where it is none."""
    try:
        return await request.json()
    except (ValueError, UnicodeDecodeError) as error:
        raise EngineError(ErrorKind.VALIDATION, f"The body is not valid JSON: {error}") from None


async def generate(request: web.Request) -> web.StreamResponse:
    """POST /generate"""
    body = parse_body(GenerateBody, await read_json(request))
    return web.json_response(await _answer(request.app[SERVICE], body))


async def generate_stream(request: web.Request) -> web.StreamResponse:
    """POST /generate_stream"""
    body = parse_body(GenerateBody, await read_json(request))
    return await _stream(request, body)


async def generate_compatibly(request: web.Request) -> web.StreamResponse:
    """POST /, as Hugging Face's clients send it: a list with one answer, or a stream."""
    body = parse_body(GenerateBody, await read_json(request))
    if body.stream:
        return await _stream(request, body)
    return web.json_response([await _answer(request.app[SERVICE], body)])


async def _start(service: EngineService, body: GenerateBody) -> tuple[ServedModel, Generation]:
    parameters = body.parameters
    model = service.catalog.find(parameters.adapter_id)
    ids = await service.encode(model, lambda: model.text_prompt(body.inputs), parameters.truncate)
    generation = service.submit(
        model,
        ids,
        service.room_for(len(ids), parameters.max_new_tokens, clamp=False),
        parameters.sampling(),
        list(parameters.stop),
        top_tokens=parameters.top_n_tokens or 0,
        prompt_log_probs=parameters.decoder_input_details,
    )
    return model, generation


async def _answer(service: EngineService, body: GenerateBody) -> dict[str, Any]:
    model, generation = await _start(service, body)
    tokens, end = await service.collect(generation)
    answer: dict[str, Any] = {"generated_text": (body.inputs if body.parameters.return_full_text else "") + end.text}
    if not body.parameters.details:
        return answer
    prompt = tokens[0].prompt if tokens else ()
    details: dict[str, Any] = {
        "finish_reason": str(end.reason),
        "generated_tokens": end.tokens,
        "seed": end.seed,
        "prefill": [{"id": s.id, "text": token_text(model, s.id), "logprob": s.log_prob} for s in prompt],
        "tokens": [token_object(model, t.score) for t in tokens],
    }
    if body.parameters.top_n_tokens:
        details["top_tokens"] = [[token_object(model, s) for s in t.top] for t in tokens]
    return answer | {"details": details}


async def _stream(request: web.Request, body: GenerateBody) -> web.StreamResponse:
    if body.parameters.decoder_input_details:
        raise EngineError(
            ErrorKind.VALIDATION, "`decoder_input_details` == true is not supported when streaming tokens"
        )
    service = request.app[SERVICE]
    model, generation = await _start(service, body)
    full_text = body.inputs if body.parameters.return_full_text else ""
    renderer = _StreamRenderer(model, full_text, bool(body.parameters.top_n_tokens))
    return await stream_generation(request, service.thread, generation, renderer.render)


class _StreamRenderer:
    """TGI's events: one for each token, the last one with the whole text and the details."""

    def __init__(self, model: ServedModel, prefix: str, with_top: bool) -> None:
        self._model = model
        self._prefix = prefix
        self._with_top = with_top
        self._index = 0
        self._held: dict[str, Any] | None = None

    def render(self, event: TokenEvent | Finished) -> Iterable[dict[str, Any]]:
        if isinstance(event, Finished):
            assert self._held is not None
            details = {
                "finish_reason": str(event.reason),
                "generated_tokens": event.tokens,
                "seed": event.seed,
                "input_length": event.prompt_tokens,
            }
            yield self._held | {"generated_text": self._prefix + event.text, "details": details}
            return
        self._index += 1
        # A token's event carries the text that it made certain, so that the pieces put together are the answer. At a stop
        # token that is text held back until then, if any; then the event must not look like one to skip.
        token = token_object(self._model, event.score, None if event.is_stop and not event.text else event.text)
        if event.text:
            token["special"] = False
        payload: dict[str, Any] = {
            "index": self._index,
            "token": token,
            "generated_text": None,
            "details": None,
        }
        if self._with_top:
            payload["top_tokens"] = [token_object(self._model, s) for s in event.top]
        if event.is_last:
            self._held = payload
            return
        yield payload


async def tokenize(request: web.Request) -> web.Response:
    """POST /tokenize: a text's tokens with their places in it."""
    body = parse_body(TokenizeBody, await read_json(request))
    model = request.app[SERVICE].catalog.find(body.parameters.adapter_id)
    encoded = model.tokenizer(body.inputs, add_special_tokens=body.add_special_tokens, return_offsets_mapping=True)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return web.json_response(
        [{"id": i, "text": token_text(model, i), "start": start, "stop": stop} for i, (start, stop) in pairs]
    )


async def info(request: web.Request) -> web.Response:
    """GET /info"""
    service = request.app[SERVICE]
    told = service.info
    return web.json_response(
        {
            "model_id": service.catalog.base.name,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "model_dtype": told.dtype,
            "model_device_type": "cpu",
            "quantization": told.quantization,
            "parameters": told.parameters,
            "adapters": [m.name for m in service.catalog.models() if m.adapter is not None],
            "max_concurrent_requests": told.max_queue + told.max_batch,
            "max_best_of": 1,
            "max_stop_sequences": 4,
            "max_input_tokens": told.max_total_tokens - 1,
            "max_total_tokens": told.max_total_tokens,
            "max_batch_size": told.max_batch,
            "max_client_batch_size": 1,
            "threads": told.threads,
            "router": "llamero.engine",
            "version": told.version,
        }
    )


async def health(request: web.Request) -> web.Response:
    """GET /health: 200 where the model answers, proven by a real token now and then."""
    await request.app[SERVICE].probe()
    return web.Response()


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics"""
    text = request.app[SERVICE].metrics.render()
    return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
