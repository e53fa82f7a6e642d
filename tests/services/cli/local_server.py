"""A local server as a user runs it: `llamero serve --base … --adapter …` as a process, callers that chat with it all the time, the verbs beside."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from llamero.cli.localserver import LocalServer
from llamero.spec.server import NameStatus

READY_SECONDS = 120
PROMPT = "Tell me about rain."
MODEL = "tutor"


def post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@dataclass
class LocalServing:
    """A running `llamero serve`, in a work folder of the test's own."""

    workdir: Path
    process: "subprocess.Popen[str]"
    output: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def server(self) -> LocalServer:
        return LocalServer(self.workdir, "local")

    @property
    def text(self) -> str:
        return "\n".join(self.output)

    def name(self, model: str = MODEL) -> NameStatus:
        """Where a public name stands."""
        found = next((n for n in self.server.read_status().server.models if n.name == model), None)
        return found if found is not None else NameStatus(name=model)

    def stalled(self) -> str:
        """Why the server's manifest can't be followed; empty where it can."""
        conditions = self.server.read_status().server.conditions
        return next((c.message for c in conditions if c.type == "Stalled" and c.status == "True"), "")

    def wait_for(self, what: str, condition: Any, seconds: float = 60) -> None:
        """Until the condition of the name's status holds."""
        deadline = time.monotonic() + seconds
        while not condition(self.name()):
            assert self.process.poll() is None, f"the server ended: {self.text}"
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}. {self.name()!r}\n{self.text}"
            time.sleep(0.05)

    def llamero(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A verb, as another terminal runs it."""
        command = [sys.executable, "-m", "llamero", *arguments, "--workdir", str(self.workdir)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), check=False)

    def ask(self, user: str = "somebody", model: str = MODEL, tokens: int = 12) -> dict[str, Any]:
        """An answer; fails where it is none."""
        status, answer = post(
            f"{self.url}/v1/chat/completions",
            {
                "model": model,
                "user": user,
                "messages": [{"role": "user", "content": PROMPT}],
                "temperature": 0,
                "max_tokens": tokens,
            },
        )
        assert status == 200, answer
        return answer

    def say(self, user: str = "somebody", model: str = MODEL) -> str:
        return str(self.ask(user, model)["choices"][0]["message"]["content"])

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, module: str) -> psutil.Process:
        """The engine's or the chat service's process."""
        return next(p for p in self.children() if module in p.cmdline())

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}


@contextmanager
def serve(workdir: Path, *arguments: str) -> Iterator[LocalServing]:
    """Start it, wait until it says where to chat, and end it."""
    command = [sys.executable, "-m", "llamero", "serve", *arguments, "--workdir", str(workdir), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )
    serving = LocalServing(workdir, process)
    said = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            serving.output.append(line.rstrip("\n"))
            if line.startswith("Chat with "):
                serving.url = line.split(" at ")[1].split()[0]
                said.set()
        said.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert said.wait(READY_SECONDS) and serving.url, serving.text
        yield serving
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        reader.join(10)


@dataclass
class Callers:
    """Several callers who ask the same thing over and over: what each was told in turn, and what failed."""

    serving: LocalServing
    users: int = 8
    told: dict[str, list[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> "Callers":
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._chat, args=(f"caller-{n}",)) for n in range(self.users)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def answers(self) -> list[str]:
        return [answer for answers in self.told.values() for answer in answers]

    def _chat(self, user: str) -> None:
        told = self.told.setdefault(user, [])
        while not self._stop.is_set():
            try:
                told.append(self.serving.say(user))
            except (AssertionError, OSError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                self._stop.wait(0.2)
