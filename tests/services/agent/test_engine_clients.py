"""How each engine's answers and errors are read, against small servers that answer as the engines do."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from llamero.agent.engines import EngineClient, build_client, http
from llamero.agent.engines.base import EngineBusy, EngineRefusal, EngineTrouble
from llamero.agent.engines.http import read_error, spare_proxy, sum_metrics
from llamero.spec.server import EngineType

Answer = tuple[int, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(
    kind: EngineType, answers: dict[str, Answer], seen: list[Any] | None = None
) -> AsyncIterator[EngineClient]:
    """A client of a server that answers each path alike: a status with JSON, or with text."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if seen is not None:
            seen.append((request.path, dict(request.headers), await request.json() if request.can_read_body else None))
        status, body = answers.get(request.path, (404, {"detail": "Not Found"}))
        return (
            web.Response(status=status, text=body) if isinstance(body, str) else web.json_response(body, status=status)
        )

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = build_client(kind, f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


def details(*log_probs: float | None) -> dict[str, Any]:
    prefill = [{"id": i, "text": "a", "logprob": p} for i, p in enumerate(log_probs)]
    told = {"finish_reason": "length", "generated_tokens": 1, "seed": None, "prefill": prefill, "tokens": []}
    return {"generated_text": "b", "details": told}


def completion(*log_probs: float | None, prompt: int) -> dict[str, Any]:
    scores = {"tokens": ["a"] * len(log_probs), "token_logprobs": list(log_probs)}
    return {"choices": [{"text": "b", "logprobs": scores}], "usage": {"prompt_tokens": prompt}}


MODELS = {"data": [{"id": "base", "parent": None}, {"id": "ns-a", "parent": "base", "root": "/a"}]}


async def test_a_score_is_the_sum_over_the_answers_tokens_alone() -> None:
    for kind in ("tgi", "cpu"):
        async with answering(kind, {"/generate": (200, details(None, -1.0, -2.0, -4.0))}) as client:  # type: ignore[arg-type]
            assert await client.score("ns-a", "p", "a", 2) == -6.0
            with pytest.raises(EngineRefusal, match="another tokenizer"):
                await client.score("ns-a", "p", "a", 4)
    answers = {"/v1/models": (200, MODELS), "/v1/completions": (200, completion(None, -1.0, -2.0, -99.0, prompt=3))}
    async with answering("vllm", answers) as client:
        assert await client.score(None, "p", "a", 2) == -3.0


async def test_tgi_is_asked_in_its_own_form_and_gets_no_token_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen: list[Any] = []
    async with answering("tgi", {"/generate": (200, details(None, -1.0))}, seen) as client:
        await client.score("ns-a", "p", "a", 1)
        assert await client.generate(None, "p", 7) == "b"
    (path, headers, scored), (_, _, generated) = seen
    assert path == "/generate"
    assert "hf_secret" not in str(headers)
    assert scored["inputs"] == "pa"
    assert scored["parameters"] == {
        "adapter_id": "ns-a",
        "max_new_tokens": 1,
        "details": True,
        "decoder_input_details": True,
    }
    assert "adapter_id" not in generated["parameters"]
    assert generated["parameters"]["max_new_tokens"] == 7


ERRORS: list[tuple[EngineType, Answer, type[Exception], str]] = [
    (
        "tgi",
        (422, {"error": "Input validation error: too long", "error_type": "validation"}),
        EngineRefusal,
        "too long",
    ),
    (
        "tgi",
        (424, {"error": "Request failed during generation", "error_type": "generation"}),
        EngineTrouble,
        "failed during",
    ),
    ("tgi", (429, {"error": "Model is overloaded", "error_type": "overloaded"}), EngineBusy, "overloaded"),
    (
        "tgi",
        (500, {"error": "Incomplete generation", "error_type": "incomplete_generation"}),
        EngineTrouble,
        "Incomplete",
    ),
    ("tgi", (503, "no healthy upstream"), EngineTrouble, "503: no healthy upstream"),
    ("tgi", (200, "<html>"), EngineTrouble, "not TGI's"),
    (
        "cpu",
        (404, {"error": "The adapter ns-a is not loaded.", "error_type": "adapter_not_found"}),
        EngineTrouble,
        "not loaded",
    ),
    ("cpu", (503, {"error": "shutting down", "error_type": "shutting_down"}), EngineTrouble, "shutting down"),
    ("vllm", (400, {"error": {"message": "context is 2048", "code": 400}}), EngineRefusal, "400: context is 2048"),
    (
        "vllm",
        (404, {"object": "error", "message": "The model `ns-a` does not exist."}),
        EngineTrouble,
        "does not exist",
    ),
    ("vllm", (500, "Internal Server Error"), EngineTrouble, "500: Internal Server Error"),
    ("vllm", (200, {"choices": []}), EngineTrouble, "no log-probabilities"),
    ("vllm", (200, "<html>"), EngineTrouble, "something else than JSON"),
]


@pytest.mark.parametrize(("kind", "answer", "error", "words"), ERRORS)
async def test_an_engines_error_becomes_a_sentence(
    kind: EngineType, answer: Answer, error: type[Exception], words: str
) -> None:
    paths = {"/generate": answer, "/v1/completions": answer, "/v1/models": (200, MODELS)}
    async with answering(kind, paths) as client:
        with pytest.raises(error, match=words) as found:
            await client.score("ns-a", "p", "a", 1)
        assert type(found.value) is error
        assert not getattr(found.value, "gone", False)


@pytest.mark.parametrize("kind", ["tgi", "vllm", "cpu"])
async def test_an_engine_that_does_not_listen_is_gone(kind: EngineType) -> None:
    async with answering(kind, {}) as client:
        pass
    for call in (client.ready(), client.score("ns-a", "p", "a", 1)):
        with pytest.raises(EngineTrouble, match="can't be reached") as found:
            await call
        assert found.value.gone
    await client.close()


@pytest.mark.parametrize("kind", ["tgi", "vllm"])
async def test_health_alone_does_not_make_an_engine_ready(kind: EngineType) -> None:
    failing = (500, {"error": "CUDA error: device-side assert", "error_type": "generation"})
    answers = {"/health": (200, ""), "/generate": failing, "/v1/completions": failing, "/v1/models": (200, MODELS)}
    async with answering(kind, answers) as client:
        with pytest.raises(EngineTrouble, match="CUDA error"):
            await client.ready()
    answers |= {"/generate": (200, details(None, -1.0)), "/v1/completions": (200, completion(None, prompt=1))}
    async with answering(kind, answers) as client:
        await client.ready()
    answers["/health"] = (503, "")
    async with answering(kind, answers) as client:
        with pytest.raises(EngineTrouble, match="/health with HTTP 503"):
            await client.ready()


async def test_an_engine_with_its_hands_full_is_ready() -> None:
    busy = {"/health": (200, ""), "/generate": (429, {"error": "Model is overloaded", "error_type": "overloaded"})}
    async with answering("tgi", busy) as client:
        await client.ready()
        await client.ready()
    failing = (500, {"error": {"message": "timed out"}})
    counted: dict[str, Answer] = {"/health": (200, ""), "/v1/completions": failing, "/v1/models": (200, MODELS)}
    async with answering("vllm", counted) as client:
        counted["/metrics"] = (200, 'vllm:generation_tokens_total{model_name="base"} 10.0\n')
        with pytest.raises(EngineTrouble):
            await client.ready()
        counted["/metrics"] = (200, 'vllm:generation_tokens_total{model_name="base"} 25.0\n')
        await client.ready()  # it makes tokens for others


async def test_an_engine_that_is_overloaded_and_gets_nothing_done_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STUCK_SECONDS", 0.2)
    overloaded = (429, {"error": "Model is overloaded", "error_type": "overloaded"})
    answers: dict[str, Answer] = {
        "/health": (200, ""),
        "/generate": overloaded,
        "/metrics": (200, "tgi_request_success 7\n"),
    }
    async with answering("tgi", answers) as client:
        await client.ready()
        await asyncio.sleep(0.25)
        with pytest.raises(EngineTrouble, match="has made no token for"):
            await client.ready()
        answers["/metrics"] = (200, "tgi_request_success 8\n")
        await client.ready()  # it got something done: the queue is moving


async def test_what_vllm_says_of_a_load_is_confirmed_in_its_list_of_models() -> None:
    said = "Success: LoRA adapter 'ns-b' added successfully."
    async with answering("vllm", {"/v1/load_lora_adapter": (200, said), "/v1/models": (200, MODELS)}) as client:
        with pytest.raises(EngineTrouble, match="does not list it"):
            await client.load("ns-b", Path("/b"))
        await client.load("ns-a", Path("/a"))
        assert await client.loaded() == {"ns-a"}
    taken = {
        "error": {
            "message": "The lora adapter 'ns-a' has already been loaded.",
            "type": "InvalidUserInput",
            "code": 400,
        }
    }
    async with answering("vllm", {"/v1/load_lora_adapter": (400, taken), "/v1/models": (200, MODELS)}) as client:
        await client.load("ns-a", Path("/a"))
    async with answering("vllm", {"/v1/models": (200, MODELS)}) as client:
        with pytest.raises(EngineTrouble, match="--enable-lora"):
            await client.load("ns-b", Path("/b"))
        with pytest.raises(EngineTrouble, match="--enable-lora"):
            await client.unload("ns-a")
        await client.unload("ns-b")


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ("LoRA rank 128 is greater than max_lora_rank 64.", EngineRefusal),
        ("EngineCore encountered an issue. See stack trace (above) for the root cause.", EngineTrouble),
        ("CUDA out of memory.", EngineTrouble),
    ],
)
async def test_newer_releases_of_vllm_tell_an_adapters_fault_as_one_of_the_server(
    told: str, error: type[Exception]
) -> None:
    body = {"error": {"message": told, "type": "InternalServerError", "param": None, "code": 500}}
    async with answering("vllm", {"/v1/load_lora_adapter": (500, body), "/v1/models": (200, MODELS)}) as client:
        with pytest.raises(error, match="HTTP 500") as found:
            await client.load("ns-b", Path("/b"))
    assert type(found.value) is error
    assert told[:20] in str(found.value)


