"""The tiny base and its adapters, made once a test run, for the tests of the stand-ins and of serving."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serving.makers import TinyAdapter, build_adapter, build_base, read_adapter


@dataclass
class Tiny:
    """A folder with the base and with adapters, each made when it is first asked for; processes may share it."""

    root: Path
    made: dict[str, TinyAdapter] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """The base's folder."""
        folder = self.root / "base"
        with self._making(folder) as is_missing:
            if is_missing:
                build_base(folder)
        return folder

    def adapter(self, word: str) -> TinyAdapter:
        """The adapter that answers with a word."""
        base = self.base
        return self._make(word, lambda folder: build_adapter(base, folder, word))

    def variant(self, name: str, build: Callable[[Path], TinyAdapter]) -> TinyAdapter:
        """An adapter of another making, for this process alone."""
        if name not in self.made:
            self.made[name] = build(self.root / f"{name}-{os.getpid()}")
        return self.made[name]

    def _make(self, word: str, build: Callable[[Path], TinyAdapter]) -> TinyAdapter:
        folder = self.root / word
        if word not in self.made:
            with self._making(folder) as is_missing:
                self.made[word] = build(folder) if is_missing else read_adapter(folder, word)
        return self.made[word]

    @contextmanager
    def _making(self, folder: Path) -> Iterator[bool]:
        """Whether the folder is still to be made; another process that makes it is waited for."""
        done = folder.with_name(f"{folder.name}.done")
        if done.exists():
            yield False
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if done.exists():
                yield False
                return
            shutil.rmtree(folder, ignore_errors=True)
            yield True
            done.touch()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Shared by xdist's workers, whose own folders lie side by side."""
    own = tmp_path_factory.getbasetemp()
    return Tiny((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "tiny")
