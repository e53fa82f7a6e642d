"""Rollouts on the stand-in for vLLM while clients stream: adapters are loaded at run time in each process, and lost with it."""

import pytest

from serving.conftest import SetStage, require_whole
from serving.stories import Stage, crash_loop, kill_pod, roll_out

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def stage(set_stage: SetStage) -> Stage:
    return set_stage("vllm", replicas=2, nodes=2)


def test_a_good_adapter_is_loaded_on_each_pod_and_takes_over_without_a_restart(stage: Stage) -> None:
    before = {pod["metadata"]["uid"] for pod in stage.world.pods("tiny")}
    row = roll_out(stage)
    require_whole(row)
    assert set(row.tally.answered_by) == {"amber", "birch"}
    assert before == {pod["metadata"]["uid"] for pod in stage.world.pods("tiny")}


def test_adapters_that_an_engine_lost_with_its_process_are_loaded_again_and_no_request_meets_the_gap(
    stage: Stage,
) -> None:
    row = kill_pod(stage)
    require_whole(row)
    assert set(row.tally.answered_by) == {stage.word(stage.serving)}


def test_an_engine_that_crash_loops_after_a_change_takes_nothing_away_and_is_told(stage: Stage) -> None:
    row = crash_loop(stage)
    require_whole(row)
    assert "exit code 1" in row.told
