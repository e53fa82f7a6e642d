"""The attempt at hand: whose word counts, what is waited for before the next one, what lagging watches and lost messages do."""

from dataclasses import replace
from itertools import pairwise

import pytest
from services.lifecycle.simulation import Cluster, build_job

from llamero.lifecycle.jobs import decide
from llamero.spec.status import ConditionType, WorkKind
from llamero.spec.tasks import LogRequest

GPU = {"resources": {"gpus": 1}}
THREE = {"sources": [{"uri": "/data/a.jsonl", "format": "alpaca"}], "workers": 3}


def test_a_pod_with_a_gpu_evaluates_what_it_has_trained() -> None:
    cluster = Cluster(build_job(training=GPU))
    train = cluster.go_to(WorkKind.TRAIN)
    assert cluster.sent[-1].evaluate_too
    cluster.finish(train.name, **cluster.results(WorkKind.EVALUATE))
    cluster.settle(5)
    assert cluster.status.phase == "Succeeded"
    assert WorkKind.EVALUATE not in cluster.status.attempts


def test_a_failing_evaluation_in_the_training_pod_does_not_undo_the_training() -> None:
    cluster = Cluster(build_job(training=GPU))
    train = cluster.go_to(WorkKind.TRAIN)
    cluster.finish(train.name, 1, "The evaluation broke.", kind=WorkKind.EVALUATE, **cluster.results(WorkKind.TRAIN))
    cluster.reconcile()
    assert cluster.status.training is not None
    assert cluster.status.tries.counted == 1
    evaluate = cluster.go_to(WorkKind.EVALUATE)
    assert evaluate.attempt == 1
    cluster.settle()
    assert cluster.status.phase == "Succeeded"
    assert cluster.status.attempts[WorkKind.TRAIN] == 1


def test_memory_that_an_evaluation_in_the_training_pod_lacks_does_not_halve_the_bins() -> None:
    cluster = Cluster(build_job(training=GPU))
    train = cluster.go_to(WorkKind.TRAIN)
    cluster.finish(train.name, 10, "Out of memory.", kind=WorkKind.EVALUATE, **cluster.results(WorkKind.TRAIN))
    cluster.reconcile()
    assert (cluster.status.tries.counted, cluster.status.tries.micro_batch_tokens) == (1, 0)


def test_of_several_data_pods_the_one_that_answers_with_the_data_counts() -> None:
    cluster = Cluster(build_job(data=THREE))
    prepare = cluster.go_to(WorkKind.PREPARE)
    assert len(prepare.pods) == 3
    helper, other, coordinator = prepare.pods
    empty = cluster.answer(prepare, 0, "").model_copy(update={"data": None, "pod": helper.uid})
    full = cluster.answer(prepare, 0, "").model_copy(update={"pod": coordinator.uid})
    helper = replace(helper, phase="Succeeded", exit_code=0, outcome=empty)
    cluster.children[prepare.name] = replace(prepare, pods=(other, helper, coordinator))
    cluster.reconcile()
    assert cluster.status.data is None
    assert cluster.status.work is not None and cluster.status.work.attempt == 1
    ended = replace(coordinator, phase="Succeeded", exit_code=0, outcome=full)
    cluster.children[prepare.name] = replace(prepare, pods=(other, helper, ended))
    cluster.reconcile()
    assert cluster.status.data is not None
    assert [c.kind for c in cluster.live()] == [WorkKind.TRAIN], "a straggling data pod is waited for by nobody"


def test_a_data_pod_whose_word_does_not_count_may_be_taken_away() -> None:
    cluster = Cluster(build_job(data=THREE))
    prepare = cluster.go_to(WorkKind.PREPARE)
    counted = cluster.status.work
    assert counted is not None
    pods = [replace(p, deleting=p.uid != counted.pod) for p in prepare.pods]
    cluster.children[prepare.name] = replace(prepare, pods=tuple(pods))
    if counted.pod is None:
        cluster.tell(phase="Preparing", done=1, total=2)
    cluster.reconcile()
    assert cluster.status.attempts[WorkKind.PREPARE] == 1


