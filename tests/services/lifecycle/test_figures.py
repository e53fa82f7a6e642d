"""What a status shows of progress and conditions, in each phase and after the end."""

from typing import Any

import pytest
from services.lifecycle.simulation import Cluster, build_job

from llamero.spec.status import ConditionType, JobPhase, ProgressStatus, WorkKind


def shown(cluster: Cluster) -> ProgressStatus:
    assert cluster.status.progress is not None
    return cluster.status.progress


def test_a_run_that_has_succeeded_shows_all_of_it_done_and_the_trainings_last_loss() -> None:
    cluster = Cluster(build_job())
    cluster.settle()
    progress = shown(cluster)
    assert (progress.percent, progress.step, progress.total_steps, progress.loss) == (100, 5, 5, "1.0")
    for condition in ("Complete", "Ready", "EvaluationPassed", "Trained", "DataReady", "AdapterPublished"):
        assert cluster.reason(ConditionType(condition))[0] == "True", condition


def test_success_still_shows_after_a_suspension_a_mistake_in_the_spec_and_a_look_at_the_data() -> None:
    cluster = Cluster(build_job(retrain={"onDataChange": True, "pollIntervalSeconds": 60}))
    cluster.settle(20)
    job = cluster.job
    cluster.edit(suspend=True, retrain={"onDataChange": True, "pollIntervalSeconds": 60})
    cluster.reconcile()
    assert cluster.status.phase is JobPhase.SUCCEEDED
    assert shown(cluster).percent == 100
    cluster.job, cluster.problems = None, ("spec: it is wrong.",)
    cluster.reconcile()
    assert cluster.status.phase is JobPhase.FAILED
    cluster.job, cluster.problems = job, ()
    cluster.wait(100)
    cluster.reconcile()
    assert cluster.status.work is not None
    assert cluster.status.work.kind is WorkKind.PROBE
    assert (cluster.status.phase, shown(cluster).percent) == (JobPhase.SUCCEEDED, 100)


def test_preparing_shows_its_own_percent() -> None:
    cluster = Cluster(build_job())
    cluster.go_to(WorkKind.PREPARE)
    cluster.tell(phase="Preparing", activity="cleaning", done=30, total=120, unit="records")
    cluster.reconcile()
    assert (shown(cluster).percent, shown(cluster).activity, shown(cluster).loss) == (25, "cleaning", None)


def test_evaluating_shows_its_percent_beside_the_trainings_loss() -> None:
    cluster = Cluster(build_job())
    cluster.go_to(WorkKind.EVALUATE)
    assert (shown(cluster).percent, shown(cluster).loss) == (None, "1.0")
    cluster.tell(phase="Evaluating", activity="perplexity of base", done=50, total=100, unit="tokens")
    cluster.reconcile()
    assert (shown(cluster).percent, shown(cluster).step, shown(cluster).loss) == (50, 5, "1.0")
    written = cluster.status_writes
    cluster.wait(60)
    cluster.reconcile()
    assert cluster.status_writes == written, "nothing new was told, so nothing is written"


def test_a_training_pod_that_evaluates_keeps_the_loss_of_its_last_step() -> None:
    cluster = Cluster(build_job(training={"resources": {"gpus": 1}}))
    cluster.go_to(WorkKind.TRAIN)
    cluster.tell(phase="Training", done=5, total=5, unit="steps", step=5, loss=1.25)
    cluster.reconcile()
    cluster.wait(10)
    cluster.tell(phase="Evaluating", done=1, total=4, unit="tokens")
    cluster.reconcile()
    assert (shown(cluster).percent, shown(cluster).step, shown(cluster).loss) == (25, 5, "1.2500")


def test_a_refused_run_shows_the_loss_without_being_complete() -> None:
    cluster = Cluster(build_job())
    cluster.perplexity = "9.0"
    cluster.settle()
    assert cluster.status.failure is not None
    assert cluster.status.failure.reason == "GateRefused"
    assert (shown(cluster).percent, shown(cluster).loss) == (None, "1.0")
    assert cluster.reason(ConditionType.EVALUATION_PASSED) == ("False", "GateRefused")
    assert cluster.reason(ConditionType.COMPLETE)[0] == "False"


