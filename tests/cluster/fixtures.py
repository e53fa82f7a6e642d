"""Pytest fixtures: a control plane and a node a session (one for each xdist worker), a namespace a test, further parts on demand.

`tests/conftest.py` loads this module as a plugin, so every folder of tests has them.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import REPOSITORY, ControlPlane
from cluster.faults import FaultProxy
from cluster.node import NodeOptions, NodeThread
from cluster.redis_server import RedisServer
from cluster.runtimes import Runtime

StartNode = Callable[..., NodeThread]
FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Any:
    """Notes a failure, so that a namespace's events are shown where its test failed."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session")
def cluster_crds() -> list[Path]:
    """The CRDs that the control plane starts with: those of the chart, where there is one."""
    return sorted((REPOSITORY / "charts" / "llamero" / "crds").glob("*.yaml"))


@pytest.fixture(scope="session")
def control_plane(cluster_crds: list[Path]) -> Iterator[ControlPlane]:
    """A real control plane, shared by the tests of this worker."""
    with ControlPlane(crds=cluster_crds) as running:
        yield running


@pytest.fixture(scope="session")
def cluster_node(control_plane: ControlPlane) -> Iterator[NodeThread]:
    """The node `node-a`, which runs pods as processes, shared by the tests of this worker."""
    with NodeThread(control_plane.access, control_plane.folder / "nodes" / "node-a", "node-a") as node:
        yield node


@pytest.fixture
def namespace(control_plane: ControlPlane, cluster_node: NodeThread, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own with a node to run its pods; its events are printed where the test failed."""
    name = control_plane.create_namespace(request.node.originalname.removeprefix("test_")[:30])
    yield name
    if request.node.stash.get(FAILED, False):
        print(control_plane.describe(name))
    control_plane.delete_namespace(name)


@pytest.fixture
def start_node(control_plane: ControlPlane) -> Iterator[StartNode]:
    """`start_node(name=None, runtime=None, **options)`: a further node until the test's end; options as in NodeOptions."""
    started: list[NodeThread] = []
    numbers = itertools.count(1)

    def start(name: str | None = None, runtime: Runtime | None = None, **options: Any) -> NodeThread:
        chosen = name or f"extra-{next(numbers)}"
        folder = control_plane.folder / "nodes" / chosen
        node = NodeThread(control_plane.access, folder, chosen, runtime=runtime, options=NodeOptions(**options))
        started.append(node)
        node.start()
        return node

    yield start
    for node in started:
        node.stop()


@pytest.fixture
def fault_proxy(control_plane: ControlPlane) -> Iterator[FaultProxy]:
    """A proxy over TLS in front of the API server that misbehaves on demand, calm at first."""
    with FaultProxy(control_plane.access, control_plane.server_pair) as proxy:
        yield proxy


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A real Redis of the test's own, with an append-only file."""
    with RedisServer(tmp_path / "redis", append_only=True) as server:
        yield server
