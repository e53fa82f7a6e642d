"""What a job waits for or founders on: mistakes in the spec, refused children, queues, images, limits of time, a base to be fetched."""

from dataclasses import replace
from typing import Any

import pytest
from services.lifecycle.simulation import Cluster, build_job

from llamero.lifecycle.world import Capabilities
from llamero.spec import names
from llamero.spec.status import ConditionType, JobPhase, WorkKind

READY = ConditionType.READY
SCHEDULED = ConditionType.SCHEDULED
REVISION = "c" * 40


def test_a_wrong_spec_stalls_the_job_and_its_correction_lets_it_go_on() -> None:
    cluster = Cluster(build_job())
    cluster.go_to(WorkKind.TRAIN)
    job, cluster.job, cluster.problems = cluster.job, None, ("spec.data: it is wrong", "spec.training: it too.")
    cluster.generation += 1
    decision = cluster.reconcile()
    assert decision.work == ()
    assert cluster.reason(ConditionType.STALLED) == ("True", "InvalidSpec")
    assert cluster.reason(READY) == ("False", "InvalidSpec")
    assert cluster.status.observed_generation == 2
    stalled = cluster.status.condition(ConditionType.STALLED)
    assert stalled is not None
    assert stalled.message == "spec.data: it is wrong. spec.training: it too."
    cluster.job, cluster.problems = job, ()
    cluster.reap()
    cluster.settle()
    assert (cluster.status.run, cluster.status.phase) == (1, "Succeeded")
    assert cluster.status.attempts[WorkKind.TRAIN] == 2


def test_a_job_that_is_wrong_from_the_start_makes_nothing_and_is_let_go_at_once() -> None:
    cluster = Cluster(None, ("spec: it is wrong.",))
    cluster.settle(3)
    assert (cluster.status.run, cluster.pods_made) == (0, 0)
    cluster.deleting = True
    cluster.reconcile()
    assert cluster.gone


@pytest.mark.parametrize(
    ("spec", "limits", "reason", "phase", "mended"),
    [
        pytest.param({}, {"allowed_bases": ("org/*",)}, "BaseNotAllowed", "Failed", {}, id="base"),
        pytest.param(
            {"training": {"resources": {"gpus": 1, "gpuClass": ["big"]}}},
            {"known_gpu_classes": frozenset({"small"})}, "UnknownGpuClass", "Failed", {"known_gpu_classes": frozenset({"big"})},
            id="gpu class",
        ),
        pytest.param({}, {"storage_problem": "No storage is set."}, "StorageNotSet", "Pending", {}, id="storage"),
    ],
)  # fmt: skip
def test_what_the_settings_do_not_allow_waits_for_them(
    spec: dict[str, Any], limits: dict[str, Any], reason: str, phase: str, mended: dict[str, Any]
) -> None:
    cluster = Cluster(build_job(**spec))
    good, cluster.limits = replace(cluster.limits, **mended), replace(cluster.limits, **limits)
    cluster.settle(3)
    assert cluster.reason(READY) == ("False", reason)
    assert (cluster.status.phase, cluster.pods_made) == (phase, 0)
    cluster.limits = good
    cluster.settle()
    assert cluster.status.phase == "Succeeded"
    cluster.limits = replace(cluster.limits, **limits)
    cluster.settle(3)
    assert cluster.status.phase == "Succeeded", "what only a run would need is not asked of one that is over"


@pytest.mark.parametrize("pattern", ["org/*", "org/base", f"org/base@{REVISION}"])
def test_a_base_that_a_pattern_names_is_allowed(pattern: str) -> None:
    cluster = Cluster(build_job(baseModel={"name": "org/base", "revision": REVISION}))
    cluster.limits = replace(cluster.limits, allowed_bases=(pattern,))
    cluster.settle()
    assert cluster.status.phase == "Succeeded"


