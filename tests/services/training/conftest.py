"""Token sets, configurations and real training processes for the tests of the training."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamero.model.tokens import TokenWriter
from llamero.spec.results import TrainingResult

LENGTHS = (20, 33, 7, 41, 20, 12, 64, 25, 9, 31)


def write_tokens(folder: Path, count: int, seed: int = 0, vocabulary: int = 380, lengths: Any = LENGTHS) -> Path:
    """A part folder of `count` random examples whose second half is trained."""
    draw = np.random.default_rng(seed)
    with TokenWriter(folder) as writer:
        for index in range(count):
            length = lengths[index % len(lengths)]
            mask = np.arange(length) >= length // 2
            writer.append(draw.integers(4, vocabulary, length), mask, f"record-{index}")
    return folder


@pytest.fixture(scope="session")
def train_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 examples of 7 to 64 tokens."""
    return write_tokens(tmp_path_factory.mktemp("tokens") / "train", 30)


@pytest.fixture(scope="session")
def evaluation_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 held-out examples."""
    return write_tokens(tmp_path_factory.mktemp("tokens") / "evaluation", 8, seed=1)


@dataclasses.dataclass
class Training:
    """A training's configuration file and the process that runs it."""

    folder: Path
    config: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    def start(self, program: str | None = None) -> "subprocess.Popen[str]":
        """The real process; `program` is Python code to run in place of the module, with the configuration as argument."""
        path = self.folder / "config.json"
        path.write_text(json.dumps(self.config))
        how = ["-m", "llamero.training"] if program is None else ["-c", program]
        return subprocess.Popen(
            [sys.executable, *how, str(path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            stdout=subprocess.PIPE,
            stderr=(self.folder / "log").open("w"),
            text=True,
        )

    def run(self, program: str | None = None) -> int:
        """Run to the end; the exit code."""
        process = self.start(program)
        self.output, _ = process.communicate(timeout=300)
        return process.returncode

    def run_until(self, step: int, number: signal.Signals, checkpoints: int = 0) -> int:
        """Start, send the signal once progress tells of `step` and so many checkpoints are there, and wait; the exit code."""
        process = self.start()
        assert process.stdout is not None
        for line in process.stdout:
            told = (json.loads(line).get("values") or {}).get("step", 0)
            if told >= step and len(list(self.checkpoints.glob("step-*/manifest.json"))) >= checkpoints:
                process.send_signal(number)
                break
        process.stdout.read()
        return process.wait(timeout=300)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def result(self) -> TrainingResult:
        return TrainingResult.model_validate_json((self.checkpoints / "result.json").read_bytes())

    @property
    def failure(self) -> dict[str, str]:
        return json.loads((self.checkpoints / "failure.json").read_text())

    def losses(self) -> list[float]:
        return [p.loss for p in self.result.curve]

    def find_checkpoints(self) -> list[str]:
        return sorted(p.name for p in self.checkpoints.glob("step-*"))


@pytest.fixture(scope="session")
def make_training(random_base: Path, train_tokens: Path, evaluation_tokens: Path) -> Callable[..., Training]:
    """Makes a training in a folder: `make_training(folder, spec={…}, **other fields)`."""

    def make(folder: Path, spec: dict[str, Any] | None = None, **fields: Any) -> Training:
        folder.mkdir(exist_ok=True)
        defaults = {"epochs": 2, "batchSize": 4, "sequenceLength": 64, "learningRate": 1e-3, "lora": {"rank": 4}}
        config = {
            "base": str(random_base),
            "spec": defaults | (spec or {}),
            "trainTokens": [str(train_tokens)],
            "evaluationTokens": [str(evaluation_tokens)],
            "checkpoints": str(folder / "checkpoints"),
            "adapter": str(folder / "adapter"),
            "recipeDigest": "recipe",
            "dataDigest": "data",
            "baseDigest": "base",
            "baseName": "random-llama",
            "licenses": ["CC-BY-SA-4.0"],
            "device": "cpu",
            "threads": 1,
        }
        return Training(folder, config | fields)

    return make


@pytest.fixture
def training(tmp_path: Path, make_training: Callable[..., Training]) -> Callable[..., Training]:
    """Makes a training in a folder of the test's own: `training(name, spec, **other fields)`."""
    return lambda name="run", spec=None, **fields: make_training(tmp_path / name, spec, **fields)
