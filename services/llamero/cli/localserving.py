"""`llamero serve --base DIR --adapter NAME=DIR…`: a local server's processes (engine, chat service) and its controller, until Ctrl-C.

The controller decides and the agent works, both in this process; whoever dies is started again. State stands in `localserver`.
"""

import asyncio
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from llamero.agent.agent import Agent
from llamero.agent.engines import build_client
from llamero.cli.adapterfolders import find_base_at_hand
from llamero.cli.controller import LocalController, LocalPod
from llamero.cli.localimport import BASE_DIGEST_ANNOTATION, import_locally
from llamero.cli.localserver import LocalServer, LocalServerError, LocalStatus
from llamero.cli.processes import Server, ServerError
from llamero.lifecycle.world import Note
from llamero.phases.processes import Interrupted
from llamero.spec.job import BaseModelRef
from llamero.spec.rollout import StrategySpec
from llamero.spec.server import EngineSpec, ModelServerSpec, ServedNameSpec
from llamero.storage import local_path

HOST = "127.0.0.1"
POD_NAME = "local-0"
MAX_RESTARTS = 5
RESTART_WINDOW_SECONDS = 120.0
WATCH_SECONDS = 0.3

Say = Callable[[str], None]


@dataclass(frozen=True)
class ServeOptions:
    """What the command line says. None leaves it as the server has it, or by default."""

    base: Path | None
    adapters: tuple[tuple[str, Path], ...]
    host: str
    port: int
    quantization: Literal["nf4"] | None = None
    steps: tuple[int, ...] | None = None
    interval_seconds: int | None = None
    min_requests: int | None = None


def serve_locally(server: LocalServer, options: ServeOptions, say: Say) -> None:
    """Serve until interrupted. Raises Interrupted then; LocalServerError, ImportRefused, StorageError, ServerError where it can't."""
    with server.served():
        prepare_server(server, options, say)
        with _signals_as_event() as make_event:
            asyncio.run(_Serving(server, options, say).run(make_event))
    raise Interrupted("SIGINT")


# -- the server's state --------------------------------------------------------------------------------------------------------


def prepare_server(server: LocalServer, options: ServeOptions, say: Say) -> None:
    """Make the server or bring it to what the command line says, and take its adapters in, the later ones as the newer ones."""
    now = datetime.now(UTC)
    if not server.exists and options.base is None:
        raise LocalServerError(
            f"There is no local server {server.name} in {server.workdir}: --base says what it is to serve."
        )
    folder = options.base if options.base is not None else _base_of(server)
    base = find_base_at_hand(folder)
    if not server.exists:
        server.create(build_spec(base.folder, options), now)
    with server.edit() as raw:
        annotations = raw["metadata"].setdefault("annotations", {})
        if annotations.setdefault(BASE_DIGEST_ANNOTATION, base.sha256) != base.sha256:
            raise LocalServerError(
                f"The server {server.name} in {server.folder} serves another base than the one that lies in {base.folder} now, and its "
                "adapters belong to that: give another --server or --workdir."
            )
        before, raw["spec"]["baseModel"]["uri"] = raw["spec"]["baseModel"].get("uri"), str(base.folder)
        _update_strategy(raw["spec"], options)
        if options.quantization is not None:
            raw["spec"].setdefault("engine", {})["quantization"] = options.quantization
    if before != str(base.folder):
        server.move_base(str(base.folder))
    for name, adapter_folder in options.adapters:
        imported = import_locally(server, name, adapter_folder, datetime.now(UTC), say)
        what = "is new for" if imported.is_new else "is known already for"
        say(f"{adapter_folder}: the adapter {imported.adapter.name} {what} {name}.")


def _base_of(server: LocalServer) -> Path:
    return local_path(server.read_manifest().raw["spec"]["baseModel"]["uri"])


def build_spec(base: Path, options: ServeOptions) -> ModelServerSpec:
    """A new server's manifest: the CPU engine, and the base under its own name beside the adapters."""
    raw: dict[str, object] = {}
    _update_strategy(raw, options)
    strategy = StrategySpec.model_validate(raw.get("strategy") or {})
    return ModelServerSpec(
        base_model=BaseModelRef(uri=str(base)),
        engine=EngineSpec(type="cpu", quantization=options.quantization),
        models=[ServedNameSpec(name=base.name, base=True)],
        strategy=strategy,
    )


def _update_strategy(spec: dict[str, object], options: ServeOptions) -> None:
    strategy = dict(spec.get("strategy") or {})  # type: ignore[call-overload]
    if options.steps is not None:
        strategy["steps"] = list(options.steps)
    if options.interval_seconds is not None:
        strategy["intervalSeconds"] = options.interval_seconds
    if options.min_requests is not None:
        strategy["analysis"] = {**(strategy.get("analysis") or {}), "minRequests": options.min_requests}
    if strategy:
        spec["strategy"] = strategy


# -- its processes -------------------------------------------------------------------------------------------------------------