async def test_tgi_loads_nothing_at_run_time() -> None:
    async with answering("tgi", {}) as client:
        assert await client.loaded() is None
        with pytest.raises(EngineTrouble, match="at its start only"):
            await client.load("ns-a", Path("/a"))


@pytest.mark.parametrize(
    ("info", "dtype", "quantization"),
    [
        ({"model_dtype": "torch.bfloat16"}, "bfloat16", None),
        ({"model_dtype": "float32", "quantization": "nf4"}, "float32", "nf4"),
        ({"model_id": "a"}, None, None),
    ],
)
async def test_precision_is_read_where_it_is_told(info: dict[str, str], dtype: str, quantization: str) -> None:
    async with answering("tgi", {"/info": (200, info)}) as client:
        told = await client.describe()
    assert (told.dtype, told.quantization) == (dtype, quantization)


def test_errors_are_read_in_every_usual_form() -> None:
    forms = ['{"error": "a b"}', '{"error": {"message": "a b"}}', '{"message": "a b"}', '{"detail": "a b"}', "a\n b"]
    assert {read_error(text) for text in forms} == {"a b"}
    assert read_error("") == "no reason given"


def test_counters_are_summed_over_their_labels() -> None:
    text = '# TYPE a counter\na{x="1"} 2\na{x="2"} 3.5\nb 7\nab 1\nc NaN\n'
    assert sum_metrics(text, ("a",)) == 5.5
    assert sum_metrics(text, ("a", "b")) == 12.5
    assert sum_metrics(text, ("z",)) is None


def test_a_proxy_for_the_hub_is_not_asked_for_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("NO_PROXY", "internal")
    monkeypatch.setenv("no_proxy", "")
    spare_proxy("http://10.0.0.7:8080")
    spare_proxy("http://10.0.0.7:8080")
    assert (os.environ["NO_PROXY"], os.environ["no_proxy"]) == ("internal,10.0.0.7", "10.0.0.7")