def test_an_answer_of_another_attempt_run_or_job_is_not_believed() -> None:
    cluster = Cluster(build_job())
    train = cluster.go_to(WorkKind.TRAIN)
    right = cluster.answer(train, 0, "")
    for change in (
        {"attempt": 2},
        {"run": 2},
        {"uid": "other"},
        {"namespace": "elsewhere"},
        {"kind": WorkKind.EVALUATE},
    ):
        wrong = right.model_copy(update={"id": right.id.model_copy(update=change)})
        cluster.change_pod(train.name, exit_code=0, phase="Succeeded", outcome=wrong)
        assert decide(cluster.world(), cluster.limits, cluster.now).status.training is None, change
    cluster.change_pod(train.name, outcome=right)
    cluster.reconcile()
    assert cluster.status.training is not None


def test_an_answer_that_comes_twice_counts_once() -> None:
    cluster = Cluster(build_job())
    train = cluster.go_to(WorkKind.TRAIN)
    cluster.finish(train.name)
    cluster.hidden = set()
    cluster.reconcile()
    cluster.ghosts = {train.name: replace(cluster.children.get(train.name, train), deleting=True)}
    for _ in range(3):
        cluster.reconcile()
    assert cluster.status.attempts == {WorkKind.PREPARE: 1, WorkKind.TRAIN: 1, WorkKind.EVALUATE: 1}
    assert [w.kind for w in cluster.sent] == ["prepare", "train", "evaluate"]


def test_a_child_that_the_watch_does_not_show_yet_is_neither_made_again_nor_taken_for_lost() -> None:
    cluster = Cluster(build_job())
    cluster.reconcile()
    cluster.hidden = set(cluster.children)
    for _ in range(5):
        decision = cluster.reconcile()
        assert [w.attempt for w in decision.work] == [1]
        cluster.wait(10)
    assert cluster.pods_made == 1
    assert cluster.reason(ConditionType.SCHEDULED) == ("False", "PodsStarting")
    cluster.hidden.clear()
    cluster.settle()
    assert cluster.status.phase == "Succeeded"


def test_a_child_that_was_seen_and_is_gone_is_lost_and_tried_again() -> None:
    cluster = Cluster(build_job())
    train = cluster.go_to(WorkKind.TRAIN)
    del cluster.children[train.name]
    cluster.reconcile()
    assert (cluster.status.tries.free, cluster.status.attempts[WorkKind.TRAIN]) == (1, 2)
    assert cluster.reported[-1].reason == "Preempted"


def test_a_job_made_by_a_pass_whose_status_was_never_written_is_taken_on() -> None:
    cluster = Cluster(build_job())
    before = cluster.status
    cluster.reconcile()
    cluster.finish(next(iter(cluster.children)))
    cluster.status = before
    cluster.settle()
    assert cluster.status.phase == "Succeeded"
    assert cluster.status.attempts[WorkKind.PREPARE] == 1


@pytest.mark.parametrize("kind", [WorkKind.TRAIN, WorkKind.EVALUATE])
def test_the_next_attempt_waits_for_pods_that_write_but_not_for_ever(kind: WorkKind) -> None:
    cluster = Cluster(build_job())
    child = cluster.go_to(kind)
    cluster.edit(suspend=True)
    cluster.reconcile()
    assert cluster.children[child.name].deleting
    cluster.edit()
    cluster.reconcile()
    assert cluster.reason(ConditionType.READY) == ("False", "WaitingForPods")
    cluster.wait(cluster.limits.grace_seconds - 1)
    cluster.reconcile()
    assert cluster.status.attempts[kind] == 1
    cluster.wait(1)
    cluster.reconcile()
    assert cluster.status.attempts[kind] == 2, "a pod of a lost node never ends"


def test_an_evaluation_waits_for_a_training_pod_that_still_ends() -> None:
    cluster = Cluster(build_job(training=GPU))
    train = cluster.go_to(WorkKind.TRAIN)
    zombie = replace(train, deleting=True, pods=(replace(train.pods[0], deleting=True),))
    cluster.change_pod(train.name, deleting=True)
    cluster.reconcile()
    cluster.reap()
    cluster.ghosts = {train.name: zombie}
    cluster.wait(cluster.limits.grace_seconds)
    cluster.reconcile()
    second = next(c for c in cluster.live() if c.kind is WorkKind.TRAIN)
    assert second.attempt == 2
    cluster.reconcile()
    cluster.finish(second.name)
    cluster.reconcile()
    assert cluster.status.training is not None
    assert cluster.reason(ConditionType.READY) == ("False", "WaitingForPods")
    cluster.ghosts.clear()
    cluster.reconcile()
    assert cluster.status.work is not None and cluster.status.work.kind is WorkKind.EVALUATE


