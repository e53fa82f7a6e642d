"""The short version of the fault suite: a few kill points spread over a life, and one of each other fault. `make chaos` is the whole of it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.control_plane import ControlPlane
from stack.fork_server import ForkServer

from chaos.arena import Arena
from chaos.points import choose, kill_everywhere
from chaos.run import QUICK_POINTS
from chaos.suite import SCENARIOS, Scenario
from chaos.trials import Row, Trial, add_up, build_marks, render

pytestmark = [pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def arena(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with ForkServer() as fork_server:
        yield Arena(control_plane, tmp_path_factory.mktemp("chaos"), fork_server)


def check(trials: list[Trial]) -> None:
    tried = [t for t in trials if not t.skipped]
    if not tried:
        pytest.skip(trials[0].skipped)
    assert all(t.is_recovered for t in tried), (
        render(add_up(trials)) + "\n" + "\n".join(f"{t.fault}: {problem}" for t in tried for problem in t.problems)
    )


def test_an_operator_killed_at_any_write_or_send_ends_as_if_it_had_not_been(arena: Arena) -> None:
    trials = kill_everywhere(arena, 2, QUICK_POINTS)
    check(trials)
    assert len([t for t in trials if not t.skipped]) >= QUICK_POINTS - 1


SHORT = {"messages", "node", "zombie", "api-server"}
"""What `make test` tries of them; `make test-long` tries the others, `make chaos` all and more of each."""


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(s, id=s.name, marks=() if s.name in SHORT else pytest.mark.long)
        for s in SCENARIOS
        if not s.only_full
    ],
)
def test_a_job_survives(arena: Arena, scenario: Scenario) -> None:
    check(scenario.run(arena))


def test_a_process_of_the_fork_server_ends_with_its_own_code_and_by_signals(tmp_path: Path) -> None:
    """A wrong setting ends the operator with 2, as when it is executed; SIGKILL is told as such."""
    log = tmp_path / "log"
    with ForkServer() as server:
        wrong = server.spawn({"LLAMERO_SETTINGS": str(tmp_path / "absent.yaml")}, log, tmp_path)
        assert wrong.wait(30) == 2
        assert "absent.yaml" in log.read_text()
        waiting = server.spawn({"KUBECONFIG": "/absent", "LLAMERO_REDIS_URL": "redis://127.0.0.1:1"}, log, tmp_path)
        waiting.kill()
        began = time.monotonic()
        assert waiting.wait(10) == -9
        assert waiting.ended_at is not None
        assert waiting.ended_at >= began - 10


def test_points_are_chosen_evenly_from_first_to_last() -> None:
    points = [f"point {n}" for n in range(70)]
    assert choose(points, None) == list(range(1, 71))
    few = choose(points, 7)
    assert few == [6, 16, 26, 36, 46, 56, 66]
    assert choose(points[:3], 8) == [1, 2, 3]


def test_a_table_adds_trials_up_and_tells_what_was_skipped() -> None:
    trials = [Trial("a", 1.0), Trial("a", 3.0, 2, 0, ("no",)), Trial("b", None, skipped="no root")]
    first, second = add_up(trials)
    assert first == Row("a", 2, 1, 2.0, 3.0, 2, 0)
    assert "skipped: no root" in render([first, second])
    assert build_marks([first, second]) == {
        "tried": 2,
        "recovered": 1,
        "duplicates": 0,
        "lostSteps": 2,
        "secondsP95": {"a": 3.0},
    }
