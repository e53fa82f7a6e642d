"""The life of a job, told by tables and by a cluster in memory."""

from dataclasses import replace

import pytest
from services.lifecycle.simulation import Cluster, build_job

from llamero.spec.status import ConditionType, WorkKind


def test_a_job_goes_through_its_phases_to_an_adapter() -> None:
    cluster = Cluster(build_job())
    phases = cluster.settle()
    assert phases == ["Preparing", "Training", "Evaluating", "RollingOut", "Succeeded"]
    assert list(cluster.adapters) == ["tutor-r1"]
    complete = cluster.status.condition(ConditionType.COMPLETE)
    assert complete is not None and complete.status == "True"
    assert [w.kind for w in cluster.sent] == ["prepare", "train", "evaluate"]


def test_a_finished_job_is_not_written_again() -> None:
    cluster = Cluster(build_job())
    cluster.settle()
    written = cluster.status_writes
    cluster.wait(3600)
    cluster.reconcile()
    assert cluster.status_writes == written


@pytest.mark.parametrize(
    ("exit_code", "silent", "reason", "phase", "counted", "free"),
    [
        pytest.param(3, False, None, "Failed", 0, 0, id="a data error is final"),
        pytest.param(2, False, None, "Failed", 0, 0, id="a bad config is final"),
        pytest.param(2, True, None, "Training", 1, 0, id="code 2 without a word is a bug"),
        pytest.param(1, False, None, "Training", 1, 0, id="a bug is counted"),
        pytest.param(75, False, None, "Training", 0, 1, id="an interruption is free"),
        pytest.param(137, True, "Evicted", "Training", 0, 1, id="an eviction is free"),
        pytest.param(15, False, None, "Training", 0, 1, id="an idle worker is free"),
        pytest.param(0, True, None, "Training", 0, 1, id="a lost answer is free"),
    ],
)
def test_failures_are_followed_by_their_rule(
    exit_code: int, silent: bool, reason: str | None, phase: str, counted: int, free: int
) -> None:
    cluster = Cluster(build_job())
    cluster.reconcile()
    cluster.finish(cluster.live()[0].name)
    cluster.reconcile()
    train = next(c for c in cluster.live() if c.kind is WorkKind.TRAIN)
    cluster.finish(train.name, exit_code, "What happened and what to do.", reason, silent)
    cluster.reconcile()
    tries = cluster.status.tries
    assert (cluster.status.phase, tries.counted, tries.free) == (phase, counted, free)


def test_out_of_memory_halves_the_bins() -> None:
    cluster = Cluster(build_job())
    cluster.reconcile()
    cluster.finish(cluster.live()[0].name)
    cluster.reconcile()
    cluster.finish(
        next(c.name for c in cluster.live() if c.kind is WorkKind.TRAIN), 137, silent=True, reason="OOMKilled"
    )
    decision = cluster.reconcile()
    assert decision.work[0].micro_batch_tokens == 1024
    assert decision.work[0].attempt == 2


def test_an_edit_of_the_inputs_starts_the_next_run() -> None:
    cluster = Cluster(build_job())
    cluster.settle()
    cluster.edit(training={"epochs": 1, "resources": {"gpus": 0}})
    cluster.settle()
    assert (cluster.status.run, cluster.status.phase) == (2, "Succeeded")
    assert list(cluster.adapters) == ["tutor-r1", "tutor-r2"]


def test_an_edit_of_the_gate_judges_again_without_a_new_run() -> None:
    cluster = Cluster(build_job(evaluation={"gate": {"minPerplexityImprovement": 0.9}}))
    cluster.settle()
    assert cluster.status.failure is not None and cluster.status.failure.reason == "GateRefused"
    cluster.edit()
    cluster.settle()
    assert (cluster.status.run, cluster.status.phase) == (1, "Succeeded")


def test_a_deleted_job_is_cleaned_and_let_go() -> None:
    cluster = Cluster(build_job())
    cluster.reconcile()
    cluster.deleting = True
    cluster.settle(10)
    assert cluster.gone


def test_a_task_that_nobody_took_is_sent_again() -> None:
    cluster = Cluster(build_job())
    cluster.reconcile()
    cluster.wait(31)
    cluster.reconcile()
    cluster.reconcile()
    assert [w.attempt for w in cluster.sent] == [1, 1]


def test_an_unschedulable_training_tries_the_next_gpu_class() -> None:
    cluster = Cluster(build_job(training={"resources": {"gpus": 1, "gpuClass": ["spot", "steady"]}}))
    cluster.limits = replace(cluster.limits, known_gpu_classes=frozenset({"spot", "steady"}))
    cluster.reconcile()
    cluster.finish(cluster.live()[0].name)
    cluster.reconcile()
    train = next(c for c in cluster.live() if c.kind is WorkKind.TRAIN)
    cluster.change_pod(train.name, phase="Pending", node=None, running_since=None, unschedulable="0/1 nodes.")
    cluster.wait(301)
    cluster.reconcile()
    cluster.reap()
    decision = cluster.reconcile()
    assert (decision.work[0].gpu_class, decision.work[0].attempt) == ("steady", 2)