def test_a_doubled_task_is_sent_only_while_nobody_has_taken_it() -> None:
    cluster = Cluster(build_job())
    cluster.go_to(WorkKind.TRAIN)
    before = len(cluster.sent)
    cluster.wait(29)
    cluster.reconcile()
    assert len(cluster.sent) == before
    cluster.wait(1)
    cluster.reconcile()
    assert len(cluster.sent) == before + 1
    cluster.tell(phase="Training", activity="bringing base and data")
    cluster.wait(31)
    cluster.reconcile()
    cluster.progress = None
    cluster.wait(1000)
    cluster.reconcile()
    assert len(cluster.sent) == before + 1, "it has told that it has the task"
    assert cluster.status.work is not None
    assert (cluster.status.work.sends, cluster.status.work.received) == (2, True)


def test_interruptions_in_a_row_are_spaced_out_and_never_fail_the_run() -> None:
    cluster = Cluster(build_job())
    starts = []
    for _ in range(30):
        train = cluster.go_to(WorkKind.TRAIN)
        starts.append(cluster.now)
        cluster.change_pod(train.name, deleting=True)
        cluster.reconcile()
        cluster.reap()
    assert cluster.status.failure is None
    gaps = [(b - a).total_seconds() for a, b in pairwise(starts)]
    assert gaps[-1] >= 60 > gaps[0]


def test_kept_logs_are_printed_for_a_while_beside_the_run_and_each_request_once() -> None:
    cluster = Cluster(build_job())
    train = cluster.go_to(WorkKind.TRAIN)
    cluster.log_request = LogRequest(number=7, run=1, kind=WorkKind.PREPARE)
    cluster.reconcile()
    logs = next(c for c in cluster.live() if c.kind is WorkKind.LOGS)
    assert (logs.attempt, logs.run) == (7, 1)
    assert train.name in cluster.children
    cluster.finish(logs.name)
    cluster.reconcile()
    cluster.wait(119)
    cluster.reconcile()
    assert logs.name in cluster.children
    cluster.wait(1)
    cluster.reconcile()
    assert logs.name not in cluster.children
    for _ in range(3):
        cluster.reconcile()
    assert logs.name not in cluster.children
    cluster.log_request = LogRequest(number=8)
    cluster.reconcile()
    assert [c.attempt for c in cluster.live() if c.kind is WorkKind.LOGS] == [8]
    cluster.log_request = None
    cluster.reconcile()
    cluster.reap()
    assert [c.kind for c in cluster.live()] == [WorkKind.TRAIN]
    assert cluster.status.attempts[WorkKind.TRAIN] == 1


@pytest.mark.parametrize("kind", [WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE])
def test_work_that_a_pod_finished_in_its_grace_is_not_done_again(kind: WorkKind) -> None:
    cluster = Cluster(build_job())
    child = cluster.go_to(kind)
    if kind is WorkKind.PREPARE:
        cluster.tell(phase="Preparing", done=1, total=2)
        cluster.status = cluster.status.model_copy(
            update={"work": cluster.status.work.model_copy(update={"pod": child.pods[0].uid})}  # type: ignore[union-attr]
        )
    cluster.change_pod(child.name, deleting=True)
    cluster.reconcile()
    assert cluster.reported[-1].reason == "Preempted"
    assert cluster.reason(ConditionType.READY) == ("False", "WaitingForPods")
    cluster.finish(child.name)
    cluster.reconcile()
    cluster.reap()
    cluster.settle()
    assert cluster.status.phase == "Succeeded"
    assert cluster.status.attempts[kind] == 1


@pytest.mark.parametrize("code", [1, 75])
def test_a_pod_that_did_not_finish_in_its_grace_is_followed_by_the_next_attempt(code: int) -> None:
    cluster = Cluster(build_job())
    train = cluster.go_to(WorkKind.TRAIN)
    cluster.change_pod(train.name, deleting=True)
    cluster.reconcile()
    cluster.finish(train.name, code, "It was told to stop.")
    cluster.reconcile()
    assert cluster.status.attempts[WorkKind.TRAIN] == 2
    assert (cluster.status.tries.free, cluster.status.tries.counted) == (1, 0)
