"""Rollouts on the stand-in for text-generation-inference while clients stream: every change of its adapters is a rolling restart."""

import pytest

from serving.conftest import SetStage, require_whole
from serving.makers import corrupt
from serving.stories import Stage, answer_badly, gather, refuse, roll_out

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def stage(set_stage: SetStage) -> Stage:
    return set_stage("tgi")


def test_a_good_adapter_comes_by_a_rolling_restart_without_a_failed_or_a_wrong_answer(stage: Stage) -> None:
    before = {pod["metadata"]["uid"] for pod in stage.world.pods("tiny")}
    row = roll_out(stage)
    require_whole(row)
    assert set(row.tally.answered_by) == {"amber", "birch"}
    assert not before & {pod["metadata"]["uid"] for pod in stage.world.pods("tiny")}


def test_adapters_that_come_close_together_are_gathered_into_one_restart(stage: Stage) -> None:
    row, templates = gather(stage)
    require_whole(row)
    assert templates == 1
    assert {"cedar", "delta"} <= set(row.tally.answered_by)


def test_a_damaged_adapter_is_refused_before_the_engine_starts_and_the_old_pod_goes_on(stage: Stage) -> None:
    good = stage.tiny.adapter("ember")
    row = refuse(stage, "tgi-damaged", stage.tiny.variant("tgi-damaged", lambda f: corrupt(good, f)), "a damaged file")
    require_whole(row)
    assert "differs from its manifest's digest" in row.told


def test_an_adapter_that_people_vote_down_goes_back_by_itself(stage: Stage) -> None:
    require_whole(answer_badly(stage))
