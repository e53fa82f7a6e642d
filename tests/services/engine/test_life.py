"""Callers that leave, adapters that come and go, too many requests, and the end of the process."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CHAT = {"model": "tgi", "messages": [{"role": "user", "content": "Hello?"}]}
LONG: dict[str, Any] = {
    "inputs": "Apache License " * 4,
    "parameters": {"max_new_tokens": 420, "seed": 3, "temperature": 0.7},
}


async def read_metrics(client: aiohttp.ClientSession) -> dict[str, float]:
    async with client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


async def read_status(client: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> int:
    async with client.request(method, path, json=body) as response:
        await response.read()
        return response.status


async def until_idle(client: aiohttp.ClientSession, seconds: float = 5) -> float:
    """Seconds until the batch was empty."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if (await read_metrics(client))["tgi_batch_current_size"] == 0:
            return time.monotonic() - began
        await asyncio.sleep(0.005)
    raise AssertionError("the batch never became empty")


def long_body(adapter: str | None = None, seed: int = 3) -> dict[str, Any]:
    return {**LONG, "parameters": {**LONG["parameters"], "adapter_id": adapter, "seed": seed}}


async def start_stream(
    client: aiohttp.ClientSession, adapter: str | None = None, seed: int = 3
) -> aiohttp.ClientResponse:
    response = await client.post("/generate_stream", json=long_body(adapter, seed))
    assert response.status == 200
    await response.content.readline()
    return response


async def test_a_caller_who_leaves_a_stream_frees_its_place_at_once(client: aiohttp.ClientSession) -> None:
    before = await read_metrics(client)
    streams = [
        await start_stream(client, adapter, seed) for seed, adapter in enumerate(["plain-a", "plain-b", "dora", None])
    ]
    for stream in streams:
        stream.close()
    assert await until_idle(client) < 0.5
    after = await read_metrics(client)
    name = "llamero_request_cancelled"
    assert after[name] - before[name] >= 1
    told = after["tgi_request_success"] - before["tgi_request_success"] + after[name] - before[name]
    assert told == 4


async def test_a_caller_who_leaves_before_an_answer_in_one_piece_frees_its_place(client: aiohttp.ClientSession) -> None:
    before = (await read_metrics(client))["llamero_request_cancelled"]
    bodies = [long_body("plain-a", seed) for seed in range(8)]
    jobs = [asyncio.create_task(client.post("/generate", json=body)) for body in bodies]
    while (await read_metrics(client))["tgi_batch_current_size"] < 2:
        await asyncio.sleep(0.002)
    for job in jobs:
        job.cancel()
    assert await until_idle(client) < 0.5
    assert (await read_metrics(client))["llamero_request_cancelled"] > before


async def test_adapters_load_and_unload_while_others_stream(
    client: aiohttp.ClientSession, adapters: dict[str, Path], alone: Any, tokenizer: Any
) -> None:
    prompt = "Apache License"
    ids = tokenizer(prompt)["input_ids"]

    async def stream(adapter: str) -> list[int]:
        body = {"inputs": prompt, "parameters": {"adapter_id": adapter, "max_new_tokens": 60}}
        async with client.post("/generate_stream", json=body) as response:
            assert response.status == 200
            raw = (await response.read()).decode()
        return [json.loads(e[5:])["token"]["id"] for e in raw.split("\n\n") if e]

    async def load(name: str, source: str) -> None:
        body = {"lora_name": name, "lora_path": str(adapters[source])}
        async with client.post("/v1/load_lora_adapter", json=body) as response:
            assert response.status == 200, await response.text()

    async def unload(name: str) -> None:
        async with client.post("/v1/unload_lora_adapter", json={"lora_name": name}) as response:
            assert response.status == 200, await response.text()

    running = [asyncio.create_task(stream(name)) for name in ("plain-a", "narrow", "head") for _ in range(4)]
    await load("ns-job-r1-0123abcd", "plain-b")
    late = asyncio.create_task(stream("ns-job-r1-0123abcd"))
    await load("ns-job.x-r2-0123abcd", "dora")
    own_lane = await stream("ns-job.x-r2-0123abcd")
    unloading = asyncio.create_task(unload("ns-job-r1-0123abcd"))
    answers = await asyncio.gather(*running)
    expected = [alone(name, ids, 60) for name in ("plain-a", "narrow", "head") for _ in range(4)]
    assert answers == expected
    assert await late == alone("plain-b", ids, 60)
    assert own_lane == alone("dora", ids, 60)
    await unloading
    await unload("ns-job.x-r2-0123abcd")
    async with client.post(
        "/generate", json={"inputs": "a", "parameters": {"adapter_id": "ns-job-r1-0123abcd"}}
    ) as gone:
        assert gone.status == 404
    assert await stream("plain-a") == alone("plain-a", ids, 60)


