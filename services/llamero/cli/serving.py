"""Serves a finished run on this machine: the CPU engine, the chat service before it, and the routes between them."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llamero.cli.processes import Server, ServerError
from llamero.spec.names import RunLayout, served_adapter_id
from llamero.spec.routes import Backend, Route, Routes, Target
from llamero.storage import write_atomically

SERVER_NAME = "local"
WATCH_INTERVAL_SECONDS = 0.5


@dataclass(frozen=True)
class ServedModel:
    """What is to be served: the base's folder, a finished run's adapter, and its public name."""

    base_folder: Path
    base_name: str
    layout: RunLayout
    namespace: str
    adapter_sha256: str
    public_name: str
    quantized: bool


@dataclass(frozen=True)
class ServedChat:
    """A chat service that answers: `watch` returns when one of its processes has ended, with a sentence."""

    url: str
    engine_url: str
    watch: Callable[[], str]


def build_routes(model: ServedModel, engine_url: str) -> Routes:
    """The public name leads to the adapter, the base's name to the base."""
    adapter = served_adapter_id(model.namespace, model.layout.job, model.layout.run, model.adapter_sha256)
    return Routes(
        servers={SERVER_NAME: [Backend(url=engine_url, engine="cpu", adapters=[adapter])]},
        routes=[
            Route(
                model=model.public_name,
                server=SERVER_NAME,
                targets=[Target(adapter=adapter)],
                description=f"{model.base_name}, fine-tuned by {model.layout.job} run {model.layout.run}",
            ),
            Route(model=model.base_name, server=SERVER_NAME, targets=[Target()], description="the base, as it was"),
        ],
    )


@contextmanager
def serve_model(model: ServedModel, host: str, port: int) -> Iterator[ServedChat]:
    """Start engine and chat service; both end with the block. Raises ServerError where one does not start."""
    adapter = served_adapter_id(model.namespace, model.layout.job, model.layout.run, model.adapter_sha256)
    engine_arguments = [
        "--base",
        str(model.base_folder),
        "--adapter",
        f"{adapter}={model.layout.adapter}",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
    ]
    if model.quantized:
        engine_arguments += ["--quantization", "nf4"]
    with Server("engine", "llamero.engine", engine_arguments, model.layout.logs / "engine.log") as engine:
        routes = build_routes(model, engine.url)
        write_atomically(model.layout.routes, json.dumps(routes.to_json_dict(), indent=2))
        chat_arguments = ["--routes", str(model.layout.routes), "--host", host, "--port", str(port)]
        with Server("chat service", "llamero.chat", chat_arguments, model.layout.logs / "chat.log") as chat:
            yield ServedChat(chat.url, engine.url, lambda: _watch(engine, chat))


def _watch(*servers: Server) -> str:
    while True:
        for server in servers:
            if (code := server.returncode()) is not None:
                raise ServerError(f"The {server.name} ended by itself with code {code}: see {server.log}.")
        time.sleep(WATCH_INTERVAL_SECONDS)
