"""The tiny base and its adapters, made once a session, for the tests of the stand-ins and of serving."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serving.makers import TinyAdapter, build_adapter, build_base


@dataclass
class Tiny:
    """The base's folder; adapters are made when they are first asked for."""

    base: Path
    root: Path
    made: dict[str, TinyAdapter] = field(default_factory=dict)

    def adapter(self, word: str) -> TinyAdapter:
        """The adapter that answers with a word."""
        if word not in self.made:
            self.made[word] = build_adapter(self.base, self.root / word, word)
        return self.made[word]

    def variant(self, name: str, build: Callable[[Path], TinyAdapter]) -> TinyAdapter:
        """An adapter of another making, once."""
        if name not in self.made:
            self.made[name] = build(self.root / name)
        return self.made[name]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    return Tiny(build_base(root / "base"), root)