async def test_sixteen_streams_answer_as_alone_while_adapters_come_and_go(
    client: aiohttp.ClientSession, adapters: dict[str, Path], alone: Any, tokenizer: Any
) -> None:
    prompts = ["Apache", "The Licensor grants", "a", "Notwithstanding the above, nothing herein", "You may"]
    names = [None, "plain-a", "plain-b", "narrow"]
    asked = [(names[n % 4], prompts[n % 5]) for n in range(16)]

    async def stream(adapter: str | None, prompt: str) -> list[int]:
        parameters = {"max_new_tokens": 120} | ({"adapter_id": adapter} if adapter else {})
        async with client.post("/generate_stream", json={"inputs": prompt, "parameters": parameters}) as response:
            raw = (await response.read()).decode()
        return [json.loads(e[5:])["token"]["id"] for e in raw.split("\n\n") if e]

    running = [asyncio.create_task(stream(*one)) for one in asked]
    rounds = 0
    while not all(task.done() for task in running) or not rounds:
        for source in ("plain-b", "dora", "head"):
            body = {"lora_name": f"passing-{source}-{rounds}", "lora_path": str(adapters[source])}
            assert await read_status(client, "POST", "/v1/load_lora_adapter", body) == 200
        for source in ("plain-b", "dora", "head"):
            body = {"lora_name": f"passing-{source}-{rounds}"}
            assert await read_status(client, "POST", "/v1/unload_lora_adapter", body) == 200
        rounds += 1
    answers = await asyncio.gather(*running)
    expected = [alone(adapter, tokenizer(prompt)["input_ids"], 120) for adapter, prompt in asked]
    assert answers == expected
    assert len({tuple(a) for a in answers}) > 10, "the adapters must answer differently for this to prove anything"


async def test_requests_are_counted_by_adapter_until_it_is_unloaded(
    client: aiohttp.ClientSession, adapters: dict[str, Path]
) -> None:
    name = "counted-r1-0123abcd"
    body = {"lora_name": name, "lora_path": str(adapters["plain-a"])}
    assert await read_status(client, "POST", "/v1/load_lora_adapter", body) == 200
    asked = {"inputs": "a", "parameters": {"adapter_id": name, "max_new_tokens": 7}}
    for _ in range(3):
        assert await read_status(client, "POST", "/generate", asked) == 200
    told = await read_metrics(client)
    assert told[f'llamero_adapter_requests{{adapter="{name}"}}'] == 3
    assert told[f'llamero_adapter_successes{{adapter="{name}"}}'] == 3
    assert told[f'llamero_adapter_generated_tokens{{adapter="{name}"}}'] <= 21
    assert await read_status(client, "POST", "/v1/unload_lora_adapter", {"lora_name": name}) == 200
    assert not [line for line in await read_metrics(client) if name in line]


async def test_a_bad_adapter_is_refused_with_a_sentence_and_harms_nothing(
    client: aiohttp.ClientSession, adapters: dict[str, Path], tmp_path: Path, alone: Any, tokenizer: Any
) -> None:
    corrupt = tmp_path / "corrupt"
    shutil.copytree(adapters["plain-a"], corrupt)
    weights = corrupt / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    wrong_rank = tmp_path / "wrong-rank"
    shutil.copytree(adapters["plain-a"], wrong_rank)
    config = json.loads((wrong_rank / "adapter_config.json").read_text())
    (wrong_rank / "adapter_config.json").write_text(json.dumps({**config, "r": 64}))
    loaded = (await read_metrics(client))["llamero_adapters_loaded"]
    for folder, word in [(corrupt, "corrupt"), (wrong_rank, "wrong-rank"), (tmp_path / "absent", "absent")]:
        body = {"lora_name": "bad", "lora_path": str(folder)}
        async with client.post("/v1/load_lora_adapter", json=body) as response:
            told = await response.json()
        assert (response.status, told["error_type"]) == (400, "adapter_refused"), told
        assert word in told["error"]
    assert (await read_metrics(client))["llamero_adapters_loaded"] == loaded
    async with client.get("/v1/models") as response:
        assert "bad" not in [m["id"] for m in (await response.json())["data"]]
    for name, word in [("plain-a", "loaded already"), ("tgi", "base")]:
        body = {"lora_name": name, "lora_path": str(adapters["plain-a"])}
        async with client.post("/v1/load_lora_adapter", json=body) as response:
            assert response.status == 400
            assert word in (await response.json())["error"]
    body = {"inputs": "Apache", "parameters": {"adapter_id": "plain-a", "max_new_tokens": 20, "details": True}}
    async with client.post("/generate", json=body) as response:
        tokens = (await response.json())["details"]["tokens"]
    assert [t["id"] for t in tokens] == alone("plain-a", tokenizer("Apache")["input_ids"], 20)


