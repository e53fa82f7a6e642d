"""The stand-ins as processes, started through the executables that a pod would find."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster.processes import Daemon, accepts_connections, free_port
from serving.fixtures import Tiny as Tiny
from serving.fixtures import tiny as tiny

BIN = Path(__file__).parent / "bin"
VENV = Path(__file__).parents[2] / ".venv" / "bin"
START_SECONDS = 30

StandIn = Callable[..., tuple[Daemon, str]]


@pytest.fixture(scope="module")
def start_shared_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """As `start_stand_in`, until the file's end."""
    with starting(tmp_path_factory.mktemp("standins")) as start:
        yield start


@pytest.fixture
def start_stand_in(tmp_path: Path) -> Iterator[StandIn]:
    """`start(program, *arguments, wait=True, **environment)` → the process and its address, once it takes connections; until the test's end."""
    folder = tmp_path / "standins"
    folder.mkdir()
    with starting(folder) as start:
        yield start


@contextmanager
def starting(folder: Path) -> Iterator[StandIn]:
    """What starts them, and ends them."""
    started: list[Daemon] = []

    def start(program: str, *arguments: str, wait: bool = True, **environment: str) -> tuple[Daemon, str]:
        port = free_port()
        words = [str(BIN / program), *arguments, "--port", str(port)]
        variables = {"PATH": f"{VENV}:{os.environ['PATH']}", "STANDIN_TOKEN_SECONDS": "0.002", **environment}
        server = Daemon(program, words, folder / f"{len(started)}.log", variables)
        started.append(server)
        server.start()
        if wait:
            server.wait_ready(lambda: accepts_connections(port), START_SECONDS)
        return server, f"http://127.0.0.1:{port}"

    try:
        yield start
    finally:
        for server in started:
            server.kill()
