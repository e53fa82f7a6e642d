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
    """An engine that keeps TGI's contract for /v1/chat/completions and /v1/completions and says what it is told to.

    `script` are the raw bytes of the answer, piece by piece with `pause` seconds between; `status` other than 200 sends the
    first piece as the whole answer, `refused` does so for single model ids. `cut` ends the connection after the last piece as a
    crash does. Between `hold()` and `release()` requests wait before they are answered.
    """

    url: str = ""
    status: int = 200
    script: list[bytes] = field(default_factory=list)
    pause: float = 0.0
    cut: bool = False
    refused: dict[str, int] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    running: int = 0
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def say(self, *texts: str, model: str = "anything", finish: str = "stop") -> None:
        """Answer with these pieces of text, then usage and [DONE]."""
        chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": t}}]} for t in texts]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        usage = {"prompt_tokens": 3, "completion_tokens": len(texts), "total_tokens": 3 + len(texts)}
        chunks.append({"choices": [], "usage": usage})
        head = {"object": "chat.completion.chunk", "id": "", "created": 1, "model": model}
        self.status, self.cut = 200, False
        self.script = [b"data: " + json.dumps({**head, **c}).encode() + b"\n\n" for c in chunks] + [b"data: [DONE]\n\n"]

    def say_whole(self, text: str, model: str = "anything") -> None:
        """Answer with this text in one piece."""
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        head = {"object": "chat.completion", "id": "", "created": 1, "model": model}
        self.status, self.cut = 200, False
        self.script = [json.dumps({**head, "choices": [choice], "usage": usage}).encode()]

    def hold(self) -> None:
        self.gate.clear()

    def release(self) -> None:
        self.gate.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.paths.append(request.path)
        self.running += 1
        try:
            while not self.gate.is_set():
                await asyncio.sleep(0.002)
            status = self.refused.get(body["model"], self.status)
            if status != 200:
                return web.Response(
                    body=self.script[0] if self.script else b"{}", status=status, content_type="application/json"
                )
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
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
def start_stand_in() -> Iterator[Callable[[], StandIn]]:
    """Starts stand-in engines, all on one thread of their own."""
    loop = asyncio.new_event_loop()
    runners: list[web.AppRunner] = []

    async def start(engine: StandIn) -> None:
        app = web.Application()
        for path in ("/v1/chat/completions", "/v1/completions"):
            app.router.add_post(path, engine.answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        runners.append(runner)

    def launch() -> StandIn:
        engine = StandIn()
        asyncio.run_coroutine_threadsafe(start(engine), loop).result(10)
        return engine

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield launch
    for runner in runners:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


@pytest.fixture
def stand_in(start_stand_in: Callable[[], StandIn]) -> StandIn:
    """A stand-in engine."""
    return start_stand_in()


@dataclass
class Chat:
    """A chat service as a process, with its inner port and the routes file that it follows."""

    url: str
    inner: str
    routes: Path
    server: Any

    async def write(
        self, servers: dict[str, list[dict[str, Any]]], routes: list[dict[str, Any]], revision: str
    ) -> None:
        """Change the routes and wait until the service says that they are in force."""
        written = self.routes.with_suffix(".new")
        written.write_text(json.dumps({"servers": servers, "routes": routes, "revision": revision}))
        written.replace(self.routes)
        await self.until(lambda report: report["revision"] == revision)

    async def report(self) -> dict[str, Any]:
        async with aiohttp.ClientSession() as client, client.get(f"{self.inner}/v1/report") as response:
            return await response.json()  # type: ignore[no-any-return]

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first report of which it holds."""
        async with asyncio.timeout(20):
            while not holds(report := await self.report()):
                await asyncio.sleep(0.01)
        return report

    async def counts(self) -> dict[tuple[str, str, str | None], tuple[int, int]]:
        """(requests, errors) by model, step and adapter."""
        targets = (await self.report())["targets"]
        return {(t["model"], t["step"], t["adapter"]): (t["requests"], t["errors"]) for t in targets}


@pytest.fixture
def start_chat(launch_server: Any, tmp_path: Path) -> Iterator[Callable[..., Chat]]:
    """Starts a chat service on a routes file, with an inner port; further options as on the command line."""
    started: list[Any] = []

    def start(
        servers: dict[str, list[dict[str, Any]]], routes: list[dict[str, Any]], *options: str, revision: str = "first"
    ) -> Chat:
        path = tmp_path / f"routes-{len(started)}.json"
        path.write_text(json.dumps({"servers": servers, "routes": routes, "revision": revision}))
        port_file = tmp_path / f"inner-{len(started)}"
        inner = ("--inner-port", "0", "--inner-port-file", str(port_file))
        server = launch_server("llamero.chat", "--routes", str(path), "--port", "0", *inner, *options)
        started.append(server)
        return Chat(server.url, f"http://127.0.0.1:{port_file.read_text().strip()}", path, server)

    yield start
    for server in started:
        server.stop()


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
