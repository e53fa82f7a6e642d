"""A serving side for the tests of a file, and what no story may ever have: a failed request, or an answer by a wrong adapter."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from cluster.control_plane import ControlPlane

from serving.fixtures import Tiny as Tiny
from serving.fixtures import tiny as tiny
from serving.stories import Row, Stage, on_stage
from serving.world import running

SetStage = Callable[..., Stage]


@pytest.fixture(scope="module")
def set_stage(control_plane: ControlPlane, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SetStage]:
    """`set_stage(engine, replicas, nodes)`: a server under load, until the file's end."""
    with ExitStack() as stack:

        def build(engine: str, replicas: int = 1, nodes: int = 1) -> Stage:
            folder = tmp_path_factory.mktemp(engine)
            world = stack.enter_context(running(control_plane, folder, tiny.base, nodes=nodes))
            return stack.enter_context(on_stage(world, tiny, engine, replicas))

        yield build


def require_whole(row: Row) -> None:
    """Not one request failed that no killed pod excuses, and none was answered by a wrong adapter."""
    assert row.tally.requests > 10, row
    assert (row.unexplained, row.tally.wrong) == (0, 0), row
