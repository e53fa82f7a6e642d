"""A job that is suspended just when a pass has died between its writes: what was finished counts, and no attempt's number is used twice."""

import pytest
from services.lifecycle.simulation import Cluster, build_job

from llamero.spec.status import WorkKind


class DiedError(Exception):
    """The operator was killed."""


@pytest.mark.parametrize("moment", ["send", "status"])
def test_a_suspension_after_an_unwritten_pass_keeps_the_answer_and_takes_the_number(moment: str) -> None:
    cluster = Cluster(build_job())
    prepared = cluster.go_to(WorkKind.PREPARE)
    cluster.finish(prepared.name)

    def die(name: str) -> None:
        if name == moment:
            raise DiedError

    cluster.crash = die
    with pytest.raises(DiedError):
        cluster.reconcile()
    cluster.crash = lambda _: None
    made = [c for c in cluster.children.values() if c.kind is WorkKind.TRAIN]
    assert [c.attempt for c in made] == [1]
    assert cluster.status.data is None
    cluster.edit(suspend=True)
    cluster.reconcile()
    assert cluster.status.phase == "Suspended"
    assert cluster.status.data is not None
    assert cluster.status.attempts == {"prepare": 1, "train": 1}
    cluster.edit(suspend=False)
    cluster.settle()
    assert cluster.status.phase == "Succeeded"
    assert cluster.status.attempts == {"prepare": 1, "train": 2, "evaluate": 1}