async def test_past_its_queue_the_engine_answers_429(launch_engine: Any) -> None:
    engine = launch_engine("--max-batch", "1", "--max-queue", "2", names=())
    async with aiohttp.ClientSession(engine.url) as client:

        async def ask(seed: int) -> tuple[int, Any, str | None]:
            async with client.post("/generate", json=long_body(None, seed)) as response:
                return response.status, await response.json(), response.headers.get("Retry-After")

        answers = await asyncio.gather(*(ask(seed) for seed in range(12)))
        refused = [(told, retry) for status, told, retry in answers if status == 429]
        assert len(refused) >= 4
        assert all(told["error_type"] == "overloaded" and retry for told, retry in refused)
        assert sum(status == 200 for status, *_ in answers) == 12 - len(refused)
    assert engine.stop() == 0


async def test_sigterm_lets_running_answers_end_and_takes_no_more(launch_engine: Any) -> None:
    engine = launch_engine("--drain-seconds", "60", "--max-batch", "1", names=("plain-a",))
    async with aiohttp.ClientSession(engine.url) as client:
        # One at a time, so that the engine drains for as long as it takes to be asked.
        running = await start_stream(client, "plain-a", 0)
        waiting = [asyncio.create_task(start_stream(client, "plain-a", seed)) for seed in range(1, 6)]
        while (await read_metrics(client))["llamero_queue_size"] < 5:
            await asyncio.sleep(0.01)
        engine.process.terminate()
        while (health := await read_status(client, "GET", "/health")) == 200:
            await asyncio.sleep(0.005)
        assert health == 503
        assert await read_status(client, "POST", "/generate", {"inputs": "a"}) == 503
        assert await read_status(client, "POST", "/v1/chat/completions", CHAT) == 503
        streams = [running, *await asyncio.gather(*waiting)]
        texts = [(await stream.read()).decode() for stream in streams]
    assert all('"generated_text":"' in text for text in texts)
    assert await asyncio.to_thread(engine.stop) == 0


async def test_sigterm_ends_the_engine_soon_whatever_runs(launch_engine: Any) -> None:
    engine = launch_engine("--drain-seconds", "0.2", "--max-batch", "2")
    async with aiohttp.ClientSession(engine.url) as client:
        jobs = [asyncio.create_task(client.post("/generate_stream", json=long_body(None, seed))) for seed in range(60)]
        await asyncio.sleep(0.3)
        engine.process.terminate()
        code = await asyncio.to_thread(engine.process.wait, 10)
        assert code == 0
        ended = await asyncio.gather(*jobs, return_exceptions=True)
    statuses = {r.status for r in ended if isinstance(r, aiohttp.ClientResponse)}
    assert 503 in statuses, "those that waited are told so"
    assert statuses <= {200, 503}


def test_a_base_that_is_not_there_ends_the_engine_with_a_sentence(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llamero.engine", "--base", str(tmp_path / "nothing")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(repository / "services")},
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "does not exist" in done.stderr and "Traceback" not in done.stderr


async def test_a_base_in_nf4_is_served_dequantised(launch_engine: Any, tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    engine = launch_engine("--quantization", "nf4", "--port-file", str(port_file), names=("plain-a",))
    assert engine.url.endswith(f":{port_file.read_text().strip()}")
    async with aiohttp.ClientSession(engine.url) as client:
        async with client.get("/info") as response:
            info = await response.json()
        assert (info["quantization"], info["model_dtype"]) == ("nf4", "float32")
        body = {"inputs": "Apache", "parameters": {"adapter_id": "plain-a", "max_new_tokens": 5}}
        async with client.post("/generate", json=body) as response:
            assert response.status == 200
    assert engine.stop() == 0


@pytest.mark.parametrize("option", [["--adapter", "nonsense"], ["--max-total-tokens", "100000"]])
def test_wrong_options_are_refused(repository: Path, random_base: Path, option: list[str]) -> None:
    command = [sys.executable, "-m", "llamero.engine", "--base", str(random_base), *option]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(repository / "services")},
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert option[0] in done.stderr
