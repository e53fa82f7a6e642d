"""Fixtures of the chat service's tests: a real engine behind a real chat service, a stand-in engine that says what a test
tells it to (errors inside streams, broken answers, Markdown), and Debian's Chromium."""

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web


def write_routes(path: Path, servers: dict[str, list[dict[str, Any]]], routes: list[dict[str, Any]]) -> Path:
    """Write a routes file."""
    path.write_text(json.dumps({"servers": servers, "routes": routes}))
    return path


@pytest.fixture(scope="session")
def make_routes() -> Callable[..., Path]:
    return write_routes


@pytest.fixture(scope="session")
def real_engine(launch_engine: Any) -> Any:
    """An engine with two adapters."""
    return launch_engine("--name", "random-llama", names=("plain-a", "plain-b"))


@pytest.fixture(scope="session")
def real_chat(real_engine: Any, launch_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A chat service with the public names tutor (plain-a), helper (plain-b) and base."""
    backend = {"url": real_engine.url, "engine": "cpu", "adapters": ["plain-a", "plain-b"]}
    routes = write_routes(
        tmp_path_factory.mktemp("routes") / "routes.json",
        {"local": [backend]},
        [
            {"model": "tutor", "server": "local", "targets": [{"adapter": "plain-a"}], "description": "A tutor"},
            {"model": "helper", "server": "local", "targets": [{"adapter": "plain-b"}]},
            {"model": "base", "server": "local", "targets": [{}], "description": "The base, as it was"},
        ],
    )
    return launch_server("llamero.chat", "--routes", str(routes), "--port", "0")


@pytest.fixture
async def client(real_chat: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client of the real chat service."""
    async with aiohttp.ClientSession(base_url=real_chat.url) as session:
        yield session


@dataclass
class StandIn:
    """An engine that keeps TGI's contract for /v1/chat/completions and says what it is told to.

    `script` are the raw bytes of the answer, piece by piece with `pause` seconds between; `status` other than 200 sends the
    first piece as the whole answer. `cut` ends the connection after the last piece as a crash does.
    """

    url: str = ""
    status: int = 200
    script: list[bytes] = field(default_factory=list)
    pause: float = 0.0
    cut: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0

    def say(self, *texts: str, model: str = "anything", finish: str = "stop") -> None:
        """Answer with these pieces of text, then usage and [DONE]."""
        chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": t}}]} for t in texts]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        usage = {"prompt_tokens": 3, "completion_tokens": len(texts), "total_tokens": 3 + len(texts)}
        chunks.append({"choices": [], "usage": usage})
        head = {"object": "chat.completion.chunk", "id": "", "created": 1, "model": model}
        self.status, self.cut = 200, False
        self.script = [b"data: " + json.dumps({**head, **c}).encode() + b"\n\n" for c in chunks] + [b"data: [DONE]\n\n"]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        if self.status != 200:
            return web.Response(body=self.script[0], status=self.status, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        self.running += 1
        try:
            await response.prepare(request)
            for piece in self.script:
                await response.write(piece)
                await asyncio.sleep(self.pause)
            if self.cut and request.transport is not None:
                request.transport.abort()
            return response
        finally:
            self.running -= 1


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """A stand-in engine on a thread of its own."""
    engine = StandIn()
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", engine.answer)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1).start()
        engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        return runner

    def run() -> None:
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(10)
    yield engine
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


@pytest.fixture
def chat_before(stand_in: StandIn, launch_server: Any, tmp_path: Path) -> Iterator[Any]:
    """A chat service before the stand-in engine, with the public names tutor and base."""
    routes = write_routes(
        tmp_path / "routes.json",
        {"local": [{"url": stand_in.url, "engine": "tgi", "adapters": ["ns-tutor-r1-0123abcd"]}]},
        [
            {
                "model": "tutor",
                "server": "local",
                "targets": [{"adapter": "ns-tutor-r1-0123abcd"}],
                "description": "A tutor",
            },
            {"model": "base", "server": "local", "targets": [{}]},
        ],
    )
    server = launch_server("llamero.chat", "--routes", str(routes), "--port", "0")
    yield server
    server.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Debian's Chromium without a window; skipped where it is absent."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("Chromium is absent: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--window-size=1200,860",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()
