"""Fixtures of the agent's tests: adapters in a storage as they are published, golden prompts, engines and agents as processes or in here."""

import asyncio
import hashlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llamero.agent.agent import Agent
from llamero.agent.engines import EngineClient, build_client
from llamero.model.adapter_checks import CONFIG
from llamero.model.bases import base_digest
from llamero.spec.digest import digest_files
from llamero.spec.golden import GoldenSet
from llamero.spec.names import golden_name
from llamero.spec.results import AdapterManifest
from llamero.spec.serving import AdapterReport, AdapterWanted, AgentWanted, BaseWanted
from llamero.storage import describe_files

PATIENCE_SECONDS = 60


@dataclass
class Published:
    """An adapter in the storage."""

    folder: Path
    sha256: str
    golden_sha256: str | None

    def wanted(self, name: str = "job-r1") -> AdapterWanted:
        return AdapterWanted(
            id=f"ns-{name}-{self.sha256[:8]}",
            name=name,
            uri=str(self.folder),
            sha256=self.sha256,
            golden_sha256=self.golden_sha256,
        )


def publish(source: Path, place: Path, base: Path, golden: GoldenSet | None = None, base_sha256: str = "") -> Published:
    """Put an adapter's folder into a storage as a run publishes it: the manifest, and golden prompts beside."""
    shutil.copytree(source, place)
    files = describe_files(place, [p.name for p in place.iterdir() if p.name != "manifest.json"])
    manifest = AdapterManifest(
        files=files,
        sha256=digest_files(files),
        base="herd/tiny",
        base_sha256=base_sha256 or base_digest(base),
        template="base",
        stop_tokens=["<|im_end|>"],
        data_digest="d",
        recipe_digest="r",
    )
    (place / "manifest.json").write_text(json.dumps(manifest.to_json_dict()))
    golden_sha256 = None
    if golden is not None:
        text = golden.model_dump_json(by_alias=True)
        golden_sha256 = hashlib.sha256(text.encode()).hexdigest()
        (place / golden_name(golden_sha256)).write_text(text)
    return Published(place, manifest.sha256, golden_sha256)


def wish(base: Path, *adapters: AdapterWanted, serial: int = 1, engine: str = "cpu") -> AgentWanted:
    return AgentWanted(serial=serial, engine=engine, base=BaseWanted(uri=str(base)), adapters=list(adapters))  # type: ignore[arg-type]


async def until(
    condition: Callable[[], bool], told: Callable[[], object] = str, seconds: float = PATIENCE_SECONDS
) -> None:
    """Wait for a condition; fails with what `told` says."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"it never came true: {told()}")
        await asyncio.sleep(0.02)


@asynccontextmanager
async def running(client: EngineClient, scratch: Path, root: Path) -> AsyncIterator[Agent]:
    """An agent at work in this process."""
    agent = Agent(client, scratch, str(root), "pod-0", look_seconds=0.1)
    task = asyncio.create_task(agent.run())
    try:
        yield agent
        assert not task.done(), "the agent ended by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def find(agent: Agent, adapter: str) -> AdapterReport | None:
    return next((a for a in agent.report().adapters if a.id == adapter), None)


async def until_stage(agent: Agent, adapter: str, *stages: str) -> AdapterReport:
    """The adapter's report when it has come to one of the stages."""

    def is_there() -> bool:
        found = find(agent, adapter)
        return found is not None and found.stage in stages

    await until(is_there, agent.report)
    found = find(agent, adapter)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def golden_sets(random_base: Path, adapters: dict[str, Path]) -> dict[str, GoldenSet]:
    """Golden prompts of the plain adapters, as the evaluation makes them for the CPU engine."""
    import torch

    from llamero.evaluation.golden import make_golden

    torch.set_num_threads(1)
    return {name: make_golden(random_base, adapters[name]) for name in ("plain-a", "plain-b", "narrow")}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The storage's root."""
    root = tmp_path / "storage"
    root.mkdir()
    return root


Publish = Callable[..., Published]


@pytest.fixture
def publish_named(
    store: Path, random_base: Path, adapters: dict[str, Path], golden_sets: dict[str, GoldenSet]
) -> Publish:
    """Publishes one of the random adapters: with its golden prompts unless told otherwise, spoilt by a function before its digests are taken."""

    def build(
        name: str,
        spoil: Callable[[Path], object] = lambda folder: None,
        golden: GoldenSet | str | None = "own",
        base_sha256: str = "",
    ) -> Published:
        copy = Path(shutil.copytree(adapters[name], store / f"draft-{name}-{time.monotonic_ns()}"))
        spoil(copy)
        chosen = golden_sets.get(name) if golden == "own" else golden
        assert not isinstance(chosen, str)
        return publish(copy, store / f"{copy.name}-published", random_base, chosen, base_sha256)

    return build


@pytest.fixture(scope="session")
def engine(launch_engine: Any) -> Any:
    """A CPU engine without adapters that tests of single adapters share: each uses ids of its own."""
    return launch_engine(names=())


@pytest.fixture
async def client(engine: Any) -> AsyncIterator[EngineClient]:
    client = build_client("cpu", engine.url)
    yield client
    await client.close()


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def agent_environment(scratch: Path, root: Path, engine: str, **more: str) -> dict[str, str]:
    """A pod's environment for `python -m llamero.agent`."""
    scratch.mkdir(parents=True, exist_ok=True)
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("LLAMERO_")},
        "PYTHONPATH": str(Path(__file__).parents[3] / "services"),
        "HF_HUB_OFFLINE": "1",
        "LLAMERO_ENGINE": engine,
        "LLAMERO_ENGINE_URL": "http://127.0.0.1:9",
        "LLAMERO_SCRATCH": str(scratch),
        "LLAMERO_STORAGE": str(root),
        "LLAMERO_POD_NAME": "pod-0",
        "LLAMERO_POD_IP": "127.0.0.1",
        "LLAMERO_TERMINATION_LOG": str(scratch / "termination"),
        **more,
    }