def test_a_base_of_the_hub_is_fetched_once_for_all_runs_and_again_when_it_is_another() -> None:
    cluster = Cluster(build_job(baseModel={"name": "org/base"}))
    assert cluster.settle() == ["Pending", "Preparing", "Training", "Evaluating", "RollingOut", "Succeeded"]
    assert cluster.status.base is not None and cluster.status.base.uri == "/models/base"
    assert cluster.status.attempts[WorkKind.FETCH] == 1
    cluster.edit(baseModel={"name": "org/base"}, training={"epochs": 1, "resources": {"gpus": 0}})
    cluster.settle()
    assert (cluster.status.run, cluster.status.attempts[WorkKind.FETCH]) == (2, 1)
    cluster.edit(baseModel={"name": "org/other"})
    cluster.settle()
    assert (cluster.status.run, cluster.status.attempts[WorkKind.FETCH]) == (3, 2)


def test_a_fetch_that_fails_for_good_fails_the_run_with_its_sentence() -> None:
    cluster = Cluster(build_job(baseModel={"name": "org/base"}))
    fetch = cluster.go_to(WorkKind.FETCH)
    cluster.finish(fetch.name, 2, "org/base is not on the hub: mend baseModel.name.")
    cluster.reconcile()
    assert cluster.status.failure is not None
    assert (cluster.status.failure.reason, cluster.status.phase) == ("BadConfig", "Failed")
    assert "not on the hub" in cluster.status.failure.message


def test_a_refused_child_is_tried_until_it_is_taken_and_the_sentence_is_shown() -> None:
    cluster = Cluster(build_job())
    cluster.refuses = lambda _: "exceeded quota: pods"
    for _ in range(4):
        cluster.reconcile()
        cluster.wait(30)
    assert cluster.reason(READY) == ("False", "ChildRefused")
    assert cluster.reason(SCHEDULED) == ("False", "ChildRefused")
    ready = cluster.status.condition(READY)
    assert ready is not None and "exceeded quota" in ready.message
    assert cluster.status.attempts[WorkKind.PREPARE] == 1
    cluster.refuses = lambda _: None
    cluster.settle()
    assert cluster.status.phase == "Succeeded"
    assert cluster.status.attempts == {}.fromkeys(cluster.status.attempts, 1)


QUEUED = {names.QUEUE_LABEL: "team"}


def test_a_job_with_a_queue_waits_for_kueue_and_goes_on_after_it_was_taken_away() -> None:
    cluster = Cluster(build_job(labels=QUEUED), capabilities=Capabilities(job_suspend=True), suspends_children=True)
    for kind in (WorkKind.PREPARE, WorkKind.TRAIN):
        for _ in range(3):
            cluster.reconcile()
        (child,) = cluster.live()
        assert child.kind is kind
        assert cluster.reason(SCHEDULED) == ("False", "QueuedByKueue")
        cluster.wait(3600)
        cluster.reconcile()
        assert cluster.status.tries.free == 0, "waiting in a queue is no failure"
        admit(cluster, child.name)
        assert cluster.reason(SCHEDULED)[0] == "True"
        if kind is WorkKind.PREPARE:
            cluster.finish(child.name)
    cluster.children[child.name] = replace(cluster.children[child.name], suspended=True)
    cluster.change_pod(child.name, deleting=True)
    cluster.reconcile()
    cluster.reap()
    cluster.wait(5)
    cluster.reconcile()
    assert (cluster.status.tries.free, cluster.status.attempts[WorkKind.TRAIN]) == (1, 2)
    cluster.reconcile()
    assert cluster.reason(SCHEDULED) == ("False", "QueuedByKueue")


def admit(cluster: Cluster, name: str) -> None:
    cluster.children[name] = replace(cluster.children[name], suspended=False)
    cluster.add_pod(name)
    cluster.reconcile()


def test_a_queue_that_the_server_can_not_serve_makes_no_child_and_says_so() -> None:
    cluster = Cluster(build_job(labels=QUEUED))
    cluster.settle(3)
    assert cluster.pods_made == 0
    assert cluster.reason(SCHEDULED) == ("False", "QueueNotSupported")
    cluster.job = build_job()
    cluster.settle()
    assert cluster.status.phase == "Succeeded"


def test_an_image_that_can_not_be_pulled_is_waited_for_with_the_kubelets_words() -> None:
    cluster = Cluster(build_job())
    prepare = cluster.go_to(WorkKind.PREPARE)
    waiting = "ErrImagePull: no such image"
    cluster.change_pod(prepare.name, phase="Pending", running_since=None, waiting=waiting)
    cluster.wait(7200)
    cluster.reconcile()
    assert cluster.reason(READY) == ("False", "PodWaiting")
    ready = cluster.status.condition(READY)
    assert ready is not None and waiting in ready.message
    assert cluster.status.failure is None
    cluster.change_pod(prepare.name, phase="Running", running_since=cluster.now, waiting=None)
    cluster.settle()
    assert (cluster.status.phase, cluster.status.tries.free) == ("Succeeded", 0)


