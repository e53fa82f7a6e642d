"""Fixtures that the tests of engine and chat service share: random adapters on the random base, and servers as processes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 90

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL_LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]

# name → what is peculiar about it; ranks and modules differ on purpose
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain-a": {"r": 4, "target_modules": ALL_LINEAR},
    "plain-b": {"r": 8, "target_modules": ALL_LINEAR, "use_rslora": True},
    "narrow": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    "dora": {"r": 4, "target_modules": ATTENTION, "use_dora": True},
    "head": {"r": 4, "target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
}


@pytest.fixture(scope="session")
def adapters(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of adapters on the random base with weights large enough that each answers in its own way."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("adapters")
    tokenizer = AutoTokenizer.from_pretrained(random_base)
    for number, (name, options) in enumerate(ADAPTERS.items(), start=1):
        torch.manual_seed(number)
        base = AutoModelForCausalLM.from_pretrained(random_base, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(lora_alpha=16, task_type="CAUSAL_LM", **options))
        for parameter_name, parameter in model.named_parameters():
            if "lora_A" in parameter_name or "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
            if "modules_to_save" in parameter_name:
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in ADAPTERS}


@dataclass
class ServerProcess:
    """A server under test: its process, its address, its log."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path

    def stop(self, seconds: float = 10) -> int:
        """SIGTERM; returns the exit code. Raises TimeoutExpired (after a kill) where it does not end."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def log_text(self) -> str:
        return self.log.read_text()


StartServer = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def launch_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts `python -m MODULE ARGUMENTS…` and waits for its `ready` line; whatever still runs at the end is ended."""
    started: list[ServerProcess] = []
    logs = tmp_path_factory.mktemp("server-logs")

    def launch(module: str, *arguments: str) -> ServerProcess:
        log = logs / f"{len(started)}-{module}.log"
        environment = {**os.environ, "PYTHONPATH": str(repository / "services"), "HF_HUB_OFFLINE": "1"}
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=environment,
            )
        assert process.stdout is not None
        began = time.monotonic()
        line = process.stdout.readline()
        if not line.startswith("ready "):
            process.kill()
            pytest.fail(f"{module} did not start in {time.monotonic() - began:.0f} s:\n{log.read_text()[-3000:]}")
        server = ServerProcess(process, line.split()[1], log)
        started.append(server)
        return server

    yield launch
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def launch_engine(launch_server: StartServer, random_base: Path, adapters: dict[str, Path]) -> StartServer:
    """Starts an engine on the random base with the named adapters (all of them by default) and further options."""

    def launch(*options: str, names: tuple[str, ...] = tuple(ADAPTERS)) -> ServerProcess:
        loaded = [part for name in names for part in ("--adapter", f"{name}={adapters[name]}")]
        return launch_server("llamero.engine", "--base", str(random_base), *loaded, *options)

    return launch
