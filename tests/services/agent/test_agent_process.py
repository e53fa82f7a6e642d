"""The agent as a process beside the real CPU engine, with what its image has not taken away: torch, transformers, peft."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.processes import free_port
from services.agent.conftest import Publish, agent_environment, wish

from llamero.spec.serving import AgentReport, AgentWanted

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "pyarrow", "kubernetes", "celery"):
            raise ModuleNotFoundError(f"{name} is not in this image", name=name)
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A folder on PYTHONPATH whose sitecustomize keeps out what the agent's image has not."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKED)
    return str(folder)


class Process:
    """An agent that serves."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.environment, self.log = environment, log
        self.url = f"http://127.0.0.1:{environment['LLAMERO_AGENT_PORT']}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llamero.agent", "serve"], env=self.environment, stderr=stream
            )
        self.until(lambda: self.ask("/healthz")[0] == 200)

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, str]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def report(self) -> AgentReport:
        """What it tells; just started it says that it has not looked yet, and is asked again."""
        self.until(lambda: self.ask("/v1/report")[0] != 503)
        status, text = self.ask("/v1/report")
        assert status == 200, text
        return AgentReport.model_validate_json(text)

    def put(self, wanted: AgentWanted) -> AgentReport:
        status, text = self.ask("/v1/wanted", wanted.model_dump_json(by_alias=True).encode(), "PUT")
        assert status == 200, text
        return AgentReport.model_validate_json(text)

    def until(self, condition: Callable[[], bool], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process is not None and self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, f"{self.ask('/v1/report')}\n{self.log.read_text()}"
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def launch(tmp_path: Path, store: Path, bare: str, engine: Any) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def launch(**variables: str) -> Process:
        environment = agent_environment(tmp_path / "scratch", store, "cpu", **variables)
        environment["PYTHONPATH"] = f"{bare}:{environment['PYTHONPATH']}"
        environment |= {"LLAMERO_AGENT_PORT": str(free_port()), "LLAMERO_ENGINE_URL": engine.url}
        started.append(Process(environment, tmp_path / "agent.log"))
        return started[-1]

    yield launch
    for one in started:
        if one.process is not None and one.process.poll() is None:
            one.stop(signal.SIGKILL)


def test_an_agent_without_heavy_packages_fetches_serves_follows_its_file_and_ends_when_told(
    launch: Callable[..., Process], tmp_path: Path, random_base: Path, publish_named: Publish
) -> None:
    one, two = publish_named("plain-a").wanted("proc-one-r1"), publish_named("narrow").wanted("proc-two-r1")
    file = tmp_path / "wanted.json"
    file.write_text(wish(random_base, one).model_dump_json(by_alias=True))
    agent = launch(LLAMERO_WANTED_FILE=str(file))
    done = subprocess.run(
        [sys.executable, "-m", "llamero.agent", "fetch"], env=agent.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scratch" / "base").resolve() == random_base
    agent.start()
    agent.until(lambda: agent.ask("/readyz")[0] == 200)
    assert agent.report().ready_ids == {one.id}

    told = agent.put(wish(random_base, one, two, serial=5))
    assert told.serial == 5
    assert {a.id for a in told.adapters} == {one.id, two.id}
    agent.until(lambda: agent.report().ready_ids == {one.id, two.id})
    assert agent.ask("/readyz")[0] == 200
    assert agent.put(wish(random_base, serial=4)).serial == 5

    # A mounted file may lag behind what was told: an agent that starts anew goes by what it was told last.
    assert agent.stop(signal.SIGKILL) == -signal.SIGKILL
    agent.start()
    while (found := agent.ask("/v1/report"))[0] == 503:
        assert "asks again" in found[1] or "ask again" in found[1]
        time.sleep(0.02)
    assert AgentReport.model_validate_json(found[1]).ready_ids == {one.id, two.id}

    file.with_suffix(".new").write_text(wish(random_base, serial=6).model_dump_json(by_alias=True))
    file.with_suffix(".new").replace(file)
    agent.until(lambda: agent.report().adapters == [])
    assert agent.report().serial == 6
    file.write_text("{")
    began = time.monotonic()
    assert agent.stop() == 0, agent.log.read_text()
    assert time.monotonic() - began < 5
    assert "Traceback" not in agent.log.read_text()


def test_what_is_no_list_is_refused_with_a_sentence(launch: Callable[..., Process], random_base: Path) -> None:
    agent = launch(LLAMERO_WANTED=wish(random_base).model_dump_json(by_alias=True))
    agent.start()
    for body, words in [
        (b"{", "no list of wanted adapters"),
        (wish(random_base, engine="tgi", serial=9).model_dump_json(by_alias=True).encode(), "is for tgi"),
    ]:
        status, text = agent.ask("/v1/wanted", body, "PUT")
        assert status == 400
        assert words in json.loads(text)["error"]
    assert agent.ask("/v1/wanted", b"x" * (2 << 20), "PUT")[0] in (
        0,
        413,
    )  # the connection may be closed under the body
    assert agent.ask("/v1/report", Origin="http://evil.example")[0] == 403
    assert agent.ask("/v1/nothing") == (404, '{"error": "Not Found"}')
    assert agent.stop(signal.SIGINT) == 0
