"""Rollouts on llamero's own engine while clients stream: two replicas on two nodes."""

import pytest

from serving.conftest import SetStage, require_whole
from serving.stories import Stage, answer_badly, bad_adapters, drain_node, kill_pod, roll_out

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def stage(set_stage: SetStage) -> Stage:
    return set_stage("cpu", replicas=2, nodes=2)


def test_a_good_adapter_takes_over_step_by_step_without_a_failed_or_a_wrong_answer(stage: Stage) -> None:
    row = roll_out(stage)
    require_whole(row)
    assert set(row.tally.answered_by) == {"amber", "birch"}


def test_bad_adapters_are_refused_with_a_sentence_and_nobody_ever_meets_them(stage: Stage) -> None:
    rank, damaged, another = bad_adapters(stage)
    for row in (rank, damaged, another):
        require_whole(row)
        assert set(row.tally.answered_by) == {stage.word(stage.serving)}
    assert "where adapter_config.json says 8" in rank.told
    assert "differs from its manifest's digest" in damaged.told
    assert "golden" in another.told


def test_an_adapter_that_people_vote_down_goes_back_by_itself_and_its_condition_says_why(stage: Stage) -> None:
    row = answer_badly(stage)
    require_whole(row)
    assert "votes" in row.told


def test_a_killed_engine_breaks_off_its_own_streams_alone_and_each_says_so(stage: Stage) -> None:
    row = kill_pod(stage)
    require_whole(row)
    assert row.broken <= row.at_risk


def test_a_node_is_drained_and_nobody_notices(stage: Stage) -> None:
    require_whole(drain_node(stage))
