"""Rollouts on the stand-in for vLLM while clients stream: adapters are loaded at run time in each process, and lost with it."""

import pytest

from serving.conftest import SetStage, require_whole
from serving.stories import Stage, crash_loop, delete_serving, kill_pod, restart_operator, roll_out

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


def test_a_rollout_goes_on_after_the_operator_was_killed_in_its_middle(stage: Stage) -> None:
    require_whole(restart_operator(stage))


def test_an_adapter_that_serves_is_deleted_once_the_one_before_has_taken_over(stage: Stage) -> None:
    before = next(name for name, word in stage.world.words.items() if word == "birch")
    require_whole(delete_serving(stage, before))