def test_the_last_gpu_class_is_waited_for() -> None:
    cluster = Cluster(build_job(training={"resources": {"gpus": 1, "gpuClass": ["big"]}}))
    cluster.limits = replace(cluster.limits, known_gpu_classes=frozenset({"big"}))
    train = cluster.go_to(WorkKind.TRAIN)
    cluster.change_pod(
        train.name, phase="Pending", node=None, running_since=None, unschedulable="0/3 nodes have a GPU."
    )
    cluster.wait(100_000)
    cluster.reconcile()
    assert cluster.reason(SCHEDULED) == ("False", "Unschedulable")
    assert cluster.status.attempts[WorkKind.TRAIN] == 1
    scheduled = cluster.status.condition(SCHEDULED)
    assert scheduled is not None and "0/3 nodes have a GPU." in scheduled.message


def test_a_run_that_takes_longer_than_its_deadline_fails() -> None:
    cluster = Cluster(build_job(activeDeadlineSeconds=100))
    cluster.go_to(WorkKind.TRAIN)
    assert cluster.status.active_since is not None
    left = 100 - (cluster.now - cluster.status.active_since).total_seconds()
    cluster.wait(left - 1)
    cluster.reconcile()
    assert cluster.status.phase == "Training"
    cluster.wait(1)
    decision = cluster.reconcile()
    assert decision.work == ()
    assert cluster.status.failure is not None
    assert cluster.status.failure.reason == "DeadlineExceeded"


def test_the_time_of_a_suspension_does_not_count_against_the_deadline() -> None:
    cluster = Cluster(build_job(activeDeadlineSeconds=100))
    cluster.go_to(WorkKind.TRAIN)
    cluster.edit(activeDeadlineSeconds=100, suspend=True)
    cluster.reconcile()
    assert cluster.status.phase is JobPhase.SUSPENDED
    cluster.reap()
    cluster.wait(100_000)
    cluster.edit(activeDeadlineSeconds=100)
    cluster.settle()
    assert cluster.status.phase == "Succeeded"
    assert cluster.status.tries.counted == 0


@pytest.mark.parametrize("outcome", ["2.0", "9.0"])
def test_a_finished_job_removes_itself_when_its_time_has_come(outcome: str) -> None:
    cluster = Cluster(build_job(ttlSecondsAfterFinished=3600), perplexity=outcome)
    cluster.settle(10)
    finished = cluster.status.finished_at
    assert finished is not None
    cluster.now = finished
    cluster.wait(3599)
    assert cluster.reconcile().wake_after == 1
    assert not cluster.removed
    cluster.wait(1)
    cluster.reconcile()
    assert cluster.removed


def test_redis_that_is_away_lets_no_attempt_start_and_ends_none() -> None:
    cluster = Cluster(build_job())
    cluster.redis_problem = "It does not answer."
    cluster.settle(5)
    assert cluster.reason(READY) == ("False", "RedisAway")
    assert cluster.pods_made == 0
    cluster.redis_problem = None
    train = cluster.go_to(WorkKind.TRAIN)
    cluster.redis_problem = "It does not answer."
    cluster.wait(100_000)
    assert [w.attempt for w in cluster.reconcile().work] == [1]
    cluster.finish(train.name)
    cluster.reconcile()
    assert cluster.status.training is not None
    cluster.redis_problem = None
    cluster.settle()
    assert cluster.status.phase == "Succeeded"


def test_a_worker_that_was_idle_for_want_of_redis_is_not_held_against_the_run() -> None:
    cluster = Cluster(build_job())
    for _ in range(30):
        cluster.redis_problem = None
        prepare = cluster.go_to(WorkKind.PREPARE)
        cluster.redis_problem = "It does not answer."
        cluster.finish(prepare.name, 15, "No task came.")
        cluster.reconcile()
        cluster.wait(120)
    assert cluster.status.failure is None