def test_a_run_that_failed_in_training_shows_how_far_it_came() -> None:
    cluster = Cluster(build_job())
    train = cluster.go_to(WorkKind.TRAIN)
    cluster.tell(phase="Training", activity="training", done=2, total=5, unit="steps", step=2, loss=7.0)
    cluster.reconcile()
    cluster.finish(train.name, 12, "The loss became NaN.")
    cluster.reconcile()
    assert cluster.status.phase is JobPhase.FAILED
    assert (shown(cluster).step, shown(cluster).loss, shown(cluster).activity) == (2, "7.0000", "")


@pytest.mark.parametrize(
    ("report", "hangs"),
    [
        pytest.param(
            {"phase": "Training", "done": 2, "total": 5, "unit": "steps", "step": 2}, True, id="between steps"
        ),
        pytest.param({"phase": "Training", "activity": "bringing base and data"}, False, id="bringing the base"),
        pytest.param({"phase": "Training", "activity": "saving", "step": 5}, False, id="saving"),
        pytest.param(
            {"phase": "Training", "done": 5, "total": 5, "unit": "steps", "step": 5}, False, id="all steps done"
        ),
        pytest.param(
            {"phase": "Evaluating", "done": 1, "total": 9, "unit": "tokens", "step": 5}, False, id="evaluating"
        ),
    ],
)
@pytest.mark.parametrize("after_a_step", [False, True])
def test_only_a_training_between_its_steps_can_hang(report: dict[str, Any], hangs: bool, after_a_step: bool) -> None:
    cluster = Cluster(build_job(training={"resources": {"gpus": 1}}, progressDeadlineSeconds=100))
    cluster.go_to(WorkKind.TRAIN)
    if after_a_step:
        cluster.tell(phase="Training", done=1, total=5, unit="steps", step=1)
        cluster.reconcile()
        cluster.wait(10)
    cluster.tell(**report)
    cluster.reconcile()
    cluster.wait(219)
    cluster.reconcile()
    assert cluster.status.tries.counted == 0
    cluster.wait(1)
    cluster.reconcile()
    assert (cluster.status.tries.counted == 1) is hangs
    assert any(n.reason == "Hung" for n in cluster.reported) is hangs


def test_a_training_is_not_hung_while_redis_is_away_nor_at_once_when_it_is_back() -> None:
    cluster = Cluster(build_job(progressDeadlineSeconds=100))
    cluster.go_to(WorkKind.TRAIN)
    cluster.tell(phase="Training", done=2, total=5, unit="steps", step=2)
    cluster.reconcile()
    cluster.redis_problem = "It does not answer."
    cluster.wait(1000)
    cluster.reconcile()
    assert cluster.reason(ConditionType.READY) == ("False", "RedisAway")
    cluster.redis_problem = None
    cluster.reconcile()
    cluster.wait(219)
    cluster.reconcile()
    assert cluster.status.tries.counted == 0
    cluster.wait(1)
    cluster.reconcile()
    assert cluster.status.tries.counted == 1


def test_the_usage_counts_gpus_by_the_price_of_their_class() -> None:
    cluster = Cluster(build_job(training={"resources": {"gpus": 2, "gpuClass": ["big"]}}))
    cluster.limits = cluster.limits.__class__(known_gpu_classes=frozenset({"big"}), gpu_prices={"big": 1.8})
    train = cluster.go_to(WorkKind.TRAIN)
    began = cluster.now
    cluster.wait(1000)
    cluster.finish(train.name, 75, "It was told to stop.")
    cluster.reconcile()
    seconds = int((cluster.now - began).total_seconds()) * 2
    assert cluster.status.usage.gpu_seconds == seconds == 2000
    assert cluster.status.usage.cost == "1.0000"
    cluster.settle()
    assert cluster.status.phase is JobPhase.SUCCEEDED
    assert cluster.status.usage.gpu_seconds > seconds
