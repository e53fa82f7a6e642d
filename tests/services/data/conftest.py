"""Fixtures of the data tests: a job's spec from a few sources, and a preparation of it in a folder of its own."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from llamero.data.prepare import plan_data, prepare_data
from llamero.spec.job import FineTuneJobSpec
from llamero.spec.progress import Progress
from llamero.spec.results import DataResult

# A busy machine is slow, not wrong.
settings.register_profile("data", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("data")


@dataclass(frozen=True)
class Prepared:
    """A finished preparation: its result and where it lies."""

    result: DataResult
    folder: Path
    progress: list[Progress]

    def records(self, side: str) -> list[dict[str, Any]]:
        parts = sorted((self.folder / side).glob("part-*.jsonl"))
        return [json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").splitlines()]

    def rejected(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]

    def files(self) -> dict[str, bytes]:
        """All files but the manifest, which tells how long it took."""
        return {
            str(p.relative_to(self.folder)): p.read_bytes()
            for p in sorted(self.folder.rglob("*"))
            if p.is_file() and p.name != "manifest.json"
        }


def build_spec(sources: list[dict[str, Any]], sequence_length: int = 512, **data: Any) -> FineTuneJobSpec:
    """A job of these sources with no steps but those that are given: what the default recipe does is a subject of its own."""
    data.setdefault("steps", [])
    return FineTuneJobSpec.model_validate(
        {
            "baseModel": {"uri": "/base"},
            "data": {"sources": sources, **data},
            "training": {"sequenceLength": sequence_length},
        }
    )


@pytest.fixture
def make_spec() -> Callable[..., FineTuneJobSpec]:
    return build_spec


@pytest.fixture
def prepare(random_base: Path, tmp_path: Path) -> Callable[..., Prepared]:
    """prepare(sources, name="out", workers=None, cache="cache", **data) -> Prepared."""

    def run(
        sources: list[dict[str, Any]],
        name: str = "out",
        workers: int | None = None,
        cache: str = "cache",
        **data: Any,
    ) -> Prepared:
        spec = build_spec(sources, **data)
        progress: list[Progress] = []
        folder = tmp_path / name
        result = prepare_data(
            spec, plan_data(spec, "tokenizer"), random_base, folder, tmp_path / cache, progress.append, workers
        )
        return Prepared(result, folder, progress)

    return run


@pytest.fixture
def write_alpaca(tmp_path: Path) -> Callable[..., Path]:
    """write_alpaca(rows, name) -> path of a JSON array; a row is (instruction, output) or a dict."""

    def write(rows: list[Any], name: str = "alpaca.json") -> Path:
        objects = [{"instruction": r[0], "output": r[1]} if isinstance(r, tuple) else r for r in rows]
        path = tmp_path / name
        path.write_text(json.dumps(objects, indent=1, ensure_ascii=False), encoding="utf-8")
        return path

    return write
