"""Rendered chats before text-generation-inference's and vLLM's stand-ins: the same answer as the engine's own template gives."""

import json
from typing import Any

import aiohttp
import pytest
from serving.fixtures import Tiny
from serving.fixtures import tiny as tiny
from serving.makers import BASE_WORD, STOP, question
from standins.conftest import start_stand_in as start_engine

__all__ = ["start_engine", "tiny"]

ADAPTER = "ns-tutor-r1-00000000"
CHATML = {"template": "chatml", "stop": [STOP]}


@pytest.fixture(params=["tgi", "vllm"])
def engine(request: pytest.FixtureRequest, start_engine: Any, tiny: Tiny) -> tuple[str, str]:
    """An engine with the adapter amber: its type and its address."""
    folder = tiny.adapter("amber").folder
    if request.param == "tgi":
        variables = {"MODEL_ID": str(tiny.base), "LORA_ADAPTERS": f"{ADAPTER}={folder}", "HOSTNAME": "127.0.0.1"}
        return "tgi", start_engine("text-generation-launcher", **variables)[1]
    options = (
        "--served-model-name",
        "tgi",
        "--host",
        "127.0.0.1",
        "--enable-lora",
        "--lora-modules",
        f"{ADAPTER}={folder}",
    )
    return "vllm", start_engine("vllm", "serve", str(tiny.base), *options)[1]


async def complete(url: str, model: str, **more: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": question(3)}], "temperature": 0, **more}
    async with aiohttp.ClientSession(url) as client, client.post("/v1/chat/completions", json=body) as response:
        text = (await response.read()).decode()
    assert response.status == 200, text
    if not more.get("stream"):
        return json.loads(text)
    payloads = [e.partition("data:")[2].strip() for e in text.split("\n\n") if e.startswith("data:")]
    assert payloads.pop() == "[DONE]"
    return [json.loads(p) for p in payloads]


def text_of(chunks: list[Any]) -> str:
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


async def test_a_rendered_chat_is_answered_as_the_engine_answers_it_by_its_own_template(
    engine: tuple[str, str], start_chat: Any
) -> None:
    kind, url = engine
    servers = {"s": [{"url": url, "engine": kind, "adapters": [ADAPTER]}]}
    targets = {"native": {"adapter": ADAPTER}, "rendered": {"adapter": ADAPTER, **CHATML}, "base": CHATML}
    chat = start_chat(servers, [{"model": m, "server": "s", "targets": [t]} for m, t in targets.items()])
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    for limit in (6, 200):  # cut by length, and by the stop token or the model's window
        native, rendered = [await complete(chat.url, m, max_tokens=limit) for m in ("native", "rendered")]
        assert rendered["choices"][0]["finish_reason"] == native["choices"][0]["finish_reason"]
        said = rendered["choices"][0]["message"]["content"]
        assert said == native["choices"][0]["message"]["content"] and " amber amber" in said
        assert rendered["usage"]["completion_tokens"] == native["usage"]["completion_tokens"]
        chunks = await complete(chat.url, "rendered", max_tokens=limit, **usage)
        assert text_of(chunks) == said
        (finish,) = [
            c["choices"][0]["finish_reason"] for c in chunks if c["choices"] and c["choices"][0]["finish_reason"]
        ]
        assert finish == native["choices"][0]["finish_reason"]
        if kind == "tgi":  # the other's usage chunk is in test_rendering.py
            assert chunks[-1]["usage"]["completion_tokens"] == native["usage"]["completion_tokens"]
        assert {c["id"] for c in chunks} == {chunks[0]["id"]} and chunks[0]["id"].startswith("chatcmpl-")
    assert f" {BASE_WORD}" in (await complete(chat.url, "base", max_tokens=6))["choices"][0]["message"]["content"]


async def test_a_stop_of_the_callers_is_no_part_of_a_rendered_answer(engine: tuple[str, str], start_chat: Any) -> None:
    kind, url = engine
    servers = {"s": [{"url": url, "engine": kind, "adapters": [ADAPTER]}]}
    chat = start_chat(servers, [{"model": "tutor", "server": "s", "targets": [{"adapter": ADAPTER, **CHATML}]}])
    asked = {"max_tokens": 40, "stop": ["er amber am"]}
    whole = await complete(chat.url, "tutor", **asked)
    chunks = await complete(chat.url, "tutor", stream=True, **asked)
    assert whole["choices"][0]["message"]["content"] == text_of(chunks) == " amb"
    assert whole["choices"][0]["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "stop"