class _Serving:
    """The life of one `llamero serve`."""

    def __init__(self, server: LocalServer, options: ServeOptions, say: Say) -> None:
        self.server = server
        self.options = options
        self.say = say
        manifest = server.read_manifest().server
        assert manifest is not None, "prepare_server leaves a valid one"
        self.spec = manifest.spec
        engine_port = _free_port(HOST)
        self.pod = LocalPod(POD_NAME, str(uuid.uuid4()), f"http://{HOST}:{engine_port}", datetime.now(UTC))
        self.engine = Server(
            "engine", "llamero.engine", self._engine_arguments(engine_port), server.logs / "engine.log"
        )
        self.inner_port = _free_port(HOST)
        self.chat_port = options.port or _free_port(options.host)  # the same after a restart
        self._restarts: list[float] = []

    async def run(self, make_event: Callable[[asyncio.AbstractEventLoop], asyncio.Event]) -> None:
        """Start everything, keep it running, end everything."""
        stop = make_event(asyncio.get_running_loop())
        chat: Server | None = None
        agent = Agent(build_client("cpu", self.pod.url), self.server.scratch, str(self.server.folder), self.pod.name)
        controller = LocalController(self.server, agent, self.pod, self._tell)
        controller.pid = os.getpid()
        tasks: list[asyncio.Task[None]] = []
        try:
            self.say(
                f"Starting the engine with {local_path(self.spec.base_model.uri or '').name} and the chat service ..."
            )
            self.engine.start()
            await controller.step()  # routes that name no engine which is gone, before anybody reads them
            chat = self._build_chat()
            chat.start()
            tasks.append(asyncio.create_task(agent.run()))
            if not await _until(
                stop, asyncio.gather(*(asyncio.to_thread(s.wait_until_ready) for s in (self.engine, chat)))
            ):
                return
            controller.chat_url, controller.public_url = f"http://{HOST}:{self.inner_port}", chat.url
            tasks.append(asyncio.create_task(controller.run()))
            tasks.append(asyncio.create_task(self._greet(controller, chat.url)))
            await self._watch(stop, chat, tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for process in (chat, self.engine):  # first who takes requests, then who answers them
                if process is not None:
                    process.stop()
            self._forget_process(controller)

    def _engine_arguments(self, port: int) -> list[str]:
        engine = self.spec.engine
        told = {
            "--base": self.spec.base_model.uri,
            "--host": HOST,
            "--port": str(port),
            "--quantization": engine.quantization,
            "--dtype": engine.dtype,
            "--max-total-tokens": str(engine.max_total_tokens) if engine.max_total_tokens else None,
        }
        return [word for option, value in told.items() if value for word in (option, value)] + list(engine.args)

    def _build_chat(self) -> Server:
        arguments = [
            "--routes",
            str(self.server.routes_file),
            "--host",
            self.options.host,
            "--port",
            str(self.chat_port),
        ]
        return Server(
            "chat service",
            "llamero.chat",
            [*arguments, "--inner-port", str(self.inner_port)],
            self.server.logs / "chat.log",
        )

    async def _greet(self, controller: LocalController, url: str) -> None:
        """Say where to chat once every name is answered, or it is known why one is not."""
        while not controller.is_answered:
            await asyncio.sleep(WATCH_SECONDS)
        served = [n for n in controller.status.server.models if n.adapter or n.state == "Serving"]
        for name in controller.status.server.models:
            if name not in served:
                self.say(f"{name.name} is not served: {name.message}")
        self.say(f"Chat with {' and '.join(n.name for n in served)} at {url} (Ctrl-C ends it)")

    async def _watch(self, stop: asyncio.Event, chat: Server, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Until Ctrl-C; a process that ends by itself is started again, unless it does so all the time. Raises ServerError."""
        while not await _until(None, stop.wait(), WATCH_SECONDS):
            for task in tasks:
                if task.done():
                    task.result()  # they run for ever, but the one that greets
            for process in (self.engine, chat):
                code = process.returncode()
                if code is None:
                    continue
                self._count_restart(process, code)
                if process is self.engine:
                    self.pod.restarts += 1
                process.start()
                if not await _until(stop, asyncio.to_thread(process.wait_until_ready)):
                    return

    def _count_restart(self, process: Server, code: int) -> None:
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < RESTART_WINDOW_SECONDS] + [now]
        if len(self._restarts) > MAX_RESTARTS:
            raise ServerError(
                f"The {process.name} ended by itself with code {code}, and again after {MAX_RESTARTS} restarts: see {process.log}."
            )
        self.say(f"The {process.name} ended by itself with code {code} (see {process.log}): it is started again.")

    def _tell(self, note: Note) -> None:
        self.say(f"{note.reason}: {note.message}")

    def _forget_process(self, controller: LocalController) -> None:
        status = controller.status
        self.server.write_status(LocalStatus.model_validate({**dict(status), "url": "", "pid": 0}))


async def _until(stop: asyncio.Event | None, work: object, seconds: float | None = None) -> bool:
    """Whether the work was done before it was time to stop, or before the seconds were over. Raises what the work raises."""
    task = asyncio.ensure_future(work)  # type: ignore[call-overload]
    waits = {task} | ({asyncio.create_task(stop.wait())} if stop is not None else set())
    done, left = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for other in left:
        other.cancel()
    if task in done:
        task.result()
        return True
    return False


@contextmanager
def _signals_as_event() -> Iterator[Callable[[asyncio.AbstractEventLoop], asyncio.Event]]:
    """SIGINT and SIGTERM set an event of the loop instead of breaking into it; as they were before, afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def make(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
        event = asyncio.Event()
        for number in numbers:
            loop.add_signal_handler(number, event.set)
        return event

    try:
        yield make
    finally:
        for number, handler in before.items():
            with suppress(TypeError, ValueError):
                signal.signal(number, handler)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
