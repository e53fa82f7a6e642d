"""The engine as a process, and chats that stream from it: how many tokens in which time, and which."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from inputs import REPOSITORY, Inputs

START_SECONDS = 180


@dataclass(frozen=True)
class Streamed:
    """One round of chats: seconds from the first request to the last answer, the engine's own CPU-seconds, and each answer's tokens."""

    seconds: float
    cpu_seconds: float
    first_token_seconds: tuple[float, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers))


class Engine:
    """`python -m llamero.engine` for as long as the block lasts."""

    def __init__(self, inputs: Inputs, threads: int, folder: Path, adapters: int) -> None:
        loaded = [part for name, path in inputs.adapters[:adapters] for part in ("--adapter", f"{name}={path}")]
        self._command = [
            *(sys.executable, "-m", "llamero.engine", "--base", str(inputs.base), "--threads", str(threads)),
            *loaded,
        ]
        self._log = folder / "engine.log"

    def __enter__(self) -> "Engine":
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "services"), "HF_HUB_OFFLINE": "1"}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready "):
            self._process.kill()
            raise SystemExit(f"The engine did not start:\n{self._log.read_text()[-3000:]}")
        self.url = line.split()[1]
        self._psutil = psutil.Process(self._process.pid)
        return self

    def __exit__(self, *unused: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> float:
        times = self._psutil.cpu_times()
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        return int(self._psutil.memory_info().rss)

    def stream(self, requests: Sequence[tuple[str, str]], tokens: int, chats: int) -> Streamed:
        """Ask all requests (adapter, prompt), so many at a time, each over /generate_stream, greedily."""
        return asyncio.run(_stream(self, requests, tokens, chats))

    def post(self, path: str, body: dict[str, Any]) -> float:
        """Seconds that a call took. Raises SystemExit where it is refused."""
        return asyncio.run(_post(self.url, path, body))


async def _stream(engine: Engine, requests: Sequence[tuple[str, str]], tokens: int, chats: int) -> Streamed:
    raw: list[bytes] = [b""] * len(requests)
    first: list[float] = [0.0] * len(requests)
    left = iter(range(len(requests)))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(engine.url, connector=connector) as client:

        async def chat() -> None:
            for index in left:
                adapter, prompt = requests[index]
                body = {"inputs": prompt, "parameters": {"adapter_id": adapter, "max_new_tokens": tokens}}
                began = time.perf_counter()
                parts = []
                async with client.post("/generate_stream", json=body) as response:
                    if response.status != 200:
                        raise SystemExit(f"The engine answered {response.status}: {await response.text()}")
                    async for part in response.content.iter_any():
                        if not parts:
                            first[index] = time.perf_counter() - began
                        parts.append(part)
                raw[index] = b"".join(parts)

        cpu, began = engine.cpu_seconds(), time.perf_counter()
        await asyncio.gather(*(chat() for _ in range(chats)))
        seconds, cpu = time.perf_counter() - began, engine.cpu_seconds() - cpu
    return Streamed(seconds, cpu, tuple(first), tuple(map(_read_ids, raw)))


def _read_ids(raw: bytes) -> tuple[int, ...]:
    events = [json.loads(event[5:]) for event in raw.decode().split("\n\n") if event]
    broken = next((e for e in events if "error" in e), None)
    if broken is not None:
        raise SystemExit(f"A stream broke off: {broken['error']}")
    return tuple(event["token"]["id"] for event in events)


async def _post(url: str, path: str, body: dict[str, Any]) -> float:
    async with aiohttp.ClientSession(url) as client:
        began = time.perf_counter()
        async with client.post(path, json=body) as response:
            if response.status != 200:
                raise SystemExit(f"{path} answered {response.status}: {await response.text()}")
        return time.perf_counter() - began
