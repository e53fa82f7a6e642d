"""The engine over HTTP as clients of text-generation-inference see it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from huggingface_hub import AsyncInferenceClient

PROMPT = "Licensed under the Apache License, Version 2.0"


async def generate(client: aiohttp.ClientSession, inputs: str = PROMPT, **parameters: Any) -> dict[str, Any]:
    async with client.post("/generate", json={"inputs": inputs, "parameters": parameters}) as response:
        assert response.status == 200, await response.text()
        return await response.json()  # type: ignore[no-any-return]


async def read_events(response: aiohttp.ClientResponse) -> list[Any]:
    raw = (await response.read()).decode()
    payloads = [e.removeprefix("data:").strip() for e in raw.split("\n\n") if e]
    return [p if p == "[DONE]" else json.loads(p) for p in payloads]


async def read_metrics(client: aiohttp.ClientSession) -> dict[str, float]:
    async with client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


@pytest.mark.parametrize("adapter", [None, "plain-a", "plain-b", "narrow", "dora", "head"])
async def test_generate_gives_the_tokens_that_the_adapter_gives_alone(
    client: aiohttp.ClientSession, alone: Any, tokenizer: Any, adapter: str | None
) -> None:
    answer = await generate(client, adapter_id=adapter, max_new_tokens=20, details=True)
    expected = alone(adapter, tokenizer(PROMPT)["input_ids"], 20)
    assert [t["id"] for t in answer["details"]["tokens"]] == expected
    assert answer["generated_text"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert answer["details"]["generated_tokens"] == len(expected)


async def test_mixed_requests_over_http_answer_as_alone(
    client: aiohttp.ClientSession, alone: Any, tokenizer: Any
) -> None:
    names = [None, "plain-a", "plain-b", "narrow", "dora", "head"]
    prompts = [PROMPT[: 4 + 7 * n] for n in range(6)]
    jobs = [(a, p) for a in names for p in prompts]
    answers = await asyncio.gather(
        *(generate(client, p, adapter_id=a, max_new_tokens=15, details=True) for a, p in jobs)
    )
    got = [[t["id"] for t in answer["details"]["tokens"]] for answer in answers]
    assert got == [alone(a, tokenizer(p)["input_ids"], 15) for a, p in jobs]


async def test_a_stream_ends_with_the_whole_text_and_its_details(client: aiohttp.ClientSession) -> None:
    whole = await generate(client, adapter_id="plain-a", max_new_tokens=20, details=True)
    body = {"inputs": PROMPT, "parameters": {"adapter_id": "plain-a", "max_new_tokens": 20}}
    async with client.post("/generate_stream", json=body) as response:
        assert response.content_type == "text/event-stream"
        events = await read_events(response)
    assert [e["token"]["id"] for e in events] == [t["id"] for t in whole["details"]["tokens"]]
    assert events[-1]["generated_text"] == whole["generated_text"]
    assert "".join(e["token"]["text"] for e in events if not e["token"]["special"]) == whole["generated_text"]
    assert events[-1]["details"]["generated_tokens"] == len(events)
    assert all(e["generated_text"] is None and e["details"] is None for e in events[:-1])


async def test_hugging_faces_client_speaks_to_the_engine(engine: Any) -> None:
    hub = AsyncInferenceClient(engine.url)
    text = await hub.text_generation(PROMPT, max_new_tokens=12, adapter_id="plain-a")
    pieces = [
        event
        async for event in await hub.text_generation(
            PROMPT, max_new_tokens=12, adapter_id="plain-a", stream=True, details=True
        )
    ]
    assert pieces[-1].generated_text == text
    asked = [{"role": "user", "content": "Hello"}]
    chat = await hub.chat_completion(asked, model="plain-b", max_tokens=9, temperature=0)
    assert chat.model == "plain-b"
    assert chat.usage.completion_tokens <= 9
    streamed = ""
    async for chunk in await hub.chat_completion(asked, model="plain-b", max_tokens=9, temperature=0, stream=True):
        streamed += chunk.choices[0].delta.content or ""
    assert streamed == chat.choices[0].message.content


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": "a", "parameters": {"adapter_id": "gone"}}),
        ("/generate_stream", {"inputs": "a", "parameters": {"adapter_id": "gone"}}),
        ("/v1/chat/completions", {"model": "gone", "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"model": "gone", "prompt": "a", "stream": True}),
        ("/v1/unload_lora_adapter", {"lora_name": "gone"}),
    ],
)
async def test_an_unknown_adapter_is_404_and_never_the_base(
    client: aiohttp.ClientSession, path: str, body: dict[str, Any]
) -> None:
    async with client.post(path, json=body) as response:
        told = await response.json()
    assert response.status == 404
    assert told["error_type"] == "adapter_not_found"
    assert "gone" in told["error"] and "plain-a" in told["error"]


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/generate", {"inputs": "a", "parameters": {"temperature": 0}}, "temperature"),
        ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 100000}}, "max_new_tokens"),
        ("/generate", {"inputs": "a b " * 2000}, "512"),
        ("/generate", {"inputs": ""}, "empty"),
        ("/generate", {"parameters": {}}, "inputs"),
        ("/generate", {"inputs": "a", "parameters": {"grammar": {"type": "json"}}}, "grammar"),
        ("/generate", {"inputs": "a", "parameters": {"stop": ["x"] * 9}}, "stop"),
        ("/generate_stream", {"inputs": "a", "parameters": {"decoder_input_details": True}}, "decoder_input_details"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "king", "content": "a"}]}, "king"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 3}, "`n`"),
        ("/v1/completions", {"prompt": ["a", "b"]}, "prompt"),
        ("/v1/load_lora_adapter", {"lora_name": "../up", "lora_path": "/"}, "lora_name"),
    ],
)
async def test_what_is_wrong_with_a_body_is_said_with_422(
    client: aiohttp.ClientSession, path: str, body: dict[str, Any], word: str
) -> None:
    async with client.post(path, json=body) as response:
        told = await response.json()
    assert (response.status, told["error_type"]) == (422, "validation")
    assert word in told["error"]


async def test_broken_json_and_too_large_bodies_are_refused(client: aiohttp.ClientSession) -> None:
    async with client.post("/generate", data=b"{") as response:
        assert response.status == 422
    async with client.post("/generate", data=b"\xff\xfe{") as response:
        assert response.status == 422
    async with client.post("/generate", data=b'"' + b"a" * (5 << 20) + b'"') as response:
        assert response.status == 413
        assert "error" in await response.json()
    async with client.get("/nowhere") as response:
        assert response.status == 404
    async with client.get("/generate") as response:
        assert response.status == 405


async def test_sampling_repeats_with_its_seed(client: aiohttp.ClientSession) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.5, "top_p": 0.9, "details": True}
    first = await generate(client, seed=5, **options)
    assert await generate(client, seed=5, **options) == first
    assert first["details"]["seed"] == 5
    assert (await generate(client, seed=6, **options))["generated_text"] != first["generated_text"]
    drawn = await generate(client, **options)
    again = await generate(client, seed=drawn["details"]["seed"], **options)
    assert again["generated_text"] == drawn["generated_text"]


async def test_prompt_scores_prove_which_model_answers(client: aiohttp.ClientSession) -> None:
    async def score(adapter: str | None) -> list[float]:
        answer = await generate(client, adapter_id=adapter, max_new_tokens=1, details=True, decoder_input_details=True)
        return [t["logprob"] for t in answer["details"]["prefill"][1:]]

    by_a, by_base = await score("plain-a"), await score(None)
    assert len(by_a) == len(by_base) > 5
    assert by_a == pytest.approx(await score("plain-a"), abs=1e-4)
    assert by_a != pytest.approx(by_base, abs=1e-2)


async def test_chat_hides_stop_tokens_and_counts_them(client: aiohttp.ClientSession) -> None:
    body = {"model": "plain-a", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 30}
    async with client.post("/v1/chat/completions", json=body) as response:
        whole = await response.json()
    more = {"stream": True, "stream_options": {"include_usage": True}}
    async with client.post("/v1/chat/completions", json={**body, **more}) as response:
        *chunks, usage, done = await read_events(response)
    assert done == "[DONE]"
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert "<|im_end|>" not in text
    assert {c["id"] for c in chunks} == {usage["id"]}


async def test_a_stop_token_ends_a_chat(client: aiohttp.ClientSession) -> None:
    seen = set()
    for seed in range(12):
        body = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 2, "seed": seed}
        async with client.post("/v1/chat/completions", json=body) as response:
            choice = (await response.json())["choices"][0]
        seen.add(choice["finish_reason"])
        assert "<|im_end|>" not in choice["message"]["content"]
    assert "stop" in seen


async def test_chat_gives_log_probabilities_and_text_completions_echo(client: aiohttp.ClientSession) -> None:
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
        "logprobs": True,
        "top_logprobs": 2,
        "temperature": 0,
    }
    async with client.post("/v1/chat/completions", json=body) as response:
        content = (await response.json())["choices"][0]["logprobs"]["content"]
    assert len(content) == 4
    assert all(len(t["top_logprobs"]) == 2 and t["top_logprobs"][0]["logprob"] == t["logprob"] for t in content)
    asked = {"prompt": PROMPT, "max_tokens": 4, "echo": True, "temperature": 0, "model": "narrow", "logprobs": 1}
    async with client.post("/v1/completions", json=asked) as response:
        told = await response.json()
    assert told["choices"][0]["text"].startswith(PROMPT)
    assert len(told["choices"][0]["logprobs"]["tokens"]) == 4
    async with client.post("/v1/completions", json={**asked, "stream": True, "logprobs": None}) as response:
        *chunks, _ = await read_events(response)
    assert "".join(c["choices"][0]["text"] for c in chunks) == told["choices"][0]["text"]


async def test_the_engine_tells_what_it_serves(client: aiohttp.ClientSession, random_base: Path) -> None:
    async with client.get("/info") as response:
        info = await response.json()
    assert info["model_id"] == random_base.name
    assert info["max_total_tokens"] == 512
    assert set(info["adapters"]) >= {"plain-a", "dora"}
    async with client.get("/v1/models") as response:
        models = (await response.json())["data"]
    assert models[0]["id"] == random_base.name and models[0]["parent"] is None
    assert {"plain-a", "plain-b"} <= {m["id"] for m in models if m["parent"] == random_base.name}
    async with client.post("/tokenize", json={"inputs": PROMPT}) as response:
        tokens = await response.json()
    assert "".join(PROMPT[t["start"] : t["stop"]] for t in tokens) == PROMPT


async def test_health_proves_itself_by_a_real_token(client: aiohttp.ClientSession, launch_engine: Any) -> None:
    engine = launch_engine(names=())
    async with aiohttp.ClientSession(engine.url) as fresh:
        assert (await read_metrics(fresh))["llamero_generated_tokens"] == 0
        async with fresh.get("/health") as response:
            assert response.status == 200
        assert (await read_metrics(fresh))["llamero_generated_tokens"] == 1
    assert engine.stop() == 0


async def test_metrics_count_what_was_done(client: aiohttp.ClientSession) -> None:
    before = await read_metrics(client)
    await generate(client, max_new_tokens=7)
    after = await read_metrics(client)
    for name, change in [("tgi_request_count", 1), ("tgi_request_success", 1), ("tgi_request_duration_count", 1)]:
        assert after[name] - before[name] == change
    assert 1 <= after["llamero_generated_tokens"] - before["llamero_generated_tokens"] <= 7
    assert after["tgi_queue_size"] == after["tgi_batch_current_size"] == 0


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
async def test_pages_from_elsewhere_are_refused(client: aiohttp.ClientSession, headers: dict[str, str]) -> None:
    async with client.post("/generate", json={"inputs": "a"}, headers=headers) as response:
        assert response.status == 403
