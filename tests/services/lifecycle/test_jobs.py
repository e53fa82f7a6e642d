"""The life of a job, told by tables and by a cluster in memory."""

import random
from dataclasses import replace

import pytest
from services.lifecycle.simulation import Cluster, Crash, build_job

from llamero.lifecycle.jobs import decide
from llamero.spec.status import ConditionType, JobPhase, WorkKind


def settle(cluster: Cluster, passes: int = 60) -> list[JobPhase]:
    """Let every pod do its work until nothing moves; the phases on the way."""
    phases: list[JobPhase] = []
    for _ in range(passes):
        cluster.reconcile()
        phases.append(cluster.status.phase)
        cluster.reap()
        for child in cluster.live():
            if child.pods and child.pods[0].exit_code is None:
                cluster.finish(child.name)
        cluster.wait(2)
    return list(dict.fromkeys(phases))


def test_a_job_goes_through_its_phases_to_an_adapter() -> None:
    cluster = Cluster(build_job())
    phases = settle(cluster)
    assert phases == ["Preparing", "Training", "Evaluating", "RollingOut", "Succeeded"]
    assert list(cluster.adapters) == ["tutor-r1"]
    complete = cluster.status.condition(ConditionType.COMPLETE)
    assert complete is not None and complete.status == "True"
    assert [w.kind for w in cluster.sent] == ["prepare", "train", "evaluate"]


def test_a_finished_job_is_not_written_again() -> None:
    cluster = Cluster(build_job())
    settle(cluster)
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
    settle(cluster)
    cluster.edit(training={"epochs": 1, "resources": {"gpus": 0}})
    settle(cluster)
    assert (cluster.status.run, cluster.status.phase) == (2, "Succeeded")
    assert list(cluster.adapters) == ["tutor-r1", "tutor-r2"]


def test_an_edit_of_the_gate_judges_again_without_a_new_run() -> None:
    cluster = Cluster(build_job(evaluation={"gate": {"minPerplexityImprovement": 0.9}}))
    settle(cluster)
    assert cluster.status.failure is not None and cluster.status.failure.reason == "GateRefused"
    cluster.edit()
    settle(cluster)
    assert (cluster.status.run, cluster.status.phase) == (1, "Succeeded")


def test_a_deleted_job_is_cleaned_and_let_go() -> None:
    cluster = Cluster(build_job())
    cluster.reconcile()
    cluster.deleting = True
    settle(cluster, 10)
    assert cluster.gone


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_a_job_ends_and_no_number_repeats(seed: int) -> None:
    rng = random.Random(seed)
    cluster = Cluster(build_job(backoffLimit=100))

    def crash(_: str) -> None:
        if rng.random() < 0.15:
            raise Crash

    cluster.crash = crash
    given: dict[tuple[int, WorkKind], int] = {}
    for _ in range(80):
        try:
            decision = decide(cluster.world(), cluster.limits, cluster.now)
            assert decision == decide(cluster.world(), cluster.limits, cluster.now)
            assert len({(w.kind, w.run) for w in decision.work}) == len(decision.work)
            for work in decision.work:
                assert work.attempt >= given.get((work.run, work.kind), 0)
                given[work.run, work.kind] = work.attempt
            cluster.reconcile()
        except Crash:
            pass
        disturb(cluster, rng)
        cluster.wait(rng.choice([0, 1, 5, 30, -3]))
        assert len(cluster.status.model_dump_json(by_alias=True)) < 10_000
    cluster.crash = lambda _: None
    cluster.redis_problem = None
    cluster.edit()
    for _ in range(80):
        cluster.wait(30)
        settle(cluster, 1)
    assert cluster.status.phase in ("Succeeded", "Failed")
    again = decide(cluster.world(), cluster.limits, cluster.now)
    assert again.status == cluster.status


def disturb(cluster: Cluster, rng: random.Random) -> None:
    cluster.redis_problem = "away" if rng.random() < 0.1 else None
    if rng.random() < 0.5:
        cluster.reap()
    if rng.random() < 0.05:
        cluster.edit(suspend=True)
    elif rng.random() < 0.2:
        cluster.edit(
            **({"training": {"epochs": rng.choice([1, 2]), "resources": {"gpus": 0}}} if rng.random() < 0.3 else {})
        )
    for child in cluster.live():
        if not child.pods or child.pods[0].exit_code is not None:
            continue
        match rng.randrange(12):
            case 0 | 1 | 2:
                cluster.finish(child.name)
            case 3:
                cluster.finish(child.name, rng.choice([1, 75, 13, 15]), "It ended.")
            case 4:
                cluster.finish(child.name, 0, silent=True)
            case 5:
                cluster.delete_child(child.name)
            case 6:
                cluster.change_pod(child.name, deleting=True)


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
