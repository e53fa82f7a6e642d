"""A model server for each test, and how it is asked: quickly, into a folder of the test's own."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from services.data.model_server import ModelServer

from llamero.data.asking.asker import Asker
from llamero.data.asking.client import Backoff
from llamero.spec.steps import LanguageModel

MakeAsker = Callable[..., Asker]


@pytest.fixture(scope="session")
def running_server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


@pytest.fixture
def server(running_server: ModelServer) -> ModelServer:
    """It says what it is told, and forgot what the test before asked."""
    running_server.behave(lambda body: f"echo {body['messages'][-1]['content']}")
    return running_server


@pytest.fixture
def answers(tmp_path: Path) -> str:
    return str(tmp_path / "answers")


@pytest.fixture
def make_asker(server: ModelServer, answers: str) -> MakeAsker:
    """`make_asker(workers=1, purpose="judge", **fields of the model)`."""

    def make(workers: int = 1, purpose: str = "judge", preparation: str = "", **fields: Any) -> Asker:
        model = LanguageModel(**({"url": server.url, "model": "m", "concurrency": 4} | fields))
        quick = partial(Asker, backoff=Backoff(first_seconds=0.01, longest_seconds=0.05))
        return quick(model, purpose, answers, workers, preparation=preparation)

    return make
